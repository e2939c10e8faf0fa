"""The frame and the CSV as programs load them."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.reports.fabricate import (
    cell,
    failed,
    full_run,
    infer,
    ok,
    size,
    train_step,
    trained,
    training_cell,
    write_run,
)
from tests.reports.paired import TURNS, loads, timed
from vitbench.core.errors import RunFolderError
from vitbench.core.records import Cell, Measurement, Record
from vitbench.reports import load_records, write_report
from vitbench.reports.model.runs import Run, run_names
from vitbench.reports.table import render_csv, tidy_frame


def csv(*runs: Run) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(render_csv(runs)))


def test_the_frame_has_a_row_a_measurement(tmp_path: Path) -> None:
    run = full_run()
    frame = load_records(write_run(tmp_path / "first", run), write_run(tmp_path / "second", run))
    assert len(frame) == 2 * sum(len(record.measurements) for record in run.records)
    assert set(frame["run"]) == {"first", "second"}
    latency = frame.query("metric == 'latency' and model == 'vit_nano' and batch_size == 1 and run == 'first'").iloc[0]
    assert latency["unit"] == "s"
    assert 0.001 < latency["low"] < latency["value"] < latency["high"] < 0.003
    assert latency["n_samples"] + latency["n_left_out"] == len(latency["samples"][0]) == 40
    assert latency["n_left_out"] == 3
    assert latency["interval_kind"] == "within process"


def disturbed_run() -> Run:
    """Processes that have nothing in common, beside a program that used 0.9 cores."""
    latency = dataclasses.replace(timed("latency", (1.0, 2.0, 4.0)), other_load=((0.9,) * TURNS,) * 3)
    first = Measurement(metric="first_call", unit="s", samples=((0.5,), (0.6,), (0.7,)), method="made up")
    return Run(name="r", records=[ok(cell(), [*size(cell()), latency, first])])


def test_the_frame_says_which_turns_count_and_what_ran_beside_them() -> None:
    frame = tidy_frame([disturbed_run()]).set_index("metric")
    assert frame.loc["latency", ["turns_used", "other_load"]].tolist() == ["all", ((0.9,) * TURNS,) * 3]
    assert frame.loc["first_call", "samples"] == ((0.5,), (0.6,), (0.7,))
    assert frame.loc["params", "turns_used"] == ""


def test_the_csv_says_why_a_value_is_busy_and_keeps_its_interval() -> None:
    (line,) = csv(disturbed_run()).to_dict("records")
    assert line["latency_note"] == "busy: other programs used 0.90 cores in 100 % of its turns"
    assert (line["latency_status"], line["latency_turns_used"]) == ("ok", "all")
    assert line["latency_high_ms"] > 2 * line["latency_low_ms"]
    assert line["inference_first_call_s"] == pytest.approx((0.5 * 0.6 * 0.7) ** (1 / 3))


def test_a_cell_without_measurements_keeps_a_row() -> None:
    record = dataclasses.replace(failed(cell(), "killed", "probable_oom", "why"), measurements=())
    frame = tidy_frame([Run(name="r", records=[record])])
    assert len(frame) == 1
    assert frame.loc[0, ["status", "cell_status", "cause", "detail"]].tolist() == [
        "killed",
        "killed",
        "probable_oom",
        "why",
    ]
    assert pd.isna(frame.loc[0, "value"])


def test_an_empty_run_gives_an_empty_frame_with_its_columns() -> None:
    frame = tidy_frame([Run(name="r", records=[])])
    assert len(frame) == 0
    assert {"metric", "value", "samples"} <= set(frame)


def test_the_csv_has_a_line_a_row_and_batch_with_numbers_only() -> None:
    records = [
        infer(cell(batch=1)),
        failed(cell(batch=32), "oom", "out_of_memory", "no memory"),
        trained(training_cell("vit_micro"), 180),
    ]
    table = csv(Run(name="r", records=records))
    assert table["batch_size"].tolist() == [1, 32]
    assert table["accuracy"].tolist() == [0.5, 0.5]
    assert table["latency_ms"].dtype == "float64"
    assert table["latency_status"].tolist() == ["ok", "oom"]
    assert table["inference_cell_cause"].tolist()[1] == "out_of_memory"
    assert pd.isna(table["latency_ms"][1])
    assert table["latency_low_ms"][0] < table["latency_ms"][0] < table["latency_high_ms"][0]
    assert table["params"].tolist() == [1_213_450, 1_213_450]


def test_what_inference_and_a_training_step_both_measured_has_a_column_for_each() -> None:
    def measured(of: Cell, total: int, load: float, parts: dict[str, int]) -> Record:
        peak = [Measurement.single(f"tensor_peak{name}", "byte", n, "sum") for name, n in {"": total, **parts}.items()]
        return ok(of, [*size(of), *peak, *loads(load)])

    records = [
        measured(cell(batch=8), 300, 0.25, {"_weights": 300}),
        measured(cell(batch=8, mode="train"), 900, 0.5, {"_weights": 300, "_gradients": 600}),
        measured(cell("vit_nano", 8), 200, 0.75, {"_weights": 200}),
    ]
    both, alone = csv(Run(name="r", records=records)).set_index("model").loc[["vit_micro", "vit_nano"]].itertuples()
    assert (both.inference_tensor_peak_byte, both.inference_tensor_peak_weights_byte) == (300, 300)
    assert (both.training_tensor_peak_byte, both.training_tensor_peak_gradients_byte) == (900, 600)
    assert (both.inference_other_load_core, both.training_other_load_core) == (0.25, 0.5)
    assert (alone.inference_other_load_core, alone.inference_other_load_status) == (0.75, "ok")
    assert pd.isna(alone.training_other_load_core)
    assert pd.isna(alone.training_other_load_status)
    assert not {"tensor_peak_byte", "other_load_core", "inference_tensor_peak_gradients_byte"} & set(both._fields)


def test_a_published_figure_is_the_models_and_stands_once() -> None:
    claimed = Measurement.single("published_params", "parameter", 5, "the library")
    step = train_step(cell(batch=8, mode="train"))
    records = [infer(cell(), extra=[claimed]), dataclasses.replace(step, measurements=(*step.measurements, claimed))]
    table = csv(Run(name="r", records=records))
    assert [name for name in table if "published" in name] == ["published_params_parameter", "published_params_status"]
    assert table["published_params_parameter"].tolist() == [5, 5]


def test_counts_are_written_to_the_unit_and_times_to_ten_digits() -> None:
    counted = {
        "flops": ("FLOP", 35_127_656_449),
        "macs": ("MAC", 17_563_828_224.5),
        "tensor_peak": ("byte", 34567891234),
    }
    figures = [Measurement.single(name, unit, value, "counted") for name, (unit, value) in counted.items()]
    peak = Measurement.single("inference_peak_memory", "byte", 123_456_789_012, "allocator")
    latency = Measurement(metric="latency", unit="s", samples=((1 / 3,),), method="clock")
    texts = pd.read_csv(
        io.StringIO(render_csv([Run(name="r", records=[ok(cell(), [*figures, peak, latency])])])), dtype=str
    )
    line = texts.iloc[0]
    assert (line["gflops"], line["gmacs"]) == ("35.127656449", "17.5638282245")
    assert line["inference_tensor_peak_byte"] == "34567891234"
    assert line["inference_peak_memory_mb"] == "123456.789012"
    assert line["latency_ms"] == "333.3333333"


def test_a_training_without_timed_cells_has_a_line_without_a_batch() -> None:
    table = csv(Run(name="r", records=[trained(training_cell("vit_micro"), 180)]))
    assert table["batch_size"].isna().tolist() == [True]
    assert table["accuracy"].tolist() == [0.5]
    assert table["training_batch_size"].tolist() == [64]


def test_percentiles_need_samples() -> None:
    few, many = csv(Run(name="r", records=[infer(cell(), n=25), infer(cell(batch=2), n=400)])).itertuples()
    assert pd.isna(few.latency_p90_ms)
    assert many.latency_ms < many.latency_p90_ms <= many.latency_p99_ms


@pytest.mark.integration
def test_the_report_is_written_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", full_run())
    paths = write_report([folder], tmp_path / "made" / "out")
    assert [path.name for path in paths] == [
        "accuracy-latency.png",
        "accuracy-params.png",
        "report.csv",
        "report.md",
        "report.html",
    ]
    assert sorted((tmp_path / "made" / "out").iterdir()) == sorted(paths)
    assert all(path.stat().st_size > 0 for path in paths)


def test_without_accuracies_no_plot_is_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Run(name="run", records=[infer(cell())]))
    assert [path.name for path in write_report([folder], folder)] == ["report.csv", "report.md", "report.html"]
    assert "## Plots" not in (folder / "report.md").read_text(encoding="utf-8")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        load_records(tmp_path)


def test_a_report_cannot_be_written_into_a_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Run(name="run", records=[infer(cell())]))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="Choose another folder"):
        write_report([folder], tmp_path / "file")


def test_runs_of_one_name_are_numbered() -> None:
    assert run_names([Path("a/x"), Path("b/x"), Path("c/y")]) == ["x", "x (2)", "y"]


@pytest.mark.integration
def test_reports_load_no_torch(tmp_path: Path) -> None:
    run = full_run()
    judged = [*run.records, infer(cell("cifar_lightweight_vit"))]  # a model with published values
    folder = write_run(tmp_path / "run", dataclasses.replace(run, records=judged))
    code = (
        "import sys, vitbench, vitbench.reports as reports\n"
        "light = [m for m in ('torch', 'pandas', 'matplotlib', 'scipy') if m in sys.modules]\n"
        "assert not light, light\n"
        f"reports.write_report([{str(folder)!r}], {str(tmp_path / 'out')!r})\n"
        f"reports.load_records({str(folder)!r})\n"
        "heavy = [m for m in ('torch', 'torchvision', 'timm', 'matplotlib.pyplot') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

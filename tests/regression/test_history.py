"""Steps in simulated rows whose truth is known, and the history of run folders, made up and real."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reports.fabricate import ENVIRONMENT, cell, failed, infer, ok, size, trained, training_cell
from tests.reports.paired import REFERENCE_S, TURNS, paired, timed
from vitbench.cli import run_command
from vitbench.core.errors import UnknownNameError, UsageError
from vitbench.core.records import LOWER_BOUND, Measurement, Record
from vitbench.core.stats.intervals import wilson_interval
from vitbench.regression.change_points import FALSE_ALARMS, _best_cut, _best_pair, find_breaks
from vitbench.regression.history import History, make_history
from vitbench.regression.history_page import history_json, render_markdown, render_terminal, run_to_run_variation
from vitbench.regression.history_plots import plan_plots, render_png
from vitbench.regression.series import Moment, Point, Series, kind_of, machine_of
from vitbench.regression.stored_runs import find_runs
from vitbench.reports.model.values import value_of

ROOT = Path(__file__).parents[2]
SD = 0.05


def read_history(places: Sequence[Path], **options: Any) -> History:
    return make_history(find_runs(places), **options)


# the detector, on numbers whose truth is known


def noise(rng: np.random.Generator, count: int, sd: float = SD) -> np.ndarray:
    return rng.normal(0.0, sd, count)


@pytest.mark.integration
@pytest.mark.parametrize("count", [2, 3, 5, 10, 30])
def test_a_set_of_rows_without_a_step_alarms_as_rarely_as_is_promised(count: int) -> None:
    rng, rows, sets = np.random.default_rng(count), 10, 150
    alarms = sum(any(find_breaks(noise(rng, count), [SD] * count, rows=rows) for _ in range(rows)) for _ in range(sets))
    # at the promised rate more than 14 of 150 come once in a hundred times
    assert alarms / sets <= FALSE_ALARMS + 0.044


def test_rows_noisier_than_expected_are_judged_by_their_own_spread_as_they_grow() -> None:
    rng = np.random.default_rng(1)
    rate = sum(bool(find_breaks(noise(rng, 40, 3 * SD), [SD] * 40)) for _ in range(200)) / 200
    assert rate <= 0.1


def test_noise_with_heavy_tails_alarms_rarely() -> None:
    rng = np.random.default_rng(2)
    rate = sum(bool(find_breaks(SD * rng.standard_t(4, 12) / 2**0.5, [SD] * 12)) for _ in range(400)) / 400
    assert rate <= FALSE_ALARMS


@pytest.mark.parametrize(
    ("before", "after", "step"), [(10, 10, 0.15), (15, 5, 0.2), (5, 15, -0.2), (19, 1, 0.4), (3, 3, 0.3), (1, 1, 0.6)]
)
def test_a_clear_step_is_found_at_its_place(before: int, after: int, step: float) -> None:
    rng, found, sd = np.random.default_rng(3), 0, 0.03
    for _ in range(100):
        row = noise(rng, before + after, sd)
        row[before:] += step
        breaks = find_breaks(row, [SD] * len(row), rows=20)
        found += len(breaks) == 1 and abs(breaks[0].index - before) <= 1
    assert found >= 90


def test_a_step_of_a_quarter_of_the_noise_is_not_claimed() -> None:
    rng = np.random.default_rng(4)
    found = 0
    for _ in range(100):
        row = noise(rng, 20)
        row[10:] += SD / 4
        found += bool(find_breaks(row, [SD] * 20))
    assert found <= 10


def test_a_level_that_came_and_went_is_two_steps() -> None:
    rng, found = np.random.default_rng(5), 0
    for _ in range(100):
        row = noise(rng, 24, 0.03)
        row[9:13] += 0.25
        found += [one.index for one in find_breaks(row, [SD] * 24, rows=10)] == [9, 13]
    assert found >= 90


def test_one_disturbed_run_is_no_step() -> None:
    rng = np.random.default_rng(6)
    row = noise(rng, 30, 0.03)
    row[14] += 0.25
    assert find_breaks(row, [SD] * 30) == []


def test_a_staircase_is_found_stair_by_stair() -> None:
    rng = np.random.default_rng(7)
    row = noise(rng, 40, 0.03) + np.repeat([0.0, 0.2, 0.4, 0.1], 10)
    assert [one.index for one in find_breaks(row, [SD] * 40)] == [10, 20, 30]


def test_the_interval_of_a_step_holds_its_size() -> None:
    rng, held = np.random.default_rng(8), 0
    for _ in range(200):
        row = noise(rng, 20)
        row[10:] += 0.5  # so large that finding it selects nothing
        (one,) = find_breaks(row, [SD] * 20, rows=20)
        assert one.index == 10
        assert one.low < one.change < one.high
        held += one.low <= 0.5 <= one.high
    # of 200 at 95 % fewer than 183 come once in a thousand times
    assert held >= 183


def test_runs_that_know_less_count_less() -> None:
    """Wild figures with as large deviations neither make a step nor hide one."""
    rng = np.random.default_rng(9)
    row = noise(rng, 20, 0.02)
    row[10:] += 0.2
    row[[3, 15]] += [1.0, -1.0]
    deviations = [SD] * 20
    deviations[3] = deviations[15] = 1.0
    assert [one.index for one in find_breaks(row, deviations)] == [10]


def test_neither_the_level_nor_the_direction_of_time_matters() -> None:
    rng = np.random.default_rng(10)
    row = noise(rng, 20, 0.03)
    row[12:] += 0.3
    (one,) = find_breaks(row, [SD] * 20)
    (shifted,) = find_breaks(row + 100, [SD] * 20)
    (turned,) = find_breaks(row[::-1], [SD] * 20)
    assert (shifted.index, turned.index) == (one.index, 20 - one.index)
    assert shifted.change == pytest.approx(one.change)
    assert turned.change == pytest.approx(-one.change)
    assert turned.chance == pytest.approx(one.chance)
    assert (one.before, one.after) == (12, 8)


def test_more_rows_take_clearer_steps() -> None:
    row = [0.0] * 5 + [0.22] * 5
    (one,) = find_breaks(row, [SD] * 10, rows=1)
    (same,) = find_breaks(row, [SD] * 10, rows=3)
    assert same.chance == pytest.approx(3 * one.chance)
    assert find_breaks(row, [SD] * 10, rows=10_000_000) == []


def test_the_scans_find_what_trying_everything_finds() -> None:
    rng = np.random.default_rng(11)
    x, w = rng.normal(size=9), rng.uniform(0.5, 2.0, 9)

    def rest(inside: Sequence[int]) -> float:
        """What two levels leave unexplained."""
        inner = np.isin(np.arange(9), inside)
        return sum(
            float(np.sum(w[part] * (x[part] - np.average(x[part], weights=w[part])) ** 2)) for part in (inner, ~inner)
        )

    whole = float(np.sum(w * (x - np.average(x, weights=w)) ** 2))
    cut, gain = _best_cut(x, w)
    assert gain == pytest.approx(max(whole - rest(range(k)) for k in range(1, 9)))
    assert whole - rest(range(cut)) == pytest.approx(gain)
    pair, gain, looked_at = _best_pair(x, w)
    arcs = [(i, j) for i, j in itertools.combinations(range(1, 9), 2) if j - i >= 2]
    assert looked_at == len(arcs)
    assert gain == pytest.approx(max(whole - rest(range(i, j)) for i, j in arcs))
    assert whole - rest(range(*pair)) == pytest.approx(gain)


@pytest.mark.parametrize("count", [0, 1])
def test_no_row_and_one_figure_have_no_step(count: int) -> None:
    assert find_breaks([1.0] * count, [SD] * count) == []


# run folders


def write_run(
    folder: Path,
    records: Sequence[Record],
    *,
    day: int = 1,
    commit: str | None = "0" * 40,
    cpu: str = "Example CPU",
    torch: str = "2.15.0",
    sessions: Sequence[dict[str, Any]] | None = None,
) -> Path:
    """A run folder of records that were taken on that day of March 2026."""
    folder.mkdir(parents=True)
    moved = [dataclasses.replace(one, started_at=f"2026-03-{day:02}T03:04:06.500+00:00") for one in records]
    (folder / "records.jsonl").write_text("".join(one.to_json() + "\n" for one in moved))
    described = json.loads(json.dumps(ENVIRONMENT["environments"]["e1"]))
    described["system"]["cpu"] = cpu
    described["devices"]["cpu"]["name"] = cpu
    described["libraries"]["versions"]["torch"] = torch
    default = [{"started_at": f"2026-03-{day:02}T03:04:06+00:00", "vitbench": "0.1.0", "commit": commit}]
    content = {"schema": 1, "environments": {"e1": described}, "sessions": list(sessions or default)}
    (folder / "environment.json").write_text(json.dumps(content))
    return folder


def commit(number: int) -> str:
    return f"{number:02}" * 20


def processes(rng: np.random.Generator, ratio: float, count: int = 5) -> list[float]:
    """What the processes of one run took over the reference: a run's own 2 %, a process's 2 %."""
    level = ratio * math.exp(rng.normal(0, 0.02))
    return [level * math.exp(rng.normal(0, 0.02)) for _ in range(count)]


def nights(
    folder: Path,
    count: int,
    ratio: Callable[[int], float],
    *,
    speed: Callable[[int], float] = lambda day: 1.0,
    **how: Any,
) -> Path:
    """``count`` runs of one cell; ``ratio`` to the reference on each day, ``speed`` of the machine."""
    rng = np.random.default_rng(42)
    for day in range(1, count + 1):
        reference = (REFERENCE_S / speed(day),) * TURNS
        record = paired(cell(), processes(rng, ratio(day)), reference=reference)
        changes = {key: value(day) for key, value in how.items()}
        write_run(folder / f"night-{day:02}", [record], day=day, commit=commit(day), **changes)
    return folder


def steps_of(history: History, metric: str) -> list[Any]:
    return [step for step in history.steps if step.series.metric == metric]


def test_a_slow_down_is_found_with_the_run_and_the_commit_at_which_it_begins(tmp_path: Path) -> None:
    history = read_history([nights(tmp_path, 16, lambda day: 2.0 if day < 10 else 2.4)])
    (step,) = history.steps
    assert step.series.metric == "relative_latency"
    assert (step.begins.run, step.begins.commit) == ("night-10", commit(10))
    assert step.last_before.commit == commit(9)
    assert step.ratio == pytest.approx(1.2, rel=0.06)
    assert step.low < 1.2 < step.high
    assert (step.runs_before, step.runs_after) == (9, 7)
    assert 0 < step.chance < FALSE_ALARMS


@pytest.mark.parametrize(
    ("logs", "squares"),
    [
        ([0.0, 0.1, 0.4], [0.01, 0.09]),
        ([0.0, 0.1, 0.4, 0.6], [0.01, 0.09, 0.04]),
        ([0.0, 0.1, 0.4, 0.6, 1.0], [0.01, 0.09, 0.04, 0.16]),
    ],
)
def test_what_runs_differ_by_is_from_the_median_of_the_squares(logs: list[float], squares: list[float]) -> None:
    points = tuple(
        Point(moment=Moment(run=str(day), at=datetime(2026, 3, day, tzinfo=UTC)), value=math.exp(log))
        for day, log in enumerate(logs, 1)
    )
    series = Series(cell="c", model="m", metric="latency", unit="s", kind="shown", machine="", points=points)
    assert run_to_run_variation(series) == pytest.approx(math.sqrt(np.median(squares) / 2 / 0.455))


def test_what_is_no_repetition_is_one_number_as_in_the_reports(tmp_path: Path) -> None:
    """Else of a loss that falls the middle would be its figure, and of classes one of them."""
    f1 = [0.0, *[0.2] * 4, *[0.9] * 7]
    record = trained(training_cell("vit_micro"), 90, 100, f1=f1)
    losses = tuple(2.3 / step for step in range(1, 41))
    loss = Measurement(metric="training_loss", unit="nat", samples=(losses,), method="loss of each step")
    record = dataclasses.replace(
        record, measurements=tuple(loss if one.metric == loss.metric else one for one in record.measurements)
    )
    write_run(tmp_path / "run", [record])
    metrics = ["training_loss", "class_f1", "class_precision", "class_recall", "accuracy"]
    found = {one.metric: one.points[0] for one in read_history([tmp_path], metrics=metrics).series}
    assert found["training_loss"].value == losses[-1]
    assert found["class_f1"].value == pytest.approx(np.mean(f1))
    assert found["class_recall"].value == pytest.approx(11 / 12)
    for metric in metrics:
        reported = value_of(record, metric).estimate
        assert reported is not None
        assert (found[metric].value, found[metric].low, found[metric].high) == (
            reported.value,
            reported.low,
            reported.high,
        )
    assert found["accuracy"].low == pytest.approx(wilson_interval(90, 100)[0])


def test_a_machine_that_is_slower_some_days_is_no_step(tmp_path: Path) -> None:
    history = read_history([nights(tmp_path, 12, lambda day: 2.0, speed=lambda day: 1.0 if day < 7 else 0.6)])
    assert history.steps == ()
    absolute = read_history([tmp_path], metrics=["latency"])
    (series,) = absolute.series
    assert series.kind == "shown"
    assert max(series.numbers) > 1.5 * min(series.numbers)
    assert absolute.steps == ()


def test_what_fits_on_one_machine_and_not_on_another_is_no_step(tmp_path: Path) -> None:
    for day in range(1, 7):
        large = bool(day % 2)
        record = paired(cell(), [2.0] * 5)
        if not large:
            record = dataclasses.replace(record, status="oom", cause="out_of_memory", measurements=())
        name = "Large CPU" if large else "Small CPU"
        write_run(tmp_path / f"night-{day}", [record], day=day, commit=commit(day), cpu=name)
    history = read_history([tmp_path])
    assert history.steps == ()
    found = {one.machine: {point.value for point in one.points} for one in history.series if one.metric == "status"}
    assert found == {"Large CPU, 2 cores": {"ok"}, "Small CPU, 2 cores": {"oom (out_of_memory)"}}


def test_timings_of_two_machines_are_two_series_and_counts_one(tmp_path: Path) -> None:
    names = {True: "Fast CPU", False: "Slow CPU"}
    folder = nights(
        tmp_path, 10, lambda day: 2.0 if day % 2 else 3.0, cpu=lambda day: names[bool(day % 2)]
    )  # another CPU each other day
    history = read_history([folder])
    timed_series = [one for one in history.series if one.metric == "relative_latency"]
    assert sorted(one.machine for one in timed_series) == ["Fast CPU, 2 cores", "Slow CPU, 2 cores"]
    assert [len(one.points) for one in timed_series] == [5, 5]
    assert [len(one.points) for one in history.series if one.metric == "params"] == [10]
    assert history.steps == ()


def test_times_over_another_reference_are_another_series(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for day in range(1, 9):
        record = paired(cell(), processes(rng, 1.0 if day < 5 else 1.5))
        bound = "; both bound to cores 0" if day >= 5 else ""
        moved = [dataclasses.replace(one, reference=one.reference + bound) for one in record.measurements]
        write_run(tmp_path / str(day), [dataclasses.replace(record, measurements=tuple(moved))], day=day)
    history = read_history([tmp_path])
    series = [one for one in history.series if one.metric == "relative_latency"]
    assert [len(one.points) for one in series] == [4, 4]
    assert not steps_of(history, "relative_latency")


def test_a_lower_bound_is_another_series_than_a_count(tmp_path: Path) -> None:
    for day, (value, left_out) in enumerate([(2.507e9, ""), (1.9e9, "x1"), (1.9e9, "x1"), (2.0e9, "x1")], start=1):
        detail = f"{LOWER_BOUND}mine::attention {left_out}" if left_out else ""
        flops = Measurement.single("flops", "FLOP", value, "counted", detail)
        record = ok(cell(), [dataclasses.replace(flops, lower_bound=bool(left_out))])
        write_run(tmp_path / f"n{day}", [record], day=day)
    history = read_history([tmp_path])
    assert [len(one.points) for one in history.series if one.metric == "flops"] == [1, 3]
    (step,) = history.steps
    assert (step.begins.run, step.before, step.after) == ("n4", 1.9e9, 2.0e9)


def test_a_new_torch_is_told_of_beside_the_step_that_it_may_have_made(tmp_path: Path) -> None:
    folder = nights(
        tmp_path, 12, lambda day: 2.0 if day < 7 else 1.5, torch=lambda day: "2.15.0" if day < 7 else "2.16.0"
    )
    (step,) = read_history([folder]).steps
    assert step.also_changed == ("torch 2.15.0 -> 2.16.0",)
    assert "torch 2.15.0 -> 2.16.0" in render_terminal(read_history([folder]))


def test_a_step_of_the_last_run_alone_is_told_as_not_confirmed(tmp_path: Path) -> None:
    history = read_history([nights(tmp_path, 14, lambda day: 2.0 if day < 14 else 3.0)])
    assert [step.runs_after for step in history.steps] == [1]
    assert "only the last run shows it: not confirmed yet" in render_terminal(history)


def counted(params: int, *, batch: int = 1, model: str = "vit_micro") -> Record:
    of = cell(model, batch)
    others = [one for one in size(of) if one.metric != "params"]
    return ok(of, [Measurement.single("params", "parameter", params, "sum"), *others])


def test_exact_figures_step_whenever_they_differ(tmp_path: Path) -> None:
    for day, params in enumerate((100, 100, 104, 104, 100), start=1):
        write_run(tmp_path / f"n{day}", [counted(params)], day=day, commit=commit(day))
    found = [(one.begins.run, one.before, one.after, one.runs_before, one.runs_after) for one in
             read_history([tmp_path]).steps]  # fmt: skip
    assert found == [("n3", 100, 104, 2, 2), ("n5", 104, 100, 2, 1)]


def test_the_same_change_in_several_cells_is_one_line(tmp_path: Path) -> None:
    for day, params in enumerate((5000, 5001), start=1):
        write_run(tmp_path / f"n{day}", [counted(params), counted(params, batch=8)], day=day)
    text = render_terminal(read_history([tmp_path]))
    assert text.startswith("1 step in ")
    assert text.count("5,000") == 1
    assert "vit_micro (2 cells)" in text
    assert "+0.02 %" in text


def test_running_out_of_memory_is_a_step_of_the_status(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [infer(cell(batch=64))], day=1)
    write_run(tmp_path / "b", [failed(cell(batch=64), "oom", "out_of_memory")], day=2, commit=commit(7))
    (step,) = steps_of(read_history([tmp_path]), "status")
    assert (step.before, step.after, step.begins.commit) == ("ok", "oom (out_of_memory)", commit(7))
    assert step.ratio is None


def test_memory_as_measured_is_judged_by_its_spread(tmp_path: Path) -> None:
    def peak(megabytes: float) -> Record:
        method = "bytes + rise of VmHWM"
        measured = Measurement.single("inference_peak_memory", "byte", megabytes * 1e6, method)
        return ok(cell(), [*size(cell()), measured])

    levels = [50.0, 50.3, 49.8, 50.1, 50.2, 62.0, 61.7, 62.1, 61.9]
    for day, level in enumerate(levels, start=1):
        write_run(tmp_path / f"n{day}", [peak(level)], day=day)
    (step,) = read_history([tmp_path]).steps
    assert (step.series.kind, step.index) == ("memory", 5)
    assert step.ratio == pytest.approx(1.236, rel=0.01)


def test_a_resumed_run_gives_each_record_the_commit_of_its_session(tmp_path: Path) -> None:
    sessions = [
        {"started_at": "2026-03-01T03:00:00+00:00", "vitbench": "0.1.0", "commit": "a" * 40},
        {"started_at": "2026-03-01T03:04:06+00:00", "vitbench": "0.1.0", "commit": "b" * 40},
        {"started_at": "2026-03-02T03:00:00+00:00", "vitbench": "0.1.0", "commit": "c" * 40},
    ]
    write_run(tmp_path / "n", [counted(5)], sessions=sessions)
    (moment,) = read_history([tmp_path]).moments
    assert moment.commit == "b" * 40


def test_cells_that_a_label_does_not_tell_apart_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "n", [infer(cell(threads=1)), infer(cell(threads=2))])
    names = {one.cell for one in read_history([tmp_path]).series}
    assert len(names) == 2
    assert all("threads" in name for name in names)


def test_runs_are_found_at_any_depth_and_ordered_by_time_not_by_name(tmp_path: Path) -> None:
    write_run(tmp_path / "z" / "deep" / "er" / "first", [counted(5)], day=1)
    write_run(tmp_path / "a", [counted(6)], day=2)
    (tmp_path / ".git" / "runs").mkdir(parents=True)
    write_run(tmp_path / ".git" / "runs" / "no", [counted(7)], day=3)
    assert [moment.run for moment in read_history([tmp_path]).moments] == ["z/deep/er/first", "a"]


def test_a_run_and_its_copy_count_once_and_equal_names_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "one" / "run", [counted(5)], day=1)
    write_run(tmp_path / "two" / "run", [counted(5)], day=2)
    write_run(tmp_path / "copy", [counted(5)], day=1)
    history = read_history([tmp_path / "one", tmp_path / "two", tmp_path / "copy", tmp_path / "one"])
    assert [moment.run for moment in history.moments] == ["run", "run (2)"]
    assert len(history.problems) == 1
    assert "is a copy of" in history.problems[0]


def _garbage(folder: Path) -> None:
    (folder / "records.jsonl").write_bytes(b"\x00\xff not JSON\n{}\n[]\n")


def _newer(folder: Path) -> None:
    text = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(text.replace('"schema":4', '"schema":99'))


def _empty(folder: Path) -> None:
    (folder / "records.jsonl").write_text("")


def _timeless(folder: Path) -> None:
    text = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(text.replace("2026-03-02T03:04:06.500+00:00", "yesterday"))


@pytest.mark.parametrize("damage", [_garbage, _newer, _empty, _timeless], ids=lambda one: one.__name__)
def test_a_broken_run_is_told_of_and_the_others_are_read(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "good", [counted(5)], day=1)
    damage(write_run(tmp_path / "bad", [counted(6)], day=2))
    write_run(tmp_path / "late", [counted(5)], day=3)
    assert run_command(["history", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "series of 2 runs" in printed.out
    lines = printed.err.splitlines()
    assert any("bad skipped: it holds no record" in line for line in lines)
    assert all(line.startswith("Warning: ") for line in lines)
    assert len(lines) <= 2


@pytest.mark.parametrize("text", ["[]", "{", '{"schema": 1, "environments": [], "sessions": {}}', "\0"])
def test_a_damaged_environment_costs_the_commit_and_not_the_run(text: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [infer(cell())])
    (folder / "environment.json").write_text(text)
    history = read_history([tmp_path])
    assert [moment.commit for moment in history.moments] == [""]
    assert len(history.problems) == 1
    assert "environment.json" in history.problems[0]


def test_a_damaged_line_is_told_of_and_the_rest_of_its_run_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [counted(5), counted(5, batch=8)])
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"half of a rec')
    history = read_history([tmp_path])
    assert len(history.series) > 2
    assert "1 line of records.jsonl skipped" in history.problems[0]


def test_nothing_to_read_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_history([tmp_path / "gone"])
    assert run_command(["history", str(tmp_path)]) == 2
    assert "No run under" in capsys.readouterr().err
    (tmp_path / "x.json").write_text("{}")
    assert run_command(["history", str(tmp_path / "x.json")]) == 2
    assert "is not JSON of pytest-benchmark" in capsys.readouterr().err


def test_a_metric_or_a_model_that_no_run_has_is_answered_with_the_closest(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [infer(cell())])
    with pytest.raises(UnknownNameError, match="Did you mean 'latency'"):
        read_history([tmp_path], metrics=["latenzy"])
    with pytest.raises(UnknownNameError, match="Did you mean 'vit_micro'"):
        read_history([tmp_path], models=["vit_mikro"])


def test_metrics_and_models_are_names_or_patterns(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [infer(cell()), infer(cell("vit_nano"))])
    history = read_history([tmp_path], metrics=["par*", "latency"], models=["vit_n*"])
    assert {one.metric for one in history.series} == {"params", "latency"}
    assert {one.model for one in history.series} == {"vit_nano"}


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("params", "exact"),
        ("tensor_peak", "exact"),
        ("inference_peak_memory", "memory"),
        ("process_peak_memory", "shown"),
        ("latency", "shown"),
        ("accuracy", "shown"),
        ("somebodys_metric", "shown"),
    ],
)
def test_each_metric_is_judged_as_the_gates_judge_it(metric: str, kind: str) -> None:
    assert kind_of(metric) == kind


def test_few_processes_are_known_less_well(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [ok(cell(), [*size(cell()), timed("latency", [2.0])])], day=1)
    write_run(tmp_path / "b", [ok(cell(), [*size(cell()), timed("latency", [2.0, 2.01, 1.99, 2.0, 2.0])])], day=2)
    (series,) = read_history([tmp_path], metrics=["relative_latency"]).series
    few, many = (point.deviation for point in series.points)
    assert few is not None
    assert many is not None
    assert few > 2 * many > 0.08 * 0.9


def test_what_decides_the_speed_is_the_device_and_no_version() -> None:
    described = ENVIRONMENT["environments"]["e1"]
    assert machine_of(described, "cpu") == "Example CPU @ 2.50GHz, 2 cores"
    assert machine_of(described, "cuda:0") == "Example GPU, Example CPU @ 2.50GHz, 2 cores"
    assert machine_of({}, "cpu") == ""


# what is written


@pytest.mark.integration
def test_the_page_the_pictures_and_the_json_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = nights(tmp_path / "runs", 12, lambda day: 2.0 if day < 7 else 2.6)
    out, data = tmp_path / "out", tmp_path / "history.json"
    assert run_command(["history", str(folder), "--out", str(out), "--json", str(data)]) == 0
    page = (out / "history.md").read_text()
    assert "| 2026-03-07 night-07 | 070707070707 | vit_micro 32px b1 cpu fp32 infer | relative latency |" in page
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert pictures == ["history-001-relative_latency-vit_micro-32px-b1-cpu-fp32-infer.png"]
    assert all(name in page for name in pictures)
    assert (out / pictures[0]).read_bytes().startswith(b"\x89PNG")
    content = json.loads(data.read_text())
    (series,) = [one for one in content["series"] if one["metric"] == "relative_latency"]
    assert len(series["points"]) == 12
    (step,) = series["steps"]
    assert (step["run"], step["commit"], step["index"]) == ("night-07", commit(7), 6)
    assert content["runs"][0]["at"] == "2026-03-01T03:04:06.500000+00:00"
    printed = capsys.readouterr().out
    assert "1 step in 6 series of 12 runs, 2026-03-01 to 2026-03-12." in printed


def test_json_on_the_standard_output_is_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", [infer(cell())])
    assert run_command(["history", str(tmp_path), "--json", "-", "--pytest-benchmark", str(tmp_path / "s")]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1
    assert len(list((tmp_path / "s").rglob("0001_*.json"))) == 1


@pytest.mark.integration
def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    folder = nights(tmp_path, 8, lambda day: 2.0 if day < 5 else 3.0)
    one, other = read_history([folder]), read_history([folder])
    assert render_markdown(one, plan_plots(one)) == render_markdown(other, plan_plots(other))
    assert history_json(one) == history_json(other)
    assert render_png(plan_plots(one)[0]) == render_png(plan_plots(other)[0])


def test_a_picture_is_drawn_of_each_series_that_moves_steps_first(tmp_path: Path) -> None:
    for day in range(1, 5):
        write_run(tmp_path / f"n{day}", [counted(5 + day // 3), infer(cell("vit_nano"))], day=day)
    pictures = plan_plots(read_history([tmp_path], metrics=["params", "latency", "flops"]))
    # FLOPs and the other model's parameters are level lines
    assert [(one.series.metric, len(one.steps)) for one in pictures] == [("params", 1), ("latency", 0)]
    for one in pictures:
        assert render_png(one).startswith(b"\x89PNG")


def test_hostile_names_are_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "vit|<script>alert(1)</script>\x1b[31m[x](http://e.vil)$\\alpha$"
    for day, params in enumerate((5, 6), start=1):
        of = cell(name)
        record = ok(of, [Measurement.single("params", "parameter", params, "sum")])
        write_run(tmp_path / "runs" / f"$\\n{day}|", [record], day=day, commit="<b>\x1b[1m")
    out = tmp_path / "out"
    assert run_command(["history", str(tmp_path / "runs"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    page = (out / "history.md").read_text()
    assert "\x1b" not in printed + page
    assert "<script>" not in page
    assert "<b>" not in page
    assert "](http" not in page
    (picture,) = out.glob("*.png")
    assert set(picture.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_committed_runs_have_a_history_without_a_step_of_a_count() -> None:
    """Real runs of one model zoo at several commits: no parameter, no FLOP, no tensor byte has changed."""
    history = read_history([ROOT / "results"])
    assert len(history.moments) >= 4
    assert history.problems == ()
    assert sum(len(one.points) > 1 for one in history.series) > 50
    assert [step.series.name for step in history.steps if step.series.kind == "exact"] == []


@pytest.mark.slow
def test_two_real_runs_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        words = ["--models", "vit_basic_tutorial", "--metrics", "params,flops,tensor_memory", "--modes", "infer"]
        more = ["--batch-sizes", "1", "--devices", "cpu", "--threads", "1", "--data", "none", "--quick"]
        assert run_command(["run", *words, *more, "--out", str(tmp_path / "runs" / str(number))]) == 0
    capsys.readouterr()
    assert run_command(["history", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.startswith("No steps in ")

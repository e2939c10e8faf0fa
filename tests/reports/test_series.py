"""What plots show beside the front: how calls scatter, losses by step, values over the batch."""

from __future__ import annotations

from tests.reports.fabricate import ENVIRONMENT, cell, failed, full_run, infer, ok, size, training_cell
from vitbench.core.records import Measurement, Record
from vitbench.reports.model.curves import MOST_POINTS, curves_of
from vitbench.reports.model.lines import line_columns, lines_of
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.series import series_of
from vitbench.reports.model.spread import spread_of
from vitbench.reports.model.values import value_of


def run_of(*records: Record) -> Run:
    return Run(name="run", records=records, environment=ENVIRONMENT)


def test_a_spread_is_of_all_calls_that_count() -> None:
    times = tuple(tuple(1e-3 * (1 + i * 7 % 13 + p) for i in range(200)) for p in range(2))
    latency = Measurement(metric="latency", unit="s", samples=times, method="made up")
    (line,) = lines_of(build_rows([run_of(ok(cell(), [*size(cell()), latency]))]))
    found = spread_of(line)
    assert found is not None
    assert found == tuple(sorted(found))
    assert found[3] == value_of(line.infer[0], "latency").percentile(0.5)
    assert found[6] == value_of(line.infer[0], "latency").percentile(0.99)
    (few,) = lines_of(build_rows([run_of(infer(cell(), n=40))]))
    assert spread_of(few) is None


def test_a_curve_is_the_recorded_losses_and_a_long_one_their_means() -> None:
    (curve, *_) = curves_of([full_run()])
    assert (curve.steps, curve.loss) == ((1, 2, 3), (2.3, 1.9, 1.2))
    assert curve.label == curve.model == "vit_nano"
    losses = tuple(float(i) for i in range(2 * MOST_POINTS + 1))
    records = [
        ok(of, [Measurement(metric="training_loss", unit="nat", samples=(losses,), method="made up")])
        for of in (training_cell("vit_nano"), training_cell("vit_nano", seed=1))
    ]
    curve, other = curves_of([run_of(*records)])
    assert (curve.label, other.label) == ("vit_nano, seed 0", "vit_nano, seed 1")
    assert len(curve.steps) <= MOST_POINTS
    assert (curve.steps[0], curve.steps[-1]) == (3, len(losses))
    assert (curve.loss[0], curve.loss[-1]) == (1.0, 999.5)


def test_a_series_holds_its_failures() -> None:
    records = [infer(cell(batch=batch)) for batch in (1, 8, 32)] + [failed(cell(batch=64), "oom")]
    lines = lines_of(build_rows([run_of(*records, infer(cell("vit_nano")))]))
    latency = next(one for one in line_columns(lines) if one.id == "latency")
    (series,) = series_of(lines, latency, "batch")
    assert (series.name, list(series.numbers), series.failures) == ("vit_micro", [1, 8, 32], {64: "oom"})
    assert series_of(lines, latency, "image_size") == []


def test_a_series_over_patches_is_of_models_whose_card_knows_the_patch() -> None:
    names = "cifar_vit_tiny", "vit_base16", "timm:vit_tiny_patch16_224"
    sizes = [(side, side) for side in (32, 64, 96)]
    records = [infer(cell(name, image_size=size)) for name in names for size in sizes]
    lines = lines_of(build_rows([run_of(*records)]))
    latency = next(one for one in line_columns(lines) if one.id == "latency")
    found = {one.name: list(one.numbers) for one in series_of(lines, latency, "patches")}
    # of 4 px and of 16 px
    assert found == {"cifar_vit_tiny": [64, 256, 576], "vit_base16": [4, 16, 36]}

"""Which cells share a row, and what stands in its columns."""

from __future__ import annotations

import dataclasses

import pytest

from tests.reports.fabricate import cell, failed, infer, ok, size, train_step, trained, training_cell
from vitbench.core.records import Measurement, Record
from vitbench.core.stats.intervals import WILSON, wilson_interval
from vitbench.reports.model.rows import Row, build_rows, shared_test_data, varying_axes
from vitbench.reports.model.runs import Run
from vitbench.reports.model.values import value_of


def rows_of(*records: Record) -> list[Row]:
    return build_rows([Run(name="run", records=records)])


def accuracies(rows: list[Row]) -> list[float | None]:
    return [row.trained("accuracy").value for row in rows]


def test_batch_and_mode_share_a_row() -> None:
    (row,) = rows_of(infer(cell(batch=32)), infer(cell(batch=1)), train_step(cell(batch=8, mode="train")))
    assert [record.cell.batch_size for record in row.infer] == [1, 32]
    assert [record.cell.batch_size for record in row.train] == [8]


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": (64, 64)},
        {"device": "cuda:0"},
        {"dtype": "bf16"},
        {"attention": "explicit"},
        {"compile": True},
        {"threads": 1},
        {"memory_limit": 10**9},
        {"num_classes": 100},
        {"weights": "sha256:0"},
        {"seed": 1},
        {"options": (("keep_rate", "0.7"),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_other_field_makes_a_row(change: dict[str, object]) -> None:
    assert len(rows_of(infer(cell()), infer(cell(**change)))) == 2


def test_equal_cells_of_two_runs_stay_two_rows() -> None:
    runs = [Run(name=name, records=[infer(cell()), trained(training_cell("vit_micro"), 200)]) for name in ("a", "b")]
    rows = build_rows(runs)
    assert [row.run for row in rows] == ["a", "b"]
    assert varying_axes(rows) == ["run"]


def test_an_accuracy_joins_its_model() -> None:
    (row,) = rows_of(trained(training_cell("vit_micro"), 200), infer(cell()))
    assert row.trained("accuracy").value == pytest.approx(200 / 360)
    assert row.at_smallest_batch("latency").value is not None


@pytest.mark.parametrize("change", [{"seed": 1}, {"dtype": "bf16"}, {"device": "cuda:0"}, {"num_classes": 100}])
def test_an_accuracy_of_something_else_is_a_row_of_its_own(change: dict[str, object]) -> None:
    rows = rows_of(infer(cell()), trained(training_cell("vit_micro", **change), 200))
    assert accuracies(rows) == [None, pytest.approx(200 / 360)]
    assert rows[1].infer == ()
    assert rows[1].fact("params").value == rows[0].fact("params").value


def test_an_accuracy_of_the_one_device_that_trained_joins_the_rows_of_the_others() -> None:
    records = [infer(cell()), infer(cell(device="cuda:0"))]
    rows = rows_of(*records, trained(training_cell("vit_micro", device="cuda:0"), 180))
    assert accuracies(rows) == [0.5, 0.5]
    assert [row.axes["training device"] for row in rows] == ["cuda:0", ""]
    every = rows_of(*records, *(trained(training_cell("vit_micro", device=one), 180) for one in ("cpu", "cuda:0")))
    assert [(row.cell.device, row.axes["training device"]) for row in every] == [("cpu", ""), ("cuda:0", "")]


def test_of_several_rows_an_accuracy_joins_the_equal_one_only() -> None:
    records = [infer(cell(attention="explicit")), infer(cell()), infer(cell(threads=1))]
    rows = rows_of(*records, trained(training_cell("vit_micro"), 200))
    assert accuracies(rows) == [None, pytest.approx(200 / 360), None]


def test_of_several_unequal_rows_an_accuracy_joins_none() -> None:
    records = [infer(cell(threads=4)), infer(cell(threads=1))]
    assert accuracies(rows_of(*records, trained(training_cell("vit_micro"), 180))) == [None, None, 0.5]


def test_an_accuracy_joins_the_only_row_though_its_attention_differs() -> None:
    assert accuracies(rows_of(infer(cell(attention="explicit")), trained(training_cell("vit_micro"), 180))) == [0.5]


def test_pretrained_weights_take_no_accuracy_of_another_training() -> None:
    rows = rows_of(infer(cell(weights="sha256:0")), trained(training_cell("vit_micro"), 180))
    assert accuracies(rows) == [None, 0.5]


def test_two_trainings_of_a_model_are_two_rows() -> None:
    trainings = [trained(training_cell("vit_micro", data=data), 180) for data in ("digits", "cifar10")]
    rows = rows_of(infer(cell()), *trainings)
    assert [row.axes["data"] for row in rows] == ["digits", "cifar10"]
    assert varying_axes(rows) == ["data"]


def test_recipes_of_one_name_are_told_apart_by_their_hash() -> None:
    trainings = [trained(training_cell("vit_micro", recipe_hash=text), 180) for text in ("aaa", "bbb")]
    assert varying_axes(rows_of(*trainings)) == ["recipe hash"]
    others = [trained(training_cell("vit_micro", recipe_hash=t, weights=f"train:{t}"), 180) for t in ("aaa", "bbb")]
    assert varying_axes(rows_of(*others)) == ["recipe"]


def test_an_option_that_only_some_rows_set_varies() -> None:
    assert varying_axes(rows_of(infer(cell()), infer(cell(options=(("keep_rate", "0.7"),))))) == ["keep_rate"]


def test_accuracy_has_its_wilson_interval() -> None:
    (row,) = rows_of(trained(training_cell("vit_micro"), 200))
    estimate = row.trained("accuracy").estimate
    assert estimate is not None
    assert (estimate.low, estimate.high) == wilson_interval(200, 360)
    assert estimate.kind == WILSON


def test_of_a_series_the_last_value_counts() -> None:
    (row,) = rows_of(trained(training_cell("vit_micro"), 200))
    assert row.trained("training_loss").value == 1.2


def test_the_smallest_batch_that_failed_stays_the_smallest() -> None:
    (row,) = rows_of(failed(cell(batch=1), "timeout"), infer(cell(batch=32)))
    assert row.at_smallest_batch("latency").status == "timeout"
    assert row.best_throughput().batch_size == 32
    assert row.status == "timeout at batch 1"


def test_training_figures_are_those_of_the_largest_batch_or_its_failure() -> None:
    (row,) = rows_of(train_step(cell(batch=8, mode="train")), failed(cell(batch=32, mode="train"), "oom"))
    assert row.at_training_batch("training_step").status == "oom"
    assert row.status == "OOM in training step at batch 32"


def test_a_failed_cell_does_not_hide_what_another_knows() -> None:
    (row,) = rows_of(dataclasses.replace(failed(cell(), "killed"), measurements=()), infer(cell(batch=32)))
    assert row.fact("params").value == 1_213_450


def test_what_was_not_asked_for_has_no_status() -> None:
    record = ok(cell(), size(cell()))
    assert value_of(record, "latency").status is None
    assert value_of(failed(cell(), "oom"), "latency").status == "oom"
    assert value_of(failed(cell(), "oom"), "flops_fvcore").status is None
    unspoken = dataclasses.replace(failed(cell(), "oom"), measurements=())
    assert value_of(unspoken, "latency").status == "oom"
    assert rows_of(infer(cell()), dataclasses.replace(unspoken, cell=cell(batch=2)))[0].fact("buffers").status is None


def test_a_measurement_without_samples_is_no_number() -> None:
    empty = Measurement(metric="latency", unit="s", samples=(), method="")
    assert value_of(ok(cell(), [empty]), "latency").status == "error"


@pytest.mark.parametrize(("metric", "status"), [("flops_fvcore", "error"), ("latency", "unsupported")])
def test_a_counter_that_breaks_leaves_a_cell_ok(metric: str, status: str) -> None:
    absent = Measurement.absent(metric, "1", status, "why")  # type: ignore[arg-type]
    (row,) = rows_of(ok(cell(), [*size(cell()), absent]))
    assert row.status == "ok"


def test_a_training_at_a_size_of_its_own_joins_the_other_sizes_and_says_so() -> None:
    """A suite that trains at one size, cheaper than those that it times."""
    runs = rows_of(
        infer(cell(image_size=(32, 32))),
        infer(cell(image_size=(64, 64))),
        trained(training_cell("vit_micro", image_size=(16, 16)), 200),
    )
    assert accuracies(runs) == [pytest.approx(200 / 360)] * 2
    assert {row.axes["training size"] for row in runs} == {"16 px"}
    assert shared_test_data(runs).endswith("at 16 px")


def test_a_training_at_a_size_that_is_timed_joins_that_one_only() -> None:
    runs = rows_of(
        infer(cell(image_size=(32, 32))),
        infer(cell(image_size=(64, 64))),
        trained(training_cell("vit_micro", image_size=(64, 64)), 200),
    )
    assert accuracies(runs) == [None, pytest.approx(200 / 360)]
    assert {row.axes["training size"] for row in runs} == {""}

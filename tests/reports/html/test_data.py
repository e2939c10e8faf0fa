"""The data of the page: strict JSON, compact, and the same digits as the tables."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from tests.reports.fabricate import cell, failed, full_run, infer, ok, size, trained, training_cell
from tests.reports.paired import TURNS, timed
from vitbench.core.records import Measurement, Record
from vitbench.reports.format import number, with_interval
from vitbench.reports.html.data import page_data
from vitbench.reports.model.lines import line_columns, lines_of
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run


def data_of(*runs: Run) -> dict[str, Any]:
    """As the page reads it: strict JSON."""
    found: dict[str, Any] = json.loads(json.dumps(page_data(runs), allow_nan=False))
    return found


def of(*records: Record) -> dict[str, Any]:
    return data_of(Run(name="run", records=records))


def column(data: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in data["columns"] if one["id"] == name)
    return dict(found)


def texts(data: dict[str, Any], name: str) -> list[str | None]:
    one = column(data, name)
    return [None if place is None else one["texts"][place] for place in one["values"]]


def commands(data: dict[str, Any]) -> list[str]:
    return ["".join(part["texts"][part["values"][line]] for part in data["repeat"]) for line in range(data["lines"])]


def latency(seconds: Sequence[float]) -> Measurement:
    return Measurement(metric="latency", unit="s", samples=(tuple(seconds),), method="clock")


def test_several_runs_stand_in_one_set_of_columns() -> None:
    data = data_of(full_run("first"), full_run("second", speed=2.0))
    assert (data["title"], data["lines"]) == ("first, second", 16)
    assert sorted(set(texts(data, "run"))) == ["first", "second"]  # type: ignore[type-var]
    assert data["axes"] == ["run", "batch"]
    assert ["image size", "32 px"] in data["constant"]
    assert all(len(one["values"]) == 16 for one in data["columns"])
    assert commands(data)[0] == "vitbench run --suite second/suite.toml --models vit_nano --batch-sizes 1"


def test_numbers_are_in_the_units_of_their_columns() -> None:
    data = data_of(full_run())
    assert (column(data, "params")["unit"], column(data, "params")["values"][0]) == ("M", 0.41211)
    assert column(data, "accuracy")["unit"] == "%"
    batch = column(data, "batch")
    assert (batch["kind"], batch["condition"], batch["values"][:2]) == ("number", True, [1, 32])


def test_what_all_lines_share_is_no_column_but_where_they_are_from() -> None:
    data = data_of(full_run())
    conditions = [one["id"] for one in data["columns"] if one["condition"]]
    assert conditions == ["run", "model", "device", "image_size", "batch"]
    assert ["dtype", "fp32"] in data["constant"]
    assert not [name for name, _ in data["constant"] if name in ("memory limit", "run", "model", "batch")]


def test_an_empty_run_has_no_lines() -> None:
    data = of()
    assert (data["lines"], data["columns"], data["axes"], data["repeat"]) == (0, [], [], [])


def test_a_training_alone_has_an_accuracy_and_no_batch() -> None:
    data = of(trained(training_cell("vit_micro"), 90))
    assert [one["id"] for one in data["columns"] if not one["condition"]] == [
        "params",
        "flops",
        "accuracy",
        "status",
    ]
    assert column(data, "accuracy")["values"] == [25]
    assert data["costs"] == ["params", "flops"]
    assert commands(data) == ["vitbench run --suite run/suite.toml --models vit_micro"]


def test_statuses_and_reasons_stand_by_line() -> None:
    data = of(infer(cell(batch=1)), failed(cell(batch=32), "oom", "out_of_memory", "no room in /home/somebody/x"))
    found = column(data, "latency")
    assert found["values"][1] is None
    assert found["status"] == {"1": "OOM"}
    assert "reason" not in found  # the line's status has it, once
    assert texts(data, "status") == ["ok", "OOM at batch 32"]
    assert column(data, "status")["reason"] == {"1": "no room in …/x"}


def test_a_value_that_fails_alone_has_its_own_reason() -> None:
    peak = Measurement.absent("inference_peak_memory", "byte", "unsupported", "no counter here")
    data = of(ok(cell(), [*size(cell()), peak, latency([0.001])]))
    assert column(data, "memory")["reason"] == {"0": "no counter here"}
    assert not column(data, "status")["reason"]


def test_the_scatter_and_the_losses_are_short_numbers() -> None:
    first = Measurement(metric="training_loss", unit="nat", samples=((2.30259, 1.912345, 1.2),), method="loss")
    model = training_cell("vit_micro")
    calls = latency([1e-3 + 1e-6 * (617 * n % 1000) for n in range(1000)])
    data = of(ok(cell(), [*size(cell()), calls]), ok(model, [*size(model), first]))
    assert len(data["spread"]["0"]) == 7
    assert data["spread"]["0"][3] == pytest.approx(1.5, abs=0.01)
    assert data["curves"] == [
        {"run": "run", "model": "vit_micro", "label": "vit_micro", "steps": [1, 2, 3], "loss": [2.3, 1.91, 1.2]}
    ]


def test_marks_stand_by_line() -> None:
    busy = dataclasses.replace(timed("latency", (1.0, 2.0, 4.0)), other_load=((0.9,) * TURNS,) * 3)
    data = of(ok(cell(), [*size(cell()), busy]))
    assert column(data, "latency")["marks"] == {"0": "busy †"}
    assert [one.partition(":")[0] for one in data["meanings"]] == ["busy", "†"]
    assert "low" not in column(data, "latency")


@pytest.mark.parametrize("seconds", [1e308, 1.7e308])
def test_what_is_not_finite_is_null(seconds: float) -> None:
    data = of(ok(cell(), [*size(cell()), latency([seconds])]))
    assert column(data, "latency")["values"] == [None]


def test_hostile_names_survive() -> None:
    names = ["</script><img src=x onerror=alert(1)>", "$math$", "__proto__", "שלום", "a\u202eb", "x" * 200, "\udc80"]
    data = of(*(infer(cell(name, options=((name, name),))) for name in names))
    shown = [*names[:4], "a\\u202eb", "x" * 200, "\\udc80"]
    assert sorted(filter(None, texts(data, "model"))) == sorted(shown)
    assert sorted(column(data, "model")["texts"]) == sorted(shown)
    assert json.dumps(data, ensure_ascii=False).encode()


def test_rounding_leaves_the_digits_that_are_shown() -> None:
    times = [1.23496e-3, 12.2501e-3, 12.2488e-3, 9.9949e-3, 9.996e-3, 0.0999499e-3, 1.00049, 12.3449999, 4.4e-9]
    data = of(*(ok(cell(f"m{n}"), [*size(cell()), latency([one])]) for n, one in enumerate(times)))
    found = column(data, "latency")["values"]
    known = dict(zip(texts(data, "model"), found, strict=True))
    assert {name: number(value) for name, value in known.items()} == {
        f"m{n}": number(1e3 * one) for n, one in enumerate(times)
    }
    assert all(len(f"{value}") <= 9 for value in found)


def test_accuracies_that_read_alike_stay_apart() -> None:
    data = of(*(trained(training_cell(f"m{right}"), right, 10_000) for right in (9361, 9364)))
    assert sorted(column(data, "accuracy")["values"]) == [93.61, 93.64]


def test_rounding_leaves_intervals_as_tables_show_them() -> None:
    runs = [full_run("a", processes=3), full_run("b", speed=3.3, processes=5)]
    data = data_of(*runs)
    lines = lines_of(build_rows(runs))
    for one in line_columns(lines):
        if one.id in ("latency", "throughput", "training_step"):
            found, scale = column(data, one.id), one.column.display.scale
            for place, line in enumerate(lines):
                value = one.value(line)
                if value.number is None or value.interval is None:
                    assert found["values"][place] is None or math.isfinite(found["values"][place])
                    continue
                exact = with_interval(*(scale * x for x in (value.number, *value.interval)))
                assert with_interval(found["values"][place], found["low"][place], found["high"][place]) == exact


def test_fronts_hold_the_lines_that_may_be_on_them() -> None:
    records = [infer(cell(model), processes=3) for model in ("vit_nano", "vit_big")]
    data = of(*records, trained(training_cell("vit_nano"), 350), trained(training_cell("vit_big"), 100))
    assert texts(data, "model") == ["vit_nano", "vit_big"]
    assert data["costs"] == ["latency", "memory", "params", "flops", "throughput"]
    assert data["fronts"] == {cost: {"0": 1.0} for cost in data["costs"]}
    assert data["conditions"] == [0, 0]
    assert data["conditions_of_any_batch"] == [1, 1]


def test_patches_are_a_column_for_scaling_alone() -> None:
    records = [infer(cell("cifar_vit_tiny", image_size=(side, side))) for side in (32, 64)]
    data = of(*records, infer(cell("timm:vit_tiny_patch16_224", image_size=(32, 32))))
    found = dict(zip(map(str, column(data, "patches")["values"]), column(data, "image_size")["values"], strict=True))
    assert found == {"64": 32, "256": 64, "None": 32}
    assert "patches" not in data["axes"]
    assert "patches" not in [name for name, _ in data["constant"]]

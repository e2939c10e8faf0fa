"""Cells, measurements and records: ids that last, JSON that is strict."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbench.core.records import (
    SCHEMA,
    Cell,
    Measurement,
    Record,
    format_image_size,
    parse_grid,
    parse_image_size,
    upgrade,
)


def make_cell(**changes: object) -> Cell:
    fields = {
        "model": "vit_basic",
        "image_size": (32, 32),
        "num_classes": 10,
        "batch_size": 1,
        "device": "cpu",
        "threads": 2,
    }
    return Cell(**{**fields, **changes})  # type: ignore[arg-type]


def test_ids_stay_what_they_were_when_a_new_axis_comes() -> None:
    """A field at its default is no part of the id: this id was computed when the first schema was written."""
    assert make_cell().id == "1957bd5a3cbb8e74"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class NewerCell(Cell):
        precision: str = "ordinary"

    newer = NewerCell(**dataclasses.asdict(make_cell()))
    assert newer.id == make_cell().id
    assert dataclasses.replace(newer, precision="high").id != newer.id


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"image_size": (32, 48)},
        {"num_classes": 11},
        {"batch_size": 2},
        {"device": "mps"},
        {"threads": 1},
        {"dtype": "bf16"},
        {"mode": "train"},
        {"attention": "explicit"},
        {"compile": True},
        {"memory_limit": 1},
        {"weights": "train:brief"},
        {"data": "digits"},
        {"recipe_hash": "x"},
        {"seed": 1},
        {"options": (("a", "b"),)},
    ],
)
def test_every_field_of_a_cell_is_part_of_its_id(change: dict[str, object]) -> None:
    assert make_cell(**change).id != make_cell().id


@pytest.mark.integration
@given(
    st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=4), max_size=3),
    st.text(max_size=20),
    st.sampled_from(["ok", "oom", "unsupported", "timeout", "killed", "error"]),
)
def test_a_record_comes_back_from_its_line(samples: list[list[float]], text: str, status: str) -> None:
    measurement = Measurement(
        metric="latency", unit="s", samples=tuple(tuple(process) for process in samples), method=text, detail=text
    )
    record = Record(
        cell=make_cell(image_size=(231, 240), options=(("processes", "3"),)),
        status=status,  # type: ignore[arg-type]
        measurements=(measurement,),
        environment="e",
        started_at="t",
        duration_s=1.5,
        signal=9,
        stderr_tail=text,
    )
    line = record.to_json()
    assert "\n" not in line
    assert Record.from_json(line) == record


def test_a_number_that_is_not_finite_never_becomes_data() -> None:
    measurement = Measurement.single("test_loss", "nat", float("nan"), "test")
    record = Record(
        cell=make_cell(), status="ok", measurements=(measurement,), environment="", started_at="", duration_s=0.0
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.to_json()


@pytest.mark.parametrize(
    ("text", "size"), [("224", (224, 224)), (96, (96, 96)), ("231x240", (231, 240)), ("8X16", (8, 16))]
)
def test_image_sizes_are_read_as_height_by_width(text: str | int, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size
    assert parse_image_size(format_image_size(size)) == size


@pytest.mark.parametrize("text", ["0", "-32", "32x0", "12.5", "big", "", "1x2x3", "32x"])
def test_what_is_no_image_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="Image size"):
        parse_image_size(text)


@pytest.mark.parametrize("text", ["4x16", "4X16", " 4 x 16 "])
def test_a_grid_is_rows_and_columns(text: str) -> None:
    assert parse_grid(text) == (4, 16)


@pytest.mark.parametrize("text", ["64", "0x64", "4x", "4x4x4", "4x-1", ["4", "16"]])
def test_what_is_no_grid_is_refused_by_name(text: object) -> None:
    with pytest.raises(ValueError, match="is not ROWSxCOLUMNS"):
        parse_grid(text)


def test_the_single_value_of_many_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="not one"):
        _ = Measurement(metric="latency", unit="s", samples=((1.0, 2.0),), method="").value


def test_records_of_older_schemas_are_upgraded_when_they_are_read() -> None:
    paths = sorted(Path(__file__).parents[2].glob("results/*/*/records.jsonl"))
    paths.append(Path(__file__).parents[1] / "data" / "records_of_schema_1.jsonl")
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    assert {json.loads(line)["schema"] for line in lines} == {1, 2, 4}
    names = set()
    for line in lines:
        record = Record.from_json(line)
        assert record.schema == SCHEMA
        assert Record.from_json(record.to_json()) == record
        for one in record.measurements:
            assert bool(one.reference) == bool(one.reference_samples)
            names |= {one.reference} - {""}
    assert names == {"reference 1 (vitbench.reference, fp32, batch 1, 2 threads)"}


BOUND = "reference 1 (vitbench.reference, fp32, batch 1, 2 threads, both bound to cores 0, 1)"


@pytest.mark.parametrize(
    ("metric", "method", "reference", "executed"),
    [
        ("latency", f"perf_counter; in turns with {BOUND}", BOUND, False),
        ("latency_cpu_time", "process_time", BOUND, False),
        ("throughput", f"32 images / perf_counter; in turns with {BOUND}", "", False),
        ("flops", "FlopCounterMode executed on the CPU, mean of 16 images, batch of 1", "", True),
        ("macs", "FlopCounterMode on meta, batch of 1", "", False),
    ],
)
def test_an_older_schema_stated_reference_and_execution_in_its_method(
    metric: str, method: str, reference: str, executed: bool
) -> None:
    timed = Measurement(metric="latency", unit="s", samples=((2.0,),), method=f"in turns with {BOUND}")
    one = Measurement(metric=metric, unit="s", samples=((2.0,),), method=method)
    if reference:
        one = dataclasses.replace(one, turns=((1,),), reference_samples=((1.0,),))
    record = Record(
        cell=make_cell(),
        status="ok",
        measurements=(one, timed),
        environment="",
        started_at="",
        duration_s=0.0,
        schema=2,
    )
    upgraded = upgrade(record)
    assert upgraded.schema == SCHEMA
    assert (upgraded.measurements[0].reference, upgraded.measurements[0].executed) == (reference, executed)


def test_before_schema_4_the_first_call_was_among_the_samples() -> None:
    """Of two processes one had its first call in a turn of its own, with the CPU time of that turn."""
    turns, reference = ((1, 2), (3,)), ((0.1, 0.2), (0.1,))
    parts = [
        Measurement(metric="latency", unit="s", samples=((9.0, 1.0, 1.1), (8.0, 1.2, 1.3)), method="timed"),
        Measurement(metric="throughput", unit="image/s", samples=((0.1, 1.0, 0.9), (0.1, 0.8, 0.7)), method="timed"),
        Measurement(metric="latency_cpu_time", unit="s", samples=((9.0, 1.0), (1.2,)), method="timed"),
    ]
    timed, rate, cpu = (
        dataclasses.replace(one, turns=counts, reference_samples=reference)
        for one, counts in zip(parts, (turns, turns, ((1, 1), (1,))), strict=True)
    )
    record = Record(
        cell=make_cell(), status="ok", measurements=(timed, rate, cpu), environment="", started_at="", duration_s=0.0
    )
    upgraded = Record.from_json(dataclasses.replace(record, schema=3).to_json())
    timed, rate, cpu, first = upgraded.measurements
    assert (first.metric, first.samples) == ("first_call", ((9.0,), (8.0,)))
    assert (timed.samples, timed.turns) == (((1.0, 1.1), (1.2, 1.3)), ((2,), (2,)))
    assert timed.reference_samples == ((0.2,), (0.1,))
    assert rate.samples == ((1.0, 0.9), (0.8, 0.7))
    assert (cpu.samples, cpu.turns, cpu.reference_samples) == (((1.0,), (1.2,)), ((1,), (1,)), ((0.2,), (0.1,)))
    assert Record.from_json(upgraded.to_json()) == upgraded


def test_escaped_surrogates_are_read_though_pydantic_refuses_them() -> None:
    record = Record(
        cell=make_cell(), status="ok", measurements=(), environment="", started_at="", duration_s=0.0, detail="a\udcff"
    )
    assert Record.from_json(record.to_json()) == record

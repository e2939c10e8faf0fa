"""Rows to lines, one a batch, and the columns that the page, JSON and the plots take their values from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

from vitbench.core.records import Record
from vitbench.models.cards import model_registry
from vitbench.reports.model.columns import (
    PERCENT_OF_ROOF,
    Getter,
    accuracy_column,
    bound_value,
    declared,
    metric_column,
    roof_value,
    share_value,
)
from vitbench.reports.model.rows import DEFAULT_OPTION, Row, axis_values, sort_key
from vitbench.reports.model.tables import Column, Display, Value, metric_value, number_value, text_value

#: What accuracy is set against, by the id of its column; of throughput more is better.
COSTS = ("latency", "relative_latency", "memory", "params", "flops", "throughput")

#: Metrics whose columns have another id than their name.
_IDS = {"inference_peak_memory": "memory", "training_peak_memory": "training_memory"}
#: The ids of what is compared first, in order; more follow where metrics declare them.
_FIRST = (
    *("params", "flops", "macs", "memory", "latency", "relative_latency", "throughput", "accuracy", "macro_f1"),
    *("training_memory", "training_step", "relative_training_step", "training_throughput", "of_roof", "bound_by"),
)
#: The id of the column that says how many patches an image has, where the model's card knows their size.
PATCHES = "patches"
#: Conditions that are numbers where all their values are; options are, too.
_NUMBERS = ("image size", "batch", PATCHES, "threads", "classes", "seed", "training batch")
_WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}")


class LineColumn(NamedTuple):
    """A column of lines, whose ``id`` is stable: the page's data and address, JSON and command lines have it.

    ``kind``: a condition, what is compared first, or what is looked up. ``unit``: the base unit of its numbers.
    ``method``: how a line's value was obtained; empty for conditions and words.
    """

    id: str
    column: Column
    value: Callable[[Row], Value]
    kind: Literal["condition", "main", "detail"] = "main"
    unit: str = ""
    method: Callable[[Row], str] = lambda line: ""


def lines_of(rows: Sequence[Row]) -> list[Row]:
    """The rows narrowed to each of their batches, in the order of the tables; a training alone is one line.

    A line keeps its ``whole`` row, which knows what does not depend on the batch.
    """
    return [line for row in sorted(rows, key=sort_key) for line in _lines_of(row)]


def batch_of(line: Row) -> int | None:
    """The images a batch of a line; None for a training alone."""
    return next((record.cell.batch_size for record in (*line.infer, *line.train)), None)


def patches_of(line: Row) -> int | None:
    """The tokens of an image, without those that a model adds; None for a model of another library."""
    known = model_registry()
    if line.cell.model not in known:
        return None
    patch, (height, width) = known.get(line.cell.model).patch, line.cell.image_size
    return (height // patch) * (width // patch)


def line_columns(lines: Sequence[Row]) -> list[LineColumn]:
    """The columns in which some line has something: conditions, numbers, then what bounds a line and its status."""
    values = value_columns(lines)
    return [*_condition_columns(lines, taken={one.id for one in values}), *values] if lines else []


def value_columns(lines: Sequence[Row]) -> list[LineColumn]:
    """``line_columns`` without the conditions."""
    metrics = [*_declared_columns(lines), *_own_columns(lines), *_roof_columns(lines)]
    metrics = [one for one in metrics if any(one.value(line).status is not None for line in lines)]
    metrics.sort(key=lambda one: _FIRST.index(one.id) if one.id in _FIRST else len(_FIRST))
    return [*metrics, LineColumn("status", Column(name="status"), lambda line: text_value(line.status))]


def _lines_of(row: Row) -> Iterator[Row]:
    def at(records: Sequence[Record], batch: int) -> tuple[Record, ...]:
        return tuple(record for record in records if record.cell.batch_size == batch)

    for batch in sorted({record.cell.batch_size for record in (*row.infer, *row.train)}):
        yield replace(row, infer=at(row.infer, batch), train=at(row.train, batch), whole=row)
    if not row.infer and not row.train:
        yield replace(row, whole=row)


def _condition_columns(lines: Sequence[Row], taken: set[str]) -> list[LineColumn]:
    texts: dict[str, Callable[[Row], str]] = {
        "run": lambda line: line.run,
        "model": lambda line: line.cell.model,
        "device": lambda line: line.cell.device,
        "image size": lambda line: line.image_size,
        "batch": lambda line: str(batch_of(line) or ""),
        PATCHES: lambda line: str(patches_of(line) or ""),
    }
    options = {option for line in lines for option in line.options}
    texts |= {axis: partial(_axis_text, axis=axis) for axis in axis_values(lines) if axis not in texts}
    found = []
    for name, text in texts.items():
        known = {text(line) for line in lines} - {""}
        if not known:
            continue
        column_id = name.replace(" ", "_")
        column_id = f"option_{column_id}" if column_id in taken else column_id
        taken.add(column_id)
        is_number = (name in _NUMBERS or name in options) and all(map(_WHOLE_NUMBER.fullmatch, known))
        display = Display("px" if name == "image size" else "", precision="whole" if is_number else "text")
        value = partial(_condition_value, text=text, is_number=is_number)
        found.append(LineColumn(column_id, Column(name=name, display=display), value, "condition", display.unit))
    return found


def _axis_text(line: Row, axis: str) -> str:
    return line.axes.get(axis, DEFAULT_OPTION)


def _condition_value(line: Row, text: Callable[[Row], str], is_number: bool) -> Value:
    found = text(line)
    if not found:
        return Value()
    return number_value(int(found)) if is_number else text_value(found)


def _declared_columns(lines: Sequence[Row]) -> Iterator[LineColumn]:
    """The columns that registered metrics declare, less those that no cell was asked for."""
    asked = {one.metric for line in lines for record in line.records for one in record.measurements}
    for metric, value, column in declared():
        if value.name not in asked:  # a cell that failed whole does not show what it was asked for
            continue
        one = _IDS.get(value.name, value.name)
        modes = {value.mode} if value.mode else set(metric.modes)
        step = column.heading if modes == {"train"} else column.training_heading
        found: list[tuple[str, str, Getter]] = []
        if metric.process == "training":
            found.append((one, column.heading, Row.trained))
        elif value.kind == "exact":
            found.append((one, column.heading, Row.fact))
        else:
            found += [(one, column.heading, Row.at_smallest_batch)] if "infer" in modes else []
            found += [(one if modes == {"train"} else f"training_{one}", step, Row.at_training_batch)] if step else []
        for name, heading, get in found:
            kind: Literal["main", "detail"] = "main" if column.main or name in _FIRST else "detail"
            method = partial(_method, get=get, metric=value.name)
            yield LineColumn(name, *metric_column(value, heading, get), kind, value.unit, method)
            if value.kind == "time":
                relative = metric_column(value, heading, get, relative=True)
                yield LineColumn(f"relative_{name}", *relative, kind, "1", method)


def _own_columns(lines: Sequence[Row]) -> Iterator[LineColumn]:
    """The throughput of a line's own batch, and the accuracy with what all were tested on."""
    throughput = Column(name="throughput", display=Display("image/s"))
    method = partial(_method, get=Row.at_smallest_batch, metric="throughput")
    yield LineColumn(
        "throughput",
        throughput,
        lambda line: metric_value(line.at_smallest_batch("throughput")),
        "main",
        "image/s",
        method,
    )
    accuracy = partial(_method, get=Row.trained, metric="accuracy")
    yield LineColumn("accuracy", *accuracy_column(lines), "main", "1", accuracy)


def _roof_columns(lines: Sequence[Row]) -> Iterator[LineColumn]:
    """The share of the machine's roof, and what bounds the inference of a line, where a run has a roof."""
    if not any(line.roof for line in lines):
        return

    def method(line: Row) -> str:
        return line.roof.method if line.roof else ""

    for name, column, value, unit in (
        ("of_roof", Column(name="% of roof", display=PERCENT_OF_ROOF), share_value, "1"),
        ("bound_by", Column(name="bound by"), bound_value, ""),
    ):
        shown = partial(roof_value, get=lambda line: line.infer, batch=None, value=value)
        yield LineColumn(name, column, shown, "main", unit, method)


def _method(line: Row, get: Getter, metric: str) -> str:
    found = get(line, metric).measurement
    return found.method if found else ""

"""Rows to tables: what the main tables and the details show of each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from vitbench.analysis.roof_shares import TIMED
from vitbench.core import registry
from vitbench.core.records import Record
from vitbench.core.registry import METRICS
from vitbench.core.stats.intervals import samples_for_percentile
from vitbench.reports.model.noise import differs_under_load
from vitbench.reports.model.ranking import ranks
from vitbench.reports.model.roof import CellRoof
from vitbench.reports.model.rows import DEFAULT_OPTION, Row, shared_test_data, sort_key
from vitbench.reports.model.tables import (
    IMAGE_SIZE,
    TEXT,
    Column,
    Display,
    Note,
    Table,
    Value,
    estimate_value,
    marked,
    metric_value,
    number_value,
    text_value,
)
from vitbench.reports.model.values import MetricValue, value_of

#: (run, device, threads) -> the noise floor there, as a fraction.
Floors = Mapping[tuple[str, str, int], float]
#: How a row gives a metric.
Getter = Callable[[Row, str], MetricValue]

#: The order of columns; those of other metrics follow.
_ORDER = (
    *("params", "trainable_params", "flops", "macs", "activations", "params_without_gradient", "buffers"),
    "weights_memory",
    *("inference_peak_memory", "process_peak_memory", "latency", "energy_per_image", "power", "idle_power"),
    *("training_step", "training_peak_memory", "training_throughput"),
    *("macro_f1", "macro_f1_present", "test_loss", "training_images", "training_duration"),
)
#: The first call of a process, in cells that are timed.
FIRST_CALL = "first_call"
MB = Display("MB", 1e-6)
WHOLE = Display(precision="whole")
PERCENT = Display("%", 100, "tenths")
PERCENT_OF_ROOF = Display(scale=100)
_TENSORS, _BEYOND = Display("MB", 1e-6, "counted"), Display("MB", 1e-6, "rough")
_PARTS = ("weights", "batch", "gradients", "optimizer", "activations")


class RowColumn(NamedTuple):
    """A column, and what it shows of a row."""

    column: Column
    value: Callable[[Row], Value]


def table_of(columns: Sequence[RowColumn], rows: Iterable[Row]) -> Table:
    """One line a row."""
    lines = tuple(tuple(one.value(row) for one in columns) for row in rows)
    return Table(tuple(one.column for one in columns), lines)


MODEL = RowColumn(Column(name="model"), lambda row: text_value(row.cell.model))
DEVICE = RowColumn(Column(name="device"), lambda row: text_value(row.cell.device))
SIZE = RowColumn(Column(name="image size", display=IMAGE_SIZE), lambda row: text_value(row.image_size))


def axis_columns(axes: Sequence[str]) -> list[RowColumn]:
    """One column for each axis that varies."""
    return [RowColumn(Column(name=axis), partial(axis_value, axis=axis)) for axis in axes]


def axis_value(row: Row, axis: str) -> Value:
    """What a row has of an axis; an empty value where the axis does not apply."""
    text = row.axes.get(axis, DEFAULT_OPTION)
    return text_value(text) if text else Value()


def main_table(rows: Sequence[Row], conditions: Sequence[RowColumn], floors: Floors) -> Table:
    """What is compared first: size, work, memory, speed, energy, accuracy, and what failed.

    Leaves out columns that no row was asked for. ``floors``: the noise floor of each run's device and threads, below
    which models tie.
    """
    columns = _metric_columns(rows, main=True, floors=floors)
    if any(row.training for row in rows):
        columns.append(accuracy_column(rows))
    asked = [one for one in columns if any(one.value(row).status is not None for row in rows)]
    status = RowColumn(Column(name="status"), lambda row: text_value(row.status))
    return table_of([MODEL, *conditions, *asked, status], rows)


def detail_table(rows: Sequence[Row], axes: Sequence[str]) -> Table | None:
    """What is looked up rather than compared, for all devices and sizes; None without any number."""
    columns = _metric_columns(rows, main=False) + _roof_columns(rows)
    filled = [one for one in columns if any(one.value(row).status in ("ok", "too few samples") for row in rows)]
    if not filled:
        return None
    return table_of([MODEL, DEVICE, SIZE, *axis_columns(axes), *filled], sorted(rows, key=sort_key))


def _metric_columns(rows: Sequence[Row], *, main: bool, floors: Floors | None = None) -> list[RowColumn]:
    """The columns that registered metrics declare, by what they are of: any batch, inference, a step, a training."""
    batch = smallest_batch(rows)
    step_batch = max((row.train[-1].cell.batch_size for row in rows if row.train), default=None)
    facts: list[RowColumn] = []
    infer: list[RowColumn] = []
    step: list[RowColumn] = []
    trained: list[RowColumn] = []
    for metric, value, column in declared():
        if value.name == "latency" and batch is not None:
            infer += _speed_columns(rows, value, batch, floors or {}) if main else _sample_columns(value, batch)
            infer += [] if main else _time_columns(value, Row.at_smallest_batch, batch, "first call")
        elif value.name == "training_step" and step_batch is not None and not main:
            step.append(metric_column(value, column.heading, Row.at_training_batch, step_batch, relative=True))
            step += _time_columns(value, Row.at_training_batch, step_batch, "first training step")
        elif column.main is not main:
            continue
        elif metric.process == "training":
            trained.append(metric_column(value, column.heading, Row.trained))
        elif value.kind == "exact":
            facts.append(metric_column(value, column.heading, Row.fact))
        else:
            modes = {value.mode} if value.mode else set(metric.modes)
            heading = column.heading if modes == {"train"} else column.training_heading
            asked = metric.by_default
            if batch is not None and "infer" in modes and (asked or _was_asked(value, (r.infer[:1] for r in rows))):
                infer.append(metric_column(value, column.heading, Row.at_smallest_batch, batch))
            if step_batch is not None and heading and (asked or _was_asked(value, (row.train[-1:] for row in rows))):
                step.append(metric_column(value, heading, Row.at_training_batch, step_batch))
    return [*facts, *infer, *step, *trained]


def declared() -> list[tuple[registry.Metric, registry.Yields, registry.Column]]:
    """What registered metrics declare to have a column, in order."""
    found = [(metric, one, one.column) for _, metric in METRICS.items() for one in metric.yields if one.column]
    return sorted(found, key=lambda one: _ORDER.index(one[1].name) if one[1].name in _ORDER else len(_ORDER))


def display_of(value: registry.Yields) -> Display:
    """How a value with a column is shown: counts with one digit more than what was measured."""
    assert value.column is not None
    counted = value.kind in ("exact", "condition")
    return Display(value.column.unit, value.column.scale, "counted" if counted else "measured")


def memory_table(rows: Sequence[Row], axes: Sequence[str]) -> Table | None:
    """One line a call (inference at the smallest batch, a training step at the largest); None without values."""
    names = [MODEL, DEVICE, SIZE, *axis_columns(axes)]
    lines = []
    for row in sorted(rows, key=sort_key):
        for call, records, system in (
            ("inference", row.infer[:1], "inference_peak_memory"),
            ("training step", row.train[-1:], "training_peak_memory"),
        ):
            for record in records:
                tensors, seen = value_of(record, "tensor_peak"), value_of(record, system)
                if tensors.value is None:
                    continue
                line = (
                    *(one.value(row) for one in names),
                    text_value(f"{call} b{record.cell.batch_size}"),
                    metric_value(seen),
                    metric_value(tensors),
                    *(metric_value(value_of(record, f"tensor_peak_{part}")) for part in _PARTS),
                    number_value(None if seen.value is None else seen.value - tensors.value),
                )
                lines.append(line)
    if not lines:
        return None
    columns = [one.column for one in names]
    columns += [Column(name="call"), Column(name="system", display=MB), Column(name="tensors", display=_TENSORS)]
    columns += [Column(name=part, display=_TENSORS) for part in _PARTS]
    return Table((*columns, Column(name="beyond tensors", display=_BEYOND)), tuple(lines))


def smallest_batch(rows: Sequence[Row]) -> int | None:
    """The smallest inference batch that any of the rows was measured at."""
    return min((row.infer[0].cell.batch_size for row in rows if row.infer), default=None)


def _was_asked(value: registry.Yields, cells: Iterable[Sequence[Record]]) -> bool:
    """Whether some cell has it or says why not: a cell that failed whole does not show what it was asked for."""
    return any(record.measurement(value.name) for records in cells for record in records)


def metric_column(
    value: registry.Yields,
    heading: str,
    get: Getter,
    batch: int | None = None,
    *,
    relative: bool = False,
) -> RowColumn:
    """What a metric is, or a time over the reference; a note if that is not of ``batch``."""

    def shown(row: Row) -> Value:
        found = get(row, value.name)
        note = _other_batch(found, batch) or empty_classes(found)
        return estimate_value(found.relative_between_runs, note) if relative else metric_value(found, note)

    display = Display("× reference") if relative else display_of(value)
    return RowColumn(Column(name=heading, display=display, batch=batch), shown)


def _speed_columns(rows: Sequence[Row], value: registry.Yields, batch: int, floors: Floors) -> list[RowColumn]:
    def best(row: Row) -> Value:
        found = row.best_throughput()
        if found.value is None:
            return metric_value(found)
        return marked(number_value(found.value, note=Note("batch", found.batch_size or 0)), found)

    return [
        *(metric_column(value, "latency", Row.at_smallest_batch, batch, relative=one) for one in (False, True)),
        _rank_column(rows, batch, floors),
        RowColumn(Column(name="best throughput", display=Display("image/s")), best),
    ]


def _sample_columns(value: registry.Yields, batch: int) -> list[RowColumn]:
    display = display_of(value)

    def quantile(row: Row, q: float) -> Value:
        found = row.at_smallest_batch(value.name)
        if found.value is None:
            return metric_value(found)
        number, note = found.percentile(q), _other_batch(found, batch)
        if number is None:
            reason = f"n too small (< {samples_for_percentile(q)})"
            return Value(status="too few samples", reason=reason, note=note)
        return number_value(number, note=note)

    def count(row: Row) -> Value:
        found = row.at_smallest_batch(value.name)
        if found.estimate is None:
            return metric_value(found)
        return number_value(found.estimate.n_samples, note=Note("processes", found.estimate.n_processes))

    return [
        RowColumn(Column(name="p90", display=display, batch=batch), lambda row: quantile(row, 0.9)),
        RowColumn(Column(name="p99", display=display, batch=batch), lambda row: quantile(row, 0.99)),
        RowColumn(Column(name="samples", display=WHOLE, batch=batch, brackets="processes"), count),
    ]


def _time_columns(value: registry.Yields, get: Getter, batch: int, first: str) -> list[RowColumn]:
    """What a time is under load, where that differs from quiet turns, and the ``first`` call of a process."""
    assert value.column is not None
    display = display_of(value)

    def loaded(row: Row) -> Value:
        found = get(row, value.name)
        if found.estimate is None:
            return metric_value(found)
        if differs_under_load(found):
            return estimate_value(found.under_load, _other_batch(found, batch))
        return Value(text="same" if found.under_load else "all turns")

    def first_call(row: Row) -> Value:
        found = get(row, FIRST_CALL)
        return metric_value(found, _other_batch(found, batch))

    return [
        RowColumn(Column(name=f"{value.column.heading} under load", display=display, batch=batch), loaded),
        RowColumn(Column(name=first, display=display, batch=batch), first_call),
    ]


def _roof_columns(rows: Sequence[Row]) -> list[RowColumn]:
    """The share of the machine's roof, and what bounds the cell, where a run has a roof."""
    columns = []
    infer, train = (lambda row: row.infer[:1]), (lambda row: row.train[-1:])
    for get, what in ((infer, ""), (train, "training step ")) if any(row.roof for row in rows) else ():
        batches = [record.cell.batch_size for row in rows for record in get(row)]
        batch = (max if what else min)(batches, default=None)
        for name, value, display in (("% of roof", share_value, PERCENT_OF_ROOF), ("bound by", bound_value, TEXT)):
            column = Column(name=f"{what}{name}", display=display, batch=batch)
            columns.append(RowColumn(column, partial(roof_value, get=get, batch=batch, value=value)))
    return columns


def roof_value(
    row: Row, get: Callable[[Row], Sequence[Record]], batch: int | None, value: Callable[[CellRoof, Record], Value]
) -> Value:
    """What ``value`` makes of the first record that ``get`` finds; a note if that is not of ``batch``."""
    records = get(row)
    if row.roof is None or not records:
        return Value()
    cell = records[0].cell
    note = None if batch in (None, cell.batch_size) else Note("batch", cell.batch_size)
    if (found := row.roof.of(cell.id)) is not None:
        return replace(value(found, records[0]), note=note)
    reason = row.roof.unavailable(cell.id)
    return Value(status="unsupported", reason=reason, note=note) if reason else Value()


def share_value(found: CellRoof, record: Record) -> Value:
    """The share of the roof with its interval, and the marks of the measured time."""
    interval = None if found.low is None or found.high is None else (found.low, found.high)
    shown = Value(number=found.share, interval=interval, status="ok", reason=found.left_out)
    shown = marked(shown, value_of(record, TIMED[record.cell.mode]))
    return replace(shown, marks=(*shown.marks, "lower bound")) if found.left_out else shown


def bound_value(found: CellRoof, _: Record) -> Value:
    """What bounds a cell."""
    return text_value(found.bound or "unknown")


def _rank_column(rows: Sequence[Row], batch: int, floors: Floors) -> RowColumn:
    """The rank by relative latency among ``rows``, those of another thread count or run apart."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row.at_smallest_batch("latency").batch_size == batch:
            groups.setdefault((row.run, row.cell.device, row.cell.threads), []).append(row)
    found: dict[int, Value] = {}
    for key, group in groups.items():
        values = [row.at_smallest_batch("latency") for row in group]
        for row, rank in zip(group, ranks(values, floors.get(key, 0.0)), strict=True):
            if rank is not None:
                found[id(row)] = Value(number=rank[0], interval=rank, status="ok")
    column = Column(name="rank", display=Display(precision="rank"), batch=batch)
    return RowColumn(column, lambda row: found.get(id(row), Value()))


def empty_classes(found: MetricValue) -> Note | None:
    """The classes that a macro F1 counts 0 because no test image is of them."""
    if found.record is None or found.measurement is None or found.measurement.metric != "macro_f1":
        return None
    count = value_of(found.record, "classes_without_images").value
    return Note("classes", round(count)) if count else None


def _other_batch(found: MetricValue, batch: int | None) -> Note | None:
    """The batch of a value that is not of the column's."""
    if batch is None or found.status is None or found.batch_size in (None, batch):
        return None
    return Note("batch", found.batch_size or 0)


def accuracy_column(rows: Sequence[Row]) -> RowColumn:
    """Data and the number of test images go into the heading if all rows have the same."""
    tested = {found.value for row in rows if (found := row.trained("test_images")).value is not None}
    same = round(next(iter(tested))) if len(tested) == 1 else None

    def value(row: Row) -> Value:
        images = row.trained("test_images").value
        note = None if same or images is None else Note("images", round(images))
        return metric_value(row.trained("accuracy"), note)

    column = Column(name="accuracy", display=PERCENT, data=shared_test_data(rows), images=same)
    return RowColumn(column, value)

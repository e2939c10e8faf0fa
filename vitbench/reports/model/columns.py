"""Rows to tables: what the main tables and the details show of each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from vitbench.core.records import Record
from vitbench.core.stats.intervals import samples_for_percentile
from vitbench.reports.model.ranking import ranks
from vitbench.reports.model.rows import DEFAULT_OPTION, Row, image_size_text, shared_test_data, sort_key
from vitbench.reports.model.tables import (
    IMAGE_SIZE,
    Column,
    Display,
    Interval,
    Note,
    Table,
    Value,
    estimate_value,
    metric_value,
    number_value,
    text_value,
)
from vitbench.reports.model.values import MetricValue

#: (run, device, threads) -> the noise floor there, as a fraction.
Floors = Mapping[tuple[str, str, int], float]

#: How units are shown; whatever has another unit is shown as it is.
MB = Display("MB", 1e-6)
MILLISECONDS = Display("ms", 1e3)
MILLIONS = Display("M", 1e-6, "counted")
GFLOPS = Display("GFLOP", 1e-9, "counted")
RELATIVE = Display("× reference")


class RowColumn(NamedTuple):
    """A column, and what it shows of a row."""

    column: Column
    value: Callable[[Row], Value]


def table_of(columns: Sequence[RowColumn], rows: Iterable[Row]) -> Table:
    """One line a row."""
    lines = tuple(tuple(one.value(row) for one in columns) for row in rows)
    return Table(tuple(one.column for one in columns), lines)


def model_column() -> RowColumn:
    """The model's name."""
    return RowColumn(Column(name="model"), lambda row: text_value(row.cell.model))


def place_columns() -> list[RowColumn]:
    """Device and image size, for tables with rows of several."""
    return [
        RowColumn(Column(name="device"), lambda row: text_value(row.cell.device)),
        RowColumn(Column(name="image size", display=IMAGE_SIZE), lambda r: text_value(image_size_text(r))),
    ]


def axis_columns(axes: Sequence[str]) -> list[RowColumn]:
    """One column for each axis that varies."""

    def column(axis: str) -> RowColumn:
        return RowColumn(Column(name=axis), lambda row: axis_value(row, axis))

    return [column(axis) for axis in axes]


def axis_value(row: Row, axis: str) -> Value:
    """What a row has of an axis; an empty value where the axis does not apply."""
    text = row.axes.get(axis, DEFAULT_OPTION)
    return text_value(text) if text else Value()


def main_table(rows: Sequence[Row], axes: Sequence[str], floors: Floors) -> Table:
    """What is compared first: size, work, memory, speed, energy, accuracy, and what failed.

    Leaves out columns that no row was asked for. ``floors``: the noise floor of each run's device and threads, below
    which models tie.
    """
    batch, training_batch = smallest_batch(rows), largest_training_batch(rows)
    columns = [
        _fact("params", "params", MILLIONS),
        _fact("GFLOPs", "flops", GFLOPS),
        _fact("GMACs", "macs", replace(GFLOPS, unit="GMAC")),
    ]
    if batch is not None:
        columns += [
            _inference("peak memory", "inference_peak_memory", MB, batch),
            _inference("latency", "latency", MILLISECONDS, batch),
            _relative("latency", lambda row: row.at_smallest_batch("latency"), batch),
            _rank_column(rows, batch, floors),
            RowColumn(Column(name="best throughput", display=Display("image/s")), _best_throughput),
        ]
        if _was_asked("energy_per_image", [row.infer[:1] for row in rows]):
            columns.append(_inference("energy", "energy_per_image", Display("J/image"), batch))
    if training_batch is not None:
        columns.append(_training("training step", "training_step", MILLISECONDS, training_batch))
        if _was_asked("energy_per_image", [row.train[-1:] for row in rows]):
            columns.append(_training("training energy", "energy_per_image", Display("J/image"), training_batch))
    if any(row.training for row in rows):
        columns.append(_accuracy_column(rows))
    asked = [one for one in columns if not all(one.value(row).is_empty for row in rows)]
    status = RowColumn(Column(name="status"), lambda row: text_value(row.status))
    return table_of([model_column(), *axis_columns(axes), *asked, status], rows)


def detail_table(rows: Sequence[Row], axes: Sequence[str]) -> Table | None:
    """What is looked up rather than compared, for all devices and sizes; None without any number."""
    batch, training_batch = smallest_batch(rows), largest_training_batch(rows)
    columns = [
        _fact("trainable", "trainable_params", MILLIONS),
        _fact("without gradient", "params_without_gradient", Display("", 1, "counted")),
        _fact("buffers", "buffers", Display("elements", 1, "counted")),
        _fact("weights", "weights_memory", Display("MB", 1e-6, "counted")),
    ]
    if batch is not None:
        columns += [
            _inference("process peak", "process_peak_memory", MB, batch),
            _percentile(0.9, batch),
            _percentile(0.99, batch),
            _samples(batch),
            _inference("power", "power", Display("W"), batch),
            _inference("power at rest before", "idle_power", Display("W"), batch),
        ]
    if training_batch is not None:
        columns += [
            _relative("training step", lambda row: row.at_training_batch("training_step"), training_batch),
            _training("training peak", "training_peak_memory", MB, training_batch),
            _training("training", "training_throughput", Display("image/s"), training_batch),
            _training("training power", "power", Display("W"), training_batch),
            _training("power at rest before training", "idle_power", Display("W"), training_batch),
        ]
    columns += [
        _trained("macro F1", "macro_f1", Display()),
        _trained("test loss", "test_loss", Display("nat")),
        _trained("training images", "training_images", Display(precision="counted")),
        _trained("training time", "training_duration", Display("s")),
    ]
    filled = [one for one in columns if any(_is_filled(one.value(row)) for row in rows)]
    if not filled:
        return None
    return table_of([model_column(), *place_columns(), *axis_columns(axes), *filled], sorted(rows, key=sort_key))


def smallest_batch(rows: Sequence[Row]) -> int | None:
    """The smallest inference batch that any of the rows was measured at."""
    return min((row.infer[0].cell.batch_size for row in rows if row.infer), default=None)


def largest_training_batch(rows: Sequence[Row]) -> int | None:
    """The largest batch of a training step that any of the rows was measured at."""
    return max((row.train[-1].cell.batch_size for row in rows if row.train), default=None)


def percentile_value(found: MetricValue, q: float, display: Display, *, note: Note | None = None) -> Value:
    """A quantile of all samples, or that there are too few of them."""
    if found.value is None:
        return metric_value(found, display, note=note)
    quantile = found.percentile(q)
    if quantile is None:
        reason = f"n too small (< {samples_for_percentile(q)})"
        return Value(status="too few samples", reason=reason, display=display, note=note)
    return number_value(quantile, display, note=note)


def _is_filled(value: Value) -> bool:
    return value.number is not None or value.status == "too few samples"


def _was_asked(metric: str, cells: Iterable[Sequence[Record]]) -> bool:
    """Whether some cell has it or says why not: a cell that failed whole does not show what it was asked for."""
    return any(record.measurement(metric) for records in cells for record in records)


def _fact(name: str, metric: str, display: Display) -> RowColumn:
    return RowColumn(Column(name=name, display=display), lambda row: metric_value(row.fact(metric), display))


def _trained(name: str, metric: str, display: Display) -> RowColumn:
    return RowColumn(Column(name=name, display=display), lambda row: metric_value(row.trained(metric), display))


def _inference(name: str, metric: str, display: Display, batch: int) -> RowColumn:
    def value(row: Row) -> Value:
        found = row.at_smallest_batch(metric)
        return metric_value(found, display, note=_other_batch(found, batch))

    return RowColumn(Column(name=name, display=display, batch=batch), value)


def _training(name: str, metric: str, display: Display, batch: int) -> RowColumn:
    def value(row: Row) -> Value:
        found = row.at_training_batch(metric)
        return metric_value(found, display, note=_other_batch(found, batch))

    return RowColumn(Column(name=name, display=display, batch=batch), value)


def _relative(name: str, get: Callable[[Row], MetricValue], batch: int) -> RowColumn:
    def value(row: Row) -> Value:
        found = get(row)
        return estimate_value(found.relative_between_runs, RELATIVE, note=_other_batch(found, batch))

    return RowColumn(Column(name=name, display=RELATIVE, batch=batch), value)


def _rank_column(rows: Sequence[Row], batch: int, floors: Floors) -> RowColumn:
    """The rank by relative latency among ``rows``, those of another thread count or run apart."""
    display = Display(precision="rank")
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row.at_smallest_batch("latency").batch_size == batch:
            groups.setdefault((row.run, row.cell.device, row.cell.threads), []).append(row)
    found: dict[int, Value] = {}
    for key, group in groups.items():
        values = [row.at_smallest_batch("latency") for row in group]
        for row, rank in zip(group, ranks(values, floors.get(key, 0.0)), strict=True):
            if rank is not None:
                interval = Interval(rank.best, rank.worst)
                found[id(row)] = Value(number=rank.best, interval=interval, status="ok", display=display)
    return RowColumn(Column(name="rank", display=display, batch=batch), lambda row: found.get(id(row), Value()))


def _other_batch(found: MetricValue, batch: int) -> Note | None:
    """The batch of a value that is not of the column's."""
    if found.status is None or found.batch_size in (None, batch):
        return None
    return Note("batch", found.batch_size or 0)


def _best_throughput(row: Row) -> Value:
    found, display = row.best_throughput(), Display("image/s")
    if found.value is None:
        return metric_value(found, display)
    return number_value(found.value, display, note=Note("batch", found.batch_size or 0))


def _percentile(q: float, batch: int) -> RowColumn:
    def value(row: Row) -> Value:
        found = row.at_smallest_batch("latency")
        note = None if found.value is None else _other_batch(found, batch)
        return percentile_value(found, q, MILLISECONDS, note=note)

    return RowColumn(Column(name=f"p{100 * q:.0f}", display=MILLISECONDS, batch=batch), value)


def _samples(batch: int) -> RowColumn:
    display = Display(precision="whole")

    def value(row: Row) -> Value:
        found = row.at_smallest_batch("latency")
        if found.estimate is None:
            return metric_value(found, display)
        return number_value(found.estimate.n_samples, display, note=Note("processes", found.estimate.n_processes))

    return RowColumn(Column(name="samples", display=display, batch=batch, brackets="processes"), value)


def _accuracy_column(rows: Sequence[Row]) -> RowColumn:
    """Data and the number of test images go into the heading if all rows have the same."""
    display = Display("%", 100, "tenths")
    tested = {found.value for row in rows if (found := row.trained("test_images")).value is not None}
    same = round(next(iter(tested))) if len(tested) == 1 else None

    def value(row: Row) -> Value:
        images = row.trained("test_images").value
        note = None if same or images is None else Note("images", round(images))
        return metric_value(row.trained("accuracy"), display, note=note)

    return RowColumn(Column(name="accuracy", display=display, data=shared_test_data(rows), images=same), value)

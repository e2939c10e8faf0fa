"""The columns of the Markdown tables: a heading with its unit, and how a row fills it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vitbench.core.records import Record
from vitbench.reports.format import NOT_ASKED, cell_text, number, with_interval
from vitbench.reports.model.ranking import places
from vitbench.reports.model.rows import DEFAULT_OPTION, Figure, Row, shared_test_data, shown_status, too_small

#: (run, device, threads) -> the noise floor there, as a fraction.
Floors = Mapping[tuple[str, str, int], float]

EXACT_DIGITS = 4  # counts
MEASURED_DIGITS = 3


@dataclass(frozen=True)
class Column:
    """``text`` gives a row's cell, escaped. ``is_text`` columns stand left."""

    heading: str
    text: Callable[[Row], str]
    is_text: bool = False


def axis_columns(axes: Sequence[str]) -> list[Column]:
    """One column for each axis that varies."""

    def column(axis: str) -> Column:
        return Column(cell_text(axis), lambda row: cell_text(row.axes.get(axis, DEFAULT_OPTION) or NOT_ASKED), True)

    return [column(axis) for axis in axes]


def model_column() -> Column:
    """The model's name."""
    return Column("model", lambda row: cell_text(row.cell.model), True)


def main_columns(rows: Sequence[Row], floors: Floors | None = None) -> list[Column]:
    """What is compared first: size, work, memory, speed, energy, accuracy, and what failed; nothing that no row was
    asked.

    ``floors``: the noise floor of each run's device and threads, below which models are ties.
    """
    batch, training_batch = smallest_batch(rows), largest_training_batch(rows)
    columns = [
        _fact("params (M)", "params", 1e6),
        _fact("GFLOPs", "flops", 1e9),
        _fact("GMACs", "macs", 1e9),
    ]
    if batch is not None:
        columns += [
            Column(f"peak memory b{batch} (MB)", _at_smallest("inference_peak_memory", 1e-6, batch)),
            Column(f"latency b{batch} (ms)", _at_smallest("latency", 1e3, batch)),
            Column(f"latency b{batch} (× reference)", _relative(lambda row: row.at_smallest_batch("latency"), batch)),
            _place_column(rows, batch, floors or {}),
            Column("best throughput (image/s)", _best_throughput),
        ]
        if _was_asked("energy_per_image", [row.infer[:1] for row in rows]):
            columns.append(Column(f"energy b{batch} (J/image)", _at_smallest("energy_per_image", 1, batch)))
    if training_batch is not None:
        of = f"b{training_batch}"
        columns.append(Column(f"training step {of} (ms)", _at_training("training_step", 1e3, training_batch)))
        if _was_asked("energy_per_image", [row.train[-1:] for row in rows]):
            energy = _at_training("energy_per_image", 1, training_batch)
            columns.append(Column(f"training energy {of} (J/image)", energy))
    if any(row.training for row in rows):
        columns.append(_accuracy_column(rows))
    asked = [column for column in columns if any(column.text(row) != NOT_ASKED for row in rows)]
    return [*asked, Column("status", lambda row: cell_text(row.status), True)]


def detail_columns(rows: Sequence[Row]) -> list[Column]:
    """What is looked up rather than compared; only columns that some row fills."""
    batch, training_batch = smallest_batch(rows), largest_training_batch(rows)
    columns = [
        _fact("trainable (M)", "trainable_params", 1e6),
        _fact("without gradient", "params_without_gradient", 1),
        _fact("buffers (elements)", "buffers", 1),
        _fact("weights (MB)", "weights_memory", 1e6),
    ]
    if batch is not None:
        columns += [
            Column(f"process peak b{batch} (MB)", _at_smallest("process_peak_memory", 1e-6, batch)),
            Column(f"p90 b{batch} (ms)", _percentile(0.9, batch)),
            Column(f"p99 b{batch} (ms)", _percentile(0.99, batch)),
            Column(f"samples b{batch} (processes)", _samples),
            Column(f"power b{batch} (W)", _at_smallest("power", 1, batch)),
            Column(f"power at rest before b{batch} (W)", _at_smallest("idle_power", 1, batch)),
        ]
    if training_batch is not None:
        of = f"b{training_batch}"
        columns += [
            Column(
                f"training step {of} (× reference)",
                _relative(lambda row: row.at_training_batch("training_step"), training_batch),
            ),
            Column(f"training peak {of} (MB)", _at_training("training_peak_memory", 1e-6, training_batch)),
            Column(f"training {of} (image/s)", _at_training("training_throughput", 1, training_batch)),
            Column(f"training power {of} (W)", _at_training("power", 1, training_batch)),
            Column(f"power at rest before training {of} (W)", _at_training("idle_power", 1, training_batch)),
        ]
    columns += [
        Column("macro F1", lambda row: show(row.trained("macro_f1"), 1)),
        Column("test loss (nat)", lambda row: show(row.trained("test_loss"), 1)),
        Column("training images", lambda row: show(row.trained("training_images"), 1, EXACT_DIGITS)),
        Column("training time (s)", lambda row: show(row.trained("training_duration"), 1)),
    ]
    filled = re.compile(r"\d|n too small")
    return [column for column in columns if any(filled.match(column.text(row)) for row in rows)]


def smallest_batch(rows: Sequence[Row]) -> int | None:
    """The smallest inference batch that any of the rows was measured at."""
    return min((row.infer[0].cell.batch_size for row in rows if row.infer), default=None)


def largest_training_batch(rows: Sequence[Row]) -> int | None:
    """The largest batch of a training step that any of the rows was measured at."""
    return max((row.train[-1].cell.batch_size for row in rows if row.train), default=None)


def show(figure: Figure, scale: float, digits: int = MEASURED_DIGITS) -> str:
    """A figure times ``scale``, or the status in its place."""
    if figure.status is None:
        return NOT_ASKED
    estimate = figure.estimate
    if estimate is None:
        return shown_status(figure.status)
    if estimate.low is None or estimate.high is None:
        return number(estimate.value * scale, digits)
    return with_interval(estimate.value * scale, estimate.low * scale, estimate.high * scale, digits)


def _was_asked(metric: str, cells: Iterable[Sequence[Record]]) -> bool:
    """Whether some cell has it, or says why not: a cell that failed whole does not tell what it was asked for."""
    return any(record.measurement(metric) for records in cells for record in records)


def _fact(heading: str, metric: str, per: float) -> Column:
    return Column(heading, lambda row: show(row.fact(metric), 1 / per, EXACT_DIGITS))


def _at_smallest(metric: str, scale: float, batch: int) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        figure = row.at_smallest_batch(metric)
        return show(figure, scale) + _other_batch(figure, batch)

    return text


def _at_training(metric: str, scale: float, batch: int) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        figure = row.at_training_batch(metric)
        return show(figure, scale) + _other_batch(figure, batch)

    return text


def _relative(get: Callable[[Row], Figure], batch: int) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        figure = get(row)
        estimate = figure.relative_between_runs
        if estimate is None:
            return NOT_ASKED
        return with_interval(estimate.value, estimate.low, estimate.high) + _other_batch(figure, batch)

    return text


def _place_column(rows: Sequence[Row], batch: int, floors: Floors) -> Column:
    """The place by relative latency among ``rows``, those of another thread count or run apart."""
    groups: dict[tuple[str, str, int], list[int]] = {}
    figures = [row.at_smallest_batch("latency") for row in rows]
    for index, (row, figure) in enumerate(zip(rows, figures, strict=True)):
        if figure.batch_size == batch:
            groups.setdefault((row.run, row.cell.device, row.cell.threads), []).append(index)
    found: dict[int, str] = {}
    for key, indices in groups.items():
        for index, place in zip(indices, places([figures[i] for i in indices], floors.get(key, 0.0)), strict=True):
            if place is not None:
                found[id(rows[index])] = str(place)
    return Column(f"place b{batch}", lambda row: found.get(id(row), NOT_ASKED))


def _other_batch(figure: Figure, batch: int) -> str:
    """`` (b8)`` where the cell is not of the batch that the heading names."""
    if figure.status is None or figure.batch_size in (None, batch):
        return ""
    return f" (b{figure.batch_size})"


def _best_throughput(row: Row) -> str:
    figure = row.best_throughput()
    if figure.value is None:
        return show(figure, 1)
    return f"{number(figure.value)} (b{figure.batch_size})"


def _percentile(q: float, batch: int) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        figure = row.at_smallest_batch("latency")
        if figure.value is None:
            return show(figure, 1)
        value = figure.percentile(q)
        return (too_small(q) if value is None else number(value * 1e3)) + _other_batch(figure, batch)

    return text


def _samples(row: Row) -> str:
    figure = row.at_smallest_batch("latency")
    if figure.estimate is None:
        return show(figure, 1)
    return f"{figure.estimate.n_samples} ({figure.estimate.n_processes})"


def _accuracy_column(rows: Sequence[Row]) -> Column:
    """Data and n go into the heading if all rows have the same."""
    tested = {figure.value for row in rows if (figure := row.trained("test_images")).value is not None}
    on = cell_text(shared_test_data(rows))
    on = f" {on}" if on else ""
    same = f", n = {next(iter(tested)):.0f}" if len(tested) == 1 else ""

    def text(row: Row) -> str:
        figure = row.trained("accuracy")
        estimate = figure.estimate
        if estimate is None:
            return show(figure, 1)
        shown = f"{100 * estimate.value:.1f}"
        if estimate.low is not None and estimate.high is not None:
            shown += f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
        n = row.trained("test_images").value
        return shown if same or n is None else f"{shown} (n = {n:.0f})"

    return Column(f"accuracy{on}{same} (%)", text)

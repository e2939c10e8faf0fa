"""Records to rows: the cells that a reader compares side by side become one Row, and each of its columns one Figure.

Cells that differ only in batch size or mode share a row. A training cell joins the row of the same model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from vitbench.core.records import Cell, Measurement, Record, Status, format_image_size
from vitbench.core.stats.estimates import first_stage_of, measurement_estimate
from vitbench.core.stats.statistics import (
    Estimate,
    Relative,
    allow_for_runs,
    estimate,
    estimate_relative,
    in_quiet_turns,
    percentile,
    relative_samples,
    samples_for_percentile,
    steady,
)
from vitbench.reports.model.runs import Run
from vitbench.suites import TRAIN_IMAGES
from vitbench.suites.thresholds import yields_of

#: How a status reads where a number would be.
SHOWN: dict[str, str] = {"oom": "OOM"}

#: The value of an option that other rows set and a row does not.
DEFAULT_OPTION = "default"


@dataclass(frozen=True)
class Figure:
    """What one column shows of one row: a number with its uncertainty, or why there is none.

    ``status`` is None where nothing was asked for. ``batch_size`` is that of the cell that it comes from.
    """

    record: Record | None = None
    measurement: Measurement | None = None
    status: Status | None = None
    detail: str = ""

    @cached_property
    def estimate(self) -> Estimate | None:
        """The number in base units, or None unless the status is ``ok``."""
        if self.status != "ok" or self.measurement is None or self.record is None:
            return None
        return measurement_estimate(self.record, self.measurement)

    @property
    def value(self) -> float | None:
        """The point estimate in base units."""
        return self.estimate.value if self.estimate else None

    @cached_property
    def relative_samples(self) -> list[list[float]]:
        """Each process's samples over what the reference took in the same turns; empty where it took none."""
        one = self.measurement
        if self.status != "ok" or one is None or not one.reference_samples or not any(one.samples):
            return []
        return relative_samples(one.samples, one.turns, one.reference_samples)

    @cached_property
    def relative_between_runs(self) -> Estimate | None:
        """``relative`` with the interval that other runs on this machine fall into, too, from three processes on."""
        if self.relative is None or not self.relative.low:  # a clock too coarse to see anything says 0
            return self.relative
        return allow_for_runs(self.relative)

    @cached_property
    def relative(self) -> Estimate | None:
        """The number in units of what the reference took, with the interval of this run's processes; None where there
        is no reference. From three processes on the quiet turns count alone.
        """
        if not self.relative_samples or self.measurement is None:
            return None
        if self.in_quiet_turns is None:
            return estimate(self.relative_samples)
        return estimate_relative(self.in_quiet_turns, self.first_stage)

    @cached_property
    def in_quiet_turns(self) -> Relative | None:
        """The figure relative to the reference with what each process contributes; None without at least three."""
        one = self.measurement
        if not self.relative_samples or one is None or min(map(min, filter(None, one.samples)), default=0) <= 0:
            return None
        return in_quiet_turns(one.samples, one.turns, one.reference_samples)

    @cached_property
    def first_stage(self) -> Relative | None:
        """``in_quiet_turns`` of the processes by which it was decided how many there would be, if there were more
        then: an interval takes their spread.
        """
        return first_stage_of(self.measurement) if self.in_quiet_turns and self.measurement else None

    @property
    def batch_size(self) -> int | None:
        """Images a batch of the cell."""
        return self.record.cell.batch_size if self.record else None

    def percentile(self, q: float) -> float | None:
        """The quantile of all processes' steady samples; None if there are too few.

        The first call of a turn, whose caches others have just filled, is left out where the turn has more than two:
        it is slower because of how we measure.
        """
        if self.status != "ok" or self.measurement is None:
            return None
        turns = self.measurement.turns or tuple((len(process),) for process in self.measurement.samples)
        samples = []
        for process, counts in zip(self.measurement.samples, turns, strict=True):
            firsts = {sum(counts[:index]) for index, count in enumerate(counts) if index > 0 and count > 2}
            cut = len(process) - len(steady(process))
            samples += [x for index, x in enumerate(process) if index >= cut and index not in firsts]
        return percentile(samples, q)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The cells of one model under one set of conditions.

    ``cell`` stands for all of them (its batch size and mode mean nothing); ``infer`` and ``train`` hold the cells on
    random or loaded weights by ascending batch size, ``training`` the cell that tested the model, after training it or
    with the same loaded weights.
    """

    run: str
    cell: Cell
    infer: tuple[Record, ...] = ()
    train: tuple[Record, ...] = ()
    training: Record | None = None

    @property
    def records(self) -> tuple[Record, ...]:
        """All of them, those that are compared first."""
        return (*self.infer, *self.train, *((self.training,) if self.training else ()))

    @property
    def axes(self) -> dict[str, str]:
        """What can vary between rows of one model, size and device, as text; an empty one where it does not apply."""
        cell, training = self.cell, self.training.cell if self.training else None
        limit = cell.memory_limit
        return {
            "run": self.run,
            "dtype": cell.dtype,
            "attention": cell.attention,
            "compile": "yes" if cell.compile else "no",
            "threads": str(cell.threads),
            "memory limit": "none" if limit is None else f"{round(limit / 1e6, 1):.10g} MB",
            "classes": str(cell.num_classes),
            "weights": cell.weights if not cell.trains else "random",
            "data": (training.data if training else cell.data) or "",
            "recipe": training.weights.removeprefix("train:") if training and training.trains else "",
            "recipe hash": (training.recipe_hash or "")[:8] if training else "",
            "training size": format_image_size(training.image_size) + " px"
            if self.trained_elsewhere and training
            else "",
            "training device": training.device if self.trained_on_other_device and training else "",
            "training batch": str(training.batch_size) if training and training.trains else "",
            "seed": str(cell.seed),
            **self.options,
        }

    @property
    def options(self) -> dict[str, str]:
        """The options of its cells; those of the training, too."""
        return {**dict(self.cell.options), **(dict(self.training.cell.options) if self.training else {})}

    @property
    def trained_elsewhere(self) -> bool:
        """Whether the model was trained and tested on pictures of another size than this row's."""
        return self.training is not None and self.training.cell.image_size != self.cell.image_size

    @property
    def trained_on_other_device(self) -> bool:
        """Whether the model was trained and tested on another device than this row's."""
        return self.training is not None and self.training.cell.device != self.cell.device

    def fact(self, metric: str) -> Figure:
        """A figure that is the same whatever the batch (parameters, FLOPs): from the first cell that has it."""
        return first_figure(self.records, metric)

    def at_smallest_batch(self, metric: str) -> Figure:
        """An inference figure at the smallest batch that was asked for, a failure included."""
        return figure(self.infer[0], metric) if self.infer else Figure()

    def at_training_batch(self, metric: str) -> Figure:
        """A training step's figure at the largest batch that was asked for, a failure included."""
        return figure(self.train[-1], metric) if self.train else Figure()

    def best_throughput(self) -> Figure:
        """The highest throughput of all batches; if none has one, why the smallest has none."""
        figures = [figure(record, "throughput") for record in self.infer]
        good = [one for one in figures if one.value is not None]
        if good:
            return max(good, key=lambda one: one.value or 0.0)
        return next((one for one in figures if one.status is not None), Figure())

    def trained(self, metric: str) -> Figure:
        """A figure of the training cell."""
        return figure(self.training, metric) if self.training else Figure()

    @property
    def status(self) -> str:
        """``ok``, or what failed and where: ``OOM at batch 32; training timeout``."""
        parts = _failures(self.infer, "") + _failures(self.train, " in training step")
        if self.training and self.training.status != "ok":
            what = "training" if self.training.cell.trains else "test"
            parts.append(f"{what} {shown_status(self.training.status)}")
        parts += _partial_failures(self.records)
        return "; ".join(parts) or "ok"


def shown_status(status: str) -> str:
    """``oom`` -> ``OOM``; the others as they are."""
    return SHOWN.get(status, status)


def figure(record: Record, metric: str) -> Figure:
    """The figure of one metric of one cell: its measurement, or the status that stands in its place.

    Kept beside the record's fields, as ``cached_property`` does: tables, plots and files ask for the same estimates.
    """
    known: dict[str, Figure] = vars(record).setdefault("_figures", {})
    if metric not in known:
        known[metric] = _find_figure(record, metric)
    return known[metric]


def _find_figure(record: Record, metric: str) -> Figure:
    measurement = record.measurement(metric)
    if measurement is not None:
        if measurement.status == "ok" and not any(measurement.samples):
            return Figure(record, measurement, "error", "no samples")
        return Figure(record, measurement, measurement.status, measurement.detail)
    # A failed cell that names what it lacks was not asked for anything else.
    names_what_it_lacks = any(one.status != "ok" for one in record.measurements)
    if record.status != "ok" and not names_what_it_lacks:
        return Figure(record, None, record.status, record.detail or record.cause)
    return Figure(record)


def first_figure(records: Iterable[Record], metric: str) -> Figure:
    """The first good figure of the records, else the first failure; an empty one if a cell that went well has none."""
    figures = [figure(record, metric) for record in records]
    good = (one for one in figures if one.status == "ok")
    measured = (one for one in figures if one.measurement is not None)
    asked = figures if all(one.status is not None for one in figures) else []
    return next(good, next(measured, next(iter(asked), Figure())))


def mean_of(record: Record, metric: str) -> float | None:
    """The mean of all samples of a metric; None if it has none."""
    one = figure(record, metric)
    values = [x for process in one.measurement.samples for x in process] if one.measurement else []
    return math.fsum(values) / len(values) if values else None


def too_small(q: float) -> str:
    """What stands where a percentile would be if the samples were enough."""
    return f"n too small (< {samples_for_percentile(q)})"


def build_rows(runs: Sequence[Run]) -> list[Row]:
    """The rows of all runs, in order of first appearance. Equal cells of two runs stay two rows.

    A training cell joins the row of the same model, image size, classes, device, dtype and seed. Where several qualify,
    it joins the one that is equal in all other conditions, too. A suite that trains at one size of its own leaves no
    row of that size: then the training joins the rows of the other sizes, which say so. Rows of a device on which
    nothing was trained are joined by the trainings of another one, and say so. Where none qualifies, it is a row of its
    own. A row that several trainings (other data, other recipes) belong to is repeated for each.
    """
    rows: list[Row] = []
    for run in runs:
        measured: dict[Cell, list[Record]] = {}
        trainings: dict[Cell, list[Record]] = {}
        homeless: list[Record] = []
        for record in run.records:
            if not record.cell.tests:
                measured.setdefault(_row_cell(record.cell), []).append(record)
        tests = [record for record in run.records if record.cell.tests]
        # a suite that trains on one device alone has no other accuracy for the rest
        tested_on = {record.cell.device for record in tests}
        others = sorted({cell.device for cell in measured} - tested_on) if len(tested_on) == 1 else []
        for record in tests:
            homes = _homes(record.cell, list(measured))
            if homes and record.cell.trains:
                for device in others:
                    homes += _homes(dataclasses.replace(record.cell, device=device), list(measured))
            for home in homes:
                trainings.setdefault(home, []).append(record)
            if not homes:
                homeless.append(record)
        for cell, records in measured.items():
            by_batch = sorted(records, key=lambda record: record.cell.batch_size)
            infer = tuple(record for record in by_batch if record.cell.mode == "infer")
            train = tuple(record for record in by_batch if record.cell.mode == "train")
            for training in trainings.get(cell, [None]):
                rows.append(Row(run=run.name, cell=cell, infer=infer, train=train, training=training))
        rows += [Row(run=run.name, cell=record.cell, training=record) for record in homeless]
    return rows


def place_key(row: Row) -> tuple[object, ...]:
    """Where a row stands: by device, image size, latency at the smallest batch, parameters; those without come last.

    The latency is that over the reference's where there is one: times of different minutes are not compared.
    """
    figure, params = row.at_smallest_batch("latency"), row.fact("params").value
    # seconds and ratios do not compare: what lacks a reference comes after what has one
    latency = figure.relative.value if figure.relative else figure.value
    kind = 0 if figure.relative else 1
    last = float("inf")
    return (
        row.cell.device,
        row.cell.image_size,
        row.cell.threads,
        kind if latency is not None else 2,
        last if latency is None else latency,
        last if params is None else params,
        row.cell.model,
        row.run,
        *(f"{axis}={value}" for axis, value in row.axes.items()),
    )


def varying_axes(rows: Sequence[Row]) -> list[str]:
    """The axes that take more than one value; rows to which an axis does not apply do not count."""
    return [axis for axis, values in axis_values(rows).items() if len(values) > 1]


def axis_values(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The values of each axis in order of first appearance. ``recipe hash`` only where a recipe's name has several."""
    values: dict[str, list[str]] = {axis: [] for row in rows for axis in row.axes}
    hashes: dict[str, set[str]] = {}
    for row in rows:
        for axis, known in values.items():
            value = row.axes.get(axis, DEFAULT_OPTION)
            if value and value not in known:
                known.append(value)
        hashes.setdefault(row.axes["recipe"], set()).add(row.axes["recipe hash"])
    if all(len(found) < 2 for found in hashes.values()):
        values.pop("recipe hash", None)
    return values


def shared_test_data(rows: Sequence[Row]) -> str:
    """`` on digits at 16 px``: the data that all trained rows share, with its size where that is not the rows'."""
    cells = [row.training.cell for row in rows if row.training]
    data, sizes = {cell.data for cell in cells}, {cell.image_size for cell in cells}
    if len(data) != 1 or None in data:
        return ""
    at = len(sizes) == 1 and any(row.trained_elsewhere for row in rows)
    return f" on {next(iter(data))}" + (f" at {format_image_size(next(iter(sizes)))} px" if at else "")


def image_size_text(row: Row) -> str:
    """``32`` or ``231x240``, in px."""
    return format_image_size(row.cell.image_size)


def _row_cell(cell: Cell) -> Cell:
    return dataclasses.replace(cell, batch_size=1, mode="infer")


def _homes(training: Cell, cells: Sequence[Cell]) -> list[Cell]:
    """The rows' cells that a training belongs to: that of its size, or if there is none the one of each other size."""
    wanted = "random" if training.trains else training.weights
    same = ("model", "num_classes", "device", "dtype", "seed")
    like: dict[tuple[int, int], list[Cell]] = {}
    for cell in cells:
        if cell.weights == wanted and all(getattr(cell, name) == getattr(training, name) for name in same):
            like.setdefault(cell.image_size, []).append(cell)
    if training.image_size in like:
        like = {training.image_size: like[training.image_size]}
    options = tuple(option for option in training.options if option[0] != TRAIN_IMAGES)
    untrained = dataclasses.replace(_row_cell(training), weights=wanted, data=None, recipe_hash=None, options=options)
    return [
        cell
        for size, found in like.items()
        for cell in found
        if len(found) == 1
        or dataclasses.replace(cell, data=None, recipe_hash=None) == dataclasses.replace(untrained, image_size=size)
    ]


def _failures(records: Sequence[Record], where: str) -> list[str]:
    batches: dict[str, list[str]] = {}
    for record in records:
        if record.status != "ok":
            batches.setdefault(shown_status(record.status), []).append(str(record.cell.batch_size))
    return [f"{status}{where} at batch {', '.join(sizes)}" for status, sizes in batches.items()]


def _partial_failures(records: Sequence[Record]) -> list[str]:
    """Metrics that failed in cells that are otherwise ok. What cannot be told at all is no failure of the cell."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for measurement in record.measurements:
            # what another library fails to count says nothing of the cell
            by_tool = yields_of(measurement.metric).kind == "tool"
            failed = measurement.status not in ("ok", "unsupported") and not by_tool
            if record.status == "ok" and failed:
                key = (measurement.metric.replace("_", " "), shown_status(measurement.status))
                found.setdefault(key, []).append(str(record.cell.batch_size))
    return [f"{metric} {status} at batch {', '.join(sizes)}" for (metric, status), sizes in found.items()]

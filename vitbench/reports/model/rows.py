"""Records to rows: the cells that a reader compares side by side become one Row.

Cells that differ only in batch size or mode share a row. A training cell joins the row of the same model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from vitbench.core.records import Cell, Record, format_image_size
from vitbench.reports.model.roof import Roof
from vitbench.reports.model.runs import Run
from vitbench.reports.model.values import MetricValue, value_of
from vitbench.suites import TRAIN_IMAGES
from vitbench.suites.batch_search import shown_status
from vitbench.suites.thresholds import yields_of

#: The value of an option that other rows set and a row does not.
DEFAULT_OPTION = "default"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The cells of one model under one set of conditions.

    ``cell`` stands for all of them (its batch size and mode mean nothing); ``infer`` and ``train`` hold the cells on
    random or loaded weights by ascending batch size, ``training`` the cell that tested the model, after training it or
    with the same loaded weights. ``roof`` is its run's. A row narrowed to one batch (``lines.py``) has its ``whole``.
    """

    run: str
    cell: Cell
    infer: tuple[Record, ...] = ()
    train: tuple[Record, ...] = ()
    training: Record | None = None
    roof: Roof | None = field(default=None, repr=False)
    whole: Row | None = field(default=None, repr=False)

    @property
    def image_size(self) -> str:
        """``32`` or ``231x240``, in px."""
        return format_image_size(self.cell.image_size)

    @property
    def records(self) -> tuple[Record, ...]:
        """All of them, those that are compared first."""
        return (*self.infer, *self.train, *((self.training,) if self.training else ()))

    @cached_property
    def axes(self) -> dict[str, str]:
        """What can vary between rows of one model, size and device, as text; empty where it does not apply."""
        cell, training = self.cell, self.training.cell if self.training else None
        limit, elsewhere = cell.memory_limit, training is not None and training.image_size != cell.image_size
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
            "training size": f"{format_image_size(training.image_size)} px" if training and elsewhere else "",
            "training device": training.device if training and training.device != cell.device else "",
            "training batch": str(training.batch_size) if training and training.trains else "",
            "seed": str(cell.seed),
            **self.options,
        }

    @property
    def options(self) -> dict[str, str]:
        """The options of its cells; those of the training, too."""
        return {**dict(self.cell.options), **(dict(self.training.cell.options) if self.training else {})}

    def fact(self, metric: str) -> MetricValue:
        """A value that does not depend on the batch (parameters, FLOPs), from the first cell that has it.

        Without one the first failure; an empty value if a cell that went well has none.
        """
        records = (self.whole or self).records
        good = next((found for one in records if (found := value_of(one, metric)).status == "ok"), None)
        if good is not None:
            return good
        values = [value_of(record, metric) for record in records]
        measured = (one for one in values if one.measurement is not None)
        asked = values if all(one.status is not None for one in values) else []
        return next(measured, next(iter(asked), MetricValue()))

    def at_smallest_batch(self, metric: str) -> MetricValue:
        """An inference value at the smallest batch that was asked for, a failure included."""
        return value_of(self.infer[0] if self.infer else None, metric)

    def at_training_batch(self, metric: str) -> MetricValue:
        """A training step's value at the largest batch that was asked for, a failure included."""
        return value_of(self.train[-1] if self.train else None, metric)

    def best_throughput(self) -> MetricValue:
        """The highest throughput of all batches; if none has one, why the smallest has none."""
        values = [value_of(record, "throughput") for record in self.infer]
        good = [one for one in values if one.value is not None]
        if good:
            return max(good, key=lambda one: one.value or 0.0)
        return next((one for one in values if one.status is not None), MetricValue())

    def trained(self, metric: str) -> MetricValue:
        """A value of the training cell."""
        return value_of(self.training, metric)

    @property
    def status(self) -> str:
        """``ok``, or what failed and where: ``OOM at batch 32; training timeout``."""
        parts = _failures(self.infer, "") + _failures(self.train, " in training step")
        if self.training and self.training.status != "ok":
            what = "training" if self.training.cell.trains else "test"
            parts.append(f"{what} {shown_status(self.training.status)}")
        parts += _partial_failures(self.records)
        return "; ".join(parts) or "ok"


def build_rows(runs: Sequence[Run]) -> list[Row]:
    """The rows of all runs, in order of first appearance. Equal cells of two runs stay two rows.

    A training cell joins the row of the same model, image size, classes, device, dtype and seed. Of several such rows
    it joins the one that is equal in all other conditions, too; without such a row it becomes a row of its own. Where a
    suite trains at a size that it does not time, the training joins the rows of the other sizes, which say so. Where it
    trains on one device only, the training joins the rows of the other devices, which say so. A row with several
    trainings (other data, other recipes) is repeated for each.
    """
    rows: list[Row] = []
    for run in runs:
        measured: dict[Cell, list[Record]] = {}
        trainings: dict[Cell, list[Record]] = {}
        unmatched: list[Record] = []
        for record in run.records:
            if not record.cell.tests:
                measured.setdefault(_row_cell(record.cell), []).append(record)
        tests = [record for record in run.records if record.cell.tests]
        # a suite that trains on one device alone has no other accuracy for the rest
        tested_on = {record.cell.device for record in tests}
        others = sorted({cell.device for cell in measured} - tested_on) if len(tested_on) == 1 else []
        alike: dict[tuple[object, ...], list[Cell]] = {}
        for cell in measured:
            alike.setdefault(_shared(cell), []).append(cell)
        for record in tests:
            matches = _matching_cells(record.cell, alike)
            if matches and record.cell.trains:
                for device in others:
                    matches += _matching_cells(dataclasses.replace(record.cell, device=device), alike)
            for match in matches:
                trainings.setdefault(match, []).append(record)
            if not matches:
                unmatched.append(record)
        for cell, records in measured.items():
            by_batch = sorted(records, key=lambda record: record.cell.batch_size)
            infer = tuple(record for record in by_batch if record.cell.mode == "infer")
            train = tuple(record for record in by_batch if record.cell.mode == "train")
            for training in trainings.get(cell, [None]):
                rows.append(Row(run=run.name, cell=cell, infer=infer, train=train, training=training, roof=run.roof))
        rows += [Row(run=run.name, cell=record.cell, training=record) for record in unmatched]
    return rows


def sort_key(row: Row) -> tuple[object, ...]:
    """Orders rows by device, image size, latency at the smallest batch and parameters; rows without these come last.

    The latency is relative to the reference where there is one: times of different minutes are not compared.
    """
    found, params = row.at_smallest_batch("latency"), row.fact("params").value
    # seconds and ratios do not compare: what lacks a reference comes after what has one
    latency = found.relative.value if found.relative else found.value
    kind = 0 if found.relative else 1
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
    """``digits at 16 px``: the data that all trained rows share, with its size where that is not the rows'."""
    cells = [row.training.cell for row in rows if row.training]
    data, sizes = {cell.data for cell in cells}, {cell.image_size for cell in cells}
    if len(data) != 1 or None in data:
        return ""
    at = len(sizes) == 1 and any(row.axes["training size"] for row in rows)
    return str(next(iter(data))) + (f" at {format_image_size(next(iter(sizes)))} px" if at else "")


def _row_cell(cell: Cell) -> Cell:
    return dataclasses.replace(cell, batch_size=1, mode="infer")


def _shared(cell: Cell) -> tuple[object, ...]:
    """What a training shares with the cells whose rows it joins."""
    return cell.model, cell.num_classes, cell.device, cell.dtype, cell.seed


def _matching_cells(training: Cell, alike: Mapping[tuple[object, ...], Sequence[Cell]]) -> list[Cell]:
    """The cells whose rows a training joins: that of its size, or without one the cell of each other size."""
    wanted = "random" if training.trains else training.weights
    like: dict[tuple[int, int], list[Cell]] = {}
    for cell in alike.get(_shared(training), ()):
        if cell.weights == wanted:
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
    """Metrics that failed in cells that are otherwise ok; what is unavailable is no failure of the cell."""
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

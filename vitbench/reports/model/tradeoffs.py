"""Accuracy against what it costs: the points of a plot, and the Pareto front of each comparable condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from vitbench.reports.model.lines import LineColumn, batch_of, line_columns, lines_of
from vitbench.reports.model.names import differences, line_names
from vitbench.reports.model.pareto import OF_ANY_BATCH, Front, fronts, tested_as
from vitbench.reports.model.rows import Row

#: The plots of a report: file name, and cost. What is relative was measured in the same minutes.
_FILES = {"accuracy-latency.png": ("relative_latency", "latency"), "accuracy-params.png": ("params",)}

Interval = tuple[float, float] | None


class Point(NamedTuple):
    """One line in the units of the axes, with 95 % intervals; ``probability``: to be on the front of its group."""

    label: str
    x: float
    x_interval: Interval
    y: float
    y_interval: Interval
    on_front: bool
    probability: float


@dataclass(frozen=True)
class Group:
    """The points of one comparable condition by ascending x; ``name``: what differs from others, or empty."""

    name: str
    points: tuple[Point, ...]

    @property
    def front(self) -> list[Point]:
        """The points that none of them beats."""
        return [point for point in self.points if point.on_front]


@dataclass(frozen=True)
class Tradeoff:
    """What a plot shows, before it is drawn. ``chance``: the accuracy of guessing (%), None if lines differ.
    ``left_out``: how many points are not shown.
    """

    cost: str
    title: str
    x_label: str
    y_label: str
    groups: tuple[Group, ...]
    chance: float | None = None
    left_out: int = 0

    @property
    def points(self) -> list[Point]:
        """Those of all groups: on the fronts first, then by descending accuracy."""
        points = [point for group in self.groups for point in group.points]
        return sorted(points, key=lambda one: (not one.on_front, -one.y))

    def best(self, most: int) -> Tradeoff:
        """With at most the first ``most`` of ``points``."""
        kept = set(self.points[:most])
        groups = [Group(group.name, tuple(one for one in group.points if one in kept)) for group in self.groups]
        left_out = len(self.points) - sum(len(group.points) for group in groups)
        return replace(self, groups=tuple(group for group in groups if group.points), left_out=left_out)

    @property
    def caption(self) -> str:
        """The fronts in words, as plain text."""
        texts = []
        for group in self.groups:
            names = ", ".join(f"{one.label} ({100 * one.probability:.0f} %)" for one in group.front)
            texts.append(f"{group.name}: {names}" if group.name else names)
        return f"The Pareto front of {self.title}, with each point's probability to be on it: {'; '.join(texts)}."


def tradeoff(lines: Sequence[Row], cost: str) -> Tradeoff | None:
    """Accuracy against ``cost`` (one of ``COSTS``); None where no line has both.

    What depends on the batch is that of one batch: the smallest with points, of throughput the largest.
    """
    columns = {column.id: column for column in line_columns(lines)}
    if cost not in columns or "accuracy" not in columns:
        return None
    x, y = columns[cost], columns["accuracy"]
    lines = [line for line in lines if x.value(line).number is not None and y.value(line).number is not None]
    at = ""
    if cost in OF_ANY_BATCH:
        lines = list({(line.run, line.cell, id(line.training)): line for line in lines}.values())
    elif lines:
        batches = [batch_of(line) or 0 for line in lines]
        batch = max(batches) if cost == "throughput" else min(batches)
        lines = [line for line in lines if batch_of(line) == batch]
        at = f" of a batch of {batch}"
    found = fronts(lines, cost)
    if not found:
        return None
    data, unit = y.column.data, x.column.display.unit
    chances = {100 / line.cell.num_classes for line in lines}
    return Tradeoff(
        cost=cost,
        title=f"accuracy against {x.column.name}",
        x_label=f"{x.column.name}{at} ({unit})",
        y_label=f"accuracy on {data} (%)" if data else "accuracy (%)",
        groups=_groups(lines, found, x, y),
        chance=chances.pop() if len(chances) == 1 else None,
    )


def report_tradeoffs(rows: Sequence[Row]) -> dict[str, Tradeoff]:
    """The plots of a report by the names of their files; none without an accuracy. Draws nothing."""
    lines = lines_of(rows)
    plots = {}
    for name, costs in _FILES.items():
        known = [found for cost in costs if (found := tradeoff(lines, cost))]
        if known:  # milliseconds where some line lacks the reference
            plots[name] = max(known, key=lambda one: len(one.points))
    return plots


def _groups(lines: Sequence[Row], found: Sequence[Front], x: LineColumn, y: LineColumn) -> tuple[Group, ...]:
    groups = []
    for front, name in zip(found, _front_names(lines, found), strict=True):
        own = {index: lines[index] for index in front.probability}
        points = [
            Point(label, *_scaled(x, line), *_scaled(y, line), index in front.lines, front.probability[index])
            for (index, line), label in zip(own.items(), line_names([*own.values()], leave_out=["batch"]), strict=True)
        ]
        groups.append(Group(name, tuple(sorted(points, key=lambda one: (one.x, one.y)))))
    return tuple(groups)


def _front_names(lines: Sequence[Row], found: Sequence[Front]) -> list[str]:
    """What the lines of each front share and others do not, by as few axes as tell the fronts apart."""
    owners = [place for place, front in enumerate(found) for _ in front.probability]
    every = [lines[index] for front in found for index in front.probability]
    names = [""] * len(found)
    tested = zip(*map(tested_as, every), strict=True)
    shared = (_by_front(texts, owners) for texts in [*differences(every).values(), *tested])
    for values in sorted(filter(None, shared), key=lambda values: -len({*values})):
        more = [", ".join(filter(None, pair)) for pair in zip(names, values, strict=True)]
        if len({*more}) > len({*names}):
            names = more
    return names


def _by_front(texts: Sequence[str], owners: Sequence[int]) -> list[str]:
    """The text of each front; none where lines of one front differ."""
    found: dict[int, set[str]] = {}
    for text, owner in zip(texts, owners, strict=True):
        found.setdefault(owner, set()).add(text)
    return [text for texts in found.values() for text in texts] if all(len(one) == 1 for one in found.values()) else []


def _scaled(column: LineColumn, line: Row) -> tuple[float, Interval]:
    value, scale = column.value(line), column.column.display.scale
    assert value.number is not None
    ends = value.interval
    return value.number * scale, (ends[0] * scale, ends[1] * scale) if ends else None

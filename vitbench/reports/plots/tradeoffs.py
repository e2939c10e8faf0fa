"""Accuracy against latency and against parameters, with the Pareto front of each comparable group."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitbench.core.stats.intervals import Estimate
from vitbench.core.text import one_line
from vitbench.reports.format import cell_text, number
from vitbench.reports.model.columns import smallest_batch
from vitbench.reports.model.ranking import pareto_front
from vitbench.reports.model.rows import DEFAULT_OPTION, Row, shared_test_data, varying_axes
from vitbench.reports.model.values import MetricValue
from vitbench.reports.plots.style import COLOURS, MARKERS, new_figure, open_frame, render_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Segment = tuple[float, float, float, float]  # x0, y0, x1, y1 in data coordinates, level or upright

#: Axes that make groups rather than labels: accuracies on other data, times on other devices are not compared.
GROUPING = ("run", "data", "threads")

#: From this ratio of largest to smallest on parameters are drawn logarithmically; latency always is.
LOG_FROM = 3.0
#: Characters of a name in a plot: what is longer would leave no room for points.
_LONGEST_LABEL = 70
#: More names than these cover each other whatever one does.
_MOST_LABELS = 60


@dataclass(frozen=True)
class Point:
    """One row: (x, accuracy) with their 95 % intervals, in the units of the plot's axes."""

    label: str
    group: str
    x: float
    x_low: float | None
    x_high: float | None
    y: float
    y_low: float | None
    y_high: float | None


@dataclass(frozen=True)
class Plot:
    """What one plot shows, before it is drawn. ``chance`` is the accuracy of guessing (%), None if points differ."""

    file_name: str
    title: str
    x_label: str
    points: tuple[Point, ...]
    chance: float | None
    y_label: str = "accuracy (%)"
    log_x: bool = True

    @property
    def groups(self) -> list[str]:
        """The groups in order; each has a front of its own."""
        return list(dict.fromkeys(point.group for point in self.points))

    def front(self, group: str) -> list[Point]:
        """The points of a group that none of it beats, by ascending x."""
        points = [point for point in self.points if point.group == group]
        return [points[i] for i in pareto_front([(point.x, point.y) for point in points])]

    @property
    def labelled(self) -> list[Point]:
        """The points that get their names: all, or of very many those on the fronts, then the most accurate ones."""
        if len(self.points) <= _MOST_LABELS:
            return list(self.points)
        fronts = {id(point) for group in self.groups for point in self.front(group)}
        return sorted(self.points, key=lambda one: (id(one) not in fronts, -one.y))[:_MOST_LABELS]

    @property
    def chance_is_near(self) -> bool:
        """Whether a line at chance leaves the points enough of the plot."""
        if self.chance is None:
            return False
        lows = [point.y if point.y_low is None else point.y_low for point in self.points]
        highs = [point.y if point.y_high is None else point.y_high for point in self.points]
        return min(lows) - self.chance <= max(highs) - min(lows)

    @property
    def caption(self) -> str:
        """The front in words, for Markdown."""
        fronts = [
            f"{cell_text(group)}: {', '.join(cell_text(p.label) for p in self.front(group))}" for group in self.groups
        ]
        return f"On the Pareto front ({self.title}; intervals not considered): {'; '.join(fronts)}."


def plan_plots(rows: Sequence[Row]) -> list[Plot]:
    """The plots that the rows suffice for: none without an accuracy. Draws nothing, loads no matplotlib."""
    batch = smallest_batch(rows)
    tested = [row for row in rows if row.trained("accuracy").value is not None]
    chances = {100 / row.cell.num_classes for row in tested}
    chance = chances.pop() if len(chances) == 1 else None
    data = shared_test_data(rows)
    y_label = f"accuracy on {data} (%)" if data else "accuracy (%)"

    # A latency of another batch than the axis says is no point.
    def at_batch(row: Row) -> MetricValue:
        found = row.at_smallest_batch("latency")
        return found if found.batch_size == batch else MetricValue()

    # times of different minutes are not compared where they can be set against the reference's
    paired = all(one.relative for one in map(at_batch, tested) if one.value is not None)

    def latency(row: Row) -> Estimate | None:
        return at_batch(row).relative_between_runs if paired else at_batch(row).estimate

    unit, scale = ("× reference", 1.0) if paired else ("ms", 1e3)
    plans: list[tuple[str, str, str, Callable[[Row], Estimate | None], float]] = [
        ("latency", "latency", f"latency of a batch of {batch} ({unit})", latency, scale),
        ("params", "parameters", "parameters (M)", lambda row: row.fact("params").estimate, 1e-6),
    ]
    plots = []
    for name, what, x_label, get, scale in plans:
        points = _points(rows, get, scale)
        if points:
            spread = max(point.x for point in points) / max(min(point.x for point in points), 1e-12)
            log_x = get is latency or spread > LOG_FROM
            title = f"accuracy against {what}"
            plots.append(Plot(f"accuracy-{name}.png", title, x_label, points, chance, y_label, log_x))
    return plots


def why_no_plots(rows: Sequence[Row]) -> str:
    """One line for what is not drawn; empty if both plots are."""
    if not any(row.training for row in rows):
        return "No plots: they show accuracy, and this report has no training cell."
    if all(row.trained("accuracy").value is None for row in rows):
        return "No plots: they show accuracy, and no training cell has one (see Failures)."
    drawn = {plot.file_name for plot in plan_plots(rows)}
    missing = [what for what in ("latency", "params") if f"accuracy-{what}.png" not in drawn]
    return f"No plot of accuracy against {' or '.join(missing)}: no row has both." if missing else ""


def draw_plot(plot: Plot) -> bytes:
    """The plot as PNG."""
    from vitbench.reports.plots.labels import Label, place_labels

    figure = new_figure((8, 5.2), dpi=150)
    axes = figure.add_subplot()
    colours = {group: COLOURS[index % len(COLOURS)] for index, group in enumerate(plot.groups)}
    lines: list[Segment] = []
    for index, (group, colour) in enumerate(colours.items()):
        lines += _draw_group(axes, plot, group, colour, MARKERS[index % len(MARKERS)])
    labelled = plot.labelled
    if len(labelled) < len(plot.points):
        axes.plot([], [], " ", label=f"named: {len(labelled)} of {len(plot.points)}, fronts first")
    _draw_frame(axes, plot)
    labels = [Label(one_line(one.label, _LONGEST_LABEL), one.x, one.y, colours[one.group]) for one in labelled]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure.draw_without_rendering()  # settles the layout that the labels are placed in
        figure.set_layout_engine("none")
        place_labels(axes, labels, [(point.x, point.y) for point in plot.points], lines)
    return render_png(figure)


def _points(rows: Sequence[Row], get: Callable[[Row], Estimate | None], scale: float) -> tuple[Point, ...]:
    """The rows that have both values. What varies between them, and makes no group, is part of the label."""
    usable = [
        (row, x, y)
        for row in rows
        if (x := get(row)) is not None and (y := row.trained("accuracy").estimate) is not None
    ]
    varying = varying_axes([row for row, _, _ in usable])
    points = []
    for row, x, y in usable:
        values = [(axis, row.axes.get(axis, DEFAULT_OPTION)) for axis in varying]
        group = [row.cell.device, f"{row.image_size} px"]
        group += [value for axis, value in values if axis in GROUPING]
        label = [row.cell.model, *(_short(axis, value) for axis, value in values if axis not in GROUPING)]
        points.append(Point(" ".join(filter(None, label)), ", ".join(group), *_scaled(x, scale), *_scaled(y, 100)))
    return tuple(points)


def _scaled(estimate: Estimate, scale: float) -> tuple[float, float | None, float | None]:
    if estimate.low is None or estimate.high is None:
        return estimate.value * scale, None, None
    return estimate.value * scale, estimate.low * scale, estimate.high * scale


def _short(axis: str, value: str) -> str:
    """What a label says of an axis that varies."""
    if axis == "compile":
        return "compiled" if value == "yes" else ""
    return value if axis in ("dtype", "attention", "recipe") else f"{axis} {value}"


def _draw_group(axes: Axes, plot: Plot, group: str, colour: str, marker: str) -> list[Segment]:
    """Points with their intervals, hollow where beaten, and the front as a staircase; returns the lines drawn."""
    from matplotlib.collections import LineCollection

    lines: list[Segment] = []
    front = plot.front(group)
    points = [point for point in plot.points if point.group == group]
    for point in points:
        if point.x_low is not None and point.x_high is not None:
            lines.append((point.x_low, point.y, point.x_high, point.y))
        if point.y_low is not None and point.y_high is not None:
            lines.append((point.x, point.y_low, point.x, point.y_high))
    axes.add_collection(
        LineCollection([((x0, y0), (x1, y1)) for x0, y0, x1, y1 in lines], colors=colour, lw=1, alpha=0.45, zorder=2)
    )
    beaten = [point for point in points if point not in front]
    xs, ys = [point.x for point in beaten], [point.y for point in beaten]
    axes.plot(xs, ys, marker, ls="", ms=5.8, mfc="white", mec=colour, mew=1.2, zorder=4)
    for one, following in itertools.pairwise(front):
        lines += [(one.x, one.y, following.x, one.y), (following.x, one.y, following.x, following.y)]
    xs, ys = [point.x for point in front], [point.y for point in front]
    label = f"{one_line(group, _LONGEST_LABEL)}: Pareto front (filled)"
    axes.plot(
        xs, ys, f"{marker}-", color=colour, ms=5.8, mew=1.2, lw=1.4, drawstyle="steps-post", label=label, zorder=3
    )
    return lines


def _draw_frame(axes: Axes, plot: Plot) -> None:
    """Scales, labels, chance, legend."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    xs = [point.x for point in plot.points]
    ratio = max(xs) / min(xs) if min(xs) > 0 else 1.0
    if plot.log_x and min(xs) > 0:
        axes.set_xscale("log")
        # Under a decade powers of ten alone would leave an axis without a number.
        fine = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio > 8 else fine))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.12)
    if plot.chance is not None:
        label = f"chance: {number(plot.chance, 2)} %"
        if plot.chance_is_near:
            axes.axhline(plot.chance, color="0.4", lw=1, ls=(0, (4, 3)), label=label, zorder=1)
        else:
            axes.plot([], [], " ", label=f"{label} (below this plot)")
    # names of data and models hold what they like, also dollar signs
    axes.set_xlabel(plot.x_label + (", logarithmic" if plot.log_x else ""), parse_math=False)
    axes.set_ylabel(one_line(plot.y_label, _LONGEST_LABEL), parse_math=False)
    axes.set_title(f"{plot.title}, with 95 % intervals".capitalize(), fontsize=11)
    open_frame(axes)
    # Below the axes, where it covers no point.
    legend = axes.figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=2)
    for text in legend.get_texts():
        text.set_parse_math(False)

"""Draw accuracy against what it costs, with the Pareto front of each comparable condition."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any

from vitbench.core.text import one_line
from vitbench.reports.format import number
from vitbench.reports.model.pareto import OF_ANY_BATCH
from vitbench.reports.model.tradeoffs import Group, Tradeoff
from vitbench.reports.plots.labels import Label, place_labels
from vitbench.reports.plots.style import add_legend, log_axis, new_figure, open_frame, render, series_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Segment = tuple[float, float, float, float]  # x0, y0, x1, y1 in data coordinates, level or upright

#: From this ratio of largest to smallest on parameters are drawn logarithmically; the other costs always are.
LOG_FROM = 3.0
#: Characters of a name in a plot: what is longer would leave no room for points.
_LONGEST_LABEL = 70
#: More names than these cover each other whatever one does.
_MOST_LABELS = 60


def draw_tradeoff(plot: Tradeoff, suffix: str) -> bytes:
    """The plot in the format of ``suffix``."""
    figure = new_figure((8, 5.2), dpi=150)
    axes = figure.add_subplot()
    styles = [series_style(index) for index in range(len(plot.groups))]
    lines = [line for group, style in zip(plot.groups, styles, strict=True) for line in _draw_group(axes, group, style)]
    named = plot.points[:_MOST_LABELS]
    if plot.left_out:
        axes.plot([], [], " ", label=f"shown: {len(plot.points)} of {len(plot.points) + plot.left_out}, fronts first")
    if len(named) < len(plot.points):
        axes.plot([], [], " ", label=f"named: {len(named)} of {len(plot.points)}, fronts first")
    _draw_frame(axes, plot)
    labels = [
        Label(one_line(point.label, _LONGEST_LABEL), point.x, point.y, style["color"])
        for group, style in zip(plot.groups, styles, strict=True)
        for point in group.points
        if point in named
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure.draw_without_rendering()  # settles the layout that the labels are placed in
        figure.set_layout_engine("none")
        place_labels(axes, labels, [(point.x, point.y) for point in plot.points], lines)
    return render(figure, suffix)


def _draw_group(axes: Axes, group: Group, style: dict[str, Any]) -> list[Segment]:
    """Points with their intervals, hollow where beaten, and the front as a staircase; returns the lines drawn."""
    from matplotlib.collections import LineCollection

    lines: list[Segment] = []
    for point in group.points:
        if point.x_interval is not None:
            lines.append((point.x_interval[0], point.y, point.x_interval[1], point.y))
        if point.y_interval is not None:
            lines.append((point.x, point.y_interval[0], point.x, point.y_interval[1]))
    ends = [((x0, y0), (x1, y1)) for x0, y0, x1, y1 in lines]
    axes.add_collection(LineCollection(ends, colors=style["color"], lw=1, alpha=0.45, zorder=2))
    points: dict[str, Any] = {"color": style["color"], "marker": style["marker"], "ms": 5.8, "mew": 1.2}
    beaten = [point for point in group.points if not point.on_front]
    axes.plot([point.x for point in beaten], [point.y for point in beaten], ls="", mfc="white", **points, zorder=4)
    front = group.front
    # what a budget buys: of throughput the points to the right of it, of any other cost those to the left
    upwards = len(front) > 1 and front[0].y > front[-1].y
    for one, following in itertools.pairwise(front):
        y, x = (following.y, one.x) if upwards else (one.y, following.x)
        lines += [(one.x, y, following.x, y), (x, one.y, x, following.y)]
    name = one_line(group.name, 50)
    label = f"{name}: Pareto front (filled)" if name else "Pareto front (filled)"
    steps = "steps-pre" if upwards else "steps-post"
    line = {"ls": style["ls"], "lw": 1.4, "drawstyle": steps, "label": label, "zorder": 3}
    axes.plot([point.x for point in front], [point.y for point in front], **points, **line)
    return lines


def _draw_frame(axes: Axes, plot: Tradeoff) -> None:
    """Scales, labels, chance, legend."""
    xs = [point.x for point in plot.points]
    logarithmic = min(xs) > 0 and (plot.cost not in OF_ANY_BATCH or max(xs) / min(xs) > LOG_FROM)
    if logarithmic:
        log_axis(axes, "x", xs)
    axes.margins(0.12)
    if plot.chance is not None:
        label = f"chance: {number(plot.chance, 2)} %"
        if _is_near(plot, plot.chance):
            axes.axhline(plot.chance, color="0.4", lw=1, ls=(0, (4, 3)), label=label, zorder=1)
        else:
            axes.plot([], [], " ", label=f"{label} (below this plot)")
    # names of data and models hold what they like, also dollar signs
    axes.set_xlabel(plot.x_label + (", logarithmic" if logarithmic else ""), parse_math=False)
    axes.set_ylabel(one_line(plot.y_label, _LONGEST_LABEL), parse_math=False)
    axes.set_title(f"{plot.title[:1].upper()}{plot.title[1:]}, with 95 % intervals", fontsize=11)
    open_frame(axes)
    add_legend(axes.figure)


def _is_near(plot: Tradeoff, chance: float) -> bool:
    """Whether a line at chance leaves the points enough of the plot."""
    ends = [y for point in plot.points for y in (point.y_interval or (point.y,))]
    return min(ends) - chance <= max(ends) - min(ends)

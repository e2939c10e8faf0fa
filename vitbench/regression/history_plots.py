"""Draw the series of a history: one PNG a series, with its points, levels and steps."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitbench.core.text import one_line
from vitbench.regression.change_text import SILENT_UNITS
from vitbench.regression.history import History, Step
from vitbench.regression.series import Moment, Series
from vitbench.reports.format import percent
from vitbench.reports.palette import LIGHT
from vitbench.reports.plots.style import new_figure, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: An axis names this many runs; of more runs every second, third, ... one.
_MOST_TICKS = 14
_LONGEST_LABEL = 70

_SCALES = {"s": (1e3, "ms"), "byte": (1e-6, "MB"), "FLOP": (1e-9, "GFLOP"), "MAC": (1e-9, "GMAC")}


@dataclass(frozen=True)
class Plot:
    """One series to draw, and its file name."""

    file_name: str
    series: Series
    steps: list[Step]


def plan_plots(history: History) -> list[Plot]:
    """A plot for each series of two numbers or more, those with steps first. An exact series without a step would be a
    level line and has none.
    """
    wanted = [
        one
        for one in history.series
        if len(one.numbers) == len(one.points) > 1 and (one.kind != "exact" or history.steps_of(one))
    ]
    wanted.sort(key=lambda one: not history.steps_of(one))
    plots = []
    for count, one in enumerate(wanted, start=1):
        slug = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{one.metric}-{one.cell}")[:100].strip("-.")
        plots.append(Plot(f"history-{count:03}-{slug}.png", one, history.steps_of(one)))
    return plots


def day_of(moment: Moment) -> str:
    """``2026-01-31``."""
    return f"{moment.at:%Y-%m-%d}"


def ratio_text(step: Step) -> str:
    """``+30.0 % [25.1, 35.2]``; empty for words."""
    if step.ratio is None:
        return ""
    if step.low is None or step.high is None:
        share = step.ratio - 1
        return f"{percent(share)} %" if abs(share) >= 5e-4 else f"{100 * share:+.2g} %"
    return f"{percent(step.ratio - 1)} % [{percent(step.low - 1)}, {percent(step.high - 1)}]"


def render_png(plot: Plot) -> bytes:
    """Draw a plot as PNG."""
    figure = new_figure((9, 4.4), dpi=130)
    axes = figure.add_subplot()
    _draw_points(axes, plot)
    _draw_steps(axes, plot)
    _draw_frame(axes, plot)
    return render(figure, ".png")


def _scale(series: Series) -> tuple[float, str]:
    return _SCALES.get(series.unit, (1.0, "" if series.unit in SILENT_UNITS else series.unit))


def _draw_points(axes: Axes, plot: Plot) -> None:
    scale, _ = _scale(plot.series)
    for index, point in enumerate(plot.series.points):
        if point.low is not None and point.high is not None:
            axes.plot([index, index], [point.low * scale, point.high * scale], color=LIGHT[0], lw=1, alpha=0.45)
    values = [value * scale for value in plot.series.numbers]
    style = "o" if plot.series.kind != "shown" else "o-"
    axes.plot(range(len(values)), values, style, color=LIGHT[0], ms=4.5, lw=0.8, zorder=3)


def _draw_steps(axes: Axes, plot: Plot) -> None:
    """Draw the levels, and name the commit at which each step begins."""
    if plot.series.kind == "shown":
        return
    scale, _ = _scale(plot.series)
    ends = [0, *(step.index for step in plot.steps), len(plot.series.points)]
    levels = [float(step.before) for step in plot.steps]
    levels += [float(plot.steps[-1].after)] if plot.steps else [statistics.median(plot.series.numbers)]
    for (start, end), level in zip(itertools.pairwise(ends), levels, strict=False):
        axes.plot([start - 0.4, end - 0.6], [level * scale] * 2, color=LIGHT[2], lw=2, alpha=0.8, zorder=2)
    for count, step in enumerate(plot.steps):
        axes.axvline(step.index - 0.5, color=LIGHT[1], lw=1, ls=(0, (4, 3)), zorder=1)
        text = f"{step.begins.short_commit or step.begins.run}\n{ratio_text(step)}"
        left = step.index < 0.7 * len(plot.series.points)
        axes.annotate(
            "\n".join(one_line(line, 40) for line in text.split("\n")),
            xy=(step.index - 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4 if left else -4, -4 - 26 * (count % 3)),
            textcoords="offset points",
            va="top",
            ha="left" if left else "right",
            fontsize=8,
            color=LIGHT[1],
            parse_math=False,
        )


def _draw_frame(axes: Axes, plot: Plot) -> None:
    series, (_, unit) = plot.series, _scale(plot.series)
    points = series.points
    every = math.ceil(len(points) / _MOST_TICKS)
    shown = range(0, len(points), every)
    names = [
        "\n".join(filter(None, (day_of(points[i].moment), one_line(points[i].moment.commit[:8], 10)))) for i in shown
    ]
    axes.set_xticks(shown, names, fontsize=7, rotation=35 if len(shown) > 7 else 0)
    for tick in axes.get_xticklabels():
        tick.set_parse_math(False)
    axes.set_xlim(-0.7, len(points) - 0.3)
    low, high = axes.get_ylim()
    # leave room for the labels of steps
    axes.set_ylim(low, high + (high - low) * (0.25 if plot.steps else 0.05))
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    label = series.metric.replace("_", " ") + (f" ({unit})" if unit else "")
    axes.set_ylabel(one_line(label, _LONGEST_LABEL), parse_math=False)
    judged = {"exact": "exact", "shown": "not judged"}.get(series.kind, "95 % intervals of each run")
    where = f"; {series.machine}" if series.machine else ""
    title = f"{one_line(series.cell, _LONGEST_LABEL)}\n{one_line(f'{judged}{where}', _LONGEST_LABEL)}"
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(True, axis="y", color="0.92", zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

"""FLOPs, memory and time against the number of patches, with crossovers shaded; values of runs over batch or size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitbench.core.text import one_line
from vitbench.reports.model.series import OVER, Series
from vitbench.reports.model.tables import Column
from vitbench.reports.plots.style import MOST_SERIES, add_legend, log_axis, new_figure, open_frame, render, series_style
from vitbench.suites.batch_search import shown_status

if TYPE_CHECKING:
    from vitbench.analysis.crossover import Crossover
    from vitbench.analysis.latency_scaling import TimedPoint
    from vitbench.analysis.scaling import Point, Scaling

_LONGEST_LABEL = 60
#: Up to so many batches or sizes each has its number at the axis.
_MOST_TICKS = 12


_LABELS = {
    "batch": "images in a batch",
    "image_size": "image size (px, the side of a square)",
    "patches": "patches of an image",
}


def curves_of(one: Scaling, patch: int) -> list[tuple[list[int], list[list[float]]]]:
    """Of FLOPs, memory and time (at the first batch size): N in squares of ``patch`` px, and the values; of times also
    the lower and the upper ends of their intervals.
    """

    def squares(points: Sequence[Point | TimedPoint]) -> list[int]:
        return [(height // patch) * (width // patch) for height, width in (point.image_size for point in points)]

    batch = one.batches[0]
    traced = () if one.no_memory else one.points
    timed = [point for point in one.times.get(batch, ()) if point.estimate is not None]
    ends = [[1e3 * (getattr(point.estimate, name) or 0) for point in timed] for name in ("value", "low", "high")]
    return [
        (squares(one.points), [[point.flops / 1e9 for point in one.points]]),
        (squares(traced), [[point.peaks[batch].bytes / 1e6 for point in traced]]),
        (squares(timed), ends),
    ]


def draw_scaling(models: Sequence[Scaling], crossovers: Sequence[Crossover]) -> bytes:
    """The panels side by side as PNG; N counts patches of the first model, so that one image has one N."""
    patch, batch = models[0].patch, models[0].batches[0]
    names = {"FLOPs": "GFLOPs", f"memory, batch {batch}": "MB", f"time, batch {batch}": "ms"}
    curves = [curves_of(one, patch) for one in models]
    shown = [(place, name) for place, name in enumerate(names) if any(one[place][0] for one in curves)]
    figure = new_figure((4.2 * len(shown) + 0.4, 4.2), dpi=150)
    for place, name in shown:
        axes = figure.add_subplot(1, len(shown), 1 + shown.index((place, name)))
        for number, (one, own) in enumerate(zip(models, curves, strict=True)):
            n, (values, *ends) = own[place]
            style = series_style(number)
            label = one_line(one.cell.model, _LONGEST_LABEL) if place == 0 else None
            axes.plot(n, values, **style, ms=4, lw=1.3, label=label)
            if ends and all(ends[0]):
                axes.fill_between(n, ends[0], ends[1], color=style["color"], alpha=0.2, lw=0)
        for low, high in [(x.low, x.high) for one in crossovers if one.quantity == name for x in one.brackets]:
            axes.axvspan(low, max(high, low * 1.01), color="0.5", alpha=0.25, lw=0)
        log_axis(axes, "x", [x for one in curves for x in one[place][0]])
        log_axis(axes, "y", [y for one in curves for y in one[place][1][0]])
        axes.set_xlabel(f"N, patches of {patch} px")
        axes.set_title(f"{name} ({names[name]})", fontsize=10)
        open_frame(axes)
    add_legend(figure)
    return render(figure, ".png")


def draw_series(found: Sequence[Series], y: Column, over: str, suffix: str) -> bytes:
    """Values of runs over the batch or the image size, on logarithmic scales; a cross marks what failed."""
    shown = found[:MOST_SERIES]
    figure = new_figure((8, 4.6 + 0.1 * len(shown)), dpi=150)
    axes = figure.add_subplot()
    scale, drawn = y.display.scale, []
    for index, one in enumerate(shown):
        style = series_style(index)
        xs, ys = list(one.numbers), [scale * number for number in one.numbers.values()]
        axes.plot(xs, ys, **style, ms=5, lw=1.4, label=one_line(one.name, _LONGEST_LABEL))
        ends = {x: one.values[x].interval for x in xs if one.values[x].interval}
        lows, highs = ([scale * end[place] for end in ends.values() if end] for place in (0, 1))
        axes.vlines(list(ends), lows, highs, color=style["color"], lw=1, alpha=0.5)
        # at the upper edge, each series at a height of its own
        height = [0.99 - 0.025 * index] * len(one.failures)
        axes.plot(list(one.failures), height, "x", color=style["color"], transform=axes.get_xaxis_transform())
        drawn += ys
    statuses = sorted({shown_status(status) for one in shown for status in one.failures.values()})
    if statuses:
        axes.plot([], [], "x", color="0.3", label=f"failed: {', '.join(statuses)}")
    xs = sorted({x for one in shown for x in one.values})
    log_axis(axes, "x", xs)
    if len(xs) <= _MOST_TICKS:
        axes.set_xticks(xs)
    if min(drawn) > 0:
        log_axis(axes, "y", drawn)
    unit = f" ({y.display.unit})" if y.display.unit else ""
    of = "" if len(shown) == len(found) else f", {len(shown)} of {len(found)}"
    axes.set_xlabel(_LABELS[over])
    axes.set_ylabel(f"{y.name}{unit}")
    intervals = ", with 95 % intervals" if any(value.interval for one in shown for value in one.values.values()) else ""
    axes.set_title(f"{y.name[:1].upper()}{y.name[1:]} over {OVER[over]}{of}{intervals}", fontsize=11)
    open_frame(axes)
    add_legend(figure)
    return render(figure, suffix)

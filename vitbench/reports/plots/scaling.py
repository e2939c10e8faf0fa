"""FLOPs, memory and time against the number of patches, each on logarithmic scales, with crossovers shaded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitbench.core.text import one_line
from vitbench.reports.plots.style import COLOURS, MARKERS, new_figure, open_frame, render_png

if TYPE_CHECKING:
    from vitbench.analysis.crossover import Crossover
    from vitbench.analysis.latency_scaling import TimedPoint
    from vitbench.analysis.scaling import Point, Scaling

_LONGEST_LABEL = 60


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
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    patch, batch = models[0].patch, models[0].batches[0]
    names = {"FLOPs": "GFLOPs", f"memory, batch {batch}": "MB", f"time, batch {batch}": "ms"}
    curves = [curves_of(one, patch) for one in models]
    shown = [(place, name) for place, name in enumerate(names) if any(one[place][0] for one in curves)]
    figure = new_figure((4.2 * len(shown) + 0.4, 4.2), dpi=150)
    for place, name in shown:
        axes = figure.add_subplot(1, len(shown), 1 + shown.index((place, name)))
        for number, (one, own) in enumerate(zip(models, curves, strict=True)):
            n, (values, *ends) = own[place]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            label = one_line(one.cell.model, _LONGEST_LABEL) if place == 0 else None
            axes.plot(n, values, f"{marker}-", color=colour, ms=4, lw=1.3, label=label)
            if ends and all(ends[0]):
                axes.fill_between(n, ends[0], ends[1], color=colour, alpha=0.2, lw=0)
        for low, high in [(x.low, x.high) for one in crossovers if one.quantity == name for x in one.brackets]:
            axes.axvspan(low, max(high, low * 1.01), color="0.5", alpha=0.25, lw=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):  # under a decade powers of ten alone would leave an axis without a number
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"N, patches of {patch} px")
        axes.set_title(f"{name} ({names[name]})", fontsize=10)
        open_frame(axes)
    legend = figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=2)
    for text in legend.get_texts():
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        return render_png(figure)

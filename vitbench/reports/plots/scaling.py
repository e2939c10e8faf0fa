"""FLOPs, memory and time against the number of patches, each on logarithmic scales, with crossovers shaded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitbench.core.text import one_line
from vitbench.reports.plots.style import COLOURS, MARKERS, new_figure, open_frame, render_png

if TYPE_CHECKING:
    from vitbench.analysis.crossover import Crossover
    from vitbench.analysis.scaling_text import ModelScaling

_LONGEST_LABEL = 60


@dataclass(frozen=True)
class Line:
    """One model: values at numbers of patches, and the ends of their intervals where they have any."""

    label: str
    n: Sequence[int]
    values: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """One quantity. ``crossings`` are spans of N in which the first two lines cross."""

    y_label: str
    lines: Sequence[Line]
    crossings: Sequence[tuple[float, float]] = ()


def plan_panels(models: Sequence[ModelScaling], crossovers: Sequence[Crossover]) -> list[Panel]:
    """FLOPs, and what is known of memory and time at the first batch size."""
    batch = models[0].scaling.batches[0]
    series: dict[str, list[Line]] = {"FLOPs": [], f"memory, batch {batch}": [], f"time, batch {batch}": []}
    flops, memory, times = series.values()
    for one in models:
        name, points = one.scaling.cell.model, one.scaling.points
        n = [point.n for point in points]
        flops.append(Line(name, n, [point.flops / 1e9 for point in points]))
        if not one.scaling.no_memory:
            memory.append(Line(name, n, [point.memory[batch] / 1e6 for point in points]))
        timed = [point for point in one.times.get(batch, ()) if point.estimate is not None]
        estimates = [point.estimate for point in timed if point.estimate is not None]
        ends = [[1e3 * x for one in estimates if (x := getattr(one, end)) is not None] for end in ("low", "high")]
        whole = len(ends[0]) == len(estimates)
        if timed:
            values = [1e3 * one.value for one in estimates]
            times.append(Line(name, [point.n for point in timed], values, *(ends if whole else ())))
    units = dict(zip(series, ("GFLOPs", "MB", "ms"), strict=True))
    spans = {one.quantity: [(float(x.low), float(x.high)) for x in one.brackets] for one in crossovers}
    return [Panel(f"{what} ({units[what]})", lines, spans.get(what, ())) for what, lines in series.items() if lines]


def draw_scaling(panels: Sequence[Panel]) -> bytes:
    """The panels side by side as PNG."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = new_figure((4.2 * len(panels) + 0.4, 4.2), dpi=150)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for number, line in enumerate(panel.lines):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            label = one_line(line.label, _LONGEST_LABEL) if place == 0 else None
            axes.plot(line.n, line.values, f"{marker}-", color=colour, ms=4, lw=1.3, label=label)
            if line.lows:
                axes.fill_between(line.n, line.lows, line.highs, color=colour, alpha=0.2, lw=0)
        for low, high in panel.crossings:
            axes.axvspan(low, max(high, low * 1.01), color="0.5", alpha=0.25, lw=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):  # under a decade powers of ten alone would leave an axis without a number
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("patches N")
        axes.set_title(panel.y_label, fontsize=10)
        open_frame(axes)
    legend = figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=2)
    for text in legend.get_texts():
        text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        return render_png(figure)

"""Draw how single calls scatter: quantiles of the latency of each line."""

from __future__ import annotations

from collections.abc import Mapping

from vitbench.core.text import one_line
from vitbench.reports.palette import LIGHT
from vitbench.reports.plots.style import log_axis, new_figure, open_frame, render

_LONGEST_LABEL = 60
#: More rows than these are not readable.
_MOST = 60


def draw_spread(spreads: Mapping[str, tuple[float, ...]], suffix: str) -> bytes:
    """A row for each name, the fastest on top: from the 1st to the 99th percentile (s), as ``spread_of`` has them."""
    shown = sorted(spreads.items(), key=lambda one: one[1][3])[:_MOST]
    figure = new_figure((8, 1.6 + 0.28 * len(shown)), dpi=150)
    axes = figure.add_subplot()
    for place, (_, seconds) in enumerate(shown):
        first, tenth, quarter, median, three_quarters, ninetieth, last = (1e3 * one for one in seconds)
        for low, high, width in ((first, last, 1), (tenth, ninetieth, 3), (quarter, three_quarters, 8)):
            axes.plot([low, high], [place, place], color=LIGHT[0], lw=width, solid_capstyle="butt")
        axes.plot([median], [place], "|", color="white", ms=8, mew=1.6)
    log_axis(axes, "x", [1e3 * one for _, seconds in shown for one in seconds])
    axes.set_yticks(range(len(shown)), [one_line(name, _LONGEST_LABEL) for name, _ in shown], fontsize=8)
    for tick in axes.get_yticklabels():
        tick.set_parse_math(False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("latency (ms), logarithmic")
    of = "" if len(shown) == len(spreads) else f", the {len(shown)} fastest of {len(spreads)}"
    what = "thin: 1st to 99th percentile; middle: 10th to 90th; thick: 25th to 75th; gap: the median; all turns"
    axes.set_title(f"How single calls scatter after the warm-up{of}\n{what}", fontsize=9)
    open_frame(axes)
    return render(figure, suffix)

"""Draw the largest batch that fits, by model and image size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitbench.core.text import one_line
from vitbench.reports.model.searches import CALLS
from vitbench.reports.model.tables import Table
from vitbench.reports.palette import LIGHT
from vitbench.reports.plots.style import new_figure, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST_LABEL = 50
#: What the largest batch of all is coloured with, and a size at which not one image fits.
_DEEPEST, _NOTHING_FITS = 0.55, (LIGHT[1], 0.2)


def draw_limits(tables: Mapping[tuple[str, str, str], Table], suffix: str) -> bytes:
    """A grid for each device, mode and data type, as ``search_tables`` has them; deeper colour: a larger batch."""
    largest = max(value.number or 0 for table in tables.values() for line in table.lines for value in line)
    columns = max(len(table.columns) for table in tables.values())
    heights = [len(table.lines) for table in tables.values()]
    figure = new_figure((3.2 + 0.95 * columns, 0.9 * len(tables) + 0.36 * sum(heights)), dpi=150)
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, ((device, mode, dtype), table) in zip(panels, tables.items(), strict=True):
        _draw_grid(axes, table, largest)
        axes.set_title(f"{device}, {CALLS[mode]}, {dtype}", fontsize=9, loc="left", parse_math=False)
    figure.suptitle("Images in the largest batch that fits", fontsize=11)
    return render(figure, suffix)


def _draw_grid(axes: Axes, table: Table, largest: float) -> None:
    from matplotlib.patches import Rectangle

    first = next(place for place, column in enumerate(table.columns) if not column.is_text)
    names = [", ".join(value.text or "–" for value in line[:first]) for line in table.lines]
    for row, line in enumerate(table.lines):
        for place, value in enumerate(line[first:]):
            depth = math.log1p(value.number or 0) / math.log1p(largest) if largest else 0
            colour, alpha = (LIGHT[0], _DEEPEST * depth) if value.number else _NOTHING_FITS
            if value.text is not None:
                axes.add_patch(Rectangle((place - 0.48, row - 0.46), 0.96, 0.92, color=colour, alpha=alpha, lw=0))
            axes.text(place, row, value.text or "–", ha="center", va="center", fontsize=8)
    sizes = [column.name for column in table.columns[first:]]
    axes.set_xticks(range(len(sizes)), sizes, fontsize=8)
    axes.set_yticks(range(len(names)), [one_line(name, _LONGEST_LABEL) for name in names], fontsize=8)
    for tick in axes.get_yticklabels():
        tick.set_parse_math(False)
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)

"""The section on memory limits of the page: grids of the largest batches, models against image sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from vitbench.core.text import printable
from vitbench.reports.format import NOT_ASKED, without_paths
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import CALLS, search_tables
from vitbench.reports.model.tables import Table, Value

#: Shades of batches, from one image to the largest batch of the page.
SHADES = 6
_INTRODUCTION = Markup(
    "<p>The largest batch that fits, found to one image; the darker, the larger. "
    '<span class="unfit">OOM@1</span> means that not even one image fits. '
    "Point at a value to read what ended its search.</p>"
)


def limits_html(runs: Sequence[Run]) -> Markup:
    """A grid for each device, call and data type; "" without searches."""
    found = search_tables(runs)
    if found is None:
        return Markup("")
    grids, _ = found
    most = max(value.number or 0 for grid in grids.values() for line in grid.lines for value in line)
    parts = [
        Markup("<h3>{}, {}, {}</h3>{}").format(printable(device), CALLS[mode], dtype, _grid(grid, most))
        for (device, mode, dtype), grid in grids.items()
    ]
    return Markup("").join([_INTRODUCTION, *parts])


def _grid(grid: Table, most: float) -> Markup:
    """A table whose rows are headed by the model and the axes in which searches differ."""
    names = sum(column.is_text for column in grid.columns)
    heads = [printable(column.name) for column in grid.columns]
    sizes = Markup("").join(Markup('<th scope="col">{}</th>').format(head) for head in heads[names:])
    lines = Markup("").join(
        Markup("<tr>{}{}</tr>").format(
            _row_heading([printable(value.text or "") for value in line[:names]], heads[1:names]),
            Markup("").join(_cell(value, most) for value in line[names:]),
        )
        for line in grid.lines
    )
    head = Markup('<thead><tr><th scope="col">{}</th>{}</tr></thead>').format(heads[0], sizes)
    table = Markup('<table class="limits">{}<tbody>{}</tbody></table>').format(head, lines)
    return Markup('<div class="wide" tabindex="0" role="region" aria-label="Largest batches">{}</div>').format(table)


def _row_heading(names: Sequence[str], axes: Sequence[str]) -> Markup:
    """``vit_base16`` and, small, ``attention fused, memory limit 2 GB``."""
    others = ", ".join(f"{axis} {name}" for axis, name in zip(axes, names[1:], strict=True) if name)
    return Markup('<th scope="row" title="{0}"><span>{0}</span> <small>{1}</small></th>').format(names[0], others)


def _cell(value: Value, most: float) -> Markup:
    """A batch, shaded by its logarithm; hatched where not even one image fits."""
    if value.text is None:
        return Markup("<td>{}</td>").format(NOT_ASKED)
    kind = "" if value.status == "ok" else "unfit"
    if value.number:
        kind = f"shade{1 + round((SHADES - 1) * math.log(value.number) / math.log(max(most, 2)))}"
    title = printable(without_paths(value.reason))
    return Markup('<td class="{}" title="{}">{}</td>').format(kind, title, printable(value.text))

"""The plots of runs by their kinds, each from the values that the tables have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vitbench.core.errors import UsageError
from vitbench.reports.model.curves import curves_of
from vitbench.reports.model.lines import COSTS, line_columns, lines_of
from vitbench.reports.model.names import line_names
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import search_tables, without_bounds
from vitbench.reports.model.series import OVER, measured_lines, series_of
from vitbench.reports.model.spread import MIN_CALLS, spread_of
from vitbench.reports.model.tradeoffs import tradeoff
from vitbench.reports.plots.curves import draw_losses
from vitbench.reports.plots.limits import draw_limits
from vitbench.reports.plots.pareto import draw_tradeoff
from vitbench.reports.plots.scaling import draw_series
from vitbench.reports.plots.spread import draw_spread


def pareto(runs: Sequence[Run], suffix: str, x: str | None = None) -> bytes:
    """Accuracy against a cost, by default latency."""
    lines = lines_of(build_rows(without_bounds(runs)))
    if x is not None and x not in COSTS:
        raise UsageError(f"Option --x: {x!r} is not one of {', '.join(COSTS)}")
    found = tradeoff(lines, x or COSTS[0])
    if found is None:
        known = ", ".join(cost for cost in COSTS if tradeoff(lines, cost))
        way_out = f"Give --x one of {known}" if known else "Give a run with trainings or tests"
        raise UsageError(f"No line of these runs has both an accuracy and {x or COSTS[0]}. {way_out}")
    return draw_tradeoff(found, suffix)


def scaling(runs: Sequence[Run], suffix: str, x: str | None = None, y: str | None = None) -> bytes:
    """A value over the batch or the image size, by default latency over what there are several of."""
    if x is not None and x not in OVER:
        raise UsageError(f"Option --x: {x!r} is not one of {', '.join(OVER)}")
    lines = measured_lines(lines_of(build_rows(without_bounds(runs))))
    columns = {one.id: one for one in line_columns(lines) if one.kind != "condition" and not one.column.is_text}
    wanted = y or next((one for one in COSTS if one in columns), COSTS[0])
    if wanted not in columns:
        raise UsageError(
            f"Option --y: {wanted!r} is not one of {', '.join(columns)}" if columns else "No cell was measured"
        )
    for over in [x] if x else OVER:
        found = series_of(lines, columns[wanted], over)
        if found:
            return draw_series(found, columns[wanted].column, over, suffix)
    kinds = " or ".join([x] if x else OVER)
    raise UsageError(f"Nothing to draw: no model has {wanted} at more than one {kinds}. Give more runs, or another --y")


def limits(runs: Sequence[Run], suffix: str) -> bytes:
    """The largest batches that fit."""
    found = search_tables(runs)
    if found is None:
        raise UsageError("No search for the largest batch in these runs. Make one: vitbench frontier MODEL")
    return draw_limits(found[0], suffix)


def spread(runs: Sequence[Run], suffix: str) -> bytes:
    """How single calls scatter."""
    lines = measured_lines(lines_of(build_rows(without_bounds(runs))))
    named = zip(line_names(lines), lines, strict=True)
    spreads = {name: found for name, line in named if (found := spread_of(line))}
    if not spreads:
        raise UsageError(f"No latency in these runs has {MIN_CALLS} calls. Give a run that was made without --quick")
    return draw_spread(spreads, suffix)


def training(runs: Sequence[Run], suffix: str) -> bytes:
    """The training loss by optimizer step."""
    curves = curves_of(runs)
    if not curves:
        raise UsageError("No training in these runs has losses. Give a run whose suite trains")
    return draw_losses(curves, suffix)


_KINDS: dict[str, Callable[..., bytes]] = {one.__name__: one for one in (pareto, scaling, limits, spread, training)}
_AXES = {"pareto": ("x",), "scaling": ("x", "y")}


def draw(kind: str, runs: Sequence[Run], suffix: str, **axes: str | None) -> bytes:
    """The plot of ``kind`` in the format of ``suffix`` (of ``FORMATS``). ``axes``: x and y, where they are chosen.

    Raises UsageError for an unknown kind, an axis that it does not have, and where there is nothing to draw.
    """
    if kind not in _KINDS:
        raise UsageError(f"{kind!r} is not one of {', '.join(_KINDS)}")
    given = {name: value for name, value in axes.items() if value is not None}
    for name in given.keys() - {*_AXES.get(kind, ())}:
        raise UsageError(f"Option --{name}: a {kind} plot has no choice there. Leave it out")
    return _KINDS[kind](runs, suffix, **given)

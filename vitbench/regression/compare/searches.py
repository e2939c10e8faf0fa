"""Compare the searches for the largest batch size of two runs."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.core.records import Cell
from vitbench.regression.cell_names import field_text
from vitbench.regression.change import Change, Verdict
from vitbench.regression.compare.environments import Environments
from vitbench.regression.compare.pairs import verdict_of
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import Search, find_searches
from vitbench.suites.batch_search import search_label
from vitbench.suites.thresholds import CELL, LARGEST_BATCH, Rule, threshold_for, yields_of

#: Failures of the code; a timeout or a kill may be the machine's.
_BROKEN = ("error", "unsupported")


def compare_searches(base: Run, head: Run, rules: Sequence[Rule], places: Environments) -> list[Change]:
    """One change for each search of either run."""
    before = {search.base.id: search for search in find_searches([base])}
    after = {search.base.id: search for search in find_searches([head])}
    found = []
    value = yields_of(LARGEST_BATCH)
    for search_id in dict.fromkeys([*after, *before]):
        one, other = before.get(search_id), after.get(search_id)
        cell = next(search for search in (other, one) if search is not None).base
        said = threshold_for(rules, cell, LARGEST_BATCH)
        tolerance = value.tolerance if said.tolerance is None else said.tolerance
        gates = value.gates if said.gate is None else said.gate
        verdict, detail = _search_verdict(one, other, tolerance, places)
        if other is None and threshold_for(rules, cell, CELL).gate:  # as for any other cell
            verdict, gates = "worse", True
        states = [_search_state(search) for search in (one, other)]
        found.append(
            Change(
                cell=search_label(cell) + _limit_text(cell),
                metric=LARGEST_BATCH,
                unit="image",
                base=states[0],
                head=states[1],
                verdict=verdict,
                exact=True,
                gates=gates,
                detail=detail,
            )
        )
    return found


def _search_verdict(
    one: Search | None, other: Search | None, tolerance: float, places: Environments
) -> tuple[Verdict, str]:
    if one is None or other is None:
        return "not comparable", f"only in {'HEAD' if one is None else 'BASE'}"
    apart = places.between(next(iter(one.records.values())), next(iter(other.records.values())))
    if apart.times:
        return "not comparable", apart.times
    base, head = one.standing, other.standing
    if head.stopped_at is not None and base.stopped_at is None and base.largest >= head.stopped_at:
        status = other.records[head.stopped_at].status
        if status in _BROKEN:
            return "worse", f"HEAD ended with {status} at batch {head.stopped_at}, which BASE runs"
    for name, standing in (("BASE", base), ("HEAD", head)):
        if standing.stopped_at is not None:
            return "inconclusive", f"{name} was stopped at batch {standing.stopped_at} by another failure than memory"
        if standing.next_batch is not None:
            return "inconclusive", f"{name} is not finished"
    smaller = base if base.largest <= head.largest else head
    if smaller.reached_bound and base.max_batch != head.max_batch:
        return "not comparable", f"one did not try more than {smaller.max_batch}"
    return verdict_of(base.largest, head.largest, tolerance * base.largest, yields_of(LARGEST_BATCH)), ""


def _search_state(search: Search | None) -> float | str | None:
    """The largest batch size, or words where a search found none."""
    if search is None:
        return None
    over = search.standing.stopped_at is None and search.standing.next_batch is None
    return search.standing.largest if over and not search.standing.reached_bound else search.found


def _limit_text(cell: Cell) -> str:
    parts = [f" {name}={field_text(cell, name)}" for name in ("memory_limit", "threads") if getattr(cell, name)]
    return "".join(parts)

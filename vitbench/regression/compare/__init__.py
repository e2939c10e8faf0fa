"""Compare two stored runs: one Change a cell and metric.

Exact values are compared to the unit. Of times only those relative to the reference are judged, by a test: over all
timings that gate, the probability that any is called worse although none is slower by more than its tolerance is at
most ``ERROR_RATE``. ``suites/thresholds.py`` says how far each metric may move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitbench.core.errors import SuiteError, UsageError
from vitbench.core.files import read_toml
from vitbench.core.records import Cell, Record
from vitbench.core.run_folder import SUITE
from vitbench.regression.change import Change, Verdict
from vitbench.regression.change_text import cell_names, field_text
from vitbench.regression.compare.environments import Environments
from vitbench.regression.compare.evidence import ERROR_RATE, Pending, judge
from vitbench.regression.compare.pairs import Pair, verdict_of
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import Search, find_searches
from vitbench.suites import Threshold, make_thresholds
from vitbench.suites.batch_search import is_attempt, search_label
from vitbench.suites.thresholds import CELL, LARGEST_BATCH, Rule, threshold_for, yields_of

#: A line names this many and counts the rest.
_NAMED = 4
#: Failures of the code; a timeout or a kill may be the machine's.
_BROKEN = ("error", "unsupported")
#: The power at which the smallest slow-down is stated.
_POWER = 0.9


@dataclass(frozen=True)
class Comparison:
    """The changes, cell by cell in HEAD's order; notes on all of them, one a line; facts for the JSON output."""

    changes: list[Change]
    notes: list[str]
    facts: dict[str, Any] = field(default_factory=dict)


def read_thresholds(folder: Path) -> tuple[Threshold, ...]:
    """The thresholds in a run folder's copy of its suite; none if it has no copy. Raises SuiteError."""
    path = folder / SUITE
    if not path.exists():
        return ()
    try:
        content = read_toml(path, f"Suite {path}")
    except ValueError as error:
        raise SuiteError(str(error)) from error
    # the run checked the names of metrics and models; the packages that define them may be missing here
    tables = content.get("thresholds", ())
    names = [str(table.get("metric", "")) for table in tables if isinstance(table, Mapping)]
    return make_thresholds(tables, str(path), metrics=names)


def compare_runs(
    base: Run, head: Run, rules: Sequence[Rule] = (), *, allow_different_machines: bool = False
) -> Comparison:
    """The changes from ``base`` to ``head``. Of ``rules`` the last that covers a value counts.

    Raises UsageError if the two have no cell in common.
    """
    before = {record.cell.id: record for record in base.records}
    after = {record.cell.id: record for record in head.records}
    common = [cell_id for cell_id in after if cell_id in before]
    if not common:
        raise UsageError(_nothing_in_common(base, head))
    places = Environments(base, head, allow_different_machines=allow_different_machines)
    names = cell_names(record.cell for record in (*head.records, *base.records))
    together = [(before[cell_id], after[cell_id]) for cell_id in common]
    findings = [
        finding
        for one, other in together
        for finding in Pair(one, other, names[other.cell.id], rules, places.between(one, other)).findings()
    ]
    pending = [one for one in findings if isinstance(one, Pending)]
    judged = judge(pending)
    changes = [judged[id(one)] if isinstance(one, Pending) else one for one in findings]
    only = [
        *_only_in("BASE", [one for one in base.records if one.cell.id not in after], names, rules),
        *_only_in("HEAD", [one for one in head.records if one.cell.id not in before], names, rules),
    ]
    gated = [one for one in pending if one.change.gates]
    copies = ["BASE and HEAD hold the same records"] if list(base.records) == list(head.records) else []
    notes = [*copies, *places.notes(together), *_about_tests(gated), *_about_missing(only)]
    facts = {
        "base": base.name,
        "head": head.name,
        "common_cells": len(common),
        "same_environment": all(one.environment == other.environment for one, other in together),
        "error_rate": ERROR_RATE,
        "tested_figures": len(gated),
        "smallest_slowdown_found": _smallest_found(gated),
    }
    return Comparison([*changes, *_compare_searches(base, head, rules, places), *only], notes, facts)


def _only_in(where: str, records: Iterable[Record], names: Mapping[str, str], rules: Sequence[Rule]) -> list[Change]:
    """One change for each cell that only one run has. Attempts of a batch search belong to the search."""
    found = []
    for record in records:
        if is_attempt(record):
            continue
        said = threshold_for(rules, record.cell, CELL)
        states = ("measured", None) if where == "BASE" else (None, "measured")
        missing = where == "BASE" and bool(said.gate)
        found.append(
            Change(
                cell=names[record.cell.id],
                metric=CELL,
                unit="",
                base=states[0],
                head=states[1],
                verdict="worse" if missing else "not comparable",
                exact=True,
                gates=where == "BASE" and said.gate is not False,
                detail=f"only in {where}",
            )
        )
    return found


def _nothing_in_common(base: Run, head: Run) -> str:
    for name, run in (("BASE", base), ("HEAD", head)):
        if not run.records:
            return f"{name} ({run.name}) holds no records: there is nothing to compare. Give folders of finished runs"
    example = ""
    by_model = {record.cell.model: record.cell for record in head.records}
    for record in base.records:
        other = by_model.get(record.cell.model)
        if other is not None:
            fields = [
                f.name for f in dataclasses.fields(Cell) if getattr(record.cell, f.name) != getattr(other, f.name)
            ]
            unlike = ", ".join(
                f"{name} {field_text(record.cell, name)} and {field_text(other, name)}" for name in fields[:_NAMED]
            )
            example = f" Of {record.cell.model}, for one, they differ in {unlike}."
            break
    return (
        f"{base.name} ({len(base.records)} cells) and {head.name} ({len(head.records)} cells) have no cell in "
        f"common.{example} Give two runs of one suite"
    )


def _smallest_found(gated: Sequence[Pending]) -> float | None:
    """The slow-down (1.6: 60 %) that would be found 9 times in 10, for the median of the timings."""
    level = ERROR_RATE / max(len(gated), 1)
    timed = [(one.log_ratio, one.margin) for one in gated if one.log_ratio is not None]
    found = sorted(ratio.smallest_found(margin, level, _POWER) for ratio, margin in timed)
    return found[len(found) // 2] if found else None


def _about_tests(gated: Sequence[Pending]) -> list[str]:
    smallest = _smallest_found(gated)
    if smallest is None:
        return []
    count = f"{len(gated)} values are tested together" if len(gated) > 1 else "1 value is tested"
    return [
        f"{count}: the probability of any false alarm is at most {100 * ERROR_RATE:g} %. A slow-down of "
        f"{100 * (smallest - 1):.0f} % would be found 9 times in 10; vitbench ab finds smaller ones"
    ]


def _about_missing(only: Sequence[Change]) -> list[str]:
    lines = []
    for where in ("BASE", "HEAD"):
        cells = [change.cell for change in only if change.detail == f"only in {where}"]
        if cells:
            more = f" and {len(cells) - _NAMED} more" if len(cells) > _NAMED else ""
            count = f"{len(cells)} cell{'s are' if len(cells) != 1 else ' is'}"
            lines.append(f"{count} only in {where}: {'; '.join(cells[:_NAMED])}{more}")
    return lines


def _compare_searches(base: Run, head: Run, rules: Sequence[Rule], places: Environments) -> list[Change]:
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
        limits = [f" {name}={field_text(cell, name)}" for name in ("memory_limit", "threads") if getattr(cell, name)]
        found.append(
            Change(
                cell="".join([search_label(cell), *limits]),
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
        if not standing.is_over:
            return "inconclusive", f"{name} is not finished"
    smaller = base if base.largest <= head.largest else head
    if smaller.reached_bound and base.max_batch != head.max_batch:
        return "not comparable", f"one did not try more than {smaller.max_batch}"
    return verdict_of(base.largest, head.largest, tolerance * base.largest, yields_of(LARGEST_BATCH)), ""


def _search_state(search: Search | None) -> float | str | None:
    """The largest batch size, or words where a search found none."""
    if search is None:
        return None
    over = search.standing.stopped_at is None and search.standing.is_over
    return search.standing.largest if over and not search.standing.reached_bound else search.found

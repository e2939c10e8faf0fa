"""One ``Change`` for each cell and metric that a gate compared, and the exit code of the gate.

Every gate (``compare``, ``check``, ``ab``) ends in a list of these, and every output (terminal, Markdown, JSON, JUnit)
is made from it. Imports nothing else of vitbench.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Verdict = Literal["worse", "better", "same", "inconclusive", "not comparable"]
VERDICTS: tuple[str, ...] = get_args(Verdict)

#: Exit codes of a gate; 2 is wrong usage, as everywhere.
FINE = 0
REGRESSION = 1
INCONCLUSIVE = 3
INFRASTRUCTURE = 4


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of one cell, in the base state and in the head state.

    ``base`` and ``head`` are numbers in the base ``unit`` (s, byte, FLOP, ...), words (a status, a shape, a digest), or
    None without a value. ``ratio`` is head over base with the interval ``low`` to ``high``, which exact values and
    words do not have. ``gates``: whether it counts for the exit code. ``exact`` values have no noise, so any difference
    is a change. ``detail``: the reason for the verdict, and what to do.
    """

    cell: str
    metric: str
    unit: str
    base: float | str | None
    head: float | str | None
    verdict: Verdict
    exact: bool
    gates: bool = True
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    detail: str = ""


def exit_code(changes: Iterable[Change], *, inconclusive_fails: bool = False) -> int:
    """1 if a change that gates is worse; else 3 if one is inconclusive and ``inconclusive_fails``; else 0."""
    verdicts = {change.verdict for change in changes if change.gates}
    if "worse" in verdicts:
        return REGRESSION
    return INCONCLUSIVE if inconclusive_fails and "inconclusive" in verdicts else FINE

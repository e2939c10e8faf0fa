"""What differs between two states of a program, one Change a cell and metric, and the exit code that it makes.

Every gate (``compare``, ``check``, ``ab``) ends in a list of these, and every output (terminal, Markdown, JSON, JUnit)
is made from it. Knows neither records nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Verdict = Literal["worse", "better", "same", "inconclusive", "not comparable"]
VERDICTS: tuple[str, ...] = get_args(Verdict)

#: Exit codes of a gate; wrong usage is 2, as everywhere.
FINE = 0
REGRESSION = 1
INCONCLUSIVE = 3
INFRASTRUCTURE = 4


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of one cell, in the base state and in the head state.

    ``base`` and ``head`` are numbers in the base ``unit`` (s, byte, FLOP, ...), or words for what is no number (a
    status, a shape, a digest), or None where there is none. ``ratio`` is head over base with the interval ``low`` to
    ``high``, which are None for exact figures and words. ``gates`` says whether this counts for the exit code: what is
    shown for information does not. ``exact`` figures have no noise: any difference is a change. ``detail`` says in
    words why, and what to do.
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
    """1 if a change that gates is worse; 3 if none is, one is inconclusive and that is to fail; else 0."""
    verdicts = {change.verdict for change in changes if change.gates}
    if "worse" in verdicts:
        return REGRESSION
    return INCONCLUSIVE if inconclusive_fails and "inconclusive" in verdicts else FINE

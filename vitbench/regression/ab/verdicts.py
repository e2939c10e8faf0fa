"""Judge the pairs of all cells together: each cell's state in a comparison, and the changes with their verdicts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from vitbench.core.records import Cell
from vitbench.core.stats.estimates import CPU_TIME
from vitbench.devices import split_name
from vitbench.regression.ab.pairs import BASE, CONTROL, HEAD, Pair
from vitbench.regression.ab.sequential import Evidence, Rule, is_decided, reject, weigh
from vitbench.regression.change import Change, Verdict

#: The metric of each mode's wall time. The CPU time is the same name with ``CPU_TIME`` behind it.
METRICS = {"infer": "latency", "train": "training_step"}


@dataclass
class Trial:
    """One cell under comparison.

    ``failed``: by side, why it cannot run the cell. ``together``: why the processes of a pair cannot run beside each
    other, though each side runs alone. ``facts``: by role, what its last process reported. ``parameters``: by side.
    """

    cell: Cell
    rule: Rule
    gates: bool = True
    pairs: list[Pair] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    together: str = ""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)

    @property
    def problem(self) -> str:
        """Why no pair can be measured; empty while pairs can."""
        return "; ".join(self.failed.values()) or self.together

    @property
    def clocks(self) -> tuple[str, ...]:
        """The clocks that gate, the deciding one first.

        CPU time leaves out what other programs take. An accelerator's work does not appear in it, and Windows counts
        it in ticks of 15.6 ms, longer than most calls.
        """
        on_cpu = split_name(self.cell.device)[0] == "cpu"
        return ("cpu", "wall") if on_cpu and sys.platform != "win32" else ("wall",)

    def metric(self, clock: str) -> str:
        """``latency``, ``latency_cpu_time``, ``training_step``, ..."""
        return METRICS[self.cell.mode] + (CPU_TIME if clock == "cpu" else "")

    def evidence(self, clock: str, *, tests: int) -> Evidence | None:
        """The evidence on head against base; None without a pair."""
        return self._weigh(clock, HEAD, (BASE, CONTROL), tests)

    def control(self, clock: str) -> Evidence | None:
        """The evidence on base against itself."""
        return self._weigh(clock, CONTROL, (BASE,), 1)

    def _weigh(self, clock: str, one: str, others: Sequence[str], tests: int) -> Evidence | None:
        found = [pair.difference(clock, one, others) for pair in self.pairs]
        known = [difference for difference in found if difference is not None]
        return weigh(known, self.rule, tests=tests) if known else None

    def is_over(self, tests: int) -> bool:
        """Whether more pairs cannot change the verdict."""
        if self.problem:
            return True
        found = {clock: one for clock in self.clocks if (one := self.evidence(clock, tests=tests)) is not None}
        deciding = found.pop(self.clocks[0], None)
        return deciding is not None and is_decided(deciding, found.values(), self.rule, tests=tests)


def count_tests(trials: Sequence[Trial]) -> int:
    """How many hypotheses are tested together."""
    return sum(len(trial.clocks) for trial in trials if trial.gates and not trial.problem) or 1


def judge(trials: Sequence[Trial], alpha: float) -> list[Change]:
    """One change for each cell and clock, with verdicts under the family-wise error rate ``alpha``. Cells that do not
    gate are a family of their own.
    """
    tests = count_tests(trials)
    evidence: dict[tuple[int, str], Evidence] = {}
    controls: dict[tuple[int, str], Evidence] = {}
    for index, trial in enumerate(trials):
        for clock in trial.clocks if not trial.problem else ():
            one, control = trial.evidence(clock, tests=tests), trial.control(clock)
            if one is not None:
                evidence[index, clock] = one
            if one is not None and control is not None:
                controls[index, clock] = control
    slower: set[tuple[int, str]] = set()
    faster: set[tuple[int, str]] = set()
    for gates in (True, False):
        family = {key: one for key, one in evidence.items() if trials[key[0]].gates is gates}
        slower |= reject({key: one.slower for key, one in family.items()}, alpha)
        faster |= reject({key: one.faster for key, one in family.items()}, alpha)
    doubtful = reject({key: 2 * min(one.slower, one.faster) for key, one in controls.items()}, alpha)
    changes: list[Change] = []
    for index, trial in enumerate(trials):
        if trial.problem:
            changes.append(_failure(trial))
            continue
        # if base differs from itself on one clock, neither clock of the cell is trusted
        doubts = {clock: controls[index, clock] for clock in trial.clocks if (index, clock) in doubtful}
        for clock in trial.clocks:
            key = (index, clock)
            found = evidence.get(key)
            if found is None or found.visible is None or found.in_reach is None:
                detail = f"{len(trial.pairs)} pairs: too few to judge. Allow more time (--max-seconds)"
                gates = trial.gates and clock == trial.clocks[0]
                changes.append(_change(trial, clock, "inconclusive", detail, base=None, head=None, gates=gates))
                continue
            verdict, why = _verdict(trial.rule, found, slower=key in slower, faster=key in faster)
            if doubts:
                doubted, control = next(iter(doubts.items()))
                where = "" if doubted == clock else " on the other clock"
                verdict, why = (
                    "inconclusive",
                    (
                        f"base differs from itself by {signed_percent(control.value)}{where}: this machine is too "
                        f"noisy now; {found.pairs} pairs"
                    ),
                )
            changes.append(_timed(trial, clock, found, verdict, why))
    return changes


def _failure(trial: Trial) -> Change:
    """The change of a cell that a side cannot run: worse if only head cannot, not comparable if only base cannot, and
    inconclusive if neither can, or only the processes together cannot.
    """
    verdict: Verdict = "not comparable"
    if not trial.failed:
        verdict = "inconclusive"
    elif HEAD in trial.failed:
        verdict = "inconclusive" if BASE in trial.failed else "worse"
    states = {side: "fails" if side in trial.failed else "runs" for side in (BASE, HEAD)}
    gates = trial.gates and verdict != "not comparable"
    change = _change(trial, "wall", verdict, trial.problem, base=states[BASE], head=states[HEAD], gates=gates)
    return replace(change, unit="", exact=True)


def _change(trial: Trial, clock: str, verdict: Verdict, detail: str, **fields: Any) -> Change:
    metric = trial.metric(clock)
    return Change(cell=trial.cell.label, metric=metric, unit="s", verdict=verdict, exact=False, detail=detail, **fields)


def _verdict(rule: Rule, found: Evidence, *, slower: bool, faster: bool) -> tuple[Verdict, str]:
    seen = f"{found.pairs} pairs"
    if slower:
        return "worse", f"slower by more than {_percent(rule.margin)} (p = {found.slower:.1g}); {seen}"
    if faster:
        return "better", f"faster by more than {_percent(rule.margin)} (p = {found.faster:.1g}); {seen}"
    if found.passed:
        return "same", (
            f"slow-downs of {_percent(rule.detect)} or more are ruled out; {seen}. With their spread, {rule.looks[-1]} "
            f"pairs would have found one of {_percent(found.in_reach or 0.0)} 9 times in 10"
        )
    return "inconclusive", (
        f"neither slower nor clear of {_percent(rule.detect)}; {seen}, which would have found a slow-down of "
        f"{_percent(found.visible or 0.0)} 9 times in 10"
    )


def _timed(trial: Trial, clock: str, found: Evidence, verdict: Verdict, why: str) -> Change:
    before, after = trial.parameters.get(BASE), trial.parameters.get(HEAD)
    if before is not None and after is not None and before != after:
        why += f"; {before:,} parameters in base, {after:,} in head"
    shapes = [trial.facts.get(role, {}).get("shape") for role in (BASE, HEAD)]
    if shapes[0] != shapes[1]:
        why += f"; the output is {shapes[0]} in base, {shapes[1]} in head"
    # for orientation: the median of the pairs' medians
    times = [median(getattr(pair, clock)[BASE]) for pair in trial.pairs if getattr(pair, clock)[BASE]]
    base = median(times) if times else None
    head = None if base is None else base * found.value
    gates = trial.gates and (clock == trial.clocks[0] or verdict == "worse")
    interval = {"ratio": found.value, "low": found.low, "high": found.high}
    return _change(trial, clock, verdict, why, base=base, head=head, gates=gates, **interval)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def signed_percent(ratio: float) -> str:
    """``+4.6 %`` for 1.046."""
    return f"{100 * (ratio - 1):+.1f} %"

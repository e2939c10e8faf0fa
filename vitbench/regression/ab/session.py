"""Compare two commits by live timing: cells from a suite, pairs until each is clear, changes with their verdicts."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from vitbench.core.errors import UsageError
from vitbench.core.records import Cell
from vitbench.devices import split_name
from vitbench.regression.ab.pairs import BASE, CONTROL, HEAD, Pair, play_pair
from vitbench.regression.ab.processes import Side, SideError
from vitbench.regression.ab.sequential import Evidence, Rule, is_decided, reject, weigh
from vitbench.regression.ab.worktrees import InfrastructureError, State
from vitbench.regression.change import Change, Verdict
from vitbench.runner.static_counts import StaticKey, static_key

#: The metric that each mode's time is, and what the CPU clock adds to it.
METRICS = {"infer": "latency", "train": "training_step"}
CPU_TIME = "_cpu_time"
#: A slow-down is ruled out from so much beyond the margin on.
DETECT_BEYOND = 0.03
#: A pair that fails is played again once: processes are killed for reasons that are not the code's.
TRIES = 2

PAIRS = "pairs.jsonl"
FACTS = "ab.json"

Note = Callable[[str], None]


@dataclass
class Trial:
    """One cell under comparison. ``failed`` holds, by side, why it cannot be measured; ``together`` why a pair's
    processes do not run beside each other, though each side does alone; ``facts`` what a process of each role told
    last.
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
        """Why no pair of it can be played; empty while pairs can."""
        return "; ".join(self.failed.values()) or self.together

    @property
    def clocks(self) -> tuple[str, ...]:
        """The clocks that gate, the one that decides first. A processor's own clock does not count what others take
        from it; an accelerator's work is on no processor's clock.
        """
        on_cpu = split_name(self.cell.device)[0] == "cpu"
        # Windows counts a process's time in ticks of 15.6 ms, which most calls do not last
        return ("cpu", "wall") if on_cpu and sys.platform != "win32" else ("wall",)

    def metric(self, clock: str) -> str:
        """``latency``, ``latency_cpu_time``, ``training_step``, ..."""
        return METRICS[self.cell.mode] + (CPU_TIME if clock == "cpu" else "")

    def evidence(self, clock: str, *, tests: int) -> Evidence | None:
        """Of head against base; None without a pair."""
        found = [pair.difference(clock) for pair in self.pairs]
        known = [one for one in found if one is not None]
        return weigh(known, self.rule, tests=tests) if known else None

    def control(self, clock: str) -> Evidence | None:
        """Of base against itself."""
        found = [pair.difference(clock, CONTROL, (BASE,)) for pair in self.pairs]
        known = [one for one in found if one is not None]
        return weigh(known, self.rule) if known else None

    def is_over(self, tests: int) -> bool:
        """Whether more pairs would change nothing."""
        if self.problem:
            return True
        found = {clock: one for clock in self.clocks if (one := self.evidence(clock, tests=tests)) is not None}
        deciding = found.pop(self.clocks[0], None)
        return deciding is not None and is_decided(deciding, found.values(), self.rule, tests=tests)


def count_tests(trials: Sequence[Trial]) -> int:
    """How many hypotheses are judged together."""
    return sum(len(trial.clocks) for trial in trials if trial.gates and not trial.problem) or 1


def judge(trials: Sequence[Trial], alpha: float) -> list[Change]:
    """Two changes a cell (of the CPU clock and of the wall clock; of an accelerator one), verdicts under the
    family-wise error rate ``alpha`` for all of them together; cells that do not gate are a family of their own.
    """
    tests = count_tests(trials)
    evidence: dict[tuple[int, str], Evidence] = {}
    for index, trial in enumerate(trials):
        for clock in trial.clocks if not trial.problem else ():
            if (one := trial.evidence(clock, tests=tests)) is not None:
                evidence[index, clock] = one
    names = {f"{index} {clock}": (index, clock) for index, clock in evidence}
    families = [[name for name, (index, _) in names.items() if trials[index].gates is gates] for gates in (True, False)]
    slower, faster = (
        {
            name
            for family in families
            for name in reject({name: getattr(evidence[names[name]], way) for name in family}, alpha)
        }
        for way in ("slower", "faster")
    )
    controls = {name: trials[names[name][0]].control(names[name][1]) for name in names}
    doubtful = reject({name: 2 * min(one.slower, one.faster) for name, one in controls.items() if one}, alpha)
    # where a machine does not agree with itself on one clock, the other is not believed either
    doubts = {names[name][0]: (names[name][1], controls[name]) for name in sorted(doubtful, reverse=True)}
    changes: list[Change] = []
    for index, trial in enumerate(trials):
        if trial.problem:
            changes.append(_failure(trial))
            continue
        for clock in trial.clocks:
            name = f"{index} {clock}"
            found = evidence.get((index, clock))
            changes.append(
                _change(
                    trial, clock, found, slower=name in slower, faster=name in faster, doubt=doubts.get(index)
                )
            )  # fmt: skip
    return changes


def _failure(trial: Trial) -> Change:
    """What is said of a cell that a side cannot run: new trouble is worse, mended trouble says nothing of the times,
    and where neither side runs it, or both do but not beside each other, nobody knows.
    """
    metric, cell = trial.metric("wall"), trial.cell.label
    verdict: Verdict = "not comparable"
    if not trial.failed:
        verdict = "inconclusive"
    elif HEAD in trial.failed:
        verdict = "inconclusive" if BASE in trial.failed else "worse"
    words = {side: "fails" if side in trial.failed else "runs" for side in (BASE, HEAD)}
    return Change(
        cell=cell, metric=metric, unit="", base=words[BASE], head=words[HEAD], verdict=verdict, exact=True,
        gates=trial.gates and verdict != "not comparable", detail=trial.problem,
    )  # fmt: skip


def _change(
    trial: Trial, clock: str, found: Evidence | None,
    *, slower: bool, faster: bool, doubt: tuple[str, Evidence | None] | None,
) -> Change:  # fmt: skip
    rule, deciding = trial.rule, clock == trial.clocks[0]
    if found is None or found.visible is None or found.in_reach is None:
        return Change(
            cell=trial.cell.label, metric=trial.metric(clock), unit="s", base=None, head=None, verdict="inconclusive",
            exact=False, gates=trial.gates and deciding,
            detail=f"{len(trial.pairs)} pairs: too few to say anything. Give it more time (--max-seconds)",
        )  # fmt: skip
    verdict: Verdict
    seen = f"{found.pairs} pairs"
    if doubt is not None and doubt[1] is not None:
        verdict = "inconclusive"
        where = "" if doubt[0] == clock else " on the other clock"
        why = f"base differs from itself by {_signed(doubt[1].value)}{where}: this machine cannot tell now; {seen}"
    elif slower:
        verdict, why = "worse", f"slower by more than {_percent(rule.margin)} (p = {found.slower:.1g}); {seen}"
    elif faster:
        verdict, why = "better", f"faster by more than {_percent(rule.margin)} (p = {found.faster:.1g}); {seen}"
    elif found.passed:
        verdict, why = (
            "same",
            (
                f"slow-downs of {_percent(rule.detect)} or more are ruled out; {seen}. By their spread one of "
                f"{_percent(found.in_reach)} would have been found within {rule.looks[-1]} pairs, 9 times in 10"
            ),
        )
    else:
        verdict, why = (
            "inconclusive",
            (
                f"neither slower nor clear of {_percent(rule.detect)}; {seen}, in which a slow-down of "
                f"{_percent(found.visible)} would have been found 9 times in 10"
            ),
        )
    before, after = trial.parameters.get(BASE), trial.parameters.get(HEAD)
    if before is not None and after is not None and before != after:
        why += f"; {before:,} parameters in base, {after:,} in head"
    shapes = [trial.facts.get(role, {}).get("shape") for role in (BASE, HEAD)]
    if shapes[0] != shapes[1]:
        why += f"; the output is {shapes[0]} in base, {shapes[1]} in head"
    base = _typical(trial.pairs, clock)
    return Change(
        cell=trial.cell.label, metric=trial.metric(clock), unit="s",
        base=base, head=None if base is None else base * found.value, verdict=verdict, exact=False,
        gates=trial.gates and (deciding or verdict == "worse"),
        ratio=found.value, low=found.low, high=found.high, detail=why,
    )  # fmt: skip


def _typical(pairs: Sequence[Pair], clock: str) -> float | None:
    """The base's time, for orientation: the median of the pairs' medians, in s."""
    from statistics import median

    found = [median(getattr(pair, clock)[BASE]) for pair in pairs if getattr(pair, clock)[BASE]]
    return median(found) if found else None


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _signed(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


@dataclass
class Comparison:
    """A comparison under way; ``changes`` holds at any time what is known so far."""

    base: State
    head: State
    trials: list[Trial]
    folder: Path
    alpha: float = Rule.alpha
    seed: int = 0
    max_seconds: float | None = None
    note: Note = lambda text: None
    tick: Note = lambda text: None  # what goes on this moment, for a line that is written over
    late: bool = False
    torch: dict[str, str] = field(default_factory=dict)  # its version, by side

    @property
    def changes(self) -> list[Change]:
        """Of all cells, by what has been measured until now."""
        return judge(self.trials, self.alpha)

    def run(self) -> None:
        """Play pairs, look by look and cell by cell, until each cell is clear, or has had its last look, or the time is
        over. Each pair is kept in ``pairs.jsonl`` as soon as it is over.

        Raises InfrastructureError if the processes of a side cannot be started at all, UsageError where a side would
        not run code of its own.
        """
        begun = time.monotonic()
        shuffle = random.Random(self.seed)
        with Side(self.base) as base, Side(self.head) as head, _appending(self.folder / PAIRS) as file:
            sides = {BASE: base, CONTROL: base, HEAD: head}
            self._probe({BASE: base, HEAD: head})
            for look in self.trials[0].rule.looks if self.trials else ():
                for number, trial in enumerate(self.trials, 1):
                    self._go_on(trial, number, look, sides, shuffle, file, begun)

    def _go_on(
        self, trial: Trial, number: int, look: int, sides: Mapping[str, Side], shuffle: random.Random, file: TextIO,
        begun: float,
    ) -> None:  # fmt: skip
        """Bring one cell to its next look, unless it is clear already."""
        tests = count_tests(self.trials)
        if trial.is_over(tests):
            return
        while len(trial.pairs) < look and not trial.problem:
            if self.max_seconds is not None and time.monotonic() - begun > self.max_seconds:
                self.late = True
                return
            self.tick(f"[{number}/{len(self.trials)}] {trial.cell.label}: pair {len(trial.pairs) + 1} of {look}")
            self._play(trial, sides, shuffle, file)
        where = f"[{number}/{len(self.trials)}] {trial.cell.label}"
        if trial.problem:
            self.note(f"{where}: {trial.problem}")
            return
        found = trial.evidence(trial.clocks[0], tests=tests)
        if found is not None:
            over = trial.is_over(tests)
            last = look == trial.rule.looks[-1]
            what = "clear" if over else "not clear, and no more pairs" if last else "going on"
            interval = f"{_signed(found.low)} to {_signed(found.high)}"
            self.note(f"{where}: {len(trial.pairs)} pairs, {_signed(found.value)} ({interval}), {what}")

    def _play(self, trial: Trial, sides: Mapping[str, Side], shuffle: random.Random, file: TextIO) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                pair, facts = play_pair(
                    sides, asdict(trial.cell), name=trial.cell.id, number=len(trial.pairs) + 1, shuffle=shuffle
                )
            except SideError as error:
                if attempt == TRIES:
                    # chance says who of the three is killed where they do not fit into memory together, and who is
                    # heard first where more than one fails: to blame is the side that fails by itself
                    alone = {side: _play_alone(sides[side], trial.cell) for side in (BASE, HEAD)}
                    trial.failed = {side: why for side, why in alone.items() if why}
                    if not trial.failed:
                        trial.together = (
                            f"a pair failed {TRIES} times ({error}), but each side runs alone: three processes at once "
                            "do not fit into memory (a smaller batch may), or something else ends them"
                        )
                continue
            trial.facts = facts
            trial.pairs.append(pair)
            file.write(pair.to_json() + "\n")
            file.flush()
            return

    def _probe(self, sides: Mapping[str, Side]) -> None:
        """Build each model once on each side, so that what fails is known at once. With another size or number of
        classes it is another model.

        Raises UsageError where a side would not run code of its own.
        """
        self.note("Building each model and size once on each side ...")
        seen: dict[tuple[str, StaticKey], tuple[str, int | None]] = {}
        for trial in self.trials:
            for name, side in sides.items():
                key = (name, static_key(trial.cell))
                if key not in seen:
                    failed, facts = _probe_one(side, trial.cell)
                    seen[key] = failed, int(facts["parameters"]) if facts else None
                    if facts:
                        _check_own(side, trial.cell.model, facts)
                        self.torch.setdefault(name, str(facts["torch"]))
                failed, parameters = seen[key]
                if failed:
                    trial.failed[name] = failed
                elif parameters is not None:
                    trial.parameters[name] = parameters
            if trial.problem:
                self.note(f"{trial.cell.label}: {trial.problem}")


def _probe_one(side: Side, cell: Cell) -> tuple[str, dict[str, Any]]:
    """Why a model cannot be built, or empty; and what the process told. Raises InfrastructureError for a Python without
    torch, which is no fault of the model.
    """
    why = ""
    for _ in range(TRIES):
        process = side.start(asdict(cell), "probe")
        try:
            return "", process.ready()
        except SideError as error:
            why = str(error)
        finally:
            process.close()
    return why, {}


def _play_alone(side: Side, cell: Cell) -> str:
    """Why a side cannot run a cell's call, without the other one beside it; empty if it can. It has as many turns as in
    a pair: some code fails late.
    """
    try:
        play_pair({side.state.name: side}, asdict(cell), name=cell.id, number=0, shuffle=random.Random(0))
    except SideError as error:
        return str(error)
    return ""


def _check_own(side: Side, model: str, facts: Mapping[str, Any]) -> None:
    """Raises UsageError where no file of a side's folder, or of the environment that ``--install`` made for it, was
    loaded to build a model: both sides would then run what is installed, and nothing that differs.
    """
    if facts.get("own"):
        return
    source = facts.get("source") or "no file"
    where, way_out = "folder", "; --install gives each side an environment of its own"
    if side.state.installed:
        where, way_out = "folder or environment", ""
    raise UsageError(
        f"{model}: to build it nothing in the {where} of {side.state.name} is loaded ({source} is what runs), so that "
        f"both sides would be the same code. Packages are looked for in the repository's root and in src{way_out}"
    )


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[TextIO]:
    try:
        with path.open("a", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise InfrastructureError(f"{path}: {error.strerror or error}. What is there is kept") from error


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a ``pairs.jsonl``; a half-written last line is left out. Raises ValueError for other damage."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [Pair.from_json(line) for line in lines[:-1] if line]


def describe(comparison: Comparison) -> dict[str, Any]:
    """What ``ab.json`` keeps beside the pairs, and the JSON output says of the comparison."""
    return {
        "base": comparison.base.label,
        "head": comparison.head.label,
        "commits": {"base": comparison.base.commit, "head": comparison.head.commit},
        "uncommitted_changes": comparison.head.changed,
        "alpha": comparison.alpha,
        "seed": comparison.seed,
        "late": comparison.late,
        "torch": comparison.torch,
        "finished_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cells": [
            {
                "id": trial.cell.id,
                "cell": asdict(trial.cell),
                "rule": asdict(trial.rule),
                "gates": trial.gates,
                "pairs": len(trial.pairs),
                "failed": trial.failed,
                "together": trial.together,
            }
            for trial in comparison.trials
        ],
    }


def write_facts(comparison: Comparison) -> None:
    """Write ``ab.json``. Raises OSError."""
    from vitbench.core.run_folder import write_atomically

    write_atomically(comparison.folder / FACTS, (json.dumps(describe(comparison), indent=2) + "\n").encode())

"""Run a comparison of two commits: build each model on both sides, measure pairs until each cell is clear."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from vitbench.core.errors import UsageError
from vitbench.core.records import Cell
from vitbench.core.run_folder import write_atomically
from vitbench.regression.ab.pairs import BASE, CONTROL, HEAD, measure_pair
from vitbench.regression.ab.processes import Side, SideError
from vitbench.regression.ab.sequential import Rule
from vitbench.regression.ab.verdicts import Trial, count_tests, judge, signed_percent
from vitbench.regression.ab.worktrees import InfrastructureError, State
from vitbench.regression.change import Change
from vitbench.regression.change_text import changes_markdown
from vitbench.runner.static_counts import StaticKey, static_key

#: A pair that fails is measured once more: processes are also killed for reasons outside of the code.
TRIES = 2

PAIRS, FACTS, REPORT = "pairs.jsonl", "ab.json", "report.md"

#: Reasons why cells were not compared, one a line.
_MOST_REASONS = 5


@dataclass
class Comparison:
    """A comparison under way. ``note`` gets lines to keep; ``tick`` gets what happens now, to be overwritten."""

    base: State
    head: State
    trials: list[Trial]
    folder: Path
    alpha: float = Rule.alpha
    seed: int = 0
    max_seconds: float | None = None
    note: Callable[[str], None] = lambda text: None
    tick: Callable[[str], None] = lambda text: None
    late: bool = False
    torch: dict[str, str] = field(default_factory=dict)  # version by side

    @property
    def changes(self) -> list[Change]:
        """The changes of all cells, by the pairs so far."""
        return judge(self.trials, self.alpha)

    def run(self) -> None:
        """Measure pairs, look by look and cell by cell, until each cell is clear, has had its last look, or time is up.
        Each pair is appended to ``pairs.jsonl`` as soon as it is complete.

        Raises InfrastructureError if the processes of a side cannot be started at all, UsageError if a side would not
        run its own code.
        """
        deadline = time.monotonic() + (math.inf if self.max_seconds is None else self.max_seconds)
        shuffle = random.Random(self.seed)
        with Side(self.base) as base, Side(self.head) as head, _appending(self.folder / PAIRS) as file:
            self._build_models({BASE: base, HEAD: head})
            add_pair = functools.partial(_add_pair, {BASE: base, CONTROL: base, HEAD: head}, shuffle, file)
            for look in self.trials[0].rule.looks if self.trials else ():
                for number, trial in enumerate(self.trials, 1):
                    if not trial.is_over(count_tests(self.trials)):
                        label = f"[{number}/{len(self.trials)}] {trial.cell.label}"
                        self._reach_look(trial, look, label, add_pair, deadline)

    def check_compared(self) -> None:
        """Raise InfrastructureError or UsageError if no cell was compared at all, as neither side or no pair runs."""
        if not all(trial.together or {BASE, HEAD} <= set(trial.failed) for trial in self.trials):
            return
        for trial in self.trials:
            if trial.together:
                raise InfrastructureError(f"Nothing was compared: {trial.cell.label}: {trial.together}")
        raise UsageError(f"Nothing was compared, as neither side runs a cell: {self.changes[0].detail}")

    def _build_models(self, sides: Mapping[str, Side]) -> None:
        """Build each model once on each side, to find early what fails. A model is another one with another image size
        or number of classes.
        """
        self.note("Building each model and size once on each side ...")
        seen: dict[tuple[str, StaticKey], tuple[str, int | None]] = {}
        for trial in self.trials:
            for name, side in sides.items():
                key = (name, static_key(trial.cell))
                if key not in seen:
                    failed, facts = _probe(side, trial.cell)
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

    def _reach_look(
        self, trial: Trial, look: int, label: str, add_pair: Callable[[Trial], None], deadline: float
    ) -> None:
        """Measure pairs of one cell up to its next look. ``deadline``: a reading of the monotonic clock."""
        while len(trial.pairs) < look and not trial.problem:
            if time.monotonic() > deadline:
                self.late = True
                return
            self.tick(f"{label}: pair {len(trial.pairs) + 1} of {look}")
            add_pair(trial)
        if trial.problem:
            self.note(f"{label}: {trial.problem}")
            return
        tests = count_tests(self.trials)
        found = trial.evidence(trial.clocks[0], tests=tests)
        if found is not None:
            last = look == trial.rule.looks[-1]
            state = "clear" if trial.is_over(tests) else "not clear, and no more pairs" if last else "not clear yet"
            interval = f"{signed_percent(found.low)} to {signed_percent(found.high)}"
            self.note(f"{label}: {len(trial.pairs)} pairs, {signed_percent(found.value)} ({interval}), {state}")


def _add_pair(sides: Mapping[str, Side], shuffle: random.Random, file: TextIO, trial: Trial) -> None:
    """Measure one more pair of a cell and append it to ``file``, or find out why that fails.

    If three processes do not fit into memory, chance decides which one is killed, and which failure is seen first.
    So a side is blamed only if it also fails alone.
    """
    problem = ""
    for _ in range(TRIES):
        try:
            pair, trial.facts = measure_pair(
                sides,
                asdict(trial.cell),
                name=trial.cell.id,
                number=len(trial.pairs) + 1,
                shuffle=shuffle,
            )
        except SideError as error:
            problem = str(error)
            continue
        trial.pairs.append(pair)
        file.write(pair.to_json() + "\n")
        file.flush()
        return
    alone = {name: _measure_alone(sides[name], trial.cell) for name in (BASE, HEAD)}
    trial.failed = {name: why for name, why in alone.items() if why}
    if not trial.failed:
        trial.together = (
            f"a pair failed {TRIES} times ({problem}), but each side runs alone: three processes at once do not "
            "fit into memory (a smaller batch may), or something else ends them"
        )


def _probe(side: Side, cell: Cell) -> tuple[str, dict[str, Any]]:
    """Build a model on a side: why it cannot be built, or empty, and what the process reported. Raises
    InfrastructureError for a Python without torch.
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


def _measure_alone(side: Side, cell: Cell) -> str:
    """Why a side cannot run a cell by itself, or empty. It takes as many turns as in a pair: some code fails late."""
    try:
        measure_pair({side.state.name: side}, asdict(cell), name=cell.id, number=0, shuffle=random.Random(0))
    except SideError as error:
        return str(error)
    return ""


def _check_own(side: Side, model: str, facts: Mapping[str, Any]) -> None:
    """Raise UsageError if building a model loaded no file from a side's folder or ``--install`` environment: both sides
    would then run the same installed code.
    """
    if facts.get("own"):
        return
    source = facts.get("source") or "no file"
    where, way_out = "folder", "; --install gives each side an environment of its own"
    if side.state.installed:
        where, way_out = "folder or environment", ""
    raise UsageError(
        f"{model}: building it loads nothing from the {where} of {side.state.name} ({source} is used instead), so both "
        f"sides would be the same code. Packages must be in the repository's root or in src{way_out}"
    )


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[TextIO]:
    try:
        with path.open("a", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise InfrastructureError(f"{path}: {error.strerror or error}. Pairs written before are kept") from error


def notes_on(comparison: Comparison) -> list[str]:
    """How the times were measured, which error rates hold, and what was not compared."""
    trials = comparison.trials
    pairs = sum(len(trial.pairs) for trial in trials)
    looks = trials[0].rule.looks if trials else ()
    notes = [
        f"{pairs} pairs. Each starts a process of base, a second one of base (the control) and one of head. They run "
        "one at a time, in an order drawn for each round. A value is the mean over the pairs of log(head / base).",
        f"False alarms of all cells together: at most {100 * comparison.alpha:g} % (one-sided t tests after "
        f"{', '.join(map(str, looks))} pairs, the rate shared among the looks; Holm over cells and clocks).",
    ]
    versions = {one for one in comparison.torch.values() if one}
    if len(versions) > 1:
        notes.append(f"torch is {comparison.torch['base']} for base and {comparison.torch['head']} for head.")
    skipped = Counter(trial.problem for trial in trials if trial.problem and HEAD not in trial.failed)
    notes += [
        f"{count} cell{'s were' if count > 1 else ' was'} not compared: {problem}"
        for problem, count in skipped.most_common(_MOST_REASONS)
    ]
    if comparison.late:
        notes.append(f"Time was up after {comparison.max_seconds:g} s: cells not clear by then are inconclusive.")
    if comparison.base.commit == comparison.head.commit and not comparison.head.changed:
        notes.append("Base and head are the same commit: any difference is noise.")
    return notes


def describe(comparison: Comparison) -> dict[str, Any]:
    """The facts about a comparison in ``ab.json`` and in the JSON output."""
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
    """Write ``ab.json``. Raises StorageError."""
    write_atomically(comparison.folder / FACTS, (json.dumps(describe(comparison), indent=2) + "\n").encode())


def write_report(comparison: Comparison, changes: Sequence[Change], title: str, notes: Sequence[str]) -> Path:
    """Write ``report.md`` into the comparison's folder, and return its path. Raises StorageError."""
    path = comparison.folder / REPORT
    write_atomically(path, changes_markdown(changes, title=title, notes=notes, everything=True).encode())
    return path

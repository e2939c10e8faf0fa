"""Write what a comparison found: ``ab.json`` and ``report.md`` beside its pairs, and the notes above its table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from vitbench.core.run_folder import write_atomically
from vitbench.regression.ab.pairs import HEAD
from vitbench.regression.ab.session import Comparison
from vitbench.regression.change import Change
from vitbench.regression.change_page import changes_markdown

REPORT = "report.md"
FACTS = "ab.json"
#: Reasons why cells were not compared, one a line.
_MOST_REASONS = 5


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

"""What ``vitbench ab`` writes beside its pairs: the page, and how its figures were got in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitbench.core.run_folder import write_atomically
from vitbench.regression.ab.pairs import HEAD
from vitbench.regression.ab.session import Comparison
from vitbench.regression.change import Change
from vitbench.regression.change_page import changes_markdown

REPORT = "report.md"
#: Reasons why cells were not compared, a line each.
_MOST_UNPLAYED = 5


def notes_on(comparison: Comparison) -> list[str]:
    """How it was measured, what is promised, and what was not done."""
    trials = comparison.trials
    pairs = sum(len(trial.pairs) for trial in trials)
    looks = trials[0].rule.looks if trials else ()
    notes = [
        f"{pairs} pairs. Each is a process of base, started for it, another one of base (its control) and one of head, "
        "alive at once, of which one runs at a time; the order of their turns is drawn anew in each round. A figure is "
        "the mean over the pairs of the logarithm of head over base.",
        f"False alarms of all cells together: at most {100 * comparison.alpha:g} % (one-sided t tests after "
        f"{', '.join(map(str, looks))} pairs, the rate shared among the looks; Holm over cells and clocks).",
    ]
    versions = {one for one in comparison.torch.values() if one}
    if len(versions) > 1:
        notes.append(f"torch is {comparison.torch['base']} for base and {comparison.torch['head']} for head.")
    unplayed = Counter(trial.problem for trial in trials if trial.problem and HEAD not in trial.failed)
    notes += [
        f"{count} cell{'s were' if count > 1 else ' was'} not compared: {problem}"
        for problem, count in unplayed.most_common(_MOST_UNPLAYED)
    ]
    if comparison.late:
        notes.append(f"The time was over after {comparison.max_seconds:g} s: what was open then is inconclusive.")
    if comparison.base.commit == comparison.head.commit and not comparison.head.changed:
        notes.append("Base and head are the same commit: what differs is noise.")
    return notes


def write_report(comparison: Comparison, changes: Sequence[Change], title: str, notes: Sequence[str]) -> list[Path]:
    """Write ``report.md`` into the comparison's folder; the paths that were written. Raises StorageError."""
    path = comparison.folder / REPORT
    write_atomically(path, changes_markdown(changes, title=title, notes=notes, everything=True).encode())
    return [path]

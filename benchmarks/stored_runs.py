"""False alarms and detections of ``vitbench compare`` and ``vitbench history`` on stored runs of the same code.

``python -m benchmarks.stored_runs FOLDER``, where ``FOLDER`` has a folder (or a ``.tar.xz``) for each set of runs: ten
of the same code, named by their number, with the loads of ``LOADS`` beside them. Every run of a set is compared with
every other, both ways, with several tolerances; and the runs of a set, in orders that are drawn, are read as a history
in whose second half all times are longer by a known factor. Writes ``stored_runs.md`` there.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import random
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vitbench.core.run_folder import RECORDS
from vitbench.regression.change import Change
from vitbench.regression.compare import compare_runs
from vitbench.regression.history import find_steps, make_history
from vitbench.regression.series import Moment, Series
from vitbench.regression.stored_runs import find_runs
from vitbench.reports.model.runs import Run, read_runs
from vitbench.suites import make_thresholds

#: The load (``load.py``) beside each run of a set.
LOADS = (
    (),
    (),
    ("busy",),
    (),
    ("bursts",),
    ("memory",),
    (),
    ("busy", "busy"),
    ("bursts", "bursts"),
    ("busy", "memory"),
)
TOLERANCES = ("5%", "10%", "25%")
FACTORS = (1.0, 1.05, 1.1, 1.2, 1.5)
ORDERS = 50


def main() -> None:
    """Read the sets, write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    text = table(folder)
    (folder / "stored_runs.md").write_text(text, encoding="utf-8")
    print(text)


def table(folder: Path) -> str:
    """``stored_runs.md``."""
    with tempfile.TemporaryDirectory() as place:
        for path in sorted(folder.glob("*.tar.xz")):
            with tarfile.open(path) as archive:
                archive.extractall(Path(place) / path.name.removesuffix(".tar.xz"), filter="data")
        sets = [found for one in (folder, Path(place)) for part in sorted(one.iterdir()) if (found := runs_below(part))]
        together = [read_runs(paths) for paths in sets]
        series = [timings(paths) for paths in sets]
    head = (
        f"{sum(map(len, sets))} runs in {len(sets)} sets, each of one code, of "
        f"{len({one.model for some in series for one in some})} models."
    )
    return "\n".join([*compare_table(together, head), "", *history_table(series)]) + "\n"


def runs_below(folder: Path) -> list[Path]:
    """The run folders of a set, in the order in which they were made."""
    return sorted((path.parent for path in folder.rglob(RECORDS)), key=lambda path: int(path.name))


def timings(paths: Sequence[Path]) -> list[Series]:
    """The series that a history judges with a chance of error: times over the reference's."""
    return [one for one in make_history(find_runs(paths)).series if one.kind == "relative"]


def compare_table(sets: Sequence[Sequence[Run]], head: str) -> list[str]:
    """False alarms and verdicts of ``compare``, by tolerance and by whether both runs had the machine to themselves."""
    lines = [
        "# Stored runs of identical code",
        "",
        f"{head} `vitbench compare` of every two runs of a set, both ways; judged are the relative times.",
        "",
        "| tolerance | comparisons | with a false alarm | figures called same, both runs alone on the machine "
        "| with other load beside either | smallest slow-down found in 9 of 10, median |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for tolerance in TOLERANCES:
        rules = make_thresholds([{"metric": "relative_*", "tolerance": tolerance}], "this benchmark")
        alarms, found, same = 0, [], {True: [0, 0], False: [0, 0]}
        pairs = [(one, other) for runs in sets for one, other in itertools.permutations(enumerate(runs), 2)]
        for (i, base), (j, late) in pairs:
            said = compare_runs(base, late, rules)
            judged = [change for change in said.changes if is_judged(change)]
            alarms += any(change.verdict == "worse" for change in judged)
            alone = not LOADS[i] and not LOADS[j]
            same[alone][0] += sum(change.verdict == "same" for change in judged)
            same[alone][1] += len(judged)
            if said.facts["smallest_slowdown_found"] is not None:
                found.append(said.facts["smallest_slowdown_found"])
        shares = " | ".join(f"{100 * same[alone][0] / same[alone][1]:.0f} %" for alone in (True, False))
        visible = f"{100 * (statistics.median(found) - 1):.0f} %"
        lines.append(f"| {tolerance.replace('%', ' %')} | {len(pairs)} | {alarms} | {shares} | {visible} |")
    return lines


def is_judged(change: Change) -> bool:
    """Whether it is a relative time that counts for the exit code."""
    return change.gates and change.metric.startswith("relative_")


def history_table(sets: Sequence[Sequence[Series]]) -> list[str]:
    """How often ``history`` finds a change of level between the fifth and the sixth of ten runs."""
    lines = [
        f"`vitbench history` of the runs of a set, all series of it searched together, in {ORDERS} orders drawn for "
        "each set; the times of the second half multiplied by a factor. *Found*: a step at the right run or one "
        "beside it.",
        "",
        "| times longer by | series searched | found | with any other step |",
        "|--:|--:|--:|--:|",
    ]
    for factor in FACTORS:
        draw = random.Random(0)
        searched = right = others = 0
        for some in sets:
            for one in itertools.chain.from_iterable(shuffled(some, draw, factor) for _ in range(ORDERS)):
                places = [step.index for step in find_steps(one, rows=len(some))]
                middle = len(one.points) // 2
                near = [place for place in places if abs(place - middle) <= 1]
                searched += 1
                right += bool(near) and factor != 1
                others += len(places) > (bool(near) and factor != 1)
        found = f"{100 * right / searched:.0f} %" if factor != 1 else "-"
        lines.append(f"| {100 * (factor - 1):.0f} % | {searched} | {found} | {100 * others / searched:.1f} % |")
    lines += ["", "In the order in which the runs were made, nothing changed:", ""]
    for number, some in enumerate(sets, 1):
        steps = [step for one in some for step in find_steps(one, rows=len(some))]
        told = "; ".join(f"{step.series.name} × {step.ratio:.2f} from run {step.index + 1}" for step in steps)
        lines.append(f"- set {number}: {told or 'no step'}")
    return lines


def shuffled(some: Sequence[Series], draw: random.Random, factor: float) -> Iterator[Series]:
    """The series with their runs in another order, the same for all, and the second half slower."""
    moments = [point.moment for point in some[0].points]
    order = draw.sample(moments, len(moments))
    for one in some:
        yield reordered(one, order.index, factor)


def reordered(one: Series, place: Callable[[Moment], int], factor: float) -> Series:
    """The series by ``place`` of its points' moments, times ``factor`` in its second half."""
    points = sorted(one.points, key=lambda point: place(point.moment))
    middle = len(points) // 2
    return dataclasses.replace(
        one,
        points=tuple(
            point if number < middle else dataclasses.replace(point, value=float(point.value) * factor)
            for number, point in enumerate(points)
        ),
    )


if __name__ == "__main__":
    main()

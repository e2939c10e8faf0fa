"""The same suite quiet and beside other programs in turn: do its values hold?

``python -m benchmarks.busy_and_quiet --out FOLDER`` runs ``busy_and_quiet.toml`` by the command line, each run in a
process of its own: in each round once quiet and, right before or after it, once beside each load (``load.py``: ``half``
keeps one core busy for 10 s of every 20, ``memory`` fills caches and memory bus). Finished runs in FOLDER are kept:
stopped, it continues, and with more ``--pairs`` it adds to them. After each round it writes ``busy_and_quiet.md``
there: the values under load over the quiet ones, as printed and without the host's drift (relative to the reference in
the same run), and the same of two quiet runs in a row. Nothing else should run meanwhile.

The suite has the smallest models of ``lightweight`` and its first deep one: ``vit_basic_tutorial`` (about 1 ms, mostly
dispatch: the least repeatable), ``vit_layer6_32`` (2 ms) and ``cifar_vit_tiny`` (10 ms, at batch 32 hundreds).
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.kept_runs import run_vitbench
from vitbench.core.stats.intervals import BETWEEN_PROCESSES, Estimate, allow_for_runs, t_of_processes
from vitbench.core.stats.relative import FASTEST, QUIET, estimate_quiet
from vitbench.reports.format import table
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run, read_runs
from vitbench.reports.model.tables import Value, marked
from vitbench.reports.model.values import MetricValue, value_of

SUITE = Path(__file__).with_suffix(".toml")
QUIETLY = "quiet"
#: A busy value over the quiet one of its pair should be between these.
BOUNDS = (0.9, 1.1)
#: The other name of a value: relative to the reference, so that the host's drift cancels. Of a rate, it is that of an
#: image over the time of a reference step.
RELATIVE = "× reference"


@dataclass(frozen=True)
class Reading:
    """One value of one run, its interval, if it has one, and the ``marks`` that a report gives it, such as ``busy``.

    ``variance`` is that of the value's logarithm by the run's own processes; None where they are too few.
    """

    value: float
    low: float | None
    high: float | None
    marks: tuple[str, ...]
    variance: float | None = None


#: The values of one run by name, such as ``vit_nano latency b1, ms`` and ``vit_nano latency b1, × reference``.
Readings = Mapping[str, Reading]


@dataclass(frozen=True)
class OneRun:
    """What one run gave. ``reference_s``: the seconds of each reference in its quiet turns."""

    kind: str
    wall_s: float
    readings: Readings
    reference_s: Mapping[str, float]


def main() -> None:
    """Run what is missing, write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suite", default=str(SUITE), help="a name or a file")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--loads", default="half,memory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="pass --quick to the runs")
    options = parser.parse_args()
    words = ["--suite", options.suite, "--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    loads = options.loads.split(",")
    rounds = []
    for number in range(options.pairs):
        found = {}
        for kind in order(loads, number):
            folder = options.out / f"{number}-{kind}"
            wall_s = run_vitbench(folder, words, beside=() if kind == QUIETLY else (kind,))
            found[kind] = read_one(folder, kind, wall_s)
        rounds.append(found)
        (options.out / "busy_and_quiet.md").write_text(page(rounds), encoding="utf-8")
    print(page(rounds))


def order(loads: Sequence[str], number: int) -> list[str]:
    """The runs of a round: the quiet one between those under load, in reverse in every other round."""
    middle = len(loads) // 2
    kinds = [*loads[:middle], QUIETLY, *loads[middle:]]
    return kinds[::-1] if number % 2 else kinds


def read_one(folder: Path, kind: str, wall_s: float) -> OneRun:
    """The values of a run folder."""
    (run,) = read_runs([folder])
    return OneRun(kind, wall_s, headline_readings(run), quiet_reference(run))


def headline_readings(run: Run) -> dict[str, Reading]:
    """Milliseconds, best throughput and training steps of a run's models, and each relative to the reference; failures
    have no entry.
    """
    found: dict[str, Reading] = {}
    for row in build_rows([run]):
        named = []
        for metric, records in (("latency", row.infer), ("training_step", row.train)):
            for record in records:
                name = f"{metric.replace('_', ' ')} b{record.cell.batch_size}"
                named.append((value_of(record, metric), name, "ms", 1000.0))
        named.append((row.best_throughput(), "best throughput", "image/s", 1.0))
        for one, name, unit, scale in named:
            pairs = ((unit, scale, one.estimate_between_runs, one.estimate), (RELATIVE, 1.0, *relative_estimates(one)))
            for which, factor, shown, of_processes in pairs:
                if shown is not None and one.measurement is not None:
                    found[f"{row.cell.model} {name}, {which}"] = reading(one, shown, of_processes, factor)
    return found


def relative_estimates(of: MetricValue) -> tuple[Estimate | None, Estimate | None]:
    """A time or rate relative to the reference, with and without the allowance for other runs."""
    if of.measurement is None or of.measurement.unit == "s":
        return of.relative_between_runs, of.relative
    if of.quiet is None:
        return None, None
    time = estimate_quiet(of.quiet.relative, of.first_stage)
    low, high = (None if bound is None else 1 / bound for bound in (time.high, time.low))
    one = replace(time, value=1 / time.value, low=low, high=high)
    return allow_for_runs(one), one


def reading(of: MetricValue, one: Estimate, of_processes: Estimate | None, scale: float) -> Reading:
    """``one``, an estimate of ``of``, times ``scale``. ``of_processes`` is it without the allowance for other runs."""
    low, high = (None if bound is None else scale * bound for bound in (one.low, one.high))
    variance = None
    if of_processes and of_processes.kind == BETWEEN_PROCESSES and of_processes.low and of_processes.high:
        assert of.measurement is not None
        half = math.log(of_processes.high / of_processes.low) / 2
        variance = (half / t_of_processes(of.measurement.first_stage or of_processes.n_processes)) ** 2
    shown = marked(Value(), of)
    return Reading(scale * one.value, low, high, (*(["busy"] if shown.busy else []), *shown.marks), variance)


def quiet_reference(run: Run) -> dict[str, float]:
    """The median seconds of each reference in the quiet turns of a run: at most ``QUIET`` times its fastest."""
    turns: dict[str, list[float]] = {}
    for record in run.records:
        for metric in ("latency", "training_step"):
            one = record.measurement(metric)
            if one is not None:
                turns.setdefault(one.reference, []).extend(x for process in one.reference_samples for x in process)
    found = {}
    for name, times in turns.items():
        if times:
            limit = QUIET * float(np.quantile(times, FASTEST))
            found[name] = statistics.median(time for time in times if time <= limit)
    return found


def page(rounds: Sequence[Mapping[str, OneRun]]) -> str:
    """``busy_and_quiet.md`` of the rounds, each with one run of each kind."""
    runs = {kind: [found[kind] for found in rounds] for kind in rounds[0]}
    kinds = [QUIETLY, *sorted(kind for kind in runs if kind != QUIETLY)]
    pairs = {f"beside `{kind}`": list(zip(runs[kind], runs[QUIETLY], strict=True)) for kind in kinds[1:]}
    if len(rounds) > 1:  # what the ratios come to without another program
        pairs["quiet over the quiet run before"] = list(itertools.pairwise(runs[QUIETLY][::-1]))
    parts = [["# Quiet and busy"], ratio_tables(pairs), interval_table(runs, kinds), run_table(runs, kinds)]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


#: A value of the first run of a pair over that of the second, which is quiet, and both readings.
Ratio = tuple[float, Reading, Reading]


def ratio_tables(pairs: Mapping[str, Sequence[tuple[OneRun, OneRun]]]) -> list[str]:
    """How many ratios are within the bounds, what is said of the others, and the ratios of each value."""
    counts, values = [], dict[str, list[str]]()
    names = names_of(one for some in pairs.values() for pair in some for one in pair)
    for kind, of_kind in pairs.items():
        for how, is_relative in (("as printed", False), ("without drift", True)):
            chosen = [name for name in names if name.endswith(RELATIVE) == is_relative]
            found = {name: ratios_of(name, of_kind) for name in chosen}
            counts.append([kind, how, *counts_of([one for some in found.values() for one in some])])
            counts[-1].append(str(len(of_kind) * len(chosen) - sum(map(len, found.values()))))
            for name, some in found.items():
                values.setdefault(name.rpartition(", ")[0], []).append(middle_and_worst(some))
    bounds = f"{BOUNDS[0]} to {BOUNDS[1]}"
    headings = ["runs", "values", bounds, "others: marked", "not marked, intervals overlap", "neither", "missing"]
    columns = [f"{kind}, {how}" for kind in pairs for how in ("as printed", "without drift")]
    return [
        "A value over that of the quiet run of its pair, as printed (ms, image/s) and without drift (relative to the "
        "reference in the same run). Marked: a report says busy, †, ‡ or § of one of the two.",
        "",
        table(headings, counts, ["runs", "values"]),
        "",
        f"Median, and in brackets the worst and how many are within {bounds}:",
        "",
        table(["value", *columns], [[name, *cells] for name, cells in values.items()], ["value"]),
    ]


def ratios_of(name: str, pairs: Sequence[tuple[OneRun, OneRun]]) -> list[Ratio]:
    """The ratios of one value, in the pairs where both runs have it."""
    both = [(one.readings[name], quiet.readings[name]) for one, quiet in pairs if has(name, one, quiet)]
    return [(one.value / quiet.value, one, quiet) for one, quiet in both]


def counts_of(ratios: Sequence[Ratio]) -> list[str]:
    """How many are within the bounds; of the others, how many are marked, have intervals that overlap, or neither."""
    outside = [(one, quiet) for ratio, one, quiet in ratios if not is_within(ratio)]
    unmarked = [pair for pair in outside if not any(one.marks for one in pair)]
    marks = Counter(mark for pair in outside for mark in {mark for one in pair for mark in one.marks})
    said = ", ".join(f"{mark} {count}" for mark, count in marks.most_common())
    marked_ones = f"{len(outside) - len(unmarked)}{f' ({said})' if said else ''}"
    overlap = sum(overlaps(*pair) for pair in unmarked)
    return [f"{len(ratios) - len(outside)} of {len(ratios)}", marked_ones, str(overlap), str(len(unmarked) - overlap)]


def is_within(ratio: float) -> bool:
    """Whether a ratio is within the bounds."""
    return BOUNDS[0] <= ratio <= BOUNDS[1]


def overlaps(one: Reading, other: Reading) -> bool:
    """Whether both have intervals, which overlap."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high


def middle_and_worst(ratios: Sequence[Ratio]) -> str:
    """``1.005 (0.702; 2 of 3)``, or a dash for none."""
    numbers = [ratio for ratio, _, _ in ratios]
    if not numbers:
        return "–"
    worst = max(numbers, key=lambda ratio: abs(math.log(ratio)))
    return f"{statistics.median(numbers):.3f} ({worst:.3f}; {sum(map(is_within, numbers))} of {len(numbers)})"


def interval_table(runs: Mapping[str, Sequence[OneRun]], kinds: Sequence[str]) -> list[str]:
    """How repeatable the values of each kind of run are, and how many of the intervals hold their median."""
    lines = []
    sums = {kind: [0, 0] for kind in kinds}
    for name in names_of(one for some in runs.values() for one in some):
        line = [name]
        for kind in kinds:
            found = [one.readings[name] for one in runs[kind] if name in one.readings]
            held, known = intervals_that_hold_the_median(found)
            sums[kind][0] += held
            sums[kind][1] += known
            line += [f"{held} of {known}", percent(variation([one.value for one in found])), percent(beyond(found))]
        lines.append(line)
    columns = [(f"{kind}: hold the median", f"{kind}: CV, %", f"{kind}: beyond processes, %") for kind in kinds]
    said = "; ".join(f"{kind} {held} of {known}" for kind, (held, known) in sums.items())
    return [
        "## Between runs of a kind",
        "",
        f"Intervals that hold the median of all runs of their kind: {said}. CV is the coefficient of variation of the "
        "runs' values; beyond processes is the standard deviation between runs that their processes do not explain "
        "(method of moments).",
        "",
        table(["value", *(heading for some in columns for heading in some)], lines, ["value"]),
    ]


def run_table(runs: Mapping[str, Sequence[OneRun]], kinds: Sequence[str]) -> list[str]:
    """The drift of the reference and the wall time of each run."""
    lines = []
    for name in dict.fromkeys(name for some in runs.values() for one in some for name in one.reference_s):
        for kind in kinds:
            times = [one.reference_s[name] for one in runs[kind] if name in one.reference_s]
            middle = statistics.median(times) if times else math.nan
            spread = max(times) / min(times) if times else math.nan
            lines.append([name, kind, f"{1000 * middle:.4g}", percent(variation(times)), f"{spread:.3f}"])
    walls = []
    for kind in kinds:
        seconds = [one.wall_s for one in runs[kind]]
        numbers = (statistics.median(seconds), min(seconds), max(seconds))
        walls.append([kind, *(f"{number:.0f}" for number in numbers), " ".join(f"{each:.0f}" for each in seconds)])
    return [
        "## The reference and the time of the runs",
        "",
        "The reference in the quiet turns of each run (median) is the speed of the host.",
        "",
        table(["reference", "runs", "median, ms", "CV, %", "slowest / fastest"], lines, ["reference", "runs"]),
        "",
        table(["runs", "wall time, median, s", "least", "most", "each"], walls, ["runs", "each"]),
    ]


def names_of(runs: Iterable[OneRun]) -> list[str]:
    """The names of all values, in order of first appearance."""
    return list(dict.fromkeys(name for one in runs for name in one.readings))


def has(name: str, *runs: OneRun) -> bool:
    """Whether each of the runs has the value."""
    return all(name in one.readings for one in runs)


def intervals_that_hold_the_median(found: Sequence[Reading]) -> tuple[int, int]:
    """How many intervals hold the median of all values, and how many there are."""
    if not found:
        return 0, 0
    middle = statistics.median(one.value for one in found)
    bounds = [(one.low, one.high) for one in found if one.low is not None and one.high is not None]
    return sum(low <= middle <= high for low, high in bounds), len(bounds)


def variation(values: Sequence[float]) -> float:
    """The coefficient of variation; nan of fewer than two values."""
    return statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 else math.nan


def beyond(found: Sequence[Reading]) -> float:
    """The standard deviation between the logarithms of runs without that of their processes; nan where unknown."""
    known = [(one.value, one.variance) for one in found if one.variance is not None]
    if len(known) < 2:
        return math.nan
    between = statistics.variance([math.log(value) for value, _ in known])
    return math.sqrt(max(between - statistics.fmean(variance for _, variance in known), 0.0))


def percent(share: float) -> str:
    """0.05 as ``5.0``; ``–`` for nan."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


if __name__ == "__main__":
    main()

"""The same suite quiet and beside other programs in turn: do its values hold?

``python -m benchmarks.busy_and_quiet --out FOLDER`` runs ``busy_and_quiet.toml`` by the command line, each run in a
process of its own: in each round once quiet and, right before or after it, once beside each load (``load.py``: ``half``
keeps one core busy for 10 s of every 20, ``memory`` fills caches and memory bus). Finished runs in FOLDER are kept:
stopped, it continues. Prints tables, quiet runs against each other among them, and writes ``busy_and_quiet.md`` there.
Nothing else should run meanwhile.

The suite has the smallest models of ``lightweight`` and its first deep one: ``vit_basic_tutorial`` (about 1 ms, mostly
dispatch: the least repeatable), ``vit_layer6_32`` (2 ms) and ``cifar_vit_tiny`` (10 ms, at batch 32 hundreds).
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.kept_runs import run_vitbench
from vitbench.core.stats.intervals import BETWEEN_PROCESSES, Estimate, t_of_processes
from vitbench.core.stats.relative import FASTEST, QUIET
from vitbench.reports.format import table
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run, read_runs
from vitbench.reports.model.values import MetricValue, value_of

SUITE = Path(__file__).with_suffix(".toml")
QUIETLY = "quiet"
#: A busy value over the quiet one of its pair should be between these.
BOUNDS = (0.9, 1.1)
#: Where the upper bound of an interval is more than this many times the lower one, a disturbed value is ``busy``.
WIDE = 2.0


@dataclass(frozen=True)
class Reading:
    """One value of one run: its interval, if it has one, and whether a report says ``busy`` in place of that.

    ``variance`` is that of the value's logarithm by the run's own processes; None where they are too few.
    """

    value: float
    low: float | None
    high: float | None
    busy: bool
    variance: float | None = None


#: The values of one run by name, such as ``vit_layer6_32 latency b1, ms``.
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
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--loads", default="half,memory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="pass --quick to the runs")
    options = parser.parse_args()
    words = ["--suite", str(SUITE), "--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    loads = options.loads.split(",")
    rounds = []
    for number in range(options.pairs):
        found = {}
        for kind in order(loads, number):
            folder = options.out / f"{number}-{kind}"
            wall_s = run_vitbench(folder, words, beside=() if kind == QUIETLY else (kind,))
            found[kind] = read_one(folder, kind, wall_s)
        rounds.append(found)
    text = page(rounds)
    (options.out / "busy_and_quiet.md").write_text(text, encoding="utf-8")
    print(text)


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
    """Milliseconds, best throughput, training steps and ``× reference`` of a run's models; failures have no entry."""
    found: dict[str, Reading | None] = {}
    for row in build_rows([run]):
        for metric, records in (("latency", row.infer), ("training_step", row.train)):
            for record in records:
                one = value_of(record, metric)
                name = f"{row.cell.model} {metric.replace('_', ' ')} b{record.cell.batch_size}"
                found[f"{name}, ms"] = reading(one, one.estimate_between_runs, one.estimate, scale=1000)
                found[f"{name}, × reference"] = reading(one, one.relative_between_runs, one.relative)
        best = row.best_throughput()
        found[f"{row.cell.model} best throughput, image/s"] = reading(best, best.estimate_between_runs, best.estimate)
    return {name: one for name, one in found.items() if one is not None}


def reading(
    of: MetricValue, one: Estimate | None, of_processes: Estimate | None, *, scale: float = 1.0
) -> Reading | None:
    """``one``, an estimate of ``of``, times ``scale``; None without one. ``of_processes`` is it without the
    allowance for other runs.
    """
    if one is None or of.measurement is None:
        return None
    low, high = (None if bound is None else scale * bound for bound in (one.low, one.high))
    wide = low is not None and high is not None and high > WIDE * low
    variance = None
    if of_processes and of_processes.kind == BETWEEN_PROCESSES and of_processes.low and of_processes.high:
        half = math.log(of_processes.high / of_processes.low) / 2
        variance = (half / t_of_processes(of.measurement.first_stage or of_processes.n_processes)) ** 2
    return Reading(scale * one.value, low, high, wide and of.disturbance is not None, variance)


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
    lines = ["# Quiet and busy", ""]
    for kind in kinds[1:]:
        lines += [*ratio_table(f"Beside `{kind}`", [(found[kind], found[QUIETLY]) for found in rounds]), ""]
    if len(rounds) > 1:  # what the ratios come to without another program
        lines += [*ratio_table("A quiet run over the one before", list(itertools.pairwise(runs[QUIETLY][::-1]))), ""]
    return "\n".join([*lines, *interval_table(runs, kinds), "", *run_table(runs, kinds)]) + "\n"


def ratio_table(heading: str, pairs: Sequence[tuple[OneRun, OneRun]]) -> list[str]:
    """Each value of the first run of a pair over that of the second, which is quiet."""
    lines, inside, marked, total = [], 0, 0, 0
    for name in names_of(one for pair in pairs for one in pair):
        both = [(busy.readings[name], quiet.readings[name]) for busy, quiet in pairs if has(name, busy, quiet)]
        ratios = [busy.value / quiet.value for busy, quiet in both]
        within = [BOUNDS[0] <= ratio <= BOUNDS[1] for ratio in ratios]
        busy_ones = [one.busy for one, _ in both]
        outside = sum(not ok and not said for ok, said in zip(within, busy_ones, strict=True))
        inside += sum(within)
        marked += sum(said and not ok for ok, said in zip(within, busy_ones, strict=True))
        total += len(both)
        worst = max(ratios, key=lambda ratio: abs(math.log(ratio)), default=math.nan)
        middle = statistics.median(ratios) if ratios else math.nan
        counts = (f"{sum(within)} of {len(both)}", str(sum(busy_ones)), str(outside), str(len(pairs) - len(both)))
        lines.append([name, f"{middle:.3f}", f"{worst:.3f}", *counts])
    headings = [
        *("value", "ratio, median", "worst", f"{BOUNDS[0]} to {BOUNDS[1]}", "marked busy"),
        *("outside and not marked", "missing"),
    ]
    share = f"{100 * inside / total:.1f} %" if total else "none"
    return [
        f"## {heading}",
        "",
        f"{len(pairs)} pairs. {share} of {total} values are between {BOUNDS[0]} and {BOUNDS[1]} times the quiet one; "
        f"of the others {marked} are marked `busy` and {total - inside - marked} are not.",
        "",
        table(headings, lines, ["value"]),
    ]


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

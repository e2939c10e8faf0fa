"""What the progress line would have said in recorded runs: the time left against the time that it then took.

``python -m benchmarks.estimates_on_recorded_runs FOLDER``: every run folder below ``FOLDER`` (also in a ``.tar.xz``) is
played to ``TimeEstimates``, event by event, on a clock that its records set. Prints a Markdown table.

Taken from a run: its ``suite.toml``, its records, and for its calibration the FLOP/s of the reference, median of all
turns. Where a run has no reference, that of another one below ``FOLDER`` with as many threads. Each run is also played
with calibrations wrong by a factor of 2 either way.

Searches are predicted as a plan does it now, although the recorded ones doubled their batches.

Made up: beside their samples the processes of a group, and one of the reference a round, take equal times; so do the
steps of a training; and each timed cell takes ``BEFORE_S`` before its times. Runs of schema 1 to 3 had turns of any
number of calls. The report is left out. The constants of ``time_estimates`` were chosen on the runs in ``results``.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vitbench.core.records import Cell, Measurement, Record
from vitbench.core.run_folder import RECORDS, read_records
from vitbench.executors.protocol import PredictLargest, TrainingStep
from vitbench.executors.worker import predict_largest
from vitbench.runner.folder import suite_as_run
from vitbench.runner.time_estimates import REPORT_S, Rates, TimeEstimates
from vitbench.runner.training_plan import TrainingPlan
from vitbench.suites import Suite
from vitbench.suites.batch_search import base_of
from vitbench.training.data.images import DataInfo
from vitbench.training.recipes import BUDGETS, load_recipe

#: Of matrix products, a step on a CPU (``vitbench.reference``).
REFERENCE_FLOPS = 60_752_640
BEFORE_S = 0.5
#: How often a run's "left" is read, and how many steps a training reports.
READINGS, STEPS = 200, 50
#: True FLOP/s over those that the estimates get.
WRONG = (1.0, 0.5, 2.0)

Event = tuple[float, Callable[[TimeEstimates], None]]  # seconds, and what happens after them


def main() -> None:
    """Read the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as place:
        for path in sorted(folder.rglob("*.tar.xz")):
            with tarfile.open(path) as archive:
                archive.extractall(Path(place) / path.parent.name, filter="data")
        found = [path.parent for top in (folder, Path(place)) for path in sorted(top.rglob(RECORDS))]
        runs = {" ".join(path.parts[-3:]): (suite_as_run(path), read_records(path)) for path in found}
    print("\n".join(table(runs)))


def table(runs: dict[str, tuple[Suite, list[Record]]]) -> list[str]:
    """A row for each run and calibration."""
    tenths = [f"{share}0 %" for share in range(1, 10)]
    lines = [
        f"| run | took, s | FLOP/s | plan | {' | '.join(tenths)} | worst | largest rise |",
        f"|---|{'--:|' * 14}",
    ]
    speeds: dict[int, list[float]] = {}
    for _, records in runs.values():
        if found := reference_flops_per_s(records):
            speeds.setdefault(records[0].cell.threads, []).append(found)
    for name, (suite, records) in runs.items():
        rate = reference_flops_per_s(records) or statistics.median(speeds[records[0].cell.threads])
        for wrong in WRONG:
            took, said = play(suite, records, rate / wrong)
            ratios = [left / (took * (1 - i / READINGS)) for i, left in enumerate(said[:-1])]
            first, last = READINGS // 10, READINGS * 9 // 10
            worst = max(ratios[first : last + 1], key=lambda one: max(one, 1 / max(one, 1e-9)))
            at = " | ".join(f"{ratios[i]:.2f}" for i in range(first, last + 1, READINGS // 10))
            lowest = itertools.accumulate(said, min)
            rise = max(later / max(low, took / 20) for later, low in zip(said, lowest, strict=True))
            lines.append(f"| {name} | {took:.0f} | / {wrong:g} | {ratios[0]:.2f} | {at} | {worst:.2f} | {rise:.2f} |")
    return lines


def play(suite: Suite, records: Sequence[Record], flops_per_s: float) -> tuple[float, list[float]]:
    """How long a run took, and how much was said to be left at equal distances from its beginning to its end."""
    events = list(events_of(suite, records))
    took = sum(seconds for seconds, _ in events)
    now = 0.0
    estimates = make(suite, records, flops_per_s, lambda: now)
    said: list[float] = []
    done = 0.0
    for seconds, happens in events:
        done += seconds
        while (at := took * len(said) / READINGS) < done:
            now = at
            said.append(estimates.left() - REPORT_S)
        now = done
        happens(estimates)
    return took, [*said[:READINGS], 0.0]


def make(suite: Suite, records: Sequence[Record], flops_per_s: float, clock: Callable[[], float]) -> TimeEstimates:
    """The estimates as a plan makes them, of a calibration of ``flops_per_s``."""
    known: dict[str, Rates] = {}
    cells: dict[str, Cell] = {}
    for record in records:
        cell = record.cell if suite.frontier is None else base_of(record.cell)
        if cell.id not in cells:
            flops = found.value if (found := record.measurement("flops")) and found.samples else 1e9
            predicted = predict(cell) if suite.frontier is not None else None
            cells[cell.id], known[cell.id] = cell, Rates(flops, flops_per_s, predicted)
    return TimeEstimates(suite, list(cells.values()), training_of(suite, records), known, calls_a_turn=1, clock=clock)


@functools.cache
def predict(cell: Cell) -> int | None:
    """The largest batch that a plan predicts now for a search."""
    (answer,) = predict_largest(PredictLargest(cell=cell))
    return answer.get("batch")


def training_of(suite: Suite, records: Sequence[Record]) -> TrainingPlan | None:
    if suite.training is None:
        return None
    changes = {key: getattr(suite.training, key) for key in (*BUDGETS, "batch_size")}
    recipes = [load_recipe(name, **{k: v for k, v in changes.items() if v}) for name in suite.training.recipe]
    tested = max((int(found.value) for one in records if (found := one.measurement("test_images"))), default=1000)
    info = DataInfo(spec="", label="", class_names=("",) * 10, train_images=50_000, test_images=tested, summary="")
    return TrainingPlan(tuple(recipes), tuple(recipes), info)


def times_of(record: Record) -> Measurement | None:
    """The durations of a timed cell."""
    found = [record.measurement(name) for name in ("latency", "training_step")]
    return next((one for one in found if one is not None and one.samples), None)


def reference_flops_per_s(records: Sequence[Record]) -> float | None:
    timed = [one for record in records if (one := times_of(record))]
    steps = [step for one in timed for process in one.reference_samples for step in process]
    return REFERENCE_FLOPS / statistics.median(steps) if steps else None


def events_of(suite: Suite, records: Sequence[Record]) -> Iterator[Event]:
    """What happened in a run, in order."""

    def group(numbered: tuple[int, Record]) -> str:
        times = times_of(numbered[1])
        return times.group if times and times.group else str(numbered[0])

    for _, together in itertools.groupby(enumerate(records), key=group):
        jobs = [record for _, record in together]
        timed = {record.cell.id: times for record in jobs if (times := times_of(record))}
        for record in jobs:
            yield 0.0, functools.partial(TimeEstimates.cell_started, cell=record.cell)
            if timed:
                yield BEFORE_S, lambda estimates: None
            elif record.cell.trains:
                trained = record.measurement("training_duration")
                seconds = trained.value if trained and trained.samples else record.duration_s
                for step in range(1, STEPS + 1):
                    event = TrainingStep(step=step, total=STEPS, loss=1.0)
                    yield seconds / STEPS, functools.partial(TimeEstimates.training_step, event=event)
                yield record.duration_s - seconds, lambda estimates: None
            else:
                yield record.duration_s, lambda estimates: None
        if timed:
            yield 0.0, functools.partial(TimeEstimates.group_started, cells=[record.cell for record in jobs])
            yield from rounds(jobs, timed, suite.measure.processes)
        for record in jobs:
            yield 0.0, functools.partial(TimeEstimates.record_done, record=record)
        following = records[records.index(jobs[-1]) + 1 :][:1]
        if suite.frontier is not None and [base_of(one.cell) for one in following] != [base_of(jobs[-1].cell)]:
            yield 0.0, functools.partial(TimeEstimates.search_done, base=base_of(jobs[-1].cell))


def rounds(jobs: Sequence[Record], timed: dict[str, Measurement], first_stage: int) -> Iterator[Event]:
    processes = {record.cell.id: len(timed[record.cell.id].samples) for record in jobs}
    sampled = sum(sample for one in timed.values() for process in one.samples for sample in process)
    beside = sum(one.duration_s - BEFORE_S for one in jobs) - sampled
    beside /= sum(processes.values()) + max(processes.values())
    for number in range(1, max(processes.values()) + 1):
        active = [cell for cell, count in processes.items() if count >= number]
        seconds = sum(sum(timed[cell].samples[number - 1]) + beside for cell in active) + beside
        more = {cell: (first_stage if number < first_stage else processes[cell]) - number for cell in active}
        calls = {cell: statistics.median(timed[cell].samples[number - 1]) for cell in active}
        yield seconds, functools.partial(TimeEstimates.round_done, more=more, calls=calls)


if __name__ == "__main__":
    main()

"""Cells become records: a fresh process for memory, several for times, one for energy, one for training.

Cells that are compared with each other are timed together, in turns with each other and with the reference (``timed``).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from vitbench.core.errors import StorageError, VitbenchError
from vitbench.core.records import Cell, Measurement, Record
from vitbench.core.registry import METRICS, Metric
from vitbench.devices.host.environment import shorten_home
from vitbench.executors.conversation import Conversation, Outcome
from vitbench.executors.launcher import Launcher
from vitbench.executors.protocol import Measure, TrainingSettings
from vitbench.runner.outcomes import ESSENTIAL, complete, metrics_by_process, not_tried
from vitbench.runner.plan import Plan, static_metrics, weights_of
from vitbench.runner.progress import Progress
from vitbench.runner.static_counts import StaticCounter, StaticKey, static_key
from vitbench.runner.timed import Job, Timer, peak_bytes
from vitbench.suites import Suite

#: Cells that take turns at most: with more, each one's turns would be spread over too long a time.
GROUP = 8


class CellMeasurer:
    """Measures cells; values that cells share (FLOPs by other counters) are taken once.

    Use it as a context manager: it keeps processes alive.
    """

    def __init__(self, plan: Plan, launcher: Launcher, checkpoints: Path | None, progress: Progress) -> None:
        self.plan = plan
        self.launcher = launcher
        self.checkpoints = checkpoints
        self.progress = progress
        self._names = tuple(plan.suite.metrics)
        self._counter = StaticCounter(launcher, static_metrics(plan.suite), plan.suite.timeout_s)
        self._predictor = _make_predictor(plan.suite, launcher)
        self.timer = Timer(plan, launcher, progress)
        self._other_counters: dict[StaticKey, list[Measurement]] = {}

    def __enter__(self) -> CellMeasurer:
        return self

    def __exit__(self, *_: object) -> None:
        self._counter.close()
        self._predictor.close()
        self.timer.close()

    def measure(self, cells: Sequence[Cell], groups: Sequence[Sequence[Cell]] | None = None) -> Iterator[Record]:
        """The record of each cell, whatever happens to it, as soon as it is complete.

        Timed cells come in the order of their ``groups``, which take turns: by default those of ``group_cells``. Raises
        StorageError if a worker found the disk full.
        """
        self._counter.begin(cell for cell in cells if static_key(cell) not in self.plan.static)
        groups = group_cells(cells, self._names) if groups is None else groups
        last_timed = {  # the number of the last timed group of each device and thread count
            (group[0].device, group[0].threads): number
            for number, group in enumerate(groups)
            if "time" in metrics_by_process(group[0], self._names)
        }
        for number, group in enumerate(groups):
            yield from self._measure_group(group, is_last=number in last_timed.values())

    def _measure_group(self, group: Sequence[Cell], *, is_last: bool) -> Iterator[Record]:
        waiting: list[Job] = []
        for cell in group:
            self.progress.cell_started(cell)
            job = self._begin(cell, has_company=len(group) > 1)
            if job.is_timed:
                waiting.append(job)
            else:
                yield self._end(job)
        for alive in self.timer.alive_at_once(waiting):
            self.progress.group_started([job.cell for job in alive])
            self.timer.time(alive, is_last=is_last and alive[-1] is waiting[-1])
            yield from self._end_each(alive)

    def _begin(self, cell: Cell, *, has_company: bool) -> Job:
        """Everything that comes before the times.

        With company the cell's memory is measured in any case: it decides how many cells can be alive at once.
        """
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        job = Job(cell, metrics_by_process(cell, self._names), now, time.perf_counter())
        if "static" in job.groups:
            key = static_key(cell)  # a plan of counts alone leaves them to the run
            outcome = self.plan.static[key] if key in self.plan.static else self._counter.outcome(cell)
            job.measurements += complete(cell, job.groups["static"], outcome)
            if outcome.failure and not any(process in job.groups for process in ESSENTIAL):
                job.ending = outcome
        if "prediction" in job.groups:  # before anything fails: what does not fit has a prediction as well
            self.progress.doing("prediction")
            job.measurements += complete(cell, job.groups["prediction"], self._predictor.outcome(cell))
        if "counters" in job.groups:
            job.measurements += self._count_otherwise(cell, job.groups["counters"])
        if "memory" in job.groups:
            self._essential(job, "memory")
            _refuse_full_disk(job)
            job.peak = peak_bytes(cell, job.measurements)
        elif "time" in job.groups and has_company:
            job.peak = peak_bytes(cell, self._run(cell, "memory", [METRICS.get("memory")]).measurements)
        job.seconds = time.perf_counter() - job.begin
        return job

    def _end(self, job: Job) -> Record:
        """Everything that comes after the times."""
        begin = time.perf_counter()
        if "time" in job.groups and not job.timed:
            self._essential(job, "time")  # not tried
        if "energy" in job.groups:
            self._essential(job, "energy")
        if "training" in job.groups:
            self.progress.cell_started(job.cell)
            self._essential(job, "training")
        job.seconds += time.perf_counter() - begin
        _refuse_full_disk(job)
        failure = job.failure
        return Record(
            cell=job.cell,
            status=failure.status if failure else "ok",
            measurements=tuple(job.measurements),
            environment=self.plan.environment_hash,
            started_at=job.started_at,
            duration_s=round(job.seconds, 3),
            cause=failure.cause if failure else "",
            signal=job.ending.signal if job.ending else None,
            stderr_tail=shorten_home(job.ending.stderr_tail) if job.ending else "",
            detail=shorten_home("; ".join(([failure.detail] if failure else []) + job.notes)),
        )

    def _end_each(self, jobs: Sequence[Job]) -> Iterator[Record]:
        """The records of all jobs, even where one of them raises; then its error is raised."""
        first: VitbenchError | None = None
        for job in jobs:
            try:
                record = self._end(job)
            except VitbenchError as error:
                first = first or error
            else:
                yield record
        if first is not None:
            raise first

    def _essential(self, job: Job, process: str) -> None:
        metrics = job.groups[process]
        if job.failure is not None:
            # a batch that did not fit, or hung, would do so again: reported, not tried
            job.measurements += complete(job.cell, metrics, not_tried(job.failure))
            return
        outcome = self._run(job.cell, process, metrics)
        job.measurements += complete(job.cell, metrics, outcome)
        job.take(outcome)

    def _count_otherwise(self, cell: Cell, metrics: Sequence[Metric]) -> list[Measurement]:
        """The values of other counters, each in a process of its own: if one dies, only its own column is lost."""
        key = static_key(cell)
        if key not in self._other_counters:
            found = []
            for metric in metrics:
                found += complete(cell, [metric], self._run(cell, "counters", [metric]))
            self._other_counters[key] = found
        return self._other_counters[key]

    def _run(self, cell: Cell, process: str, metrics: Sequence[Metric]) -> Outcome:
        """One process that takes no turns."""
        suite = self.plan.suite
        training = suite.training if process == "training" else None
        timeout_s = training.timeout_s if training else suite.timeout_s
        task = Measure(
            process=process,
            metrics=tuple(metric.name for metric in metrics),
            cell=cell,
            weights=weights_of(suite),
            training=self._training_settings(cell) if training else None,
        )
        self.progress.doing(process)
        talk = Conversation(self.launcher.start(), task, timeout_s, cell.device, self.progress.training_step)
        try:
            talk.go_on()
            return talk.finish()
        finally:
            if talk.worker.alive():
                talk.worker.kill()

    def _training_settings(self, cell: Cell) -> TrainingSettings:
        section, training = self.plan.suite.training, self.plan.training
        assert section is not None
        assert training is not None
        return TrainingSettings(
            recipe=training.recipe_of(cell).model_dump(mode="json"),
            budget=training.budget_of(cell),
            data=section.data,
            data_dir=section.data_dir,
            download=section.download,
            train_images=training.train_images,
            test_images=section.test_images,
            checkpoints=str(self.checkpoints) if self.checkpoints else None,
        )


def _make_predictor(suite: Suite, launcher: Launcher) -> StaticCounter:
    """One worker that predicts a cell at a time: it keeps its traces, which cells of several batches share."""
    metrics = tuple(name for name in suite.metrics if METRICS.get(name).process == "prediction")
    return StaticCounter(
        launcher,
        metrics,
        suite.timeout_s,
        task=lambda cell: Measure(cell=cell, process="prediction", metrics=metrics),
        key=lambda cell: cell.id,
    )


def group_cells(cells: Sequence[Cell], metrics: Iterable[str]) -> list[list[Cell]]:
    """Cells that take turns: timed cells of one column of a table (device, threads, size, mode, batch), at most
    ``GROUP`` together and evenly so; every other cell by itself. In order of first appearance.
    """
    names = tuple(metrics)
    found: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        alone = "time" not in metrics_by_process(cell, names)
        key = (cell.device, cell.threads, cell.image_size, cell.mode, cell.batch_size)
        found.setdefault((cell.id,) if alone else key, []).append(cell)
    groups = []
    for group in found.values():
        parts = -(-len(group) // GROUP)
        size = -(-len(group) // parts)
        groups += [group[start : start + size] for start in range(0, len(group), size)]
    return groups


def _refuse_full_disk(job: Job) -> None:
    if job.failure is not None and job.failure.cause == "disk_full":
        raise StorageError(f"The disk is full ({job.failure.detail}). The records before this are safe")

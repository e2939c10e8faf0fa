"""Cells become records: fresh processes for memory, several for times, one for training.

Timed cells that are compared with each other are measured together, in turns with each other and with the reference,
one running at a time.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from vitbench.core.errors import StorageError, VitbenchError
from vitbench.core.records import Cell, Measurement, NoiseCheck, Record
from vitbench.core.registry import METRICS, Metric
from vitbench.core.stats.statistics import MIN_FIRST_STAGE, in_quiet_turns, processes_for
from vitbench.devices import Failure, split_name
from vitbench.devices.host.environment import shorten_home
from vitbench.devices.host.load import Load, LoadWatch, load_measurements
from vitbench.devices.host.memory import available_memory
from vitbench.executors.conversation import Outcome, converse, finish
from vitbench.executors.launcher import Launcher, Worker
from vitbench.executors.protocol import Measure, TrainingSettings
from vitbench.metrics import Budget
from vitbench.runner.plan import Plan, static_metrics, weights_of
from vitbench.runner.progress import Progress
from vitbench.runner.static_counts import StaticCounter, StaticKey, static_key
from vitbench.runner.turns import Player, Reference, ReferencePlayer, take_turns

#: Cells that take turns at most: with more, each one's turns would be spread over too long a time.
GROUP = 8
#: The reference plays against itself in the first group, in the last, and whenever the last time is longer ago.
NOISE_EVERY_S = 60.0
#: A failure of these processes, in this order, is a failure of the cell; that of a comparison column is not.
ESSENTIAL = ("memory", "time", "energy", "training")
#: Bytes that a process holds beyond what its peak memory counts (its own copies of libraries' pages, a CUDA context).
_PROCESS_BYTES = 600e6
#: The share of the free memory that cells alive at once may take.
_SHARE_OF_MEMORY = 0.5


@dataclass
class _Job:
    """A cell on its way to a record."""

    cell: Cell
    groups: dict[str, list[Metric]]
    started_at: str
    begin: float
    measurements: list[Measurement] = field(default_factory=list)
    ending: Outcome | None = None  # the outcome that decides the record's status
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    timed: list[Outcome] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    peak: float | None = None  # bytes that a timed process needs, if known
    retried: bool = False  # by itself, after it found too little memory beside others
    wanted: int = 0  # timed processes
    timed_s: float = 0.0
    first_stage: int | None = None
    shortfall: str = ""  # by how much the number of processes stays behind the precision that was asked for

    @property
    def failure(self) -> Failure | None:
        return self.ending.failure if self.ending else None

    @property
    def is_timed(self) -> bool:
        return "time" in self.groups and self.failure is None

    def take(self, outcome: Outcome) -> None:
        """Note how an essential process ended."""
        if outcome.note and outcome.note not in self.notes:
            self.notes.append(outcome.note)
        if outcome.failure is not None:
            self.ending = outcome


class CellMeasurer:
    """Measures cells; figures that cells share (FLOPs by other counters) are taken once. Use it as a context manager:
    it keeps processes alive.
    """

    def __init__(self, plan: Plan, launcher: Launcher, checkpoints: Path | None, progress: Progress) -> None:
        self.plan = plan
        self.launcher = launcher
        self.checkpoints = checkpoints
        self.progress = progress
        self.counter = StaticCounter(launcher, static_metrics(plan.suite), plan.suite.timeout_s)
        self.noise: list[NoiseCheck] = []
        self._noise_at: dict[tuple[str, int], float] = {}
        self._references: dict[tuple[str, int], Reference] = {}
        self._counters: dict[StaticKey, list[Measurement]] = {}

    def __enter__(self) -> CellMeasurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.counter.close()
        for reference in self._references.values():
            reference.close()

    def measure(self, cells: Sequence[Cell]) -> Iterator[Record]:
        """The record of each cell, whatever happens to it, as soon as there is one. Timed cells come in the order of
        their groups. Raises StorageError if a worker found the disk full.
        """
        self.counter.begin(cell for cell in cells if static_key(cell) not in self.plan.static)
        groups = group_cells(cells, self._names)
        # where each device and thread count has its last times
        last = {
            (group[0].device, group[0].threads): number
            for number, group in enumerate(groups)
            if "time" in metrics_by_process(group[0], self._names)
        }
        for number, group in enumerate(groups):
            is_last = last.get((group[0].device, group[0].threads)) == number
            waiting: list[_Job] = []
            for cell in group:
                self.progress.cell_started(cell)
                job = self._begin(cell, has_company=len(group) > 1)
                if job.is_timed:
                    waiting.append(job)
                else:
                    yield self._end(job)
            for alive in self._alive_at_once(waiting):
                self.progress.group_started([job.cell for job in alive])
                self._time(alive, is_last=is_last and alive[-1] is waiting[-1])
                yield from self._end_each(alive)

    def _end_each(self, jobs: Sequence[_Job]) -> Iterator[Record]:
        """Every record that there can be, whatever happens to one of them; then the first trouble is raised."""
        trouble: VitbenchError | None = None
        for job in jobs:
            try:
                record = self._end(job)
            except VitbenchError as error:
                trouble = trouble or error
            else:
                yield record
        if trouble is not None:
            raise trouble

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.plan.suite.metrics)

    def _begin(self, cell: Cell, *, has_company: bool) -> _Job:
        """Everything that comes before the times. With company its memory is looked at in any case: it decides how many
        cells can be alive at once.
        """
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        job = _Job(cell, metrics_by_process(cell, self._names), now, time.perf_counter())
        if "static" in job.groups:
            outcome = self._static(cell)
            job.measurements += complete(cell, job.groups["static"], outcome)
            if outcome.failure and not any(process in job.groups for process in ESSENTIAL):
                job.ending = outcome
        if "counters" in job.groups:
            job.measurements += self._count(cell, job.groups["counters"])
        if "memory" in job.groups:
            self._essential(job, "memory")
            self._refuse_full_disk(job)
            job.peak = _peak_bytes(cell, job.measurements)
        elif "time" in job.groups and has_company:
            job.peak = _peak_bytes(cell, self._run(cell, "memory", [METRICS.get("memory")]).measurements)
        job.seconds = time.perf_counter() - job.begin
        return job

    def _end(self, job: _Job) -> Record:
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
        self._refuse_full_disk(job)
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

    def _refuse_full_disk(self, job: _Job) -> None:
        if job.failure is not None and job.failure.cause == "disk_full":
            raise StorageError(f"The disk is full ({job.failure.detail}). The records before this are safe")

    def _essential(self, job: _Job, process: str) -> None:
        metrics = job.groups[process]
        if job.failure is not None:
            # a batch that did not fit, or hung, would do so again: said, not tried
            job.measurements += complete(job.cell, metrics, not_tried(job.failure))
            return
        outcome = self._run(job.cell, process, metrics)
        job.measurements += complete(job.cell, metrics, outcome)
        job.take(outcome)

    # times

    def _time(self, jobs: Sequence[_Job], *, is_last: bool) -> None:
        """Times of cells that are alive at once: as many fresh processes of each as the suite asks for, and more where
        their spread asks for it.
        """
        measure = self.plan.suite.measure
        cell = jobs[0].cell
        place = (cell.device, cell.threads)
        reference = self._references.get(place)
        if reference is None:
            reference = self._references[place] = Reference(self.launcher, *place, cores=measure.cores)
        problem = ""
        begin = time.perf_counter()
        for job in jobs:
            job.wanted = measure.processes
        rounds = 0
        while active := [job for job in jobs if job.failure is None and len(job.timed) < job.wanted]:
            rounds += 1
            self.progress.doing(f"time {rounds}/{max(job.wanted for job in active)}")
            due = is_last or time.monotonic() - self._noise_at.get(place, float("-inf")) > NOISE_EVERY_S
            self._round(active, reference, with_opponent=due, seed=rounds)
            problem = problem or reference.problem
            for job in active:
                if _lacked_memory(job) and not job.retried and (len(active) > 1 or place[0] != "cpu"):
                    self._retry_alone(job)
        shared = (time.perf_counter() - begin - sum(job.timed_s for job in jobs)) / len(jobs)
        # no time of day: a clock that is put back would give two groups one name, and so would two machines
        group = secrets.token_hex(8) if len(jobs) > 1 else ""
        for job in jobs:
            outcome = _merge(job.timed, job.first_stage, group=group)
            if job.shortfall:
                outcome.measurements = [
                    replace(m, detail=job.shortfall) if m.first_stage is not None and not m.detail else m
                    for m in outcome.measurements
                ]
            if problem:
                why = f"the reference could not always run ({problem})"
                outcome.note = f"{outcome.note}; {why}" if outcome.note else why
            job.measurements += complete(job.cell, job.groups["time"], outcome)
            job.measurements += load_measurements(job.loads)
            job.take(outcome)
            job.seconds += job.timed_s + max(shared, 0.0)

    def _retry_alone(self, job: _Job) -> None:
        """A cell that found too little memory beside others gets all of it, once: what it lacks then is its own."""
        job.retried, job.ending, job.timed, job.loads, job.first_stage = True, None, [], [], None
        place = Reference(self.launcher, job.cell.device, job.cell.threads)
        for number in range(self.plan.suite.measure.processes):
            self._round([job], place, with_opponent=False, seed=number, alone=True)
            if job.failure is not None:
                return
        job.wanted = len(job.timed)
        job.notes.append("timed by itself, without the reference: beside others its memory did not suffice")

    def _round(
        self, jobs: Sequence[_Job], reference: Reference, *, with_opponent: bool, seed: int, alone: bool = False
    ) -> None:
        """One fresh process of each job, in turns with the reference unless ``alone``."""
        import random

        started_at = datetime.now().astimezone().isoformat(timespec="milliseconds")
        players: list[Player] = []
        opponent: ReferencePlayer | None = None
        try:
            for job in jobs:
                names = tuple(metric.name for metric in job.groups["time"])
                settings = self.plan.suite.measure
                task = Measure(
                    process="time",
                    metrics=names,
                    cell=job.cell,
                    budget=Budget(**settings.model_dump(include={"seconds", "min_samples", "max_samples"})),
                    cores=settings.cores,
                    weights=weights_of(self.plan.suite),
                    turns=True,
                )
                worker = self.launcher.start()
                players.append(Player(worker, task, timeout_s=self.plan.suite.timeout_s, device=job.cell.device))
            if alone:
                reference.close()
            else:
                reference.renew()
            opponent = reference.opponent() if with_opponent and not reference.problem else None
            watch = LoadWatch(reference.device)
            take_turns(players, None if alone else reference, opponent=opponent, shuffle=random.Random(seed))
            load = watch.stop()
            for job, player in zip(jobs, players, strict=True):
                outcome = player.finish()
                job.timed.append(outcome)
                job.loads.append(load)
                job.timed_s += player.spent_s
                if outcome.failure is not None:
                    job.take(outcome)
                elif len(job.timed) == self.plan.suite.measure.processes:
                    self._decide_processes(job)
        finally:
            reference.close()  # on a GPU even an idle process holds memory
            for player in (*players, *([opponent] if opponent else [])):
                player.kill()
        if opponent is not None and opponent.reference_samples:
            self._noise_at[reference.device, reference.threads] = time.monotonic()
            check = NoiseCheck(
                device=reference.device,
                threads=reference.threads,
                started_at=started_at,
                samples=tuple(opponent.samples),
                reference_samples=tuple(opponent.reference_samples),
            )
            self.noise.append(check)

    def _decide_processes(self, job: _Job) -> None:
        """After the first stage: how many processes a cell gets in all (Stein's procedure)."""
        measure = self.plan.suite.measure
        if not measure.precision or measure.processes < MIN_FIRST_STAGE or job.retried:
            return
        paired = next((m for m in _merge(job.timed).measurements if m.reference_samples and m.samples), None)
        if paired is None:
            return
        quiet = in_quiet_turns(paired.samples, paired.turns, paired.reference_samples)
        if quiet is None:
            return
        job.first_stage = measure.processes
        affordable = int(measure.max_seconds / max(job.timed_s / len(job.timed), 1e-3))
        most = max(min(measure.max_processes, affordable), measure.processes)
        needed = processes_for(quiet, measure.precision)
        job.wanted = min(needed, most)
        if needed > most:
            limit = "max_processes" if most == max(measure.max_processes, measure.processes) else "max_seconds"
            job.shortfall = f"+-{100 * measure.precision:g} % would take {needed} processes; {limit} ended it at {most}"

    def _alive_at_once(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """Jobs that fit into memory together; one whose need is not known stays alone."""
        chunk: list[_Job] = []
        taken = 0.0
        for job in jobs:
            need = job.peak
            free = self._free_bytes(job.cell.device) * _SHARE_OF_MEMORY
            if chunk and (need is None or taken + need > free):
                yield chunk
                chunk, taken = [], 0.0
            chunk.append(job)
            taken += need if need is not None else float("inf")
        if chunk:
            yield chunk

    def _free_bytes(self, device: str) -> float:
        if split_name(device)[0] == "cpu":
            return float(available_memory())
        facts = self.plan.environment.get("devices", {}).get(device, {})
        return min(float(facts.get("memory_bytes") or 0), float(available_memory()))

    # other processes

    def _static(self, cell: Cell) -> Outcome:
        """What the plan counted; a plan of counts alone leaves them to the run."""
        key = static_key(cell)
        return self.plan.static[key] if key in self.plan.static else self.counter.outcome(cell)

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
        worker: Worker = self.launcher.start()
        try:
            outcome = converse(
                worker, task, timeout_s=timeout_s, device=cell.device, on_progress=self.progress.training_step
            )
            return finish(worker, outcome, cell.device)
        finally:
            if worker.alive():
                worker.kill()

    def _count(self, cell: Cell, metrics: Sequence[Metric]) -> list[Measurement]:
        """The figures of other counters, each in a process of its own: one that dies takes only its own column
        along.
        """
        key = static_key(cell)
        if key not in self._counters:
            found = []
            for metric in metrics:
                found += complete(cell, [metric], self._run(cell, "counters", [metric]))
            self._counters[key] = found
        return self._counters[key]

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


def group_cells(cells: Sequence[Cell], metrics: Iterable[str]) -> list[list[Cell]]:
    """Timed cells that stand in one column of a table (device, threads, size, mode, batch), at most ``GROUP`` together
    and evenly so; every other cell by itself. In order of first appearance.
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


def _lacked_memory(job: _Job) -> bool:
    return job.failure is not None and (job.failure.status == "oom" or job.failure.cause == "probable_oom")


def _peak_bytes(cell: Cell, measurements: Iterable[Measurement]) -> float | None:
    """What a timed process of the cell needs, as its memory process found it; None if that is not known."""
    name = "training_peak_memory" if cell.mode == "train" else "inference_peak_memory"
    peak = next((m for m in measurements if m.metric == name and m.status == "ok" and m.samples), None)
    return None if peak is None else max(max(process) for process in peak.samples) + _PROCESS_BYTES


def metrics_by_process(cell: Cell, names: Iterable[str]) -> dict[str, list[Metric]]:
    """The metrics that apply to a cell, by the kind of process that takes them."""
    groups: dict[str, list[Metric]] = {}
    for name in names:
        metric = METRICS.get(name)
        # a cell with data is (trained and) tested; what is timed are the cells beside it
        wanted = metric.process in ("static", "training") if cell.tests else metric.process != "training"
        if cell.mode in metric.modes and wanted:
            groups.setdefault(metric.process, []).append(metric)
    return groups


def complete(cell: Cell, metrics: Sequence[Metric], outcome: Outcome) -> list[Measurement]:
    """The measurements of ``metrics`` in ``outcome``, with a spoken absence for each that its failure left out."""
    wanted = {name: unit for metric in metrics for name, unit in metric.yields_in(cell.mode).items()}
    known = {name for metric in metrics for name in (value.name for value in metric.yields)}
    found = [measurement for measurement in outcome.measurements if measurement.metric in known]
    if outcome.failure is not None:
        present = {measurement.metric for measurement in found}
        status, detail = outcome.failure.status, outcome.failure.detail
        found += [
            Measurement.absent(name, unit, status, detail) for name, unit in wanted.items() if name not in present
        ]
    return found


def not_tried(failure: Failure, before: str = "the process before it") -> Outcome:
    """What comes of metrics that nobody takes any more, as ``before`` failed."""
    detail = f"not tried, because {before} ended so: {failure.detail}"
    return Outcome(failure=Failure(failure.status, failure.cause, detail))


def _merge(outcomes: Sequence[Outcome], first_stage: int | None = None, group: str = "") -> Outcome:
    """Several processes' outcomes as one: the samples of each process side by side, the failure that ended them."""
    merged: dict[str, list[Measurement]] = {}
    last = outcomes[-1]
    for outcome in outcomes:
        for measurement in outcome.measurements:
            merged.setdefault(measurement.metric, []).append(measurement)
    found = [_side_by_side(parts, first_stage, group) for parts in merged.values()]
    if last.failure is not None:
        # samples of the processes before a failure are kept, under its status: they are data, but not this cell's
        # result
        status, detail = last.failure.status, last.failure.detail
        unfinished = {m.metric for m in last.measurements}
        found = [
            m if m.metric in unfinished or len(outcomes) == 1 else replace(m, status=status, detail=detail)
            for m in found
        ]
    seconds = sum(outcome.seconds for outcome in outcomes)
    return replace(last, measurements=found, seconds=seconds)


def _side_by_side(parts: Sequence[Measurement], first_stage: int | None, group: str) -> Measurement:
    """One measurement of several processes; the reference's samples only if each process has them. Where only some had
    the reference beside them, the method says both.
    """
    paired = all(part.reference_samples for part in parts)
    methods = dict.fromkeys(part.method for part in parts if part.method)
    return replace(
        next((part for part in parts if part.status != "ok"), parts[0]),  # what one spoils is spoilt
        method="; in other processes: ".join(methods),
        samples=tuple(process for part in parts for process in part.samples),
        turns=tuple(process for part in parts for process in part.turns),
        reference_samples=tuple(process for part in parts for process in part.reference_samples) if paired else (),
        first_stage=first_stage,
        reference=parts[0].reference if paired else "",
        group=group if paired else "",
    )

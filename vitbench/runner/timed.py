"""Time cells that are compared with each other: fresh processes of each, in turns with each other and the reference."""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from statistics import median

from vitbench.core.records import Cell, Measurement, NoiseCheck
from vitbench.core.registry import Metric
from vitbench.core.stats.comparisons import compare_relative
from vitbench.core.stats.estimates import quiet_times
from vitbench.core.stats.relative import MIN_FIRST_STAGE, QuietTime, processes_for
from vitbench.devices import Failure, split_name
from vitbench.devices.host.load import Load, LoadWatch, load_measurements
from vitbench.devices.host.memory import available_memory
from vitbench.executors.conversation import Outcome
from vitbench.executors.launcher import Launcher
from vitbench.executors.protocol import Measure
from vitbench.metrics import Budget
from vitbench.runner.outcomes import complete, merge
from vitbench.runner.plan import Plan, weights_of
from vitbench.runner.progress import Progress
from vitbench.runner.quiet import Judge, Patience
from vitbench.runner.turns import Control, Participant, Reference, take_turns
from vitbench.suites.schema import Measure as Sampling

#: The reference runs against a control (itself) in the first group, in the last, and after so many seconds.
NOISE_EVERY_S = 60.0
#: Bytes that a process holds beyond what its peak memory counts (its own copies of libraries' pages, a CUDA context).
_PROCESS_BYTES = 600e6
#: How many times ``max_seconds`` a cell may take to meet quiet turns.
_MORE_FOR_QUIET_TURNS = 1.5
#: The share of the free memory that cells alive at once may take.
_SHARE_OF_MEMORY = 0.5


@dataclass
class Job:
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
    shortfall: str = ""  # by how much the number of processes falls short of the precision

    @property
    def failure(self) -> Failure | None:
        """The failure that decides the record's status."""
        return self.ending.failure if self.ending else None

    @property
    def is_timed(self) -> bool:
        """Whether timed processes are still to come."""
        return "time" in self.groups and self.failure is None

    @property
    def lacked_memory(self) -> bool:
        """Whether it failed for lack of memory, or probably so."""
        return self.failure is not None and (self.failure.status == "oom" or self.failure.cause == "probable_oom")

    def take(self, outcome: Outcome) -> None:
        """Note how an essential process ended."""
        if outcome.note and outcome.note not in self.notes:
            self.notes.append(outcome.note)
        if outcome.failure is not None:
            self.ending = outcome


class Timer:
    """Takes the times of a plan's cells; ``noise`` holds what the reference differed from itself meanwhile."""

    def __init__(self, plan: Plan, launcher: Launcher, progress: Progress) -> None:
        self.plan = plan
        self.launcher = launcher
        self.progress = progress
        self.noise: list[NoiseCheck] = []
        self._patience = Patience(plan.suite.measure.patience_s, progress.waiting, progress.warn)
        self._noise_at: dict[tuple[str, int], float] = {}
        self._references: dict[tuple[str, int], Reference] = {}
        self._judges: dict[tuple[str, int], Judge] = {}

    def close(self) -> None:
        """End the references."""
        for reference in self._references.values():
            reference.close()

    def alive_at_once(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """Chunks of jobs that fit into memory together; a job of unknown need stays alone."""
        chunk: list[Job] = []
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

    def time(self, jobs: Sequence[Job], *, is_last: bool) -> None:
        """Time cells that are alive at once: as many fresh processes of each as the suite asks for, and more where
        their spread asks for it.
        """
        measure = self.plan.suite.measure
        cell = jobs[0].cell
        place = (cell.device, cell.threads)
        if place not in self._references:
            self._references[place] = Reference(self.launcher, *place, cores=measure.cores)
            self._judges[place] = self._judge(cell)
        reference, judge = self._references[place], self._judges[place]
        problem = ""
        begin = time.perf_counter()
        for job in jobs:
            job.wanted = measure.processes
        rounds = 0
        while active := [job for job in jobs if job.failure is None and len(job.timed) < job.wanted]:
            rounds += 1
            self.progress.doing(f"time {rounds}/{max(job.wanted for job in active)}")
            due = is_last or time.monotonic() - self._noise_at.get(place, float("-inf")) > NOISE_EVERY_S
            self._round(active, reference, judge, with_control=due, seed=rounds)
            problem = problem or reference.problem
            for job in active:
                if job.lacked_memory and not job.retried and (len(active) > 1 or cell.device != "cpu"):
                    self._retry_alone(job)
            for job in active:
                end_where_unaffordable(job, measure)
            self.decide_processes([job for job in active if not job.failure and len(job.timed) == measure.processes])
            self.progress.round_done(
                {job.cell.id: 0 if job.failure else job.wanted - len(job.timed) for job in active},
                {job.cell.id: seconds for job in active if (seconds := call_seconds(job.timed))},
            )
        shared = (time.perf_counter() - begin - sum(job.timed_s for job in jobs)) / len(jobs)
        # not the time of day: a clock that is put back would give two groups one name, and so would two machines
        group = secrets.token_hex(8) if len(jobs) > 1 else ""
        for job in jobs:
            _conclude(job, group, problem)
            job.seconds += job.timed_s + max(shared, 0.0)

    def _retry_alone(self, job: Job) -> None:
        """Time once more, alone, a cell that found too little memory beside others: what it lacks then is its own."""
        job.retried, job.ending, job.timed, job.loads, job.first_stage = True, None, [], [], None
        unused, judge = Reference(self.launcher, job.cell.device, job.cell.threads), self._judge(job.cell)
        for number in range(self.plan.suite.measure.processes):
            self._round([job], unused, judge, with_control=False, seed=number, alone=True)
            if job.failure is not None:
                return
        job.wanted = len(job.timed)
        job.notes.append("timed by itself, without the reference: beside others its memory did not suffice")

    def _judge(self, cell: Cell) -> Judge:
        on_host = split_name(cell.device)[0] == "cpu"
        return Judge(cell.threads, self.plan.suite.measure.cores, on_host=on_host)

    def _round(
        self,
        jobs: Sequence[Job],
        reference: Reference,
        judge: Judge,
        *,
        with_control: bool,
        seed: int,
        alone: bool = False,
    ) -> None:
        """One fresh process of each job, in turns with the reference unless ``alone``."""
        started_at = datetime.now().astimezone().isoformat(timespec="milliseconds")
        participants: list[Participant] = []
        control: Control | None = None
        try:
            for job in jobs:
                participants.append(self._start(job))
            if alone:
                reference.close()
            else:
                reference.renew()
            control = reference.start_control() if with_control and not reference.problem else None
            watch = LoadWatch(reference.device)
            beside = None if alone else reference
            order = random.Random(seed)
            take_turns(
                participants,
                beside,
                judge,
                patience=self._patience,
                control=control,
                order=order,
                between=self.progress.between_turns,
            )
            load = watch.stop()
            for job, participant in zip(jobs, participants, strict=True):
                job.timed.append(participant.finish())
                job.loads.append(load)
                job.timed_s += participant.spent_s
                if job.timed[-1].failure is not None:
                    job.take(job.timed[-1])
        finally:
            reference.close()  # on a GPU even an idle process holds memory
            for one in (*participants, *([control] if control else [])):
                if one.worker.alive():
                    one.worker.kill()
        if control is not None and control.reference_samples:
            self._noise_at[reference.device, reference.threads] = time.monotonic()
            check = NoiseCheck(
                device=reference.device,
                threads=reference.threads,
                started_at=started_at,
                samples=tuple(control.samples),
                reference_samples=tuple(control.reference_samples),
            )
            self.noise.append(check)

    def _start(self, job: Job) -> Participant:
        suite = self.plan.suite
        task = Measure(
            process="time",
            metrics=tuple(metric.name for metric in job.groups["time"]),
            cell=job.cell,
            budget=Budget(**suite.measure.model_dump(include={"seconds", "min_samples", "max_samples"})),
            cores=suite.measure.cores,
            weights=weights_of(suite),
            turns=True,
        )
        return Participant(
            self.launcher.start(),
            task,
            timeout_s=suite.timeout_s,
            device=job.cell.device,
            # where one process takes all of the time, too few follow for quiet turns to be known
            replays_s=suite.measure.max_seconds,
        )

    def decide_processes(self, jobs: Sequence[Job]) -> None:
        """After the first stage of cells that took turns: how many processes each gets in all (Stein's procedure).

        A cell whose rank among the others is clear gets no more (``is_rank_clear``). That depends on the values, which
        Stein's number must not. But values differ so clearly by chance only where it hardly ever happens: simulated for
        two cells (a test), intervals after either decision together cover 94.8 to 95.2 %, whatever their true
        difference is.
        """
        measure = self.plan.suite.measure
        if not measure.precision or measure.processes < MIN_FIRST_STAGE:
            return
        known = [(job, quiet) for job in jobs if not job.retried and (quiet := _in_quiet_turns(job)) is not None]
        known.sort(key=lambda pair: pair[1].log_value)
        for number, (job, quiet) in enumerate(known):
            neighbours = [other for _, other in (*known[max(number - 1, 0) : number], *known[number + 1 : number + 2])]
            self._decide(job, quiet, is_clear=is_rank_clear(quiet, neighbours, measure.precision))

    def _decide(self, job: Job, quiet: QuietTime, *, is_clear: bool) -> None:
        measure = self.plan.suite.measure
        job.first_stage = measure.processes
        affordable = int(measure.max_seconds / max(job.timed_s / len(job.timed), 1e-3))
        most = max(min(measure.max_processes, affordable), measure.processes)
        needed = processes_for(quiet, measure.precision)
        job.wanted = measure.processes if is_clear else min(needed, most)
        if needed > job.wanted:
            limit = "max_processes" if most == max(measure.max_processes, measure.processes) else "max_seconds"
            why = "its rank was clear after" if is_clear else f"{limit} ended it at"
            job.shortfall = f"+-{100 * measure.precision:g} % would take {needed} processes; {why} {job.wanted}"

    def _free_bytes(self, device: str) -> float:
        if split_name(device)[0] == "cpu":
            return float(available_memory())
        facts = self.plan.environment.get("devices", {}).get(device, {})
        return min(float(facts.get("memory_bytes") or 0), float(available_memory()))


def end_where_unaffordable(job: Job, measure: Sampling) -> None:
    """No more processes of the first stage if the next one would not fit into the cell's ``max_seconds``, or half as
    many more where too few of them had quiet turns.
    """
    count = len(job.timed)
    if not measure.fewest_processes <= count < measure.processes:
        return
    quiet = _in_quiet_turns(job)
    most = measure.max_seconds * (_MORE_FOR_QUIET_TURNS if quiet is not None and not quiet.quiet else 1)
    if job.timed_s * (1 + 1 / count) > most:
        job.wanted = count
        job.shortfall = f"max_seconds ended it after {count} of {measure.processes} processes"


def call_seconds(timed: Sequence[Outcome]) -> float | None:
    """About the seconds of a call in the last process of a cell; None if it has no samples."""
    times = [m for outcome in timed[-1:] for m in outcome.measurements if m.metric in ("latency", "training_step")]
    return median(times[0].samples[0]) if times and times[0].samples else None


def is_rank_clear(one: QuietTime, neighbours: Sequence[QuietTime], precision: float) -> bool:
    """Whether a cell differs from its ``neighbours``, the next faster and the next slower one that it took turns with,
    by more than the ``precision`` and twice the half width of the interval of their ratio. Not without neighbours, or
    quiet turns.
    """
    for other in neighbours:
        ratio = compare_relative(one, other, paired=True)
        half = math.log(ratio.high / ratio.low) / 2
        if abs(math.log(ratio.value)) <= 2 * half + math.log1p(precision):
            return False
    return bool(neighbours) and one.quiet


def _in_quiet_turns(job: Job) -> QuietTime | None:
    """The relative time of a cell's processes so far."""
    paired = next((m for m in merge(job.timed).measurements if m.reference_samples and m.samples), None)
    quiet = quiet_times(paired) if paired else None
    return quiet.relative if quiet else None


def peak_bytes(cell: Cell, measurements: Iterable[Measurement]) -> float | None:
    """What a timed process of the cell needs, according to its memory process; None if that is not known."""
    name = "training_peak_memory" if cell.mode == "train" else "inference_peak_memory"
    peak = next((m for m in measurements if m.metric == name and m.status == "ok" and m.samples), None)
    return None if peak is None else max(max(process) for process in peak.samples) + _PROCESS_BYTES


def _conclude(job: Job, group: str, problem: str) -> None:
    """The times of a job's processes as measurements. ``problem``: why the reference could not always run."""
    outcome = merge(job.timed, job.first_stage, group=group)
    if job.shortfall:
        outcome.measurements = [
            replace(m, detail=job.shortfall) if m.reference_samples and m.unit == "s" and not m.detail else m
            for m in outcome.measurements
        ]
    if problem:
        why = f"the reference could not always run ({problem})"
        outcome.note = f"{outcome.note}; {why}" if outcome.note else why
    job.measurements += complete(job.cell, job.groups["time"], outcome)
    job.measurements += load_measurements(job.loads)
    job.take(outcome)

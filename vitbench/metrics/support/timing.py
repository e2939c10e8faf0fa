"""The one timer: how long a call takes, every sample kept, in turns with the reference where there is one."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitbench.core.records import Measurement
from vitbench.devices import Device
from vitbench.metrics.support.subject import Budget, Subject, Turns

#: Two runs of identical code on one machine are shown to be within so much of each other in nine of ten cases, and in
#: three of four where something else runs beside them (225 pairs of runs of four models, no false alarm among them). At
#: 20 % it is three of four and half of them, at 10 % none: runs of the same code differ by 11 % to either side.
RELATIVE_TOLERANCE = 0.25

#: ``samples`` and ``cpu_seconds`` of a step, or None where there is no reference.
ReferenceTurn = Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a process sampled, in seconds: each call, in order.

    ``turns`` counts the samples of each turn. One value a turn: ``cpu`` (CPU time of a call, all threads),
    ``reference`` and ``reference_cpu`` (the same of a step of the reference, between its last turn before and its first
    one after); the latter two are empty where there is no reference, as is ``reference_name``.
    """

    samples: tuple[float, ...]
    turns: tuple[int, ...]
    cpu: tuple[float, ...]
    reference: tuple[float, ...] = ()
    reference_cpu: tuple[float, ...] = ()
    reference_name: str = ""

    def measurements(self, metric: str, method: str) -> Iterator[Measurement]:
        """The time itself, and ``<metric>_cpu_time``."""
        yield Measurement(
            metric=metric,
            unit="s",
            samples=(self.samples,),
            turns=(self.turns,),
            reference_samples=(self.reference,) if self.reference else (),
            reference=self.reference_name,
            method=method,
        )
        yield Measurement(
            metric=f"{metric}_cpu_time",
            unit="s",
            samples=(self.cpu,),
            turns=((1,) * len(self.cpu),),
            reference_samples=(self.reference_cpu,) if self.reference_cpu else (),
            reference=self.reference_name,
            method="time.process_time (all threads of the process) over the calls of a turn, one value a turn",
        )


def sample_durations(call: Callable[[], object], device: Device, budget: Budget, turns: Turns | None = None) -> Timing:
    """Seconds of each call, the first one included; the device is waited for on both sides of each sample.

    Garbage is collected before, not during: a collection inside a sample would be charged to the model. Durations are
    kept to the nanosecond, which is finer than the clock. With ``turns`` a turn is waited for, used, and given up,
    until the budget is spent; waiting counts for nothing.
    """
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    samples: list[float] = []
    counts: list[int] = []
    cpu: list[float] = []
    before: list[ReferenceTurn] = []
    after: list[ReferenceTurn] = []
    spent = cpu_first = 0.0
    try:
        device.synchronize()
        done = False
        while not done:
            turn_s = math.inf
            if turns is not None:
                grant = turns.wait()
                turn_s = grant["seconds"]
                after += [grant["after_last"]] if before else []
                before.append(grant["before"])
            count = skipped = 0
            cpu_begin = time.process_time()
            begin = time.perf_counter()
            while True:
                start = time.perf_counter()
                call()
                device.synchronize()  # a GPU returns before its kernels have run
                end = time.perf_counter()
                samples.append(round(end - start, 9))
                count += 1
                if len(samples) == 1:
                    # the first call may compile: that is neither the budget's to pay nor any other call's CPU time
                    begin, skipped = end, 1
                    cpu_first, cpu_begin = time.process_time() - cpu_begin, time.process_time()
                done = len(samples) >= budget.max_samples or (
                    len(samples) >= budget.min_samples and spent + end - begin >= budget.seconds
                )
                if done or end - begin >= turn_s:
                    break
            cpu_spent = time.process_time() - cpu_begin
            cpu.append(round(cpu_spent / (count - skipped) if count > skipped else cpu_first, 9))
            counts.append(count)
            spent += end - begin
        if turns is not None:
            after.append(turns.wait(last=True)["after_last"])
    finally:
        if collecting:
            gc.enable()
    reference = _between(before, after, _steps_as_long_as(samples, counts))
    return Timing(
        samples=tuple(samples),
        turns=tuple(counts),
        cpu=tuple(cpu),
        reference=reference,
        reference_name=turns.reference_name if turns is not None and reference else "",
        reference_cpu=_between(before, after, lambda turn, number: float(turn["cpu_seconds"])),
    )


def forward_durations(subject: Subject) -> Timing:
    """The forward passes of this process's cell, timed once however many metrics are made of them."""
    timing: Timing | None = subject.timing
    if timing is None:
        subject.prepare()
        timing = subject.timing = sample_durations(subject.forward, subject.device, subject.budget, subject.turns)
        subject.run_once()  # numbers that are not finite would be the times of another computation
    return timing


def timing_method(subject: Subject, what: str, timing: Timing) -> str:
    """How the durations of ``timing`` were got, for their Measurement."""
    import torch

    device = subject.device
    wait = f"torch.{device.kind}.synchronize on both sides" if device.asynchronous else "synchronous device"
    batches = len(subject.batches)
    inputs = f"{batches} input batches in rotation" if batches > 1 else "always the same input batch (cache-hot)"
    text = f"time.perf_counter around {what}, {wait}, {inputs}, already on the device, torch {torch.__version__}"
    if subject.turns is None:
        return text
    # a cell that is timed by itself for want of memory takes turns, too, and finds no reference in them
    return f"{text}; {subject.turns.method if timing.reference else subject.turns.method_without_reference}"


def step_durations(step: Callable[[], Any], device: Device, seconds: float) -> dict[str, Any]:
    """One turn of the reference: the seconds of each step and the CPU seconds of one, for about ``seconds``."""
    timing = sample_durations(step, device, Budget(seconds=seconds, min_samples=4, max_samples=10**9))
    return {"samples": timing.samples, "cpu_seconds": timing.cpu[0]}


def block_median(steps: Sequence[float], size: int) -> float:
    """The median over blocks of ``size`` consecutive steps of their mean; the mean of all if they make no block.

    A scheduler that takes the processor away for some milliseconds leaves the median of calls of one millisecond as it
    is and lengthens each call of a hundred: blocks as long as the call are lengthened alike.
    """
    whole = len(steps) // size
    if whole == 0:
        return statistics.fmean(steps)
    return statistics.median(statistics.fmean(steps[i * size : (i + 1) * size]) for i in range(whole))


def _steps_as_long_as(samples: Sequence[float], counts: Sequence[int]) -> Callable[[Mapping[str, Any], int], float]:
    """Seconds of a step, from blocks of steps that last as long as a call of the cell's turn."""
    ends = list(itertools.accumulate(counts))
    calls = [statistics.median(samples[end - count : end]) for end, count in zip(ends, counts, strict=True)]

    def seconds(turn: Mapping[str, Any], number: int) -> float:
        steps = turn["samples"]
        return block_median(steps, max(round(calls[number] / max(statistics.median(steps), 1e-12)), 1))

    return seconds


def _between(
    before: Sequence[ReferenceTurn], after: Sequence[ReferenceTurn], value: Callable[[Mapping[str, Any], int], float]
) -> tuple[float, ...]:
    """The geometric mean of the reference's turns on both sides of each turn, or the one that there is; () if one turn
    has neither.
    """
    values = []
    for number, pair in enumerate(zip(before, after, strict=False)):
        known = [value(side, number) for side in pair if side is not None]
        if not known or min(known) <= 0:
            return ()
        values.append(round(math.prod(known) ** (1 / len(known)), 9))
    return tuple(values)

"""The one timer: the duration of every call, in turns with the reference where there is one."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vitbench.core.records import Measurement
from vitbench.core.registry import Yields
from vitbench.devices import Device
from vitbench.metrics.support.subject import Budget, Subject, Turns, without_garbage_collection

#: Two runs of identical code on one machine are shown to be within so much of each other in nine of ten cases, and in
#: three of four where something else runs beside them (225 pairs of runs of four models, no false alarm among them). At
#: 20 % it is three of four and half of them, at 10 % none: runs of the same code differ by 11 % to either side.
RELATIVE_TOLERANCE = 0.25

#: A duration among a metric's yields.
duration = partial(Yields, unit="s", kind="time", better="less", tolerance=RELATIVE_TOLERANCE)

#: ``samples`` and ``cpu_seconds`` of a step, or None where there is no reference.
ReferenceTurn = Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The seconds of each call of a process, in order.

    ``turns`` counts the samples of each turn. The others hold one value a turn: ``cpu`` is the CPU time of a call (all
    threads), ``reference`` and ``reference_cpu`` the wall and CPU time of a reference step, interpolated between its
    turns before and after. These two and ``reference_name`` are empty without a reference.
    """

    samples: tuple[float, ...]
    turns: tuple[int, ...]
    cpu: tuple[float, ...]
    reference: tuple[float, ...] = ()
    reference_cpu: tuple[float, ...] = ()
    reference_name: str = ""

    def measurements(self, metric: str, method: str) -> Iterator[Measurement]:
        """The time itself, and ``<metric>_cpu_time``."""
        cpu_method = "time.process_time (all threads of the process) over the calls of a turn, one value a turn"
        for name, samples, turns, reference, how in (
            (metric, self.samples, self.turns, self.reference, method),
            (f"{metric}_cpu_time", self.cpu, (1,) * len(self.cpu), self.reference_cpu, cpu_method),
        ):
            yield Measurement(
                metric=name,
                unit="s",
                samples=(samples,),
                turns=(turns,),
                reference_samples=(reference,) if reference else (),
                reference=self.reference_name,
                method=how,
            )


def sample_durations(call: Callable[[], object], device: Device, budget: Budget, turns: Turns | None = None) -> Timing:
    """Seconds of each call, including the first, with a device synchronisation on both sides of each sample.

    With ``turns``, each turn is waited for, used and given up until the budget is spent; waiting does not count.
    Durations are kept to the nanosecond, which is finer than the clock.
    """
    samples: list[float] = []
    counts: list[int] = []
    cpu: list[float] = []
    before: list[ReferenceTurn] = []
    after: list[ReferenceTurn] = []
    with without_garbage_collection():
        device.synchronize()
        spent, done = 0.0, False
        while not done:
            turn_s = math.inf
            if turns is not None:
                grant = turns.wait()
                turn_s = grant["seconds"]
                after += [grant["after_last"]] if before else []
                before.append(grant["before"])
            begun = len(samples)
            cpu_s, wall_s, done = _sample_turn(call, device, budget, samples, spent, turn_s)
            counts.append(len(samples) - begun)
            cpu.append(cpu_s)
            spent += wall_s
        if turns is not None:
            after.append(turns.wait(last=True)["after_last"])
    reference = _between(before, after, _steps_as_long_as(samples, counts))
    return Timing(
        samples=tuple(samples),
        turns=tuple(counts),
        cpu=tuple(cpu),
        reference=reference,
        reference_name=turns.reference_name if turns is not None and reference else "",
        reference_cpu=_between(before, after, lambda turn, number: float(turn["cpu_seconds"])),
    )


def _sample_turn(
    call: Callable[[], object], device: Device, budget: Budget, samples: list[float], spent: float, turn_s: float
) -> tuple[float, float, bool]:
    """Call until ``turn_s`` or the budget, of which ``spent`` seconds are used, is over; appends to ``samples``.

    Returns the CPU seconds of a call, the wall seconds charged to the budget, and whether it is spent.
    """
    count = skipped = 0
    cpu_first = 0.0
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
            # the first call may compile: neither the budget nor another call's CPU time pays for that
            begin, skipped = end, 1
            cpu_first, cpu_begin = time.process_time() - cpu_begin, time.process_time()
        done = len(samples) >= budget.max_samples or (
            len(samples) >= budget.min_samples and spent + end - begin >= budget.seconds
        )
        if done or end - begin >= turn_s:
            break
    cpu_spent = time.process_time() - cpu_begin
    cpu = cpu_spent / (count - skipped) if count > skipped else cpu_first
    return round(cpu, 9), end - begin, done


def forward_durations(subject: Subject) -> Timing:
    """The forward passes of this process's cell, timed once for all metrics that use them."""
    timing: Timing | None = subject.timing
    if timing is None:
        subject.prepare()
        timing = subject.timing = sample_durations(subject.forward, subject.device, subject.budget, subject.turns)
        subject.run_once()  # a computation with NaNs or infinities may take another time
    return timing


def timing_method(subject: Subject, what: str, timing: Timing) -> str:
    """The method of the durations in ``timing``, for their Measurement."""
    import torch

    device = subject.device
    wait = f"torch.{device.kind}.synchronize on both sides" if device.asynchronous else "synchronous device"
    batches = len(subject.batches)
    inputs = f"{batches} input batches in rotation" if batches > 1 else "always the same input batch (cache-hot)"
    text = f"time.perf_counter around {what}, {wait}, {inputs}, already on the device, torch {torch.__version__}"
    if subject.turns is None:
        return text
    # a cell that is timed alone, as memory is short, takes turns without a reference
    return f"{text}; {subject.turns.method if timing.reference else subject.turns.method_without_reference}"


def step_durations(step: Callable[[], Any], device: Device, seconds: float) -> dict[str, Any]:
    """One turn of the reference: the seconds of each step and the CPU seconds of one, for about ``seconds``."""
    timing = sample_durations(step, device, Budget(seconds=seconds, min_samples=4, max_samples=10**9))
    return {"samples": timing.samples, "cpu_seconds": timing.cpu[0]}


def block_median(steps: Sequence[float], size: int) -> float:
    """The median of the means of blocks of ``size`` consecutive steps; the mean of all if there are fewer.

    A scheduler that takes the processor away for some milliseconds hardly moves the median of calls of one millisecond,
    but lengthens every call of a hundred. Blocks as long as the call are lengthened like it.
    """
    whole = len(steps) // size
    if whole == 0:
        return statistics.fmean(steps)
    return statistics.median(statistics.fmean(steps[i * size : (i + 1) * size]) for i in range(whole))


def _steps_as_long_as(samples: Sequence[float], counts: Sequence[int]) -> Callable[[Mapping[str, Any], int], float]:
    """A function for the seconds of a step, from blocks of steps that last as long as a call of the cell's turn."""
    ends = list(itertools.accumulate(counts))
    calls = [statistics.median(samples[end - count : end]) for end, count in zip(ends, counts, strict=True)]

    def seconds(turn: Mapping[str, Any], number: int) -> float:
        steps = turn["samples"]
        return block_median(steps, max(round(calls[number] / max(statistics.median(steps), 1e-12)), 1))

    return seconds


def _between(
    before: Sequence[ReferenceTurn], after: Sequence[ReferenceTurn], value: Callable[[Mapping[str, Any], int], float]
) -> tuple[float, ...]:
    """The geometric mean of the reference's turns around each turn, or the only one; () if a turn has neither."""
    values = []
    for number, pair in enumerate(zip(before, after, strict=False)):
        known = [value(side, number) for side in pair if side is not None]
        if not known or min(known) <= 0:
            return ()
        values.append(round(math.prod(known) ** (1 / len(known)), 9))
    return tuple(values)

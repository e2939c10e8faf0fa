"""The one timer: the duration of every call, in turns with the reference where there is one."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

#: The first call of a process, which may choose kernels, make buffers or compile: a value of its own.
FIRST_CALL = Yields("first_call", "s", "shown", "less")

#: Steady samples that a process needs at least, or its measurement says so: a median of fewer is uncertain.
MIN_STEADY = 10
_TOO_FEW = f"too few: less than {MIN_STEADY} steady samples in a process"
#: A turn is not ended by the budget before so many calls: of a turn of more than two, the first is not steady.
_LEAST_IN_A_TURN = 3
#: A turn that takes so many times as long as its calls should is ended: another program has a core, and threads that
#: wait for each other can take tens of times as long.
_MOST_OF_A_TURN = 3
#: A process ends when it has used so many times its budget, whatever the turns that were taken again: on a shared host
#: slow phases last for minutes.
_MOST_BUDGETS = 1.25
#: It also ends when it has used so many times the seconds that its fewest samples take at its fastest: beside another
#: program calls can take tens of times as long, and turns end early.
_MOST_OF_FASTEST = 2.0

#: ``samples`` and ``cpu_seconds`` of a step, or None where there is no reference.
ReferenceTurn = Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The seconds of each call of a process, in order, without its first one (``first_s``).

    ``turns`` counts the samples of each turn. The others hold one value a turn: ``cpu`` is the CPU time of a call (all
    threads), ``reference`` and ``reference_cpu`` the wall and CPU time of a reference step, interpolated between its
    turns before and after, ``other_load`` the cores that other programs used. These are empty where they are unknown,
    as is ``reference_name`` without a reference.
    """

    first_s: float
    samples: tuple[float, ...]
    turns: tuple[int, ...]
    cpu: tuple[float, ...]
    reference: tuple[float, ...] = ()
    reference_cpu: tuple[float, ...] = ()
    reference_name: str = ""
    other_load: tuple[float, ...] = ()

    def measurements(self, metric: str, method: str) -> Iterator[Measurement]:
        """The time itself, ``<metric>_cpu_time`` and ``first_call``."""
        yield self._in_turns(metric, "s", self.samples, method)
        cpu_method = "time.process_time (all threads of the process) over the calls of a turn, one value a turn"
        cpu = replace(self, turns=(1,) * len(self.cpu), reference=self.reference_cpu)
        yield replace(cpu._in_turns(f"{metric}_cpu_time", "s", self.cpu, cpu_method), detail="")
        yield Measurement(
            metric=FIRST_CALL.name, unit="s", samples=((self.first_s,),), method=f"the first call of: {method}"
        )

    def rates(self, metric: str, images: int, method: str) -> Measurement:
        """Images a second, of ``images`` a call."""
        return self._in_turns(metric, "image/s", [round(images / seconds, 6) for seconds in self.samples], method)

    def _in_turns(self, metric: str, unit: str, samples: Sequence[float], method: str) -> Measurement:
        steady = sum(count - 1 if count > 2 else count for count in self.turns)
        return Measurement(
            metric=metric,
            unit=unit,
            samples=(tuple(samples),),
            turns=(self.turns,),
            reference_samples=(self.reference,) if self.reference else (),
            reference=self.reference_name,
            other_load=(self.other_load,) if self.other_load else (),
            method=method,
            detail=_TOO_FEW if steady < MIN_STEADY else "",
        )


def sample_durations(call: Callable[[], object], device: Device, budget: Budget, turns: Turns | None = None) -> Timing:
    """Seconds of each call, with a device synchronisation on both sides of each sample; the first call is kept apart.

    With ``turns``, each turn is waited for, used and given up until the budget is spent; waiting does not count, nor do
    turns that are taken again, up to 1.25 times the budget in all. Durations are kept to the nanosecond, which is finer
    than the clock.
    """
    samples: list[float] = []
    counts: list[int] = []
    cpu: list[float] = []
    loads: list[float | None] = []
    before: list[ReferenceTurn] = []
    after: list[ReferenceTurn] = []
    spent = _Spent(budget)
    with without_garbage_collection():
        device.synchronize()
        alone = {"seconds": math.inf, "calls": 1, "before": None}
        turn: Mapping[str, Any] = alone if turns is None else turns.wait()
        begin = time.perf_counter()
        first_s = round(_end_of(call, device) - begin, 9)  # neither the budget nor the turn pays for it
        done = False
        while not done:
            taken, cpu_s, wall_s, done = _sample_turn(call, device, turn["seconds"], turn["calls"], spent)
            before.append(turn["before"])
            samples += taken
            counts.append(len(taken))
            cpu.append(cpu_s)
            replay = False
            if turns is not None:
                turn = turns.wait(last=done, samples=taken)
                after.append(turn["after_last"])
                loads.append(turn["other_load"])
                replay = turn["replay"]
            done = spent.add(len(taken), wall_s, replay=replay)
    calls = _medians_of_turns(samples, counts)
    steps = [_between(pair, _step_as_long_as(call_s)) for *pair, call_s in zip(before, after, calls, strict=False)]
    steps_cpu = [_between(pair, lambda side: float(side["cpu_seconds"])) for pair in zip(before, after, strict=False)]
    reference = _all_known(steps)
    return Timing(
        first_s=first_s,
        samples=tuple(samples),
        turns=tuple(counts),
        cpu=tuple(cpu),
        reference=reference,
        reference_name=turns.reference_name if turns is not None and reference else "",
        reference_cpu=_all_known(steps_cpu),
        other_load=_all_known(loads),
    )


class _Spent:
    """What a process has used of its budget: in turns that it is charged for, and in all its turns."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.fastest_call = math.inf  # seconds: the median call of its fastest turn
        self._charged = self._all = (0, 0, 0.0)  # samples, steady ones of them, seconds

    def is_enough(self, samples: int, seconds: float) -> bool:
        """Whether the budget is spent if a turn of so many samples and seconds is charged to it."""
        budget = self.budget
        fastest_s = max(budget.seconds, budget.min_samples * self.fastest_call)
        if self._all[2] + seconds >= _MOST_OF_FASTEST * fastest_s:
            return True
        for used, share in ((self._charged, 1), (self._all, _MOST_BUDGETS)):
            count, steady, spent = self._plus(used, samples, seconds)
            if count >= share * budget.max_samples:
                return True
            has_steady = samples >= _LEAST_IN_A_TURN or samples == 0
            if has_steady and steady >= share * budget.min_samples and spent >= share * budget.seconds:
                return True
        return False

    def add(self, samples: int, seconds: float, *, replay: bool) -> bool:
        """Note a turn, which is charged unless it is taken again; returns whether the budget is spent."""
        self._all = self._plus(self._all, samples, seconds)
        if not replay:
            self._charged = self._plus(self._charged, samples, seconds)
        return self.is_enough(0, 0.0)

    @staticmethod
    def _plus(used: tuple[int, int, float], samples: int, seconds: float) -> tuple[int, int, float]:
        return used[0] + samples, used[1] + max(samples - 1, 0), used[2] + seconds


def _end_of(call: Callable[[], object], device: Device) -> float:
    """Make one call; returns when it ended."""
    call()
    device.synchronize()  # a GPU returns before its kernels have run
    return time.perf_counter()


def _sample_turn(
    call: Callable[[], object], device: Device, least_s: float, least_calls: int, spent: _Spent
) -> tuple[list[float], float, float, bool]:
    """Call for ``least_s`` seconds and ``least_calls`` times, or until the budget is spent or it takes far too long.

    Returns the samples, the CPU seconds of a call, the wall seconds of the turn, and whether the budget is spent.
    """
    samples: list[float] = []
    most_s = max(least_s, least_calls * spent.fastest_call) * _MOST_OF_A_TURN
    cpu_begin = time.process_time()
    begin = time.perf_counter()
    while True:
        start = time.perf_counter()
        end = _end_of(call, device)
        samples.append(round(end - start, 9))
        done = spent.is_enough(len(samples), end - begin)
        if done or (end - begin >= least_s and len(samples) >= least_calls) or end - begin > most_s:
            break
    spent.fastest_call = min(statistics.median(samples), spent.fastest_call)
    return samples, round((time.process_time() - cpu_begin) / len(samples), 9), end - begin, done


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


def reference_seconds(sides: Iterable[Sequence[float]], call_s: float) -> float | None:
    """Seconds of a reference step beside a turn whose calls take ``call_s``, from its steps on the ``sides`` of it."""
    return _between([{"samples": steps} for steps in sides], _step_as_long_as(call_s))


def _step_as_long_as(call_s: float) -> Callable[[Mapping[str, Any]], float]:
    """A function for the seconds of a step, from blocks of steps that last as long as a call."""

    def seconds(turn: Mapping[str, Any]) -> float:
        steps = turn["samples"]
        return block_median(steps, max(round(call_s / max(statistics.median(steps), 1e-12)), 1))

    return seconds


def _medians_of_turns(samples: Sequence[float], counts: Sequence[int]) -> list[float]:
    ends = itertools.accumulate(counts)
    return [statistics.median(samples[end - count : end]) for end, count in zip(ends, counts, strict=True)]


def _between(sides: Iterable[ReferenceTurn], value: Callable[[Mapping[str, Any]], float]) -> float | None:
    """The geometric mean of the reference's turns around a turn, or the only one; None if there is neither."""
    known = [value(side) for side in sides if side is not None]
    if not known or min(known) <= 0:
        return None
    return round(math.prod(known) ** (1 / len(known)), 9)


def _all_known(values: Sequence[float | None]) -> tuple[float, ...]:
    """The values, or none of them if one is unknown."""
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else ()

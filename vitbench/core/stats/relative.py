"""Times over the turns in which the machine was quiet: relative to the reference, and in seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitbench.core.stats.intervals import (
    BETWEEN_PROCESSES,
    MIN_PROCESSES,
    Estimate,
    median,
    steady_in_turns,
    t_of_processes,
)

#: A turn is quiet if the reference took at most ``QUIET`` times, and the cell at most ``QUIET_CELL`` times, what it
#: took in the share ``FASTEST`` of fastest turns. Processes differ by a few percent, so the cell may vary more.
QUIET = 1.1
QUIET_CELL = 1.3
FASTEST = 0.02
#: The cores that other programs may use in a quiet turn, where enough processes have such turns.
QUIET_LOAD = 0.25

#: With fewer processes in the first stage their spread is too uncertain to decide on the number of further ones.
MIN_FIRST_STAGE = 5


#: The logarithms of a cell's time and the reference's in one turn, the number of samples, and the other programs' load.
_Turn = tuple[float, float, int, float]
#: A value, the influence of each process on it, and the effective number of processes.
_Centre = tuple[float, list[float], float]


def relative_samples(
    samples_by_process: Sequence[Sequence[float]],
    turns: Sequence[Sequence[int]],
    reference: Sequence[Sequence[float]],
) -> list[list[float]]:
    """Each sample divided by the reference's in the same turn, of a Measurement's samples, turns, reference_samples.

    Raises ValueError if they do not fit each other, or a reference sample is not positive.
    """
    relative = []
    for samples, counts, times in zip(samples_by_process, turns, reference, strict=True):
        if sum(counts) != len(samples):
            raise ValueError(f"turns of {sum(counts)} samples in all, but {len(samples)} samples")
        if min(times, default=1.0) <= 0:
            raise ValueError("a reference sample is not positive")
        each = [time for count, time in zip(counts, times, strict=True) for _ in range(count)]
        relative.append([sample / time for sample, time in zip(samples, each, strict=True)])
    return relative


@dataclass(frozen=True)
class QuietTime:
    """A cell's time in quiet turns, in seconds or relative to the reference's, and what its error and comparisons need.

    ``log_value`` is the logarithm of the value. ``influences`` holds how far each process moves it (0 for a process
    without a quiet turn; where cell and reference were quiet at different times, those of the reference follow).
    ``processes`` is the effective number of processes (Kish 1965, "Survey Sampling", 11.7): less than their number if
    some have more quiet turns than others. ``quiet`` is False if all turns count, because too few processes had quiet
    ones.
    """

    log_value: float
    influences: tuple[float, ...]
    processes: float
    n_processes: int
    all_processes: int
    n_samples: int
    quiet: bool = True

    @property
    def variance(self) -> float:
        """Of ``log_value``."""
        return math.fsum(x * x for x in self.influences) * self.processes / (self.processes - 1)


@dataclass(frozen=True)
class QuietTimes:
    """The same quiet turns read in two ways. ``reference`` holds the seconds of a reference step in each process's
    quiet turns: what they differ by is the host's. ``slower``: by which factor the machine was slower in the turns of
    ``seconds`` than in the run's fastest ones, where hardly any was as fast as these; otherwise 1.
    """

    relative: QuietTime
    seconds: QuietTime
    reference: tuple[float, ...]
    slower: float = 1.0


def in_quiet_turns(
    samples_by_process: Sequence[Sequence[float]],
    turns: Sequence[Sequence[int]],
    reference: Sequence[Sequence[float]],
    other_load: Sequence[Sequence[float]] = (),
    fastest_reference: float | None = None,
) -> QuietTimes | None:
    """The time over the quiet turns of a Measurement's samples, turns, reference_samples and other_load; None with
    fewer than ``MIN_PROCESSES`` processes that have samples.

    A shared or throttled machine has slow seconds, which slow different programs to different degrees: seconds move by
    a factor, and ratios by tens of percent. So only quiet turns count (``QUIET``, ``QUIET_CELL``, ``QUIET_LOAD``).
    Where fewer than ``MIN_PROCESSES`` processes have such turns, the load of other programs is no condition; where too
    few have even these, the quiet turns of the cell are compared with those of the reference at other times, and at
    last all turns count. Warm-up and the first call of a turn are cut first; a turn's value is the median of its
    samples.

    A machine can be slow for all turns of a cell. Ratios hold then. Seconds are those of the turns in which the
    reference took at most ``QUIET`` times the ``fastest_reference`` (s) of the whole run, if enough processes have such
    turns; otherwise ``slower`` says so.

    The value is the interquartile mean of the turns' logarithms (a turn that is disturbed after all is in a tail). The
    process is the unit of its error, because turns of one process are alike: each process's share of the turns times
    the distance of its median.

    Raises ValueError as ``relative_samples`` does, or if a sample is not positive.
    """
    found = _turns_of(samples_by_process, turns, reference, other_load)
    if _count(found) < MIN_PROCESSES:
        return None
    all_turns = [turn for process in found for turn in process]
    limits = [fastest_turns([turn[which] for turn in all_turns]) for which in (0, 1)]

    def quiet(cell: float, other: float, load: float = math.inf) -> list[list[_Turn]]:
        slowest = limits[0] + math.log(cell), limits[1] + math.log(other)
        return [
            [turn for turn in process if turn[0] <= slowest[0] and turn[1] <= slowest[1] and turn[3] <= load]
            for process in found
        ]

    candidates = quiet(QUIET_CELL, QUIET, QUIET_LOAD), quiet(QUIET_CELL, QUIET)
    used = next((some for some in candidates if _count(some) >= MIN_PROCESSES), None)
    of_cell, of_reference = quiet(QUIET, math.inf), quiet(math.inf, QUIET)
    apart = used is None and min(_count(of_cell), _count(of_reference)) >= MIN_PROCESSES
    is_quiet = apart or used is not None
    if used is None:
        used = of_cell if apart else found

    def time(centre: _Centre, turns: Sequence[Sequence[_Turn]]) -> QuietTime:
        value, influences, processes = centre
        counts = _count(turns), _count(found), sum(turn[2] for process in turns for turn in process)
        return QuietTime(value, tuple(influences), processes, *counts, quiet=is_quiet)

    if apart:
        seconds = _centre([[turn[0] for turn in process] for process in used])
        other, other_influences, other_processes = _centre([[turn[1] for turn in process] for process in of_reference])
        # of other turns: nothing cancels
        influences = [*seconds[1], *(-one for one in other_influences)]
        relative = seconds[0] - other, influences, min(seconds[2], other_processes)
        return QuietTimes(
            time(relative, used),
            time(seconds, used),
            _steps(of_reference),
            _slower(of_reference, fastest_reference),
        )
    relative = _centre([[turn[0] - turn[1] for turn in process] for process in used])
    fast, slower = _fast_turns(used, fastest_reference) if is_quiet else (used, 1.0)
    seconds = _centre([[turn[0] for turn in process] for process in fast])
    return QuietTimes(time(relative, used), time(seconds, fast), _steps(fast), slower)


def _fast_turns(used: list[list[_Turn]], fastest_reference: float | None) -> tuple[list[list[_Turn]], float]:
    """The turns in which the machine was as fast as in the run's fastest ones; where too few processes have such, all
    of ``used``, and how much slower it was.
    """
    slowest = math.log(fastest_reference * QUIET) if fastest_reference else math.inf
    fast = [[turn for turn in process if turn[1] <= slowest] for process in used]
    if _count(fast) >= MIN_PROCESSES:
        return fast, 1.0
    return used, _slower(used, fastest_reference)


def _slower(processes: Sequence[Sequence[_Turn]], fastest_reference: float | None) -> float:
    """How much slower the machine was in these turns than in the run's fastest ones; 1 where that is not known."""
    return max(median(_steps(processes)) / fastest_reference, 1.0) if fastest_reference else 1.0


def _steps(processes: Sequence[Sequence[_Turn]]) -> tuple[float, ...]:
    """The seconds of a reference step in the turns of each process that has any."""
    return tuple(math.exp(median([turn[1] for turn in process])) for process in processes if process)


def fastest_turns(times: Sequence[float]) -> float:
    """What the share ``FASTEST`` of fastest turns took at most, of one time a turn."""
    return float(np.quantile(times, FASTEST))


def _turns_of(
    samples_by_process: Sequence[Sequence[float]],
    turns: Sequence[Sequence[int]],
    reference: Sequence[Sequence[float]],
    other_load: Sequence[Sequence[float]],
) -> list[list[_Turn]]:
    """The turns of each process that have samples after its warm-up."""
    relative = relative_samples(samples_by_process, turns, reference)
    found: list[list[_Turn]] = []
    for number, (samples, counts, times) in enumerate(zip(samples_by_process, turns, reference, strict=True)):
        if min(samples, default=1.0) <= 0:
            raise ValueError("a sample is not positive")
        loads = other_load[number] if other_load else [0.0] * len(counts)
        of_process = [
            (math.log(median(kept)), math.log(time), len(kept), load)
            for kept, time, load in zip(steady_in_turns(samples, counts, relative[number]), times, loads, strict=True)
            if kept
        ]
        found.append(of_process)
    return found


def _count(processes: Sequence[Sequence[_Turn]]) -> int:
    """How many processes have a turn."""
    return sum(map(bool, processes))


def _centre(logs: Sequence[Sequence[float]]) -> _Centre:
    """The interquartile mean of all turns."""
    total = sum(map(len, logs))
    ordered, cut = np.sort([log for process in logs for log in process]), total // 4
    value = float(ordered[cut : total - cut].mean())
    influences = [len(process) / total * (median(process) - value) if process else 0.0 for process in logs]
    return value, influences, 1 / math.fsum((len(process) / total) ** 2 for process in logs)


def processes_for(one: QuietTime, precision: float) -> int:
    """How many processes it takes in all until the 95 % interval reaches ``precision`` (0.05: 5 %) to either side, if
    the share of processes with quiet turns stays the same. Decided once, from the first ones; at least as many.

    Stein's two-stage procedure (Stein 1945, "A two-sample test for a linear hypothesis whose power is independent of
    the variance"). Stopping as soon as the interval is narrow would stop too often by chance, and the interval would
    cover less than 95 %. Here the number depends on the first stage's spread alone, which is independent of the mean.
    The interval then uses that spread and its degrees of freedom (``first_stage`` of ``estimate_quiet``), and covers
    95 % whatever the number is.

    Raises ValueError for a precision that is not positive.
    """
    if precision <= 0:
        raise ValueError("a precision is positive")
    spread = math.sqrt(one.variance * one.processes)
    equal = max((t_of_processes(one.processes) * spread / math.log1p(precision)) ** 2, one.processes)
    return math.ceil(equal * one.all_processes / one.processes - 1e-9)


def estimate_quiet(one: QuietTime, first_stage: QuietTime | None = None) -> Estimate:
    """The time of a fresh process, with a t interval of ``one.processes`` processes. Where their number was decided
    after the ``first_stage`` (``processes_for``), the interval has its spread and degrees of freedom.
    """
    stage = first_stage or one
    half = t_of_processes(stage.processes) * math.sqrt(stage.variance * stage.processes / one.processes)
    value, low, high = (math.exp(x) for x in (one.log_value, one.log_value - half, one.log_value + half))
    return Estimate(value, low, high, BETWEEN_PROCESSES, one.n_processes, one.n_samples)

"""Samples in, a figure and how sure we are of it out: warm-up, medians, intervals, percentiles.

Works on plain numbers and knows neither cells nor devices, so that everything that measures, reports or compares can
share it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import NormalDist
from statistics import median as middle

import numpy as np

#: Of every interval here.
CONFIDENCE = 0.95

#: With fewer samples no warm-up is looked for: a window of two or three is steady by accident, and a median bears one
#: slow sample.
MIN_SAMPLES_FOR_WARMUP = 10

#: A turn is quiet if the reference took at most so many times what it took in the ``FASTEST`` share of a cell's turns,
QUIET = 1.1
#: and the cell so many times what it took in as many of its own: processes differ by some per cent, more disturbs.
QUIET_CELL = 1.3
FASTEST = 0.02

#: How much a relative latency differs from run to run beyond what its processes show: the standard deviation of its
#: logarithm. One run cannot see it. ``benchmarks/test_relative_latency.py`` estimates it from ten.
RUN_TO_RUN = 0.04

#: With fewer processes nothing can be said about how processes differ.
MIN_PROCESSES = 3
#: With fewer processes in the first stage their spread is too uncertain to decide on the number of further ones.
MIN_FIRST_STAGE = 5

BETWEEN_PROCESSES = "between processes"
WITHIN_PROCESS = "within process"
BETWEEN_RUNS = "between runs"
WILSON = "Wilson"
ONE_SAMPLE = "none: one sample"
TOO_FEW_SAMPLES = "none: too few samples"
NOT_POSITIVE = "none: a sample is not positive"


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, in the unit of its samples.

    ``kind`` says what the interval covers: ``between processes`` (what another fresh process would show, too), ``within
    process`` (these processes only: it understates how much processes differ), ``between runs`` (what another run would
    show, too), ``Wilson`` (a fraction), or ``none: <why>``, in which case ``low`` and ``high`` are None. ``n_samples``
    counts the samples that were used, warm-up left out.
    """

    value: float
    low: float | None
    high: float | None
    kind: str
    n_processes: int
    n_samples: int


def warmup_length(samples: Sequence[float]) -> int:
    """The number of leading samples before the steady state; at most half of them.

    A fixed count cannot be trusted: the steady state was seen to come after 1, 20, 40 or thousands of iterations
    depending on model, batch and machine, and some processes *start* faster than they go on. So the samples decide, by
    the marginal standard error rule: cut where the standard error of the rest's mean is smallest (MSER; White 1997, "An
    effective truncation heuristic for bias reduction in simulation output", Simulation 69(6)). It is computed on ranks
    rather than on values, which makes it independent of the scale and keeps a single spike (an interrupt, a page fault)
    from deciding. Samples that have not settled by the middle hold no steady state that could be told apart: then
    little or nothing is cut, and the interval is wide.

    0 for fewer than ``MIN_SAMPLES_FOR_WARMUP`` samples.
    """
    n = len(samples)
    if n < MIN_SAMPLES_FOR_WARMUP:
        return 0
    ranks = _ranks(np.asarray(samples, dtype=float))
    # For each cut: the sums over all that is left, by cumulating from the end.
    rest = n - np.arange(n // 2 + 1)
    sums = np.cumsum(ranks[::-1])[::-1][: n // 2 + 1]
    squares = np.cumsum(ranks[::-1] ** 2)[::-1][: n // 2 + 1]
    standard_error = (squares - sums**2 / rest) / rest**2
    return int(np.argmin(standard_error))


def steady(samples: Sequence[float]) -> Sequence[float]:
    """The samples after the warm-up."""
    return samples[warmup_length(samples) :]


def median(samples: Sequence[float]) -> float:
    """The median. Raises ValueError if there is no sample."""
    if len(samples) == 0:
        raise ValueError("the median of no samples")
    return float(middle(samples))  # much faster than numpy's for the two or three samples of a turn


def relative_samples(
    samples_by_process: Sequence[Sequence[float]],
    turns: Sequence[Sequence[int]],
    reference: Sequence[Sequence[float]],
) -> list[list[float]]:
    """Each sample over what the reference took in the same turn: a Measurement's samples, turns and reference_samples.

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


def process_medians(samples_by_process: Sequence[Sequence[float]]) -> list[float]:
    """The median of each process that has samples, warm-up left out."""
    return [median(steady(samples)) for samples in samples_by_process if len(samples) > 0]


@dataclass(frozen=True)
class Relative:
    """A cell's samples over the reference's, as far as the machine was quiet, ready to be estimated and compared.

    ``log_value`` is the logarithm of the figure; ``influences`` how far each process pulls it from what it would be
    without it (0 for a process without a quiet turn; those of the reference's processes come after the cell's where the
    two were quiet at different times), ``processes`` what number of equal processes would know it as
    well (Kish 1965, "Survey Sampling", 11.7: less than their number if some have more quiet turns than others).
    """

    log_value: float
    influences: tuple[float, ...]
    processes: float
    n_processes: int
    all_processes: int
    n_samples: int

    @property
    def variance(self) -> float:
        """Of ``log_value``."""
        return math.fsum(x * x for x in self.influences) * self.processes / (self.processes - 1)


def in_quiet_turns(
    samples_by_process: Sequence[Sequence[float]],
    turns: Sequence[Sequence[int]],
    reference: Sequence[Sequence[float]],
) -> Relative | None:
    """What remains of a Measurement's samples, turns and reference_samples where the machine ran at its own speed; None
    with fewer than ``MIN_PROCESSES`` processes that have samples.

    A machine that is shared or throttled has slow seconds, and these slow unlike programs unlike: then their ratio
    moves by tens of per cent. So those turns count in which the reference took at most ``QUIET`` times what it took in
    its fastest ones, and the cell ``QUIET_CELL`` times. Where fewer than ``MIN_PROCESSES`` processes have such turns,
    the quiet turns of the cell are set against those of the reference, whenever these were; where fewer have even
    these, all turns count. Warm-up is cut first; a turn's value is the median of its samples.

    The figure is the interquartile mean of the turns' logarithms (a turn that is disturbed after all lies in a tail);
    the process is the unit of its error, as turns of one process are alike: each process's share of the turns times how
    far its median lies off.

    Raises ValueError as ``relative_samples`` does, or if a sample is not positive.
    """
    relative = relative_samples(samples_by_process, turns, reference)
    # of each turn: the logarithms of the cell's time and the reference's, and the number of samples
    found: list[list[tuple[float, float, int]]] = []
    for samples, ratios, counts, times in zip(samples_by_process, relative, turns, reference, strict=True):
        cut, start, of_process = warmup_length(ratios), 0, []
        for count, time in zip(counts, times, strict=True):
            kept = samples[max(start, cut) : start + count]
            start += count
            if kept:
                if min(kept) <= 0:
                    raise ValueError("a sample is not positive")
                of_process.append((math.log(median(kept)), math.log(time), len(kept)))
        found.append(of_process)
    if sum(map(bool, found)) < MIN_PROCESSES:
        return None
    fastest_cell, fastest = (
        float(np.quantile([turn[which] for process in found for turn in process], FASTEST)) for which in (0, 1)
    )

    def quiet(cell: float, other: float) -> list[list[tuple[float, float, int]]]:
        def counts(turn: tuple[float, float, int]) -> bool:
            return turn[0] <= fastest_cell + math.log(cell) and turn[1] <= fastest + math.log(other)

        return [list(filter(counts, process)) for process in found]

    both, of_cell, of_reference = quiet(QUIET_CELL, QUIET), quiet(QUIET, math.inf), quiet(math.inf, QUIET)
    enough, enough_apart = (
        min(sum(map(bool, some)) for some in these) >= MIN_PROCESSES for these in ([both], [of_cell, of_reference])
    )
    if not enough and enough_apart:
        used = of_cell
        own = _locate([[turn[0] for turn in process] for process in of_cell])
        other = _locate([[turn[1] for turn in process] for process in of_reference])
        influences = [*own.influences, *(-one for one in other.influences)]  # of other turns, so that nothing cancels
        located = _Located(own.value - other.value, influences, min(own.processes, other.processes))
    else:
        used = both if enough else found
        located = _locate([[own - other for own, other, _ in process] for process in used])
    return Relative(
        log_value=located.value,
        influences=tuple(located.influences),
        processes=located.processes,
        n_processes=sum(map(bool, used)),
        all_processes=sum(map(bool, found)),
        n_samples=sum(count for process in used for _, _, count in process),
    )


def processes_for(one: Relative, precision: float) -> int:
    """How many processes it takes in all until the 95 % interval reaches ``precision`` (0.05: 5 %) to either side, if
    as many of them see the machine quiet as of those so far; judged once, from the first ones; at least as many.

    Stein's two-stage procedure (Stein 1945, "A two-sample test for a linear hypothesis whose power is independent of
    the variance"). Looking after each process and stopping once the interval is narrow would stop too often by luck,
    and the interval would cover less than it says. Here the number depends on the first stage's spread alone, which
    says nothing of the mean; the interval then uses that spread and its degrees of freedom (``estimate_relative``'s
    ``first_stage``), and covers 95 % whatever the number came out as.

    Raises ValueError for a precision that is not positive.
    """
    if precision <= 0:
        raise ValueError("a precision is positive")
    spread = math.sqrt(one.variance * one.processes)
    equal = max((_t(one.processes) * spread / math.log1p(precision)) ** 2, one.processes)
    return math.ceil(equal * one.all_processes / one.processes - 1e-9)


def estimate_relative(one: Relative, first_stage: Relative | None = None) -> Estimate:
    """The figure that another fresh process would show, too: a t interval of ``one.processes`` processes. Where their
    number was decided after the ``first_stage`` ones (``processes_for``), it takes their spread and degrees of freedom.
    """
    stage = first_stage or one
    half = _t(stage.processes) * math.sqrt(stage.variance * stage.processes / one.processes)
    value, low, high = (math.exp(x) for x in (one.log_value, one.log_value - half, one.log_value + half))
    return Estimate(value, low, high, BETWEEN_PROCESSES, one.n_processes, one.n_samples)


def compare_relative(
    one: Relative,
    other: Relative,
    *,
    paired: bool = False,
    first_stages: tuple[Relative | None, Relative | None] = (None, None),
) -> Ratio:
    """The ratio of two cells by what each took relative to the reference, ``one`` over ``other``.

    ``paired``: the processes of the two took turns, the first of one with the first of the other and so on; what a pair
    shares then cancels. Otherwise the two need not vary alike (``ErrorOfSum``). ``first_stages``: of each cell, as for
    ``estimate_relative``; spread and degrees of freedom are theirs.
    """
    difference = one.log_value - other.log_value
    stages = first_stages[0] or one, first_stages[1] or other
    # how much less a cell's error is with all its processes than with those that its spread is taken from
    shares = stages[0].processes / one.processes, stages[1].processes / other.processes
    if paired:
        # of cells that had unlike numbers of processes as many pairs as the smaller one has share something
        pairs = list(itertools.zip_longest(stages[0].influences, stages[1].influences, fillvalue=0.0))
        shared = min(shares)
        squares = math.fsum(
            shared * (a - b) ** 2 + (shares[0] - shared) * a**2 + (shares[1] - shared) * b**2 for a, b in pairs
        )
        processes = min(stages[0].processes, stages[1].processes)
        variance = squares * processes / (processes - 1)
        half = _t(processes) * math.sqrt(variance)
    else:
        parts = tuple(
            (stage.variance * share, stage.processes - 1) for stage, share in zip(stages, shares, strict=True)
        )
        error = ErrorOfSum(parts, two_stage=any(share != 1 for share in shares))
        half = error.quantile(0.5 + CONFIDENCE / 2) * math.sqrt(error.variance)
    return Ratio(math.exp(difference), math.exp(difference - half), math.exp(difference + half))


@dataclass(frozen=True)
class ErrorOfSum:
    """The error of a sum or difference of independent figures: ``parts`` are the variance of each and the degrees of
    freedom that it was estimated with (infinity: it is known).

    It is taken as one t by Welch and Satterthwaite (Welch 1947). That holds where the numbers of processes were given.
    With ``two_stage`` they were decided by the variances (``processes_for``): a cell that seemed to vary little then
    got few, so that its share of the sum no longer says how well its variance is known, and the error is that of a sum
    of t's (Chapman 1950, "Some two sample tests", Annals of Mathematical Statistics 21). Simulated
    (``benchmarks/two_stage_errors.py``), that tells equal programs apart in 3.7 to 5.0 % of cases, Welch's t in up to
    8.8 %, where 5 % is said.
    """

    parts: tuple[tuple[float, float], ...]
    two_stage: bool = False

    @property
    def variance(self) -> float:
        """Of the sum."""
        return math.fsum(part for part, _ in self.parts)

    def quantile(self, q: float) -> float:
        """In standard errors; ``q`` at least a half."""
        if not self._mixed:
            return _t_quantile(self._freedom, q)
        from scipy.optimize import brentq

        high = 4.0
        while self.tail(high) > 1 - q:
            high *= 2
        return float(brentq(lambda z: self.tail(z) - (1 - q), 0.0, high, xtol=1e-9))

    def tail(self, z: float) -> float:
        """The probability of an error of at least ``z`` standard errors."""
        if not self._mixed:
            return _t_tail(self._freedom, z)
        if z < 0:
            return 1 - self.tail(-z)
        from scipy.special import ndtr

        chances, variances = self._mixed
        return float(chances @ ndtr(-z * np.sqrt(self.variance / variances)))

    @cached_property
    def _mixed(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The sum of t's as a mixture of normal laws: their chances and variances. A t is the normal law over the root
        of a chi square by its degrees of freedom, over which the tanh-sinh rule integrates (Takahasi and Mori 1974).
        """
        if not self.two_stage or self.variance <= 0:
            return None
        chances, variances = np.ones(1), np.zeros(1)
        for part, degrees in self.parts:
            some_chances, some = np.ones(1), np.array([part])
            if math.isfinite(degrees):
                some_chances, factors = _inverse_chi_square(max(degrees, 1.0))
                some = part * factors
            chances = np.multiply.outer(chances, some_chances).ravel()
            variances = np.add.outer(variances, some).ravel()
        return chances, variances

    @property
    def _freedom(self) -> float:
        """Of the t that the sum is taken as, at least 1."""
        squares = math.fsum(part**2 / max(degrees, 1.0) for part, degrees in self.parts)
        if squares > 0:
            return max(self.variance**2 / squares, 1.0)
        return math.inf if self.variance > 0 else 1.0


@cache
def _inverse_chi_square(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """What the degrees of freedom over a chi square come out as: values, and the chance of each."""
    from scipy.special import expit, gammainccinv, gammaincinv

    step = 0.14
    places = np.arange(-30, 26) * step
    below, above = expit(np.pi * np.sinh(places)), expit(-np.pi * np.sinh(places))
    half = degrees / 2
    halves_of_squares = np.where(below < above, gammaincinv(half, below), gammainccinv(half, above))
    return step * np.pi * np.cosh(places) * below * above, half / halves_of_squares


@dataclass(frozen=True)
class Ratio:
    """One figure over another, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def tells_apart(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.low <= 1 <= self.high


def compare(
    one: Sequence[float],
    other: Sequence[float],
    *,
    paired: bool = False,
) -> Ratio | None:
    """The ratio of two sets of process medians, ``one`` over ``other``.

    ``paired``: the processes of the two took turns, the first of one with the first of the other and so on; then it is
    the t interval of the pairs' log-ratios, which is narrower by what the two share. Otherwise Welch's t interval on
    the difference of the mean logarithms (Welch 1947): the two need not vary alike. None with fewer than two processes
    on either side, or medians that are not positive.
    """
    if paired:
        count = min(len(one), len(other))
        one, other = one[:count], other[:count]
    if min(len(one), len(other)) < 2 or min(*one, *other) <= 0:
        return None
    from scipy.special import stdtrit

    if paired:
        ratios = [a / b for a, b in zip(one, other, strict=True)]
        value = math.exp(float(np.mean(np.log(ratios))))
        low, high = _log_t_interval(ratios, value, len(ratios)) or (value, value)
        return Ratio(value, low, high)

    logs = [np.log(np.asarray(medians, dtype=float)) for medians in (one, other)]
    difference = float(np.mean(logs[0]) - np.mean(logs[1]))
    parts = [float(np.var(values, ddof=1)) / len(values) for values in logs]
    variance = sum(parts)
    if variance == 0:
        return Ratio(math.exp(difference), math.exp(difference), math.exp(difference))
    freedom = variance**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, logs, strict=True))
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * math.sqrt(variance)
    return Ratio(math.exp(difference), math.exp(difference - half), math.exp(difference + half))


def noise_floor(ratios: Sequence[float], processes: int) -> float:
    """The smallest difference between two programs of ``processes`` processes each that is told apart, as a fraction
    (0.02: 2 %), from the ``ratios`` of one program to itself, one of each pair of processes.

    What two processes of one program differ by is what two of different programs would, if they were equal: the half
    width of the 95 % t interval of as many pairs. Raises ValueError for fewer than two ratios.
    """
    if len(ratios) < 2 or min(ratios) <= 0:
        raise ValueError("a noise floor takes two positive ratios")
    from scipy.special import stdtrit

    spread = float(np.std(np.log(ratios), ddof=1))
    return math.expm1(float(stdtrit(len(ratios) - 1, 0.5 + CONFIDENCE / 2)) * spread / math.sqrt(processes))


def estimate(samples_by_process: Sequence[Sequence[float]], *, first_stage: int | None = None) -> Estimate:
    """The typical sample of a fresh process, with the 95 % interval that the samples allow.

    Warm-up is cut from each process first. Samples of one process are not independent of each other, so from
    ``MIN_PROCESSES`` processes on the process is the unit: a Student t interval on the logarithms of the processes'
    medians, around their geometric mean. With one or two processes it is the distribution-free interval of the median
    between two order statistics (David and Nagaraja 2003, "Order Statistics", 7.1); of two processes the span of both,
    each at 97.5 %. Where the number of processes was decided after the ``first_stage`` ones (``processes_for``), the
    interval takes their spread and degrees of freedom.

    Raises ValueError if no process has a sample.
    """
    processes = [steady(samples) for samples in samples_by_process if len(samples) > 0]
    if not processes:
        raise ValueError("an estimate from no samples")
    medians = [median(samples) for samples in processes]
    n_samples = sum(len(samples) for samples in processes)

    def result(value: float, interval: tuple[float, float] | None, kind: str) -> Estimate:
        low, high = interval if interval else (None, None)
        return Estimate(value, low, high, kind, len(processes), n_samples)

    if len(processes) == 1 and n_samples == 1:
        return result(medians[0], None, ONE_SAMPLE)
    if min(medians) == max(medians):
        value = medians[0]  # exactly: a logarithm and back would round
    elif min(medians) > 0:
        value = math.exp(float(np.mean(np.log(medians))))
    else:
        return result(median(medians), None, NOT_POSITIVE)
    if len(processes) >= MIN_PROCESSES:
        stage = medians[:first_stage] if first_stage is not None and first_stage >= MIN_PROCESSES else medians
        return result(value, _log_t_interval(stage, value, len(medians)), BETWEEN_PROCESSES)
    intervals = [median_interval(samples, 1 - (1 - CONFIDENCE) / len(processes)) for samples in processes]
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return result(value, None, TOO_FEW_SAMPLES)
    return result(value, (min(low for low, _ in known), max(high for _, high in known)), WITHIN_PROCESS)


def allow_for_runs(one: Estimate) -> Estimate:
    """A relative latency with the interval that other runs' figures fall into, too, where its own is one between
    processes: one within one or two processes holds nothing of how processes differ, and an allowance would hide that.

    The interval of this run's processes and an allowance for what differs between runs (``RUN_TO_RUN``) add up as
    independent errors do: a type A and a type B uncertainty (JCGM 100:2008, "GUM", 4.3 and 5.1.2).
    """
    if one.low is None or one.high is None or one.kind != BETWEEN_PROCESSES:
        return one
    allowance = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * RUN_TO_RUN
    low = one.value * math.exp(-math.hypot(math.log(one.value / one.low), allowance))
    high = one.value * math.exp(math.hypot(math.log(one.high / one.value), allowance))
    return dataclasses.replace(one, low=low, high=high, kind=BETWEEN_RUNS)


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The narrowest symmetric pair of order statistics that covers the median, whatever the samples' distribution.

    None if even (smallest, largest) does not reach ``confidence``: with fewer than 6 samples for 95 %.
    """
    from scipy.special import bdtr

    n = len(samples)
    # The k-th from either end misses the median with the probability of fewer than k heads in n throws, on each side.
    k = int(np.count_nonzero(bdtr(np.arange(n // 2), n, 0.5) <= (1 - confidence) / 2))
    if k == 0:
        return None
    ordered = np.sort(np.asarray(samples, dtype=float))
    return float(ordered[k - 1]), float(ordered[n - k])


def samples_for_percentile(q: float) -> int:
    """How many samples the ``q`` quantile takes: 29 for 0.9, 299 for 0.99.

    Then the largest sample lies above it with a probability of 95 % (Wilks 1941, "Determination of sample sizes for
    setting tolerance limits"). With fewer, the figure would often be no more than the largest sample.

    Raises ValueError unless 0.5 <= q < 1.
    """
    if not 0.5 <= q < 1:
        raise ValueError(f"q must lie in [0.5, 1), not {q}")
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(q))


def percentile(samples: Sequence[float], q: float) -> float | None:
    """The ``q`` quantile (0.99 for p99) of the samples as given, or None with fewer than ``samples_for_percentile(q)``.

    Raises ValueError unless 0.5 <= q < 1.
    """
    if len(samples) < samples_for_percentile(q):
        return None
    return float(np.quantile(np.asarray(samples, dtype=float), q))


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a fraction.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference": unlike value +- 1.96 standard
    errors it stays within 0 to 1 and covers at the ends, too.

    Raises ValueError unless 0 <= correct <= total and total > 0.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} correct of {total} is no fraction")
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    fraction = correct / total
    scale = 1 + z**2 / total
    centre = (fraction + z**2 / (2 * total)) / scale
    half = z / scale * math.sqrt(fraction * (1 - fraction) / total + z**2 / (4 * total**2))
    # At the ends the formula is exactly 0 and 1; rounding is not.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == total else centre + half)


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of one further value of the same normal distribution: mean +- t s sqrt(1 + 1/n) (Hahn and
    Meeker 1991, "Statistical Intervals"). Raises ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("a prediction takes two values at least")
    half = _t(len(values)) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / len(values))
    mean = math.fsum(values) / len(values)
    return mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted so that those under a rate hold together at that rate, however they depend on each other
    (Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2)).
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]


@dataclass(frozen=True)
class _Located:
    """The middle of the turns of all processes, as in Relative."""

    value: float
    influences: list[float]
    processes: float


def _locate(logs: Sequence[Sequence[float]]) -> _Located:
    total = sum(map(len, logs))
    value = _interquartile_mean([log for process in logs for log in process])
    influences = [len(process) / total * (median(process) - value) if process else 0.0 for process in logs]
    processes = 1 / math.fsum((len(process) / total) ** 2 for process in logs)
    return _Located(value, influences, processes)


def _interquartile_mean(values: Sequence[float]) -> float:
    """The mean of what is left when a quarter of the values is cut off at either end."""
    ordered, cut = np.sort(np.asarray(values, dtype=float)), len(values) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def _t(processes: float) -> float:
    """Student's t for the interval of so many processes; at least one degree of freedom."""
    return _t_quantile(processes - 1, 0.5 + CONFIDENCE / 2)


def _t_quantile(freedom: float, q: float) -> float:
    """Student's t with at least one degree of freedom; the normal law's for infinitely many."""
    if math.isinf(freedom):
        return NormalDist().inv_cdf(q)
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1.0), q))


def _t_tail(freedom: float, z: float) -> float:
    """The probability that Student's t is at least ``z``."""
    if math.isinf(freedom):
        return NormalDist().cdf(-z)
    from scipy.special import stdtr

    return float(stdtr(max(freedom, 1.0), -z))


def _log_t_interval(medians: Sequence[float], value: float, n: int) -> tuple[float, float] | None:
    """The t interval of the mean of ``n`` logarithms whose spread is that of ``medians``, taken back; (value, value) if
    they are all equal.
    """
    if min(medians) == max(medians):
        return value, value
    from scipy.special import stdtrit

    logs = np.log(medians)
    half = float(stdtrit(len(logs) - 1, 0.5 + CONFIDENCE / 2)) * float(np.std(logs, ddof=1)) / math.sqrt(n)
    return value * math.exp(-half), value * math.exp(half)

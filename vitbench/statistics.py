"""Samples in, a figure and how sure we are of it out: warm-up, medians, intervals, percentiles.

Works on plain numbers and knows neither cells nor devices, so that everything that measures, reports or compares can
share it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

#: Of every interval here.
CONFIDENCE = 0.95

#: With fewer samples no warm-up is looked for: a window of two or three is steady by accident, and a median bears one
#: slow sample.
MIN_SAMPLES_FOR_WARMUP = 10

#: How much a relative latency differs from run to run beyond what its processes show: the standard deviation of its
#: logarithm on a quiet machine, and what each core of other load adds (to one core). One run cannot see it. Assumed
#: everywhere what 16 runs of four cells showed on two virtual cores, each run once with no load and with seven kinds.
RUN_TO_RUN = 0.02
LOAD_SHIFT = 0.04

#: With fewer processes nothing can be said about how processes differ.
MIN_PROCESSES = 3

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
    return float(np.median(np.asarray(samples, dtype=float)))


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


def processes_needed(medians: Sequence[float], precision: float) -> int:
    """How many processes it takes in all until the 95 % interval reaches ``precision`` (0.05: 5 %) to either side,
    judged once, from the first ones' medians; at least as many as these.

    Stein's two-stage procedure (Stein 1945, "A two-sample test for a linear hypothesis whose power is independent of
    the variance"). Looking after each process and stopping once the interval is narrow would stop too often by luck,
    and the interval would cover less than it says. Here the number depends on the first stage's spread alone, which
    says nothing of the mean; the interval then uses that spread and its degrees of freedom (``estimate``'s
    ``first_stage``), and covers 95 % whatever the number came out as.

    Raises ValueError for fewer than two medians, medians that are not positive, or a precision that is not.
    """
    if len(medians) < 2 or min(medians) <= 0 or precision <= 0:
        raise ValueError("the spread of processes takes two positive medians, and a positive precision")
    from scipy.special import stdtrit

    n = len(medians)
    spread = float(np.std(np.log(medians), ddof=1))
    t = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    return max(n, math.ceil((t * spread / math.log1p(precision)) ** 2))


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
    first_stages: tuple[int | None, int | None] = (None, None),
) -> Ratio | None:
    """The ratio of two sets of process medians, ``one`` over ``other``.

    ``paired``: the processes of the two took turns, the first of one with the first of the other and so on; then it is
    the t interval of the pairs' log-ratios, which is narrower by what the two share. Otherwise Welch's t interval on
    the difference of the mean logarithms (Welch 1947): the two need not vary alike. None with fewer than two processes
    on either side, or medians that are not positive. ``first_stages``: as in ``estimate``, for Welch's.
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
    stages = [values[:stage] if stage else values for values, stage in zip(logs, first_stages, strict=True)]
    parts = [float(np.var(stage, ddof=1)) / len(values) for stage, values in zip(stages, logs, strict=True)]
    variance = sum(parts)
    if variance == 0:
        return Ratio(math.exp(difference), math.exp(difference), math.exp(difference))
    freedom = variance**2 / sum(part**2 / (len(stage) - 1) for part, stage in zip(parts, stages, strict=True))
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
    each at 97.5 %. Where the number of processes was decided after the ``first_stage`` ones (``processes_needed``), the
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


def allow_for_runs(one: Estimate, other_load: float | None) -> Estimate:
    """A relative latency with the interval that other runs' figures fall into, too, where it has one.

    The interval of this run's processes and an allowance for what differs between runs (``RUN_TO_RUN``, with
    ``LOAD_SHIFT`` for ``other_load`` cores that were busy with something else, None if that is not known) add up as
    independent errors do: a type A and a type B uncertainty (JCGM 100:2008, "GUM", 4.3 and 5.1.2).
    """
    if one.low is None or one.high is None:
        return one
    load = min(max(other_load or 0.0, 0.0), 1.0)
    allowance = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * math.hypot(RUN_TO_RUN, LOAD_SHIFT * load)
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


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]


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

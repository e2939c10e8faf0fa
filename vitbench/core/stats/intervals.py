"""Samples in, a value and its 95 % confidence interval out, warm-up left out. Knows neither cells nor devices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from statistics import median as middle

import numpy as np

#: Of every interval.
CONFIDENCE = 0.95

#: How much a relative latency varies from run to run beyond its processes: the standard deviation of its logarithm.
#: One run does not show it. ``benchmarks/busy_and_quiet.py`` estimates it from ten.
RUN_TO_RUN = 0.04
#: The same of seconds in quiet turns: how much faster or slower the whole machine is in another run, beyond what its
#: reference shows within one. Six runs of one hour on a shared host differed by 11 to 15 % at batch 1, nearly all of it
#: one slow phase (``benchmarks/busy_and_quiet.py``).
HOST_DRIFT = 0.1

#: With fewer samples nothing is cut: a window of two or three is steady by chance, and a median tolerates one slow
#: sample.
MIN_SAMPLES_FOR_WARMUP = 10
#: Fewer processes do not show how processes differ.
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
    """A value with its 95 % interval, in the unit of its samples.

    ``kind`` says what the interval covers: ``between processes`` (other processes, too), ``within process`` (these
    processes only: it understates how much processes differ), ``between runs`` (other runs, too), ``Wilson`` (a
    fraction), or ``none: <why>``, in which case ``low`` and ``high`` are None. ``n_samples`` leaves warm-up out.
    """

    value: float
    low: float | None
    high: float | None
    kind: str
    n_processes: int
    n_samples: int


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
        return result(value, log_t_interval(stage, value, len(medians)), BETWEEN_PROCESSES)
    intervals = [median_interval(samples, 1 - (1 - CONFIDENCE) / len(processes)) for samples in processes]
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return result(value, None, TOO_FEW_SAMPLES)
    return result(value, (min(low for low, _ in known), max(high for _, high in known)), WITHIN_PROCESS)


def allow_for_runs(one: Estimate, variation: float = RUN_TO_RUN) -> Estimate:
    """A value whose interval also covers other runs, if its own is one between processes: an interval within one or two
    processes does not show how processes differ, and an allowance would hide that.

    The interval of this run's processes and an allowance for run-to-run ``variation`` (the standard deviation of the
    logarithm) add up as independent errors do: a type A and a type B uncertainty (JCGM 100:2008, "GUM", 4.3 and 5.1.2).
    """
    if one.kind != BETWEEN_PROCESSES or not one.low or one.high is None or math.isinf(one.high):
        return one
    allowance = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * variation
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
    setting tolerance limits"). With fewer, the value would often be just the largest sample.

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
        raise ValueError(f"{correct} correct of {total} is not a fraction")
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
    half = t_of_processes(len(values)) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / len(values))
    mean = math.fsum(values) / len(values)
    return mean - half, mean + half


def t_of_processes(processes: float) -> float:
    """Student's t for the interval of a number of processes, with at least one degree of freedom."""
    return t_quantile(processes - 1, 0.5 + CONFIDENCE / 2)


def t_quantile(freedom: float, q: float) -> float:
    """Student's t with at least one degree of freedom; the normal law's for infinitely many."""
    if math.isinf(freedom):
        return NormalDist().inv_cdf(q)
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1.0), q))


def t_tail(freedom: float, z: float) -> float:
    """The probability that Student's t is at least ``z``."""
    if math.isinf(freedom):
        return NormalDist().cdf(-z)
    from scipy.special import stdtr

    return float(stdtr(max(freedom, 1.0), -z))


def log_t_interval(medians: Sequence[float], value: float, n: int) -> tuple[float, float]:
    """The interval around ``value`` by the t interval of ``n`` logarithms whose spread is that of ``medians``."""
    if min(medians) == max(medians):
        return value, value
    half = t_of_processes(len(medians)) * float(np.std(np.log(medians), ddof=1)) / math.sqrt(n)
    return value * math.exp(-half), value * math.exp(half)


def warmup_length(samples: Sequence[float]) -> int:
    """The number of leading samples before the steady state; at most half of them.

    No fixed count is right: the steady state came after 1, 20, 40 or thousands of iterations, depending on model, batch
    and machine, and some processes *start* faster than they continue. So the samples decide by the marginal standard
    error rule: cut where the standard error of the rest's mean is smallest (MSER; White 1997, "An effective truncation
    heuristic for bias reduction in simulation output", Simulation 69(6)). Ranks instead of values make it independent
    of the scale and robust against a single spike (an interrupt, a page fault). Samples that have not settled by the
    middle have no steady state to find: then little or nothing is cut, and the interval is wide.

    0 for fewer than ``MIN_SAMPLES_FOR_WARMUP`` samples.
    """
    n = len(samples)
    if n < MIN_SAMPLES_FOR_WARMUP:
        return 0
    ranks = mean_ranks(np.asarray(samples, dtype=float))
    # For each cut: the sums over all that is left, by cumulating from the end.
    rest = n - np.arange(n // 2 + 1)
    sums = np.cumsum(ranks[::-1])[::-1][: n // 2 + 1]
    squares = np.cumsum(ranks[::-1] ** 2)[::-1][: n // 2 + 1]
    standard_error = (squares - sums**2 / rest) / rest**2
    return int(np.argmin(standard_error))


def steady(samples: Sequence[float]) -> Sequence[float]:
    """The samples after the warm-up."""
    return samples[warmup_length(samples) :]


def steady_in_turns(
    samples: Sequence[float], turns: Sequence[int], compared: Sequence[float] | None = None
) -> list[Sequence[float]]:
    """The samples of each turn of a process that count: without its warm-up, found in ``compared`` (by default the
    samples themselves), and without the first of each turn of more than two: another program has had the caches.
    """
    cut, start, kept = warmup_length(samples if compared is None else compared), 0, []
    for count in turns:
        first = start + (1 if count > 2 else 0)
        kept.append(samples[max(first, cut) : start + count])
        start += count
    return kept


def median(samples: Sequence[float]) -> float:
    """The median. Raises ValueError if there is no sample."""
    if len(samples) == 0:
        raise ValueError("the median of no samples")
    return float(middle(samples))  # much faster than numpy's for the two or three samples of a turn


def process_medians(samples_by_process: Sequence[Sequence[float]]) -> list[float]:
    """The median of each process that has samples, warm-up left out."""
    return [median(steady(samples)) for samples in samples_by_process if len(samples) > 0]


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]

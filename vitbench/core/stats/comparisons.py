"""Compare two programs: ratios with intervals, the error of a sum, the noise floor, several comparisons at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from vitbench.core.stats.intervals import CONFIDENCE, log_t_interval, t_of_processes, t_quantile, t_tail
from vitbench.core.stats.relative import QuietTime


def compare_relative(
    one: QuietTime,
    other: QuietTime,
    *,
    paired: bool = False,
    first_stages: tuple[QuietTime | None, QuietTime | None] = (None, None),
) -> Ratio:
    """The ratio of two cells' relative times, ``one`` over ``other``.

    ``paired``: the processes of the two took turns, the first of one with the first of the other and so on; what a pair
    shares then cancels. Otherwise their variances may differ (``ErrorOfSum``). ``first_stages``: of each cell, as for
    ``estimate_quiet``.
    """
    difference = one.log_value - other.log_value
    stages = first_stages[0] or one, first_stages[1] or other
    # how much all processes of a cell reduce the variance of its first stage
    shares = stages[0].processes / one.processes, stages[1].processes / other.processes
    if paired:
        # cells with different numbers of processes have as many pairs as the smaller one
        pairs = list(itertools.zip_longest(stages[0].influences, stages[1].influences, fillvalue=0.0))
        shared = min(shares)
        squares = math.fsum(
            shared * (a - b) ** 2 + (shares[0] - shared) * a**2 + (shares[1] - shared) * b**2 for a, b in pairs
        )
        processes = min(stages[0].processes, stages[1].processes)
        variance = squares * processes / (processes - 1)
        half = t_of_processes(processes) * math.sqrt(variance)
    else:
        parts = tuple(
            (stage.variance * share, stage.processes - 1) for stage, share in zip(stages, shares, strict=True)
        )
        error = ErrorOfSum(parts, two_stage=any(share != 1 for share in shares))
        half = error.quantile(0.5 + CONFIDENCE / 2) * math.sqrt(error.variance)
    return Ratio(math.exp(difference), math.exp(difference - half), math.exp(difference + half))


@dataclass(frozen=True)
class ErrorOfSum:
    """The error of a sum or difference of independent values: ``parts`` are the variance of each and the degrees of
    freedom of its estimate (infinity: it is known).

    The approximation by one t (Welch and Satterthwaite; Welch 1947) holds for given numbers of processes. With
    ``two_stage`` the variances decided them (``processes_for``): a cell that seemed to vary little got few, so that its
    share of the sum does not show how well its variance is known. The error is then that of a sum of t's (Chapman 1950,
    "Some two sample tests", Annals of Mathematical Statistics 21). Simulated (``benchmarks/two_stage_errors.py``), this
    distinguishes equal programs in 3.7 to 5.0 % of cases, Welch's t in up to 8.8 %, where 5 % is the nominal rate.
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
            return t_quantile(self._freedom, q)
        from scipy.optimize import brentq

        high = 4.0
        while self.tail(high) > 1 - q:
            high *= 2
        return float(brentq(lambda z: self.tail(z) - (1 - q), 0.0, high, xtol=1e-9))

    def tail(self, z: float) -> float:
        """The probability of an error of at least ``z`` standard errors."""
        if not self._mixed:
            return t_tail(self._freedom, z)
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
        """Degrees of freedom of the approximating t, at least 1."""
        squares = math.fsum(part**2 / max(degrees, 1.0) for part, degrees in self.parts)
        if squares > 0:
            return max(self.variance**2 / squares, 1.0)
        return math.inf if self.variance > 0 else 1.0


@cache
def _inverse_chi_square(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The distribution of the degrees of freedom over a chi square: values, and the probability of each."""
    from scipy.special import expit, gammainccinv, gammaincinv

    step = 0.14
    places = np.arange(-30, 26) * step
    below, above = expit(np.pi * np.sinh(places)), expit(-np.pi * np.sinh(places))
    half = degrees / 2
    halves_of_squares = np.where(below < above, gammaincinv(half, below), gammainccinv(half, above))
    return step * np.pi * np.cosh(places) * below * above, half / halves_of_squares


@dataclass(frozen=True)
class Ratio:
    """One value over another, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def tells_apart(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.low <= 1 <= self.high


def compare(one: Sequence[float], other: Sequence[float], *, paired: bool = False) -> Ratio | None:
    """The ratio of two sets of process medians, ``one`` over ``other``.

    ``paired``: the processes of the two took turns, the first of one with the first of the other and so on: the t
    interval of the pairs' log-ratios. Otherwise Welch's t interval on the difference of the mean logarithms (Welch
    1947). None with fewer than two processes on either side, or medians that are not positive.
    """
    if paired:
        count = min(len(one), len(other))
        one, other = one[:count], other[:count]
    if min(len(one), len(other)) < 2 or min(*one, *other) <= 0:
        return None
    if paired:
        ratios = [a / b for a, b in zip(one, other, strict=True)]
        value = math.exp(float(np.mean(np.log(ratios))))
        return Ratio(value, *log_t_interval(ratios, value, len(ratios)))
    logs = [np.log(np.asarray(medians, dtype=float)) for medians in (one, other)]
    difference = float(np.mean(logs[0]) - np.mean(logs[1]))
    error = ErrorOfSum(tuple((float(np.var(values, ddof=1)) / len(values), len(values) - 1) for values in logs))
    half = error.quantile(0.5 + CONFIDENCE / 2) * math.sqrt(error.variance)
    return Ratio(math.exp(difference), math.exp(difference - half), math.exp(difference + half))


def noise_floor(ratios: Sequence[float], processes: int) -> float:
    """The smallest difference between two programs of ``processes`` processes each that is distinguishable, as a
    fraction (0.02: 2 %), from the ``ratios`` of one program to itself, one of each pair of processes.

    Two processes of one program differ as two of equal programs would: it is the half width of the 95 % t interval of
    as many pairs. Raises ValueError for fewer than two ratios.
    """
    if len(ratios) < 2 or min(ratios) <= 0:
        raise ValueError("a noise floor takes two positive ratios")
    spread = float(np.std(np.log(ratios), ddof=1))
    return math.expm1(t_of_processes(len(ratios)) * spread / math.sqrt(processes))


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

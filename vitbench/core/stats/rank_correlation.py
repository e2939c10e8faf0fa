"""Rank correlation of a few values, with a confidence interval that holds for a few values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from vitbench.core.stats.intervals import CONFIDENCE, mean_ranks

#: Fewer values have no rank correlation worth a number.
MIN_VALUES = 5
#: Correlations of the normal law, from 0 to 1, and samples drawn of each.
_CORRELATIONS = np.append(np.tanh(np.linspace(0, 4.9, 50)), 1.0)
_DRAWS = 4000


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of ``n`` pairs, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> RankCorrelation | None:
    """Spearman's correlation: that of the ranks, where equal values share the mean of theirs (Spearman 1904).

    The interval holds what the pairs' population can have, if its copula is a normal one: each correlation of which
    neither this value or a higher one, nor this or a lower one, is rarer than 2.5 %, by simulation with a fixed seed.
    A bootstrap over the pairs would not do: five pairs in one order make it certain that all others are, and where the
    correlation is 0.95 its interval from five pairs holds that in six of ten samples.

    None for fewer than ``MIN_VALUES`` pairs, or if all values of a side are equal.
    """
    ranks, others = (mean_ranks(np.asarray(values, dtype=float)) for values in (one, other))
    if len(one) < MIN_VALUES or np.ptp(ranks) == 0 or np.ptp(others) == 0:
        return None
    value = float(np.corrcoef(ranks, others)[0, 1])
    return RankCorrelation(value, *_interval(value, len(one)), len(one))


def _interval(value: float, n: int) -> tuple[float, float]:
    if value < 0:
        low, high = _interval(-value, n)
        return -high, -low
    drawn, rounding = _drawn(n), 1e-9
    # a sample of the correlation -r is one of r with a side turned round
    turned, higher = (drawn <= rounding - value).mean(axis=1), (drawn >= value - rounding).mean(axis=1)
    lower = (drawn <= value + rounding).mean(axis=1)
    rare = (1 - CONFIDENCE) / 2
    rising = np.maximum.accumulate(np.concatenate([turned[:0:-1], higher]))
    first = np.interp(rare, rising, np.concatenate([-_CORRELATIONS[:0:-1], _CORRELATIONS]))
    last = np.interp(rare, np.maximum.accumulate(lower[::-1]), _CORRELATIONS[::-1])
    # Spearman's of a normal law with that correlation (Pearson 1907)
    low, high = (6 / math.pi * math.asin(end / 2) for end in (float(first), float(last)))
    return low, high


@cache
def _drawn(n: int) -> np.ndarray:
    """The rank correlations of samples of ``n`` pairs, (correlations, draws)."""
    generator = np.random.default_rng(0)
    first = np.sort(generator.standard_normal((_DRAWS, n)), axis=1)  # in order, so that its ranks are 0 to n - 1
    noise = generator.standard_normal((_DRAWS, n))
    found = np.empty((len(_CORRELATIONS), _DRAWS))
    for row, correlation in enumerate(_CORRELATIONS):
        second = correlation * first + math.sqrt(1 - correlation**2) * noise
        products = np.argsort(second, axis=1) @ np.arange(n)  # the sum of rank times rank
        found[row] = 12 * (products / n - ((n - 1) / 2) ** 2) / (n**2 - 1)
    return found

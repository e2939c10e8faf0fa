"""A sequential test: judge the differences of pairs at several looks, at a fixed error rate for all looks together.

Plain numbers: no processes and no git.

Each pair gives one difference of logarithms (head less base) for each clock. The differences are judged after 3, 5, 10,
20 and 40 pairs. Each look spends a fixed share of the error rate (``SHARES``, which add up to 1), so all looks together
keep the rate, whatever earlier looks showed (Bonferroni over the looks; Lan and DeMets 1983, "Discrete sequential
boundaries for clinical trials"). Holm's procedure (1979, "A simple sequentially rejective multiple test procedure")
keeps the rate for all cells of a suite.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vitbench.core.stats.comparisons import holm

#: The number of pairs at each look.
LOOKS = (3, 5, 10, 20, 40)
#: The share of the error rate that each look spends. Three pairs show little and get a small share.
SHARES = (0.05, 0.3, 0.25, 0.2, 0.2)
#: The largest rate of false alarms for a whole suite.
ALPHA = 0.01
#: The largest rate at which a slow-down of ``detect`` passes as *same*, for each cell.
BETA = 0.05
#: The power at which ``visible`` and ``in_reach`` are stated.
POWER = 0.9
#: The smallest believable spread between pairs (of the logarithm): clocks and caches do not repeat better.
LEAST_SPREAD = 0.0005

_Name = TypeVar("_Name", bound=Hashable)


@dataclass(frozen=True)
class Rule:
    """A slow-down of more than ``margin`` (0.02: 2 %) is *worse*; one of ``detect`` or more does not pass as *same*."""

    margin: float = 0.02
    detect: float = 0.05
    looks: tuple[int, ...] = LOOKS
    shares: tuple[float, ...] = SHARES
    alpha: float = ALPHA
    beta: float = BETA


@dataclass(frozen=True)
class Evidence:
    """The evidence of one cell's pairs on one clock, after the looks so far.

    ``slower`` and ``faster``: p-values, valid for all looks together, of a change within the margin (the smallest over
    the looks, each divided by its share). ``passed``: one look has ruled out a slow-down of ``detect`` or more.
    ``value``: head over base with the 95 % interval ``low`` to ``high`` of the pairs so far, for display. ``visible``:
    the smallest slow-down that these pairs would have found 9 times in 10 (0.03: 3 %). ``in_reach``: the one that all
    looks would have found, by the spread of these pairs. Both are None with too few pairs.
    """

    pairs: int
    value: float
    low: float
    high: float
    slower: float
    faster: float
    passed: bool
    visible: float | None
    in_reach: float | None


def weigh(differences: Sequence[float], rule: Rule, *, tests: int = 1) -> Evidence:
    """Test the mean of the pairs' differences (of logarithms) with one-sided t tests, at each look that they reach.

    At least one difference. ``tests``: how many are judged together, which only ``visible`` and ``in_reach`` depend on.
    """
    from scipy.special import stdtr, stdtrit

    margin, detect = math.log1p(rule.margin), math.log1p(rule.detect)
    slower = faster = 1.0
    passed = False
    visible = in_reach = None
    for look, share in zip(rule.looks, rule.shares, strict=True):
        if look > len(differences):
            break
        mean, error = _mean_and_error(differences[:look])
        freedom = look - 1
        slower = min(slower, float(stdtr(freedom, -(mean - margin) / error)) / share)
        faster = min(faster, float(stdtr(freedom, (mean + margin) / error)) / share)
        passed = passed or float(stdtr(freedom, (mean - detect) / error)) <= rule.beta * share
        visible = _smallest(margin, error, look, rule.alpha * share / tests)
        last = rule.looks[-1]
        in_reach = _smallest(margin, error * math.sqrt(look / last), last, rule.alpha * rule.shares[-1] / tests)
    mean, error = _mean_and_error(differences)
    half = float(stdtrit(len(differences) - 1, 0.975)) * error if len(differences) > 1 else math.inf
    return Evidence(
        pairs=len(differences),
        value=math.exp(mean),
        low=math.exp(mean - half),
        high=math.exp(min(mean + half, 700.0)),
        slower=min(slower, 1.0),
        faster=min(faster, 1.0),
        passed=passed,
        visible=visible,
        in_reach=in_reach,
    )


def _smallest(margin: float, error: float, pairs: int, alpha: float) -> float:
    """The slow-down whose lower bound exceeds the margin in nine cases of ten."""
    from scipy.special import stdtrit

    quantiles = float(stdtrit(pairs - 1, 1 - alpha)) + float(stdtrit(pairs - 1, POWER))
    return math.expm1(min(margin + quantiles * error, 700.0))


def _mean_and_error(differences: Sequence[float]) -> tuple[float, float]:
    count = len(differences)
    mean = math.fsum(differences) / count
    if count < 2:
        return mean, math.inf
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in differences) / (count - 1))
    return mean, max(spread, LEAST_SPREAD) / math.sqrt(count)


def reject(p_values: Mapping[_Name, float], alpha: float) -> set[_Name]:
    """The names whose hypotheses are rejected at the family-wise rate ``alpha``, by Holm's procedure."""
    adjusted = holm(list(p_values.values()))
    return {name for name, p in zip(p_values, adjusted, strict=True) if p <= alpha}


def is_decided(deciding: Evidence, others: Iterable[Evidence], rule: Rule, *, tests: int) -> bool:
    """Whether more pairs cannot change a cell's verdict: one clock is certainly slower, or the ``deciding`` clock has
    passed and no clock can be found slower any more.

    Holm's procedure judges ``tests`` together. It rejects a p-value under its strictest limit whatever the others are,
    and never one over its mildest limit.
    """
    every = [deciding, *others]
    if any(one.slower <= rule.alpha / tests for one in every):
        return True
    return deciding.passed and all(one.slower > rule.alpha for one in every)

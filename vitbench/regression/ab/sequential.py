"""When to stop looking, and what may be said then: a test that is looked at several times and keeps its error rate.

Numbers only: knows neither processes nor git.

Each pair gives one difference of logarithms (head less base) for each clock. The differences are judged after 3, 5, 10,
20 and 40 pairs. At each look the error rate is a fixed share of what is promised (``SHARES``, which add up to 1), so
that all looks together keep it whatever was seen at the earlier ones (Bonferroni over the looks; Lan and DeMets 1983,
"Discrete sequential boundaries for clinical trials", call it spending). Several cells are judged together by Holm's
procedure (Holm 1979, "A simple sequentially rejective multiple test procedure"), which keeps the rate for the suite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vitbench.core.stats.statistics import holm

#: So many pairs there are at each look.
LOOKS = (3, 5, 10, 20, 40)
#: The share of the error rate that each look may use. Three pairs say little, and get little.
SHARES = (0.05, 0.3, 0.25, 0.2, 0.2)
#: False alarms of a whole suite whose code is the same, at most.
ALPHA = 0.01
#: A slow-down of ``detect`` that is called none, of each cell, at most.
BETA = 0.05
#: The chance with which a change of the smallest size that is told would have been seen.
POWER = 0.9
#: Less than this spread between pairs (of the logarithm) is luck: clocks and caches do not repeat better.
LEAST_SPREAD = 0.0005


@dataclass(frozen=True)
class Rule:
    """What counts: a slow-down is alarmed beyond ``margin`` and not passed from ``detect`` on (0.02: 2 %)."""

    margin: float = 0.02
    detect: float = 0.05
    looks: tuple[int, ...] = LOOKS
    shares: tuple[float, ...] = SHARES
    alpha: float = ALPHA
    beta: float = BETA

    def __post_init__(self) -> None:
        """Raises ValueError for a rule that promises nothing."""
        if not 0 <= self.margin < self.detect < 1:
            raise ValueError(f"a margin of {self.margin} and a change to detect of {self.detect}: 0 <= margin < detect")
        if len(self.looks) != len(self.shares) or math.fsum(self.shares) > 1 + 1e-9 or min(self.looks) < 2:
            raise ValueError("each look takes at least two pairs and has a share; the shares are at most 1 in all")


@dataclass(frozen=True)
class Evidence:
    """What the pairs of one cell say of one clock, after the looks so far.

    ``slower`` and ``faster`` are p-values, good for all looks together, of a change that is within the margin
    (smallest over the looks, each over its share). ``passed``: a slow-down of ``detect`` or more has been ruled out at
    one of the looks. ``value`` is head over base with the interval ``low`` to ``high`` (95 %, of the pairs so far, for
    showing). ``visible`` is the smallest slow-down that these pairs would have shown in 9 cases of 10 (0.03: 3 %),
    ``in_reach`` the one that all looks would have, by the spread of these pairs; None with too few pairs.
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
    """The evidence in the pairs' differences of logarithms; ``tests`` are judged together (it only matters for
    ``visible`` and ``in_reach``).

    One-sided t tests of the mean difference. Looks that ``differences`` do not reach count for nothing; pairs beyond
    the last look that was reached are shown, not tested. Raises ValueError without a pair.
    """
    if not differences:
        raise ValueError("no pairs")
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
    """The slow-down whose lower bound exceeds the margin in nine cases of ten; infinite beyond numbers."""
    from scipy.special import stdtrit

    quantiles = float(stdtrit(pairs - 1, 1 - alpha)) + float(stdtrit(pairs - 1, POWER))
    return math.expm1(min(margin + quantiles * error, 700.0))


def _mean_and_error(differences: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    count = len(differences)
    mean = math.fsum(differences) / count
    if count < 2:
        return mean, math.inf
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in differences) / (count - 1))
    return mean, max(spread, LEAST_SPREAD) / math.sqrt(count)


def reject(p_values: Mapping[str, float], alpha: float) -> set[str]:
    """The names whose hypotheses are rejected at the family-wise rate ``alpha``, by Holm's procedure."""
    adjusted = holm(list(p_values.values()))
    return {name for name, p in zip(p_values, adjusted, strict=True) if p <= alpha}


def is_decided(deciding: Evidence, others: Iterable[Evidence], rule: Rule, *, tests: int) -> bool:
    """Whether more pairs would change nothing for a cell: one of its clocks is slower beyond doubt, or the ``deciding``
    one has passed and none can be found slower any more.

    ``tests`` are judged together by Holm's procedure: what is under the strictest of its limits is rejected whatever
    the others do, what is over the mildest never.
    """
    every = [deciding, *others]
    if any(one.slower <= rule.alpha / tests for one in every):
        return True
    return deciding.passed and all(one.slower > rule.alpha for one in every)

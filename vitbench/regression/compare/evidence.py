"""Test the differences between two runs against tolerances, with verdicts that hold for all values together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

from vitbench.core.stats.comparisons import ErrorOfSum, holm
from vitbench.core.stats.intervals import CONFIDENCE, RUN_TO_RUN
from vitbench.core.stats.relative import QuietTime
from vitbench.regression.change import Change, Verdict

#: The largest probability of any false alarm over all tested values of a suite that gate.
ERROR_RATE = 0.01

#: The factor on p-values where the first processes decided how many there would be. ``ErrorOfSum`` says why Welch's are
#: too small then: with run-to-run variation, by up to 1.2 at 1 %, 1.5 at 0.1 % and 2.4 at 0.01 %
#: (``benchmarks/two_stage_errors.py``: five processes, at most 15). The exact distribution of such sums holds only
#: without a limit on the processes, and finds less than half as much with one.
STAGED = 2.0


@dataclass(frozen=True)
class LogRatio:
    """The logarithm of HEAD's relative latency over BASE's, with its error.

    Each run adds the error of its processes (``statistics.in_quiet_turns``), and the variation between runs
    (``RUN_TO_RUN``), which is known beforehand and so has infinite degrees of freedom. ``p_factor``: see ``STAGED``.
    """

    value: float
    error: ErrorOfSum
    p_factor: float = 1.0

    @classmethod
    def of(cls, base: tuple[QuietTime, QuietTime | None], head: tuple[QuietTime, QuietTime | None]) -> LogRatio:
        """From each run's relative time and, if they decided the number of processes, its first processes."""
        parts = [(2 * RUN_TO_RUN**2, math.inf)]
        for one, first_stage in (base, head):
            stage = first_stage or one
            parts.append((stage.variance * stage.processes / one.processes, stage.processes - 1))
        staged = any(first_stage is not None for _, first_stage in (base, head))
        return cls(head[0].log_value - base[0].log_value, ErrorOfSum(tuple(parts)), STAGED if staged else 1.0)

    @cached_property
    def interval(self) -> tuple[float, float, float]:
        """The ratio with its 95 % interval."""
        half = self.error.quantile(0.5 + CONFIDENCE / 2) * math.sqrt(self.error.variance)
        return math.exp(self.value), math.exp(self.value - half), math.exp(self.value + half)

    def tail(self, bound: float) -> float:
        """The p-value of "the logarithm is at most ``bound``"."""
        return min(self.p_factor * self.error.tail((self.value - bound) / math.sqrt(self.error.variance)), 1.0)

    def reversed(self) -> LogRatio:
        """The ratio of BASE over HEAD."""
        return dataclasses.replace(self, value=-self.value)

    def smallest_found(self, margin: float, level: float, power: float) -> float:
        """The smallest ratio that a test against ``margin`` (a logarithm) at ``level`` finds with this ``power``."""
        reach = self.error.quantile(1 - level / self.p_factor) + NormalDist().inv_cdf(power)
        return math.exp(margin + reach * math.sqrt(self.error.variance))


@dataclass(frozen=True)
class Fractions:
    """Two fractions of correct answers, taken as independent even if the test images are the same.

    The interval of their difference is Newcombe's (1998, "Interval estimation for the difference between independent
    proportions", Statistics in Medicine 17, method 10): from the Wilson intervals of the two. The p-value is the level
    at which that interval's end would lie at the bound.
    """

    base: float
    base_total: int
    head: float
    head_total: int

    def interval(self, z: float) -> tuple[float, float]:
        """The interval of HEAD's fraction less BASE's, at ``z`` standard errors."""
        difference = self.head - self.base
        base_low, base_high = _wilson(self.base, self.base_total, z)
        head_low, head_high = _wilson(self.head, self.head_total, z)
        low = difference - math.hypot(self.head - head_low, base_high - self.base)
        high = difference + math.hypot(head_high - self.head, self.base - base_low)
        return low, high

    def tail(self, bound: float) -> float:
        """The p-value of "HEAD's fraction is smaller by at most ``bound``"; 0.5 where it is."""
        if self.base - self.head <= bound:
            return 0.5
        low, high = 0.0, 40.0
        for _ in range(60):
            middle = (low + high) / 2
            if self.interval(middle)[1] < -bound:
                low = middle
            else:
                high = middle
        return NormalDist().cdf(-low)

    def reversed(self) -> Fractions:
        """BASE and HEAD exchanged."""
        return Fractions(self.head, self.head_total, self.base, self.base_total)


def _wilson(fraction: float, total: int, z: float) -> tuple[float, float]:
    scale = 1 + z**2 / total
    centre = (fraction + z**2 / (2 * total)) / scale
    half = z / scale * math.sqrt(fraction * (1 - fraction) / total + z**2 / (4 * total**2))
    return centre - half, centre + half


@dataclass(frozen=True)
class Pending:
    """A change whose verdict depends on how many values are tested.

    ``worse`` and ``better``: p-values of "it moved that way by no more than the tolerance". ``within``: whether the
    interval lies within the tolerance; ``reason``: why not. ``margin``: the tolerance of ``log_ratio``, as a logarithm.
    """

    change: Change
    worse: float
    better: float
    within: bool
    reason: str
    log_ratio: LogRatio | None = None
    margin: float = 0.0


def judge(pending: Sequence[Pending]) -> dict[int, Change]:
    """The changes with their verdicts, by ``id`` of the pending one. Those that gate are one family of tests, the
    others a second one.
    """
    found: dict[int, Change] = {}
    for gates in (True, False):
        family = [one for one in pending if one.change.gates == gates]
        worse, better = (holm([getattr(one, way) for one in family]) for way in ("worse", "better"))
        for one, p_worse, p_better in zip(family, worse, better, strict=True):
            verdict: Verdict = "inconclusive"
            detail = one.reason
            if p_worse <= ERROR_RATE or p_better <= ERROR_RATE:
                verdict = "worse" if p_worse <= ERROR_RATE else "better"
                p = f"p = {min(p_worse, p_better):.2g}" + (f" (Holm, {len(family)} values)" if len(family) > 1 else "")
                detail = f"{one.change.detail}; beyond the tolerance at {p}"
            elif one.within:
                verdict, detail = "same", ""
            found[id(one)] = dataclasses.replace(one.change, verdict=verdict, detail=detail)
    return found

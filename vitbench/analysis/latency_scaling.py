"""How latency grows with tokens: the elasticity between adjacent sizes, and up to where fixed costs may explain it.

A polynomial is no model of latency: efficiency grows with size, so that the fitted terms absorb it, and their intervals
cover the true growth in 0 to 1 % of simulations. The elasticity of two measured sizes,
``log(time ratio) / log(token ratio)``, assumes nothing between them, and its t interval over processes covers 95 %
(``tests/analysis/test_latency_scaling.py``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitbench.core.stats.comparisons import Ratio
from vitbench.core.stats.intervals import Estimate


@dataclass(frozen=True, kw_only=True)
class Elasticity:
    """By which power of the tokens the time grows from one size to another, with its 95 % interval; ``flops`` is the
    same exponent of the FLOPs.
    """

    value: float
    low: float
    high: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class TimedPoint:
    """The time of one image size of ``n`` patches: the ``estimate`` in seconds, or the ``status`` in its place and why;
    ``step`` is the elasticity from the timed size before it.
    """

    image_size: tuple[int, int]
    n: int
    estimate: Estimate | None
    status: str = "ok"
    detail: str = ""
    step: Elasticity | None = None


def elasticity(time: Ratio, tokens: float, flops: float) -> Elasticity:
    """From the ratios of times, tokens and FLOPs of two sizes."""
    value, low, high, of_flops = (math.log(x) / math.log(tokens) for x in (time.value, time.low, time.high, flops))
    return Elasticity(value=value, low=low, high=high, flops=of_flops)


def fixed_costs_up_to(points: Sequence[TimedPoint]) -> int | None:
    """The N up to which the whole interval of the elasticity is below half of the FLOPs' exponent; None if the first
    step is not.

    If what depends on the image grows as FLOPs do, more than half of the time there is the same for every image:
    launching operators (launch-bound), reading weights. Efficiency that grows as fast has the same effect.
    """
    steps = [(point.n, point.step) for point in points if point.step is not None]
    leading = list(itertools.takewhile(lambda one: one[1].high < one[1].flops / 2, steps))
    return leading[-1][0] if leading else None

"""How latency grows with tokens: the elasticity between adjacent sizes, and up to where a model is launch-bound.

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

#: Time grows less than this share of what FLOPs grow (exponents): most of it does not depend on the image.
LAUNCH_BOUND = 0.5


@dataclass(frozen=True, kw_only=True)
class Elasticity:
    """By which power of the tokens the time grows from N = ``first`` to ``second``, with its 95 % interval.

    ``flops`` is the same exponent of the FLOPs.
    """

    first: int
    second: int
    value: float
    low: float
    high: float
    flops: float | None = None

    @property
    def launch_bound(self) -> bool:
        """Whether the time clearly grows by less than half of the FLOPs' exponent."""
        return self.flops is not None and self.high < LAUNCH_BOUND * self.flops


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


def elasticity(ratio: Ratio, first: int, second: int, flops: float | None = None) -> Elasticity:
    """From the ``ratio`` of the times at N = ``second`` and N = ``first``, and that of the ``flops``."""
    scale = math.log(second / first)
    value, low, high = (math.log(x) / scale for x in (ratio.value, ratio.low, ratio.high))
    return Elasticity(
        first=first,
        second=second,
        value=value,
        low=low,
        high=high,
        flops=None if flops is None else math.log(flops) / scale,
    )


def launch_bound_up_to(points: Sequence[TimedPoint]) -> int | None:
    """The N up to which launching operators, and what else costs the same for every image, takes most of the time: the
    end of the leading steps that are launch-bound; None if the first one is not clearly so.
    """
    steps = [point.step for point in points if point.step is not None]
    leading = list(itertools.takewhile(lambda one: one.launch_bound, steps))
    return leading[-1].second if leading else None

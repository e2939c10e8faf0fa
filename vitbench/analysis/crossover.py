"""Where two models cross in FLOPs, memory or time: exact roots, or brackets between sizes and how to narrow them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from vitbench.analysis.polynomials import Root, fit

if TYPE_CHECKING:
    from vitbench.analysis.scaling import Point, Scaling, Size


@dataclass(frozen=True)
class Bracket:
    """The first series is on one side at N = ``low`` (``below``: it is the smaller one) and on the other at ``high``.
    Between them nothing is known, or neither is clearly the smaller one; ends that are equal are an exact crossing.
    """

    low: int | Fraction
    high: int | Fraction
    below: bool


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """One quantity of two models. ``signs``: N, counted in patches of the first model, to -1 (the first model is
    below), 1 (above), 0 (equal, or not clear). ``roots`` of the difference of their polynomials, None where one of them
    is no polynomial; ``method``, and what a sign of 0 means, in words.
    """

    quantity: str
    signs: Mapping[int, int]
    method: str
    roots: tuple[Root, ...] | None = None
    neither: str = "equal"

    @property
    def brackets(self) -> list[Bracket]:
        """The crossings between the smallest and the largest size."""
        if self.roots is None:
            return brackets(self.signs)
        sizes = sorted(self.signs)
        inside = [root for root in self.roots if sizes[0] <= root.low and root.high <= sizes[-1]]
        return [Bracket(one.low, one.high, self._sign_before(one) < 0) for one in inside]

    def _sign_before(self, root: Root) -> int:
        return next((sign for n, sign in sorted(self.signs.items(), reverse=True) if n <= root.low and sign), 0)


def brackets(signs: Mapping[int, int]) -> list[Bracket]:
    """The crossings among ``signs``, see Crossover."""
    clear = [(n, sign) for n, sign in sorted(signs.items()) if sign]
    return [Bracket(low, high, sign < 0) for (low, sign), (high, other) in itertools.pairwise(clear) if sign != other]


def next_to_try(signs: Mapping[int, int], allowed: Sequence[int]) -> int | None:
    """The number of patches out of ``allowed`` that narrows a bracket the most; None if none lies between its ends.

    Tried are the gaps between a clear sign and its neighbour: where signs are unclear on both sides, another
    measurement would hardly be clearer.
    """
    gaps: list[tuple[float, int]] = []
    for bracket in brackets(signs):
        inside = [n for n in sorted(signs) if bracket.low <= n <= bracket.high]
        for low, high in itertools.pairwise(inside):
            between = [n for n in allowed if low < n < high]
            if between and (signs[low] or signs[high]):
                middle = min(between, key=lambda n: abs(math.log(n / math.sqrt(low * high))))
                gaps.append((high / low, middle))
    return max(gaps)[1] if gaps else None


@dataclass
class Pair:
    """Two models at the same sizes. ``note`` receives a line on each size that is added."""

    one: Scaling
    other: Scaling
    note: Callable[[str], None]

    @property
    def has_memory(self) -> bool:
        """Whether both could be traced."""
        return not self.one.no_memory and not self.other.no_memory

    @property
    def n_of(self) -> dict[Size, int]:
        """N of each size, in patches of the first model."""
        return {point.image_size: point.n for point in self.one.points}

    def allowed(self) -> dict[int, Size]:
        """The squares between the tried sizes, by N; none if a size is no square."""
        sizes = [point.image_size for point in self.one.points]
        if any(height != width for height, width in sizes):
            return {}
        step = math.lcm(self.one.patch, self.other.patch)
        sides = range(min(sizes)[0], max(sizes)[0] + 1, step)
        return {(side // self.one.patch) ** 2: (side, side) for side in sides}

    def add(self, size: Size) -> None:
        """Count both models at one more size."""
        self.one, self.other = (one.with_sizes([size], self.note) for one in (self.one, self.other))

    def cross_flops(self) -> Crossover:
        """By the roots of the difference of the polynomials; where one model has none, as memory."""
        points = (*self.one.points, *self.other.points)
        quantity = "FLOPs (lower bounds)" if any(point.lower_bound for point in points) else "FLOPs"
        values = self._values(lambda point: point.flops)
        fits = [fit([(n, pair[which]) for n, pair in values.items()]) for which in (0, 1)]
        if any(one.off for one in fits):
            return self._bisected(quantity, lambda point: point.flops, "counted")
        roots = tuple((fits[0].polynomial - fits[1].polynomial).roots())
        return Crossover(quantity=quantity, signs=_signs(values), method="root of the exact difference", roots=roots)

    def cross_memory(self, batch: int) -> Crossover:
        """Between neighbouring sizes that the patches allow, by bisection."""
        return self._bisected(
            f"memory, batch {batch}", lambda point: point.memory[batch], "traced, by bisection over sizes"
        )

    def _bisected(self, quantity: str, count: Callable[[Point], int], method: str) -> Crossover:
        allowed = self.allowed()
        while (n := next_to_try(_signs(self._values(count)), list(allowed))) is not None:
            self.add(allowed[n])
        return Crossover(
            quantity=quantity, signs=_signs(self._values(count)), method=f"{method}, by bisection over sizes"
        )

    def _values(self, count: Callable[[Point], int]) -> dict[int, tuple[int, int]]:
        """By N: what both models have there."""
        others = {point.image_size: count(point) for point in self.other.points}
        return {point.n: (count(point), others[point.image_size]) for point in self.one.points}


def _signs(values: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    return {n: (one > other) - (one < other) for n, (one, other) in values.items()}

"""Where two models cross in FLOPs, memory or time: roots of polynomials, or sizes between which they cross."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitbench.analysis.polynomials import fit

if TYPE_CHECKING:
    from vitbench.analysis.scaling import Point, Scaling, Size


@dataclass(frozen=True)
class Bracket:
    """The first model is on one side at N = ``low`` (``below``: it is the smaller one) and on the other at ``high``.
    Between them nothing is known, or neither is clearly the smaller one; ends that are equal are a root.
    """

    low: float
    high: float
    below: bool


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """One quantity of two models. ``signs``: N, counted in patches of the first model, to -1 (the first model is
    below), 1 (above), 0 (equal, or what ``neither`` says). ``brackets`` are the crossings, by N; ``outside`` are roots
    beyond the tried sizes.
    """

    quantity: str
    signs: Mapping[int, int]
    method: str
    brackets: Sequence[Bracket]
    outside: Sequence[float] = ()
    neither: str = "equal"


def find_brackets(signs: Mapping[int, int]) -> list[Bracket]:
    """The crossings among ``signs``, see Crossover."""
    clear = [(n, sign) for n, sign in sorted(signs.items()) if sign]
    return [Bracket(low, high, sign < 0) for (low, sign), (high, other) in itertools.pairwise(clear) if sign != other]


def next_to_try(signs: Mapping[int, int], allowed: Sequence[int]) -> int | None:
    """The number of patches out of ``allowed`` that narrows a bracket the most; None if none lies between its ends.

    Tried are the gaps between a clear sign and its neighbour: where signs are unclear on both sides, another
    measurement would hardly be clearer.
    """
    gaps: list[tuple[float, int]] = []
    for bracket in find_brackets(signs):
        inside = [n for n in sorted(signs) if bracket.low <= n <= bracket.high]
        for low, high in itertools.pairwise(inside):
            between = [n for n in allowed if low < n < high]
            if between and (signs[low] or signs[high]):
                middle = min(between, key=lambda n: abs(math.log(n / math.sqrt(low * high))))
                gaps.append((high / low, middle))
    return max(gaps)[1] if gaps else None


@dataclass
class Pair:
    """Two models at the same sizes, each with an N of its own. ``note`` receives a line on each size that is added."""

    one: Scaling
    other: Scaling
    note: Callable[[str], None]

    def allowed(self) -> dict[int, Size]:
        """The squares between the tried sizes, by N; none if a size is no square."""
        sizes = [point.image_size for point in self.one.points]
        if any(height != width for height, width in sizes):
            return {}
        step = math.lcm(self.one.patch, self.other.patch)
        sides = range(min(sizes)[0], max(sizes)[0] + 1, step)
        return {(side // self.one.patch) ** 2: (side, side) for side in sides}

    def add(self, size: Size) -> bool:
        """Count both models at one more size; False if one of them does not take it."""
        try:
            self.one, self.other = (one.with_sizes([size], self.note) for one in (self.one, self.other))
        except Exception as error:  # whatever a model raises: the sizes that were asked for are there
            self.note(f"{size[0]} px is left out: {error}")
            return False
        return True

    def cross_counts(self) -> list[Crossover]:
        """In FLOPs, and by batch in memory if both could be traced."""
        traced = self.one.batches if not self.one.no_memory and not self.other.no_memory else ()
        return [self.cross_flops(), *(self.cross_memory(batch) for batch in traced)]

    def cross_flops(self) -> Crossover:
        """By the roots of the difference of the polynomials; where one model has none, as memory."""
        points = (*self.one.points, *self.other.points)
        least = "lower bounds " if any(point.lower_bound for point in points) else ""
        values = self._values(lambda point: point.flops)
        fits = [fit([(n, pair[which]) for n, pair in values.items()]) for which in (0, 1)]
        if any(one.off for one in fits):
            return self._bisect("FLOPs", lambda point: point.flops, f"{least}counted")
        found = [Bracket(n, n, rises) for n, rises in (fits[0].polynomial - fits[1].polynomial).roots()]
        known = f"equal at {fits[0].checked} more" if fits[0].checked else "which no other size checks"
        return Crossover(
            quantity="FLOPs",
            signs=_signs(values),
            method=f"{least}counted; root of the difference of the polynomials through three sizes, {known}",
            brackets=[one for one in found if min(values) <= one.low <= max(values)],
            outside=[one.low for one in found if not min(values) <= one.low <= max(values)],
        )

    def cross_memory(self, batch: int) -> Crossover:
        """Between neighbouring sizes that the patches allow."""
        return self._bisect(f"memory, batch {batch}", lambda point: point.peaks[batch].bytes, "traced")

    def _bisect(self, quantity: str, count: Callable[[Point], int], how: str) -> Crossover:
        allowed = self.allowed()
        method = f"{how} at each size" + (", bisected where they cross" if allowed else "")
        while (n := next_to_try(_signs(self._values(count)), list(allowed))) is not None:
            self.add(allowed.pop(n))
        signs = _signs(self._values(count))
        return Crossover(quantity=quantity, signs=signs, method=method, brackets=find_brackets(signs))

    def _values(self, count: Callable[[Point], int]) -> dict[int, tuple[int, int]]:
        """By N: what both models have there."""
        others = {point.image_size: count(point) for point in self.other.points}
        return {point.n: (count(point), others[point.image_size]) for point in self.one.points}


def _signs(values: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    return {n: (one > other) - (one < other) for n, (one, other) in values.items()}

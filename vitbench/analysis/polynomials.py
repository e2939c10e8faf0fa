"""Counts as exact polynomials of degree 2 in tokens: solved in fractions, checked on other sizes, and their roots.

A plain ViT takes ``c + a N + b N^2`` FLOPs for N patches: b is attention's two products, a the projections and the MLP.
Its growth has no one exponent: locally it is ``d log F / d log N = (a N + 2 b N^2) / F``, which rises from 0 to 2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Polynomial:
    """``c + a N + b N^2``."""

    c: Fraction
    a: Fraction
    b: Fraction

    def at(self, n: int | Fraction) -> Fraction:
        """Its value at N = ``n``."""
        return self.c + self.a * n + self.b * n * n

    def exponent(self, n: int) -> float:
        """``d log F / d log N`` at N = ``n``, where the value is positive."""
        return float((self.a * n + 2 * self.b * n * n) / self.at(n))

    def __sub__(self, other: Polynomial) -> Polynomial:
        return Polynomial(self.c - other.c, self.a - other.a, self.b - other.b)

    @property
    def equal_terms(self) -> Fraction | None:
        """The N at which ``a N = b N^2``; None where one of the terms is not positive."""
        return self.a / self.b if self.a > 0 and self.b > 0 else None

    def roots(self) -> list[tuple[float, bool]]:
        """The positive N at which it changes its sign, in order, and whether it rises there."""
        if self.b == 0:
            found = [(float(-self.c / self.a), self.a > 0)] if self.a else []
        else:
            discriminant = self.a**2 - 4 * self.b * self.c
            if discriminant <= 0:  # a double root changes no sign
                return []
            far = -(float(self.a) + math.copysign(math.sqrt(discriminant), self.a)) / 2  # nothing cancels in this sum
            low, high = sorted((far / float(self.b), float(self.c) / far))
            found = [(low, self.b < 0), (high, self.b > 0)]
        return [(n, rises) for n, rises in found if n > 0]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The polynomial through three of several points, and what the others say.

    ``checked`` is the number of other points. ``off`` is empty if all of them are equal to the unit, else the (N,
    relative error of the polynomial) at the one that differs most: then the count is no polynomial of degree 2 in N.
    """

    polynomial: Polynomial
    checked: int
    off: tuple[int, float] | None = None


def fit(points: Sequence[tuple[int, int]]) -> Fit:
    """The polynomial through the first, the middle and the last N of (N, count), by Newton's divided differences,
    checked on all others; two counts at one N are no polynomial in N.

    Raises ValueError for fewer than three different N.
    """
    distinct = sorted(set(points))
    ordered = sorted(dict(distinct).items())
    if len(ordered) < 3:
        raise ValueError("three coefficients take three different numbers of tokens")
    chosen = [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
    (x, u), (y, v), (z, w) = chosen
    first, second = Fraction(v - u, y - x), Fraction(w - v, z - y)
    b = (second - first) / (z - x)
    a = first - b * (x + y)
    polynomial = Polynomial(u - a * x - b * x * x, a, b)
    others = [point for point in distinct if point not in chosen]
    errors = [(n, float(polynomial.at(n) / count) - 1) for n, count in others if polynomial.at(n) != count]
    return Fit(polynomial=polynomial, checked=len(others), off=max(errors, key=lambda one: abs(one[1]), default=None))


def exponents(points: Sequence[tuple[int, int]], found: Fit | None) -> list[float | None]:
    """The local exponent at each of (N, count): of the polynomial; without one, from the N before."""
    if found is not None and found.off is None:
        return [found.polynomial.exponent(n) for n, _ in points]
    steps = itertools.pairwise(points)
    return [None, *(math.log(v / u) / math.log(m / n) if m > n and u and v else None for (n, u), (m, v) in steps)]

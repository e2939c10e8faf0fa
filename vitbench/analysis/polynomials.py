"""Counts as exact polynomials of degree 2 in tokens: solved in fractions, checked on other sizes, and their roots.

A plain ViT takes ``c + a N + b N^2`` FLOPs for N patches: b is attention's two products, a the projections and the MLP.
Its growth has no one exponent: locally it is ``d log F / d log N = (a N + 2 b N^2) / F``, which rises from 0 to 2.
"""

from __future__ import annotations

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

    def roots(self) -> list[Root]:
        """Where it changes its sign at a positive N, in order: exactly where the root is rational, else to 1 token."""
        if self.b == 0:
            found = [] if self.a == 0 else [Root(-self.c / self.a, -self.c / self.a)]
        else:
            discriminant = self.a**2 - 4 * self.b * self.c
            if discriminant <= 0:  # a double root changes no sign
                return []
            root = _rational_root(discriminant)
            if root is not None:
                exact = sorted((-self.a + sign * root) / (2 * self.b) for sign in (-1, 1))
                found = [Root(one, one) for one in exact]
            else:
                found = self._isolated(math.sqrt(discriminant))
        return [one for one in found if one.high > 0]

    def _isolated(self, root: float) -> list[Root]:
        """The whole numbers around each irrational root; ``root`` is that of the discriminant."""
        found = []
        for guess in sorted((-float(self.a) + sign * root) / (2 * float(self.b)) for sign in (-1, 1)):
            for low in (math.floor(guess) + shift for shift in (0, -1, 1)):
                if self.at(low) * self.at(low + 1) < 0:
                    found.append(Root(Fraction(low), Fraction(low + 1)))
                    break
        return found


@dataclass(frozen=True)
class Root:
    """A root between ``low`` and ``high``; exact where these are equal."""

    low: Fraction
    high: Fraction


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The polynomial through three of several points, and what the others say.

    ``checked`` is the number of other points. ``off`` is empty if all of them are equal to the unit, else the (N,
    relative difference) of the one that differs most: then the count is no polynomial of degree 2.
    """

    polynomial: Polynomial
    checked: int
    off: tuple[int, float] | None = None


def fit(points: Sequence[tuple[int, int]]) -> Fit:
    """The polynomial through the first, the middle and the last of (N, count), checked on the others.

    Raises ValueError for fewer than three different N.
    """
    ordered = sorted(dict(points).items())
    if len(ordered) < 3:
        raise ValueError("three coefficients take three different numbers of tokens")
    chosen = [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
    polynomial = through(chosen)
    others = [point for point in ordered if point not in chosen]
    differences = [(n, float(count / polynomial.at(n)) - 1) for n, count in others if polynomial.at(n) != count]
    off = max(differences, key=lambda one: abs(one[1]), default=None)
    return Fit(polynomial=polynomial, checked=len(others), off=off)


def through(points: Sequence[tuple[int, int]]) -> Polynomial:
    """The polynomial through three points, by Newton's divided differences."""
    (x, u), (y, v), (z, w) = points
    first, second = Fraction(v - u, y - x), Fraction(w - v, z - y)
    b = (second - first) / (z - x)
    a = first - b * (x + y)
    return Polynomial(u - a * x - b * x * x, a, b)


def _rational_root(square: Fraction) -> Fraction | None:
    """The square root of a positive fraction, if it is one."""
    numerator, denominator = math.isqrt(square.numerator), math.isqrt(square.denominator)
    exact = numerator**2 == square.numerator and denominator**2 == square.denominator
    return Fraction(numerator, denominator) if exact else None

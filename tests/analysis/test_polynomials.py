"""Polynomials in fractions: what is put in comes out, and what is none is told."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vitbench.analysis.polynomials import Polynomial, Root, fit, through

whole = st.integers(-(10**15), 10**15)
sizes = st.lists(st.integers(1, 70_000), min_size=4, max_size=12, unique=True)
fractions = st.fractions(min_value=-1000, max_value=1000, max_denominator=50)


def whole_polynomial(c: int, a: int, b: int) -> Polynomial:
    return Polynomial(Fraction(c), Fraction(a), Fraction(b))


@given(whole, whole, whole, sizes)
def test_coefficients_come_back_from_any_three_sizes(c: int, a: int, b: int, ns: list[int]) -> None:
    known = whole_polynomial(c, a, b)
    points = [(n, int(known.at(n))) for n in ns]
    found = fit(points)
    assert found.polynomial == known == through(points[:3])
    assert (found.checked, found.off) == (len(ns) - 3, None)


@given(sizes, st.integers(1, 10**6))
def test_one_count_that_is_off_by_a_unit_is_found(ns: list[int], unit: int) -> None:
    ordered = sorted(ns)
    known = whole_polynomial(10**12, 10**6, 1000)
    wrong = ordered[1]  # the first, the middle and the last one determine it
    found = fit([(n, int(known.at(n)) + (unit if n == wrong else 0)) for n in ordered])
    assert found.off is not None
    assert found.off[0] == wrong
    assert found.off[1] == pytest.approx(unit / float(known.at(wrong)), rel=1e-3)


def test_fewer_than_three_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="three"):
        fit([(1, 2), (2, 3), (2, 3)])


@given(fractions, fractions, fractions)
def test_rational_roots_are_exact(one: Fraction, other: Fraction, scale: Fraction) -> None:
    assume(scale != 0 and one != other)
    product = Polynomial(scale * one * other, -scale * (one + other), scale)
    assert product.roots() == [Root(x, x) for x in sorted((one, other)) if x > 0]


@given(st.integers(1, 10**6), st.integers(-(10**6), -1), st.integers(1, 10**4))
def test_other_roots_lie_between_two_tokens(c: int, a: int, b: int) -> None:
    known = whole_polynomial(c, a, b)
    discriminant = a * a - 4 * b * c
    assume(discriminant > 0 and math.isqrt(discriminant) ** 2 != discriminant)
    for root in known.roots():
        assert root.high - root.low == 1
        assert known.at(root.low) * known.at(root.high) < 0


def test_lines_and_constants_have_their_roots() -> None:
    assert whole_polynomial(-129, 2, 0).roots() == [Root(Fraction(129, 2), Fraction(129, 2))]
    assert whole_polynomial(7, 0, 0).roots() == []
    assert whole_polynomial(0, 0, 0).roots() == []
    assert whole_polynomial(1, -2, 1).roots() == []  # touches 0 at 1, and crosses nowhere


def test_the_local_exponent_is_the_derivative_of_the_logarithms() -> None:
    assert whole_polynomial(0, 0, 3).exponent(50) == 2
    assert whole_polynomial(0, 3, 0).exponent(50) == 1
    assert whole_polynomial(3, 0, 0).exponent(50) == 0
    known = whole_polynomial(10**7, 10**6, 9216)
    for n in (4, 196, 4096):
        step = Fraction(1, 10**6)
        slope = math.log(known.at(n + step) / known.at(n - step)) / math.log((n + step) / (n - step))
        assert known.exponent(n) == pytest.approx(slope, rel=1e-6)


def test_terms_are_equal_where_a_over_b_says() -> None:
    known = whole_polynomial(5, 300, 4)
    assert known.equal_terms == 75
    assert known.a * 75 == known.b * 75**2
    assert whole_polynomial(5, 300, 0).equal_terms is None

"""Polynomials in fractions: known coefficients are found, and counts that are no polynomial are reported."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vitbench.analysis.polynomials import Polynomial, exponents, fit

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
    assert found.polynomial == known == fit(points[:3]).polynomial
    assert (found.checked, found.off) == (len(ns) - 3, None)


@given(sizes, st.integers(1, 10**6))
def test_one_count_that_is_off_by_a_unit_is_found(ns: list[int], unit: int) -> None:
    ordered = sorted(ns)
    known = whole_polynomial(10**12, 10**6, 1000)
    wrong = ordered[1]  # the first, the middle and the last one determine it
    found = fit([(n, int(known.at(n)) + (unit if n == wrong else 0)) for n in ordered])
    assert found.off is not None
    assert found.off[0] == wrong
    assert found.off[1] == pytest.approx(-unit / float(known.at(wrong) + unit), rel=1e-3)


def test_fewer_than_three_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="three"):
        fit([(1, 2), (2, 3), (2, 3)])


def test_two_counts_at_one_number_of_patches_are_told() -> None:
    """A model of 224x56 and 112x112 px has 49 patches twice: a polynomial in N has one value there."""
    points = [(n, 3 + 2 * n + n * n) for n in (16, 36, 49, 64)]
    assert fit([*points, points[2]]) == fit(points)
    assert fit([*points, (49, points[2][1] + 5)]).off is not None
    assert fit([(16, 5), (36, 6), (36, 7), (64, 9)]).off is not None


@given(fractions, fractions, fractions)
def test_roots_come_back_from_their_product(one: Fraction, other: Fraction, scale: Fraction) -> None:
    assume(scale != 0 and abs(one - other) > Fraction(1, 10**6))
    product = Polynomial(scale * one * other, -scale * (one + other), scale)
    found = product.roots()
    assert [n for n, _ in found] == pytest.approx([float(x) for x in sorted((one, other)) if x > 0], rel=1e-12)
    step = Fraction(1, 10**7)
    for n, rises in found:
        assert product.at(Fraction(n) - step) * product.at(Fraction(n) + step) < 0
        assert rises == (product.at(Fraction(n) + step) > 0)


def test_roots_of_lines_constants_and_extreme_coefficients() -> None:
    assert whole_polynomial(-129, 2, 0).roots() == [(64.5, True)]
    assert whole_polynomial(129, -2, 0).roots() == [(64.5, False)]
    assert whole_polynomial(7, 0, 0).roots() == []
    assert whole_polynomial(0, 0, 0).roots() == []
    assert whole_polynomial(1, -2, 1).roots() == []  # touches 0 at 1, and crosses nowhere
    assert whole_polynomial(-49, 0, 1).roots() == [(7.0, True)]
    # c + a N + b N^2 with roots near 1 and 10^15: the formula with -a + sqrt would lose the small one
    small, large = whole_polynomial(10**15, -(10**15) - 1, 1).roots()
    assert small == (pytest.approx(1, rel=1e-15), False)
    assert large == (pytest.approx(1e15, rel=1e-15), True)


def test_the_local_exponent_is_the_derivative_of_the_logarithms() -> None:
    assert whole_polynomial(0, 0, 3).exponent(50) == 2
    assert whole_polynomial(0, 3, 0).exponent(50) == 1
    assert whole_polynomial(3, 0, 0).exponent(50) == 0
    known = whole_polynomial(10**7, 10**6, 9216)
    for n in (4, 196, 4096):
        step = Fraction(1, 10**6)
        slope = math.log(known.at(n + step) / known.at(n - step)) / math.log((n + step) / (n - step))
        assert known.exponent(n) == pytest.approx(slope, rel=1e-6)


def test_without_a_polynomial_exponents_are_from_the_size_before() -> None:
    points = [(2, 8), (4, 32), (4, 32), (8, 32), (16, 0)]
    assert exponents(points, None) == [None, pytest.approx(2), None, 0, None]


def test_terms_are_equal_where_a_over_b_says() -> None:
    known = whole_polynomial(5, 300, 4)
    assert known.equal_terms == 75
    assert known.a * 75 == known.b * 75**2
    assert whole_polynomial(5, 300, 0).equal_terms is None

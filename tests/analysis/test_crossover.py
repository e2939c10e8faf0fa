"""Crossings between sizes: brackets, and sizes that narrow them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbench.analysis.crossover import Bracket, Crossover, Pair, find_brackets, next_to_try
from vitbench.analysis.scaling import Point, Scaling
from vitbench.analysis.scaling_text import crossing_words
from vitbench.core.records import Cell

CELL = Cell(model="one", image_size=(16, 16), num_classes=10, batch_size=1, device="cpu", threads=1)


def test_a_bracket_lies_between_clear_signs() -> None:
    assert find_brackets({4: -1, 9: -1, 16: 0, 25: 1}) == [Bracket(9, 25, True)]
    assert find_brackets({4: 1, 9: -1, 16: 1}) == [Bracket(4, 9, False), Bracket(9, 16, True)]
    assert find_brackets({4: -1, 9: 0, 16: -1}) == []
    assert find_brackets({4: 0, 9: 0}) == find_brackets({}) == []


def test_the_widest_gap_beside_a_clear_sign_is_tried() -> None:
    signs = {16: -1, 64: 0, 100: 0, 400: 1}
    squares = [side**2 for side in range(4, 21)]
    # 100 to 400 is as wide as 16 to 64, of which the one with the larger middle is taken
    assert next_to_try(signs, squares) == 196
    assert next_to_try({16: -1, 25: 1}, squares) is None
    assert next_to_try({16: 1, 400: 1}, squares) is None


@given(st.integers(2, 60), st.integers(2, 9_000), st.booleans())
def test_bisection_ends_beside_the_crossing(last: int, crossing: int, below: bool) -> None:
    """As many tries as halving takes, and the ends are neighbours among the allowed sizes."""
    squares = [side**2 for side in range(1, last + 1)]

    def sign(n: int) -> int:
        return (-1 if below else 1) * (1 if 2 * n < 2 * crossing + 1 else -1)

    signs = {n: sign(n) for n in (squares[0], squares[-1])}
    tries = 0
    while (n := next_to_try(signs, squares)) is not None:
        signs[n] = sign(n)
        tries += 1
    found = find_brackets(signs)
    if squares[-1] <= crossing:
        assert found == []
        return
    (only,) = found
    assert only.low <= crossing < only.high
    assert squares.index(only.high) == squares.index(only.low) + 1
    assert only.below == below
    assert tries <= 12


def words(signs: dict[int, int], roots: list[Bracket] | None = None, outside: tuple[float, ...] = ()) -> list[str]:
    point = Point(image_size=(16, 16), n=16, tokens=17, flops=1, lower_bound=False)
    scaling = Scaling(cell=CELL, batches=(1,), patch=4, points=(point,))
    brackets = find_brackets(signs) if roots is None else roots
    crossover = Crossover(
        quantity="time", signs=signs, method="", brackets=brackets, outside=outside, neither="not clear"
    )
    return crossing_words(crossover, scaling)


def test_words_say_where_models_cross_and_what_is_not_known() -> None:
    after = "A is below B before, above it after"
    assert words({16: -1, 36: 0, 64: 1}) == [
        f"between N = 16 and 64 (16 px and 32 px): {after}",
        "not clear at N = 36",
    ]
    assert words({16: -1, 36: -1}) == ["no crossover from N = 16 to 36: A is below B at every size"]
    assert words({16: 0, 36: 1}) == ["A is above B at N = 36", "not clear at N = 16"]
    assert words({16: 0, 36: 0}) == ["not clear at N = 16, 36"]
    assert words({}) == ["unknown: at no size are there values of both"]
    assert words({16: -1, 64: 1}, [Bracket(63.5, 63.5, True)]) == [f"at N = 63.5 (32 px, 64.5 tokens): {after}"]
    assert words({16: -1, 64: -1}, [], (99.2,)) == [
        "no crossover from N = 16 to 64: A is below B at every size",
        "by the polynomials at N = 99.2, outside of these sizes",
    ]


# FLOPs


def counted(flops: dict[int, int], lower_bound: bool = False) -> Scaling:
    points = [
        Point(image_size=(4 * math.isqrt(n),) * 2, n=n, tokens=n + 1, flops=value, lower_bound=lower_bound)
        for n, value in flops.items()
    ]
    return Scaling(cell=CELL, batches=(1,), patch=4, points=tuple(points))


def pair_of(sizes: list[int], lower_bound: bool = False) -> Pair:
    """(N - 70) (N - 90) + B against B = 10^6 N."""
    one = counted({n: 10**6 * n + (n - 70) * (n - 90) for n in sizes}, lower_bound)
    return Pair(one, counted({n: 10**6 * n for n in sizes}), lambda text: None)


def test_two_roots_between_two_sizes_have_opposite_directions() -> None:
    """No size lies between them, so that signs at the sizes alone would show none of the two."""
    found = pair_of([16, 36, 64, 144]).cross_flops()
    assert set(found.signs.values()) == {1}
    assert found.brackets == [Bracket(70, 70, False), Bracket(90, 90, True)]
    assert "equal at 1 more" in found.method


def test_a_root_that_nothing_checks_and_lower_bounds_are_told() -> None:
    found = pair_of([16, 64, 144], lower_bound=True).cross_flops()
    assert found.brackets[0] == Bracket(70, 70, False)
    assert "lower bounds" in found.method
    assert "which no other size checks" in found.method


def test_a_size_that_a_model_does_not_take_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """N^3 against 1,000 N, equal at N = 31.6: no polynomials of degree 2, so that sizes are bisected."""

    def refuse(*_: object) -> Scaling:
        raise AssertionError("no windows of 7")

    monkeypatch.setattr(Scaling, "with_sizes", refuse)
    notes: list[str] = []
    one, other = (counted({n: f(n) for n in (4, 16, 64, 100)}) for f in (lambda n: n**3, lambda n: 1000 * n))
    found = Pair(one, other, notes.append).cross_flops()
    assert found.brackets == [Bracket(16, 64, True)]
    assert sorted(notes) == [f"{side} px is left out: no windows of 7" for side in (20, 24, 28)]
    assert found.method == "counted at each size, bisected where they cross"

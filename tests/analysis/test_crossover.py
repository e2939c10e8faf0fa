"""Crossings between sizes: brackets, and sizes that narrow them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vitbench.analysis.crossover import Bracket, brackets, next_to_try


def test_a_bracket_lies_between_clear_signs() -> None:
    assert brackets({4: -1, 9: -1, 16: 0, 25: 1}) == [Bracket(9, 25, True)]
    assert brackets({4: 1, 9: -1, 16: 1}) == [Bracket(4, 9, False), Bracket(9, 16, True)]
    assert brackets({4: -1, 9: 0, 16: -1}) == []
    assert brackets({4: 0, 9: 0}) == brackets({}) == []


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
    found = brackets(signs)
    if squares[-1] <= crossing:
        assert found == []
        return
    (only,) = found
    assert only.low <= crossing < only.high
    assert squares.index(only.high) == squares.index(only.low) + 1
    assert only.below == below
    assert tries <= 12

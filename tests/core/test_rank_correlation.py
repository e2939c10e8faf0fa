"""Spearman's rank correlation by hand and by SciPy, and how often its interval holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitbench.core.stats.rank_correlation import MIN_VALUES, rank_correlation


def value_of(one: list[float], other: list[float]) -> float:
    found = rank_correlation(one, other)
    assert found is not None
    return found.value


def test_the_correlation_of_five_pairs_is_that_by_hand() -> None:
    """Rank differences 1, 1, 1, 1, 0: 1 - 6 * 4 / (5 * 24)."""
    assert value_of([10, 20, 30, 40, 50], [2, 1, 400, 3, 500]) == pytest.approx(0.8)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    """Ranks 1, 2.5, 2.5, 4, 5 against 1 to 5: 9.5 / sqrt(9.5 * 10)."""
    assert value_of([1, 2, 2, 3, 4], [1, 2, 3, 4, 5]) == pytest.approx(9.5 / math.sqrt(95))


@pytest.mark.parametrize("seed", range(5))
def test_scipy_gives_the_same(seed: int) -> None:
    from scipy.stats import spearmanr

    one, other = np.random.default_rng(seed).integers(0, 6, (2, 12)).tolist()
    assert value_of(one, other) == pytest.approx(float(spearmanr(one, other).statistic))


def test_few_or_equal_values_have_no_correlation() -> None:
    assert rank_correlation(range(MIN_VALUES - 1), range(MIN_VALUES - 1)) is None
    assert rank_correlation([1.0] * 6, range(6)) is None
    assert rank_correlation([], []) is None


def test_five_models_in_one_order_do_not_prove_that_all_are() -> None:
    """By chance 1 of 120 orders of five is this one, so that no correlation at all is just excluded."""
    found = rank_correlation(range(5), range(5))
    assert found is not None
    assert (found.value, found.high) == (pytest.approx(1), pytest.approx(1))
    assert 0 < found.low < 0.4
    more = rank_correlation(range(17), range(17))
    assert more is not None
    assert 0.8 < more.low < 1


def test_a_reversed_order_has_the_mirrored_interval() -> None:
    one, other = [1, 2, 3, 4, 5, 6, 7], [2, 1, 3, 5, 4, 7, 6]
    found, mirrored = rank_correlation(one, other), rank_correlation(one, [-x for x in other])
    assert found is not None
    assert mirrored is not None
    assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert found.low < found.value < found.high


def pairs_of(correlation: float, n: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of n pairs of a normal law."""
    generator = np.random.default_rng(n)
    one, noise = generator.standard_normal((2, samples, n))
    return one, correlation * one + math.sqrt(1 - correlation**2) * noise


@pytest.mark.integration
@pytest.mark.parametrize(("correlation", "n"), [(0.0, 5), (0.8, 8), (0.95, 8), (0.9, 17)])
def test_the_interval_holds_the_truth_in_95_of_100_samples(correlation: float, n: int) -> None:
    truth = 6 / math.pi * math.asin(correlation / 2)
    found = [rank_correlation(one, other) for one, other in zip(*pairs_of(correlation, n, 1000), strict=True)]
    covered = np.mean([one is not None and one.low <= truth <= one.high for one in found])
    assert 0.94 <= covered <= 0.995


def test_a_bootstrap_over_five_pairs_would_hold_it_in_six_of_ten() -> None:
    """Why no bootstrap is used: percentiles of 400 resamples, where 95 % is the nominal rate."""
    generator = np.random.default_rng(0)
    truth, covered = 6 / math.pi * math.asin(0.95 / 2), []
    for one, other in zip(*pairs_of(0.95, 5, 300), strict=True):
        chosen = generator.integers(0, 5, (400, 5))
        ranks = [_ranks_of_rows(side[chosen]) for side in (one, other)]
        centred = [side - side.mean(axis=1, keepdims=True) for side in ranks]
        norms = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
        low, high = np.quantile((centred[0] * centred[1]).sum(axis=1)[norms > 0] / norms[norms > 0], [0.025, 0.975])
        covered.append(low <= truth <= high)
    assert 0.5 < np.mean(covered) < 0.7


def _ranks_of_rows(rows: np.ndarray) -> np.ndarray:
    """By counting; equal values share the mean."""
    less = (rows[:, :, None] > rows[:, None, :]).sum(axis=2)
    return less + ((rows[:, :, None] == rows[:, None, :]).sum(axis=2) - 1) / 2

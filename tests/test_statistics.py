"""Closed forms, published values, and how often the intervals cover in simulated runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, t

from vitbench.statistics import (
    BETWEEN_PROCESSES,
    NOT_POSITIVE,
    ONE_SAMPLE,
    TOO_FEW_SAMPLES,
    WITHIN_PROCESS,
    estimate,
    median,
    median_interval,
    percentile,
    samples_for_percentile,
    warmup_length,
    wilson_interval,
)

positive = st.floats(1e-6, 1e6)


def timings(rng: np.random.Generator, n: int, warmup: int, factor: float, spikes: float = 0.02) -> np.ndarray:
    """Samples that scatter by 2 %, with a slower (or faster) start and rare spikes."""
    samples = rng.lognormal(0, 0.02, n)
    samples[:warmup] *= factor
    spiked = rng.random(n) < spikes
    samples[spiked] *= rng.uniform(2, 20, spiked.sum())
    return samples


# warm-up


@pytest.mark.parametrize(
    ("n", "warmup", "factor"), [(20, 4, 2.0), (50, 10, 1.5), (50, 10, 0.7), (300, 40, 1.1), (999, 300, 0.9)]
)
def test_the_warmup_is_found_slow_or_fast(n: int, warmup: int, factor: float) -> None:
    rng = np.random.default_rng(0)
    found = [warmup_length(timings(rng, n, warmup, factor)) for _ in range(200)]
    assert np.mean([warmup <= length <= warmup + 0.1 * n for length in found]) > 0.75


def test_little_is_cut_from_a_steady_process() -> None:
    rng = np.random.default_rng(1)
    assert np.median([warmup_length(timings(rng, 50, 0, 1.0)) for _ in range(200)]) <= 1


def test_a_single_spike_is_no_warmup() -> None:
    samples = [1.0, 1.01] * 20
    samples[15] = 1000.0
    assert warmup_length(samples) <= 1


def test_a_first_slow_sample_is_cut() -> None:
    assert warmup_length([9.0, *[1.0, 1.01] * 10]) == 1


@given(st.lists(positive, max_size=80))
@settings(deadline=None)
def test_never_more_than_half_is_cut_and_scale_does_not_matter(samples: list[float]) -> None:
    length = warmup_length(samples)
    assert 0 <= length <= len(samples) // 2
    assert warmup_length([4 * x for x in samples]) == length


@pytest.mark.parametrize("samples", [[], [1.0], [5.0, 1.0, 1.0], [2.0] * 50])
def test_nothing_is_cut_where_nothing_can_be_told(samples: list[float]) -> None:
    assert warmup_length(samples) == 0


# estimates


def test_median_of_nothing_is_refused() -> None:
    assert median([3, 1, 2]) == 2
    for empty in ([], [[]]):
        with pytest.raises(ValueError, match="no samples"):
            estimate(empty)
    with pytest.raises(ValueError, match="no samples"):
        median([])


def test_one_sample_is_its_own_estimate() -> None:
    result = estimate([[7.0]])
    assert (result.value, result.low, result.high, result.kind) == (7.0, None, None, ONE_SAMPLE)
    assert (result.n_processes, result.n_samples) == (1, 1)


def test_five_samples_have_no_interval_and_six_have() -> None:
    assert estimate([[1, 2, 3, 4, 5]]).kind == TOO_FEW_SAMPLES
    six = estimate([[3, 1, 2, 6, 5, 4]])
    assert (six.value, six.low, six.high, six.kind) == (3.5, 1, 6, WITHIN_PROCESS)
    assert estimate([[1, 2, 3, 4, 5, 6], [1, 2]]).kind == TOO_FEW_SAMPLES


def test_two_processes_span_both() -> None:
    fast, slow = [1 + 0.01 * i for i in range(9)], [2 + 0.01 * i for i in range(9)]
    result = estimate([fast, slow])
    assert result.value == pytest.approx(math.sqrt(1.04 * 2.04))
    assert (result.low, result.high) == (fast[0], slow[-1])  # at 97.5 % each, nine samples give no less
    assert (result.n_processes, result.kind) == (2, WITHIN_PROCESS)


def test_three_processes_give_the_t_interval_of_the_logarithms() -> None:
    medians = [1.0, 1.1, 1.3]
    result = estimate([[m] * 5 for m in medians])
    logs = np.log(medians)
    low, high = t.interval(0.95, 2, loc=logs.mean(), scale=logs.std(ddof=1) / math.sqrt(3))
    assert (result.value, result.low, result.high) == pytest.approx(
        (math.exp(logs.mean()), math.exp(low), math.exp(high))
    )
    assert (result.kind, result.n_processes, result.n_samples) == (BETWEEN_PROCESSES, 3, 15)


def test_equal_medians_are_returned_exactly() -> None:
    result = estimate([[0.1] * 4] * 5)
    assert (result.value, result.low, result.high) == (0.1, 0.1, 0.1)


def test_processes_without_samples_do_not_count_and_zero_has_no_logarithm() -> None:
    assert estimate([[], [7.0]]).n_processes == 1
    assert estimate([[0.0, 1.0], [0.0, 0.0], [1.0]]).kind == NOT_POSITIVE


def test_warmup_is_cut_before_the_median() -> None:
    process = [5.0] * 8 + [1.0, 1.01] * 10
    result = estimate([process] * 3)
    assert (result.value, result.n_samples) == (pytest.approx(1.005), 60)


@given(st.lists(st.lists(positive, max_size=30), min_size=1, max_size=6).filter(any))
@settings(deadline=None)
def test_the_value_lies_within_its_interval_and_within_the_samples(processes: list[list[float]]) -> None:
    result = estimate(processes)
    everything = [x for process in processes for x in process]
    assert min(everything) <= result.value * (1 + 1e-9)
    assert result.value <= max(everything) * (1 + 1e-9)
    if result.low is None or result.high is None:
        assert result.kind.startswith("none")
    else:
        assert result.low <= result.value * (1 + 1e-9)
        assert result.value <= result.high * (1 + 1e-9)


@pytest.mark.parametrize("n", [6, 9, 20, 100, 1000])
def test_the_order_statistics_are_the_narrowest_that_cover(n: int) -> None:
    low, high = median_interval(range(1, n + 1)) or (0, 0)
    assert low + high == n + 1

    def coverage(k: float) -> float:
        return float(1 - 2 * binom.cdf(k - 1, n, 0.5))

    assert coverage(low) >= 0.95 > coverage(low + 1)


def test_the_within_process_interval_covers_the_median() -> None:
    rng = np.random.default_rng(2)
    results = [estimate([rng.exponential(1, 30)]) for _ in range(1000)]
    covered = np.mean([r.low is not None and r.high is not None and r.low <= math.log(2) <= r.high for r in results])
    assert covered >= 0.93


@pytest.mark.parametrize("processes", [3, 5, 10])
def test_the_between_process_interval_covers_though_samples_depend_on_each_other(processes: int) -> None:
    rng = np.random.default_rng(processes)
    covered = 0
    for _ in range(1000):
        levels = rng.lognormal(0, 0.15, processes)  # what another process would show
        drift = np.cumsum(rng.normal(0, 0.003, (processes, 30)), axis=1)
        samples = levels[:, None] * np.exp(drift) * rng.lognormal(0, 0.02, (processes, 30))
        samples[:, 0] *= 3
        result = estimate(samples.tolist())
        assert result.low is not None
        assert result.high is not None
        covered += result.low <= 1 <= result.high
    assert 0.93 <= covered / 1000 <= 0.97


# percentiles and fractions


@pytest.mark.parametrize(("q", "n"), [(0.5, 5), (0.9, 29), (0.95, 59), (0.99, 299)])
def test_percentiles_need_as_many_samples_as_wilks_says(q: float, n: int) -> None:
    assert samples_for_percentile(q) == n
    assert percentile([1.0] * (n - 1), q) is None
    assert percentile([1.0] * n, q) == 1.0
    assert 1 - q**n >= 0.95 > 1 - q ** (n - 1)


def test_a_percentile_out_of_range_is_refused() -> None:
    for q in (0.1, 1.0, 90):
        with pytest.raises(ValueError, match="q must lie"):
            percentile([1.0], q)


def test_wilson_gives_newcombes_published_values() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", Table I, method 3
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (correct, total), bounds in published.items():
        assert wilson_interval(correct, total) == pytest.approx(bounds, abs=5e-5)


@given(st.integers(1, 3000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
@settings(deadline=None)
def test_wilson_agrees_with_scipy(counts: tuple[int, int]) -> None:
    correct, total = counts
    expected = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(correct, total)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= correct / total <= high <= 1


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_fraction(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="no fraction"):
        wilson_interval(correct, total)

"""Closed forms, published values, and how often the intervals cover in simulated runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom, binomtest, norm, t, ttest_ind

from vitbench.core.records import Cell, Measurement, Record
from vitbench.core.stats.comparisons import ErrorOfSum, Ratio, compare, compare_relative, noise_floor
from vitbench.core.stats.estimates import with_fastest_reference
from vitbench.core.stats.intervals import (
    BETWEEN_PROCESSES,
    BETWEEN_RUNS,
    MIN_PROCESSES,
    NOT_POSITIVE,
    ONE_SAMPLE,
    TOO_FEW_SAMPLES,
    WITHIN_PROCESS,
    allow_for_runs,
    estimate,
    median,
    median_interval,
    percentile,
    prediction_interval,
    process_medians,
    samples_for_percentile,
    steady_in_turns,
    warmup_length,
    wilson_interval,
)
from vitbench.core.stats.relative import QuietTime, estimate_quiet, in_quiet_turns, processes_for, relative_samples

positive = st.floats(1e-6, 1e6)
UP = [float(x) for x in range(100, 140)]


def test_intervals_with_the_allowance_hold_the_middle_of_runs_that_differ() -> None:
    """95 % of runs, if runs differ by the 4 % that is allowed for and their processes by 2 %."""
    rng = np.random.default_rng(0)
    held = narrow = 0
    for _ in range(2000):
        run = math.exp(rng.normal(0, 0.04))
        one = estimate([[run * math.exp(rng.normal(0, 0.02))] * 3 for _ in range(5)])
        wide = allow_for_runs(one)
        assert None not in (one.low, one.high, wide.low, wide.high)
        narrow += one.low <= 1 <= one.high
        held += wide.low <= 1 <= wide.high
    assert 0.93 <= held / 2000 <= 0.97
    assert narrow / 2000 < 0.6


@pytest.mark.parametrize("processes", [[UP], [UP, UP[::-1]], [[1.0]], [[1.0, 2.0]]])
def test_an_interval_that_says_nothing_of_other_processes_is_not_made_one_of_other_runs(
    processes: list[list[float]],
) -> None:
    one = estimate(processes)
    assert allow_for_runs(one) == one
    assert one.kind not in (BETWEEN_PROCESSES, BETWEEN_RUNS)


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


@pytest.mark.integration
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
    with pytest.raises(ValueError, match="not a fraction"):
        wilson_interval(correct, total)


# relative to the reference: closed forms


def test_each_sample_is_divided_by_the_reference_of_its_turn() -> None:
    relative = relative_samples([[2.0, 4.0, 9.0], [5.0]], [[2, 1], [1]], [[2.0, 3.0], [10.0]])
    assert relative == [[1.0, 2.0, 3.0], [0.5]]
    assert relative_samples([], [], []) == []


@pytest.mark.parametrize(
    ("samples", "turns", "reference", "reason"),
    [
        ([[1.0, 2.0]], [[1]], [[1.0]], "turns of 1 samples in all, but 2 samples"),
        ([[1.0]], [[1]], [[0.0]], "not positive"),
        ([[1.0, 2.0]], [[1, 1]], [[1.0]], "zip"),
        ([[1.0], [1.0]], [[1]], [[1.0]], "zip"),
    ],
)
def test_turns_that_do_not_fit_the_samples_are_refused(
    samples: list[list[float]], turns: list[list[int]], reference: list[list[float]], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        relative_samples(samples, turns, reference)


def test_drift_that_the_reference_shares_cancels_exactly() -> None:
    drift = [1.0, 1.5, 3.0, 0.5]
    samples = [2.0 * d for d in drift for _ in range(3)]
    (relative,) = relative_samples([samples], [[3] * 4], [drift])
    assert relative == [2.0] * 12


def test_process_medians_leave_out_the_warmup_and_processes_without_samples() -> None:
    assert process_medians([[5.0] * 8 + [1.0, 1.01] * 10, [], [7.0]]) == [pytest.approx(1.005), 7.0]


def steins_number(medians: Sequence[float], precision: float) -> int:
    """Stein 1945, from the medians of a first stage."""
    spread = np.std(np.log(medians), ddof=1)
    return max(len(medians), math.ceil((t.ppf(0.975, len(medians) - 1) * spread / math.log1p(precision)) ** 2))


def test_the_number_of_processes_reaches_the_precision_and_one_fewer_does_not() -> None:
    medians, precision = [0.95, 1.0, 1.0, 1.02, 1.06], 0.02
    n = steins_number(medians, precision)
    centre = float(np.exp(np.mean(np.log(medians))))

    def width(count: int) -> float:
        more = [[m] for m in medians] + [[centre]] * (count - len(medians))
        result = estimate(more, first_stage=len(medians))
        assert result.high is not None
        return result.high / result.value - 1

    assert width(n) <= precision < width(n - 1)


def test_the_first_stage_alone_gives_spread_and_degrees_of_freedom() -> None:
    medians = [1.0, 1.1, 0.9, 1.05, 0.95, 3.0, 0.3]  # the last two scatter far more
    result = estimate([[m] for m in medians], first_stage=5)
    logs = np.log(medians)
    half = t.ppf(0.975, 4) * logs[:5].std(ddof=1) / math.sqrt(7)
    assert (result.value, result.low, result.high) == pytest.approx(
        (math.exp(logs.mean()), math.exp(logs.mean() - half), math.exp(logs.mean() + half))
    )
    everything = estimate([[m] for m in medians])
    assert everything.high is not None
    assert result.high is not None
    assert result.high < everything.high


def test_a_first_stage_of_everything_changes_nothing() -> None:
    processes = [[m] for m in (1.0, 1.1, 0.9, 1.05, 0.95)]
    assert estimate(processes, first_stage=5) == estimate(processes) == estimate(processes, first_stage=2)


def test_a_paired_comparison_is_the_t_interval_of_the_log_ratios() -> None:
    one, other = [1.0, 1.2, 0.9, 1.1], [2.0, 2.3, 1.9, 2.1]
    ratio = compare(one, other, paired=True)
    logs = np.log(np.array(one) / np.array(other))
    low, high = t.interval(0.95, 3, loc=logs.mean(), scale=logs.std(ddof=1) / 2)
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((math.exp(logs.mean()), math.exp(low), math.exp(high)))


def test_an_unpaired_comparison_is_welchs() -> None:
    one, other = [1.0, 1.2, 0.9, 1.1, 1.05], [2.0, 2.9, 1.5]
    ratio = compare(one, other)
    interval = ttest_ind(np.log(one), np.log(other), equal_var=False).confidence_interval(0.95)
    assert ratio is not None
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert ratio.value == pytest.approx(math.exp(np.mean(np.log(one)) - np.mean(np.log(other))))


@pytest.mark.parametrize("paired", [True, False])
def test_a_comparison_turned_round_is_the_inverse(paired: bool) -> None:
    one, other = [1.0, 1.2, 0.9, 1.1], [1.3, 1.1, 1.2, 1.25]
    there, back = compare(one, other, paired=paired), compare(other, one, paired=paired)
    assert there is not None
    assert back is not None
    assert (there.value, there.low, there.high) == pytest.approx((1 / back.value, 1 / back.high, 1 / back.low))


def test_pairs_go_by_order_and_what_is_left_over_is_left_out() -> None:
    ratio = compare([1.0, 2.0, 4.0, 99.0], [0.5, 1.0, 2.0], paired=True)
    assert ratio == Ratio(2.0, 2.0, 2.0)
    assert ratio.tells_apart


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("one", "other"), [([1.0], [1.0, 2.0]), ([], []), ([1.0, 0.0], [1.0, 2.0])])
def test_too_little_is_not_compared(one: list[float], other: list[float], paired: bool) -> None:
    assert compare(one, other, paired=paired) is None


def test_equal_medians_are_not_told_apart() -> None:
    for paired in (True, False):
        assert compare([1.5] * 3, [1.5] * 3, paired=paired) == Ratio(1.0, 1.0, 1.0)
    assert not Ratio(1.0, 1.0, 1.0).tells_apart


def test_the_noise_floor_is_the_half_width_for_as_many_pairs() -> None:
    ratios = [1.01, 0.99, 1.02, 0.98]
    spread = np.std(np.log(ratios), ddof=1)
    assert noise_floor(ratios, 9) == pytest.approx(math.exp(t.ppf(0.975, 3) * spread / 3) - 1)
    assert noise_floor([1.0, 1.0], 5) == 0
    for bad in ([1.0], [], [1.0, 0.0]):
        with pytest.raises(ValueError, match="two positive ratios"):
            noise_floor(bad, 5)


# relative to the reference: how often the intervals cover

FIRST_STAGE, MOST_PROCESSES, PRECISION = 5, 15, 0.05


def is_about(found: Sequence[bool], probability: float) -> bool:
    """Whether a simulation's share is within 1 % of ``probability`` and three standard errors of the simulation."""
    error = math.sqrt(probability * (1 - probability) / len(found))
    return abs(float(np.mean(found)) - probability) <= 0.01 + 3 * error


SLOW = pytest.mark.slow


def stein(medians: np.ndarray) -> int:
    """How many processes a run takes, decided after the first stage."""
    return min(steins_number(medians[:FIRST_STAGE].tolist(), PRECISION), MOST_PROCESSES)


def covers_one(samples: list[list[float]], first_stage: int | None = None) -> bool:
    result = estimate(samples, first_stage=first_stage)
    assert result.low is not None
    assert result.high is not None
    return result.low <= 1 <= result.high


@pytest.mark.parametrize("spread", [0.02, 0.05, 0.1])
def test_the_two_stage_interval_covers_whatever_the_spread(spread: float) -> None:
    """Medians scatter with heavier tails than a normal law's."""
    rng = np.random.default_rng(round(1000 * spread))
    medians = np.exp(spread * rng.standard_t(20, (2000, MOST_PROCESSES)))
    assert is_about([covers_one([[m] for m in run[: stein(run)]], FIRST_STAGE) for run in medians], 0.95)


@pytest.mark.integration
def test_looking_after_each_process_covers_less() -> None:
    """What the two-stage procedure is there for: stopping once the interval is narrow stops too often by luck."""
    rng = np.random.default_rng(3)
    logs = rng.normal(0, 0.08, (2000, MOST_PROCESSES))
    naive, two_stage = [], []
    for run in logs:
        for n in range(3, MOST_PROCESSES + 1):
            half = t_half_width(run[:n])
            if half <= math.log1p(PRECISION):
                break
        naive.append(abs(run[:n].mean()) <= half)
        medians = np.exp(run)
        two_stage.append(covers_one([[m] for m in medians[: stein(medians)]], FIRST_STAGE))
    assert np.mean(naive) < 0.92
    assert is_about(two_stage, 0.95)


T_975 = {n: float(t.ppf(0.975, n - 1)) for n in range(2, MOST_PROCESSES + 1)}


def t_half_width(values: np.ndarray) -> float:
    return T_975[len(values)] * float(values.std(ddof=1)) / math.sqrt(len(values))


def relative_in_quiet_turns(*found: Any) -> QuietTime | None:
    quiet = in_quiet_turns(*found)
    return quiet.relative if quiet else None


class Machine:
    """Processes on a machine that drifts: samples depend on those before them, spikes come, the first ones are slow."""

    def __init__(self, seed: int, *, spread: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.spread = spread  # of the processes' own speeds

    def process(self, turns: int = 8, per_turn: int = 8) -> tuple[list[float], list[int], list[float]]:
        """The samples, turns and reference samples of one process of a program that takes three reference steps."""
        rng, n = self.rng, turns * per_turn
        speed = np.exp(rng.uniform(0, 0.5) + np.cumsum(rng.normal(0, 0.05, turns)))  # of the machine, turn by turn
        noise = rng.normal(0, 0.03, n)
        for i in range(1, n):
            noise[i] += 0.6 * noise[i - 1]
        samples = 3 * np.exp(rng.normal(0, self.spread) + noise) * np.repeat(speed, per_turn)
        samples[rng.random(n) < 0.03] *= rng.uniform(2, 20)
        samples[: rng.integers(1, 6)] *= 1.8
        reference = speed * np.exp(rng.normal(0, 0.01, turns))
        return samples.tolist(), [per_turn] * turns, reference.tolist()

    def raw(self) -> list[tuple[list[float], list[int], list[float]]]:
        """A run's processes, as many as the quiet turns of the first ones ask for."""
        found = [self.process() for _ in range(FIRST_STAGE)]
        quiet = relative_in_quiet_turns(*zip(*found, strict=True))
        assert quiet is not None
        wanted = min(processes_for(quiet, PRECISION), MOST_PROCESSES)
        return found + [self.process() for _ in range(wanted - FIRST_STAGE)]

    def run(self) -> list[list[float]]:
        """A run's relative samples, over the truth; as many processes as the medians of the first ones ask for."""
        found = [self.process() for _ in range(FIRST_STAGE)]
        medians = np.array(process_medians(self._relative(found)))
        found += [self.process() for _ in range(stein(medians) - FIRST_STAGE)]
        return [[x / 3 for x in process] for process in self._relative(found)]

    @staticmethod
    def _relative(found: list[tuple[list[float], list[int], list[float]]]) -> list[list[float]]:
        samples, turns, reference = zip(*found, strict=True)
        return relative_samples(samples, turns, reference)


@pytest.mark.integration
@pytest.mark.parametrize("count", [500, pytest.param(2500, marks=SLOW)])
def test_relative_values_of_a_drifting_machine_cover_the_truth(count: int) -> None:
    """From raw samples through every function that a run uses."""
    machine = Machine(11, spread=0.05)
    runs = [machine.run() for _ in range(count)]
    assert {len(run) for run in runs} >= {5, 10, 15}  # the number of processes is decided by luck, and differs
    assert is_about([covers_one(run, FIRST_STAGE) for run in runs], 0.95)


# relative to the reference: quiet turns

EVEN = [[2] * 4] * 3
SWIFT, SLUGGISH = 0.01, 0.013


def test_only_turns_in_which_the_reference_was_fast_count() -> None:
    """A program that a slow machine slows by 1.5 times where it slows the reference by 1.3."""
    reference = [[SWIFT, SLUGGISH, SLUGGISH, SWIFT], [SLUGGISH, SWIFT, SLUGGISH, SLUGGISH], [SWIFT] * 4]
    times = [[0.03 * (1.5 if time == SLUGGISH else 1.0) for time in process for _ in range(2)] for process in reference]
    found = relative_in_quiet_turns(times, EVEN, reference)
    assert found is not None
    assert estimate_quiet(found).value == pytest.approx(3)
    assert (found.n_processes, found.n_samples) == (3, 14)
    assert found.influences == pytest.approx((0, 0, 0))
    assert found.processes == pytest.approx(7**2 / (2**2 + 1 + 4**2))
    assert estimate(relative_samples(times, EVEN, reference)).value > 3.2


def test_cell_and_reference_are_taken_apart_where_they_were_quiet_at_different_times() -> None:
    reference = [[SLUGGISH, SLUGGISH, SWIFT, SWIFT]] * 3
    times = [[0.03] * 4 + [0.06] * 4] * 3
    found = relative_in_quiet_turns(times, EVEN, reference)
    assert found is not None
    assert math.exp(found.log_value) == pytest.approx(3)
    assert (found.n_processes, found.n_samples, len(found.influences)) == (3, 12, 6)


def test_turns_in_which_the_cell_alone_was_disturbed_do_not_count() -> None:
    reference = [[SWIFT] * 4] * 3
    times = [[0.03] * 4 + [0.05] * 4] * 3
    found = relative_in_quiet_turns(times, EVEN, reference)
    assert found is not None
    assert (math.exp(found.log_value), found.n_samples) == (pytest.approx(3), 12)


def test_a_process_without_a_quiet_turn_has_no_influence() -> None:
    reference = [[SWIFT] * 4] * 3 + [[SLUGGISH] * 4]
    times = [[factor * time for time in reference[0] for _ in range(2)] for factor in (2.9, 3.0, 3.1)] + [[9.0] * 8]
    found = relative_in_quiet_turns(times, [*EVEN, EVEN[0]], reference)
    assert found is not None
    assert (found.n_processes, found.influences[3]) == (3, 0)
    assert found.processes == pytest.approx(3)


def test_all_turns_count_where_too_few_processes_saw_anything_quiet() -> None:
    reference = [[SWIFT] * 4, [SWIFT] * 4, [SLUGGISH] * 4]
    times = [[3 * time for time in process for _ in range(2)] for process in reference]
    found = relative_in_quiet_turns(times, EVEN, reference)
    assert found is not None
    assert (found.n_processes, found.n_samples, math.exp(found.log_value)) == (3, 24, pytest.approx(3))


def test_processes_that_saw_nothing_quiet_ask_for_more_of_them() -> None:
    times = [[factor * SWIFT] * 8 for factor in (2.9, 2.95, 3.0, 3.05, 3.1)]
    quiet = relative_in_quiet_turns(times, [[2] * 4] * 5, [[SWIFT] * 4] * 5)
    assert quiet is not None
    spread = np.std(np.log([2.9, 2.95, 3.0, 3.05, 3.1]) - quiet.log_value, ddof=1)
    assert processes_for(quiet, 0.02) == math.ceil((t.ppf(0.975, 4) * spread / math.log(1.02)) ** 2) > 5
    assert processes_for(quiet, 0.5) == 5
    half = relative_in_quiet_turns(
        [*times, *[[9.0] * 8] * 5], [[2] * 4] * 10, [*[[SWIFT] * 4] * 5, *[[SLUGGISH] * 4] * 5]
    )
    assert half is not None
    assert half.log_value == pytest.approx(quiet.log_value)
    assert processes_for(half, 0.5) == 10
    assert processes_for(half, 0.02) == pytest.approx(2 * processes_for(quiet, 0.02), abs=1)
    with pytest.raises(ValueError, match="positive"):
        processes_for(half, 0.0)


def test_seconds_are_those_of_the_same_quiet_turns() -> None:
    reference = [[SWIFT, SLUGGISH, SLUGGISH, SWIFT], [SLUGGISH, SWIFT, SLUGGISH, SLUGGISH], [SWIFT] * 4]
    times = [[0.03 * (1.5 if time == SLUGGISH else 1.0) for time in process for _ in range(2)] for process in reference]
    found = in_quiet_turns(times, EVEN, reference)
    assert found is not None
    assert estimate_quiet(found.seconds).value == pytest.approx(0.03)
    assert (found.seconds.n_samples, found.seconds.quiet) == (14, True)
    assert found.reference == pytest.approx([SWIFT, SWIFT, SWIFT], rel=0.2)
    assert estimate(times).value > 0.031


def test_turns_beside_other_programs_count_only_where_too_few_others_are_quiet() -> None:
    reference = [[SWIFT] * 4] * 3
    times = [[0.03] * 4 + [0.033] * 4] * 3  # slower by less than the limit
    beside = in_quiet_turns(times, EVEN, reference, [[0.0, 0.1, 0.9, 0.9]] * 3)
    always = in_quiet_turns(times, EVEN, reference, [[0.9] * 4] * 3)
    assert beside is not None
    assert always is not None
    assert math.exp(beside.seconds.log_value) == pytest.approx(0.03)
    assert (beside.seconds.n_samples, always.seconds.n_samples) == (12, 24)
    assert always.seconds.quiet


def test_where_all_turns_count_the_value_says_so() -> None:
    reference = [[SWIFT] * 4, [SWIFT] * 4, [SLUGGISH] * 4]
    times = [[3 * time for time in process for _ in range(2)] for process in reference]
    found = in_quiet_turns(times, EVEN, reference)
    assert found is not None
    assert not found.seconds.quiet


def test_seconds_of_a_machine_that_was_slow_throughout_say_so_and_ratios_hold() -> None:
    quick = [[SWIFT * (1 + 0.01 * n)] * 4 for n in range(3)]
    slow = [[1.3 * time for time in process] for process in quick]
    times = [[3 * time for time in process for _ in range(2)] for process in slow]
    found = in_quiet_turns(times, EVEN, slow, (), SWIFT)
    assert found is not None
    assert found.slower == pytest.approx(1.3, rel=0.02)
    assert found.seconds.quiet
    assert math.exp(found.relative.log_value) == pytest.approx(3)
    as_fast = in_quiet_turns(times, EVEN, slow, (), 1.25 * SWIFT)
    assert as_fast is not None
    assert as_fast.slower == 1


def test_a_slow_machine_is_said_where_cell_and_reference_were_quiet_at_different_times() -> None:
    reference = [[SWIFT, SWIFT, SLUGGISH, SLUGGISH]] * 3
    times = [[0.06] * 4 + [0.03] * 4] * 3  # the cell is quick while the reference is slow
    found = in_quiet_turns(times, EVEN, reference, (), SWIFT / 1.3)
    assert found is not None
    assert found.slower == pytest.approx(1.3)


def test_the_fastest_reference_is_that_of_the_device_and_of_the_kind_of_time() -> None:
    def time(metric: str, reference: float) -> Measurement:
        return Measurement(
            metric=metric,
            unit="s",
            samples=((1.0,),),
            turns=((1,),),
            reference_samples=((reference,),),
            reference="reference 1",
            method="made up",
        )

    def record(device: str, *times: Measurement) -> Record:
        cell = Cell(model="m", image_size=(32, 32), num_classes=10, batch_size=1, device=device, threads=2)
        return Record(
            cell=cell,
            status="ok",
            measurements=times,
            environment="e",
            started_at="2026-01-01T00:00:00",
            duration_s=1.0,
        )

    found = with_fastest_reference(
        [
            record("cuda:0", time("latency", 0.01), time("latency_cpu_time", 0.002)),
            record("cuda:1", time("latency", 0.02), Measurement.single("params", "parameter", 1, "made up")),
            record("cuda:1", time("training_step", 0.03)),
        ]
    )
    known = [one.fastest_reference for record in found for one in record.measurements]
    assert known == [0.01, 0.002, pytest.approx(0.02, rel=0.02), None, pytest.approx(0.02, rel=0.02)]
    assert "fastest_reference" not in found[0].to_json()


def test_seconds_take_the_turns_that_are_as_fast_as_those_of_the_run() -> None:
    # within 10 % of the cell's own fastest turns, but only two of four within 10 % of the run's
    reference = [[1.05 * SWIFT] * 4, [1.08 * SWIFT, 1.14 * SWIFT, 1.08 * SWIFT, 1.14 * SWIFT], [1.05 * SWIFT] * 4]
    times = [[3 * time for time in process for _ in range(2)] for process in reference]
    own, of_run = in_quiet_turns(times, EVEN, reference), in_quiet_turns(times, EVEN, reference, (), SWIFT)
    assert own is not None
    assert of_run is not None
    assert (own.seconds.n_samples, of_run.seconds.n_samples, of_run.relative.n_samples) == (24, 20, 24)
    assert of_run.slower == 1


def test_the_first_call_of_a_turn_does_not_count_nor_does_the_warmup() -> None:
    assert steady_in_turns([9.0, 1.0, 1.1, 9.0, 1.2, 1.3, 8.0, 2.0], [3, 3, 2]) == [[1.0, 1.1], [1.2, 1.3], [8.0, 2.0]]
    slow_start = [5.0, 4.0, 3.0, 2.0] + [1.0 + 0.01 * (i % 3) for i in range(16)]
    kept = steady_in_turns(slow_start, [5] * 4)
    assert list(map(len, kept)) == [1, 4, 4, 4]


def busy_half(rng: np.random.Generator, processes: int) -> tuple[list[list[float]], ...]:
    """Processes of ten turns on two cores; another program takes one of them for half of the time, by long spells."""
    found: tuple[list[list[float]], ...] = [], [], [], []
    busy = bool(rng.random() < 0.5)
    for _ in range(processes):
        own = rng.normal(0, 0.03)
        samples: list[float] = []
        reference: list[float] = []
        load: list[float] = []
        for _ in range(10):
            busy ^= bool(rng.random() < 0.1)
            slower = rng.uniform(1.5, 30, 5) if busy else np.ones(5)
            samples += (3 * np.exp(own + rng.normal(0, 0.02, 5)) * slower).tolist()
            reference.append(float(np.exp(rng.normal(0, 0.02)) * (rng.uniform(1.2, 5) if busy else 1)))
            load.append(0.9 if busy else 0.05)
        for part, values in zip(found, (samples, [5] * 10, reference, load), strict=True):
            part.append(values)  # type: ignore[arg-type]
    return found


@pytest.mark.integration
def test_seconds_on_a_busy_machine_cover_the_quiet_time() -> None:
    rng = np.random.default_rng(3)
    held, all_turns = [], []
    for _ in range(400):
        samples, turns, reference, load = busy_half(rng, 8)
        found = in_quiet_turns(samples, turns, reference, load)  # type: ignore[arg-type]
        assert found is not None
        if found.seconds.n_processes >= MIN_PROCESSES and found.seconds.quiet:
            result = estimate_quiet(found.seconds)
            held.append(bool(result.low and result.high and result.low <= 3 <= result.high))
        all_turns.append(estimate(samples).value)
    assert len(held) > 380
    assert is_about(held, 0.95)
    assert np.median(all_turns) > 4


def test_two_processes_tell_nothing_of_how_processes_differ() -> None:
    assert relative_in_quiet_turns([[1.0], [1.0], []], [[1], [1], []], [[1.0], [1.0], []]) is None
    with pytest.raises(ValueError, match="not positive"):
        relative_in_quiet_turns([[0.0]] * 3, [[1]] * 3, [[1.0]] * 3)


def test_one_turn_a_process_gives_the_t_interval_of_the_logarithms() -> None:
    found = relative_in_quiet_turns([[1.0], [1.05], [1.1]], [[1]] * 3, [[1.0]] * 3)
    assert found is not None
    result, plain = estimate_quiet(found), estimate([[1.0], [1.05], [1.1]])
    assert (result.value, result.low, result.high) == pytest.approx((plain.value, plain.low, plain.high))
    assert (result.kind, result.n_processes, result.n_samples) == (BETWEEN_PROCESSES, 3, 3)


def test_a_disturbed_turn_moves_the_figure_hardly() -> None:
    rng = np.random.default_rng(4)
    times = 3 * np.exp(rng.normal(0, 0.01, (5, 8)))
    found = relative_in_quiet_turns(times.tolist(), [[1] * 8] * 5, [[1.0] * 8] * 5)
    times[2, 3:5] *= 10
    disturbed = relative_in_quiet_turns(times.tolist(), [[1] * 8] * 5, [[1.0] * 8] * 5)
    assert found is not None
    assert disturbed is not None
    assert abs(disturbed.log_value - found.log_value) < 0.005


@pytest.mark.integration
@pytest.mark.parametrize(
    ("spread", "count"),
    [(0.05, 400), *(pytest.param(spread, 2000, marks=SLOW) for spread in (0.01, 0.03, 0.05))],
)
def test_values_of_quiet_turns_cover_the_truth(spread: float, count: int) -> None:
    """From raw samples on, the number of processes decided after five."""
    machine = Machine(12, spread=spread)
    held, kept = [], []
    for _ in range(count):
        raw = machine.raw()
        found = relative_in_quiet_turns(*zip(*raw, strict=True))
        assert found is not None
        first = relative_in_quiet_turns(*zip(*raw[:FIRST_STAGE], strict=True))
        result = estimate_quiet(found, first)
        assert result.low is not None
        assert result.high is not None
        held.append(result.low <= 3 <= result.high)
        kept.append(found.n_processes / len(raw))
    assert is_about(held, 0.95)
    assert np.mean(kept) < 0.95  # the machine is not quiet for all of them


@pytest.mark.parametrize("paired", [True, False])
def test_a_comparison_in_quiet_turns_turned_round_is_the_inverse_and_pairing_takes_off_what_is_shared(
    paired: bool,
) -> None:
    rng = np.random.default_rng(6)
    shared = rng.normal(0, 0.05, (8, 1))
    one, other = (
        relative_in_quiet_turns(
            (factor * np.exp(shared + rng.normal(0, 0.01, (8, 6)))).tolist(), [[1] * 6] * 8, [[1.0] * 6] * 8
        )
        for factor in (1.03, 1.0)
    )
    assert one is not None
    assert other is not None
    there, back = compare_relative(one, other, paired=paired), compare_relative(other, one, paired=paired)
    assert (there.value, there.low, there.high) == pytest.approx((1 / back.value, 1 / back.high, 1 / back.low))
    assert there.low <= 1.03 <= there.high
    assert there.tells_apart is paired


@pytest.mark.integration
@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize(("paired", "shared"), [(True, 0.0), (True, 0.05), (False, 0.0)])
def test_comparisons_in_quiet_turns_cover_and_tell_equal_programs_apart_once_in_twenty(
    paired: bool, shared: float, n: int
) -> None:
    def program(level: np.ndarray) -> QuietTime:
        times = np.exp(level[:, None] + rng.normal(0, 0.02, (n, 6)))
        found = relative_in_quiet_turns(times.tolist(), [[1] * 6] * n, [[1.0] * 6] * n)
        assert found is not None
        return found

    rng = np.random.default_rng(n)
    apart = []
    for levels in rng.normal(0, shared, (600, 1, n)) + rng.normal(0, 0.03, (600, 2, n)):
        apart.append(compare_relative(program(levels[0]), program(levels[1]), paired=paired).tells_apart)
    assert is_about(apart, 0.05)


def one_turn_each(logs: Sequence[float]) -> QuietTime:
    found = relative_in_quiet_turns([[math.exp(log)] for log in logs], [[1]] * len(logs), [[1.0]] * len(logs))
    assert found is not None
    return found


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("others", [20, 5])
def test_a_comparison_takes_the_first_stages_spread_and_degrees_of_freedom(paired: bool, others: int) -> None:
    """The other cell always takes the same, so that the interval is that of the one: t of 4, its spread by root 20."""
    first = [-0.02, -0.01, 0.0, 0.01, 0.02]
    one, other = one_turn_each([*first, *[0.0] * 15]), one_turn_each([0.0] * others)
    stages = one_turn_each(first), one_turn_each([0.0] * 5) if others > 5 else None
    found = compare_relative(one, other, paired=paired, first_stages=stages)
    half = t.ppf(0.975, 4) * np.std(first, ddof=1) / math.sqrt(20)
    assert (found.value, math.log(found.high), math.log(found.low)) == pytest.approx((1.0, half, -half))
    back = compare_relative(other, one, paired=paired, first_stages=stages[::-1])
    assert (back.low, back.high) == pytest.approx((1 / found.high, 1 / found.low))
    assert compare_relative(one, other, paired=paired).high < found.high


@pytest.mark.integration
@pytest.mark.parametrize(
    ("paired", "shared", "own"), [(True, 0.05, 0.03), pytest.param(False, 0.0, 0.05, marks=SLOW), (False, 0.0, 0.08)]
)
def test_equal_programs_whose_processes_were_decided_after_five_are_told_apart_once_in_twenty(
    paired: bool, shared: float, own: float
) -> None:
    """1000 comparisons: the simulation's error is 0.7 %."""
    rng = np.random.default_rng(0)
    apart, without = [], []
    for _ in range(1000):
        both = rng.normal(0, own, (2, 40)) + rng.normal(0, shared, 40)
        firsts = [one_turn_each(logs[:FIRST_STAGE]) for logs in both]
        wholes = [one_turn_each(logs[: processes_for(first, 0.05)]) for logs, first in zip(both, firsts, strict=True)]
        first_stages = firsts[0], firsts[1]
        apart.append(compare_relative(*wholes, paired=paired, first_stages=first_stages).tells_apart)
        without.append(compare_relative(*wholes, paired=paired).tells_apart)
    assert 0.025 <= np.mean(apart) <= 0.065
    assert np.mean(without) > np.mean(apart) + 0.005


def test_an_error_of_one_part_is_students_t_and_of_known_parts_the_normal_law() -> None:
    for two_stage in (False, True):
        one, known = ErrorOfSum(((0.3, 4.0),), two_stage), ErrorOfSum(((0.3, math.inf), (0.1, math.inf)), two_stage)
        assert one.quantile(0.99) == pytest.approx(t.ppf(0.99, 4))
        assert known.quantile(0.99) == pytest.approx(norm.ppf(0.99))
        assert known.variance == pytest.approx(0.4)
        for z in (-1.5, 0.0, 0.7, 4.0):
            assert one.tail(z) == pytest.approx(t.sf(z, 4), rel=1e-6)
            assert known.tail(z) == pytest.approx(norm.sf(z), rel=1e-6)


def test_the_tail_of_a_two_stage_error_is_its_quantile_turned_round() -> None:
    error = ErrorOfSum(((0.3, 4.0), (0.1, 2.5), (0.2, math.inf)), two_stage=True)
    for p in (1e-12, 1e-6, 0.001, 0.2, 0.5):
        assert error.tail(error.quantile(1 - p)) == pytest.approx(p, rel=1e-3)
    assert error.tail(-1.3) == pytest.approx(1 - error.tail(1.3))
    assert 0 <= error.tail(1e200) < 1e-100
    assert ErrorOfSum(((0.0, 4.0), (0.0, 4.0)), two_stage=True).quantile(0.975) == pytest.approx(t.ppf(0.975, 1))


@pytest.mark.integration
@pytest.mark.parametrize("degrees", [(2, 2), (4, 4), (4, 20), (9, 3.5)])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.8])
@pytest.mark.parametrize("p", [0.025, 1e-4])
def test_a_two_stage_error_is_a_sum_of_ts(degrees: tuple[float, float], share: float, p: float) -> None:
    """The chance of a sum beyond the quantile by integrating over one of the two."""
    z = ErrorOfSum(((share, degrees[0]), (1 - share, degrees[1])), two_stage=True).quantile(1 - p)

    def part(x: float) -> float:
        return t.pdf(x, degrees[0]) * t.sf((z - math.sqrt(share) * x) / math.sqrt(1 - share), degrees[1])

    ends = [-math.inf, -100, -10, 0, 10, 100, 1000, math.inf]
    beyond = sum(quad(part, low, high)[0] for low, high in pairwise(ends))
    assert beyond == pytest.approx(p, rel=1e-3)


def pairs_of_programs(seed: int, count: int, *, shared: float, own: float, n: int) -> np.ndarray:
    """Medians (count, 2, n) of two equal programs whose i-th processes share part of their noise."""
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(0, shared, (count, 1, n)) + rng.normal(0, own, (count, 2, n)))


def ratio_of(one: np.ndarray, other: np.ndarray, *, paired: bool) -> Ratio:
    ratio = compare(one.tolist(), other.tolist(), paired=paired)
    assert ratio is not None
    return ratio


@pytest.mark.integration
@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize(("paired", "shared"), [(True, 0.0), (True, 0.05), (False, 0.0)])
def test_comparisons_cover_and_tell_equal_programs_apart_once_in_twenty(paired: bool, shared: float, n: int) -> None:
    ratios = [
        ratio_of(one, 1.25 * other, paired=paired)
        for one, other in pairs_of_programs(n, 4000, shared=shared, own=0.03, n=n)
    ]
    assert 0.93 <= np.mean([r.low <= 0.8 <= r.high for r in ratios]) <= 0.97
    equal = [
        ratio_of(one, other, paired=paired)
        for one, other in pairs_of_programs(n + 1, 4000, shared=shared, own=0.03, n=n)
    ]
    assert 0.035 <= np.mean([r.tells_apart for r in equal]) <= 0.065


def test_welch_covers_programs_that_scatter_differently_with_different_numbers_of_processes() -> None:
    rng = np.random.default_rng(5)
    one, other = np.exp(rng.normal(0, 0.1, (4000, 5))), np.exp(rng.normal(0, 0.02, (4000, 12)))
    ratios = [ratio_of(a, b, paired=False) for a, b in zip(one, other, strict=True)]
    assert 0.93 <= np.mean([r.low <= 1 <= r.high for r in ratios]) <= 0.97


def test_pairs_are_narrower_where_two_programs_share_their_noise() -> None:
    drawn = pairs_of_programs(6, 500, shared=0.05, own=0.01, n=6)
    widths = {
        paired: [math.log(r.high / r.low) for r in (ratio_of(a, b, paired=paired) for a, b in drawn)]
        for paired in (True, False)
    }
    assert np.median(widths[True]) < 0.5 * np.median(widths[False])


def test_equal_programs_rarely_differ_by_more_than_the_noise_floor() -> None:
    """A floor from 20 checks of one program against itself, held against 5 pairs of processes of two equal ones."""
    rng = np.random.default_rng(7)
    beyond = 0
    for _ in range(4000):
        floor = noise_floor(np.exp(rng.normal(0, 0.02, 20)).tolist(), 5)
        difference = abs(rng.normal(0, 0.02, 5).mean())
        beyond += math.exp(difference) - 1 > floor
    assert 0.03 <= beyond / 4000 <= 0.07


def test_a_prediction_interval_holds_one_more_value_19_times_in_20() -> None:
    assert prediction_interval([0.51, 0.53, 0.55]) == pytest.approx((0.43063, 0.62937), abs=1e-5)  # t = 4.302653
    rng = np.random.default_rng(0)
    draws = rng.normal(0.8, 0.01, (4000, 4))
    inside = [low <= row[3] <= high for row in draws for low, high in [prediction_interval(row[:3].tolist())]]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)
    assert prediction_interval([2.0, 2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="two values"):
        prediction_interval([1.0])

"""Elasticities of synthetic times, and what their intervals cover in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitbench.analysis.latency_scaling import Elasticity, TimedPoint, elasticity, fixed_costs_up_to
from vitbench.analysis.scaling import Scaling
from vitbench.analysis.scaling_text import _time_lines
from vitbench.core.records import Cell
from vitbench.core.stats.comparisons import Ratio, compare
from vitbench.core.stats.intervals import t_of_processes

#: Patches of images of 32 to 1024 px in patches of 16.
SIZES = np.array([side**2 for side in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)], dtype=float)
PROCESSES = 5


def exact(ratio: float) -> Ratio:
    return Ratio(ratio, ratio, ratio)


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0, 2.0])
def test_the_elasticity_of_a_power_law_is_its_power(power: float) -> None:
    found = elasticity(exact((400 / 144) ** power), 400 / 144, (400 / 144) ** 2)
    assert (found.value, found.low, found.high) == pytest.approx((power,) * 3)
    assert found.flops == pytest.approx(2)


def test_the_interval_is_that_of_the_ratio() -> None:
    found = elasticity(Ratio(2.0, 1.5, 3.0), 4, 16)
    assert (found.value, found.low, found.high) == pytest.approx([math.log(x) / math.log(4) for x in (2, 1.5, 3)])


def step(n: int, value: float, half: float = 0.02, flops: float = 1.0) -> TimedPoint:
    grown = Elasticity(value=value, low=value - half, high=value + half, flops=flops)
    return TimedPoint(image_size=(1, 1), n=n, estimate=None, step=grown)


FIRST = TimedPoint(image_size=(1, 1), n=4, estimate=None)


def test_fixed_costs_are_named_while_time_grows_by_less_than_half_of_what_flops_do() -> None:
    assert fixed_costs_up_to([FIRST, step(9, 0.05), step(16, 0.3), step(25, 0.8)]) == 16
    assert fixed_costs_up_to([FIRST, step(9, 0.6), step(16, 0.1)]) is None
    assert fixed_costs_up_to([FIRST, step(9, 0.1, half=0.5)]) is None  # too wide to tell
    assert fixed_costs_up_to([FIRST, step(9, 0.1, flops=0.1)]) is None  # FLOPs do not grow, either
    assert fixed_costs_up_to([FIRST]) is None


def test_the_text_does_not_take_growing_efficiency_for_launches() -> None:
    """Times that grow as N^0.4 have no fixed part at all, and meet the rule all the same: the text says so."""
    cell = Cell(model="one", image_size=(16, 16), num_classes=10, batch_size=1, device="cpu", threads=1)
    text = " ".join(" ".join(_time_lines([FIRST, step(9, 0.4)], Scaling(cell=cell, batches=(1,), patch=4), 1)).split())
    assert "time grows by less than half of the FLOPs' exponent up to N = 9 (12 px)" in text
    assert "efficiency that grows with size looks the same" in text


def simulated_times(rng: np.random.Generator) -> np.ndarray:
    """What processes take (PROCESSES, sizes): their own speed, and 2 % of noise on it at each size."""
    own = rng.normal(0, 0.1, (PROCESSES, 1))
    return true_times() * np.exp(own + rng.normal(0, 0.02, (PROCESSES, len(SIZES))))


def true_times() -> np.ndarray:
    """Seconds: 2 ms of launches, and the FLOPs of ViT-Ti at a speed that grows with size, up to 160 GFLOP/s."""
    flops = 2 * (1e6 + 5_455_872 * SIZES + 4608 * SIZES**2)
    return 2e-3 + flops / (160e9 * (SIZES / 4096) ** 0.25)


@pytest.mark.integration
def test_intervals_cover_95_percent_and_those_of_polynomial_fits_hardly_any() -> None:
    """Of 400 simulated series of five processes each: true elasticities inside of both kinds of intervals, by step."""
    rng = np.random.default_rng(0)
    steps = np.log(SIZES[1:] / SIZES[:-1])
    truth = np.diff(np.log(true_times())) / steps
    design = np.vander(SIZES, 3, increasing=True)
    covered = np.zeros((2, len(truth)))
    trials = 400
    for _ in range(trials):
        times = simulated_times(rng)
        for place in range(len(truth)):
            ratio = compare(list(times[:, place + 1]), list(times[:, place]), paired=True)
            assert ratio is not None
            found = elasticity(ratio, SIZES[place + 1] / SIZES[place], 2)
            covered[0, place] += found.low <= truth[place] <= found.high
        # a polynomial a process, by least squares of relative errors; its elasticity over the same steps
        fitted = [design @ np.linalg.lstsq(design / one[:, None], np.ones(len(one)), rcond=None)[0] for one in times]
        each = np.diff(np.log(np.maximum(fitted, 1e-9)), axis=1) / steps
        half = t_of_processes(PROCESSES) * each.std(0, ddof=1) / math.sqrt(PROCESSES)
        covered[1] += np.abs(each.mean(0) - truth) <= half
    ours, fits = covered / trials
    assert 0.93 < ours.mean() < 0.97
    assert ours.min() > 0.91
    assert fits.max() <= 0.01

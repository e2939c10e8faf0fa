"""Times of a series of sizes: which cells take turns, what is made of their records, and how a crossing is narrowed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.reports.fabricate import failed
from tests.reports.paired import paired
from vitbench.analysis.scaling import Point, Scaling, Size
from vitbench.core.records import Cell, Record
from vitbench.core.stats.comparisons import compare
from vitbench.runner.measure import GROUP
from vitbench.runner.size_series import cross_latency, group_by_size, sign_of, timed_points

BASE = Cell(model="one", image_size=(16, 16), num_classes=10, batch_size=1, device="cpu", threads=2)
SIDES = (16, 32, 48, 64, 96, 128)


def cells(
    sides: tuple[int, ...] = SIDES, models: tuple[str, ...] = ("one", "other"), batches: Any = (1, 8)
) -> list[Cell]:
    return [
        replace(BASE, model=model, image_size=(side, side), batch_size=batch)
        for model in models
        for side in sides
        for batch in batches
    ]


def scaling_of(model: str, sides: tuple[int, ...] = SIDES) -> Scaling:
    """A model in patches of 16 px with as many FLOPs as the square of the patches."""
    points = [
        Point(image_size=(side, side), n=n, tokens=n + 1, flops=n * n, lower_bound=False)
        for side in sides
        for n in [(side // 16) ** 2]
    ]
    return Scaling(cell=replace(BASE, model=model), batches=(1,), patch=16, points=tuple(points))


# Turns


def test_neighbouring_sizes_take_turns_with_all_models_and_batches_do_not_mix() -> None:
    groups = group_by_size(cells(), (1, 8))
    assert sorted(cell.id for group in groups for cell in group) == sorted(cell.id for cell in cells())
    for group in groups:
        assert len(group) <= GROUP
        assert len({cell.batch_size for cell in group}) == 1
        sides = sorted({cell.image_size[0] for cell in group})
        assert len(group) == 2 * len(sides)
        assert SIDES.index(sides[-1]) - SIDES.index(sides[0]) == len(sides) - 1
    assert [len(group) for group in groups] == [6, 6, 6, 6]
    assert [len(group) for group in group_by_size(cells((64,), ("one",)), (1, 8))] == [1, 1]


# Records


def record(side: int, ratios: list[float], model: str = "one", group: str = "g") -> Record:
    return paired(replace(BASE, model=model, image_size=(side, side)), ratios, group=group)


def test_each_size_has_the_elasticity_from_the_timed_size_before_it() -> None:
    fives = [1.0, 1.01, 1.02, 0.99, 1.0]
    records = [
        record(32, [4 * x for x in fives]),
        record(16, fives),
        failed(replace(BASE, image_size=(48, 48)), "oom", detail="no memory"),
        record(64, [64 * x for x in fives]),
    ]
    first, second, third, last = timed_points(records, scaling_of("one"), 1)
    assert (first.n, second.n, third.n, last.n) == (1, 4, 9, 16)
    assert first.step is None
    assert second.step is not None
    assert second.step.value == pytest.approx(1)  # paired: what processes differ by cancels
    assert second.step.high - second.step.low < 1e-6
    assert second.step.flops == pytest.approx(2)
    assert (third.status, third.estimate, third.step) == ("oom", None, None)
    assert last.step is not None
    assert last.step.value == pytest.approx(2)
    assert timed_points(records, scaling_of("other"), 1) == []


class Machine:
    """Times of two models, the first faster by 10 % below ``crossing`` px and slower above it, each ``noise`` apart."""

    def __init__(self, crossing: int, noise: float = 0.001) -> None:
        self.crossing, self.noise, self.asked = crossing, noise, list[int]()

    def __call__(self, sizes: list[Size]) -> list[Record]:
        found = []
        for side, _ in sizes:
            self.asked.append(side)
            apart = [self.noise * (number - 2) for number in range(5)]
            first = 0.9 if side < self.crossing else 1.1
            found += [record(side, [first + x for x in apart]), record(side, [1.0] * 5, "other")]
        return found


def fake_pair(sides: tuple[int, ...]) -> Any:
    """What ``cross_latency`` uses of a Pair."""
    n_of = {(side, side): (side // 16) ** 2 for side in range(16, 1040, 16)}
    points = [SimpleNamespace(image_size=size, n=n) for size, n in n_of.items()]
    models = {name: SimpleNamespace(cell=replace(BASE, model=name), points=points) for name in ("one", "other")}
    allowed = {n: size for size, n in n_of.items() if sides[0] <= size[0] <= sides[-1]}
    return SimpleNamespace(**models, allowed=lambda: dict(allowed), add=lambda size: True)


def test_a_crossing_is_narrowed_by_further_sizes() -> None:
    machine = Machine(crossing=500)
    records = machine([(side, side) for side in (64, 256, 1024)])
    found = cross_latency(fake_pair((64, 1024)), records, 1, machine)
    (bracket,) = found.brackets
    assert bracket.below
    assert bracket.low < (500 / 16) ** 2 < bracket.high
    assert bracket.high / bracket.low < 1.6
    assert len(machine.asked) == 3 + 4
    assert len(records) == 2 * len(machine.asked)


def test_neighbours_that_the_patch_allows_end_it() -> None:
    machine = Machine(crossing=40)
    found = cross_latency(fake_pair((32, 64)), machine([(32, 32), (64, 64)]), 1, machine)
    assert machine.asked == [32, 64, 48]
    assert [(one.low, one.high) for one in found.brackets] == [(4, 9)]


def test_models_that_do_not_cross_or_cannot_be_told_apart_have_no_bracket() -> None:
    for machine in (Machine(crossing=5000), Machine(crossing=500, noise=0.5)):
        found = cross_latency(fake_pair((64, 1024)), machine([(64, 64), (1024, 1024)]), 1, machine)
        assert found.brackets == []
        assert machine.asked == [64, 1024]
        assert set(found.signs.values()) == ({-1} if machine.noise < 0.1 else {0})


@pytest.mark.integration
def test_elasticities_cover_the_truth_in_95_percent_of_series() -> None:
    """300 series of five processes whose logarithms of times are normal, through the records as a run makes them."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        own = rng.normal(0, 0.1, 5)
        small, large = (np.exp(own + rng.normal(0, 0.03, 5)) * value for value in (1.0, 4**0.6))
        step = timed_points([record(16, list(small)), record(32, list(large))], scaling_of("one"), 1)[1].step
        assert step is not None
        covered += step.low <= 0.6 <= step.high
    assert 0.92 < covered / 300 < 0.98


def test_sides_of_equal_models_hold_together() -> None:
    """14 sizes at which both take equally long: in at most 5 % of 1,000 series any size has a side.

    14 tests at 95 % each would give one in half of them.
    """
    rng = np.random.default_rng(0)
    wrong = single = 0
    for _ in range(1000):
        ratios = [compare(list(np.exp(rng.normal(0, 0.03, 5))), [1.0] * 5, paired=True) for _ in range(14)]
        wrong += any(sign_of(ratio, 5, 14) for ratio in ratios if ratio)
        single += any(sign_of(ratio, 5, 1) for ratio in ratios if ratio)
    assert 0.03 < wrong / 1000 < 0.065
    assert single / 1000 == pytest.approx(1 - 0.95**14, abs=0.05)

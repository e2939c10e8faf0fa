"""Which images a step takes, from the seed and the place alone."""

from __future__ import annotations

import math

import pytest
import torch

from vitbench.training.order import ImageOrder


def test_every_place_can_be_asked_for_without_those_before() -> None:
    order = ImageOrder(10, seed=3)
    stream = torch.cat([order.at(begin, 4) for begin in range(0, 40, 4)])
    assert torch.equal(ImageOrder(10, seed=3).at(17, 9), stream[17:26])
    assert sorted(stream[10:20].tolist()) == list(range(10))


def test_weighted_order_draws_each_class_as_often_as_any_other() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    drawn = labels[ImageOrder(1000, seed=0, labels=labels).at(0, 30_000)]
    counts = torch.bincount(drawn).tolist()
    # a binomial share of a third: five standard deviations
    assert all(abs(count - 10_000) < 5 * math.sqrt(30_000 * (1 / 3) * (2 / 3)) for count in counts)


def test_weighted_order_draws_with_replacement_and_by_the_seed() -> None:
    labels = torch.tensor([0] * 50 + [1] * 2)
    first, again, other = (ImageOrder(52, seed=seed, labels=labels).at(0, 52) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(set(first.tolist())) < 52


@pytest.mark.parametrize(("begin", "size"), [(0, 1), (9, 2), (25, 30)])
def test_as_many_as_asked_for(begin: int, size: int) -> None:
    assert len(ImageOrder(10, seed=0).at(begin, size)) == size

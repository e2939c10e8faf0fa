"""Thinned classes: the published counts, files of indices, what cannot be."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from vitbench.core.errors import DataError
from vitbench.training.data.datasets import describe_data, load_training_images
from vitbench.training.data.subsets import choose_imbalanced, imbalanced_counts


def test_linear_10_of_cifar_10_is_what_is_published() -> None:
    """Project 1: 5,000 down to 500 a class in steps of 500, 27,500 images."""
    counts = imbalanced_counts("linear:10", 5000, 10)
    assert counts == [5000, 4500, 4000, 3500, 3000, 2500, 2000, 1500, 1000, 500]
    assert sum(counts) == 27_500


def test_exponential_100_of_cifar_is_long_tailed_cifar_to_the_image() -> None:
    """CIFAR-10-LT and CIFAR-100-LT at ratio 100 (Cui et al., 2019): largest * 100^(-i / (classes - 1)), cut off."""
    assert sum(imbalanced_counts("exponential:100", 500, 100)) == 10_847
    counts = imbalanced_counts("exponential:100", 5000, 10)
    assert (counts[0], counts[-1]) == (5000, 50)
    assert sum(counts) == 12_406
    ratios = [one / other for one, other in itertools.pairwise(counts)]
    assert max(ratios) / min(ratios) < 1.03


def test_a_class_never_gets_more_than_it_has_and_choices_nest() -> None:
    labels = [0] * 10 + [1] * 3 + [2] * 10
    some = choose_imbalanced(labels, range(23), "linear:2", 0)
    assert [sum(labels[index] == label for index in some) for label in range(3)] == [10, 3, 5]
    fewer = choose_imbalanced(labels, range(23), "linear:5", 0)
    assert set(fewer) < set(some)
    assert choose_imbalanced(labels, range(23), "linear:2", 1) != some


def test_ratio_1_is_all() -> None:
    labels = [0, 1, 2] * 5
    assert choose_imbalanced(labels, range(15), "linear:1", 0) == list(range(15))


def test_a_file_of_indices(tmp_path: Path) -> None:
    for text in ("5 3\n3", "[3, 5]", "3,5"):
        (tmp_path / "chosen").write_text(text)
        assert choose_imbalanced([0] * 10, range(10), str(tmp_path / "chosen"), 0) == [3, 5]
    assert choose_imbalanced([0] * 10, [1, 2, 3], str(tmp_path / "chosen"), 0) == [3]


@pytest.mark.parametrize(
    ("imbalance", "message"),
    [
        ("linear", "neither linear:R nor"),
        ("linear:0.5", "at least 1"),
        ("linear:x", "neither"),
        ("exponential:1000", "leaves a class of 10 images empty"),
        ("/nowhere/indices.txt", "nor a file of indices"),
    ],
)
def test_what_cannot_be_is_one_line(imbalance: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_imbalanced([0] * 10 + [1] * 10, range(20), imbalance, 0)


@pytest.mark.parametrize(
    ("text", "message"), [("1 two", "whole numbers"), ("99", "from 0 to 19"), ("", "from 0 to 19"), ("7", "leaves no")]
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "chosen").write_text(text)
    with pytest.raises(DataError, match=message):
        choose_imbalanced([0] * 20, [1, 2], str(tmp_path / "chosen"), 0)


def test_digits_are_split_then_thinned_then_limited() -> None:
    info = describe_data("digits")
    training, held_out = load_training_images(
        info, image_size=(8, 8), images=200, seed=1, validation=0.2, imbalance="linear:4"
    )
    assert held_out is not None
    assert len(held_out) == round(0.2 * 1437)
    shares = torch.bincount(held_out.labels).tolist()
    assert max(shares) - min(shares) <= 2  # as the classes are in all
    counts = torch.bincount(training.labels).tolist()
    assert len(training) == 200
    assert counts == sorted(counts, reverse=True)
    assert counts[0] / counts[-1] == pytest.approx(4, rel=0.15)
    flat = {bytes(image.numpy().tobytes()) for image in held_out.images}
    assert not any(bytes(image.numpy().tobytes()) in flat for image in training.images)


def test_the_split_does_not_move_with_the_limit() -> None:
    info = describe_data("digits")
    some = [
        load_training_images(info, image_size=(8, 8), images=images, seed=2, validation=0.1)[1] for images in (50, None)
    ]
    assert some[0] is not None
    assert some[1] is not None
    assert torch.equal(some[0].images, some[1].images)

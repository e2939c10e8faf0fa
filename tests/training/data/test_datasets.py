"""Data sets by name: the embedded digits, choices of images, what is wrong with a name."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from tests.training.data.folders import make_image_folder
from tests.training.tiny import random_pictures
from vitbench.core.errors import DataError, UnknownNameError, UsageError
from vitbench.training.data import images as images_module
from vitbench.training.data.datasets import DATASETS, describe_data, list_datasets, load_images
from vitbench.training.data.images import ImageSet
from vitbench.training.data.subsets import choose_stratified


def test_describing_data_and_recipes_loads_no_torch() -> None:
    code = (
        "import sys; from vitbench.training.data.datasets import describe_data, list_datasets, load_images;"
        "from vitbench.training.recipes import load_recipe;"
        "describe_data('digits'); list_datasets(); load_recipe('brief');"
        "print(sorted({'torch', 'torchvision', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_digits_are_described_as_they_are_loaded() -> None:
    info = describe_data("digits")
    assert (info.label, info.num_classes, info.train_images, info.test_images) == ("digits", 10, 1437, 360)
    for split in ("train", "test"):
        pictures = load_images(info, split, image_size=(32, 32))
        assert len(pictures) == info.count(split)
        assert pictures.images.shape == (info.count(split), 3, 32, 32)
        assert pictures.images.dtype == torch.uint8
        assert pictures.labels.dtype == torch.int64
        assert pictures.class_names == info.class_names


def test_digits_split_is_stratified_and_never_changes() -> None:
    info = describe_data("digits")
    test = load_images(info, "test", image_size=(8, 8))
    counts = torch.bincount(test.labels).tolist()
    in_all = torch.bincount(torch.from_numpy(load_digits().target)).tolist()
    assert all(abs(count - total * 360 / 1797) < 1 for count, total in zip(counts, in_all, strict=True))
    # which images are held out decides what every accuracy means: this digest must never change
    content = hashlib.sha256(test.images.numpy().tobytes() + bytes(test.labels.tolist())).hexdigest()
    assert content[:16] == "ba4043a7699d2848"


def test_digits_train_and_test_together_are_all_digits() -> None:
    info = describe_data("digits")
    parts = [load_images(info, split, image_size=(8, 8)) for split in ("train", "test")]
    ours = sorted(image[0].flatten().tolist() for part in parts for image in part.images)
    theirs = (torch.from_numpy(load_digits().data) * (255 / 16)).round().to(torch.int64)
    assert ours == sorted(theirs.tolist())
    assert all(torch.equal(part.images[:, 0], part.images[:, channel]) for part in parts for channel in (1, 2))


def test_digits_are_enlarged_bilinearly() -> None:
    info = describe_data("digits")
    small = load_images(info, "test", image_size=(8, 8), images=10).images
    large = load_images(info, "test", image_size=(16, 24), images=10).images
    expected = torch.nn.functional.interpolate(small.double(), (16, 24), mode="bilinear")
    assert (large.double() - expected).abs().max() <= 0.51  # rounded to whole numbers


def test_part_of_the_images_is_stratified_and_seeded() -> None:
    info = describe_data("digits")
    first = load_images(info, "train", image_size=(8, 8), images=100, seed=1)
    same = load_images(info, "train", image_size=(8, 8), images=100, seed=1)
    other = load_images(info, "train", image_size=(8, 8), images=100, seed=2)
    assert torch.equal(first.images, same.images)
    assert not torch.equal(first.images, other.images)
    assert set(torch.bincount(first.labels).tolist()) <= {9, 10, 11}
    assert len({image.numpy().tobytes() for image in first.images}) == 100


def test_more_images_than_there_are_means_all() -> None:
    assert len(load_images(describe_data("digits"), "test", image_size=(8, 8), images=5000)) == 360


@pytest.mark.parametrize("count", [0, 1, 7, 10, 99, 100])
def test_choice_keeps_the_classes_shares(count: int) -> None:
    labels = [0] * 50 + [1] * 30 + [2] * 20
    chosen = choose_stratified(labels, count, seed=3)
    assert len(chosen) == len(set(chosen)) == count
    assert chosen == sorted(chosen)
    taken = [sum(labels[index] == label for index in chosen) for label in range(3)]
    assert all(abs(n - count * share) < 1 for n, share in zip(taken, (0.5, 0.3, 0.2), strict=True))


def test_choice_of_few_favours_no_class() -> None:
    labels = [number % 10 for number in range(100)]
    seen = {labels[index] for seed in range(20) for index in choose_stratified(labels, 3, seed)}
    assert seen == set(range(10))


def test_listed_data_sets_can_be_described(tmp_path: Path) -> None:
    rows = list_datasets()
    assert [row["dataset"] for row in rows] == [*DATASETS, "PATH"]
    for row in rows[:-1]:
        fetched = row["dataset"] != "digits"
        info = describe_data(row["dataset"], root=tmp_path if fetched else None, download=fetched)
        assert (info.label, info.num_classes) == (row["dataset"], row["classes"])
        assert (info.train_images, info.test_images) == (row["train_images"], row["test_images"])
        assert len(set(info.class_names)) == info.num_classes


def test_misspelt_name_is_told_the_closest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown data set 'cifar11'. Did you mean 'cifar10'\?.*image folder"):
        describe_data("cifar11")


@pytest.mark.parametrize("data", ["digits", "folder"])
def test_options_of_downloads_are_refused_with_other_data(data: str, tmp_path: Path) -> None:
    spec = str(make_image_folder(tmp_path / "pets")) if data == "folder" else data
    with pytest.raises(UsageError, match=rf"^--data-dir is for cifar10, .* not for '{spec}': leave it out, or name"):
        describe_data(spec, root=tmp_path)
    with pytest.raises(UsageError, match=rf"^--download is for .* not for '{spec}': .*--data cifar10$"):
        describe_data(spec, download=True)
    assert describe_data(spec).spec == spec


def test_images_that_memory_cannot_hold_are_refused_before_allocating(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Little:
        available = 1_000_000

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Little)
    assert images_module.check_memory(100, (32, 32)) is None
    with pytest.raises(DataError, match=r"1437 images of 224x224 px take 0.2 GB .* Give fewer images"):
        load_images(describe_data("digits"), "train", image_size=(224, 224))


def test_image_set_refuses_what_is_none() -> None:
    good = random_pictures(4)
    with pytest.raises(ValueError, match="not uint8"):
        ImageSet(good.images.float(), good.labels, good.class_names)
    with pytest.raises(ValueError, match="one an image"):
        ImageSet(good.images, good.labels[:3], good.class_names)
    with pytest.raises(ValueError, match="not among the 2 classes"):
        ImageSet(good.images, good.labels, ("a", "b"))
    with pytest.raises(ValueError, match="at least one"):
        ImageSet(good.images[:0], good.labels[:0], good.class_names)

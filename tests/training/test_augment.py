"""Augmentation of whole batches: each picture has its own draw, and a crop is what torchvision's is."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.functional as TF

from vitbench.training.augment import AUGMENTATIONS, augment, crop_at, normalise, shift_and_crop


def _noise(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_two_equal_pictures_in_a_batch_come_out_different(name: str) -> None:
    batch = _noise(1).expand(16, -1, -1, -1)
    changed = augment(batch, [name], torch.Generator().manual_seed(0))
    assert changed.shape == batch.shape
    assert changed.dtype == torch.uint8
    assert len({picture.numpy().tobytes() for picture in changed}) > 1


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_the_same_seed_draws_the_same(name: str) -> None:
    first, second, other = (augment(_noise(16), [name], torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_every_crop_is_torchvisions_pad_and_crop() -> None:
    images = _noise(81)
    rows, columns = (grid.flatten() for grid in torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
    cropped = crop_at(images, 4, 4, rows, columns)
    for image, ours, row, column in zip(images, cropped, rows.tolist(), columns.tolist(), strict=True):
        assert torch.equal(ours, TF.crop(TF.pad(image, [4]), row, column, 32, 32))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 24), (4, 4)])
def test_crop_shifts_by_up_to_an_eighth_of_a_side(height: int, width: int) -> None:
    count = 600
    images = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    images[:, :, height // 2, width // 2] = 255
    cropped = shift_and_crop(images, torch.Generator().manual_seed(0))
    places = cropped[:, 0].flatten(1).argmax(1)
    rows, columns = places // width - height // 2, places % width - width // 2
    assert set(rows.tolist()) == set(range(-(height // 8), height // 8 + 1))
    assert set(columns.tolist()) == set(range(-(width // 8), width // 8 + 1))


def test_flip_mirrors_about_half_of_the_pictures() -> None:
    images = _noise(400, 8, 8)
    flipped = augment(images, ["flip"], torch.Generator().manual_seed(0))
    kept = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert bool((kept | mirrored).all())
    assert 160 < int(kept.sum()) < 240


def test_no_augmentation_changes_nothing() -> None:
    images = _noise(4)
    assert torch.equal(augment(images, [], torch.Generator()), images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalised_pictures_have_mean_and_deviation_one_half(dtype: torch.dtype) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    ours = normalise(images, dtype)
    expected = TF.normalize(images.double() / 255, [0.5] * 3, [0.5] * 3)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert int(images.max()) == 255  # the pictures themselves are as they were


def test_pictures_are_normalised_by_each_channels_own_mean_and_deviation() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    found = normalise(images, torch.float64, (0.5, 0.25, 0.1), (0.5, 0.25, 0.2)).flatten()
    torch.testing.assert_close(found, torch.tensor([-1.0, 3.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(normalise(images, torch.float64), images.double() / 127.5 - 1)

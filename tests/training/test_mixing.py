"""MixUp and CutMix: shares are drawn from their Beta distribution, and targets say what the images really hold."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from vitbench.training.augmentation.augment import draw_box, draw_share, mix

CLASSES = 10


def _batch(count: int = 8, height: int = 16, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one value each, 1 to ``count``, so that it shows where a pixel is from; classes 0 to 9, round and round."""
    images = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 3, height, width).contiguous()
    return images, torch.arange(count) % CLASSES


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.8, 1.0, 8.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    generator = _seeded()
    count = 4000
    shares = torch.tensor([draw_share(alpha, generator) for _ in range(count)], dtype=torch.float64)
    assert bool(((shares >= 0) & (shares <= 1)).all())
    beta = scipy.stats.beta(alpha, alpha)
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(beta.var()) == pytest.approx(variance)
    assert float(shares.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(variance / count))
    assert float(shares.var()) == pytest.approx(variance, rel=0.1)
    # below 1e-9 and above 1 - 1e-9 a double cannot tell what a small alpha puts there
    inner = [share for share in shares.tolist() if 1e-9 < share < 1 - 1e-9]
    inside = beta.cdf(1 - 1e-9) - beta.cdf(1e-9)
    assert len(inner) / count == pytest.approx(inside, abs=0.03)
    truncated = scipy.stats.kstest(inner, lambda x: (beta.cdf(x) - beta.cdf(1e-9)) / inside)
    assert truncated.pvalue > 1e-3


def test_a_share_comes_from_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = [draw_share(0.8, _seeded(seed)) for seed in (5, 5, 6)]
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize("seed", range(8))
def test_mixup_is_the_weighted_mean_of_two_images_and_of_their_targets(seed: int) -> None:
    images, labels = _batch()
    mixed, targets = mix(images, labels, CLASSES, mixup=0.8, cutmix=0.0, probability=1.0, generator=_seeded(seed))
    share = float(targets[0, 0])
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images.roll(1, 0))
    torch.testing.assert_close(
        targets, share * F.one_hot(labels, CLASSES) + (1 - share) * F.one_hot(labels.roll(1), CLASSES)
    )


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20), (5, 3), (1, 1)])
def test_cutmix_targets_are_the_shares_of_pixels(height: int, width: int) -> None:
    images, labels = _batch(8, height, width)
    areas = set()
    for seed in range(40):
        mixed, targets = mix(images, labels, CLASSES, mixup=0.0, cutmix=1.0, probability=1.0, generator=_seeded(seed))
        replaced = mixed != images
        assert torch.equal(mixed, torch.where(replaced, images.roll(1, 0), images))
        assert torch.equal(replaced, replaced[:1, :1].expand_as(replaced))  # one box for all images and channels
        inside = replaced[0, 0].nonzero()
        if len(inside):
            box = inside.amax(0) - inside.amin(0) + 1
            assert int(box.prod()) == len(inside)  # a full rectangle
        part = len(inside) / (height * width)
        areas.add(part)
        torch.testing.assert_close(targets[torch.arange(8), labels], torch.full((8,), 1 - part))
        torch.testing.assert_close(targets[torch.arange(8), labels.roll(1)], torch.full((8,), part))
    assert len(areas) > 1


def test_a_box_wholly_in_the_image_has_the_area_asked_for() -> None:
    generator = _seeded()
    whole = 0
    for _ in range(300):
        top, bottom, left, right = draw_box(100, 60, 0.75, generator)
        assert 0 <= top <= bottom <= 100
        assert 0 <= left <= right <= 60
        if top > 0 and bottom < 100 and left > 0 and right < 60:
            assert (bottom - top, right - left) == (50, 30)
            whole += 1
    assert 0.15 < whole / 300 < 0.35  # the middle half of each side: a quarter
    top, bottom, left, right = draw_box(100, 60, 1.0, generator)
    assert (bottom - top, right - left) == (0, 0)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.001, 0.001)])
def test_targets_sum_to_one(mixup: float, cutmix: float) -> None:
    images, labels = _batch(16)
    for seed in range(10):
        mixed, targets = mix(
            images, labels, CLASSES, mixup=mixup, cutmix=cutmix, probability=1.0, generator=_seeded(seed)
        )
        assert mixed.shape == images.shape
        assert targets.dtype == torch.float32
        assert targets.shape == (16, CLASSES)
        assert float(targets.min()) >= 0
        torch.testing.assert_close(targets.sum(1), torch.ones(16))


@pytest.mark.parametrize(
    ("mixup", "cutmix", "probability"), [(0.8, 1.0, 0.0), (0.0, 0.0, 1.0), (0.8, 0.0, 0.0), (0.0, 1.0, 0.0)]
)
def test_a_batch_that_is_not_mixed_stays_as_it_is(mixup: float, cutmix: float, probability: float) -> None:
    images, labels = _batch()
    for seed in range(5):
        mixed, targets = mix(
            images, labels, CLASSES, mixup=mixup, cutmix=cutmix, probability=probability, generator=_seeded(seed)
        )
        assert torch.equal(mixed, images)
        assert torch.equal(targets, F.one_hot(labels, CLASSES).float())


def test_batches_are_mixed_with_their_probability_and_by_either_way_equally() -> None:
    images, labels = _batch(4, 8, 8)
    generator = _seeded()
    count, ways = 1000, {"none": 0, "mixup": 0, "cutmix": 0}
    for _ in range(count):
        # alpha 100: both ways mix about half and half, so that neither looks like none
        mixed, _ = mix(images, labels, CLASSES, mixup=100.0, cutmix=100.0, probability=0.6, generator=generator)
        if torch.equal(mixed, images):
            ways["none"] += 1
        else:
            ways["cutmix" if bool((mixed == images).any()) else "mixup"] += 1
    deviation = math.sqrt(count * 0.3 * 0.7)
    assert ways["none"] == pytest.approx(0.4 * count, abs=4 * deviation)
    assert ways["mixup"] == pytest.approx(0.3 * count, abs=4 * deviation)
    assert ways["cutmix"] == pytest.approx(0.3 * count, abs=4 * deviation)


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0)])
def test_mixing_leaves_its_input_alone_and_repeats_under_the_same_seed(mixup: float, cutmix: float) -> None:
    images = torch.randn(6, 3, 10, 14, generator=_seeded(9))
    labels = torch.arange(6)
    before = images.clone()
    first, second, other = (
        mix(images, labels, 6, mixup=mixup, cutmix=cutmix, probability=1.0, generator=_seeded(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(images, before)
    assert torch.equal(labels, torch.arange(6))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0)])
def test_images_keep_their_type_of_number(dtype: torch.dtype, mixup: float, cutmix: float) -> None:
    images, labels = _batch()
    mixed, targets = mix(
        images.to(dtype), labels, CLASSES, mixup=mixup, cutmix=cutmix, probability=1.0, generator=_seeded()
    )
    assert mixed.dtype == dtype
    assert targets.dtype == torch.float32


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0)])
def test_an_image_alone_is_mixed_with_itself(mixup: float, cutmix: float) -> None:
    images, labels = torch.randn(1, 3, 8, 8), torch.tensor([3])
    mixed, targets = mix(images, labels, CLASSES, mixup=mixup, cutmix=cutmix, probability=1.0, generator=_seeded())
    torch.testing.assert_close(mixed, images)
    torch.testing.assert_close(targets, F.one_hot(labels, CLASSES).float())

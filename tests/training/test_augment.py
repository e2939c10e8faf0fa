"""Augmentation of whole batches: each image has its own draw, and what is done with it is what torchvision does."""

from __future__ import annotations

import itertools
import math

import pytest
import scipy.stats
import torch
import torchvision
import torchvision.transforms.functional as TF
import torchvision.transforms.v2.functional as V

from vitbench.training.augmentation.augment import (
    AUGMENTATIONS,
    AugmentSettings,
    adjust_colours,
    augment,
    crop_at,
    erase,
    erase_at,
    jitter,
    normalise,
    rotate,
    rotate_by,
    shift_and_crop,
)
from vitbench.training.augmentation.randaugment import (
    GEOMETRIC,
    OPERATIONS,
    SIGNED,
    apply_operation,
    randaugment,
    strength_of,
)


def _noise(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def _smooth(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Images of few colours and soft edges, unlike noise."""
    coarse = _noise(count, 4, 4).float()
    return TF.resize(coarse, [height, width], antialias=True).round().to(torch.uint8)


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_two_equal_images_in_a_batch_come_out_different(name: str) -> None:
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


def test_flip_mirrors_about_half_of_the_images() -> None:
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
def test_normalised_images_have_mean_and_deviation_one_half(dtype: torch.dtype) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    ours = normalise(images, dtype)
    expected = TF.normalize(images.double() / 255, [0.5] * 3, [0.5] * 3)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert int(images.max()) == 255  # the images themselves are as they were


def test_images_are_normalised_by_each_channels_own_mean_and_deviation() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    found = normalise(images, torch.float64, (0.5, 0.25, 0.1), (0.5, 0.25, 0.2)).flatten()
    torch.testing.assert_close(found, torch.tensor([-1.0, 3.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(normalise(images, torch.float64), images.double() / 127.5 - 1)


@pytest.mark.parametrize("shape", [(1, 32, 32), (5, 16, 24), (3, 24, 16), (2, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_images_keep_their_shape_and_the_input_its_values(name: str, shape: tuple[int, int, int]) -> None:
    images = _noise(*shape)
    before = images.clone()
    changed = augment(images, [name], torch.Generator().manual_seed(0), AugmentSettings(erasing=1.0))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rotation", AugmentSettings(rotation=0.0)),
        ("jitter", AugmentSettings(jitter=0.0)),
        ("randaugment", AugmentSettings(randaugment_ops=0)),
        ("erasing", AugmentSettings(erasing=0.0)),
    ],
)
def test_an_augmentation_of_no_strength_changes_nothing(name: str, settings: AugmentSettings) -> None:
    images = _noise(8, 12, 20)
    assert torch.equal(augment(images, [name], torch.Generator().manual_seed(0), settings), images)


def test_augmentations_are_applied_in_the_order_given() -> None:
    images = _noise(16)
    generator = torch.Generator().manual_seed(3)
    by_hand = erase(rotate(images, generator, 15.0), generator, 0.25)
    assert torch.equal(augment(images, ["rotation", "erasing"], torch.Generator().manual_seed(3)), by_hand)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 32), (20, 31), (64, 48)])
def test_each_image_turns_as_torchvision_turns_it(height: int, width: int) -> None:
    angles = torch.cat([torch.linspace(-15, 15, 61), torch.tensor([-89.0, 50.0, 100.0, 180.0])])
    images = _noise(len(angles), height, width)
    ours = rotate_by(images, angles)
    theirs = torch.stack([V.rotate(one, angle) for one, angle in zip(images, angles.tolist(), strict=True)])
    # where a pixel comes from halfway between two, the last bit of a float decides which it takes
    different = (ours != theirs).any(1).flatten(1).float().mean(1)
    assert float(different.mean()) < 1e-4
    assert float(different.max()) < 0.01
    assert torch.equal(rotate_by(images, torch.zeros(len(images))), images)


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3])
def test_quarter_turns_are_exact(quarters: int) -> None:
    images = _noise(2)
    assert torch.equal(rotate_by(images, torch.full((2,), 90.0 * quarters)), images.rot90(quarters, (2, 3)))


def test_angles_are_uniform_to_either_side() -> None:
    images = torch.zeros(2000, 3, 65, 65, dtype=torch.uint8)
    images[:, :, 32, 64] = 255  # 32 px to the right of the middle
    turned = rotate(images, torch.Generator().manual_seed(0), 40.0)[:, 0].flatten(1)
    seen = turned.bool().any(1)
    places = turned.argmax(1)[seen]
    angles = torch.rad2deg(torch.atan2(32 - places // 65, places % 65 - 32))
    assert float(angles.abs().max()) < 42
    assert float(angles.mean()) == pytest.approx(0, abs=2.5)
    assert float(angles.std()) == pytest.approx(80 / math.sqrt(12), rel=0.1)


COLOURS = {
    "brightness": V.adjust_brightness,
    "contrast": V.adjust_contrast,
    "saturation": V.adjust_saturation,
    "hue": V.adjust_hue,
}


@pytest.mark.parametrize("name", list(COLOURS))
@pytest.mark.parametrize("smooth", [False, True], ids=["noise", "smooth"])
def test_each_change_of_colour_is_torchvisions(name: str, smooth: bool) -> None:
    images = _smooth(41) if smooth else _noise(41, 16, 24)
    factors = torch.linspace(-0.5, 0.5, 41) if name == "hue" else torch.linspace(0, 2, 41)
    ours = adjust_colours(images, [(name, factors)])
    theirs = torch.stack([COLOURS[name](one, f) for one, f in zip(images, factors.tolist(), strict=True)])
    difference = (ours.int() - theirs.int()).abs()
    assert int(difference.max()) <= 2  # torchvision cuts off what we round
    assert float(difference.float().mean()) < 0.7


@pytest.mark.parametrize("order", list(itertools.permutations(["brightness", "contrast", "saturation"])))
def test_changes_of_colour_follow_one_another_as_torchvisions_do(order: tuple[str, ...]) -> None:
    images = _noise(20, 16, 24)
    changes = [(name, 0.6 + 0.8 * torch.rand(20, generator=torch.Generator().manual_seed(len(name)))) for name in order]
    ours = adjust_colours(images, changes)
    for index, image in enumerate(images):
        theirs = image / 255  # on floats torchvision cuts nothing off
        for name, factors in changes:
            theirs = COLOURS[name](theirs, float(factors[index]))
        assert float((ours[index] - 255 * theirs).abs().max()) < 0.6


def test_factors_of_a_jitter_are_uniform_about_one() -> None:
    grey = torch.full((4000, 3, 2, 2), 100, dtype=torch.uint8)  # whose contrast and saturation cannot change
    found = jitter(grey, torch.Generator().manual_seed(0), 0.2)[:, 0, 0, 0].float() / 100
    assert float(found.min()) == pytest.approx(0.8, abs=0.006)
    assert float(found.max()) == pytest.approx(1.2, abs=0.006)
    assert float(found.mean()) == pytest.approx(1, abs=0.01)
    assert float(found.std()) == pytest.approx(0.4 / math.sqrt(12), rel=0.05)


def test_hue_turns_by_up_to_its_part_of_the_circle() -> None:
    red = torch.zeros(2000, 3, 1, 1, dtype=torch.uint8)
    red[:, 0] = 255
    turned = jitter(red, torch.Generator().manual_seed(0), 0.0, 0.1)[:, :, 0, 0].float() / 255
    assert bool((turned[:, 0] == 1).all())
    towards_green, towards_blue = turned[:, 1], turned[:, 2]
    assert bool(((towards_green == 0) | (towards_blue == 0)).all())
    parts = (towards_green - towards_blue) / 6
    assert float(parts.abs().max()) == pytest.approx(0.1, abs=0.002)
    assert float(parts.std()) == pytest.approx(0.2 / math.sqrt(12), rel=0.1)


def test_the_order_of_a_jitter_is_drawn_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = set()

    def note(images: torch.Tensor, changes: list[tuple[str, torch.Tensor]]) -> torch.Tensor:
        orders.add(tuple(name for name, _ in changes))
        return adjust_colours(images, changes)

    monkeypatch.setattr("vitbench.training.augmentation.augment.adjust_colours", note)
    for seed in range(60):
        jitter(_noise(2, 4, 4), torch.Generator().manual_seed(seed), 0.2)
    assert orders == set(itertools.permutations(["brightness", "contrast", "saturation"]))


def _rectangles(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Heights and widths (px) of what was erased from black images, each checked to be a full grey rectangle."""
    sides = []
    for picture in images:
        erased = (picture != 0).any(0)
        rows, columns = erased.any(1), erased.any(0)
        assert torch.equal(erased, rows[:, None] & columns[None, :])
        assert set(picture[:, erased].unique().tolist()) <= {128}
        for some in (rows, columns):
            places = some.nonzero().flatten()
            assert len(places) == 0 or int(places[-1] - places[0]) == len(places) - 1
        sides.append([int(rows.sum()), int(columns.sum())])
    heights, widths = torch.tensor(sides).T
    return heights, widths


def test_erased_rectangles_are_as_torchvision_draws_them() -> None:
    count, height, width = 1500, 40, 64
    images = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    heights, widths = _rectangles(erase(images, torch.Generator().manual_seed(0), 1.0))
    torch.manual_seed(0)
    transform = torchvision.transforms.v2.RandomErasing(p=1.0)
    if not hasattr(transform, "make_params"):
        pytest.skip("torchvision draws its rectangles elsewhere")
    theirs = [transform.make_params([images[0]]) for _ in range(count)]
    pairs = [(heights, "h"), (widths, "w")]
    for ours, key in pairs:
        expected = torch.tensor([one[key] for one in theirs])
        assert scipy.stats.ks_2samp(ours.numpy(), expected.numpy()).pvalue > 1e-3
    shares = heights * widths / (height * width)
    expected = torch.tensor([one["h"] * one["w"] / (height * width) for one in theirs])
    assert scipy.stats.ks_2samp(shares.numpy(), expected.numpy()).pvalue > 1e-3


def test_a_rectangle_lies_anywhere_in_its_image() -> None:
    images = torch.zeros(1000, 3, 8, 12, dtype=torch.uint8)
    erased = erase(images, torch.Generator().manual_seed(0), 1.0, (0.1, 0.1), (1.0, 1.0))[:, 0] > 0  # 3 x 3 px
    assert bool((erased.flatten(1).sum(1) == 9).all())
    rows, columns = erased.any(2).int().argmax(1), erased.any(1).int().argmax(1)
    for first, places in ((rows, 6), (columns, 10)):
        assert scipy.stats.chisquare(torch.bincount(first, minlength=places).numpy()).pvalue > 1e-3


def test_an_image_is_erased_with_the_probability_given() -> None:
    images = torch.zeros(4000, 3, 8, 8, dtype=torch.uint8)
    erased = (erase(images, torch.Generator().manual_seed(0), 0.25, (0.1, 0.2)) != 0).flatten(1).any(1)
    assert int(erased.sum()) == pytest.approx(1000, abs=4 * math.sqrt(4000 * 0.25 * 0.75))


def test_a_rectangle_that_does_not_fit_is_not_erased() -> None:
    images = torch.zeros(50, 3, 8, 8, dtype=torch.uint8)
    assert not erase(images, torch.Generator().manual_seed(0), 1.0, (1.0, 1.0), (1.0, 1.0)).any()
    half = erase(images, torch.Generator().manual_seed(0), 1.0, (0.3, 0.3), (0.2, 20.0)).flatten(1).any(1)
    assert 0 < int(half.sum()) <= 50


def test_erased_pixels_are_about_zero_once_normalised() -> None:
    images = erase_at(_noise(1), *(torch.tensor([place]) for place in (4, 6, 10, 20)))
    inside = normalise(images, torch.float32)[:, :, 4:14, 6:26]
    assert float(inside.abs().max()) < 1 / 254


SIGNS = [(name, sign) for name in OPERATIONS for sign in ((1, -1) if name in SIGNED else (1,))]


def _torchvisions(image: torch.Tensor, operation: str, sign: int, magnitude: int) -> torch.Tensor:
    """The operation as torchvision's own RandAugment applies it to one image."""
    theirs = torchvision.transforms.v2.RandAugment()
    if not hasattr(theirs, "_AUGMENTATION_SPACE") or not hasattr(theirs, "_apply_image_or_video_transform"):
        pytest.skip("torchvision's RandAugment looks different inside")
    strengths, signed = theirs._AUGMENTATION_SPACE[operation]
    assert signed == (operation in SIGNED)
    found = strengths(31, *image.shape[-2:])
    strength = 0.0 if found is None else float(found[magnitude])
    return theirs._apply_image_or_video_transform(
        image, operation, sign * strength, interpolation=theirs.interpolation, fill=theirs._fill
    )


def test_randaugment_has_torchvisions_operations() -> None:
    assert set(OPERATIONS) == set(torchvision.transforms.v2.RandAugment._AUGMENTATION_SPACE)


@pytest.mark.parametrize(("operation", "sign"), SIGNS)
def test_each_operation_on_a_batch_is_torchvisions_on_each_image(operation: str, sign: int) -> None:
    for images in (_noise(6), _smooth(6), _noise(3, 20, 33)):
        for magnitude in (0, 9, 30):
            strength = strength_of(operation, magnitude, *images.shape[-2:])
            ours = apply_operation(images, operation, sign * strength)
            theirs = torch.stack([_torchvisions(one, operation, sign, magnitude) for one in images])
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("operation", "sign"), [kind for kind in SIGNS if kind[0] in GEOMETRIC])
def test_pixels_are_torchvisions_at_any_magnitude_but_halfway_between_two(operation: str, sign: int) -> None:
    image = _noise(1)
    for magnitude in range(31):
        ours = apply_operation(image, operation, sign * strength_of(operation, magnitude, 32, 32))
        different = float((ours[0] != _torchvisions(image[0], operation, sign, magnitude)).any(0).float().mean())
        # at magnitude 4, 12, ... whole rows of a shear come from halfway, where the last bit of a float decides
        assert different <= (0.02 if operation.startswith("Shear") and magnitude % 8 == 4 else 0)


@pytest.mark.parametrize("operation", ["TranslateX", "TranslateY"])
def test_translations_at_any_size_are_torchvisions(operation: str) -> None:
    strengths, _ = torchvision.transforms.v2.RandAugment._AUGMENTATION_SPACE[operation]
    for side in (16, 32, 64, 96, 224, 331):
        for magnitude, theirs in enumerate(strengths(31, side, side).tolist()):
            assert strength_of(operation, magnitude, side, side) == theirs


@pytest.mark.parametrize("magnitude", range(31))
def test_posterize_and_solarize_at_any_magnitude_are_torchvisions(magnitude: int) -> None:
    space = torchvision.transforms.v2.RandAugment._AUGMENTATION_SPACE
    assert strength_of("Posterize", magnitude, 32, 32) == int(space["Posterize"][0](31, 32, 32)[magnitude])
    assert strength_of("Solarize", magnitude, 32, 32) == 255 * float(space["Solarize"][0](31, 32, 32)[magnitude])


def test_each_image_gets_one_of_torchvisions_operations_and_all_occur() -> None:
    images = _smooth(1)
    possible: dict[bytes, list[tuple[str, int]]] = {}
    for operation, sign in SIGNS:
        result = _torchvisions(images[0], operation, sign, 9)
        possible.setdefault(result.numpy().tobytes(), []).append((operation, sign))
    changed = randaugment(images.expand(700, -1, -1, -1), torch.Generator().manual_seed(0), 1, 9)
    counts: dict[str, int] = {}
    for picture in changed:
        meant = possible[picture.numpy().tobytes()]  # a KeyError: no operation gives this
        for operation, _ in meant:
            counts[operation] = counts.get(operation, 0) + 1
    assert set(counts) == set(OPERATIONS)
    alone = {meant[0] for meant in possible.values() if len(meant) == 1}
    assert len(alone) >= 18  # at 32 px most differ
    for operation, sign in alone:
        both = (operation, -sign) in alone
        if operation not in SIGNED or both:
            assert counts[operation] == pytest.approx(50, abs=4 * math.sqrt(50))


def test_images_of_a_batch_stay_in_their_places() -> None:
    images = _noise(60, 16, 24)
    changed = randaugment(images, torch.Generator().manual_seed(0), 1, 9)
    for before, after in zip(images, changed, strict=True):
        assert any(torch.equal(_torchvisions(before, operation, sign, 9), after) for operation, sign in SIGNS)


def test_two_operations_are_one_after_the_other() -> None:
    images = _noise(30)
    generator = torch.Generator().manual_seed(2)
    by_hand = randaugment(randaugment(images, generator, 1, 5), generator, 1, 5)
    assert torch.equal(randaugment(images, torch.Generator().manual_seed(2), 2, 5), by_hand)


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="no operation 'Invert'"):
        apply_operation(_noise(1), "Invert", 0.0)


@pytest.mark.cuda
@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_the_same_is_drawn_for_a_gpu(name: str) -> None:
    images, settings = _smooth(64), AugmentSettings(erasing=0.5, jitter_hue=0.1)
    here = augment(images, [name], torch.Generator().manual_seed(0), settings)
    there = augment(images.cuda(), [name], torch.Generator().manual_seed(0), settings)
    assert there.is_cuda
    different = (there.cpu().int() - here.int()).abs() > 1
    assert float(different.float().mean()) < 1e-3

"""Augmentation, MixUp and CutMix of whole batches on the device, each image with its own draw. Loads torch.

torchvision's transforms draw once for a batch; these draw once an image. The draws are made on the CPU by a seeded
generator, so that they are the same on every device. Shapes: ``B`` images of ``H`` x ``W`` px.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

#: The border of a crop, as a part of the side: the customary 4 px at 32 px.
_CROP_BORDER = 1 / 8

#: The shares of red, green and blue in an image's grey (ITU-R BT.601), as PIL and torchvision have them.
_GREY_SHARES = (0.299, 0.587, 0.114)

#: What an erased rectangle is filled with: grey, which normalise() by default makes 0 (to 1/255).
_ERASED = 128

#: Draws of a rectangle that has to fit into the image before it stays whole.
_ERASING_TRIES = 10


@dataclass(frozen=True)
class AugmentSettings:
    """How strong each augmentation is, whether or not it is applied.

    ``rotation``: degrees to either side. ``jitter``: brightness, contrast and saturation are multiplied by 1 - jitter
    to 1 + jitter; ``jitter_hue``: the largest turn of the hue (0 to 0.5 of its circle). ``randaugment_ops`` an image of
    ``randaugment_magnitude`` (0 to 30). ``erasing``: the probability.
    """

    rotation: float = 15.0
    jitter: float = 0.2
    jitter_hue: float = 0.0
    randaugment_ops: int = 2
    randaugment_magnitude: int = 9
    erasing: float = 0.25


def shift_and_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pad each image with black by an eighth of each side (4 px at 32 px) and crop a random window of its size:
    (B, 3, H, W) uint8 -> the same.
    """
    batch, _, height, width = images.shape
    above, left = int(height * _CROP_BORDER), int(width * _CROP_BORDER)
    rows = torch.randint(2 * above + 1, (batch,), generator=generator)
    columns = torch.randint(2 * left + 1, (batch,), generator=generator)
    return crop_at(images, above, left, rows, columns)


def crop_at(images: torch.Tensor, above: int, left: int, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The window of each image, in the image with a black border, that starts at its own row and column.

    ``above`` and ``left`` are the border's heights and widths in px on both sides; ``rows`` and ``columns`` (B,).
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (left, left, above, above))
    tall, wide = padded.shape[-2:]
    each = torch.arange(batch * channels, device=images.device).view(batch, channels, 1) * tall
    lines = each + rows.to(images.device).view(-1, 1, 1) + torch.arange(height, device=images.device)  # (B, 3, H)
    starts = lines * wide + columns.to(images.device).view(-1, 1, 1)
    # copying whole rows is several times faster than indexing the windows
    pieces = padded.flatten().unfold(0, width, 1)  # a view: the W pixels from each one on
    return pieces.index_select(0, starts.flatten()).view(images.shape)


def flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image left to right with probability 1/2: (B, 3, H, W) -> the same."""
    batch = len(images)
    mirrored = torch.rand(batch, generator=generator) < 0.5
    chosen = torch.arange(batch) + batch * mirrored
    return torch.cat([images, images.flip(3)]).index_select(0, chosen.to(images.device))


def rotate(images: torch.Tensor, generator: torch.Generator, degrees: float) -> torch.Tensor:
    """Turn each image by an angle of up to ``degrees`` to either side: (B, 3, H, W) uint8 -> the same."""
    return rotate_by(images, _uniform(-degrees, degrees, (len(images),), generator))


def rotate_by(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Each image turned about its middle by its own of ``angles`` (B,), in degrees anticlockwise.

    A pixel takes the value of the nearest one in the image, or black where there is none.
    """
    return map_nearest(images, turning(angles))


def turning(angles: torch.Tensor) -> torch.Tensor:
    """Matrices for map_nearest() that turn images by ``angles`` (B,), in degrees anticlockwise: (B, 2, 3) float64."""
    turns = torch.deg2rad(angles.double())
    cosines, sines, zeros = turns.cos(), turns.sin(), torch.zeros_like(turns)
    return torch.stack([cosines, -sines, zeros, sines, cosines, zeros], 1).view(-1, 2, 3)


def map_nearest(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) uint8 of which each pixel takes the value of the one nearest to where its matrix points.

    ``matrices`` (B, 2, 3): (x, y, 1) -> (x, y) of the source, in px from the middle, to the right and downwards. Where
    there is not an image it is black.
    """
    height, width = images.shape[-2:]
    factors = matrices.float().to(images.device).view(-1, 6, 1, 1).unbind(1)
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2).view(-1, 1)
    # (B, 1, W) and (B, H, 1) -> (B, H, W); -1 and W or H are outside
    columns = (factors[0] * x + factors[2] + (width - 1) / 2).add(factors[1] * y).clamp_(-1, width).round_()
    rows = (factors[3] * x + factors[5] + (height - 1) / 2).add(factors[4] * y).clamp_(-1, height).round_()
    places = rows.int().add_(1).mul_(width + 2).add_(columns.int()).add_(1).long()  # in the image with a black border
    places = places.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)  # (B, 3, H W)
    # on a CPU this takes a fraction of grid_sample's time, and integers stay integers
    return F.pad(images, (1, 1, 1, 1)).flatten(2).gather(2, places).view(images.shape)


def jitter(images: torch.Tensor, generator: torch.Generator, strength: float, hue: float = 0.0) -> torch.Tensor:
    """Change brightness, contrast and saturation of each image by factors of its own from 1 - ``strength`` to
    1 + ``strength``, and turn its hue by up to ``hue`` of the circle to either side: (B, 3, H, W) uint8 -> the same.

    The order of the changes is drawn once for the batch.
    """
    batch = len(images)
    factors = _uniform(max(0.0, 1 - strength), 1 + strength, (3, batch), generator)
    changes = list(zip(("brightness", "contrast", "saturation"), factors, strict=True)) if strength > 0 else []
    if hue > 0:
        changes.append(("hue", _uniform(-hue, hue, (batch,), generator)))
    order = torch.randperm(len(changes), generator=generator).tolist()
    return adjust_colours(images, [changes[index] for index in order])


def adjust_colours(images: torch.Tensor, changes: Sequence[tuple[str, torch.Tensor]]) -> torch.Tensor:
    """Images (B, 3, H, W) uint8 after ``changes``, in their order: (one of _COLOURS, (B,) factors or turns) each.

    As torchvision's adjust_brightness and its siblings, except that only the end is rounded, not each change.
    """
    values = images.to(torch.float32, copy=True)
    for name, factors in changes:
        factors = factors.float().to(images.device).view(-1, 1, 1, 1)  # (B, 1, 1, 1)
        values = _COLOURS[name](values, factors).clamp_(0, 255)
    # via int16: on a CPU the direct conversion takes several times as long
    return values.round_().to(torch.int16).to(torch.uint8)


def _contrast(values: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blended with the image's mean grey. Changes ``values`` (B, 3, H, W), as the others may."""
    shares = torch.tensor(_GREY_SHARES, device=values.device).view(1, 3, 1, 1)
    grey = (values.mean((2, 3), keepdim=True) * shares).sum(1, keepdim=True)  # (B, 1, 1, 1)
    return values.mul_(factors).add_(grey.mul_(1 - factors))


def _saturation(values: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blended with each pixel's grey."""
    red, green, blue = values.split(1, dim=1)  # (B, 1, H, W) each
    grey = (red * _GREY_SHARES[0]).add_(green, alpha=_GREY_SHARES[1]).add_(blue, alpha=_GREY_SHARES[2])
    return values.mul_(factors).add_(grey.mul_(1 - factors))


def _hue(values: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """The hue of each pixel turned by ``turns`` of the circle, its saturation and value (HSV) kept."""
    red, green, blue = values.split(1, dim=1)
    most, least = values.amax(1, keepdim=True), values.amin(1, keepdim=True)
    chroma = most - least
    spread = torch.where(chroma > 0, chroma, 1)  # grey has no hue: its differences are 0, whatever they are divided by
    sector = torch.where(
        most == red,
        (green - blue) / spread,
        torch.where(most == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )  # (B, 1, H, W): red at 0, green at 2, blue at 4, round at 6
    # each channel is the value around its own hue (a third of the circle), and falls off to value - chroma
    offsets = torch.tensor([5, 3, 1], device=values.device).view(1, 3, 1, 1)
    away = (sector + 6 * turns + offsets) % 6
    return most - chroma * torch.minimum(away, 4 - away).clamp_(0, 1)


_COLOURS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "brightness": lambda values, factors: values.mul_(factors),  # blended with black
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}


def erase(
    images: torch.Tensor,
    generator: torch.Generator,
    probability: float,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> torch.Tensor:
    """With ``probability``, fill a rectangle of an image with grey: (B, 3, H, W) uint8 -> the same.

    RandomErasing (Zhong et al., 2020, arXiv:1708.04896); a Cutout of any shape. Its part of the image is uniform in
    ``scale``, its height over its width log-uniform in ``ratio``. A rectangle that does not fit is drawn again, ten
    times at most; then the image stays whole.
    """
    batch, _, height, width = images.shape
    drawn = torch.rand(batch, generator=generator) < probability
    areas = height * width * _uniform(*scale, (batch, _ERASING_TRIES), generator)
    ratios = _uniform(math.log(ratio[0]), math.log(ratio[1]), (batch, _ERASING_TRIES), generator).exp()
    heights, widths = (areas * ratios).sqrt().round().long(), (areas / ratios).sqrt().round().long()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(1, keepdim=True)
    taken = drawn & fits.any(1)
    heights, widths = heights.gather(1, first)[:, 0] * taken, widths.gather(1, first)[:, 0] * taken
    where = torch.rand(2, batch, dtype=torch.float64, generator=generator)
    rows, columns = (where * torch.stack([height - heights + 1, width - widths + 1])).long()
    return erase_at(images, rows, columns, heights, widths)


def erase_at(
    images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, heights: torch.Tensor, widths: torch.Tensor
) -> torch.Tensor:
    """Each image with a grey (128) rectangle of its own: first row and column, height and width in px, (B,) each."""
    begin = torch.stack([rows, columns]).to(images.device).view(2, -1, 1)
    end = begin + torch.stack([heights, widths]).to(images.device).view(2, -1, 1)
    in_rows, in_columns = (
        ((places >= begin[axis]) & (places < end[axis])).to(torch.uint8)
        for axis, places in enumerate(torch.arange(side, device=images.device) for side in images.shape[-2:])
    )  # (B, H) and (B, W), 0 or 1
    inside = in_rows[:, None, :, None] * in_columns[:, None, None, :]
    return images * (1 - inside) + _ERASED * inside  # on a CPU much faster than masked_fill


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=generator) * (high - low) + low


def _randaugment(images: torch.Tensor, generator: torch.Generator, settings: AugmentSettings) -> torch.Tensor:
    from vitbench.training.augmentation.randaugment import randaugment  # which imports this module

    return randaugment(images, generator, settings.randaugment_ops, settings.randaugment_magnitude)


AUGMENTATIONS: dict[str, Callable[[torch.Tensor, torch.Generator, AugmentSettings], torch.Tensor]] = {
    "crop": lambda images, generator, _: shift_and_crop(images, generator),
    "flip": lambda images, generator, _: flip(images, generator),
    "rotation": lambda images, generator, given: rotate(images, generator, given.rotation),
    "jitter": lambda images, generator, given: jitter(images, generator, given.jitter, given.jitter_hue),
    "randaugment": _randaugment,
    "erasing": lambda images, generator, given: erase(images, generator, given.erasing),
}


def augment(
    images: torch.Tensor,
    names: Sequence[str],
    generator: torch.Generator,
    settings: AugmentSettings | None = None,
) -> torch.Tensor:
    """``images`` (B, 3, H, W) uint8 after each augmentation of AUGMENTATIONS, in the order given.

    ``images`` stay as they are. ``generator`` is on the CPU, wherever the images are.
    """
    for name in names:
        images = AUGMENTATIONS[name](images, generator, settings or AugmentSettings())
    return images


def mix(
    images: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    *,
    mixup: float,
    cutmix: float,
    probability: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed images (B, 3, H, W) and their targets (B, K) float32, whose rows sum to 1.

    ``images`` (B, 3, H, W) are floating-point numbers and stay as they are; ``labels`` (B,) int64. With ``probability``
    the batch is mixed, all of it in the same way: by MixUp (Zhang et al., 2018, arXiv:1710.09412) or CutMix (Yun et
    al., 2019, arXiv:1905.04899), whose shares are Beta(a, a) with a = ``mixup`` or ``cutmix``. 0 turns either off; of
    both, the batch takes one with equal probability.
    """
    targets = torch.zeros(len(labels), num_classes, device=labels.device).scatter_(1, labels.unsqueeze(1), 1.0)
    chosen, by_mixup = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
    if (mixup == 0 and cutmix == 0) or chosen >= probability:
        return images, targets
    if cutmix == 0 or (mixup > 0 and by_mixup < 0.5):
        share = draw_share(mixup, generator)
        images = images.roll(1, 0).lerp_(images, share)
    else:
        height, width = images.shape[-2:]
        top, bottom, left, right = draw_box(height, width, draw_share(cutmix, generator), generator)
        share = 1 - (bottom - top) * (right - left) / (height * width)
        partners = images[..., top:bottom, left:right].roll(1, 0)
        images = images.clone()
        images[..., top:bottom, left:right] = partners
    return images, targets.roll(1, 0).lerp_(targets, share)


def draw_share(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(``alpha``, ``alpha``), alpha > 0: what an image keeps of itself.

    X / (X + Y) of two draws from Gamma(alpha). Each is a draw from Gamma(alpha + 1) times U^(1/alpha), U uniform
    (Marsaglia and Tsang, 2000, section 6), which in logarithms does not vanish, however small alpha is.
    """
    above = torch._standard_gamma(torch.full((2,), alpha + 1, dtype=torch.float64), generator=generator)
    uniform = 1 - torch.rand(2, dtype=torch.float64, generator=generator)  # above 0
    first, second = above.log() + uniform.log() / alpha
    return float(torch.sigmoid(first - second))


def draw_box(height: int, width: int, share: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """CutMix's rectangle: top, bottom, left, right in px, the ends not included.

    It has the image's shape and 1 - ``share`` of its area, lies about a point drawn from all of the image, and ends
    where the image ends; it can be empty.
    """
    places = torch.rand(2, dtype=torch.float64, generator=generator).tolist()  # parts of the sides
    ends = []
    for side, place in zip((height, width), places, strict=True):
        length = round(side * math.sqrt(1 - share))
        begin = int(side * place) - length // 2
        ends += [max(0, begin), min(side, begin + length)]
    top, bottom, left, right = ends
    return top, bottom, left, right


#: By default images go from -1 to 1.
OWN_MEAN = (0.5, 0.5, 0.5)
OWN_STD = (0.5, 0.5, 0.5)


def normalise(
    images: torch.Tensor, dtype: torch.dtype, mean: Sequence[float] = OWN_MEAN, std: Sequence[float] = OWN_STD
) -> torch.Tensor:
    """uint8 (0 to 255) images (B, 3, H, W) -> (image / 255 - mean) / std in each channel; by default from -1 to 1."""
    if (mean, std) == (OWN_MEAN, OWN_STD):
        return images.to(dtype).mul_(2 / 255).sub_(1)
    means, deviations = (
        torch.tensor(values, dtype=dtype, device=images.device).view(3, 1, 1) for values in (mean, std)
    )
    return images.to(dtype).div_(255).sub_(means).div_(deviations)

"""Augmentation of whole batches on the device, each picture with its own draw. Loads torch.

torchvision's transforms draw once for a batch; these draw once a picture. The draws are made on the CPU by a seeded
generator, so that they are the same on every device. Shapes: ``B`` pictures of ``H`` x ``W`` px.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

#: The border of a crop, as a part of the side: the customary 4 px at 32 px.
_CROP_BORDER = 1 / 8


def shift_and_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A black border of an eighth of each side (4 px at 32 px) around each picture, then a window of its size from
    anywhere: (B, 3, H, W) uint8 -> the same.
    """
    batch, _, height, width = images.shape
    above, left = int(height * _CROP_BORDER), int(width * _CROP_BORDER)
    rows = torch.randint(2 * above + 1, (batch,), generator=generator)
    columns = torch.randint(2 * left + 1, (batch,), generator=generator)
    return crop_at(images, above, left, rows, columns)


def crop_at(images: torch.Tensor, above: int, left: int, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The window of each picture, in the picture with a black border, that starts at its own row and column.

    ``above`` and ``left`` are the border's heights and widths in px on both sides; ``rows`` and ``columns`` (B,).
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, (left, left, above, above))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (B, 3, 2 above + 1, 2 left + 1, H, W)
    each = torch.arange(batch, device=images.device)
    return windows[each, :, rows.to(images.device), columns.to(images.device)]


def flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each picture left to right with probability 1/2: (B, 3, H, W) -> the same."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


AUGMENTATIONS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "crop": shift_and_crop,
    "flip": flip,
}


def augment(images: torch.Tensor, names: Sequence[str], generator: torch.Generator) -> torch.Tensor:
    """``images`` (B, 3, H, W) uint8 after each augmentation of AUGMENTATIONS, in the order given."""
    for name in names:
        images = AUGMENTATIONS[name](images, generator)
    return images


#: What our own trainings normalise each channel by (0 to 1): pictures from -1 to 1.
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

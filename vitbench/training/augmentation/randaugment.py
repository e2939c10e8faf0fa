"""RandAugment (Cubuk et al., 2020, arXiv:1909.13719) of whole batches, each image with its own draw. Loads torch.

The operations and their strengths are torchvision's, and so are the kernels of most. Its RandAugment draws once for all
images that it is given; here those that drew the same go through a kernel together, and all that are moved, sheared
or turned go through one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vitbench.training.augmentation.augment import map_nearest, turning

#: The magnitudes that there are: 0 to 30.
MAGNITUDES = 31

#: Operations that move pixels.
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
#: Operations whose strength goes either way, and is drawn with a sign.
SIGNED = (*GEOMETRIC, "Brightness", "Color", "Contrast", "Sharpness")
OPERATIONS = (*SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize", "Identity")


def randaugment(images: torch.Tensor, generator: torch.Generator, operations: int, magnitude: int) -> torch.Tensor:
    """Each image after ``operations`` of OPERATIONS, drawn with replacement: (B, 3, H, W) uint8 -> the same.

    ``magnitude`` is 0 to 30. The draws are made on the CPU.
    """
    batch, _, height, width = images.shape
    kinds = [
        (operation, sign * strength_of(operation, magnitude, height, width))
        for operation in OPERATIONS
        for sign in (1, -1)
    ]
    geometric = 2 * len(GEOMETRIC)
    matrices = torch.cat([_matrix(*kind, height, width) for kind in kinds[:geometric]])
    for _ in range(operations):
        drawn = torch.randint(len(OPERATIONS), (batch,), generator=generator)
        negative = torch.randint(2, (batch,), generator=generator) * (drawn < len(SIGNED))
        found, order = (2 * drawn + negative).sort(stable=True)  # of a kind side by side, GEOMETRIC first
        images = images.index_select(0, order.to(images.device))
        moved = int((found < geometric).sum())
        rest, counts = found[moved:].unique_consecutive(return_counts=True)
        groups = images[moved:].split(counts.tolist())
        done = [apply_operation(group, *kinds[kind]) for kind, group in zip(rest.tolist(), groups, strict=True)]
        images = torch.cat([map_nearest(images[:moved], matrices[found[:moved]]), *done])
        images = images.index_select(0, order.argsort().to(images.device))
    return images


def strength_of(operation: str, magnitude: int, height: int, width: int) -> float:
    """What ``magnitude`` (0 to 30) means for an operation at ``height`` x ``width`` px.

    Shears: px sideways a px. Translations: px. Rotate: degrees. Brightness, Color, Contrast and Sharpness: the factor
    less 1. Posterize: the bits kept. Solarize: the value (0 to 255) from which on pixels are inverted. 0 for the rest.
    """
    if operation == "Posterize":
        return round(8 - 4 * magnitude / (MAGNITUDES - 1))
    if operation == "Solarize":
        return 255 * _linear(1, 0, magnitude)
    highest = {
        "ShearX": 0.3,
        "ShearY": 0.3,
        "TranslateX": 150 / 331 * width,
        "TranslateY": 150 / 331 * height,
        "Rotate": 30,
        "Brightness": 0.9,
        "Color": 0.9,
        "Contrast": 0.9,
        "Sharpness": 0.9,
    }
    return _linear(0, highest.get(operation, 0), magnitude)


def _linear(first: float, last: float, magnitude: int) -> float:
    # by torch, whose float32 is what torchvision cuts a translation's px off from
    return float(torch.linspace(first, last, MAGNITUDES)[magnitude])


def apply_operation(images: torch.Tensor, operation: str, strength: float) -> torch.Tensor:
    """Images (B, 3, H, W) uint8 after one of OPERATIONS with strength_of() it, or its negative.

    Nearest pixels, black where there is not an image.
    """
    from torchvision.transforms.v2 import functional as V

    if operation in GEOMETRIC:
        matrix = _matrix(operation, strength, *images.shape[-2:])
        return map_nearest(images, matrix.expand(len(images), -1, -1))
    kernels: dict[str, Callable[[], torch.Tensor]] = {
        "Brightness": lambda: V.adjust_brightness(images, 1 + strength),
        "Color": lambda: V.adjust_saturation(images, 1 + strength),
        "Contrast": lambda: V.adjust_contrast(images, 1 + strength),
        "Sharpness": lambda: sharpen(images, 1 + strength),
        "Posterize": lambda: V.posterize(images, int(strength)),
        "Solarize": lambda: V.solarize(images, strength),
        "AutoContrast": lambda: V.autocontrast(images),
        "Equalize": lambda: V.equalize(images),
        "Identity": lambda: images,
    }
    if operation not in kernels:
        raise ValueError(f"no operation {operation!r}; there are {', '.join(OPERATIONS)}")
    return kernels[operation]()


def _matrix(operation: str, strength: float, height: int, width: int) -> torch.Tensor:
    """The matrix (1, 2, 3) of one of GEOMETRIC for map_nearest()."""
    if operation == "Rotate":
        return turning(torch.tensor([strength], dtype=torch.float64))
    # a shear leaves the upper edge or the left one where it is
    rows = {
        "ShearX": [1, strength, strength * height / 2, 0, 1, 0],
        "ShearY": [1, 0, 0, strength, 1, strength * width / 2],
        "TranslateX": [1, 0, -int(strength), 0, 1, 0],
        "TranslateY": [1, 0, 0, 0, 1, -int(strength)],
    }
    return torch.tensor(rows[operation], dtype=torch.float64).view(1, 2, 3)


def sharpen(images: torch.Tensor, factor: float) -> torch.Tensor:
    """Images (B, 3, H, W) uint8 blended with themselves blurred (0: blurred, 1: as they are, above: sharper).

    As torchvision's adjust_sharpness, whose convolution is slow on a CPU: of 3 x 3 pixels the middle one weighs 5, the
    others 1; the image's border stays as it is.
    """
    values = images.float()
    middle = values[..., 1:-1, 1:-1]
    if middle.numel() == 0:
        return images
    rows = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    blurred = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]).add_(middle, alpha=4).div_(13).round_()
    middle.add_(blurred.sub_(middle), alpha=1 - factor)
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)

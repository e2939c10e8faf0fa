"""MixUp and CutMix: batches whose images are mixed with one another, and targets that say how much. Loads torch.

Shapes: ``B`` images of ``H`` x ``W`` px, ``K`` classes. Each image's partner is the one before it in the batch, the
first's is the last: batches come shuffled. The draws are made on the CPU by a seeded generator.
"""

from __future__ import annotations

import math

import torch


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

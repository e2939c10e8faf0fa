"""A small model, and images that it can learn, for tests of the loop and the evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from vitbench.training.data.images import ImageSet
from vitbench.training.order import ImageOrder
from vitbench.training.recipes import Recipe


class PatchClassifier(nn.Module):
    """A linear patch embedding, dropout and a linear head: (B, 3, H, W) -> (B, classes)."""

    def __init__(self, side: int = 8, classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(16 * (side // 4) ** 2, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.drop(self.patches(images).relu().flatten(1)))
        return logits


def random_pictures(count: int = 40, side: int = 8, classes: int = 10, seed: int = 0) -> ImageSet:
    """Noise with labels 0, 1, 2, ... in turn."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % classes, tuple(f"class {number}" for number in range(classes)))


def batches(count: int, recipe: Recipe, seed: int) -> Iterator[torch.Tensor]:
    """The indices (B,) of each step's images out of ``count``, until the budget is reached to the image; endless for a
    budget in seconds. Batches cross the end of a pass: all but the last have ``batch_size`` images.
    """
    order = ImageOrder(count, seed)
    total = recipe.total_images(count)
    seen = 0
    while total is None or seen < total:
        size = recipe.batch_size if total is None else min(recipe.batch_size, total - seen)
        yield order.at(seen, size)
        seen += size

"""Which images a step takes: a pure function of the seed and of how many were seen before. Loads torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from vitbench.training.recipes import Recipe


class ImageOrder:
    """The order in which ``count`` images are seen, without end.

    Shuffled: every image comes once before any comes again, each time in another order. Weighted: each of ``count``
    draws is of any class with equal chance, then of any of its images, with replacement.
    """

    def __init__(self, count: int, seed: int, labels: torch.Tensor | None = None) -> None:
        """``labels`` (count,) int64 are given for the weighted order only."""
        self.count = count
        self.seed = seed
        self.weights: torch.Tensor | None = None
        if labels is not None:
            sizes = torch.bincount(labels)
            self.weights = 1.0 / sizes[labels].double()
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def at(self, begin: int, size: int) -> torch.Tensor:
        """The indices (size,) of the images that are seen after ``begin`` others."""
        parts = []
        while size > 0:
            epoch, offset = divmod(begin, self.count)
            part = self._of_epoch(epoch)[offset : offset + size]
            parts.append(part)
            begin += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _of_epoch(self, epoch: int) -> torch.Tensor:
        if epoch != self._epoch:
            generator = seeded_generator(self.seed, "order", epoch)
            if self.weights is None:
                self._order = torch.randperm(self.count, generator=generator)
            else:
                self._order = torch.multinomial(self.weights, self.count, replacement=True, generator=generator)
            self._epoch = epoch
        return self._order


def batches(count: int, recipe: Recipe, seed: int) -> Iterator[torch.Tensor]:
    """The indices (B,) of each step's images out of ``count``: without end where time decides, else until the budget
    is used up, to the image. Batches go across the end of a pass, so that all but the last have ``batch_size``
    images.
    """
    order = ImageOrder(count, seed)
    total = recipe.total_images(count)
    seen = 0
    while total is None or seen < total:
        size = recipe.batch_size if total is None else min(recipe.batch_size, total - seen)
        yield order.at(seen, size)
        seen += size


def seeded_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A generator (on the CPU) of its own for the ``index``-th use of a purpose under ``seed``."""
    # hashed, because torch's CPU generator looks at the lower 32 bits of a seed only
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))

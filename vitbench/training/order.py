"""Which images a step takes, by the seed and the number of images seen before. Loads torch."""

from __future__ import annotations

import torch

from vitbench.training.generators import seeded_generator


class ImageOrder:
    """The endless order in which ``count`` images are seen.

    Shuffled: each pass has every image once, in another order. Weighted: each of the ``count`` draws of a pass takes
    any class with equal probability, then any of its images, with replacement.
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

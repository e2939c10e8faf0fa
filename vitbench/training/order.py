"""What is random: the order of the images, a generator for each use of a seed, all generators' state. Loads torch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


class ImageOrder:
    """The endless order in which ``count`` images are seen.

    Shuffled: each pass has every image once, in another order. Weighted: each of the ``count`` draws of a pass takes
    any class with equal probability, then any of its images, with replacement.
    """

    def __init__(self, count: int, seed: int, labels: torch.Tensor | None = None) -> None:
        """``labels`` (count,) int64 are given for the weighted order only."""
        self.count = count
        self.seed = seed
        self.weights = None if labels is None else 1.0 / torch.bincount(labels)[labels].double()
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


def seeded_generator(seed: int, purpose: str, index: int) -> torch.Generator:
    """A separate generator (on the CPU) for the ``index``-th use of ``purpose`` under ``seed``."""
    # hashed: torch's CPU generator uses the lower 32 bits of a seed only
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def random_state() -> dict[str, Any]:
    """The state of every generator that a model may draw from: Python's, numpy's, torch's on each device."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    found: dict[str, Any] = {
        "python": [version, list(words), next_gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps.get_rng_state()
    return found


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what ``random_state`` returned, except for devices that this machine lacks."""
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words), next_gauss))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])

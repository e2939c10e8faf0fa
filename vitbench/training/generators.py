"""Random generators: one for each use of a seed, and the state of those that a model may draw from. Loads torch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


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

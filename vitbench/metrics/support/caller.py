"""Measure in the caller's own process, leaving its threads and random numbers as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vitbench.core.records import Cell
from vitbench.devices import open_device
from vitbench.metrics.support.subject import Budget, Subject

if TYPE_CHECKING:
    import torch


def subject_of(cell: Cell, build: Callable[[], torch.nn.Module], budget: Budget | None = None) -> Subject:
    """The subject of a cell. ``build`` makes the module to measure: a new one, or a copy of the caller's, as training
    steps, casts and moves change it.
    """
    from vitbench.models import use_attention

    return Subject(
        cell=cell,
        device=open_device(cell.device),
        build=build,
        attention=lambda copied: use_attention(copied, cell.attention),
        budget=budget or Budget(),
    )


@contextlib.contextmanager
def caller_state_kept(cell: Cell) -> Iterator[None]:
    """Use ``cell``'s threads and seed inside; restore threads and random generators afterwards, also the device's."""
    import torch

    kind = cell.device.partition(":")[0]
    threads = torch.get_num_threads()
    on_mps = torch.mps.get_rng_state() if kind == "mps" else None
    torch.set_num_threads(cell.threads)
    try:
        with torch.random.fork_rng(devices=[cell.device] if kind == "cuda" else []):
            torch.manual_seed(cell.seed)
            yield
    finally:
        torch.set_num_threads(threads)
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)

"""Several processes that train one model together, as torchrun starts them. Loads torch."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from vitbench.core.errors import UsageError

#: How long a process waits for the others. The first one alone tests each epoch and downloads, which may take longer
#: than torch's own limits (10 minutes with NCCL, 30 with gloo). torchrun sees when a process has died.
_PATIENCE = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """This process is ``rank`` of ``count``; ``local`` is its rank on this machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that tests, writes and reports."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """``value`` of each process, in all of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found

    def share(self, value: Any) -> Any:
        """The first process's ``value``, in all of them."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


def ranks_from_environment() -> Ranks:
    """From torchrun's variables. Raises UsageError for processes on several machines."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks()
    if int(os.environ.get("LOCAL_WORLD_SIZE", count)) != count:
        raise UsageError("Training runs on one machine: start torchrun with --nnodes 1")
    if "RANK" not in os.environ or "LOCAL_RANK" not in os.environ:
        raise UsageError(f"WORLD_SIZE is {count}, but RANK or LOCAL_RANK is not set: start with torchrun, or unset it")
    return Ranks(int(os.environ["RANK"]), count, int(os.environ["LOCAL_RANK"]))


@contextlib.contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Join the other processes: by NCCL on ``cuda``, by gloo elsewhere."""
    if ranks.count == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()

"""Builders of models whose largest batch is known; the tests search it in real workers.

Each is called as ``(*, image_size, num_classes)``. On ``meta`` they behave.
"""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import Tensor, nn

#: What ``holds`` has alive for each picture: in inference once, in a training step twice.
BYTES_AN_IMAGE = 2**22


class Small(nn.Module):
    """The mean of the picture through one layer, after ``at_batch``."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "meta":
            kept = self.at_batch(len(images))
            return self.head(images.mean(dim=(2, 3)) + kept)
        return self.head(images.mean(dim=(2, 3)))

    def at_batch(self, batch: int) -> float | Tensor:
        """What subclasses do with a batch of so many pictures."""
        return 0.0


def works(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return Small(num_classes)


def holds(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Holds(Small):
        def at_batch(self, batch: int) -> float:
            kept = torch.ones(batch * (2 if self.training else 1), BYTES_AN_IMAGE // 4)  # touched
            return float(kept[0, 0]) - 1.0

    return Holds(num_classes)


def keeps(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Keeps(Small):
        def at_batch(self, batch: int) -> Tensor:
            return torch.ones(batch, BYTES_AN_IMAGE // 4)[0, 0]  # a view: as large as the whole

    return Keeps(num_classes)


def killed_above_5(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class KilledAbove5(Small):
        def at_batch(self, batch: int) -> float:
            if batch > 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return 0.0

    return KilledAbove5(num_classes)


def crashes_without_memory(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    """As libraries do that do not look whether they got what they asked for."""

    class CrashesWithoutMemory(Small):
        def at_batch(self, batch: int) -> float:
            try:
                torch.ones(batch, BYTES_AN_IMAGE // 4)
            except RuntimeError:
                os.kill(os.getpid(), signal.SIGSEGV)
            return 0.0

    return CrashesWithoutMemory(num_classes)


def crashes_at_4(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class CrashesAt4(Small):
        def at_batch(self, batch: int) -> float:
            if batch >= 4:
                os.kill(os.getpid(), signal.SIGSEGV)
            return 0.0

    return CrashesAt4(num_classes)


def breaks_at_4(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class BreaksAt4(Small):
        def at_batch(self, batch: int) -> float:
            if batch >= 4:
                raise IndexError("there is no fourth picture")
            return 0.0

    return BreaksAt4(num_classes)


def hangs_at_4(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class HangsAt4(Small):
        def at_batch(self, batch: int) -> float:
            if batch >= 4:
                time.sleep(3600)
            return 0.0

    return HangsAt4(num_classes)


def lacks_an_operator(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class LacksAnOperator(Small):
        def at_batch(self, batch: int) -> float:
            raise NotImplementedError("\"addmm_impl_cpu_\" not implemented for 'Half'")

    return LacksAnOperator(num_classes)


def never_fits(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class NeverFits(Small):
        def at_batch(self, batch: int) -> float:
            return float(torch.ones(2**28)[0])  # 1 GiB, whatever the batch

    return NeverFits(num_classes)

"""Builders of models that go wrong in every way that a benchmark meets; the tests run them in real workers.

Each is called as ``(*, image_size, num_classes)``. On ``meta`` they behave (parameters and FLOPs are had); on the device they do not.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
from torch import Tensor, nn


class Pooled(nn.Module):
    """A model that works: the mean of the picture through one layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "meta":
            self.go_wrong(images)
        return self.head(images.mean(dim=(2, 3)))

    def go_wrong(self, images: Tensor) -> None:
        """What subclasses do."""


def works(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return Pooled(num_classes)


def slow_to_build(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    time.sleep(1.0)
    return Pooled(num_classes)


def raises(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Raises(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            raise IndexError("token 65 is out of range")

    return Raises(num_classes)


def kills_itself(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class KillsItself(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    return KillsItself(num_classes)


def segfaults(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Segfaults(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            os.kill(os.getpid(), signal.SIGSEGV)

    return Segfaults(num_classes)


def aborts_like_bad_alloc(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Aborts(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
            os.abort()

    return Aborts(num_classes)


def exits(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Exits(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            print("goodbye", flush=True)  # a model's prints must not be taken for events
            os._exit(7)

    return Exits(num_classes)


def hangs(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Hangs(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            if not os.fork():  # a child that would outlive its parent
                time.sleep(3600)
            time.sleep(3600)

    return Hangs(num_classes)


def allocates(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Allocates(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            kept = [torch.ones(2**24, device=images.device) for _ in range(64)]  # 4 GiB, touched
            images.add_(len(kept))

    return Allocates(num_classes)


def allocates_in_training(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class AllocatesInTraining(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            if self.training:
                torch.ones(2**30, device=images.device)

    return AllocatesInTraining(num_classes)


def overflows(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Overflows(Pooled):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) / 0.0

    return Overflows(num_classes)


def lacks_an_operator(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class LacksAnOperator(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            raise NotImplementedError(
                "The operator 'aten::_linalg_eigh' is not currently implemented for the MPS device. If you want this op "
                "to be considered for addition please comment on the issue and mention use-case."
            )

    return LacksAnOperator(num_classes)


def fills_the_disk(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class FillsTheDisk(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            with open("/dev/full", "w") as full:
                full.write("x" * 10_000)

    return FillsTheDisk(num_classes)


def breaks_on_meta(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class BreaksOnMeta(Pooled):
        def forward(self, images: Tensor) -> Tensor:
            if images.device.type == "meta":
                raise RuntimeError("no meta here")
            return super().forward(images)

    return BreaksOnMeta(num_classes)


def prints(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Prints(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            print('{"kind": "Done", "seconds": 0}')

    return Prints(num_classes)


class Later(Pooled):
    """Works for a while: calls of 5 ms each, of which the 30th goes wrong."""

    calls = 0

    def go_wrong(self, images: Tensor) -> None:
        self.calls += 1
        time.sleep(0.005)
        if self.calls == 30:
            self.go_wrong_now()

    def go_wrong_now(self) -> None:
        """What subclasses do."""


def works_slowly(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return Later(num_classes)


def kills_itself_later(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class KillsItselfLater(Later):
        def go_wrong_now(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    return KillsItselfLater(num_classes)


def hangs_later(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class HangsLater(Later):
        def go_wrong_now(self) -> None:
            time.sleep(3600)

    return HangsLater(num_classes)


def notes_its_calls(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    """Writes begin and end of each call (seconds of the clock that all processes share), and the number of classes,
    into the file that the environment variable CALLS names.
    """

    class NotesItsCalls(Pooled):
        def forward(self, images: Tensor) -> Tensor:
            begin = time.monotonic()
            time.sleep(0.005)
            output = super().forward(images)
            if images.device.type != "meta":
                with open(os.environ["CALLS"], "a") as calls:
                    calls.write(f"{num_classes} {begin} {time.monotonic()}\n")
            return output

    return NotesItsCalls(num_classes)


# those that go wrong while they are built, on ``meta`` too


def raises_when_built(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    raise IndexError("there is no block 13")


def kills_itself_when_built(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    os.kill(os.getpid(), signal.SIGKILL)
    return Pooled(num_classes)


def exits_when_built(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    print("goodbye", flush=True)
    os._exit(7)


def hangs_when_built(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    if not os.fork():  # a child that would outlive its parent
        time.sleep(3600)
    time.sleep(3600)
    return Pooled(num_classes)


def waits_for_a_file(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    """Built once the file that the environment variable WAIT_FOR names is there."""
    while not os.path.exists(os.environ["WAIT_FOR"]):
        time.sleep(0.02)
    return Pooled(num_classes)


def leaves_a_line(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    """Writes a line for each time that it is built into the file that the environment variable BUILDS names."""
    with open(os.environ["BUILDS"], "a") as builds:
        builds.write(f"{image_size} {num_classes}\n")
    return Pooled(num_classes)

"""Builders of models that never come to an end, each in another way, and of some that leave processes behind.

On ``meta`` they behave. A process that is left behind writes its id into the file that the environment variable
LEFT_BEHIND names.
"""

from __future__ import annotations

import collections
import ctypes
import itertools
import os
import signal
import threading
import time

import torch
from torch import Tensor, nn

from tests.failing_models import Pooled


def sleeps(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Sleeps(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            time.sleep(3600)

    return Sleeps(num_classes)


def waits_for_its_own_lock(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class WaitsForItsOwnLock(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            lock = threading.Lock()
            with lock, lock:
                pass

    return WaitsForItsOwnLock(num_classes)


def waits_for_an_event(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    """In Python's own threading module, as a queue or a pool would."""

    class WaitsForAnEvent(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            threading.Event().wait()

    return WaitsForAnEvent(num_classes)


def loops_in_native_code(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    """Without giving back the interpreter's lock: no other thread of the process runs Python again."""

    class LoopsInNativeCode(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            collections.deque(itertools.repeat(0), maxlen=0)

    return LoopsInNativeCode(num_classes)


def blocks_in_native_code(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class BlocksInNativeCode(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            ctypes.PyDLL(None).sleep(3600)

    return BlocksInNativeCode(num_classes)


def hangs_in_the_backward_pass(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Hangs(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, values: Tensor) -> Tensor:
            return values.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            while True:
                time.sleep(0.001)

    class HangsInTheBackwardPass(Pooled):
        def forward(self, images: Tensor) -> Tensor:
            output = super().forward(images)
            return output if images.device.type == "meta" else Hangs.apply(output)

    return HangsInTheBackwardPass(num_classes)


def _leave_behind() -> None:
    """A grandchild in a session of its own that SIGTERM does not end, and whose parent has ended."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(os.environ["LEFT_BEHIND"], "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(3600)
    os._exit(0)


def leaves_a_daemon(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class LeavesADaemon(Pooled):
        left = False

        def go_wrong(self, images: Tensor) -> None:
            if not self.left:
                self.left = True
                _leave_behind()

    return LeavesADaemon(num_classes)


def leaves_a_daemon_and_hangs(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class LeavesADaemonAndHangs(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            _leave_behind()
            collections.deque(itertools.repeat(0), maxlen=0)

    return LeavesADaemonAndHangs(num_classes)

"""Builders of models that fail, or warn, in the words of a device that is not here; the tests run them in real workers on
the CPU.

A worker that builds one sees its own exceptions with the eyes of that device (``seen_as``); what the parent makes of a
death is the tests' to arrange.
"""

from __future__ import annotations

import os
import sys
import warnings

import torch
from torch import Tensor, nn

from tests.failing_models import Pooled
from vitbench.devices.cpu import CpuDevice
from vitbench.devices.cuda import CudaDevice
from vitbench.devices.mps import MpsDevice

ILLEGAL_ACCESS = (
    "CUDA error: an illegal memory access was encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect."
)
MPS_OUT_OF_MEMORY = (
    "MPS backend out of memory (MPS allocated: 5.50 GB, other allocations: 14.76 GB, max allowed: 20.40 GB). Tried to allocate "
    "147.24 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations (may "
    "cause system failure)."
)
FALLBACK = (
    "The operator 'aten::nonzero' is not currently supported on the MPS backend and will fall back to run on the CPU. This may "
    "have performance implications."
)
LOST_BUFFER = (
    "Error: command buffer exited with error status.\n\tThe Metal Performance Shaders operations encoded on it may not have "
    "completed.\n\tError:\n\t(null)\n\tInternal Error (0000000e:Internal Error)"
)
NDARRAY = (
    "/AppleInternal/Library/BuildRoots/c651a45f/Library/Caches/com.apple.xbs/Sources/MetalPerformanceShaders/MPSCore/Types/"
    "MPSNDArray.mm:724: failed assertion `[MPSNDArray initWithDevice:descriptor:] Error: total bytes of NDArray > 2**32'"
)


def seen_as(device: type) -> None:
    """From here on this process knows the texts of ``device`` where it is on the CPU."""
    CpuDevice.error_texts = device.error_texts  # type: ignore[attr-defined]


class Says(Pooled):
    """Raises ``error`` when it is run on a device (not on ``meta``)."""

    def __init__(self, num_classes: int, error: Exception) -> None:
        super().__init__(num_classes)
        self.error = error

    def go_wrong(self, images: Tensor) -> None:
        raise self.error


def loses_the_device(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    seen_as(CudaDevice)
    return Says(num_classes, RuntimeError(ILLEGAL_ACCESS))


def loses_the_device_when_built(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    seen_as(CudaDevice)
    raise RuntimeError(ILLEGAL_ACCESS)


def runs_out_when_built(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. "
        "Error code 12 (Cannot allocate memory)"
    )


def runs_out_of_mps(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    seen_as(MpsDevice)
    return Says(num_classes, RuntimeError(MPS_OUT_OF_MEMORY))


def wants_float64(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    seen_as(MpsDevice)
    text = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use float32 instead."
    return Says(num_classes, TypeError(text))


def falls_back(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class FallsBack(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            warnings.warn(FALLBACK, UserWarning, stacklevel=1)

    return FallsBack(num_classes)


def aborts_like_ndarray(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Aborts(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            print(NDARRAY, file=sys.stderr, flush=True)
            os.abort()

    return Aborts(num_classes)


def goes_on_without_its_device(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class GoesOn(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            print(LOST_BUFFER, file=sys.stderr, flush=True)

    return GoesOn(num_classes)


def notes_its_process(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    """Writes pid, size and batch of each call on a device into the file that the environment variable PROCESSES names."""

    class NotesItsProcess(Pooled):
        def go_wrong(self, images: Tensor) -> None:
            with open(os.environ["PROCESSES"], "a") as processes:
                processes.write(f"{os.getpid()} {images.shape[2]}x{images.shape[3]} {images.shape[0]}\n")

    return NotesItsProcess(num_classes)


# bugs of models, each in a place of its own


def multiplies_wrong_shapes(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    """Put together of torch's modules, so that no line of its own is in the traceback."""
    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: object, grad: Tensor) -> Tensor:
        raise ZeroDivisionError("no gradient for this one")


def fails_in_backward(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class FailsInBackward(Pooled):
        def forward(self, images: Tensor) -> Tensor:
            return _Backward.apply(super().forward(images))  # type: ignore[no-any-return, no-untyped-call]

    return FailsInBackward(num_classes)

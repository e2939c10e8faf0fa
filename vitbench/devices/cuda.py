"""NVIDIA GPUs (and AMD's through ROCm, which torch also calls cuda)."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from vitbench.devices.base import Device, split_name
from vitbench.devices.nvml import energy_joules, process_memory, settings
from vitbench.errors import DeviceError, Unsupported
from vitbench.registry import DEVICES


def gpu_name(index: int) -> str:
    """The name of the GPU of that index: the first one is plain ``cuda``, so that equal cells have equal ids."""
    return "cuda" if index == 0 else f"cuda:{index}"


@DEVICES.register("cuda")
class CudaDevice(Device):
    """One GPU."""

    kind = "cuda"
    memory_method = (
        "torch.cuda.max_memory_allocated (bytes of live tensors and library workspaces, without cache and context)"
    )
    error_texts: ClassVar = (
        (r"CUDA out of memory|torch\.OutOfMemoryError|OutOfMemoryError", "oom", "out_of_memory"),
        (r"(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED", "oom", "library_workspace"),
        (r"CUDA error: out of memory", "oom", "out_of_memory"),
        # sticky: every later call of this process fails too
        (
            r"illegal memory access|device-side assert|AcceleratorError|unspecified launch failure",
            "error",
            "device_lost",
        ),
        (r"no kernel image is available", "unsupported", "architecture"),
    )

    @classmethod
    def find(cls) -> list[str]:
        import torch

        if not torch.cuda.is_available():
            return []
        return [gpu_name(index) for index in range(torch.cuda.device_count())]

    def describe(self) -> dict[str, Any]:
        import torch

        _, index = split_name(self.name)
        properties = torch.cuda.get_device_properties(index or 0)
        found: dict[str, Any] = {}
        with contextlib.suppress(Unsupported):
            found = settings(index or 0)
        return {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "hip": getattr(torch.version, "hip", None),
            "cudnn": torch.backends.cudnn.version(),
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_cudnn": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "fp16_reduced_precision": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
            "bf16_reduced_precision": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
            **found,
        }

    def synchronize(self) -> None:
        import torch

        torch.cuda.synchronize(self.name)

    def memory_now(self) -> int:
        import torch

        return torch.cuda.memory_allocated(self.name)

    def reset_peak(self) -> None:
        import torch

        torch.cuda.reset_peak_memory_stats(self.name)

    def peak(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated(self.name)

    def reserved_memory(self) -> dict[str, tuple[int, str]]:
        import torch

        found = {
            "reserved_peak_memory": (
                torch.cuda.max_memory_reserved(self.name),
                "torch.cuda.max_memory_reserved: live tensors and what torch's allocator keeps for later",
            )
        }
        with contextlib.suppress(Unsupported):
            how = "NVML, memory of this process on the GPU after the call: with cache and CUDA context"
            found["process_gpu_memory"] = (process_memory(self._index), how)
        return found

    energy_method = "NVML's total energy counter of the whole board"

    def energy_joules(self) -> float:
        return energy_joules(self._index)

    @property
    def _index(self) -> int:
        return split_name(self.name)[1] or 0

    def limit_memory(self, limit: int | None) -> None:
        import torch

        if limit is None:
            return
        total = torch.cuda.get_device_properties(self.name).total_memory
        if limit > total:
            raise DeviceError(f"Memory limit of {limit} bytes is more than {self.name} has ({total}). Give less")
        torch.cuda.set_per_process_memory_fraction(limit / total, self.name)

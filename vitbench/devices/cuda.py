"""NVIDIA GPUs (and AMD's through ROCm, which torch also calls cuda)."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from vitbench.core.errors import DeviceError, Unsupported
from vitbench.core.registry import DEVICES
from vitbench.devices.base import Device, split_name
from vitbench.devices.failures import AT_LINE
from vitbench.devices.host.nvml import energy_joules, process_memory, settings

#: How errors of CUDA and ROCm begin in torch and in triton.
_SAYS = r"(?:(?:CUDA|HIP)(?: driver)? error: |Triton Error \[(?:CUDA|HIP)\]: )"
_LIBRARY = r"(?:CUBLAS|CUDNN|CUSOLVER|CUSPARSE|CUSPARSELT|CUFFT|HIPBLAS|HIPBLASLT|HIPSOLVER|HIPSPARSE|HIPFFT|MIOPEN)"
#: Errors after which this process cannot use the device any more (CUDA Runtime API, cudaError_t), or by which another
#: process holds it.
_LOST = (
    r"(?:an illegal memory access was encountered|an illegal instruction was encountered|misaligned address|"
    r"invalid program counter|operation not supported on global/shared address space|hardware stack error|"
    r"device-side assert triggered|unspecified launch failure|the launch timed out and was terminated|"
    r"uncorrectable (?:ECC|NVLink) error|unknown error|context is destroyed|"
    r"(?:all )?CUDA-capable device(?:s|\(s\)) (?:is/)?are busy or unavailable)"
)


@DEVICES.register("cuda")
class CudaDevice(Device):
    """One GPU."""

    kind = "cuda"
    memory_method = (
        "torch.cuda.max_memory_allocated (bytes of live tensors and library workspaces, without cache and context)"
    )
    error_texts: ClassVar = (
        (r"CUDA out of memory\. Tried to allocate more than 1EB", "oom", "oom_single_buffer"),
        (AT_LINE + r"(?:CUDA|HIP) out of memory\.", "oom", "out_of_memory"),
        (r"would exceed allowed memory\. \(out of memory\)", "oom", "out_of_memory"),  # torch's cudaMallocAsync
        (_SAYS + r"out of memory", "oom", "out_of_memory"),
        (r"cuda runtime error \(2\) : out of memory", "oom", "out_of_memory"),
        (rf"\b{_LIBRARY}_(?:STATUS_ALLOC|ALLOC)_FAILED\b", "oom", "library_workspace"),
        (r"CUDNN_STATUS_INTERNAL_ERROR_(?:HOST|DEVICE)_ALLOCATION_FAILED", "oom", "library_workspace"),
        (r"CURAND_STATUS_ALLOCATION_FAILED|rocblas_status_memory_error", "oom", "library_workspace"),
        (r"Cuda failure (?:2 )?'out of memory'", "oom", "library_workspace"),  # NCCL
        (r"no kernel image is available for execution|device kernel image is invalid", "unsupported", "architecture"),
        (r"HIP error: invalid device function", "unsupported", "architecture"),
        (r"CUDA Device does not support bfloat16", "unsupported", "unsupported_dtype"),
        (
            r"NVIDIA driver on your system is too old|Found no NVIDIA driver|CUDA driver initialization failed|"
            r"No CUDA GPUs are available|CUDA unknown error - this may be due to an incorrectly set up environment|"
            + _SAYS
            + r"(?:CUDA driver version is insufficient|no CUDA-capable device is detected|"
            r"the provided PTX was compiled with an unsupported toolchain|"
            r"forward compatibility was attempted on non supported HW|"
            r"system has unsupported display driver / cuda driver combination)",
            "error",
            "driver",
        ),
        # sticky: every later call of this process fails too
        (_SAYS + _LOST, "error", "device_lost"),
        # refused calls leave the device usable; other errors of this class do not
        (r"^AcceleratorError: (?:CUDA|HIP) error: (?:invalid |operation not supported)", "error", "exception"),
        (r"^AcceleratorError: ", "error", "device_lost"),
        # libraries that fail without a reason: not attributed to the model
        (_SAYS + rf"|\b{_LIBRARY}_STATUS_\w+|NCCL error in|valid cuDNN algorithm|find an engine", "error", "exception"),
    )

    @classmethod
    def find(cls) -> list[str]:
        import torch

        if not torch.cuda.is_available():
            return []
        # the first one is plain "cuda", so that equal cells have equal ids
        return ["cuda" if index == 0 else f"cuda:{index}" for index in range(torch.cuda.device_count())]

    def caches(self) -> tuple[int, ...]:
        properties = self._torch.get_device_properties(self._index)
        return tuple(filter(None, [getattr(properties, "L2_cache_size", 0)]))

    def describe(self) -> dict[str, Any]:
        import torch

        properties = torch.cuda.get_device_properties(self._index)
        found: dict[str, Any] = {}
        with contextlib.suppress(Unsupported):
            found = settings(self._index)
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
        self._torch.synchronize(self.name)

    def memory_now(self) -> int:
        return int(self._torch.memory_allocated(self.name))

    def reset_peak(self) -> None:
        self._torch.reset_peak_memory_stats(self.name)

    def peak(self) -> int:
        return int(self._torch.max_memory_allocated(self.name))

    def reserved_memory(self) -> dict[str, tuple[int, str]]:
        how = "torch.cuda.max_memory_reserved: live tensors and what torch's allocator keeps for later"
        found = {"reserved_peak_memory": (int(self._torch.max_memory_reserved(self.name)), how)}
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

    def limit_memory(self, limit: int | None) -> str:
        if limit is None:
            return ""
        total = self._torch.get_device_properties(self.name).total_memory
        if limit > total:
            raise DeviceError(f"Memory limit of {limit} bytes is more than {self.name} has ({total}). Give less")
        # by index: this call does not take a plain "cuda" for the first GPU
        self._torch.set_per_process_memory_fraction(limit / total, self._index)
        return f"per-process memory fraction (torch.cuda.set_per_process_memory_fraction) of {total} bytes"

"""What NVIDIA's management library tells of a GPU beyond what torch does. The package nvidia-ml-py is optional: the
extra ``gpu`` installs it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from vitbench.errors import Unsupported

#: nvmlClocksEventReasons that slow a GPU down: software power cap, hardware slowdown, software and hardware thermal
#: slowdown, hardware power brake (NVML API reference, "nvmlClocksEventReasons").
_SLOWING = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True)
class GpuState:
    """Clock of the multiprocessors in Hz, temperature in degrees Celsius, whether something slows the clock down."""

    clock: float
    temperature: float
    slowed: bool


def gpu_state(index: int) -> GpuState:
    """The state of the GPU that torch calls ``cuda:index``, now. Raises Unsupported where it cannot be read."""
    nvml, handle = _open(index)
    try:
        clock = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6
        temperature = nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    except nvml.NVMLError as error:
        raise Unsupported(f"this GPU does not tell its state (NVML: {error})") from error
    return GpuState(float(clock), float(temperature), bool(reasons & _SLOWING))


def energy_joules(index: int) -> float:
    """Joules that the whole board has used since its driver was loaded. Raises Unsupported where that is not counted
    (before Volta).
    """
    nvml, handle = _open(index)
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000  # it counts millijoules
    except nvml.NVMLError as error:
        raise Unsupported(f"this GPU counts no energy (NVML: {error})") from error


def process_memory(index: int) -> int:
    """Bytes that this process holds on the GPU, its CUDA context included. Raises Unsupported where that is not told
    (in a container, the process ids that NVML knows may be others).
    """
    nvml, handle = _open(index)
    try:
        found = [one for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if one.pid == os.getpid()]
    except nvml.NVMLError as error:
        raise Unsupported(f"this GPU does not tell its processes (NVML: {error})") from error
    if not found or found[0].usedGpuMemory is None:
        raise Unsupported("NVML does not know this process, as in containers with process ids of their own")
    return int(found[0].usedGpuMemory)


def _open(index: int) -> tuple[Any, Any]:
    """The library and a handle of the GPU that torch calls ``cuda:index``: CUDA_VISIBLE_DEVICES renumbers them."""
    try:
        import pynvml as nvml
    except ImportError:
        raise Unsupported("NVML is not installed: pip install nvidia-ml-py") from None
    try:
        nvml.nvmlInit()
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        if not visible:
            return nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        name = visible[index]
        return nvml, (
            nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
        )
    except (nvml.NVMLError, IndexError) as error:
        raise Unsupported(f"NVML cannot be asked ({error})") from error

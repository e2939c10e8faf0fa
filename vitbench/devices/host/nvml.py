"""What NVIDIA's management library tells of a GPU beyond what torch does. The package nvidia-ml-py is optional: the
extra ``gpu`` installs it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Any

from vitbench.core.errors import Unsupported

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


def slowed_seconds(index: int) -> float:
    """Seconds so far in which heat or a power limit held the GPU's clock down. Raises Unsupported where that is not
    counted.
    """
    nvml, handle = _open(index)
    try:
        policies = (nvml.NVML_PERF_POLICY_POWER, nvml.NVML_PERF_POLICY_THERMAL)
        return sum(nvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime for policy in policies) / 1e9
    except (nvml.NVMLError, AttributeError) as error:
        raise Unsupported(f"this GPU does not count its slowdowns (NVML: {error})") from error


def settings(index: int) -> dict[str, Any]:
    """What of a GPU's own settings changes speed: driver, power limit (W), ECC, compute mode. Raises Unsupported."""
    nvml, handle = _open(index)
    found: dict[str, Any] = {}
    for name, read in (
        ("driver", lambda: _text(nvml.nvmlSystemGetDriverVersion())),
        ("power_limit_w", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        ("ecc", lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0])),
        ("compute_mode", lambda: nvml.nvmlDeviceGetComputeMode(handle)),
    ):
        try:
            found[name] = read()
        except (nvml.NVMLError, AttributeError):
            found[name] = None
    return found


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


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


def _uuid_in_torch(index: int) -> str:
    """By which NVML knows the GPU that torch calls so, where this process uses CUDA already (as that of a caller of
    ``vitbench.measure``, whose numbers may be in another order); else empty.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    return f"GPU-{uuid}" if uuid else ""


def _open(index: int) -> tuple[Any, Any]:
    """The library and a handle of the GPU that torch calls ``cuda:index``: CUDA_VISIBLE_DEVICES renumbers them, and
    workers number GPUs as NVML does (``processes.worker_environment``).
    """
    try:
        import pynvml as nvml
    except ImportError:
        raise Unsupported("NVML is not installed: pip install nvidia-ml-py") from None
    try:
        nvml.nvmlInit()
        if uuid := _uuid_in_torch(index):
            with contextlib.suppress(nvml.NVMLError):
                return nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        if not visible:
            return nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        name = visible[index]
        return nvml, (
            nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
        )
    except (nvml.NVMLError, IndexError) as error:
        raise Unsupported(f"NVML cannot be asked ({error})") from error

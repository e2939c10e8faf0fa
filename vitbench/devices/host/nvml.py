"""Read a GPU's state from NVIDIA's management library. The package nvidia-ml-py is optional: extra ``gpu``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from vitbench.core.errors import Unsupported


def gpu_state(index: int) -> tuple[float, float]:
    """Clock (Hz) and temperature (degrees Celsius) of the GPU ``cuda:index``. Raises Unsupported if unreadable."""
    with _gpu(index, "does not report its state") as (nvml, handle):
        clock = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6
        return float(clock), float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))


def slowed_seconds(index: int) -> float:
    """Seconds so far in which heat or a power limit held the clock down. Raises Unsupported if not counted."""
    with _gpu(index, "does not count its slowdowns") as (nvml, handle):
        policies = (nvml.NVML_PERF_POLICY_POWER, nvml.NVML_PERF_POLICY_THERMAL)
        return sum(nvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime for policy in policies) / 1e9


def settings(index: int) -> dict[str, Any]:
    """Settings of a GPU that change its speed: driver, power limit (W), ECC, compute mode. Raises Unsupported."""
    nvml, handle = _open(index)
    found: dict[str, Any] = {}
    for name, read in (
        ("driver", lambda: nvml.nvmlSystemGetDriverVersion()),
        ("power_limit_w", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        ("ecc", lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0])),
        ("compute_mode", lambda: nvml.nvmlDeviceGetComputeMode(handle)),
    ):
        found[name] = None
        with contextlib.suppress(nvml.NVMLError, AttributeError):
            found[name] = read()
    return found


def energy_joules(index: int) -> float:
    """Joules of the board since its driver was loaded. Raises Unsupported if not counted (before Volta)."""
    with _gpu(index, "counts no energy") as (nvml, handle):
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000  # it counts millijoules


def process_memory(index: int) -> int:
    """Bytes that this process holds on the GPU, including its CUDA context. Raises Unsupported if NVML does not know
    the process: a container may have process ids of its own.
    """
    with _gpu(index, "does not report its processes") as (nvml, handle):
        found = [one for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if one.pid == os.getpid()]
    if not found or found[0].usedGpuMemory is None:
        raise Unsupported("NVML does not know this process, as in containers with process ids of their own")
    return int(found[0].usedGpuMemory)


@contextlib.contextmanager
def _gpu(index: int, refusal: str) -> Iterator[tuple[Any, Any]]:
    """The library and a handle of the GPU; errors of the library inside become Unsupported with ``refusal``."""
    nvml, handle = _open(index)
    try:
        yield nvml, handle
    except (nvml.NVMLError, AttributeError) as error:
        raise Unsupported(f"this GPU {refusal} (NVML: {error})") from error


def _open(index: int) -> tuple[Any, Any]:
    """The library and a handle of the GPU that torch calls ``cuda:index``: CUDA_VISIBLE_DEVICES renumbers GPUs, and
    workers number them as NVML does.
    """
    try:
        import pynvml as nvml
    except ImportError:
        raise Unsupported("NVML is not installed: pip install nvidia-ml-py") from None
    try:
        nvml.nvmlInit()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            # the caller of ``vitbench.measure``, in whose process this runs, may order its GPUs in another way
            with contextlib.suppress(nvml.NVMLError, AttributeError):  # older torch knows no uuid
                uuid = torch.cuda.get_device_properties(index).uuid
                return nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        if not visible:
            return nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        name = visible[index]
        handle = nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
        return nvml, handle
    except (nvml.NVMLError, IndexError) as error:
        raise Unsupported(f"NVML is unavailable ({error})") from error

"""What else the machine does while something is timed: other programs, time stolen by the host, clock and heat."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from vitbench.core.errors import Unsupported
from vitbench.core.records import Measurement
from vitbench.devices import split_name
from vitbench.devices.host.nvml import gpu_state, slowed_seconds

OTHER_LOAD = "other_load"
STEAL = "cpu_steal"
FREQUENCY = "cpu_frequency"
TEMPERATURE = "cpu_temperature"
GPU_CLOCK = "gpu_clock"
GPU_TEMPERATURE = "gpu_temperature"
GPU_SLOWED = "gpu_slowed"

_METHODS = {
    OTHER_LOAD: ("core", "busy time of all cores less that of this run's processes, over the wall time (psutil)"),
    STEAL: ("core", "time that the host took from this virtual machine, over the wall time (/proc/stat)"),
    FREQUENCY: ("Hz", "mean clock of the cores as the system reports it, at the end (psutil)"),
    TEMPERATURE: ("degC", "hottest sensor of the processor, at the end (psutil)"),
    GPU_CLOCK: ("Hz", "clock of the multiprocessors, at the end (NVML)"),
    GPU_TEMPERATURE: ("degC", "the GPU's sensor, at the end (NVML)"),
    GPU_SLOWED: ("1", "share of the time in which heat or a power limit held the GPU's clock down (NVML's counters)"),
}
_PROCESSOR_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")


@dataclass(frozen=True)
class Load:
    """What a ``LoadWatch`` saw; None where this machine does not tell. Cores, Hz, degrees Celsius."""

    other_load: float | None = None
    cpu_steal: float | None = None
    cpu_frequency: float | None = None
    cpu_temperature: float | None = None
    gpu_clock: float | None = None
    gpu_temperature: float | None = None
    gpu_slowed: float | None = None


class LoadWatch:
    """Reads the system's own counters at its start and in ``stop``; no thread samples anything meanwhile.

    Busy time is that of the whole machine as the kernel tells it: in a container that is the host's. Time that this
    process and its descendants use is subtracted; what a descendant used that ends in between is
    taken off too where the system tells (Linux). Beside an NVIDIA ``device`` its clock and heat are read too.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._begin = time.perf_counter()
        self._busy, self._steal = _system_seconds()
        self._own = _own_seconds()
        self._slowed = _gpu_slowed_seconds(device)

    def stop(self) -> Load:
        """What happened since the start."""
        wall = max(time.perf_counter() - self._begin, 1e-9)
        busy, steal = _system_seconds()
        own = _rise(self._own, _own_seconds())
        slowed = _gpu_slowed_seconds(self._device)
        slow = None if slowed is None or self._slowed is None else round((slowed - self._slowed) / wall, 4)
        other = max(busy - self._busy - own, 0.0) / wall
        stolen = None if steal is None or self._steal is None else round((steal - self._steal) / wall, 4)
        return Load(round(other, 4), stolen, _frequency(), _temperature(), *_gpu(self._device), slow)


def load_measurements(loads: list[Load]) -> list[Measurement]:
    """One measurement a figure that is known, one sample a process of the cell."""
    found = []
    for metric, (unit, method) in _METHODS.items():
        values = [getattr(load, metric) for load in loads]
        if values and all(value is not None for value in values):
            found.append(Measurement(metric=metric, unit=unit, samples=tuple((v,) for v in values), method=method))
    return found


def _system_seconds() -> tuple[float, float | None]:
    """Seconds that all cores have been busy, and that were stolen (None where that is not told)."""
    import psutil

    times = psutil.cpu_times()
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return busy, getattr(times, "steal", None)


def _own_seconds() -> dict[int, tuple[float, float]]:
    """CPU seconds of this process and each living descendant, by process id: its own, and those of its children that
    have ended (0 where the system does not tell).
    """
    import psutil

    found = {}
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
            found[process.pid] = (times.user + times.system, ended)
    return found


def _rise(before: Mapping[int, tuple[float, float]], after: Mapping[int, tuple[float, float]]) -> float:
    """CPU seconds that the processes used between two looks, those that ended in between included where their parents
    tell of them.
    """
    alive = sum(own - before.get(pid, (0.0, 0.0))[0] for pid, (own, _) in after.items())
    ended = sum(children - before.get(pid, (0.0, 0.0))[1] for pid, (_, children) in after.items())
    known_before = sum(own for pid, (own, _) in before.items() if pid not in after)
    return alive + max(ended - known_before, 0.0)


def _gpu(device: str) -> tuple[float | None, float | None]:
    """Clock and temperature of an NVIDIA GPU; None for anything else."""
    kind, index = split_name(device)
    if kind != "cuda":
        return None, None
    try:
        state = gpu_state(index or 0)
    except Unsupported:
        return None, None
    return state.clock, state.temperature


def _gpu_slowed_seconds(device: str) -> float | None:
    kind, index = split_name(device)
    if kind != "cuda":
        return None
    try:
        return slowed_seconds(index or 0)
    except Unsupported:
        return None


def _frequency() -> float | None:
    import psutil

    try:
        found = psutil.cpu_freq()
    except (OSError, RuntimeError, NotImplementedError, AttributeError):
        return None
    return float(found.current) * 1e6 if found and found.current else None


def _temperature() -> float | None:
    import psutil

    read = getattr(psutil, "sensors_temperatures", None)
    if read is None:
        return None
    try:
        sensors = read()
    except (OSError, RuntimeError):
        return None
    hottest = [entry.current for name in _PROCESSOR_SENSORS for entry in sensors.get(name, []) if entry.current]
    return float(max(hottest)) if hottest else None

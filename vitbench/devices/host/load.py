"""The machine's load while something is timed: other programs, time stolen by the host, clock and temperature."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

from vitbench.core.errors import Unsupported
from vitbench.core.records import Measurement
from vitbench.devices import split_name
from vitbench.devices.host.nvml import gpu_state, slowed_seconds

T = TypeVar("T")

OTHER_LOAD = "other_load"
STEAL = "cpu_steal"
GPU_CLOCK = "gpu_clock"
GPU_TEMPERATURE = "gpu_temperature"
GPU_SLOWED = "gpu_slowed"

_METHODS = {
    OTHER_LOAD: ("core", "busy time of all cores less that of this run's processes, over the wall time (psutil)"),
    STEAL: ("core", "time that the host took from this virtual machine, over the wall time (/proc/stat)"),
    "cpu_frequency": ("Hz", "mean clock of the cores as the system reports it, at the end (psutil)"),
    "cpu_temperature": ("degC", "hottest sensor of the processor, at the end (psutil)"),
    GPU_CLOCK: ("Hz", "clock of the multiprocessors, at the end (NVML)"),
    GPU_TEMPERATURE: ("degC", "the GPU's sensor, at the end (NVML)"),
    GPU_SLOWED: ("1", "share of the time in which heat or a power limit held the GPU's clock down (NVML's counters)"),
}
_PROCESSOR_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")


@dataclass(frozen=True)
class Load:
    """The result of a ``LoadWatch``, in cores, Hz, degrees Celsius; None for what this machine does not report."""

    other_load: float | None = None
    cpu_steal: float | None = None
    cpu_frequency: float | None = None
    cpu_temperature: float | None = None
    gpu_clock: float | None = None
    gpu_temperature: float | None = None
    gpu_slowed: float | None = None


class LoadWatch:
    """Reads the system's own counters at its start and in ``stop``; no thread samples anything meanwhile.

    Busy time is the whole machine's by the kernel: in a container the host's. Time of this process and its descendants
    is subtracted, on Linux also that of descendants that end in between. For an NVIDIA ``device`` its clock and
    temperature are read as well.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._begin = time.perf_counter()
        self._busy, self._steal = _system_seconds()
        self._own = _own_seconds()
        self._slowed = _ask_gpu(slowed_seconds, device)

    def stop(self) -> Load:
        """The load since the start."""
        wall = max(time.perf_counter() - self._begin, 1e-9)
        busy, steal = _system_seconds()
        own = _rise(self._own, _own_seconds())
        clock, temperature = _ask_gpu(gpu_state, self._device) or (None, None)

        def share(before: float | None, after: float | None) -> float | None:
            return None if before is None or after is None else round((after - before) / wall, 4)

        return Load(
            other_load=round(max(busy - self._busy - own, 0.0) / wall, 4),
            cpu_steal=share(self._steal, steal),
            cpu_frequency=_frequency(),
            cpu_temperature=_temperature(),
            gpu_clock=clock,
            gpu_temperature=temperature,
            gpu_slowed=share(self._slowed, _ask_gpu(slowed_seconds, self._device)),
        )


@dataclass(frozen=True)
class Use:
    """What other programs used: ``core_seconds`` within ``seconds``."""

    seconds: float
    core_seconds: float


class UseWatch:
    """How much of some cores other programs use, from its start to ``stop``; cheap enough for spans of 0.1 s.

    The system counts busy time in ticks of up to 10 ms, so that the use of one such span is known to some 0.1 cores.
    ``cores`` are the logical ones that count; by default those that this process may run on.
    """

    def __init__(self, cores: Collection[int] | None = None) -> None:
        self._cores = shared_cores() if cores is None else frozenset(cores)
        self._begin = time.perf_counter()
        self._busy = self._busy_seconds()
        self._own = time.process_time()

    def stop(self, own_s: float = 0.0) -> Use:
        """The use since the start, where this run's other processes used ``own_s`` CPU seconds."""
        own = time.process_time() - self._own + own_s
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        return Use(seconds, self._busy_seconds() - self._busy - own)

    def _busy_seconds(self) -> float:
        times = psutil.cpu_times(percpu=True)
        # a system that has some of its cores offline lists fewer than it numbers
        counted = [one for number, one in enumerate(times) if number in self._cores]
        return sum(map(_busy, counted or times))


def shared_cores() -> frozenset[int]:
    """The logical cores that this process may run on, where it meets other programs. A container's quota does not bind
    it to any: there it is all of them.
    """
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cores_used(uses: Iterable[Use]) -> float:
    """The mean number of cores that other programs used over all of ``uses``."""
    known = list(uses)
    seconds = math.fsum(one.seconds for one in known)
    return max(math.fsum(one.core_seconds for one in known) / seconds, 0.0) if seconds > 0 else 0.0


def busiest_programs(seconds: float, most: int = 3) -> list[tuple[str, float]]:
    """The names of the programs that use the most CPU time during the next ``seconds``, with the cores that each uses;
    at most ``most``, without this process and its children. Waits so long.
    """
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    processes = [one for one in psutil.process_iter(["name"]) if one.pid not in ours]
    for one in processes:
        with contextlib.suppress(psutil.Error):
            one.cpu_percent()
    time.sleep(seconds)
    cores: dict[str, float] = {}
    for one in processes:
        with contextlib.suppress(psutil.Error):
            name = one.info["name"] or "?"
            cores[name] = cores.get(name, 0.0) + one.cpu_percent() / 100
    return sorted(((name, used) for name, used in cores.items() if used >= 0.05), key=lambda pair: -pair[1])[:most]


def load_measurements(loads: list[Load]) -> list[Measurement]:
    """One measurement for each value that all processes of the cell have, one sample a process."""
    found = []
    for metric, (unit, method) in _METHODS.items():
        values = [getattr(load, metric) for load in loads]
        if values and all(value is not None for value in values):
            found.append(Measurement(metric=metric, unit=unit, samples=tuple((v,) for v in values), method=method))
    return found


def _system_seconds() -> tuple[float, float | None]:
    """Seconds that all cores have been busy, and that were stolen (None if the system does not report them)."""
    times = psutil.cpu_times()
    return _busy(times), getattr(times, "steal", None)


def _busy(times: Any) -> float:
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))


def _own_seconds() -> dict[int, tuple[float, float]]:
    """CPU seconds of this process and each living descendant by id: its own, those of its ended children (or 0)."""
    found = {}
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            ended = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
            found[process.pid] = (times.user + times.system, ended)
    return found


def _rise(before: Mapping[int, tuple[float, float]], after: Mapping[int, tuple[float, float]]) -> float:
    """CPU seconds that the processes used in between, including ended ones that their parents report."""
    alive = sum(own - before.get(pid, (0.0, 0.0))[0] for pid, (own, _) in after.items())
    ended = sum(children - before.get(pid, (0.0, 0.0))[1] for pid, (_, children) in after.items())
    known_before = sum(own for pid, (own, _) in before.items() if pid not in after)
    return alive + max(ended - known_before, 0.0)


def _ask_gpu(ask: Callable[[int], T], device: str) -> T | None:
    """``ask`` of an NVIDIA GPU's index; None for other devices and where NVML does not answer."""
    kind, index = split_name(device)
    if kind != "cuda":
        return None
    try:
        return ask(index or 0)
    except Unsupported:
        return None


def _frequency() -> float | None:
    with contextlib.suppress(OSError, RuntimeError, NotImplementedError, AttributeError):
        found = psutil.cpu_freq()
        return float(found.current) * 1e6 if found and found.current else None
    return None


def _temperature() -> float | None:
    with contextlib.suppress(OSError, RuntimeError, AttributeError):  # not every system has sensors
        sensors = psutil.sensors_temperatures()
        hottest = [entry.current for name in _PROCESSOR_SENSORS for entry in sensors.get(name, []) if entry.current]
        return float(max(hottest)) if hottest else None
    return None

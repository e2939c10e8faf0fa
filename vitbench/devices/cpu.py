"""The CPU: memory by the kernel's own high-water mark of this process, never by sampling."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from vitbench.core.errors import Unsupported
from vitbench.core.registry import DEVICES
from vitbench.devices.base import Device, parse_kibibytes
from vitbench.devices.host.memory import PROC_SELF, available_memory, text_of

POWERCAP = Path("/sys/class/powercap")
CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
#: Blocks from this size (a page) on are mapped one by one and returned on free, so that the resident size follows the
#: tensors. The spread between processes falls from about 3 % to a few hundredths of a percent of the whole process;
#: inference takes up to twice as long.
_MAPPED_FROM_BYTES = 4096
#: The size of the tensor that tests whether the allocator returns memory.
_PROBE_BYTES = 1 << 24

#: From so many elements a thread on, torch uses all threads for element-wise work (at::internal::GRAIN_SIZE).
_GRAIN = 32768

#: The share of the available memory that a worker may take before its allocations fail, so that the kernel does not
#: kill the process that started it.
_SAFE_SHARE = 0.9
#: What a worker takes beside its tensors once its memory is limited (workspace and packed weights of kernels, rounding
#: by the allocator, Python): the median of 11 cells, torch 2.14. Plain ViTs took 3.5 to 8.4 MB, convolutions and amp up
#: to 37 MB.
_BESIDE_TENSORS_BYTES = 8 * 2**20


@DEVICES.register("cpu")
class CpuDevice(Device):
    """The host's processor."""

    kind = "cpu"
    peak_is_total = False
    _energy: RaplCounter | None = None

    @classmethod
    def find(cls) -> list[str]:
        return ["cpu"]

    def describe(self) -> dict[str, Any]:
        import torch

        return {"name": processor_name(), "capability": torch.backends.cpu.get_cpu_capability()}

    def caches(self) -> tuple[int, ...]:
        if sys.platform == "darwin":
            found = [command_output("sysctl", "-n", f"hw.{name}") for name in ("perflevel0.l2cachesize", "l3cachesize")]
            return tuple(int(text) for text in found if text.strip().isdigit() and int(text) > 0)
        sizes = set()
        for folder in CPU_CACHES.glob("index*"):
            size, level, kind = (text_of(folder / name) or "" for name in ("size", "level", "type"))
            if size[-1:] == "K" and level > "1" and kind != "Instruction":
                sizes.add(1024 * int(size[:-1]))
        return tuple(sorted(sizes))

    @property
    def asynchronous(self) -> bool:
        return False

    @property
    def amp_dtype(self) -> str:
        return "bf16"

    @property
    def memory_method(self) -> str:  # type: ignore[override]
        if _has_high_water_mark():
            return "kernel's high-water mark of the resident size (VmHWM, reset through clear_refs)"
        if sys.platform == "win32":
            return "peak working set of the process (cannot be reset: an upper bound)"
        return "ru_maxrss of the process (cannot be reset: an upper bound)"

    def steady_allocator(self) -> str:
        how = super().steady_allocator()
        if platform.libc_ver()[0] == "glibc":
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
            libc.mallopt(_M_TRIM_THRESHOLD, _MAPPED_FROM_BYTES)
            libc.malloc_trim(0)
            how = f"allocator returning blocks from {_MAPPED_FROM_BYTES // 1024} KiB on at once"
        # other allocators (torch's mimalloc on aarch64 and Windows, or one by LD_PRELOAD) may keep memory after a call,
        # which then counts as in use before the next one
        return "allocator that keeps freed memory: the rise is a lower bound" if self._keeps_freed_memory() else how

    def _keeps_freed_memory(self) -> bool:
        """Whether most of a tensor's memory stays with the process after the tensor is freed."""
        import torch

        before = self.memory_now()
        tensor = torch.ones(_PROBE_BYTES, dtype=torch.uint8)
        del tensor
        return self.memory_now() - before > _PROBE_BYTES // 2

    def memory_now(self) -> int:
        import psutil

        return int(psutil.Process().memory_info().rss)

    def reset_peak(self) -> None:
        if _has_high_water_mark():
            (PROC_SELF / "clear_refs").write_text("5")

    def peak(self) -> int:
        if _has_high_water_mark():
            peak = parse_kibibytes((PROC_SELF / "status").read_text(), "VmHWM")
            if peak is None:
                raise Unsupported("this kernel has no high-water mark (no VmHWM in /proc/self/status)")
            return peak
        if sys.platform == "win32":
            import psutil

            return int(psutil.Process().memory_info().peak_wset)
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others KiB

    energy_method = "RAPL's package counters (powercap): processors, without memory and board"

    def energy_joules(self) -> float:
        if self._energy is None:
            self._energy = RaplCounter(POWERCAP)
        return self._energy.joules()

    def limit_memory(self, limit: int | None) -> str:
        if not sys.platform.startswith("linux"):
            if limit is not None:
                raise Unsupported("a memory limit on the CPU needs Linux (RLIMIT_DATA)")
            return ""
        import resource

        import torch

        # torch starts its threads while there is memory for their stacks: OpenMP ends a process in which it cannot
        # start one, which would be attributed to the model
        torch.zeros(torch.get_num_threads() * _GRAIN).add_(1)
        data_size = parse_kibibytes((PROC_SELF / "status").read_text(), "VmData") or 0
        most = data_size + _allowance(limit)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY and hard < most:  # only root may raise it
            if limit is not None:
                raise Unsupported(
                    f"a memory limit of {limit:,} bytes is beyond the limit that this process was given (ulimit -d)"
                )
            most = hard
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        return "" if limit is None else "RLIMIT_DATA beyond the worker's size after imports"

    def memory_for_tensors(self, limit: int | None) -> int:
        return max(_allowance(limit) - _BESIDE_TENSORS_BYTES, 0)


class RaplCounter:
    """Joules of all processor packages, from the kernel's powercap files (Linux).

    The files count microjoules and wrap around at ``max_energy_range_uj`` after minutes; read more often than that.
    """

    def __init__(self, root: Path) -> None:
        zones = [path for path in sorted(root.glob("intel-rapl:*")) if path.name.count(":") == 1]
        # psys counts the whole board, including the packages
        self._packages = [path for path in zones if text_of(path / "name") != "psys"]
        if not self._packages:
            raise Unsupported("this system counts no energy (no RAPL under /sys/class/powercap)")
        self._last = [self._read(path, "energy_uj") for path in self._packages]
        self._total = 0

    def joules(self) -> float:
        """Since this counter was made."""
        for index, path in enumerate(self._packages):
            now = self._read(path, "energy_uj")
            if now < self._last[index]:
                self._total += self._read(path, "max_energy_range_uj")
            self._total += now - self._last[index]
            self._last[index] = now
        return self._total / 1e6

    @staticmethod
    def _read(path: Path, name: str) -> int:
        try:
            return int((path / name).read_text())
        except PermissionError:
            raise Unsupported(
                f"{path.name}/{name} may only be read by root here: as root, chmod a+r /sys/class/powercap/*/energy_uj"
            ) from None
        except (OSError, ValueError) as error:
            raise Unsupported(f"{path.name}/{name} cannot be read: {error}") from error


def _allowance(limit: int | None) -> int:
    """What a worker may take: ``limit``, or without one what the machine can safely give."""
    return int(available_memory() * _SAFE_SHARE) if limit is None else limit


def _has_high_water_mark() -> bool:
    return sys.platform.startswith("linux") and os.access(PROC_SELF / "clear_refs", os.W_OK)


def processor_name() -> str:
    """The processor's name by its maker, or its architecture if the system does not report it."""
    if chip := chip_name():
        return chip
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def chip_name() -> str:
    """macOS' name of its chip (``Apple M2``), of which Python knows only the architecture (``arm``); else empty."""
    if sys.platform != "darwin":
        return ""
    return command_output("sysctl", "-n", "machdep.cpu.brand_string").strip()


def command_output(*words: str) -> str:
    """What a command of the system prints; empty if it is missing or takes too long."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""

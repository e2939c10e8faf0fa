"""Where a run took place: everything that can change a number, captured once, and a hash of it.

The hash leaves out what differs between two comparable runs on one machine (commit, vitbench's version, time, command
line). Names of users, hosts and home folders are left out of everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import vitbench
from vitbench.devices.cpu import processor_name
from vitbench.devices.host.memory import cgroup_folders, memory_limit_of_container

LIBRARIES = ("torch", "torchvision", "timm", "fvcore", "thop", "numpy", "scikit-learn")
#: Set by torch itself, and a place rather than a switch.
_NO_MATTER = ("TORCHINDUCTOR_CACHE_DIR",)
_PREFIXES = (
    *("OMP_", "MKL_", "KMP_", "GOMP_", "GOTO_", "ONEDNN_", "DNNL_", "ATEN_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_"),
    *("CUDA_", "CUDNN_", "CUBLAS_", "NVIDIA_TF32", "NCCL_", "HIP_", "ROCR_", "METAL_"),
)
#: What git sets for its hooks, but for GIT_CONFIG_*, which hold settings of a user's own.
_OF_A_REPOSITORY = frozenset(
    f"GIT_{name}"
    for name in (
        *("DIR", "WORK_TREE", "IMPLICIT_WORK_TREE", "COMMON_DIR", "INDEX_FILE", "PREFIX", "NAMESPACE"),
        *("OBJECT_DIRECTORY", "ALTERNATE_OBJECT_DIRECTORIES", "QUARANTINE_PATH", "INTERNAL_SUPER_PREFIX"),
        *("SHALLOW_FILE", "GRAFT_FILE", "NO_REPLACE_OBJECTS", "REPLACE_REF_BASE"),
    )
)
_NAMES = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD", "OPENBLAS_NUM_THREADS")


def describe_system() -> dict[str, Any]:
    """Machine and system without loading torch: processor, cores, memory in bytes, system, Python, variables that
    matter.
    """
    import psutil

    return {
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpu": processor_name(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "container_memory_bytes": memory_limit_of_container(),
        "container_cores": _container_quota(),
        "instruction_sets": instruction_sets(),
        "virtual_machine": _is_virtual_machine(),
        "hyperthreading": _hyperthreading(),
        "huge_pages": _chosen(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "power": describe_power(),
        "workers": "forked" if sys.platform.startswith("linux") else "spawned",
        "variables": {
            name: shorten_home(value)
            for name, value in sorted(os.environ.items())
            if (name.startswith(_PREFIXES) or name in _NAMES) and name not in _NO_MATTER
        },
    }


def describe_libraries() -> dict[str, Any]:
    """Versions and switches of the libraries that compute. Loads torch."""
    import torch

    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    versions["torch"] = torch.__version__  # with its build: 2.15.0+cpu
    build = torch.__config__.show()
    return {
        "versions": versions,
        "blas": _found(r"BLAS_INFO=(\w+)", build),
        "mkl_version": _found(r"Math Kernel Library Version (\S+)", build),
        "onednn_version": _found(r"MKL-DNN v(\S+)", build),
        "openmp_version": _found(r"OpenMP (\d+)", build),
        "compiler": _found(r"(GCC \S+|clang \S+|MSVC \S+)", build),
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "onednn": torch.backends.mkldnn.is_available(),
        "openmp": torch.backends.openmp.is_available(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "denormals_flushed": _flushes_denormals(),
        "debug_build": bool(torch.version.debug),
    }


def instruction_sets() -> list[str]:
    """The vector extensions that the processor tells of (Linux and macOS); empty where it does not."""
    try:
        if sys.platform == "darwin":
            done = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, timeout=10, check=False)
            found = re.findall(r"^hw\.optional\.(?:arm\.)?(\w+): 1$", done.stdout, re.MULTILINE)
            return sorted(name.lower() for name in found if _VECTOR.match(name.lower()))
        text = Path("/proc/cpuinfo").read_text()
    except (OSError, subprocess.TimeoutExpired):
        return []
    flags = re.search(r"^(flags|Features)\s*:(.*)$", text, re.MULTILINE)
    found = {flag for flag in (flags[2].split() if flags else []) if _VECTOR.match(flag)}
    # ARM's sme multiplies matrices, x86's encrypts memory
    return sorted(found - {"sme"} if flags and flags[1] == "flags" else found)


def describe_power() -> dict[str, Any]:
    """What makes the clock depend on more than the work: governor, turbo, battery, a battery saver; None where this
    system does not tell.
    """
    import psutil

    cpu = Path("/sys/devices/system/cpu")
    battery = None
    if hasattr(psutil, "sensors_battery"):
        with contextlib.suppress(OSError, RuntimeError, AttributeError):
            battery = psutil.sensors_battery()
    no_turbo, boost = _line(cpu / "intel_pstate" / "no_turbo"), _line(cpu / "cpufreq" / "boost")
    return {
        "governor": _line(cpu / "cpu0" / "cpufreq" / "scaling_governor"),
        "energy_preference": _line(cpu / "cpu0" / "cpufreq" / "energy_performance_preference"),
        "turbo": no_turbo == "0" if no_turbo else (boost == "1" if boost else None),
        "on_battery": None if battery is None or battery.power_plugged is None else not battery.power_plugged,
        "battery_saver": _battery_saver(),
    }


def capture_environment(libraries: Mapping[str, Any], devices: Mapping[str, Any]) -> dict[str, Any]:
    """The whole environment of a run; ``libraries`` and ``devices`` come from a worker, which has torch loaded."""
    return {"system": describe_system(), "libraries": dict(libraries), "devices": dict(devices)}


def hash_environment(environment: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that are equal for equal environments."""
    text = json.dumps(environment, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def describe_session(arguments: list[str] | None = None) -> dict[str, Any]:
    """What is particular to one session: when, with what command, by which version and commit of vitbench."""
    words = sys.argv if arguments is None else arguments
    program = Path(words[0]).name
    command = ["vitbench" if program == "__main__.py" else program, *map(shorten_home, words[1:])]
    return {
        "started_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command_line": shlex.join(command),
        "vitbench": vitbench.__version__,
        "commit": find_commit(),
    }


def environment_for_git() -> dict[str, str]:
    """The variables of this process less those that name a repository: git sets them for its hooks, and a git that is
    started there for another folder would work on that repository (``git rev-parse --local-env-vars`` lists them).
    """
    return {name: value for name, value in os.environ.items() if name not in _OF_A_REPOSITORY}


def find_commit() -> str | None:
    """The commit of the checkout that vitbench runs from, with ``+changes`` if it is not clean; None if it is
    installed.
    """
    package = Path(vitbench.__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments],
                capture_output=True, text=True, timeout=10, check=False, env=environment_for_git(),
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # an environment inside somebody's repository must not pass that repository's commit off as ours
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}+changes" if git("status", "--porcelain", "--untracked-files=no", ".") else commit


def usable_cores() -> int:
    """The logical cores that this process may run on (affinity, and a container's quota on Linux), at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _container_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def default_threads() -> int:
    """Threads of a cell that asks for none in particular: the physical cores that may be used, as torch itself
    chooses.
    """
    import psutil

    return max(1, min(usable_cores(), psutil.cpu_count(logical=False) or usable_cores()))


def shorten_home(text: str) -> str:
    """``text`` with the home folder written ``~``, so that no user's name is recorded, and without the folder that this
    package stands in.
    """
    around = str(Path(vitbench.__file__).parents[1])
    text = text.replace(around + os.sep, "") if len(around) > 1 else text
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


_VECTOR = re.compile(r"(s?sse\d|avx|fma$|f16c|amx|neon|asimd|sve|sme(?!p)|bf16|feat_(bf16|dotprod|i8mm))")


def _battery_saver() -> bool | None:
    """macOS' low power mode or Linux' power profile; None where neither is told."""
    profile = _line(Path("/sys/firmware/acpi/platform_profile"))
    if profile is not None:
        return profile in ("low-power", "quiet", "cool")
    if sys.platform != "darwin":
        return None
    try:
        done = subprocess.run(["pmset", "-g"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"lowpowermode\s+(\d)", done.stdout)
    return found[1] == "1" if found else None


def _is_virtual_machine() -> bool | None:
    """Whether the processor says that a hypervisor is below (Linux on x86); None where it does not tell."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return "hypervisor" in flags[1].split() if flags else None


def _hyperthreading() -> bool | None:
    active = _line(Path("/sys/devices/system/cpu/smt/active"))
    return None if active is None else active == "1"


def _chosen(path: Path) -> str | None:
    """``always [madvise] never`` -> ``madvise``."""
    found = re.search(r"\[(\w+)\]", _line(path) or "")
    return found[1] if found else None


def _line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _found(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def _flushes_denormals() -> bool:
    """Whether tiny numbers become 0 here: slow arithmetic on them can be a model's whole time."""
    import torch

    return bool((torch.tensor([1e-40]) * torch.tensor([1.0]))[0] == 0)


def _container_quota() -> float | None:
    """CPUs that the cgroup allows (v2 cpu.max, v1 cfs quota), or None."""
    found = []
    for folder in cgroup_folders("cpu"):
        with contextlib.suppress(OSError, ValueError):  # also where the quota is "max"
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                found.append(quota_us / int((folder / "cpu.cfs_period_us").read_text()))
    return min(found, default=None)

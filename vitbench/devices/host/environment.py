"""Describe the environment of a run: everything that can change a number, and a hash of it.

The hash excludes what differs between comparable runs on one machine: commit, vitbench's version, time, command line.
Names of users, hosts and home folders are never recorded.
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

import psutil

import vitbench
from vitbench.devices.cpu import command_output, processor_name
from vitbench.devices.host.memory import cgroup_folders, memory_limit_of_container, text_of

LIBRARIES = ("torch", "torchvision", "timm", "fvcore", "thop", "numpy", "scikit-learn")
#: Set by torch itself; a path, not a switch.
_NO_MATTER = ("TORCHINDUCTOR_CACHE_DIR",)
_PREFIXES = (
    *("OMP_", "MKL_", "KMP_", "GOMP_", "GOTO_", "ONEDNN_", "DNNL_", "ATEN_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_"),
    *("CUDA_", "CUDNN_", "CUBLAS_", "NVIDIA_TF32", "NCCL_", "HIP_", "ROCR_", "METAL_"),
)
#: What git sets for its hooks, except GIT_CONFIG_*, which holds the user's own settings.
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
    """Machine and system without loading torch: processor, cores, memory in bytes, system, Python, variables."""
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
    """Versions and settings of the numerical libraries. Loads torch."""
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
    """The processor's vector extensions (Linux and macOS); empty if it does not report them."""
    if sys.platform == "darwin":
        text = command_output("sysctl", "-a")
        found = re.findall(r"^hw\.optional\.(?:arm\.)?(\w+): 1$", text, re.MULTILINE)
        return sorted(name.lower() for name in found if _VECTOR.match(name.lower()))
    text = text_of(Path("/proc/cpuinfo")) or ""
    flags = re.search(r"^(flags|Features)\s*:(.*)$", text, re.MULTILINE)
    vectors = {flag for flag in (flags[2].split() if flags else []) if _VECTOR.match(flag)}
    # ARM's sme multiplies matrices, x86's encrypts memory
    return sorted(vectors - {"sme"} if flags and flags[1] == "flags" else vectors)


def describe_power() -> dict[str, Any]:
    """What changes the clock besides the work: governor, turbo, battery, battery saver; None if not reported."""
    cpu = Path("/sys/devices/system/cpu")
    battery = None
    if hasattr(psutil, "sensors_battery"):
        with contextlib.suppress(OSError, RuntimeError, AttributeError):
            battery = psutil.sensors_battery()
    no_turbo, boost = text_of(cpu / "intel_pstate" / "no_turbo"), text_of(cpu / "cpufreq" / "boost")
    return {
        "governor": text_of(cpu / "cpu0" / "cpufreq" / "scaling_governor"),
        "energy_preference": text_of(cpu / "cpu0" / "cpufreq" / "energy_performance_preference"),
        "turbo": no_turbo == "0" if no_turbo else (boost == "1" if boost else None),
        "on_battery": None if battery is None or battery.power_plugged is None else not battery.power_plugged,
        "battery_saver": _battery_saver(),
    }


def capture_environment(libraries: Mapping[str, Any], devices: Mapping[str, Any]) -> dict[str, Any]:
    """The whole environment of a run; ``libraries`` and ``devices`` come from a worker, which has loaded torch."""
    return {"system": describe_system(), "libraries": dict(libraries), "devices": dict(devices)}


def hash_environment(environment: Mapping[str, Any]) -> str:
    """12 hexadecimal digits, equal for equal environments."""
    text = json.dumps(environment, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def describe_session(arguments: list[str] | None = None) -> dict[str, Any]:
    """The session's own facts: start time, command, version and commit of vitbench."""
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
    """This process's variables without those that name a repository (``git rev-parse --local-env-vars``). git sets them
    for its hooks, and a git started there for another folder would use the hook's repository.
    """
    return {name: value for name, value in os.environ.items() if name not in _OF_A_REPOSITORY}


def find_commit() -> str | None:
    """The commit of vitbench's checkout, with ``+changes`` if it is not clean; None for an installed package."""
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

    # a virtual environment inside another repository must not report that repository's commit
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
    """Threads of a cell without a setting: the usable physical cores, as torch itself chooses."""
    return max(1, min(usable_cores(), psutil.cpu_count(logical=False) or usable_cores()))


def shorten_home(text: str) -> str:
    """``text`` with ``~`` for the home folder, which holds the user's name, and without this package's folder."""
    around = str(Path(vitbench.__file__).parents[1])
    text = text.replace(around + os.sep, "") if len(around) > 1 else text
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


_VECTOR = re.compile(r"(s?sse\d|avx|fma$|f16c|amx|neon|asimd|sve|sme(?!p)|bf16|feat_(bf16|dotprod|i8mm))")


def _battery_saver() -> bool | None:
    """macOS' low power mode or Linux' power profile; None if neither is reported."""
    profile = text_of(Path("/sys/firmware/acpi/platform_profile"))
    if profile is not None:
        return profile in ("low-power", "quiet", "cool")
    if sys.platform != "darwin":
        return None
    mode = _found(r"lowpowermode\s+(\d)", command_output("pmset", "-g"))
    return None if mode is None else mode == "1"


def _is_virtual_machine() -> bool | None:
    """Whether the processor reports a hypervisor (Linux on x86); None if it does not report any flags."""
    flags = re.search(r"^flags\s*:(.*)$", text_of(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return "hypervisor" in flags[1].split() if flags else None


def _hyperthreading() -> bool | None:
    active = text_of(Path("/sys/devices/system/cpu/smt/active"))
    return None if active is None else active == "1"


def _chosen(path: Path) -> str | None:
    """``always [madvise] never`` -> ``madvise``."""
    return _found(r"\[(\w+)\]", text_of(path) or "")


def _found(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def _flushes_denormals() -> bool:
    """Whether denormal numbers become 0: arithmetic on them can dominate a model's time."""
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

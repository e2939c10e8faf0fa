"""Where a run took place: everything that can change a number, captured once, and a hash of it.

The hash leaves out what differs between two comparable runs on one machine (commit, vitbench's version, time, command
line). Names of users, hosts and home folders are left out of everything.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import vitbench
from vitbench.devices.cpu import memory_limit_of_container, processor_name

LIBRARIES = ("torch", "torchvision", "timm", "fvcore", "thop", "numpy", "scikit-learn")
#: Set by torch itself, and a place rather than a switch.
_NO_MATTER = ("TORCHINDUCTOR_CACHE_DIR",)
_PREFIXES = ("OMP_", "MKL_", "KMP_", "GOMP_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "CUDA_", "NVIDIA_TF32", "CUBLAS_")
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
    return {
        "versions": versions,
        "mkl": torch.backends.mkl.is_available(),
        "onednn": torch.backends.mkldnn.is_available(),
        "openmp": torch.backends.openmp.is_available(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "debug_build": bool(torch.version.debug),
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


def find_commit() -> str | None:
    """The commit of the checkout that vitbench runs from, with ``+changes`` if it is not clean; None if it is
    installed.
    """
    package = Path(vitbench.__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
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
    """``text`` with the home folder written ``~``, so that no user's name is recorded."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _container_quota() -> float | None:
    """CPUs that the cgroup allows (v2 cpu.max, v1 cfs quota), or None."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None

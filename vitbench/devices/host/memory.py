"""Host memory: what new processes can take, the limits of containers and control groups, and the kernel's OOM kills."""

from __future__ import annotations

import re
from pathlib import Path

PROC_SELF = Path("/proc/self")


def spare_memory() -> int:
    """Bytes that a file may take when it is read whole: half of what is available."""
    return available_memory() // 2


def cgroup_folders(controller: str) -> list[Path]:
    """The folders with this process's limits of ``memory`` or ``cpu``: that of its control group, then those of the
    groups above it, up to the mount (cgroup v2, then v1). In a container that is mostly its own.
    """
    groups = {"": "", controller: ""}
    for line in (text_of(PROC_SELF / "cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        groups |= {name: group for name in controllers.split(",") if name in groups}
    found = []
    for name, group in groups.items():
        parts = [part for part in group.split("/") if part not in ("", "..")]
        mounted = Path("/sys/fs/cgroup") / name
        found += [mounted.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
    return found


def memory_limit_of_container() -> int | None:
    """Bytes that this container or control group may use (cgroup v2 or v1); None without a limit."""
    return min((limit for limit in map(_limit_in, cgroup_folders("memory")) if limit is not None), default=None)


def text_of(path: Path) -> str | None:
    """A file of the kernel without surrounding space; None if it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _limit_in(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = text_of(folder / name) or ""
        if text.isdigit() and int(text) < 1 << 60:  # v1 states "no limit" as a huge number
            return int(text)
    return None


def available_memory() -> int:
    """Bytes that new processes can take now without swapping, limits of containers and groups included."""
    import psutil

    available = int(psutil.virtual_memory().available)
    for folder in cgroup_folders("memory"):
        limit = _limit_in(folder)
        if limit is not None:
            available = min(available, limit - _used_in(folder))
    return max(available, 0)


def _used_in(folder: Path) -> int:
    """Bytes used of a group's limit, without the file cache. The kernel frees that on demand, and after reading a data
    set it is most of what counts as used.
    """
    # v1 counts child groups only with a prefix
    for name, prefix in (("memory.current", ""), ("memory.usage_in_bytes", "total_")):
        used = text_of(folder / name) or ""
        if used.isdigit():
            stat = text_of(folder / "memory.stat") or ""
            cached = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", stat, re.MULTILINE)
            return max(int(used) - sum(map(int, cached)), 0)
    return 0


def oom_kill_count() -> int | None:
    """How many processes the kernel has killed for memory in this process's cgroup, or None if that is not readable.

    Evidence for a SIGKILL: the count before and after (cgroup v2 ``memory.events``, v1 ``memory.oom_control``).
    """
    for folder in cgroup_folders("memory"):
        for name in ("memory.events", "memory.oom_control"):
            found = re.search(r"^oom_kill (\d+)$", text_of(folder / name) or "", re.MULTILINE)
            if found:
                return int(found[1])
    return None

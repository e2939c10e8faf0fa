"""Chaos, for tests of a run alone: faults at chosen cells, as the environment variable VITBENCH_CHAOS says.

The variable holds JSON, or the path of a file of it, which maps cells to faults::

    {"0123456789abcdef": "sigkill", "vit_basic * b8 *": {"fault": "oom:mps", "process": "memory", "times": 1}}

A key is a cell's id or a pattern on its label; a value is a fault, an object, or a list of these. A fault of a worker
strikes in each process of the cell that decides its status, or in the kind that ``process`` names, as soon as the
cell's subject is made; a fault of the record strikes where it is written. ``times`` bounds how often; without it that
is once for what stops the run (disk_full, disk_full_worker, corrupt_record) and always for the rest. Strikes are
counted in ``<file>.struck`` beside the file, so that they count across processes and resumes; with JSON in the variable
itself each process counts for itself.

Without the variable nothing happens here. With it, the run warns, and its session in environment.json says so.
"""

from __future__ import annotations

import difflib
import errno
import fnmatch
import functools
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitbench.core.errors import UsageError
from vitbench.core.records import Cell

VARIABLE = "VITBENCH_CHAOS"
#: Where the strikes so far are counted: the name of the chaos file and this.
STRUCK = ".struck"

_FULL_DISK_IN_WORKER = "disk_full_worker"
RECORD_FAULTS = ("disk_full", "corrupt_record")
WORKER_FAULTS = (
    *("oom:cpu", "oom:cuda", "oom:mps", "sigkill", "sigsegv"),
    *("hang", "nan", "error", _FULL_DISK_IN_WORKER),
)
#: Processes whose failure is the cell's.
_DECISIVE = ("memory", "time", "energy", "training")
_PROCESSES = (*_DECISIVE, "static", "counters")

#: What the allocator of each device says, word for word.
OOM_TEXTS = {
    "cpu": "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)",
    "cuda": "CUDA out of memory. Tried to allocate 392.00 MiB. GPU 0 has a total capacity of 7.79 GiB of which 165.69 "
    "MiB is free. Including non-PyTorch memory, this process has 7.62 GiB memory in use. Of the allocated memory 7.27 "
    "GiB is allocated by PyTorch, and 208.26 MiB is reserved by PyTorch but unallocated. If reserved but unallocated "
    "memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See "
    "documentation for Memory Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)",
    "mps": "MPS backend out of memory (MPS allocated: 17.95 GB, other allocations: 384.00 KB, max allowed: 18.13 GB). "
    "Tried to allocate 392.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for "
    "memory allocations (may cause system failure).",
}

_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Fault:
    """What happens to which cell. ``times`` is how often at most, None for always."""

    key: str
    kind: str
    processes: tuple[str, ...]
    times: int | None

    def is_for(self, cell: Cell) -> bool:
        """Whether the key means this cell."""
        return self.key == cell.id if _ID.fullmatch(self.key) else fnmatch.fnmatchcase(cell.label, self.key)


def load_faults() -> tuple[Fault, ...]:
    """The faults that the variable asks for; none without it. Raises UsageError if it says something else."""
    value = os.environ.get(VARIABLE)
    return _load(value) if value else ()


def describe() -> dict[str, str]:
    """What a session notes of the faults: nothing without any."""
    faults = load_faults()
    if not faults:
        return {}
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(fault.kind for fault in faults).items()))
    return {"chaos": f"{VARIABLE} is set: faults are injected ({kinds}), these records are no measurements"}


def strike_in_worker(cell: Cell, process: str, subject: Any) -> None:
    """Let happen what is to happen to ``cell`` in its process of that kind: an exception, the end, or a model of NaN.

    ``subject`` is the cell's metrics.Subject.
    """
    if not os.environ.get(VARIABLE):
        return
    for fault in _faults_of(cell, WORKER_FAULTS):
        if process in fault.processes and _has_a_strike_left(fault):
            _happen(fault.kind, cell, subject)


def strike_at_record(cell: Cell, line: bytes, descriptor: int) -> None:
    """Let happen what is to happen to the record of ``cell``, as its ``line`` is about to be written: half of it is.

    Raises OSError (a full disk), or ends this process.
    """
    if not os.environ.get(VARIABLE):
        return
    for fault in _faults_of(cell, RECORD_FAULTS):
        if _has_a_strike_left(fault):
            os.write(descriptor, line[: len(line) // 2])
            if fault.kind == "disk_full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
            _die("SIGKILL")


def _happen(kind: str, cell: Cell, subject: Any) -> None:
    if kind.startswith("oom:"):
        device = kind.removeprefix("oom:")
        _judge_as(device, cell)
        raise _out_of_memory(device)
    if kind == "sigkill":
        _die("SIGKILL")
    if kind == "sigsegv":
        _die("SIGSEGV")
    if kind == "error":
        raise RuntimeError("shapes cannot be multiplied (1x2 and 3x4), for chaos")
    if kind == _FULL_DISK_IN_WORKER:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if kind == "nan":
        _poison(subject)
    if kind == "hang":
        while True:
            time.sleep(3600)


def _out_of_memory(device: str) -> Exception:
    import torch

    return torch.OutOfMemoryError(OOM_TEXTS[device]) if device == "cuda" else RuntimeError(OOM_TEXTS[device])


def _judge_as(kind: str, cell: Cell) -> None:
    """What fails in this process from now on is judged as on a device of that kind: no other knows its texts."""
    from vitbench.devices import open_device

    own, other = open_device(cell.device), open_device(kind)
    type(own).error_texts = other.error_texts


def _poison(subject: Any) -> None:
    """Make each model of ``subject`` one whose every weight is NaN."""
    import torch

    build = subject.build

    def build_poisoned() -> torch.nn.Module:
        model: torch.nn.Module = build()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.fill_(float("nan"))
        return model

    subject.build = build_poisoned


def _die(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name, signal.SIGTERM))


# what is asked for


def _faults_of(cell: Cell, kinds: tuple[str, ...]) -> list[Fault]:
    return [fault for fault in load_faults() if fault.kind in kinds and fault.is_for(cell)]


@functools.lru_cache(maxsize=4)
def _load(value: str) -> tuple[Fault, ...]:
    path = _path_of(value)
    source = f"{VARIABLE}={path}" if path else f"{VARIABLE}"
    try:
        content = json.loads(value if path is None else path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{source}: the file cannot be read ({error.strerror}). Unset it, or give a JSON file"
        ) from error
    except ValueError as error:
        raise UsageError(f"{source} is no JSON: {error}. Unset it, or give a JSON file") from error
    if not isinstance(content, Mapping):
        raise UsageError(f"{source} is no JSON object of cells and faults: unset it, or give one")
    return tuple(
        _read_fault(source, key, entry, counts=path is not None)
        for key, value in content.items()
        for entry in (value if isinstance(value, list) else [value])
    )


def _path_of(value: str) -> Path | None:
    """The file that the variable names, or None if it holds JSON itself."""
    return None if value.lstrip().startswith(("{", "[")) else Path(value)


def _read_fault(source: str, key: str, entry: Any, *, counts: bool) -> Fault:
    """``counts``: whether strikes can be counted across processes. Raises UsageError."""
    where = f"{source}, cell {key!r}"
    settings = {"fault": entry} if isinstance(entry, str) else entry
    if not isinstance(settings, dict):
        raise UsageError(f"{where}: {entry!r} is neither the name of a fault nor an object with one")
    unknown = sorted(set(settings) - {"fault", "process", "times"})
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}. Give fault, process, times")
    kind = _one_of(where, "fault", settings.get("fault"), (*WORKER_FAULTS, *RECORD_FAULTS))
    processes: tuple[str, ...] = _DECISIVE
    if "process" in settings:
        if kind in RECORD_FAULTS:
            raise UsageError(f"{where}: {kind} strikes at the record, not in a process: leave process out")
        processes = (_one_of(where, "process", settings["process"], _PROCESSES),)
    stops = kind in (*RECORD_FAULTS, _FULL_DISK_IN_WORKER)
    times = settings.get("times", 1 if stops and (counts or kind in RECORD_FAULTS) else None)
    if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
        raise UsageError(f"{where}: times = {times!r} is not a whole number from 1 on")
    if times is not None and kind in WORKER_FAULTS and not counts:
        raise UsageError(f"{where}: times of a worker's fault are counted beside a file: put the JSON into one")
    return Fault(key, kind, processes, times)


def _one_of(where: str, what: str, value: Any, allowed: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    close = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"{where}: {value!r} is no {what}.{hint} Give any of: {', '.join(allowed)}")


# how often


_struck: Counter[tuple[str, str]] = Counter()


def _has_a_strike_left(fault: Fault) -> bool:
    """Whether a fault may strike once more; then that is counted, before it does."""
    if fault.times is None:
        return True
    path = _path_of(os.environ[VARIABLE])
    mark = (fault.key, fault.kind)
    if path is None:
        _struck[mark] += 1
        return _struck[mark] <= fault.times
    book = path.with_name(path.name + STRUCK)
    if sum(one == list(mark) for one in _read_book(book)) >= fault.times:
        return False
    with book.open("a", encoding="utf-8") as file:
        file.write(json.dumps(mark) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return True


def _read_book(book: Path) -> Iterator[Any]:
    if book.is_file():
        yield from (json.loads(line) for line in book.read_text(encoding="utf-8").splitlines())

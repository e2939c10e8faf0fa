"""Inject faults at chosen cells: what VITBENCH_FAULTS names in the soak tests.

The environment variable FAULTS_FILE names a JSON file that maps ids of cells to faults. A fault of a worker strikes in
each process of its cell; what stops the run strikes once, which ``<file>.struck`` remembers across processes.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

from vitbench.core.records import Cell
from vitbench.metrics import Subject

FILE = "FAULTS_FILE"
#: Faults that stop the run; the next session measures the cell.
STOPPING = ("disk_full", "disk_full_worker", "corrupt_record")
_AT_RECORDS = ("disk_full", "corrupt_record")

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


def in_worker(cell: Cell, process: str, subject: Subject) -> None:
    """Raise, end this process, hang, or make the model's weights NaN, as the cell's fault says."""
    fault = _fault_of(cell)
    if fault in _AT_RECORDS or not _strikes(cell, fault):
        return
    if fault.startswith("oom:"):
        _run_out_of_memory(fault.removeprefix("oom:"), cell)
    if fault == "disk_full_worker":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if fault == "error":
        raise RuntimeError("shapes cannot be multiplied (1x2 and 3x4), on purpose")
    if fault in ("sigkill", "sigsegv"):
        os.kill(os.getpid(), getattr(signal, fault.upper()))
    if fault == "nan":
        _poison(subject)
    while fault == "hang":
        time.sleep(3600)


def before_write(cell: Cell, line: bytes, descriptor: int) -> None:
    """Write half a line, then find the disk full (OSError) or end this process."""
    fault = _fault_of(cell)
    if fault not in _AT_RECORDS or not _strikes(cell, fault):
        return
    os.write(descriptor, line[: len(line) // 2])
    if fault == "disk_full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)
    os.kill(os.getpid(), signal.SIGKILL)


def _fault_of(cell: Cell) -> str:
    fault: str = json.loads(Path(os.environ[FILE]).read_text()).get(cell.id, "")
    return fault


def _strikes(cell: Cell, fault: str) -> bool:
    """Whether the fault strikes now; one that stops the run does so once, which is noted before it does."""
    if fault not in STOPPING:
        return True
    with Path(os.environ[FILE] + ".struck").open("a+") as struck:
        struck.seek(0)
        if cell.id in struck.read().split():
            return False
        struck.write(f"{cell.id}\n")
        struck.flush()
        os.fsync(struck.fileno())
    return True


def _run_out_of_memory(kind: str, cell: Cell) -> None:
    """Fail as a device of that kind does; in this process only its texts are known from now on."""
    import torch

    from vitbench.devices import open_device

    type(open_device(cell.device)).error_texts = open_device(kind).error_texts
    raise torch.OutOfMemoryError(OOM_TEXTS[kind]) if kind == "cuda" else RuntimeError(OOM_TEXTS[kind])


def _poison(subject: Subject) -> None:
    import torch

    build = subject.build

    def build_poisoned() -> torch.nn.Module:
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        return model

    subject.build = build_poisoned

"""The interface of a device: synchronisation, memory, energy, and the meaning of its failures."""

from __future__ import annotations

import contextlib
import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from vitbench.core.errors import DeviceError, Unsupported
from vitbench.devices.failures import (
    OUT_OF_MEMORY,
    ErrorTexts,
    Failure,
    describe_error,
    explain_exception,
    explain_last_words,
)

if TYPE_CHECKING:
    import torch

#: The longest line of stderr that is kept: its end.
_LONGEST_LINE = 300


class Device:
    """A device that models run on. Subclasses are in ``devices/`` and in the registry DEVICES, by ``kind``.

    ``name`` is that of a cell's device: ``cpu``, ``cuda:1``, ``mps``.
    """

    kind: ClassVar[str]
    #: (pattern, status, cause) for the texts of failures, before those of all devices; the first match counts
    error_texts: ClassVar[ErrorTexts] = ()
    #: (pattern, cause) for texts on a worker's stderr after which its results are invalid
    fatal_stderr: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    # finding and describing

    @classmethod
    def find(cls) -> list[str]:
        """The names of this kind's devices on this machine. Loads torch."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Facts for the environment: a name, memory in bytes, versions of its libraries."""
        raise NotImplementedError

    def caches(self) -> tuple[int, ...]:
        """Bytes of its data caches beyond the first level, ascending; empty where the system does not report them."""
        return ()

    # running

    @property
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        import torch

        return torch.device(self.name)

    @property
    def _torch(self) -> Any:
        """torch's module for this kind: ``torch.cuda``, ``torch.mps``."""
        import torch

        return getattr(torch, self.kind)

    def synchronize(self) -> None:
        """Wait until the device has finished all its work."""

    @property
    def asynchronous(self) -> bool:
        """Whether a call returns before its work is done."""
        return True

    @property
    def amp_dtype(self) -> str:
        """The lower precision of ``amp`` cells: torch's default for autocast on this kind."""
        return "fp16"

    def autocast(self, dtype: str) -> AbstractContextManager[Any]:
        """The context of a cell's forward pass: autocast for ``amp``, else none."""
        import torch

        if dtype != "amp":
            return contextlib.nullcontext()
        low = torch.bfloat16 if self.amp_dtype == "bf16" else torch.float16
        return torch.autocast(self.kind, dtype=low)

    # memory

    #: Whether the peak counts the tensors on the device (including weights) instead of the whole process.
    peak_is_total: ClassVar[bool] = True
    memory_method: str = ""

    def steady_allocator(self) -> str:
        """Make memory repeatable but slower, before the first tensor. Returns what the allocator is."""
        return "ordinary allocator"

    def memory_now(self) -> int:
        """Bytes in use now."""
        raise NotImplementedError

    def reset_peak(self) -> None:
        """Start a new peak."""
        raise NotImplementedError

    def peak(self) -> int:
        """The most bytes in use since ``reset_peak``."""
        raise NotImplementedError

    def watch(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """A context that follows the peak while ``model`` runs, for devices without a high-water mark."""
        return contextlib.nullcontext()

    def limit_memory(self, limit: int | None) -> str:
        """Refuse allocations beyond ``limit`` bytes from now on; None: what the machine can safely give.

        Returns a description of what enforces ``limit``; empty without one.
        """
        return ""

    def memory_for_tensors(self, limit: int | None) -> int:
        """About the bytes that a worker's tensors may take under ``limit``, or without one. For predictions, never for
        results.
        """
        return int(self.describe()["memory_bytes"]) if limit is None else limit

    def reserved_memory(self) -> dict[str, tuple[int, str]]:
        """What the system holds now for this process beyond live tensors: name -> (bytes, method)."""
        return {}

    # energy

    energy_method: str = ""

    def energy_joules(self) -> float:
        """Joules used so far, from an arbitrary start. Raises Unsupported if nothing counts them."""
        raise Unsupported(f"nothing counts the energy of {self.kind} for ordinary programs")

    # failures

    def classify(self, error: BaseException) -> Failure:
        """The meaning of a worker's exception; an unknown one is an error without a finer cause. Never raises."""
        return self.explain(error) or Failure("error", "exception", describe_error(error))

    def explain(self, error: BaseException) -> Failure | None:
        """The meaning of a worker's exception by its class and text; None if neither is known. Never raises."""
        return explain_exception(error, self.error_texts)

    @classmethod
    def explain_death(cls, stderr: str, *, by_signal: bool) -> Failure | None:
        """What the stderr of a worker that ended itself, ``by_signal`` or not, means; None if unknown."""
        cause, line = cls.stderr_failure(stderr) if by_signal else ("", "")
        if cause:
            return Failure("oom" if cause in OUT_OF_MEMORY else "killed", cause, line)
        return explain_last_words(stderr, cls.error_texts)

    @classmethod
    def stderr_failure(cls, text: str) -> tuple[str, str]:
        """The cause and the line of a fatal text on a worker's stderr, whether or not the worker failed; else empty."""
        for pattern, cause in cls.fatal_stderr:
            found = re.search(pattern, text, re.IGNORECASE)
            if found is not None:
                begin, end = text.rfind("\n", 0, found.start()) + 1, text.find("\n", found.end())
                return cause, text[begin : end if end >= 0 else None].strip()[-_LONGEST_LINE:]
        return "", ""

    @classmethod
    def stderr_note(cls, text: str) -> str:
        """A note from the stderr of a worker that did not fail, such as operators run elsewhere; may be empty."""
        return ""


#: ``cuda:1``: a kind and, where there are several, an index.
_NAME = re.compile(r"^(?P<kind>[a-z]+)(:(?P<index>\d+))?$")


def split_name(name: str) -> tuple[str, int | None]:
    """``cuda:1`` -> (``cuda``, 1), ``cpu`` -> (``cpu``, None). Raises DeviceError for anything else."""
    match = _NAME.match(name)
    if match is None:
        raise DeviceError(f"{name!r} is not a device. Give cpu, cuda, cuda:1, mps or auto")
    return match["kind"], int(match["index"]) if match["index"] else None


def parse_kibibytes(status: str, key: str) -> int | None:
    """The bytes in a line of /proc/*/status (``VmHWM:  1234 kB``), or None without such a line."""
    match = re.search(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024

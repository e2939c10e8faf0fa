"""What a device is to the rest: how to wait for it, how to read its memory, and what its failures mean."""

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

#: So much of a line is told: of an assertion, the end.
_LONGEST_LINE = 300


class Device:
    """One device that models run on. Subclasses stand in ``devices/`` and in the registry DEVICES, by ``kind``.

    ``name`` is what a cell says (``cpu``, ``cuda:1``, ``mps``).
    """

    kind: ClassVar[str]
    #: (pattern, status, cause) by which a failure's text is known, before those that all devices share; the first that
    #: matches counts
    error_texts: ClassVar[ErrorTexts] = ()
    #: (pattern, cause) that a worker may print on stderr and that means: its results cannot be trusted
    fatal_stderr: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    # what there is

    @classmethod
    def find(cls) -> list[str]:
        """The names of the devices of this kind on this machine; empty if there is none. Loads torch."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Facts for the environment: a name, memory in bytes, versions of its libraries."""
        raise NotImplementedError

    # running

    @property
    def torch_device(self) -> torch.device:
        """The same as torch says it."""
        import torch

        return torch.device(self.name)

    def synchronize(self) -> None:
        """Wait until all work that was given to the device is done."""

    @property
    def asynchronous(self) -> bool:
        """Whether a call returns before its work is done."""
        return True

    @property
    def amp_dtype(self) -> str:
        """The lower precision of ``amp`` cells here: torch's own default for autocast on this kind."""
        return "fp16"

    def autocast(self, dtype: str) -> AbstractContextManager[Any]:
        """The context that a forward pass of a cell of this ``dtype`` runs in: autocast for ``amp``, else nothing."""
        import torch

        if dtype != "amp":
            return contextlib.nullcontext()
        low = torch.bfloat16 if self.amp_dtype == "bf16" else torch.float16
        return torch.autocast(self.kind, dtype=low)

    # memory

    #: Whether the peak counts everything on the device (weights included), rather than the size of the whole process.
    peak_is_total: ClassVar[bool] = True
    memory_method: str = ""

    def steady_allocator(self) -> str:
        """Make memory figures repeatable in this process, at the price of speed; before the first tensor. Says what it
        did.
        """
        return "ordinary allocator"

    def memory_now(self) -> int:
        """Bytes in use now."""
        raise NotImplementedError

    def reset_peak(self) -> None:
        """Start looking for the peak from here."""
        raise NotImplementedError

    def peak(self) -> int:
        """The most bytes in use since ``reset_peak``."""
        raise NotImplementedError

    def watch(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """A context that looks for the peak while ``model`` runs, for devices that keep no high-water mark."""
        return contextlib.nullcontext()

    def limit_memory(self, limit: int | None) -> str:
        """Refuse allocations beyond ``limit`` bytes from now on; None: what the machine can give without harm.

        Says in a few words what holds ``limit``; an empty text without one.
        """
        return ""

    def reserved_memory(self) -> dict[str, tuple[int, str]]:
        """What the system holds for this process beyond live tensors, now: name -> (bytes, how that is known)."""
        return {}

    # energy

    energy_method: str = ""

    def energy_joules(self) -> float:
        """Joules used so far, from an arbitrary start. Raises Unsupported where nothing counts them."""
        raise Unsupported(f"nothing counts the energy of {self.kind} for ordinary programs")

    # failures

    def classify(self, error: BaseException) -> Failure:
        """What an exception of a worker means; what nothing explains is an error without a finer cause. Never
        raises.
        """
        return self.explain(error) or Failure("error", "exception", describe_error(error))

    def explain(self, error: BaseException) -> Failure | None:
        """What an exception of a worker means by its class and its text; None if neither is known. Never raises."""
        return explain_exception(error, self.error_texts)

    @classmethod
    def explain_death(cls, stderr: str, *, by_signal: bool) -> Failure | None:
        """What the last words of a worker mean that ended itself, ``by_signal`` or by an exit code; None if they say
        nothing that is known.
        """
        cause, line = cls.stderr_failure(stderr) if by_signal else ("", "")
        if cause:
            return Failure("oom" if cause in OUT_OF_MEMORY else "killed", cause, line)
        return explain_last_words(stderr, cls.error_texts)

    @classmethod
    def stderr_failure(cls, text: str) -> tuple[str, str]:
        """The cause that a worker's stderr betrays although (or before) it ended, and the line that does; empty texts
        if it betrays none.
        """
        for pattern, cause in cls.fatal_stderr:
            found = re.search(pattern, text, re.IGNORECASE)
            if found is not None:
                begin, end = text.rfind("\n", 0, found.start()) + 1, text.find("\n", found.end())
                return cause, text[begin : end if end >= 0 else None].strip()[-_LONGEST_LINE:]
        return "", ""

    @classmethod
    def stderr_note(cls, text: str) -> str:
        """What a worker's stderr says of how its figures came about although nothing failed, or an empty string."""
        return ""


#: ``cuda:1``: a kind and, where there are several, an index.
_NAME = re.compile(r"^(?P<kind>[a-z]+)(:(?P<index>\d+))?$")


def split_name(name: str) -> tuple[str, int | None]:
    """``cuda:1`` -> (``cuda``, 1), ``cpu`` -> (``cpu``, None). Raises DeviceError for anything else."""
    match = _NAME.match(name)
    if match is None:
        raise DeviceError(f"Device {name!r} is no device name. Give cpu, cuda, cuda:1, mps or auto")
    index = match["index"]
    return match["kind"], None if index is None else int(index)


def parse_kibibytes(status: str, key: str) -> int | None:
    """The bytes that a line of /proc/*/status (``VmHWM:  1234 kB``) tells, or None if there is no such line."""
    match = re.search(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024

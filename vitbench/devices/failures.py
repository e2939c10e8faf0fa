"""Classify failures: exceptions by class and text, dead processes by the end of their stderr.

A text counts only in the classes that torch and the system raise: anyone may quote it in a ValueError. An unknown
failure is an error without a finer cause, never out of memory. tests/data/error_texts.toml holds texts as observed.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vitbench.core.errors import Unsupported, VitbenchError
from vitbench.core.records import Status

#: (pattern, status, cause): patterns are searched in ``describe_error``'s text, ignoring case.
ErrorTexts = tuple[tuple[str, Status, str], ...]

#: Causes for which memory ran out.
OUT_OF_MEMORY = frozenset({"out_of_memory", "oom_single_buffer", "library_workspace", "oom_kill"})
#: Causes that a machine with more memory or a larger disk would not have.
OF_THE_HOST = OUT_OF_MEMORY | {"disk_full"}
#: The start of a line, or the text after the names of wrapping exceptions.
AT_LINE = r"(?:^|\n)(?:[\w.]+: )*"

#: Texts of the host, which mean the same on every device.
GENERAL_ERROR_TEXTS: ErrorTexts = (
    (r"DefaultCPUAllocator: (?:can't allocate|not enough) memory: you tried to allocate", "oom", "out_of_memory"),
    (r"posix_memalign\(&data, gAlignment, nbytes\) == 0\. 12 vs 0", "oom", "out_of_memory"),
    (AT_LINE + r"(?:std::bad_alloc|bad allocation)$", "oom", "out_of_memory"),
    (r"unable to \w+ [^\n]*: Cannot allocate memory \(12\)", "oom", "out_of_memory"),
    (r"Cannot allocate memory \(os error 12\)|\(os error 1455\)|\[WinError 1455\]", "oom", "out_of_memory"),
    (r"Could not allocate (?:bytes object|memory (?:for|to change) Tensor SizesAndStrides)!", "oom", "out_of_memory"),
    (r"not (?:current(?:ly)? )?implemented for the '?\w+'? device", "unsupported", "unsupported_operator"),
    (r"Could not run '\w+::[\w.]+' with arguments from the '\w+' backend", "unsupported", "unsupported_operator"),
    (
        r"not implemented for '(?:Byte|Char|Short|Int|Long|UInt\d+|Half|BFloat16|Float\w*|Double|Complex\w+|Bool|"
        r"Q\w+)'",
        "unsupported",
        "unsupported_dtype",
    ),
    (r"\"\w+\" not implemented for '\w+'", "unsupported", "unsupported_operator"),
    (
        r"Expected canUse32BitIndexMath|must fit into 32-bit index math|for tensors with more than INT_MAX elements",
        "unsupported",
        "unsupported_operator",
    ),
    # shared memory, whose size is limited separately: not the disk
    (r"</torch_[^>]*>[^\n]*No space left on device", "error", "exception"),
    (
        r"(?:No space left on device|Disk quota exceeded) \((?:os error )?\d+\)|"
        r"\[Errno \d+\] (?:No space left on device|Disk quota exceeded)|kind: (?:StorageFull|\w*QuotaExceeded)",
        "error",
        "disk_full",
    ),
    (
        r"InvalidCxxCompiler|No working C\+\+ compiler|Failed to find C compiler|Compiler: \S+ is not found|"
        r"TritonMissing",
        "unsupported",
        "compiler",
    ),
    (AT_LINE + r"(?:BackendCompilerFailed|InductorError|TorchRuntimeError|CppCompileError)\b", "error", "compile"),
    # not attributed to the model: oneDNN reports unsupported shapes, memory that may not be executable, and missing
    # memory with this one text
    (AT_LINE + r"could not (?:create|execute) a primitive", "error", "exception"),
    (r"INTERNAL ASSERT FAILED at", "error", "exception"),
)

#: The cause of a call that torch refuses for the batch or the images that it gets, whatever the model.
LIMIT = "limit"
#: Its whole texts: torch raises ValueError, which anybody may raise with a part of them.
_LIMITS = re.compile(
    r"(?:\w+: )*Expected more than 1 (?:value per channel|spatial element) when training, got input size "
    r"(?:torch\.Size\()?\[[\d, ]*\]\)?"
)
#: Classes with texts of torch or the system; ``safetensors`` has its own for errors of the disk.
_CLASSES = frozenset({"RuntimeError", "OSError", "MemoryError", "TypeError", "AcceleratorError", "SafetensorError"})
#: Modules of the classes that torch.compile raises.
_COMPILERS = ("torch._dynamo", "torch._inductor", "triton.compiler")
#: A library that could not be loaded as memory ran out.
_UNMAPPED_LIBRARY = r"failed to map segment from shared object: Cannot allocate memory"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
#: The longest text that is kept: some hold a whole program.
_LONGEST_TEXT = 4000
#: The longest chain of causes that is followed.
_MOST_CAUSES = 8

# the end of stderr
_UNCAUGHT_IN_C = (
    r"terminate called after throwing an instance of '(?P<type>[^']+)'(?:\s+what\(\):[ \t]*(?P<text>.*))?",
    r"terminating (?:due to|with) uncaught exception of type (?P<type>\w+(?:::\w+)*)(?:: (?P<text>.*))?",
)
_UNCAUGHT_IN_PYTHON = r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+(?P<type>[\w.]+)(?:: (?P<text>.*))?\s*\Z"
_WITHOUT_MEMORY = ("MemoryError", "_ArrayMemoryError", "OutOfMemoryError", "bad_alloc")
_LIBRARIES_WITHOUT_MEMORY = (
    r"^(?:libgomp: Out of memory (?:allocating|trying to allocate) |OMP: System error #12: |"
    r"OpenBLAS error: Memory allocation still failed).*"
)


@dataclass(frozen=True)
class Failure:
    """A failure's status, finer cause and text."""

    status: Status
    cause: str
    detail: str


def describe_error(error: BaseException) -> str:
    """``ValueError: the text``, shortened if it is long; the class alone without a text."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def text_of(error: BaseException) -> str:
    """The text of an exception, shortened if it is long. Never raises."""
    try:
        text = str(error).strip()
    except Exception:  # a custom class may fail to make its text
        return "(its text is unavailable)"
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ..."


def explain_exception(error: BaseException, texts: ErrorTexts) -> Failure | None:
    """The meaning of an exception by its class and text, including a device's ``texts``; None if neither is known.

    If it is unknown itself, the exceptions that it was raised from or wraps decide. Never raises.
    """
    if isinstance(error, Unsupported):
        return Failure("unsupported", "unsupported", text_of(error))
    if isinstance(error, VitbenchError):
        full = any(isinstance(one, OSError) and one.errno in _DISK_FULL for one in _and_its_causes(error))
        cause = "disk_full" if full else error.cause
        return Failure("oom" if cause in OUT_OF_MEMORY else "error", cause, text_of(error))
    for one in _and_its_causes(error):
        known = _recognise(one, texts)
        if known is not None:
            origin = "" if one is error else f" (from {describe_error(one)})"
            return Failure(*known, describe_error(error) + origin)
    if any(base.__module__.startswith(_COMPILERS) for base in type(error).__mro__):
        return Failure("error", "compile", describe_error(error))
    return None


def explain_last_words(stderr: str, texts: ErrorTexts) -> Failure | None:
    """The meaning of the stderr of a process that ended by an uncaught exception or by its libraries; None if it is not
    known. What is ``error`` in a live process is ``killed`` here.
    """
    without = re.search(_LIBRARIES_WITHOUT_MEMORY, stderr, re.MULTILINE)
    if without is not None:
        return Failure("oom", "out_of_memory", without[0])
    thrown = next((found for one in _UNCAUGHT_IN_C if (found := re.search(one, stderr, re.DOTALL))), None)
    names = {"RuntimeError"} if thrown else set()  # the only class of C++ for errors of torch and the system
    if thrown is None:
        last = stderr.rfind("Traceback (most recent call last):")
        thrown = re.search(_UNCAUGHT_IN_PYTHON, stderr[max(last, 0) :])
    if thrown is None:
        return None
    name = re.split(r"::|\.", thrown["type"])[-1]
    described = f"{name}: {(thrown['text'] or thrown['type']).strip()}"[:_LONGEST_TEXT]
    if name in _WITHOUT_MEMORY:
        return Failure("oom", "out_of_memory", described.split("\n")[0])
    known = _recognise_text({name, *names}, described.split("\nframe #0")[0], texts)
    if known is None:
        return None
    status, cause = known
    if status == "error":
        status, cause = "killed", "crash" if cause == "exception" else cause
    return Failure(status, cause, described.split("\n")[0])


def _recognise(error: BaseException, texts: ErrorTexts) -> tuple[Status, str] | None:
    """The status and cause of one exception, without its causes."""
    if isinstance(error, OSError):
        if error.errno in _DISK_FULL:
            return "error", "disk_full"
        if error.errno == errno.ENOMEM:
            return "oom", "out_of_memory"
    known = _recognise_text({one.__name__ for one in type(error).__mro__}, describe_error(error), texts)
    torch = sys.modules.get("torch")  # its exceptions exist only once it is loaded
    if known is None and isinstance(error, (MemoryError, getattr(torch, "OutOfMemoryError", MemoryError))):
        return "oom", "out_of_memory"
    return known


def _recognise_text(names: Iterable[str], described: str, texts: ErrorTexts) -> tuple[Status, str] | None:
    """The status and cause of a text in an exception whose class and bases have these names."""
    classes = set(names)
    if classes & {"ValueError", "RuntimeError"} and _LIMITS.fullmatch(described.split("\n")[0]):
        return "unsupported", LIMIT
    if "ImportError" in classes:
        return ("oom", "out_of_memory") if re.search(_UNMAPPED_LIBRARY, described) else None
    if not classes & _CLASSES:
        return None
    for pattern, status, cause in (*texts, *GENERAL_ERROR_TEXTS):
        if "TypeError" in classes and status != "unsupported":
            continue  # torch raises it for dtypes, everybody else for arguments
        if re.search(pattern, described, re.IGNORECASE):
            return status, cause
    return None


def _and_its_causes(error: BaseException) -> Iterator[BaseException]:
    """``error``, what it was raised from or wraps, and so on."""
    one: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if one is None:
            return
        yield one
        inside = getattr(one, "inner_exception", None)  # torch.compile's
        one = one.__cause__ or (inside if isinstance(inside, BaseException) else None)

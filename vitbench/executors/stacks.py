"""Where a process hangs or crashes: its Python stack, printed on a signal, and the most telling part of its stderr.

A stack is printed by a signal handler in C, so that a process prints it too while it sleeps, waits for a lock that
nobody gives back, or computes in native code without end.
"""

from __future__ import annotations

import itertools
import re
import signal
import sysconfig
from collections.abc import Sequence
from pathlib import PurePath

#: What makes a process print its stack; None where the system has no such signal (Windows).
ASK: signal.Signals | None = getattr(signal, "SIGUSR1", None)

#: The heading of a thread's stack.
_HEADING = re.compile(r"(?P<current>Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):")
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.+)')
#: What else stands in a stack: a thread without Python, and the cut after a hundred calls.
_OTHER = re.compile(r"  (<.*>|\.\.\.)")
#: After a crash: the names of a hundred compiled modules, which say nothing of it.
_NOISE = re.compile(r"Extension modules: ")
#: Lines of something else that are kept before and after a stack.
_KEPT_AROUND = 4


def print_stack_when_asked() -> None:
    """From now on this process prints the stack of each of its threads on stderr when the signal ASK comes."""
    import faulthandler

    if ASK is not None and hasattr(faulthandler, "register"):
        faulthandler.register(ASK, file=2, all_threads=True, chain=False)


_LIBRARIES = tuple({sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


def is_whole(text: str) -> bool:
    """Whether ``text`` holds calls of the thread that the signal reached: as a rule the one that is printed last."""
    _, _, calls = _last_stack(text.splitlines())
    return bool(calls) and "Current thread 0x" in text


def last_call(text: str) -> str:
    """The innermost call of the last stack in ``text``: ``model.py:12 in forward``; of a call in a library also who
    called it: ``threading.py:320 in wait, from model.py:12 in forward``. Empty if there is no stack.
    """
    _, _, printed = _last_stack(text.splitlines())
    calls = [match for line in printed if (match := _FRAME.fullmatch(line))]
    if not calls:
        return ""
    inner = _place_of(calls[0])
    if not _is_library(calls[0]["file"]):
        return inner
    own = next((call for call in calls if not _is_library(call["file"])), None)
    return inner if own is None else f"{inner}, from {_place_of(own)}"


def shorten(text: str, lines: int) -> str:
    """The end of ``text``, in at most ``lines`` lines (10 or more).

    A stack would be cut at the wrong end, since the innermost calls are printed first: of the last one in ``text`` the
    innermost calls are kept, with a little of what was printed before and after it.
    """
    every = text.splitlines()
    begin, end, calls = _last_stack(every)
    if not calls:
        return "\n".join(every[-lines:])
    before = [line for line in every[:begin] if line.strip()][-_KEPT_AROUND:]
    after = [line for line in every[end:] if line.strip() and not _NOISE.match(line)][-_KEPT_AROUND:]
    room = lines - len(before) - len(after) - 1
    if len(calls) > room:
        calls = [*calls[: room - 1], f"  ... and {len(calls) - room + 1} calls further out"]
    return "\n".join([*before, f"Stack, the innermost call first: {last_call(text)}", *calls, *after])


def _last_stack(lines: Sequence[str]) -> tuple[int, int, list[str]]:
    """Where the last printed stack begins and ends, and the calls of the thread that counts, the innermost first."""
    headings = [number for number, line in enumerate(lines) if _HEADING.fullmatch(line)]
    if not headings:
        return 0, 0, []
    end = headings[-1] + 1
    while end < len(lines) and _belongs(lines[end]):
        end += 1
    begin = headings[-1]
    while begin and (_belongs(lines[begin - 1]) or _HEADING.fullmatch(lines[begin - 1]) or not lines[begin - 1]):
        begin -= 1
    within = [number for number in headings if number >= begin]
    current = [number for number in within if lines[number].startswith("Current")]
    chosen = (current or within)[-1] + 1  # the main thread is printed last
    return begin, end, list(itertools.takewhile(_belongs, lines[chosen:end]))


def _belongs(line: str) -> bool:
    return bool(_FRAME.fullmatch(line) or _OTHER.fullmatch(line))


def _place_of(call: re.Match[str]) -> str:
    return f"{PurePath(call['file']).name}:{call['line']} in {call['function']}"


def _is_library(file: str) -> bool:
    """Whether a file is Python's own, or that of an installed package."""
    return file.startswith("<") or any(PurePath(file).is_relative_to(path) for path in _LIBRARIES)

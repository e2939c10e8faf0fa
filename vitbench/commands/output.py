"""What commands print and write, and which exit codes they return.

Exit codes: 0 done; 1 done, but a cell failed for another reason than memory, or the disk is full; 2 wrong usage; 130
interrupted. Commands that compare: 0 fine, 1 worse, 2 wrong usage, 3 inconclusive (on request), 4 not compared because
of trouble with the machine.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import UsageError, VitbenchError
from vitbench.core.text import one_line, printable, printable_lines

if TYPE_CHECKING:
    from vitbench.regression.change import Change
    from vitbench.runner.run import RunSummary

INTERRUPTED = 130
#: What --markdown and --json take for the standard output.
STDOUT = Path("-")
_SHOW_WARNING = warnings.showwarning
_warned: set[str] = set()
_ENDINGS = ("pass", "warn", "fail")


def note(text: str) -> None:
    """One line on stderr."""
    print(one_line(text), file=sys.stderr, flush=True)


def complain(text: str, code: int) -> int:
    """Print why a command ends, in one line on stderr; returns ``code``."""
    note(text if code == INTERRUPTED else f"Error: {text}")
    return code


def show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Print our own warnings, which name files and their content, as one line, once; leave others as they are."""
    if category.__module__.partition(".")[0] != "vitbench":
        _SHOW_WARNING(message, category, *where, **more)
    elif (line := f"Warning: {one_line(str(message))}") not in _warned:
        _warned.add(line)
        note(line)


def interruptible(command: Callable[..., int]) -> Callable[..., int]:
    """The text of an interrupt becomes the last line: the library under typer would drop it."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, **options: Any) -> int:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt as interrupt:
            return complain(str(interrupt) or "Interrupted.", INTERRUPTED)

    return wrapped


def print_json(value: Any) -> None:
    """Strict JSON on stdout."""
    import json

    print(json.dumps(value, indent=2, allow_nan=False))


def print_written(paths: Iterable[Path]) -> None:
    """A line on stdout for each file that was written."""
    for path in paths:
        print(f"Wrote {printable(str(path))}")


def print_summary(folders: Sequence[Path]) -> None:
    """The summary of runs on stdout: as wide as the terminal and with its styles, plain elsewhere."""
    from rich.console import Console

    from vitbench.reports import summary

    console = Console()
    if console.is_terminal and not console.legacy_windows:
        print(summary(folders, console.width, styled=True))
    else:
        print(summary(folders))


def print_run(summary: RunSummary, failures: str) -> int:
    """Print the summary of a run and the ``failures`` if there are any ("cells failed"); returns the exit code."""
    print_summary([summary.folder])
    print_written(summary.report)
    if summary.failed:
        note(f"{len(summary.failed)} of {len(summary.records)} {failures}; see the report's failures")
    return 1 if summary.failed else 0


def print_answers(answers: list[dict[str, Any]], to_text: Callable[[list[dict[str, Any]]], str], as_json: bool) -> int:
    """Print one answer for each model, those that failed in one line each on stderr; returns the exit code."""
    failed = [answer for answer in answers if "error" in answer]
    if as_json:
        print_json([{key: value for key, value in answer.items() if key != "usage"} for answer in answers])
    else:
        if len(failed) < len(answers):
            print(printable_lines(to_text(answers)))
        for answer in failed:
            complain(answer["error"], 1)
    if not failed:
        return 0
    return 2 if len(failed) == len(answers) and all(answer["usage"] for answer in failed) else 1


@dataclass(frozen=True)
class GateOutput:
    """Where a comparison goes, and what an inconclusive value does."""

    files: dict[str, Path | None]  # by "markdown", "json", "junit"
    everything: bool = False
    inconclusive: str = "warn"


def choose_output(
    markdown: str | None, json: str | None, junit: str | None, *, everything: bool = False, inconclusive: str = "pass"
) -> GateOutput:
    """Raises UsageError for files that cannot all be written, and for an unknown ``inconclusive``."""
    if inconclusive not in _ENDINGS:
        raise UsageError(f"Option --inconclusive: {inconclusive!r} is not one of {', '.join(_ENDINGS)}")
    given = {name: Path(text) for name, text in (("markdown", markdown), ("json", json), ("junit", junit)) if text}
    if len(set(given.values())) < len(given):
        raise UsageError("Two of --markdown, --json and --junit name one file: give each its own")
    for name, path in given.items():
        if name == "junit" or path != STDOUT:
            refuse_unwritable(f"--{name}", path)
    return GateOutput({name: given.get(name) for name in ("markdown", "json", "junit")}, everything, inconclusive)


def refuse_unwritable(option: str, path: Path) -> None:
    """Raises UsageError for a ``path``, given with ``option``, that is no file's name in a folder that is there."""
    try:
        is_folder, has_folder = path.is_dir(), path.parent.is_dir()
    except OSError as error:  # a folder without permission
        raise UsageError(f"Option {option}: {str(path)!r} cannot be written: {error.strerror}") from error
    if is_folder or path == STDOUT:
        raise UsageError(f"Option {option}: {str(path)!r} is not a file that can be written: give a file's name")
    if not has_folder:
        raise UsageError(f"Option {option}: there is no folder {str(path.parent)!r}: make it, or give another file")


def publish(
    changes: Sequence[Change], output: GateOutput, *, title: str, notes: Sequence[str], advice: str = "", **facts: Any
) -> int:
    """Print the table (or the Markdown or JSON that goes to stdout), write the files, and report what is inconclusive,
    with ``advice`` on how to decide it; returns the exit code.
    """
    from vitbench.core.run_folder import write_atomically
    from vitbench.regression.change import exit_code
    from vitbench.regression.change_text import changes_json, changes_junit, changes_markdown, changes_table

    code = exit_code(changes, inconclusive_fails=output.inconclusive == "fail")
    renderers = {
        "markdown": lambda: changes_markdown(changes, title=title, notes=notes, everything=output.everything),
        "json": lambda: changes_json(changes, title=title, notes=list(notes), **facts, exit_code=code),
        "junit": lambda: changes_junit(changes, name=title),
    }
    pages = {path: renderers[name]() for name, path in output.files.items() if path is not None}
    printed = pages.pop(STDOUT, None)
    for path, page in pages.items():
        write_atomically(path, page.encode())
    if printed is not None:
        print_text(printed)
    else:
        lines = "".join(f"- {one_line(text)}\n" for text in notes)
        print_text(f"{printable_lines(changes_table(changes, everything=output.everything))}\n{lines}")
    for path in pages:
        note(f"Wrote {path}")
    unclear = [change for change in changes if change.gates and change.verdict == "inconclusive"]
    if unclear and output.inconclusive != "pass":
        kind = "Error" if output.inconclusive == "fail" else "Warning"
        note(f"{kind}: {len(unclear)} gated value{'s are' if len(unclear) > 1 else ' is'} inconclusive. {advice}")
    return code


def guarded(gate: Callable[..., int]) -> Callable[..., int]:
    """Exit with 4 where anything but the code under test ends ``gate``, since 1 means a regression. UsageError and
    KeyboardInterrupt are passed on.
    """

    @functools.wraps(gate)
    def wrapped(*arguments: Any, **options: Any) -> int:
        from vitbench.regression.change import INFRASTRUCTURE

        try:
            return gate(*arguments, **options)
        except UsageError:
            raise
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            return complain(f"{error.strerror or error}{where}. Nothing was judged", INFRASTRUCTURE)
        except VitbenchError as error:
            return complain(str(error), INFRASTRUCTURE)
        except Exception:  # a bug of ours: Python would exit with 1, which means a regression
            traceback.print_exc()
            return INFRASTRUCTURE

    return wrapped


def print_text(text: str) -> None:
    """Print in whatever encoding stdout has; a reader that closes early (head) does not change the exit code."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

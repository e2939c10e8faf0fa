"""What the commands that compare have in common: where their outputs go, and what ends with which exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitbench.core.errors import UsageError, VitbenchError

if TYPE_CHECKING:
    from vitbench.regression.change import Change

#: What --markdown and --json take for the standard output.
STDOUT = Path("-")
_ENDINGS = ("pass", "warn", "fail")

Everything = Annotated[
    bool, typer.Option("--all", help="List all figures, those that are the same and those for information too.")
]
Inconclusive = Annotated[
    str, typer.Option(help="When a gated figure is inconclusive: pass, warn, or fail (exit code 3).")
]
Markdown = Annotated[
    str | None, typer.Option(help="Write a page for a pull request's comment into this file; - prints it.")
]
JsonFile = Annotated[str | None, typer.Option(help="Write a JSON object into this file; - prints it.")]
Junit = Annotated[str | None, typer.Option(help="Write JUnit XML into this file.")]


def choose_outputs(markdown: str | None, json: str | None, junit: str | None) -> dict[str, Path | None]:
    """The files to write. Raises UsageError for some that cannot all be written."""
    given = {name: Path(text) for name, text in (("markdown", markdown), ("json", json), ("junit", junit)) if text}
    if len(set(given.values())) < len(given):
        raise UsageError("Two of --markdown, --json and --junit name one file: give each its own")
    for name, path in given.items():
        try:
            is_folder, has_folder = path.is_dir(), path.parent.is_dir()
        except OSError as error:  # a folder that may not be looked into
            raise UsageError(f"Option --{name}: {str(path)!r} cannot be written: {error.strerror}") from error
        if is_folder or (name == "junit" and path == STDOUT):
            raise UsageError(f"Option --{name}: {str(path)!r} is no file that can be written: give a file's name")
        if path != STDOUT and not has_folder:
            raise UsageError(f"Option --{name}: there is no folder {str(path.parent)!r}: make it, or give another file")
    return {name: given.get(name) for name in ("markdown", "json", "junit")}


def check_ending(inconclusive: str) -> None:
    """Raises UsageError for an ``--inconclusive`` that is none."""
    if inconclusive not in _ENDINGS:
        raise UsageError(f"Option --inconclusive: {inconclusive!r} is not one of {', '.join(_ENDINGS)}")


def publish(
    changes: Sequence[Change],
    *,
    title: str,
    notes: Sequence[str],
    everything: bool,
    paths: dict[str, Path | None],
    inconclusive: str,
    advice: str,
    **facts: Any,
) -> int:
    """Print the table (or the Markdown or JSON that goes to the standard output), write the files, say what is
    inconclusive with ``advice`` on how to learn more; the exit code.
    """
    from vitbench.core.text import one_line, printable_lines
    from vitbench.regression.change import exit_code
    from vitbench.regression.change_page import changes_json, changes_markdown, changes_table, write_changes

    code = exit_code(changes, inconclusive_fails=inconclusive == "fail")
    facts = {**facts, "exit_code": code}
    files = {name: None if path == STDOUT else path for name, path in paths.items()}
    written = write_changes(changes, title=title, notes=notes, everything=everything, **files, **facts)
    if paths["markdown"] == STDOUT:
        _print(changes_markdown(changes, title=title, notes=notes, everything=everything))
    elif paths["json"] == STDOUT:
        _print(changes_json(changes, title=title, notes=list(notes), **facts))
    else:
        lines = "".join(f"- {one_line(note)}\n" for note in notes)
        _print(f"{printable_lines(changes_table(changes, everything=everything))}\n{lines}")
    for path in written:
        print(f"Wrote {one_line(str(path))}", file=sys.stderr)
    unclear = [change for change in changes if change.gates and change.verdict == "inconclusive"]
    if unclear and inconclusive != "pass":
        are = "figures are" if len(unclear) > 1 else "figure is"
        ending = "Error" if inconclusive == "fail" else "Warning"
        print(f"{ending}: {len(unclear)} gated {are} inconclusive. {advice}", file=sys.stderr)
    return code


def guarded(gate: Callable[[], int]) -> int:
    """What ``gate`` returns; 4 where something else than the code under test ended it, as 1 means a regression.

    UsageError and KeyboardInterrupt go on as ever.
    """
    from vitbench.core.text import one_line
    from vitbench.regression.change import INFRASTRUCTURE

    try:
        return gate()
    except UsageError:
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"Error: {one_line(f'{error.strerror or error}{where}')}. Nothing was judged", file=sys.stderr)
    except VitbenchError as error:
        print(f"Error: {one_line(str(error))}", file=sys.stderr)
    except Exception:  # ours; left alone it would end with 1, which means a regression
        import traceback

        traceback.print_exc()
    return INFRASTRUCTURE


def _print(text: str) -> None:
    """To the standard output, whatever its encoding; a reader that has seen enough (head) changes no exit code."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

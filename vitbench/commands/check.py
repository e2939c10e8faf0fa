"""``vitbench check``: count what a lock holds again, and let nothing differ that nobody accepted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitbench.commands.options import AllowImport
from vitbench.errors import StorageError, UsageError, WorkerError

EPILOG = (
    "Examples:  vitbench check   |   vitbench check vitbench.lock.json --markdown comment.md --junit check.xml   |   "
    "vitbench check --accept 'vit_basic *: the head has a bias now'   |   "
    "vitbench check --accept '*#operators: one copy more, for clarity'"
)


def check(
    lock: Annotated[
        Path | None, typer.Argument(help="What vitbench snapshot wrote. [default: vitbench.lock.json]")
    ] = None,
    accepted: Annotated[
        list[str] | None,
        typer.Option(
            "--accept",
            help="'cell or pattern: reason', or 'pattern#metric: reason': write these changes, and why, into the "
            "lock; again for more.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List what is the same, too.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Also write a page for a pull request's comment here.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the changes as JSON here.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write them as JUnit XML here.")] = None,
    allow_import: AllowImport = False,
) -> int:
    """Compare exact figures (parameters, FLOPs, operators, ...) with a lock; exit code 1 if any differs."""
    from datetime import UTC, datetime

    from vitbench.changes import INFRASTRUCTURE, exit_code
    from vitbench.lockfile import DEFAULT_NAME, accept, compare_locks, parse_rule, read_lock, remaining, write_lock
    from vitbench.printable import one_line, printable, printable_lines
    from vitbench.reports.changes import changes_table, write_changes
    from vitbench.runner import terminate_like_interrupt
    from vitbench.snapshots import notes_on, repeat_snapshot

    rules = [parse_rule(text) for text in accepted or ()]
    path = lock or Path(DEFAULT_NAME)
    outputs = [one for one in (markdown, json, junit) if one is not None]
    for output in outputs:
        if not output.parent.is_dir():
            raise UsageError(f"Cannot write {output}: {str(output.parent)!r} is no folder. Make it first")
        if output.absolute() == path.absolute() or outputs.count(output) > 1:
            raise UsageError(f"{output} is asked to be two files at once: give each output a name of its own")
    base = read_lock(path)

    def note(text: str) -> None:
        print(one_line(text), file=sys.stderr, flush=True)

    try:
        with terminate_like_interrupt():
            head = repeat_snapshot(base, allow_import=allow_import, note=note)
        changes = compare_locks(base, head)
        notes = notes_on(base, head)
        if rules:
            new = accept(base, head, changes, rules, datetime.now(UTC).date().isoformat())
            write_lock(path, new)
            before, changes = len(changes), remaining(changes, rules)
            notes += [f"Accepted: {one.pattern}: {one.reason}" for one in new.accepted[len(base.accepted) :]]
            note(f"Accepted {before - len(changes)} changes; wrote {path}")
        title = f"Exact figures against {path.name}"
        written = write_changes(
            changes,
            title=title,
            notes=notes,
            markdown=markdown,
            json=json,
            junit=junit,
            everything=everything,
            torch={"base": base.torch, "head": head.torch},
        )
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except (WorkerError, StorageError) as error:
        note(f"Error: {error}")
        return INFRASTRUCTURE
    print(printable_lines(changes_table(changes, everything=everything)))
    for text in notes:
        print(one_line(text))
    for output in written:
        note(f"Wrote {printable(str(output))}")
    code = exit_code(changes)
    if code:
        note("If a change is meant: vitbench check --accept 'cell or pattern: reason' writes it into the lock.")
    return code

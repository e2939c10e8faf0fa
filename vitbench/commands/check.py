"""``vitbench check``: count what a lock holds again, and let nothing differ that nobody accepted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitbench.commands.gates import Everything, JsonFile, Junit, Markdown
from vitbench.commands.options import AllowImport
from vitbench.core.errors import UsageError

if TYPE_CHECKING:
    from vitbench.regression.lock_diff import Rule
    from vitbench.regression.lock_file import Lock

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
    everything: Everything = False,
    markdown: Markdown = None,
    json: JsonFile = None,
    junit: Junit = None,
    allow_import: AllowImport = False,
) -> int:
    """Compare exact figures (parameters, FLOPs, operators, ...) with a lock; exit code 1 if any differs.

    Exit codes: 0 fine, 1 something differs, 2 wrong usage, 4 the machine did not let us count.
    """
    from vitbench.commands.gates import choose_outputs, guarded
    from vitbench.regression.lock_diff import parse_rule
    from vitbench.regression.lock_file import DEFAULT_NAME, read_lock

    rules = [parse_rule(text) for text in accepted or ()]
    path = lock or Path(DEFAULT_NAME)
    paths = choose_outputs(markdown, json, junit)
    for output in paths.values():
        if output is not None and output.absolute() == path.absolute():
            raise UsageError(f"{str(output)!r} is the lock itself: give the output a name of its own")
    base = read_lock(path)
    return guarded(lambda: _check(base, path, rules, paths, everything=everything, allow_import=allow_import))


def _check(
    base: Lock, path: Path, rules: list[Rule], paths: dict[str, Path | None], *, everything: bool, allow_import: bool
) -> int:
    from datetime import UTC, datetime

    from vitbench.commands.gates import publish
    from vitbench.core.text import one_line
    from vitbench.regression.lock_diff import accept, compare_locks, remaining
    from vitbench.regression.lock_file import write_lock
    from vitbench.regression.snapshot import notes_on, repeat_snapshot
    from vitbench.runner.run import terminate_like_interrupt

    def note(text: str) -> None:
        print(one_line(text), file=sys.stderr, flush=True)

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
    code = publish(
        changes,
        title=f"Exact figures against {path.name}",
        notes=notes,
        everything=everything,
        paths=paths,
        inconclusive="pass",  # what is counted is never in doubt
        advice="",
        torch={"base": base.torch, "head": head.torch},
    )
    if code:
        note("If a change is meant: vitbench check --accept 'cell or pattern: reason' writes it into the lock.")
    return code

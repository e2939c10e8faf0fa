"""``vitbench check``: count again what the baseline file holds; any difference that is not accepted fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from vitbench.commands import options
from vitbench.commands.output import GateOutput, choose_output, guarded, note, publish
from vitbench.core.errors import UsageError

if TYPE_CHECKING:
    from vitbench.regression.lock_diff import Rule
    from vitbench.regression.lock_file import Lock

EXAMPLES = """
vitbench check
vitbench check vitbench.lock.json --markdown comment.md --junit check.xml
vitbench check --accept 'vit_basic *: the head has a bias now'
vitbench check --accept '*#operators: one copy more, for clarity'
"""


def check(
    lock: Annotated[Path | None, Argument(help="A file of vitbench snapshot. [default: vitbench.lock.json]")] = None,
    accepted: Annotated[
        list[str] | None,
        Option("--accept", metavar="'PATTERN: WHY'", help="Write these changes into the file; also PATTERN#METRIC."),
    ] = None,
    everything: options.Everything = False,
    markdown: options.Markdown = None,
    json: options.JsonFile = None,
    junit: options.Junit = None,
    allow_import: options.AllowImport = False,
) -> int:
    """Compare exact values (parameters, FLOPs, operators, ...) with a baseline file.

    Exit codes: 0 same, 1 something differs, 2 wrong usage, 4 not counted because of trouble with the machine.
    """
    from vitbench.regression.lock_diff import parse_rule
    from vitbench.regression.lock_file import DEFAULT_NAME, read_lock

    rules = [parse_rule(text) for text in accepted or ()]
    path = lock or Path(DEFAULT_NAME)
    output = choose_output(markdown, json, junit, everything=everything)
    for file in output.files.values():
        if file is not None and file.absolute() == path.absolute():
            raise UsageError(f"{str(file)!r} is the baseline file itself: give the output another name")
    base = read_lock(path)
    return guarded(_check)(base, path, rules, output, allow_import=allow_import)


def _check(base: Lock, path: Path, rules: list[Rule], output: GateOutput, *, allow_import: bool) -> int:
    from datetime import UTC, datetime

    from vitbench.regression.lock_diff import accept, compare_locks, remaining
    from vitbench.regression.lock_file import write_lock
    from vitbench.regression.snapshot import notes_on, repeat_snapshot
    from vitbench.runner.run import terminate_like_interrupt

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
    code = publish(changes, output, title=title, notes=notes, torch={"base": base.torch, "head": head.torch})
    if code:
        note("If a change is intended: vitbench check --accept 'PATTERN: reason' writes it into the file.")
    return code

"""Render a list of changes: a table for a terminal, a pull request's comment, JSON, and JUnit XML.

Texts in a change come from files and model code. They are escaped: nothing in them becomes markup, a link or a terminal
control sequence.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from typing import Any

from vitbench.core.text import one_line
from vitbench.regression.change import Change
from vitbench.regression.change_text import (
    Footnotes,
    choose_listed,
    count_verdicts,
    difference,
    difference_between,
    headline,
    is_aside,
    shown_value,
)
from vitbench.reports.format import cell_text, table, without_paths

#: The schema of the JSON output.
SCHEMA = 1

#: GitHub takes comments of up to 65,536 characters. A longer page loses rows of its tables, not its end.
LONGEST_COMMENT = 60_000
MOST_ROWS = 200
#: Footnotes below a table.
MOST_NOTES = 50

_SIGNS = {"worse": "❌", "inconclusive": "❔", "not comparable": "➖", "better": "✅", "same": ""}

#: What a forge turns into a link or a mention: @name, #1, a URL.
_CALLS = re.compile(r"[@#](?=\w)|:(?=//)|\bwww(?=\.)")

_HEADINGS = ("cell", "metric", "base", "head", "change", "verdict", "note")
_TEXTS = ("cell", "metric", "verdict", "note")


def changes_table(changes: Sequence[Change], *, everything: bool = False) -> str:
    """A table for a terminal below its headline, with footnotes.

    Without ``everything`` one line counts the values that are the same or for information only, and those that are not
    comparable for the same reason.
    """
    from tabulate import tabulate

    listed, left_out = choose_listed(changes, everything)
    parts = [headline(changes)]
    if listed:
        notes = Footnotes(one_line, MOST_NOTES)
        rows = [_row(change, one_line, notes) for change in listed]
        align = ["left" if heading in _TEXTS else "right" for heading in _HEADINGS]
        parts.append(tabulate(rows, _HEADINGS, tablefmt="simple", colalign=align, disable_numparse=True))
        parts += notes.lines("[{}] {}")
    parts += [one_line(left_out)] if left_out else []
    return "\n\n".join(parts)


def changes_markdown(
    changes: Sequence[Change], *, title: str, notes: Sequence[str] = (), everything: bool = False
) -> str:
    """A Markdown page that fits into a comment: ``title``, headline, ``notes`` (plain text, one a line), the table with
    its footnotes, and folded what is for information only. Rows that do not fit are counted.
    """
    listed, left_out = choose_listed(changes, everything)
    aside = [] if everything else [change for change in changes if is_aside(change)]
    head = [f"## {_comment_text(title)}", f"**{headline(changes)}**"]
    head += ["\n".join(f"- {_comment_text(note)}" for note in notes)] if notes else []
    most = MOST_ROWS
    while True:
        parts = [*head, *_section(listed, most)]
        parts += [_comment_text(left_out)] if left_out else []
        if aside:
            parts += ["<details><summary>For information: not gated</summary>", *_section(aside, most), "</details>"]
        page = "\n\n".join(parts) + "\n"
        if len(page) <= LONGEST_COMMENT or most == 0:
            return page
        most //= 2


def changes_json(changes: Sequence[Change], **facts: Any) -> str:
    """One JSON object: ``schema``, the ``facts``, ``counts`` of the verdicts that gate, and ``changes``, each with the
    fields of Change in base units. Numbers that are not finite are null.
    """
    content = {
        **facts,
        "schema": SCHEMA,
        "counts": count_verdicts(changes),
        "changes": [{key: _finite(value) for key, value in dataclasses.asdict(change).items()} for change in changes],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def changes_junit(changes: Sequence[Change], *, name: str) -> str:
    """A JUnit test suite ``name`` with one test case for each change that gates: failed if worse, skipped if it is
    inconclusive or not comparable.
    """
    gating = [change for change in changes if change.gates]
    counts = count_verdicts(changes)
    root = ET.Element("testsuites")
    suite = ET.SubElement(
        root,
        "testsuite",
        name=one_line(name),
        tests=str(len(gating)),
        failures=str(counts["worse"]),
        errors="0",
        skipped=str(counts["inconclusive"] + counts["not comparable"]),
    )
    for change in gating:
        case = ET.SubElement(suite, "testcase", classname=_plain(change.cell), name=_plain(change.metric))
        message = _plain(f"{change.verdict}: {difference(change)}")
        if change.verdict == "worse":
            ET.SubElement(case, "failure", type="regression", message=message).text = _plain(change.detail)
        elif change.verdict in ("inconclusive", "not comparable"):
            text = f"{message}. {_plain(change.detail)}" if change.detail else message
            ET.SubElement(case, "skipped", message=text)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _row(change: Change, escape: Callable[[str], str], notes: Footnotes) -> list[str]:
    values = [shown_value(one, change.unit, exact=change.exact) for one in (change.base, change.head)]
    texts = map(escape, (change.cell, change.metric, *values, difference_between(change)))
    verdict = change.verdict if change.gates else f"{change.verdict} (not gated)"
    return [*texts, verdict, notes.reference(change.detail)]


def _section(changes: Sequence[Change], most: int) -> list[str]:
    """A table of the first ``most`` changes with its footnotes, and how many more there are."""
    parts = []
    if changes[:most]:
        notes = Footnotes(_comment_text, MOST_NOTES)
        rows = [_row(change, _comment_text, notes) for change in changes[:most]]
        for row, change in zip(rows, changes, strict=False):
            row[5] = f"{_SIGNS[change.verdict]} {row[5]}".strip() if change.gates else row[5]
        parts += [table(_HEADINGS, rows, _TEXTS), *notes.lines("- \\[{}\\] {}")]
    cut = len(changes) - len(changes[:most])
    if cut:
        parts.append(f"{cut} more line{' does' if cut == 1 else 's do'} not fit into a comment.")
    return parts


def _comment_text(text: str) -> str:
    """Escape a text for a comment: no markup, no mention of a person or thread, no link."""
    # A zero-width space: a forge would resolve a character reference before it looks for mentions.
    return _CALLS.sub("\\g<0>\u200b", cell_text(text, 1000))


def _plain(text: str) -> str:
    return one_line(without_paths(text))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

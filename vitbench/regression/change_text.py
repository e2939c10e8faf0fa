"""Render the changes of every gate: a table for a terminal, a pull request's comment, JSON, and JUnit XML.

Texts in a change come from files and model code. They are escaped: nothing in them becomes markup, a link or a terminal
control sequence. The history shows its values the same way.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vitbench.core.records import Cell
from vitbench.core.text import one_line
from vitbench.regression.change import VERDICTS, Change
from vitbench.reports.format import NOT_ASKED, cell_text, number, percent, table, without_paths

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

#: Units that the metric's name implies.
SILENT_UNITS = ("1", "parameter", "element", "")

#: The order of verdicts in a table; within a verdict changes keep their order.
_ORDER = ("worse", "inconclusive", "not comparable", "better", "same")
#: Up to this many changes that are not comparable for the same reason are listed; more are counted.
_MOST_ALIKE = 3


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


class Footnotes:
    """Texts below a table, each once, with the numbers that its rows refer to. Beyond ``most`` texts are dropped."""

    def __init__(self, escape: Callable[[str], str], most: float = math.inf) -> None:
        self._escape = escape
        self._most = most
        self._numbers: dict[str, int] = {}

    def reference(self, text: str) -> str:
        """``[2]``; empty for an empty or dropped text."""
        if not text or (text not in self._numbers and len(self._numbers) >= self._most):
            return ""
        return f"[{self._numbers.setdefault(text, len(self._numbers) + 1)}]"

    def lines(self, layout: str) -> list[str]:
        """One paragraph with a line for each text (``[{}] {}``: its number and the text), or no paragraph."""
        lines = [layout.format(count, self._escape(text)) for text, count in self._numbers.items()]
        return ["\n".join(lines)] if lines else []


def headline(changes: Sequence[Change]) -> str:
    """Sum up the changes that gate: ``Regression: 1 of 24 gated values is worse (3 better).``"""
    counts = count_verdicts(changes)
    gated = sum(counts.values())
    if gated == 0:
        return "Nothing was gated."
    others = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict] and verdict != "worse"]
    rest = f" ({', '.join(others)})" if others else ""
    worse, values = counts["worse"], f"{gated} gated value{'s' if gated != 1 else ''}"
    if worse:
        return f"Regression: {worse} of {values} {'are' if worse != 1 else 'is'} worse{rest}."
    return f"No regression: none of {values} is worse{rest}."


def count_verdicts(changes: Iterable[Change]) -> dict[str, int]:
    """How many of the changes that gate have each verdict."""
    found = Counter(change.verdict for change in changes if change.gates)
    return {verdict: found[verdict] for verdict in VERDICTS}  # type: ignore[index]


def is_aside(change: Change) -> bool:
    """Whether the change is for information only: a value that does not gate and cannot be compared."""
    about_status = isinstance(change.base, str) and isinstance(change.head, str)  # fails -> runs
    return not change.gates and change.verdict == "not comparable" and not about_status


def choose_listed(changes: Sequence[Change], everything: bool) -> tuple[list[Change], str]:
    """The changes that a table lists, in its order, and a sentence that counts the others."""
    reasons = Counter(
        change.detail for change in changes if change.verdict == "not comparable" and not is_aside(change)
    )

    def is_listed(change: Change) -> bool:
        if change.verdict == "not comparable":
            return not is_aside(change) and reasons[change.detail] <= _MOST_ALIKE
        return change.verdict != "same"

    listed = [change for change in changes if everything or is_listed(change)]
    listed.sort(key=lambda change: (not change.gates, not change.exact, _ORDER.index(change.verdict)))
    if everything:
        return listed, ""
    same, aside = (sum(change.verdict == "same" for change in changes), sum(map(is_aside, changes)))
    parts = [f"{same} {_values_are(same)} the same"] if same else []
    parts += [f"{aside} {_values_are(aside)} for information only (absolute times and the like)"] if aside else []
    for reason, count in reasons.items():
        gated = "gated " if all(change.gates for change in changes if change.detail == reason) else ""
        parts += [f"{count} {gated}values are not comparable: {reason}"] if count > _MOST_ALIKE else []
    return listed, f"{'; '.join(parts)}." if parts else ""


def _values_are(count: int) -> str:
    return "values are" if count != 1 else "value is"


def difference(change: Change) -> str:
    """Both values and their difference, on one line: ``5,717,416 -> 5,717,417 (+1)``."""
    between = difference_between(change)
    states = " -> ".join(shown_value(one, change.unit, exact=change.exact) for one in (change.base, change.head))
    return one_line(f"{states} ({between})" if between else states)


def difference_between(change: Change) -> str:
    """A difference and per cent for exact values; per cent and their interval for others."""
    base, head, ratio = change.base, change.head, change.ratio
    if change.exact and isinstance(base, int | float) and isinstance(head, int | float):
        step = head - base
        if step == 0 or not math.isfinite(step):
            return ""
        text = f"{step:+,.0f}" if float(step).is_integer() else f"{step:+,.6g}"
        share = step / base if base else 0.0
        return f"{text}, {percent(share)} %" if abs(share) >= 5e-4 else text
    if ratio is None or not math.isfinite(ratio):
        return ""
    text = f"{percent(ratio - 1)} %"
    if change.low is None or change.high is None:
        return text
    return f"{text} [{percent(change.low - 1)}, {percent(change.high - 1)}]"


def shown_value(value: float | str | None, unit: str, *, exact: bool) -> str:
    """A value with its unit: in full if ``exact``, else scaled and rounded. Texts are not escaped here."""
    if value is None:
        return NOT_ASKED
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return str(value)
    if exact:
        text = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.10g}"
        return text if unit in SILENT_UNITS else f"{text} {unit}"
    scale, name = _scale(abs(value), unit)
    return f"{number(value * scale, 4)} {name}".rstrip()


def _scale(size: float, unit: str) -> tuple[float, str]:
    if unit == "s":
        return (1.0, "s") if size >= 1 else (1e3, "ms") if size >= 1e-3 else (1e6, "µs")
    if unit == "byte":
        return (1e-9, "GB") if size >= 1e9 else (1e-6, "MB") if size >= 1e5 else (1.0, "byte")
    if unit == "FLOP":
        return (1e-9, "GFLOP") if size >= 1e8 else (1e-6, "MFLOP")
    return 1.0, "" if unit in SILENT_UNITS else unit


def cell_names(cells: Iterable[Cell]) -> dict[str, str]:
    """The label of each cell by id. Cells that share a label also get the fields in which they differ:
    ``vit_basic 32px b1 cpu fp32 infer threads=2``.
    """
    by_label: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_label.setdefault(cell.label, {})[cell.id] = cell
    names = {}
    for label, group in by_label.items():
        different = [
            f.name for f in dataclasses.fields(Cell) if len({str(getattr(cell, f.name)) for cell in group.values()}) > 1
        ]
        for cell_id, cell in group.items():
            names[cell_id] = " ".join([label, *(f"{name}={field_text(cell, name)}" for name in different)])
    return names


def field_text(cell: Cell, name: str) -> str:
    value = getattr(cell, name)
    if name == "options":
        return ",".join(f"{key}={text}" for key, text in value) or "none"
    if name == "memory_limit" and value is not None:
        return f"{round(value / 1e6, 1):.10g}MB"
    return "none" if value is None else str(value)

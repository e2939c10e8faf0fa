"""Changes to what people and machines read of a gate: a terminal's table, a pull request's comment, JSON, JUnit XML.

Every gate ends in a list of ``Change`` and hands it here. Texts in it come from files of
strangers: nothing of them is markup, a link or an order to a terminal.
"""

from __future__ import annotations

import dataclasses
import json as encoder
import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vitbench.core.run_folder import write_atomically
from vitbench.core.text import one_line
from vitbench.regression.change import VERDICTS, Change
from vitbench.reports.format import NOT_ASKED, cell_text, number, percent, table, without_paths

#: Of the JSON output.
SCHEMA = 1

#: GitHub takes comments of 65,536 characters. A page that is longer loses lines of its tables, not its end.
LONGEST_COMMENT = 60_000
MOST_ROWS = 200
#: Details that are told below a table.
MOST_NOTES = 50

#: What comes first in a table; within a verdict, changes stay in order.
_ORDER = ("worse", "inconclusive", "not comparable", "better", "same")
_SIGNS = {"worse": "❌", "inconclusive": "❔", "not comparable": "➖", "better": "✅", "same": ""}

#: What a forge makes a link or a call of: @name, #1, a URL.
_CALLS = re.compile(r"[@#](?=\w)|:(?=//)|\bwww(?=\.)")

#: Units that a metric's name tells already.
_SILENT = ("1", "parameter", "element", "")
_HEADINGS = ("cell", "metric", "base", "head", "change", "verdict", "note")
_TEXTS = ("cell", "metric", "verdict", "note")
#: Of what is not comparable for one reason, so many are listed; more are counted.
_MOST_ALIKE = 3


def changes_table(changes: Sequence[Change], *, everything: bool = False) -> str:
    """The changes as a table for a terminal, what they come to in a line above, and their details below.

    Without ``everything`` what is the same is counted in one line, and so is what cannot be compared, where it does not
    gate or where many cannot for the same reason.
    """
    from tabulate import tabulate

    listed, left_out = _listed(changes, everything)
    parts = [headline(changes)]
    if listed:
        notes = _Notes(one_line)
        lines = [_line(change, one_line, notes) for change in listed]
        align = ["left" if heading in _TEXTS else "right" for heading in _HEADINGS]
        parts.append(tabulate(lines, _HEADINGS, tablefmt="simple", colalign=align, disable_numparse=True))
        parts += [notes.text("[{}] {}")] if notes else []
    parts += [one_line(left_out)] if left_out else []
    return "\n\n".join(parts)


def changes_markdown(
    changes: Sequence[Change], *, title: str, notes: Sequence[str] = (), everything: bool = False
) -> str:
    """The changes as a page that fits into a comment: ``title``, what they come to, ``notes`` (one a line, taken as
    plain text), the table, its details; behind a fold what is shown for information. Of a table that is too long for a
    comment the last lines are counted.
    """
    listed, left_out = _listed(changes, everything)
    aside = [] if everything else [change for change in changes if _is_aside(change)]
    most = MOST_ROWS
    while True:
        page = _page(changes, listed, aside, left_out, title, notes, most)
        if len(page) <= LONGEST_COMMENT or most == 0:
            return page
        most //= 2


def changes_json(changes: Sequence[Change], **facts: Any) -> str:
    """One JSON object: ``schema``, the ``facts``, ``counts`` of the verdicts that gate, and ``changes``, an object each
    with the fields of Change in base units. What is not finite is null.
    """
    content = {
        **facts,
        "schema": SCHEMA,
        "counts": _counts(changes),
        "changes": [{key: _finite(value) for key, value in dataclasses.asdict(change).items()} for change in changes],
    }
    return encoder.dumps(content, indent=2, allow_nan=False) + "\n"


def changes_junit(changes: Sequence[Change], *, name: str) -> str:
    """A JUnit test suite ``name`` with one case a cell and metric that gates: failed if worse, skipped with the reason
    if nothing can be said of it.
    """
    gating = [change for change in changes if change.gates]
    counts = _counts(changes)
    suite = ET.Element(
        "testsuite",
        name=one_line(name),
        tests=str(len(gating)),
        failures=str(counts["worse"]),
        errors="0",
        skipped=str(counts["inconclusive"] + counts["not comparable"]),
    )
    for change in gating:
        case = ET.SubElement(suite, "testcase", classname=_plain(change.cell), name=_plain(change.metric))
        message = one_line(without_paths(f"{change.verdict}: {difference(change)}"))
        if change.verdict == "worse":
            ET.SubElement(case, "failure", type="regression", message=message).text = _plain(change.detail)
        elif change.verdict in ("inconclusive", "not comparable"):
            text = f"{message}. {_plain(change.detail)}" if change.detail else message
            ET.SubElement(case, "skipped", message=text)
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def write_changes(
    changes: Sequence[Change],
    *,
    title: str,
    notes: Sequence[str] = (),
    markdown: Path | None = None,
    json: Path | None = None,
    junit: Path | None = None,
    everything: bool = False,
    **facts: Any,
) -> list[Path]:
    """Write the outputs that have a path, each in one step; returns the paths. ``facts`` go into the JSON.

    Raises RunFolderError for a place that cannot be written, StorageError if the disk does not take a file.
    """
    outputs: list[tuple[Path | None, Callable[[], str]]] = [
        (markdown, lambda: changes_markdown(changes, title=title, notes=notes, everything=everything)),
        (json, lambda: changes_json(changes, title=title, notes=list(notes), **facts)),
        (junit, lambda: changes_junit(changes, name=title)),
    ]
    wanted = [(path, render) for path, render in outputs if path is not None]
    for path, render in wanted:
        write_atomically(path, render().encode("utf-8"))
    return [path for path, _ in wanted]


def headline(changes: Sequence[Change]) -> str:
    """What the changes that gate come to, in a sentence: ``Regression: 1 of 24 gated figures is worse (3 better)``."""
    counts = _counts(changes)
    gated = sum(counts.values())
    if gated == 0:
        return "Nothing was gated."
    others = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict] and verdict != "worse"]
    rest = f" ({', '.join(others)})" if others else ""
    worse, figures = counts["worse"], f"{gated} gated figure{'s' if gated != 1 else ''}"
    if worse:
        return f"Regression: {worse} of {figures} {'are' if worse != 1 else 'is'} worse{rest}."
    return f"No regression: none of {figures} is worse{rest}."


def difference(change: Change) -> str:
    """``5,717,416 -> 5,717,417 (+1)``: both states and what lies between them, on one line."""
    between = _between(change)
    states = f"{shown_value(change.base, change)} -> {shown_value(change.head, change)}"
    return one_line(f"{states} ({between})" if between else states)


def shown_value(value: float | str | None, change: Change) -> str:
    """A state of ``change`` as a reader sees it: exact figures in full, others scaled and with few digits. Texts as
    they are: whoever prints them escapes them.
    """
    if value is None:
        return NOT_ASKED
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return str(value)
    unit = change.unit
    if change.exact:
        text = f"{value:,.0f}" if float(value).is_integer() else f"{value:,.10g}"
        return text if unit in _SILENT else f"{text} {unit}"
    scale, name = _scale(abs(value), unit)
    return f"{number(value * scale, 4)} {name}".rstrip()


def _scale(size: float, unit: str) -> tuple[float, str]:
    if unit == "s":
        return (1.0, "s") if size >= 1 else (1e3, "ms") if size >= 1e-3 else (1e6, "µs")
    if unit == "byte":
        return (1e-9, "GB") if size >= 1e9 else (1e-6, "MB") if size >= 1e5 else (1.0, "byte")
    if unit == "FLOP":
        return (1e-9, "GFLOP") if size >= 1e8 else (1e-6, "MFLOP")
    return 1.0, "" if unit in _SILENT else unit


def _between(change: Change) -> str:
    """What lies between the two states: a difference and per cent for exact figures, per cent and interval else."""
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


def _counts(changes: Iterable[Change]) -> dict[str, int]:
    """How many that gate have each verdict."""
    found = Counter(change.verdict for change in changes if change.gates)
    return {verdict: found[verdict] for verdict in VERDICTS}  # type: ignore[index]


def _is_aside(change: Change) -> bool:
    """Shown for information only, with nothing to say of what differs."""
    return not change.gates and change.verdict == "not comparable" and not _is_in_words(change)


def _is_in_words(change: Change) -> bool:
    """Whether it is about what became of a cell (``fails -> runs``), not about a figure."""
    return isinstance(change.base, str) and isinstance(change.head, str)


def _listed(changes: Sequence[Change], everything: bool) -> tuple[list[Change], str]:
    """What a table lists, in its order, and in words what it does not."""
    reasons = Counter(
        change.detail for change in changes if change.verdict == "not comparable" and not _is_aside(change)
    )

    def is_told(change: Change) -> bool:
        if change.verdict == "not comparable":
            return not _is_aside(change) and reasons[change.detail] <= _MOST_ALIKE
        return change.verdict != "same"

    told = [change for change in changes if everything or is_told(change)]
    told.sort(key=lambda change: (not change.gates, not change.exact, _ORDER.index(change.verdict)))
    if everything:
        return told, ""
    same, aside = (sum(change.verdict == "same" for change in changes), sum(map(_is_aside, changes)))
    parts = [f"{same} {_figures(same)} the same"] if same else []
    parts += [f"{aside} {_figures(aside)} for information only (absolute times and the like)"] if aside else []
    for reason, count in reasons.items():
        gated = "gated " if all(change.gates for change in changes if change.detail == reason) else ""
        parts += [f"{count} {gated}figures are not comparable: {reason}"] if count > _MOST_ALIKE else []
    return told, f"{'; '.join(parts)}." if parts else ""


def _figures(count: int) -> str:
    return "figures are" if count != 1 else "figure is"


def _line(change: Change, escape: Callable[[str], str], notes: _Notes) -> list[str]:
    texts = (change.cell, change.metric, shown_value(change.base, change), shown_value(change.head, change))
    verdict = change.verdict if change.gates else f"{change.verdict} (not gated)"
    return [*map(escape, texts), escape(_between(change)), verdict, notes.number(change.detail)]


class _Notes:
    """Details, each once, with the numbers by which lines of a table refer to them."""

    def __init__(self, escape: Callable[[str], str]) -> None:
        self._escape = escape
        self._found: dict[str, int] = {}

    def number(self, detail: str) -> str:
        """``[2]``, or nothing where there is nothing to say (or too much has been said)."""
        if not detail or (detail not in self._found and len(self._found) >= MOST_NOTES):
            return ""
        return f"[{self._found.setdefault(detail, len(self._found) + 1)}]"

    def __bool__(self) -> bool:
        return bool(self._found)

    def text(self, line: str) -> str:
        return "\n".join(line.format(count, self._escape(detail)) for detail, count in self._found.items())


def _page(
    changes: Sequence[Change],
    listed: Sequence[Change],
    aside: Sequence[Change],
    left_out: str,
    title: str,
    notes: Sequence[str],
    most: int,
) -> str:
    parts = [f"## {_comment_text(title)}", f"**{headline(changes)}**"]
    parts += ["\n".join(f"- {_comment_text(note)}" for note in notes)] if notes else []
    parts += _section(listed, most)
    parts += [_comment_text(left_out)] if left_out else []
    if aside:
        parts += ["<details><summary>For information: not gated</summary>", *_section(aside, most), "</details>"]
    return "\n\n".join(parts) + "\n"


def _section(changes: Sequence[Change], most: int) -> list[str]:
    """A table of the first ``most`` changes with their details, and how many more there are."""
    parts = []
    if changes[:most]:
        details = _Notes(_comment_text)
        lines = [_line(change, _comment_text, details) for change in changes[:most]]
        for line, change in zip(lines, changes, strict=False):
            line[5] = f"{_SIGNS[change.verdict]} {line[5]}".strip() if change.gates else line[5]
        parts.append(table(_HEADINGS, lines, _TEXTS))
        parts += [details.text("- \\[{}\\] {}")] if details else []
    cut = len(changes) - len(changes[:most])
    if cut:
        parts.append(f"{cut} more line{' does' if cut == 1 else 's do'} not fit into a comment.")
    return parts


def _comment_text(text: str) -> str:
    """A text in a comment: no markup, and no name in it calls a person, another thread or a page from elsewhere."""
    # a zero-width space, as character references are taken for what they stand for
    return _CALLS.sub("\\g<0>\u200b", cell_text(text, 1000))


def _plain(text: str) -> str:
    return one_line(without_paths(text))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

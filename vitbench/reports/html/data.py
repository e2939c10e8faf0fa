"""The data of the page as JSON: one line a row and batch, in columns, with statuses, fronts and commands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vitbench import __version__
from vitbench.core.text import one_line, printable
from vitbench.reports.format import decimals, without_paths
from vitbench.reports.model.lines import COSTS, LineColumn, line_columns, lines_of
from vitbench.reports.model.repeat import repeat_parts
from vitbench.reports.model.rows import Row, build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tables import Display, Value
from vitbench.suites.batch_search import shown_status

#: Conditions that are columns of the page although all lines share them.
_ALWAYS = ("run", "model", "device", "image_size", "batch")


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page's scripts know, as strict JSON; ``docs/reports.md`` describes it.

    Numbers are in the units of their columns, with one digit more than is shown. What is unknown, and what is not
    finite, is null. Unprintable characters of names are Python's escapes. Statuses, reasons and marks stand by line.
    """
    lines = lines_of(build_rows(runs))
    columns = line_columns(lines)
    values = {one.id: [one.value(line) for line in lines] for one in columns}
    conditions = [one for one in columns if one.kind == "condition"]
    axes = [one.id for one in conditions if one.id != "model" and len(_known(values[one.id])) > 1]
    shown = [one for one in columns if one.kind == "main" or one.id in (*_ALWAYS, *axes)]
    return {
        "title": ", ".join(printable(run.name) for run in runs),
        "version": __version__,
        "lines": len(lines),
        "columns": [_column(one, values[one.id]) for one in shown],
        "axes": list(map(printable, axes)),
        "constant": _constant(conditions, values, axes),
        "costs": _costs(values),
        "repeat": _repeat(lines),
    }


def _column(one: LineColumn, values: Sequence[Value]) -> dict[str, Any]:
    """A column: words as places in ``texts``; beside the numbers only what some line has."""
    display = one.column.display
    content: dict[str, Any] = {"id": printable(one.id), "name": printable(one.column.name), "unit": display.unit}
    content["condition"] = one.kind == "condition"
    if one.column.is_text:
        return {**content, "kind": "text", **_places([value.text for value in values]), **_notes(values)}
    content |= {"kind": "number", "precision": display.precision}
    if display.precision == "whole":
        content["digits"] = 0
    places = [_places_after_point(value.number, display) for value in values]
    pairs = list(zip(values, places, strict=True))
    content["values"] = [_short(value.number, display, digits) for value, digits in pairs]
    if any(value.interval for value in values):
        for end, name in enumerate(("low", "high")):
            content[name] = [_short(v.interval[end] if v.interval else None, display, digits) for v, digits in pairs]
    return {**content, **_notes(values)}


def _notes(values: Sequence[Value]) -> dict[str, dict[str, str]]:
    """By line what stands in the place of a value, why, and what is to be known of a value; absent without any."""
    status, reason, marks = {}, {}, {}
    for line, value in enumerate(values):
        if value.status not in (None, "ok"):
            status[f"{line}"] = shown_status(value.status)
        if value.reason:
            reason[f"{line}"] = one_line(without_paths(value.reason), 200)
        if known := [*(["busy"] if value.busy else []), *value.marks, *_note(value)]:
            marks[f"{line}"] = ", ".join(known)
    found = {"status": status, "reason": reason, "marks": marks}
    return {name: texts for name, texts in found.items() if texts}


def _note(value: Value) -> list[str]:
    if value.note is None:
        return []
    kind, count = value.note
    return [f"n = {count}" if kind == "images" else f"{count} classes without images"]


def _places(texts: Sequence[str | None]) -> dict[str, Any]:
    """Each text once, and by line its place."""
    found = {text: place for place, text in enumerate(dict.fromkeys(text for text in texts if text is not None))}
    return {"texts": [printable(text) for text in found], "values": [found.get(text or "") for text in texts]}


def _short(number: float | None, display: Display, places: int) -> float | None:
    """``number`` in its unit with one decimal more than the ``places`` that are shown, so that it reads the same."""
    if number is None or not math.isfinite(number * display.scale):
        return None
    text = f"{number * display.scale:.{places + 1}f}"
    if text.endswith("5"):  # halfway: what follows decides how it is rounded
        text = f"{number * display.scale:.{places + 4}f}"
    short = float(text)
    return int(short) if short.is_integer() else short


def _places_after_point(number: float | None, display: Display) -> int:
    """How many decimals of a number are shown."""
    if number is None or display.precision in ("whole", "tenths"):
        return 1 if display.precision == "tenths" else 0
    return decimals(number * display.scale, 4 if display.precision == "counted" else 3)


def _known(values: Sequence[Value]) -> set[str | float]:
    return {known for value in values if (known := value.number if value.text is None else value.text) is not None}


def _constant(
    conditions: Sequence[LineColumn], values: dict[str, list[Value]], axes: Sequence[str]
) -> list[tuple[str, str]]:
    """What all lines share, where it applies, for one sentence: ``image size``, ``32 px``."""
    found = []
    for one in conditions:
        if one.id in ("run", "model", *axes):
            continue
        (known,) = _known(values[one.id])
        text = f"{known:.0f}" if isinstance(known, float | int) else printable(known)
        if text != "none":
            found.append((printable(one.column.name), f"{text} {one.column.display.unit}".strip()))
    return found


def _costs(values: dict[str, list[Value]]) -> list[str]:
    """The costs that some line with an accuracy has."""
    accuracies = values.get("accuracy", [])
    tested = [line for line, value in enumerate(accuracies) if value.number is not None]
    return [cost for cost in COSTS if cost in values and any(values[cost][line].number is not None for line in tested)]


def _repeat(lines: Sequence[Row]) -> list[dict[str, Any]]:
    """The command of a line is the text of each part at its place, joined; parts that no line has are left out."""
    parts = [_places(texts) for texts in zip(*repeat_parts(lines), strict=True)]
    return [part for part in parts if part["texts"] != [""]]

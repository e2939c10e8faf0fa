"""The data of the page as JSON: one line a row and batch, in columns, with statuses, fronts and commands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitbench import __version__
from vitbench.core.text import printable
from vitbench.reports.format import interval_decimals, plain_text
from vitbench.reports.model.curves import Curve, curves_of
from vitbench.reports.model.lines import COSTS, PATCHES, LineColumn, line_columns, lines_of
from vitbench.reports.model.main_tables import DULL
from vitbench.reports.model.pareto import conditions_of, fronts
from vitbench.reports.model.repeat import repeat_parts
from vitbench.reports.model.rows import Row, build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.spread import spread_of
from vitbench.reports.model.tables import Display, Table, Value
from vitbench.reports.value_text import DECIMALS, DIGITS, MARKS, marks_text
from vitbench.suites.batch_search import shown_status

#: Lines whose single calls are kept: each takes 60 bytes.
MOST_SPREADS = 1000
#: Conditions that are columns of the page although all lines share them.
_ALWAYS = ("run", "model", "device", "image_size", "batch", PATCHES)


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page's scripts know, as strict JSON: ``columns`` of one value a line, and by line number what few have.

    Numbers are in the units of their columns, with one digit more than tables show. What is unknown, and what is not
    finite, is null. Unprintable characters of names are Python's escapes. Statuses, reasons and marks stand by line.
    """
    lines = lines_of(build_rows(runs))
    columns = [one for one in line_columns(lines) if one.kind != "detail"]
    values = {one.id: [one.value(line) for line in lines] for one in columns}
    conditions = [one for one in columns if one.kind == "condition"]
    axes = [one.id for one in conditions if one.id not in ("model", PATCHES) and len(_known(values[one.id])) > 1]
    shown = [
        one for one in columns if (one.kind == "main" and one.id != "macs") or one.id in (*_ALWAYS, PATCHES, *axes)
    ]
    reasons = _reasons(values)
    return {
        "title": ", ".join(printable(run.name) for run in runs),
        "version": __version__,
        "lines": len(lines),
        "columns": [_column(one, values[one.id], reasons) for one in shown],
        "meanings": _meanings(shown, values),
        "axes": list(map(printable, axes)),
        "constant": _constant(conditions, values, axes),
        "costs": _costs(values),
        **_fronts(lines, _costs(values)),
        "spread": {
            f"{line}": spread for line, one in enumerate(lines[:MOST_SPREADS]) if (spread := _spread(one)) is not None
        },
        "curves": [_curve(one) for one in curves_of(runs)],
        "repeat": _repeat(lines),
    }


def _reasons(values: Mapping[str, Sequence[Value]]) -> dict[int, str]:
    """By line that is not ok why its first value is missing, which often holds for all of them."""
    found: dict[int, str] = {}
    for column in values.values():
        for line, value in enumerate(column):
            if value.reason and value.number is None and line not in found and values["status"][line].text != "ok":
                found[line] = plain_text(value.reason)
    return found


def _column(one: LineColumn, values: Sequence[Value], reasons: Mapping[int, str]) -> dict[str, Any]:
    """A column: words as places in ``texts``; beside the numbers only what some line has."""
    display = one.column.display
    content: dict[str, Any] = {"id": printable(one.id), "name": printable(one.column.name), "unit": display.unit}
    content["condition"] = one.kind == "condition"
    if one.id == "status":
        content["reason"] = {f"{line}": reason for line, reason in reasons.items()}
    if one.column.is_text:
        return {**content, "kind": "text", **_places([value.text for value in values]), **_notes(values, reasons)}
    content |= {"kind": "number", "precision": display.precision}
    found = [_shown(value, display) for value in values]
    content["values"] = [number for number, *_ in found]
    if any(value.interval for value in values):
        content |= {"low": [low for _, low, _ in found], "high": [high for *_, high in found]}
    return {**content, **_notes(values, reasons)}


def _notes(values: Sequence[Value], reasons: Mapping[int, str]) -> dict[str, dict[str, str]]:
    """By line what stands in the place of a value, why if its status does not say that, and what is to be known of a
    value; absent without any.
    """
    status, reason, marks = {}, {}, {}
    for line, value in enumerate(values):
        if value.status not in (None, "ok"):
            status[f"{line}"] = shown_status(value.status)
        if value.reason and (why := plain_text(value.reason)) != reasons.get(line):
            reason[f"{line}"] = why
        if known := [*(["busy"] if value.busy else []), *(MARKS[mark] for mark in value.marks), *_note(value)]:
            marks[f"{line}"] = " ".join(known)
    found = {"status": status, "reason": reason, "marks": marks}
    return {name: texts for name, texts in found.items() if texts}


def _meanings(columns: Sequence[LineColumn], values: Mapping[str, Sequence[Value]]) -> list[str]:
    """What the marks of all lines mean, one paragraph a mark."""
    lines = zip(*(values[one.id] for one in columns), strict=True)
    return marks_text(Table(tuple(one.column for one in columns), tuple(lines)))


def _note(value: Value) -> list[str]:
    if value.note is None:
        return []
    kind, count = value.note
    return [f"n = {count}" if kind == "images" else f"{count} classes without images"]


def _places(texts: Sequence[str | None]) -> dict[str, Any]:
    """Each text once, and by line its place."""
    found = {text: place for place, text in enumerate(dict.fromkeys(text for text in texts if text is not None))}
    return {"texts": [printable(text) for text in found], "values": [found.get(text or "") for text in texts]}


def _shown(value: Value, display: Display) -> list[float | None]:
    """The number in the column's unit, with one digit more than tables show, and the ends of its interval as shown.

    Fronts and sorting tell numbers apart that read alike.
    """
    scaled = [None if x is None else x * display.scale for x in (value.number, *(value.interval or (None, None)))]
    number, low, high = (x if x is not None and math.isfinite(x) else None for x in scaled)
    if number is None:
        return [None, None, None]
    places = DECIMALS.get(display.precision)
    if places is None:
        places = interval_decimals(number, low, high, DIGITS.get(display.precision, 3))
    text = f"{number:.{places + 1}f}"
    if text.endswith("5"):  # halfway: what follows decides how it is shown
        text = f"{number:.{places + 4}f}"
    ends = [None if x is None else f"{x:.{places}f}" for x in (low, high)]
    rounded = [None if one is None else float(one) for one in (text, *ends)]
    return [int(x) if x is not None and x.is_integer() else x for x in rounded]


def _spread(line: Row) -> list[float] | None:
    """The quantiles of single calls in ms, with three digits."""
    found = spread_of(line)
    return None if found is None else [float(f"{1e3 * seconds:.3g}") for seconds in found]


def _curve(one: Curve) -> dict[str, Any]:
    """With three digits, and no point where a loss is not finite."""
    pairs = zip(one.steps, one.loss, strict=True)
    points = [(step, float(f"{loss:.3g}")) for step, loss in pairs if math.isfinite(loss)]
    names = {name: printable(getattr(one, name)) for name in ("run", "model", "label")}
    return {**names, "steps": [step for step, _ in points], "loss": [loss for _, loss in points]}


def _known(values: Sequence[Value]) -> set[str | float]:
    return {known for value in values if (known := value.number if value.text is None else value.text) is not None}


def _constant(
    conditions: Sequence[LineColumn], values: dict[str, list[Value]], axes: Sequence[str]
) -> list[tuple[str, str]]:
    """What all lines share, where it applies, for one sentence: ``image size``, ``32 px``."""
    found = []
    for one in conditions:
        if one.id in ("run", "model", PATCHES, *axes):
            continue
        (known,) = _known(values[one.id])
        text = f"{known:.0f}" if isinstance(known, float | int) else printable(known)
        if text != DULL.get(one.column.name):
            found.append((printable(one.column.name), f"{text} {one.column.display.unit}".strip()))
    return found


def _costs(values: dict[str, list[Value]]) -> list[str]:
    """The costs that some line with an accuracy has."""
    accuracies = values.get("accuracy", [])
    tested = [line for line, value in enumerate(accuracies) if value.number is not None]
    return [cost for cost in COSTS if cost in values and any(values[cost][line].number is not None for line in tested)]


def _fronts(lines: Sequence[Row], costs: Sequence[str]) -> dict[str, Any]:
    """By line the number of its condition, and of that for costs that do not depend on the batch; by cost and line the
    probability, if any, to be on the condition's front.
    """
    keys = {cost: conditions_of(lines, cost) for cost in ("latency", "params")}
    numbers = {key: number for number, key in enumerate(dict.fromkeys(key for some in keys.values() for key in some))}
    found: dict[str, dict[str, float]] = {}
    for cost in costs:
        shares = [pair for front in fronts(lines, cost) for pair in front.probability.items()]
        found[cost] = {f"{line}": rounded for line, share in shares if (rounded := round(share, 2))}
    conditions, of_any_batch = ([numbers[key] for key in some] for some in keys.values())
    return {"conditions": conditions, "conditions_of_any_batch": of_any_batch, "fronts": found}


def _repeat(lines: Sequence[Row]) -> list[dict[str, Any]]:
    """The command of a line is the text of each part at its place, joined; parts that no line has are left out."""
    parts = [_places(texts) for texts in zip(*repeat_parts(lines), strict=True)]
    return [part for part in parts if part["texts"] != [""]]

"""Lines as JSON for programs: ``vitbench report --format json``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from vitbench import __version__
from vitbench.reports.format import without_paths
from vitbench.reports.model.lines import LineColumn, line_columns, lines_of
from vitbench.reports.model.repeat import repeat_parts
from vitbench.reports.model.rows import Row, build_rows
from vitbench.reports.model.runs import Run

#: Of the text. 1: first version.
SCHEMA = 1


def render_json(runs: Sequence[Run]) -> str:
    """The lines of all runs, one a row and batch, in base units and with all digits; strict JSON.

    A line has ``conditions`` and ``values`` by the id of their column, ``status`` and ``repeat``, the command that
    measures it again; a value has an interval (95 %), status, reason, marks and method. What is not finite is null.
    ``docs/file-format.md`` says what stands where.
    """
    lines = lines_of(build_rows(runs))
    columns = [one for one in line_columns(lines) if one.id != "status"]
    heads = [{"id": one.id, "unit": one.unit, "kind": one.kind} for one in columns]
    commands = map("".join, repeat_parts(lines))
    found = [_line(line, columns, command) for line, command in zip(lines, commands, strict=True)]
    content = {"schema": SCHEMA, "vitbench": __version__, "columns": heads, "lines": found}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _line(line: Row, columns: Sequence[LineColumn], command: str) -> dict[str, Any]:
    conditions: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for one in columns:
        if one.kind == "condition":
            value = one.value(line)
            conditions[one.id] = value.number if value.text is None else value.text
        elif (found := _value(line, one)) is not None:
            values[one.id] = found
    return {"conditions": conditions, "values": values, "status": line.status, "repeat": command}


def _value(line: Row, column: LineColumn) -> dict[str, Any] | None:
    value = column.value(line)
    if value.status is None:
        return None
    low, high = value.interval or (None, None)
    return {
        "value": value.text if value.number is None else _finite(value.number),
        "low": _finite(low),
        "high": _finite(high),
        "status": value.status,
        "reason": without_paths(value.reason),
        "marks": [*(["busy"] if value.busy else []), *value.marks],
        "method": column.method(line),
    }


def _finite(number: float | None) -> float | None:
    if number is None or not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else number  # counts are written as such

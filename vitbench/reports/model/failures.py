"""What failed in each cell, and the method of each metric."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vitbench.analysis.claims import PUBLISHED
from vitbench.core.records import Cell, Record, format_image_size
from vitbench.reports.format import telling_line, without_paths
from vitbench.reports.model.columns import DEVICE, MODEL, SIZE, axis_value
from vitbench.reports.model.rows import Row
from vitbench.reports.model.tables import Column, Table, Value, text_value
from vitbench.suites.batch_search import shown_status

#: What a cell that failed whole lacks, in the place of a metric.
WHOLE_CELL = "all that is missing"


def failures_table(rows: Sequence[Row], axes: Sequence[str]) -> Table | None:
    """One line for each thing that went wrong, cells that failed alike together; None if nothing did."""
    found: dict[tuple[Value, ...], dict[str, list[str]]] = {}
    for row, record in _cells_once(rows):
        cell = record.cell
        which = (
            text_value(cell.model),
            text_value(cell.device),
            text_value(format_image_size(cell.image_size)),  # a training can have another than its row
            *(axis_value(row, axis) for axis in axes),
        )
        for failure in _what_failed(record):
            batches = found.setdefault((*which, *map(text_value, failure)), {})
            batches.setdefault(_call_of(cell), []).append(f"b{cell.batch_size}")
    if not found:
        return None
    lines = []
    for (*before, metric, status, cause, detail, printed), calls in found.items():
        where = "; ".join(f"{call} {', '.join(batches)}" for call, batches in calls.items())
        lines.append((*before, text_value(where), metric, status, cause, detail, printed))
    names = ("cell", "metric", "status", "cause", "detail", "printed")
    columns = (MODEL.column, DEVICE.column, SIZE.column, *(Column(name=name) for name in (*axes, *names)))
    return Table(columns, tuple(lines))


def methods(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Each method once, with the metrics that were measured by it."""
    texts: dict[str, list[str]] = {}
    for _, record in _cells_once(rows):
        for measurement in record.measurements:
            if measurement.metric.startswith(PUBLISHED):
                continue  # not measured; the table of published values has its source
            known = texts.setdefault(measurement.metric, [])
            if measurement.method and measurement.method not in known:
                known.append(measurement.method)
    metrics: dict[str, list[str]] = {}
    for metric, found in texts.items():
        for method in merge_numbers(found):
            metrics.setdefault(method, []).append(metric)
    return metrics


def merge_numbers(texts: Iterable[str]) -> list[str]:
    """Texts that differ only in numbers become one: ``1 images`` and ``32 images`` -> ``1/32 images``."""
    merged: dict[tuple[str, ...], list[list[str]]] = {}
    for text in texts:
        words = re.split(r"(\d+)", without_paths(text))
        known = merged.setdefault(tuple(words[::2]), [[] for _ in words[1::2]])
        for numbers, digits in zip(known, words[1::2], strict=True):
            if digits not in numbers:
                numbers.append(digits)
    result = []
    for words_between, known in merged.items():
        # as the numbers would be sorted, of however many digits
        ordered = [sorted(numbers, key=lambda one: (len(one.lstrip("0")), one.lstrip("0"))) for numbers in known]
        joined = [*map("/".join, ordered), ""]
        result.append("".join(word + digits for word, digits in zip(words_between, joined, strict=True)))
    return result


def _call_of(cell: Cell) -> str:
    if cell.tests:
        return "training" if cell.trains else "test"
    return "training step" if cell.mode == "train" else "inference"


def _cells_once(rows: Sequence[Row]) -> list[tuple[Row, Record]]:
    """Each record with (the first of) its rows."""
    found: dict[tuple[str, str], tuple[Row, Record]] = {}
    for row in sorted(rows, key=lambda row: (row.cell.device, row.cell.image_size)):
        for record in row.records:
            found.setdefault((row.run, record.cell.id), (row, record))
    return list(found.values())


def _what_failed(record: Record) -> list[tuple[str, str, str, str, str]]:
    """(metric, status, cause, detail, what was printed) for the cell and each of its measurements."""
    failed: list[tuple[str, str, str, str, str]] = []
    if record.status != "ok":
        cause = record.cause + (f" (signal {record.signal})" if record.signal is not None else "")
        detail, printed = without_paths(record.detail), without_paths(telling_line(record.stderr_tail))
        failed.append((WHOLE_CELL, shown_status(record.status), cause, detail, printed))
    for one in record.measurements:
        # A measurement that failed with its cell repeats the cell's detail.
        repeated = record.status == one.status and record.detail in one.detail
        if one.status != "ok" and not repeated:
            failed.append((one.metric, shown_status(one.status), "", without_paths(one.detail), ""))
    return failed

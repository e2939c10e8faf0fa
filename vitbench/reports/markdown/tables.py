"""Tables of reports/model/ as Markdown: the texts of ``value_text``, escaped."""

from __future__ import annotations

from vitbench.reports import value_text as plain
from vitbench.reports.format import cell_text, table
from vitbench.reports.model.tables import Column, Table, Value


def table_text(shown: Table) -> str:
    """A Markdown table."""
    headings = [cell_text(plain.heading_text(column)) for column in shown.columns]
    lines = [[_cell_text(*pair) for pair in zip(line, shown.columns, strict=True)] for line in shown.lines]
    texts = [heading for heading, column in zip(headings, shown.columns, strict=True) if column.is_text]
    return table(headings, lines, texts)


def _cell_text(value: Value, column: Column) -> str:
    text = plain.value_text(value, column)
    return cell_text(text) if column.is_text else text


def marks_text(shown: Table) -> list[str]:
    """What the marks in a table mean, one paragraph a mark; [] without marks."""
    return [cell_text(text, 1200) for text in plain.marks_text(shown)]

"""Tables, paragraphs and folded sections as Markdown."""

from __future__ import annotations

from vitbench.core.text import printable
from vitbench.reports.format import cell_text, escape_markdown, table, without_paths
from vitbench.reports.model.tables import Column, Table, Value
from vitbench.reports.sections import Section
from vitbench.reports.value_text import heading_text, value_text


def table_text(shown: Table) -> str:
    """A Markdown table."""
    headings = [cell_text(heading_text(column)) for column in shown.columns]
    lines = [[_cell_text(*pair) for pair in zip(line, shown.columns, strict=True)] for line in shown.lines]
    texts = [heading for heading, column in zip(headings, shown.columns, strict=True) if column.is_text]
    return table(headings, lines, texts)


def _cell_text(value: Value, column: Column) -> str:
    """Words of columns of numbers are ours (``>=1024``)."""
    return cell_text(value_text(value, column)) if column.is_text else value_text(value, column)


def paragraph_text(text: str) -> str:
    """A paragraph of plain text, in which pairs of backticks hold code."""
    line = printable(without_paths(text))
    pieces = line.split("`") if line.count("`") % 2 == 0 else [line]
    return "`".join(piece if place % 2 else escape_markdown(piece) for place, piece in enumerate(pieces))


def section_text(section: Section) -> str:
    """A section, folded."""
    parts = [
        table_text(part)
        if isinstance(part, Table)
        else section_text(part)
        if isinstance(part, Section)
        else paragraph_text(part)
        for part in section.parts
    ]
    return "\n\n".join([f"<details>\n<summary>{section.title}</summary>", *parts, "</details>"])

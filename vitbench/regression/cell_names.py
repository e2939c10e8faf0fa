"""Name cells so that no two of a list share a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from vitbench.core.records import Cell


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

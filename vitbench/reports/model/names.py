"""What plots call lines: the model, and what else the lines differ in."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vitbench.reports.model.lines import batch_of
from vitbench.reports.model.rows import DEFAULT_OPTION, Row, varying_axes

#: Axes whose values say what they are of.
_PLAIN = ("run", "dtype", "attention", "weights", "data", "recipe", "training device")


def differences(lines: Sequence[Row]) -> dict[str, list[str]]:
    """Each axis in which the lines differ, the model aside, with a text for each line; empty where it says nothing."""
    where = {
        "device": [line.cell.device for line in lines],
        "image size": [f"{line.image_size} px" for line in lines],
        "batch": [f"b{batch}" if (batch := batch_of(line)) else "" for line in lines],
    }
    found = {axis: texts for axis, texts in where.items() if len({*texts} - {""}) > 1}
    for axis in varying_axes(lines):
        found[axis] = [_text(axis, line.axes.get(axis, DEFAULT_OPTION)) for line in lines]
    return found


def line_names(lines: Sequence[Row], leave_out: Collection[str] = ()) -> list[str]:
    """``vit_basic, seed 0``: a name for each line, without the axes to ``leave_out``."""
    texts = [found for axis, found in differences(lines).items() if axis not in leave_out]
    return [", ".join([line.cell.model, *(one[i] for one in texts if one[i])]) for i, line in enumerate(lines)]


def _text(axis: str, value: str) -> str:
    if axis == "compile":
        return "compiled" if value == "yes" else ""
    return value if not value or axis in _PLAIN else f"{axis} {value}"

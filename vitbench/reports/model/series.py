"""A value over the batch or the image size: a series for each model and what else is the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vitbench.reports.model.lines import PATCHES, LineColumn, batch_of, patches_of
from vitbench.reports.model.names import line_names
from vitbench.reports.model.rows import Row
from vitbench.reports.model.tables import Value

#: What a series is over, and the axis that its name leaves out.
OVER = {"batch": "batch", "image_size": "image size", PATCHES: "image size"}


@dataclass(frozen=True)
class Series:
    """``values`` by x: the images of a batch, or the side (px) of a square with as many pixels as the image, or the
    patches of the image.
    """

    name: str
    values: dict[float, Value] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[float, float]:
        """What was measured, by ascending x, in base units."""
        return {x: one.number for x, one in sorted(self.values.items()) if one.number is not None}

    @property
    def failures(self) -> dict[float, str]:
        """The statuses of what failed."""
        values = self.values.items()
        return {x: one.status for x, one in values if one.number is None and one.status not in (None, "unsupported")}


def measured_lines(lines: Sequence[Row]) -> list[Row]:
    """The lines without their trainings, each once: a row is repeated for each training."""
    alone = [replace(line, training=None) for line in lines if line.infer or line.train]
    return list({(line.run, line.cell, batch_of(line)): line for line in alone}.values())


def series_of(lines: Sequence[Row], y: LineColumn, over: str) -> list[Series]:
    """The series of ``measured_lines`` that have two numbers or more, or one and a failure."""
    found: dict[str, Series] = {}
    for line, name in zip(lines, line_names(lines, leave_out=[OVER[over]]), strict=True):
        sides = math.sqrt(math.prod(line.cell.image_size))
        x = {"batch": batch_of(line), "image_size": sides, PATCHES: patches_of(line)}[over]
        if x is not None:
            found.setdefault(name, Series(name)).values[float(x)] = y.value(line)
    return [one for one in found.values() if one.numbers and len(one.numbers) + len(one.failures) > 1]

"""The loss of each training by optimizer step, as its record holds it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitbench.reports.model.names import line_names
from vitbench.reports.model.rows import Row
from vitbench.reports.model.runs import Run
from vitbench.reports.model.trainings import trainings_of

#: A longer curve has means over equal numbers of steps, each at the last of them.
MOST_POINTS = 500


@dataclass(frozen=True)
class Curve:
    """The training loss (nat) at ``steps`` (from 1). ``label``: the model, and what the trainings differ in."""

    run: str
    model: str
    label: str
    steps: tuple[int, ...]
    loss: tuple[float, ...]


def curves_of(runs: Sequence[Run]) -> list[Curve]:
    """A curve for each training that has losses, in the order of the suites."""
    rows = [Row(run=run.name, cell=record.cell, training=record) for run, record in trainings_of(runs)]
    rows = [row for row in rows if row.trained("training_loss").status == "ok"]
    curves = []
    for row, label in zip(rows, line_names(rows), strict=True):
        found = row.trained("training_loss").measurement
        losses = found.samples[0] if found else ()
        every = math.ceil(len(losses) / MOST_POINTS)
        parts = [losses[start : start + every] for start in range(0, len(losses), every)]
        steps = tuple(min(number * every, len(losses)) for number in range(1, len(parts) + 1))
        curves.append(Curve(row.run, row.cell.model, label, steps, tuple(math.fsum(one) / len(one) for one in parts)))
    return curves

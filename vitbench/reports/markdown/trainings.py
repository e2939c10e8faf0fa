"""The section on trainings by several recipes, or with values by class."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.reports.markdown.explanations import PUBLISHED_TRAININGS, TRAININGS
from vitbench.reports.markdown.tables import table_text
from vitbench.reports.model.runs import Run
from vitbench.reports.model.trainings import BY_CLASS, MOST_TRAININGS, compare_trainings


def training_section(runs: Sequence[Run]) -> list[str]:
    """Heading, texts and tables; nothing where the main tables show all of it.

    That is: unless the trainings are by several recipes, something was published of them, or they have values by class.
    """
    found = compare_trainings(runs)
    if found is None or not (found.with_classes or found.compared):
        return []
    parts = ["## Training", TRAININGS + (PUBLISHED_TRAININGS if found.published else ""), table_text(found.comparison)]
    if found.with_classes > MOST_TRAININGS:
        names = ", ".join(f"`{metric}`" for metric in BY_CLASS)
        return [
            *parts,
            f"F1, precision and recall by class of {found.with_classes} trainings are in the records ({names}).",
        ]
    for metric, what in BY_CLASS.items():
        tables = [
            f"{what} of each of the {one.classes} classes is in the records (`{metric}`), not in a table here."
            if one.table is None
            else table_text(one.table)
            for one in found.by_class
            if one.metric == metric
        ]
        parts += [f"### {what} by class", *tables] if tables else []
    return parts


def training_summary(runs: Sequence[Run]) -> list[str]:
    """Heading and first table alone, for a terminal, where the main tables do not show as much."""
    found = compare_trainings(runs)
    return ["## Training", table_text(found.comparison)] if found and found.compared else []

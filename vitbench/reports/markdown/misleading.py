"""Where FLOPs mislead, and what a family of models costs at several image sizes, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.reports.markdown import explanations
from vitbench.reports.markdown.tables import marks_text, table_text
from vitbench.reports.model.family import budget_table, cost_table, families
from vitbench.reports.model.misleading import (
    EQUAL_FLOPS,
    MOST_PAIRS,
    UNEQUAL_TIMES,
    correlation_table,
    pair_table,
    unequal_pairs,
)
from vitbench.reports.model.rows import Row


def misleading_section(rows: Sequence[Row]) -> list[str]:
    """Heading, correlations and pairs; nothing with too few models for a correlation and without an unequal pair."""
    correlations, (pairs, compared) = correlation_table(rows), unequal_pairs(rows)
    parts = [explanations.CORRELATIONS, table_text(correlations)] if correlations else []
    if pairs:
        roofed = any(pair.roofs for pair in pairs)
        command = "`vitbench roofline RUN_FOLDER` adds the operators that make the difference."
        parts += [explanations.UNEQUAL, table_text(pair_table(pairs))]
        parts += [explanations.UNEQUAL_OPERATORS if roofed else command]
        parts += [f"{len(pairs) - MOST_PAIRS} more such pairs are less unequal."] if len(pairs) > MOST_PAIRS else []
    elif correlations:
        equal = f"have FLOPs within {100 * (EQUAL_FLOPS - 1):.0f} % of each other"
        times = f"clearly differ by a factor of over {UNEQUAL_TIMES:g} in time ({compared} compared)"
        parts.append(f"No two models that {equal} {times}.")
    return ["## Where FLOPs mislead", *parts] if parts else []


def family_section(rows: Sequence[Row]) -> list[str]:
    """Heading and tables; nothing unless models share several image sizes."""
    found = families(rows)
    if not found:
        return []
    costs, budgets = cost_table(found), budget_table(found)
    parts = ["## Bigger model or higher resolution", explanations.FAMILY, table_text(costs), *marks_text(costs)]
    return [*parts, *([explanations.BUDGETS, table_text(budgets)] if budgets else [])]

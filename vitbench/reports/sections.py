"""What a page folds behind its main tables, as values and plain text: the same sections for Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitbench.analysis.claims import Judgement, judge_runs
from vitbench.reports import explanations
from vitbench.reports.format import number, plain_text
from vitbench.reports.model import trainings as training
from vitbench.reports.model.claims import claims_table, count_verdicts
from vitbench.reports.model.columns import detail_table, memory_table
from vitbench.reports.model.counters import compare_counters
from vitbench.reports.model.environments import environment_table
from vitbench.reports.model.failures import failures_table, methods
from vitbench.reports.model.family import budget_table, cost_table, families
from vitbench.reports.model.misleading import (
    EQUAL_FLOPS,
    MOST_PAIRS,
    UNEQUAL_TIMES,
    correlation_table,
    pair_table,
    unequal_pairs,
)
from vitbench.reports.model.roof import machine_name
from vitbench.reports.model.rows import Row, build_rows, varying_axes
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import search_tables, without_bounds
from vitbench.reports.model.tables import Table
from vitbench.reports.noise import noise_parts
from vitbench.reports.value_text import marks_text


@dataclass(frozen=True)
class Section:
    """A heading and what is below it: tables, paragraphs, and sections that are folded inside.

    A paragraph is plain text, with code between backticks: each renderer escapes it.
    """

    id: str
    title: str
    parts: tuple[Table | str | Section, ...]


def detail_sections(runs: Sequence[Run]) -> list[Section]:
    """The sections that there are values for, in the order of a page."""
    rows = build_rows(without_bounds(runs))
    if not rows:
        return []
    axes = varying_axes(rows)
    searches, failures, details = search_tables(runs), failures_table(rows, axes), detail_table(rows, axes)
    memory, noise = memory_table(rows, axes), noise_parts(runs)
    paired = any(one.reference_samples for run in runs for record in run.records for one in record.measurements)
    environment = environment_table(runs)
    judged = judge_runs([record for run in runs for record in run.records])
    sections = [
        Section("failures", "Failures, each with its cause", (failures,) if failures else ()),
        Section("searches", "What ended each search", (explanations.SEARCH_ENDS, searches[1]) if searches else ()),
        Section("trainings", "Trainings in detail", training_parts(runs)),
        Section("details", "Details", _details(details) if details else ()),
        Section("misleading", "Where FLOPs mislead", _misleading(rows)),
        Section("family", "Bigger model or higher resolution", _family(rows)),
        Section("claims", "Published values", _claims(judged) if judged else ()),
        Section("counters", "FLOPs by other counters", _counters(rows)),
        Section("memory", "Memory at the peak", (explanations.MEMORY, memory) if memory else ()),
        Section("noise", "Noise", (*([explanations.NOISE] if paired and noise else []), *noise)),
        Section("environment", "Environment", (environment,) if environment else ()),
        Section("reading", "How to read the tables", tuple(explanations.how_to_read(rows))),
        Section("methods", "Methods", _methods(rows, runs)),
    ]
    return [section for section in sections if section.parts]


def _misleading(rows: Sequence[Row]) -> tuple[Table | str, ...]:
    """Correlations and pairs; nothing with too few models for a correlation and without an unequal pair."""
    correlations, (pairs, compared) = correlation_table(rows), unequal_pairs(rows)
    parts: list[Table | str] = [explanations.CORRELATIONS, correlations] if correlations else []
    if pairs:
        roofed = any(pair.roofs for pair in pairs)
        command = "`vitbench roofline RUN_FOLDER` adds the operators that make the difference."
        parts += [explanations.UNEQUAL, pair_table(pairs), explanations.UNEQUAL_OPERATORS if roofed else command]
        parts += [f"{len(pairs) - MOST_PAIRS} more such pairs are less unequal."] if len(pairs) > MOST_PAIRS else []
    elif correlations:
        equal = f"have FLOPs within {100 * (EQUAL_FLOPS - 1):.0f} % of each other"
        times = f"clearly differ by a factor of over {UNEQUAL_TIMES:g} in time ({compared} compared)"
        parts.append(f"No two models that {equal} {times}.")
    return tuple(parts)


def _family(rows: Sequence[Row]) -> tuple[Table | str, ...]:
    """Nothing unless models share several image sizes."""
    found = families(rows)
    if not found:
        return ()
    costs, budgets = cost_table(found), budget_table(found)
    parts: list[Table | str] = [explanations.FAMILY, costs, *marks_text(costs)]
    if budgets:
        parts += [explanations.BUDGETS, budgets]
    return tuple(parts)


def training_parts(runs: Sequence[Run]) -> tuple[Table | str | Section, ...]:
    """Nothing where the main tables show all of it.

    That is: unless the trainings are by several recipes, something was published of them, or they have values by class.
    """
    trainings = training.trainings_of(runs)
    by_class = training.with_classes(trainings)
    if not (by_class or training.are_compared(trainings)):
        return ()
    text = [explanations.TRAININGS, *([explanations.PUBLISHED_TRAININGS] if training.is_published(trainings) else [])]
    parts = (" ".join(text), training.comparison_table(trainings))
    if by_class > training.MOST_TRAININGS:
        names = ", ".join(f"`{metric}`" for metric in training.BY_CLASS)
        return (*parts, f"F1, precision and recall by class of {by_class} trainings are in the records ({names}).")
    return (*parts, *_class_sections(trainings))


def _class_sections(trainings: Sequence[training.Training]) -> list[Section]:
    """A section for each of F1, precision and recall."""
    sections = []
    for metric, what in training.BY_CLASS.items():
        tables = [
            f"{what} of each of the {one} classes is in the records (`{metric}`), not in a table here."
            if isinstance(one, int)
            else one
            for one in training.class_tables(trainings, metric)
        ]
        sections += [Section(metric, f"{what} by class", tuple(tables))] if tables else []
    return sections


def _details(details: Table) -> tuple[Table | str, ...]:
    return (*filter(None, [explanations.details_text(details)]), details, *marks_text(details))


def _counters(rows: Sequence[Row]) -> tuple[Table | str, ...]:
    compared = compare_counters(rows)
    if compared is None:
        return ()
    shown, reasons = compared
    texts = [explanations.COUNTER_REASONS.get(one) or _plain(one).rstrip(".") for one in reasons]
    return (explanations.COUNTERS, shown, *(f"({mark}) {text}." for mark, text in enumerate(texts, 1)))


def _claims(judged: Sequence[Judgement]) -> tuple[Table | str, ...]:
    return f"{count_verdicts(judged)}. {explanations.CLAIMS}", claims_table(judged)


def _methods(rows: Sequence[Row], runs: Sequence[Run]) -> tuple[str, ...]:
    """A paragraph a method, with the metrics that were measured by it; then each machine's roof."""
    lines = [
        f"{', '.join(f'`{_plain(name)}`' for name in names)}: {_plain(text)}" for text, names in methods(rows).items()
    ]
    for machine, method in ((machine, run.roof.method) for run in runs if run.roof for machine in run.roof.machines):
        tops = [f"{number(one.value / 1e9)} GFLOP/s in {dtype}" for dtype, one in machine.compute.items() if one.value]
        wide = [one for one in machine.bandwidth if one.value]
        tops += [f"{number((one.value or 0) / 1e9)} GB/s for {one.at / 1e6:.3g} MB" for one in wide[-1:]]
        where = f"the roof of {machine_name(machine)} ({', '.join(tops) or 'refused'}), torch {machine.torch}"
        lines.append(f"% of roof: {where}: {method}")
    return tuple(dict.fromkeys(lines))


def _plain(text: str) -> str:
    """A text from a record in a paragraph, where backticks begin code."""
    return plain_text(text, 1000).replace("`", "'")

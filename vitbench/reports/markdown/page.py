"""Records to the Markdown page that a person reads: what was run and where, the tables, what failed, the plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitbench.analysis.claims import judge_runs
from vitbench.core.records import STATUSES
from vitbench.core.text import one_line
from vitbench.reports.format import cell_text, without_paths
from vitbench.reports.markdown import explanations
from vitbench.reports.markdown.claims import claims_text, count_verdicts
from vitbench.reports.markdown.misleading import family_section, misleading_section
from vitbench.reports.markdown.noise import noise_section
from vitbench.reports.markdown.roof import method_lines
from vitbench.reports.markdown.tables import marks_text, table_text
from vitbench.reports.model import trainings as training
from vitbench.reports.model.columns import Floors, detail_table, main_table, memory_table
from vitbench.reports.model.counters import compare_counters
from vitbench.reports.model.failures import failures_table, methods
from vitbench.reports.model.noise import disturbance_line, noise_floors
from vitbench.reports.model.rows import (
    Row,
    axis_values,
    build_rows,
    sort_key,
    varying_axes,
)
from vitbench.reports.model.runs import Run, machine_of, planned_cells
from vitbench.reports.model.searches import CALLS, search_tables, without_bounds, without_searches
from vitbench.reports.plots.tradeoffs import plan_plots, why_no_plots
from vitbench.suites.batch_search import shown_status

#: Values that are not worth a word where all rows share them.
DULL = {"compile": "no", "memory limit": "none", "weights": "random"}


def render_markdown(runs: Sequence[Run]) -> str:
    """The whole page; the same records give the same text. Plots are linked by their names in ``plan_plots``."""
    rows = build_rows(without_bounds(runs))
    title = "# vitbench report: " + " and ".join(cell_text(run.name) for run in runs)
    parts = [title, "\n".join(f"- {_what_was_run(run)}" for run in runs), *disturbance_lines(runs)]
    if not rows:
        return "\n\n".join([*parts, "No cell has been measured yet."]) + "\n"
    axes = varying_axes(rows)
    parts += [_conditions(rows), *search_section(runs), *_sections(rows, axes, noise_floors(runs))]
    parts += [*misleading_section(rows), *family_section(rows), *training_section(runs)]
    parts += ["## How to read the tables", _as_list(explanations.how_to_read(rows))]
    details = detail_table(rows, axes)
    if details:
        parts += [
            "## Details",
            *filter(None, [explanations.details_text(details)]),
            table_text(details),
            *marks_text(details),
        ]
    noise = noise_section(runs)
    if noise:
        paired = any(one.reference_samples for run in runs for record in run.records for one in record.measurements)
        parts += ["## Noise", *([explanations.NOISE] if paired else []), noise]
    memory = memory_table(rows, axes)
    if memory:
        parts += ["## Memory at the peak", explanations.MEMORY, table_text(memory)]
    parts += _counters(rows)
    judged = judge_runs([record for run in runs for record in run.records])
    if judged:
        parts += ["## Published values", f"{count_verdicts(judged)}. {explanations.CLAIMS}", claims_text(judged)]
    failures = failures_table(rows, axes)
    parts += ["## Failures", table_text(failures) if failures else "None."]
    used = methods(rows).items()
    how = [f"**{cell_text(', '.join(names), 1000)}**: {cell_text(text, 1000)}" for text, names in used]
    how += method_lines(runs)
    parts += ["## Plots", _plots(rows), "## Methods", _as_list(how) or "None reported."]
    return "\n\n".join(parts) + "\n"


def render_summary(runs: Sequence[Run]) -> str:
    """The main tables alone, for a terminal: of searches what they found."""
    rows = build_rows(without_searches(runs))
    found = search_section(runs)
    if not rows and not found:
        return "No cell has been measured yet."
    sections = _sections(rows, varying_axes(rows), noise_floors(runs))
    return "\n\n".join([*found, *sections, *training_summary(runs)])


def search_section(runs: Sequence[Run]) -> list[str]:
    """The largest batches that fit: heading, text and tables; nothing without searches."""
    found = search_tables(runs)
    if found is None:
        return []
    parts = ["## Largest batch that fits", explanations.SEARCHES]
    largest, ends = found
    for (device, mode, dtype), shown in largest.items():
        parts += [f"### {cell_text(device)}, {CALLS[mode]}, {cell_text(dtype)}", table_text(shown)]
    return [*parts, "### What ended each search", table_text(ends)]


def training_section(runs: Sequence[Run]) -> list[str]:
    """Heading, texts and tables; nothing where the main tables show all of it.

    That is: unless the trainings are by several recipes, something was published of them, or they have values by class.
    """
    trainings = training.trainings_of(runs)
    by_class = training.with_classes(trainings)
    if not (by_class or training.are_compared(trainings)):
        return []
    text = explanations.TRAININGS + (explanations.PUBLISHED_TRAININGS if training.is_published(trainings) else "")
    parts = ["## Training", text, table_text(training.comparison_table(trainings))]
    if by_class > training.MOST_TRAININGS:
        names = ", ".join(f"`{metric}`" for metric in training.BY_CLASS)
        return [*parts, f"F1, precision and recall by class of {by_class} trainings are in the records ({names})."]
    for metric, what in training.BY_CLASS.items():
        tables = [
            f"{what} of each of the {one} classes is in the records (`{metric}`), not in a table here."
            if isinstance(one, int)
            else table_text(one)
            for one in training.class_tables(trainings, metric)
        ]
        parts += [f"### {what} by class", *tables] if tables else []
    return parts


def training_summary(runs: Sequence[Run]) -> list[str]:
    """Heading and first table alone, for a terminal, where the main tables do not show as much."""
    trainings = training.trainings_of(runs)
    return ["## Training", table_text(training.comparison_table(trainings))] if training.are_compared(trainings) else []


def _what_was_run(run: Run) -> str:
    records, machine, planned = run.records, machine_of(run), planned_cells(run)
    count = f"{len(records)} cell" + ("" if len(records) == 1 else "s")
    line = f"**{cell_text(run.name)}**: {count if planned <= len(records) else f'{len(records)} of {planned} cells'}"
    if records:
        counts = Counter(str(record.status) for record in records)
        line += f" ({', '.join(f'{counts[one]} {shown_status(one)}' for one in STATUSES if counts[one])})"
        line += f", the first from {cell_text(min(record.started_at for record in records), 40)}"
        line += f", {sum(record.duration_s for record in records) / 60:.1f} minutes in total"
    parts = [line, *(f"on {cell_text(', '.join(facts), limit=1000)}" for facts in machine.environments)]
    parts += [cell_text(", ".join(machine.versions))] if machine.versions else []
    return "; ".join([*parts, *(f"by `{_as_code(command)}`" for command in machine.commands)]) + "."


def disturbance_lines(runs: Sequence[Run], folders: Sequence[Path | str] = ()) -> list[str]:
    """A line for each run that something disturbed. ``folders``: where they are, for a terminal."""
    places = folders or [""] * len(runs)
    lines = [disturbance_line(run, place) for run, place in zip(runs, places, strict=True)]
    return [
        f"**{cell_text(run.name)}**: {line}" if len(runs) > 1 else line
        for run, line in zip(runs, lines, strict=True)
        if line
    ]


def _as_code(command: str) -> str:
    """A command between backticks, where nothing is escaped: on one line, without a backtick."""
    return one_line(without_paths(command), 1000).replace("`", "'")


def _conditions(rows: Sequence[Row]) -> str:
    """The axes that all rows share, in one sentence."""
    shared = []
    for axis, values in axis_values(rows).items():
        if axis != "run" and len(values) == 1 and values[0] != DULL.get(axis):
            shared.append(f"{cell_text(axis)} {cell_text(values[0])}")
    return f"Shared by all rows: {', '.join(shared)}." if shared else "The conditions vary and are columns."


def _as_list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _sections(rows: Sequence[Row], axes: Sequence[str], floors: Floors) -> list[str]:
    """A heading and a table for each device and image size."""
    groups: dict[tuple[str, tuple[int, int]], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.cell.device, row.cell.image_size), []).append(row)
    parts = []
    for device, size in sorted(groups):
        group = sorted(groups[device, size], key=sort_key)
        shown = main_table(group, axes, floors)
        parts += [f"## {cell_text(device)}, {group[0].image_size} px", table_text(shown), *marks_text(shown)]
    return parts


def _counters(rows: Sequence[Row]) -> list[str]:
    compared = compare_counters(rows)
    if compared is None:
        return []
    shown, reasons = compared
    texts = [explanations.COUNTER_REASONS.get(one) or cell_text(one).rstrip(".") for one in reasons]
    notes = "  \n".join(f"({mark}) {text}." for mark, text in enumerate(texts, 1))
    return ["## FLOPs by other counters", explanations.COUNTERS, table_text(shown), *([notes] if notes else [])]


def _plots(rows: Sequence[Row]) -> str:
    parts = [f"![{cell_text(plot.title)}]({plot.file_name})\n\n{plot.caption}" for plot in plan_plots(rows)]
    return "\n\n".join(filter(None, [*parts, why_no_plots(rows)]))

"""Records to the Markdown page that a person reads: what was run and where, the tables, what failed, the pictures, and
everything else folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vitbench.core.records import STATUSES
from vitbench.reports import explanations
from vitbench.reports.format import cell_text, escape_markdown
from vitbench.reports.markdown.tables import paragraph_text, section_text, table_text
from vitbench.reports.model.environments import facts_of, machine_text
from vitbench.reports.model.main_tables import MainTable, failed_rows, main_tables, shared_conditions
from vitbench.reports.model.noise import disturbance_line, noise_floors
from vitbench.reports.model.rows import Row, build_rows
from vitbench.reports.model.runs import Run, planned_cells
from vitbench.reports.model.searches import CALLS, search_tables, without_bounds, without_searches
from vitbench.reports.model.tables import Table
from vitbench.reports.model.tradeoffs import report_tradeoffs
from vitbench.reports.sections import Section, detail_sections
from vitbench.reports.value_text import marks_text
from vitbench.reports.verdict import Span, verdict
from vitbench.suites.batch_search import shown_status

#: Names of rows in a line of failures, and lines: more are counted.
_MOST_NAMES, _MOST_FAILURES = 8, 12


def render_markdown(runs: Sequence[Run]) -> str:
    """The whole page; the same records give the same text. Plots are linked by their names in ``report_tradeoffs``."""
    rows = build_rows(without_bounds(runs))
    title = "# vitbench report: " + " and ".join(cell_text(run.name) for run in runs)
    parts = [title, *_in_short(runs), "\n".join(f"- {_what_was_run(run)}" for run in runs), *disturbance_lines(runs)]
    if not rows:
        return "\n\n".join([*parts, "No cell has been measured yet."]) + "\n"
    floors, searches = noise_floors(runs), search_section(runs)
    tables = main_tables(build_rows(without_searches(runs)), floors)
    parts += [_conditions(rows), *searches, *_main_sections(tables, rows), *_failures(tables), *_plots(rows)]
    all_tables = main_tables(rows, floors) if searches else tables
    folded = [_left_out(all_tables, whole=bool(searches)), *detail_sections(runs)]
    return "\n\n".join([*parts, *map(section_text, folded)]) + "\n"


def _in_short(runs: Sequence[Run]) -> list[str]:
    """The verdict, a line a sentence; [] without records."""
    lines = [f"- {''.join(map(_span_text, sentence))}" for sentence in verdict(runs).sentences]
    return ["**In short**", "\n".join(lines)] if lines else []


def _span_text(span: Span) -> str:
    """Names are bold, failures look like statuses."""
    if span.kind == "failure":
        return "`" + span.text.replace("`", "'") + "`"
    return f"**{cell_text(span.text)}**" if span.kind == "name" else escape_markdown(span.text)


def search_section(runs: Sequence[Run]) -> list[str]:
    """The largest batches that fit: heading, text and tables; nothing without searches."""
    found = search_tables(runs)
    if found is None:
        return []
    parts = ["## Largest batch that fits", paragraph_text(explanations.SEARCHES)]
    largest, _ = found
    for (device, mode, dtype), shown in largest.items():
        parts += [f"### {cell_text(device)}, {CALLS[mode]}, {cell_text(dtype)}", table_text(shown)]
    return parts


def _what_was_run(run: Run) -> str:
    records, planned, facts = run.records, planned_cells(run), facts_of(run)
    count = f"{len(records)} cell" + ("" if len(records) == 1 else "s")
    line = f"**{cell_text(run.name)}**: {count if planned <= len(records) else f'{len(records)} of {planned} cells'}"
    if records:
        counts = Counter(str(record.status) for record in records)
        line += f" ({', '.join(f'{counts[one]} {shown_status(one)}' for one in STATUSES if counts[one])})"
        line += f", the first from {cell_text(min(record.started_at for record in records), 40)}"
        line += f", {sum(record.duration_s for record in records) / 60:.1f} minutes in total"
    machine = [f"on {cell_text(machine_text(run), 1000)}"] if machine_text(run) else []
    command = ["by `" + facts["command"].replace("`", "'") + "`"] if "command" in facts else []
    return "; ".join([line, *machine, *command]) + "."


def disturbance_lines(runs: Sequence[Run]) -> list[str]:
    """A line for each run that something disturbed."""
    lines = [(run.name, disturbance_line(run)) for run in runs]
    return [f"**{cell_text(name)}**: {line}" if len(runs) > 1 else line for name, line in lines if line]


def _conditions(rows: Sequence[Row]) -> str:
    """The conditions that all rows share, in one sentence."""
    shared = _named(shared_conditions(rows))
    return f"Shared by all rows: {shared}." if shared else "The conditions vary and are columns."


def _named(conditions: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{cell_text(axis)} {cell_text(value)}" for axis, value in conditions)


def _main_sections(tables: Sequence[MainTable], rows: Sequence[Row]) -> list[str]:
    """A heading and a table for each device and image size; below them what they are sorted by."""
    parts = []
    for one in tables:
        parts += [f"## {cell_text(one.device)}, {one.image_size} px"]
        parts += [f"Unless a row says otherwise: {_named(one.usual)}."] if one.usual else []
        parts += [table_text(one.shown), *map(paragraph_text, marks_text(one.shown))]
    return [*parts, f"{explanations.order_text(rows)} {explanations.BRACKETS}"] if tables else []


def _left_out(tables: Sequence[MainTable], whole: bool) -> Section:
    """The other columns of the main tables; ``whole``: all columns, as the batches of searches are not above."""
    parts: list[Table | str] = []
    for one in tables:
        shown = [one.shown, one.left_out] if whole else [one.left_out]
        parts += [f"{one.device}, {one.image_size} px", *shown, *(text for each in shown for text in marks_text(each))]
    title = "All columns, and the batches of searches" if whole else "More columns of the tables above"
    return Section("columns", title, tuple(parts))


def _failures(tables: Sequence[MainTable]) -> list[str]:
    """A line for each kind of failure, with the rows that have it; [] without one."""
    lines = []
    for status, names in failed_rows(tables).items():
        more = [f"{len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
        lines.append(f"- **{cell_text(status)}**: {'; '.join([*map(cell_text, names[:_MOST_NAMES]), *more])}")
    if len(lines) > _MOST_FAILURES:
        lines[_MOST_FAILURES:] = [f"- {len(lines) - _MOST_FAILURES} more kinds of failure are listed below."]
    return ["## Failures", "\n".join(lines)] if lines else []


def _plots(rows: Sequence[Row]) -> list[str]:
    plots = report_tradeoffs(rows).items()
    parts = [f"![{cell_text(plot.title)}]({name})\n\n{cell_text(plot.caption, 2000)}" for name, plot in plots]
    return ["## Plots", *parts] if parts else []

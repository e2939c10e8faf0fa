"""Records to the Markdown page that a person reads: what was run and where, the tables, what failed, the pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from vitbench.analysis.claims import PUBLISHED, judge_runs
from vitbench.core.records import STATUSES, Cell, Record, format_image_size
from vitbench.core.stats.statistics import BETWEEN_PROCESSES, QUIET, QUIET_CELL, RUN_TO_RUN, WITHIN_PROCESS
from vitbench.reports.format import NOT_ASKED, cell_text, table, telling_line, without_paths
from vitbench.reports.markdown.batch_search import frontier_section, without_bounds, without_searches
from vitbench.reports.markdown.claims import HOW_TO_READ, claims_table, count_verdicts
from vitbench.reports.markdown.counters import counters_table
from vitbench.reports.markdown.machine import machine_lines
from vitbench.reports.markdown.memory import MEMORY_TEXT, memory_table
from vitbench.reports.markdown.recipes import training_section, training_summary
from vitbench.reports.model.columns import Column, Floors, axis_columns, detail_columns, main_columns, model_column
from vitbench.reports.model.noise import noise_floors, noise_section
from vitbench.reports.model.rows import (
    DEFAULT_OPTION,
    Row,
    axis_values,
    build_rows,
    image_size_text,
    place_key,
    shown_status,
    varying_axes,
)
from vitbench.reports.model.runs import Run
from vitbench.reports.plots.tradeoffs import Picture, plan_pictures, why_no_pictures

#: Values that go without saying where all rows share them.
DULL = {"compile": ("no",), "memory limit": ("none",), "weights": ("random",)}


def render_markdown(runs: Sequence[Run]) -> str:
    """The whole page; the same records give the same text. Pictures are linked by their names in ``plan_pictures``."""
    rows = build_rows(without_bounds(runs))
    title = "# vitbench report: " + " and ".join(cell_text(run.name) for run in runs)
    parts = [title, _what_was_run(runs)]
    if not rows:
        return "\n\n".join([*parts, "No cell has been measured yet."]) + "\n"
    axes = varying_axes(rows)
    floors = noise_floors(runs)
    parts += [_conditions(rows), *frontier_section(runs), *_sections(rows, axes, floors), *training_section(runs)]
    parts += ["## How to read the tables", _how_to_read(rows)]
    parts += _details(rows, axes)
    noise = noise_section(runs)
    if noise:
        paired = any(one.reference_samples for run in runs for record in run.records for one in record.measurements)
        parts += ["## Noise", *([_NOISE_TEXT] if paired else []), noise]
    memory = memory_table(rows, axes)
    if memory:
        parts += ["## Memory at the peak", MEMORY_TEXT, memory]
    counters = counters_table(rows)
    if counters:
        parts += ["## FLOPs by other counters", _COUNTERS_TEXT, counters]
    judged = judge_runs([record for run in runs for record in run.records])
    if judged:
        parts += ["## Published figures", f"{count_verdicts(judged)}. {HOW_TO_READ}", claims_table(judged)]
    parts += ["## Failures", _failures_table(rows, axes), "## Pictures", _pictures(rows), "## Methods", _methods(rows)]
    return "\n\n".join(parts) + "\n"


def render_summary(runs: Sequence[Run]) -> str:
    """The main tables alone, for a terminal: of searches what they found."""
    rows = build_rows(without_searches(runs))
    found = frontier_section(runs)
    if not rows and not found:
        return "No cell has been measured yet."
    sections = _sections(rows, varying_axes(rows), noise_floors(runs))
    return "\n\n".join([*found, *sections, *training_summary(runs)])


_NOISE_TEXT = (
    "A fixed piece of work, the reference, took turns with every timed cell, and now and then a fresh process of it "
    "took part as if it were a cell: what it differs from itself is what noise makes of no difference here."
)
_COUNTERS_TEXT = (
    "Our count is PyTorch's dispatcher count on meta tensors: matrix products, convolutions and attention. fvcore and "
    "thop are unmaintained and shown for comparison only; their multiply-adds are doubled here. The known reasons "
    "that can be behind a difference are numbered below."
)


def _what_was_run(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        records = run.records
        planned = _planned_cells(run)
        count = f"{len(records)} of {planned} cells" if planned > len(records) else _count(len(records), "cell")
        line = f"**{cell_text(run.name)}**: {count}"
        if records:
            line += f" ({_statuses(records)}), the first from {cell_text(min(r.started_at for r in records), 40)}"
            line += f", {sum(r.duration_s for r in records) / 60:.1f} minutes in all"
        lines.append("- " + "; ".join([line, *machine_lines(run)]) + ".")
    return "\n".join(lines)


def _planned_cells(run: Run) -> int:
    """How many cells the run has when it is whole, as its last session that knows says; 0 if none does."""
    told = [session.get("planned_cells") for session in run.environment.get("sessions") or []]
    return next((count for count in reversed(told) if count), 0)


def _statuses(records: Iterable[Record]) -> str:
    counts = Counter(record.status for record in records)
    return ", ".join(f"{counts[s]} {shown_status(s)}" for s in STATUSES if counts[s])  # type: ignore[index]


def _conditions(rows: Sequence[Row]) -> str:
    """The axes that all rows share, in one sentence."""
    shared = []
    for axis, values in axis_values(rows).items():
        if axis == "run":
            continue
        if len(values) == 1 and values[0] not in DULL.get(axis, ()):
            shared.append(f"{cell_text(axis)} {cell_text(values[0])}")
    return f"Shared by all rows: {', '.join(shared)}." if shared else "The conditions vary and are columns."


def _how_to_read(rows: Sequence[Row]) -> str:
    """What units, brackets and words mean."""
    latencies = [row.at_smallest_batch("latency") for row in rows]
    kinds = {figure.estimate.kind for figure in latencies if figure.estimate}
    paired = any(figure.relative for figure in latencies)
    lines = [
        f"Sorted by latency{' over that of the reference' if paired else ''}, then by parameters."
        + ("" if paired else " The order does not tell models apart whose intervals overlap."),
        "`b1` is a batch of 1 image. FLOPs are those of one image's forward pass; a multiply-add is 2 FLOPs and 1 MAC. "
        "1 MB is 10^6 bytes.",
        "Latency is the time of one batch: the median of the samples after the warm-up, which is found from the "
        "samples. Peak memory is that of inference. Throughput is the best of all batches, with its batch behind it.",
    ]
    if paired:
        lines.append(
            "`× reference` is the time over that of a fixed piece of work, the reference, which took turns with the "
            "cell: it survives the drift of a machine's speed, which times in ms do not, so it decides the `place`. "
            "Models that share places (`2-3`) are a tie: this run does not tell them apart (each pair at 95 %, so that "
            "of many equal pairs one in twenty is), although their intervals may overlap: these hold other runs' "
            "figures, "
            f"too. From three processes on the quiet turns count alone: those in which the reference took at most "
            f"{100 * (QUIET - 1):.0f} % more than in its fastest ones, and the cell at most "
            f"{100 * (QUIET_CELL - 1):.0f} % more than in its own. To how much three or more processes differ an "
            "interval adds what ratios were seen to differ by from run to run (a standard deviation of "
            f"{100 * RUN_TO_RUN:g} %), which one run cannot see; that of fewer processes holds neither. Only ratios of "
            "the same reference, build of torch, machine and number of threads are comparable."
        )
    brackets = ["Brackets are 95 % intervals."]
    if BETWEEN_PROCESSES in kinds:
        brackets.append(
            "A time from three or more fresh processes is the geometric mean of their medians; its interval (t, of the "
            "medians' logarithms) says how processes differ; where the first five decided how many there would be, it "
            "takes their spread."
        )
    if WITHIN_PROCESS in kinds:
        brackets.append(
            "The interval of a time from fewer processes says how well its median is known within them; it understates "
            "how much another process, or another hour, would differ."
        )
    lines.append(" ".join(brackets))
    tests = [row.training.cell for row in rows if row.training]
    if tests:
        how = "after the training named above" if all(cell.trains for cell in tests) else "with the weights named above"
        lines.append(f"Accuracy is top-1 on held-out pictures {how}, with its Wilson interval.")
    lines.append(f"`{NOT_ASKED}`: not asked for. A word in place of a number is what became of it; see Failures.")
    lines.append("`report.csv` beside this page has all batches: one line a row of these tables and batch size.")
    return "\n".join(f"- {line}" for line in lines)


def _sections(rows: Sequence[Row], axes: Sequence[str], floors: Floors) -> list[str]:
    """A heading and a table for each device and image size."""
    groups: dict[tuple[str, tuple[int, int]], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.cell.device, row.cell.image_size), []).append(row)
    parts = []
    for device, size in sorted(groups):
        group = sorted(groups[device, size], key=place_key)
        columns = [model_column(), *axis_columns(axes), *main_columns(group, floors)]
        parts += [f"## {cell_text(device)}, {image_size_text(group[0])} px", _render(columns, group)]
    return parts


def _details(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """One table for all devices and sizes with what the main tables leave out."""
    details = detail_columns(rows)
    if not details:
        return []
    where = [
        Column("device", lambda row: cell_text(row.cell.device), True),
        Column("image size (px)", image_size_text, True),
    ]
    columns = [model_column(), *where, *axis_columns(axes), *details]
    ordered = sorted(rows, key=place_key)
    return ["## Details", "p90 and p99 are given from 29 and 299 samples on.", _render(columns, ordered)]


def _render(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    texts = [column.heading for column in columns if column.is_text]
    lines = [[column.text(row) for column in columns] for row in rows]
    return table([column.heading for column in columns], lines, texts)


def _failures_table(rows: Sequence[Row], axes: Sequence[str]) -> str:
    """One line for each thing that went wrong, cells that failed alike together."""
    found: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row, record in _cells_once(rows):
        cell = record.cell
        which = (
            cell_text(cell.model),
            cell_text(cell.device),
            format_image_size(cell.image_size),  # a training can have another than its row
            *(cell_text(row.axes.get(axis, DEFAULT_OPTION) or NOT_ASKED) for axis in axes),
        )
        kind = _kind_of(record.cell)
        for metric, status, cause, detail, printed in _what_failed(record):
            texts = (shown_status(status), *(cell_text(text) for text in (cause, detail, printed)))
            batches = found.setdefault((*which, cell_text(metric), *texts), {}).setdefault(kind, [])
            batches.append(f"b{cell.batch_size}")
    if not found:
        return "None."
    lines = []
    for (*which_parts, metric, status, cause, detail, printed), kinds in found.items():
        where = "; ".join(f"{kind} {', '.join(batches)}" for kind, batches in kinds.items())
        lines.append([*which_parts, where, metric, status, cause, detail, printed])
    names = [cell_text(axis) for axis in axes]
    headings = ["model", "device", "image size (px)", *names, "cell", "metric", "status", "cause", "detail", "printed"]
    return table(headings, lines, headings)


def _kind_of(cell: Cell) -> str:
    if cell.tests:
        return "training" if cell.trains else "test"
    return "training step" if cell.mode == "train" else "inference"


def _cells_once(rows: Sequence[Row]) -> list[tuple[Row, Record]]:
    """Each record with (the first of) its rows."""
    found: dict[tuple[str, str], tuple[Row, Record]] = {}
    for row in sorted(rows, key=lambda row: (row.cell.device, row.cell.image_size)):
        for record in row.records:
            found.setdefault((row.run, record.cell.id), (row, record))
    return list(found.values())


def _what_failed(record: Record) -> list[tuple[str, str, str, str, str]]:
    """(metric, status, cause, detail, what was printed) for the cell and each of its measurements."""
    failed: list[tuple[str, str, str, str, str]] = []
    if record.status != "ok":
        cause = record.cause + (f" (signal {record.signal})" if record.signal is not None else "")
        failed.append(("all that is missing", record.status, cause, record.detail, telling_line(record.stderr_tail)))
    for one in record.measurements:
        # What a cell's end took along repeats the cell's detail: told already.
        told = record.status == one.status and record.detail in one.detail
        if one.status != "ok" and not told:
            failed.append((one.metric, one.status, "", one.detail, ""))
    return failed


def _pictures(rows: Sequence[Row]) -> str:
    pictures: list[Picture] = plan_pictures(rows)
    parts = [f"![{cell_text(picture.title)}]({picture.file_name})\n\n{picture.caption}" for picture in pictures]
    reason = why_no_pictures(rows)
    return "\n\n".join([*parts, *([reason] if reason else [])])


def _methods(rows: Sequence[Row]) -> str:
    """Each method once, with the metrics that were got by it."""
    texts: dict[str, list[str]] = {}
    for _, record in _cells_once(rows):
        for measurement in record.measurements:
            if measurement.metric.startswith(PUBLISHED):
                continue  # not measured; the table of published figures has its source
            known = texts.setdefault(measurement.metric, [])
            if measurement.method and measurement.method not in known:
                known.append(measurement.method)
    metrics: dict[str, list[str]] = {}
    for metric, methods in texts.items():
        for method in merge_numbers(methods):
            metrics.setdefault(method, []).append(metric)
    lines = [
        f"- **{cell_text(', '.join(names), 1000)}**: {cell_text(text, limit=1000)}" for text, names in metrics.items()
    ]
    return "\n".join(lines) or "None told."


def merge_numbers(texts: Iterable[str]) -> list[str]:
    """Texts that differ only in numbers become one: ``1 images`` and ``32 images`` -> ``1/32 images``."""
    merged: dict[tuple[str, ...], list[list[str]]] = {}
    for text in texts:
        words = re.split(r"(\d+)", without_paths(text))
        places = merged.setdefault(tuple(words[::2]), [[] for _ in words[1::2]])
        for place, digits in zip(places, words[1::2], strict=True):
            if digits not in place:
                place.append(digits)
    result = []
    for words_between, places in merged.items():
        numbers = ["/".join(sorted(place, key=_size_of)) for place in places] + [""]
        result.append("".join(word + digits for word, digits in zip(words_between, numbers, strict=True)))
    return result


def _size_of(digits: str) -> tuple[int, str]:
    """Sorts as the number would, of however many digits."""
    bare = digits.lstrip("0")
    return len(bare), bare


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}" + ("" if n == 1 else "s")

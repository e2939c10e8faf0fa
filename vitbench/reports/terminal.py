"""Runs as a terminal shows them: the verdict, tables that fit its width, what disturbed them, what failed."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from vitbench.core.text import one_line, printable
from vitbench.reports import explanations
from vitbench.reports.format import plain_text
from vitbench.reports.model import trainings as training
from vitbench.reports.model.failures import WHOLE_CELL, failures_table
from vitbench.reports.model.main_tables import MOST_COLUMNS, main_tables, narrow
from vitbench.reports.model.noise import disturbance_line, noise_floors
from vitbench.reports.model.rows import build_rows, varying_axes
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import CALLS, search_tables, without_bounds, without_searches
from vitbench.reports.model.tables import Column, Table
from vitbench.reports.value_text import heading_text, marks_text, value_text
from vitbench.reports.verdict import verdict

#: The most lines of a table, and the most failures: a screen, not the page.
_MOST_LINES = 40
_MOST_FAILURES = 10
#: Characters between two columns, the least that a column of names gets, and values that a table has at least.
_GAP, _NARROWEST, _FEWEST_VALUES = 2, 12, 3
_STYLES = {"": "", "name": "bold", "failure": "bold red"}
#: A rule under the headings that any encoding has.
_RULE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)

#: A Text is wrapped at the width; a str stays on one line, so that a command in it can be copied.
Part = Text | Drawn | str


def render_terminal(
    runs: Sequence[Run], width: int, folders: Sequence[Path | str] = (), *, styled: bool = False
) -> str:
    """The summary in lines of at most ``width`` characters, with ANSI styles if ``styled``. ``folders``: where the runs
    are, for the commands that repeat cells.
    """
    console = Console(
        file=io.StringIO(), width=width, force_terminal=styled, legacy_windows=False, highlight=False, emoji=False
    )
    with console.capture() as printed:
        for part in _parts(runs, width, folders):
            console.print(part, markup=False, soft_wrap=isinstance(part, str))
    return "\n".join(line.rstrip() for line in printed.get().rstrip().split("\n"))


def _parts(runs: Sequence[Run], width: int, folders: Sequence[Path | str]) -> Iterator[Part]:
    searched, rows = search_tables(runs), build_rows(without_searches(runs))
    if not rows and not searched:
        yield "No cell has been measured yet."
        return
    yield from _verdict(runs)
    for (device, mode, dtype), largest in searched[0].items() if searched else ():
        yield from _table(f"Largest batch that fits: {device}, {CALLS[mode]}, {dtype}", largest, width)
    for one in main_tables(rows, noise_floors(runs)):
        usual = ", ".join(plain_text(f"{axis} {value}") for axis, value in one.usual)
        more = [heading_text(column) for column in one.left_out.columns if not column.is_text]
        yield from _table(f"{one.device}, {one.image_size} px", one.shown, width, usual=usual, more=more)
    if rows:
        yield Text(f"{explanations.BRACKETS}\n", "dim")
    trainings = training.trainings_of(runs)
    if training.are_compared(trainings):
        yield from _table("Training", training.comparison_table(trainings), width)
    yield from _disturbances(runs, folders)
    yield from _failures(runs)


def _verdict(runs: Sequence[Run]) -> Iterator[Part]:
    found = verdict(runs)
    yield Text("In short", "bold")
    for sentence in found.sentences:
        yield Text.assemble("- ", *((printable(span.text), _STYLES[span.kind]) for span in sentence))
    yield Text(", ".join(f"{value} {what}" for value, what in found.facts) + "\n", "dim")


def _table(title: str, shown: Table, width: int, *, usual: str = "", more: Sequence[str] = ()) -> Iterator[Part]:
    """A heading, as many of the important columns as fit, and what is not shown. ``usual``: conditions of the lines
    that name no others; ``more``: further columns that the report has.
    """
    fitting, texts, widths = _fitting(shown, width)
    folded = any("\n" in text for line in texts for text in line)
    drawn = Drawn(
        box=_RULE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", border_style="dim"
    )
    for column, needed in zip(fitting.columns, widths, strict=True):
        drawn.add_column(
            Text(heading_text(column)),
            justify="left" if column.is_text else "right",
            vertical="top" if folded else "bottom",
            max_width=needed,
            overflow="fold",
        )
    for line in texts[:_MOST_LINES]:
        drawn.add_row(*map(Text, line))
    yield Text(f"{plain_text(title)}\n", "bold")
    yield drawn
    left_out = [heading_text(one) for one in shown.columns if one not in fitting.columns]
    lines = [f"{len(fitting.lines) - _MOST_LINES} more lines"] if len(fitting.lines) > _MOST_LINES else []
    if also := [*lines, *left_out, *more]:
        yield Text(f"In the report as well: {', '.join(also)}.", "dim")
    if usual:
        yield Text(f"Unless a line says otherwise: {usual}.", "dim")
    for meaning in marks_text(fitting):
        yield Text(meaning, "dim")
    yield ""


def _fitting(shown: Table, width: int) -> tuple[Table, list[list[str]], list[int]]:
    """As many columns as fit, their texts and widths; where few fit, intervals stand below their values."""
    names = len(list(takewhile(lambda column: column.is_text, shown.columns)))
    fewest = min(names + _FEWEST_VALUES, len(shown.columns))
    for break_, least in ((" [", fewest), ("\n[", names + 1)):
        for most in range(MOST_COLUMNS, least - 1, -1):
            fitting = narrow(shown, most)
            pairs = [zip(line, fitting.columns, strict=True) for line in fitting.lines]
            texts = [[value_text(*pair).replace(" [", break_) for pair in line] for line in pairs]
            widths = _widths(fitting.columns, texts, max(width // max(3, 2 * names), _NARROWEST))
            if sum(widths) + _GAP * (len(widths) - 1) <= width:
                return fitting, texts, widths
    return fitting, texts, widths


def _widths(columns: Sequence[Column], texts: Sequence[Sequence[str]], widest_name: int) -> list[int]:
    """What each column needs for its values, and the words of its heading; longer words and names are folded."""
    widths = []
    for place, column in enumerate(columns):
        values = max((cell_len(piece) for line in texts for piece in line[place].split("\n")), default=0)
        heading = max(map(cell_len, heading_text(column).split()))
        longest = max(values, min(heading, _NARROWEST))
        widths.append(min(longest, widest_name) if column.is_text else longest)
    return widths


def _disturbances(runs: Sequence[Run], folders: Sequence[Path | str]) -> Iterator[Part]:
    places = folders or [""] * len(runs)
    lines = [(run.name, disturbance_line(run, place)) for run, place in zip(runs, places, strict=True)]
    if any(line for _, line in lines):
        yield Text("What disturbed the run", "bold")
        for name, line in lines:
            if line:
                yield one_line(f"{name}: {line}" if len(runs) > 1 else line)
        yield ""


def _failures(runs: Sequence[Run]) -> Iterator[Part]:
    """One line for each thing that went wrong, as in the report's table of failures."""
    rows = build_rows(without_bounds(runs))
    axes = varying_axes(rows)
    shown = failures_table(rows, axes)
    if shown is None:
        return
    yield Text("What failed", "bold")
    for line in shown.lines[:_MOST_FAILURES]:
        texts = {
            column.name: value_text(value, column)
            for value, column in zip(line, shown.columns, strict=True)
            if value.text
        }
        texts["image size"] += " px"
        where = ", ".join(texts[name] for name in ("model", "device", "image size", *axes, "cell") if name in texts)
        whole = texts["metric"] == WHOLE_CELL
        why = next((plain_text(texts[name], 120) for name in ("detail", "printed", "cause") if name in texts), "")
        what = [where, *([] if whole else [texts["metric"]]), *([why] if why else [])]
        yield Text.assemble((texts["status"], _STYLES["failure"]), f" {': '.join(what)}")
    if len(shown.lines) > _MOST_FAILURES:
        yield f"... and {len(shown.lines) - _MOST_FAILURES} more"
    yield ""

"""What a terminal shows during a run: the last finished cells as a table, and a line with the current one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vitbench.core.records import Cell, Record, format_image_size
from vitbench.core.registry import METRICS
from vitbench.core.text import one_line
from vitbench.executors.protocol import TrainingStep
from vitbench.reports.model.columns import PERCENT, display_of
from vitbench.reports.model.values import value_of
from vitbench.reports.value_text import number_text
from vitbench.runner.progress import PlainProgress, Progress, format_duration
from vitbench.runner.time_estimates import TimeEstimates
from vitbench.suites.batch_search import bounds_a_search, search_label, shown_status

#: The most characters of a text in the line and the table.
_LONGEST = 200
#: Seconds between two redraws: one takes some milliseconds of a core.
_REDRAW_S = 0.5
#: The most cells in the table, and the columns from which on the line has a bar.
_SHOWN_CELLS = 8
_WIDE = 90
#: What a cell is known by: the first of these that it has.
_RESULTS = ("latency", "training_step", "accuracy", "inference_peak_memory", "training_peak_memory", "flops", "params")
#: The columns, those of numbers to the right; conditions only in a wide terminal.
_COLUMNS = ("model", "px", "batch", "conditions", "status", "result", "seconds")
_NUMBERS = ("px", "batch", "seconds")


class LiveProgress(PlainProgress):
    """A table of the last finished cells above a line that renews itself; failures and notes scroll by above them.

    Nothing is drawn while a timed turn runs: drawing takes time of the cores that are measured.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._live: Live | None = None
        self._label = ""
        self._shown = ""
        self._finished: tuple[tuple[str, ...], ...] = ()
        self._count = 0
        self._begun = self._ends = self._drawn = time.monotonic()
        self._in_turns = False

    def note(self, text: str) -> None:
        if self._live is not None:
            # a model's name or message is text: no markup, no :emoji:, no control characters
            self._console.print(one_line(text), markup=False, emoji=False, highlight=False)
        else:
            super().note(text)

    @contextlib.contextmanager
    def running(self, folder: Path | None, cells: list[Cell], estimates: TimeEstimates, already: int) -> Iterator[None]:
        over = threading.Event()
        with super().running(folder, cells, estimates, already):
            self._begun = time.monotonic()
            live = Live(get_renderable=self._picture, console=self._console, auto_refresh=False)
            redraw = threading.Thread(target=self._redraw_until, args=(over,), daemon=True)
            self._ends = self._begun + self.seconds_left()
            try:
                with live:
                    self._live = live
                    redraw.start()
                    try:
                        yield
                    finally:
                        over.set()
                        redraw.join()
                        self._finished = ()  # the summary that follows has them
            finally:
                self._live = None

    def cell_started(self, cell: Cell) -> None:
        super().cell_started(cell)
        self._label, self._in_turns = cell.label, False
        self._show(self._label)

    def group_started(self, cells: Sequence[Cell]) -> None:
        super().group_started(cells)
        self._label = f"{cells[0].conditions_label}: {len(cells)} in turns" if len(cells) > 1 else cells[0].label

    def between_turns(self) -> None:
        self._in_turns = True
        if time.monotonic() - self._drawn > _REDRAW_S:
            self._draw()

    def round_done(self, more: Mapping[str, int], calls: Mapping[str, float]) -> None:
        super().round_done(more, calls)
        self._in_turns = False
        self._ends = time.monotonic() + self.seconds_left()

    def doing(self, what: str) -> None:
        self._in_turns = False
        self._show(f"{self._label}: {what}")

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        before, in_turns = self._shown, self._in_turns
        self._in_turns = False
        self._show(f"{self._label}: {what}")
        with Progress.waiting(self, what):
            yield
        self._show(before)
        self._in_turns = in_turns

    def training_step(self, event: TrainingStep) -> None:
        super().training_step(event)
        self._ends = time.monotonic() + self.seconds_left()
        total = f"/{event.total}" if event.total else ""
        self._show(f"{self._label}: step {event.step}{total}, loss {event.loss:.3f}")

    def cell_done(self, record: Record) -> None:
        Progress.cell_done(self, record)
        self._in_turns = False
        if record.status != "ok" and not bounds_a_search(record):
            self.note(f"{record.cell.label}: {record.status} ({record.detail or record.cause})")
        self._finished = (*self._finished, finished_row(record))[-_SHOWN_CELLS:]
        self._count += 1
        self._ends = time.monotonic() + self.seconds_left()

    def search_done(self, cell: Cell, found: str) -> None:
        Progress.search_done(self, cell, found)
        self.note(f"{search_label(cell)}: largest batch: {found}")
        self._ends = time.monotonic() + self.seconds_left()

    def _show(self, text: str) -> None:
        self._shown = one_line(text, _LONGEST)

    def _redraw_until(self, over: threading.Event) -> None:
        while not over.wait(_REDRAW_S):
            if not self._in_turns:
                self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if self._live is not None:
            self._live.refresh()

    def _picture(self) -> Group:
        """The table, where the terminal has room for it, and the line."""
        width, height = self._console.size
        now = time.monotonic()
        line = Text(
            f"{self.done}/{len(self.cells)}, {format_duration(self._ends - now)} left, {self.failures_text()}, "
            f"{format_duration(now - self._begun)} so far | {self._shown}",
            no_wrap=True,
            overflow="ellipsis",
        )
        rows = self._finished[-(height - 4) :] if height > 4 else ()
        parts = [finished_table(rows, self._count - len(rows), width)] if rows else []
        if width < _WIDE:
            return Group(*parts, line)
        with_bar = Table.grid(padding=(0, 1))
        with_bar.add_row(ProgressBar(max(len(self.cells), 1), self.done, width=20), line)
        return Group(*parts, with_bar)


def finished_table(rows: Sequence[Sequence[str]], before: int, width: int) -> Table:
    """The last finished cells (``finished_row``) in ``width`` columns; ``before``: how many came before them."""
    title = f"the last {len(rows)} of {before + len(rows)} finished" if before else None
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    shown = [place for place, name in enumerate(_COLUMNS) if name != "conditions" or width >= _WIDE]
    for place in shown:
        table.add_column(_COLUMNS[place], justify="right" if _COLUMNS[place] in _NUMBERS else "left")
    for row in rows:
        # texts, not markup; long ones lose their end
        table.add_row(*(Text(row[place], no_wrap=True, overflow="ellipsis") for place in shown))
    return table


def finished_row(record: Record) -> tuple[str, ...]:
    """A finished cell as texts, one for each column of the table."""
    cell = record.cell
    conditions = cell.label.removeprefix(f"{cell.model} ").split(" ", 2)[-1]
    size, batch, seconds = format_image_size(cell.image_size), str(cell.batch_size), f"{record.duration_s:.1f}"
    row = (cell.model, size, batch, conditions, shown_status(record.status), result_text(record), seconds)
    return tuple(one_line(text, _LONGEST) for text in row)


def result_text(record: Record) -> str:
    """``latency 12.3 ms``: the first of ``_RESULTS`` that a cell has, as its report will; why it failed, if it did."""
    for name in _RESULTS if record.status == "ok" else ():
        number = value_of(record, name).value
        if number is not None:
            declared = METRICS.values[name]
            display = display_of(declared) if declared.column else PERCENT
            heading = declared.column.heading if declared.column else name
            return f"{heading} {number_text(number, None, display)} {display.unit}".rstrip()
    return record.detail or record.cause

"""What a person sees during a run: plain lines in a log, a table and a line in a terminal (``live``)."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from vitbench.core.records import Cell, Record
from vitbench.core.text import one_line
from vitbench.executors.protocol import TrainingStep
from vitbench.runner.time_estimates import TimeEstimates
from vitbench.suites.batch_search import bounds_a_search, search_label

#: A log says again that the run waits only after so many seconds.
_WAITING_AGAIN_S = 10.0


def format_duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Receives the steps of a run and prints nothing: it counts (done, failures, time left), which subclasses show."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []
        self.estimates: TimeEstimates | None = None
        self.done = 0
        self.failures: dict[str, int] = {}
        #: whether the cells are bases of batch searches, whose attempts come to ``cell_done``
        self.searches = False

    def note(self, text: str) -> None:
        """A step of the run that is not a cell."""

    def warn(self, text: str) -> None:
        """Something that the user should know of and that stops nothing."""

    @contextlib.contextmanager
    def running(self, folder: Path | None, cells: list[Cell], estimates: TimeEstimates, already: int) -> Iterator[None]:
        """Around the cells; ``already``: the number of cells that have a record. Without ``folder`` none are kept."""
        self.cells, self.estimates = cells, estimates
        yield

    def cell_started(self, cell: Cell) -> None:
        """A cell begins: what it needs before its times."""
        if self.estimates is not None:
            self.estimates.cell_started(cell)

    def group_started(self, cells: Sequence[Cell]) -> None:
        """The times of cells that take turns begin."""
        if self.estimates is not None:
            self.estimates.group_started(cells)

    def round_done(self, more: Mapping[str, int], calls: Mapping[str, float]) -> None:
        """A process of each cell that takes turns has ended. By cell id: how many ``more`` follow, as far as that is
        decided, and about the seconds of a call.
        """
        if self.estimates is not None:
            self.estimates.round_done(more, calls)

    def between_turns(self) -> None:
        """A timed turn may begin next, or has just ended: nothing runs that a drawing on a screen could disturb."""

    def doing(self, what: str) -> None:
        """A process of the current cell begins."""

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around a wait for a quiet moment; ``what`` is what disturbs."""
        begin = time.monotonic()
        yield
        if self.estimates is not None:
            self.estimates.waited(time.monotonic() - begin)

    def training_step(self, event: TrainingStep) -> None:
        """A training cell has come further."""
        if self.estimates is not None:
            self.estimates.training_step(event)

    def cell_done(self, record: Record) -> None:
        """A cell has its record."""
        if not self.searches:
            self.done += 1
        if self.estimates is not None:
            self.estimates.record_done(record)
        if record.status != "ok" and not bounds_a_search(record):
            self.failures[record.status] = self.failures.get(record.status, 0) + 1

    def search_done(self, cell: Cell, found: str) -> None:
        """The search that starts from ``cell`` is over; ``found``: the largest batch, or what ended it."""
        self.done += 1
        if self.estimates is not None:
            self.estimates.search_done(cell)

    def seconds_left(self) -> float:
        """The estimate of what is left of the run, which counts down between these steps."""
        return self.estimates.left() if self.estimates is not None else 0.0

    def failures_text(self) -> str:
        """``2 OOM, 1 timeout``, or ``no failures``."""
        shown = [f"{count} {'OOM' if status == 'oom' else status}" for status, count in sorted(self.failures.items())]
        return ", ".join(shown) if shown else "no failures"


class PlainProgress(Progress):
    """A line for each cell: for logs and CI."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self.stream = stream or sys.stderr
        self._waited_at = -math.inf

    def note(self, text: str) -> None:
        print(one_line(text), file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        self.note(f"Warning: {text}")

    @contextlib.contextmanager
    def running(self, folder: Path | None, cells: list[Cell], estimates: TimeEstimates, already: int) -> Iterator[None]:
        with super().running(folder, cells, estimates, already):
            one, many = ("search", "searches") if self.searches else ("cell", "cells")
            kept = f" ({already} already done)" if already else ""
            time_left = format_duration(self.seconds_left())
            into = f", into {folder}" if folder else ""
            self.note(f"{len(cells)} {one if len(cells) == 1 else many}{kept}, about {time_left}{into}")
            yield

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        if time.monotonic() - self._waited_at > _WAITING_AGAIN_S:
            self.note(what)
        with super().waiting(what):
            yield
        self._waited_at = time.monotonic()

    def cell_done(self, record: Record) -> None:
        super().cell_done(record)
        why = record.cause if bounds_a_search(record) else record.detail or record.cause
        outcome = record.status if record.status == "ok" else f"{record.status} ({why})"
        text = f"{record.cell.label}: {outcome}, {record.duration_s:.1f} s"
        if self.searches:
            self.note(f"[{self.done + 1}/{len(self.cells)}] {text}")
        else:
            self.note(f"[{self.done}/{len(self.cells)}] {text}; {self._how_far()}")

    def search_done(self, cell: Cell, found: str) -> None:
        super().search_done(cell, found)
        self.note(f"[{self.done}/{len(self.cells)}] {search_label(cell)}: largest batch: {found}; {self._how_far()}")

    def _how_far(self) -> str:
        return f"{self.failures_text()}, {format_duration(self.seconds_left())} left"


def make_progress() -> Progress:
    """The live one in a terminal, the plain one elsewhere."""
    if not sys.stderr.isatty():
        return PlainProgress()
    from vitbench.runner.live import LiveProgress

    return LiveProgress()

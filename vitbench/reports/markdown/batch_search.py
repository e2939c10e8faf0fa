"""The largest batches that fit, by model and picture size: what searches found, and what stopped each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vitbench.core.records import Cell, Record, format_image_size
from vitbench.reports.format import NOT_ASKED, cell_text, table
from vitbench.reports.model.columns import Column, axis_columns, show
from vitbench.reports.model.rows import Row, figure, shown_status, varying_axes
from vitbench.reports.model.runs import Run
from vitbench.suites.batch_search import (
    BOUND,
    Standing,
    attempts_by_base,
    base_of,
    fits,
    is_attempt,
    is_too_large,
    spell,
    stand,
)

#: Modes as a reader calls them.
CALLS = {"infer": "inference", "train": "training step"}

HOW_TO_READ = (
    "The number of pictures in the largest batch that fits into memory, to one picture: batches are doubled from 1, "
    "then bisected, each attempt in a fresh process. `>=1024`: still fits where the search was told to end. `OOM@1`: "
    "not even one picture fits. `8 (timeout@16)`: another failure than memory ended the search at 16, and 8 is what is "
    "known to fit. A crash, or an error that explains nothing, is laid to a memory limit (`probable_oom`) if the same "
    "batch works without the limit. Every attempt is in `records.jsonl` and `report.csv`."
)


@dataclass(frozen=True)
class Search:
    """One search: its base cell (batch 1) and the attempts at it, by batch size."""

    run: Run
    base: Cell
    records: Mapping[int, Record]
    max_batch: int

    @cached_property
    def row(self) -> Row:
        """What it varies from other searches by."""
        return Row(run=self.run.name, cell=dataclasses.replace(self.base, mode="infer"))

    @cached_property
    def attempts(self) -> dict[int, tuple[str, str]]:
        """What ``frontier`` knows of them."""
        return attempts_by_base(self.records.values())[self.base.id]

    @cached_property
    def standing(self) -> Standing:
        """What the attempts say together."""
        return stand(self.attempts, self.max_batch)

    @property
    def found(self) -> str:
        """The largest batch in words."""
        return spell(self.attempts, self.max_batch)

    @property
    def largest(self) -> Record | None:
        """The attempt with the largest batch that fits."""
        return self.records.get(self.standing.largest)

    @property
    def failed(self) -> Record | None:
        """The attempt that ended the search for another reason than memory, else the smallest that did not fit."""
        batch = self.standing.too_large if self.standing.stopped_at is None else self.standing.stopped_at
        return None if batch is None else self.records[batch]


def find_searches(runs: Sequence[Run]) -> list[Search]:
    """The searches of all runs, in order of first appearance."""
    found = []
    for run in runs:
        by_base: dict[Cell, dict[int, Record]] = {}
        for record in run.records:
            if is_attempt(record):
                by_base.setdefault(base_of(record.cell), {})[record.cell.batch_size] = record
        found += [Search(run, base, records, _bound(records)) for base, records in by_base.items()]
    return found


def without_bounds(runs: Sequence[Run]) -> list[Run]:
    """The runs as the other tables show them: of a search what fits, and what failed otherwise; of one in which nothing
    fits the smallest attempt. That larger batches did not fit is what this section tells.
    """
    searches = find_searches(runs)
    empty_handed = [search for search in searches if not any(fits(one.status) for one in search.records.values())]
    smallest = {(id(search.run), min(search.records), search.base) for search in empty_handed}

    def shown(run: Run, record: Record) -> bool:
        if not is_attempt(record) or not is_too_large(record.status, record.cause):
            return True
        return (id(run), record.cell.batch_size, base_of(record.cell)) in smallest

    return [dataclasses.replace(run, records=[one for one in run.records if shown(run, one)]) for run in runs]


def without_searches(runs: Sequence[Run]) -> list[Run]:
    """The runs without any attempt."""
    return [dataclasses.replace(run, records=[one for one in run.records if not is_attempt(one)]) for run in runs]


def frontier_section(runs: Sequence[Run]) -> list[str]:
    """Heading, text and tables as Markdown; empty without searches."""
    searches = find_searches(runs)
    if not searches:
        return []
    others = axis_columns(_axes(searches))
    parts = ["## Largest batch that fits", HOW_TO_READ]
    groups: dict[tuple[str, str, str], list[Search]] = {}
    for search in searches:
        groups.setdefault((search.base.device, search.base.mode, search.base.dtype), []).append(search)
    for (device, mode, dtype), group in groups.items():
        parts += [f"### {cell_text(device)}, {CALLS[mode]}, {cell_text(dtype)}", _largest_table(group, others)]
    return [*parts, "### What stopped each search", _limits_table(searches, others)]


def _axes(searches: Sequence[Search]) -> list[str]:
    """What searches vary by beyond the columns that they have in any case; models may well have classes of their
    own.
    """
    several = len({search.base.model for search in searches}) < len(
        {(search.base.model, search.base.num_classes) for search in searches}
    )
    dull = {"dtype"} if several else {"dtype", "classes"}
    return [axis for axis in varying_axes([search.row for search in searches]) if axis not in dull]


def _largest_table(searches: Sequence[Search], others: Sequence[Column]) -> str:
    """Models against picture sizes, in order of first appearance and by size."""
    sizes = sorted({search.base.image_size for search in searches})
    lines: dict[tuple[str, ...], dict[tuple[int, int], str]] = {}
    for search in searches:
        names = (cell_text(search.base.model), *(column.text(search.row) for column in others))
        lines.setdefault(names, {})[search.base.image_size] = search.found
    texts = ["model", *(column.heading for column in others)]
    headings = [*texts, *(f"{format_image_size(size)} px" for size in sizes)]
    cells = [[*names, *(found.get(size, NOT_ASKED) for size in sizes)] for names, found in lines.items()]
    return table(headings, cells, texts)


def _limits_table(searches: Sequence[Search], others: Sequence[Column]) -> str:
    """One line a search: the largest batch and its peak, the smallest that failed and how, and what the limit was."""
    columns: list[tuple[str, bool, Callable[[Search], str]]] = [
        ("model", True, lambda search: cell_text(search.base.model)),
        ("px", True, lambda search: format_image_size(search.base.image_size)),
        ("device", True, lambda search: cell_text(search.base.device)),
        ("call", True, lambda search: CALLS[search.base.mode]),
        ("dtype", True, lambda search: cell_text(search.base.dtype)),
        *((column.heading, True, _of_row(column.text)) for column in others),
        ("largest batch", False, _largest),
        ("peak memory at it (MB)", False, _peak),
        ("fails at", False, lambda search: str(search.failed.cell.batch_size) if search.failed else NOT_ASKED),
        ("how it fails", True, _how_it_failed),
        ("limit", True, _limit),
        ("attempts", False, lambda search: str(len(search.records))),
    ]
    lines = [[text(search) for _, _, text in columns] for search in searches]
    return table([heading for heading, _, _ in columns], lines, [heading for heading, is_text, _ in columns if is_text])


def _of_row(text: Callable[[Row], str]) -> Callable[[Search], str]:
    return lambda search: text(search.row)


def _largest(search: Search) -> str:
    """0 only where memory did not suffice for one."""
    known = search.standing.largest or search.standing.too_large == 1
    return str(search.standing.largest) if known else NOT_ASKED


def _peak(search: Search) -> str:
    if search.largest is None:
        return NOT_ASKED
    name = "training_peak_memory" if search.base.mode == "train" else "inference_peak_memory"
    return show(figure(search.largest, name), 1e-6)


def _how_it_failed(search: Search) -> str:
    """``OOM, out_of_memory``: status and cause."""
    record = search.failed
    if record is None:
        return NOT_ASKED
    words = [shown_status(record.status), *([record.cause] if record.cause not in ("", record.status) else [])]
    signal = f" (signal {record.signal})" if record.signal is not None else ""
    return cell_text(", ".join(words) + signal)


def _limit(search: Search) -> str:
    """What bounds the largest batch: the cap of the worker in bytes and how it is set, else the device's memory."""
    record = search.failed
    if record is None:
        return f"the search's own bound of {search.max_batch}" if search.standing.reached_bound else NOT_ASKED
    if not is_too_large(record.status, record.cause):
        return "none: it did not fail for memory"
    cap = record.measurement("memory_limit")
    if cap is not None and cap.status == "ok":
        return f"{cap.value:.0f} bytes: {cell_text(cap.method)}"
    if record.cell.memory_limit is not None:
        return f"{record.cell.memory_limit} bytes"
    return _memory_of_device(search.run, record)


def _memory_of_device(run: Run, record: Record) -> str:
    environment: Mapping[str, Any] = run.environment.get("environments", {}).get(record.environment, {})
    if record.cell.device == "cpu":
        # elsewhere than on Linux nothing keeps a worker from taking more
        on_linux = str(environment.get("system", {}).get("os", "Linux")).startswith("Linux")
        return "the machine's free memory" + (" (safe share)" if on_linux else "")
    size = environment.get("devices", {}).get(record.cell.device, {}).get("memory_bytes")
    return f"the device's memory ({size} bytes)" if isinstance(size, int) else "the device's memory"


def _bound(records: Mapping[int, Record]) -> int:
    """The bound of the last session that tried."""
    bounds = [found.value for record in records.values() if (found := record.measurement(BOUND)) is not None]
    return round(max(bounds))

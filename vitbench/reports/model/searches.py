"""The largest batches that fit, by model and image size: what each search found, and what ended it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vitbench.core.records import Cell, Record, format_image_size
from vitbench.reports.model.columns import DEVICE, MB, MODEL, SIZE, WHOLE, RowColumn, axis_columns
from vitbench.reports.model.rows import Row, varying_axes
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tables import Column, Table, Value, metric_value, number_value, text_value
from vitbench.reports.model.values import value_of
from vitbench.suites.batch_search import (
    BOUND,
    Standing,
    attempts_by_base,
    base_of,
    is_attempt,
    is_too_large,
    predictions_in,
    shown_status,
    spell,
    stand,
)

#: Modes as a reader calls them.
CALLS = {"infer": "inference", "train": "training step"}


@dataclass(frozen=True)
class Search:
    """One search: its base cell (batch 1) and the attempts at it, by batch size."""

    run: Run
    base: Cell
    records: Mapping[int, Record]
    max_batch: int

    @cached_property
    def row(self) -> Row:
        """Its axes, by which it varies from other searches."""
        return Row(run=self.run.name, cell=dataclasses.replace(self.base, mode="infer"))

    @cached_property
    def standing(self) -> Standing:
        """What the attempts show together."""
        return stand(attempts_by_base(self.records.values())[self.base.id], self.max_batch)

    @property
    def found(self) -> str:
        """The largest batch in words."""
        return spell(attempts_by_base(self.records.values())[self.base.id], self.max_batch)

    @property
    def predicted(self) -> float | None:
        """The largest batch that the search began at; None without a prediction."""
        found = predictions_in(self.records.values())[self.base.id]
        return None if found is None else found.value

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
    """The runs as the other tables show them: without the attempts that did not fit into memory.

    Of a search in which nothing fits the smallest attempt stays.
    """
    hidden: set[int] = set()
    for search in find_searches(runs):
        nothing_fits = all(one.status != "ok" for one in search.records.values())
        kept = min(search.records) if nothing_fits else None
        for batch, one in search.records.items():
            if batch != kept and is_too_large(one.status, one.cause):
                hidden.add(id(one))
    return [dataclasses.replace(run, records=[one for one in run.records if id(one) not in hidden]) for run in runs]


def without_searches(runs: Sequence[Run]) -> list[Run]:
    """The runs without the attempts of searches."""
    return [dataclasses.replace(run, records=[one for one in run.records if not is_attempt(one)]) for run in runs]


def search_tables(runs: Sequence[Run]) -> tuple[dict[tuple[str, str, str], Table], Table] | None:
    """The largest batches by (device, mode, data type), and what ended each search; None without searches."""
    searches = find_searches(runs)
    if not searches:
        return None
    others = axis_columns(_axes(searches))
    groups: dict[tuple[str, str, str], list[Search]] = {}
    for search in searches:
        groups.setdefault((search.base.device, search.base.mode, search.base.dtype), []).append(search)
    largest = {key: _largest_table(group, others) for key, group in groups.items()}
    return largest, _ends_table(searches, others)


def _axes(searches: Sequence[Search]) -> list[str]:
    """What searches vary by beyond the columns that they have in any case; models may have classes of their own."""
    several = len({search.base.model for search in searches}) < len(
        {(search.base.model, search.base.num_classes) for search in searches}
    )
    dull = {"dtype"} if several else {"dtype", "classes"}
    return [axis for axis in varying_axes([search.row for search in searches]) if axis not in dull]


def _largest_table(searches: Sequence[Search], others: Sequence[RowColumn]) -> Table:
    """Models against image sizes, in order of first appearance and by size."""
    sizes = sorted({search.base.image_size for search in searches})
    lines: dict[tuple[Value, ...], dict[tuple[int, int], Value]] = {}
    for search in searches:
        names = (text_value(search.base.model), *(one.value(search.row) for one in others))
        lines.setdefault(names, {})[search.base.image_size] = _found(search)
    columns = [Column(name="model"), *(one.column for one in others)]
    columns += [Column(name=f"{format_image_size(size)} px", display=WHOLE) for size in sizes]
    values = ((*names, *(found.get(size, Value()) for size in sizes)) for names, found in lines.items())
    return Table(tuple(columns), tuple(values))


def _found(search: Search) -> Value:
    """The largest batch in words and as a number, 0 if none is known; the reason says what ended the search."""
    standing, failed = search.standing, search.failed
    ended = [f"{_how_it_failed(search).text} at batch {failed.cell.batch_size}"] if failed else []
    limit = _limit(search).text
    reason = "; ".join([*ended, *([f"limit: {limit}"] if limit else [])])
    status = failed.status if failed and standing.is_over and not standing.largest else "ok"
    return Value(text=search.found, number=standing.largest, status=status, reason=reason)


def _ends_table(searches: Sequence[Search], others: Sequence[RowColumn]) -> Table:
    """One line a search: the largest batch and its peak, the smallest that failed and how, what the limit was, and how
    many attempts it took, from which prediction.
    """
    names = [MODEL, SIZE, DEVICE]
    begun = [Column(name="predicted", display=WHOLE)] if any(one.predicted is not None for one in searches) else []
    columns = (
        *(one.column for one in names),
        *(Column(name="call"), Column(name="dtype"), *(one.column for one in others)),
        *(Column(name="largest batch", display=WHOLE), Column(name="peak memory at it", display=MB)),
        *(Column(name="fails at", display=WHOLE), Column(name="how it fails"), Column(name="limit")),
        *(Column(name="attempts", display=WHOLE), *begun),
    )
    lines = tuple(
        (
            *(one.value(search.row) for one in names),
            *(text_value(CALLS[search.base.mode]), text_value(search.base.dtype)),
            *(one.value(search.row) for one in others),
            # 0 only where there was not enough memory for one image
            number_value(search.standing.largest or (0 if search.standing.too_large == 1 else None)),
            _peak(search),
            number_value(search.failed.cell.batch_size if search.failed else None),
            *(_how_it_failed(search), _limit(search), number_value(len(search.records))),
            *(number_value(search.predicted) for _ in begun),
        )
        for search in searches
    )
    return Table(columns, lines)


def _peak(search: Search) -> Value:
    if search.largest is None:
        return Value()
    name = "training_peak_memory" if search.base.mode == "train" else "inference_peak_memory"
    return metric_value(value_of(search.largest, name))


def _how_it_failed(search: Search) -> Value:
    """``OOM, out_of_memory``: status and cause."""
    record = search.failed
    if record is None:
        return Value()
    words = [shown_status(record.status), *([record.cause] if record.cause not in ("", record.status) else [])]
    signal = f" (signal {record.signal})" if record.signal is not None else ""
    return text_value(", ".join(words) + signal)


def _limit(search: Search) -> Value:
    """What bounds the largest batch: the worker's memory limit and how it is set, else the device's memory."""
    record = search.failed
    if record is None:
        bound = f"the search's own bound of {search.max_batch}"
        return text_value(bound) if search.standing.reached_bound else Value()
    if not is_too_large(record.status, record.cause):
        return text_value("none: memory did not cause the failure")
    cap = record.measurement("memory_limit")
    if cap is not None and cap.status == "ok":
        return text_value(f"{cap.value:.0f} bytes: {cap.method}")
    if record.cell.memory_limit is not None:
        return text_value(f"{record.cell.memory_limit} bytes")
    return text_value(_memory_of_device(search.run, record))


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

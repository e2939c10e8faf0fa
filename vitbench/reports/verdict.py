"""In short: which model is most accurate, fastest and smallest, what fits, what failed, and what counts as a tie."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

from vitbench.core.records import STATUSES, Cell, format_image_size
from vitbench.core.stats.intervals import Estimate
from vitbench.reports.format import number, plain_text
from vitbench.reports.model.columns import PERCENT, smallest_batch
from vitbench.reports.model.noise import noise_floors
from vitbench.reports.model.pareto import tested_as
from vitbench.reports.model.ranking import ranks
from vitbench.reports.model.rows import Row, build_rows, sort_key
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import CALLS, Search, find_searches, without_bounds, without_searches
from vitbench.reports.model.tables import Column, Display, metric_value
from vitbench.reports.value_text import value_text
from vitbench.suites.batch_search import shown_status

#: Conditions and searches that get a sentence, and models that are named as tied.
_MOST_CONDITIONS, _MOST_SEARCHES, _MOST_NAMES = 3, 3, 3
_MS, _PARAMS = Display("ms", 1e3), Display("M parameters", 1e-6, "counted")


class Span(NamedTuple):
    """A part of a sentence: words, the ``name`` of a model or run, or the number and status of a ``failure``."""

    text: str
    kind: Literal["", "name", "failure"] = ""


Sentence = tuple[Span, ...]


@dataclass(frozen=True)
class Verdict:
    """What a report says first: sentences, and ``facts`` as (value, what it is)."""

    sentences: tuple[Sentence, ...]
    facts: tuple[tuple[str, str], ...]

    @property
    def texts(self) -> list[str]:
        """The sentences without their kinds."""
        return ["".join(span.text for span in sentence) for sentence in self.sentences]


def verdict(runs: Sequence[Run]) -> Verdict:
    """The best of each comparable condition, the largest batches that fit, failures, and the noise floor.

    Accuracies tie unless the 95 % interval of their difference excludes 0 (Newcombe 1998, method 10, from Wilson
    intervals; it takes the test images of both as independent, and is wider than a paired one). Times tie as their
    ranks do: relative to the reference and beyond the noise floor; without a reference where intervals overlap.
    """
    rows, floors = build_rows(without_searches(runs)), noise_floors(runs)
    groups = [group for group in _conditions(rows) if len(group) > 1]
    sentences = [_best_of(group, floors, len(runs) > 1) for group in groups[:_MOST_CONDITIONS]]
    sentences = [one for one in sentences if one]
    if len(groups) > _MOST_CONDITIONS:
        more = len(groups) - _MOST_CONDITIONS
        sentences.append((Span(f"{more} more condition{'s are' if more > 1 else ' is'} in the table."),))
    sentences += _largest(runs)
    records = [record for run in without_bounds(runs) for record in run.records]
    failed = Counter(str(record.status) for record in records if record.status != "ok")
    if records:
        sentences.append(_what_failed(len(records), failed))
    if floors:
        sentences.append(
            (Span(f"Differences in time under {_floor_text(list(floors.values()))} are ties: the noise floor."),)
        )
    seconds = sum(record.duration_s for run in runs for record in run.records)
    facts = [
        (f"{len(records):,}", "cell" if len(records) == 1 else "cells"),
        (f"{(models := len({record.cell.model for record in records})):,}", "model" if models == 1 else "models"),
        *([(f"{failed.total():,}", "failed")] if failed else []),
        *([(_floor_text(list(floors.values())), "noise floor")] if floors else []),
        (f"{seconds / 60:.1f} min", "in total"),
    ]
    return Verdict(tuple(sentences), tuple(facts) if records else ())


def _conditions(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in their models alone, or in the recipes that trained them."""
    groups: dict[tuple[str, str, Cell, tuple[str, ...]], list[Row]] = {}
    for row in sorted(rows, key=sort_key):
        tested = (row.axes["data"], row.axes["training size"], *tested_as(row))
        key = row.run, row.records[0].environment, replace(row.cell, model=""), tested
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _best_of(group: Sequence[Row], floors: dict[tuple[str, str, int], float], several: bool) -> Sentence:
    """``cpu, 32 px. Most accurate: A and B tie, 95.8 %. Fastest and smallest: C, 1.05 ms at batch 1, 0.119 M ...``"""
    batch, cell = smallest_batch(group), group[0].cell
    models = len({row.cell.model for row in group})
    several_models, recipes = models > 1, models < len(group)
    titles: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for title, get, display, found in (
        ("most accurate", partial(Row.trained, metric="accuracy"), PERCENT, _most_accurate(group)),
        (
            "fastest",
            partial(Row.at_smallest_batch, metric="latency"),
            _MS,
            _fastest(group, batch, floors.get((group[0].run, cell.device, cell.threads), 0.0)),
        ),
        ("smallest", partial(Row.fact, metric="params"), _PARAMS, _smallest(group)),
    ):
        # recipes of one model differ in accuracy alone
        if found and (title == "most accurate" or several_models):
            text = value_text(metric_value(get(found[0])), Column(name="", display=display))
            number, space, interval = text.partition(" ")
            text = f"{number} {display.unit}{space}{interval}" + (f" at batch {batch}" if title == "fastest" else "")
            called = [row.cell.model + (f" ({row.axes['recipe']})" if recipes else "") for row in found]
            titles.setdefault(tuple(dict.fromkeys(called)), []).append((title, text))
    if not titles:
        return ()
    where = f"{cell.device}, {format_image_size(cell.image_size)} px."
    spans = [Span(plain_text(group[0].run), "name"), Span(f", {where}")] if several else [Span(where)]
    for names, shown in titles.items():
        best = " and ".join(title for title, _ in shown).replace(" and ", ", ", max(len(shown) - 2, 0))
        spans += [Span(f" {best[0].upper()}{best[1:]}: "), *_names(names)]
        spans.append(Span(f"{' tie' if len(names) > 1 else ''}, {', '.join(text for _, text in shown)}."))
    return tuple(spans)


def _names(models: Sequence[str]) -> list[Span]:
    """``A, B and C``, the best one first; of many the first ones."""
    named = list(models[:_MOST_NAMES])
    more = len(models) - len(named)
    spans: list[Span] = []
    for place, model in enumerate(named):
        last = place == len(named) - 1 and not more
        spans += [Span(" and " if last else ", ")] if place else []
        spans.append(Span(plain_text(model), "name"))
    return [*spans, Span(f" and {more} more")] if more else spans


def _most_accurate(group: Sequence[Row]) -> list[Row]:
    """The row with the highest accuracy, and those that do not clearly differ from it."""
    known = [(found, row) for row in group if (found := row.trained("accuracy").estimate) is not None]
    if not known:
        return []
    known.sort(key=lambda pair: -pair[0].value)
    return [row for found, row in known if not _clearly_less(found, known[0][0])]


def _clearly_less(one: Estimate, best: Estimate) -> bool:
    """Whether the interval of the difference of two proportions excludes 0."""
    if one.high is None or best.low is None:
        return one.value < best.value
    return best.value - one.value > math.hypot(best.value - best.low, one.high - one.value)


def _fastest(group: Sequence[Row], batch: int | None, floor: float) -> list[Row]:
    """The rows of the first rank; without ranks that of the least time, and those whose intervals reach it."""
    rows = [row for row in group if (one := row.at_smallest_batch("latency")).batch_size == batch and one.value]
    if not rows:
        return []
    times = [row.at_smallest_batch("latency") for row in rows]
    found = ranks(times, floor)
    order = sorted(range(len(rows)), key=lambda i: times[i].value or 0.0)
    if all(rank is not None for rank in found):
        return [rows[i] for i in order if (rank := found[i]) is not None and rank[0] == 1]
    ends = [one.estimate_between_runs for one in times]
    reach = _end(ends[order[0]], "high")
    return [rows[i] for i in order if _end(ends[i], "low") <= reach]


def _end(one: Estimate | None, which: Literal["low", "high"]) -> float:
    """An end of the interval; without one the value."""
    assert one is not None
    end: float | None = getattr(one, which)
    return one.value if end is None else end


def _smallest(group: Sequence[Row]) -> list[Row]:
    known = [(value, row) for row in group if (value := row.fact("params").value) is not None]
    least = min((value for value, _ in known), default=None)
    return [row for value, row in known if value == least]


def _largest(runs: Sequence[Run]) -> list[Sentence]:
    """Of each device, call and data type the largest image size at which something fits, and its largest batch."""
    groups: dict[tuple[str, str, str, str], list[Search]] = {}
    for search in find_searches(runs):
        key = search.run.name, search.base.device, search.base.mode, search.base.dtype
        groups.setdefault(key, []).append(search)
    sentences: list[Sentence] = []
    for (run, device, mode, dtype), searches in list(groups.items())[:_MOST_SEARCHES]:
        fitting = [one for one in searches if one.standing.largest]
        where = f"{device}, {CALLS[mode]}, {dtype}: "
        spans = [Span(plain_text(run), "name"), Span(f", {where}")] if len(runs) > 1 else [Span(where)]
        if not fitting:
            sentences.append((*spans, Span("not even one image fits, "), Span("OOM@1", "failure"), Span(".")))
            continue
        best = max(fitting, key=lambda one: (one.base.image_size, one.standing.largest))
        size = format_image_size(best.base.image_size)
        spans.append(Span(f"the largest size that fits is {size} px ("))
        spans += [Span(plain_text(best.base.model), "name"), Span(f", largest batch {best.found})")]
        larger = {one.base.image_size for one in searches} - {one.base.image_size for one in fitting}
        if larger:
            sizes = ", ".join(format_image_size(one) for one in sorted(larger))
            spans += [Span(f"; at {sizes} px nothing does, "), Span("OOM@1", "failure")]
        sentences.append((*spans, Span(".")))
    return sentences


def _what_failed(cells: int, failed: Counter[str]) -> Sentence:
    if not failed:
        return (Span("The cell worked." if cells == 1 else f"All {cells:,} cells worked."),)
    spans = [Span(f"{cells - failed.total():,} of {cells:,} cells worked; ")]
    for place, status in enumerate(one for one in STATUSES if failed[one]):
        spans += [Span(" ")] if place else []
        spans.append(Span(f"{failed[status]:,} {shown_status(status)}", "failure"))
    return (*spans, Span("."))


def _floor_text(floors: Sequence[float]) -> str:
    """``2.0 %``, or ``2.0 to 3.1 %``."""
    ends = dict.fromkeys(number(100 * one, 2) for one in (min(floors), max(floors)))
    return f"{' to '.join(ends)} %"

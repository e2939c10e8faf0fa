"""Bigger model or higher resolution: what each model costs at each image size, and which of two costs less."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitbench.core.stats.comparisons import Ratio
from vitbench.reports.model.columns import DEVICE, MB, MODEL, SIZE, RowColumn, axis_columns
from vitbench.reports.model.misleading import (
    comparable_groups,
    count_of,
    peak_memories,
    quotient,
    ratio_value,
    times_to_order,
    values_at,
)
from vitbench.reports.model.ranking import ratio_of
from vitbench.reports.model.rows import Row, varying_axes
from vitbench.reports.model.tables import (
    Column,
    Display,
    Table,
    Value,
    filled_table,
    metric_value,
    number_value,
    text_value,
)
from vitbench.reports.model.values import MetricValue

#: A bigger model and a higher resolution are alternatives if the FLOPs of one are at most this multiple of the other's.
SAME_BUDGET = 1.5

_TIMES = Display("×")


@dataclass(frozen=True)
class Size:
    """A model at an image size: counts, peak memory in bytes, and latency at the smallest batch; ``order`` as
    ``times_to_order`` gives it.
    """

    row: Row
    batch: int
    flops: float | None
    activations: float | None
    memory: float | None
    latency: MetricValue
    order: float | None


def families(rows: Sequence[Row]) -> list[list[Size]]:
    """Models with latencies at the same two or more image sizes, under the same conditions; by ascending latency."""
    found = []
    for group in comparable_groups([row for row in rows if row.infer], image_size=(1, 1)):
        timed: dict[str, set[tuple[int, int]]] = {}
        for row in group:
            if row.at_smallest_batch("latency").value is not None:
                timed.setdefault(row.cell.model, set()).add(row.cell.image_size)
        shared = {one for one, other in itertools.permutations(timed, 2) if len(timed[one] & timed[other]) > 1}
        family = [row for row in group if row.cell.model in shared]
        if family:
            found.append(_sizes(family))
    return found


def _sizes(family: Sequence[Row]) -> list[Size]:
    batch = min(row.infer[0].cell.batch_size for row in family)
    latencies = values_at(family, "infer", batch, "latency")
    lines = zip(family, peak_memories(family, batch), latencies, times_to_order(latencies), strict=True)
    sizes = [
        Size(row, batch, count_of(row, "flops"), count_of(row, "activations"), memory, latency, order)
        for row, memory, latency, order in lines
    ]
    return sorted(sizes, key=lambda one: (one.order or math.inf, one.flops or math.inf))


def cost_table(found: Sequence[Sequence[Size]]) -> Table:
    """One line a model and image size: its costs, and its latency over that of the one with the fewest FLOPs."""
    conditions = _condition_columns(found)
    batches = {size.batch for family in found for size in family}
    batch = batches.pop() if len(batches) == 1 else None
    columns = (
        *(one.column for one in (*conditions, MODEL, SIZE)),
        Column(name="GFLOPs", display=Display("", 1e-9, "counted")),
        Column(name="activations", display=Display("M", 1e-6, "counted")),
        Column(name="peak memory", display=MB, batch=batch),
        Column(name="latency", display=Display("ms", 1e3), batch=batch),
        Column(name="latency", display=_TIMES),
    )
    lines = []
    for family in found:
        least = min(family, key=lambda one: one.flops or math.inf)
        for one in family:
            line = (
                *(column.value(one.row) for column in (*conditions, MODEL, SIZE)),
                *(number_value(number) for number in (one.flops, one.activations, one.memory)),
                metric_value(one.latency),
                number_value(1.0) if one is least else ratio_value(ratio_of(one.latency, least.latency)),
            )
            lines.append(line)
    return filled_table(columns, lines)


def budget_table(found: Sequence[Sequence[Size]]) -> Table | None:
    """A bigger model at a lower resolution over a smaller one at a higher, for about the same FLOPs: which costs less
    memory and time. None without such two.
    """
    conditions = _condition_columns(found)
    lines = []
    for family in found:
        for bigger, smaller in itertools.permutations(family, 2):
            if _are_alternatives(bigger, smaller):
                memory, time = quotient(bigger.memory, smaller.memory), ratio_of(bigger.latency, smaller.latency)
                line = (
                    *(one.value(bigger.row) for one in conditions),
                    *(text_value(f"{one.row.cell.model} at {one.row.image_size} px") for one in (bigger, smaller)),
                    number_value(quotient(bigger.flops, smaller.flops)),
                    number_value(quotient(bigger.activations, smaller.activations)),
                    number_value(memory),
                    ratio_value(time),
                    _cheaper(memory, time),
                )
                lines.append(line)
    if not lines:
        return None
    columns = [one.column for one in conditions]
    columns += [Column(name=name) for name in ("bigger model", "higher resolution")]
    columns += [Column(name=name, display=_TIMES) for name in ("FLOPs", "activations", "peak memory", "latency")]
    return filled_table([*columns, Column(name="costs less")], lines)


def _are_alternatives(bigger: Size, smaller: Size) -> bool:
    more, fewer = (one.row.fact("params").value or 0 for one in (bigger, smaller))
    pixels, more_pixels = (math.prod(one.row.cell.image_size) for one in (bigger, smaller))
    share = quotient(bigger.flops, smaller.flops)
    near = share is not None and 1 / SAME_BUDGET <= share <= SAME_BUDGET
    return near and more > fewer and pixels < more_pixels


def _cheaper(memory: float | None, time: Ratio | None) -> Value:
    """Which one costs less of both; neither where memory and time disagree or the times cannot be distinguished."""
    if memory is None or time is None:
        return Value()
    if time.tells_apart and memory < 1 and time.value < 1:
        return text_value("bigger model")
    if time.tells_apart and memory > 1 and time.value > 1:
        return text_value("higher resolution")
    return text_value("neither in both")


def _condition_columns(found: Sequence[Sequence[Size]]) -> list[RowColumn]:
    return [DEVICE, *axis_columns(varying_axes([size.row for family in found for size in family]))]

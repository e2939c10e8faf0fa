"""Where FLOPs mislead: what orders models as their cost does, and models of equal FLOPs that take unequal times."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vitbench.core.records import Cell
from vitbench.core.stats.comparisons import Ratio
from vitbench.core.stats.rank_correlation import rank_correlation
from vitbench.reports.model.columns import DEVICE, SIZE, WHOLE, RowColumn, axis_columns
from vitbench.reports.model.ranking import ratio_of
from vitbench.reports.model.roof import CellRoof
from vitbench.reports.model.rows import Row, sort_key, varying_axes
from vitbench.reports.model.tables import Column, Display, Note, Table, Value, filled_table, number_value, text_value
from vitbench.reports.model.values import MetricValue, value_of

#: Two models have equal FLOPs if the larger count is at most this multiple of the smaller,
EQUAL_FLOPS = 1.1
#: and take unequal times if the interval of their ratio lies above this.
UNEQUAL_TIMES = 1.5
#: Pairs in the table, and operators named of each.
MOST_PAIRS, MOST_OPERATORS = 20, 3
#: How many quantities, from the first, others are correlated with; and how many are counts rather than costs.
_PREDICTORS, _COUNTS = 5, 3
#: Peak memory by preference.
_PEAKS = ("tensor_peak", "predicted_peak_memory", "inference_peak_memory")

_CORRELATION = Display(precision="hundredths")
_TIMES = Display("×")
_PERCENT = Display("%", 100, "whole")


class Quantity(NamedTuple):
    """What models are ordered by: the value of each model of a group, None without one."""

    name: str
    batch: int | None
    values: list[float | None]


@dataclass(frozen=True)
class Pair:
    """A call of two models of equal FLOPs, the slower one first, and its time over that of the faster one."""

    call: str
    rows: tuple[Row, Row]
    times: tuple[MetricValue, MetricValue]
    ratio: Ratio

    @property
    def roofs(self) -> list[CellRoof]:
        """What the machine's roof says of both; [] where it does not know one of them."""
        both = zip(self.rows, self.times, strict=True)
        found = [row.roof.of(time.record.cell.id) if row.roof and time.record else None for row, time in both]
        known = [one for one in found if one is not None]
        return known if len(known) == 2 else []


def comparable_groups(rows: Sequence[Row], **any_other: Any) -> list[list[Row]]:
    """The models measured under the same conditions (run, environment, device, image size, threads, dtype and so on),
    one row each. ``any_other``: fields of a cell that may differ, with a value that stands for all.
    """
    groups: dict[tuple[str, str, Cell], dict[Cell, Row]] = {}
    for row in sorted(rows, key=sort_key):
        if row.infer or row.train:
            key = row.run, row.records[0].environment, replace(row.cell, model="", **any_other)
            # a row is repeated for each training
            groups.setdefault(key, {}).setdefault(row.cell, replace(row, training=None))
    return [list(group.values()) for group in groups.values()]


def correlation_table(rows: Sequence[Row]) -> Table | None:
    """One line for each quantity of a group, with its rank correlations with the quantities before it; None unless
    ``MIN_VALUES`` models of a group have a measured cost.
    """
    groups = comparable_groups(rows)
    conditions = _condition_columns([row for group in groups for row in group])
    lines, batches = [], set()
    for group in groups:
        quantities = quantities_of(group)
        found = [_correlations(quantities, place) for place in range(len(quantities))]
        known = [place for place, values in enumerate(found) if any(value.number is not None for value in values)]
        if not known or known[-1] < _COUNTS:
            continue
        batches.add(quantities[_PREDICTORS - 1].batch)
        for place in known:
            name, batch, values = quantities[place]
            head = text_value(name if batch is None else f"{name} b{batch}"), number_value(_known(values))
            lines.append((*(one.value(group[0]) for one in conditions), *head, *found[place]))
    if not lines:
        return None
    batch = batches.pop() if len(batches) == 1 else None
    columns = [*(one.column for one in conditions), Column(name="order by"), Column(name="models", display=WHOLE)]
    columns += [Column(name=name, display=_CORRELATION) for name in ("params", "FLOPs", "activations")]
    columns += [Column(name=name, display=_CORRELATION, batch=batch) for name in ("peak memory", "latency")]
    return filled_table(columns, lines)


def quantities_of(group: Sequence[Row]) -> list[Quantity]:
    """Parameters, FLOPs and activations; peak memory and latency at the smallest batch, latency at the largest, the
    best throughput, and the training step at the largest batch.
    """
    infer, train = _batches(group, "infer"), _batches(group, "train")
    quantities = [
        Quantity("params", None, [row.fact("params").value for row in group]),
        Quantity("FLOPs", None, [count_of(row, "flops") for row in group]),
        Quantity("activations", None, [count_of(row, "activations") for row in group]),
        Quantity("peak memory", infer[0], peak_memories(group, infer[0])),
        Quantity("latency", infer[0], times_to_order(values_at(group, "infer", infer[0], "latency"))),
    ]
    steps = times_to_order(values_at(group, "train", train[-1], "training_step"))
    if len(infer) > 1:
        latencies = times_to_order(values_at(group, "infer", infer[-1], "latency"))
        quantities.append(Quantity("latency", infer[-1], latencies))
    return [
        *quantities,
        Quantity("throughput", None, [row.best_throughput().value for row in group]),
        Quantity("training step", train[-1], steps),
    ]


def count_of(row: Row, metric: str) -> float | None:
    """An exact count; None for a lower bound."""
    found = row.fact(metric)
    return None if found.measurement is None or found.measurement.lower_bound else found.value


def peak_memories(group: Sequence[Row], batch: int | None) -> list[float | None]:
    """Bytes at the peak of a forward pass: of tensors, counted or predicted, or what the system saw; the first that
    most models have.
    """
    found = ([one.value for one in values_at(group, "infer", batch, metric)] for metric in _PEAKS)
    return max(found, key=_known)


def unequal_pairs(rows: Sequence[Row]) -> tuple[list[Pair], int]:
    """Models of equal FLOPs that take unequal times under the same conditions, the most unequal first; and how many
    calls of models of equal FLOPs were compared.
    """
    found, compared = [], 0
    for group in comparable_groups(rows):
        calls = [("infer", batch, "latency") for batch in _batches(group, "infer")]
        calls.append(("train", _batches(group, "train")[-1], "training_step"))
        counted = [(row, flops) for row in group if (flops := count_of(row, "flops"))]
        for (one, flops), (other, others) in itertools.combinations(counted, 2):
            if max(flops, others) <= EQUAL_FLOPS * min(flops, others):
                pairs = [pair for call in calls if (pair := _pair_of(one, other, *call))]
                compared += len(pairs)
                found += [pair for pair in pairs if pair.ratio.low > UNEQUAL_TIMES]
    return sorted(found, key=lambda pair: -pair.ratio.value), compared


def _pair_of(one: Row, other: Row, mode: str, batch: int | None, metric: str) -> Pair | None:
    times = values_at([one, other], mode, batch, metric)
    ratio = ratio_of(*times)
    if ratio is not None and ratio.value < 1:
        return _pair_of(other, one, mode, batch, metric)
    return Pair(f"{metric.replace('_', ' ')} b{batch}", (one, other), (times[0], times[1]), ratio) if ratio else None


def pair_table(pairs: Sequence[Pair]) -> Table:
    """One line a pair, the slower model over the faster."""
    conditions = _condition_columns([row for pair in pairs for row in pair.rows])
    names = [*(one.column for one in conditions), *(Column(name=name) for name in ("slower", "faster", "call"))]
    columns = (*names, *(Column(name=name, display=_TIMES) for name in ("FLOPs", "activations", "time")))
    columns += (Column(name="operators"), Column(name="explained", display=_PERCENT), Column(name="calls"))
    lines = [
        (
            *(one.value(pair.rows[0]) for one in conditions),
            *(text_value(text) for text in (*(row.cell.model for row in pair.rows), pair.call)),
            *(number_value(quotient(*(count_of(row, one) for row in pair.rows))) for one in ("flops", "activations")),
            ratio_value(pair.ratio),
            *_operator_values(pair),
        )
        for pair in pairs[:MOST_PAIRS]
    ]
    return filled_table(columns, lines)


def _operator_values(pair: Pair) -> tuple[Value, Value, Value]:
    """The operators whose times at the roof differ most, slower minus faster; what share of the measured difference all
    of them explain; and how many operators each model dispatches.
    """
    if not pair.roofs:
        return Value(), Value(), Value()
    slower, faster = pair.roofs
    differences = Counter({one.name: one.roof_s for one in slower.operators})
    differences.subtract({one.name: one.roof_s for one in faster.operators})
    most = sorted(differences, key=lambda name: -abs(differences[name]))[:MOST_OPERATORS]
    gap = slower.measured_s - faster.measured_s  # of seconds, which drift: its sign can be wrong
    calls = " / ".join(str(sum(operator.calls for operator in one.operators)) for one in pair.roofs)
    return (
        text_value(", ".join(f"{name} {1e3 * differences[name]:+.2g} ms" for name in most)),
        number_value(sum(differences.values()) / gap if gap > 0 else None),
        text_value(calls),
    )


def _condition_columns(rows: Sequence[Row]) -> list[RowColumn]:
    return [DEVICE, SIZE, *axis_columns(varying_axes(rows))]


def _batches(group: Sequence[Row], mode: str) -> list[int | None]:
    """In ascending order; None alone if nothing was called in that mode."""
    records = [record for row in group for record in (row.infer if mode == "infer" else row.train)]
    return [*sorted({record.cell.batch_size for record in records})] or [None]


def values_at(group: Sequence[Row], mode: str, batch: int | None, metric: str) -> list[MetricValue]:
    """The metric of each model's call of that batch."""
    calls = [row.infer if mode == "infer" else row.train for row in group]
    found = [next((record for record in call if record.cell.batch_size == batch), None) for call in calls]
    return [value_of(record, metric) for record in found]


def times_to_order(times: Sequence[MetricValue]) -> list[float | None]:
    """Times relative to the reference where all have one, since the machine's speed drifts; otherwise seconds."""
    relative = all(one.relative for one in times if one.value is not None)
    return [one.relative.value if relative and one.relative else one.value for one in times]


def _known(values: Sequence[float | None]) -> int:
    return len(values) - values.count(None)


def quotient(one: float | None, other: float | None) -> float | None:
    """None where one of the two is unknown."""
    return one / other if one is not None and other else None


def ratio_value(ratio: Ratio | None) -> Value:
    """With its interval; an empty value for None."""
    return Value(number=ratio.value, interval=(ratio.low, ratio.high), status="ok") if ratio else Value()


def _correlations(quantities: Sequence[Quantity], place: int) -> list[Value]:
    """Of the quantity at that place with each predictor before it."""
    shown = []
    for index, predictor in enumerate(quantities[:_PREDICTORS]):
        both = zip(quantities[place].values, predictor.values, strict=True)
        pairs = [(one, other) for one, other in both if one is not None and other is not None]
        found = rank_correlation(*zip(*pairs, strict=True)) if pairs and index < place else None
        if found is None:
            shown.append(Value())
            continue
        note = Note("models", found.n) if found.n != _known(quantities[place].values) else None
        shown.append(Value(number=found.value, interval=(found.low, found.high), status="ok", note=note))
    return shown

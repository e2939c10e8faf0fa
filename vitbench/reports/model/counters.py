"""Our FLOPs beside those of other counting tools, and why they differ."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.reports.model.rows import Row
from vitbench.reports.model.tables import (
    IMAGE_SIZE,
    Column,
    Display,
    Table,
    Value,
    metric_value,
    number_value,
    text_value,
)
from vitbench.reports.model.values import MetricValue

#: Differences below this share are rounding.
SAME = 5e-5

_GFLOPS = Display("GFLOPs", 1e-9, "counted")
_CHANGE = Display("%", 100, "change")


def compare_counters(rows: Sequence[Row]) -> tuple[Table, list[str]] | None:
    """One line a model, image size, number of classes and attention implementation; None without counts.

    Beside the table the reasons that its last column refers to by number, from 1: the names of known ones, and what a
    tool printed when it failed.
    """
    compared = _distinct(rows)
    if not compared:
        return None
    reasons: dict[str, int] = {}
    lines = []
    with_classes = len({row.cell.num_classes for row in compared}) > 1
    for row in compared:
        ours, fvcore, thop = row.fact("flops"), row.fact("flops_fvcore"), row.fact("flops_thop")
        why = _reasons(ours, fvcore, thop, row.cell.attention)
        marks = [reasons.setdefault(reason, len(reasons) + 1) for reason in why]
        line = (
            text_value(row.cell.model),
            text_value(row.image_size),
            *([text_value(str(row.cell.num_classes))] if with_classes else []),
            text_value(row.cell.attention),
            metric_value(ours),
            metric_value(fvcore),
            number_value(_difference(fvcore, ours)),
            metric_value(thop),
            number_value(_difference(thop, ours)),
            text_value(", ".join(f"({mark})" for mark in sorted(marks))) if marks else Value(),
        )
        lines.append(line)
    columns = (
        *(Column(name="model"), Column(name="image size", display=IMAGE_SIZE)),
        *([Column(name="classes")] if with_classes else []),
        *(Column(name="attention"), Column(name="GFLOPs", display=Display("", 1e-9, "counted"))),
        *(Column(name="fvcore", display=_GFLOPS), Column(name="fvcore - ours", display=_CHANGE)),
        *(Column(name="thop", display=_GFLOPS), Column(name="thop - ours", display=_CHANGE), Column(name="why")),
    )
    return Table(columns, tuple(lines)), list(reasons)


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """One row of those with counts that must be the same, in order of model and image size."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        cell = row.cell
        if not any(record.measurement(f"flops_{tool}") for record in row.records for tool in ("fvcore", "thop")):
            continue
        values = tuple(row.fact(metric).value for metric in ("flops", "flops_fvcore", "flops_thop"))
        found.setdefault((cell.model, cell.image_size, cell.num_classes, cell.attention, cell.options, values), row)
    return sorted(found.values(), key=lambda row: (row.cell.image_size, row.cell.model, row.cell.attention))


def _difference(other: MetricValue, ours: MetricValue) -> float | None:
    return None if other.value is None or not ours.value else other.value / ours.value - 1


def _reasons(ours: MetricValue, fvcore: MetricValue, thop: MetricValue, attention: str) -> list[str]:
    """The known reasons that can explain each difference, and what each tool printed when it failed."""
    reasons = []
    listed = fvcore.detail.startswith("operators without a formula")
    fused = attention == "fused" and ("scaled_dot_product_attention" in fvcore.detail or not listed)
    for other, less, more in (
        (fvcore, "fvcore_fused" if fused else "fvcore_other", "fvcore_extra"),
        (thop, "thop_modules", "thop_extra"),
    ):
        if other.measurement is not None and other.value is None and other.detail:
            reasons.append(other.detail)
        elif other.value is not None and ours.value and abs(other.value / ours.value - 1) > SAME:
            reasons.append(less if other.value < ours.value else more)
    return reasons

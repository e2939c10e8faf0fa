"""Our FLOPs beside those of other counting tools, and why they differ."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.reports.model.columns import MODEL, SIZE, RowColumn, axis_columns, table_of
from vitbench.reports.model.rows import Row
from vitbench.reports.model.tables import Column, Display, Table, Value, metric_value, number_value, text_value
from vitbench.reports.model.values import MetricValue

#: Differences below this share are rounding.
SAME = 5e-5

_GFLOPS = Display("GFLOPs", 1e-9, "counted")


def compare_counters(rows: Sequence[Row]) -> tuple[Table, list[str]] | None:
    """One line a model, image size, number of classes and attention implementation; None without counts.

    Beside the table the reasons that its last column refers to by number, from 1: the names of known ones, and what a
    tool printed when it failed.
    """
    compared = _distinct(rows)
    if not compared:
        return None
    reasons: dict[str, int] = {}

    def why(row: Row) -> Value:
        marks = sorted(reasons.setdefault(reason, len(reasons) + 1) for reason in _reasons(row))
        return text_value(", ".join(f"({mark})" for mark in marks)) if marks else Value()

    with_classes = len({row.cell.num_classes for row in compared}) > 1
    columns = [
        *(MODEL, SIZE, *axis_columns(["classes", "attention"] if with_classes else ["attention"])),
        _count_column("GFLOPs", "flops", Display("", 1e-9, "counted")),
        *(_count_column("fvcore", "flops_fvcore", _GFLOPS), _difference_column("fvcore")),
        *(_count_column("thop", "flops_thop", _GFLOPS), _difference_column("thop")),
        RowColumn(Column(name="why"), why),
    ]
    return table_of(columns, compared), list(reasons)


def _count_column(name: str, metric: str, display: Display) -> RowColumn:
    return RowColumn(Column(name=name, display=display), lambda row: metric_value(row.fact(metric)))


def _difference_column(tool: str) -> RowColumn:
    column = Column(name=f"{tool} - ours", display=Display("%", 100, "change"))
    return RowColumn(column, lambda row: number_value(_difference(row.fact(f"flops_{tool}"), row.fact("flops"))))


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
    bound = ours.measurement is not None and ours.measurement.lower_bound
    return None if other.value is None or not ours.value or bound else other.value / ours.value - 1


def _reasons(row: Row) -> list[str]:
    """The known reasons that can explain each difference, and what each tool printed when it failed."""
    ours, fvcore, thop = row.fact("flops"), row.fact("flops_fvcore"), row.fact("flops_thop")
    reasons = []
    listed = fvcore.detail.startswith("operators without a formula")
    fused = row.cell.attention == "fused" and ("scaled_dot_product_attention" in fvcore.detail or not listed)
    for other, less, more in (
        (fvcore, "fvcore_fused" if fused else "fvcore_other", "fvcore_extra"),
        (thop, "thop_modules", "thop_extra"),
    ):
        if other.measurement is not None and other.value is None and other.detail:
            reasons.append(other.detail)
        elif (difference := _difference(other, ours)) is not None and abs(difference) > SAME:
            reasons.append(less if difference < 0 else more)
    return reasons

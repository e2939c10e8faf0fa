"""What peak memory is made of: tensors by category, and what the system saw beyond them."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.reports.model.columns import MB, axis_columns, model_column, place_columns
from vitbench.reports.model.rows import Row, sort_key
from vitbench.reports.model.tables import Column, Display, Table, metric_value, number_value, text_value
from vitbench.reports.model.values import MetricValue, value_of

PARTS = ("weights", "batch", "gradients", "optimizer", "activations")
TENSORS = Display("MB", 1e-6, "counted")
BEYOND = Display("MB", 1e-6, "rough")


def memory_table(rows: Sequence[Row], axes: Sequence[str]) -> Table | None:
    """One line a call (inference at the smallest batch, a training step at the largest); None without values."""
    names = [model_column(), *place_columns(), *axis_columns(axes)]
    lines = []
    for row in sorted(rows, key=sort_key):
        for call, records, system in (
            ("inference", row.infer[:1], "inference_peak_memory"),
            ("training step", row.train[-1:], "training_peak_memory"),
        ):
            for record in records:
                tensors, seen = value_of(record, "tensor_peak"), value_of(record, system)
                if tensors.value is None:
                    continue
                line = (
                    *(one.value(row) for one in names),
                    text_value(f"{call} b{record.cell.batch_size}"),
                    metric_value(seen, MB),
                    metric_value(tensors, TENSORS),
                    *(metric_value(value_of(record, f"tensor_peak_{part}"), TENSORS) for part in PARTS),
                    number_value(_beyond(seen, tensors), BEYOND),
                )
                lines.append(line)
    if not lines:
        return None
    columns = [one.column for one in names]
    columns += [Column(name="call"), Column(name="system", display=MB), Column(name="tensors", display=TENSORS)]
    columns += [Column(name=part, display=TENSORS) for part in PARTS]
    return Table((*columns, Column(name="beyond tensors", display=BEYOND)), tuple(lines))


def _beyond(system: MetricValue, tensors: MetricValue) -> float | None:
    if system.value is None or tensors.value is None:
        return None
    return system.value - tensors.value

"""What the memory at the peak is made of: tensors by what they are, and what the system saw beyond them."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.reports.format import NOT_ASKED, cell_text, number, table
from vitbench.reports.model.columns import Column, axis_columns, model_column, show
from vitbench.reports.model.rows import Figure, Row, figure, image_size_text, place_key

PARTS = ("weights", "batch", "gradients", "optimizer", "activations")

MEMORY_TEXT = (
    "Tensors are added up exactly, operator by operator, at the worst moment of a call; weights to activations are "
    "what they are at that moment, temporary results among the activations. The system's figure is the peak of the "
    "main table. What it holds beyond tensors is workspace of kernels and libraries, rounding by the allocator and, on "
    "a CPU, the error of the kernel's own count; below 0: tensors that were never written to, or pages that were there "
    "before."
)


def memory_table(rows: Sequence[Row], axes: Sequence[str]) -> str:
    """A Markdown table, one line a call (inference at the smallest batch, a training step at the largest); empty
    without figures.
    """
    where = [Column("device", lambda row: cell_text(row.cell.device), True), Column("px", image_size_text, True)]
    names = [model_column(), *where, *axis_columns(axes)]
    lines = []
    for row in sorted(rows, key=place_key):
        for call, records, system in (
            ("inference", row.infer[:1], "inference_peak_memory"),
            ("training step", row.train[-1:], "training_peak_memory"),
        ):
            for record in records:
                tensors = figure(record, "tensor_peak")
                if tensors.value is None:
                    continue
                seen = figure(record, system)
                parts = [figure(record, f"tensor_peak_{part}") for part in PARTS]
                lines.append(
                    [
                        *(column.text(row) for column in names),
                        f"{call} b{record.cell.batch_size}",
                        show(seen, 1e-6),
                        show(tensors, 1e-6, 4),
                        *(show(part, 1e-6, 4) for part in parts),
                        _beyond(seen, tensors),
                    ]
                )
    if not lines:
        return ""
    texts = [column.heading for column in names if column.is_text] + ["call"]
    headings = ["call", "system (MB)", "tensors (MB)", *(f"{part} (MB)" for part in PARTS), "beyond tensors (MB)"]
    return table([*(column.heading for column in names), *headings], lines, texts)


def _beyond(system: Figure, tensors: Figure) -> str:
    if system.value is None or tensors.value is None:
        return NOT_ASKED
    difference = (system.value - tensors.value) * 1e-6
    return f"{'-' if difference < 0 else ''}{number(abs(difference), 2)}"

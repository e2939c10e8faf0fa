"""Our FLOPs beside those of fvcore and thop, and why they differ."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.reports.format import NOT_ASKED, cell_text, percent, table
from vitbench.reports.model.columns import EXACT_DIGITS, show
from vitbench.reports.model.rows import Figure, Row, image_size_text

#: Differences below this share are rounding.
SAME = 5e-5

FVCORE_FUSED = "fvcore has no formula for fused attention and leaves it out"
FVCORE_OTHER = "fvcore leaves out operators that it has no formula for (`baddbmm`, ...)"
FVCORE_EXTRA = "fvcore adds LayerNorm (5 per element), BatchNorm, resizing and pooling"
THOP_MODULES = "thop counts modules only: not `@`, `F.linear`, `bmm`, einsum, nor bare parameters"
THOP_EXTRA = "thop adds softmax and norm modules and takes transposed convolutions 4 times"


def counters_table(rows: Sequence[Row]) -> str:
    """A Markdown table, one line a model, image size, classes and kind of attention; empty without figures."""
    compared = _distinct([row for row in rows if _asked(row)])
    if not compared:
        return ""
    reasons: dict[str, int] = {}
    lines = []
    with_classes = len({row.cell.num_classes for row in compared}) > 1
    for row in compared:
        ours, fvcore, thop = row.fact("flops"), row.fact("flops_fvcore"), row.fact("flops_thop")
        why = _reasons(ours, fvcore, thop, row.cell.attention)
        marks = [reasons.setdefault(reason, len(reasons) + 1) for reason in why]
        lines.append(
            [
                cell_text(row.cell.model),
                image_size_text(row),
                *([str(row.cell.num_classes)] if with_classes else []),
                cell_text(row.cell.attention),
                show(ours, 1e-9, EXACT_DIGITS),
                show(fvcore, 1e-9, EXACT_DIGITS),
                _difference(fvcore, ours),
                show(thop, 1e-9, EXACT_DIGITS),
                _difference(thop, ours),
                ", ".join(f"({mark})" for mark in sorted(marks)) or NOT_ASKED,
            ]
        )
    classes = ["classes"] if with_classes else []
    texts = ["model", "image size (px)", *classes, "attention"]
    figures = ["GFLOPs", "fvcore (GFLOPs)", "fvcore - ours (%)", "thop (GFLOPs)", "thop - ours (%)", "why"]
    notes = [f"({mark}) {reason}." for reason, mark in reasons.items()]
    return table([*texts, *figures], lines, [*texts, "why"]) + ("\n\n" + "  \n".join(notes) if notes else "")


def _asked(row: Row) -> bool:
    return any(record.measurement(metric) for record in row.records for metric in ("flops_fvcore", "flops_thop"))


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """One row of those that must have the same figures, in order of model and image size."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        cell = row.cell
        values = tuple(row.fact(metric).value for metric in ("flops", "flops_fvcore", "flops_thop"))
        found.setdefault((cell.model, cell.image_size, cell.num_classes, cell.attention, cell.options, values), row)
    return sorted(found.values(), key=lambda row: (row.cell.image_size, row.cell.model, row.cell.attention))


def _difference(other: Figure, ours: Figure) -> str:
    if other.value is None or not ours.value:
        return NOT_ASKED
    return percent(other.value / ours.value - 1)


def _reasons(ours: Figure, fvcore: Figure, thop: Figure, attention: str) -> list[str]:
    """The known reasons that can be behind each difference, and what each tool said where it broke."""
    reasons = []
    listed = fvcore.detail.startswith("operators without a formula")
    fused = attention == "fused" and ("scaled_dot_product_attention" in fvcore.detail or not listed)
    for other, less, more in (
        (fvcore, FVCORE_FUSED if fused else FVCORE_OTHER, FVCORE_EXTRA),
        (thop, THOP_MODULES, THOP_EXTRA),
    ):
        if other.measurement is not None and other.value is None and other.detail:
            reasons.append(cell_text(other.detail).rstrip("."))
        elif other.value is not None and ours.value and abs(other.value / ours.value - 1) > SAME:
            reasons.append(less if other.value < ours.value else more)
    return reasons

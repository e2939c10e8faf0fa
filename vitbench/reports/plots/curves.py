"""Loss and accuracy by epoch: of one training, and of several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitbench.core.run_folder import write_atomically
from vitbench.core.text import one_line
from vitbench.reports.plots.style import new_figure, open_frame, render_png
from vitbench.reports.training import held_out_name, setting_text

#: More curves than these cannot be distinguished.
_MOST_CURVES = 10
#: Up to so many epochs each has a marker.
_MARKED = 30


def write_curves(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Loss and accuracy of one training, on training and held-out images, as PNG at ``path``."""
    if not rows:
        return
    from matplotlib.ticker import MaxNLocator

    which = held_out_name(rows)
    epochs = [row["epoch"] for row in rows]
    figure = new_figure((9.0, 3.8), dpi=120)
    figure.suptitle(one_line(title, 120), fontsize=11, parse_math=False)
    left, right = figure.subplots(1, 2)
    marker = "o" if len(rows) <= _MARKED else ""
    for axes, key, scale, label in ((left, "loss", 1.0, "loss (nat)"), (right, "accuracy", 100.0, "accuracy (%)")):
        style: dict[str, Any] = {"marker": marker, "ms": 3, "lw": 1.4}
        for name, colour, shown in (
            ("train", "tab:blue", "training, as augmented"),
            (which, "tab:orange", f"{which} images"),
        ):
            axes.plot(epochs, [scale * row[f"{name}_{key}"] for row in rows], **style, color=colour, label=shown)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if epochs[-1] >= 3:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        open_frame(axes)
    left.legend(fontsize=8, frameon=False)
    write_atomically(path, render_png(figure))


def write_sweep_curves(courses: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Accuracy of several trainings: held-out images as lines, training images dashed, one colour a setting."""
    drawn = [course for course in courses if course.get("history")]
    if not drawn:
        return
    drawn = sorted(drawn, key=lambda one: -one["figures"]["last"]["test_accuracy"])
    figure = new_figure((9.0, 4.6), dpi=120)
    axes = figure.subplots()
    for index, course in enumerate(drawn[:_MOST_CURVES]):
        rows = course["history"]
        which = held_out_name(rows)
        epochs = [row["epoch"] for row in rows]
        marker = "o" if len(rows) <= _MARKED else ""
        colour = f"C{index}"
        label = ", ".join(f"{key} {setting_text(value)}" for key, value in course["changes"].items()) or course["name"]
        label = one_line(label, 80)
        axes.plot(epochs, [100 * r[f"{which}_accuracy"] for r in rows], color=colour, marker=marker, ms=3, label=label)
        axes.plot(epochs, [100 * r["train_accuracy"] for r in rows], color=colour, ls="--", lw=0.9)
    more = f" (the best {_MOST_CURVES} of {len(drawn)})" if len(drawn) > _MOST_CURVES else ""
    what = f"{one_line(title, 80)}{more}: held-out (lines) and training (dashed)"
    axes.set_title(what, fontsize=10, parse_math=False)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (%)")
    open_frame(axes)
    legend = figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=2)
    for text in legend.get_texts():
        text.set_parse_math(False)
    write_atomically(path, render_png(figure))

"""Loss and accuracy by epoch, of one training and of several side by side; the training loss of runs by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitbench.core.run_folder import write_atomically
from vitbench.core.text import one_line
from vitbench.reports.model.curves import Curve
from vitbench.reports.palette import LIGHT
from vitbench.reports.plots.style import MOST_SERIES, add_legend, new_figure, open_frame, render, series_style
from vitbench.reports.training import held_out_name, setting_text

#: More curves than these would need other lines, which tell training from held-out images.
_MOST_CURVES = len(LIGHT)
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
            ("train", LIGHT[0], "training, as augmented"),
            (which, LIGHT[1], f"{which} images"),
        ):
            axes.plot(epochs, [scale * row[f"{name}_{key}"] for row in rows], **style, color=colour, label=shown)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if epochs[-1] >= 3:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        open_frame(axes)
    left.legend(fontsize=8, frameon=False)
    write_atomically(path, render(figure, ".png"))


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
        colour = LIGHT[index]
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
    add_legend(figure)
    write_atomically(path, render(figure, ".png"))


def draw_losses(curves: Sequence[Curve], suffix: str) -> bytes:
    """The training loss by optimizer step: thin as recorded, thick a running mean of nine."""
    shown = curves[:MOST_SERIES]
    figure = new_figure((8, 4.4 + 0.1 * len(shown)), dpi=150)
    axes = figure.subplots()
    for index, curve in enumerate(shown):
        style = series_style(index)
        axes.plot(curve.steps, curve.loss, color=style["color"], lw=0.7, alpha=0.35)
        near = [curve.loss[max(0, place - 4) : place + 5] for place in range(len(curve.loss))]
        means, every = [math.fsum(one) / len(one) for one in near], max(1, len(near) // 8)
        label = one_line(curve.label, 80)
        axes.plot(curve.steps, means, **style, lw=1.6, ms=4.5, markevery=(index % every, every), label=label)
    of = "" if len(shown) == len(curves) else f", {len(shown)} of {len(curves)} trainings"
    axes.set_title(f"Training loss{of}: thin as recorded, thick a running mean of nine", fontsize=11)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (nat)")
    open_frame(axes)
    add_legend(figure)
    return render(figure, suffix)

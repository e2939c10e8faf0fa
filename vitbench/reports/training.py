"""A training for people: its history as CSV, its curves as a picture, its report as Markdown. Loads no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitbench.core.run_folder import write_atomically
from vitbench.core.stats.statistics import wilson_interval
from vitbench.core.text import csv_value, one_line
from vitbench.reports.format import cell_text, number, table

#: Epochs in the report's table: the first, the last, and some between.
_SHOWN_EPOCHS = 12


def history_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line an epoch; the columns are those of the first row (accuracies are fractions, losses in nat)."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: csv_value(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def held_out_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the epochs were tested on: ``validation`` or ``test``."""
    return "validation" if rows and "validation_loss" in rows[0] else "test"


def write_curves(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Loss and accuracy by epoch, training and held-out pictures in one picture each, as PNG at ``path``."""
    if not rows:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    which = held_out_name(rows)
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(9.0, 3.8), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    figure.suptitle(one_line(title, 120), fontsize=11, parse_math=False)
    left, right = figure.subplots(1, 2)
    marker = "o" if len(rows) <= 30 else ""
    for axes, key, scale, label in (
        (left, "loss", 1.0, "loss (nat)"),
        (right, "accuracy", 100.0, "accuracy (%)"),
    ):
        for name, colour, said in (
            ("train", "tab:blue", "training, as augmented"),
            (which, "tab:orange", f"{which} pictures"),
        ):
            values = [scale * row[f"{name}_{key}"] for row in rows]
            axes.plot(epochs, values, marker=marker, ms=3, lw=1.4, color=colour, label=said)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if epochs[-1] >= 3:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, color="0.92")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    left.legend(fontsize=8, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_atomically(path, picture.getvalue())


def training_markdown(figures: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """The report of one training: what was done, what came of it, its course."""
    tested = [
        [
            name,
            f"{figures[key].get('epoch', figures['epochs']):g}",
            _accuracy(figures[key], figures["test_images"]),
            number(figures[key]["test_loss"]),
        ]
        for key, name in (("last", "last"), ("best", "best on validation"))
        if key in figures
    ]
    sizes = figures["class_sizes"]
    equal = max(sizes) - min(sizes) <= 1
    lines = [
        f"# {cell_text(title)}",
        "",
        table(["weights", "epoch", "test accuracy % [95 %]", "test loss (nat)"], tested, ["weights"]),
        "",
        f"- {figures['training_images']:,} training pictures"
        + ("" if equal else f" (by class: {', '.join(map(str, sizes))})")
        + f", {figures['validation_images']:,} for validation, {figures['test_images']:,} for the test; "
        f"{figures['images_seen']:,} seen in {figures['steps']:,} steps, {figures['epochs']:g} epochs; "
        f"ended by: {figures['stopped_because']}.",
        f"- Recipe {cell_text(figures['recipe'])} ({figures['recipe_hash']}), seed {figures['seed']}, began with "
        f"{cell_text(figures['origin'])}, on {figures['device']}"
        + (f" in {figures['processes']} processes" if figures["processes"] > 1 else "")
        + ("" if figures["amp"] == "off" else f", autocast {figures['amp']}")
        + f"; {figures['trainable_params']:,} of {figures['params']:,} parameters trained.",
        "- Accuracy is top-1 on the test pictures, with its Wilson interval, which covers the choice of pictures, "
        "not that of "
        "the seed. The training's own figures are of pictures as augmented and mixed, in training mode; its loss is "
        "what the steps lowered, with the recipe's label smoothing and class weights and the model's own auxiliary "
        "loss, where there are such; the test's is the mean cross entropy.",
        "",
        "![curves](curves.png)",
        "",
        _course(rows),
    ]
    return "\n".join(lines) + "\n"


def _accuracy(figures: Mapping[str, Any], total: int) -> str:
    low, high = wilson_interval(figures["test_correct"], total)
    return f"{100 * figures['test_accuracy']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def _course(rows: Sequence[Mapping[str, Any]]) -> str:
    which = held_out_name(rows)
    step = max(1, -(-len(rows) // _SHOWN_EPOCHS))
    shown = [row for index, row in enumerate(rows) if index % step == 0 or index == len(rows) - 1]
    lines = [
        [
            f"{row['epoch']:g}",
            f"{row['learning_rate']:.3g}",
            number(row["train_loss"]),
            f"{100 * row['train_accuracy']:.2f}",
            number(row[f"{which}_loss"]),
            f"{100 * row[f'{which}_accuracy']:.2f}",
        ]
        for row in shown
    ]
    headings = ["epoch", "learning rate", "train loss", "train %", f"{which} loss", f"{which} %"]
    return table(headings, lines, [])

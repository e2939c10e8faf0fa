"""One training as people read it: its history as CSV, its report as Markdown. Loads no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from vitbench.core.stats.intervals import wilson_interval
from vitbench.core.text import csv_value
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


def training_markdown(figures: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """The report of one training: what was done, the results, and every epoch."""
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
        f"- {figures['training_images']:,} training images"
        + ("" if equal else f" (by class: {', '.join(map(str, sizes))})")
        + f", {figures['validation_images']:,} for validation, {figures['test_images']:,} for the test; "
        f"{figures['images_seen']:,} seen in {figures['steps']:,} steps, {figures['epochs']:g} epochs; "
        f"ended by: {figures['stopped_because']}.",
        f"- Recipe {cell_text(figures['recipe'])} ({figures['recipe_hash']}), seed {figures['seed']}, began with "
        f"{cell_text(figures['origin'])}, on {figures['device']}"
        + (f" in {figures['processes']} processes" if figures["processes"] > 1 else "")
        + ("" if figures["amp"] == "off" else f", autocast {figures['amp']}")
        + f"; {figures['trainable_params']:,} of {figures['params']:,} parameters trained.",
        "- Accuracy is top-1 on the test images, with its Wilson interval, which covers the choice of images, not that "
        "of the seed. Training accuracy and loss are of images as augmented and mixed, in training mode. The training "
        "loss is what the steps lowered, with the recipe's label smoothing and class weights and the model's own "
        "auxiliary loss; the test loss is the mean cross entropy.",
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


def setting_text(value: Any) -> str:
    """The value of a setting as it would be given: ``none``, ``a+b``, ``0.001``."""
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return "+".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)

"""Trainings as people read them, one or several side by side: CSV and Markdown. Loads no torch."""

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
    return _csv_text(list(rows[0]), rows) if rows else ""


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


def sweep_lines(courses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line a setting: what it changes, and its results (``epochs_done``; accuracies are fractions, losses in nat)."""
    lines = []
    for course in courses:
        line: dict[str, Any] = {"name": course["name"], **course["changes"], "status": course["status"]}
        figures, rows = course.get("figures"), course.get("history") or []
        if figures:
            last = figures["last"]
            line |= {
                "epochs_done": figures["epochs"],  # ``epochs`` may be what is varied
                "train_loss": rows[-1]["train_loss"] if rows else None,
                "train_accuracy": rows[-1]["train_accuracy"] if rows else None,
                "test_loss": last["test_loss"],
                "test_accuracy": last["test_accuracy"],
                "test_images": figures["test_images"],
                "best_epoch": figures.get("best", {}).get("epoch"),
                "best_test_accuracy": figures.get("best", {}).get("test_accuracy"),
                "training_duration_s": figures["training_duration_s"],
            }
        line["detail"] = course["detail"] if course["status"] != "ok" else ""
        lines.append(line)
    return lines


def sweep_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """The lines with all columns that any of them has."""
    columns = [*dict.fromkeys(key for line in lines for key in line if key != "detail"), "detail"]
    return _csv_text(columns, lines)


def _csv_text(columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writerow({column: csv_value(column) for column in columns})
    writer.writerows({key: csv_value(value) for key, value in line.items()} for line in lines)
    return text.getvalue()


def sweep_markdown(courses: Sequence[Mapping[str, Any]], title: str) -> str:
    """The table, the best test accuracy first, and what its columns mean."""
    lines = sorted(sweep_lines(courses), key=lambda line: -(line.get("test_accuracy") or -1.0))
    varying = list(dict.fromkeys(key for course in courses for key in course["changes"]))
    validated = any(line.get("best_epoch") is not None for line in lines)
    cells = []
    for line in lines:
        cell = [cell_text(line["name"]), *(cell_text(setting_text(line.get(key))) for key in varying)]
        if line["status"] != "ok":
            cells.append([*cell, cell_text(str(line["status"])), *[""] * (3 + 2 * validated)])
            continue
        low, high = wilson_interval(round(line["test_accuracy"] * line["test_images"]), line["test_images"])
        cell += [
            f"{100 * line['test_accuracy']:.2f} [{100 * low:.2f}, {100 * high:.2f}]",
            f"{100 * line['train_accuracy']:.2f}",
            number(line["train_loss"]),
            number(line["test_loss"]),
        ]
        if validated:
            best = line["best_test_accuracy"]
            cell += ["" if best is None else f"{100 * best:.2f}", "" if best is None else f"{line['best_epoch']:g}"]
        cells.append(cell)
    names = [cell_text(key) for key in varying]
    headings = ["run", *names, "test accuracy % [95 %]", "train accuracy %", "train loss", "test loss"]
    headings += ["test accuracy % at best validation", "of epoch"] if validated else []
    failures = [f"- {cell_text(line['name'])}: {cell_text(line['detail'])}" for line in lines if line["detail"]]
    return "\n".join(
        [
            f"# Sweep: {cell_text(title)}",
            "",
            table(headings, cells, ["run", *names]),
            "",
            "The test loss is a mean cross entropy in nat. Training accuracy and loss are of the last epoch, on images "
            "as augmented, in training mode. The training loss is what the steps lowered: with the recipe's label "
            "smoothing and class weights, and with the model's own auxiliary loss. Without any of these, a training "
            "loss far below the test loss is overfitting. Intervals cover the choice of test images, not that of the "
            "seed; settings chosen by their test accuracy look better than they are.",
            "",
            *(["![curves](sweep.png)", ""] if any(course.get("history") for course in courses) else []),
            *failures,
        ]
    )

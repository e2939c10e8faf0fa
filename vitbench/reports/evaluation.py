"""An evaluation as people read it: tables, a page, two plots. Made from evaluation.json alone, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vitbench.core.text import printable
from vitbench.reports.files import write_files
from vitbench.reports.format import NOT_ASKED, cell_text, number, share, table
from vitbench.reports.plots.evaluation import Result, confusion_png, reliability_png

JSON = "evaluation.json"
MARKDOWN = "evaluation.md"
CONFUSION = "confusion.png"
RELIABILITY = "reliability.png"

#: Up to so many classes a terminal shows each, and the page shows the confusion matrix as a table.
_FEW = 20
_MOST_CONFUSED = 10


def write_evaluation(result: Result, folder: Path) -> list[Path]:
    """``evaluation.json``, two plots and the page that shows them; returns paths and raises as ``write_files``."""
    text = json.dumps(result, indent=2, ensure_ascii=True, allow_nan=False) + "\n"
    files = {
        JSON: text.encode("ascii"),
        CONFUSION: confusion_png(result),
        RELIABILITY: reliability_png(result),
        MARKDOWN: evaluation_page(result).encode("utf-8", errors="backslashreplace"),
    }  # the page last: it links the others
    return write_files(folder, files)


def evaluation_text(result: Result) -> str:
    """What a terminal shows: the metrics, the classes (the worst ones of many), what is confused most."""
    parts = [heading(result), metrics_table(result)]
    classes = result["classes"]
    if len(classes) > _FEW:
        tested = [one for one in classes if one["images"]]
        worst = sorted(tested, key=lambda one: (one["f1"], one["index"]))[:_FEW]
        without = f"; {len(classes) - len(tested)} more had no images" if len(tested) < len(classes) else ""
        which = f"The {len(worst)} classes of {len(tested)} with the lowest F1{without}"
        parts += [f"{which} (all of them: --out or --json):", classes_table(worst)]
    else:
        parts += [classes_table(classes)]
    return "\n\n".join([*parts, *confused_section(result)])


def evaluation_page(result: Result) -> str:
    """The page that stands alone, with the plots linked."""
    parts = [
        f"# {cell_text(result['model'])} on {cell_text(result['data'])}",
        heading(result),
        *(f"**Warning:** {cell_text(warning, 400)}" for warning in result["warnings"]),
        metrics_table(result),
        "## Classes",
        classes_table(result["classes"]),
        "## Confusions",
        f"Rows are the true classes, columns the predicted ones.\n\n![Confusion matrix]({CONFUSION})",
    ]
    if len(result["classes"]) <= _FEW:
        parts += [confusion_table(result)]
    parts += [
        *confused_section(result),
        "## Calibration",
        f"![Accuracy by confidence]({RELIABILITY})",
        bins_table(result),
        "## How",
        "\n".join(f"- {line}" for line in _methods(result)),
    ]
    return "\n\n".join(parts) + "\n"


def heading(result: Result) -> str:
    """One line: the model, its weights, the images, the device."""
    height, width = result["image_size"]
    device = result["device"] + (f" ({cell_text(result['device_name'])})" if result["device_name"] else "")
    return (
        f"{cell_text(result['model'])}, weights {cell_text(printable(result['weights']['text']))}, tested on "
        f"{cell_text(result['data'])}: {result['chosen']}, {height}x{width} px; {device}, {result['dtype']}"
    )


def metrics_table(result: Result) -> str:
    """The metrics of the whole data set."""
    top5, calibration, macro, weighted = (result[key] for key in ("top5", "calibration", "macro", "weighted"))
    empty, present = macro["classes_without_images"], result["macro_present"]
    without = f" ({empty} of {macro['classes']} classes have no images and count 0)" if empty else ""
    lines = [
        ["accuracy (top-1)", _fraction_text(result["accuracy"])],
        *([["accuracy (top-5)", _fraction_text(top5)]] if top5 else []),
        ["loss", f"{number(result['loss']['value'], 4)} nat"],
        ["precision, recall, F1: macro", _three_text(macro) + without],
        *([[f"the same of the {present['classes']} classes present", _three_text(present)]] if present else []),
        ["precision, recall, F1: weighted", _three_text(weighted)],
        ["expected calibration error", f"{share(calibration['error'])} ({len(calibration['bins'])} bins)"],
        ["mean confidence", share(calibration["confidence"])],
        ["throughput", f"{number(result['throughput']['value'])} images/s (one pass; vitbench run measures)"],
    ]
    return table(["metric", "value"], lines, ["metric", "value"])


def classes_table(classes: Sequence[Result]) -> str:
    """One line a class."""
    lines = [
        [
            _name(one["name"]),
            *(f"{one[key]:.3f}" for key in ("precision", "recall", "f1")),
            str(one["images"]),
            str(one["predicted"]),
        ]
        for one in classes
    ]
    return table(["class", "precision", "recall", "F1", "images", "predicted"], lines, ["class"])


def confusion_table(result: Result) -> str:
    """The counts: a row a true class, a column a predicted one."""
    names = [_name(one["name"]) for one in result["classes"]]
    lines = [[name, *map(str, row)] for name, row in zip(names, result["confusion"]["counts"], strict=True)]
    return table(["true \\ predicted", *names], lines, ["true \\ predicted"])


def confused_section(result: Result) -> list[str]:
    """The largest counts off the diagonal, under a line of text; [] if nothing is wrong."""
    pairs = [
        (-count, true, predicted)
        for true, row in enumerate(result["confusion"]["counts"])
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    names, sizes = ([one[key] for one in result["classes"]] for key in ("name", "images"))
    lines = [
        [_name(names[true]), _name(names[predicted]), str(-count), share(-count / sizes[true])]
        for count, true, predicted in sorted(pairs)[:_MOST_CONFUSED]
    ]
    headings = ["true class", "taken for", "images", "of its class"]
    return ["What is confused most:", table(headings, lines, headings[:2])] if lines else []


def bins_table(result: Result) -> str:
    """One line a bin of the confidence."""
    lines = [
        [
            f"{100 * one['low']:.1f} to {100 * one['high']:.1f} %",
            str(one["images"]),
            NOT_ASKED if one["confidence"] is None else share(one["confidence"]),
            NOT_ASKED if one["accuracy"] is None else share(one["accuracy"]),
        ]
        for one in result["calibration"]["bins"]
    ]
    return table(["confidence", "images", "mean confidence", "accuracy"], lines, ["confidence"])


def _methods(result: Result) -> list[str]:
    keys = ("accuracy", "top5", "loss", "macro", "macro_present", "weighted", "calibration", "throughput")
    lines = [f"{key}: {result[key]['method']}" for key in keys if result[key]]
    mean, std = (", ".join(f"{value:g}" for value in result[key]) for key in ("mean", "std"))
    lines.append(f"images: channels (0 to 1) less {mean}, over {std}; batches of {result['batch_size']}")
    training = ", ".join(f"{key} {cell_text(printable(str(value)))}" for key, value in result["training"].items())
    if training:
        lines.append(f"the checkpoint says of its training: {training}")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return [*lines, f"{versions}; threads on the CPU: {result['threads']}"]


def _fraction_text(one: Result) -> str:
    interval = f"[{100 * one['low']:.2f}, {100 * one['high']:.2f}]"
    return f"{100 * one['value']:.2f} % {interval}, {one['correct']} of {one['total']}"


def _three_text(one: Result) -> str:
    return ", ".join(f"{one[key]:.4f}" for key in ("precision", "recall", "f1"))


def _name(name: str) -> str:
    return cell_text(printable(name), 60)

"""An evaluation as people read it: tables, a page, two pictures. Made from evaluation.json alone, without torch."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import RunFolderError
from vitbench.core.run_folder import write_atomically
from vitbench.core.stats.statistics import wilson_interval
from vitbench.core.text import printable
from vitbench.reports.format import NOT_ASKED, cell_text, number, table
from vitbench.reports.plots.tradeoffs import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

JSON = "evaluation.json"
MARKDOWN = "evaluation.md"
CONFUSION = "confusion.png"
RELIABILITY = "reliability.png"

#: Up to so many classes: a terminal shows each, the page shows the matrix as a table, the picture writes its counts.
_FEW = 20
_ANNOTATED = 25
#: Up to so many classes each has its name in the picture of the confusions.
_NAMED = 120
_LONGEST_NAME = 22
_MOST_CONFUSED = 10

Result = Mapping[str, Any]


def write_evaluation(result: Result, folder: Path) -> list[Path]:
    """``evaluation.json``, two pictures and the page that shows them, each replaced in one step; returns their paths.

    Raises RunFolderError if nothing can be written there, StorageError if the disk does not take a file.
    """
    make_folder(folder)
    text = json.dumps(result, indent=2, ensure_ascii=True, allow_nan=False) + "\n"
    files = {
        JSON: text.encode("ascii"),
        CONFUSION: confusion_png(result),
        RELIABILITY: reliability_png(result),
        MARKDOWN: evaluation_page(result).encode("utf-8", errors="backslashreplace"),
    }  # the page last: it links the others
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]


def make_folder(folder: Path) -> None:
    """Make the folder that is written into. Raises RunFolderError if that cannot be, or nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunFolderError(
            f"Cannot write into {folder}: {error.strerror}. Choose another folder with --out"
        ) from error


# --- texts


def evaluation_text(result: Result) -> str:
    """What a terminal shows: the figures, the classes (the worst ones of many), what is confused most."""
    parts = [heading(result), figures_table(result)]
    classes = result["classes"]
    if len(classes) > _FEW:
        tested = [one for one in classes if one["images"]]
        worst = sorted(tested, key=lambda one: (one["f1"], one["index"]))[:_FEW]
        without = f"; {len(classes) - len(tested)} more had no pictures" if len(tested) < len(classes) else ""
        told = f"The {len(worst)} classes of {len(tested)} with the lowest F1{without}"
        parts += [f"{told} (all of them: --out or --json):", classes_table(worst)]
    else:
        parts += [classes_table(classes)]
    confused = confused_table(result)
    if confused:
        parts += ["What is confused most:", confused]
    return "\n\n".join(parts)


def evaluation_page(result: Result) -> str:
    """The page that stands alone, with the pictures linked."""
    parts = [
        f"# {cell_text(result['model'])} on {cell_text(result['data'])}",
        heading(result),
        *(f"**Warning:** {cell_text(warning, 400)}" for warning in result["warnings"]),
        figures_table(result),
        "## Classes",
        classes_table(result["classes"]),
        "## Confusions",
        f"Rows are the true classes, columns the predicted ones.\n\n![Confusion matrix]({CONFUSION})",
    ]
    if len(result["classes"]) <= _FEW:
        parts += [confusion_table(result)]
    confused = confused_table(result)
    if confused:
        parts += ["What is confused most:", confused]
    parts += [
        "## Calibration",
        f"![Accuracy by confidence]({RELIABILITY})",
        bins_table(result),
        "## How",
        "\n".join(f"- {line}" for line in _methods(result)),
    ]
    return "\n\n".join(parts) + "\n"


def heading(result: Result) -> str:
    """One line: the model, its weights, the pictures, the device."""
    height, width = result["image_size"]
    device = result["device"] + (f" ({cell_text(result['device_name'])})" if result["device_name"] else "")
    return (
        f"{cell_text(result['model'])}, weights {cell_text(printable(result['weights']['text']))}, tested on "
        f"{cell_text(result['data'])}: {result['chosen']}, {height}x{width} px; {device}, {result['dtype']}"
    )


def figures_table(result: Result) -> str:
    """The figures of the whole data set."""
    top5, calibration, macro, weighted = (result[key] for key in ("top5", "calibration", "macro", "weighted"))
    lines = [
        ["accuracy (top-1)", _fraction_text(result["accuracy"])],
        *([["accuracy (top-5)", _fraction_text(top5)]] if top5 else []),
        ["loss", f"{number(result['loss']['value'], 4)} nat"],
        ["precision, recall, F1: macro", _three_text(macro)],
        ["precision, recall, F1: weighted", _three_text(weighted)],
        ["expected calibration error", f"{_percent(calibration['error'])} ({len(calibration['bins'])} bins)"],
        ["mean confidence", _percent(calibration["confidence"])],
        ["throughput", f"{number(result['throughput']['value'])} images/s (one pass; vitbench run measures)"],
    ]
    return table(["figure", "value"], lines, ["figure", "value"])


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
    return table(["class", "precision", "recall", "F1", "pictures", "predicted"], lines, ["class"])


def confusion_table(result: Result) -> str:
    """The counts: a row a true class, a column a predicted one."""
    names = [_name(one["name"]) for one in result["classes"]]
    lines = [[name, *map(str, row)] for name, row in zip(names, result["confusion"]["counts"], strict=True)]
    return table(["true \\ predicted", *names], lines, ["true \\ predicted"])


def confused_table(result: Result) -> str:
    """The largest counts off the diagonal; empty if nothing is wrong."""
    pairs = [
        (-count, true, predicted)
        for true, row in enumerate(result["confusion"]["counts"])
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    names, sizes = ([one[key] for one in result["classes"]] for key in ("name", "images"))
    lines = [
        [_name(names[true]), _name(names[predicted]), str(-count), _percent(-count / sizes[true])]
        for count, true, predicted in sorted(pairs)[:_MOST_CONFUSED]
    ]
    headings = ["true class", "taken for", "pictures", "of its class"]
    return table(headings, lines, headings[:2]) if lines else ""


def bins_table(result: Result) -> str:
    """One line a bin of the confidence."""
    lines = [
        [
            f"{100 * one['low']:.1f} to {100 * one['high']:.1f} %",
            str(one["images"]),
            NOT_ASKED if one["confidence"] is None else _percent(one["confidence"]),
            NOT_ASKED if one["accuracy"] is None else _percent(one["accuracy"]),
        ]
        for one in result["calibration"]["bins"]
    ]
    return table(["confidence", "pictures", "mean confidence", "accuracy"], lines, ["confidence"])


def _methods(result: Result) -> list[str]:
    keys = ("accuracy", "top5", "loss", "macro", "weighted", "calibration", "throughput")
    lines = [f"{key}: {result[key]['method']}" for key in keys if result[key]]
    mean, std = (", ".join(f"{value:g}" for value in result[key]) for key in ("mean", "std"))
    lines.append(f"pictures: channels (0 to 1) less {mean}, over {std}; batches of {result['batch_size']}")
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


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _name(name: str) -> str:
    return cell_text(printable(name), 60)


# --- pictures


def confusion_png(result: Result) -> bytes:
    """The confusion matrix: colour is the share of the true class, numbers are pictures where there is room."""
    import numpy as np
    from matplotlib.colors import PowerNorm

    counts = np.array(result["confusion"]["counts"])
    count = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.6, 2.4 + 0.5 * count) if count <= _ANNOTATED else min(3.0 + 0.125 * count, 17.0)
    drawing = _new_drawing((side + 1.0, side), dpi=150 if count <= 12 else 120)
    axes = drawing.add_subplot()
    # rare confusions would be white on a linear scale
    shown = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    if count <= _ANNOTATED:
        size = 9 if count <= 12 else 7
        for (row, column), value in np.ndenumerate(counts):
            if value:
                colour = "white" if shares[row, column] > 0.35 else "black"
                axes.text(column, row, f"{value}", ha="center", va="center", fontsize=size, color=colour)
    _name_axes(axes, [one["name"] for one in result["classes"]])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(_title(result, f"accuracy {_percent(result['accuracy']['value'])}"), fontsize=10, parse_math=False)
    bar = drawing.colorbar(shown, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels([f"{100 * value:g} %" for value in bar.get_ticks()], fontsize=8)
    bar.set_label("share of the true class (square-root scale)", fontsize=8)
    return _png(drawing)


def reliability_png(result: Result) -> bytes:
    """Accuracy by confidence against the diagonal of a calibrated model, and how many pictures each bin has."""
    calibration = result["calibration"]
    bins = [one for one in calibration["bins"] if one["images"]]
    total = sum(one["images"] for one in bins)
    drawing = _new_drawing((6.4, 6.4), dpi=150)
    upper, lower = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    blue, red, green = COLOURS[0], COLOURS[1], COLOURS[2]
    width = calibration["bins"][0]["high"]
    middles = [(one["low"] + one["high"]) / 2 for one in bins]
    upper.plot([0, 1], [0, 1], ls=(0, (4, 3)), color="0.4", lw=1, label="calibrated: accuracy = confidence", zorder=3)
    accuracies = [one["accuracy"] for one in bins]
    upper.bar(middles, accuracies, width, color=blue, alpha=0.75, edgecolor="white", lw=0.6, label="accuracy", zorder=1)
    ends = [wilson_interval(round(one["accuracy"] * one["images"]), one["images"]) for one in bins]
    below = [max(value - low, 0) for value, (low, _) in zip(accuracies, ends, strict=True)]
    above = [max(high - value, 0) for value, (_, high) in zip(accuracies, ends, strict=True)]
    upper.errorbar(
        middles,
        accuracies,
        (below, above),
        fmt="none",
        ecolor="0.15",
        elinewidth=0.9,
        capsize=2,
        zorder=4,
        label="95 % interval (Wilson)",
    )
    confidences = [one["confidence"] for one in bins]
    upper.plot(middles, confidences, "D", ms=4.5, mfc="white", mec=red, mew=1.3, label="mean confidence", zorder=5)
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.set_ylabel("accuracy in the bin")
    summary = f"ECE {_percent(calibration['error'])}, {len(calibration['bins'])} bins"
    upper.set_title(_title(result, summary), fontsize=10, parse_math=False)
    shares = [one["images"] / total for one in bins]
    lower.bar(middles, shares, width, color="0.6", edgecolor="white", lw=0.6)
    confidence = calibration["confidence"]
    lower.axvline(confidence, color=red, lw=1.3, label=f"mean confidence {_percent(confidence)}")
    accuracy = result["accuracy"]["value"]
    lower.axvline(accuracy, color=green, lw=1.3, ls=(0, (4, 2)), label=f"accuracy {_percent(accuracy)}")
    lower.set_xlabel("confidence (largest probability)")
    lower.set_ylabel("share of pictures")
    # below the axes, where it covers no bar
    drawing.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=3)
    for axes in (upper, lower):
        axes.grid(True, color="0.92", zorder=0)
        axes.set_axisbelow(True)
        for spine in ("top", "right"):
            axes.spines[spine].set_visible(False)
    return _png(drawing)


def _title(result: Result, summary: str) -> str:
    what = printable(f"{result['model']} on {result['data']} ({result['split']}, {result['images']} pictures)")
    return f"{_shortened(what, 80)}\n{summary}"


def _name_axes(axes: Axes, names: Sequence[str]) -> None:
    """Every class by its name, or, of very many, some by their numbers."""
    from matplotlib.ticker import MaxNLocator

    if len(names) > _NAMED:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=20, integer=True))
        return
    size = 9 if len(names) <= 12 else 7 if len(names) <= _ANNOTATED else 6
    shown = [_without_middle(printable(name), _LONGEST_NAME) for name in names]
    few = len(names) <= _ANNOTATED
    turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    axes.set_xticks(range(len(names)), shown, fontsize=size, **turned)
    axes.set_yticks(range(len(names)), shown, fontsize=size)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a class may be called $5


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def _without_middle(text: str, limit: int) -> str:
    """At most ``limit`` characters: names that begin alike often end differently."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[: limit - half - 1].rstrip()}…{text[-half:].lstrip()}"


def _new_drawing(size: tuple[float, float], dpi: int) -> Figure:
    """A figure of its own: neither pyplot's state nor a window is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing


def _png(drawing: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # names in scripts that the font lacks: boxes
        # without the library's name and version: the same result gives the same bytes
        drawing.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()

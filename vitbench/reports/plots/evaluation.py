"""The plots of an evaluation: the confusion matrix, and accuracy by confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitbench.core.stats.intervals import wilson_interval
from vitbench.core.text import printable
from vitbench.reports.format import share
from vitbench.reports.palette import LIGHT
from vitbench.reports.plots.style import add_legend, new_figure, open_frame, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Up to so many classes the matrix has its counts written in,
_ANNOTATED = 25
#: and up to so many each class has its name.
_NAMED = 120
_LONGEST_NAME = 22

Result = Mapping[str, Any]


def confusion_png(result: Result) -> bytes:
    """The confusion matrix: colour is the share of the true class, numbers are images where there is room."""
    import numpy as np
    from matplotlib.colors import PowerNorm

    counts = np.array(result["confusion"]["counts"])
    count = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.6, 2.4 + 0.5 * count) if count <= _ANNOTATED else min(3.0 + 0.125 * count, 17.0)
    figure = new_figure((side + 1.0, side), dpi=150 if count <= 12 else 120)
    axes = figure.add_subplot()
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
    axes.set_title(_title(result, f"accuracy {share(result['accuracy']['value'])}"), fontsize=10, parse_math=False)
    bar = figure.colorbar(shown, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels([f"{100 * value:g} %" for value in bar.get_ticks()], fontsize=8)
    bar.set_label("share of the true class (square-root scale)", fontsize=8)
    return render(figure, ".png", tight=True)


def reliability_png(result: Result) -> bytes:
    """Accuracy by confidence against the diagonal of a calibrated model, and how many images each bin has."""
    calibration = result["calibration"]
    bins = [one for one in calibration["bins"] if one["images"]]
    total = sum(one["images"] for one in bins)
    figure = new_figure((6.4, 6.4), dpi=150)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = calibration["bins"][0]["high"]
    middles = [(one["low"] + one["high"]) / 2 for one in bins]
    _draw_accuracies(upper, bins, middles, width)
    summary = f"ECE {share(calibration['error'])}, {len(calibration['bins'])} bins"
    upper.set_title(_title(result, summary), fontsize=10, parse_math=False)
    shares = [one["images"] / total for one in bins]
    lower.bar(middles, shares, width, color="0.6", edgecolor="white", lw=0.6)
    confidence = calibration["confidence"]
    lower.axvline(confidence, color=LIGHT[1], lw=1.3, label=f"mean confidence {share(confidence)}")
    accuracy = result["accuracy"]["value"]
    lower.axvline(accuracy, color=LIGHT[2], lw=1.3, ls=(0, (4, 2)), label=f"accuracy {share(accuracy)}")
    lower.set_xlabel("confidence (largest probability)")
    lower.set_ylabel("share of images")
    add_legend(figure)
    for axes in (upper, lower):
        open_frame(axes)
        axes.set_axisbelow(True)
    return render(figure, ".png", tight=True)


def _draw_accuracies(upper: Axes, bins: Sequence[Result], middles: Sequence[float], width: float) -> None:
    """Accuracy in each bin with its interval, the mean confidence, and the diagonal."""
    upper.plot([0, 1], [0, 1], ls=(0, (4, 3)), color="0.4", lw=1, label="calibrated: accuracy = confidence", zorder=3)
    accuracies = [one["accuracy"] for one in bins]
    bars: dict[str, Any] = {"color": LIGHT[0], "alpha": 0.75, "edgecolor": "white", "lw": 0.6}
    upper.bar(middles, accuracies, width, **bars, label="accuracy", zorder=1)
    ends = [wilson_interval(round(one["accuracy"] * one["images"]), one["images"]) for one in bins]
    below = [max(value - low, 0) for value, (low, _) in zip(accuracies, ends, strict=True)]
    above = [max(high - value, 0) for value, (_, high) in zip(accuracies, ends, strict=True)]
    lines: dict[str, Any] = {"fmt": "none", "ecolor": "0.15", "elinewidth": 0.9, "capsize": 2}
    upper.errorbar(middles, accuracies, (below, above), **lines, zorder=4, label="95 % interval (Wilson)")
    confidences = [one["confidence"] for one in bins]
    diamonds: dict[str, Any] = {"ms": 4.5, "mfc": "white", "mec": LIGHT[1], "mew": 1.3}
    upper.plot(middles, confidences, "D", **diamonds, label="mean confidence", zorder=5)
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.set_ylabel("accuracy in the bin")


def _title(result: Result, summary: str) -> str:
    what = printable(f"{result['model']} on {result['data']} ({result['split']}, {result['images']} images)")
    return f"{what if len(what) <= 80 else what[:79].rstrip() + '…'}\n{summary}"


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


def _without_middle(text: str, limit: int) -> str:
    """At most ``limit`` characters: names that begin alike often end differently."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[: limit - half - 1].rstrip()}…{text[-half:].lstrip()}"

"""Accuracy on held-out images, after the suite's training or with given weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitbench.core.errors import Unsupported
from vitbench.core.records import Measurement
from vitbench.core.registry import METRICS, Column, Yields
from vitbench.metrics.support.subject import NotFiniteError, Subject

#: Classes of sizes up to this ratio count as balanced; the sizes of up to this many classes are listed.
_EQUAL, _LISTED = 1.2, 20
_BY_CLASS = {"class_f1": "F1", "class_precision": "precision", "class_recall": "recall"}


@METRICS.measured(
    "accuracy",
    process="training",
    modes=("infer", "train"),
    yields=[
        Yields("accuracy", "1", "fraction", "more"),  # its column states the test set and its size
        Yields("macro_f1", "1", "shown", "more", column=Column("macro F1")),
        Yields("macro_f1_present", "1", "shown", "more", optional=True, column=Column("macro F1 of classes present")),
        Yields("classes_without_images", "1", "condition", optional=True),
        *(Yields(metric, "1", "condition") for metric in _BY_CLASS),
        Yields("test_loss", "nat", "shown", "less", column=Column("test loss", "nat")),
        Yields("test_images", "image", "condition"),
        Yields("training_images", "image", "condition", mode="train", column=Column("training images")),
        Yields("training_steps", "step", "condition", mode="train"),
        Yields("training_duration", "s", "shown", "less", mode="train", column=Column("training time", "s")),
        Yields("training_loss", "nat", "shown", "less", mode="train"),
    ],
    summary="top-1, F1, precision, recall, loss on held-out images, after the suite's training or with given weights",
)
def measure_accuracy(subject: Subject) -> Iterator[Measurement]:
    """Trains by the recipe and keeps the checkpoint, unless the cell has weights; tests on held-out images."""
    import math

    import torch

    if subject.trainer is None:
        raise Unsupported("this cell has no training section")
    cell = subject.cell
    model = subject.model
    trained = subject.trainer.train(model) if cell.trains else {}
    checkpoint = subject.trainer.save(model) if cell.trains else ""
    tested = subject.trainer.evaluate(model)
    if not math.isfinite(tested["loss"]):
        raise NotFiniteError(f"the loss on held-out pictures is {tested['loss']}, not a finite number")
    note = f" ({subject.weights_note})" if subject.weights_note else ""
    how = trained["recipe"] + f" on {cell.data}" if cell.trains else f"loading the weights {cell.weights}{note}"
    method = f"{how}, seed {cell.seed}, torch {torch.__version__}"
    on_held_out = f"held-out pictures of {cell.data} after {method}"
    accuracy = tested["correct"] / tested["total"]
    detail = f"{tested['correct']} of {tested['total']} right" + (f"; checkpoint {checkpoint}" if checkpoint else "")
    yield Measurement.single("accuracy", "1", accuracy, f"top-1 on {on_held_out}", detail)
    yield from _macro_f1(tested, on_held_out)
    for metric, what in _BY_CLASS.items():
        yield Measurement(
            metric=metric,
            unit="1",
            samples=(tuple(round(float(one), 9) for one in tested[metric]),),  # one a class, no repetitions
            method=f"{what} of each class on {on_held_out}",
            detail=", ".join(name.replace(",", " ") for name in tested["class_names"]),
        )
    yield Measurement.single("test_loss", "nat", tested["loss"], f"mean cross entropy on {on_held_out}")
    yield Measurement.single("test_images", "image", tested["total"], f"held-out pictures of {cell.data}")
    if not cell.trains:
        return
    seen = f"pictures seen, repeats counted, of {_describe_sizes(trained['class_sizes'])}"
    yield Measurement.single("training_images", "image", trained["images_seen"], seen, trained["budget"])
    yield Measurement.single("training_steps", "step", trained["steps"], "optimizer steps")
    yield Measurement.single("training_duration", "s", trained["duration_s"], "wall time of the training loop")
    losses = tuple(round(float(loss), 6) for loss in trained["losses"])
    yield Measurement(metric="training_loss", unit="nat", samples=(losses,), method=f"loss of each step of {method}")


def _macro_f1(tested: Mapping[str, Any], on_held_out: str) -> Iterator[Measurement]:
    """The mean over all classes of the data; where some are not present, that of the others as well."""
    classes, empty = tested["num_classes"], tested["classes_without_images"]
    method = f"mean over all {classes} classes of F1 on {on_held_out}"
    detail = f"{empty} of {classes} classes have no held-out images and count 0" if empty else ""
    yield Measurement.single("macro_f1", "1", tested["macro_f1"], method, detail)
    if tested["macro_f1_present"] is not None:
        over = f"the {tested['classes_present']} classes in labels or predictions"
        method = f"mean over {over} of F1, scikit-learn's default, on {on_held_out}"
        yield Measurement.single("macro_f1_present", "1", tested["macro_f1_present"], method)
    if empty:
        yield Measurement.single("classes_without_images", "1", empty, f"of {classes} classes, on {on_held_out}")


def _describe_sizes(class_sizes: Sequence[int]) -> str:
    """``45000``, or ``27500 (by class: 5000 4500 ...)`` for unbalanced classes."""
    total, smallest, largest = sum(class_sizes), min(class_sizes), max(class_sizes)
    if largest <= _EQUAL * smallest:
        return str(total)
    sizes = " ".join(map(str, class_sizes)) if len(class_sizes) <= _LISTED else f"{smallest} to {largest}"
    return f"{total} (by class: {sizes})"

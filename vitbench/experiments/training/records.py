"""Results that published values are compared with: records of runs, and finished trainings as records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitbench.analysis.claims import BEGAN_WITH, FROZEN, TEST_IMAGES
from vitbench.core.errors import RunFolderError
from vitbench.core.records import Cell, Measurement, Record, parse_image_size
from vitbench.experiments.training.folder import read_request, read_summary
from vitbench.experiments.training.request import REQUEST, SUMMARY, TrainingRequest
from vitbench.models.cards import PRETRAINED
from vitbench.reports.model.runs import read_runs
from vitbench.suites import TRAIN_IMAGES


def read_results(folders: Iterable[Path]) -> list[Record]:
    """The records of runs, and one a training. Raises RunFolderError for neither, or an unfinished training."""
    found: list[Record] = []
    for folder in folders:
        found += [read_training(folder)] if (folder / REQUEST).is_file() else read_runs([folder])[0].records
    return found


def read_training(folder: Path) -> Record:
    """The training in ``folder``, as a run would record it. Raises RunFolderError for an unfinished or damaged one."""
    if not (folder / SUMMARY).is_file():
        raise RunFolderError(
            f"{folder} holds a training that is not finished. First resume it: vitbench train --resume {folder}"
        )
    request, _ = read_request(folder)
    figures, _ = read_summary(folder)
    try:
        if figures["last"]["test_correct"] > figures["test_images"]:
            raise ValueError("figures.last.test_correct is more than figures.test_images")
        height, width = _image_size(request, figures)
    except ValueError as error:
        raise RunFolderError(f"{folder / SUMMARY} is damaged ({error}): leave this training out") from error
    cell = Cell(
        model=request.model,
        image_size=(height, width),
        num_classes=figures.get("num_classes") or request.num_classes or len(figures["class_sizes"]),
        batch_size=request.recipe["batch_size"],
        device=request.device,
        threads=request.threads or 1,
        dtype="fp32" if request.amp == "off" else "amp",
        mode="train",
        compile=request.compile,
        weights=f"train:{figures['recipe']}",
        data=figures["data"],
        recipe_hash=figures["recipe_hash"],
        seed=figures["seed"],
        options=_departures(request),
    )
    return Record(
        cell=cell, status="ok", measurements=_measurements(figures), environment="", started_at="", duration_s=0.0
    )


def _image_size(request: TrainingRequest, figures: dict[str, Any]) -> tuple[int, int]:
    """(height, width) in px; where the summary lacks it, that of the request, or the model's own."""
    if "image_size" in figures:
        if len(figures["image_size"]) != 2:
            raise ValueError("figures.image_size is not a height and a width")
        height, width = figures["image_size"]
        return height, width
    if request.image_size is not None:
        return parse_image_size(request.image_size)
    from vitbench.models import describe_model

    return describe_model(request.model).image_size


def _departures(request: TrainingRequest) -> tuple[tuple[str, str], ...]:
    """How the training differs from one with random weights, all parameters and all images."""
    found = {}
    if request.weights is not None or request.pretrained:
        found[BEGAN_WITH] = PRETRAINED if request.weights is None else "a checkpoint"
    if request.freeze != "none":
        found[FROZEN] = request.freeze
    if request.train_images is not None:
        found[TRAIN_IMAGES] = str(request.train_images)
    if request.test_images is not None:
        found[TEST_IMAGES] = str(request.test_images)
    return tuple(found.items())


def _measurements(figures: dict[str, Any]) -> tuple[Measurement, ...]:
    last, total = figures["last"], figures["test_images"]
    method = f"{total} held-out images of {figures['data']} after vitbench train by {figures['recipe']}"
    accuracy = last["test_correct"] / total
    found = [
        Measurement.single("accuracy", "1", accuracy, f"top-1 on {method}"),
        Measurement.single("test_loss", "nat", last["test_loss"], f"mean cross entropy on {method}"),
        Measurement.single("test_images", "image", total, method),
    ]
    if "macro_f1" in last:
        how = f"mean over all classes of F1 on {method}"
        found.append(Measurement.single("macro_f1", "1", last["macro_f1"], how))
    if "macro_f1_present" in last:
        how = f"mean over the classes in labels or predictions of F1, scikit-learn's default, on {method}"
        found.append(Measurement.single("macro_f1_present", "1", last["macro_f1_present"], how))
    if last.get("classes_without_images"):
        empty = last["classes_without_images"]
        found.append(Measurement.single("classes_without_images", "1", empty, method))
    return tuple(found)

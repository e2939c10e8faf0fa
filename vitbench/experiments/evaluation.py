"""Evaluate a trained model on a data set. The result is one JSON object, from which reports/evaluation.py renders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import DataError, UsageError
from vitbench.core.stats.intervals import wilson_interval
from vitbench.core.text import printable
from vitbench.experiments.open_model import DataRequest, ModelRequest, TrainedModel, explain_oom, open_trained
from vitbench.training.data.images import DataInfo, ImageSet, Split
from vitbench.training.scores import Scores, score

if TYPE_CHECKING:
    from vitbench.training.evaluate import Answers

#: Of evaluation.json. 1: the first.
SCHEMA = 1
#: Equal-width bins of the confidence, as in Guo et al.
BINS = 15
BATCH_SIZE = 128
#: Chooses ``test_images`` of a split: the same ones for every model.
SEED = 0

_ZERO = "a fraction without a denominator (nothing predicted as the class, no images of it) is 0 (zero_division=0)"
_PRESENT = "scikit-learn's default: means over the {count} classes in labels or predictions; fractions as in macro"
_CALIBRATION = (
    "expected calibration error (Guo et al., 2017, arXiv:1706.04599): sum over bins of |B|/n * |accuracy(B) - "
    "confidence(B)|, {bins} bins of equal width ((m-1)/{bins}, m/{bins}] of the confidence, which is the largest "
    "softmax probability"
)


def evaluate_model(
    model: str,
    *,
    weights: str | None,
    data: str,
    pretrained: bool = False,
    data_dir: Path | str | None = None,
    download: bool = False,
    split: str = "test",
    test_images: int | None = None,
    image_size: str | None = None,
    device: str = "auto",
    amp: bool = False,
    batch_size: int = BATCH_SIZE,
    bins: int = BINS,
    replace_head: bool = False,
    entry: str | None = None,
    grid: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Test a model with its weights on images; returns everything that reports say of it, as JSON can hold it.

    ``split``: ``test`` or ``train``; ``test_images``: a stratified choice of so many of its images, the same one each
    time. ``note`` receives what a person should know (classes with other names, a random head). The other arguments are
    those of ``ModelRequest`` and ``DataRequest``.

    Raises UsageError for a wrong argument (a DataError if the numbers of classes differ), OutOfMemory, and
    NotFiniteError if an output is not finite.
    """
    if not isinstance(model, str):
        raise UsageError(f"evaluate_model takes the name of a model, not {type(model).__name__}")
    for option, value in (("--test-images", test_images), ("--batch-size", batch_size), ("--bins", bins)):
        if value is not None and value < 1:
            raise UsageError(f"{option} {value} is not positive: give at least 1")
    root = None if data_dir is None else Path(data_dir)
    request = DataRequest(data=str(data), data_dir=root, download=download, split=split)
    info, chosen = request.describe()
    trained = open_trained(
        ModelRequest(
            model=model,
            weights=weights,
            entry=entry,
            pretrained=pretrained,
            replace_head=replace_head,
            grid=grid,
            device=device,
            image_size=image_size,
            num_classes=info.num_classes if replace_head else None,
        )
    )
    _check_classes(trained, info)
    warnings = _warnings(trained, info)
    for warning in warnings:
        note(f"Warning: {warning}")
    from vitbench.training.data.datasets import load_images

    size = trained.image_size
    dataset = load_images(info, chosen, image_size=size, images=test_images, seed=SEED, download=download)
    dtype = "amp" if amp else "fp32"
    how: dict[str, Any] = {"split": chosen, "dtype": dtype, "batch_size": batch_size, "bins": bins}
    return evaluate_trained(trained, info, dataset, **how, warnings=warnings)


def evaluate_trained(
    trained: TrainedModel,
    info: DataInfo,
    dataset: ImageSet,
    *,
    split: Split = "test",
    dtype: str = "fp32",
    batch_size: int = BATCH_SIZE,
    bins: int = BINS,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """What ``evaluate_model`` returns, for a model that is loaded and ``images`` of ``info`` that are in memory.

    ``dtype``: ``fp32`` or ``amp``. Raises OutOfMemory, and NotFiniteError if an output is not finite.
    """
    amp, there = dtype == "amp", info.count(split)
    some = f"a stratified choice (seed {SEED}) of {len(dataset)} of {there} images"
    part = f"all {there} images" if len(dataset) == there else some
    described = _describe(trained, info, split, amp, batch_size, list(warnings))
    answers = _collect(trained, dataset, amp, batch_size)
    scores = score(answers.logits.numpy(), dataset.labels.numpy(), bins=bins, classes=info.num_classes)
    # the head may have room for more classes than the data has
    names = (*info.class_names, *(trained.class_name(k) for k in range(info.num_classes, trained.num_classes)))
    return {
        **described,
        "images": len(dataset),
        "chosen": f"{part} of the {split} split" + ("" if split == "test" else ", which is not held out"),
        **_score_values(scores, names, info.num_classes),
        "throughput": {
            "value": len(dataset) / answers.duration_s,
            "unit": "image/s",
            "duration_s": answers.duration_s,
            "method": f"one pass of one process over {len(dataset)} images in batches of "
            f"{min(batch_size, len(dataset))}, one batch before it not timed, the device synchronised at both ends; "
            "copying to the device and normalising included, decoding and resizing not. To compare models, measure "
            "with vitbench run",
        },
    }


def _check_classes(trained: TrainedModel, info: DataInfo) -> None:
    """Raises DataError unless the head has the data's classes, or these first and then others (--num-classes)."""
    names, few = trained.facts.get("classes"), info.num_classes
    if trained.num_classes == few:
        return
    if not isinstance(names, list) or len(names) != trained.num_classes or names[:few] != list(info.class_names):
        raise DataError(
            f"The weights {trained.weights} have {trained.num_classes} classes, but {info.label} has {few}. Give the "
            "data that they were trained for, or --replace-head for a random head"
        )


def _warnings(trained: TrainedModel, info: DataInfo) -> list[str]:
    """What a reader of the result must know."""
    found = []
    names = trained.facts.get("classes")
    if not trained.facts and trained.class_names is not None and set(trained.class_names) & set(info.class_names):
        names = list(trained.class_names)  # ImageNet's; folders named by its numbers share none with them
    if isinstance(names, list) and len(names) == info.num_classes and names != list(info.class_names):
        if sorted(map(str, names)) == sorted(info.class_names):
            what = "are those of the data in another order"
        else:
            what = "have other names than those of the data"
        index = next(i for i, name in enumerate(names) if name != info.class_names[i])
        found.append(
            f"the classes of the checkpoint {what}: class {index} is '{printable(str(names[index])[:60])}' there and "
            f"'{printable(info.class_names[index])}' in {info.label}"
        )
    found += [f"the weights: {note}" for note in trained.notes]
    return found


def _describe(
    trained: TrainedModel, info: DataInfo, split: Split, amp: bool, batch_size: int, warnings: list[str]
) -> dict[str, Any]:
    """What was tested, and how: everything but the values."""
    import torch

    from vitbench import __version__

    device = trained.device
    return {
        "schema": SCHEMA,
        "model": trained.name,
        "weights": {"text": trained.weights, "digest": trained.digest, "notes": list(trained.notes)},
        "training": _training(trained.facts),
        "data": info.label,
        "split": split,
        "num_classes": trained.num_classes,
        "image_size": list(trained.image_size),
        "mean": list(trained.mean),
        "std": list(trained.std),
        "device": device.name,
        "device_name": str(device.describe().get("name", "")),
        "dtype": f"amp ({device.amp_dtype})" if amp else "fp32",
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "versions": {"vitbench": __version__, "torch": torch.__version__},
        "warnings": warnings,
    }


def _training(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of ours says of its training; empty for others. The file may hold anything."""
    recipe = facts.get("recipe")
    found = {
        "data": facts.get("data"),
        "recipe": recipe.get("name") if isinstance(recipe, Mapping) else None,
        "seed": facts.get("seed"),
    }
    return {key: value for key, value in found.items() if isinstance(value, str | int) and len(str(value)) <= 200}


def _collect(trained: TrainedModel, dataset: ImageSet, amp: bool, batch_size: int) -> Answers:
    """One pass over the images. Raises OutOfMemory, NotFiniteError."""
    from vitbench.metrics.support.subject import NotFiniteError
    from vitbench.training.evaluate import collect_answers

    device = trained.device
    way_out = f"Lower --batch-size ({batch_size}) or --image-size, or give --device cpu"
    with explain_oom(device, way_out if amp else f"{way_out} or --amp"):
        answers = collect_answers(
            trained.module,
            dataset,
            device=device.name,
            autocast=lambda: device.autocast("amp" if amp else "fp32"),
            batch_size=batch_size,
            synchronize=device.synchronize,
            mean=trained.mean,
            std=trained.std,
        )
    finite = answers.logits.isfinite().all(dim=1)
    if not finite.all():
        bad = len(finite) - int(finite.sum())
        way_out = "Leave out --amp" if amp else "The weights are damaged, or their training has diverged"
        raise NotFiniteError(f"The outputs for {bad} of {len(finite)} images are NaN or infinite. {way_out}")
    return answers


def _score_values(scores: Scores, class_names: Sequence[str], of_data: int) -> dict[str, Any]:
    """``class_names``: one a class of the head, of which the first ``of_data`` are the data's."""
    absent = scores.classes_without_images
    never = sum(one.predicted == 0 for one in scores.classes[:of_data])
    more = f" of the data (the head has {len(class_names)})" if len(class_names) > of_data else ""
    zero = f"{_ZERO}: {absent} classes without images, {never} never predicted"
    return {
        "accuracy": _fraction(scores.correct, scores.total, "share of images whose class has the largest logit"),
        "top5": None
        if scores.correct_in_5 is None
        else _fraction(scores.correct_in_5, scores.total, "share of images whose class is among the five largest"),
        "loss": {"value": scores.loss, "unit": "nat", "method": "mean cross entropy, without label smoothing"},
        "macro": {
            **asdict(scores.macro),
            "classes": of_data,
            "classes_without_images": absent,
            "method": f"scikit-learn's means over all {of_data} classes{more}; {zero}",
        },
        "macro_present": None
        if scores.present is None
        else {
            **asdict(scores.present),
            "classes": scores.classes_present,
            "method": _PRESENT.format(count=scores.classes_present),
        },
        "weighted": {
            **asdict(scores.weighted),
            "method": "scikit-learn's means, each class weighted by its number of images; fractions as in macro",
        },
        "classes": [
            {"index": index, "name": name, **asdict(one)}
            for index, (name, one) in enumerate(zip(class_names, scores.classes, strict=True))
        ],
        "confusion": {
            "rows": "true class",
            "columns": "predicted class",
            "counts": [list(row) for row in scores.confusion],
        },
        "calibration": {
            "error": scores.calibration_error,
            "largest_gap": scores.largest_gap,
            "confidence": scores.confidence,
            "bins": [asdict(one) for one in scores.bins],
            "method": _CALIBRATION.format(bins=len(scores.bins)),
        },
    }


def _fraction(part: int, total: int, method: str) -> dict[str, Any]:
    low, high = wilson_interval(part, total)
    return {
        "value": part / total,
        "low": low,
        "high": high,
        "correct": part,
        "total": total,
        "method": f"{method}; 95 % interval: Wilson",
    }

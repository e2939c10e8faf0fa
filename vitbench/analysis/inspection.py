"""Open models by name on the CPU to inspect them, for summaries and audits; a model that fails has an error instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vitbench.core.errors import USAGE_CAUSES, UsageError
from vitbench.core.records import Cell, Measurement, parse_image_size
from vitbench.metrics import Subject
from vitbench.metrics.support.in_process import failure_of, make_subject, run_metric
from vitbench.models.cards import ModelCard, find_models, is_pattern


def check_request(image_size: str | None, num_classes: int | None) -> None:
    """Raises UsageError for an image size or class count that no model could take."""
    if image_size is not None:
        try:
            parse_image_size(image_size)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"--num-classes {num_classes} is not positive: a head needs at least one class")


def expand_names(names: Sequence[str]) -> list[str]:
    """Patterns replaced by the models that they match; names stay as they are, unknown ones included."""
    return [one for name in names for one in (match_models(name) if is_pattern(name) else [name])]


def match_models(pattern: str) -> list[str]:
    """The models that a name or a pattern matches, those of timm and torchvision included."""
    if pattern.startswith(("timm:", "torchvision:")) and is_pattern(pattern):
        from vitbench.models.zoo import match_external

        return match_external(pattern)
    return find_models(pattern)


def inspect_model(
    name: str,
    inspect: Callable[[ModelCard, Subject], dict[str, Any]],
    *,
    image_size: str | None = None,
    num_classes: int | None = None,
    weights: str | None = None,
    attention: str = "fused",
) -> dict[str, Any]:
    """What ``inspect`` returns for a model, with its name, image size and classes: those given, else those of the
    checkpoint ``weights``, else its own.

    A model that fails has ``error`` (one line) and ``usage`` (whether the request was wrong rather than the model).
    Raises UsageError for a checkpoint that cannot be read.
    """
    from vitbench.models import describe_model
    from vitbench.models.weights.claimed import resolve

    try:
        card = describe_model(name)
        resolved = resolve(card, weights, image_size, num_classes)
    except UsageError as error:
        if weights is not None:
            raise
        return {"model": name, "error": str(error), "usage": True}
    subject = open_subject(name, resolved.image_size, resolved.num_classes, attention)
    answer = {"model": name, "image_size": list(resolved.image_size), "num_classes": resolved.num_classes}
    try:
        return answer | inspect(card, subject)
    except Exception as error:  # a model that fails leaves the answers for the others
        failure = failure_of(error, subject.cell)
        return {**answer, "error": failure.detail.splitlines()[0], "usage": failure.cause in USAGE_CAUSES}


def open_subject(name: str, image_size: tuple[int, int], num_classes: int, attention: str = "fused") -> Subject:
    """The subject for one image in fp32 on the CPU."""
    cell = Cell(
        model=name,
        image_size=image_size,
        num_classes=num_classes,
        batch_size=1,
        device="cpu",
        threads=1,
        attention=attention,
    )
    return make_subject(cell)


def metric_values(subject: Subject, metrics: Sequence[str]) -> dict[str, Measurement]:
    """The measurements of ``metrics`` by name."""
    return {one.metric: one for metric in metrics for one in run_metric(metric, subject)}

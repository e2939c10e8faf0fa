"""Summarise a model: its counts, its parameters and FLOPs by part and layer, and its claims judged."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vitbench.analysis.claims import Counts, Judgement, count_by_formula, judge_card, to_dict
from vitbench.core.errors import USAGE_CAUSES, Unsupported, UsageError
from vitbench.core.records import RGB, Cell, Measurement, Record, channel_options, parse_image_size
from vitbench.metrics import Subject
from vitbench.metrics.support.in_process import failure_of, make_subject, run_metric
from vitbench.models.cards import ModelCard, find_models, is_external, is_pattern, model_registry
from vitbench.models.weights.claimed import check_no_file

#: The metrics of a summary.
_SHOWN = ("params", "params_without_gradient", "flops")
#: torchvision's ViTs, whose metadata hold published values, by prefix.
TORCHVISION_VITS = ("vit_", "swin_", "maxvit_")


def show_models(
    names: Sequence[str],
    *,
    image_size: str | None = None,
    num_classes: int | None = None,
    in_channels: int = RGB,
    layers: bool = False,
    weights: str | None = None,
    replace_head: bool = False,
    entry: str | None = None,
    grid: str | None = None,
) -> list[dict[str, Any]]:
    """A summary a model: parameters and FLOPs for a batch of one image, counted on ``meta``; with ``layers`` each
    layer's.

    With ``weights``, the path of a checkpoint, it also describes that file and how it fits, which needs memory.
    A model that fails has ``error`` and ``usage`` (see ``inspect_model``). FLOPs that are unavailable are None, with
    the reason in ``flops_error``. Raises UsageError for an image size or class count that no model could take,
    CheckpointError for weights that do not fit.
    """
    check_request(image_size, num_classes)
    names = expand_names(names)
    if replace_head and weights is None:
        raise UsageError("--replace-head goes with --weights PATH")
    if weights is None:
        check_no_file(entry, grid)
    if weights is not None and len(names) > 1:
        raise UsageError(f"A checkpoint fits one model, not {len(names)}: give one name with --weights")

    summarise = functools.partial(_summarise, layers=layers)
    cards = []
    for name in names:
        card = inspect_model(
            name,
            summarise,
            image_size=image_size,
            num_classes=num_classes,
            in_channels=in_channels,
            weights=weights,
            entry=entry,
        )
        if weights is not None and "error" not in card:
            card["weights"] = _check_weights(card, weights, replace_head, entry, grid)
        cards.append(card)
    return cards


def _summarise(card: ModelCard, subject: Subject, layers: bool) -> dict[str, Any]:
    found = metric_values(subject, _SHOWN)
    counted = _counts_of(found)
    names = ("params", "trainable_params", "macs", "flops", "params_bytes", "buffers", "buffers_bytes")
    counts = {name: int(one.value) if (one := found[name]).status == "ok" else None for name in names}
    dead = found["params_without_gradient"]
    cell = subject.cell
    own = (card.image_size, card.num_classes, RGB) == (cell.image_size, cell.num_classes, cell.in_channels)
    # claims are for the card's own image size and classes
    judged = judge_card(card, lambda name: counted if own and name == card.name else count_model(name))
    return {
        **counts,
        **({"flops_error": counted.unavailable} if counted.flops is None else {}),
        "lower_bound": found["flops"].lower_bound,
        "left_out": found["flops"].left_out,
        "params_without_gradient": int(dead.value) if dead.status == "ok" else None,
        "summary": card.summary,
        "source": card.source,
        "method": found["flops"].method,
        "patch": None if is_external(card.name) else card.patch,
        "config": dict(card.config),
        **_inside(subject, layers),
        "claims": [to_dict(one) for one in judged],
        "recipes": sorted({claim.recipe for claim in card.claims if claim.recipe}),
    }


def _inside(subject: Subject, layers: bool) -> dict[str, Any]:
    """Parts, tokens and layers of a model, or why they are unavailable: hooks break some models."""
    from vitbench.analysis.layers import describe_layers, sum_parts, tokens_per_block

    try:
        with subject.on_meta(1) as (model, images):
            found = describe_layers(model, images)
            tokens = tokens_per_block(model, images)
    except Exception as error:  # the model keeps its counts
        return {"parts": {}, "tokens_per_block": [], "parts_error": f"{type(error).__name__}: {error}".splitlines()[0]}
    inside: dict[str, Any] = {"parts": sum_parts(found), "tokens_per_block": list(tokens)}
    if layers:
        inside["layers"] = [{**asdict(layer), "output_shape": list(layer.output_shape)} for layer in found]
    return inside


def _check_weights(
    card: dict[str, Any], path: str, replace_head: bool, entry: str | None, grid: str | None
) -> dict[str, Any]:
    """Loads a checkpoint into the model of a summary. Raises CheckpointError if it does not fit."""
    from vitbench.models import build_model
    from vitbench.models.weights.checkpoints import load_checkpoint

    height, width = card["image_size"]
    classes, channels = card["num_classes"], card["in_channels"]
    model = build_model(card["model"], image_size=(height, width), num_classes=classes, in_channels=channels)
    report = load_checkpoint(model, path, replace_head=replace_head, entry=entry, grid=grid)
    shown = ("layout", "digest", "tensors", "dtype", "resampled", "replaced_head", "notes")
    return {"file": report.path, **{name: getattr(report, name) for name in shown}, "facts": dict(report.facts)}


def count_model(name: str) -> Counts:
    """Parameters and FLOPs of any model at its own size: by closed form, or else counted on ``meta``.

    Raises Unsupported if the model fails, UsageError for an unknown model.
    """
    from vitbench.models import describe_model

    if not is_external(name):
        with contextlib.suppress(Unsupported):  # a model of another package may have no formula
            return count_by_formula(name)
    card = describe_model(name)
    try:
        found = metric_values(open_subject(name, card.image_size, card.num_classes), ("params", "flops"))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise Unsupported(f"{name} fails on meta: {type(error).__name__}: {error}".splitlines()[0]) from error
    return _counts_of(found)


def _counts_of(found: Mapping[str, Measurement]) -> Counts:
    """The counts among measurements by name. Raises Unsupported if even the parameters are unavailable."""
    params, flops = found["params"], found["flops"]
    if params.status != "ok":
        raise Unsupported(params.detail)
    if flops.status != "ok":
        return Counts(int(params.value), None, "counted on meta", unavailable=flops.detail)
    return Counts(int(params.value), int(flops.value), "counted on meta", flops.left_out)


def judge_models(patterns: Sequence[str] | None, records: Sequence[Record] = ()) -> list[Judgement]:
    """The claims of models (by default all of ours and torchvision's ViTs), accuracies and latencies by ``records``.

    Raises UnknownNameError for an unknown model.
    """
    count = functools.cache(count_model)
    return [judged for card in _cards(patterns) for judged in judge_card(card, count, records)]


def _cards(patterns: Sequence[str] | None) -> list[ModelCard]:
    from vitbench.models import describe_model

    if patterns is None:
        from torchvision import models

        vits = [name for name in models.list_models(module=models) if name.startswith(TORCHVISION_VITS)]
        names = [*model_registry(), *(f"torchvision:{name}" for name in vits)]
    else:
        names = [name for pattern in patterns for name in match_models(pattern)]
    return [describe_model(name) for name in dict.fromkeys(names)]


# opening models, for audits of FLOPs as well


def check_request(image_size: str | int | None, num_classes: int | None) -> None:
    """Raises UsageError for an image size or class count that no model could take."""
    if image_size is not None:
        try:
            parse_image_size(image_size)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if num_classes is not None and num_classes < 0:
        raise UsageError(f"--num-classes {num_classes} is negative. Give the classes, or 0 for a model without a head")


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
    in_channels: int = RGB,
    weights: str | None = None,
    entry: str | None = None,
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
        resolved = resolve(card, weights, image_size, num_classes, entry=entry)
    except UsageError as error:
        if weights is not None:
            raise
        return {"model": name, "error": str(error), "usage": True}
    subject = open_subject(name, resolved.image_size, resolved.num_classes, in_channels, attention)
    answer: dict[str, Any] = {"model": name, "image_size": list(resolved.image_size)}
    answer |= {"num_classes": resolved.num_classes, "in_channels": in_channels}
    try:
        return answer | inspect(card, subject)
    except Exception as error:  # a model that fails leaves the answers for the others
        failure = failure_of(error, subject.cell)
        return {**answer, "error": failure.detail.splitlines()[0], "usage": failure.cause in USAGE_CAUSES}


def open_subject(
    name: str, image_size: tuple[int, int], num_classes: int, in_channels: int = RGB, attention: str = "fused"
) -> Subject:
    """The subject for one image in fp32 on the CPU."""
    cell = Cell(
        model=name,
        image_size=image_size,
        num_classes=num_classes,
        batch_size=1,
        device="cpu",
        threads=1,
        attention=attention,
        options=channel_options(in_channels),
    )
    return make_subject(cell)


def metric_values(subject: Subject, metrics: Sequence[str]) -> dict[str, Measurement]:
    """The measurements of ``metrics`` by name."""
    return {one.metric: one for metric in metrics for one in run_metric(metric, subject)}

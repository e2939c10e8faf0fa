"""Compare a model's FLOPs by closed form, torch's dispatcher, fvcore and thop, and explain the differences."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vitbench.analysis.closed_form import ClosedForm, closed_form
from vitbench.analysis.flops import (
    count_forward,
    count_fused_attention,
    count_training_step,
)
from vitbench.analysis.layers import describe_layers
from vitbench.analysis.model_summary import check_request, expand_names, inspect_model
from vitbench.core.errors import Unsupported, UsageError
from vitbench.core.records import ATTENTIONS, RGB
from vitbench.metrics import Subject
from vitbench.metrics.flops import execute, executed_method, must_execute, real_model
from vitbench.metrics.support.fvcore_thop import OtherCount, count_by_fvcore, count_by_thop, times_counted_by_thop
from vitbench.metrics.support.operator_counter import Counts, OperatorCount, describe_uncounted, sum_uncounted
from vitbench.models import use_attention
from vitbench.models.cards import ModelCard

#: Differences below this share of the whole are rounding.
SAME = 5e-5

#: The batch of a training step: batch norm needs two images.
TRAINING_BATCH = 2

_FVCORE_MATRIX = {"conv", "linear", "matmul", "bmm", "einsum", "addmm"}
#: Where thop counts products rightly: these classes, not their subclasses.
_THOP_RULES = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def audit_flops(
    names: Sequence[str],
    *,
    image_size: str | None = None,
    num_classes: int | None = None,
    in_channels: int = RGB,
    attention: str = "fused",
    others: bool = True,
) -> list[dict[str, Any]]:
    """An audit a model, for one image; ``others`` False leaves out fvcore and thop, which need memory and a real run.

    A model that reads the image's values in its operators is executed on the CPU: ``flops`` is the mean of several
    images, ``executed`` has their minimum, mean, maximum and each one's FLOPs, and the reason. A model that fails has
    ``error`` and ``usage`` (see ``inspect_model``). Raises UsageError for an image size, class count or attention that
    no model could take.
    """
    if attention not in ATTENTIONS:
        raise UsageError(f"--attention {attention!r} is not known: give {' or '.join(ATTENTIONS)}")
    check_request(image_size, num_classes)

    audit = functools.partial(_audit, others=others)
    return [
        inspect_model(
            name,
            audit,
            image_size=image_size,
            num_classes=num_classes,
            in_channels=in_channels,
            attention=attention,
        )
        for name in expand_names(names)
    ]


def _audit(card: ModelCard, subject: Subject, others: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"attention": subject.cell.attention}
    try:
        exact = closed_form(card, subject.cell.image_size, subject.cell.num_classes)
    except Unsupported as reason:
        exact, found["closed_form"] = None, {"reason": str(reason)}
    found |= _count(subject, exact)
    if others:
        not_asked = "not asked: it would trace another image, and this model's FLOPs depend on the image"
        depends = {tool: {"reason": not_asked} for tool in ("fvcore", "thop")}
        found |= depends if "executed" in found else _compare(subject, found)
    return found | {"warnings": _warnings(found)}


def _count(subject: Subject, exact: ClosedForm | None) -> dict[str, Any]:
    """The forward pass by operator and the FLOPs of a training step, on ``meta`` unless it must be executed."""
    try:
        with subject.on_meta(1) as (model, images):
            counts = count_forward(model, images)
    except (RuntimeError, TypeError) as error:
        if not must_execute(error):
            raise
        found = _execute(subject, f"{type(error).__name__}: {error}".splitlines()[0])
    else:
        found = _mean_counts([counts]) | _other_ways(subject)
    found["training"] = _count_training(subject, exact)
    if exact is not None:
        found["closed_form"] = {"flops": exact.flops, "difference": found["flops"] / exact.flops - 1}
    return found


def _other_ways(subject: Subject) -> dict[str, Any]:
    """The FLOPs on ``meta`` with each attention implementation, gradients on and off, and inside fused attention."""
    with subject.on_meta(1) as (model, images):
        fused = count_fused_attention(model, images)
    ways = {}
    for attention in ATTENTIONS:
        for gradients in (False, True):
            model = subject.meta_model.eval()
            with use_attention(model, attention), torch.device("meta"):
                images = subject.meta_images(1)
                label = f"{attention} attention, gradients {'on' if gradients else 'off'}"
                ways[label] = count_forward(model, images, gradients=gradients).flops
    method = f"operators dispatched on meta, batch of 1, torch {torch.__version__}"
    return {"method": method, "fused_attention_flops": fused, "other_ways": ways}


def _execute(subject: Subject, needed: str) -> dict[str, Any]:
    """Means of several images, for a model that reads the image's values; ``needed`` is torch's error."""
    images = execute(subject)
    flops = [counts.flops for counts in images]
    found = _mean_counts(images)
    return found | {
        "method": f"operators {executed_method(flops)}, torch {torch.__version__}",
        "executed": {
            "pictures": len(images),
            "min": min(flops),
            "mean": found["flops"],
            "max": max(flops),
            "flops": flops,
            "reason": needed,
        },
        "fused_attention_flops": None,
        "other_ways": {},
    }


def _mean_counts(images: Sequence[Counts]) -> dict[str, Any]:
    flops = round(sum(counts.flops for counts in images) / len(images))
    return {
        "flops": flops,
        "macs": flops // 2,
        "lower_bound": any(counts.without_formula for counts in images),
        "operators": _mean_operators([counts.products for counts in images]),
        "elementwise_flops": _mean(sum(counts.elementwise_flops for counts in images), len(images)),
        "elementwise": _mean_operators([counts.elementwise for counts in images]),
        "without_formula": {name: _mean(calls, len(images)) for name, calls in sum_uncounted(images).items()},
    }


def _mean_operators(images: Sequence[Mapping[str, OperatorCount]]) -> dict[str, dict[str, Any]]:
    """Each operator's mean calls and FLOPs an image; images without it count as 0."""
    count = len(images)
    found = {}
    for name in dict.fromkeys(name for operators in images for name in operators):
        counted = [operators[name] for operators in images if name in operators]
        calls, flops = sum(one.calls for one in counted), sum(one.flops for one in counted)
        found[name] = {"calls": _mean(calls, count), "flops": _mean(flops, count), "formula": counted[0].formula}
    return found


def _mean(total: int, count: int) -> float:
    """An int if the mean is a whole number, so that it prints without a fraction."""
    return total / count if total % count else total // count


def _count_training(subject: Subject, exact: ClosedForm | None) -> dict[str, Any]:
    """Forward and backward FLOPs of a training step, for one image of a batch of two; or why they are unavailable."""
    try:
        with subject.on_meta(TRAINING_BATCH, train=True) as (model, images):
            forward, backward = count_training_step(model, images)
        flops = forward.flops, backward.flops
    except Unsupported as reason:
        return {"reason": str(reason)}
    except Exception as error:  # an inference-only model keeps its forward pass
        return {"reason": f"a training step does not run on meta: {type(error).__name__}: {error}".splitlines()[0]}
    found: dict[str, Any] = {
        "batch_size": TRAINING_BATCH,
        "forward_flops": flops[0] / TRAINING_BATCH,
        "backward_flops": flops[1] / TRAINING_BATCH,
        "step_flops": sum(flops) / TRAINING_BATCH,
        "elementwise_flops": (forward.elementwise_flops + backward.elementwise_flops) / TRAINING_BATCH,
        "lower_bound": bool(forward.without_formula or backward.without_formula),
        "without_formula": sum_uncounted([forward, backward]),
    }
    if exact is not None:
        found["closed_form_step_flops"] = exact.step_flops
        found["difference"] = found["step_flops"] / exact.step_flops - 1
    return found


def _compare(subject: Subject, found: Mapping[str, Any]) -> dict[str, Any]:
    """fvcore and thop on a real model: what each counts, misses and adds, and, unless our count is a lower bound, the
    difference and the rest that this does not explain.
    """
    with subject.on_meta(1) as (model, images):
        flops = {layer.path: layer.flops for layer in describe_layers(model, images)}
        ruled = [(module, flops.get(path, 0)) for path, module in model.named_modules() if type(module) in _THOP_RULES]
    real, images = real_model(subject)
    result: dict[str, Any] = {}
    with subject.attention(real):
        for tool, count in (("fvcore", count_by_fvcore), ("thop", count_by_thop)):
            try:
                other = count(real, images)
            except Unsupported as reason:
                result[tool] = {"reason": str(reason)}
                continue
            if tool == "fvcore":
                missed, matrix = _missed_by_fvcore(other, found), _FVCORE_MATRIX
            else:
                times = times_counted_by_thop(model)
                in_modules = sum(flops for module, flops in ruled if times[module])
                again = sum(flops * times[module] for module, flops in ruled) - in_modules
                why = "matrix work outside of modules (`@`, attention, F.linear, bare parameters)"
                missed, matrix = {why: found["flops"] - in_modules}, {one.__name__ for one in _THOP_RULES}
            counted = sum(flops for name, flops in other.by_operator.items() if name in matrix)
            added = {name: flops for name, flops in other.by_operator.items() if name not in matrix}
            if tool == "thop" and again:
                added["modules with p > 1 parents, which thop counts p * p times"] = again
                counted -= again
            result[tool] = {
                "tool": other.tool,
                "flops": other.total,
                "by_operator": dict(other.by_operator),
                "missed": {what: flops for what, flops in missed.items() if flops},
                "added": added,
            }
            if not found["lower_bound"]:  # a bound is no measure of what another tool counts
                if found["flops"]:
                    result[tool]["difference"] = other.total / found["flops"] - 1
                result[tool]["unexplained"] = found["flops"] - sum(missed.values()) - counted
    return result


def _missed_by_fvcore(other: OtherCount, found: Mapping[str, Any]) -> dict[str, int]:
    """Matrix operators that fvcore reports as unsupported, with their FLOPs."""
    missed = {}
    unknown = other.missed or {}
    if "aten::scaled_dot_product_attention" in unknown:
        missed["aten::scaled_dot_product_attention"] = found["fused_attention_flops"]
    for name in ("baddbmm", "mm"):
        if f"aten::{name}" in unknown and name in found["operators"]:
            missed[f"aten::{name}"] = found["operators"][name]["flops"]
    return missed


def _warnings(found: Mapping[str, Any]) -> list[str]:
    """Differences without an explanation, one line each."""
    flops = found["flops"]
    texts = []
    closed = found.get("closed_form", {})
    if closed.get("difference"):
        texts.append(f"the closed form gives {closed['flops']:,} FLOPs, the dispatcher {flops:,}")
    for way, other in found["other_ways"].items():
        if other != flops:
            texts.append(f"{other:,} FLOPs with {way}, not {flops:,}")
    training = found["training"]
    if training.get("difference"):
        texts.append(
            f"the closed form gives {training['closed_form_step_flops']:,} FLOPs a training step, "
            f"the dispatcher {training['step_flops']:,.0f}"
        )
    for place, names in (("", found["without_formula"]), (" in training", training.get("without_formula", {}))):
        if names:
            texts.append(f"a lower bound{place}: no formula covers {describe_uncounted(names)}")
    for tool in ("fvcore", "thop"):
        unexplained = found.get(tool, {}).get("unexplained", 0)
        if abs(unexplained) > SAME * flops:
            what = "does not count" if unexplained > 0 else "counts in excess"
            texts.append(f"{abs(unexplained):,} FLOPs that {tool} {what}, without a known reason")
    return texts

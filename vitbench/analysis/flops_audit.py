"""One model's FLOPs from every side: closed form, torch's dispatcher, fvcore, thop, and why they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vitbench.analysis.closed_form import ClosedForm, closed_form
from vitbench.analysis.model_summary import expand_names
from vitbench.core.errors import USAGE_CAUSES, Unsupported, UsageError
from vitbench.core.records import ATTENTIONS, Cell, format_image_size, parse_image_size
from vitbench.metrics import Subject
from vitbench.metrics.flops import Executed, execute, needs_values
from vitbench.metrics.support.fvcore_thop import OtherCount, count_by_fvcore, count_by_thop
from vitbench.metrics.support.in_process import failure_of, make_subject

if TYPE_CHECKING:
    from vitbench.analysis.flops import Counts, OperatorCount

#: Differences below this share of the whole are rounding.
SAME = 5e-5

#: Where a training step is counted: batch norm needs two images.
TRAINING_BATCH = 2

_FVCORE_MATRIX = frozenset({"conv", "linear", "matmul", "bmm", "einsum", "addmm"})
_THOP_MATRIX = frozenset({"Linear", "Conv1d", "Conv2d", "Conv3d"})


def audit_flops(
    names: Sequence[str],
    *,
    image_size: str | None = None,
    num_classes: int | None = None,
    attention: str = "fused",
    others: bool = True,
) -> list[dict[str, Any]]:
    """An audit a model, for one image; ``others`` False leaves out fvcore and thop, which need memory and a real run.

    A model whose operators depend on the numbers in the picture is executed on the CPU: ``flops`` is the mean of
    several pictures, ``executed`` has the least, the mean, the most and each picture's (FLOPs), and why.
    A model that fails has ``error`` (one line) and ``usage`` (whether the request was wrong rather than the model).
    Raises UsageError for an image size, class count or attention that cannot be.
    """
    if attention not in ATTENTIONS:
        raise UsageError(f"--attention {attention!r} is not known: give {' or '.join(ATTENTIONS)}")
    try:
        size = None if image_size is None else parse_image_size(image_size)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"--num-classes {num_classes} is not positive: a head needs at least one class")
    return [_audit(name, size, num_classes, attention, others) for name in expand_names(names)]


def _audit(
    name: str, size: tuple[int, int] | None, num_classes: int | None, attention: str, others: bool
) -> dict[str, Any]:
    from vitbench.models import describe_model

    try:
        card = describe_model(name)
        chosen = size or card.image_size
        card.check_image_size(chosen)
    except UsageError as error:
        return {"model": name, "error": str(error), "usage": True}
    cell = Cell(
        model=name,
        image_size=chosen,
        num_classes=num_classes or card.num_classes,
        batch_size=1,
        device="cpu",
        threads=1,
        attention=attention,
    )
    found: dict[str, Any] = {
        "model": name,
        "image_size": list(chosen),
        "num_classes": cell.num_classes,
        "attention": attention,
    }
    try:
        exact = closed_form(card, chosen, cell.num_classes)
    except Unsupported as reason:
        exact, found["closed_form"] = None, {"reason": str(reason)}
    try:
        subject = make_subject(cell)
        found |= _count(subject, exact)
        if others:
            found |= _no_comparison() if "executed" in found else _compare(subject, found)
    except Exception as error:  # a model that fails is an answer; the others are still asked for
        failure = failure_of(error, cell)
        detail = failure.detail.splitlines()[0]
        return {"model": name, "error": detail, "usage": failure.cause in USAGE_CAUSES}
    found["warnings"] = list(_warnings(found))
    return found


def _count(subject: Subject, exact: ClosedForm | None) -> dict[str, Any]:
    """The forward pass by operator, and what a training step takes; all without memory unless it must be executed."""
    from vitbench.analysis.flops import count_forward

    needed = counts = None
    with subject.on_meta(1) as (model, images):
        try:
            counts = count_forward(model, images)
        except (RuntimeError, TypeError) as error:
            if not needs_values(error):
                raise
            needed = f"{type(error).__name__}: {error}".splitlines()[0]
    found = _execute(subject, needed) if counts is None else _count_on_meta(subject, counts)
    found["training"] = _count_training(subject, exact)
    if exact is not None:
        found["closed_form"] = {"flops": exact.flops, "difference": found["flops"] / exact.flops - 1}
    return found


def _count_on_meta(subject: Subject, counts: Counts) -> dict[str, Any]:
    """``counts`` of the forward pass, and whether kernels and gradients matter."""
    import torch

    from vitbench.analysis.flops import count_forward, count_fused_attention
    from vitbench.models import use_attention

    with subject.on_meta(1) as (model, images):
        fused = count_fused_attention(model, images)
    forwards = {}
    for kind in ATTENTIONS:
        for gradients in (False, True):
            model = subject.meta_model.eval()
            with use_attention(model, kind), torch.device("meta"):
                images = torch.empty(1, 3, *subject.cell.image_size)
                label = f"{kind} attention, gradients {'on' if gradients else 'off'}"
                forwards[label] = count_forward(model, images, gradients=gradients).flops
    return {
        "flops": counts.flops,
        "macs": counts.flops // 2,
        "method": f"operators dispatched on meta, batch of 1, torch {torch.__version__}",
        "operators": {name: asdict(one) for name, one in counts.matrix.items()},
        "fused_attention_flops": fused,
        "elementwise_flops": counts.elementwise_flops,
        "elementwise": {name: asdict(one) for name, one in counts.elementwise.items()},
        "without_formula": counts.without_formula,
        "other_ways": forwards,
    }


def _execute(subject: Subject, needed: str | None) -> dict[str, Any]:
    """The same of a model that needs the picture's numbers: means of several; ``needed`` is what torch said."""
    import torch

    from vitbench.analysis.flops import OperatorCounter

    pictures = [counter.counts for counter in execute(subject, OperatorCounter)]
    executed = Executed(flops=tuple(counts.flops for counts in pictures))
    elementwise = sum(counts.elementwise_flops for counts in pictures)
    without = Counter[str]()
    for counts in pictures:
        without.update(counts.without_formula)
    return {
        "flops": executed.mean,
        "macs": executed.mean // 2,
        "method": f"operators {executed.method}, torch {torch.__version__}",
        "executed": {
            "pictures": len(pictures),
            "min": min(executed.flops),
            "mean": executed.mean,
            "max": max(executed.flops),
            "flops": list(executed.flops),
            "reason": needed,
        },
        "operators": _mean_operators([counts.matrix for counts in pictures]),
        "fused_attention_flops": None,
        "elementwise_flops": _mean(elementwise, len(pictures)),
        "elementwise": _mean_operators([counts.elementwise for counts in pictures]),
        "without_formula": {name: _mean(calls, len(pictures)) for name, calls in without.items()},
        "other_ways": {},
    }


def _mean_operators(pictures: Sequence[Mapping[str, OperatorCount]]) -> dict[str, dict[str, Any]]:
    """Each operator's mean calls and FLOPs a picture; a picture that does without it has 0."""
    sums: dict[str, list[Any]] = {}
    for operators in pictures:
        for name, one in operators.items():
            calls, flops, _ = sums.get(name, (0, 0, ""))
            sums[name] = [calls + one.calls, flops + one.flops, one.formula]
    return {
        name: {"calls": _mean(calls, len(pictures)), "flops": _mean(flops, len(pictures)), "formula": formula}
        for name, (calls, flops, formula) in sums.items()
    }


def _mean(total: int, count: int) -> float:
    """Whole where it is whole, so that it is printed so."""
    return total / count if total % count else total // count


def _no_comparison() -> dict[str, Any]:
    reason = "not asked: it would follow another picture, and this model's FLOPs depend on the picture"
    return {tool: {"reason": reason} for tool in ("fvcore", "thop")}


def _count_training(subject: Subject, exact: ClosedForm | None) -> dict[str, Any]:
    """Forward and backward of a training step, for one image of a batch of two; or the reason why not."""
    from vitbench.analysis.flops import count_training_step

    try:
        with subject.on_meta(TRAINING_BATCH, train=True) as (model, images):
            forward, backward = count_training_step(model, images)
    except Exception as error:  # the forward pass stands without it
        return {"reason": f"a training step does not run on meta: {type(error).__name__}: {error}".splitlines()[0]}
    found: dict[str, Any] = {
        "batch_size": TRAINING_BATCH,
        "forward_flops": forward.flops / TRAINING_BATCH,
        "backward_flops": backward.flops / TRAINING_BATCH,
        "step_flops": (forward.flops + backward.flops) / TRAINING_BATCH,
        "elementwise_flops": (forward.elementwise_flops + backward.elementwise_flops) / TRAINING_BATCH,
        "without_formula": {**forward.without_formula, **backward.without_formula},
    }
    if exact is not None:
        found["closed_form_step_flops"] = exact.step_flops
        found["difference"] = found["step_flops"] / exact.step_flops - 1
    return found


def _compare(subject: Subject, found: Mapping[str, Any]) -> dict[str, Any]:
    """fvcore and thop on a real model: what each counts, misses and adds, and what no known reason explains."""
    import torch

    from vitbench.analysis.layers import describe_layers

    with subject.on_meta(1) as (model, images):
        layers = describe_layers(model, images)
        parents = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        shared = {path: parents[id(module)] - 1 for path, module in model.named_modules()}
    again = sum(layer.flops * shared.get(layer.path, 0) for layer in layers if layer.kind in _THOP_MATRIX)
    in_modules = sum(layer.flops for layer in layers if layer.kind in _THOP_MATRIX)
    with torch.device("cpu"):
        real = subject.build().to("cpu").eval()
        pictures = torch.zeros(1, 3, *subject.cell.image_size)
    result: dict[str, Any] = {}
    with subject.attention(real):
        for tool, count in (("fvcore", count_by_fvcore), ("thop", count_by_thop)):
            try:
                other = count(real, pictures)
            except Unsupported as reason:
                result[tool] = {"reason": str(reason)}
                continue
            if tool == "fvcore":
                missed, matrix = _missed_by_fvcore(other, found), _FVCORE_MATRIX
            else:
                bare = found["flops"] - in_modules
                why = "matrix work outside of modules (`@`, attention, F.linear, bare parameters)"
                missed, matrix = ({why: bare} if bare else {}), _THOP_MATRIX
            counted = sum(flops for name, flops in other.by_operator.items() if name in matrix)
            added = {name: flops for name, flops in other.by_operator.items() if name not in matrix}
            if tool == "thop" and again:
                added["modules that several parents share, once more for each"] = again
                counted -= again
            result[tool] = {
                "tool": other.tool,
                "flops": other.total,
                "difference": other.total / found["flops"] - 1,
                "by_operator": dict(other.by_operator),
                "missed": missed,
                "added": added,
                "unexplained": found["flops"] - sum(missed.values()) - counted,
            }
    return result


def _missed_by_fvcore(other: OtherCount, found: Mapping[str, Any]) -> dict[str, int]:
    """Matrix operators that fvcore says it has no formula for, with what they take."""
    missed = {}
    if "aten::scaled_dot_product_attention" in other.missed:
        missed["aten::scaled_dot_product_attention"] = found["fused_attention_flops"]
    for name in ("baddbmm", "mm"):
        if f"aten::{name}" in other.missed and name in found["operators"]:
            missed[f"aten::{name}"] = found["operators"][name]["flops"]
    return {name: flops for name, flops in missed.items() if flops}


def _warnings(found: Mapping[str, Any]) -> Sequence[str]:
    """What a reader must not overlook."""
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
            listed = ", ".join(f"{name} x{calls}" for name, calls in names.items())
            texts.append(f"operators that no formula covers{place}: {listed}")
    for tool in ("fvcore", "thop"):
        unexplained = found.get(tool, {}).get("unexplained", 0)
        if abs(unexplained) > SAME * flops:
            what = "does not count" if unexplained > 0 else "counts too many"
            texts.append(f"{abs(unexplained):,} FLOPs that {tool} {what}, for no reason that is known")
    return texts


def audits_to_text(audits: Sequence[Mapping[str, Any]]) -> str:
    """What a person reads, one block a model; failed ones are left to stderr."""
    return "\n\n".join(_to_text(audit) for audit in audits if "error" not in audit)


def _to_text(audit: Mapping[str, Any]) -> str:
    size = format_image_size((audit["image_size"][0], audit["image_size"][1]))
    parts = [
        f"{audit['model']}  ({size} px, {audit['num_classes']} classes, {audit['attention']} attention), one image",
        _indented(_counters_text(audit)),
        _executed_text(audit.get("executed")),
        "  matrix work, which is what FLOPs means here (a multiply-add is two)\n"
        + _indented(_operators_text(audit["operators"], formulas=False), 4),
        f"  element-wise work, not in the above: {_giga(audit['elementwise_flops'])} GFLOPs\n"
        + _indented(_operators_text(audit["elementwise"], formulas=True), 4),
        _training_text(audit["training"]),
    ]
    for tool in ("fvcore", "thop"):
        parts += _differences_text(tool, audit.get(tool, {}))
    parts += [f"  WARNING: {text}" for text in audit["warnings"]]
    return "\n\n".join(part for part in parts if part)


def _counters_text(audit: Mapping[str, Any]) -> str:
    from tabulate import tabulate

    where = "dispatcher, executed" if "executed" in audit else "dispatcher, on meta"
    rows = [[where, _giga(audit["flops"]), _giga(audit["macs"]), "", audit["method"]]]
    closed = audit["closed_form"]
    if "flops" in closed:
        difference = f"{100 * closed['difference']:+.3f} %"
        rows.append(["closed form", _giga(closed["flops"]), _giga(closed["flops"] / 2), difference, ""])
    else:
        rows.append(["closed form", "", "", "", closed["reason"]])
    for tool in ("fvcore", "thop"):
        other = audit.get(tool)
        if other and "flops" in other:
            difference = f"{100 * other['difference']:+.1f} %"
            rows.append([tool, _giga(other["flops"]), _giga(other["flops"] / 2), difference, other["tool"]])
        elif other:
            rows.append([tool, "", "", "", other["reason"]])
    return tabulate(rows, ["counter", "GFLOPs", "GMACs", "difference", ""], tablefmt="plain", disable_numparse=True)


def _executed_text(executed: Mapping[str, Any] | None) -> str:
    if executed is None:
        return ""
    least, mean, most = (_giga(executed[which]) for which in ("min", "mean", "max"))
    pictures = f"{executed['pictures']} pictures of random numbers"
    return (
        f"  FLOPs depend on the picture: min {least}, mean {mean}, max {most} GFLOPs of {pictures}\n"
        f"  (what stands below are their means; it does not run on meta: {executed['reason']})"
    )


def _operators_text(operators: Mapping[str, Mapping[str, Any]], *, formulas: bool) -> str:
    from tabulate import tabulate

    ordered = sorted(operators.items(), key=lambda item: -item[1]["flops"])
    rows = [[name, one["calls"], f"{one['flops']:,}", *([one["formula"]] if formulas else [])] for name, one in ordered]
    headings = ["operator", "calls", "FLOPs", *(["formula"] if formulas else [])]
    align = ("left", "right", "right", *(("left",) if formulas else ()))
    return tabulate(rows, headings, tablefmt="plain", colalign=align, disable_numparse=True) if rows else "none"


def _training_text(training: Mapping[str, Any]) -> str:
    if "reason" in training:
        return f"  training step: not known here, {training['reason']}"
    exact = ""
    if "difference" in training:
        exact = f"; closed form {100 * training['difference']:+.3f} %"
    return (
        f"  training step, an image of a batch of {training['batch_size']}: "
        f"forward {_giga(training['forward_flops'])} + backward {_giga(training['backward_flops'])} "
        f"= {_giga(training['step_flops'])} GFLOPs{exact}\n"
        f"  (element-wise work beside it: {_giga(training['elementwise_flops'])} GFLOPs, without the optimizer's)"
    )


def _differences_text(tool: str, other: Mapping[str, Any]) -> list[str]:
    if "flops" not in other:
        return []
    lines = [f"  {tool} misses {_giga(flops)} GFLOPs: {what}" for what, flops in other["missed"].items()]
    added = {name: flops for name, flops in other["added"].items() if flops}
    if added:
        listed = ", ".join(f"{name} {_giga(flops)}" for name, flops in added.items())
        lines.append(f"  {tool} adds (GFLOPs): {listed}")
    return ["\n".join(lines)] if lines else []


def _giga(flops: float) -> str:
    return f"{flops / 1e9:.4g}"


def _indented(text: str, by: int = 2) -> str:
    return "\n".join(f"{' ' * by}{line}" for line in text.splitlines())

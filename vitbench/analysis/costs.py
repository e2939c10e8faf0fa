"""What each module, operator and block of a model costs: one batch traced in evaluation and in training.

FLOPs of the forward pass, its bytes and the intensity are those of evaluation; FLOPs of the backward pass and saved
bytes are those of a training step. A module's ``own`` costs leave out the modules inside it, its ``total`` has them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.analysis.layers import blocks_of, tokens_per_block
from vitbench.analysis.model_summary import check_request, expand_names, inspect_model
from vitbench.analysis.module_times import time_modules
from vitbench.core.errors import Unsupported, UsageError
from vitbench.core.records import ATTENTIONS, RGB
from vitbench.metrics import Subject
from vitbench.metrics.flops import real_model
from vitbench.metrics.support.fake_models import fake_mode, fake_model, needs_real_tensors
from vitbench.metrics.support.in_process import make_subject
from vitbench.metrics.support.operator_counter import describe_uncounted
from vitbench.metrics.support.operator_trace import trace_operators
from vitbench.metrics.support.subject import dtype_of
from vitbench.models.cards import ModelCard
from vitbench.models.outputs import input_dtype

#: What a table lists.
LISTS = ("module", "op", "block")
#: What is counted of one batch. ``uncovered_calls`` are those that no formula covers: FLOPs are then a lower bound.
COUNTS = (
    "params",
    *(
        f"{what}_{phase}"
        for what in ("calls", "flops", "elementwise_flops", "bytes")
        for phase in ("forward", "backward")
    ),
    "saved_bytes",
    "uncovered_calls",
)
#: Unknown without a training step.
_OF_TRAINING = [name for name in COUNTS if name.endswith("_backward") or name == "saved_bytes"]


def sum_costs(costs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of COUNTS and of ``seconds`` where they were measured; None where one is unknown.

    ``intensity`` is FLOPs of the forward pass over its bytes (FLOP/byte); None where nothing is moved.
    """
    several = list(costs)
    values = {name: [one[name] for one in several] for name in (*COUNTS, "seconds") if name in several[0]}
    sums = {name: None if None in some else sum(some) for name, some in values.items()}
    moved = sums["bytes_forward"]
    return sums | {"intensity": sums["flops_forward"] / moved if moved else None}


def analyze_models(
    names: Sequence[str],
    *,
    image_size: str | None = None,
    num_classes: int | None = None,
    in_channels: int = RGB,
    batch_size: int = 1,
    by: str = "module",
    attention: str = "fused",
    time_on: str | None = None,
) -> list[dict[str, Any]]:
    """An answer a model, for one batch, in base units (docs/measuring.md): ``total`` and one list that ``by`` names,
    ``modules``, ``operators`` or ``blocks``. With the name of a device in ``time_on`` modules have ``seconds``, too.

    A model that fails has ``error`` and ``usage`` (see ``inspect_model``). Raises UsageError for a request that no
    model could take.
    """
    if by not in LISTS:
        raise UsageError(f"--by {by!r} is not known: give {', '.join(LISTS)}")
    if attention not in ATTENTIONS:
        raise UsageError(f"--attention {attention!r} is not known: give {' or '.join(ATTENTIONS)}")
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size} is not a batch of images: give at least 1")
    check_request(image_size, num_classes)
    analyze = functools.partial(_analyze, batch_size=batch_size, by=by, time_on=time_on)
    return [
        inspect_model(
            name,
            analyze,
            image_size=image_size,
            num_classes=num_classes,
            in_channels=in_channels,
            attention=attention,
        )
        for name in expand_names(names)
    ]


def _analyze(_: ModelCard, subject: Subject, *, batch_size: int, by: str, time_on: str | None) -> dict[str, Any]:
    """A model that needs the numbers of the image is executed on the CPU."""
    seconds, times = _time(subject, batch_size, time_on) if time_on else (None, None)
    size = (batch_size, subject.cell.in_channels, *subject.cell.image_size)
    executed = None
    try:
        with fake_mode():
            model = fake_model(subject)
            found = _trace(subject, model, torch.empty(size, dtype=input_dtype(model)), by, seconds)
    except Exception as error:
        if not needs_real_tensors(error):
            raise
        executed = _first_line(error)
        model = real_model(subject)[0]
        images = torch.randn(size, generator=torch.Generator().manual_seed(subject.cell.seed))
        found = _trace(subject, model, images.to(input_dtype(model)), by, seconds)
    method = f"operators {'executed on the CPU with random images' if executed else 'dispatched on fake CPU tensors'}"
    method += found.pop("of_attention")
    setting = {"batch_size": batch_size, "dtype": dtype_of(model), "attention": subject.cell.attention, "by": by}
    setting |= {"method": f"{method}; torch {torch.__version__}", "executed": executed}
    return setting | found | ({"times": times} if times else {})


def _trace(
    subject: Subject, model: nn.Module, images: Tensor, by: str, seconds: Mapping[str, float] | None
) -> dict[str, Any]:
    """The counts of an answer; ``seconds`` are each module's own."""
    with subject.attention(model.eval()):
        calls = list(trace_operators(model, images).calls)
        tokens = tokens_per_block(model, images)
    training, training_error = None, None
    try:
        with subject.attention(model.train()):
            training = trace_operators(model, images, train=True)
    except Exception as error:  # an inference-only model keeps its forward pass
        training_error = _first_line(error)
    calls += [call for call in (training.calls if training else ()) if call.phase == "backward"]
    none = dict.fromkeys(COUNTS, 0) | ({} if training else dict.fromkeys(_OF_TRAINING))
    modules = {path: [none | {"params": count}] for path, count in _own_params(model).items()}
    operators: dict[str, list[dict[str, Any]]] = {}
    for call in calls:
        cost = none | {
            f"calls_{call.phase}": 1,
            f"flops_{call.phase}": call.flops,
            f"elementwise_flops_{call.phase}": call.elementwise_flops,
            f"bytes_{call.phase}": call.bytes_read + call.bytes_written,
            "uncovered_calls": int(call.lower_bound),
        }
        modules.setdefault(call.module, []).append(cost)
        operators.setdefault(call.name, []).append(cost)
    for path, saved in (training.saved_bytes if training else {}).items():
        modules.setdefault(path, []).append(none | {"saved_bytes": saved})
    own = {path: sum_costs(costs) for path, costs in modules.items()}
    if seconds is not None:
        own = {path: cost | {"seconds": seconds.get(path, 0.0)} for path, cost in own.items()}
    uncovered = {name: sum(one["uncovered_calls"] for one in costs) for name, costs in operators.items()}
    found: dict[str, Any] = {
        "training_error": training_error,
        "training_forward_flops": training.flops("forward") if training else None,
        "left_out": describe_uncounted({name: count for name, count in uncovered.items() if count}),
        "of_attention": _fused_in_training(operators) if training else "",
        "total": sum_costs(own.values()),
    }
    if by == "module":
        return found | {"modules": _modules(model, own)}
    if by == "op":
        return found | {"operators": [{"name": name, **sum_costs(costs)} for name, costs in operators.items()]}
    return found | {"blocks": _blocks(subject, model, own, tokens)}


def _fused_in_training(operators: Iterable[str]) -> str:
    """For the method: what fused attention, among ``operators`` of the forward pass, is in the training step."""
    fused = [one for one in operators if one.startswith("_scaled_dot_product")]
    if any(one.endswith("_backward") for one in fused):
        return "; fused attention's backward pass counts as it runs: it computes the scores again (2.5 x forward)"
    if fused:  # the CPU's kernel has no dropout
        return "; attention with dropout runs in parts in a training step on the CPU, which saves its scores"
    return ""


def _own_params(model: nn.Module) -> dict[str, int]:
    """Each module's own parameters, in order; a tensor that two modules share belongs to the first."""
    counts = dict.fromkeys((path for path, _ in model.named_modules()), 0)
    for name, parameter in model.named_parameters():
        counts[name.rpartition(".")[0]] += parameter.numel()
    return counts


def _modules(model: nn.Module, own: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every module in order, also those that cost nothing, and what belongs to none."""
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    return [
        {
            "path": path,
            "class": kinds.get(path),
            "own": cost,
            "total": sum_costs(one for inside, one in own.items() if _is_inside(inside, path)),
        }
        for path, cost in own.items()
    ]


def _blocks(
    subject: Subject, model: nn.Module, own: Mapping[str, dict[str, Any]], tokens: Sequence[int]
) -> list[dict[str, Any]]:
    """The blocks in order with the tokens that go in, and the rest of the model, which has no path. Raises Unsupported
    if the blocks are not one list.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise Unsupported(f"the blocks of {subject.cell.model} are not one list. Use --by module")
    rows: list[dict[str, Any]] = [
        {"path": block, "tokens": count, **sum_costs(cost for path, cost in own.items() if _is_inside(path, block))}
        for block, count in zip(blocks, tokens or (None,) * len(blocks), strict=True)
    ]
    rest = [cost for path, cost in own.items() if not any(_is_inside(path, block) for block in blocks)]
    return [*rows, {"path": None, "tokens": None, **sum_costs(rest)}]


def _is_inside(path: str, module: str) -> bool:
    return not module or f"{path}.".startswith(f"{module}.")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _time(subject: Subject, batch_size: int, device: str) -> tuple[dict[str, float], dict[str, Any]]:
    cell = replace(subject.cell, batch_size=batch_size, device=device, threads=torch.get_num_threads())
    timed = make_subject(cell)
    timed.model  # noqa: B018  (built outside of what is timed)
    try:
        return time_modules(timed)
    finally:
        timed.close()

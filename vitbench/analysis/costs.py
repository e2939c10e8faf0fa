"""What each module, operator and block of a model costs: one batch traced in evaluation and in training.

FLOPs of the forward pass, its bytes and the intensity are those of evaluation; FLOPs of the backward pass and saved
bytes are those of a training step. A module's ``own`` costs leave out the modules inside it, its ``total`` has them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.analysis.layers import blocks_of, tokens_per_block
from vitbench.analysis.model_summary import check_request, expand_names, inspect_model
from vitbench.analysis.module_times import ModuleTimes, time_modules
from vitbench.core.errors import Unsupported, UsageError
from vitbench.core.records import ATTENTIONS, RGB
from vitbench.devices import find_device
from vitbench.metrics import Subject
from vitbench.metrics.flops import real_model
from vitbench.metrics.support.fake_models import fake_mode, fake_model, needs_real_tensors
from vitbench.metrics.support.in_process import make_subject
from vitbench.metrics.support.operator_counter import describe_uncounted
from vitbench.metrics.support.operator_trace import OperatorCall, trace_operators
from vitbench.metrics.support.subject import dtype_of
from vitbench.models.cards import ModelCard
from vitbench.models.outputs import input_dtype

#: What a table lists.
LISTS = ("module", "op", "block")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Sums over the calls of one batch; ``uncovered_calls`` are those that no formula covers: FLOPs are then a lower
    bound.
    """

    params: int = 0
    calls_forward: int = 0
    calls_backward: int = 0
    flops_forward: int = 0
    flops_backward: int = 0
    elementwise_flops_forward: int = 0
    elementwise_flops_backward: int = 0
    bytes_forward: int = 0
    bytes_backward: int = 0
    saved_bytes: int = 0
    uncovered_calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(Cost)})

    @property
    def intensity(self) -> float | None:
        """FLOPs of the forward pass over its bytes (FLOP/byte); None where nothing is moved."""
        return self.flops_forward / self.bytes_forward if self.bytes_forward else None


@dataclass(frozen=True, kw_only=True)
class Costs:
    """One batch of a model: ``own`` costs by module path (those that belong to no module last) and costs by operator.

    ``tokens`` go into each block. ``training_forward_flops`` are those of the forward pass in training; None without a
    training step, and ``training_error`` says why. ``executed`` is why the model ran on numbers.
    """

    model: nn.Module
    own: dict[str, Cost]
    operators: dict[str, Cost]
    tokens: tuple[int, ...]
    training_forward_flops: int | None
    training_error: str | None
    executed: str | None

    @property
    def fused_backward(self) -> bool:
        """Whether an operator is the backward pass of fused attention: FLOPs of what runs, not of the algorithm."""
        return any(name.startswith("_scaled_dot_product") and name.endswith("_backward") for name in self.operators)

    @property
    def left_out(self) -> str:
        """The operators that no formula covers, with their calls; empty if FLOPs are exact."""
        return describe_uncounted(
            {name: cost.uncovered_calls for name, cost in self.operators.items() if cost.uncovered_calls}
        )

    def total(self, path: str) -> Cost:
        """The costs of a module and of all modules inside it; of "" those of everything."""
        return _sum(own for one, own in self.own.items() if not path or f"{one}.".startswith(f"{path}."))


def trace_costs(subject: Subject, batch_size: int) -> Costs:
    """Trace one batch of the subject's model. A model that needs the numbers of the image is executed on the CPU.

    Raises what the model raises in evaluation, and Unsupported as ``trace_operators`` does.
    """
    size = (batch_size, subject.cell.in_channels, *subject.cell.image_size)
    try:
        with fake_mode():
            model = fake_model(subject)
            return _trace(subject, model, torch.empty(size, dtype=input_dtype(model)))
    except Exception as error:
        if not needs_real_tensors(error):
            raise
        executed = _first_line(error)
    model, _ = real_model(subject)
    images = torch.randn(size, generator=torch.Generator().manual_seed(subject.cell.seed))
    return replace(_trace(subject, model, images.to(input_dtype(model))), executed=executed)


def _trace(subject: Subject, model: nn.Module, images: Tensor) -> Costs:
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
    own = _parameters(model)
    operators: dict[str, Cost] = {}
    for call in calls:
        cost = _cost_of(call)
        own[call.module] = own.get(call.module, Cost()) + cost
        operators[call.name] = operators.get(call.name, Cost()) + cost
    for path, saved in (training.saved_bytes if training else {}).items():
        own[path] = own.get(path, Cost()) + Cost(saved_bytes=saved)
    return Costs(
        model=model,
        own=own,
        operators=operators,
        tokens=tokens,
        training_forward_flops=training.flops("forward") if training else None,
        training_error=training_error,
        executed=None,
    )


def _parameters(model: nn.Module) -> dict[str, Cost]:
    """The modules in order, each with its own parameters; a tensor that two modules share belongs to the first."""
    found: dict[str, Cost] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = [one for one in module.parameters(recurse=False) if id(one) not in seen]
        seen.update(map(id, own))
        found[path] = Cost(params=sum(one.numel() for one in own))
    return found


def _cost_of(call: OperatorCall) -> Cost:
    counts = {
        f"calls_{call.phase}": 1,
        f"flops_{call.phase}": call.flops,
        f"elementwise_flops_{call.phase}": call.elementwise_flops,
        f"bytes_{call.phase}": call.bytes_read + call.bytes_written,
    }
    return Cost(**counts, uncovered_calls=int(call.lower_bound))


def _sum(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


# answers of ``vitbench analyze``


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
    ``modules``, ``operators`` or ``blocks``. With the name of a device in ``time_on`` modules have times, too.

    A model that fails has ``error`` and ``usage`` (see ``inspect_model``). Raises UsageError for a request that no
    model could take.
    """
    if by not in LISTS:
        raise UsageError(f"--by {by!r} is not known: give {', '.join(LISTS)}")
    if attention not in ATTENTIONS:
        raise UsageError(f"--attention {attention!r} is not known: give {' or '.join(ATTENTIONS)}")
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size} is not a batch of images: give at least 1")
    if time_on is not None and by != "module":
        raise UsageError(f"--time measures modules: leave out --by {by}")
    check_request(image_size, num_classes)
    device = None if time_on is None else find_device(time_on).name
    analyze = functools.partial(_analyze, batch_size=batch_size, by=by, time_on=device)
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


def _analyze(card: ModelCard, subject: Subject, *, batch_size: int, by: str, time_on: str | None) -> dict[str, Any]:
    costs = trace_costs(subject, batch_size)
    trained = costs.training_error is None
    answer: dict[str, Any] = {
        "batch_size": batch_size,
        "dtype": dtype_of(costs.model),
        "attention": subject.cell.attention,
        "by": by,
        "method": _method(costs, batch_size),
        "executed": costs.executed,
        "training_error": costs.training_error,
        "training_forward_flops": costs.training_forward_flops,
        "fused_backward": costs.fused_backward,
        "left_out": costs.left_out,
        "total": _to_dict(costs.total(""), trained),
    }
    times = None
    if time_on is not None:
        times = _time(subject, batch_size, time_on)
        answer["times"] = _times_to_dict(times, time_on)
    if by == "module":
        answer["modules"] = _modules(costs, trained, times)
    elif by == "op":
        answer["operators"] = [{"name": name, **_to_dict(cost, trained)} for name, cost in costs.operators.items()]
    else:
        answer["blocks"] = _blocks(card, costs, trained)
    return answer


def _method(costs: Costs, batch_size: int) -> str:
    how = "executed on the CPU with random images" if costs.executed else "dispatched on fake CPU tensors"
    method = f"operators {how}, a batch of {batch_size}, torch {torch.__version__}"
    if costs.fused_backward:
        method += "; fused attention's backward pass counts as it runs: it computes the scores again"
    return method


def _to_dict(cost: Cost, trained: bool) -> dict[str, Any]:
    found: dict[str, Any] = {**asdict(cost), "intensity": cost.intensity}
    if not trained:
        found |= {name: None for name in found if name.endswith("_backward") or name == "saved_bytes"}
    return found


def _modules(costs: Costs, trained: bool, times: ModuleTimes | None) -> list[dict[str, Any]]:
    """Every module in order, also those that cost nothing, and what belongs to none."""
    kinds = {path: type(module).__name__ for path, module in costs.model.named_modules()}
    rows = []
    for path, own in costs.own.items():
        row: dict[str, Any] = {"path": path, "class": kinds.get(path)}
        row |= {"own": _to_dict(own, trained), "total": _to_dict(costs.total(path), trained)}
        if times is not None:
            row["own_s"] = times.own_s.get(path, 0.0)
            inside = [seconds for one, seconds in times.own_s.items() if not path or f"{one}.".startswith(f"{path}.")]
            row["total_s"] = sum(inside)
        rows.append(row)
    return rows


def _blocks(card: ModelCard, costs: Costs, trained: bool) -> list[dict[str, Any]]:
    """The blocks in order with their tokens, and the rest of the model, which has no path. Raises Unsupported if the
    blocks are not one list.
    """
    blocks = blocks_of(costs.model)
    if not blocks:
        raise Unsupported(f"the blocks of {card.name} are not one list. Use --by module")
    tokens = costs.tokens or (None,) * len(blocks)
    rows = [
        {"path": path, "tokens": count, **_to_dict(costs.total(path), trained)}
        for path, count in zip(blocks, tokens, strict=True)
    ]
    rest = _sum(
        own for path, own in costs.own.items() if not any(f"{path}.".startswith(f"{block}.") for block in blocks)
    )
    return [*rows, {"path": None, "tokens": None, **_to_dict(rest, trained)}]


def _times_to_dict(times: ModuleTimes, device: str) -> dict[str, Any]:
    """In seconds; ``sum_s`` is that of all modules, ``sum_over_call`` its ratio to a call without hooks."""
    total = sum(times.own_s.values())
    count = torch.get_num_threads()
    threads = f" with {count} thread{'s' if count > 1 else ''}" if device == "cpu" else ""
    return {
        "device": f"{device}{threads}",
        "rounds": times.rounds,
        "call_s": times.call_s,
        "hooked_call_s": times.hooked_call_s,
        "hook_ratio": list(times.hook_ratio),
        "sum_s": total,
        "sum_over_call": total / times.call_s,
    }


def _time(subject: Subject, batch_size: int, device: str) -> ModuleTimes:
    threads = torch.get_num_threads()
    timed = make_subject(replace(subject.cell, batch_size=batch_size, device=device, threads=threads))
    timed.model  # noqa: B018  (built outside of what is timed)
    try:
        return time_modules(timed)
    finally:
        timed.close()

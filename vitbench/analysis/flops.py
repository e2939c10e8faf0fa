"""A model's floating-point operations, operator by operator as torch dispatches them on ``meta``.

"FLOPs" means matrix work: matrix products, convolutions, attention. Element-wise work (norms, softmax, activations,
sums) is counted separately. Operators without a formula are listed. On ``meta`` torch runs attention as matrix product,
softmax, matrix product, so the result depends on no device, kernel or gradient mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vitbench.analysis.operator_formulas import ELEMENTWISE, NO_ARITHMETIC, convolution_backward, is_floating, numel
from vitbench.models import without_fast_path
from vitbench.models.outputs import training_loss


@dataclass(kw_only=True)
class OperatorCount:
    """``calls`` of one operator and their FLOPs by ``formula``, which for matrix work is torch's."""

    calls: int = 0
    flops: int = 0
    formula: str = ""


@dataclass(kw_only=True)
class Counts:
    """Matrix work and element-wise work of one pass, and the calls of operators without a formula."""

    matrix: dict[str, OperatorCount] = field(default_factory=dict)
    elementwise: dict[str, OperatorCount] = field(default_factory=dict)
    without_formula: dict[str, int] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """Matrix work: a multiply-add is two."""
        return sum(one.flops for one in self.matrix.values())

    @property
    def elementwise_flops(self) -> int:
        """Element-wise work."""
        return sum(one.flops for one in self.elementwise.values())


class OperatorCounter(TorchDispatchMode):
    """Counts every operator dispatched inside the context in ``counts``."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = packet.__name__.rstrip("_") if not packet.__name__.startswith("__") else packet.__name__
        if packet in flop_registry:
            if name == "convolution_backward":
                flops = convolution_backward(args)
            else:
                flops = int(flop_registry[packet](*args, **(kwargs or {}), out_val=output))
            _add(self.counts.matrix, name, flops, "torch.utils.flop_counter")
            with_bias = name in ("convolution", "_convolution") and len(args) > 2 and args[2] is not None
            if with_bias or name in ("addmm", "baddbmm"):  # ``addmm`` adds its first argument
                _add(self.counts.elementwise, f"{name} (bias)", numel(output), "1 an output")
        elif name in ELEMENTWISE:
            if is_floating(output):
                text, formula = ELEMENTWISE[name]
                _add(self.counts.elementwise, name, formula(args, kwargs or {}, output), text)
        elif name not in NO_ARITHMETIC and is_floating(output):
            self.counts.without_formula[name] = self.counts.without_formula.get(name, 0) + 1
        return output


def count_forward(model: nn.Module, images: Tensor, *, gradients: bool = False) -> Counts:
    """A forward pass of ``model`` as it is, on ``images`` (B, 3, H, W), both on ``meta``. Raises what it raises."""
    with torch.set_grad_enabled(gradients), OperatorCounter() as counter:
        model(images)
    return counter.counts


def count_fused_attention(model: nn.Module, images: Tensor) -> int:
    """FLOPs inside fused attention calls of one forward pass; 0 where the model computes attention itself."""
    functional: Any = torch.nn.functional
    fused = functional.scaled_dot_product_attention
    flops = 0

    def count(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal flops
        flops += 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return fused(query, key, value, *args, **kwargs)

    functional.scaled_dot_product_attention = count  # a TorchFunctionMode does not see calls inside torch's modules
    try:
        with torch.no_grad(), without_fast_path():
            model(images)
    finally:
        functional.scaled_dot_product_attention = fused
    return flops


def count_training_step(model: nn.Module, images: Tensor) -> tuple[Counts, Counts]:
    """(forward, backward) of one training step on ``images`` (B, 3, H, W); model in training mode, both on ``meta``.

    Excludes the optimizer's element-wise work. Raises whatever the model raises there.
    """
    with OperatorCounter() as forward:
        output = model(images)
    labels = torch.zeros(images.shape[0], dtype=torch.long, device=images.device)
    loss = training_loss(model, output, labels)
    with OperatorCounter() as backward:
        loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return forward.counts, backward.counts


def _add(counts: dict[str, OperatorCount], name: str, flops: int, formula: str) -> None:
    one = counts.setdefault(name, OperatorCount(formula=formula))
    one.calls += 1
    one.flops += flops

"""A model's floating-point operations in one pass on ``meta``, and inside its fused attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.metrics.support.operator_counter import Counts, OperatorCounter
from vitbench.models import without_fast_path
from vitbench.models.outputs import training_loss


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

"""What a model gives back: the logits of one head or of several, their loss, and a loss of its own. Loads torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from vitbench.core.errors import DataError, Unsupported


def heads_of(output: Any) -> list[torch.Tensor]:
    """The logits (B, classes) of each head of a model: one, several (distilled models in training), or those of a
    mapping. Raises Unsupported if there are none.
    """
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    heads = [head for value in values for head in heads_of(value)]
    if not heads:
        raise Unsupported(f"the model returns {type(output).__name__}, which holds no tensors")
    return heads


def check_classes(output: Any, num_classes: int) -> None:
    """Raises DataError if a head is too small for the labels; on some devices that would end the process instead."""
    for logits in heads_of(output):
        if logits.shape[-1] < num_classes:
            raise DataError(
                f"The model has {logits.shape[-1]} classes, but the data set has {num_classes}. "
                f"Build it with num_classes={num_classes}"
            )


def mean_cross_entropy(
    output: Any, labels: torch.Tensor, label_smoothing: float = 0.0, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross entropy (nat), averaged over the batch and over the heads; in float32 whatever the logits are.

    ``labels`` are classes (B,) or shares of classes (B, K); ``class_weights`` (K,) weigh them as torch's cross_entropy
    does (a weighted mean for classes, the sum over B for shares). A head may be wider than K.
    """

    def loss_of(logits: torch.Tensor) -> torch.Tensor:
        targets, weights = labels, class_weights
        more = logits.shape[-1] - (labels.shape[-1] if labels.dim() == 2 else logits.shape[-1])
        if more > 0:
            targets = F.pad(labels, (0, more))
        if weights is not None and len(weights) < logits.shape[-1]:
            weights = F.pad(weights, (0, logits.shape[-1] - len(weights)))
        return F.cross_entropy(logits.float(), targets, weight=weights, label_smoothing=label_smoothing)

    losses = [loss_of(logits) for logits in heads_of(output)]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def training_loss(
    model: torch.nn.Module,
    output: Any,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a training step lowers: the cross entropy of ``output`` and, for a model that has an ``auxiliary_loss()``
    (token pruning has one), the one of its last forward pass.
    """
    loss = mean_cross_entropy(output, labels, label_smoothing, class_weights)
    own: torch.Tensor | None = getattr(model, "auxiliary_loss", lambda: None)()
    return loss if own is None else loss + own


def mean_logits(output: Any) -> torch.Tensor:
    """The logits (B, classes) in float32, averaged over the heads. Raises Unsupported for heads of different shapes."""
    heads = heads_of(output)
    shapes = list(dict.fromkeys(tuple(logits.shape) for logits in heads))
    if len(shapes) > 1:
        listed = " and ".join(map(str, shapes[:3]))
        raise Unsupported(f"the model returns tensors of different shapes ({listed}), not heads of one classifier")
    return torch.stack([logits.float() for logits in heads]).mean(0)


def input_dtype(model: torch.nn.Module) -> torch.dtype:
    """The type of numbers that a model takes: that of its weights; float32 for a model without any."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

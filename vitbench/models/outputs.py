"""What a model gives back: the logits of one head or of several, their loss, and a loss of its own. Loads torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.modules.conv import _ConvNd

from vitbench.core.errors import DataError, Unsupported

#: Types of numbers that images can have; others, such as int8 or float8, are a way to store weights.
_OF_IMAGES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def heads_of(output: Any) -> list[torch.Tensor]:
    """The logits (B, classes) of each head of a model, all of one shape.

    An output may be a tensor, or a tuple, list, mapping or dataclass (also Hugging Face's) of such, to any depth. What
    has ``logits`` in its name is logits (``logits``, ``aux_logits``); without such a name each tensor (B, classes) is.
    Tensors of other dimensions, such as attention weights and feature maps, are left out.

    Raises Unsupported, which says what was returned, if there are none or if their shapes differ.
    """
    found = [(path, tensor) for path, tensor in named_tensors(output) if tensor.dim() == 2]
    found = [(path, tensor) for path, tensor in found if any("logits" in name for name in path)] or found
    if len({tensor.shape for _, tensor in found}) > 1:
        found = [(path, tensor) for path, tensor in found if "logits" in path] or found
    heads = [tensor for _, tensor in found]
    if len({tensor.shape for tensor in heads}) != 1:
        several = "several that could be logits" if heads else "no logits (images x classes)"
        raise Unsupported(
            f"the model returns {describe_output(output)}: {several}. Return logits alone, or under the name 'logits'"
        )
    return heads


def named_tensors(output: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """The tensors in a model's output, in order, each with the names that lead to it; items of lists have no name."""
    if isinstance(output, torch.Tensor):
        yield path, output
    elif (fields := _fields_of(output)) is not None:
        for name, value in fields.items():
            yield from named_tensors(value, (*path, str(name)))
    elif isinstance(output, tuple | list):
        for value in output:
            yield from named_tensors(value, path)


def describe_output(output: Any) -> str:
    """A model's output without its data: ``float32 32x10``, ``(float32 1x10, float32 1x10)``, ``{logits: ...}``."""
    if isinstance(output, torch.Tensor):
        return describe_tensor(output)
    if isinstance(output, Mapping):
        return "{" + ", ".join(f"{key}: {describe_output(value)}" for key, value in output.items()) + "}"
    if isinstance(output, tuple | list):
        return "(" + ", ".join(map(describe_output, output)) + ")"
    if (fields := _fields_of(output)) is not None:
        return type(output).__name__ + describe_output(fields)
    return type(output).__name__


def describe_tensor(tensor: torch.Tensor) -> str:
    """``float32 192x64``, or ``int64 scalar``."""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape}"


def _fields_of(output: Any) -> Mapping[str, Any] | None:
    """The values of a mapping, a named tuple or an object with ``logits`` by name; None for what has no names."""
    if isinstance(output, Mapping):
        return output
    if isinstance(output, tuple):
        names = getattr(output, "_fields", None)  # of a named tuple
        return None if names is None else dict(zip(names, output, strict=True))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {one.name: getattr(output, one.name) for one in dataclasses.fields(output)}
    return vars(output) if "logits" in getattr(output, "__dict__", ()) else None


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
    """The logits (B, classes) in float32, averaged over the heads. Raises Unsupported as ``heads_of`` does."""
    return torch.stack([logits.float() for logits in heads_of(output)]).mean(0)


def input_dtype(model: torch.nn.Module) -> torch.dtype:
    """The type of numbers that a model takes as images: that of its first convolution, else of its first parameter of a
    type that images can have; float32 for a model without any.
    """
    convolutions = (one.weight for one in model.modules() if isinstance(one, _ConvNd))
    return next((one.dtype for one in (*convolutions, *model.parameters()) if one.dtype in _OF_IMAGES), torch.float32)

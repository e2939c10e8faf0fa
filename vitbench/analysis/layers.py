"""A model's layers on ``meta``: each module's own parameters, FLOPs and output shape, and the part it belongs to.

The layers add up to the model: a module has the parameters and FLOPs that none of its children has, and a tensor that
two modules share belongs to the first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitbench.metrics.support.operator_trace import trace_operators

PARTS = ("embedding", "attention", "MLP", "norms", "pruning", "head", "other")

#: The first pattern found in a layer's path decides; the path of a bare parameter ends with its own name.
_PATHS = (
    ("pruning", re.compile(r"(^|\.)(scores|score_predictor)(\.|$)")),
    ("head", re.compile(r"^(head|heads|head_dist|head_drop|fc|classifier)(\.|$)")),
    ("attention", re.compile(r"attn|attention|token_mixer|(^|\.)(qkv|relative_position)", re.IGNORECASE)),
    ("MLP", re.compile(r"mlp|ffn|(^|\.)(fc1|fc2)(\.|$)", re.IGNORECASE)),
    (
        "embedding",
        re.compile(r"^(encoder\.)?(patch_embed\d*|pos_embed\d*|pos_embedding|cls_token|class_token|dist_token|reg_token"
                   r"|conv_proj|stem|pos_drop|pos_block|features\.0)(\.|$|s?\.)"),
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One module without its children, or one bare parameter of a module with children.

    ``output_shape`` is that of the first call, batch first; empty without a call or a returned tensor. ``flops`` are a
    lower bound if the layer ran an operator that no formula covers.
    """

    path: str
    kind: str
    part: str
    params: int
    flops: int
    output_shape: tuple[int, ...]
    lower_bound: bool = False


def describe_layers(model: nn.Module, images: torch.Tensor) -> list[Layer]:
    """The layers with parameters or work, in order. ``model`` in eval mode and ``images`` (B, 3, H, W) are on meta.

    Raises Unsupported if a product has no FLOPs that its shapes tell.
    """
    trace = trace_operators(model, images)
    work: Counter[str] = Counter()
    for call in trace.calls:
        work[call.module] += call.flops
    uncovered = {call.module for call in trace.calls if call.lower_bound}
    params: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        params.setdefault(name.rpartition(".")[0], {})[name] = parameter.numel()
    layers = []
    for path, module in model.named_modules():
        own = params.get(path, {})
        if any(module.children()):  # bare parameters, such as position embeddings, are layers of their own
            layers += [
                Layer(path=name, kind="Parameter", part=part_of(name, module), params=count, flops=0, output_shape=())
                for name, count in own.items()
            ]
            own = {}
        if own or work[path] or path in uncovered:
            layers.append(
                Layer(
                    path=path or "(model)",
                    kind=type(module).__name__,
                    part=part_of(path or "(model)", module),
                    params=sum(own.values()),
                    flops=work[path],
                    output_shape=trace.output_shapes.get(path, ()),
                    lower_bound=path in uncovered,
                )
            )
    return layers


def tokens_per_block(model: nn.Module, images: torch.Tensor) -> tuple[int, ...]:
    """The tokens (B, L, D) into each transformer block; empty for a model whose blocks are not one list."""
    blocks = list(blocks_of(model).values())
    counts: list[int] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        tokens = inputs[0] if inputs and isinstance(inputs[0], torch.Tensor) else None
        if tokens is not None and tokens.ndim == 3 and len(tokens) == len(images):  # not (B N, pixels, D), as in TNT
            counts.append(tokens.shape[1])

    handles = [block.register_forward_pre_hook(note) for block in blocks]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(counts) if len(counts) == len(blocks) else ()


def sum_parts(layers: Iterable[Layer]) -> dict[str, dict[str, int]]:
    """Parameters and FLOPs of each of PARTS with any, and whether its FLOPs are a lower bound."""
    sums = {part: {"params": 0, "flops": 0, "lower_bound": False} for part in PARTS}
    for layer in layers:
        sums[layer.part]["params"] += layer.params
        sums[layer.part]["flops"] += layer.flops
        sums[layer.part]["lower_bound"] |= layer.lower_bound
    return {part: found for part, found in sums.items() if any(found.values())}


def part_of(path: str, module: nn.Module) -> str:
    """Which of PARTS a layer (or a bare parameter of it) belongs to, by its class (norms) and then by its path."""
    if "norm" in type(module).__name__.lower():
        return "norms"
    return next((part for part, pattern in _PATHS if pattern.search(path)), "other")


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks by path, in order; empty for a model whose blocks are not one list."""
    for holder, name in (("", "blocks"), ("", "layers"), ("encoder", "blocks"), ("encoder", "layers")):
        found = getattr(getattr(model, holder, None) if holder else model, name, None)
        if isinstance(found, nn.ModuleList | nn.Sequential) and len(found):
            path = f"{holder}.{name}" if holder else name
            return {f"{path}.{index}": block for index, block in found.named_children()}
    return {}

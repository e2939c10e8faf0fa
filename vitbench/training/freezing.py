"""Which parameters of a model are trained: all, those behind some blocks, or the head alone. Loads torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitbench.errors import UsageError

_BLOCKS = re.compile(r"^blocks:(?P<count>\d+)$")


@dataclass(frozen=True)
class Freezing:
    """What is frozen: ``frozen`` modules stay in eval mode while the rest trains; ``heads`` are those that turn
    features into classes; the counts are of parameters.
    """

    frozen: tuple[nn.Module, ...]
    heads: tuple[str, ...]
    trainable: int
    total: int


def check_freeze(freeze: str) -> None:
    """Raises UsageError unless it is ``none``, ``backbone`` or ``blocks:N``."""
    if freeze not in ("none", "backbone") and not _BLOCKS.match(freeze):
        raise UsageError(
            f"--freeze {freeze!r} is none of: none, backbone (all but the head), blocks:N (the embedding and the "
            "first N blocks)"
        )


def freeze_parameters(model: nn.Module, freeze: str, build: Callable[[int], nn.Module], num_classes: int) -> Freezing:
    """Freeze ``model`` in place: ``none`` leaves it as it is, ``backbone`` leaves the heads, ``blocks:N`` freezes the
    embedding and the first N blocks.

    ``build`` makes the same architecture for another number of classes: what differs then belongs to a head, and so
    does the rest of the submodule that it is in. Raises UsageError for a model in which no head or no blocks are
    found, and for an N that leaves nothing.
    """
    check_freeze(freeze)
    heads = find_heads(model, build, num_classes)
    if freeze == "backbone":
        if not heads:
            raise UsageError(
                "No head was found in this model, so that its backbone cannot be frozen: leave out --freeze"
            )
        model.requires_grad_(False)
        for path in heads:
            model.get_submodule(path).requires_grad_(True)
    match = _BLOCKS.match(freeze)
    if match is not None:
        _freeze_first_blocks(model, int(match["count"]))
    parameters = list(model.parameters())
    trainable = sum(one.numel() for one in parameters if one.requires_grad)
    if trainable == 0:
        raise UsageError(f"--freeze {freeze} leaves nothing to train")
    return Freezing(_frozen_modules(model), heads, trainable, sum(one.numel() for one in parameters))


def find_heads(model: nn.Module, build: Callable[[int], nn.Module], num_classes: int) -> tuple[str, ...]:
    """The paths of the submodules that turn features into classes, in order of registration."""
    with torch.device("meta"):
        other = build(num_classes + 1)
    shapes = {name: tuple(one.shape) for name, one in other.named_parameters()}
    differing = [name for name, one in model.named_parameters() if shapes.get(name) != tuple(one.shape)]
    total = sum(one.numel() for one in model.parameters())
    found: dict[str, None] = {}
    for name in differing:
        parts = name.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            size = sum(one.numel() for one in model.get_submodule(path).parameters())
            # a wrapper around everything is no head: look inside
            if size < total / 2 or depth == len(parts):
                found[path] = None
                break
    return tuple(found)


def features_of(
    model: nn.Module, head: str, batches: Sequence[torch.Tensor], run: Callable[[torch.Tensor], object]
) -> torch.Tensor:
    """What the submodule ``head`` is given for each of ``batches``, on the CPU: (N, ...).

    ``run`` does one forward pass of the model, without gradients. Raises UsageError if the head is not called exactly
    once with one tensor whose first dimension is the pictures'.
    """
    found: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: tuple[object, ...]) -> None:
        if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
            raise UsageError("the head takes more than one tensor")
        found.append(inputs[0].detach().to("cpu", torch.float32))

    handle = model.get_submodule(head).register_forward_pre_hook(keep)
    try:
        for batch in batches:
            before = len(found)
            run(batch)
            if len(found) != before + 1 or len(found[-1]) != len(batch):
                raise UsageError("the head is not called once with one row a picture")
    finally:
        handle.remove()
    return torch.cat(found)


def _freeze_first_blocks(model: nn.Module, count: int) -> None:
    blocks = max(
        (
            one
            for one in model.modules()
            if isinstance(one, nn.ModuleList | nn.Sequential)
            and len({type(child) for child in one}) == 1
            and len(one) > 1
        ),
        key=len,
        default=None,
    )
    if blocks is None:
        raise UsageError("No list of blocks was found in this model: use --freeze backbone or none")
    if not 0 <= count <= len(blocks):
        raise UsageError(f"--freeze blocks:{count}: the model has {len(blocks)} blocks")
    own = {id(one) for one in blocks.parameters()}
    names = [id(one) for one in model.parameters()]
    last = max(index for index, one in enumerate(names) if one in own)
    behind = set(names[last + 1 :])
    kept = {id(one) for block in list(blocks)[count:] for one in block.parameters()} | behind
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)


def _frozen_modules(model: nn.Module) -> tuple[nn.Module, ...]:
    """The largest submodules that have parameters, none of which is trained."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        parameters = list(module.parameters())
        if parameters and not any(one.requires_grad for one in parameters):
            found.append(module)
            return
        for child in module.children():
            visit(child)

    visit(model)
    if found:
        # the dropout behind a frozen embedding has no parameters of its own, and would make its features noisy
        found += [one for one in model.children() if isinstance(one, nn.Dropout)]
    return tuple(found)

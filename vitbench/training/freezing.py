"""Which parameters of a model are trained: all, those behind some blocks, or the head alone. Loads torch."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from vitbench.core.errors import UsageError

_BLOCKS = re.compile(r"^blocks:(?P<count>\d+)$")


@dataclass(frozen=True)
class Freezing:
    """``frozen`` modules stay in eval mode while the rest trains; ``heads`` are the submodules that turn features into
    classes, if only they are trained, else empty; the counts are of parameters.
    """

    frozen: tuple[nn.Module, ...]
    heads: tuple[str, ...]
    trainable: int
    total: int


def check_freeze(freeze: str) -> None:
    """Raises UsageError unless it is ``none``, ``backbone`` or ``blocks:N``."""
    if freeze not in ("none", "backbone") and not _BLOCKS.match(freeze):
        raise UsageError(
            f"--freeze {freeze!r} is not one of: none, backbone (all but the head), blocks:N (the embedding and the "
            "first N blocks)"
        )


def freeze_parameters(model: nn.Module, freeze: str, build: Callable[[int], nn.Module], num_classes: int) -> Freezing:
    """Freeze ``model`` in place: ``none`` leaves it as it is, ``backbone`` leaves the heads, ``blocks:N`` freezes the
    embedding and the first N blocks.

    ``build`` makes the same architecture for another number of classes: parameters that differ belong to a head, and so
    do the others of their submodule. Some models come with frozen parts: ``none`` leaves them, ``blocks:N`` trains
    those after the first N blocks. Raises UsageError for a model without a head or without blocks, and for an N that
    leaves nothing to train.
    """
    check_freeze(freeze)
    match = _BLOCKS.match(freeze)
    heads: tuple[str, ...] = ()
    if freeze == "backbone":
        heads = find_heads(model, build, num_classes)
        if not heads:
            raise UsageError(
                "No head was found in this model, so that its backbone cannot be frozen: leave out --freeze"
            )
        model.requires_grad_(False)
        for path in heads:
            model.get_submodule(path).requires_grad_(True)
    elif match is not None:
        _freeze_first_blocks(model, int(match["count"]))
    elif not all(one.requires_grad for one in model.parameters()):
        # some models come with a frozen backbone
        with contextlib.suppress(UsageError):
            heads = find_heads(model, build, num_classes)
        of_heads = {id(one) for path in heads for one in model.get_submodule(path).parameters()}
        if {id(one) for one in model.parameters() if one.requires_grad} != of_heads:
            heads = ()
    parameters = list(model.parameters())
    trainable = sum(one.numel() for one in parameters if one.requires_grad)
    if trainable == 0:
        raise UsageError(f"--freeze {freeze} leaves nothing to train")
    return Freezing(_frozen_modules(model), heads, trainable, sum(one.numel() for one in parameters))


def find_heads(model: nn.Module, build: Callable[[int], nn.Module], num_classes: int) -> tuple[str, ...]:
    """The paths of the submodules that turn features into classes, in order of registration.

    Raises UsageError if the model cannot be built for another number of classes.
    """
    shapes = {name: tuple(one.shape) for name, one in _build_other(build, num_classes + 1).named_parameters()}
    differing = [name for name, one in model.named_parameters() if shapes.get(name) != tuple(one.shape)]
    total = sum(one.numel() for one in model.parameters())
    found: dict[str, None] = {}
    for name in differing:
        parts = name.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            size = sum(one.numel() for one in model.get_submodule(path).parameters())
            # a wrapper around everything is not a head: look inside
            if size < total / 2 or depth == len(parts):
                found[path] = None
                break
    return tuple(found)


def _build_other(build: Callable[[int], nn.Module], num_classes: int) -> nn.Module:
    """The architecture for so many classes, on meta tensors where the builder can do without their numbers."""
    with contextlib.suppress(Exception), torch.device("meta"):
        return build(num_classes)
    try:
        with torch.random.fork_rng(devices=[]):  # does not change what the training draws
            return build(num_classes)
    except Exception as error:  # a user's builder may raise anything
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UsageError(
            f"No head was found in this model: it cannot be built for {num_classes} classes as well: {reason}. Leave "
            "out --freeze"
        ) from error


def features_of(
    model: nn.Module,
    head: str,
    batches: Iterable[torch.Tensor],
    count: int,
    run: Callable[[torch.Tensor], object],
    check: Callable[[int], None] = lambda size: None,
) -> torch.Tensor:
    """The input of the submodule ``head`` for each of ``count`` images in ``batches``, on the CPU: (N, ...) float32.

    ``run`` does one forward pass of the model, without gradients. ``check`` receives the bytes of all features before
    memory is taken for them. Raises UsageError if the head is not called exactly once with one tensor that has a row an
    image, and what ``check`` raises.
    """
    given: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: tuple[object, ...]) -> None:
        if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor):
            raise UsageError("the head takes more than one tensor")
        given.append(inputs[0].detach())

    found: torch.Tensor | None = None
    done = 0
    handle = model.get_submodule(head).register_forward_pre_hook(keep)
    try:
        for batch in batches:
            given.clear()
            run(batch)
            if len(given) != 1 or len(given[0]) != len(batch):
                raise UsageError("the head is not called once with one row an image")
            if found is None:
                shape = (count, *given[0].shape[1:])
                check(4 * math.prod(shape))
                found = torch.empty(shape)
            found[done : done + len(batch)] = given[0].to("cpu", torch.float32)
            done += len(batch)
    finally:
        handle.remove()
    if found is None:
        raise UsageError("there are no images")
    return found


def _freeze_first_blocks(model: nn.Module, count: int) -> None:
    blocks = _blocks_of(model)
    if not blocks:
        raise UsageError("No list of blocks was found in this model: use --freeze backbone or none")
    if not 0 <= count <= len(blocks):
        raise UsageError(f"--freeze blocks:{count}: the model has {len(blocks)} blocks")
    parameters = list(model.parameters())
    places = {id(one): place for place, one in enumerate(parameters)}
    ends = [[places[id(one)] for one in block.parameters()] for block in blocks]
    # what is registered after the last frozen block, such as a hierarchical model's next reduction, is trained
    first = max(ends[count - 1]) + 1 if count else min(ends[0])
    for place, parameter in enumerate(parameters):
        parameter.requires_grad_(place >= first)


def _blocks_of(model: nn.Module) -> list[nn.Module]:
    """The residual blocks, in order of registration, from all stages of the model.

    They are the items of lists of one type with at least two normalisations each and without such items inside (a stage
    has them); without any, the items of the longest list.
    """
    lists = [
        one
        for one in model.modules()
        if isinstance(one, nn.ModuleList | nn.Sequential) and len(one) and len({type(child) for child in one}) == 1
    ]
    candidates = {id(child): child for one in lists for child in one if _normalisations(child) >= 2}
    found = [
        one
        for one in candidates.values()
        if not any(id(inner) in candidates for inner in one.modules() if inner is not one)
    ]
    if found:
        order = {id(one): place for place, one in enumerate(model.modules())}
        return sorted(found, key=lambda one: order[id(one)])
    longest = max((one for one in lists if len(one) > 1 and any(True for _ in one.parameters())), key=len, default=None)
    return [] if longest is None else [one for one in longest if any(True for _ in one.parameters())]


def _normalisations(module: nn.Module) -> int:
    """How many layers with weights in it have ``norm`` in their type's name."""
    return sum("norm" in type(one).__name__.lower() and any(True for _ in one.parameters()) for one in module.modules())


def _frozen_modules(model: nn.Module) -> tuple[nn.Module, ...]:
    """The largest submodules with parameters of which none is trained."""
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
        # a dropout after a frozen embedding has no parameters, and would make its features noisy; modules after the
        # first trained one stay in training mode
        before = itertools.takewhile(lambda one: not any(p.requires_grad for p in one.parameters()), model.children())
        found += [one for one in before if isinstance(one, nn.Dropout)]
    return tuple(found)

"""Models: architectures, the models of timm and torchvision, and weights from files. Loads no torch by itself.

May import devices and core. Start with ``build_model`` here and with cards.py, which says what is known of a model
without building it; architectures/ has one file a family beside its ``.toml``, weights/ loads checkpoints.
"""

from __future__ import annotations

import contextlib
import importlib
import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import ImageSizeError, UsageError
from vitbench.core.records import ATTENTIONS, RGB
from vitbench.models.cards import ModelCard, is_external, is_imported, model_registry

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_model", "describe_model", "evaluating", "use_attention"]


_WITH_WEIGHTS = "timm:NAME, torchvision:NAME, vit_b16_finetune and vit_b16_transfer"


def build_model(
    name: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    in_channels: int = RGB,
    pretrained: bool = False,
) -> nn.Module:
    """A model from images (B, C, H, W) to logits (B, num_classes), in training mode, on the current default device.

    Args:
        name: a name of ``vitbench list models``, ``timm:NAME`` or ``torchvision:NAME``.
        image_size: side or (height, width) in px; None is the model's own size.
        num_classes: None is the model's own number; 0 builds a backbone, which returns features (B, D).
        in_channels: C; models of timm and your own builders (``module:``) take others than 3.
        pretrained: load the published weights (of timm, of torchvision and of what is built on them; downloaded on
            first use). With another number of classes than theirs the head is a fresh one.

    Weights are random unless ``pretrained``: seed torch first to repeat them. Under ``with torch.device("meta")`` no
    memory is allocated.

    Raises:
        UnknownNameError: no such model; the message names the closest.
        ImageSizeError: the architecture cannot take that size.
        UsageError: ``num_classes`` is below 0, the model takes 3 channels only, no weights are published, or they
            cannot be downloaded.
    """
    card = describe_model(name)
    size = card.image_size if image_size is None else _height_and_width(image_size)
    card.check_image_size(size)
    classes = card.num_classes if num_classes is None else num_classes
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
        raise UsageError(f"num_classes={classes!r} is not a number of classes. Give at least 1, or 0 for no head")
    further: dict[str, Any] = {} if in_channels == RGB else {"in_channels": in_channels}
    if further and not is_imported(name) and card.family != "timm":
        raise UsageError(
            f"{name} takes images of {RGB} channels, not {in_channels}. Models of timm (timm:NAME) take any number"
        )
    if card.published_weights:
        further["pretrained"] = pretrained
    elif pretrained:
        raise UsageError(f"{name} has no published weights. Leave out pretrained; {_WITH_WEIGHTS} may have them")
    module, function = card.builder.split(":")
    build = getattr(importlib.import_module(module), function)
    model = _call(name, build, image_size=size, num_classes=classes, **card.config, **further)
    if card.family == "imported":
        from torch import nn

        if not isinstance(model, nn.Module):
            raise UsageError(f"{name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def describe_model(name: str) -> ModelCard:
    """What is known of a model without building it, at its own image size and number of classes.

    Our own names need no torch; ``timm:`` and ``torchvision:`` names load their library.
    Raises UnknownNameError if there is no such model.
    """
    if not is_external(name):
        return model_registry().get(name)
    if is_imported(name):
        from vitbench.models.imported import describe_imported

        return describe_imported(name)
    from vitbench.models import zoo

    return zoo.describe_timm(name) if name.startswith("timm:") else zoo.describe_torchvision(name)


@contextlib.contextmanager
def use_attention(model: nn.Module, kind: str) -> Iterator[None]:
    """Run ``model`` with ``fused`` attention (its default) or ``explicit`` (matrix product, softmax, matrix product).

    Explicit attention goes through the ``fused_attn`` attribute of our blocks and of timm's; other callers of torch's
    fused attention (torchvision's models, ``nn.MultiheadAttention``) get its MATH backend and no fast path. An
    attention without a fused form (linear attention, torchvision's Swin) is the same under both. Everything is restored
    at the end. Raises UsageError for any other ``kind``.
    """
    if kind not in ATTENTIONS:
        raise UsageError(f"Unknown attention {kind!r}: give {' or '.join(ATTENTIONS)}")
    if kind == "fused":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    switched: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    try:
        for module in switched:
            module.fused_attn = False
        with without_fast_path(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module in switched:
            module.fused_attn = True


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Switch off torch's fast path, which runs an attention or a whole layer as one opaque operator."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is in its previous mode."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def _height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) in px of a side or a pair. Raises ImageSizeError unless it is positive whole numbers."""
    try:
        sides = tuple(operator.index(side) for side in (size if isinstance(size, tuple | list) else (size, size)))
    except TypeError:
        sides = ()
    if len(sides) != 2 or min(sides) < 1:
        raise ImageSizeError(f"Image size {size!r} is neither a positive side nor (height, width) in px")
    return sides[0], sides[1]


def _call(name: str, build: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """Call a builder. Raises UsageError if it does not take these options."""
    try:
        return build(**options)
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # a mistake inside of it
        raise UsageError(f"{name} cannot be called with {', '.join(options)}: {error}. Let it take them") from error

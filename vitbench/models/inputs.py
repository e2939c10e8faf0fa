"""Run a user's module once, and say in one line what it takes if it does not take such images. Loads torch."""

from __future__ import annotations

import inspect
import re
import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from vitbench.core.errors import UsageError
from vitbench.core.records import format_image_size
from vitbench.devices.failures import GENERAL_ERROR_TEXTS, describe_error, explain_exception
from vitbench.models import evaluating
from vitbench.models.outputs import input_dtype
from vitbench.models.tracebacks import model_places, with_places

#: What torch, timm and torchvision raise for images of a size that a layer or the positions do not take.
_OF_SIZE = re.compile(r"size|shape|height|width|resolution|divisible|patches", re.IGNORECASE)
_SIZE_ERRORS = (RuntimeError, ValueError, AssertionError, IndexError)
#: Hugging Face's and others' own words; torch's of a convolution have the shape of what it was given.
_OF_CHANNELS = re.compile(r"channel", re.IGNORECASE)
_CONVOLVED = re.compile(r"expected input\[(?P<given>[\d, ]+)\] to have (?P<taken>\d+) channels")
_OF_DTYPE = re.compile(r"dtype|scalar type|Input type .* and (?:bias|weight) type", re.IGNORECASE)


def output_for_one_image(model: nn.Module, image_size: tuple[int, int], channels: int) -> Any:
    """What ``model`` returns in eval mode for an image (1, channels, H, W) of zeros, on its device and in its dtype.

    None if it fails for a reason that is not the request's, such as memory: measuring it tells.
    Raises UsageError, which names what does not fit: the inputs of ``forward``, the channels, the type of numbers, the
    size, or the model's own exception and its line.
    """
    _check_inputs(model)
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    images = torch.zeros(1, channels, *image_size, device=device, dtype=input_dtype(model))
    try:
        with evaluating(model), torch.inference_mode():
            return model(images)
    except Exception as error:
        if explain_exception(error, GENERAL_ERROR_TEXTS) is not None:
            return None
        raise UsageError(_reason(model, images, error)) from error


def _check_inputs(model: nn.Module) -> None:
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None)
    except TypeError:
        names = ", ".join(signature.parameters) or "nothing"
        raise UsageError(
            f"The module's forward takes ({names}); vitbench calls it with one batch of images (B, C, H, W). "
            "Wrap it in a module that takes images alone"
        ) from None


def _reason(model: nn.Module, images: Tensor, error: Exception) -> str:
    """Why ``model`` fails on ``images``, and the way out."""
    channels, size = images.shape[1], (images.shape[2], images.shape[3])
    layer = _layer_that_failed(error)
    convolved = _CONVOLVED.search(str(error))
    taken = None if layer is None else _channels_taken(*layer, images)
    if convolved is not None and convolved["given"] == ", ".join(map(str, images.shape)):
        taken = int(convolved["taken"])
    if taken is not None:
        name = next((name for name, one in model.named_modules() if layer is not None and one is layer[0]), "")
        what = f" ({type(layer[0]).__name__} {name!r})" if layer is not None and name else ""
        return f"The module takes images of {_counted(taken)}{what}, not of {channels}. Give in_channels={taken}"
    lines = describe_error(error).splitlines()
    first = lines[-1] if isinstance(error, torch.jit.Error) else lines[0]  # TorchScript's first line is its own
    text = with_places(first, model_places(error))
    if _OF_DTYPE.search(str(error)):
        own = sorted({str(one.dtype).removeprefix("torch.") for one in model.parameters()})
        given = str(images.dtype).removeprefix("torch.")
        return (
            f"The module fails on an image in {given}, its parameters being {' and '.join(own) or 'none'}: {text}. "
            "Convert it as a whole, such as model.float()"
        )
    image = f"an image of {format_image_size(size)} px with {_counted(channels)}"
    way_out = ""
    if convolved is None and _OF_CHANNELS.search(str(error)):
        way_out = ". Give the in_channels that it takes"
    elif convolved is None and isinstance(error, _SIZE_ERRORS) and _OF_SIZE.search(str(error)):
        way_out = ". If it is made for another size, give that image_size"
    return f"The module fails on {image}: {text.rstrip('.')}{way_out}"


def _counted(channels: int) -> str:
    return f"{channels} channel{'s' if channels > 1 else ''}"


def _layer_that_failed(error: Exception) -> tuple[_ConvNd | nn.Linear, Tensor] | None:
    """The convolution or linear layer in which ``error`` was raised, and its input."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        layer, given = frame.f_locals.get("self"), frame.f_locals.get("input")
        if isinstance(layer, _ConvNd | nn.Linear) and isinstance(given, Tensor):
            return layer, given
    return None


def _channels_taken(layer: _ConvNd | nn.Linear, given: Tensor, images: Tensor) -> int | None:
    """The channels of images that a layer takes; None if it is given something else than images, or as many.

    A linear layer takes all numbers of an image, or of a patch of it.
    """
    channels = images.shape[1]
    if isinstance(layer, _ConvNd):
        of_images = given.dim() == 4 and given.shape[1:] == images.shape[1:]
        return layer.in_channels if of_images and layer.in_channels != channels else None
    numbers = given.shape[-1]
    if numbers == layer.in_features or numbers % channels or given.numel() != images.numel():
        return None
    taken, rest = divmod(layer.in_features * channels, numbers)
    return taken if rest == 0 and taken > 0 else None

"""Convert weights as timm converts the files that it publishes, by the filter in the module of the model.

``timm.create_model(pretrained=True)`` passes each file through it: it renames weights of other projects, and resamples
tables of windows that are smaller at another image size (Swin).
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from vitbench.models.weights.layouts import Weight

#: For people.
CONVERTED = "converted as timm converts the files that it publishes, for which grids and windows are squares"
_PATCHES = "patch_embed.proj.weight"
#: Numbers in a file for each one in the model: more are read for nothing.
_LARGEST_RATIO = 2


def convert_by_timm(
    weights: Mapping[str, Weight], model: nn.Module, done: Collection[str], facts: Mapping[str, Any]
) -> dict[str, Weight] | None:
    """The weights (our names, which are timm's) after timm's filter, those of ``done`` as they are.

    None if there is no filter for the model, if it does not know these weights, or if the file is of our own training
    at a size that is no square, for which the filter would take it.
    """
    size = facts.get("image_size")
    if isinstance(size, list) and len(size) == 2 and size[0] != size[1]:
        return None
    module = sys.modules.get(type(model).__module__)
    convert: Any = getattr(module, "checkpoint_filter_fn", None)
    if convert is None or not type(model).__module__.startswith("timm.models."):
        return None
    own = {name: value.shape for name, value in model.state_dict().items()}
    numbers = sum(math.prod(one.shape) for one in weights.values())
    if numbers > _LARGEST_RATIO * sum(map(math.prod, own.values())):
        return None
    if _PATCHES in weights and _PATCHES in own and weights[_PATCHES].shape[-2:] != own[_PATCHES][-2:]:
        return None  # it would resample the patches of another architecture
    tensors: dict[str, Tensor] = {name: one.read() for name, one in weights.items() if name not in done}
    names = {id(value): name for name, value in tensors.items()}
    # DeiT III's layer scale, which timm asks for by an argument
    options = {"adapt_layer_scale": True} if "adapt_layer_scale" in inspect.signature(convert).parameters else {}
    try:
        converted: dict[str, Tensor] = convert(dict(tensors), model, **options)
    except Exception:  # weights of another model can make it raise anything
        return None
    result = {name: weights[name] for name in done if name in weights}
    for name, value in converted.items():
        source = weights.get(names.get(id(value), name))
        keys = (name,) if source is None else source.keys
        result[name] = Weight(keys, tuple(value.shape), str(value.dtype).removeprefix("torch."), value.detach)
    return result

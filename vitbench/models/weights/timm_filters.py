"""Convert weights as timm converts the files that it publishes, by the filter in the module of the model.

``timm.create_model(pretrained=True)`` passes each file through it: it renames weights of other projects, and resamples
tables of windows that are smaller at another image size (Swin).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.models.weights.layouts import Weight

_PATCHES = "patch_embed.proj.weight"
#: Numbers in a file for each one in the model: more are read for nothing.
_LARGEST_RATIO = 2
#: Tensors of up to so many numbers are copied: a filter may add to a token in place.
_SMALL = 1 << 16
#: What filters leave out and no model of timm computes with: tables that a model makes itself, heads of pretraining,
#: the language branch of BEiT-3, norms of CoaT.
_NEEDLESS = re.compile(
    r"(.*\.)?(periods|bias_mask|relative_coords_table|rope(_embed)?\.\w+|outer_tokens)"
    r"|(lm_head|projectors|norms|local_cls_norm|text_embed)\..*|.*\.B\..*|norm[1-4]\.(weight|bias)"
)


@dataclass(frozen=True)
class Converted:
    """``weights`` by our names, with those that the filter leaves out although a model may need them; ``left_out``:
    keys of the others that it leaves out; ``note``: what it has changed, for people.
    """

    weights: dict[str, Weight]
    left_out: tuple[str, ...]
    note: str


def convert_by_timm(
    weights: Mapping[str, Weight], model: nn.Module, done: Collection[str], facts: Mapping[str, Any]
) -> Converted | None:
    """The weights (our names, which are timm's) after timm's filter, those of ``done`` as they are.

    None if there is no filter for the model, if it does not know these weights or resamples their patches (those of
    another architecture), or if the file is of our own training at a size that is no square, for which the filter would
    take it.
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
    originals = {name: one.read() for name, one in weights.items() if name not in done}
    # gradients show which weights a result is made of
    originals = {n: one.requires_grad_() if one.is_floating_point() else one for n, one in originals.items()}
    names = {id(value): name for name, value in originals.items()}
    # DeiT III's layer scale, which timm asks for by an argument
    options = {"adapt_layer_scale": True} if "adapt_layer_scale" in inspect.signature(convert).parameters else {}
    try:
        with torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()):  # EVA's filter prints
            given = {name: _safe(value) for name, value in originals.items()}
            converted: dict[str, Tensor] = convert(given, model, **options)
        sources = {name: _sources(value, names) for name, value in converted.items()}
    except Exception:  # weights of another model can make it raise anything
        return None
    if _PATCHES in converted:
        counts = {math.prod(weights[source].shape) for source in sources[_PATCHES]}
        if counts != {converted[_PATCHES].numel()}:
            return None
    result = {name: weights[name] for name in done if name in weights}
    taken = {*result, *(source for found in sources.values() for source in found)}
    dropped = [name for name in originals if name not in taken and name not in converted]
    needed = _needed(dropped, originals, taken)
    for name, value in converted.items():
        keys = tuple(key for source in sorted(sources[name]) for key in weights[source].keys) or (name,)
        result[name] = Weight(keys, tuple(value.shape), str(value.dtype).removeprefix("torch."), value.detach)
    result |= {name: weights[name] for name in needed}
    left_out = [n for n in dropped if n not in needed and originals[n].is_floating_point()]
    keys_left_out = tuple(key for name in left_out for key in weights[name].keys)
    return Converted(result, keys_left_out, _note(weights, converted, sources))


def _safe(value: Tensor) -> Tensor:
    return value.clone() if value.requires_grad and value.numel() <= _SMALL else value


def _sources(value: Tensor, names: Mapping[int, str]) -> set[str]:
    """The names of the tensors (id -> name) that ``value`` was computed from."""
    found = {names[id(value)]} if id(value) in names else set()
    waiting: list[Any] = [value.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = names.get(id(getattr(node, "variable", None)))
        found |= set() if name is None else {name}
        waiting += [before for before, _ in node.next_functions]
    return found


def _needed(dropped: Collection[str], values: Mapping[str, Tensor], taken: Collection[str]) -> list[str]:
    """Those of the ``dropped`` weights that a model may compute with: all in the part of the file from which weights
    are ``taken`` (the image tower of CLIP), but biases of zeros, indices and what is known to be needless.
    """
    first, last = (one.split(".")[:-1] for one in (min(taken, default=""), max(taken, default="")))
    prefix = "".join(f"{a}." for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return [
        name
        for name in dropped
        if name.startswith(prefix)
        and not _NEEDLESS.fullmatch(name.removeprefix(prefix))
        and values[name].is_floating_point()
        and (not name.endswith("bias") or values[name].any())
    ]


def _note(weights: Mapping[str, Weight], converted: Mapping[str, Tensor], sources: Mapping[str, set[str]]) -> str:
    """``converted by timm: 12 weights renamed, 2 resized ('x.table' from 169x3 to 225x3; ...)``."""
    renamed = sum(bool(found) and name not in found for name, found in sources.items())
    results = Counter(source for found in sources.values() for source in found)
    resized = [
        (weights[source].keys[0], weights[source].shape, tuple(value.shape))
        for name, value in converted.items()
        for source in sources[name]
        if results[source] == len(sources[name]) == 1 and math.prod(weights[source].shape) != value.numel()
    ]
    done = [f"{renamed} weights renamed"] if renamed else []
    if resized:
        key, old, new = resized[0]
        change = f"from {'x'.join(map(str, old))} to {'x'.join(map(str, new))}"
        done.append(f"{len(resized)} resized ({key!r} {change}; grids and windows are taken for squares)")
    return "converted by timm" + (f": {', '.join(done)}" if done else "")

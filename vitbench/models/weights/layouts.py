"""How libraries name and shape the weights of a ViT, and how to map them to our names (timm's) and the model's shapes.

A layout is one entry of LAYOUTS. The names in a file and those of a model are both mapped to our names, so that any
layout loads into a model of any other. Nothing here reads a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.models.architectures.blocks import resize_position_grid

Grid = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Layout:
    """The names of one library: ``marks`` are keys that no other layout has, ``names`` pairs of (theirs, ours), where
    ``{i}`` is a block's index and ``{p}`` weight or bias.
    """

    name: str
    marks: frozenset[str]
    names: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        fields = {r"\{i\}": "(?P<i>[0-9]+)", r"\{p\}": "(?P<p>weight|bias)"}
        return [
            (re.compile(re.sub(r"\\\{[ip]\\\}", lambda found: fields[found[0]], re.escape(theirs))), ours)
            for theirs, ours in self.names
        ]

    def our_name(self, key: str) -> str | None:
        """Our name for a key of this layout; None for a key that it does not know."""
        for pattern, ours in self._patterns:
            found = pattern.fullmatch(key)
            if found:
                return ours.format(**found.groupdict())
        return None


OURS = Layout("timm or vitbench", frozenset({"cls_token", "pos_embed", "patch_embed.proj.weight"}))

TORCHVISION = Layout(
    "torchvision",
    frozenset({"class_token", "conv_proj.weight", "encoder.pos_embedding"}),
    (
        ("class_token", "cls_token"),
        ("conv_proj.{p}", "patch_embed.proj.{p}"),
        ("encoder.pos_embedding", "pos_embed"),
        ("encoder.layers.encoder_layer_{i}.ln_1.{p}", "blocks.{i}.norm1.{p}"),
        ("encoder.layers.encoder_layer_{i}.ln_2.{p}", "blocks.{i}.norm2.{p}"),
        ("encoder.layers.encoder_layer_{i}.self_attention.in_proj_{p}", "blocks.{i}.attn.qkv.{p}"),
        ("encoder.layers.encoder_layer_{i}.self_attention.out_proj.{p}", "blocks.{i}.attn.proj.{p}"),
        ("encoder.layers.encoder_layer_{i}.mlp.0.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("encoder.layers.encoder_layer_{i}.mlp.3.{p}", "blocks.{i}.mlp.fc2.{p}"),
        # before torchvision 0.14
        ("encoder.layers.encoder_layer_{i}.mlp.linear_1.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("encoder.layers.encoder_layer_{i}.mlp.linear_2.{p}", "blocks.{i}.mlp.fc2.{p}"),
        ("encoder.ln.{p}", "norm.{p}"),
        ("heads.head.{p}", "head.{p}"),
        ("heads.{p}", "head.{p}"),  # heads replaced by one linear layer, as tutorials on transfer do
    ),
)

CIFAR10_VIT = Layout(
    "ViT-Classification-CIFAR10",
    frozenset({"embedding.cls_token", "embedding.pos_embedding", "embedding.conv1.weight"}),
    (
        ("embedding.cls_token", "cls_token"),
        ("embedding.pos_embedding", "pos_embed"),
        ("embedding.conv1.{p}", "patch_embed.proj.{p}"),
        ("encoder.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
        ("encoder.{i}.attention.queries.{p}", "blocks.{i}.attn.q.{p}"),
        ("encoder.{i}.attention.keys.{p}", "blocks.{i}.attn.k.{p}"),
        ("encoder.{i}.attention.values.{p}", "blocks.{i}.attn.v.{p}"),
        ("encoder.{i}.attention.out_projection.{p}", "blocks.{i}.attn.proj.{p}"),
        ("encoder.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
        ("encoder.{i}.fc1.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("encoder.{i}.fc2.{p}", "blocks.{i}.mlp.fc2.{p}"),
        ("norm.{p}", "norm.{p}"),
        ("classifier.fc1.{p}", "head.fc1.{p}"),
        ("classifier.fc2.{p}", "head.fc2.{p}"),
    ),
)

HUGGING_FACE = Layout(
    "Hugging Face ViT",
    frozenset(
        {
            "vit.embeddings.cls_token",
            "vit.embeddings.position_embeddings",
            "vit.embeddings.patch_embeddings.projection.weight",
        }
    ),
    (
        ("vit.embeddings.cls_token", "cls_token"),
        ("vit.embeddings.position_embeddings", "pos_embed"),
        ("vit.embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
        ("vit.encoder.layer.{i}.layernorm_before.{p}", "blocks.{i}.norm1.{p}"),
        ("vit.encoder.layer.{i}.attention.attention.query.{p}", "blocks.{i}.attn.q.{p}"),
        ("vit.encoder.layer.{i}.attention.attention.key.{p}", "blocks.{i}.attn.k.{p}"),
        ("vit.encoder.layer.{i}.attention.attention.value.{p}", "blocks.{i}.attn.v.{p}"),
        ("vit.encoder.layer.{i}.attention.output.dense.{p}", "blocks.{i}.attn.proj.{p}"),
        ("vit.encoder.layer.{i}.layernorm_after.{p}", "blocks.{i}.norm2.{p}"),
        ("vit.encoder.layer.{i}.intermediate.dense.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("vit.encoder.layer.{i}.output.dense.{p}", "blocks.{i}.mlp.fc2.{p}"),
        # state dicts of models in transformers 5
        ("vit.layers.{i}.layernorm_before.{p}", "blocks.{i}.norm1.{p}"),
        ("vit.layers.{i}.attention.q_proj.{p}", "blocks.{i}.attn.q.{p}"),
        ("vit.layers.{i}.attention.k_proj.{p}", "blocks.{i}.attn.k.{p}"),
        ("vit.layers.{i}.attention.v_proj.{p}", "blocks.{i}.attn.v.{p}"),
        ("vit.layers.{i}.attention.o_proj.{p}", "blocks.{i}.attn.proj.{p}"),
        ("vit.layers.{i}.layernorm_after.{p}", "blocks.{i}.norm2.{p}"),
        ("vit.layers.{i}.mlp.fc1.{p}", "blocks.{i}.mlp.fc1.{p}"),
        ("vit.layers.{i}.mlp.fc2.{p}", "blocks.{i}.mlp.fc2.{p}"),
        ("vit.layernorm.{p}", "norm.{p}"),
        ("classifier.{p}", "head.{p}"),
    ),
)

#: To add a layout, add it here.
LAYOUTS = (TORCHVISION, CIFAR10_VIT, HUGGING_FACE, OURS)

#: For other models, whose state dicts are not renamed.
UNKNOWN = Layout("as in the model", frozenset())

#: What may lack leading dimensions of 1, or have more of them, in our names.
_TOKENS = ("cls_token", "dist_token", "pos_embed")
#: A side of a grid of positions beyond this is a damaged file rather than an image of 4096 px in patches of 16.
_LARGEST_GRID_SIDE = 256


def layout_of(keys: Iterable[str]) -> Layout:
    """The layout that these keys belong to, or UNKNOWN."""
    present = set(keys)
    return next((layout for layout in LAYOUTS if not layout.marks.isdisjoint(present)), UNKNOWN)


def common_prefix(keys: Collection[str], prefixes: tuple[str, ...] = ("module.", "_orig_mod.")) -> str:
    """The prefix that DataParallel and torch.compile give all keys: ``module._orig_mod.`` or ``""``."""
    found = ""
    while keys and (more := next((one for one in prefixes if all(key.startswith(found + one) for key in keys)), "")):
        found += more
    return found


@dataclass(frozen=True)
class Weight:
    """A tensor in a file, not read yet: its keys (several if it joins them), the shape that the file claims,
    torch's name of the dtype, and ``read``, which reads it to the CPU.
    """

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

    def reshaped(self, shape: tuple[int, ...]) -> Weight:
        return Weight(self.keys, shape, self.dtype, lambda: self.read().reshape(shape))


def match_qkv(weights: Mapping[str, Weight], wanted: Collection[str]) -> dict[str, Weight]:
    """The same weights with q, k and v in one or apart, as ``wanted`` (our names) has them; ``weights`` is unchanged.

    In one is q above k above v, (3D, D) for weights. What cannot be taken apart or put together stays as it is.
    """
    result = dict(weights)
    for name in wanted:
        found = re.fullmatch(r"(.*attn\.)(qkv|q)\.(weight|bias)", name)
        if not found or name in weights:
            continue
        block, kind, p = found.groups()
        one, apart = f"{block}qkv.{p}", [f"{block}{part}.{p}" for part in "qkv"]
        if kind == "qkv" and all(part in weights for part in apart):
            parts = [weights[part] for part in apart]
            if all(part.shape == parts[0].shape and part.shape for part in parts):
                for part in apart:
                    del result[part]
                result[one] = _stacked(parts)
        elif kind == "q" and one in weights and all(part in wanted and part not in weights for part in apart):
            whole = weights[one]
            if whole.shape and whole.shape[0] % 3 == 0:
                del result[one]
                shape = (whole.shape[0] // 3, *whole.shape[1:])
                for index, part in enumerate(apart):
                    result[part] = Weight(whole.keys, shape, whole.dtype, partial(_third, whole, index))
    return result


def _stacked(parts: list[Weight]) -> Weight:
    keys = tuple(key for part in parts for key in part.keys)
    shape = (3 * parts[0].shape[0], *parts[0].shape[1:])
    return Weight(keys, shape, parts[0].dtype, lambda: torch.cat([part.read() for part in parts]))


def _third(whole: Weight, index: int) -> Tensor:
    return whole.read().chunk(3)[index]


def fit_tokens(
    weights: Mapping[str, Weight], wanted: Mapping[str, tuple[int, ...]], model: nn.Module, facts: Mapping[str, Any]
) -> tuple[dict[str, Weight], tuple[Grid, Grid] | None, str]:
    """The weights with CLS and positions in the shapes ``wanted`` by the model (our names), where that can be.

    Leading dimensions of 1 are added or left out; positions of another grid are resampled, bicubically. A grid in a
    file is square, unless it is one of ours, whose facts tell it.

    Returns the weights, the (old, new) grids if positions are resampled, and, if it needs telling, why they cannot be.
    """
    result = dict(weights)
    for name in _TOKENS:
        if name in wanted and name in weights:
            shape = weights[name].shape
            if shape != wanted[name] and _without_leading_ones(shape) == _without_leading_ones(wanted[name]):
                result[name] = weights[name].reshaped(wanted[name])
    if "pos_embed" not in wanted or "pos_embed" not in weights:
        return result, None, ""
    weight, shape, grid = weights["pos_embed"], wanted["pos_embed"], grid_of(model)
    if grid is None or len(shape) != 3 or len(weight.shape) < 2:
        return result, None, ""
    L, D = shape[1:]
    prefix = L - grid[0] * grid[1]  # CLS and the like, which have no place in the grid
    patches = weight.shape[-2] - prefix
    if weight.shape[-1] != D or math.prod(weight.shape[:-2]) != 1 or shape[0] != 1 or prefix < 0 or patches < 1:
        return result, None, ""
    old = _grid_of_facts(facts, model, patches) or (grid if patches == L - prefix else _square(patches))
    if old == grid:
        return result, None, ""
    if old is None or max(old) > _LARGEST_GRID_SIDE:
        return (
            result,
            None,
            f"Its positions of {patches} patches are no square grid of up to {_LARGEST_GRID_SIDE} a side, so that they "
            f"cannot be resampled to {grid[0]}x{grid[1]}: build the model for the image size of the file",
        )

    def read() -> Tensor:
        kept, positions = weight.read().reshape(1, -1, D).split([prefix, patches], dim=1)
        return torch.cat([kept, resize_position_grid(positions, old, grid)], dim=1)

    result["pos_embed"] = Weight(weight.keys, shape, weight.dtype, read)
    return result, (old, grid), ""


def grid_of(model: nn.Module) -> Grid | None:
    """(height, width), in patches, of the grid that a model has positions for; None if that is unknown."""
    embedding = getattr(model, "patch_embed", None)  # timm's
    grid = _pair(getattr(model, "grid", None)) or _pair(getattr(embedding, "grid_size", None))
    size, patch = _pair(getattr(model, "image_size", None)), _patch_of(model)  # torchvision's
    if grid is None and size and patch:
        return size[0] // patch[0], size[1] // patch[1]
    return grid


def _patch_of(model: nn.Module) -> Grid | None:
    sizes = [(getattr(model, "patch_embed", None), "patch_size"), (model, "patch_size"), (model, "patch")]
    return next((pair for owner, name in sizes if (pair := _pair(getattr(owner, name, None)))), None)


def _grid_of_facts(facts: Mapping[str, Any], model: nn.Module, patches: int) -> Grid | None:
    size, patch = _pair(facts.get("image_size")), _patch_of(model)
    if size is None or patch is None or getattr(model, "positions", None) == "bicubic":  # one grid for all image sizes
        return None
    grid = (size[0] // patch[0], size[1] // patch[1])
    return grid if grid[0] * grid[1] == patches else None


def _square(patches: int) -> Grid | None:
    side = math.isqrt(patches)
    return (side, side) if side * side == patches else None


def _pair(value: object) -> Grid | None:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    return pair if len(pair) == 2 and all(isinstance(one, int) and one > 0 for one in pair) else None


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    first = next((index for index, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]

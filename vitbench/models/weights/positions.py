"""Fit the positions in a file to the model's grid of patches, resampled as the library of the file does it.

A grid is (rows, columns) of patches. A file says how many positions it has, not their grid: a square, unless the facts
of our own files or the user say otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.core.errors import UsageError
from vitbench.models.architectures.blocks import resize_position_grid
from vitbench.models.architectures.vit import BICUBIC_GRID
from vitbench.models.cards import model_registry
from vitbench.models.weights.layouts import HUGGING_FACE, OURS, TORCHVISION, UNKNOWN, Layout, Weight

Grid = tuple[int, int]

#: What may lack leading dimensions of 1, or have more of them, in our names.
_TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")
#: A side of a grid of positions beyond this is a damaged file rather than an image of 4096 px in patches of 16.
_LARGEST_GRID_SIDE = 256
#: The tables of attention over the whole grid: of BEiT, and of timm's ViTs with relative positions. Not Swin's windows.
_TABLE = re.compile(
    r"((?:blocks\.\d+\.attn|blocks\.\d+\.attn\.rel_pos|rel_pos_bias|shared_rel_pos))\.relative_position_bias_table"
)
#: Bound to an image size without a grid of their own: LeViT's biases, TNT's positions, layers that mix tokens.
_BOUND = re.compile(r"(.*\.)?(attention_biases|patch_pos|pos_embed([._]\d+)?|(mlp|linear)_tokens\..*)")


@dataclass(frozen=True)
class Rule:
    """How a library resamples: ``resize`` maps (1, h * w, D), the old and the new grid to (1, H * W, D)."""

    text: str
    resize: Callable[[Tensor, Grid, Grid], Tensor]


@dataclass
class Fitted:
    """Weights in our names, with CLS and positions in the model's shapes where that can be.

    ``names``: the positions that have been fitted. ``resampled``: the (old, new) grids. ``unfit``: why positions cannot
    be fitted, by name. ``notes``: what a person should know.
    """

    weights: dict[str, Weight]
    names: set[str] = field(default_factory=set)
    resampled: tuple[Grid, Grid] | None = None
    unfit: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def rule_of(layout: Layout, model: nn.Module, facts: Mapping[str, Any], registers: bool = False) -> Rule:
    """The rule of a file's library. Weights with timm's names that our training did not write are timm's.

    Hugging Face's ViT, DeiT, BEiT and DINOv2 have one rule, its DINOv2 with ``registers`` another.
    """
    if layout is TORCHVISION:
        return Rule("bicubic with aligned corners, as torchvision", partial(resize_position_grid, align_corners=True))
    if layout in (OURS, UNKNOWN) and (not facts or str(facts.get("model")).startswith("timm:")):
        return _rule_of_timm(model)
    if layout is HUGGING_FACE and registers:
        return Rule("bicubic, antialiased, as Hugging Face", partial(_resize_by_timm, antialias=True))
    return Rule(f"bicubic, as {'vitbench' if facts else layout.name}", resize_position_grid)


def _rule_of_timm(model: nn.Module) -> Rule:
    """As timm's filters of published weights, ``checkpoint_filter_fn``, call ``timm.layers.resample_abs_pos_embed``."""
    architecture = str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", ""))
    options: dict[str, Any] = {"interpolation": "bicubic", "antialias": True}
    if "flexi" in architecture or "radio" in architecture:  # timm.models.vision_transformer, _create_vision_transformer
        options = {"interpolation": "bilinear", "antialias": False}
    if any(name in architecture for name in ("base_patch16_radio_v3", "huge_patch16_radio_v3")):
        options["align_corners"] = True
    text = f"{options['interpolation']}{', antialiased' * options['antialias']}, as timm"
    return Rule(text, partial(_resize_by_timm, **options))


def _resize_by_timm(positions: Tensor, old: Grid, new: Grid, **options: Any) -> Tensor:
    from timm.layers import resample_abs_pos_embed

    resized: Tensor = resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=0, **options)
    return resized


def fit_positions(
    weights: Mapping[str, Weight],
    wanted: Mapping[str, tuple[int, ...]],
    model: nn.Module,
    layout: Layout,
    facts: Mapping[str, Any],
    given: Grid | None = None,
) -> Fitted:
    """The weights (our names) with tokens and positions in the shapes ``wanted`` by the model.

    Leading dimensions of 1 are added or left out. Positions of another grid are resampled, and so are tables of
    relative positions over the whole grid (BEiT). ``given`` is the file's grid, as the user says.

    Raises UsageError if ``given`` is not a grid of the file.
    """
    fitted = Fitted(dict(weights))
    for name in _TOKENS:
        if name in wanted and name in weights:
            shape = weights[name].shape
            if shape != wanted[name] and _without_leading_ones(shape) == _without_leading_ones(wanted[name]):
                fitted.weights[name] = weights[name].reshaped(wanted[name])
    grid, by_facts = grid_of(model), _grid_of_facts(facts, model)
    source = _Source(given, by_facts, sure=layout is TORCHVISION)
    if grid is not None:
        _fit_embedding(fitted, wanted, grid, source, rule_of(layout, model, facts, "reg_token" in weights))
        _fit_tables(fitted, wanted, model, grid, source, layout)
    if given is not None and not fitted.names:
        raise UsageError(f"--grid {_text(given)}: the model and the file share no positions of a grid. Leave it out")
    if source.assumed:
        fitted.notes.append(f"positions taken for a square grid of {_text(source.assumed)} patches (else give --grid)")
    return fitted


def is_bound_to_size(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight (our name) has a place for each patch, or each distance, and does not show their grid."""
    return _BOUND.fullmatch(name) is not None and len(shape) < 4  # rows and columns of their own (PiT, VOLO)


@dataclass
class _Source:
    """What is known of the file's grid. ``sure``: it is a square without a doubt. ``assumed`` is set where there is."""

    given: Grid | None
    by_facts: Grid | None
    sure: bool
    assumed: Grid | None = None

    def grid(self, count: int, what: str = "positions", of: Callable[[int], int] = lambda side: side) -> Grid | None:
        """The grid of ``count`` positions, ``of(rows) * of(columns)``; None if it is not a square and not known."""
        for known in (self.given, self.by_facts):
            if known is not None and of(known[0]) * of(known[1]) == count:
                return known
        if self.given is not None:
            raise UsageError(f"--grid {_text(self.given)} does not fit the {count} {what} in the file")
        side = next((side for side in range(1, _LARGEST_GRID_SIDE + 1) if of(side) ** 2 == count), None)
        if side is None:
            return None
        if not self.sure:
            self.assumed = (side, side)
        return side, side


def _fit_embedding(
    fitted: Fitted, wanted: Mapping[str, tuple[int, ...]], new: Grid, source: _Source, rule: Rule
) -> None:
    weight, shape = fitted.weights.get("pos_embed"), wanted.get("pos_embed", ())
    if weight is None or len(shape) != 3 or len(weight.shape) < 2:
        return
    L, D = shape[1:]
    extra = L - math.prod(new)  # CLS and the like, which have no place in the grid
    tokens = weight.shape[-2]
    if weight.shape[-1] != D or math.prod(weight.shape[:-2]) != 1 or shape[0] != 1 or extra < 0 or tokens <= extra:
        return
    fitted.names.add("pos_embed")
    if any((name in wanted) != (name in fitted.weights) for name in _TOKENS):
        return  # another architecture, as the names in the error show: no grid would make it fit
    cls = fitted.weights.get("cls_token")
    mergeable = extra == 0 and cls is not None and cls.shape == (1, 1, D)
    merged = mergeable and _is_with_cls(tokens, source, fitted.weights.get("reg_token"))
    count = tokens - extra - merged
    old = source.grid(count)
    if old is None:
        cls_text = " (one may be for CLS, for which the model has none)" if mergeable and not merged else ""
        example = _example([count, count - 1] if cls_text else [count], new)
        fitted.unfit["pos_embed"] = (
            f"Its {count} positions are no square grid of up to {_LARGEST_GRID_SIDE} a side{cls_text}: give the rows "
            f"and columns of its patches, such as --grid {_text(example)} (grid=...)"
        )
        return
    if old != new and max(old) > _LARGEST_GRID_SIDE:
        fitted.unfit["pos_embed"] = (
            f"Its grid of {_text(old)} patches has a side of more than {_LARGEST_GRID_SIDE}, which is not resampled: "
            "build the model for images of that grid"
        )
        return
    if merged and cls is not None:  # the sum of both is the same token
        fitted.notes.append("the position of CLS added to CLS, as the model has none for it")
        fitted.weights["cls_token"] = replace(
            cls, keys=(*cls.keys, *weight.keys), read=lambda: cls.read() + weight.read().reshape(1, -1, D)[:, :1]
        )
    elif old == new:
        return

    def read() -> Tensor:
        positions = weight.read().reshape(1, -1, D)
        kept, patches = positions[:, merged : extra + merged], positions[:, extra + merged :]
        return torch.cat([kept, rule.resize(patches, old, new)], dim=1)

    fitted.weights["pos_embed"] = Weight(weight.keys, shape, weight.dtype, read)
    if old != new:
        fitted.resampled = (old, new)
        fitted.notes.append(f"positions resampled from {_text(old)} to {_text(new)} patches ({rule.text})")


def _is_with_cls(tokens: int, source: _Source, registers: Weight | None) -> bool:
    """Whether a file has a position for CLS, where the model has none: if its grid says so, or it is DINOv2's with
    registers, by the name that timm goes by, too. A count alone does not say: 10 x 17 patches are 13 x 13 and CLS.
    """
    for known in (source.given, source.by_facts):
        if known is not None and math.prod(known) in (tokens, tokens - 1):
            return math.prod(known) == tokens - 1
    return registers is not None and any(key.endswith("register_tokens") for key in registers.keys)


def _fit_tables(
    fitted: Fitted,
    wanted: Mapping[str, tuple[int, ...]],
    model: nn.Module,
    new: Grid,
    source: _Source,
    layout: Layout,
) -> None:
    """The tables of attention over the whole grid, (2 h - 1)(2 w - 1) rows and some for CLS (BEiT)."""
    for name, shape in wanted.items():
        weight = fitted.weights.get(name)
        found = _TABLE.fullmatch(name)
        if weight is None or not found or len(weight.shape) != 2 or weight.shape[1:] != shape[1:]:
            continue
        if _pair(getattr(model.get_submodule(found[1]), "window_size", None)) != new:
            continue
        extra = shape[0] - (2 * new[0] - 1) * (2 * new[1] - 1)
        old = source.grid(weight.shape[0] - extra, "rows of relative positions", lambda side: 2 * side - 1)
        fitted.names.add(name)
        if old is None:
            fitted.unfit[name] = (
                f"Its table of {weight.shape[0]} relative positions is of no square grid: give the rows and columns of "
                f"its patches, such as --grid {_text(new)} (grid=...)"
            )
        elif old != new:
            resize = _table_by_hugging_face if layout is HUGGING_FACE else _table_by_timm
            fitted.weights[name] = Weight(weight.keys, shape, weight.dtype, partial(resize, weight, shape, old, new))
            if fitted.resampled is None:
                fitted.resampled = (old, new)
                whose = "bilinear, as Hugging Face" if layout is HUGGING_FACE else "as timm"
                fitted.notes.append(
                    f"tables of relative positions resampled from {_text(old)} to {_text(new)} patches ({whose})"
                )


def _table_by_hugging_face(weight: Weight, shape: tuple[int, ...], old: Grid, new: Grid) -> Tensor:
    """As ``BeitRelativePositionBias`` of transformers: bilinear between centres, the rows for CLS as they are."""
    sides = [2 * side - 1 for side in old]
    table = weight.read()
    patches = table[: math.prod(sides)].T.reshape(1, -1, *sides)
    patches = F.interpolate(patches, size=[2 * side - 1 for side in new], mode="bilinear")
    return torch.cat([patches.flatten(2)[0].T, table[math.prod(sides) :]])


def _table_by_timm(weight: Weight, shape: tuple[int, ...], old: Grid, new: Grid) -> Tensor:
    from timm.layers import resize_rel_pos_bias_table

    table: Tensor = resize_rel_pos_bias_table(weight.read(), new, shape, old_window_size=old)
    return table


def grid_of(model: nn.Module) -> Grid | None:
    """(height, width), in patches, of the grid that a model has positions for; None if that is unknown."""
    embedding = getattr(model, "patch_embed", None)  # timm's
    grid = _pair(getattr(model, "grid", None)) or _pair(getattr(embedding, "grid_size", None))
    size, patch = _pair(getattr(model, "image_size", None)), _patch_of(model)  # torchvision's
    if grid is None and size and patch:
        return size[0] // patch[0], size[1] // patch[1]
    return grid


def _patch_of(model: nn.Module) -> Grid | None:
    """(height, width) in px."""
    embedding = getattr(model, "patch_embed", None)
    sizes = [(embedding, "patch_size"), (model, "patch_size"), (model, "patch")]
    patch = next((pair for owner, name in sizes if (pair := _pair(getattr(owner, name, None)))), None)
    ratio = _pair(getattr(embedding, "feature_ratio", None))  # timm's hybrids: their patches are of a feature map
    return (patch[0] * ratio[0], patch[1] * ratio[1]) if patch and ratio else patch


def _has_one_grid(facts: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether one grid of positions in a file of our training serves all image sizes."""
    name = str(facts.get("model"))
    if name in model_registry():
        return model_registry().get(name).config.get("positions") == "bicubic"
    # a user's own builder, which need not be at hand: taken for that of the model
    return not name.startswith(("timm:", "torchvision:")) and getattr(model, "positions", None) == "bicubic"


def _grid_of_facts(facts: Mapping[str, Any], model: nn.Module) -> Grid | None:
    """The grid of a file of our training; None for other files."""
    size, patch = _pair(facts.get("image_size")), _patch_of(model)
    if size is None:
        return None
    if _has_one_grid(facts, model):
        return BICUBIC_GRID
    if size == _pair(getattr(getattr(model, "patch_embed", None), "img_size", None)):
        return grid_of(model)
    return (size[0] // patch[0], size[1] // patch[1]) if patch else None


def _example(counts: list[int], new: Grid) -> Grid:
    """A grid of as many patches as one of ``counts``: the model's, or the first one's that is closest to a square."""
    count = counts[0]
    rows = next(side for side in range(min(math.isqrt(count), _LARGEST_GRID_SIDE), 0, -1) if count % side == 0)
    return new if math.prod(new) in counts else (rows, count // rows)


def _pair(value: object) -> Grid | None:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    return pair if len(pair) == 2 and all(isinstance(one, int) and one > 0 for one in pair) else None


def _text(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    first = next((index for index, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]

"""The attention weights of every layer of a ViT for some images, and their rollout.

During one forward pass a torch function mode records calls of attention and softmax, and hooks tell which module runs.
The weights inside fused kernels are computed a second time. The model is not changed.

A layer has a map if its tokens are a grid of patches behind a few tokens such as CLS. Where a model drops patches, its
gather calls tell which remain.

Shapes: B images, h heads, L tokens of a layer, N patches of an image, n of them in a layer, D width, d = D / h.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitbench.core.errors import Unsupported
from vitbench.models import evaluating, without_fast_path

#: The most tokens in front of the patches: CLS, one for distillation, registers.
MOST_EXTRA_TOKENS = 16

#: The attributes with a patch's side or sides in px: ours and timm's.
_PATCH_SIZES = ("patch", "patch_size")

_NO_MAP = "its weights are not a map over the image"


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionMap:
    """The attention weights of one layer, and the positions of its tokens in the image.

    Args:
        name: of the attending module, as in ``named_modules``.
        kind: ``softmax``, or ``effective`` for linear attention (see EFFECTIVE).
        weights: (B, h, L, L) float32 on the CPU; row i is the attention of token i to each token.
        extra: tokens in front of the patches.
        grid: (rows, columns) of the image's patches.
        covered: (height, width) px of the grid, from the top left: less than the image if patches do not divide it,
            more if the model pads it.
        kept: (B, n) int64, the patches of this layer in the order of its tokens, as row-major indices of the grid.
        readout: ``CLS`` if the first token is classified, ``mean`` if all tokens are.
    """

    name: str
    kind: Literal["softmax", "effective"]
    weights: Tensor
    extra: int
    grid: tuple[int, int]
    covered: tuple[int, int]
    kept: Tensor
    readout: Literal["CLS", "mean"]

    @property
    def heads(self) -> int:
        """h."""
        return self.weights.shape[1]

    @property
    def tokens(self) -> int:
        """L."""
        return self.weights.shape[2]

    @property
    def patches(self) -> int:
        """N, including dropped ones."""
        return self.grid[0] * self.grid[1]

    def over_patches(self) -> Tensor:
        """The attention of CLS (without one: the mean of all tokens) to each patch: (B, h, N), NaN for dropped patches.
        Attention to the extra tokens is left out, so a row sums to less than 1.
        """
        rows = self.weights[:, :, 0] if self.readout == "CLS" else self.weights.mean(dim=2)  # (B, h, L)
        found = rows.new_full((*rows.shape[:2], self.patches), math.nan)
        return found.scatter_(2, self.kept[:, None].expand(-1, self.heads, -1), rows[..., self.extra :])

    def on_itself(self) -> float | None:
        """The share of CLS's attention to itself, mean over images and heads; None without CLS."""
        return float(self.weights[:, :, 0, 0].mean()) if self.readout == "CLS" else None

    def entropy_nat(self) -> float:
        """The entropy -sum(w ln w) of a token's attention, mean over tokens, heads and images; at most ln L."""
        return float(-torch.xlogy(self.weights, self.weights).sum(dim=-1).mean())

    def places(self) -> Tensor:
        """The index of each of this layer's tokens in an unpruned layer: (B, L) int64."""
        first = torch.arange(self.extra).expand(len(self.kept), -1)
        return torch.cat([first, self.kept + self.extra], dim=1)


def attention_maps(model: nn.Module, images: Tensor) -> list[AttentionMap]:
    """The attention weights of each layer for ``images`` (B, 3, H, W), in the order in which the layers run.

    One forward pass in eval mode without gradients, on the device of both. The model is restored, also after an
    exception.

    Raises:
        Unsupported: the model has no attention between the patches of the whole image, but within windows, between
            channels, or from some tokens to others.
    """
    model = getattr(model, "_orig_mod", model)  # compiled code hides its calls
    recorder = _Recorder(model, images)
    # no_grad and not inference_mode: a tensor that a module caches must stay usable for training
    with evaluating(model), without_fast_path(), recorder.following(model), torch.no_grad(), recorder:
        model(images)
    return _locate(model, images, recorder.events)


def rollout(maps: Sequence[AttentionMap], *, heads: Literal["mean", "max"] = "mean") -> Tensor:
    """Attention rollout: the share of each input token in each token after the last layer (B, L, L).

    The product over the layers of (A + I) / 2 with rows normalised to 1, where A is the mean (or maximum) of a layer's
    heads (Abnar and Zuidema, 2020, arXiv:2005.00928). Tokens are those of an unpruned layer; a dropped patch keeps its
    last row.

    Raises Unsupported if the layers do not share one grid of patches, ValueError without layers.
    """
    if not maps:
        raise ValueError("a rollout needs at least one layer")
    if len({(one.grid, one.extra) for one in maps}) > 1:
        raise Unsupported("its layers have different grids of patches, between which attention cannot be rolled out")
    B = len(maps[0].weights)
    L = maps[0].extra + maps[0].patches
    held = torch.eye(L).expand(B, L, L)
    for one in maps:
        mixed = one.weights.mean(dim=1) if heads == "mean" else one.weights.amax(dim=1)
        mixed = mixed + torch.eye(one.tokens)
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        places = one.places()[..., None].expand(-1, -1, L)  # (B, tokens, L)
        held = held.scatter(1, places, mixed @ held.gather(1, places))
    return held


def rollout_over_patches(maps: Sequence[AttentionMap], *, heads: Literal["mean", "max"] = "mean") -> Tensor:
    """The share of each patch in CLS (without CLS: in the mean of the remaining tokens) by ``rollout``: (B, N)."""
    held = rollout(maps, heads=heads)
    last = maps[-1]
    if last.readout == "CLS":
        return held[:, 0, last.extra :]
    return held.gather(1, last.places()[..., None].expand(-1, -1, held.shape[-1])).mean(dim=1)[:, last.extra :]


def kept_stages(maps: Sequence[AttentionMap]) -> list[tuple[int, int, Tensor]]:
    """Runs of layers with the same patches: (first layer, last layer, both from 0, kept (B, n))."""
    stages: list[tuple[int, int, Tensor]] = []
    for index, one in enumerate(maps):
        if stages and torch.equal(stages[-1][2], one.kept) and maps[index - 1].grid == one.grid:
            stages[-1] = (stages[-1][0], index, one.kept)
        else:
            stages.append((index, index, one.kept))
    return stages


# --- linear attention


def relu_linear_weights(module: Any, x: Tensor) -> Tensor:
    """The effective weights of ReLU linear attention (models/architectures/linear_attention.py): (B, L, D) to
    (B, h, L, L).

    relu(q) relu(k)^T over its row sums + eps, which times v is the module's output. Rows sum to slightly less than 1,
    to 0 if q has no positive entry.
    """
    B, L, D = x.shape
    q, k, _ = module.qkv(x).view(B, L, 3, module.heads, D // module.heads).permute(2, 0, 3, 1, 4).unbind(0)
    weights = _exact(F.relu(q)) @ _exact(F.relu(k)).transpose(-2, -1)
    eps = max(module.eps, torch.finfo(q.dtype).tiny)  # as in the module
    return weights / (weights.sum(dim=-1, keepdim=True) + eps)


#: The class name of a module without a softmax to its weights, from the module and its input.
EFFECTIVE: Mapping[str, Callable[[Any, Tensor], Tensor]] = {"ReLULinearAttention": relu_linear_weights}


# --- recording one forward pass


@dataclass(frozen=True)
class _Grid:
    """A convolution's output of (rows, columns), with the px of the image ``covered`` if its kernels tile it."""

    grid: tuple[int, int]
    covered: tuple[int, int]

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class _Kept:
    """``indices`` (B, n) were gathered of ``count`` patches."""

    indices: Tensor
    count: int


#: The name and kind of an AttentionMap, and its weights on the CPU.
_Weights = tuple[str, Literal["softmax", "effective"], Tensor]
_Event = _Grid | _Kept | _Weights


class _Recorder(TorchFunctionMode):
    """Records the events of a forward pass that maps need, in order; calls inside torch's functions count once."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.events: list[_Event] = []
        self._images = images
        self._whole = type(model).__name__
        self._running: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        look = _LOOKS.get(getattr(func, "__name__", ""))
        if look is not None:
            look(self, args, kwargs, output)
        return output

    @contextlib.contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Inside, track which module is running."""
        handles = []
        try:
            for name, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(partial(self._enter, name or self._whole)))
                handles.append(module.register_forward_hook(self._leave))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        shape = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
        self._running.append((name, module, shape))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        effective = EFFECTIVE.get(type(module).__name__)
        if effective is not None:
            self._note("effective", effective(module, args[0]))
        self._running.pop()

    def look_at_convolution(self, args: Any, kwargs: Any, output: Tensor) -> None:
        """Its output may be a grid of patches."""
        given = _bind(("input", "weight"), args, kwargs)
        if output.dim() != 4:
            return
        (rows, columns), kernel = output.shape[-2:], given["weight"].shape[-2:]
        size, whole = given["input"].shape[-2:], self._images.shape[-2:]
        tiled = (rows * kernel[0], columns * kernel[1])
        tiles = all(0 <= side - part < one for side, part, one in zip(size, tiled, kernel, strict=True))
        sees_image = all(side <= one for side, one in zip(whole, size, strict=True))
        covered = tiled if tiles and sees_image else (whole[0], whole[1])
        self.events.append(_Grid((rows, columns), covered))

    def look_at_gather(self, args: Any, kwargs: Any, output: Tensor) -> None:
        """Whole tokens that are gathered, (B, n, D) -> (B, fewer, D), are the patches kept."""
        given = _bind(("input", "dim", "index"), args, kwargs)
        tokens, indices = given["input"], given["index"]
        whole_tokens = indices.dim() == 3 and (indices.stride(-1) == 0 or indices.shape[-1] == 1)
        if tokens.dim() == 3 and given["dim"] in (1, -2) and whole_tokens and len(tokens) == len(self._images):
            self.events.append(_Kept(indices[..., 0].cpu(), tokens.shape[1]))

    def look_at_softmax(self, args: Any, kwargs: Any, output: Tensor) -> None:
        """It is attention over the last of four or more dimensions."""
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if output.dim() >= 4 and dim in (-1, output.dim() - 1):
            self._note("softmax", output)

    def look_at_fused(self, args: Any, kwargs: Any, output: Tensor) -> None:
        """Its weights are computed again."""
        self._note("softmax", softmax_weights(*args, **kwargs))

    def look_at_multihead(self, args: Any, kwargs: Any, output: Any) -> None:
        """Called again for the weights of each head."""
        given = {"need_weights": True, "average_attn_weights": False, "dropout_p": 0.0}
        found = F.multi_head_attention_forward(**(_bind(_MULTIHEAD, args, kwargs) | given))
        assert found[1] is not None
        self._note("softmax", found[1])

    def _note(self, kind: Literal["softmax", "effective"], weights: Tensor) -> None:
        running = [one for one in self._running if not isinstance(one[1], nn.Softmax)]
        name = running[-1][0] if running else self._whole
        shape = tuple(weights.shape)
        if shape[-2] == 1 and len(shape) == 4:
            return  # attention pooling: one query, which changes no token
        tokens = next((shape for _, _, shape in reversed(running) if len(shape) == 3), None)
        reason = ""
        if len(shape) != 4 or shape[0] != len(self._images):
            reason = f"within windows ({' x '.join(map(str, shape))} weights for {len(self._images)} image(s))"
        elif shape[-1] != shape[-2]:
            reason = f"from {shape[-2]} tokens to {shape[-1]}"
        elif tokens is not None and shape[-1] not in tokens[:2]:
            reason = f"between {shape[-1]} channels"
        if reason:
            raise Unsupported(f"it attends {reason}, in {name}: {_NO_MAP}")
        self.events.append((name, kind, weights.detach().to("cpu", torch.float32)))


_LOOKS: Mapping[str, Callable[[_Recorder, Any, Any, Any], None]] = {
    "conv2d": _Recorder.look_at_convolution,
    "gather": _Recorder.look_at_gather,
    "softmax": _Recorder.look_at_softmax,
    "special_softmax": _Recorder.look_at_softmax,
    "scaled_dot_product_attention": _Recorder.look_at_fused,
    "multi_head_attention_forward": _Recorder.look_at_multihead,
}

_MULTIHEAD = tuple(inspect.signature(F.multi_head_attention_forward).parameters)


def _bind(names: tuple[str, ...], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name; positional ones after ``names`` are left out."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def softmax_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights of ``F.scaled_dot_product_attention``: (..., L, d), (..., M, d) to (..., L, M), in float32 or better,
    before dropout. A row that is masked entirely is 0.
    """
    query, key = _exact(query), _exact(key)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None:
        visible = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if visible else scores + attn_mask
    blind = scores.isneginf().all(dim=-1, keepdim=True)
    return scores.softmax(dim=-1).masked_fill(blind, 0.0)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --- from events to positions in the image


def _locate(model: nn.Module, images: Tensor, events: Sequence[_Event]) -> list[AttentionMap]:
    """The maps, each with its grid and remaining patches. Raises Unsupported where these are unknown."""
    if not any(isinstance(event, tuple) for event in events):
        raise Unsupported("it has no attention over tokens: nothing computes a softmax over them, head by head")
    height, width = images.shape[-2:]
    grids = _own_grids(model, (height, width))
    grid: _Grid | None = None
    kept: Tensor | None = None
    extra: int | None = None
    maps: list[AttentionMap] = []
    for event in events:
        if isinstance(event, _Grid):
            grids.append(event)
        elif isinstance(event, _Kept):
            if kept is None:
                grid = next((one for one in reversed(grids) if one.patches == event.count), None)
                kept = None if grid is None else torch.arange(event.count).expand(len(images), -1)
            if kept is not None and kept.shape[1] == event.count:
                kept = kept.gather(1, event.indices)
        else:
            name, kind, weights = event
            L = weights.shape[-1]
            if grid is None or kept is None or not _is_extra(L - kept.shape[1], extra):
                candidates = grids or _guessed_grids((height, width), L)
                grid = next((one for one in reversed(candidates) if _is_extra(L - one.patches, extra)), None)
                if grid is None:
                    raise Unsupported(f"{name} has {L} tokens, which are not a grid of patches: {_NO_MAP}")
                kept = torch.arange(grid.patches).expand(len(images), -1)
            extra = L - kept.shape[1]
            maps.append(
                AttentionMap(
                    name=name,
                    kind=kind,
                    weights=weights,
                    extra=extra,
                    grid=grid.grid,
                    covered=grid.covered,
                    kept=kept,
                    readout=_readout(model, extra),
                )
            )
    return maps


def _is_extra(count: int, known: int | None) -> bool:
    """Whether ``count`` tokens may precede the patches: as many as in the layers before, once ``known``."""
    return count == known if known is not None else 0 <= count <= MOST_EXTRA_TOKENS


def _own_grids(model: nn.Module, image_size: tuple[int, int]) -> list[_Grid]:
    """By the patch size of the model or of its embedding, for embeddings without a convolution."""
    parts = (model, *model.children())
    patch = next((found for one in parts for name in _PATCH_SIZES if (found := getattr(one, name, None))), None)
    sides = (patch, patch) if isinstance(patch, int) else patch
    if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(isinstance(one, int) for one in sides):
        return []
    rows, columns = (whole // one for whole, one in zip(image_size, sides, strict=True))
    return [_Grid((rows, columns), (rows * sides[0], columns * sides[1]))]


def _guessed_grids(image_size: tuple[int, int], tokens: int) -> list[_Grid]:
    """For a model without a convolution: square patches that fill the image, after at most two tokens."""
    found = []
    for extra in (2, 0, 1):  # the last is tried first
        side = math.sqrt(image_size[0] * image_size[1] / max(tokens - extra, 1))
        rows, columns = round(image_size[0] / side), round(image_size[1] / side)
        whole = rows * columns == tokens - extra > 0 and image_size[0] % rows == 0 and image_size[1] % columns == 0
        if whole and image_size[0] // rows == image_size[1] // columns:
            found.append(_Grid((rows, columns), image_size))
    return found


def _readout(model: nn.Module, extra: int) -> Literal["CLS", "mean"]:
    """What is classified: the first token, unless the model has no CLS there or pools all tokens."""
    if extra == 0:
        return "mean"
    pool = getattr(model, "global_pool", "token")  # timm's
    if isinstance(pool, str) and pool not in ("", "token"):
        return "mean"
    tokens = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    registers_only = "reg_token" in tokens and not tokens & {"cls_token", "class_token"}
    return "mean" if registers_only else "CLS"

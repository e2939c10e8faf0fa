"""Parameters and multiply-adds of our own models by formula: from a card's ``config`` alone, without torch.

It knows no module, which makes it a check of them. Counted are matrix products, convolution and attention; biases,
norms, softmax and activations are not, as in torch's FlopCounterMode. FLOPs are twice the multiply-adds.

For N patches, L = N + 1 tokens, C channels, P px patches, width D, MLP width M, K classes, a plain ViT takes
``N C P^2 D + depth (4 L D^2 + 2 L^2 D + 2 L D M) + D K`` multiply-adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vitbench.errors import Unsupported
from vitbench.registry import ModelCard

CHANNELS = 3
BICUBIC_POSITIONS = 14 * 14  # kept whatever the picture's grid

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """``params`` counts numbers, ``macs`` multiply-adds of an image in evaluation, ``tokens`` those into each block."""

    params: int
    macs: int
    tokens: tuple[int, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiply-add is 2."""
        return 2 * self.macs


def closed_form(card: ModelCard, image_size: tuple[int, int], num_classes: int) -> ClosedForm:
    """The exact counts for pictures of (height, width) px and batch 1.

    Raises Unsupported for a builder that there is no formula for (timm's and torchvision's models among them).
    """
    if card.builder not in _FORMULAS:
        raise Unsupported(f"no closed form for {card.name}")
    patches = (image_size[0] // card.patch) * (image_size[1] // card.patch)
    return _FORMULAS[card.builder](card.config, patches, num_classes)


def _plain(config: Config, patches: int, classes: int) -> ClosedForm:
    tokens = (patches + 1,) * config["depth"]
    macs = sum(_projections_and_mlp(config, L) + 2 * L * L * config["width"] for L in tokens)
    return ClosedForm(
        params=_params(config, patches, classes), macs=_ends(config, patches, classes) + macs, tokens=tokens
    )


def _linear_attention(config: Config, patches: int, classes: int) -> ClosedForm:
    """Per head k^T v and q (k^T v) take L d^2 each, the normaliser q . sum(k) takes L d; heads times d is D."""
    D = config["width"]
    tokens = (patches + 1,) * config["depth"]
    macs = sum(_projections_and_mlp(config, L) + L * D * (2 * (D // config["heads"]) + 1) for L in tokens)
    return ClosedForm(
        params=_params(config, patches, classes), macs=_ends(config, patches, classes) + macs, tokens=tokens
    )


def _score_pruned(config: Config, patches: int, classes: int) -> ClosedForm:
    """Each block has a score layer of D + 1 numbers; where it prunes, all but the last run, for D a patch token."""
    plain = _plain(config, patches, classes)
    params = plain.params + config["depth"] * (config["width"] + 1)
    if not config["prune"]:
        return ClosedForm(params=params, macs=plain.macs, tokens=plain.tokens)
    macs = _ends(config, patches, classes)
    tokens = []
    remaining = patches
    for block in range(config["depth"]):
        L = remaining + 1
        tokens.append(L)
        macs += _projections_and_mlp(config, L) + 2 * L * L * config["width"]
        if block < config["depth"] - 1:
            macs += remaining * config["width"]
            remaining = int(remaining * max(0.5, 1 - 0.1 * block))  # as published, rounding errors included
    return ClosedForm(params=params, macs=macs, tokens=tuple(tokens))


_FORMULAS: dict[str, Callable[[Config, int, int], ClosedForm]] = {
    "vitbench.models.vit:VisionTransformer": _plain,
    "vitbench.models.linear_attention:build_linear_attention_vit": _linear_attention,
    "vitbench.models.dynamic_vit:ScorePrunedViT": _score_pruned,
}


def _projections_and_mlp(config: Config, tokens: int) -> int:
    """Multiply-adds of q, k, v, the output projection and the MLP of one block."""
    D, M = config["width"], config["mlp_width"]
    return tokens * (4 * D * D + 2 * D * M)


def _ends(config: Config, patches: int, classes: int) -> int:
    """Multiply-adds of the patch embedding and the head."""
    D = config["width"]
    hidden = D * D if config["head"] == "tanh" else 0
    return patches * CHANNELS * config["patch"] ** 2 * D + hidden + D * classes


def _params(config: Config, patches: int, classes: int) -> int:
    """Parameters without score layers: weights and biases of everything, CLS and positions."""
    D, M = config["width"], config["mlp_width"]
    positions = {"tokens": patches + 1, "patches": patches, "bicubic": BICUBIC_POSITIONS + 1}[config["positions"]]
    embedding = CHANNELS * config["patch"] ** 2 * D + D + D + positions * D
    norm = 2 * D
    attention = 4 * (D * D + D)
    mlp = D * M + M + M * D + D
    head = (
        (norm if config["final_norm"] else 0) + (D * D + D if config["head"] == "tanh" else 0) + D * classes + classes
    )
    return embedding + config["depth"] * (2 * norm + attention + mlp) + head

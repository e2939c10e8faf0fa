"""Parameters and multiply-adds of our own models by formula, from a card's ``config`` alone and without torch.

An independent check of the modules. Counted are matrix products, convolution and attention; biases, norms, softmax and
activations are not, as in torch's FlopCounterMode. FLOPs are twice the multiply-adds.

For N patches, L = N + 1 tokens (N + 2 with a distillation token, whose head is a second one), C channels, P px patches,
width D, MLP width M, K classes, a plain ViT takes
``N C P^2 D + depth (4 L D^2 + 2 L^2 D + 2 L D M) + D K`` multiply-adds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vitbench.core.errors import Unsupported
from vitbench.models.cards import ModelCard

CHANNELS = 3
BICUBIC_POSITIONS = 14 * 14  # whatever the image's grid

Config = Mapping[str, Any]
Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """Counts of one image: ``macs`` are the multiply-adds in evaluation, ``training_macs`` of the forward pass in
    training, ``backward_macs`` of its backward pass; ``tokens`` go into each block.

    Each product has two in the backward pass, one for each factor's gradient; the image needs no gradient.
    """

    params: int
    macs: int
    tokens: tuple[int, ...]
    training_macs: int
    backward_macs: int

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiply-add is 2."""
        return 2 * self.macs

    @property
    def step_flops(self) -> int:
        """FLOPs of an image in a training step: forward and backward, without the optimizer."""
        return 2 * (self.training_macs + self.backward_macs)


def closed_form(card: ModelCard, image_size: tuple[int, int], num_classes: int) -> ClosedForm:
    """The exact counts for one image of (height, width) px.

    Raises Unsupported for a builder without a formula, such as those of timm and torchvision.
    """
    if card.builder not in _FORMULAS:
        raise Unsupported(f"no closed form for {card.name}")
    grid = (image_size[0] // card.patch, image_size[1] // card.patch)
    return _FORMULAS[card.builder](card.config, grid, num_classes)


def _plain(config: Config, grid: Grid, classes: int) -> ClosedForm:
    patches = grid[0] * grid[1]
    tokens = (patches + _first_tokens(config),) * config["depth"]
    macs = sum(_projections_and_mlp(config, L) + 2 * L * L * config["width"] for L in tokens)
    return _dense(config, grid, _params(config, grid, classes), _ends(config, grid, classes) + macs, tokens)


def _linear_attention(config: Config, grid: Grid, classes: int) -> ClosedForm:
    """Per head k^T v and q (k^T v) take L d^2 each, the normaliser q . sum(k) takes L d; heads times d is D."""
    D = config["width"]
    tokens = (grid[0] * grid[1] + 1,) * config["depth"]
    macs = sum(_projections_and_mlp(config, L) + L * D * (2 * (D // config["heads"]) + 1) for L in tokens)
    return _dense(config, grid, _params(config, grid, classes), _ends(config, grid, classes) + macs, tokens)


def _score_pruned(config: Config, grid: Grid, classes: int) -> ClosedForm:
    """Each block has a score layer of D + 1 numbers; if it prunes, all but the last run, with D a patch token."""
    plain = _plain(config, grid, classes)
    params = plain.params + config["depth"] * (config["width"] + 1)
    if not config["prune"]:
        return dataclasses.replace(plain, params=params)
    macs = _ends(config, grid, classes)
    tokens = []
    remaining = grid[0] * grid[1]
    for block in range(config["depth"]):
        L = remaining + 1
        tokens.append(L)
        macs += _projections_and_mlp(config, L) + 2 * L * L * config["width"]
        if block < config["depth"] - 1:
            macs += remaining * config["width"]
            remaining = int(remaining * max(0.5, 1 - 0.1 * block))  # as published, rounding errors included
    return dataclasses.replace(plain, params=params, macs=macs, tokens=tuple(tokens))  # training is dense


def _spt_lsa(config: Config, grid: Grid, classes: int) -> ClosedForm:
    """A scale or a temperature a head, and with the latter a table of (2 G_h - 1)(2 G_w - 1) positions a head."""
    plain = _plain(config, grid, classes)
    table = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    per_head = {"none": 0, "scale": 1, "scale_all": 1, "temperature": 1 + table}[config["locality"]]
    return dataclasses.replace(plain, params=plain.params + config["depth"] * config["heads"] * per_head)


def _learned_pruning(config: Config, grid: Grid, classes: int) -> ClosedForm:
    """Each stage has a predictor D -> D -> D/2 -> D/4 -> 2 on the remaining patches, then keeps rho^s of all."""
    plain = _plain(config, grid, classes)
    D, stages = config["width"], list(config["stages"])
    layers = ((D, D), (D, D // 2), (D // 2, D // 4), (D // 4, 2))
    predictor = 2 * D + sum(inputs * outputs + outputs for inputs, outputs in layers)
    macs = _ends(config, grid, classes)
    tokens = []
    patches = remaining = grid[0] * grid[1]
    for block in range(config["depth"]):
        if block in stages:
            macs += remaining * sum(inputs * outputs for inputs, outputs in layers)
            remaining = int(patches * config["keep"] ** (stages.index(block) + 1))
        L = remaining + 1
        tokens.append(L)
        macs += _projections_and_mlp(config, L) + 2 * L * L * D
    dense = plain.macs + len(stages) * patches * sum(inputs * outputs for inputs, outputs in layers)  # training masks
    trained = _dense(config, grid, plain.params + len(stages) * predictor, dense, plain.tokens)
    return dataclasses.replace(trained, macs=macs, tokens=tuple(tokens))


def _unused_norms(config: Config, grid: Grid, classes: int) -> ClosedForm:
    """A LayerNorm of 2 D numbers a block that never runs."""
    plain = _plain(config, grid, classes)
    return dataclasses.replace(plain, params=plain.params + config["depth"] * 2 * config["width"])


def _vit_b16(config: Config, grid: Grid, classes: int) -> ClosedForm:
    """torchvision's vit_b_16, whose card has no sizes."""
    sizes = {"patch": 16, "width": 768, "depth": 12, "mlp_width": 3072}
    return _plain({**sizes, "positions": "tokens", "final_norm": True, "head": "linear"}, grid, classes)


def _frozen_vit_b16(config: Config, grid: Grid, classes: int) -> ClosedForm:
    """The backward pass computes only the gradient of the trained layer's weight."""
    return dataclasses.replace(_vit_b16(config, grid, classes), backward_macs=768 * classes)


_FORMULAS: dict[str, Callable[[Config, Grid, int], ClosedForm]] = {
    "vitbench.models.architectures.vit:VisionTransformer": _plain,
    "vitbench.models.architectures.linear_attention:build_linear_attention_vit": _linear_attention,
    "vitbench.models.architectures.dynamic_vit:ScorePrunedViT": _score_pruned,
    "vitbench.models.architectures.learned_pruning:DynamicViT": _learned_pruning,
    "vitbench.models.architectures.spt_lsa:build_spt_lsa_vit": _spt_lsa,
    "vitbench.models.architectures.vit_b16:build_scratch": _unused_norms,
    "vitbench.models.architectures.vit_b16:build_finetune": _vit_b16,
    "vitbench.models.architectures.vit_b16:build_transfer": _frozen_vit_b16,
}


def _dense(config: Config, grid: Grid, params: int, macs: int, tokens: tuple[int, ...]) -> ClosedForm:
    """A model that computes the same in training and evaluation."""
    embedding = grid[0] * grid[1] * _patch_numbers(config) * config["width"]
    # a LayerNorm before the embedding has parameters, so the patches need a gradient
    image = 0 if config.get("tokenisation") == "shifted_norm" else embedding
    return ClosedForm(params=params, macs=macs, tokens=tokens, training_macs=macs, backward_macs=2 * macs - image)


def _first_tokens(config: Config) -> int:
    """CLS, and the distillation token if there is one."""
    return 2 if config.get("distilled") else 1


def _patch_numbers(config: Config) -> int:
    """The numbers of a patch, with those of the image's four shifts if they are used."""
    copies = 1 if config.get("tokenisation", "patches") == "patches" else 5
    return copies * CHANNELS * int(config["patch"]) ** 2


def _projections_and_mlp(config: Config, tokens: int) -> int:
    """Multiply-adds of q, k, v, the output projection and the MLP of one block."""
    D, M = config["width"], config["mlp_width"]
    return tokens * (4 * D * D + 2 * D * M)


def _ends(config: Config, grid: Grid, classes: int) -> int:
    """Multiply-adds of the patch embedding and the head or heads."""
    D = config["width"]
    hidden = D * D if config["head"] == "tanh" else 0
    return grid[0] * grid[1] * _patch_numbers(config) * D + _first_tokens(config) * (hidden + D * classes)


def _params(config: Config, grid: Grid, classes: int) -> int:
    """Weights, biases, tokens and positions, without what attention variants or pruning add."""
    D, M = config["width"], config["mlp_width"]
    patches, first = grid[0] * grid[1], _first_tokens(config)
    positions = {"tokens": patches + first, "patches": patches, "bicubic": BICUBIC_POSITIONS + first}
    embedding = _patch_numbers(config) * D + D + first * D + positions[config["positions"]] * D
    if config.get("tokenisation") == "shifted_norm":
        embedding += 2 * _patch_numbers(config)
    norm = 2 * D
    norms = sum(norm for name in ("embedding_norm", "final_norm") if config.get(name))
    attention = 4 * (D * D + D)
    mlp = D * M + M + M * D + D
    head = first * ((D * D + D if config["head"] == "tanh" else 0) + D * classes + classes)
    return embedding + config["depth"] * (2 * norm + attention + mlp) + norms + head

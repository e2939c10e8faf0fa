"""The plain Vision Transformer (Dosovitskiy et al., 2021, arXiv:2010.11929), general enough for five replications.

The variants are rows of ``vit_layer.toml``, ``vit_basic.toml``, ``vit_base16.toml``, ``vit_tiny16.toml`` and
``cifar_vit.toml``, which name every detail that changes parameters, FLOPs or outputs. What a reader of the originals
would notice:

- ViT-Classification-CIFAR10 (``vit_layer*_32``): positions for the patches only, CLS is put in front afterwards and has
  none; Linear-Tanh-Linear head. Nothing differs but the names of the parameters.
- ViT reproduction (``vit_basic``): the original keeps three small Linear layers for each head; here all heads of q
  share one Linear, and so do those of k and of v, which hold the same numbers, take the same FLOPs and give the same
  outputs in fewer kernels. Its dropout of 0.1 is published without places; here it follows the embedding, the attention
  weights, the projection and the MLP. CLS and positions start from a normal of std 1, all layers from torch's default.
- ViT_Code_Replication (``vit_base16``, ``vit_smaller``): the positions are always those of a 14 x 14 grid and CLS, and
  are interpolated to the image's grid (bicubic, no antialiasing, ``align_corners=False``) in every forward pass. A
  side that 16 px do not divide loses the rest. Its initialisation is not published in detail: here truncated normal.
- ViT_Code_Replication (``vit_tiny16*``): a LayerNorm follows the patch convolution; positions are learned for one size
  and never interpolated. The distilled one (Touvron et al., 2021, arXiv:2012.12877) has a second token with a head of
  its own: both logits in training, their mean in evaluation. No dropout is published for these: here none.
- CIFAR-ViT (``cifar_vit_*``): only CLS is normalised before the head, which gives the same logits as normalising all
  tokens; LayerNorm is counted in no FLOPs here.

Shapes: B images, N patches, L tokens (N + 1, distilled N + 2), D width, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from vitbench.core.errors import ImageSizeError
from vitbench.core.records import format_image_size
from vitbench.models.architectures.blocks import (
    MLP,
    Attention,
    Block,
    PatchEmbedding,
    resize_position_grid,
    truncated_normal_init,
)

#: The grid that ``positions="bicubic"`` keeps its embedding for: 224 px in patches of 16.
BICUBIC_GRID = (14, 14)


class VisionTransformer(nn.Module):
    """Images (B, 3, H, W), H and W in px, to logits (B, K); distilled and in training: to two logits (B, K).

    Args:
        image_size: (H, W). Sides that ``patch`` does not divide lose the rest.
        positions: what has a learned position: ``tokens`` (CLS and the patches of this grid), ``patches`` (the patches
            of this grid only), ``bicubic`` (CLS and a 14 x 14 grid, interpolated to whatever grid the images have).
        head: ``linear``, or ``tanh`` for Linear(D, D), Tanh, Linear.
        final_norm: whether CLS is normalised before the head.
        embedding_norm: whether a LayerNorm follows the patch convolution.
        distilled: a distillation token behind CLS, with a linear head of its own.
        stochastic_depth: drop rate of the last block; the others rise to it linearly from 0.
        init: ``truncated_normal`` (std 0.02 for all layers, CLS and positions; biases 0), or ``torch`` (torch's default
            for layers, a normal of std 1 for CLS and positions).
        make_attention: makes each block's attention layer; default is Attention with the arguments above it.
        make_embedding: makes the layer from images to patch tokens; default is PatchEmbedding.

    Raises:
        ImageSizeError: at the forward pass, for images of another grid than that of learned positions.
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        num_classes: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        positions: Literal["tokens", "patches", "bicubic"] = "tokens",
        activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu",
        norm_eps: float = 1e-6,
        final_norm: bool = True,
        embedding_norm: bool = False,
        distilled: bool = False,
        head: Literal["linear", "tanh"] = "linear",
        separate_qkv: bool = False,
        embedding_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        projection_dropout: float = 0.0,
        mlp_hidden_dropout: float = 0.0,
        mlp_output_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        init: Literal["truncated_normal", "torch"] = "truncated_normal",
        make_attention: Callable[[], nn.Module] | None = None,
        make_embedding: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.positions = positions
        self.grid = BICUBIC_GRID if positions == "bicubic" else (image_size[0] // patch, image_size[1] // patch)
        N = self.grid[0] * self.grid[1]

        def default_attention() -> nn.Module:
            return Attention(
                width,
                heads,
                separate_qkv=separate_qkv,
                attention_dropout=attention_dropout,
                projection_dropout=projection_dropout,
            )

        def make_block(index: int) -> Block:
            mlp = MLP(
                width,
                mlp_width,
                activation=activation,
                hidden_dropout=mlp_hidden_dropout,
                output_dropout=mlp_output_dropout,
            )
            return Block(
                width,
                (make_attention or default_attention)(),
                mlp,
                norm_eps=norm_eps,
                stochastic_depth=stochastic_depth * index / max(depth - 1, 1),
            )

        def default_embedding() -> nn.Module:
            return PatchEmbedding(patch, width, norm_eps=norm_eps if embedding_norm else None)

        # names as in timm, whose state dicts load unchanged
        self.patch_embed = (make_embedding or default_embedding)()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.dist_token = nn.Parameter(torch.empty(1, 1, width)) if distilled else None
        extra = {"patches": 0, "tokens": 1 + distilled, "bicubic": 1 + distilled}[positions]
        self.pos_embed = nn.Parameter(torch.empty(1, N + extra, width))
        self.pos_drop = nn.Dropout(embedding_dropout)
        self.blocks = nn.ModuleList(make_block(index) for index in range(depth))
        self.norm = nn.LayerNorm(width, eps=norm_eps) if final_norm else nn.Identity()
        self.head = make_head(head, width, num_classes)
        self.head_dist = make_head(head, width, num_classes) if distilled else None
        self._initialise(init)

    def _initialise(self, init: str) -> None:
        tokens = [self.cls_token, self.pos_embed] + ([] if self.dist_token is None else [self.dist_token])
        if init == "truncated_normal":
            self.apply(truncated_normal_init)
            for token in tokens:
                nn.init.trunc_normal_(token, std=0.02)
        else:
            for token in tokens:
                nn.init.normal_(token)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.encode(self.embed(images))
        logits: Tensor = self.head(self.norm(x[:, 0]))  # (B, L, D) -> (B, D) -> (B, K)
        if self.head_dist is None:
            return logits
        distilled: Tensor = self.head_dist(self.norm(x[:, 1]))
        return (logits, distilled) if self.training else (logits + distilled) / 2

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens (B, L, D), CLS first, with positions."""
        x = self.patch_embed(images)  # (B, N, D)
        first = self.cls_token if self.dist_token is None else torch.cat([self.cls_token, self.dist_token], dim=1)
        first = first.expand(x.shape[0], -1, -1)
        if self.positions == "patches":
            x = torch.cat([first, x + self.position_embedding(images)], dim=1)
        else:
            x = torch.cat([first, x], dim=1) + self.position_embedding(images)
        return self.pos_drop(x)

    def encode(self, x: Tensor) -> Tensor:
        """The blocks: (B, L, D) -> (B, L, D)."""
        for block in self.blocks:
            x = block(x)
        return x

    def position_embedding(self, images: Tensor) -> Tensor:
        """What is added for these images: (1, L, D), or (1, N, D) where only patches have positions."""
        height, width = images.shape[-2:]
        grid = (height // self.patch, width // self.patch)
        if self.positions == "bicubic":
            N = self.grid[0] * self.grid[1]
            first, patches = self.pos_embed.split([self.pos_embed.shape[1] - N, N], dim=1)
            return torch.cat([first, resize_position_grid(patches, self.grid, grid)], dim=1)
        if grid != self.grid:
            own = (self.grid[0] * self.patch, self.grid[1] * self.patch)
            raise ImageSizeError(
                f"Image size {format_image_size((height, width))} does not fit this model, which was built for "
                f"{format_image_size(own)}: its positions are learned for one grid. Build it with image_size=..."
            )
        return self.pos_embed


def make_head(kind: str, width: int, num_classes: int) -> nn.Module:
    """CLS (B, D) to logits (B, K): ``linear``, or ``tanh`` for Linear(D, D), Tanh, Linear(D, K). The last layer is left
    out for 0 classes.
    """
    last = nn.Linear(width, num_classes) if num_classes else nn.Identity()
    if kind == "linear":
        return last
    return nn.Sequential(OrderedDict(fc1=nn.Linear(width, width), act=nn.Tanh(), fc2=last))

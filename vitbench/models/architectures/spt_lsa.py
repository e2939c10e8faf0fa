"""Shifted patch tokenisation and locality self-attention (Lee et al., 2021, arXiv:2112.13492), in three forms.

Both are for small data sets: a patch sees half of its neighbours, and attention is made sharper. What differs:

- The paper (``vit_small_spt_lsa_paper``): the image and its four diagonal shifts by half a patch, in patches through
  LayerNorm(5 C P^2) and Linear; a learned scale a head, and no token attends to itself, CLS included.
- ViT_Code_Replication's small one (``vit_small_spt_lsa``): the same shifts through one convolution without LayerNorm;
  a learned scale a head that starts at d^-1/2; only a patch is kept from attending to itself.
- Its tiny ones (``vit_tiny16_*spt*``, ``*lsa``): the convolution, then the LayerNorm of the patch embedding; logits
  ``(q d^-1/2 k^T + bias) / softplus(t)`` with ``t`` a head that starts at 0 and a table of 2D relative positions
  between patches ((2 G - 1)^2 entries a head for a G x G grid, 0 where CLS is part), then the mask of the small one.

The replication does not say how the tables start (here: truncated normal of std 0.02), what comes in where an image
is shifted out (here zeros, as in the paper's code), or in which order the shifts stand (here the paper's). The paper's
form keeps the biases of q, k and v that the replication has.

Shapes: B images, C channels, N patches, L tokens (N + 1), D width, h heads, d = D / h.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.models.architectures.blocks import PatchEmbedding
from vitbench.models.architectures.vit import VisionTransformer

#: The image itself and four shifts.
COPIES = 5

Tokenisation = Literal["patches", "shifted", "shifted_norm"]
Locality = Literal["none", "scale", "scale_all", "temperature"]


class ShiftedPatchEmbedding(PatchEmbedding):
    """(B, C, H, W) -> (B, N, D): one convolution over the image and its shifts, which are channels."""

    def __init__(self, patch: int, width: int, channels: int = 3, norm_eps: float | None = None) -> None:
        super().__init__(patch, width, COPIES * channels, norm_eps)
        self.shift = patch // 2

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(with_diagonal_shifts(images, self.shift))


class NormedShiftedPatchEmbedding(nn.Module):
    """(B, C, H, W) -> (B, N, D) as in the paper's equation 5: patches of all copies, LayerNorm, Linear."""

    def __init__(self, patch: int, width: int, channels: int = 3, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.patch = patch
        numbers = COPIES * channels * patch**2
        self.norm = nn.LayerNorm(numbers, eps=norm_eps)
        self.proj = nn.Linear(numbers, width)

    def forward(self, images: Tensor) -> Tensor:
        B = images.shape[0]
        P = self.patch
        x = with_diagonal_shifts(images, P // 2)  # (B, 5C, H, W)
        rows, columns = x.shape[-2] // P, x.shape[-1] // P
        x = x[:, :, : rows * P, : columns * P].reshape(B, -1, rows, P, columns, P)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(B, rows * columns, -1)  # (B, N, 5 C P^2)
        return self.proj(self.norm(x))


def with_diagonal_shifts(images: Tensor, shift: int) -> Tensor:
    """The images, then moved left-up, right-up, left-down, right-down by ``shift`` px, zeros behind (B, 5C, H, W)."""
    H, W = images.shape[-2:]
    padded = F.pad(images, (shift, shift, shift, shift))
    corners = ((2 * shift, 2 * shift), (2 * shift, 0), (0, 2 * shift), (0, 0))  # (top, left) of what is cut out
    return torch.cat([images, *(padded[..., top : top + H, left : left + W] for top, left in corners)], dim=1)


class LocalitySelfAttention(nn.Module):
    """(B, L, D) -> (B, L, D), L = 1 + grid of patches; ``fused_attn`` as in blocks.Attention.

    ``form``: ``scale`` and ``scale_all`` learn a scale a head, ``temperature`` has softplus(t) and a table of relative
    positions. All mask the diagonal, ``scale_all`` that of CLS, too.
    """

    relative_index: Tensor

    def __init__(self, width: int, heads: int, form: Locality, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.fused_attn = True
        self.mask_cls = form == "scale_all"
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.scale: nn.Parameter | None = None
        self.temperature: nn.Parameter | None = None
        if form != "temperature":
            self.scale = nn.Parameter(torch.full((heads,), (width // heads) ** -0.5))
            return
        if grid is None:
            raise ValueError("relative positions need a grid")
        self.temperature = nn.Parameter(torch.zeros(heads))
        self.relative_positions = nn.Parameter(torch.empty((2 * grid[0] - 1) * (2 * grid[1] - 1), heads))
        nn.init.trunc_normal_(self.relative_positions, std=0.02)
        self.register_buffer("relative_index", relative_index(grid), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        B, L, D = x.shape
        d = D // self.heads
        q, k, v = self.qkv(x).view(B, L, 3, self.heads, d).permute(2, 0, 3, 1, 4).unbind(0)  # each (B, h, L, d)
        scale, mask = self._scale_and_mask(L, x)
        q = q * scale.view(-1, 1, 1).to(q.dtype)
        mask = mask.to(q.dtype)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        else:
            x = (q @ k.transpose(-2, -1) + mask).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, L, D))

    def _scale_and_mask(self, L: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """What q is multiplied by (h,), and what is added to the logits: (1 or h, L, L)."""
        diagonal = torch.zeros(1, L, L, device=x.device, dtype=x.dtype)
        diagonal.diagonal(dim1=1, dim2=2)[:, 0 if self.mask_cls else 1 :] = float("-inf")
        if self.scale is not None:
            return self.scale, diagonal
        assert self.temperature is not None
        sharpness = 1 / F.softplus(self.temperature)
        between = self.relative_positions[self.relative_index].permute(2, 0, 1)  # (N, N, h) -> (h, N, N)
        bias = F.pad(between, (1, 0, 1, 0)) * sharpness.view(-1, 1, 1)
        return sharpness * (self.proj.in_features // self.heads) ** -0.5, bias + diagonal


def relative_index(grid: tuple[int, int]) -> Tensor:
    """Which row of the table each pair of patches has: (N, N), one for each (rows apart, columns apart)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()])  # (2, N)
    apart = places[:, :, None] - places[:, None, :]  # (2, N, N)
    return (apart[0] + grid[0] - 1) * (2 * grid[1] - 1) + apart[1] + grid[1] - 1


def build_spt_lsa_vit(
    *,
    image_size: tuple[int, int],
    patch: int,
    width: int,
    heads: int,
    norm_eps: float,
    tokenisation: Tokenisation,
    locality: Locality,
    embedding_norm: bool = False,
    **vit: Any,
) -> nn.Module:
    """A plain ViT with another tokenisation, another attention, or both; further arguments are VisionTransformer's."""
    grid = (image_size[0] // patch, image_size[1] // patch)

    def make_embedding() -> nn.Module:
        if tokenisation == "shifted_norm":
            return NormedShiftedPatchEmbedding(patch, width, norm_eps=norm_eps)
        kind = ShiftedPatchEmbedding if tokenisation == "shifted" else PatchEmbedding
        return kind(patch, width, norm_eps=norm_eps if embedding_norm else None)

    return VisionTransformer(
        image_size=image_size,
        patch=patch,
        width=width,
        heads=heads,
        norm_eps=norm_eps,
        make_embedding=make_embedding,
        make_attention=None if locality == "none" else lambda: LocalitySelfAttention(width, heads, locality, grid),
        **vit,
    )

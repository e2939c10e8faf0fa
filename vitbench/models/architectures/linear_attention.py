"""Linear attention with a ReLU kernel, as the "lightweight" ViT of the CIFAR-ViT project has it.

``q (k^T v) / (q . sum(k) + 1e-8)`` with q and k through ReLU; the idea is from Katharopoulos et al., 2020
(arXiv:2006.16236), whose kernel is elu + 1. It costs L D (2 d + 1) multiply-adds instead of 2 L^2 D, and so saves only
where there are more tokens L than a head is wide (d). At 32 px in patches of 4 that is 65 against 64: next to nothing.

Shapes: B images, L tokens, D width, h heads, d = D / h.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.models.architectures.vit import VisionTransformer


class ReLULinearAttention(nn.Module):
    """(B, L, D) -> (B, L, D) in time linear in L. There are no attention weights, hence no dropout on them."""

    def __init__(self, width: int, heads: int, *, projection_dropout: float = 0.0, eps: float = 1e-8) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.eps = eps
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(projection_dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, L, D = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = F.relu(qkv[0]), F.relu(qkv[1]), qkv[2]  # (B, h, L, d)
        context = k.transpose(-2, -1) @ v  # (B, h, d, d)
        normaliser = q @ k.sum(dim=-2).unsqueeze(-1)  # (B, h, L, d) @ (B, h, d, 1) -> (B, h, L, 1)
        # 1e-8 is 0 in fp16: its smallest normal number instead, or a query without a positive entry would give 0 / 0
        eps = max(self.eps, torch.finfo(normaliser.dtype).tiny)
        x = (q @ context) / (normaliser + eps)
        x = x.transpose(1, 2).reshape(B, L, D)
        return self.proj_drop(self.proj(x))


def build_linear_attention_vit(*, width: int, heads: int, projection_dropout: float = 0.0, **vit: Any) -> nn.Module:
    """A plain ViT with ReLU linear attention in every block; further arguments are VisionTransformer's."""
    return VisionTransformer(
        width=width,
        heads=heads,
        make_attention=lambda: ReLULinearAttention(width, heads, projection_dropout=projection_dropout),
        **vit,
    )

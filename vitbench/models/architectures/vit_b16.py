"""ViT-B/16 as two projects use it: torchvision's, with another head, and one written from the paper.

- ``vit_b16_finetune`` ("ViT reproduction"): torchvision's ``vit_b_16`` with a head for other classes, all of it
  trained.
- ``vit_b16_transfer`` ("Paper replicating"): the same with all weights frozen and ``heads`` a single new Linear, which
  alone is trained.
- ``vit_b16_scratch`` ("Paper replicating"): ``nn.MultiheadAttention``, and in each block a LayerNorm that nothing
  calls: 18,432 parameters that never receive a gradient. It is kept, because it is in the published count. The
  original's initialisation is not published: here torch's default, CLS and positions from a normal of std 1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitbench.models.architectures.vit import VisionTransformer, make_head
from vitbench.models.zoo import build_torchvision

ARCHITECTURE = "vit_b_16"
WIDTH = 768


def build_finetune(*, image_size: tuple[int, int], num_classes: int, pretrained: bool = False) -> nn.Module:
    """torchvision's vit_b_16 with a fresh Linear as its head; with ``pretrained`` all but the head is loaded."""
    model: Any = build_torchvision(
        architecture=ARCHITECTURE, image_size=image_size, num_classes=num_classes, pretrained=pretrained
    )
    # torchvision's own starts at 0, and passes no gradient on
    model.heads.head = make_head("linear", WIDTH, num_classes)
    return model


def build_transfer(*, image_size: tuple[int, int], num_classes: int, pretrained: bool = False) -> nn.Module:
    """torchvision's vit_b_16, frozen, with one Linear as its ``heads``; without ``pretrained`` the frozen part is
    random, which is of use for measuring only.
    """
    model = build_finetune(image_size=image_size, num_classes=num_classes, pretrained=pretrained)
    model.requires_grad_(False)
    model.heads = make_head("linear", WIDTH, num_classes)
    return model


class MultiheadAttention(nn.Module):
    """(B, L, D) -> (B, L, D) through ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return output


def build_scratch(*, width: int, heads: int, norm_eps: float, **vit: Any) -> nn.Module:
    """A plain ViT around MultiheadAttention, with an unused LayerNorm in each block; further arguments are
    VisionTransformer's.
    """
    model = VisionTransformer(
        width=width, heads=heads, norm_eps=norm_eps, make_attention=lambda: MultiheadAttention(width, heads), **vit
    )
    for block in model.blocks:
        block.unused_norm = nn.LayerNorm(width, eps=norm_eps)
    return model

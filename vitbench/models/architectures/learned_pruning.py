"""DynamicViT (Rao et al., 2021, arXiv:2106.02034): before some blocks a small network says which patches to keep.

Unlike the scores of dynamic_vit.py these are trained: in training nothing is dropped, a patch is hidden from attention
by a sampled mask that lets gradients through. In evaluation the best patches stay and the others are really gone.

Differs from the paper:

- Of its losses, those that need a teacher (distillation of the patches' features, KL divergence of the classes) are
  left out, and the original starts from the weights of a trained DeiT. ``auxiliary_loss`` is the loss of the ratio.

Differs from the authors' code (github.com/raoyongming/DynamicViT, whose names of the parameters stand here):

- The patches that stay keep their old order; theirs are sorted by score. No logits differ, because patches carry their
  positions with them.
- Masked attention is equation 11 as printed; theirs adds 1e-6 to numerator and denominator for stable training. Here
  the largest visible score is subtracted, and exponents of hidden ones are cut at 14 (their 1e-6 is about exp(-14)).
- Where sampling has dropped all patches of an image, their mean is 0; theirs is 0 / 0.

Shapes: B images, N patches of the image, n patches that remain, L = n + 1 tokens, D width, h heads, S stages.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.models.architectures.blocks import Attention, Block, truncated_normal_init
from vitbench.models.architectures.dynamic_vit import keep_best_patches
from vitbench.models.architectures.vit import VisionTransformer

RATIO_WEIGHT = 2.0  # lambda_ratio
LARGEST_EXPONENT = 14.0  # bounds the gradient of a hidden patch's mask at exp(14) = 1.2e6
KEEP = 0  # of a predictor's two outputs, as in the authors' code; the paper has them the other way round


class KeepPredictor(nn.Module):
    """Equations 1 to 5: half of a patch's features are its own, half are the mean of all patches that remain.

    LayerNorm's eps is torch's default whatever the blocks have, as in the authors' code.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # names and numbers as in the authors' code, whose state dicts load unchanged
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, patches: Tensor, kept: Tensor | None = None) -> Tensor:
        """Log-probabilities to keep and to drop: (B, n, D) and a mask (B, n), None for all, to (B, n, 2)."""
        x = self.in_conv(patches)
        D = x.shape[-1]
        own, shared = x.split([D // 2, D - D // 2], dim=-1)
        if kept is None:
            mean = shared.mean(dim=1, keepdim=True)  # (B, 1, D / 2)
        else:
            weights = kept.unsqueeze(-1)  # (B, n, 1)
            # 0.5 is below any count but 0, where it makes 0 of what would be 0 / 0
            mean = (shared * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp(min=0.5)
        return self.out_conv(torch.cat([own, mean.to(own.dtype).expand_as(shared)], dim=-1))


class DynamicViT(VisionTransformer):
    """A plain ViT that learns to drop patches; further arguments are VisionTransformer's.

    Args:
        keep: rho, the base keeping ratio: behind stage s (from 1) ``int(N * keep**s)`` of the N patches remain.
        stages: the blocks, from 0 and rising, before which patches are dropped.

    Raises:
        ValueError: ``keep`` is no ratio, ``stages`` are no rising blocks of the model, or what is given does not go
            with pruning: ``distilled``, whose second token would be taken for a patch, and ``separate_qkv`` and
            ``make_attention``, which masked attention does not know.
    """

    def __init__(self, *, keep: float, stages: tuple[int, ...] | list[int], width: int, depth: int, **vit: Any) -> None:
        super().__init__(width=width, depth=depth, **vit)
        if not 0 < keep <= 1:
            raise ValueError(f"keep={keep} is no ratio of patches: give a number above 0 and up to 1")
        if not stages or list(stages) != sorted(set(stages)) or not 0 <= stages[0] <= stages[-1] < depth:
            raise ValueError(f"stages={stages} are no rising blocks of a model that has blocks 0 to {depth - 1}")
        if vit.get("distilled"):
            raise ValueError("DynamicViT takes every token behind CLS for a patch: it has no distillation token")
        attentions = [cast(Block, block).attn for block in self.blocks]
        if any(not isinstance(attention, Attention) or attention.separate_qkv for attention in attentions):
            raise ValueError("DynamicViT masks softmax attention with one layer for q, k and v, and no other")
        self.keep = keep
        self.stages = tuple(stages)
        self.score_predictor = nn.ModuleList(KeepPredictor(width) for _ in stages)
        self.score_predictor.apply(truncated_normal_init)
        self._ratio_loss: Tensor | None = None

    def auxiliary_loss(self) -> Tensor | None:
        """The weighted ratio loss of the last forward pass, to be added to that of the classes; None in evaluation.

        It shares the graph of that pass: add the two before ``backward``.
        """
        return self._ratio_loss if self.training else None

    def encode(self, x: Tensor) -> Tensor:
        """The blocks, with all patches in training and fewer in evaluation: (B, 1 + N, D) -> (B, 1 + n, D)."""
        if self.training:
            return self._encode_with_masks(x)
        self._ratio_loss = None
        N = x.shape[1] - 1
        for index, block in enumerate(self.blocks):
            if index in self.stages:
                stage = self.stages.index(index)
                scores = self.score_predictor[stage](x[:, 1:])[..., KEEP]  # (B, n)
                x = keep_best_patches(x, scores, kept_patches(N, self.keep, stage + 1))
            x = block(x)
        return x

    def _encode_with_masks(self, x: Tensor) -> Tensor:
        masks: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if index in self.stages:
                kept = masks[-1] if masks else None
                decision = sample_decision(self.score_predictor[len(masks)](x[:, 1:], kept))  # (B, N)
                masks.append(decision if kept is None else decision * kept)
            x = masked_block(cast(Block, block), x, F.pad(masks[-1], (1, 0), value=1.0)) if masks else block(x)
        self._ratio_loss = RATIO_WEIGHT * ratio_loss(masks, self.keep)
        return x

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are without the last loss: a tensor inside a graph can be neither copied nor pickled."""
        return {**self.__dict__, "_ratio_loss": None}


def kept_patches(patches: int, keep: float, stage: int) -> int:
    """How many of an image's patches remain behind ``stage`` (from 1), rounding errors as in the authors' code."""
    return int(patches * keep**stage)


def sample_decision(log_probabilities: Tensor) -> Tensor:
    """1 to keep and 0 to drop, drawn with the gradient of the soft decision: (B, n, 2) -> (B, n).

    Straight-through Gumbel-softmax (Jang et al., 2017, arXiv:1611.01144) of temperature 1, in float32 or better: in
    half precision the noise can be infinite for both.
    """
    exact = log_probabilities.to(torch.promote_types(log_probabilities.dtype, torch.float32))
    return F.gumbel_softmax(exact, hard=True)[..., KEEP]


def ratio_loss(masks: list[Tensor], keep: float) -> Tensor:
    """L_ratio: mean over images and stages of (keep^s - kept fraction)^2, from the masks (B, N) of all stages."""
    return torch.stack([(mask.mean(dim=1) - keep**s).square().mean() for s, mask in enumerate(masks, 1)]).mean()


def masked_block(block: Block, x: Tensor, kept: Tensor) -> Tensor:
    """Block.forward with masked attention: (B, L, D) and (B, L) to (B, L, D)."""
    x = x + block.drop_path1(masked_attention(cast(Attention, block.attn), block.norm1(x), kept))
    return x + block.drop_path2(block.mlp(block.norm2(x)))


def masked_attention(attn: Attention, x: Tensor, kept: Tensor) -> Tensor:
    """Equations 10 and 11: ``attn`` where a dropped token is seen by itself alone. (B, L, D), (B, L) -> (B, L, D).

    ``kept`` is 1 or 0 and has a gradient, also where it is 0. The softmax has its precision, float32 or better.
    """
    B, L, D = x.shape
    q, k, v = attn.qkv(x).view(B, L, 3, attn.heads, D // attn.heads).permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, L, d)
    scores = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).to(kept.dtype)  # (B, h, L, L)
    seen = kept[:, None, None, :]
    visible = seen + (1 - seen) * torch.eye(L, dtype=kept.dtype, device=kept.device)  # (B, 1, L, L)
    # The largest visible score, not the largest: that of a hidden token could push all others below the smallest float.
    largest = scores.detach().masked_fill(visible == 0, -torch.inf).amax(dim=-1, keepdim=True)
    weights = (scores - largest).clamp(max=LARGEST_EXPONENT).exp() * visible
    weights = weights / weights.sum(dim=-1, keepdim=True)
    x = attn.attn_drop(weights.to(v.dtype)) @ v
    return attn.proj_drop(attn.proj(x.transpose(1, 2).reshape(B, L, D)))

"""Token pruning by scores that nothing trains: the "dynamic" ViT of the CIFAR-ViT project, as it is.

Each block has a Linear(D, 1) that scores patch tokens; after blocks 0 to depth - 2 the best of those that remain are
kept. Which ones are kept has no gradient, so the scores stay as they were initialised. The original prunes neither in
training nor in its validation and its FLOP and timing scripts: what it publishes is the dense variant. Here
``prune=False`` is that one, and ``prune=True`` prunes in evaluation (training is dense, as in the original). The method
that learns what to drop is DynamicViT (Rao et al., 2021, arXiv:2106.02034), which this is not.

Shapes: B images, n patch tokens that remain, L = n + 1 tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitbench.models.architectures.blocks import truncated_normal_init
from vitbench.models.architectures.vit import VisionTransformer


class ScorePrunedViT(VisionTransformer):
    """A plain ViT whose blocks score their tokens; further arguments are VisionTransformer's.

    Args:
        prune: whether evaluation drops tokens. The score layers exist in any case.
    """

    def __init__(self, *, prune: bool, width: int, depth: int, **vit: Any) -> None:
        super().__init__(width=width, depth=depth, **vit)
        self.prune = prune
        self.scores = nn.ModuleList(nn.Linear(width, 1) for _ in range(depth))  # the last one is never called
        self.scores.apply(truncated_normal_init)

    def encode(self, x: Tensor) -> Tensor:
        """The blocks, with fewer and fewer tokens where it prunes: (B, 1 + N, D) -> (B, 1 + n, D)."""
        if not self.prune or self.training:
            return super().encode(x)
        last = len(self.blocks) - 1
        for index, (block, score) in enumerate(zip(self.blocks, self.scores, strict=True)):
            x = block(x)
            if index < last:
                scores = score(x[:, 1:]).squeeze(-1)  # (B, n)
                x = keep_best_patches(x, scores, kept_patches(scores.shape[1], index))
        return x


def kept_patches(remaining: int, block: int) -> int:
    """How many of ``remaining`` patch tokens stay after ``block``: 100 % after block 0, then 90, 80, ..., 50 %."""
    return int(remaining * max(0.5, 1 - 0.1 * block))


def keep_best_patches(x: Tensor, scores: Tensor, keep: int) -> Tensor:
    """CLS and the ``keep`` best-scored patches in their old order: (B, 1 + n, D), (B, n) -> (B, 1 + keep, D)."""
    patches = x[:, 1:]
    if keep == patches.shape[1]:
        return x
    best = scores.topk(keep, dim=1).indices.sort(dim=1).values  # (B, keep)
    patches = patches.gather(1, best.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    return torch.cat([x[:, :1], patches], dim=1)

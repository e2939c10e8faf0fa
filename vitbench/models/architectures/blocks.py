"""The parts that plain Vision Transformers are made of (Dosovitskiy et al., 2021, arXiv:2010.11929).

Shapes: B images, C channels, H x W pixels, P patch side, N tokens, D width, h heads, d = D / h, M hidden width of the
MLP.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``: a cheap approximation of GELU (Hendrycks & Gimpel, 2016, arXiv:1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
}


class StochasticDepth(nn.Module):
    """Drop a residual branch for whole images in training (Huang et al., 2016, arXiv:1603.09382).

    What survives is scaled by ``1 / (1 - rate)``, so that the expectation stays and evaluation changes nothing.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        survives = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1.0 - self.rate)
        return x * survives.div_(1.0 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class PatchEmbedding(nn.Module):
    """Non-overlapping patches through one linear map (a convolution whose stride is its kernel).

    Pixels right and below that do not fill a patch are not seen. ``norm_eps``: a LayerNorm of that eps follows.
    """

    def __init__(self, patch: int, width: int, channels: int = 3, norm_eps: float | None = None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(width, eps=norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        x = self.proj(images).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, D, H/P, W/P) -> (B, N, D)
        return self.norm(x)


class Attention(nn.Module):
    """Multi-head softmax self-attention with biases and an output projection: (B, N, D) -> (B, N, D).

    ``fused_attn`` chooses torch's fused kernel (default) or matrix product, softmax, matrix product.
    ``separate_qkv`` makes three layers of what is one: the same parameters and results, other kernels and keys.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        separate_qkv: bool = False,
        attention_dropout: float = 0.0,
        projection_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.fused_attn = True
        self.separate_qkv = separate_qkv
        if separate_qkv:
            self.q = nn.Linear(width, width)
            self.k = nn.Linear(width, width)
            self.v = nn.Linear(width, width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Dropout(attention_dropout)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(projection_dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        d = D // self.heads
        if self.separate_qkv:
            q, k, v = (layer(x).view(B, N, self.heads, d).transpose(1, 2) for layer in (self.q, self.k, self.v))
        else:
            q, k, v = self.qkv(x).view(B, N, 3, self.heads, d).permute(2, 0, 3, 1, 4).unbind(0)  # each (B, h, N, d)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            weights = (q * d**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1)  # (B, h, N, N)
            x = self.attn_drop(weights) @ v
        x = x.transpose(1, 2).reshape(B, N, D)
        return self.proj_drop(self.proj(x))


class MLP(nn.Module):
    """Linear, activation, Linear on each token: (B, N, D) -> (B, N, M) -> (B, N, D)."""

    def __init__(
        self, width: int, hidden: int, *, activation: str, hidden_dropout: float = 0.0, output_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACTIVATIONS[activation]()
        self.drop1 = nn.Dropout(hidden_dropout)
        self.fc2 = nn.Linear(hidden, width)
        self.drop2 = nn.Dropout(output_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class Block(nn.Module):
    """A pre-norm transformer block around any attention and MLP that map (B, N, D) to (B, N, D)."""

    def __init__(
        self, width: int, attention: nn.Module, mlp: nn.Module, *, norm_eps: float, stochastic_depth: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = attention
        self.drop_path1 = StochasticDepth(stochastic_depth)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = mlp
        self.drop_path2 = StochasticDepth(stochastic_depth)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


def resize_position_grid(
    positions: Tensor, old: tuple[int, int], new: tuple[int, int], *, align_corners: bool = False
) -> Tensor:
    """Position embeddings of one grid of patches at another: (1, old_h * old_w, D) -> (1, new_h * new_w, D).

    Bicubic (a = -0.75) between patch centres, or between corners with ``align_corners``, without antialiasing when it
    shrinks, in float32 (float64 stays). The same grid comes back untouched.
    """
    if old == new:
        return positions
    D = positions.shape[-1]
    exact = positions.to(torch.promote_types(positions.dtype, torch.float32))
    grid = exact.view(1, *old, D).permute(0, 3, 1, 2)  # (1, D, old_h, old_w)
    grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=align_corners, antialias=False)
    return grid.flatten(2).transpose(1, 2).to(positions.dtype)


def truncated_normal_init(module: nn.Module) -> None:
    """Weights of linear and convolution layers from a normal of std 0.02 cut at +-2, biases 0; for ``Module.apply``."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

"""Builders of models whose work depends on the numbers in the picture; ``kept`` tells how much, for closed forms.

Each is called as ``(*, image_size, num_classes)``. None of them runs on ``meta``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

WIDTH, HEADS, PATCH, LAYERS = 16, 2, 8, 4


class Layer(nn.Module):
    """Attention through torch's fused function, and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        B, L, D = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.attend(q, k, v).transpose(1, 2).reshape(B, L, D)
        out: Tensor = self.proj(x)
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class FusedLayer(Layer):
    """Insists on the CPU's fused kernel."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v)


def layer_flops(tokens: int) -> int:
    """Four products with weights and two of attention."""
    return 2 * tokens * WIDTH * 4 * WIDTH + 2 * 2 * tokens**2 * WIDTH


class KeepsLongTokens(nn.Module):
    """Patches whose norm is above ``threshold``, behind CLS, through ``LAYERS`` layers."""

    threshold = 2.3

    def __init__(self, num_classes: int, layer: type[nn.Module] = Layer) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls = nn.Parameter(torch.ones(1, 1, WIDTH))
        self.layers = nn.Sequential(*(layer() for _ in range(LAYERS)))
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)  # (1, N, D)
        x = torch.cat([self.cls, x[x.norm(dim=-1) > self.threshold][None]], dim=1)  # (1, 1 + kept, D)
        logits: Tensor = self.head(self.layers(x)[:, 0])
        return logits

    def kept(self, image: Tensor) -> int:
        return int((self.embed(image).flatten(2).norm(dim=1) > self.threshold).sum())

    def closed_form(self, image: Tensor) -> int:
        """FLOPs of one image (1, 3, H, W)."""
        patches = (image.shape[2] // PATCH) * (image.shape[3] // PATCH)
        embed = 2 * patches * 3 * PATCH**2 * WIDTH
        return embed + LAYERS * layer_flops(1 + self.kept(image)) + 2 * WIDTH * self.head.out_features


class LeavesEarly(KeepsLongTokens):
    """All patches; ends after as many layers as a number in the picture says, or never where that is below 1."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        for done, layer in enumerate(self.layers, 1):
            x = layer(x)
            if done == self.kept(images):
                break
        logits: Tensor = self.head(x[:, 0])
        return logits

    def kept(self, image: Tensor) -> int:
        return int(1.5 + 2 * image[0, 0, 0, 0].item())

    def closed_form(self, image: Tensor) -> int:
        patches = (image.shape[2] // PATCH) * (image.shape[3] // PATCH)
        layers = self.kept(image) if 1 <= self.kept(image) <= LAYERS else LAYERS
        return 2 * patches * 3 * PATCH**2 * WIDTH + layers * layer_flops(patches) + 2 * WIDTH * self.head.out_features


class TokensHalt(KeepsLongTokens):
    """As adaptive tokens do: each layer sees the tokens that are still above the threshold of that layer."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        seen = []
        for step, layer in enumerate(self.layers):
            running = x.norm(dim=-1) > 0.3 * step
            if not running.any():
                break
            seen.append(int(running.sum()))
            x = layer(x[:, running[0]])
        self.seen = seen
        logits: Tensor = self.head(x.mean(dim=1))
        return logits

    def closed_form(self, image: Tensor) -> int:
        self.forward(image)
        patches = (image.shape[2] // PATCH) * (image.shape[3] // PATCH)
        inside = sum(layer_flops(tokens) for tokens in self.seen)
        return 2 * patches * 3 * PATCH**2 * WIDTH + inside + 2 * WIDTH * self.head.out_features


class OwnEncoder(KeepsLongTokens):
    """The layers are torch's own encoder, which has a fast path, and a recurrent one, which oneDNN has a kernel for."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True)
        self.layers = nn.Sequential(nn.TransformerEncoder(layer, LAYERS), Recurrent())

    def closed_form(self, image: Tensor) -> int:
        patches = (image.shape[2] // PATCH) * (image.shape[3] // PATCH)
        L = 1 + self.kept(image)
        encoder = LAYERS * (2 * L * WIDTH * (4 + 2 * 2) * WIDTH + 2 * 2 * L**2 * WIDTH)
        recurrent = 2 * L * 2 * 4 * WIDTH * WIDTH
        return 2 * patches * 3 * PATCH**2 * WIDTH + encoder + recurrent + 2 * WIDTH * self.head.out_features


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x)[0]
        return out


class DenseInTraining(KeepsLongTokens):
    """Keeps every patch in training, as pruning by masks does."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        x = self.embed(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.layers(x).mean(dim=1))
        return logits


class Broken(KeepsLongTokens):
    """Fails wherever it runs, for a reason of its own."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


class BrokenBehind(KeepsLongTokens):
    """Needs values, and fails behind that."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) @ images[0, 0, :3, :3]


def keeps_long_tokens(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return KeepsLongTokens(num_classes)


def insists_on_fused(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return KeepsLongTokens(num_classes, FusedLayer)


def leaves_early(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return LeavesEarly(num_classes)


def tokens_halt(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return TokensHalt(num_classes)


def own_encoder(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return OwnEncoder(num_classes)


def dense_in_training(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return DenseInTraining(num_classes)


def broken(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return Broken(num_classes)


def broken_behind(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return BrokenBehind(num_classes)

"""Our ViT against timm's and torchvision's of the same shape, with the same weights, taken in turns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn

from benchmarks.conftest import paired_ratio
from vitbench.models.architectures.vit import VisionTransformer

#: name -> (width, depth, heads, patch, image size, batch)
SHAPES = {
    "ViT-Ti/16 at 224 px, batch 1": (192, 12, 3, 16, 224, 1),
    "ViT-Ti/16 at 224 px, batch 8": (192, 12, 3, 16, 224, 8),
    "cifar_vit_tiny's shape at 32 px, batch 32": (192, 12, 3, 4, 32, 32),
}
PAIRS = 40


def ours(width: int, depth: int, heads: int, patch: int, size: int) -> nn.Module:
    return VisionTransformer(
        image_size=(size, size), num_classes=10, patch=patch, width=width, depth=depth, heads=heads, mlp_width=4 * width
    )


def timms(width: int, depth: int, heads: int, patch: int, size: int) -> nn.Module:
    return timm.models.vision_transformer.VisionTransformer(
        img_size=size, patch_size=patch, num_classes=10, embed_dim=width, depth=depth, num_heads=heads
    )


def torchvisions(width: int, depth: int, heads: int, patch: int, size: int) -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=size,
        patch_size=patch,
        num_layers=depth,
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=10,
    )


def forward(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    model.eval()

    def call() -> object:
        with torch.inference_mode():
            return model(images)

    return call


def step(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    model.train()
    labels = torch.zeros(len(images), dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def call() -> object:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        return optimizer.step()

    return call


@pytest.mark.parametrize("theirs", [timms, torchvisions])
@pytest.mark.parametrize("what", [forward, step])
@pytest.mark.parametrize("shape", SHAPES)
def test_our_vit_is_no_slower(
    say: Callable[[str], None], shape: str, what: Callable[..., Callable[[], object]], theirs: Callable[..., nn.Module]
) -> None:
    torch.set_num_threads(1)
    *dimensions, batch = SHAPES[shape]
    images = torch.randn(batch, 3, dimensions[-1], dimensions[-1])
    a, b = what(ours(*dimensions), images), what(theirs(*dimensions), images)
    for _ in range(3):
        a(), b()
    pairs = PAIRS if batch == 1 else PAIRS // 4
    ratio, low, high = paired_ratio(a, b, pairs)
    say(f"{what.__name__}, {shape}: ours / {theirs.__name__.removesuffix('s')}: {ratio:.3f} ({low:.3f} to {high:.3f})")
    assert low < 1.05

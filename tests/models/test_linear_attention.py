"""ReLU linear attention: when it saves anything, and numbers at the edge."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vitbench.analysis.closed_form import closed_form
from vitbench.models.architectures.linear_attention import ReLULinearAttention
from vitbench.models.cards import model_registry


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_queries_without_a_positive_entry_give_no_nan(dtype: torch.dtype) -> None:
    layer = ReLULinearAttention(16, 2).to(dtype)
    with torch.no_grad():
        layer.qkv.weight[:16] = 0.0
        layer.qkv.bias[:16] = -1.0
    out = layer(torch.randn(2, 5, 16).to(dtype))
    torch.testing.assert_close(out, layer.proj.bias.expand(2, 5, 16))


def test_multiply_adds_grow_linearly_with_tokens_and_break_even_near_the_head_width() -> None:
    linear = model_registry().get("cifar_lightweight_vit")
    softmax = dataclasses.replace(linear, builder="vitbench.models.architectures.vit:VisionTransformer")

    def saved(side: int) -> int:
        return closed_form(softmax, (side, side), 10).macs - closed_form(linear, (side, side), 10).macs

    # a head is 64 wide: 65 tokens (32 px) save 2 * 65 * 384 a block, less the normaliser's 65 * 384
    assert saved(32) == 6 * 65 * 384
    assert saved(28) < 0 < saved(64)

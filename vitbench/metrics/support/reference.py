"""The reference: a layer of a transformer that never changes, which every timed cell takes turns with.

Speed drifts by a factor of 1.3 to 1.75 within minutes on shared machines; a time divided by that of a fixed piece of
work done a tenth of a second before and after it does not. So this file is frozen. It imports nothing of the package,
uses torch's public functions alone, and whoever changes what it computes raises ``VERSION``: relative latencies of
two versions, two builds of torch or two thread counts are not comparable.

What a step computes, version 1: one pre-norm encoder layer (Vaswani et al. 2017, Eq. 1 and 2; GELU) on 65 tokens of
width 192 with 3 heads and a hidden width of 768, fp32, no gradients: 60,752,640 FLOPs of matrix products an image, with
1.8 MB of weights. On a CPU it is one image; elsewhere 256, because less would time the launch of kernels on the host.
That is the width of ViT-Ti (Touvron et al. 2021, Table 1) at the length of 32 px in patches of 4 px. A step is short
against most models' calls, so that a call can be set against as many steps as last as long: what interrupts the one
interrupts the other. Four such layers in turn (7 MB) were tried: beside programs that fill the caches they slowed more
than small models do, and relative latencies of these moved by 4 to 7 % instead of 1 %.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

VERSION = 1

#: Images a step by type of device; 256 on all that are not named.
BATCH = {"cpu": 1, "meta": 1}
TOKENS, WIDTH, HEADS, HIDDEN = 65, 192, 3, 768
SEED = 20170612


def batch_of(device: torch.device | str) -> int:
    """The images of a step on ``device``."""
    return BATCH.get(torch.device(device).type, 256)


def make_reference(device: torch.device | str) -> Callable[[], torch.Tensor]:
    """A step as a function of nothing: (batch, TOKENS, WIDTH) on ``device``, without waiting for it."""
    generator = torch.Generator().manual_seed(SEED)

    def weight(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * shape[-1] ** -0.5).to(device)

    in_weight, out_weight = weight(3 * WIDTH, WIDTH), weight(WIDTH, WIDTH)
    up, down = weight(HIDDEN, WIDTH), weight(WIDTH, HIDDEN)
    batch = batch_of(device)
    tokens = weight(batch, TOKENS, WIDTH)
    split = (batch, TOKENS, 3, HEADS, WIDTH // HEADS)

    def step() -> torch.Tensor:
        with torch.inference_mode():
            h = F.linear(F.layer_norm(tokens, (WIDTH,)), in_weight)
            q, k, v = h.view(split).permute(2, 0, 3, 1, 4)  # each (batch, HEADS, TOKENS, WIDTH / HEADS)
            h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, TOKENS, WIDTH)
            x = tokens + F.linear(h, out_weight)
            return x + F.linear(F.gelu(F.linear(F.layer_norm(x, (WIDTH,)), up)), down)

    return step

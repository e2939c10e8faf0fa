"""From how many tokens on linear attention is faster than softmax attention here, fused and explicit, one thread.

``python -m benchmarks.attention_crossovers`` prints ``vitbench scale --crossover --measure`` of models that are a patch
embedding and six attention layers, nothing else: what is compared is attention. Some minutes; nothing else should run.
FLOPs are equal at L = d + 1/2 = 64.5 tokens for heads of width 64.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable

from torch import Tensor, nn

from vitbench.cli import run_command
from vitbench.models.architectures.blocks import Attention, PatchEmbedding
from vitbench.models.architectures.linear_attention import ReLULinearAttention

PATCH, DEPTH, HEAD = 4, 6, 64
WIDTHS = (192, 384)


class AttentionOnly(nn.Module):
    """Images (B, 3, H, W) to logits (B, K): patches, attention layers, the mean of the tokens, a head."""

    def __init__(self, make_attention: Callable[[int, int], nn.Module], width: int, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(PATCH, width)
        self.blocks = nn.ModuleList(make_attention(width, width // HEAD) for _ in range(DEPTH))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(dim=1))
        return logits


def build(
    make_attention: Callable[[int, int], nn.Module], width: int, *, image_size: tuple[int, int], num_classes: int
) -> nn.Module:
    """A model for any size."""
    return AttentionOnly(make_attention, width, num_classes)


softmax_192, softmax_384 = (functools.partial(build, Attention, width) for width in WIDTHS)
linear_192, linear_384 = (functools.partial(build, ReLULinearAttention, width) for width in WIDTHS)


def main() -> None:
    """Print a crossover for each width and kind of softmax attention."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-sizes", default="24:96", help="px; N is the square of a fourth of the side")
    parser.add_argument("--widths", type=int, nargs="+", choices=WIDTHS, default=WIDTHS)
    given = parser.parse_args()
    conditions = ["--crossover", "--measure", "--threads", "1", "--num-classes", "10", "--allow-import"]
    for width in given.widths:
        names = [f"module:benchmarks.attention_crossovers:{kind}_{width}" for kind in ("softmax", "linear")]
        for attention in ("fused", "explicit"):
            print(f"\nWidth {width}, {attention} softmax attention\n", flush=True)
            code = run_command(
                ["scale", *names, "--image-sizes", given.image_sizes, "--attention", attention, *conditions]
            )
            if code:
                sys.exit(code)


if __name__ == "__main__":
    main()

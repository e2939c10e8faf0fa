"""Two models that differ in attention only, built as ``(*, image_size, num_classes)``: cifar_lightweight_vit, and the
same with softmax attention; the small ones have two blocks.
"""

from __future__ import annotations

import functools

from vitbench.models.architectures.linear_attention import build_linear_attention_vit
from vitbench.models.architectures.vit import VisionTransformer

SIZES = {"patch": 4, "width": 384, "heads": 6, "mlp_width": 1152}

softmax = functools.partial(VisionTransformer, **SIZES, depth=6)
linear = functools.partial(build_linear_attention_vit, **SIZES, depth=6)
small_softmax = functools.partial(VisionTransformer, **SIZES, depth=2)
small_linear = functools.partial(build_linear_attention_vit, **SIZES, depth=2)

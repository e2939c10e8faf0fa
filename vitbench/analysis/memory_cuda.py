"""A model of CUDA for memory traces: which tensors its operators keep and allocate, on fake tensors of the CPU.

Not checked on a GPU. Four things differ from the CPU: fused attention (FlashAttention-2 in half precision,
memory-efficient attention otherwise), autocast in fp16 with more operators in fp32, dropout's mask of one byte, and
optimizers that update all parameters at once (``foreach``). Sources: torch 2.14's meta kernels for the saved tensors,
aten/src/ATen/autocast_mode.h, and of aten/src/ATen/native/transformers attention.cpp (preprocess_mask),
cuda/sdp_utils.cpp, cuda/flash_attn/flash_api.cpp (mha_bwd) and cuda/mem_eff_attention/kernel_backward.h.

Flash needs Ampere (8.0) or later. Where torch prefers cuDNN's attention in half precision (Hopper and Blackwell with
cuDNN from 9.15 on), the saved tensors are the same and cuDNN's workspace is unknown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitbench.devices.cpu import CpuDevice
from vitbench.metrics.support.fake_models import LargestAdamW

LABEL = "model of CUDA, not yet checked on a GPU"

#: Held beside the tensors. The context and the kernels loaded into it: 287 to 426 MiB were measured with lazy loading
#: (pytorch/pytorch 86509 and 109888, unslothai/unsloth-zoo 1053). cuBLAS's workspace is 32 MiB on Hopper and 8.1 MiB
#: before, one for the forward and one for the backward thread (aten/src/ATen/cuda/CublasHandlePool.cpp).
BESIDE_BYTES = (512 + 2 * 32) * 2**20

#: Blocks of torch's allocator are multiples of this (kMinBlockSize, c10/cuda/CUDACachingAllocator.h).
BLOCK_BYTES = 512


#: What CUDA's autocast runs in fp32 and the CPU's leaves in the lower precision, of what vision models call:
#: AT_FORALL_FP32, and AT_FORALL_FP32_SET_OPT_DTYPE, whose operators take ``dtype``.
_IN_FP32 = (
    "exp", "log", "reciprocal", "rsqrt", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus",
    "layer_norm", "native_layer_norm", "rms_norm", "group_norm", "cosine_similarity", "cdist", "logsumexp",
    "upsample_nearest2d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
    "_upsample_bicubic2d_aa", "norm.Scalar", "norm.ScalarOpt_dim",
)  # fmt: skip
_WITH_DTYPE = (
    "softmax.int", "log_softmax.int", "cumsum", "cumprod", "prod", "prod.dim_int", "sum", "sum.dim_IntList",
    "linalg_vector_norm",
)  # fmt: skip


class ModelledCuda(CpuDevice):
    """CUDA for a trace: fake tensors stay on the CPU, where they can be differentiated without a GPU; autocast is that
    of CUDA. A loss scaler, which keeps three scalars, is left out.
    """

    def autocast(self, dtype: str) -> AbstractContextManager[Any]:
        """fp16 inside of ``cuda_operators`` for ``amp``, else none."""
        return torch.autocast("cpu", dtype=torch.float16) if dtype == "amp" else contextlib.nullcontext()


class ForeachAdamW(LargestAdamW):
    """AdamW as torch runs it on CUDA, reduced to the moment of its peak: the roots of all second moments at once."""

    def step(self, closure: Any = None) -> Any:
        """Drop the state of parameters without a gradient, then hold the roots, one type of numbers after another."""
        super().step(closure)
        squares = [state["exp_avg_sq"] for state in self.state.values()]
        for dtype in dict.fromkeys(one.dtype for one in squares):
            torch._foreach_sqrt([one for one in squares if one.dtype == dtype])


@contextlib.contextmanager
def cuda_operators(*, fused: bool) -> Iterator[None]:
    """Call CUDA's fused attention, if ``fused``, and its dropout instead of the CPU's; under autocast, run in fp32 what
    CUDA runs in fp32. A whole training step belongs inside: checkpointed blocks run again in its backward pass.
    """
    attention, dropout = F.scaled_dot_product_attention, F.dropout
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    try:
        for name in (*_IN_FP32, *_WITH_DTYPE):
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCPU"):
                library.impl(name, _in_fp32(name))
        if fused:
            F.scaled_dot_product_attention = fused_attention
        F.dropout = _dropout
        yield
    finally:
        F.scaled_dot_product_attention, F.dropout = attention, dropout
        library._destroy()


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's ``scaled_dot_product_attention`` as CUDA allocates for it; queries (..., L, d) -> (..., L, d).

    FlashAttention-2 for fp16 and bf16 without a mask, else memory-efficient attention. Both keep query, key, value,
    output, log-sum-exp and mask for the backward pass. Explicit attention where neither can: queries that are not
    (B, H, L, d), and for the second widths that are not a multiple of 16 bytes. The values are meaningless.
    """
    if torch.is_autocast_enabled("cpu"):
        lower = torch.get_autocast_dtype("cpu")
        query, key, value = (one.to(lower) for one in (query, key, value))
    if enable_gqa:
        key, value = (one.repeat_interleave(query.shape[-3] // one.shape[-3], -3) for one in (key, value))
    width = query.shape[-1]
    flash = query.dtype in (torch.float16, torch.bfloat16) and attn_mask is None and width <= 256
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
    if query.dim() != 4 or (not flash and width * query.element_size() % 16):
        explicit = torch.ops.aten._scaled_dot_product_attention_math
        found: Tensor = explicit(query, key, value, attn_mask, dropout_p, is_causal)[0]
        return found
    if flash and width % 8:  # its kernels read 16 bytes at once
        query, key, value = (F.pad(one, (0, -width % 8)) for one in (query, key, value))
    if attn_mask is not None and any(one % 8 for one in attn_mask.stride()[:-1]):
        attn_mask = F.pad(attn_mask, (0, 8 - attn_mask.shape[-1] % 8))[..., : attn_mask.shape[-1]]
    output: Tensor = _Attention.apply(query, key, value, attn_mask, flash)
    return output[..., :width]


class _Attention(torch.autograd.Function):
    """An attention by the meta kernels of CUDA's operators, with the workspace of their backward kernels."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, flash: bool) -> Tensor:
        aten = torch.ops.aten
        ctx.flash = flash
        if flash:
            output, sums = aten._scaled_dot_product_flash_attention(query, key, value)[:2]
        else:
            keeps = any(ctx.needs_input_grad[:4])
            bias = None if mask is None else mask.expand(*query.shape[:-1], key.shape[-2])
            output, sums = aten._scaled_dot_product_efficient_attention(query, key, value, bias, keeps)[:2]
        ctx.save_for_backward(query, key, value, output, sums, mask)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (grad,) = gradients
        query, key, value, *_ = ctx.saved_tensors
        bias = None
        batch, heads, rows, width = query.shape
        # sums of the output times its gradient, and the query's gradient, both in fp32
        if ctx.flash:  # in blocks of 128 rows
            sums = rows = _up(rows, 128)
            width = _up(width, 32 if width <= 128 else 64)
        else:  # in tiles
            sums, rows, width = rows, _up(rows, 64 if width <= 64 else 128), _up(width, 64)
        held = [grad.new_empty(batch * heads * one, dtype=torch.float32) for one in (sums, rows * width)]
        if ctx.needs_input_grad[3]:  # its rows are padded to 16
            bias = query.new_empty(*query.shape[:-1], _up(key.shape[-2], 16))[..., : key.shape[-2]]
        found = tuple(torch.empty_like(one) for one in (query, key, value))
        del held
        return (*found, bias, None)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if training and 0 < p < 1:
        return torch.native_dropout(input, p, True)[0]
    return torch.dropout(input, p, training)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _in_fp32(name: str) -> Callable[..., Any]:
    """The operator as CUDA's autocast calls it: in fp32, or with a result in fp32 and no copy of its input."""
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    fused = {"softmax": torch._softmax, "log_softmax": torch._log_softmax}.get(packet)

    def call(first: Any, *others: Any, **options: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            if name not in _WITH_DTYPE:
                return operator(_fp32(first), *map(_fp32, others), **options)
            if options.get("dtype") is not None or first.dtype not in (torch.float16, torch.bfloat16):
                return operator(first, *others, **options)
            if fused is not None:
                return fused(first, others[0], True)
            return operator(first, *others, **options, dtype=torch.float32)

    return call


def _fp32(value: Any) -> Any:
    low = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if low else value

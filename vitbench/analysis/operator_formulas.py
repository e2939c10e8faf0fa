"""What each operator takes: FLOPs of element-wise operators by formula, and the operators without arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from vitbench.metrics.support.tensor_memory import tensors_in

#: FLOPs of a call from its arguments, its keyword arguments and its output.
Formula = Callable[[Sequence[Any], Mapping[str, Any], Any], int]


def convolution_backward(args: Sequence[Any]) -> int:
    """FLOPs of a convolution's backward pass: each gradient (input, weight) takes what the forward pass takes.

    torch's own formula (2.15) ignores groups for the gradient of the weight. A depthwise convolution's backward pass
    then costs as much as a dense one's: 17 times too much for EfficientViT-B0.
    """
    gradient, images, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    sites = images if transposed else gradient
    forward = 2 * sites.numel() * math.prod(weight.shape[1:])
    return forward * sum(wanted[:2])


def numel(output: Any) -> int:
    """Elements of the first tensor: norms return their statistics after it."""
    return next((tensor.numel() for tensor in tensors_in(output)), 0)


def is_floating(output: Any) -> bool:
    """Whether any tensor of an output is floating-point."""
    return any(tensor.is_floating_point() for tensor in tensors_in(output))


def _per_output(count: int) -> Formula:
    return lambda args, kwargs, output: count * numel(output)


def _per_input(count: int) -> Formula:
    return lambda args, kwargs, output: count * args[0].numel()


def _norm(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return (5 + sum(isinstance(one, Tensor) for one in args[1:4])) * args[0].numel()


def _gelu(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return (9 if kwargs.get("approximate") == "tanh" else 5) * numel(output)


def _window(kernel: int | Sequence[int]) -> int:
    sides = kernel if isinstance(kernel, list | tuple) else [kernel]
    return math.prod(sides if len(sides) > 1 else [*sides, *sides])


def _batch_norm(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    training = bool(args[5]) if len(args) > 5 else True
    return (8 if training else 4) * int(args[0].numel())


#: Operators (without overload and in-place mark), their formula in words, and as a function.
_FORMULAS: Sequence[tuple[str, str, Formula]] = (
    (
        "add sub rsub mul div neg abs exp log log1p sqrt rsqrt reciprocal erf sin cos tanh relu maximum "
        "minimum clamp_min clamp_max square pow fmod cumsum threshold native_dropout scatter_add "
        "_adaptive_avg_pool2d_backward",
        "1 an output",
        _per_output(1),
    ),
    ("native_layer_norm", "5 an element (mean, subtract, square, sum, scale), 1 each for weight and bias", _norm),
    ("native_group_norm", "5 an element, 1 each for weight and bias", _norm),
    ("native_batch_norm", "4 an element (subtract, scale, weight, bias), 4 more for statistics", _batch_norm),
    (
        "_native_batch_norm_legit_no_training cudnn_batch_norm",
        "4 an element (subtract, scale, weight, bias)",
        _per_input(4),
    ),
    ("_fused_rms_norm", "4 an element (square, sum, scale, weight)", _per_input(4)),
    ("_softmax _safe_softmax", "5 an element (maximum, subtract, exp, sum, divide)", _per_output(5)),
    ("_log_softmax", "5 an element (maximum, subtract, exp, sum, subtract)", _per_output(5)),
    ("gelu", "5 an element (divide, erf, add, 2 multiply); its tanh form 9", _gelu),
    ("sigmoid silu", "4 an element (negate, exp, add, divide)", _per_output(4)),
    ("softplus", "3 an element (exp, add, log)", _per_output(3)),
    ("mish", "5 an element (softplus, tanh, multiply)", _per_output(5)),
    ("hardswish", "5 an element (add, 2 clamp, multiply, divide)", _per_output(5)),
    ("hardsigmoid", "4 an element (add, 2 clamp, divide)", _per_output(4)),
    ("hardtanh", "2 an element (clamp)", _per_output(2)),
    ("clamp leaky_relu", "2 an element", _per_output(2)),
    ("elu", "3 an element", _per_output(3)),
    ("addcmul lerp", "3 an output", _per_output(3)),
    ("sum amax amin _adaptive_avg_pool2d embedding_dense_backward col2im", "1 an input", _per_input(1)),
    ("mean", "1 an input, 1 an output", lambda args, kwargs, output: args[0].numel() + numel(output)),
    ("var_mean var std", "4 an input (mean, subtract, square, sum)", _per_input(4)),
    ("linalg_vector_norm", "2 an input (square, sum)", _per_input(2)),
    (
        "avg_pool2d max_pool2d_with_indices",
        "the window's size an output",
        lambda args, kwargs, output: _window(args[1]) * numel(output),
    ),
    ("upsample_bicubic2d", "31 an output (16 taps)", _per_output(31)),
    ("upsample_bilinear2d", "7 an output (4 taps)", _per_output(7)),
    ("_upsample_bicubic2d_aa", "31 an output (16 taps; more where it shrinks)", _per_output(31)),
    ("_upsample_bilinear2d_aa", "7 an output (4 taps; more where it shrinks)", _per_output(7)),
    ("nll_loss_forward", "2 an image", lambda args, kwargs, output: 2 * args[0].shape[0]),
    # backward
    (
        "native_layer_norm_backward native_group_norm_backward native_batch_norm_backward gelu_backward",
        "9 an element",
        _per_input(9),
    ),
    ("silu_backward", "6 an element", _per_input(6)),
    (
        "_softmax_backward_data _log_softmax_backward_data softplus_backward hardswish_backward",
        "4 an element",
        _per_input(4),
    ),
    ("sigmoid_backward tanh_backward", "3 an element", _per_input(3)),
    ("native_dropout_backward", "2 an element", _per_input(2)),
    ("threshold_backward hardtanh_backward hardsigmoid_backward", "1 an element", _per_input(1)),
    (
        "avg_pool2d_backward",
        "the window's size an element",
        lambda args, kwargs, output: _window(args[2]) * args[0].numel(),
    ),
    ("upsample_bicubic2d_backward", "31 an element of the larger grid", _per_input(31)),
    ("upsample_bilinear2d_backward", "7 an element of the larger grid", _per_input(7)),
)

#: Each of these operators to its formula, in words and as a function.
ELEMENTWISE = {name: (words, formula) for names, words, formula in _FORMULAS for name in names.split()}

_MOVING = (
    "view _unsafe_view _reshape_alias reshape transpose t permute expand slice select unbind split "
    "split_with_sizes chunk cat stack clone contiguous copy detach alias squeeze unsqueeze as_strided "
    "diagonal unfold im2col constant_pad_nd reflection_pad2d gather index index_select index_put "
    "take_along_dim scatter roll flip repeat _to_copy to lift_fresh lift_fresh_copy empty "
    "empty_like empty_strided empty_permuted zeros zeros_like ones ones_like full full_like new_empty "
    "new_zeros new_ones new_full new_empty_strided arange linspace fill zero promote_types topk sort "
    "argsort where masked_fill eye tril triu one_hot embedding bernoulli rand randn rand_like randn_like "
    "normal uniform exponential random eq ne lt le gt ge logical_and logical_or logical_not isnan isinf "
    "max min argmax argmin any all upsample_nearest2d pixel_shuffle pixel_unshuffle channel_shuffle "
    "movedim select_backward slice_backward slice_scatter select_scatter diagonal_backward "
    "unfold_backward nll_loss_backward _local_scalar_dense item is_same_size "
    "sym_size resolve_conj view_as_real narrow swapaxes value_selecting_reduction_backward "
    "constant_pad_nd_backward max_pool2d_with_indices_backward "
    "bitwise_not bitwise_and scalar_tensor masked_select masked_scatter nonzero repeat_interleave "
    "_unique2 unique_dim unique_consecutive unsafe_split unsafe_split_with_sizes"
)

#: Operators that create, move, select or compare numbers: no floating-point operations.
NO_ARITHMETIC = frozenset(_MOVING.split())

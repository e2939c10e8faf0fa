"""The FLOPs of every operator that is a product: matrices, convolutions, attention, recurrent layers.

A multiply-add of real numbers is two FLOPs. The words use the shapes of a call: ``M K N`` of a matrix product (M, K) by
(K, N), ``L S d e`` of attention (L queries and S keys of width d, values of width e), ``B`` images or batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vitbench.core.errors import Unsupported
from vitbench.metrics.support.tensor_memory import tensors_in

#: FLOPs of a call from its arguments, its keyword arguments and its output. Raises Unsupported where the shapes do not
#: tell them.
Formula = Callable[[Sequence[Any], Mapping[str, Any], Any], int]


def numel(output: Any) -> int:
    """Elements of the first tensor: norms return their statistics after it."""
    return next((tensor.numel() for tensor in tensors_in(output)), 0)


# matrices

_SPARSE = "the FLOPs of a product of two sparse matrices depend on which of their numbers meet"


def _matrix_product(left: Tensor, right: Tensor) -> int:
    """(..., M, K) by (..., K, N) or by (K,). Of a sparse factor the stored numbers are multiplied."""
    sparse = [one.layout is not torch.strided for one in (left, right)]
    if all(sparse):
        raise Unsupported(_SPARSE)
    if sparse[0]:
        return 2 * stored_numbers(left) * (right.shape[-1] if right.dim() > 1 else 1)
    if sparse[1]:
        return 2 * stored_numbers(right) * left.shape[-2]
    return 2 * left.numel() * (right.shape[-1] if right.dim() > 1 else 1)


def stored_numbers(tensor: Tensor) -> int:
    """The numbers that a sparse tensor keeps."""
    values = tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()
    return values.numel()


def _at(left: int, right: int) -> Formula:
    """A matrix product of the arguments at these places."""
    return lambda args, kwargs, output: _matrix_product(args[left], args[right])


def _several_matrix_products(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return sum(_matrix_product(left, right) for left, right in zip(args[0], args[1], strict=True))


def _grouped(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    """Groups of rows (or of what is summed over) by (G, K, N) or (K, N); (G, M, K) by groups of columns (K, N)."""
    left, right = args[0], args[1]
    if left.dim() == 3 and right.dim() == 2:
        return 2 * right.numel() * int(left.shape[-2])
    return 2 * left.numel() * int(right.shape[-1])


def _packed(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    """A weight in a layout of its own: each number of the input goes into each output feature."""
    return 2 * args[0].numel() * int(output.shape[-1])


def _linear_backward(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return 2 * args[0].numel() * int(args[2].shape[0]) * sum(args[3][:2])


def _matmul_backward(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return 2 * args[0].numel() * int(args[1].shape[-1]) * sum(args[3])


def _trilinear(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    """torch multiplies the first two factors, sums over what the third lacks, and multiplies the result by the third.

    ``args`` are three tensors, for each the axes that it lacks, the axes summed over, and an axis that torch unrolls as
    a loop around both products. F.bilinear of (B, I), (B, J) and a weight (O, I, J) takes 2 B O I J + 2 B O J.
    """
    lacks = [set(one) for one in args[3:6]]
    summed, unrolled = set(args[6]), {args[7] if len(args) > 7 else 1}
    sizes: dict[int, int] = {}
    for tensor, missing in zip(args[:3], lacks, strict=True):
        present = [axis for axis in range(tensor.dim() + len(missing)) if axis not in missing]
        for axis, size in zip(present, tensor.shape, strict=True):
            sizes[axis] = max(size, sizes.get(axis, 1))
    pair = (set(sizes) - (lacks[0] & lacks[1])) | unrolled
    rest = (pair - ((summed & lacks[2]) - unrolled)) | (set(sizes) - lacks[2])
    return sum(2 * math.prod(sizes[axis] for axis in axes) for axes in (pair, rest))


# convolutions


def _convolution(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return 2 * numel(output) * math.prod(args[1].shape[1:])


def _transposed_convolution(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return 2 * args[0].numel() * math.prod(args[1].shape[1:])


def _either_convolution(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return (_transposed_convolution if args[6] else _convolution)(args, kwargs, output)


def _convolution_backward(gradient: int, images: int, transposed: int | bool) -> Formula:
    """Each gradient (input, weight) takes what the forward pass takes; the wanted ones are the last argument.

    torch's own formula (2.15) ignores groups for the gradient of the weight. A depthwise convolution's backward pass
    then costs as much as a dense one's: 17 times too much for EfficientViT-B0.
    """

    def formula(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
        turned = transposed if isinstance(transposed, bool) else args[transposed]
        sites = args[images] if turned else args[gradient]
        wanted = kwargs["output_mask"] if "output_mask" in kwargs else args[-1]
        return 2 * sites.numel() * math.prod(args[2].shape[1:]) * sum(wanted[:2])

    return formula


def _conv_tbc(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return 2 * output.numel() * math.prod(args[1].shape[:2])  # (kernel, inputs, outputs)


def _deformable_backward(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return 2 * 2 * args[0].numel() * math.prod(args[2].shape[1:])


# attention


def _attention(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    query, key, value = args[:3]
    return 2 * math.prod(query.shape[:-1]) * int(key.shape[-2]) * int(query.shape[-1] + value.shape[-1])


def _attention_backward(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    """The scores once more, and two products for each of the two: as torch's formula for its other kernels."""
    query, key, value = args[1:4]
    return 2 * math.prod(query.shape[:-1]) * int(key.shape[-2]) * int(3 * query.shape[-1] + 2 * value.shape[-1])


def _attention_layer(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    """Projections of (B, L, D) queries and (B, S, D) keys and values, attention, and the output's projection."""
    query, key = args[0], args[1]
    _refuse_nested(query)
    batch, length, width = query.shape
    return int(2 * batch * width * (width * (2 * length + 2 * key.shape[1]) + 2 * length * key.shape[1]))


def _encoder_layer(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    images = args[0]
    attention = _attention_layer((images, images), kwargs, output)
    tokens = images.numel() // images.shape[-1]
    return attention + 2 * tokens * int(args[14].numel() + args[16].numel())


def _refuse_nested(tensor: Tensor) -> None:
    if tensor.is_nested:
        raise Unsupported("the FLOPs of a nested tensor depend on the lengths of its rows")


# recurrent layers


def _recurrent(times: int, images: int = 0, weights: int = 1) -> Formula:
    """Each matrix of weights multiplies each step of each sequence; a backward pass takes twice that."""

    def formula(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
        steps = args[images].numel() // int(args[images].shape[-1])
        return times * 2 * steps * sum(one.numel() for one in args[weights] if one.dim() == 2)

    return formula


def _mkldnn_recurrent(times: int) -> Formula:
    return lambda args, kwargs, output: (
        times * 2 * (args[0].numel() // int(args[0].shape[-1])) * int(args[1].numel() + args[2].numel())
    )


def _without_formula(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    raise Unsupported(_SPARSE)


#: Operators (without overload and in-place mark; of aten unless they name a library), their formula in words, and as a
#: function.
_TABLE: Sequence[tuple[str, str, Formula]] = (
    ("mm bmm mv dot vdot _int_mm _scaled_mm _scaled_mm_v2 hspmm", "2 M K N (sparse: 2 N a stored number)", _at(0, 1)),
    (
        "addmm baddbmm addbmm addmv _addmm_activation _sparse_addmm sspaddmm",
        "2 M K N (sparse: 2 N a stored number)",
        _at(1, 2),
    ),
    ("addr", "2 M N", lambda args, kwargs, output: 2 * args[1].numel() * args[2].numel()),
    ("_foreach_mm", "2 M K N each", _several_matrix_products),
    ("_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2", "2 M K N of all groups", _grouped),
    (
        "linear mkldnn_linear _mixed_dtypes_linear _weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu "
        "_weight_int4pack_mm_with_scales_and_zeros _dyn_quant_matmul_4bit",
        "2 M K N",
        _packed,
    ),
    ("linear_backward mkldnn_linear_backward", "2 M K N for each gradient", _linear_backward),
    (
        "mkldnn_linear_backward_input",
        "2 M K N",
        lambda args, kwargs, output: 2 * args[1].numel() * int(args[2].shape[-1]),
    ),
    (
        "mkldnn_linear_backward_weights",
        "2 M K N",
        lambda args, kwargs, output: 2 * args[0].numel() * int(args[1].shape[-1]),
    ),
    ("matmul_backward", "2 M K N for each gradient", _matmul_backward),
    ("_sparse_semi_structured_mm", "2 N a stored number", _at(0, 2)),
    ("_sparse_semi_structured_addmm", "2 N a stored number", _at(1, 3)),
    (
        "_sparse_semi_structured_linear",
        "2 M a stored number",
        lambda args, kwargs, output: 2 * args[1].numel() * (args[0].numel() // int(args[0].shape[-1])),
    ),
    (
        "_cslt_sparse_mm",
        "M K N (half of the numbers are stored)",
        lambda args, kwargs, output: output.numel() * int(args[1].shape[-2]),
    ),
    (
        "sparse_sampled_addmm",
        "2 K a stored number",
        lambda args, kwargs, output: 2 * stored_numbers(args[0]) * int(args[1].shape[-1]),
    ),
    ("_sparse_mm_reduce_impl", "2 N a stored number", _at(0, 1)),
    (
        "_sparse_sparse_matmul _sparse_mm_reduce_impl_backward",
        "unsupported: depends on which numbers meet",
        _without_formula,
    ),
    (
        "_trilinear",
        "the first two factors' product, and its product with the third (F.bilinear: 2 B O I J + 2 B O J)",
        _trilinear,
    ),
    (
        "_euclidean_dist",
        "2 M (K + 2) N",
        lambda args, kwargs, output: 2 * output.numel() * int(args[0].shape[-1] + 2),
    ),
    (
        "affine_grid_generator cudnn_affine_grid_generator",
        "6 a coordinate (2-D), 8 (3-D)",
        lambda args, kwargs, output: 2 * output.numel() * int(output.shape[-1] + 1),
    ),
    (
        "_compute_linear_combination",
        "2 M K N",
        lambda args, kwargs, output: 2 * args[0].numel() * int(args[1].shape[0]),
    ),
    (
        "convolution _convolution convolution_overrideable",
        "2 an output number and number of its kernel (transposed: an input number)",
        _either_convolution,
    ),
    (
        "cudnn_convolution cudnn_convolution_relu cudnn_convolution_add_relu mkldnn_convolution miopen_convolution "
        "miopen_convolution_relu miopen_convolution_add_relu miopen_depthwise_convolution _slow_conv2d_forward "
        "slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d conv_depthwise3d "
        "_nnpack_spatial_convolution _mps_convolution torchvision::deform_conv2d",
        "2 an output number and number of its kernel",
        _convolution,
    ),
    (
        "cudnn_convolution_transpose miopen_convolution_transpose slow_conv_transpose2d slow_conv_transpose3d "
        "_mps_convolution_transpose",
        "2 an input number and number of its kernel",
        _transposed_convolution,
    ),
    ("conv_tbc", "2 an output number and number of its kernel", _conv_tbc),
    ("convolution_backward", "the forward pass for each gradient", _convolution_backward(0, 1, 7)),
    ("convolution_backward_overrideable", "the forward pass for each gradient", _convolution_backward(0, 1, 6)),
    ("_slow_conv2d_backward", "the forward pass for each gradient", _convolution_backward(0, 1, False)),
    ("mps_convolution_backward", "the forward pass for each gradient", _convolution_backward(1, 0, False)),
    ("mps_convolution_transpose_backward", "the forward pass for each gradient", _convolution_backward(1, 0, True)),
    ("torchvision::_deform_conv2d_backward", "twice the forward pass", _deformable_backward),
    (
        "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_cudnn_attention _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps "
        "_triton_scaled_dot_attention",
        "2 L S (d + e) a head, also with a mask",
        _attention,
    ),
    (
        "_scaled_dot_product_flash_attention_backward _scaled_dot_product_efficient_attention_backward "
        "_scaled_dot_product_cudnn_attention_backward _scaled_dot_product_flash_attention_for_cpu_backward "
        "_scaled_dot_product_fused_attention_overrideable_backward",
        "2 L S (3 d + 2 e) a head: the scores once more, and four products",
        _attention_backward,
    ),
    (
        "_native_multi_head_attention _triton_multi_head_attention",
        "2 B D (D (2 L + 2 S) + 2 L S)",
        _attention_layer,
    ),
    ("_transformer_encoder_layer_fwd", "its attention, and 2 B L D of each of the MLP's widths", _encoder_layer),
    ("_cudnn_rnn miopen_rnn", "2 a step and number of its matrices", _recurrent(1)),
    ("_cudnn_rnn_backward miopen_rnn_backward", "4 a step and number of its matrices", _recurrent(2)),
    ("_lstm_mps", "2 a step and number of its matrices", _recurrent(1, weights=2)),
    ("lstm_mps_backward", "4 a step and number of its matrices", _recurrent(2, images=5, weights=8)),
    ("mkldnn_rnn_layer", "2 a step and number of its matrices", _mkldnn_recurrent(1)),
    ("mkldnn_rnn_layer_backward", "4 a step and number of its matrices", _mkldnn_recurrent(2)),
)

#: Each product to its formula, in words and as a function.
PRODUCTS: Mapping[str, tuple[str, Formula]] = {
    name: (words, formula) for names, words, formula in _TABLE for name in names.split()
}

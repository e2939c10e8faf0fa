"""What each operator is: a product (``product_formulas``), element-wise with its FLOPs by formula, or free.

One table for everything that counts. An operator that is in none of the three is one that no formula covers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from vitbench.metrics.support.product_formulas import PRODUCTS, Formula, numel


def _per_output(count: int) -> Formula:
    return lambda args, kwargs, output: count * numel(output)


def _per_input(count: int) -> Formula:
    return lambda args, kwargs, output: count * args[0].numel()


def _norm(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return (5 + sum(isinstance(one, Tensor) for one in args[1:4])) * args[0].numel()


def _gelu(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return (9 if kwargs.get("approximate") == "tanh" else 5) * numel(output)


def _window(kernel: Sequence[int], axes: int = 2) -> int:
    return math.prod(kernel) if len(kernel) > 1 else kernel[0] ** axes


def _pool(at: int, axes: int = 2) -> Formula:
    """The window's size for each number of the output, or in a backward pass (its second argument) of the gradient."""
    return lambda args, kwargs, output: _window(args[at], axes) * (args[0].numel() if at == 2 else numel(output))


def _embedding_bag(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return int(args[1].numel() * args[0].shape[1])


def _batch_norm(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    training = bool(args[5]) if len(args) > 5 else True
    return (8 if training else 4) * int(args[0].numel())


#: Operators (without overload and in-place mark), their formula in words, and as a function.
_FORMULAS: Sequence[tuple[str, str, Formula]] = (
    (
        "add sub rsub mul div neg abs exp log log1p sqrt rsqrt reciprocal erf sin cos tanh relu maximum "
        "minimum clamp_min clamp_max square pow fmod cumsum threshold native_dropout scatter_add "
        "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward adaptive_avg_pool3d_backward "
        "acos acosh asin asinh atan atan2 atanh cosh sinh tan ceil floor round trunc frac copysign deg2rad rad2deg "
        "exp2 expm1 log10 log2 erfc erfinv lgamma digamma polygamma mvlgamma i0 igamma igammac sinc ldexp nextafter "
        "fmax fmin heaviside sgn sign angle remainder floor_divide gcd lcm cumprod nan_to_num cummax cummin "
        "_prelu_kernel rrelu_with_noise rrelu_with_noise_functional _fused_dropout _masked_scale dropout "
        "index_add scatter_reduce index_reduce _unsafe_masked_index_put_accumulate _index_put_impl "
        "trace special_bessel_j0 special_bessel_j1 special_bessel_y0 "
        "special_bessel_y1 special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0 "
        "special_modified_bessel_k1 special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 "
        "special_spherical_bessel_j0 special_airy_ai special_i0e special_i1 special_i1e special_erfcx special_ndtri "
        "special_log_ndtr special_entr special_zeta special_chebyshev_polynomial_t special_chebyshev_polynomial_u "
        "special_chebyshev_polynomial_v special_chebyshev_polynomial_w special_hermite_polynomial_h "
        "special_hermite_polynomial_he special_laguerre_polynomial_l special_legendre_polynomial_p "
        "special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u "
        "special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w",
        "1 an output",
        _per_output(1),
    ),
    ("native_layer_norm", "5 an element (mean, subtract, square, sum, scale), 1 each for weight and bias", _norm),
    ("native_group_norm", "5 an element, 1 each for weight and bias", _norm),
    (
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional miopen_batch_norm",
        "4 an element (subtract, scale, weight, bias), 4 more for statistics",
        _batch_norm,
    ),
    (
        "_native_batch_norm_legit_no_training cudnn_batch_norm _batch_norm_no_update batch_norm_elemt",
        "4 an element (subtract, scale, weight, bias)",
        _per_input(4),
    ),
    (
        "_batch_norm_with_update _batch_norm_with_update_functional",
        "8 an element (4, and 4 for statistics)",
        _per_input(8),
    ),
    ("batch_norm_stats batch_norm_update_stats", "4 an element (mean, subtract, square, sum)", _per_input(4)),
    ("_fused_rms_norm", "4 an element (square, sum, scale, weight)", _per_input(4)),
    ("_weight_norm_interface", "3 an element (square, sum, scale)", _per_input(3)),
    ("renorm embedding_renorm", "3 an element (square, sum, scale)", _per_input(3)),
    ("_transform_bias_rescale_qkv", "2 an element (bias, scale)", _per_input(2)),
    ("_softmax _safe_softmax _masked_softmax", "5 an element (maximum, subtract, exp, sum, divide)", _per_output(5)),
    ("_nested_tensor_softmax_with_shape", "5 an element (maximum, subtract, exp, sum, divide)", _per_output(5)),
    ("_log_softmax", "5 an element (maximum, subtract, exp, sum, subtract)", _per_output(5)),
    ("gelu", "5 an element (divide, erf, add, 2 multiply); its tanh form 9", _gelu),
    ("logsumexp logcumsumexp _logcumsumexp", "4 an input (maximum, subtract, exp, sum)", _per_input(4)),
    ("logaddexp logaddexp2", "5 an output", _per_output(5)),
    ("xlogy special_xlog1py", "2 an output", _per_output(2)),
    ("hypot", "4 an output (2 square, add, root)", _per_output(4)),
    ("polar", "4 an output (cos, sin, 2 multiply)", _per_output(4)),
    ("logit", "3 an element (subtract, divide, log)", _per_output(3)),
    ("glu", "5 an output (sigmoid, multiply)", _per_output(5)),
    ("log_sigmoid_forward", "4 an element", _per_output(4)),
    ("hardshrink softshrink", "1 an element", _per_output(1)),
    ("sigmoid silu", "4 an element (negate, exp, add, divide)", _per_output(4)),
    ("softplus", "3 an element (exp, add, log)", _per_output(3)),
    ("mish", "5 an element (softplus, tanh, multiply)", _per_output(5)),
    ("hardswish", "5 an element (add, 2 clamp, multiply, divide)", _per_output(5)),
    ("hardsigmoid", "4 an element (add, 2 clamp, divide)", _per_output(4)),
    ("hardtanh", "2 an element (clamp)", _per_output(2)),
    ("clamp leaky_relu", "2 an element", _per_output(2)),
    ("elu celu", "3 an element", _per_output(3)),
    ("addcmul addcdiv lerp", "3 an output", _per_output(3)),
    (
        "sum amax amin nansum prod aminmax _adaptive_avg_pool2d _adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d "
        "adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d embedding_dense_backward col2im _sparse_sum "
        "segment_reduce histc quantize_per_tensor",
        "1 an input",
        _per_input(1),
    ),
    ("_add_relu", "2 an output", _per_output(2)),
    ("mean", "1 an input, 1 an output", lambda args, kwargs, output: args[0].numel() + numel(output)),
    ("var_mean std_mean var std", "4 an input (mean, subtract, square, sum)", _per_input(4)),
    (
        "linalg_vector_norm norm native_norm linalg__powsum dist",
        "2 an input (square, sum)",
        _per_input(2),
    ),
    ("linalg_cross", "3 an output (2 multiply, subtract)", _per_output(3)),
    (
        "_cdist_forward",
        "3 an output and number of a row (subtract, power, sum)",
        lambda args, kwargs, output: 3 * output.numel() * args[0].shape[-1],
    ),
    (
        "_pdist_forward",
        "3 an output and number of a row (subtract, power, sum)",
        lambda args, kwargs, output: 3 * output.numel() * args[0].shape[-1],
    ),
    ("_embedding_bag _embedding_bag_forward_only", "1 a number that it sums", _embedding_bag),
    ("avg_pool2d max_pool2d_with_indices mkldnn_max_pool2d", "the window's size an output", _pool(1)),
    ("avg_pool1d", "the window's size an output", _pool(1, axes=1)),
    ("avg_pool3d max_pool3d_with_indices mkldnn_max_pool3d", "the window's size an output", _pool(1, axes=3)),
    ("fractional_max_pool2d", "the window's size an output", _pool(1)),
    ("fractional_max_pool3d", "the window's size an output", _pool(1, axes=3)),
    ("upsample_linear1d", "3 an output (2 taps)", _per_output(3)),
    ("upsample_trilinear3d", "15 an output (8 taps)", _per_output(15)),
    ("_upsample_lanczos2d_aa", "71 an output (36 taps; more where it shrinks)", _per_output(71)),
    ("grid_sampler_2d _grid_sampler_2d_cpu_fallback cudnn_grid_sampler", "7 an output (4 taps)", _per_output(7)),
    ("grid_sampler_3d", "15 an output (8 taps)", _per_output(15)),
    ("mse_loss", "2 an element (subtract, square)", _per_input(2)),
    ("smooth_l1_loss huber_loss", "3 an element", _per_input(3)),
    ("soft_margin_loss multi_margin_loss multilabel_margin_loss_forward", "4 an element", _per_input(4)),
    ("binary_cross_entropy", "6 an element (2 log, 2 multiply, subtract, add)", _per_input(6)),
    ("binary_cross_entropy_with_logits", "6 an element", _per_input(6)),
    ("nll_loss2d_forward", "2 a label", lambda args, kwargs, output: 2 * args[1].numel()),
    (
        "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
        "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fake_quantize_learnable_per_tensor_affine "
        "_fake_quantize_learnable_per_channel_affine _fused_moving_avg_obs_fq_helper quantize_per_channel "
        "quantize_per_tensor_dynamic dequantize",
        "4 an element (scale, round, shift, scale)",
        _per_output(4),
    ),
    ("_thnn_fused_lstm_cell _thnn_fused_gru_cell", "9 a gate's number", _per_input(9)),
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
        "batch_norm_backward cudnn_batch_norm_backward miopen_batch_norm_backward _fused_rms_norm_backward "
        "_thnn_fused_lstm_cell_backward_impl _thnn_fused_gru_cell_backward",
        "9 an element",
        _per_input(9),
    ),
    ("mish_backward", "8 an element", _per_input(8)),
    ("glu_backward log_sigmoid_backward elu_backward logit_backward celu_backward", "6 an element", _per_input(6)),
    ("_weight_norm_interface_backward", "5 an element", _per_input(5)),
    ("_masked_softmax_backward binary_cross_entropy_backward", "4 an element", _per_input(4)),
    ("mse_loss_backward smooth_l1_loss_backward huber_loss_backward", "3 an element", _per_input(3)),
    ("soft_margin_loss_backward multi_margin_loss_backward", "3 an element", _per_input(3)),
    (
        "leaky_relu_backward hardshrink_backward softshrink_backward _prelu_kernel_backward rrelu_with_noise_backward "
        "multilabel_margin_loss_backward _embedding_bag_backward _embedding_bag_dense_backward "
        "_sparse_sum_backward _segment_reduce_backward dist_backward",
        "1 an element",
        _per_input(1),
    ),
    (
        "_cdist_backward",
        "4 a distance and number of a row",
        lambda args, kwargs, output: 4 * args[0].numel() * args[1].shape[-1],
    ),
    (
        "_pdist_backward",
        "4 a distance and number of a row",
        lambda args, kwargs, output: 4 * args[0].numel() * args[1].shape[-1],
    ),
    ("avg_pool2d_backward", "the window's size an element", _pool(2)),
    ("avg_pool3d_backward", "the window's size an element", _pool(2, axes=3)),
    ("grid_sampler_2d_backward cudnn_grid_sampler_backward", "14 an element", _per_input(14)),
    ("grid_sampler_3d_backward", "30 an element", _per_input(30)),
    ("_upsample_bicubic2d_aa_backward", "31 an element of the larger grid", _per_input(31)),
    ("_upsample_bilinear2d_aa_backward", "7 an element of the larger grid", _per_input(7)),
    ("_upsample_lanczos2d_aa_backward", "71 an element of the larger grid", _per_input(71)),
    ("upsample_linear1d_backward", "3 an element of the larger grid", _per_input(3)),
    ("upsample_trilinear3d_backward", "15 an element of the larger grid", _per_input(15)),
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
    "_unique2 unique_dim unique_consecutive unsafe_split unsafe_split_with_sizes "
    "_conj _conj_physical conj_physical _neg_view real imag view_as_complex complex _reshape_copy _lazy_clone "
    "view_copy t_copy transpose_copy permute_copy expand_copy slice_copy select_copy unbind_copy split_copy "
    "split_with_sizes_copy squeeze_copy unsqueeze_copy as_strided_copy diagonal_copy alias_copy detach_copy "
    "unfold_copy narrow_copy view_as_real_copy view_as_complex_copy _reshape_alias_copy _conj_copy _neg_view_copy "
    "as_strided_scatter diagonal_scatter slice_inverse diag_embed block_diag rot90 tile "
    "_stack _chunk_cat set resize resize_as _resize_output _to_copy _to_dense _to_sparse _to_sparse_csr _to_sparse_csc "
    "_to_sparse_bsr _to_sparse_bsc to_mkldnn _coalesce _indices _values indices values crow_indices col_indices "
    "sparse_mask _nnz is_coalesced _sparse_coo_tensor_with_dims _sparse_coo_tensor_with_dims_and_tensors "
    "take put index_copy index_fill _unsafe_index _unsafe_index_put _unsafe_masked_index "
    "select_scatter reflection_pad1d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
    "reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward "
    "replication_pad2d_backward replication_pad3d_backward "
    "upsample_nearest1d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward "
    "_upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward _upsample_nearest_exact3d_backward "
    "native_channel_shuffle max_unpool2d max_unpool3d max_pool3d_with_indices_backward "
    "adaptive_max_pool2d_backward adaptive_max_pool3d_backward fractional_max_pool2d_backward "
    "fractional_max_pool3d_backward mkldnn_max_pool2d_backward mkldnn_max_pool3d_backward max_pool2d_backward "
    "mkldnn_adaptive_avg_pool2d_backward nll_loss2d_backward _grad_sum_to_size masked_scatter_backward "
    "logical_xor bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift isfinite isposinf isneginf isin signbit "
    "equal allclose count_nonzero searchsorted bucketize bincount kthvalue median nanmedian mode "
    "_is_all_true _is_any_true nonzero_static _assert_async _functional_assert_async _assert_scalar "
    "_functional_assert_scalar _assert_tensor_metadata _linalg_check_errors _efficientzerotensor "
    "randint randint_like randperm poisson binomial multinomial cauchy geometric log_normal normal_functional "
    "_standard_gamma _sample_dirichlet _cudnn_init_dropout_state bartlett_window blackman_window hamming_window "
    "hann_window kaiser_window logspace tril_indices triu_indices fft_fftfreq fft_rfftfreq frexp "
    "lift tensor as_tensor from_file _copy_from _copy_from_and_resize _pin_memory is_pinned record_stream "
    "_pack_padded_sequence _make_dual _fw_primal _unpack_dual _has_same_storage_numel "
    "is_contiguous is_strides_like_format is_non_overlapping_and_dense size stride storage_offset numel dim "
    "sym_stride sym_storage_offset sym_numel sym_is_contiguous sym_constrain_range "
    "sym_constrain_range_for_size _debug_has_internal_overlap "
    "_aminmax _coalesced _dimI _dimV dense_dim sparse_dim _indices_copy _values_copy indices_copy values_copy "
    "ccol_indices ccol_indices_copy col_indices_copy crow_indices_copy row_indices row_indices_copy "
    "_convert_indices_from_coo_to_csr _convert_indices_from_csr_to_coo _sparse_broadcast_to "
    "_sparse_broadcast_to_copy _sparse_mask_projection _spdiags _validate_compressed_sparse_indices "
    "copy_sparse_to_sparse resize_as_sparse sparse_resize sparse_resize_and_clear sparse_coo_tensor "
    "sparse_compressed_tensor _sparse_compressed_tensor_with_dims _fused_sdp_choice _fill_mem_eff_dropout_mask "
    "_fw_primal_copy _make_dual_copy _new_zeros_with_same_feature_meta _unique unique_dim_consecutive is_set_to "
    "_mkldnn_reshape _mkldnn_transpose _cudnn_rnn_flatten_weight mkldnn_reorder_conv2d_weight "
    "mkldnn_reorder_conv3d_weight _convert_weight_to_int4pack _convert_weight_to_int4pack_for_cpu "
    "_dyn_quant_pack_4bit_weight _cslt_compress _to_sparse_semi_structured _sparse_semi_structured_tile "
    "_sparse_semi_structured_apply _sparse_semi_structured_apply_dense _empty_affine_quantized "
    "_empty_per_channel_affine_quantized empty_quantized _make_per_channel_quantized_tensor "
    "_make_per_tensor_quantized_tensor int_repr q_per_channel_axis q_per_channel_scales q_per_channel_zero_points "
    "q_scale q_zero_point qscheme quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d _philox_key_fold_in "
    "_philox_key_split _philox_normal _philox_uniform histogram range shallow_copy_data to_padded_tensor "
    "_jagged_to_padded_dense_forward _padded_dense_to_jagged_forward _nested_from_padded _nested_from_padded_tensor "
    "_nested_from_padded_and_nested_example _nested_compute_contiguous_strides_offsets _nested_get_jagged_dummy "
    "_nested_get_lengths _nested_get_max_seqlen _nested_get_min_seqlen _nested_get_offsets _nested_get_ragged_idx "
    "_nested_get_values _nested_get_values_copy _nested_select_backward _nested_tensor_from_mask "
    "_nested_tensor_from_mask_left_aligned _nested_tensor_from_tensor_list _nested_tensor_size "
    "_nested_tensor_storage_offsets _nested_tensor_strides _nested_view_from_buffer _nested_view_from_buffer_copy "
    "_nested_view_from_jagged _nested_view_from_jagged_copy"
)

#: Operators that create, move, select or compare numbers: no floating-point operations.
NO_ARITHMETIC = frozenset(_MOVING.split())

Kind = Literal["product", "element-wise", "free"]


def kind_of(name: str) -> Kind | None:
    """What an operator is, by its name in ``PRODUCTS`` and the tables above; None for one that no formula covers.

    A value that leaves out such an operator is a lower bound.
    """
    return (
        "product"
        if name in PRODUCTS
        else "element-wise"
        if name in ELEMENTWISE
        else "free"
        if name in NO_ARITHMETIC
        else None
    )

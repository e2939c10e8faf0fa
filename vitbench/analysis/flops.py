"""A model's floating-point operations, operator by operator as torch dispatches them on ``meta``.

Two figures that are never mixed: matrix work (matrix products, convolutions, attention), which is what "FLOPs" means
here, and element-wise work (norms, softmax, activations, sums), given apart with each operator's formula. An operator
that no formula covers is listed, never taken as 0 in silence. On ``meta`` torch runs attention as matrix product,
softmax, matrix product, so that its parts are seen; nothing depends on a device, on a kernel or on gradients being on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vitbench.models.fast_path import without_fast_path
from vitbench.models.outputs import training_loss

Formula = Callable[[Sequence[Any], Mapping[str, Any], Any], int]


@dataclass(kw_only=True)
class OperatorCount:
    """``calls`` of one operator and their FLOPs, by ``formula`` (of matrix work: torch's own)."""

    calls: int = 0
    flops: int = 0
    formula: str = ""


@dataclass(kw_only=True)
class Counts:
    """What one pass takes: matrix work, element-wise work, and calls of operators that no formula covers."""

    matrix: dict[str, OperatorCount] = field(default_factory=dict)
    elementwise: dict[str, OperatorCount] = field(default_factory=dict)
    without_formula: dict[str, int] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """Matrix work: a multiply-add is two."""
        return sum(one.flops for one in self.matrix.values())

    @property
    def elementwise_flops(self) -> int:
        """Element-wise work."""
        return sum(one.flops for one in self.elementwise.values())


class OperatorCounter(TorchDispatchMode):
    """Counts every operator that is dispatched inside the context into ``counts``."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = packet.__name__.rstrip("_") if not packet.__name__.startswith("__") else packet.__name__
        if packet in flop_registry:
            if name == "convolution_backward":
                flops = _convolution_backward(args)
            else:
                flops = int(flop_registry[packet](*args, **(kwargs or {}), out_val=output))
            _add(self.counts.matrix, name, flops, "torch.utils.flop_counter")
            bias = _bias_of(name, args)
            if bias:
                _add(self.counts.elementwise, f"{name} (bias)", _numel(output), "1 an output")
        elif name in ELEMENTWISE:
            if _is_floating(output):
                text, formula = ELEMENTWISE[name]
                _add(self.counts.elementwise, name, formula(args, kwargs or {}, output), text)
        elif name not in NO_ARITHMETIC and _is_floating(output):
            self.counts.without_formula[name] = self.counts.without_formula.get(name, 0) + 1
        return output


def count_forward(model: nn.Module, images: Tensor, *, gradients: bool = False) -> Counts:
    """One forward pass of ``model`` (its mode as it is) on ``images`` (B, 3, H, W), both on ``meta``.

    Raises whatever the model raises there.
    """
    with torch.set_grad_enabled(gradients), OperatorCounter() as counter:
        model(images)
    return counter.counts


def count_fused_attention(model: nn.Module, images: Tensor) -> int:
    """FLOPs inside fused attention calls of one forward pass; 0 where the model computes attention itself."""
    functional: Any = torch.nn.functional
    fused = functional.scaled_dot_product_attention
    flops = 0

    def count(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:  # may be given by name
        nonlocal flops
        flops += 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return fused(query, key, value, *args, **kwargs)

    functional.scaled_dot_product_attention = count  # a TorchFunctionMode does not see calls inside of torch's own
    try:
        with torch.no_grad(), without_fast_path():
            model(images)
    finally:
        functional.scaled_dot_product_attention = fused
    return flops


def count_training_step(model: nn.Module, images: Tensor) -> tuple[Counts, Counts]:
    """(forward, backward) of one training step on ``images`` (B, 3, H, W); model in training mode, both on ``meta``.

    The optimizer's element-wise work is not in it. Raises whatever the model raises there.
    """
    with OperatorCounter() as forward:
        output = model(images)
    labels = torch.zeros(images.shape[0], dtype=torch.long, device=images.device)
    loss = training_loss(model, output, labels)
    with OperatorCounter() as backward:
        loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return forward.counts, backward.counts


def _add(counts: dict[str, OperatorCount], name: str, flops: int, formula: str) -> None:
    one = counts.setdefault(name, OperatorCount(formula=formula))
    one.calls += 1
    one.flops += flops


def _convolution_backward(args: Sequence[Any]) -> int:
    """The gradients of the input and of the weight take what the forward pass takes, each.

    torch's own formula (2.15) takes no account of groups for the weight's gradient, which makes a depthwise
    convolution's backward pass as dear as a dense one's: 17 times too much for EfficientViT-B0.
    """
    gradient, images, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    sites = images if transposed else gradient
    forward = 2 * sites.numel() * math.prod(weight.shape[1:])
    return forward * sum(wanted[:2])


def _bias_of(name: str, args: Sequence[Any]) -> bool:
    """Whether a matrix operator also adds a bias (``addmm`` adds its first argument)."""
    return name in ("addmm", "baddbmm") or (
        name in ("convolution", "_convolution") and len(args) > 2 and args[2] is not None
    )


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for one in output:
            yield from _tensors(one)


def _numel(output: Any) -> int:
    """Of the first tensor: norms give their statistics behind it."""
    return next((tensor.numel() for tensor in _tensors(output)), 0)


def _is_floating(output: Any) -> bool:
    return any(tensor.is_floating_point() for tensor in _tensors(output))


def _per_output(count: int) -> Formula:
    return lambda args, kwargs, output: count * _numel(output)


def _per_input(count: int) -> Formula:
    return lambda args, kwargs, output: count * args[0].numel()


def _norm(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return (5 + sum(isinstance(one, Tensor) for one in args[1:4])) * args[0].numel()


def _gelu(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    return (9 if kwargs.get("approximate") == "tanh" else 5) * _numel(output)


def _window(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    kernel = args[1] if isinstance(args[1], list | tuple) else [args[1]] * 2
    return math.prod(kernel if len(kernel) > 1 else [*kernel, *kernel]) * _numel(output)


_ONE_AN_OUTPUT = (
    "add sub rsub mul div neg abs exp log log1p sqrt rsqrt reciprocal erf sin cos tanh relu maximum "
    "minimum clamp_min clamp_max square pow fmod cumsum threshold"
)


def _window_backward(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    kernel = args[2] if isinstance(args[2], list | tuple) else [args[2]] * 2
    return math.prod(kernel if len(kernel) > 1 else [*kernel, *kernel]) * int(args[0].numel())


def _batch_norm(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    training = bool(args[5]) if len(args) > 5 else True
    return (8 if training else 4) * int(args[0].numel())


def _table() -> Mapping[str, tuple[str, Formula]]:
    one = {name: ("1 an output", _per_output(1)) for name in _ONE_AN_OUTPUT.split()}
    return {
        **one,
        "native_layer_norm": ("5 an element (mean, subtract, square, sum, scale), 1 each for weight and bias", _norm),
        "native_group_norm": ("5 an element, 1 each for weight and bias", _norm),
        "native_batch_norm": ("4 an element (subtract, scale, weight, bias), 4 more for statistics", _batch_norm),
        "_native_batch_norm_legit_no_training": ("4 an element (subtract, scale, weight, bias)", _per_input(4)),
        "cudnn_batch_norm": ("4 an element (subtract, scale, weight, bias)", _per_input(4)),
        "_fused_rms_norm": ("4 an element (square, sum, scale, weight)", _per_input(4)),
        "_softmax": ("5 an element (maximum, subtract, exp, sum, divide)", _per_output(5)),
        "_safe_softmax": ("5 an element (maximum, subtract, exp, sum, divide)", _per_output(5)),
        "_log_softmax": ("5 an element (maximum, subtract, exp, sum, subtract)", _per_output(5)),
        "gelu": ("5 an element (divide, erf, add, 2 multiply); its tanh form 9", _gelu),
        "sigmoid": ("4 an element (negate, exp, add, divide)", _per_output(4)),
        "silu": ("4 an element (negate, exp, add, divide)", _per_output(4)),
        "softplus": ("3 an element (exp, add, log)", _per_output(3)),
        "mish": ("5 an element (softplus, tanh, multiply)", _per_output(5)),
        "hardswish": ("5 an element (add, 2 clamp, multiply, divide)", _per_output(5)),
        "hardsigmoid": ("4 an element (add, 2 clamp, divide)", _per_output(4)),
        "hardtanh": ("2 an element (clamp)", _per_output(2)),
        "clamp": ("2 an element", _per_output(2)),
        "leaky_relu": ("2 an element", _per_output(2)),
        "elu": ("3 an element", _per_output(3)),
        "addcmul": ("3 an output", _per_output(3)),
        "lerp": ("3 an output", _per_output(3)),
        "sum": ("1 an input", _per_input(1)),
        "mean": ("1 an input, 1 an output", lambda args, kwargs, output: args[0].numel() + _numel(output)),
        "amax": ("1 an input", _per_input(1)),
        "amin": ("1 an input", _per_input(1)),
        "var_mean": ("4 an input (mean, subtract, square, sum)", _per_input(4)),
        "var": ("4 an input (mean, subtract, square, sum)", _per_input(4)),
        "std": ("4 an input (mean, subtract, square, sum)", _per_input(4)),
        "linalg_vector_norm": ("2 an input (square, sum)", _per_input(2)),
        "avg_pool2d": ("the window's size an output", _window),
        "max_pool2d_with_indices": ("the window's size an output", _window),
        "_adaptive_avg_pool2d": ("1 an input", _per_input(1)),
        "upsample_bicubic2d": ("31 an output (16 taps)", _per_output(31)),
        "upsample_bilinear2d": ("7 an output (4 taps)", _per_output(7)),
        "_upsample_bicubic2d_aa": ("31 an output (16 taps; more where it shrinks)", _per_output(31)),
        "_upsample_bilinear2d_aa": ("7 an output (4 taps; more where it shrinks)", _per_output(7)),
        "native_dropout": ("1 an output", _per_output(1)),
        # backward
        "native_layer_norm_backward": ("9 an element", _per_input(9)),
        "native_group_norm_backward": ("9 an element", _per_input(9)),
        "native_batch_norm_backward": ("9 an element", _per_input(9)),
        "_softmax_backward_data": ("4 an element", _per_input(4)),
        "_log_softmax_backward_data": ("4 an element", _per_input(4)),
        "gelu_backward": ("9 an element", _per_input(9)),
        "silu_backward": ("6 an element", _per_input(6)),
        "sigmoid_backward": ("3 an element", _per_input(3)),
        "tanh_backward": ("3 an element", _per_input(3)),
        "softplus_backward": ("4 an element", _per_input(4)),
        "threshold_backward": ("1 an element", _per_input(1)),
        "hardtanh_backward": ("1 an element", _per_input(1)),
        "hardswish_backward": ("4 an element", _per_input(4)),
        "hardsigmoid_backward": ("1 an element", _per_input(1)),
        "native_dropout_backward": ("2 an element", _per_input(2)),
        "avg_pool2d_backward": ("the window's size an element", _window_backward),
        "_adaptive_avg_pool2d_backward": ("1 an output", _per_output(1)),
        "embedding_dense_backward": ("1 an input", _per_input(1)),
        "scatter_add": ("1 an output", _per_output(1)),
        "col2im": ("1 an input", _per_input(1)),
        "nll_loss_forward": ("2 an image", lambda args, kwargs, output: 2 * args[0].shape[0]),
        "upsample_bicubic2d_backward": ("31 an element of the larger grid", _per_input(31)),
        "upsample_bilinear2d_backward": ("7 an element of the larger grid", _per_input(7)),
    }


#: Operator (without overload and in-place mark) to what it takes.
ELEMENTWISE = _table()

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

#: Operators that make, move, choose or compare numbers, which is no floating-point operation.
NO_ARITHMETIC = frozenset(_MOVING.split())

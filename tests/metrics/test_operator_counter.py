"""FLOPs of every product by hand, on meta and executed, with gradients and in inference mode; and what has no formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from vitbench.core.errors import Unsupported
from vitbench.metrics.support.operator_counter import LeavesTorch, OperatorCounter
from vitbench.metrics.support.operator_formulas import ELEMENTWISE, NO_ARITHMETIC
from vitbench.metrics.support.product_formulas import PRODUCTS

Call = Callable[[Callable[..., Tensor]], Any]

# sizes that differ, so that no two axes can be mistaken for each other
B, I, J, K, L, M, N, O = 2, 3, 5, 4, 6, 7, 9, 11  # noqa: E741
#: A call that takes what makes tensors of a shape, with the FLOPs of its forward and of its backward pass by hand.
PASSES: dict[str, tuple[Call, int, int]] = {
    "matrix, matrix": (lambda x: x(M, K) @ x(K, N), 2 * M * K * N, 4 * M * K * N),
    "3-D, vector": (lambda x: x(B, M, K) @ x(K), 2 * B * M * K, 2 * B * M * K),
    "4-D, vector": (lambda x: x(B, L, M, K) @ x(K), 2 * B * L * M * K, 2 * B * L * M * K),
    "vector, 3-D": (lambda x: x(M) @ x(B, M, K), 2 * B * M * K, 2 * B * M * K),
    "vector, vector": (lambda x: x(K) @ x(K), 2 * K, 0),  # the backward pass scales two vectors
    "mv": (lambda x: torch.mv(x(M, K), x(K)), 2 * M * K, 2 * M * K),
    "vdot": (lambda x: torch.vdot(x(K), x(K)), 2 * K, 0),
    "inner": (lambda x: torch.inner(x(M, K), x(N, K)), 2 * M * K * N, 4 * M * K * N),
    "addmv": (lambda x: torch.addmv(x(M), x(M, K), x(K)), 2 * M * K, 2 * M * K),
    "addmm": (lambda x: torch.addmm(x(N), x(M, K), x(K, N)), 2 * M * K * N, 4 * M * K * N),
    "addbmm": (lambda x: torch.addbmm(x(M, N), x(B, M, K), x(B, K, N)), 2 * B * M * K * N, 4 * B * M * K * N),
    "baddbmm": (lambda x: torch.baddbmm(x(N), x(B, M, K), x(B, K, N)), 2 * B * M * K * N, 4 * B * M * K * N),
    "addr": (lambda x: torch.addr(x(M, N), x(M), x(N)), 2 * M * N, 4 * M * N),
    "einsum of a matrix and a vector": (
        lambda x: torch.einsum("bmk,k->bm", x(B, M, K), x(K)),
        2 * B * M * K,
        4 * B * M * K,
    ),
    "einsum of rows": (lambda x: torch.einsum("mk,mk->m", x(M, K), x(M, K)), 2 * M * K, 4 * M * K),
    "tensordot": (lambda x: torch.tensordot(x(M, K), x(K, N), 1), 2 * M * K * N, 4 * M * K * N),
    "multi_dot": (
        lambda x: torch.linalg.multi_dot([x(M, K), x(K, N), x(N)]),
        2 * K * N + 2 * M * K,
        4 * K * N + 4 * M * K,
    ),
    "bilinear": (
        # x1 by the weight, and that by x2; backwards: of x1, of x2, of the weight
        lambda x: F.bilinear(x(B, I), x(B, J), x(O, I, J)),
        2 * B * O * I * J + 2 * B * O * J,
        2 * (2 * B * O * I * J) + (2 * B * O * I * J + 2 * B * O * J) + (2 * B * O * I + 2 * B * O * I * J),
    ),
    # a distance of more than 25 rows is a matrix product of K + 2 columns (the squares of both sides)
    "cdist": (lambda x: torch.cdist(x(30, K), x(N, K)), 2 * 30 * (K + 2) * N, 4 * 30 * K * N),
    "affine_grid": (
        lambda x: F.affine_grid(x(B, 2, 3), [B, 1, M, N], align_corners=False),
        2 * B * M * N * 3 * 2,
        2 * B * M * N * 3 * 2,
    ),
    "convolution": (
        lambda x: F.conv2d(x(B, I, 6, 6), x(O, I, 3, 3)),
        2 * B * 4 * 4 * 9 * I * O,
        4 * B * 4 * 4 * 9 * I * O,
    ),
    "depthwise convolution": (
        lambda x: F.conv2d(x(B, I, 6, 6), x(I, 1, 3, 3), groups=I),
        2 * B * 4 * 4 * 9 * I,
        4 * B * 4 * 4 * 9 * I,
    ),
    "transposed convolution": (
        lambda x: F.conv_transpose2d(x(B, I, 6, 6), x(I, O, 3, 3)),
        2 * B * 6 * 6 * 9 * I * O,
        4 * B * 6 * 6 * 9 * I * O,
    ),
    "3-D convolution": (
        lambda x: F.conv3d(x(B, I, 4, 4, 4), x(O, I, 3, 3, 3)),
        2 * B * 8 * 27 * I * O,
        4 * B * 8 * 27 * I * O,
    ),
    "conv_tbc": (
        lambda x: torch.conv_tbc(x(L, B, I), x(3, I, O), x(O)),
        2 * (L - 2) * B * 3 * I * O,
        4 * (L - 2) * B * 3 * I * O,
    ),
    "complex matrices": (
        lambda x: torch.view_as_real(torch.view_as_complex(x(M, K, 2)) @ torch.view_as_complex(x(K, N, 2))),
        8 * M * K * N,
        16 * M * K * N,
    ),
}
#: Calls that only run, or run without gradients alone.
FORWARD: dict[str, tuple[Call, int]] = {
    "attention": (
        lambda x: F.scaled_dot_product_attention(x(B, 2, L, K), x(B, 2, M, K), x(B, 2, M, I)),
        2 * B * 2 * L * M * (K + I),
    ),
    "in place": (lambda x: x(M, N).addmm_(x(M, K), x(K, N)), 2 * M * K * N),
    "in place, vector": (lambda x: x(M).addmv_(x(M, K), x(K)), 2 * M * K),
    "into another tensor": (lambda x: torch.mv(x(M, K), x(K), out=x(M)), 2 * M * K),
    "groups of rows": (
        lambda x: torch._grouped_mm(x(2, 16, 16).bfloat16(), x(2, 16, 32).bfloat16()),
        2 * 2 * 16 * 16 * 32,
    ),
    "LSTM": (lambda x: nn.LSTM(K, M, device=x(1).device)(x(L, B, K))[0], 2 * L * B * 4 * M * (K + M)),
    "GRU": (lambda x: nn.GRU(K, M, device=x(1).device)(x(L, B, K))[0], 2 * L * B * 3 * M * (K + M)),
}


def maker(device: str, *, gradients: bool) -> Callable[..., Tensor]:
    return lambda *shape: torch.zeros(*shape, device=device, requires_grad=gradients)


def counted(call: Callable[[], Any]) -> int:
    with OperatorCounter() as counter:
        call()
    assert counter.counts.without_formula == {}
    return counter.counts.flops


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("name", PASSES)
def test_forward_and_backward_are_what_a_hand_count_gives(name: str, device: str) -> None:
    call, forward, backward = PASSES[name]
    made = maker(device, gradients=True)
    outputs: list[Tensor] = []
    assert counted(lambda: outputs.append(call(made))) == forward
    assert counted(outputs[0].sum().backward) == backward
    with torch.no_grad():
        assert counted(lambda: call(made)) == forward


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("name", [*PASSES, *FORWARD])
def test_inference_mode_and_no_grad_count_the_same(name: str, device: str) -> None:
    call, forward, *_ = {**PASSES, **FORWARD}[name]
    made = maker(device, gradients=False)
    with torch.no_grad():
        assert counted(lambda: call(made)) == forward
    with torch.inference_mode():
        assert counted(lambda: call(made)) == forward


def test_a_vector_costs_what_a_matrix_of_one_column_costs() -> None:
    x, weight = torch.empty(2, 8, 4, device="meta"), torch.empty(4, device="meta")
    assert counted(lambda: x @ weight) == counted(lambda: x @ weight[:, None]) == 128


def meta(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


IMAGES, KERNEL, FEATURES = meta(B, I, 6, 6), meta(O, I, 3, 3), meta(B, O, 4, 4)
HEADS = (meta(B, 2, L, K), meta(B, 2, M, K), meta(B, 2, M, I))
WEIGHTS = [meta(4 * M, K), meta(4 * M, M), meta(4 * M), meta(4 * M)]
STEPS = 2 * L * B * 4 * M * (K + M)
CONVOLVED = 2 * FEATURES.numel() * I * 9
#: What a call of each product takes that no call above reaches: it needs another device, or a kernel of its own.
#: Arguments and output by the operators' schemas; FLOPs by hand.
DIRECT: dict[str, tuple[tuple[Any, ...], Any, int]] = {
    **dict.fromkeys(("_int_mm", "_scaled_mm", "_scaled_mm_v2"), ((meta(M, K), meta(K, N)), meta(M, N), 2 * M * K * N)),
    "_foreach_mm": (([meta(M, K), meta(I, K)], [meta(K, N), meta(K, O)]), None, 2 * K * (M * N + I * O)),
    "_addmm_activation": ((meta(N), meta(M, K), meta(K, N)), meta(M, N), 2 * M * K * N),
    # three groups: rows of one matrix, what is summed over, columns
    "_grouped_mm": ((meta(12, K), meta(3, K, N)), meta(12, N), 2 * 12 * K * N),
    "_scaled_grouped_mm": ((meta(M, 12), meta(12, N)), meta(3, M, N), 2 * M * 12 * N),
    "_scaled_grouped_mm_v2": ((meta(3, M, K), meta(K, 12)), meta(M, 12), 2 * M * K * 12),
    **dict.fromkeys(
        (
            *("linear", "mkldnn_linear", "_mixed_dtypes_linear", "_weight_int8pack_mm", "_weight_int4pack_mm"),
            *("_weight_int4pack_mm_for_cpu", "_weight_int4pack_mm_with_scales_and_zeros", "_dyn_quant_matmul_4bit"),
        ),
        ((meta(B, M, K), meta(1)), meta(B, M, N), 2 * B * M * K * N),
    ),
    **dict.fromkeys(
        ("linear_backward", "mkldnn_linear_backward"),
        ((meta(M, K), meta(M, N), meta(N, K), [True, False, True]), None, 2 * M * K * N),
    ),
    "mkldnn_linear_backward_input": (([M, K], meta(M, N), meta(N, K)), meta(M, K), 2 * M * K * N),
    "mkldnn_linear_backward_weights": ((meta(M, N), meta(M, K), meta(N, K), True), None, 2 * M * K * N),
    "matmul_backward": ((meta(B, M, N), meta(B, M, K), meta(B, K, N), [True, True]), None, 4 * B * M * K * N),
    # 2:4 sparsity: (M, 8) has 4 numbers a row
    "_sparse_semi_structured_mm": ((meta(M, 4), meta(1), meta(8, N)), meta(M, N), 2 * M * 4 * N),
    "_sparse_semi_structured_addmm": ((meta(M), meta(M, 4), meta(1), meta(8, N)), meta(M, N), 2 * M * 4 * N),
    "_sparse_semi_structured_linear": ((meta(B, 8), meta(M, 4), meta(1)), meta(B, M), 2 * M * 4 * B),
    "_cslt_sparse_mm": ((meta(1), meta(8, N)), meta(M, N), 2 * M * 4 * N),
    "_compute_linear_combination": ((meta(I, M), meta(J, I)), meta(J, M), 2 * I * J * M),
    "cudnn_affine_grid_generator": ((meta(B, 2, 3), B, 1, M, N), meta(B, M, N, 2), 2 * B * M * N * 3 * 2),
    **dict.fromkeys(
        ("_convolution", "convolution_overrideable"),
        ((IMAGES, KERNEL, None, [1, 1], [0, 0], [1, 1], False), FEATURES, CONVOLVED),
    ),
    **dict.fromkeys(
        (
            *("cudnn_convolution", "cudnn_convolution_relu", "cudnn_convolution_add_relu", "mkldnn_convolution"),
            *("miopen_convolution", "miopen_convolution_relu", "miopen_convolution_add_relu", "_mps_convolution"),
            *("miopen_depthwise_convolution", "_slow_conv2d_forward", "slow_conv3d_forward", "slow_conv_dilated2d"),
            *("slow_conv_dilated3d", "_conv_depthwise2d", "conv_depthwise3d", "_nnpack_spatial_convolution"),
        ),
        ((IMAGES, KERNEL), FEATURES, CONVOLVED),
    ),
    **dict.fromkeys(
        (
            *("cudnn_convolution_transpose", "miopen_convolution_transpose", "slow_conv_transpose2d"),
            *("slow_conv_transpose3d", "_mps_convolution_transpose"),
        ),
        ((FEATURES, KERNEL), IMAGES, CONVOLVED),
    ),
    "convolution_backward_overrideable": (
        (FEATURES, IMAGES, KERNEL, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]),
        None,
        2 * CONVOLVED,
    ),
    "_slow_conv2d_backward": (
        (FEATURES, IMAGES, KERNEL, [3, 3], [1, 1], [0, 0], [False, True, True]),
        None,
        CONVOLVED,
    ),
    "mps_convolution_backward": (
        (IMAGES, FEATURES, KERNEL, [0, 0], [1, 1], [1, 1], 1, [True, True, False]),
        None,
        2 * CONVOLVED,
    ),
    "mps_convolution_transpose_backward": (
        (FEATURES, IMAGES, KERNEL, [0, 0], [0, 0], [1, 1], [1, 1], 1, [True, True]),
        None,
        2 * CONVOLVED,
    ),
    **dict.fromkeys(
        (
            *("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
            *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu"),
            *("_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math_for_mps"),
            "_triton_scaled_dot_attention",
        ),
        (HEADS, None, 2 * B * 2 * L * M * (K + I)),
    ),
    **dict.fromkeys(
        (
            *("_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_efficient_attention_backward"),
            *("_scaled_dot_product_cudnn_attention_backward", "_scaled_dot_product_flash_attention_for_cpu_backward"),
            "_scaled_dot_product_fused_attention_overrideable_backward",
        ),
        # scores again (d), the gradients of the values and of the scores (e each), of the queries and the keys (d each)
        ((meta(B, 2, L, I), *HEADS), None, 2 * B * 2 * L * M * (K + 2 * I + 2 * K)),
    ),
    **dict.fromkeys(
        ("_native_multi_head_attention", "_triton_multi_head_attention"),
        # q, k, v and the output's projection; two products of attention
        ((meta(B, L, 8), meta(B, L, 8), meta(B, L, 8)), None, 2 * B * L * 4 * 64 + 2 * B * 2 * L * L * 8),
    ),
    "_transformer_encoder_layer_fwd": (
        (meta(B, L, 8), *[None] * 13, meta(16, 8), None, meta(8, 16)),
        None,
        2 * B * L * 4 * 64 + 2 * B * 2 * L * L * 8 + 2 * B * L * 2 * 8 * 16,
    ),
    "_cudnn_rnn": ((meta(L, B, K), WEIGHTS), None, STEPS),
    "miopen_rnn": ((meta(L, B, K), WEIGHTS), None, STEPS),
    "_cudnn_rnn_backward": ((meta(L, B, K), WEIGHTS), None, 2 * STEPS),
    "miopen_rnn_backward": ((meta(L, B, K), WEIGHTS), None, 2 * STEPS),
    "_lstm_mps": ((meta(L, B, K), [], WEIGHTS), None, STEPS),
    "lstm_mps_backward": ((*[None] * 5, meta(L, B, K), None, [], WEIGHTS), None, 2 * STEPS),
    "mkldnn_rnn_layer": ((meta(L, B, K), *WEIGHTS), None, STEPS),
    "mkldnn_rnn_layer_backward": ((meta(L, B, K), *WEIGHTS), None, 2 * STEPS),
    "torchvision::_deform_conv2d_backward": ((FEATURES, IMAGES, KERNEL), None, 2 * CONVOLVED),
}


@pytest.mark.parametrize("name", DIRECT)
def test_products_of_other_devices_are_what_a_hand_count_gives(name: str) -> None:
    args, output, flops = DIRECT[name]
    assert PRODUCTS[name][1](args, {}, output) == flops


#: Reached by the calls of the other tests.
REACHED = {
    *("mm", "bmm", "mv", "dot", "vdot", "addmm", "baddbmm", "addbmm", "addmv", "addr", "_trilinear", "_euclidean_dist"),
    *("affine_grid_generator", "convolution", "convolution_backward", "conv_tbc", "torchvision::deform_conv2d"),
    *("_sparse_addmm", "hspmm", "sspaddmm", "sparse_sampled_addmm", "_sparse_mm_reduce_impl", "_sparse_sparse_matmul"),
    "_sparse_mm_reduce_impl_backward",
}


def test_every_product_of_the_table_has_a_hand_count() -> None:
    assert set(PRODUCTS) == REACHED | set(DIRECT)


def test_an_operator_is_of_one_kind() -> None:
    assert not NO_ARITHMETIC & set(ELEMENTWISE)
    assert not set(PRODUCTS) & (NO_ARITHMETIC | set(ELEMENTWISE))


def test_what_torch_has_a_formula_for_is_a_product() -> None:
    kinds = {name for name in (*ELEMENTWISE, *NO_ARITHMETIC) if getattr(torch.ops.aten, name, None) in flop_registry}
    assert kinds == set()


def test_of_a_sparse_matrix_the_stored_numbers_are_multiplied() -> None:
    stored = 5
    dense = torch.zeros(M, K)
    dense.view(-1)[:stored] = 1
    right = torch.ones(K, N)
    for sparse in (dense.to_sparse(), dense.to_sparse_csr()):
        assert counted(lambda sparse=sparse: torch.sparse.mm(sparse, right)) == 2 * stored * N
        assert counted(lambda sparse=sparse: sparse @ right) == 2 * stored * N
        assert counted(lambda sparse=sparse: sparse @ right[:, 0]) == 2 * stored
    csr = dense.to_sparse_csr()
    assert counted(lambda: torch.sparse.sampled_addmm(csr, torch.ones(M, I), torch.ones(I, K))) == 2 * stored * I
    assert counted(lambda: torch.sparse.mm(csr, right, "mean")) == 2 * stored * N
    assert counted(lambda: torch.hspmm(dense.to_sparse(), right)) == 2 * stored * N
    empty = torch.zeros(M, N).to_sparse()
    assert counted(lambda: torch.sspaddmm(empty, dense.to_sparse(), right)) == 2 * stored * N


def test_a_product_whose_shapes_do_not_tell_its_flops_is_unsupported() -> None:
    left = torch.eye(M).to_sparse()
    with OperatorCounter() as counter:
        torch.sparse.mm(left, left)
    with pytest.raises(Unsupported, match="two sparse matrices depend on which of their numbers meet"):
        _ = counter.counts.flops
    with pytest.raises(Unsupported):
        PRODUCTS["_sparse_mm_reduce_impl_backward"][1]((), {}, None)


# other libraries


class Deformable(nn.Module):
    """An offset of two coordinates for each of nine taps; 64 channels; a head of 1000 classes."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.offset = nn.Conv2d(3, 18, 3, padding=1)
        self.deform = DeformConv2d(3, 64, 3, padding=1)
        self.head = nn.Linear(64, 1000)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.deform(images, self.offset(images)).mean(dim=(2, 3)))
        return logits


@pytest.mark.integration
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_deformable_convolution_costs_what_a_convolution_costs(device: str) -> None:
    with torch.device(device):
        model, images = Deformable(), torch.zeros(1, 3, 32, 32)
    offsets, deformed, head = 2 * 32 * 32 * 27 * 18, 2 * 32 * 32 * 27 * 64, 2 * 64 * 1000
    with torch.no_grad():
        assert counted(lambda: model(images)) == offsets + deformed + head == 4_662_272
    loss = model(images).sum()
    # the images need no gradient, but torchvision's backward pass makes it
    assert counted(loss.backward) == offsets + 2 * deformed + 2 * head


@pytest.fixture(scope="module")
def library() -> Iterator[None]:
    """``tests_of_vitbench::twice`` (x, weight) -> x @ weight, without a formula."""
    with torch.library._scoped_library("tests_of_vitbench", "FRAGMENT") as custom:
        custom.define("product(Tensor x, Tensor weight) -> Tensor")
        custom.impl("product", lambda x, weight: x @ weight, "CompositeExplicitAutograd")
        custom.define("fill(Tensor(a!) x) -> ()")
        custom.impl("fill", lambda x: None, "CompositeExplicitAutograd")
        custom.define("mul(Tensor x) -> Tensor")
        custom.impl("mul", lambda x: 2 * x, "CompositeExplicitAutograd")
        custom.define("composite(Tensor x, Tensor weight) -> Tensor")
        custom.impl("composite", lambda x, weight: x @ weight, "CompositeImplicitAutograd")
        yield


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_operators_of_other_libraries_are_named(device: str) -> None:
    ops: Any = torch.ops.tests_of_vitbench
    x, weight = torch.zeros(M, K, device=device), torch.zeros(K, N, device=device)
    with torch.no_grad(), OperatorCounter() as counter:
        ops.product(x, weight)
        ops.product(x, weight)
        ops.fill(x)  # returns nothing
        ops.mul(x)  # is not aten's
        ops.composite(x, weight)  # its parts are
    assert counter.counts.without_formula == {
        "tests_of_vitbench::product": 2,
        "tests_of_vitbench::fill": 1,
        "tests_of_vitbench::mul": 1,
    }
    assert counter.counts.flops == 2 * M * K * N


@pytest.mark.usefixtures("library")
def test_a_formula_registered_with_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.ops.tests_of_vitbench.product
    monkeypatch.setitem(flop_registry, product, lambda x, weight, out_val=None: 2 * x.numel() * weight.shape[1])
    assert counted(lambda: product(meta(M, K), meta(K, N))) == 2 * M * K * N


@pytest.mark.integration
def test_of_two_branches_the_more_expensive_one_counts() -> None:
    narrow, wide = torch.zeros(K, M), torch.zeros(K, 3 * M)

    def choose(x: Tensor) -> Tensor:
        chosen: Tensor = torch.cond(
            x.sum() > 0, lambda x: (x @ narrow).sum(1), lambda x: (x @ wide).sum(1), (x @ torch.zeros(K, K),)
        )
        return chosen

    assert counted(lambda: choose(torch.zeros(N, K))) == 2 * N * K * K + 2 * N * K * 3 * M


@pytest.mark.integration
def test_of_a_branch_that_does_not_count_the_operators_without_a_formula_are_named() -> None:
    wide = torch.zeros(K, M)

    def transformed(x: Tensor, times: int) -> Tensor:
        return torch.stack([torch.fft.rfft(x).abs().sum(1) for _ in range(times)]).sum(0)

    with torch.no_grad(), OperatorCounter() as counter, LeavesTorch(counter):
        x = torch.zeros(N, K)
        torch.cond(x.sum() > 0, lambda x: (x @ wide).sum(1) + transformed(x, 1), lambda x: transformed(x, 3), (x,))
        x.numpy()
    assert counter.counts.flops == 2 * N * K * M
    assert counter.counts.without_formula == {"aten::_fft_r2c": 3, "NumPy (torch.Tensor.numpy)": 1}


def test_transforms_and_factorisations_are_named() -> None:
    with OperatorCounter() as counter:
        torch.fft.rfft2(meta(2, 8, 8))
        torch.linalg.inv(meta(3, 3))
    assert counter.counts.without_formula == {"aten::_fft_r2c": 1, "aten::linalg_inv_ex": 1}


@pytest.mark.integration
@pytest.mark.parametrize("name", ["timm:mobilevit_xxs", "timm:test_vit"])
def test_torchs_own_counter_agrees_where_it_has_formulas(name: str) -> None:
    from vitbench.models import build_model

    with torch.device("meta"):
        model = build_model(name).eval().requires_grad_(False)
        size = model.default_cfg["input_size"][-1]
        images = torch.empty(1, 3, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as by_torch:
        model(images)
    assert counted(lambda: model(images)) == by_torch.get_total_flops()


@pytest.mark.integration
def test_the_committed_page_is_what_the_table_gives() -> None:
    from benchmarks.operator_table import PAGE, render

    page = PAGE.read_text(encoding="utf-8")
    version = ".".join(torch.__version__.split(".")[:2])
    if f"operators that torch {version} registers" in page:
        assert page == render()
    else:  # another torch has other operators; what it shares is counted alike
        words = {words for words, _ in PRODUCTS.values()}
        assert {words for words in words if f"| {words} |" in page} == words

"""The model of CUDA: saved tensors and workspaces by hand, autocast's types, and a real GPU where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.analysis.test_memory import HEADS, D, N, ViT, answer
from vitbench.analysis.memory import fit
from vitbench.analysis.memory_cuda import BESIDE_BYTES, BLOCK_BYTES, ModelledCuda, cuda_operators
from vitbench.metrics.support.fake_models import fake_mode
from vitbench.metrics.support.tensor_memory import TensorAccount

Saved = list[tuple[str, tuple[int, ...]]]


def saved_by(call: Callable[[], Tensor]) -> tuple[Tensor, Saved]:
    """The output, and types and shapes of the tensors that are kept for the backward pass."""
    kept: Saved = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append((str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return call(), kept


def attend(dtype: torch.dtype, width: int, mask: Tensor | None = None) -> tuple[Tensor, Saved, int]:
    """An attention on (2, 3, 50, width): its output, what it keeps, and the bytes that its backward pass adds."""
    with fake_mode(), cuda_operators(fused=True):
        inputs = [torch.empty(2, 3, 50, width, dtype=dtype, requires_grad=True) for _ in range(3)]
        output, kept = saved_by(lambda: F.scaled_dot_product_attention(*inputs, attn_mask=mask))
        grad = torch.empty_like(output)
        with TensorAccount({"batch": [*inputs, output, grad]}) as account:
            torch.autograd.grad(output, inputs, grad)
        return output, kept, account.peak()["activations"]


def test_half_precision_keeps_what_flash_attention_keeps() -> None:
    _, kept, peak = attend(torch.float16, 64)
    inputs = ("float16", (2, 3, 50, 64))
    assert kept == [inputs, inputs, inputs, inputs, ("float32", (2, 3, 50))]
    # in its backward pass: rows padded to 128 for the sums (B, H, L) and the query's gradient in fp32, three gradients
    gradients = 3 * 2 * (2 * 3 * 50 * 64)
    assert peak == gradients + 4 * (2 * 3 * 128) + 4 * (2 * 3 * 128 * 64)


def test_fp32_keeps_what_memory_efficient_attention_keeps() -> None:
    _, kept, peak = attend(torch.float32, 64)
    inputs = ("float32", (2, 3, 50, 64))
    assert kept == [inputs, inputs, inputs, inputs, ("float32", (2, 3, 64))]  # sums padded to 32 rows
    # three gradients; the sums (B, H, L); GradQTempStorage of kernel_backward.h: tiles of 64 x 64 for 50 rows
    assert peak == 4 * (2 * 3) * (3 * 50 * 64 + 50 + 64 * 64)


def test_heads_of_vit_huge_take_tiles_of_128_rows() -> None:
    """fmha_cutlassB_f32_aligned_128x64_k128 for a width of 80, two tiles side by side."""
    _, _, peak = attend(torch.float32, 80)
    assert peak == 4 * (2 * 3) * (3 * 50 * 80 + 50 + 128 * 128)


def test_fp32_heads_that_are_no_multiple_of_four_are_explicit() -> None:
    """check_head_dim_size_mem_efficient refuses them, so that torch keeps the whole matrix."""
    output, kept, _ = attend(torch.float32, 6)
    assert output.shape == (2, 3, 50, 6)
    assert ("float32", (2, 3, 50, 50)) in kept


def test_queries_of_five_dimensions_are_explicit() -> None:
    """check_tensor_shapes refuses them: the windows of Hiera."""
    with fake_mode(), cuda_operators(fused=True):
        query = torch.empty(2, 3, 4, 50, 64, dtype=torch.bfloat16, requires_grad=True)
        output, kept = saved_by(lambda: F.scaled_dot_product_attention(query, query, query))
    assert output.shape == query.shape
    assert (50, 50) in [shape[-2:] for _, shape in kept]


def test_a_mask_is_kept_with_rows_padded_to_eight() -> None:
    with fake_mode(), cuda_operators(fused=True):
        query, mask = torch.empty(2, 3, 50, 64, requires_grad=True), torch.empty(3, 50, 50)
        with TensorAccount({"batch": [query, mask]}) as account:
            output = F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
        kept = sum(event.change for event in account.events) - 4 * (query.numel() + mask.numel())
    assert kept == 4 * (output.numel() + 2 * 3 * 64 + 3 * 50 * 56)


def test_a_mask_takes_memory_efficient_attention_also_in_half_precision() -> None:
    with fake_mode():
        mask = torch.empty(50, 50, dtype=torch.float16)
    _, kept, _ = attend(torch.float16, 64, mask)
    assert kept[-2:] == [("float32", (2, 3, 64)), ("float16", (50, 50))]


def test_a_learned_bias_gets_its_gradient_of_every_image() -> None:
    with fake_mode():
        bias = torch.empty(3, 50, 50, requires_grad=True)
        with cuda_operators(fused=True):
            query = torch.empty(2, 3, 50, 64)
            output = F.scaled_dot_product_attention(query, query, query, attn_mask=bias)
        with TensorAccount({"batch": [query, output]}) as account:
            output.sum().backward()
        assert bias.grad is not None
        assert bias.grad.shape == bias.shape
    assert account.peak()["activations"] > 4 * 2 * 3 * 50 * 64


def test_narrow_heads_are_padded_to_eight() -> None:
    output, kept, _ = attend(torch.bfloat16, 12)
    assert output.shape == (2, 3, 50, 12)
    assert kept[0] == ("bfloat16", (2, 3, 50, 16))


def test_other_queries_than_keys_and_groups_of_heads() -> None:
    with fake_mode(), cuda_operators(fused=True):
        query, key = torch.empty(2, 6, 1, 64), torch.empty(2, 2, 50, 64)
        assert F.scaled_dot_product_attention(query, key, key, enable_gqa=True).shape == (2, 6, 1, 64)
        assert F.scaled_dot_product_attention(query[0], query[0], query[0]).shape == (6, 1, 64)


def autocast_types(make: Iterable[str]) -> dict[str, str]:
    """The type of the result of each operator for fp16 under CUDA's autocast."""
    x, weight = torch.empty(2, 4, 8, dtype=torch.float16), torch.empty(8, 8)
    operators = {
        "linear": lambda: F.linear(x, weight),
        "softmax": lambda: x.softmax(-1),
        "layer_norm": lambda: F.layer_norm(x, (8,)),
        "gelu": lambda: F.gelu(x),
        "sum": lambda: x.sum(-1),
        "mean": lambda: x.mean(-1),
        "norm": lambda: x.norm(),
        "pow": lambda: x**2,
        "exp": lambda: x.exp(),
        "add": lambda: x + x,
    }
    device = ModelledCuda("cpu")
    with fake_mode() as mode, cuda_operators(fused=True), device.autocast("amp"):
        x, weight = mode.from_tensor(x), mode.from_tensor(weight)
        return {name: str(operators[name]().dtype).removeprefix("torch.") for name in make}


def test_autocast_runs_in_fp32_what_cuda_runs_in_fp32() -> None:
    """The lists of torch's page "Automatic Mixed Precision", CUDA Op-Specific Behavior."""
    low = ("linear", "gelu", "mean", "add")
    high = ("softmax", "layer_norm", "sum", "norm", "pow", "exp")
    assert autocast_types((*low, *high)) == dict.fromkeys(low, "float16") | dict.fromkeys(high, "float32")


def test_nothing_of_it_stays() -> None:
    attention, dropout = F.scaled_dot_product_attention, F.dropout
    with cuda_operators(fused=True):
        assert F.scaled_dot_product_attention is not attention
    assert (F.scaled_dot_product_attention, F.dropout) == (attention, dropout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.ones(2, 2, dtype=torch.bfloat16).softmax(-1).dtype == torch.bfloat16


def test_softmax_in_fp32_makes_no_copy_of_its_input() -> None:
    with fake_mode(), cuda_operators(fused=False):
        x = torch.empty(10, 100, dtype=torch.float16, requires_grad=True)
        with ModelledCuda("cpu").autocast("amp"), TensorAccount({}) as account:
            x.softmax(-1)
    assert sum(account.peak().values()) == 4 * 10 * 100


def test_dropout_keeps_a_byte_a_number() -> None:
    with fake_mode(), cuda_operators(fused=False):
        x = torch.empty(10, 100, requires_grad=True)
        assert saved_by(lambda: F.dropout(x, 0.1))[1] == [("bool", (10, 100))]


def test_a_wide_model_takes_foreachs_five_copies_of_its_weights() -> None:
    """Weights, gradients, two moments, and the roots of all second moments at once."""
    model = ViT(width=512)
    weights = sum(one.numel() for one in model.parameters())
    found = fit(model, memory="2GiB", image_size=32, device="cuda", check=False)
    assert found.largest_batch > 1
    small = fit(model, memory=found.beside_bytes + 1, image_size=32, device="cuda")
    assert small.largest_batch == 0
    assert small.peak.phase == "optimizer"
    tensors = len(list(model.parameters()))
    assert small.peak.bytes == 4 * (5 * weights + tensors) + 4 * 3 * 32**2 + 8 + 4


def test_a_block_keeps_under_cudas_autocast_what_its_operators_keep() -> None:
    """Norms in fp32 with their outputs and statistics, fp16 copies for the products, everything else in fp16."""
    one, two = (fit(ViT(depth=depth), memory="1GiB", image_size=32, device="cuda", dtype="amp") for depth in (3, 4))
    norms = 2 * (4 * N * D + 8 * N)  # inputs of the norms in fp32: the residual stream; mean and deviation
    products = 2 * (1 + 1 + 1 + 4) * N * D  # inputs of qkv, proj, fc1 and fc2 in fp16
    attention = 2 * 3 * N * D + 4 * HEADS * N  # query, key and value; the output is proj's input
    gelu = 2 * 4 * N * D
    assert two.image_bytes - one.image_bytes == norms + products + attention + gelu


def test_the_answer_leaves_room_for_what_is_no_tensor_and_says_so() -> None:
    found = fit(ViT(), memory="1GiB", image_size=32, device="cuda")
    assert found.beside_bytes > BESIDE_BYTES
    assert found.beside_bytes % BLOCK_BYTES == 0
    assert 0 <= found.memory_bytes - found.peak.bytes - found.beside_bytes < found.image_bytes
    assert found.method.startswith("model of CUDA, not yet checked on a GPU: ")
    assert answer(ViT(), "64MiB").beside_bytes == 0


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "amp"])
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_a_gpu_allocates_what_the_model_says(mode: str, dtype: str) -> None:
    """Within the bytes left beside tensors of what torch.cuda.max_memory_allocated counts: blocks and workspaces."""
    from vitbench.analysis.model_summary import open_subject
    from vitbench.core.records import Cell
    from vitbench.devices import open_device
    from vitbench.metrics.support.in_process import subject_of

    name = "timm:vit_small_patch16_224"
    found = fit(name, memory="6GiB", device="cuda", mode=mode, dtype=dtype)
    base = open_subject(name, (224, 224), 1000)
    cell = Cell(model=name, image_size=(224, 224), num_classes=1000, batch_size=found.largest_batch, device="cuda",
                threads=1, mode=mode, dtype=dtype)  # fmt: skip
    device = open_device("cuda")
    with contextlib.closing(subject_of(cell, base.build)) as subject:
        subject.warm_up()
        device.synchronize()
        device.reset_peak()
        subject.run_once()
        device.synchronize()
        allocated = device.peak()
    assert -found.peak.bytes // 100 <= allocated - found.peak.bytes <= found.beside_bytes

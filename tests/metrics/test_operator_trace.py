"""A traced pass against hand counts of a plain ViT, module by module; attribution in the backward pass; bytes moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils.checkpoint import checkpoint

from vitbench.analysis.flops import count_training_step
from vitbench.core.errors import Unsupported
from vitbench.metrics.support.operator_counter import OperatorCounter
from vitbench.metrics.support.operator_trace import LOSS, UNATTRIBUTED, OperatorTrace, trace_operators
from vitbench.metrics.support.subject import empty_copies
from vitbench.metrics.support.tensor_memory import TensorAccount
from vitbench.models import build_model, describe_model, use_attention, without_fast_path
from vitbench.models.architectures.vit import VisionTransformer
from vitbench.models.cards import load_model_cards

Phase = Literal["forward", "backward"]

# a plain ViT: images of C x S x S, N patches of side P, L tokens, width D, h heads, MLP width M, K classes
B, C, S, P, D, h, M, K, DEPTH = 3, 3, 32, 8, 32, 4, 80, 10, 2
N = (S // P) ** 2
L = N + 1


@pytest.fixture(autouse=True)
def fakes() -> Iterator[None]:
    """Every tensor in this file is fake, without data."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def plain_vit() -> tuple[nn.Module, Tensor]:
    with unset_fake_temporarily(), torch.device("meta"):  # torch initialises no fake weights
        model = VisionTransformer(image_size=(S, S), num_classes=K, patch=P, width=D, depth=DEPTH, heads=h, mlp_width=M)
    return empty_copies(model, "cpu"), torch.empty(B, C, S, S)


def flops_by_module(trace: OperatorTrace, phase: Phase) -> dict[str, int]:
    found: dict[str, int] = {}
    for call in trace.calls:
        if call.phase == phase and call.flops:
            found[call.module] = found.get(call.module, 0) + call.flops
    return found


def moved_by_module(trace: OperatorTrace) -> dict[str, tuple[int, int]]:
    """Numbers of 4 bytes that the forward pass reads and writes."""
    found: dict[str, tuple[int, int]] = {}
    for call in trace.calls:
        if call.phase == "forward" and (call.bytes_read or call.bytes_written):
            read, written = found.get(call.module, (0, 0))
            found[call.module] = read + call.bytes_read // 4, written + call.bytes_written // 4
    return found


def in_each_block(costs: dict[str, Any]) -> dict[str, Any]:
    return {f"blocks.{index}{name}": cost for index in range(DEPTH) for name, cost in costs.items()}


# A plain ViT by hand

LINEAR = {"qkv": 2 * B * L * D * 3 * D, "proj": 2 * B * L * D * D, "fc1": 2 * B * L * D * M, "fc2": 2 * B * L * M * D}
ATTENTION = 2 * 2 * B * L * L * D


def test_the_flops_of_each_module_are_those_computed_by_hand() -> None:
    model, images = plain_vit()
    block = {
        ".attn": ATTENTION,
        ".attn.qkv": LINEAR["qkv"],
        ".attn.proj": LINEAR["proj"],
        ".mlp.fc1": LINEAR["fc1"],
        ".mlp.fc2": LINEAR["fc2"],
    }
    ends = {"patch_embed.proj": 2 * B * N * C * P * P * D, "head": 2 * B * D * K}
    trace = trace_operators(model.eval(), images)
    assert flops_by_module(trace, "forward") == ends | in_each_block(block)
    assert trace.flops("forward") == sum(ends.values()) + DEPTH * sum(block.values())
    assert not trace.saved_bytes


def test_the_backward_pass_takes_two_products_for_each_and_none_for_the_image() -> None:
    model, images = plain_vit()
    trace = trace_operators(model.train(), images, train=True)
    block = {
        ".attn": ATTENTION * 5 // 2,  # the fused kernel computes the scores again
        ".attn.qkv": 2 * LINEAR["qkv"],
        ".attn.proj": 2 * LINEAR["proj"],
        ".mlp.fc1": 2 * LINEAR["fc1"],
        ".mlp.fc2": 2 * LINEAR["fc2"],
    }
    ends = {"patch_embed.proj": 2 * B * N * C * P * P * D, "head": 2 * 2 * B * D * K}
    assert flops_by_module(trace, "backward") == ends | in_each_block(block)
    with use_attention(model, "explicit"):
        trace = trace_operators(model, images, train=True)
    assert flops_by_module(trace, "backward") == ends | in_each_block(block | {".attn": 2 * ATTENTION})


def test_the_bytes_that_each_module_moves_are_those_computed_by_hand() -> None:
    model, images = plain_vit()
    block = {
        "": (2 * 2 * B * L * D, 2 * B * L * D),  # two residual additions
        ".norm1": (B * L * D + 2 * D, B * L * D + 2 * B * L),  # mean and deviation of each token
        ".norm2": (B * L * D + 2 * D, B * L * D + 2 * B * L),
        ".attn": (3 * B * L * D, B * L * D + B * h * L),  # a log-sum-exp for each row of scores
        ".attn.qkv": (B * L * D + 3 * D * D + 3 * D, 3 * B * L * D),
        ".attn.proj": (B * L * D + D * D + D, B * L * D),
        ".mlp.fc1": (B * L * D + D * M + M, B * L * M),
        ".mlp.act": (B * L * M, B * L * M),
        ".mlp.fc2": (B * L * M + M * D + D, B * L * D),
    }
    ends = {
        # CLS is one row, whatever the batch; then tokens and positions
        "": (D + B * N * D + B * L * D + L * D, 2 * B * L * D),
        "patch_embed.proj": (B * C * S * S + D * C * P * P + D, B * N * D),
        "norm": (B * D + 2 * D, B * D + 2 * B),
        "head": (B * D + K * D + K, B * K),
    }
    assert moved_by_module(trace_operators(model.eval(), images)) == ends | in_each_block(block)


def test_the_bytes_that_each_module_saves_are_those_computed_by_hand() -> None:
    model, images = plain_vit()
    block = {
        ".norm1": B * L * (D + 2),  # its input, and mean and deviation of each token
        ".attn.qkv": B * L * D,
        ".attn": B * L * (3 * D + D + h),  # q, k, v, the result, a log-sum-exp for each row of scores
        ".norm2": B * L * (D + 2),  # proj saves the attention's result, which is there already
        ".mlp.fc1": B * L * D,
        ".mlp.act": B * L * M,
        ".mlp.fc2": B * L * M,
    }
    ends = {"norm": B * (L * D + 2), "head": B * D}  # the norm sees CLS, which keeps all tokens
    saved = trace_operators(model.train(), images, train=True).saved_bytes
    assert {path: size // 4 for path, size in saved.items()} == ends | in_each_block(block)


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", ["plain", "mobile", "vit_layer6_32", "cifar_lightweight_vit", "timm:xcit_nano_12_p16_224"]
)
def test_what_is_saved_is_what_stays_alive_beside_the_output(name: str) -> None:
    if name == "mobile":
        model, images = Mobile(), torch.empty(5, 3, 20, 20)
    else:
        model, images = plain_vit() if name == "plain" else fake_of(name, batch=2)
    model.train()
    saved = trace_operators(model, images, train=True).saved_bytes
    before = {"weights": [*model.parameters(), *model.buffers()], "batch": [images]}
    with without_fast_path(), TensorAccount(before) as account:
        output = model(images)
    alive = sum(event.change for event in account.events if event.storage not in account.kinds)
    outputs = sum(one.untyped_storage().nbytes() for one in ([output] if isinstance(output, Tensor) else output))
    assert sum(saved.values()) == alive - outputs


class Mobile(nn.Module):
    """Images (B, 3, 20, 20); groups, batch norm, activations in place, dropout, and ``again`` what is checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.grouped = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 32, 3, 1, 1, groups=4)
        self.again = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, 32))
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)), inplace=True)
        x = self.grouped(F.relu(self.depthwise(x), inplace=True)).mean((2, 3))
        x = checkpoint(self.again, x, use_reentrant=False)  # type: ignore[assignment]
        logits: Tensor = self.head(self.drop(x))
        return logits


def test_a_convolution_of_groups_has_the_flops_computed_by_hand() -> None:
    model, images = Mobile(), torch.empty(5, 3, 20, 20)
    pixels = 5 * 10 * 10
    products = {
        "stem": 2 * pixels * 16 * 3 * 9,
        "depthwise": 2 * pixels * 16 * 9,
        "grouped": 2 * pixels * 32 * 4 * 9,
        "again.0": 2 * 5 * 32 * 64,
        "again.3": 2 * 5 * 64 * 32,
        "head": 2 * 5 * 32 * 10,
    }
    assert flops_by_module(trace_operators(model.eval(), images), "forward") == products
    times = {"stem": 1, "again.0": 3}  # the images need no gradient; checkpointing runs all but the last product again
    backward = flops_by_module(trace_operators(model.train(), images, train=True), "backward")
    assert backward == {path: times.get(path, 2) * flops for path, flops in products.items()}


def test_saved_bytes_are_those_that_hooks_of_a_real_run_see() -> None:
    saved = trace_operators(Mobile().train(), torch.empty(5, 3, 20, 20), train=True).saved_bytes
    with unset_fake_temporarily():
        model, images = Mobile().train(), torch.randn(5, 3, 20, 20)
        resident = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers(), images)}
        kept: dict[int, int] = {}
        seen = []  # so that no address is used twice

        def pack(tensor: Tensor) -> Tensor:
            seen.append(tensor)
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(images)
    assert sum(saved.values()) == sum(size for address, size in kept.items() if address not in resident)


@pytest.mark.parametrize("train", [False, True])
def test_fake_tensors_show_what_a_run_does(train: bool) -> None:
    fake, images = plain_vit()
    with unset_fake_temporarily():
        real = VisionTransformer(image_size=(S, S), num_classes=K, patch=P, width=D, depth=DEPTH, heads=h, mlp_width=M)
        found = trace_operators(real.train(train), torch.randn(B, C, S, S), train=train)
    assert trace_operators(fake.train(train), images, train=train) == found


# Attribution in the backward pass


class Doubled(torch.autograd.Function):
    """A product with a backward pass of its own."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        x, weight = context.saved_tensors
        return gradient @ weight.T, x.T @ gradient


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.empty(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = Doubled.apply(self.linear(x), self.weight)
        return product


class Outer(nn.Module):
    """Images (B, 3, 1, 1) through parts that are hard to attribute; ``wrap`` calls the middle."""

    def __init__(self, wrap: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.inner = Inner()
        self.head = nn.Linear(8, 10)
        self.wrap = wrap

    def forward(self, images: Tensor) -> Tensor:
        x = self.wrap(self.inner, self.first(images.flatten(1)))
        x = x @ x.T @ x  # functional: of the model itself
        logits: Tensor = self.head(x + self.wrap(self.inner, x))
        return logits


CALL = 2 * 4 * 8 * 8  # FLOPs of a product of the middle, for four images


def call(module: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = module(x)
    return result


def checkpointed(use_reentrant: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda module, x: checkpoint(module, x, use_reentrant=use_reentrant)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("wrap", "again"),
    [(call, 0), (checkpointed(False), 1), (checkpointed(True), 1)],
    ids=["plain", "hooks", "reentrant"],
)
def test_functions_shared_modules_and_checkpoints_are_attributed(wrap: Callable[..., Tensor], again: int) -> None:
    trace = trace_operators(Outer(wrap), torch.empty(4, 3, 1, 1), train=True)
    twice = 2 * CALL  # the middle runs twice
    backward = {
        "first": 2 * 4 * 3 * 8,  # images need no gradient
        "inner.linear": (2 + again) * twice,
        "inner": (2 + again) * twice,
        "": 2 * (2 * 2 * 4 * 4 * 8),
        "head": 2 * 2 * 4 * 8 * 10,
    }
    assert flops_by_module(trace, "forward") == {
        "first": 2 * 4 * 3 * 8,
        "inner.linear": twice,
        "inner": twice,
        "": 2 * 2 * 4 * 4 * 8,
        "head": 2 * 4 * 8 * 10,
    }
    assert flops_by_module(trace, "backward") == backward
    assert not [one for one in trace.calls if one.module == UNATTRIBUTED and one.bytes_written]


def test_the_gradient_of_a_shared_weight_is_added_in_its_holder() -> None:
    trace = trace_operators(Outer(call), torch.empty(4, 3, 1, 1), train=True)
    added = [call for call in trace.calls if call.phase == "backward" and call.name == "add" and call.flops == 0]
    assert {"inner", "inner.linear"} <= {call.module for call in added}


def test_the_loss_is_not_the_models() -> None:
    trace = trace_operators(*plain_vit(), train=True)
    assert {call.module for call in trace.calls if "softmax" in call.name} == {LOSS}
    phases = {call.phase for call in trace.calls if call.module == LOSS}
    assert phases == {"forward", "backward"}


def fake_of(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    with unset_fake_temporarily(), torch.device("meta"):
        model = build_model(name)
    return empty_copies(model, "cpu"), torch.empty(batch, 3, *describe_model(name).image_size)


def check_sums(name: str, attention: str) -> None:
    """Forward and backward FLOPs equal the counter's to the unit, and all of them have a module."""
    model, images = fake_of(name, batch=2)
    with use_attention(model, attention), without_fast_path():
        model.eval()
        with torch.no_grad(), OperatorCounter() as counter:
            model(images)
        assert trace_operators(model, images).flops("forward") == counter.counts.flops
        model.train()
        forward, backward = count_training_step(model, images)
        trace = trace_operators(model, images, train=True)
    assert trace.flops("forward") == forward.flops
    assert trace.flops("backward") == backward.flops
    assert sum(call.elementwise_flops for call in trace.calls if call.phase == "backward") == backward.elementwise_flops
    assert UNATTRIBUTED not in flops_by_module(trace, "backward")


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    [
        "vit_layer6_32",
        "cifar_lightweight_vit",
        "cifar_dynamic_vit_learned",
        "timm:mobilevit_xxs",
        "torchvision:vit_b_16",
    ],
)
def test_sums_are_the_counters(name: str) -> None:
    check_sums(name, "fused")


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["fused", "explicit"])
@pytest.mark.parametrize("name", [card.name for card in load_model_cards()])
def test_sums_are_the_counters_for_every_model(name: str, attention: str) -> None:
    check_sums(name, attention)


# Bytes


class Calls(nn.Module):
    """A module that is a function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "read", "written"),
    [
        (lambda x: x @ x.new_empty(8, 5), 4 * 8 + 8 * 5, 4 * 5),
        (lambda x: x.view(8, 4).t()[1:].unsqueeze(0).expand(3, -1, -1), 0, 0),
        (lambda x: x * x, 32, 32),
        (lambda x: x[:2] * x[2:], 32, 16),
        (lambda x: x[:1] + x, 32, 32),  # a row within the whole is not read again
        (lambda x: x.new_empty(1).expand(4, 8) + x, 1 + 32, 32),
        (lambda x: x.add_(1), 32, 32),
        (lambda x: x.zero_(), 0, 32),
        (lambda x: x.copy_(x.new_empty(8)), 8, 32),
        (lambda x: torch.add(x, 1, out=x.new_empty(4, 8)), 32, 32),
        (lambda x: x.reshape(2, 16), 0, 0),
        (lambda x: x.t().reshape(32), 32, 32),
        (lambda x: torch.cat([x, x]), 32, 64),
        (lambda x: F.embedding(torch.zeros(3, dtype=torch.long), x.new_empty(1000, 8)), 3 * 8 + 2 * 3, 3 * 8 + 2 * 3),
        (lambda x: torch.empty_like(x), 0, 0),
        (lambda x: torch.ones_like(x), 0, 32),
        (lambda x: x.new_zeros(3), 0, 3),
        (lambda x: F.conv2d(x.view(1, 2, 4, 4), x.new_empty(6, 1, 3, 3), groups=2), 32 + 6 * 9, 6 * 2 * 2),
        (lambda x: x[:, torch.zeros(2, dtype=torch.long)], 4 * 2 + 2 * 2, 4 * 2 + 2 * 2),
        (lambda x: x.softmax(-1), 32, 32),
    ],
    ids=[
        "product",
        "views",
        "square",
        "halves",
        "overlap",
        "expanded",
        "add_",
        "zero_",
        "copy_",
        "out",
        "reshape",
        "copies",
        "cat",
        "embedding",
        "empty",
        "ones_like",
        "new_zeros",
        "groups",
        "index",
        "softmax",
    ],
)
def test_bytes_are_the_distinct_numbers_of_inputs_and_outputs(
    function: Callable[[Tensor], Any], read: int, written: int
) -> None:
    calls = trace_operators(Calls(function), torch.empty(4, 8)).calls
    assert sum(call.bytes_read for call in calls) == 4 * read
    assert sum(call.bytes_written for call in calls) == 4 * written


def test_autocast_casts_weights_in_the_traced_pass() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 8), nn.Linear(8, 10))
    with torch.autocast("cpu", torch.bfloat16):
        trace = trace_operators(model, torch.empty(4, 3, 1, 1), train=True)
    casts = [call.module for call in trace.calls if call.name == "_to_copy" and call.phase == "forward"]
    assert casts[:5] == ["1", "1", "1", "2", "2"]  # the images, two weights and two biases
    # inputs in bf16, and the copy of the weight that a gradient passes through
    assert {path: size // 2 for path, size in trace.saved_bytes.items()} == {"1": 4 * 3, "2": 4 * 8 + 8 * 10}
    assert {call.dtype for call in trace.calls if call.flops} == {"bf16"}


def test_the_numbers_type_is_that_of_the_first_tensor() -> None:
    calls = trace_operators(Calls(lambda x: x.bfloat16() + 1), torch.empty(4, 8)).calls
    assert [(call.name, call.dtype) for call in calls] == [("_to_copy", "fp32"), ("add", "bf16")]


def test_an_operator_with_a_kernel_of_its_own_is_one_call() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 10))
    calls = trace_operators(model, torch.empty(4, 3, 1, 1), train=True).calls
    (backward,) = [call for call in calls if call.name == "silu_backward"]
    assert (backward.elementwise_flops, backward.bytes_read, backward.bytes_written) == (6 * 32, 2 * 4 * 32, 4 * 32)
    assert not [call for call in calls if call.name == "sigmoid"]  # a part of its formula


# What it leaves, what it refuses


def test_the_model_is_left_without_hooks_and_gradients() -> None:
    model, images = plain_vit()
    trace_operators(model, images, train=True)
    assert all(parameter.grad is None for parameter in model.parameters())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_product_whose_flops_are_unknown_is_unsupported() -> None:
    with unset_fake_temporarily():
        sparse = torch.eye(8).to_sparse()
        with pytest.raises(Unsupported, match="two sparse matrices"):
            trace_operators(Calls(lambda x: torch.sparse.mm(sparse, sparse)), torch.ones(4, 8))


def test_what_numpy_computes_is_not_covered() -> None:
    with unset_fake_temporarily():
        calls = trace_operators(Calls(lambda x: torch.from_numpy(2 * x.numpy())), torch.ones(4, 8)).calls
    assert [(call.module, call.lower_bound) for call in calls if "NumPy" in call.name] == [("", True)]


def test_output_shapes_are_those_of_the_first_call() -> None:
    shapes = trace_operators(*plain_vit()).output_shapes
    assert shapes["blocks.1.mlp.fc1"] == (B, L, M)
    assert shapes[""] == (B, K)

"""The largest batch: closed forms of a small ViT, real steps on the CPU, and answers that no trace can give."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitbench
from vitbench.analysis.memory import Fit, checkpoint_blocks, choose_device, fit, fit_models
from vitbench.cli import run_command
from vitbench.core.errors import Unsupported, UsageError, VitbenchError
from vitbench.core.records import Cell
from vitbench.metrics.support.in_process import subject_of
from vitbench.metrics.support.memory_trace import BatchTrace
from vitbench.metrics.support.tensor_memory import follow_call

#: Tokens, width and heads of the ViT below on 32x32 px.
N, D, HEADS = 16, 32, 4


class Block(nn.Module):
    """A pre-norm block: attention, then an MLP of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)  # (B, H, N, d / H)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Patches of 8 px, ``depth`` blocks, the mean of the tokens, ten classes."""

    def __init__(self, depth: int = 2, width: int = D) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.patches(images).flatten(2).transpose(1, 2)).mean(1))
        return logits


def answer(model: nn.Module, memory: int | str = "64MiB", **options: Any) -> Fit:
    return fit(model, memory=memory, image_size=32, device=options.pop("device", "cpu"), **options)


def peak_bytes(model: nn.Module, batch: int, **options: Any) -> int:
    """The predicted peak at a batch: that of the memory which the batch exactly takes."""
    found = answer(model, "64MiB", **options)
    return found.fixed_bytes + batch * found.image_bytes


def measured(
    model: nn.Module, batch: int, optimizer: Callable[..., torch.optim.Optimizer] | None = None, **fields: Any
) -> int:
    """The bytes of tensors in a real training step or forward pass."""
    cell = Cell(model="own", image_size=(32, 32), num_classes=10, batch_size=batch, device="cpu", threads=1,
                mode=fields.pop("mode", "train"), **fields)  # fmt: skip
    subject = subject_of(cell, lambda: model)
    with contextlib.closing(subject):
        if optimizer is not None:
            vars(subject)["optimizer"] = optimizer(subject.model.parameters())
        subject.warm_up()
        return sum(follow_call(subject).peak().values())


# Closed forms


def block_parameters(width: int) -> int:
    return 12 * width**2 + 13 * width  # four products with biases (9 widths), two norms (4)


def test_a_block_costs_what_it_saves_and_three_copies_of_its_weights() -> None:
    """At the peak, in the last block's backward pass, a further block holds its weights, AdamW's two moments and step
    counts, and what it has saved: the inputs of two norms with their statistics, of four products and of GELU, and
    query, key, value, output and log-sum-exp of its attention.
    """
    one, two = answer(ViT(depth=3)), answer(ViT(depth=4))
    assert (one.peak.phase, two.peak.phase) == ("backward", "backward")
    saved = 16 * N * D + 4 * N + HEADS * N  # inputs 1 + 1 + 1 + 1 widths, qkv 3, attention 1, fc1 4, GELU 4
    assert two.image_bytes - one.image_bytes == 4 * saved
    assert two.fixed_bytes - one.fixed_bytes == 4 * (3 * block_parameters(D) + 12)


def test_a_wide_model_takes_four_copies_of_its_weights_and_the_largest_update() -> None:
    """One image of a wide ViT: weights, gradients and AdamW's two moments, a step count for each tensor, and the root
    and the quotient of the largest tensor; before it the quotient of the tensor of the update before.
    """
    width = 512
    model = ViT(depth=2, width=width)
    weights = sum(one.numel() for one in model.parameters())
    assert weights == 2 * block_parameters(width) + 3 * 64 * width + width + 10 * width + 10
    peak = BatchTrace(subject_of(found_cell(1), lambda: model)).direct(1)
    assert peak.phase == "optimizer"
    tensors = len(list(model.parameters()))
    update = 2 * 4 * width**2 + 4 * width  # fc1's or fc2's weight, after fc1's bias of 4 widths
    loss_and_batch = 4 * 3 * 32**2 + 8 + 4
    assert peak.bytes == 4 * (4 * weights + tensors + update) + loss_and_batch


def found_cell(batch: int) -> Cell:
    return Cell(
        model="own", image_size=(32, 32), num_classes=10, batch_size=batch, device="cpu", threads=1, mode="train"
    )


def test_inference_holds_the_weights_and_one_blocks_work() -> None:
    """At GELU of the second block: the images; the embedding and the block's input, which their callers hold; query, key
    and value, the sum with attention, and both sides of GELU (four widths each).
    """
    found = answer(ViT(), mode="infer")
    assert (found.peak.phase, found.peak.operator) == ("forward", "aten::gelu")
    weights = 4 * sum(one.numel() for one in ViT().parameters())
    assert found.peak.parts["weights"] == weights
    assert found.image_bytes == 4 * (3 * 32**2 + (2 + 3 + 1 + 8) * N * D)


# Against real steps


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [
        ({}, None),
        ({"dtype": "bf16"}, None),
        ({"attention": "explicit"}, None),
        ({"optimizer": "adam"}, torch.optim.Adam),
        ({"optimizer": "sgd"}, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)),
        ({"mode": "infer"}, None),
    ],
)
def test_the_answer_and_one_image_more_are_the_bytes_of_real_steps(options: dict[str, str], optimizer: Any) -> None:
    found = answer(ViT(), "4MiB", **options)
    assert found.largest_batch > 2
    fields = {name: value for name, value in options.items() if name != "optimizer"}
    assert measured(ViT(), found.largest_batch, optimizer, **fields) == found.peak.bytes <= found.memory_bytes
    one_more = found.peak.bytes + found.image_bytes
    assert measured(ViT(), found.largest_batch + 1, optimizer, **fields) == one_more > found.memory_bytes


def test_under_autocast_the_answer_is_within_a_thousandth_of_a_real_step() -> None:
    """Fake norms keep the statistics of bf16 inputs in bf16, real ones in fp32."""
    model = ViT(width=256)
    found = answer(model, "64MiB", dtype="amp")
    assert measured(model, found.largest_batch, dtype="amp") == pytest.approx(found.peak.bytes, rel=1e-3)


def test_checkpointed_blocks_take_what_a_real_step_takes() -> None:
    found = answer(ViT(depth=4), "8MiB", checkpointing=True)
    model = ViT(depth=4)
    checkpoint_blocks(model)
    assert measured(model, found.largest_batch) == found.peak.bytes
    assert found.largest_batch > answer(ViT(depth=4), "8MiB").largest_batch


@pytest.mark.integration
def test_timms_own_checkpointing_takes_what_a_real_step_takes() -> None:
    import timm

    def make() -> nn.Module:
        return timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, depth=3)

    found = answer(make(), "64MiB", checkpointing=True)
    model = make()
    checkpoint_blocks(model)
    assert model.grad_checkpointing
    assert measured(model, found.largest_batch) == found.peak.bytes


def test_more_memory_never_means_fewer_images() -> None:
    found = [answer(ViT(), kib * 2**10, check=False).largest_batch for kib in range(500, 3000, 250)]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_the_parts_add_up_and_the_line_meets_the_peak() -> None:
    found = answer(ViT(), "4MiB")
    assert sum(found.peak.parts.values()) == found.peak.bytes
    assert found.fixed_bytes + found.largest_batch * found.image_bytes == found.peak.bytes
    assert found.beside_bytes == 0
    assert f"a direct trace at {found.largest_batch} confirms it" in found.method
    assert "confirms" not in answer(ViT(), "4MiB", check=False).method


# What no arithmetic tells


class Pairs(nn.Module):
    """Compares each image with each, so that its tensors grow with the square of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32**2, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        logits: Tensor = self.head((x @ x.T).softmax(-1) @ x)
        return logits


class ReadsData(nn.Module):
    """Keeps the images that are bright."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32**2, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1)[images.mean((1, 2, 3)) > 0])
        return logits


def test_an_answer_that_a_direct_trace_contradicts_is_an_error() -> None:
    with pytest.raises(VitbenchError, match=r"bytes by arithmetic and .* bytes in a direct trace"):
        answer(Pairs(), "64MiB")


def test_models_that_read_data_and_weights_in_fp16_are_unsupported() -> None:
    with pytest.raises(Unsupported, match="reads values"):
        answer(ReadsData())
    with pytest.raises(Unsupported, match="fp16"):
        answer(ViT(), dtype="fp16")


def test_a_model_without_blocks_cannot_be_checkpointed() -> None:
    with pytest.raises(Unsupported, match="no list of blocks"):
        answer(Pairs(), checkpointing=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamm"}, "--optimizer 'adamm' is not known: give adamw, adam, sgd"),
        ({"dtype": "fp8"}, "--dtype 'fp8' is not known"),
        ({"mode": "both"}, "--mode 'both' is not known: give infer, train"),
        ({"mode": "infer", "checkpointing": True}, "--checkpointing is for training"),
    ],
)
def test_settings_that_do_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        answer(ViT(), **options)


@pytest.mark.parametrize("memory", ["8GG", "-1", "0", "", "lots"])
def test_amounts_that_are_no_memory(memory: str) -> None:
    with pytest.raises(UsageError, match="not a valid memory size: give 8GiB"):
        answer(ViT(), memory)


def test_a_module_needs_an_image_size_and_a_device_a_model() -> None:
    with pytest.raises(UsageError, match="image_size="):
        vitbench.fit(ViT(), memory="1GiB")
    with pytest.raises(UsageError, match="nothing models its memory"):
        choose_device("mps")
    with pytest.raises(UsageError, match="Unknown device 'gpu'"):
        choose_device("gpu")
    assert choose_device("cuda:1") == "cuda:1"


# The command


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(["fit", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json_has_base_units_and_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = ask(capsys, "vit_layer6_32", "--memory", "256MiB", "--device", "cpu", "--json")
    assert (code, errors) == (0, "")
    (found,) = json.loads(out)
    assert found["memory_bytes"] == 256 * 2**20
    assert 0 <= found["memory_bytes"] - found["peak"]["bytes"] < found["image_bytes"]
    assert found["peak"]["batch"] == found["largest_batch"]
    assert (found["mode"], found["dtype"], found["optimizer"], found["device"]) == ("train", "fp32", "adamw", "cpu")
    assert f"torch {torch.__version__}" in found["method"]


def test_one_model_is_a_block_and_several_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--memory", "256MiB", "--image-size", "32", "--device", "cpu", "--no-check")
    code, out, _ = ask(capsys, "vit_layer6_32", *common)
    assert code == 0
    assert out.startswith(
        "vit_layer6_32  (32 px, 10 classes)\n  train, fp32, fused attention, adamw, 256.0 MiB on cpu\n"
    )
    assert "--compare tells how many" in out
    code, out, _ = ask(capsys, "vit_layer6_32", "vit_basic_tutorial", *common, "--compare")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["model", "amp", "checkpointing", "amp", "checkpointing", "sgd"] in rows
    assert max(map(len, out.splitlines())) <= 100


def test_not_even_one_image_is_an_answer_with_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = ask(capsys, "vit_layer6_32", "--memory", "1MiB", "--device", "cpu")
    assert (code, errors) == (1, "")
    assert "0: not even one image fits in 1.0 MiB" in out
    assert "at batch 1" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("vit_basic", "--memory", "8GG"), 2, "'8GG' is not a valid memory size"),
        (("vit_basic", "--memory", "16"), 2, "--memory: '16' is 16 bytes. Give a unit, such as 16GiB"),
        (("vit_basik", "--memory", "8GiB"), 2, "Did you mean 'vit_basic'?"),
        (("vit_basic", "--memory", "8GiB", "--dtype", "fp8"), 2, "--dtype 'fp8' is not known"),
        (("vit_basic", "--memory", "8GiB", "--dtype", "fp16"), 1, "amp trains in fp16 and fp32"),
        (("vit_basic", "--memory", "8GiB", "--image-size", "33"), 2, "33"),
        (("vit_basic", "--memory", "8GiB", "--device", "gpu"), 2, "Unknown device 'gpu'"),
        (("vit_basic",), 2, "--memory"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, out, errors = ask(capsys, *arguments)
    assert (found, out) == (code, "")
    assert errors.startswith("Error: ")
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_without_a_gpu_one_line_names_the_other_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitbench.analysis.memory.find_devices", lambda: ["cpu"])
    code, _, errors = ask(capsys, "vit_layer6_32", "--memory", "1GiB", "--no-check")
    assert code == 0
    assert errors == "No GPU here, so these are bytes of CPU tensors. For a GPU elsewhere add --device cuda\n"
    monkeypatch.setattr("vitbench.analysis.memory.find_devices", lambda: ["cpu", "cuda"])
    assert choose_device("auto") == "cuda"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "images"),
    [
        ({}, 14),
        ({"attention": "explicit"}, 11),
        ({"dtype": "amp"}, 21),
        ({"dtype": "amp", "checkpointing": True}, 163),
    ],
)
def test_vit_huge_in_16_gib(options: dict[str, Any], images: int) -> None:
    found = fit("timm:vit_huge_patch14_224", memory="16GiB", device="cpu", **options)
    assert found.largest_batch == images


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "images"),
    [("vit_base_patch16_224", (18, 30, 108, 142)), ("vit_large_patch16_224", (4, 5, 35, 42))],
)
def test_the_worked_example_of_the_page(model: str, images: tuple[int, ...]) -> None:
    """docs/analysis.md: training at 384 px in 8 GB, as asked, with amp, with checkpointing, and with both."""
    (found,) = fit_models([f"timm:{model}"], memory="8GB", image_size="384", device="cuda", check=False, compare=True)
    options = ("--dtype amp", "--checkpointing", "--dtype amp --checkpointing")
    assert (found["largest_batch"], *(found["changes"][name] for name in options)) == images

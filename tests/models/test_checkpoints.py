"""Checkpoints: what is saved comes back, weights of other libraries give the same logits, and bad files are one line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm.models.vision_transformer
import torch
import torchvision.models.vision_transformer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitbench.core.errors import DataError, StorageError, UsageError
from vitbench.models import build_model
from vitbench.models.architectures.blocks import resize_position_grid
from vitbench.models.architectures.vit import VisionTransformer
from vitbench.models.weights.checkpoints import (
    CheckpointError,
    CheckpointReport,
    digest_of,
    load_checkpoint,
    read_facts,
    save_checkpoint,
)
from vitbench.models.weights.layouts import LAYOUTS

State = dict[str, Tensor]


def small_ours(**changed: Any) -> VisionTransformer:
    sizes: dict[str, Any] = {
        "image_size": (32, 32),
        "num_classes": 5,
        "patch": 4,
        "width": 48,
        "depth": 2,
        "heads": 3,
        "mlp_width": 192,
    }
    return VisionTransformer(**sizes | changed).eval()


def small_torchvision(side: int = 32, classes: int = 5) -> nn.Module:
    model = torchvision.models.vision_transformer.VisionTransformer(
        image_size=side, patch_size=4, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=192, num_classes=classes
    )
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision starts at 0, and zeros prove nothing
    return model.eval()


def small_timm(**changed: Any) -> nn.Module:
    sizes: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 5,
    }
    return timm.models.vision_transformer.VisionTransformer(**sizes | changed).eval()


def randomise(model: nn.Module) -> nn.Module:
    """Every parameter random: biases and norms that start at 0 and 1 would hide a wrong name."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def logits(model: nn.Module, side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        result: Tensor = model.eval()(torch.randn(2, 3, side, side, generator=generator))
    return result


def assert_same_logits(actual: nn.Module, expected: nn.Module, side: int = 32) -> None:
    assert logits(expected, side).std() > 0.01
    torch.testing.assert_close(logits(actual, side), logits(expected, side), rtol=0, atol=1e-5)


def saved(state: object, path: Path) -> Path:
    torch.save(state, path)
    return path


def snapshot(model: nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: State) -> None:
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def hugging_face_names(state: State, *, release: int) -> State:
    """The state dict of a model of ours as ViTForImageClassification has it."""
    block = "vit.encoder.layer" if release == 4 else "vit.layers"
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense" if release == 4 else "attention.o_proj",
        "mlp.fc1": "intermediate.dense" if release == 4 else "mlp.fc1",
        "mlp.fc2": "output.dense" if release == 4 else "mlp.fc2",
    }
    qkv = (
        [f"attention.attention.{part}" for part in ("query", "key", "value")]
        if release == 4
        else [f"attention.{part}_proj" for part in "qkv"]
    )
    result = {
        "vit.embeddings.cls_token": state["cls_token"],
        "vit.embeddings.position_embeddings": state["pos_embed"],
    }
    for p in ("weight", "bias"):
        result[f"vit.embeddings.patch_embeddings.projection.{p}"] = state[f"patch_embed.proj.{p}"]
        result[f"vit.layernorm.{p}"] = state[f"norm.{p}"]
        result[f"classifier.{p}"] = state[f"head.{p}"]
        for i in range(2):
            for ours, theirs in parts.items():
                result[f"{block}.{i}.{theirs}.{p}"] = state[f"blocks.{i}.{ours}.{p}"]
            for theirs, value in zip(qkv, state[f"blocks.{i}.attn.qkv.{p}"].chunk(3), strict=True):
                result[f"{block}.{i}.{theirs}.{p}"] = value
    assert len(result) == 8 + 2 * 16
    return result


def cifar10_vit_names(state: State, *, flat: bool) -> State:
    """The state dict of our vit_layer6_32 as ViT-Classification-CIFAR10 publishes it."""
    parts = {"q": "queries", "k": "keys", "v": "values", "proj": "out_projection"}
    result = {}
    for key, value in state.items():
        new = key.replace("patch_embed.proj.", "embedding.conv1.")
        new = re.sub(r"^head\.", "classifier.", new)
        new = re.sub(r"^blocks\.(\d+)\.", r"encoder.\1.", new).replace(".mlp.", ".")
        new = re.sub(r"\.attn\.(\w+)\.", lambda found: f".attention.{parts[found[1]]}.", new)
        result[new] = value
    result["embedding.cls_token"] = result.pop("cls_token")
    result["embedding.pos_embedding"] = result.pop("pos_embed")
    if flat:
        result["embedding.cls_token"] = result["embedding.cls_token"].reshape(-1)
        result["embedding.pos_embedding"] = result["embedding.pos_embedding"][0]
    return result


# --- our own files


def test_a_saved_checkpoint_comes_back_with_its_facts(tmp_path: Path) -> None:
    model = build_model("vit_layer6_32")
    path = tmp_path / "checkpoints" / "abc.safetensors"
    save_checkpoint(model, path, {"model": "vit_layer6_32", "image_size": [32, 32], "classes": ["null", "eins"]})
    state = load_file(path)
    assert read_facts(path) == {"model": "vit_layer6_32", "image_size": [32, 32], "classes": ["null", "eins"]}
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [one.name for one in path.parent.iterdir()] == ["abc.safetensors"]


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_checkpoint(model, tmp_path / "tied.safetensors", {})
    state = load_file(tmp_path / "tied.safetensors")
    assert torch.equal(state["0.weight"], state["1.weight"])


def test_a_write_that_fails_is_one_error_and_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="taken"):
        save_checkpoint(nn.Linear(2, 2), tmp_path / "taken", {})
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]


def test_a_saved_checkpoint_loads_and_the_report_tells_of_it(tmp_path: Path) -> None:
    path = tmp_path / "weights"  # the content counts, not the extension
    theirs, ours = randomise(small_ours()), small_ours()
    facts = {"model": "small", "image_size": [32, 32]}
    save_checkpoint(theirs, path, facts)
    report = load_checkpoint(ours, str(path))
    assert_same_logits(ours, theirs)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert report == CheckpointReport(
        path="weights",
        layout="vitbench",
        digest=digest[:16],
        tensors=len(theirs.state_dict()),
        dtype="float32",
        resampled=None,
        replaced_head=False,
        facts=facts,
    )
    assert digest_of(path) == digest
    assert read_facts(path) == facts


def test_facts_are_empty_for_files_that_are_not_our_own(tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    save_file({"x": torch.zeros(2)}, plain)
    nested = tmp_path / "nested.safetensors"
    save_file({"x": torch.zeros(2)}, nested, metadata={"vitbench": "[" * 100_000})
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(plain.read_bytes()[:-1])
    text = tmp_path / "text"
    text.write_text("hello")
    for path in (plain, nested, cut, text, saved({}, tmp_path / "torch.pt")):
        assert read_facts(path) == {}, path.name
    with pytest.raises(DataError, match=r"absent.*does not exist"):
        read_facts(tmp_path / "absent")


# --- layouts: the logits are the point


@pytest.mark.parametrize("heads", ["heads.head", "heads"])
def test_torchvision_weights_give_the_same_logits_in_our_model(tmp_path: Path, heads: str) -> None:
    theirs, ours = randomise(small_torchvision()), small_ours()
    state = {key.replace("heads.head", heads): value for key, value in theirs.state_dict().items()}
    report = load_checkpoint(ours, saved(state, tmp_path / "x.pth"))
    assert_same_logits(ours, theirs)
    assert report.layout == "torchvision"
    assert report.facts == {}


def test_weights_of_torchvision_before_0_14_load(tmp_path: Path) -> None:
    theirs, ours = randomise(small_torchvision()), small_ours()
    state = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in theirs.state_dict().items()
    }
    load_checkpoint(ours, saved(state, tmp_path / "x.pth"))
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("heads", ["heads.head", "heads"])
@pytest.mark.parametrize("one_layer", [False, True])
def test_torchvision_weights_load_into_torchvision_with_either_head(
    tmp_path: Path, heads: str, one_layer: bool
) -> None:
    theirs, target = randomise(small_torchvision()), small_torchvision()
    if one_layer:
        target.heads = nn.Linear(48, 5)  # as vit_b16_transfer has it
    state = {key.replace("heads.head", heads): value for key, value in theirs.state_dict().items()}
    load_checkpoint(target, saved(state, tmp_path / "x.pth"))
    assert_same_logits(target, theirs)


def test_timm_weights_give_the_same_logits_in_our_model(tmp_path: Path) -> None:
    theirs, ours = randomise(small_timm()), small_ours()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    report = load_checkpoint(ours, tmp_path / "model.safetensors")
    assert_same_logits(ours, theirs)
    assert report.layout == "timm or vitbench"


def test_our_weights_give_the_same_logits_in_torchvision_and_timm(tmp_path: Path) -> None:
    theirs = randomise(small_ours())
    save_checkpoint(theirs, tmp_path / "x", {})
    for model in (small_torchvision(), small_timm()):
        load_checkpoint(model, tmp_path / "x")
        assert_same_logits(model, theirs)


@pytest.mark.parametrize("release", [4, 5])
@pytest.mark.parametrize("target", [small_ours, small_torchvision, small_timm])
def test_hugging_face_weights_give_the_same_logits(
    tmp_path: Path, release: int, target: Callable[[], nn.Module]
) -> None:
    theirs, model = randomise(small_ours()), target()
    state = hugging_face_names(theirs.state_dict(), release=release)
    report = load_checkpoint(model, saved(state, tmp_path / "pytorch_model.bin"))
    assert_same_logits(model, theirs)
    assert report.layout == "Hugging Face"
    assert report.tensors == len(state)


@pytest.mark.parametrize("flat", [False, True])
def test_weights_of_vit_classification_cifar10_give_the_same_logits(tmp_path: Path, flat: bool) -> None:
    theirs, ours = randomise(build_model("vit_layer6_32")), build_model("vit_layer6_32")
    state = cifar10_vit_names(theirs.state_dict(), flat=flat)
    assert "encoder.5.attention.queries.weight" in state
    assert "classifier.fc2.bias" in state
    report = load_checkpoint(ours, saved(state, tmp_path / "x.pt"))
    assert_same_logits(ours, theirs)
    assert report.layout == "ViT-Classification-CIFAR10"


def test_fused_qkv_is_taken_apart_where_the_model_has_three_layers(tmp_path: Path) -> None:
    theirs, ours = randomise(small_ours()), small_ours(separate_qkv=True)
    load_checkpoint(ours, saved(theirs.state_dict(), tmp_path / "x.pt"))
    assert_same_logits(ours, theirs)
    back = small_ours()
    load_checkpoint(back, saved(ours.state_dict(), tmp_path / "y.pt"))
    assert_same_logits(back, theirs)


def test_every_layout_has_marks_of_its_own_and_no_name_twice() -> None:
    marks = [mark for layout in LAYOUTS for mark in layout.marks]
    assert len(marks) == len(set(marks))
    for layout in LAYOUTS:
        theirs = [name for name, _ in layout.names]
        assert len(theirs) == len(set(theirs))


def test_a_model_of_no_known_layout_takes_its_own_state_dict(tmp_path: Path) -> None:
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    expected = logits(theirs, 8)
    report = load_checkpoint(theirs, saved(theirs.state_dict(), tmp_path / "x.pt"))
    assert report.layout == "as in the model"
    assert torch.equal(logits(theirs, 8), expected)
    state = {key: value for key, value in theirs.state_dict().items() if "num_batches" not in key}
    with pytest.raises(CheckpointError, match=r"missing '1\.num_batches_tracked'"):
        load_checkpoint(theirs, saved(state, tmp_path / "y.pt"))


class Windowed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", torch.arange(4))


def test_buffers_that_the_constructor_computes_are_neither_asked_for_nor_taken(tmp_path: Path) -> None:
    model = Windowed()
    weights = {"head.weight": torch.ones(2, 2), "head.bias": torch.ones(2)}
    load_checkpoint(model, saved(weights, tmp_path / "without.pt"))
    others = {"relative_position_index": torch.zeros(9, dtype=torch.int64), "block.attn_mask": torch.zeros(3)}
    load_checkpoint(model, saved(weights | others, tmp_path / "with.pt"))
    assert torch.equal(model.relative_position_index, torch.arange(4))
    assert torch.equal(model.head.weight, torch.ones(2, 2))


# --- containers


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_every_wrapper_and_prefix_is_taken_off(tmp_path: Path, wrapper: str, prefix: str) -> None:
    theirs, ours = randomise(small_ours(depth=1)), small_ours(depth=1)
    state: Any = {prefix + key: value for key, value in theirs.state_dict().items()}
    if wrapper:
        state = {wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1}}
    load_checkpoint(ours, saved(state, tmp_path / "x.pt"))
    assert_same_logits(ours, theirs)


#: None of them runs the model or compiles it.
WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
    "both, the other way round": lambda model: nn.DataParallel(torch.compile(model)),
}


@pytest.mark.integration
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_model_takes_its_own_weights_and_those_of_the_model_inside(
    tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    theirs = randomise(small_ours(depth=1))
    for state in (wrap(theirs).state_dict(), theirs.state_dict()):
        ours = small_ours(depth=1)
        load_checkpoint(wrap(ours), saved(state, tmp_path / "x.pt"))
        assert_same_logits(ours, theirs)
    other_head = wrap(small_ours(depth=1, num_classes=7))
    path = saved(other_head.state_dict(), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="7 classes and the model 5"):
        load_checkpoint(wrap(small_ours(depth=1)), path)
    assert load_checkpoint(wrap(small_ours(depth=1)), path, replace_head=True).replaced_head
    larger = small_ours(depth=1, image_size=(48, 48))
    assert load_checkpoint(wrap(larger), saved(theirs.state_dict(), tmp_path / "y.pt")).resampled == ((8, 8), (12, 12))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x"])
def test_files_of_torch_save_are_known_by_their_content(tmp_path: Path, legacy: bool, name: str) -> None:
    theirs, ours = randomise(small_ours(depth=1)), small_ours(depth=1)
    torch.save(theirs.state_dict(), tmp_path / name, _use_new_zipfile_serialization=not legacy)
    load_checkpoint(ours, tmp_path / name)
    assert_same_logits(ours, theirs)


def test_numbers_are_cast_to_the_dtype_of_the_model(tmp_path: Path) -> None:
    theirs, ours = small_ours(depth=1), small_ours(depth=1)
    state = {key: value.to(torch.bfloat16) for key, value in theirs.state_dict().items()}
    assert load_checkpoint(ours, saved(state, tmp_path / "x.pt")).dtype == "bfloat16"
    assert {value.dtype for value in ours.state_dict().values()} == {torch.float32}
    assert torch.equal(ours.cls_token, theirs.cls_token.to(torch.bfloat16).float())
    save_file(state | {"cls_token": theirs.cls_token.detach()}, tmp_path / "x.safetensors")
    assert load_checkpoint(ours, tmp_path / "x.safetensors").dtype == "bfloat16, float32"
    half = small_ours(depth=1).half()
    load_checkpoint(half, tmp_path / "x.pt")
    assert half.cls_token.dtype == torch.float16


# --- positions of another grid


def test_a_distillation_token_is_kept_out_of_the_grid(tmp_path: Path) -> None:
    distilled = timm.models.deit.VisionTransformerDistilled
    sizes = {"patch_size": 4, "embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 5}
    theirs, model = distilled(img_size=32, **sizes), distilled(img_size=48, **sizes)
    report = load_checkpoint(model, saved(theirs.state_dict(), tmp_path / "x.pt"))
    assert report.resampled == ((8, 8), (12, 12))
    assert torch.equal(model.pos_embed[:, :2], theirs.pos_embed[:, :2])


def test_a_model_without_a_position_for_cls_is_resampled_whole(tmp_path: Path) -> None:
    theirs, model = build_model("vit_layer6_32"), build_model("vit_layer6_32", image_size=(32, 48))
    report = load_checkpoint(model, saved(cifar10_vit_names(theirs.state_dict(), flat=True), tmp_path / "x.pt"))
    assert report.resampled == ((8, 8), (8, 12))
    expected = resize_position_grid(theirs.state_dict()["pos_embed"], (8, 8), (8, 12))
    assert torch.equal(model.state_dict()["pos_embed"], expected)


def test_a_grid_that_is_no_square_is_refused_unless_the_facts_tell_it(tmp_path: Path) -> None:
    theirs, model = small_ours(image_size=(16, 32)), small_ours()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="32 positions are no square.* --grid 4x8") as caught:
        load_checkpoint(model, saved(theirs.state_dict(), tmp_path / "x.pt"))
    assert caught.value.mismatched == ("pos_embed",)
    assert_unchanged(model, before)
    with pytest.raises(CheckpointError, match="32 positions are no square.* --grid 4x8"):
        load_checkpoint(theirs, tmp_path / "x.pt")  # 2x16 would be as many
    assert load_checkpoint(theirs, tmp_path / "x.pt", grid="4x8").resampled is None
    assert load_checkpoint(model, tmp_path / "x.pt", grid="4x8").resampled == ((4, 8), (8, 8))
    save_checkpoint(theirs, tmp_path / "x.safetensors", {"image_size": [16, 32]})
    assert load_checkpoint(model, tmp_path / "x.safetensors").resampled == ((4, 8), (8, 8))


def test_grids_of_as_many_patches_are_told_apart_by_the_facts(tmp_path: Path) -> None:
    theirs, model = small_ours(image_size=(8, 32)), small_ours(image_size=(16, 16))  # 2x8 and 4x4
    save_checkpoint(theirs, tmp_path / "x.safetensors", {"image_size": [8, 32]})
    assert load_checkpoint(model, tmp_path / "x.safetensors").resampled == ((2, 8), (4, 4))
    assert load_checkpoint(theirs, tmp_path / "x.safetensors").resampled is None


def test_positions_that_every_image_size_shares_are_never_resampled(tmp_path: Path) -> None:
    theirs = randomise(small_ours(positions="bicubic", image_size=(28, 112)))
    model = small_ours(positions="bicubic", image_size=(64, 64))
    save_checkpoint(theirs, tmp_path / "x.safetensors", {"image_size": [28, 112]})  # 7x28 is 14x14, too
    assert load_checkpoint(model, tmp_path / "x.safetensors").resampled is None
    assert_same_logits(model, theirs)


# --- heads


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (small_ours, "head"),
        (lambda: small_ours(head="tanh"), "head.fc2"),
        (small_torchvision, "heads.head"),
        (small_timm, "head"),
    ],
)
def test_a_head_of_other_classes_is_refused_or_kept(tmp_path: Path, make: Callable[[], nn.Module], head: str) -> None:
    model = make()
    before = snapshot(model)
    state = {key: torch.randn_like(value) for key, value in before.items()}
    state |= {f"{head}.weight": torch.randn(7, 48), f"{head}.bias": torch.randn(7)}
    path = saved(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    message = str(caught.value)
    assert f"'{head}.weight' (expected (5, 48), found (7, 48))" in message
    assert "7 classes and the model 5" in message
    assert "--replace-head" in message
    assert caught.value.mismatched == (f"{head}.weight", f"{head}.bias")
    assert_unchanged(model, before)
    report = load_checkpoint(model, path, replace_head=True)
    assert report.replaced_head
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith(f"{head}.") else state[key]), key


def test_a_head_that_fits_is_loaded_even_with_replace_head(tmp_path: Path) -> None:
    theirs, ours = randomise(small_ours()), small_ours()
    assert not load_checkpoint(ours, saved(theirs.state_dict(), tmp_path / "x"), replace_head=True).replaced_head
    assert_same_logits(ours, theirs)


def test_a_missing_head_may_be_the_models_own(tmp_path: Path) -> None:
    model = small_ours()
    path = saved({key: value for key, value in snapshot(model).items() if "head" not in key}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"It has no head\..*--replace-head") as caught:
        load_checkpoint(model, path)
    assert caught.value.missing == ("head.weight", "head.bias")
    assert load_checkpoint(model, path, replace_head=True).replaced_head


def test_one_of_two_heads_is_no_head(tmp_path: Path) -> None:
    """DeiTForImageClassification has a distillation token, but not its head; timm averages the logits of both."""
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 5}
    theirs, model = (timm.models.deit.VisionTransformerDistilled(**sizes) for _ in range(2))
    before = snapshot(model)
    state = {key: value for key, value in snapshot(randomise(theirs)).items() if "head_dist" not in key}
    path = saved(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"2 heads it has 'head' but not 'head_dist'\..*--replace-head") as caught:
        load_checkpoint(model, path)
    assert caught.value.missing == ("head_dist.weight", "head_dist.bias")
    assert "no head" not in str(caught.value)
    report = load_checkpoint(model, path, replace_head=True)
    assert report.replaced_head
    assert report.notes[0] == "its heads left out, random ones in their place: 'head', 'head_dist'"
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key] if "head" in key else state[key]) for key in after)


def test_a_head_of_another_width_is_no_matter_of_classes(tmp_path: Path) -> None:
    state = snapshot(small_ours()) | {"head.weight": torch.zeros(5, 12)}
    with pytest.raises(CheckpointError, match="architecture"):
        load_checkpoint(small_ours(), saved(state, tmp_path / "x.pt"), replace_head=True)


# --- what does not fit


def test_keys_that_do_not_fit_are_named_and_the_model_is_unchanged(tmp_path: Path) -> None:
    model = small_ours()
    before = snapshot(model)
    state = {key: value + 1 for key, value in before.items() if not key.startswith("blocks.1.")}
    state |= {"fc_norm.weight": torch.zeros(48), "norm.weight": torch.zeros(47), "evil\nkey": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, saved({"state_dict": state}, tmp_path / "x.pt"))
    error = caught.value
    assert isinstance(error, DataError)
    assert len(error.missing) == 12
    assert error.unexpected == ("fc_norm.weight", "evil\nkey")
    assert error.mismatched == ("norm.weight",)
    message = str(error)
    assert "\n" not in message
    assert "missing 'blocks.1.norm1.weight', " in message
    assert "and 7 more" in message
    assert "unexpected 'fc_norm.weight', 'evil\\nkey'" in message
    assert "'norm.weight' (expected (48,), found (47,))" in message
    assert_unchanged(model, before)


def test_keys_are_reported_in_the_names_of_the_file_and_of_the_model(tmp_path: Path) -> None:
    state = hugging_face_names(snapshot(small_ours()), release=4)
    state["vit.adapter.dense.weight"] = torch.zeros(48, 48)
    del state["vit.layernorm.bias"]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(small_torchvision(), saved(state, tmp_path / "x.pt"))
    assert caught.value.unexpected == ("vit.adapter.dense.weight",)
    assert caught.value.missing == ("encoder.ln.bias",)


def test_two_keys_for_one_weight_are_refused(tmp_path: Path) -> None:
    state = snapshot(small_torchvision())
    state["heads.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=r"'heads.head.bias' and 'heads.bias'"):
        load_checkpoint(small_ours(), saved(state, tmp_path / "x.pt"))


def test_a_failed_cast_of_the_last_weight_leaves_the_model_unchanged(tmp_path: Path) -> None:
    model = small_ours(depth=1)
    before = snapshot(model)
    state = {key: value + 1 for key, value in before.items()}
    state["head.bias"][3] = float("nan")
    with pytest.raises(DataError, match=r"'head\.bias' holds NaN or infinity"):
        load_checkpoint(model, saved(state, tmp_path / "x.pt"))
    assert_unchanged(model, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_refused_by_the_key_in_the_file(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) for key, value in hugging_face_names(snapshot(small_ours()), release=4).items()}
    state["vit.encoder.layer.1.output.dense.weight"][3, 4] = bad
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match=r"'vit\.encoder\.layer\.1\.output\.dense\.weight' holds NaN"):
        load_checkpoint(small_ours(), tmp_path / "x.safetensors")


def test_numbers_too_large_for_the_dtype_of_the_model_are_refused(tmp_path: Path) -> None:
    state = snapshot(small_ours(depth=1))
    state["norm.bias"][0] = 1e30
    with pytest.raises(DataError, match=r"'norm\.bias' holds NaN or infinity \(as torch\.float16\)"):
        load_checkpoint(small_ours(depth=1).half(), saved(state, tmp_path / "x.pt"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_numbers_of_another_kind_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = snapshot(small_ours(depth=1))
    state["norm.bias"] = torch.zeros(48, dtype=dtype)
    with pytest.raises(DataError, match=r"'norm\.bias' is of (int8|complex64)"):
        load_checkpoint(small_ours(depth=1), saved(state, tmp_path / "x.pt"))


def test_a_model_on_meta_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = small_ours()
    with pytest.raises(UsageError, match="meta"):
        load_checkpoint(model, saved(small_ours().state_dict(), tmp_path / "x.pt"))


# --- files that nobody vouches for


class Touch:
    """Unpickling it would create a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle2", "pickle5"])
def test_pickled_code_is_refused_in_one_line_and_not_run(tmp_path: Path, kind: str) -> None:
    created, path = tmp_path / "created", tmp_path / "x.pt"
    evil = {"state_dict": {"cls_token": torch.zeros(1)}, "hook": Touch(created)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind.startswith("pickle"):
            path.write_bytes(pickle.dumps(Touch(created), protocol=int(kind[-1])))
        else:
            torch.save(evil, path, _use_new_zipfile_serialization=kind == "zip")
        with pytest.raises(DataError) as caught:
            load_checkpoint(small_ours(), path)
    assert not created.exists()
    message = str(caught.value)
    assert message.startswith("Checkpoint 'x.pt' is refused, as it holds ")
    assert kind == "pickle5" or re.search(r"pickled code \(\w+\.mkdir\)", message)
    assert "convert it to safetensors" in message
    assert "\n" not in message


def test_a_whole_model_is_refused_as_code(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pickled code \(vitbench\.models\.architectures\.vit\.Vision.*state_dict"):
        load_checkpoint(small_ours(), saved(small_ours(), tmp_path / "x.pt"))


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(DataError, match="TorchScript"):
        load_checkpoint(small_ours(), tmp_path / "x.pt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.99])
def test_truncated_files_are_one_line(tmp_path: Path, kind: str, share: float) -> None:
    whole, path = tmp_path / "whole", tmp_path / "cut.pt"
    model = small_ours(depth=1)
    before = snapshot(model)
    if kind == "safetensors":
        save_checkpoint(randomise(small_ours(depth=1)), whole, {})
    else:
        torch.save(before, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    path.write_bytes(content[: max(12, int(len(content) * share))])
    with pytest.raises(DataError, match=r"Checkpoint 'cut.pt' .*damaged") as caught:
        load_checkpoint(model, path)
    assert "\n" not in str(caught.value)
    assert_unchanged(model, before)


def test_damaged_bytes_are_an_error_of_data_or_other_weights_never_a_crash(tmp_path: Path) -> None:
    model = small_ours(depth=1, width=6, heads=1, mlp_width=6)
    path = tmp_path / "x"
    for kind in ("legacy", "zip"):
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer, _use_new_zipfile_serialization=kind == "zip")
        content = buffer.getvalue()
        generator = torch.Generator().manual_seed(3)
        lines = []
        for _ in range(60):
            damaged = bytearray(content)
            for place in torch.randint(0, min(len(content), 3000), (5,), generator=generator).tolist():
                damaged[place] ^= 0x55
            path.write_bytes(damaged)
            try:
                load_checkpoint(model, path)
            except DataError as error:
                lines.append(str(error))
        assert len(lines) > 20, kind
        assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(
    ("content", "what"), [(b"", "is empty"), (b"x", "neither"), (b"version https://git-lfs", "neither")]
)
def test_empty_and_foreign_files_are_one_line(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"Checkpoint 'x.pt' .*{what}"):
        load_checkpoint(small_ours(), path)


def test_missing_files_and_folders_are_one_line(tmp_path: Path) -> None:
    for call in (lambda path: load_checkpoint(small_ours(), path), digest_of):
        with pytest.raises(DataError, match="does not exist"):
            call(tmp_path / "absent.pt")
        with pytest.raises(DataError, match="is a folder"):
            call(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"cls_token": torch.zeros(1), "epoch": 3}, "'epoch' is int"),
        ({"cls_token": [1.0, 2.0]}, "'cls_token' is list"),
        ({3: torch.zeros(1)}, "3 is Tensor, not a named tensor"),
        ({"state_dict": {"a": {"b": torch.zeros(1)}}}, "missing 'cls_token'.*unexpected 'b'"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is a sparse"),
        ({"a": torch.zeros(2, device="meta")}, "'a' is a sparse, quantised or meta tensor"),
        ({}, "an empty dict"),
        ({"model": {}}, "an empty dict"),
        ([torch.zeros(1)], "list, not a state dict"),
        (torch.zeros(1), "Tensor, not a state dict"),
    ],
)
def test_what_is_no_state_dict_is_refused_by_name(tmp_path: Path, content: object, what: str) -> None:
    with pytest.raises(DataError, match=what):
        load_checkpoint(small_ours(), saved(content, tmp_path / "x.pt"))


def safetensors_bytes(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_huge_claimed_shapes_are_refused_without_allocation(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    claim = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    path.write_bytes(safetensors_bytes({"cls_token": claim}))
    with pytest.raises(DataError, match="cut short or damaged"):
        load_checkpoint(small_ours(), path)
    # All the claimed bytes are there, as a hole in a file: the shape is what refuses it.
    with path.open("wb") as file:
        file.write(safetensors_bytes({"cls_token": claim | {"shape": [1 << 33], "data_offsets": [0, 1 << 35]}}))
        file.truncate(file.tell() + (1 << 35))
    with pytest.raises(CheckpointError, match=r"'cls_token' \(expected \(1, 1, 48\), found \(8589934592,\)\)"):
        load_checkpoint(small_ours(), path)
    state = snapshot(small_ours()) | {"norm.weight": torch.zeros(1).expand(1 << 40)}
    with pytest.raises(DataError, match=r"'norm\.weight' claims the shape \(1099511627776,\) but holds fewer"):
        load_checkpoint(small_ours(), saved(state, tmp_path / "expanded.pt"))


@pytest.mark.parametrize("legacy", [False, True])
def test_storages_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path, legacy: bool) -> None:
    buffer = io.BytesIO()
    torch.save({"norm.weight": torch.zeros(70_000)}, buffer, _use_new_zipfile_serialization=not legacy)
    claimed = buffer.getvalue().replace(b"J" + struct.pack("<i", 70_000), b"J" + struct.pack("<i", 2_000_000_000))
    assert claimed != buffer.getvalue()
    (tmp_path / "x.pt").write_bytes(claimed)
    with pytest.raises(DataError, match="Checkpoint 'x.pt' "):
        load_checkpoint(small_ours(), tmp_path / "x.pt")


def test_a_compressed_zip_is_refused(tmp_path: Path) -> None:
    plain, path = saved({"norm.weight": torch.zeros(1 << 20)}, tmp_path / "plain.pt"), tmp_path / "x.pt"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    assert path.stat().st_size < 1 << 16
    with pytest.raises(DataError, match="compressed zip"):
        load_checkpoint(small_ours(), path)

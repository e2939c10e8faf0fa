"""Where a file has a model's weights: dicts and prefixes as training programs write them, several sets, plain options."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.models.test_checkpoints import (
    State,
    assert_same_logits,
    randomise,
    saved,
    small_ours,
    small_timm,
    small_torchvision,
)
from vitbench.core.errors import DataError
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import CheckpointError, load_checkpoint

LEVIT_HEAD = (
    "linear.weight",
    "linear.bias",
    "bn.weight",
    "bn.bias",
    "bn.running_mean",
    "bn.running_var",
    "bn.num_batches_tracked",
)
SQUARE = "positions taken for a square grid of 8x8 patches (else give --grid)"


PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def named(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def body(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("head.")}


def optimizer_state() -> dict[str, Any]:
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}
    return {"state": {0: moments, 1: moments}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}


#: What programs write around one state dict -> the notes on it.
ONE_SET: dict[str, tuple[Callable[[State], Any], tuple[str, ...]]] = {
    "Lightning": (
        lambda state: {"state_dict": named("model.", state), "epoch": 3, "hyper_parameters": {"lr": 0.1}, "loops": {}},
        ("taken from the file's entry 'state_dict'", "the prefix 'model.' taken off their names"),
    ),
    "a flat file with a prefix": (
        lambda state: named("backbone.", state),
        ("the prefix 'backbone.' taken off their names",),
    ),
    "nested prefixes": (
        lambda state: named("_orig_mod.module.encoder.", state),
        ("the prefix '_orig_mod.module.encoder.' taken off their names",),
    ),
    "nested dicts": (
        lambda state: {"state": {"net": state}, "optimizer": optimizer_state()},
        ("taken from the file's entry 'state.net'",),
    ),
    "MAE": (
        lambda state: {"model": state, "optimizer": optimizer_state(), "epoch": 9, "scaler": {"scale": 65536.0}},
        ("taken from the file's entry 'model'",),
    ),
    "torchvision's average alone": (
        lambda state: {"model_ema": {"n_averaged": torch.tensor(7), **named("module.", state)}},
        (
            "taken from the file's entry 'model_ema'",
            "the prefix 'module.' taken off their names",
            "left out 'n_averaged', without that prefix",
        ),
    ),
    "a loss of its own": (
        lambda state: {"state_dict": {**named("net.", state), "criterion.weight": torch.zeros(5)}},
        (
            "taken from the file's entry 'state_dict'",
            "the prefix 'net.' taken off their names",
            "left out 'criterion.weight', without that prefix",
        ),
    ),
    "thop": (
        lambda state: {**state, "total_ops": torch.zeros(1), "blocks.0.attn.total_params": torch.zeros(1)},
        ("left out 'total_ops', 'blocks.0.attn.total_params', which the model does not use",),
    ),
}


@pytest.mark.parametrize("kind", ONE_SET)
@pytest.mark.parametrize("make", [small_ours, small_timm])
def test_one_set_of_weights_is_taken_wherever_it_is(tmp_path: Path, kind: str, make: Callable[[], nn.Module]) -> None:
    wrap, notes = ONE_SET[kind]
    theirs, model = randomise(make()), make()
    report = load_checkpoint(model, saved(wrap(theirs.state_dict()), tmp_path / "x.pt"))
    assert_same_logits(model, theirs)
    assert report.notes == (*notes, SQUARE)
    assert report.tensors == len(theirs.state_dict()) + 2 * (kind == "thop")


def test_prefixes_are_taken_off_in_safetensors_too(tmp_path: Path) -> None:
    theirs, model = randomise(small_ours()), small_ours()
    save_file(named("model.backbone.", theirs.state_dict()), tmp_path / "x.safetensors")
    report = load_checkpoint(model, tmp_path / "x.safetensors")
    assert_same_logits(model, theirs)
    assert report.notes == ("the prefix 'model.backbone.' taken off their names", SQUARE)


def test_a_head_in_front_of_the_prefix_is_taken_and_others_are_named(tmp_path: Path) -> None:
    theirs, model = randomise(small_ours()), small_ours()
    state = theirs.state_dict()
    flat = {**named("backbone.", body(state)), "head.weight": state["head.weight"], "head.bias": state["head.bias"]}
    load_checkpoint(model, saved(flat, tmp_path / "x.pt"))
    assert_same_logits(model, theirs)
    self_supervised = {**named("backbone.", body(state)), "dino_head.mlp.0.weight": torch.zeros(3, 3)}
    path = saved({"teacher": self_supervised}, tmp_path / "dino.pth")
    with pytest.raises(CheckpointError, match=r"It has no head\."):
        load_checkpoint(model, path)
    report = load_checkpoint(model, path, replace_head=True)
    assert report.replaced_head
    assert "left out 'dino_head.mlp.0.weight', without that prefix" in report.notes


#: Programs that write several sets of weights -> how they are called, and where the second is.
SEVERAL: dict[str, tuple[Callable[[State, State], Any], tuple[str, str]]] = {
    "timm's train script": (lambda raw, mean: {"state_dict": raw, "state_dict_ema": mean}, ("state_dict", "state_dict_ema")),
    "DeiT": (lambda raw, mean: {"model": raw, "model_ema": mean, "optimizer": optimizer_state()}, ("model", "model_ema")),
    "DINO": (
        lambda raw, mean: {
            "student": named("module.backbone.", raw),
            "teacher": named("backbone.", mean),
            "dino_loss": {"center": torch.zeros(1, 9)},
        },
        ("student", "teacher"),
    ),
    "torchvision": (
        lambda raw, mean: {"model": raw, "model_ema": {"n_averaged": torch.tensor(3), **named("module.", mean)}},
        ("model", "model_ema"),
    ),
    "one flat dict": (
        lambda raw, mean: {**named("online_model.", raw), **named("ema_model.", mean), "initted": torch.tensor(True)},
        ("online_model", "ema_model"),
    ),
    "MoCo": (
        lambda raw, mean: {
            "state_dict": {**named("module.base_encoder.", raw), **named("module.momentum_encoder.", mean)}
        },
        ("state_dict.module.base_encoder", "state_dict.module.momentum_encoder"),
    ),
    "within the model": (lambda raw, mean: {**raw, **named("ema.", mean)}, (".", "ema")),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_sets_of_weights_are_listed_and_one_is_chosen(tmp_path: Path, kind: str) -> None:
    make, names = SEVERAL[kind]
    raw, mean = randomise(small_ours()), small_ours()
    mean.load_state_dict({key: 0.9 * value for key, value in raw.state_dict().items()})
    path = saved(make(raw.state_dict(), mean.state_dict()), tmp_path / "x.pt")
    with pytest.raises(DataError) as caught:
        load_checkpoint(small_ours(), path)
    message = str(caught.value)
    assert "has 2 entries with weights of this model" in message
    assert all(repr(name) in message for name in names)
    assert "--entry" in message
    for name, expected, other in zip(names, (raw, mean), reversed(names), strict=True):
        model = small_ours()
        report = load_checkpoint(model, path, entry=name)
        assert_same_logits(model, expected)
        assert any(repr(other) in note for note in report.notes), report.notes


def test_an_average_that_is_not_whole_is_named_beside_what_is_taken(tmp_path: Path) -> None:
    theirs, model = randomise(small_ours()), small_ours()
    state = theirs.state_dict()
    averaged = {key: value for key, value in state.items() if "blocks.1" not in key}
    report = load_checkpoint(model, saved({"model": state, "shadow": averaged}, tmp_path / "x.pt"))
    assert_same_logits(model, theirs)
    assert "other weights of this model in the file left out: 'shadow'" in report.notes


def test_a_part_of_an_average_is_named_beside_what_is_taken(tmp_path: Path) -> None:
    theirs, model = randomise(small_ours()), small_ours()
    state = theirs.state_dict()
    averaged = {"head.weight": state["head.weight"] + 1, "head.bias": state["head.bias"]}
    report = load_checkpoint(model, saved({"model": state, "model_ema": averaged}, tmp_path / "x.pt"))
    assert_same_logits(model, theirs)
    assert "other weights of this model in the file left out: 'model_ema'" in report.notes
    wrapped = {"model": state, "net_ema": named("module.", averaged), "norms": {"head.weight": 0.5}}
    report = load_checkpoint(model, saved(wrapped, tmp_path / "y.pt"))
    assert "other weights of this model in the file left out: 'net_ema'" in report.notes


def test_an_average_without_names_is_named(tmp_path: Path) -> None:
    theirs, model = randomise(small_ours()), small_ours()
    state = theirs.state_dict()
    content = {"model": state, "ema": {"decay": 0.99, "shadow_params": list(state.values())}}
    report = load_checkpoint(model, saved(content, tmp_path / "x.pt"))
    assert any(note.startswith("left out 'ema.shadow_params'") for note in report.notes)


def small_swin(classes: int) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    sizes: dict[str, Any] = {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2,), "num_heads": (2,)}
    return SwinTransformer(**sizes, num_classes=classes)


def small_levit(classes: int) -> nn.Module:
    from timm.models.levit import LevitDistilled

    sizes: dict[str, Any] = {"img_size": 64, "embed_dim": (32,), "key_dim": 8, "depth": (1,), "num_heads": (2,)}
    return LevitDistilled(**sizes, stem_type="s8", num_classes=classes)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize(
    ("make", "left_out"),
    [
        (lambda classes: build_model("vit_layer6_32", num_classes=classes), {"head.fc2.weight", "head.fc2.bias"}),
        (small_swin, {"head.fc.weight", "head.fc.bias"}),
        (small_levit, {f"{head}.{part}" for head in ("head", "head_dist") for part in LEVIT_HEAD}),
        (lambda classes: small_torchvision(classes=classes), {"heads.head.weight", "heads.head.bias"}),
        (
            lambda classes: torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=classes),
            {"fc.weight", "fc.bias"},
        ),
        (
            lambda classes: torchvision.models.get_model("mobilenet_v3_small", weights=None, num_classes=classes),
            {"classifier.3.weight", "classifier.3.bias"},
        ),
    ],
)
def test_a_backbone_leaves_out_a_head_of_any_name(
    tmp_path: Path, make: Callable[[int], nn.Module], left_out: set[str]
) -> None:
    theirs, model = make(5).state_dict(), make(0)
    load_checkpoint(model, saved(theirs, tmp_path / "x.pt"))
    own = {key: value for key, value in model.state_dict().items() if value.numel()}
    assert theirs.keys() - own.keys() == left_out
    assert all(torch.equal(value, theirs[key]) for key, value in own.items())


def test_a_backbone_leaves_out_the_head(tmp_path: Path) -> None:
    theirs, model = randomise(small_timm()), small_timm(num_classes=0)
    report = load_checkpoint(model, saved(theirs.state_dict(), tmp_path / "x.pt"))
    with torch.no_grad():
        torch.testing.assert_close(model(PIXELS), theirs.forward_head(theirs.forward_features(PIXELS), pre_logits=True))
    assert "left out 'head.weight', 'head.bias', which the model does not use" in report.notes


def test_an_entry_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    state = small_ours().state_dict()
    path = saved({"model": state, "model_ema": dict(state)}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"no entry 'teacher'.*It has 'model', 'model_ema'") as caught:
        load_checkpoint(small_ours(), path, entry="teacher")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"no entry 'x'.*It has '\.'"):
        load_checkpoint(small_ours(), saved(state, tmp_path / "flat.pt"), entry="x")


def test_weights_of_another_architecture_are_compared_in_the_place_that_has_most(tmp_path: Path) -> None:
    state = small_ours(depth=1).state_dict()
    with pytest.raises(CheckpointError, match=r"missing 'blocks\.1\.norm1\.weight'") as caught:
        load_checkpoint(small_ours(), saved({"state_dict": named("model.", state)}, tmp_path / "x.pt"))
    assert all(key.startswith("blocks.1.") for key in caught.value.missing)


def options(**more: Any) -> Namespace:
    """The kinds of values that the parsers of timm, DeiT, MAE and DINO give."""
    return Namespace(
        model="deit_tiny", lr=5e-4, epochs=300, betas=(0.9, 0.95), pin_mem=True, mean=None, opt_betas=[0.9], aug={"n": 2}, **more
    )  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_options_of_a_training_are_no_code(tmp_path: Path, legacy: bool) -> None:
    theirs, model = randomise(small_ours()), small_ours()
    content = {"model": theirs.state_dict(), "args": options(), "epoch": 3}
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    load_checkpoint(model, path)
    assert_same_logits(model, theirs)


@pytest.mark.parametrize(
    ("value", "what"),
    [(Path("out"), r"pathlib\.PosixPath"), (nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"), (print, r"__builtin__\.print")],
)  # fmt: skip
def test_options_that_hold_anything_else_are_refused(tmp_path: Path, value: object, what: str) -> None:
    content = {"model": small_ours().state_dict(), "args": options(more=value)}
    with pytest.raises(DataError, match=rf"pickled code \({what}"):
        load_checkpoint(small_ours(), saved(content, tmp_path / "x.pth"))


@pytest.mark.integration
@pytest.mark.parametrize("k_bias", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_a_bias_of_q_and_v_alone_is_one_of_zeros_for_k(tmp_path: Path, fused: bool, k_bias: bool) -> None:
    """timm's own filter of EVA's checkpoints is the oracle."""
    from timm.models.eva import Eva, checkpoint_filter_fn

    def eva() -> nn.Module:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
        return Eva(**sizes, qkv_fused=fused, use_rot_pos_emb=True)

    theirs, model, expected = randomise(eva()), eva(), eva()
    state: dict[str, Tensor] = OrderedDict()
    for key, value in theirs.state_dict().items():  # as EVA publishes them
        for ours, published in (("q_proj.bias", "q_bias"), ("v_proj.bias", "v_bias")):
            key = key.replace(ours, published)
        state[key] = value
    assert "blocks.1.attn.q_bias" in state
    if k_bias:
        state |= {f"blocks.{i}.attn.k_bias": torch.zeros(48) for i in range(2)}
    expected.load_state_dict(checkpoint_filter_fn({k: v for k, v in state.items() if "k_bias" not in k}, expected))
    load_checkpoint(model, saved(state, tmp_path / "x.pt"))
    assert_same_logits(model, expected)
    if k_bias:
        state["blocks.0.attn.k_bias"] = torch.ones(48)
        with pytest.raises(CheckpointError, match=r"unexpected 'blocks\.0\.attn\.k_bias'"):
            load_checkpoint(model, saved(state, tmp_path / "y.pt"))


def test_separate_biases_without_one_of_k_load_into_one_of_all(tmp_path: Path) -> None:
    theirs, model = randomise(small_ours()), small_ours()
    state = theirs.state_dict()
    for i in range(2):
        q, k, v = state.pop(f"blocks.{i}.attn.qkv.bias").chunk(3)
        k.zero_()  # shares its memory with the model
        state |= {f"blocks.{i}.attn.q_bias": q, f"blocks.{i}.attn.v_bias": v}
    load_checkpoint(model, saved(state, tmp_path / "x.pt"))
    assert_same_logits(model, theirs)

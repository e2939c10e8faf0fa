"""Weights that only timm's filter of published files knows: what it leaves out and what it may not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_checkpoints import State, assert_same_logits, randomise, saved, small_timm
from vitbench.core.errors import DataError
from vitbench.models.weights.checkpoints import CheckpointError, load_checkpoint

CLIP_TEXT = {
    "token_embedding.weight": torch.ones(9, 8),
    "transformer.resblocks.0.ln_1.weight": torch.ones(8),
    "logit_scale": torch.ones(()),
}


def small_clip(**changed: Any) -> nn.Module:
    return small_timm(pre_norm=True, **changed)


def clip_names(model: nn.Module) -> State:
    """The state dict of ``small_clip`` as open_clip has it, with a part of the text tower."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model.get_parameter("head.bias").zero_()  # a projection has none
    result: dict[str, Tensor] = {
        "visual.class_embedding": state["cls_token"][0, 0],
        "visual.positional_embedding": state["pos_embed"][0],
        "visual.conv1.weight": state["patch_embed.proj.weight"],
        "visual.proj": state["head.weight"].T,
    }
    for p in ("weight", "bias"):
        result[f"visual.ln_pre.{p}"] = state[f"norm_pre.{p}"]
        result[f"visual.ln_post.{p}"] = state[f"norm.{p}"]
        for i in range(2):
            ours, theirs = f"blocks.{i}.", f"visual.transformer.resblocks.{i}."
            result[f"{theirs}ln_1.{p}"] = state[f"{ours}norm1.{p}"]
            result[f"{theirs}attn.in_proj_{p}"] = state[f"{ours}attn.qkv.{p}"]
            result[f"{theirs}attn.out_proj.{p}"] = state[f"{ours}attn.proj.{p}"]
            result[f"{theirs}ln_2.{p}"] = state[f"{ours}norm2.{p}"]
            result[f"{theirs}mlp.c_fc.{p}"] = state[f"{ours}mlp.fc1.{p}"]
            result[f"{theirs}mlp.c_proj.{p}"] = state[f"{ours}mlp.fc2.{p}"]
    assert len(result) == len(state) - 1
    return result | CLIP_TEXT


def test_the_image_tower_of_open_clip_is_taken_and_the_rest_named(tmp_path: Path) -> None:
    theirs, model = randomise(small_clip()), small_clip()
    report = load_checkpoint(model, saved(clip_names(theirs), tmp_path / "x.pt"))
    assert_same_logits(model, theirs)
    assert report.notes == (
        "left out 'token_embedding.weight', 'transformer.resblocks.0.ln_1.weight' and 1 more, which the model does not "
        "use",
        "converted by timm: 32 weights renamed",
    )


def test_patches_of_another_size_are_another_model_by_any_name(tmp_path: Path) -> None:
    path = saved(clip_names(randomise(small_clip(patch_size=8))), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"missing 'cls_token'"):
        load_checkpoint(small_clip(), path)


def test_several_sets_of_such_weights_are_listed_and_one_is_chosen(tmp_path: Path) -> None:
    raw, mean = randomise(small_clip()), small_clip()
    content = {"state_dict": clip_names(raw), "state_dict_ema": clip_names(mean)}
    path = saved(content, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"has 2 entries .*'state_dict', 'state_dict_ema'.*--entry state_dict_ema"):
        load_checkpoint(small_clip(), path)
    for name, other, expected in (("state_dict", "state_dict_ema", raw), ("state_dict_ema", "state_dict", mean)):
        model = small_clip()
        report = load_checkpoint(model, path, entry=name)
        assert_same_logits(model, expected)
        assert f"other weights of this model in the file left out: {other!r}" in report.notes
    wrapped = {f"module.{key}": value for key, value in content["state_dict_ema"].items()}
    averaged = {"model": content["state_dict"], "model_ema": {"n_averaged": torch.tensor(3), **wrapped}}
    with pytest.raises(DataError, match=r"has 2 entries .*'model', 'model_ema'"):
        load_checkpoint(small_clip(), saved(averaged, tmp_path / "y.pt"))


def test_a_layer_that_the_filter_leaves_out_is_refused(tmp_path: Path) -> None:
    """A representation layer, which releases of timm before 0.6 have between the features and the head."""
    layer = {"pre_logits.fc.weight": torch.eye(48), "pre_logits.fc.bias": torch.ones(48)}
    path = saved(small_timm().state_dict() | layer, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"unexpected 'pre_logits\.fc\.weight'") as caught:
        load_checkpoint(small_timm(), path)
    assert caught.value.unexpected == tuple(layer)


def small_dinov3() -> nn.Module:
    from timm.models.eva import Eva

    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    rope = {"use_rot_pos_emb": True, "use_abs_pos_emb": False, "rope_type": "dinov3"}
    return Eva(**sizes, **rope, num_classes=0, qkv_bias=False, init_values=0.1, num_reg_tokens=4, global_pool="token")


def dinov3_names(state: State, bias: Tensor) -> State:
    """As DINOv3 publishes its weights."""
    renamed = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    result = {"mask_token": torch.ones(1, 48), "rope_embed.periods": torch.ones(4)}
    for key, value in state.items():
        for ours, theirs in renamed.items():
            key = key.replace(ours, theirs)
        result[key] = value
    for i in range(2):
        result |= {f"blocks.{i}.attn.qkv.bias": bias, f"blocks.{i}.attn.qkv.bias_mask": torch.ones(144)}
    return result


def test_a_bias_that_the_model_lacks_is_refused_unless_it_is_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, model = randomise(small_dinov3()), small_dinov3()
    state = theirs.state_dict()
    report = load_checkpoint(model, saved(dinov3_names(state, torch.zeros(144)), tmp_path / "x.pt"))
    assert_same_logits(model, theirs)
    assert report.notes[0] == "left out 'mask_token', 'rope_embed.periods' and 4 more, which the model does not use"
    assert report.notes[1] == "converted by timm: 5 weights renamed"
    path = saved(dinov3_names(state, torch.ones(144)), tmp_path / "y.pt")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(small_dinov3(), path)
    assert caught.value.unexpected == ("blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias")
    assert not caught.value.missing
    assert capsys.readouterr().out == ""
    both = {"model": dinov3_names(state, torch.zeros(144)), "model_ema": dinov3_names(state, torch.zeros(144))}
    with pytest.raises(DataError, match=r"has 2 entries .*'model', 'model_ema'"):
        load_checkpoint(small_dinov3(), saved(both, tmp_path / "z.pt"))

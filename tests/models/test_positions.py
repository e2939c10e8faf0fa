"""Positions of files at other grids, against the libraries that own the layouts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from tests.models.test_checkpoints import (
    cifar10_vit_names,
    hugging_face_names,
    logits,
    randomise,
    saved,
    small_ours,
    small_timm,
    small_torchvision,
)
from vitbench.core.errors import UsageError
from vitbench.models import build_model
from vitbench.models.architectures.blocks import resize_position_grid
from vitbench.models.weights.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from vitbench.models.weights.positions import is_bound_to_size

GRIDS = [(4, 4), (10, 10), (12, 12), (4, 16), (16, 3)]  # of files with 8 x 8; 4 x 16 has as many patches
SQUARE = "positions taken for a square grid of 8x8 patches (else give --grid)"


def timm_for(grid: tuple[int, int]) -> nn.Module:
    return small_timm(img_size=(4 * grid[0], 4 * grid[1]), depth=1)


@pytest.mark.parametrize("grid", GRIDS)
def test_timms_files_are_resampled_as_its_own_filter_does(tmp_path: Path, grid: tuple[int, int]) -> None:
    state = randomise(small_timm(depth=1)).state_dict()
    model, oracle = timm_for(grid), timm_for(grid)
    oracle.pretrained_cfg = {"input_size": (3, 32, 32)}  # as of published weights
    oracle.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(state), oracle))
    report = load_checkpoint(model, saved(state, tmp_path / "x.pt"))
    assert torch.equal(model.pos_embed, oracle.pos_embed)
    assert report.resampled == ((8, 8), grid)
    what = f"positions resampled from 8x8 to {grid[0]}x{grid[1]} patches (bicubic, antialiased, as timm)"
    assert report.notes == (what, SQUARE)


@pytest.mark.parametrize("side", [4, 10, 12])
def test_torchvisions_files_are_resampled_as_its_own_function_does(tmp_path: Path, side: int) -> None:
    state = randomise(small_torchvision()).state_dict()
    model, oracle = small_torchvision(4 * side), small_torchvision(4 * side)
    oracle.load_state_dict(interpolate_embeddings(4 * side, 4, state.copy()))
    report = load_checkpoint(model, saved(state, tmp_path / "x.pt"))
    torch.testing.assert_close(model.encoder.pos_embedding, oracle.encoder.pos_embedding, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(model, 4 * side), logits(oracle, 4 * side), rtol=0, atol=1e-5)
    # its models take squares only: nothing is assumed
    assert report.notes == (
        f"positions resampled from 8x8 to {side}x{side} patches (bicubic with aligned corners, as torchvision)",
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_hugging_faces_files_are_resampled_as_its_model_does(tmp_path: Path, grid: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = small_ours()
    state = hugging_face_names(theirs.state_dict(), release=4)
    config = transformers.ViTConfig(image_size=32, patch_size=4, hidden_size=48, num_hidden_layers=1)
    embeddings = transformers.models.vit.modeling_vit.ViTEmbeddings(config)
    embeddings.position_embeddings.data = state["vit.embeddings.position_embeddings"]
    tokens = torch.empty(1, 1 + grid[0] * grid[1], 48)
    expected = embeddings.interpolate_pos_encoding(tokens, 4 * grid[0], 4 * grid[1]).detach()
    size = (4 * grid[0], 4 * grid[1])
    for model in (small_timm(img_size=size), small_ours(image_size=size)):
        report = load_checkpoint(model, saved(state, tmp_path / "x.pt"))
        torch.testing.assert_close(model.state_dict()["pos_embed"], expected, rtol=0, atol=1e-6)
        assert "(bicubic, as Hugging Face)" in report.notes[0]


def test_our_files_keep_our_rule_and_those_of_timms_models_timms(tmp_path: Path) -> None:
    theirs, model = small_ours(depth=1), small_ours(depth=1, image_size=(16, 16))
    patches = theirs.pos_embed[:, 1:]
    save_checkpoint(theirs, tmp_path / "ours", {"model": "vit_basic", "image_size": [32, 32]})
    report = load_checkpoint(model, tmp_path / "ours")
    assert torch.equal(model.pos_embed[:, 1:], resize_position_grid(patches, (8, 8), (4, 4)))
    assert report.notes == ("positions resampled from 8x8 to 4x4 patches (bicubic, as vitbench)",)
    save_checkpoint(theirs, tmp_path / "timm", {"model": "timm:vit_tiny_patch16_224", "image_size": [32, 32]})
    load_checkpoint(model, tmp_path / "timm")
    assert torch.equal(model.pos_embed, timm.layers.resample_abs_pos_embed(theirs.pos_embed, [4, 4]))


def test_names_of_the_cifar_repository_keep_our_rule(tmp_path: Path) -> None:
    theirs, model = build_model("vit_layer6_32"), build_model("vit_layer6_32", image_size=48)
    load_checkpoint(model, saved(cifar10_vit_names(theirs.state_dict(), flat=False), tmp_path / "x.pt"))
    expected = resize_position_grid(theirs.state_dict()["pos_embed"], (8, 8), (12, 12))
    assert torch.equal(model.state_dict()["pos_embed"], expected)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("flexivit_small", {"interpolation": "bilinear", "antialias": False}),
        ("vit_base_patch16_radio_v3", {"interpolation": "bilinear", "antialias": False, "align_corners": True}),
    ],
)
def test_timms_exceptions_are_those_of_its_source(tmp_path: Path, architecture: str, options: dict[str, Any]) -> None:
    state = randomise(small_timm(depth=1)).state_dict()
    model, oracle = timm_for((5, 7)), timm_for((5, 7))
    model.pretrained_cfg = {"architecture": architecture}
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(dict(state), oracle, **options)
    report = load_checkpoint(model, saved(state, tmp_path / "x.pt"))
    assert torch.equal(model.pos_embed, filtered["pos_embed"])
    assert "(bilinear, as timm)" in report.notes[0]


# --- which grid a file has


def test_a_square_count_loads_as_a_square_and_says_so(tmp_path: Path) -> None:
    state = small_timm(depth=1).state_dict()
    model = small_timm(depth=1)
    assert load_checkpoint(model, saved(state, tmp_path / "x.pt")).notes == (SQUARE,)
    assert torch.equal(model.pos_embed, state["pos_embed"])


@pytest.mark.parametrize("new", [(8, 8), (8, 32), (16, 4)])
def test_the_user_says_which_grid_a_file_has(tmp_path: Path, new: tuple[int, int]) -> None:
    state = randomise(timm_for((4, 16))).state_dict()
    path = saved(state, tmp_path / "x.pt")
    model = timm_for(new)
    report = load_checkpoint(model, path, grid="4x16")
    patches = state["pos_embed"][:, 1:].reshape(1, 4, 16, 48).permute(0, 3, 1, 2)
    expected = F.interpolate(patches, size=new, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    assert torch.equal(model.pos_embed, torch.cat([state["pos_embed"][:, :1], expected], dim=1))
    assert report.resampled == ((4, 16), new)
    assert not [note for note in report.notes if "taken for" in note]
    assert load_checkpoint(timm_for((4, 16)), path, grid="4x16").notes == ()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("4x15", "--grid 4x15 does not fit the 64 positions in the file"),
        ("64", "--grid '64' is not ROWSxCOLUMNS"),
        ("0x64", "--grid '0x64' is not ROWSxCOLUMNS"),
    ],
)
def test_a_wrong_grid_is_one_line(tmp_path: Path, grid: str, message: str) -> None:
    path = saved(small_timm(depth=1).state_dict(), tmp_path / "x.pt")
    with pytest.raises(UsageError, match=message):
        load_checkpoint(timm_for((4, 4)), path, grid=grid)


def test_a_model_without_positions_takes_no_grid(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=2)
    path = saved(model.state_dict(), tmp_path / "x.pt")
    with pytest.raises(UsageError, match="--grid 4x16: the model and the file share no positions of a grid"):
        load_checkpoint(model, path, grid="4x16")
    assert load_checkpoint(model, path).notes == ()


def test_a_side_beyond_what_is_resampled_is_said(tmp_path: Path) -> None:
    theirs = timm_for((1, 300))
    path = saved(theirs.state_dict(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="grid of 1x300 patches has a side of more than 256"):
        load_checkpoint(timm_for((4, 4)), path, grid="1x300")
    assert load_checkpoint(theirs, path, grid="1x300").resampled is None


# --- our own trainings: the grid follows from the size of their images


def small_hybrid(height: int, width: int) -> nn.Module:
    """As timm's vit_tiny_r_s16_p8_224, with one step to 8 px: patches of 2 x 2 in a map of an eighth of the image."""
    backbone = nn.Conv2d(3, 16, kernel_size=8, stride=8)
    layer = partial(timm.layers.HybridEmbed, backbone=backbone)
    return small_timm(img_size=(height, width), patch_size=2, depth=1, embed_layer=layer)


HYBRID = "timm:vit_tiny_r_s16_p8_224"


def test_a_hybrids_patch_spans_the_step_of_its_backbone(tmp_path: Path) -> None:
    theirs = randomise(small_hybrid(64, 256))  # 4 x 16 patches of 16 px; patch_size is (2, 2)
    save_checkpoint(theirs, tmp_path / "x", {"model": HYBRID, "image_size": [64, 256]})
    same = load_checkpoint(small_hybrid(64, 256), tmp_path / "x")
    assert (same.resampled, same.notes) == (None, ())
    square = small_hybrid(128, 128)
    assert load_checkpoint(square, tmp_path / "x").resampled == ((4, 16), (8, 8))
    assert torch.equal(square.pos_embed, timm.layers.resample_abs_pos_embed(theirs.pos_embed, [8, 8], [4, 16]))


def test_a_hybrids_own_file_of_no_square_count_loads(tmp_path: Path) -> None:
    theirs = small_hybrid(64, 128)
    save_checkpoint(theirs, tmp_path / "x", {"model": HYBRID, "image_size": [64, 128]})
    assert load_checkpoint(theirs, tmp_path / "x").resampled is None


BICUBIC = "vit_base16"  # a grid of 14 x 14 for images of every size


@pytest.mark.parametrize(
    ("trained", "old"), [(BICUBIC, (14, 14)), ("vit_basic", (7, 28)), ("timm:vit_tiny_patch16_224", (7, 28))]
)
def test_the_model_that_was_trained_says_whether_one_grid_serves_all_sizes(
    tmp_path: Path, trained: str, old: tuple[int, int]
) -> None:
    theirs = randomise(timm_for((7, 28)))  # as many patches as 14 x 14
    save_checkpoint(theirs, tmp_path / "x", {"model": trained, "image_size": [28, 112]})
    models = (
        (small_ours(depth=1, positions="bicubic"), (14, 14)),
        (timm_for((7, 28)), (7, 28)),
        (timm_for((14, 14)), (14, 14)),
    )
    for model, new in models:
        report = load_checkpoint(model, tmp_path / "x")
        assert report.resampled == (None if old == new else (old, new))
        assert not [note for note in report.notes if "taken for" in note]


def test_a_rectangle_of_another_library_is_not_taken_for_a_square_in_silence(tmp_path: Path) -> None:
    path = saved(timm_for((7, 28)).state_dict(), tmp_path / "x.pt")
    model = small_ours(depth=1, positions="bicubic")
    assert load_checkpoint(model, path).notes == (SQUARE.replace("8x8", "14x14"),)
    assert load_checkpoint(model, path, grid="7x28").resampled == ((7, 28), (14, 14))


# --- a position for CLS, or another patch


def without_cls(grid: tuple[int, int]) -> nn.Module:
    """As DeiT III and CaiT: CLS has no position."""
    return small_timm(img_size=(4 * grid[0], 4 * grid[1]), depth=1, no_embed_class=True)


def test_a_count_of_a_square_and_one_is_not_taken_for_cls(tmp_path: Path) -> None:
    theirs, model = randomise(without_cls((10, 17))), without_cls((13, 13))  # 170 = 13 * 13 + 1
    path = saved(theirs.state_dict(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"170 positions are no square .*one may be for CLS.* --grid 13x13"):
        load_checkpoint(model, path)
    report = load_checkpoint(model, path, grid="10x17")
    assert report.resampled == ((10, 17), (13, 13))
    assert torch.equal(model.cls_token, theirs.cls_token)
    assert len(report.notes) == 1


@pytest.mark.parametrize("known", ["grid", "facts"])
def test_a_position_for_cls_is_added_to_cls_if_the_grid_says_so(tmp_path: Path, known: str) -> None:
    theirs, model = randomise(timm_for((8, 8))), without_cls((8, 8))
    facts = {"model": "timm:vit_tiny_patch16_224", "image_size": [32, 32]} if known == "facts" else {}
    save_checkpoint(theirs, tmp_path / "x", facts)
    report = load_checkpoint(model, tmp_path / "x", grid="8x8" if known == "grid" else None)
    assert torch.equal(model.cls_token, theirs.cls_token + theirs.pos_embed[:, :1])
    assert torch.equal(model.pos_embed, theirs.pos_embed[:, 1:])
    assert report.notes == ("the position of CLS added to CLS, as the model has none for it",)


@pytest.mark.parametrize("grid", [None, "8x8"])
def test_no_grid_is_advised_where_the_tokens_are_others(tmp_path: Path, grid: str | None) -> None:
    path = saved(timm_for((8, 8)).state_dict(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:  # as timm's vit_base_patch16_gap_224
        load_checkpoint(small_timm(depth=1, class_token=False, global_pool="avg"), path, grid=grid)
    assert "cls_token" in caught.value.unexpected
    assert "--grid" not in str(caught.value)
    distilled = timm.models.deit.VisionTransformerDistilled(
        img_size=32, patch_size=4, embed_dim=48, depth=1, num_heads=3, num_classes=5
    )
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(distilled, path, grid=grid)
    assert "dist_token" in caught.value.missing
    assert "--grid" not in str(caught.value)


# --- tables of relative positions


def small_beit(grid: tuple[int, int], **changed: Any) -> nn.Module:
    sizes: dict[str, Any] = {"patch_size": 4, "embed_dim": 48, "depth": 1, "num_heads": 3, "num_classes": 5}
    sizes |= {"use_rel_pos_bias": True, "use_abs_pos_emb": False}
    return timm.models.beit.Beit(img_size=(4 * grid[0], 4 * grid[1]), **sizes | changed).eval()


@pytest.mark.parametrize("grid", [(4, 4), (10, 10), (4, 16)])
@pytest.mark.parametrize("shared", [False, True])
def test_beits_tables_are_resampled_as_its_filter_does(tmp_path: Path, grid: tuple[int, int], shared: bool) -> None:
    kind = {"use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared}
    state = randomise(small_beit((8, 8), **kind)).state_dict()
    model, oracle = small_beit(grid, **kind), small_beit(grid, **kind)
    oracle.load_state_dict(timm.models.beit.checkpoint_filter_fn(dict(state), oracle))
    report = load_checkpoint(model, saved(state, tmp_path / "x.pt"))
    images = torch.randn(1, 3, 4 * grid[0], 4 * grid[1])
    assert torch.equal(answer(model, images), answer(oracle, images))
    assert report.resampled == ((8, 8), grid)
    assert report.notes[-1] == SQUARE


@pytest.mark.parametrize("grid", [(4, 4), (10, 10), (4, 16)])
def test_hugging_faces_beit_is_resampled_as_its_model_does(tmp_path: Path, grid: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BeitConfig(
        image_size=32, patch_size=4, hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=192,
        use_relative_position_bias=True, use_absolute_position_embeddings=False, use_mean_pooling=False, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = transformers.BeitModel(config, add_pooling_layer=False).eval()
    randomise(theirs)
    model = small_beit(grid, global_pool="token", init_values=0.1, num_classes=0)
    report = load_checkpoint(model, saved(theirs.state_dict(), tmp_path / "x.pt"))
    images = torch.randn(2, 3, 4 * grid[0], 4 * grid[1])
    with torch.no_grad():
        expected = theirs(images, interpolate_pos_encoding=True).last_hidden_state
        actual = model.forward_features(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert any("(bilinear, as Hugging Face)" in note for note in report.notes)


def test_beits_tables_of_a_rectangle_need_its_grid(tmp_path: Path) -> None:
    path = saved(randomise(small_beit((4, 16))).state_dict(), tmp_path / "x.pt")
    table = torch.load(path)["blocks.0.attn.relative_position_bias_table"]
    with pytest.raises(CheckpointError, match="table of 220 relative positions is of no square grid"):
        load_checkpoint(small_beit((8, 8)), path)
    with pytest.raises(UsageError, match="--grid 4x15 does not fit the 217 rows of relative positions"):
        load_checkpoint(small_beit((8, 8)), path, grid="4x15")
    model = small_beit((8, 8))
    load_checkpoint(model, path, grid="4x16")
    expected = timm.layers.resize_rel_pos_bias_table(table, (8, 8), (228, 3), old_window_size=(4, 16))
    assert torch.equal(model.state_dict()["blocks.0.attn.relative_position_bias_table"], expected)


def test_tables_of_as_many_rows_are_told_apart(tmp_path: Path) -> None:
    # (2 * 5 - 1)(2 * 13 - 1) = (2 * 8 - 1)^2: a file of 5 x 13 patches would fit 8 x 8 in silence
    path = saved(randomise(small_beit((5, 13))).state_dict(), tmp_path / "x.pt")
    assert load_checkpoint(small_beit((8, 8)), path).notes == (SQUARE,)
    assert load_checkpoint(small_beit((8, 8)), path, grid="5x13").resampled == ((5, 13), (8, 8))
    assert load_checkpoint(small_beit((5, 13)), path, grid="5x13").resampled is None


@pytest.mark.parametrize(("size", "rows"), [(24, 11 * 11), ((24, 20), 11 * 9), (40, None)])
def test_windows_are_resampled_as_timms_filter_does(
    tmp_path: Path, size: int | tuple[int, int], rows: int | None
) -> None:
    def swin(img_size: int | tuple[int, int]) -> nn.Module:
        sizes: dict[str, Any] = {"window_size": 7, "embed_dim": 24, "depths": (2,), "num_heads": (2,), "num_classes": 5}
        return timm.models.swin_transformer.SwinTransformer(img_size=img_size, **sizes)

    state = randomise(swin(56)).state_dict()  # windows of 7 x 7, and of 6 x 6 in the smallest image
    model, oracle = swin(size), swin(size)
    oracle.load_state_dict(timm.models.swin_transformer.checkpoint_filter_fn(dict(state), oracle))
    report = load_checkpoint(model, saved(state, tmp_path / "x.pt"))
    expected = oracle.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    change = f"'layers.0.blocks.0.attn.relative_position_bias_table' from 169x2 to {rows}x2"
    note = f"converted by timm: 2 resized ({change}; grids and windows are taken for squares)"
    assert report.notes == ((note,) if rows else ())


def test_a_patch_of_another_size_is_another_model(tmp_path: Path) -> None:
    path = saved(small_timm(img_size=64, patch_size=8).state_dict(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"'patch_embed.proj.weight' \(expected \(48, 3, 4, 4\)"):
        load_checkpoint(small_timm(), path)


def test_positions_without_a_grid_say_what_they_are_taken_for(tmp_path: Path) -> None:
    levit: dict[str, Any] = {"num_classes": 5, "embed_dim": (32,), "key_dim": 8, "depth": (1,), "num_heads": (2,)}
    levit |= {"stem_type": "s8"}
    rectangle = timm.models.levit.Levit(img_size=(32, 128), **levit)  # 4 x 16, which has the biases of 8 x 8
    report = load_checkpoint(
        timm.models.levit.Levit(img_size=64, **levit), saved(rectangle.state_dict(), tmp_path / "x")
    )
    assert report.notes == ("positions taken for those of the model's own image size",)


def answer(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(images)
    return result


# --- DINOv2's official names: a position for CLS, registers, mask_token


def dinov2(registers: int, **changed: Any) -> nn.Module:
    """timm's model at 5 x 5 patches of 14 px, as vit_small_patch14_dinov2 and vit_small_patch14_reg4_dinov2 are."""
    kind: dict[str, Any] = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    return small_timm(patch_size=14, init_values=1e-5, num_classes=0, **{"img_size": 70} | kind | changed)


def official(registers: int) -> dict[str, Tensor]:
    """What facebookresearch/dinov2 publishes: the names of vit_small(patch_size=14, num_register_tokens=...)."""
    state = randomise(dinov2(0)).state_dict() | {"mask_token": torch.randn(1, 48)}
    return state | {"register_tokens": torch.randn(1, registers, 48)} if registers else state


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [70, 42, 98, (42, 98)])
def test_dinov2s_names_load_as_timms_filter_loads_them(
    tmp_path: Path, registers: int, size: int | tuple[int, int]
) -> None:
    state = official(registers)
    model, oracle = dinov2(registers, img_size=size), dinov2(registers, img_size=size)
    oracle.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(state), oracle))
    report = load_checkpoint(model, saved(state, tmp_path / "x.pt"))
    height, width = size if isinstance(size, tuple) else (size, size)
    images = torch.randn(2, 3, height, width)
    assert answer(oracle, images).std() > 0.01
    torch.testing.assert_close(answer(model, images), answer(oracle, images), rtol=0, atol=1e-6)
    assert "left out 'mask_token', which the model does not use" in report.notes
    assert (report.resampled is None) == (size == 70)


@pytest.mark.parametrize("grid", [(5, 5), (3, 3), (7, 7), (3, 8)])
def test_hugging_faces_dinov2_with_registers_is_resampled_as_its_model_does(
    tmp_path: Path, grid: tuple[int, int]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        image_size=70, patch_size=14, hidden_size=48, num_hidden_layers=1, num_attention_heads=3, num_register_tokens=4
    )
    theirs = transformers.Dinov2WithRegistersModel(config).eval()
    randomise(theirs)
    size = (14 * grid[0], 14 * grid[1])
    model = dinov2(4, img_size=size, depth=1)
    load_checkpoint(model, saved(theirs.state_dict(), tmp_path / "x.pt"))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        actual = model.forward_features(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "bound"),
    [
        ("stages.0.blocks.0.attn.attention_biases", (4, 196), True),  # LeViT
        ("patch_pos", (1, 197, 384), True),  # TNT
        ("pos_embed_0", (1, 401, 96), True),  # CrossViT
        ("blocks.0.mlp_tokens.fc1.weight", (256, 49), True),  # MLP-Mixer
        ("pos_embed", (1, 14, 14, 384), False),  # VOLO: rows and columns are its own
        ("blocks.0.attn.qkv.weight", (144, 48), False),
    ],
)
def test_weights_that_are_bound_to_an_image_size_are_known(name: str, shape: tuple[int, ...], bound: bool) -> None:
    assert is_bound_to_size(name, shape) == bound

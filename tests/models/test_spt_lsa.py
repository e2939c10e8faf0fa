"""Shifted patches and locality attention: what the float64 reference does not say, and how they start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitbench.core.errors import ImageSizeError
from vitbench.models import build_model
from vitbench.models.architectures.spt_lsa import LocalitySelfAttention, relative_index, with_diagonal_shifts


def test_shifted_copies_are_half_a_patch_away_on_the_diagonals() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4) + 1
    copies = with_diagonal_shifts(images, 1)[0]
    assert torch.equal(copies[0], images[0, 0])
    left_up, right_up, left_down, right_down = copies[1:]
    assert torch.equal(left_up[:3, :3], images[0, 0, 1:, 1:])
    assert torch.equal(right_up[:3, 1:], images[0, 0, 1:, :3])
    assert torch.equal(left_down[1:, :3], images[0, 0, :3, 1:])
    assert torch.equal(right_down[1:, 1:], images[0, 0, :3, :3])
    for copy, row, column in ((left_up, 3, 3), (right_up, 3, 0), (left_down, 0, 3), (right_down, 0, 0)):
        assert not copy[row].any()
        assert not copy[:, column].any()


@pytest.mark.parametrize(("form", "cls_sees_itself"), [("scale", True), ("scale_all", False), ("temperature", True)])
def test_a_patch_does_not_attend_to_itself(form: str, cls_sees_itself: bool) -> None:
    torch.manual_seed(0)
    layer = LocalitySelfAttention(8, 2, form, (2, 2))  # type: ignore[arg-type]
    with torch.no_grad():
        layer.qkv.weight[:16] = 0  # every token looks alike, so that attention is even over what is not masked
        layer.qkv.bias.zero_()
        layer.qkv.weight[16:] = torch.eye(8)
        layer.proj.weight.copy_(torch.eye(8))
        layer.proj.bias.zero_()
        if form == "temperature":
            layer.relative_positions.zero_()
    x = torch.eye(5, 8).unsqueeze(0)  # token i is the i-th unit vector: the output holds its weights
    weights = layer(x)[0, :, :5]
    for token in range(5):
        sees_itself = token == 0 and cls_sees_itself
        expected = torch.full((5,), 1 / (5 if sees_itself else 4))
        if not sees_itself:
            expected[token] = 0
        torch.testing.assert_close(weights[token], expected)


def test_relative_positions_depend_on_the_offset_alone() -> None:
    index = relative_index((3, 4))
    assert index.shape == (12, 12)
    assert index.unique().numel() == 5 * 7
    assert index[0, 5] == index[1, 6] == index[6, 11]  # one down, one right
    assert index[0, 5] != index[5, 0]


def test_scales_and_temperatures_start_as_published() -> None:
    small = build_model("vit_small_spt_lsa").blocks[0].attn
    assert small.scale.tolist() == pytest.approx([64**-0.5] * 6)
    tiny = build_model("vit_tiny16_lsa").blocks[0].attn
    assert tiny.temperature.tolist() == [0.0] * 3
    assert tiny.relative_positions.shape == (27 * 27, 3)


@pytest.mark.parametrize("name", ["vit_tiny16", "vit_tiny16_lsa", "vit_tiny16_spt_lsa", "vit_tiny16_distilled"])
def test_tiny_ones_refuse_another_size_in_one_line(name: str) -> None:
    with pytest.raises(ImageSizeError, match=r"fixed size. Give 224$"):
        build_model(name, image_size=192)


def test_a_distilled_model_gives_two_logits_in_training_and_their_mean_in_evaluation() -> None:
    torch.manual_seed(0)
    model = build_model("vit_tiny16_distilled", num_classes=5)
    nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        first, second = model.train()(images)
        mean = model.eval()(images)
    assert first.shape == second.shape == (2, 5)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(mean, (first + second) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.integration
def test_unused_norms_and_untrained_scores_are_the_parameters_without_gradient() -> None:
    from vitbench.analysis.model_summary import show_models

    cards = {
        card["model"]: card for card in show_models(["vit_b16_scratch", "cifar_dynamic_vit_dense", "vit_b16_transfer"])
    }
    assert cards["vit_b16_scratch"]["params_without_gradient"] == 18_432
    assert cards["cifar_dynamic_vit_dense"]["params_without_gradient"] == 6 * 385
    assert cards["vit_b16_transfer"]["trainable_params"] == 2_307
    assert cards["vit_b16_transfer"]["params_without_gradient"] == 0

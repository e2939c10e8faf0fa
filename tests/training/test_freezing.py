"""Which parameters train, and features of what is frozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitbench.errors import UsageError
from vitbench.models import build_model
from vitbench.training.freezing import features_of, find_heads, freeze_parameters

HEADS = {
    "vit_basic_tutorial": ("head",),
    "vit_layer6_32": ("head",),
    "vit_tiny16_distilled": ("head", "head_dist"),
    "cifar_dynamic_vit_dense": ("head",),
    "cifar_lightweight_vit": ("head",),
    "torchvision:vit_b_16": ("heads",),
    "timm:vit_tiny_patch16_224": ("head",),
    "timm:deit_tiny_distilled_patch16_224": ("head", "head_dist"),
    "torchvision:swin_t": ("head",),
}


def meta(name: str, classes: int) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, num_classes=classes)


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_what_changes_with_the_classes(name: str) -> None:
    assert find_heads(meta(name, 7), lambda count: meta(name, count), 7) == HEADS[name]


def test_backbone_leaves_the_head_of_torchvisions_vit() -> None:
    """Project 5: heads = Linear(768, 3), 2,307 parameters; the rest of ViT-B/16, 85,798,656, is frozen."""
    model = meta("torchvision:vit_b_16", 3)
    found = freeze_parameters(model, "backbone", lambda count: meta("torchvision:vit_b_16", count), 3)
    assert (found.trainable, found.total) == (2307, 85_800_963)
    assert {name for name, one in model.named_parameters() if one.requires_grad} == {
        "heads.head.weight",
        "heads.head.bias",
    }
    frozen = {id(one) for module in found.frozen for one in module.modules()}
    assert all(id(one) in frozen for one in model.modules() if isinstance(one, nn.Dropout))


def test_the_head_of_linear_tanh_linear_trains_whole() -> None:
    model = meta("vit_layer6_32", 10)
    found = freeze_parameters(model, "backbone", lambda count: meta("vit_layer6_32", count), 10)
    assert found.trainable == 128 * 128 + 128 + 128 * 10 + 10


def test_blocks_freeze_the_embedding_and_the_first_ones() -> None:
    model = meta("vit_layer6_32", 10)
    freeze_parameters(model, "blocks:4", lambda count: meta("vit_layer6_32", count), 10)
    trained = {name.rsplit(".", 1)[0] for name, one in model.named_parameters() if one.requires_grad}
    assert not any(name.startswith(("patch_embed", "cls_token", "pos_embed")) for name in trained)
    assert {name.split(".")[1] for name in trained if name.startswith("blocks")} == {"4", "5"}
    assert {"norm", "head.fc1", "head.fc2"} <= trained


def test_none_freezes_nothing_and_blocks_0_the_embedding() -> None:
    for freeze, frozen in (("none", set()), ("blocks:0", {"patch_embed", "cls_token", "pos_embed"})):
        model = meta("vit_layer6_32", 10)
        freeze_parameters(model, freeze, lambda count: meta("vit_layer6_32", count), 10)
        assert {name.split(".")[0] for name, one in model.named_parameters() if not one.requires_grad} == frozen


@pytest.mark.parametrize(
    ("freeze", "message"),
    [("head", "none of: none, backbone"), ("blocks:x", "none of"), ("blocks:7", "6 blocks")],
)
def test_what_cannot_be_frozen_is_one_line(freeze: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        freeze_parameters(meta("vit_layer6_32", 10), freeze, lambda count: meta("vit_layer6_32", count), 10)


def test_features_are_what_the_head_is_given() -> None:
    torch.manual_seed(0)
    model = build_model("vit_layer6_32", image_size=8, num_classes=5).eval()
    images = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        features = features_of(model, "head", images.split(4), model)
        torch.testing.assert_close(model.head(features), model(images))
    assert not model.head._forward_pre_hooks


def test_a_head_that_is_not_called_once_is_told() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.head(x))
            return result

    model = Twice()
    with pytest.raises(UsageError, match="not called once"):
        features_of(model, "head", [torch.randn(3, 2)], model)
    assert not model.head._forward_pre_hooks

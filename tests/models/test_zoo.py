"""timm's and torchvision's models on meta at their own and other sizes; pretrained weights without a network."""

from __future__ import annotations

import urllib.error
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from vitbench.errors import ImageSizeError, UsageError
from vitbench.models import build_model, describe_model, use_attention


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:vit_tiny_patch16_224", None),
        ("timm:vit_tiny_patch16_224", 96),
        ("timm:vit_tiny_patch16_224.augreg_in21k", (96, 128)),
        ("timm:swin_tiny_patch4_window7_224", 256),
        ("timm:mobilevit_s", None),
        ("timm:mobilevit_s", 192),
        ("timm:vit_small_patch14_dinov2", 224),
        ("torchvision:vit_b_16", None),
        ("torchvision:vit_b_16", 96),
        ("torchvision:swin_t", (224, 160)),
        ("torchvision:maxvit_t", None),
    ],
)
def test_zoo_models_take_sizes_and_classes(name: str, size: Any) -> None:
    height, width = describe_model(name).image_size if size is None else (size, size) if isinstance(size, int) else size
    with torch.device("meta"):
        model = build_model(name, image_size=size, num_classes=7).eval()
        assert model(torch.empty(2, 3, height, width)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "size", "classes"),
    [
        ("timm:vit_tiny_patch16_224", (224, 224), 1000),
        ("timm:mobilevit_s", (256, 256), 1000),
        ("timm:vit_small_patch14_dinov2", (518, 518), 1000),  # published without a classifier
        ("torchvision:vit_b_16", (224, 224), 1000),
        ("torchvision:swin_v2_t", (256, 256), 1000),
    ],
)
def test_cards_of_the_zoos(name: str, size: tuple[int, int], classes: int) -> None:
    card = describe_model(name)
    assert (card.name, card.image_size, card.num_classes, card.size_rule) == (name, size, classes, "any")


def test_a_timm_size_that_its_constructor_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> nn.Module:
        assert "img_size" not in kwargs, "window does not fit\nmore"
        return nn.Identity()

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ImageSizeError, match=r"^Image size 100 does not fit timm:vit_tiny_patch16_224: window .* fit$"):
        build_model("timm:vit_tiny_patch16_224", image_size=100)


def test_a_fixed_timm_size_is_refused_where_the_constructor_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_img_size(*args: Any, **kwargs: Any) -> nn.Module:
        if "img_size" in kwargs:
            raise TypeError("__init__() got an unexpected keyword argument 'img_size'")
        return nn.Identity()

    monkeypatch.setattr(timm, "create_model", without_img_size)
    with pytest.raises(ImageSizeError, match=r"its size is fixed\. Give 224"):
        build_model("timm:vit_tiny_patch16_224", image_size=96)
    assert isinstance(build_model("timm:mobilevit_s", image_size=96), nn.Identity)


def test_explicit_attention_reaches_timm() -> None:
    torch.manual_seed(0)
    model = build_model("timm:vit_tiny_patch16_224", image_size=64, num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        fused = model(images)
        with use_attention(model, "explicit"):
            assert not model.blocks[0].attn.fused_attn
            explicit = model(images)
    assert model.blocks[0].attn.fused_attn
    torch.testing.assert_close(fused, explicit, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_16"])
def test_a_download_that_fails_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(torchvision.models.ViT_B_16_Weights, "get_state_dict", offline)
    with pytest.raises(UsageError, match="Could not download the weights") as caught, torch.device("meta"):
        build_model(name, pretrained=True)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_were_never_published_are_refused() -> None:
    name = next(one for one in timm.list_models("vit_*") if not timm.get_pretrained_cfg(one).has_weights)
    with pytest.raises(UsageError, match="has no published weights"):
        build_model(f"timm:{name}", pretrained=True)


def test_torchvision_weights_fit_another_head_and_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny_vit(architecture: str, *, weights: None, num_classes: int, image_size: int) -> nn.Module:
        return torchvision.models.VisionTransformer(image_size, 16, 2, 2, 8, 16, num_classes=num_classes)

    monkeypatch.setattr(torchvision.models, "get_model", tiny_vit)
    published = tiny_vit("", weights=None, num_classes=1000, image_size=224).state_dict()
    monkeypatch.setattr(torchvision.models.ViT_B_16_Weights, "get_state_dict", lambda *args, **kwargs: dict(published))
    state = build_model("torchvision:vit_b_16", image_size=96, num_classes=10, pretrained=True).state_dict()
    assert state["encoder.pos_embedding"].shape == (1, 37, 8)
    assert state["heads.head.weight"].shape == (10, 8)
    assert torch.equal(state["conv_proj.weight"], published["conv_proj.weight"])
    published["conv_proj.weight"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"conv_proj\.weight"):
        build_model("torchvision:vit_b_16", image_size=96, num_classes=10, pretrained=True)

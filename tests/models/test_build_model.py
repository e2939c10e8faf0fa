"""build_model, describe_model and use_attention: what they refuse, in one line, and what they put back."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchvision

from vitbench.core.errors import ImageSizeError, UnknownNameError, UsageError
from vitbench.models import build_model, describe_model, use_attention


def test_importing_models_and_describing_ours_does_not_load_torch() -> None:
    code = "import sys, vitbench.models as m, vitbench.analysis.closed_form; m.describe_model('vit_basic'); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar_vit_tny", "cifar_vit_tiny"),
        ("VIT_BASIC", "vit_basic"),
        ("timm:vit_tny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("timm:vit_tiny_patch16_224.augreg_in21", "timm:vit_tiny_patch16_224.augreg_in21k"),
        ("torchvision:vit_b16", "torchvision:vit_b_16"),
    ],
)
def test_unknown_names_are_refused_with_the_closest(name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        build_model(name)
    assert f"Unknown model {name!r}. Did you mean {hint!r}?" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm:hf-hub:someone/something", "timm:local-dir:x", "torchvision:fcn_resnet50", ""])
def test_names_beyond_the_zoos_are_unknown(name: str) -> None:
    with pytest.raises(UnknownNameError):
        build_model(name)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_basic", 30, "patch of 4 px does not divide"),
        ("vit_basic", (32, 33), "32x33"),
        ("vit_basic", 0, "positive"),
        ("vit_basic", -32, "positive"),
        ("vit_basic", 32.0, "positive"),
        ("vit_basic", (32, 32, 32), "positive"),
        ("vit_smaller", 31, "its sides must be at least 32 px"),
        ("vit_smaller", 257, "its sides must be at most 256 px"),
        ("vit_base16", 15, "its sides must be at least 16 px"),
        ("torchvision:vit_b_16", 100, "indivisible"),
        ("torchvision:vit_b_16", (224, 240), "squares only"),
        ("torchvision:alexnet", 32, "its sides must be at least 63 px"),
        ("torchvision:maxvit_t", 225, "not divisible"),
    ],
)
def test_image_sizes_that_do_not_fit_are_refused(name: str, size: object, words: str) -> None:
    with pytest.raises(ImageSizeError, match=words) as caught, torch.device("meta"):
        build_model(name, image_size=size)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [-1, True, 2.5])
def test_what_is_no_number_of_classes_is_refused(classes: object) -> None:
    with pytest.raises(UsageError, match="is not a number of classes"):
        build_model("vit_layer6_32", num_classes=classes)  # type: ignore[arg-type]


def test_our_models_have_no_published_weights() -> None:
    with pytest.raises(UsageError, match="vit_layer6_32 has no published weights"):
        build_model("vit_layer6_32", pretrained=True)


def test_defaults_are_the_cards() -> None:
    card = describe_model("vit_smaller")
    assert (card.image_size, card.num_classes) == ((128, 128), 10)
    assert build_model("vit_layer6_32", num_classes=3).head.fc2.out_features == 3


def test_explicit_attention_calls_no_fused_kernel_and_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("vit_layer6_32").eval()
    calls: list[int] = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), fused(*a, **k))[1]
    )
    images = torch.randn(1, 3, 32, 32)
    with use_attention(model, "explicit"):
        model(images)
    assert calls == []
    with use_attention(model, "fused"):
        model(images)
    assert len(calls) == 6
    with pytest.raises(KeyError), use_attention(model, "explicit"):
        raise KeyError
    model(images)
    assert len(calls) == 12


def test_explicit_attention_reaches_multihead_attention_and_is_put_back() -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5).eval()
    torch.nn.init.normal_(model.heads.head.weight)
    images = torch.randn(2, 3, 32, 32)
    before = (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled())

    def operators() -> set[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model(images)
        return {event.key for event in profile.key_averages()}

    with torch.inference_mode():
        fused = model(images)
        fused_operators = operators()
        with use_attention(model, "explicit"):
            explicit = model(images)
            explicit_operators = operators()
    assert "aten::_native_multi_head_attention" in fused_operators
    assert "aten::_scaled_dot_product_attention_math" in explicit_operators
    assert not any("native_multi_head" in key or "flash" in key for key in explicit_operators)
    torch.testing.assert_close(fused, explicit, rtol=0, atol=1e-5)
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before


def test_unknown_attention_is_refused() -> None:
    with pytest.raises(UsageError, match="fused or explicit"), use_attention(torch.nn.Identity(), "flash"):
        pass


@pytest.mark.integration
def test_a_finetuned_vit_starts_with_a_head_that_passes_gradients_on() -> None:
    torch.manual_seed(0)
    model = build_model("vit_b16_finetune", image_size=32)
    assert model.heads.head.weight.std() > 0.01


@pytest.mark.parametrize("name", ["torchvision:vit_b_16", "torchvision:swin_t", "vit_b16_finetune"])
def test_weights_of_torchvision_know_how_their_pictures_were_normalised(name: str) -> None:
    card = describe_model(name)
    assert card.published_classes == 1000
    assert card.mean == pytest.approx((0.485, 0.456, 0.406))
    assert card.std == pytest.approx((0.229, 0.224, 0.225))
    assert describe_model("vit_basic").mean == (0.5, 0.5, 0.5)

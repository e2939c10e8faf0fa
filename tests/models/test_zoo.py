"""timm's and torchvision's models on meta at their own and other sizes; pretrained weights without a network."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitbench.analysis.model_summary import count_model
from vitbench.core.errors import ImageSizeError, UnknownNameError, UsageError
from vitbench.core.run_folder import read_records
from vitbench.models import build_model, describe_model, use_attention
from vitbench.models.zoo import match_external
from vitbench.runner.run import plan_suite


@pytest.mark.integration
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


# --- patterns, and the suite of all ViTs of timm

#: What "every ViT of timm" must not lose.
PREFIXES = (
    "vit", "deit", "swin", "mobilevit", "xcit", "cait", "levit", "pit", "efficientformer", "tiny_vit", "fastvit",
    "edgenext", "efficientvit", "poolformer", "maxvit", "hiera", "flexivit", "beit", "eva", "convit", "coat",
    "crossvit", "twins", "visformer", "gcvit", "volo", "davit", "mvitv2", "pvt", "tnt", "nest",
)  # fmt: skip
#: Under about 12 M parameters each, of families that differ in how they attend, mix and pool.
SMALL = (
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "mobilevit_xxs", "xcit_nano_12_p16_224",
    "levit_128s", "pit_ti_224", "poolformer_s12", "convit_tiny",
)  # fmt: skip
MORE = (
    "eva02_tiny_patch14_224", "mobilevitv2_050", "cait_xxs24_224", "efficientformerv2_s0", "tiny_vit_5m_224",
    "fastvit_t8", "edgenext_xx_small", "efficientvit_b0", "coat_lite_tiny", "crossvit_tiny_240", "gcvit_xxtiny",
    "pvt_v2_b0",
)  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("timm:pit_?_224", {"timm:pit_b_224", "timm:pit_s_224"}),
        ("timm:vit_tiny_patch16_224", {"timm:vit_tiny_patch16_224"}),
        ("timm:vit_tiny_patch16_[23]*", {"timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_384"}),
        ("torchvision:vit_b_*", {"torchvision:vit_b_16", "torchvision:vit_b_32"}),
        ("torchvision:swin_[ts]", {"torchvision:swin_s", "torchvision:swin_t"}),
    ],
)
def test_patterns_mean_names_of_their_library(pattern: str, names: set[str]) -> None:
    assert match_external(pattern) == sorted(names)


def test_a_pattern_means_every_name_that_the_library_lists() -> None:
    assert match_external("timm:*") == [f"timm:{name}" for name in sorted(timm.list_models())]
    classifiers = torchvision.models.list_models(module=torchvision.models)
    assert match_external("torchvision:*") == [f"torchvision:{name}" for name in sorted(classifiers)]


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("timm:vit_tny_patch16_*", "Did you mean 'timm:vit_tiny_patch16_"),
        ("timm:VIT_tiny_patch16_*", "Did you mean 'timm:vit_tiny_patch16_"),  # upper case is another name
        ("torchvision:vit_bb_*", "Did you mean 'torchvision:vit_b_"),
    ],
)
def test_a_pattern_that_means_nothing_gets_the_closest_name(pattern: str, hint: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        match_external(pattern)
    text = str(caught.value)
    assert text.startswith(f"Unknown model {pattern!r}. {hint}")
    assert "list_models() in Python" in text
    assert "\n" not in text


@pytest.mark.integration
def test_the_suite_of_the_zoo_holds_each_vit_of_timm_once() -> None:
    plan = plan_suite("zoo-static")
    names = [cell.model for cell in plan.cells]
    assert len(names) > 500
    assert len(set(names)) == len(names) == len({cell.id for cell in plan.cells})
    assert set(names) == {f"timm:{name}" for name in timm.list_models() if name.startswith(PREFIXES)}
    for prefix in PREFIXES:
        assert any(name.startswith(f"timm:{prefix}") for name in names), prefix
    assert {(cell.batch_size, cell.device, cell.mode, cell.weights) for cell in plan.cells} == {
        (1, "cpu", "infer", "random")
    }
    sizes = {cell.model: cell.image_size for cell in plan.cells}
    assert (sizes["timm:vit_tiny_patch16_224"], sizes["timm:mobilevit_s"]) == ((224, 224), (256, 256))
    assert plan.static == {}  # counted one by one, when it runs


@pytest.mark.integration
@pytest.mark.parametrize("architecture", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_counts_on_meta_are_those_of_an_allocated_model(architecture: str) -> None:
    counts = count_model(f"timm:{architecture}")
    weights = timm.get_pretrained_cfg(architecture)
    classes = weights.num_classes or 1000  # of the default weights: 21,841, or none, for some
    model = timm.create_model(architecture, num_classes=classes).eval()
    assert counts.params == sum(parameter.numel() for parameter in model.parameters()) < 13e6
    model.requires_grad_(False)  # FlopCounterMode raises for some models (cait, pit) otherwise
    # the counter does not know the CPU's fused kernels; without gradients, fast paths would hide operators from it
    with torch.enable_grad(), use_attention(model, "explicit"), FlopCounterMode(display=False) as counter:
        assert model(torch.zeros(1, *weights.input_size)).shape == (1, classes)
    assert counts.flops == counter.get_total_flops()


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3"])
def test_pictures_are_normalised_as_torchvision_does_inside_of_two_models(architecture: str) -> None:
    card = describe_model(f"torchvision:{architecture}")
    pictures = torch.rand(2, 3, 8, 8)

    def normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (pictures - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    options = {"weights": None, "init_weights": False, "aux_logits": False}
    theirs = torchvision.models.get_model(architecture, transform_input=True, **options)
    ours = normalise(card.mean, card.std)
    torch.testing.assert_close(ours, theirs._transform_input(normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_vit_of_timm_is_counted(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vitbench", "run", "--suite", "zoo-static", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    records = read_records(tmp_path / "run")
    assert {record.cell.model for record in records} == {
        f"timm:{name}" for name in timm.list_models() if name.startswith(PREFIXES)
    }
    assert not [(record.cell.model, record.detail) for record in records if record.status != "ok"]
    for record in records:
        for metric in ("params", "flops"):
            measurement = record.measurement(metric)
            assert measurement is not None
            assert measurement.value > 1e5, record.cell.model

"""Models of Hugging Face's transformers, built here with random weights: what they save gives the same outputs in ours.

Files have the names of the published checkpoints (``save_pretrained``) and those of the modules in memory, which
transformers 5 has renamed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_checkpoints import randomise, saved
from vitbench.models.weights.checkpoints import load_checkpoint

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.integration

SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "layer_norm_eps": 1e-6,
}
OURS: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def vit(**changed: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**OURS | {"num_classes": 5} | changed)


def own_vit() -> nn.Module:
    from vitbench.models.architectures.vit import VisionTransformer

    return VisionTransformer(
        image_size=(32, 32), num_classes=5, patch=8, width=48, depth=2, heads=3, mlp_width=192, norm_eps=1e-6
    )


def distilled() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(**OURS, num_classes=5)


def beit(**changed: Any) -> nn.Module:
    from timm.models.beit import Beit

    sizes = {"num_classes": 5, "init_values": 0.1, "use_abs_pos_emb": False, "use_rel_pos_bias": True}
    return Beit(**OURS | sizes | changed)


def build(name: str, **changed: Any) -> nn.Module:
    kind, _, configuration = name.partition(" ")
    wide = {"mlp_ratio": 4} if "Dinov2" in name else {"intermediate_size": 192}
    pooler = {key: changed.pop(key) for key in ("add_pooling_layer",) if key in changed}
    config = getattr(transformers, configuration)(**SIZES | wide | {"num_labels": 5} | changed)
    return randomise(getattr(transformers, kind)(config, **pooler)).double().eval()


def first_token(output: Any) -> Tensor:
    return output.last_hidden_state[:, 0]


def logits(output: Any) -> Tensor:
    return output.logits


#: transformers' model and options, ours, what is compared, a note
CASES: dict[str, tuple[str, dict[str, Any], Callable[[], nn.Module], Callable[[Any], Tensor], str]] = {
    "ViT": ("ViTForImageClassification ViTConfig", {}, vit, logits, ""),
    "ViT in our own": ("ViTForImageClassification ViTConfig", {}, own_vit, logits, ""),
    "ViT's backbone": ("ViTModel ViTConfig", {}, lambda: vit(num_classes=0), first_token, "pooler.dense"),
    "ViT's backbone without a pooler": (
        "ViTModel ViTConfig",
        {"add_pooling_layer": False},
        lambda: vit(num_classes=0),
        first_token,
        "",
    ),
    "DeiT, distilled": ("DeiTForImageClassificationWithTeacher DeiTConfig", {}, distilled, logits, ""),
    "BEiT": (
        "BeitForImageClassification BeitConfig",
        {"use_relative_position_bias": True, "use_mean_pooling": True},
        beit,
        logits,
        "",
    ),
    "BEiT, one bias for all blocks": (
        "BeitForImageClassification BeitConfig",
        {"use_shared_relative_position_bias": True, "use_mean_pooling": True},
        lambda: beit(use_rel_pos_bias=False, use_shared_rel_pos_bias=True),
        logits,
        "",
    ),
    "BEiT with positions": (
        "BeitForImageClassification BeitConfig",
        {"use_absolute_position_embeddings": True, "use_mean_pooling": False},
        lambda: beit(use_abs_pos_emb=True, use_rel_pos_bias=False, global_pool="token"),
        logits,
        "",
    ),
    "DINOv2": (
        "Dinov2Model Dinov2Config",
        {},
        lambda: vit(num_classes=0, init_values=1e-5),
        first_token,
        "embeddings.mask_token",
    ),
    "DINOv2 with SwiGLU": (
        "Dinov2Model Dinov2Config",
        {"use_swiglu_ffn": True},
        lambda: vit(num_classes=0, init_values=1e-5, **swiglu()),
        first_token,
        "embeddings.mask_token",
    ),
    "DINOv2 with registers": (
        "Dinov2WithRegistersModel Dinov2WithRegistersConfig",
        {"num_register_tokens": 4},
        lambda: vit(num_classes=0, init_values=1e-5, reg_tokens=4, no_embed_class=True),
        first_token,
        "embeddings.mask_token",
    ),
}


def swiglu() -> dict[str, Any]:
    from timm.layers import SwiGLUPacked

    return {"mlp_ratio": 256 / 48, "mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}


@pytest.mark.parametrize("names", ["published", "in memory"])
@pytest.mark.parametrize("case", CASES)
def test_what_transformers_saves_gives_the_same_outputs(tmp_path: Path, case: str, names: str) -> None:
    kind, changed, make, outputs, note = CASES[case]
    theirs, ours = build(kind, **changed), make().double().eval()
    if names == "published":
        theirs.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:
        path = saved(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    report = load_checkpoint(ours, path, grid="4x4")
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, found = outputs(theirs(images)), ours(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert report.layout == "Hugging Face"
    assert note in " ".join(report.notes)
    assert bool(note) == bool(report.notes)


def test_a_classifier_around_a_backbone_loads_with_its_head(tmp_path: Path) -> None:
    """Lightning's state dict of a module that keeps transformers' model under ``model``."""
    theirs, ours = build("ViTForImageClassification ViTConfig"), vit().double().eval()
    state = {f"model.{key}": value for key, value in theirs.state_dict().items()}
    report = load_checkpoint(ours, saved({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt"), grid="4x4")
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images).logits, rtol=0, atol=1e-5)
    assert report.notes == ("taken from the file's entry 'state_dict'", "the prefix 'model.' taken off their names")


def test_our_weights_load_into_a_model_of_transformers(tmp_path: Path) -> None:
    theirs, ours = randomise(vit()).double().eval(), build("ViTForImageClassification ViTConfig")
    load_checkpoint(ours, saved(theirs.state_dict(), tmp_path / "x.pt"))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, theirs(images), rtol=0, atol=1e-5)


def test_the_backbone_of_a_classifier_of_dinov2_loads_without_its_head(tmp_path: Path) -> None:
    theirs = build("Dinov2ForImageClassification Dinov2Config")
    ours = vit(num_classes=0, init_values=1e-5).double().eval()
    report = load_checkpoint(ours, saved(theirs.state_dict(), tmp_path / "x.pt"))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = first_token(theirs.get_submodule("dinov2")(images))
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-5)
    assert "'classifier.weight'" in " ".join(report.notes)

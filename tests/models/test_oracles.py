"""Our plain variants against timm's and torchvision's own models, given the same weights: logits and gradients.

Three narrow blocks show the same as twelve wide ones and are quick. Everything is float64, so that the bounds hold
whichever kernels a processor has.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from vitbench.models import build_model, describe_model
from vitbench.models.architectures.blocks import QuickGELU
from vitbench.models.weights.layouts import TORCHVISION

DEPTH = 3
ACTIVATIONS = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh"), "quick_gelu": QuickGELU}


def narrow_config(name: str) -> dict[str, Any]:
    """A model's own configuration with DEPTH blocks of 16 channels a head."""
    config = describe_model(name).config
    ratio = config["mlp_width"] // config["width"]
    width = 16 * config["heads"]
    return {**config, "depth": DEPTH, "width": width, "mlp_width": ratio * width}


def ours(name: str, side: int) -> nn.Module:
    """A narrow model of ours at ``side`` px, all of its parameters random, in evaluation."""
    card = describe_model(name)
    module, function = card.builder.split(":")
    torch.manual_seed(0)
    model: nn.Module = getattr(importlib.import_module(module), function)(
        image_size=(side, side), num_classes=10, **narrow_config(name)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.double().eval()


def timms(name: str, side: int) -> nn.Module:
    """timm's ViT (or distilled ViT) of the same shape and details."""
    config = narrow_config(name)
    norm = partial(nn.LayerNorm, eps=config["norm_eps"])
    kind = VisionTransformerDistilled if config.get("distilled") else TimmViT
    model: nn.Module = kind(
        img_size=side,
        patch_size=config["patch"],
        embed_dim=config["width"],
        depth=DEPTH,
        num_heads=config["heads"],
        mlp_ratio=config["mlp_width"] / config["width"],
        num_classes=10,
        act_layer=ACTIVATIONS[config["activation"]],
        norm_layer=norm,
        embed_norm_layer=norm if config.get("embedding_norm") else None,
        final_norm=config["final_norm"],
        no_embed_class=config["positions"] == "patches",
    )
    if config["head"] == "tanh":
        D = config["width"]
        model.head = nn.Sequential()
        model.head.add_module("fc1", nn.Linear(D, D))
        model.head.add_module("act", nn.Tanh())
        model.head.add_module("fc2", nn.Linear(D, 10))
    return model.double().eval()


def state_for_timm(model: nn.Module) -> dict[str, Tensor]:
    """Our state dict with q, k and v joined where they are apart: our names are timm's."""
    state = model.state_dict()
    for key in [key for key in state if ".attn.q." in key]:
        parts = [state.pop(key.replace(".q.", f".{part}.")) for part in "qkv"]
        state[key.replace(".q.", ".qkv.")] = torch.cat(parts)
    return state


def assert_same(ours: nn.Module, theirs: nn.Module, side: int, embedding: str) -> None:
    """The same logits, and the same gradients of the images and of the patch embedding."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    inputs = [images.clone().requires_grad_(), images.clone().requires_grad_()]
    outputs = [model(each) for model, each in zip((ours, theirs), inputs, strict=True)]
    assert outputs[1].std() > 0.01
    for output in outputs:
        nn.functional.cross_entropy(output, torch.tensor([3, 7])).backward()
    weights = [ours.get_parameter("patch_embed.proj.weight").grad, theirs.get_parameter(embedding).grad]
    assert weights[1] is not None
    assert weights[1].abs().max() > 1e-4
    for actual, expected in [outputs, [each.grad for each in inputs], weights]:
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("vit_layer6_32", (32, 48)),
        ("vit_basic", (32, 48)),
        ("vit_basic_tutorial", (32, 48)),
        ("vit_basic_b16", (224, 96)),
        ("cifar_vit_tiny", (32, 48)),
        ("cifar_vit_small", (32, 48)),
        ("cifar_vit_base", (32, 48)),
        ("vit_tiny16", (224,)),
        ("vit_tiny16_distilled", (224,)),
    ],
)
def test_timms_vit_with_our_weights_gives_our_logits_and_gradients(name: str, sides: tuple[int, ...]) -> None:
    for side in sides:
        mine, theirs = ours(name, side), timms(name, side)
        theirs.load_state_dict(state_for_timm(mine), strict=True)
        assert_same(mine, theirs, side, "patch_embed.proj.weight")


@pytest.mark.integration
@pytest.mark.parametrize("name", ["vit_base16", "vit_smaller"])
@pytest.mark.parametrize("side", [224, 96])
def test_interpolated_positions_give_timms_logits_and_gradients(name: str, side: int) -> None:
    mine, theirs = ours(name, side), timms(name, side)
    state = state_for_timm(mine)
    with torch.no_grad():  # timm learns positions for its grid: those that ours has there
        state["pos_embed"] = mine.position_embedding(torch.empty(1, 3, side, side, dtype=torch.float64))
    theirs.load_state_dict(state, strict=True)
    assert_same(mine, theirs, side, "patch_embed.proj.weight")


@pytest.mark.integration
@pytest.mark.parametrize("side", [224, 96])
def test_vit_b16_scratch_is_torchvisions_vit_with_unused_norms(side: int) -> None:
    torch.manual_seed(0)
    width = narrow_config("vit_b16_scratch")["width"]
    norm = partial(nn.LayerNorm, eps=1e-5)
    theirs = TorchvisionViT(side, 16, DEPTH, 12, width, 4 * width, num_classes=10, norm_layer=norm).double()
    nn.init.normal_(theirs.heads.head.weight, std=0.02)  # torchvision starts at 0, and zeros prove nothing
    mine = ours("vit_b16_scratch", side)
    state = {
        key.replace(".attn.qkv.", ".attn.attention.in_proj_").replace(".attn.proj.", ".attn.attention.out_proj."): value
        for key, value in ((TORCHVISION.our_name(key) or key, value) for key, value in theirs.state_dict().items())
    }
    missing, unexpected = mine.load_state_dict(state, strict=False)
    assert not unexpected
    assert {key.split(".")[2] for key in missing} == {"unused_norm"}
    assert_same(mine, theirs.eval(), side, "conv_proj.weight")


@pytest.mark.parametrize("name", ["vit_b16_finetune", "vit_b16_transfer"])
def test_vit_b16_of_torchvision_is_torchvisions_but_for_the_head(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name)
        theirs = TorchvisionViT(224, 16, 12, 12, 768, 3072)
    shapes = {key: value.shape for key, value in model.state_dict().items() if not key.startswith("heads")}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("heads")}
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    if name == "vit_b16_transfer":
        assert trained == {"heads.weight", "heads.bias"}
        assert sum(model.get_parameter(key).numel() for key in trained) == 768 * 3 + 3
    else:
        assert trained == set(dict(model.named_parameters()))
        assert model.get_parameter("heads.head.weight").shape == (10, 768)

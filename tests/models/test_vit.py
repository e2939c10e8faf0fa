"""The plain Vision Transformer against torchvision's, its positions at other sizes, its random parts."""

from __future__ import annotations

import pytest
import timm.layers
import torch
import torchvision
from torch import nn

from tests.models import float64_reference
from vitbench.core.errors import ImageSizeError
from vitbench.models import build_model, describe_model, use_attention
from vitbench.models.architectures.blocks import Attention, QuickGELU, StochasticDepth, resize_position_grid
from vitbench.models.architectures.vit import VisionTransformer
from vitbench.models.weights.layouts import TORCHVISION


@pytest.mark.parametrize("side", [224, 96])
def test_weights_of_torchvisions_vit_give_the_same_logits(side: int) -> None:
    torch.manual_seed(0)
    sizes = {"num_layers": 3, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 192}
    theirs = torchvision.models.VisionTransformer(image_size=side, patch_size=16, **sizes).double().eval()
    nn.init.normal_(theirs.heads.head.weight, std=0.2)  # torchvision starts at 0, and zeros prove nothing
    with torch.device("meta"):
        ours = VisionTransformer(
            image_size=(side, side), num_classes=1000, patch=16, width=48, depth=3, heads=3, mlp_width=192
        )
    state = {TORCHVISION.our_name(key) or key: value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(state, strict=True, assign=True)
    images = torch.randn(1, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(images)
        actual = ours.eval()(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grid", [(14, 15), (8, 8), (2, 3), (20, 28)])
def test_position_grid_is_resized_bicubically(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    positions = torch.randn(1, 196, 5, dtype=torch.float64)
    ours = resize_position_grid(positions, (14, 14), grid)
    expected = float64_reference.bicubic(positions.numpy().reshape(14, 14, 5), *grid)
    torch.testing.assert_close(ours, torch.from_numpy(expected).view(1, -1, 5), rtol=0, atol=1e-12)
    timm_grid = timm.layers.resample_abs_pos_embed(
        positions, list(grid), [14, 14], num_prefix_tokens=0, antialias=False
    )
    # timm computes in float32: sums of 16 terms, each at most about 5
    torch.testing.assert_close(ours, timm_grid, rtol=0, atol=16 * 5 * torch.finfo(torch.float32).eps)


def test_position_grid_of_its_own_size_is_untouched() -> None:
    positions = torch.randn(1, 196, 5)
    assert resize_position_grid(positions, (14, 14), (14, 14)) is positions


def test_pixels_that_fill_no_patch_are_not_seen() -> None:
    model = build_model("vit_smaller", image_size=(70, 64), num_classes=3).double().eval()
    images = torch.randn(1, 3, 70, 64, dtype=torch.float64)
    with torch.no_grad():
        logits = model(images)
        torch.testing.assert_close(model(images[:, :, :64]), logits, rtol=1e-9, atol=1e-12)
        assert (model(images.roll(1, dims=2)) - logits).abs().max() > 1e-6


def test_images_of_another_grid_than_the_learned_one_are_refused_in_one_line() -> None:
    model = build_model("vit_layer6_32")
    with pytest.raises(ImageSizeError, match=r"^Image size 64 .* built for 32") as caught:
        model(torch.randn(1, 3, 64, 64))
    assert "\n" not in str(caught.value)


def test_vit_layer_gives_cls_no_position() -> None:
    model = build_model("vit_layer6_32").eval()
    tokens = model.embed(torch.zeros(1, 3, 32, 32))
    assert model.pos_embed.shape == (1, 64, 128)
    assert torch.equal(tokens[:, :1], model.cls_token)


def test_quick_gelu_is_x_times_sigmoid() -> None:
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))


def test_stochastic_depth_drops_whole_images_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25).train()
    out = layer(torch.ones(4000, 3, 2))
    per_image = out.flatten(1)
    assert (per_image == per_image[:, :1]).all()
    assert per_image.unique().tolist() == pytest.approx([0, 4 / 3])
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(layer.eval()(out), out)


def test_vit_base16_stochastic_depth_rises_to_a_tenth() -> None:
    with torch.device("meta"):
        model = build_model("vit_base16")
    rates = [block.drop_path1.rate for block in model.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


CIFAR = ("tokens", "gelu", 1e-5, True, "linear")
SHAPES_AND_DETAILS = {
    # width, depth, heads, MLP width, patch; positions, activation, LayerNorm eps, final LayerNorm, head
    "vit_layer6_32": (128, 6, 4, 256, 4, "patches", "gelu", 1e-5, True, "tanh"),
    "vit_layer12_32": (128, 12, 4, 256, 4, "patches", "gelu", 1e-5, True, "tanh"),
    "vit_basic": (256, 12, 4, 1024, 4, "tokens", "quick_gelu", 1e-5, False, "linear"),
    "vit_base16": (768, 12, 12, 3072, 16, "bicubic", "gelu_tanh", 1e-6, True, "linear"),
    "vit_smaller": (384, 8, 6, 1536, 16, "bicubic", "gelu_tanh", 1e-6, True, "linear"),
    "cifar_vit_tiny": (192, 12, 3, 768, 4, *CIFAR),
    "cifar_vit_small": (384, 12, 6, 1536, 4, *CIFAR),
    "cifar_vit_base": (512, 6, 8, 2048, 4, *CIFAR),
    "cifar_lightweight_vit": (384, 6, 6, 1152, 4, *CIFAR),
    "cifar_dynamic_vit_dense": (384, 6, 6, 1536, 4, *CIFAR),
    "cifar_dynamic_vit_pruned": (384, 6, 6, 1536, 4, *CIFAR),
}


@pytest.mark.parametrize("name", SHAPES_AND_DETAILS)
def test_configuration_is_as_published(name: str) -> None:
    keys = [
        "width",
        "depth",
        "heads",
        "mlp_width",
        "patch",
        "positions",
        "activation",
        "norm_eps",
        "final_norm",
        "head",
    ]
    config = describe_model(name).config
    assert tuple(config[key] for key in keys) == SHAPES_AND_DETAILS[name]


@pytest.mark.parametrize(
    ("name", "embedding", "attention", "projection", "hidden", "output"),
    [
        ("vit_layer6_32", 0.1, 0.0, 0.1, 0.0, 0.1),
        ("vit_basic", 0.1, 0.1, 0.1, 0.0, 0.1),
        ("vit_base16", 0.1, 0.1, 0.1, 0.1, 0.1),
        ("vit_smaller", 0.1, 0.0, 0.0, 0.0, 0.0),
        ("cifar_vit_small", 0.1, 0.1, 0.1, 0.1, 0.1),
    ],
)
def test_dropout_stands_where_the_original_has_it(
    name: str, embedding: float, attention: float, projection: float, hidden: float, output: float
) -> None:
    with torch.device("meta"):
        model = build_model(name)
    block = model.blocks[0]
    rates = [model.pos_drop.p, block.attn.attn_drop.p, block.attn.proj_drop.p, block.mlp.drop1.p, block.mlp.drop2.p]
    assert rates == [embedding, attention, projection, hidden, output]


@pytest.mark.parametrize("kind", ["fused", "explicit"])
def test_attention_dropout_acts_in_training_only(kind: str) -> None:
    torch.manual_seed(0)
    layer = Attention(16, 2, attention_dropout=0.5)
    x = torch.randn(1, 6, 16)
    with use_attention(layer, kind):
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))


def test_initial_weights_are_as_published() -> None:
    torch.manual_seed(0)
    layer = build_model("cifar_vit_tiny")
    for weight in (layer.blocks[0].mlp.fc1.weight, layer.patch_embed.proj.weight, layer.pos_embed):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not layer.blocks[0].mlp.fc1.bias.any()
    assert build_model("vit_basic").pos_embed.std().item() == pytest.approx(1.0, rel=0.05)

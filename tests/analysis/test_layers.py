"""A model's layers: they add up to the model, each is counted once, in the part where a reader looks for it."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.analysis.kinds import smallest_of_each_kind
from vitbench.analysis.layers import PARTS, Layer, describe_layers, part_of, sum_parts, tokens_per_block
from vitbench.models import build_model, describe_model

OURS = [
    "vit_layer6_32",
    "cifar_lightweight_vit",
    "cifar_dynamic_vit_pruned",
    "cifar_dynamic_vit_learned",
    "vit_small_spt_lsa_paper",
    "vit_tiny16_distilled",
    "vit_b16_scratch",
]
THEIRS = [
    "timm:vit_tiny_patch16_224",
    "timm:xcit_nano_12_p16_224",
    "timm:mobilevit_xxs",
    "timm:coat_tiny",  # its blocks share position encodings: other modules hold them than run them
    "torchvision:vit_b_16",
]


@functools.cache
def on_meta(name: str) -> tuple[nn.Module, Tensor]:
    """The model at its own size in evaluation, and one image."""
    with torch.device("meta"):
        model = build_model(name).eval().requires_grad_(False)
    return model, torch.empty(1, 3, *describe_model(name).image_size, device="meta")


def total_flops(model: nn.Module, images: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(images)
    return int(counter.get_total_flops())


@functools.cache
def layers_of(name: str) -> list[Layer]:
    return describe_layers(*on_meta(name))


def by_path(layers: list[Layer]) -> dict[str, Layer]:
    assert len({layer.path for layer in layers}) == len(layers)
    return {layer.path: layer for layer in layers}


# They add up


@pytest.mark.integration
@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_layers_and_parts_add_up_to_the_model(name: str) -> None:
    model, images = on_meta(name)
    layers = layers_of(name)
    params = sum(parameter.numel() for parameter in model.parameters())
    flops = total_flops(model, images)
    assert sum(layer.params for layer in layers) == params
    assert sum(layer.flops for layer in layers) == flops
    assert min(min(layer.params, layer.flops) for layer in layers) >= 0
    parts = sum_parts(layers)
    assert sum(sums["params"] for sums in parts.values()) == params
    assert sum(sums["flops"] for sums in parts.values()) == flops
    assert list(parts) == [part for part in PARTS if part in parts]
    assert {"attention", "norms", "head"} <= set(parts)
    assert all(sums["params"] or sums["flops"] for sums in parts.values())

    # each layer stands once and holds its own parameters
    found = by_path(layers)
    modules = dict(model.named_modules())
    own: dict[str, int] = {}
    for path, parameter in model.named_parameters():
        holder = path.rpartition(".")[0]
        key = path if path in found else holder  # a bare parameter of a module with children has a line of its own
        own[key] = own.get(key, 0) + parameter.numel()
    assert {path: layer.params for path, layer in found.items() if layer.params} == own
    for path, layer in found.items():
        assert layer.params or layer.flops
        if layer.kind != "Parameter":
            assert layer.kind == type(modules["" if path == "(model)" else path]).__name__


def test_layers_are_in_the_order_of_the_model() -> None:
    model, images = on_meta("vit_layer6_32")
    places = {path: place for place, (path, _) in enumerate(model.named_modules())}
    order = [places[layer.path] for layer in describe_layers(model, images) if layer.kind != "Parameter"]
    assert order == sorted(order)


def test_the_model_is_left_without_hooks() -> None:
    model, images = on_meta("vit_layer6_32")
    describe_layers(model, images)
    tokens_per_block(model, images)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


# Hand-computed


def test_the_parts_of_vit_layer6_32_are_those_computed_by_hand() -> None:
    """64 patches of 48 numbers, 65 tokens, width 128, 6 blocks, MLP width 256, head Linear-Tanh-Linear."""
    assert sum_parts(layers_of("vit_layer6_32")) == {
        # 48 * 128 + 128, CLS 128, positions 64 * 128;  2 * 64 * 48 * 128
        "embedding": {"params": 14_592, "flops": 786_432, "lower_bound": False},
        # 6 * 4 * (128^2 + 128);  6 * 2 * (65 * 4 * 128^2 + 2 * 65^2 * 128)
        "attention": {"params": 396_288, "flops": 64_097_280, "lower_bound": False},
        # 6 * (128 * 256 + 256 + 256 * 128 + 128);  6 * 2 * 65 * 2 * 128 * 256
        "MLP": {"params": 395_520, "flops": 51_118_080, "lower_bound": False},
        # 13 LayerNorms of 2 * 128, which are counted in no FLOPs
        "norms": {"params": 3_328, "flops": 0, "lower_bound": False},
        # 128^2 + 128 + 128 * 10 + 10;  2 * (128^2 + 128 * 10)
        "head": {"params": 17_802, "flops": 35_328, "lower_bound": False},
    }


def test_the_layers_of_a_block_are_those_computed_by_hand() -> None:
    found = by_path(layers_of("vit_layer6_32"))
    first = {path: layer for path, layer in found.items() if path.startswith("blocks.0.")}
    params = sorted(layer.params for layer in first.values())
    linear = 128 * 128 + 128
    assert params[-6:] == sorted([linear, linear, linear, linear, 128 * 256 + 256, 256 * 128 + 128])
    assert [layer.params for layer in first.values() if layer.part == "norms"] == [256, 256]
    q_k_and_v = sorted(layer.flops for layer in first.values() if layer.part == "attention")
    assert q_k_and_v == sorted([2 * 65 * 128 * 128] * 4 + [2 * 2 * 65 * 65 * 128])
    assert [layer.output_shape for layer in first.values() if layer.part == "MLP"] == [(1, 65, 256), (1, 65, 128)]


def test_bare_parameters_have_lines_of_their_own() -> None:
    found = by_path(layers_of("vit_layer6_32"))
    bare = {path: layer for path, layer in found.items() if layer.kind == "Parameter"}
    assert {path: layer.params for path, layer in bare.items()} == {"cls_token": 128, "pos_embed": 64 * 128}
    assert {(layer.part, layer.flops, layer.output_shape) for layer in bare.values()} == {("embedding", 0, ())}


def test_score_layers_that_never_run_have_parameters_and_no_flops() -> None:
    dense = sum_parts(layers_of("cifar_dynamic_vit_dense"))
    assert dense["pruning"] == {"params": 6 * 385, "flops": 0, "lower_bound": False}
    pruned = sum_parts(layers_of("cifar_dynamic_vit_pruned"))
    assert pruned["pruning"] == {"params": 6 * 385, "flops": 2 * 384 * (64 + 64 + 57 + 45 + 31), "lower_bound": False}


def test_predictors_that_prune_are_a_part_but_for_their_norms() -> None:
    parts = sum_parts(layers_of("cifar_dynamic_vit_learned"))
    linears = ((384, 384), (384, 192), (192, 96), (96, 2))
    assert parts["pruning"]["params"] == 3 * sum(inputs * outputs + outputs for inputs, outputs in linears)
    macs = sum(inputs * outputs for inputs, outputs in linears)
    assert parts["pruning"]["flops"] == 2 * macs * (64 + 44 + 31)
    assert parts["norms"] == {"params": (13 + 3) * 768, "flops": 0, "lower_bound": False}


def test_linear_attention_takes_what_its_formula_says() -> None:
    parts = sum_parts(layers_of("cifar_lightweight_vit"))
    assert parts["attention"]["flops"] == 2 * 6 * (65 * 4 * 384**2 + 65 * 384 * (2 * 64 + 1))


def test_the_norms_that_never_run_are_among_the_norms() -> None:
    parts = sum_parts(layers_of("vit_b16_scratch"))
    assert parts["norms"] == {"params": (2 * 12 + 1) * 1536 + 18_432, "flops": 0, "lower_bound": False}


def test_two_heads_of_a_distilled_vit_are_both_head() -> None:
    parts = sum_parts(layers_of("vit_tiny16_distilled"))
    assert parts["head"] == {"params": 2 * (192 * 1000 + 1000), "flops": 2 * 2 * 192 * 1000, "lower_bound": False}


@pytest.mark.parametrize(
    ("name", "width", "depth", "tokens"),
    [("timm:vit_tiny_patch16_224", 192, 12, 197), ("torchvision:vit_b_16", 768, 12, 197)],
)
def test_a_plain_vit_of_a_library_has_the_parts_of_the_closed_form(
    name: str, width: int, depth: int, tokens: int
) -> None:
    D, L = width, tokens
    assert sum_parts(layers_of(name)) == {
        "embedding": {"params": 768 * D + D + D + L * D, "flops": 2 * 196 * 768 * D, "lower_bound": False},
        "attention": {
            "params": depth * 4 * (D * D + D),
            "flops": 2 * depth * (4 * L * D * D + 2 * L * L * D),
            "lower_bound": False,
        },
        "MLP": {"params": depth * (8 * D * D + 5 * D), "flops": 2 * depth * 8 * L * D * D, "lower_bound": False},
        "norms": {"params": (2 * depth + 1) * 2 * D, "flops": 0, "lower_bound": False},
        "head": {"params": 1000 * D + 1000, "flops": 2 * 1000 * D, "lower_bound": False},
    }


# Tokens


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("vit_layer6_32", (65,) * 6),
        ("vit_tiny16_distilled", (198,) * 12),
        ("cifar_dynamic_vit_dense", (65,) * 6),
        # int(n * max(.5, 1 - .1 i)) of the remaining patches and CLS: 64, 64, 57, 45, 31, 18
        ("cifar_dynamic_vit_pruned", (65, 65, 58, 46, 32, 19)),
        # int(64 * .7), int(64 * .49), int(64 * .343) before blocks 1, 3 and 4
        ("cifar_dynamic_vit_learned", (65, 45, 45, 32, 22, 22)),
        ("dynamic_vit_small", (197,) * 3 + (138,) * 3 + (97,) * 3 + (68,) * 3),
        ("timm:vit_tiny_patch16_224", (197,) * 12),
        ("torchvision:vit_b_16", (197,) * 12),
        ("timm:xcit_nano_12_p16_224", (196,) * 12),  # CLS comes after its blocks
        ("timm:swin_tiny_patch4_window7_224", ()),  # windows of a grid rather than tokens in a row
        ("timm:mobilevit_xxs", ()),
        ("timm:tnt_s_patch16_224", ()),  # its blocks take the 16 pixel tokens of each patch, then the patches
    ],
)
def test_tokens_into_each_block_are_those_computed_by_hand(name: str, tokens: tuple[int, ...]) -> None:
    assert tokens_per_block(*on_meta(name)) == tokens


def test_tokens_follow_the_image_size() -> None:
    with torch.device("meta"):
        model = build_model("vit_base16", image_size=(231, 240)).eval()
        images = torch.empty(1, 3, 231, 240)
    assert tokens_per_block(model, images) == (14 * 15 + 1,) * 12


# Parts by name


@pytest.mark.parametrize(
    ("path", "module", "part"),
    [
        ("blocks.3.norm1", nn.LayerNorm(4), "norms"),
        ("head.norm", nn.LayerNorm(4), "norms"),
        ("stages.0.bn", nn.BatchNorm2d(4), "norms"),
        ("blocks.0.attn.qkv", nn.Linear(4, 12), "attention"),
        ("encoder.layers.encoder_layer_0.self_attention", nn.MultiheadAttention(4, 1), "attention"),
        ("blocks.0.attn.relative_position_bias_table", nn.Module(), "attention"),
        ("blocks.0.mlp.fc1", nn.Linear(4, 8), "MLP"),
        ("blocks.0.ffn.1", nn.Linear(4, 8), "MLP"),
        ("head", nn.Linear(4, 2), "head"),
        ("head.fc1", nn.Linear(4, 4), "head"),
        ("heads.head", nn.Linear(4, 2), "head"),
        ("head_dist", nn.Linear(4, 2), "head"),
        ("patch_embed.proj", nn.Conv2d(3, 4, 4), "embedding"),
        ("conv_proj", nn.Conv2d(3, 4, 4), "embedding"),
        ("pos_embed", nn.Module(), "embedding"),
        ("encoder.pos_embedding", nn.Module(), "embedding"),
        ("cls_token", nn.Module(), "embedding"),
        ("scores.2", nn.Linear(4, 1), "pruning"),
        ("downsample", nn.Conv2d(4, 8, 2), "other"),
    ],
)
def test_the_part_of_a_layer_follows_from_its_class_and_its_path(path: str, module: nn.Module, part: str) -> None:
    assert part_of(path, module) == part


# Models that share


class TiedWeights(nn.Module):
    """Two layers that share one weight, each with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Wrapped(nn.Module):
    """Holds a layer and runs it twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class OneLayerInTwoPlaces(nn.Module):
    """A module that belongs to two others, as in models that share weights over depth (ALBERT)."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(8, 8)
        self.early, self.late = Wrapped(shared), Wrapped(shared)

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.early(x))


def test_a_tensor_that_two_layers_share_belongs_to_the_first() -> None:
    with torch.device("meta"):
        layers = by_path(describe_layers(TiedWeights(), torch.empty(1, 8)))
    assert {path: layer.params for path, layer in layers.items()} == {"first": 64 + 8, "second": 8}
    assert {path: layer.flops for path, layer in layers.items()} == {"first": 128, "second": 128}


def test_a_layer_that_runs_twice_has_the_flops_of_both() -> None:
    with torch.device("meta"):
        layers = describe_layers(Wrapped(nn.Linear(8, 8)), torch.empty(1, 8))
    assert [(layer.path, layer.params, layer.flops) for layer in layers] == [("layer", 72, 256)]


def test_a_module_that_two_others_share_is_counted_once() -> None:
    with torch.device("meta"):
        layers = describe_layers(OneLayerInTwoPlaces(), torch.empty(1, 8))
    assert sum(layer.params for layer in layers) == 72
    assert sum(layer.flops for layer in layers) == 4 * 2 * 64
    assert all(layer.flops >= 0 for layer in layers)
    assert [layer.path for layer in layers] == ["early.layer"]


@pytest.mark.integration
def test_each_layer_of_our_models_belongs_to_a_known_part() -> None:
    names = [name for name in smallest_of_each_kind() if not name.startswith("vit_b16")]
    assert len(names) >= 12
    for name in names:
        with torch.device("meta"):
            model = build_model(name)
        for path, module in model.named_modules():
            if not any(module.children()) and any(True for _ in module.parameters()):
                assert part_of(path, module) != "other", (name, path)

"""Which parameters train, and features of what is frozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitbench.core.errors import UsageError
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


def test_dropout_behind_what_is_trained_is_trained_with_it() -> None:
    """What comes before is part of what is frozen: noise would change the features."""
    model = meta("timm:vit_tiny_patch16_224", 10)
    found = freeze_parameters(model, "blocks:2", lambda count: meta("timm:vit_tiny_patch16_224", count), 10)
    names = {id(module): name for name, module in model.named_modules()}
    assert {names[id(one)] for one in found.frozen} == {"patch_embed", "pos_drop", "blocks.0", "blocks.1"}


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
    [("head", "not one of: none, backbone"), ("blocks:x", "not one of"), ("blocks:7", "6 blocks")],
)
def test_what_cannot_be_frozen_is_one_line(freeze: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        freeze_parameters(meta("vit_layer6_32", 10), freeze, lambda count: meta("vit_layer6_32", count), 10)


def test_features_are_what_the_head_is_given() -> None:
    torch.manual_seed(0)
    model = build_model("vit_layer6_32", image_size=8, num_classes=5).eval()
    images = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        features = features_of(model, "head", images.split(4), 6, model)
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
        features_of(model, "head", [torch.randn(3, 2)], 3, model)
    assert not model.head._forward_pre_hooks


def test_features_that_would_not_fit_are_refused_before_they_are_kept() -> None:
    def check(size: int) -> None:
        raise UsageError(f"{size} bytes")

    model = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 3))
    with pytest.raises(UsageError, match=f"^{1000 * 5 * 4} bytes"):
        features_of(model, "1", [torch.randn(4, 2)], 1000, model, check)


#: Blocks of all stages, whatever lists they are in.
BLOCKS = {
    "vit_basic": 12,
    "timm:swin_tiny_patch4_window7_224": 2 + 2 + 6 + 2,
    "torchvision:swin_t": 2 + 2 + 6 + 2,
    "timm:pit_ti_224": 2 + 6 + 4,
    "timm:cait_xxs24_224": 24 + 2,
    "timm:resnet18": 8,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_counted_over_all_stages(name: str) -> None:
    with pytest.raises(UsageError, match=f"has {BLOCKS[name]} blocks$"):
        freeze_parameters(meta(name, 10), f"blocks:{BLOCKS[name] + 1}", lambda count: meta(name, count), 10)


def test_blocks_of_a_hierarchical_model_freeze_from_its_beginning() -> None:
    """Swin's first stage has two blocks: with three frozen, the second stage's first one is, and its other is not."""
    name = "timm:swin_tiny_patch4_window7_224"
    model = meta(name, 10)
    freeze_parameters(model, "blocks:3", lambda count: meta(name, count), 10)
    trained = {name.partition(".attn")[0] for name, one in model.named_parameters() if one.requires_grad}
    assert not {one for one in trained if one.startswith(("patch_embed", "layers.0", "layers.1.blocks.0"))}
    assert {"layers.1.blocks.1", "layers.2.blocks.0", "layers.3.blocks.1"} <= trained


def test_blocks_behind_the_frozen_ones_train_in_a_model_that_comes_frozen() -> None:
    """Project 5's transfer model comes with all but its head frozen."""
    model = meta("vit_b16_transfer", 3)
    found = freeze_parameters(model, "blocks:11", lambda count: meta("vit_b16_transfer", count), 3)
    # one block of D = 768: 12 D^2 + 13 D; the last LayerNorm: 2 D; the head: 3 D + 3
    assert found.trainable == 12 * 768**2 + 13 * 768 + 2 * 768 + 3 * 768 + 3
    assert found.heads == ()


def test_a_model_that_comes_frozen_trains_its_head_alone() -> None:
    found = freeze_parameters(meta("vit_b16_transfer", 3), "none", lambda count: meta("vit_b16_transfer", count), 3)
    assert (found.heads, found.trainable) == (("heads",), 2307)


class Own(nn.Module):
    """A builder of one's own with the usual ladder of rates, whose numbers a meta tensor does not have."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.rates = [one.item() for one in torch.linspace(0, 0.1, 3)]
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, classes)


def test_a_builder_that_reads_numbers_from_tensors_is_built_with_memory() -> None:
    state = torch.get_rng_state()
    model = Own(10)
    torch.set_rng_state(state)
    assert find_heads(model, Own, 10) == ("head",)
    assert torch.equal(torch.get_rng_state(), state)
    assert freeze_parameters(model, "backbone", Own, 10).trainable == 8 * 10 + 10


def test_a_builder_for_one_number_of_classes_trains_whole_and_says_why_its_head_cannot_be_told() -> None:
    def build(classes: int) -> nn.Module:
        assert classes == 10, "ten classes only"
        return Own(classes)

    assert freeze_parameters(build(10), "none", build, 10).heads == ()
    with pytest.raises(
        UsageError, match=r"cannot be built for 11 classes as well: ten classes only. Leave out --freeze$"
    ):
        freeze_parameters(build(10), "backbone", build, 10)

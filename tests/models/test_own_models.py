"""Facts that hold for every model of our own: a new row in a .toml is tested without a new test."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.models import float64_reference
from vitbench.analysis.closed_form import closed_form
from vitbench.models import build_model, use_attention
from vitbench.models.cards import ModelCard, load_model_cards
from vitbench.models.outputs import heads_of, training_loss

CARDS = {card.name: card for card in load_model_cards()}
SMALL = 30_000_000  # parameters up to which a model is really run here

#: Models that are torchvision's own, and one that learns what to prune: these have references of their own.
ELSEWHERE = (
    "vitbench.models.architectures.vit_b16:build_finetune",
    "vitbench.models.architectures.vit_b16:build_transfer",
    "vitbench.models.architectures.learned_pruning:DynamicViT",
)

every_model = pytest.mark.parametrize("name", CARDS)
written_here = pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.builder not in ELSEWHERE])


def other_size(card: ModelCard) -> tuple[int, int]:
    """A legal size that is not the model's own, no square where it need not be, not divisible where it floors."""
    if "vit_b16:build_" in card.builder and "scratch" not in card.builder:
        return 96, 96  # torchvision's ViTs take squares
    rest = card.patch // 2 if card.size_rule == "floors" else 0
    return card.patch * 7 + rest, card.patch * 5


def sizes(card: ModelCard) -> list[tuple[int, int]]:
    return [card.image_size] if card.size_rule == "fixed" else [card.image_size, other_size(card)]


def meta_model(name: str, size: tuple[int, int], classes: int) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, image_size=size, num_classes=classes)


def shrunk(card: ModelCard, size: tuple[int, int], classes: int) -> tuple[nn.Module, dict]:
    """The same architecture in narrow and float64, no parameter at a special value such as 0; and its config."""
    heads = card.config["heads"]
    config = {**card.config, "width": 8 * heads, "mlp_width": 20 * heads, "depth": min(card.config["depth"], 6)}
    module, function = card.builder.split(":")
    torch.manual_seed(0)
    model = getattr(importlib.import_module(module), function)(image_size=size, num_classes=classes, **config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.double().eval(), config


@every_model
def test_parameters_and_flops_match_the_closed_form(name: str) -> None:
    card = CARDS[name]
    for size, classes in zip(sizes(card), (card.num_classes, 7), strict=False):
        model = meta_model(name, size, classes).eval().requires_grad_(False)
        expected = closed_form(card, size, classes)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected.params
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *size, device="meta"))
        assert counter.get_total_flops() == expected.flops == 2 * expected.macs


@every_model
def test_flops_are_the_same_with_explicit_attention(name: str) -> None:
    card = CARDS[name]
    model = meta_model(name, card.image_size, card.num_classes).eval().requires_grad_(False)
    with use_attention(model, "explicit"), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *card.image_size, device="meta"))
    assert counter.get_total_flops() == closed_form(card, card.image_size, card.num_classes).flops


@written_here
@pytest.mark.parametrize("attention", ["fused", "explicit"])
def test_logits_match_the_float64_reference(name: str, attention: str) -> None:
    card = CARDS[name]
    for size in sizes(card):
        model, config = shrunk(card, size, classes=7)
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad(), use_attention(model, attention):
            ours = model(images)
        state = {key: value.numpy() for key, value in model.state_dict().items()}
        expected = float64_reference.logits(card.builder, config, state, images.numpy())
        assert expected.std() > 0.01
        torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


@every_model
def test_forward_and_backward_run_on_meta(name: str) -> None:
    card = CARDS[name]
    for size in sizes(card):
        model = meta_model(name, size, 7).train()
        output = model(torch.empty(2, 3, *size, device="meta"))
        assert all(logits.shape == (2, 7) for logits in heads_of(output))
        training_loss(model, output, torch.zeros(2, dtype=torch.long, device="meta")).backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert trained[0].grad is not None


@every_model
def test_a_real_step_is_finite_and_repeats_under_a_seed(name: str) -> None:
    card = CARDS[name]
    if closed_form(card, card.image_size, card.num_classes).params > SMALL:
        pytest.skip("too large to run here")

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        torch.manual_seed(3)
        model = build_model(name).train()
        output = model(torch.randn(2, 3, *card.image_size))
        training_loss(model, output, torch.tensor([0, 1])).backward()
        logits = torch.stack(heads_of(output))
        return logits.detach(), {key: parameter.grad for key, parameter in model.named_parameters()}

    logits, gradients = step()
    assert logits.shape == (2 if card.config.get("distilled") else 1, 2, card.num_classes)
    assert torch.isfinite(logits).all()
    assert torch.equal(step()[0], logits)
    for key, gradient in gradients.items():
        if key.startswith("scores."):
            assert gradient is None
        else:
            assert gradient is not None
            assert torch.isfinite(gradient).all()


@every_model
def test_fused_and_explicit_attention_give_the_same_logits(name: str) -> None:
    card = CARDS[name]
    if closed_form(card, card.image_size, card.num_classes).params > SMALL:
        pytest.skip("too large to run here")
    torch.manual_seed(4)
    model = build_model(name).eval()
    images = torch.randn(1, 3, *card.image_size)
    with torch.no_grad():
        with use_attention(model, "fused"):
            fused = model(images)
        with use_attention(model, "explicit"):
            explicit = model(images)
    torch.testing.assert_close(fused, explicit, rtol=0, atol=1e-5)


@every_model
def test_card_and_config_agree(name: str) -> None:
    card = CARDS[name]
    assert card.config.get("patch", card.patch) == card.patch
    assert card.summary
    assert card.source
    card.check_image_size(card.image_size)
    for claim in card.claims:
        assert claim.printed
        assert claim.source

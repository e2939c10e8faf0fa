"""Facts that hold for every model of our own: a new row in a .toml is tested without a new test."""

from __future__ import annotations

import importlib
from typing import Any

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

#: Models that are torchvision's own, and one that learns what to prune: these have references of their own.
ELSEWHERE = (
    "vitbench.models.architectures.vit_b16:build_finetune",
    "vitbench.models.architectures.vit_b16:build_transfer",
    "vitbench.models.architectures.learned_pruning:DynamicViT",
)

every_model = pytest.mark.parametrize("name", CARDS)
written_here = pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.builder not in ELSEWHERE])
adjustable = pytest.mark.parametrize("name", [name for name, card in CARDS.items() if "width" in card.config])


def other_size(card: ModelCard) -> tuple[int, int]:
    """A size that is not the model's own: no square unless it must be, not divisible by the patch if that is legal."""
    if "vit_b16:build_" in card.builder and "scratch" not in card.builder:
        return 96, 96  # torchvision's ViTs take squares
    rest = card.patch // 2 if card.size_rule == "floors" else 0
    return card.patch * 7 + rest, card.patch * 5


def narrow(card: ModelCard, size: tuple[int, int], depth: int = 12) -> tuple[nn.Module, dict[str, Any]]:
    """The same architecture with few channels, no parameter at a special value such as 0; and its config."""
    heads = card.config["heads"]
    config = {**card.config, "width": 8 * heads, "mlp_width": 20 * heads, "depth": min(card.config["depth"], depth)}
    module, function = card.builder.split(":")
    torch.manual_seed(0)
    model = getattr(importlib.import_module(module), function)(image_size=size, num_classes=7, **config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model, config


def count_flops(model: nn.Module, size: tuple[int, int]) -> int:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops()


@pytest.mark.integration
@every_model
def test_counts_match_the_closed_form_and_a_step_runs_on_meta(name: str) -> None:
    card = CARDS[name]
    sizes = [card.image_size] if card.size_rule == "fixed" else [card.image_size, other_size(card)]
    for size, classes in zip(sizes, (card.num_classes, 7), strict=False):
        with torch.device("meta"):
            model = build_model(name, image_size=size, num_classes=classes)
        if size == card.image_size:
            output = model.train()(torch.empty(2, 3, *size, device="meta"))
            assert all(logits.shape == (2, classes) for logits in heads_of(output))
            training_loss(model, output, torch.zeros(2, dtype=torch.long, device="meta")).backward()
            assert next(one for one in model.parameters() if one.requires_grad).grad is not None
        model.eval().requires_grad_(False)
        expected = closed_form(card, size, classes)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected.params
        assert count_flops(model, size) == expected.flops == 2 * expected.macs
        if size == card.image_size:
            with use_attention(model, "explicit"):
                assert count_flops(model, size) == expected.flops


@written_here
def test_logits_match_the_float64_reference(name: str) -> None:
    card = CARDS[name]
    size = other_size(card)
    model, config = narrow(card, size, depth=6)
    model.double().eval()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    expected = float64_reference.logits(card.builder, config, state, images.numpy())
    assert expected.std() > 0.01
    for attention in ("fused", "explicit"):
        with torch.no_grad(), use_attention(model, attention):
            torch.testing.assert_close(model(images), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.integration
@adjustable
def test_a_real_step_is_finite_and_repeats_under_a_seed(name: str) -> None:
    card = CARDS[name]
    size = other_size(card)

    def step() -> tuple[torch.Tensor, nn.Module]:
        model, _ = narrow(card, size)
        output = model.train()(torch.randn(2, 3, *size))
        training_loss(model, output, torch.tensor([0, 1])).backward()
        return torch.stack(heads_of(output)).detach(), model

    logits, model = step()
    assert logits.shape == (2 if card.config.get("distilled") else 1, 2, 7)
    assert torch.isfinite(logits).all()
    assert torch.equal(step()[0], logits)
    for key, parameter in model.named_parameters():
        if key.startswith("scores.") or "unused_norm" in key:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all()


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

"""Pruning by scores: how many tokens, which ones, in which order, and that nothing trains the scores."""

from __future__ import annotations

import pytest
import torch

from vitbench.analysis.closed_form import closed_form
from vitbench.models import build_model
from vitbench.models.architectures.dynamic_vit import keep_best_patches, kept_patches
from vitbench.models.cards import model_registry


def tokens_into_each_block(model: torch.nn.Module, images: torch.Tensor) -> tuple[int, ...]:
    seen: list[int] = []
    hooks = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])) for block in model.blocks]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return tuple(seen)


def test_64_patches_become_57_45_31_18() -> None:
    remaining, kept = 64, []
    for block in range(5):
        remaining = kept_patches(remaining, block)
        kept.append(remaining)
    assert kept == [64, 57, 45, 31, 18]
    assert kept_patches(100, 9) == 50


@pytest.mark.integration
@pytest.mark.parametrize("size", [32, 48])
def test_executed_tokens_match_the_closed_form(size: int) -> None:
    for name in ("cifar_dynamic_vit_dense", "cifar_dynamic_vit_pruned"):
        model = build_model(name, image_size=size).eval()
        expected = closed_form(model_registry().get(name), (size, size), 10).tokens
        assert tokens_into_each_block(model, torch.randn(2, 3, size, size)) == expected


def test_training_is_dense() -> None:
    model = build_model("cifar_dynamic_vit_pruned").train()
    assert tokens_into_each_block(model, torch.randn(1, 3, 32, 32)) == (65,) * 6


def test_the_best_patches_stay_in_order_and_cls_stays_first() -> None:
    x = torch.arange(6.0).view(1, 6, 1).expand(2, -1, 4)
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2], [5.0, 4.0, 3.0, 2.0, 6.0]])
    kept = keep_best_patches(x, scores, 3)[..., 0]
    assert kept.tolist() == [[0, 2, 3, 4], [0, 1, 2, 5]]


def test_scores_receive_no_gradient_even_where_they_prune() -> None:
    model = build_model("cifar_dynamic_vit_pruned").eval()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    dead = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    assert dead == {f"scores.{i}.{part}" for i in range(6) for part in ("weight", "bias")}


def test_dense_and_pruned_share_their_weights() -> None:
    dense, pruned = build_model("cifar_dynamic_vit_dense").eval(), build_model("cifar_dynamic_vit_pruned").eval()
    pruned.load_state_dict(dense.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(dense(images), pruned(images))

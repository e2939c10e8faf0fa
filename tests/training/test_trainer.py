"""What a recipe's keys do in a step: against the same thing written by hand with torch."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.training.tiny import PatchClassifier, batches, random_pictures
from vitbench.models import build_model
from vitbench.models.architectures.blocks import StochasticDepth
from vitbench.training.augmentation.augment import normalise
from vitbench.training.data.images import ImageSet
from vitbench.training.loop import Trainer, random_state, set_random_state, train
from vitbench.training.optimizers import regularise
from vitbench.training.recipes import Recipe


def recipe(**keys: Any) -> Recipe:
    base = {"name": "test", "optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "learning_rate": 0.1}
    return Recipe(**{**base, "batch_size": 8, "steps": 3, **keys})


def trainer(model: nn.Module, pictures: ImageSet, how: Recipe, **more: Any) -> Trainer:
    more = {"autocast": contextlib.nullcontext, "synchronize": lambda: None, "seed": 0, "device": "cpu", **more}
    return Trainer(model, pictures, how, **more)


def small() -> PatchClassifier:
    torch.manual_seed(0)
    return PatchClassifier(dropout=0.0)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def by_hand(model: nn.Module, pictures: ImageSet, how: Recipe, optimizer: Any, loss: Any) -> nn.Module:
    model = copy.deepcopy(model)
    with_hand = optimizer(model.parameters())
    for order in batches(len(pictures), how, seed=0):
        with_hand.zero_grad()
        loss(model(normalise(pictures.images[order], torch.float32)), pictures.labels[order]).backward()
        with_hand.step()
    return model


@pytest.mark.parametrize(
    ("name", "keys", "make"),
    [
        ("sgd", {"momentum": 0.9, "weight_decay": 0.1}, lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1)),
        ("adam", {"weight_decay": 0.3}, lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.3)),
        ("adamw", {"weight_decay": 0.3}, lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.3)),
    ],
)
def test_optimizers_are_torchs(name: str, keys: dict[str, Any], make: Any) -> None:
    pictures, model, how = random_pictures(), small(), recipe(optimizer=name, **keys)
    expected = by_hand(model, pictures, how, make, F.cross_entropy)
    trainer(model, pictures, how).run()
    torch.testing.assert_close(flat(model), flat(expected), rtol=1e-5, atol=1e-6)


def test_accumulated_parts_are_one_step_of_the_whole_batch() -> None:
    pictures = random_pictures(20)
    models = []
    for parts in (1, 3):
        model = small()
        run = trainer(model, pictures, recipe(batch_size=8, images=20, steps=None, accumulate=parts, clip_norm=0.1))
        run.run()
        assert run.steps == 3
        models.append((flat(model), run.take_statistics()))
    torch.testing.assert_close(models[0][0], models[1][0], rtol=1e-5, atol=1e-6)
    assert models[0][1].losses == pytest.approx(models[1][1].losses, rel=1e-5)
    assert models[0][1].accuracy == models[1][1].accuracy


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_accumulated_parts_are_one_step_also_with_class_weights(mixup: float) -> None:
    labels = torch.tensor([0] * 14 + [1] * 4 + [2] * 2)
    pictures = ImageSet(random_pictures(20, classes=3).images, labels, ("a", "b", "c"))
    models = []
    for parts in (1, 3):
        torch.manual_seed(0)
        model = PatchClassifier(classes=3, dropout=0.0)
        how = recipe(class_weights="inverse", accumulate=parts, label_smoothing=0.1, mixup=mixup)
        run = trainer(model, pictures, how)
        run.run()
        models.append((flat(model), run.take_statistics().losses))
    torch.testing.assert_close(models[0][0], models[1][0], rtol=1e-5, atol=1e-6)
    assert models[0][1] == pytest.approx(models[1][1], rel=1e-5)


def test_a_pause_comes_after_the_step_under_way() -> None:
    whole, paused = small(), small()
    trainer(whole, random_pictures(), recipe(ema=0.9)).run()
    run = trainer(paused, random_pictures(), recipe(ema=0.9))
    for steps in (1, 2, 3):
        run.run(is_to_pause=lambda: True)
        assert run.steps == steps
    assert torch.equal(flat(whole), flat(paused))


def test_class_weights_are_one_over_the_share_with_a_mean_of_one() -> None:
    """Project 1: N / (K n_c), normalised to sum K."""
    labels = torch.tensor([0] * 8 + [1] * 4 + [2] * 4)
    pictures = ImageSet(random_pictures(16, classes=3).images, labels, ("a", "b", "c"))
    counts = torch.tensor([8.0, 4.0, 4.0])
    weights = 16 / (3 * counts)
    weights = weights * 3 / weights.sum()
    torch.manual_seed(0)
    model = PatchClassifier(classes=3, dropout=0.0)
    how = recipe(class_weights="inverse")
    expected = by_hand(
        model,
        pictures,
        how,
        lambda p: torch.optim.SGD(p, 0.1),
        lambda logits, targets: F.cross_entropy(logits, targets, weight=weights),
    )
    trainer(model, pictures, how).run()
    torch.testing.assert_close(flat(model), flat(expected), rtol=1e-5, atol=1e-6)


def test_a_mask_of_minus_infinity_stays_one_in_the_average() -> None:
    model = small()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    model.register_buffer("mean", torch.zeros(2))
    run = trainer(model, random_pictures(), recipe(ema=0.9))
    model.get_buffer("mean").fill_(1.0)
    run.run()
    assert run.averaged is not None
    average = run.averaged.module
    assert average.get_buffer("mask").tolist() == [0.0, -torch.inf]
    assert 0 < average.get_buffer("mean")[0] <= 1


def test_what_is_left_over_of_a_batch_is_seen_and_not_trained_on() -> None:
    """20 images in batches of 9: two processes get 4 each of the first two, and 1 each of the last one."""
    for ranks, counted in ((1, 20), (2, 18)):
        run = trainer(small(), random_pictures(), recipe(steps=None, images=20, batch_size=9), ranks=ranks)
        while not run.done:
            run._take_step()
        assert (run.seen, run.trained) == (20, counted)


def test_the_average_follows_its_recursion() -> None:
    pictures, model = random_pictures(), small()
    run = trainer(model, pictures, recipe(ema=0.9, steps=6))
    average = None
    for step in range(6):
        run.run(until=(step + 1) * 8)
        # torch copies the weights the first time; then the decay rises as (1 + n) / (10 + n) up to 0.9
        decay = min(0.9, (1 + step) / (10 + step))
        average = flat(model) if average is None else decay * average + (1 - decay) * flat(model)
    assert run.averaged is not None
    torch.testing.assert_close(flat(run.averaged.module), average, rtol=1e-5, atol=1e-6)


def test_train_leaves_the_average_in_the_model() -> None:
    models = []
    for ema in (0.0, 0.9):
        model = small()
        train(
            model,
            random_pictures(),
            recipe(ema=ema),
            device="cpu",
            autocast=contextlib.nullcontext,
            synchronize=lambda: None,
            seed=0,
        )
        models.append(flat(model))
    assert not torch.equal(*models)


def test_a_state_restores_every_generator() -> None:
    import random

    import numpy as np

    state = random_state()
    drawn = [(random.random(), float(np.random.rand()), float(torch.rand(1)))]
    set_random_state(state)
    drawn.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_autocast_trains_and_the_scaler_is_in_the_state(amp: torch.dtype) -> None:
    pictures, model = random_pictures(), small()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if amp == torch.float16 else None
    how = recipe(clip_norm=1.0)
    run = trainer(model, pictures, how, autocast=lambda: torch.autocast("cpu", dtype=amp), scaler=scaler)
    before = flat(model)
    run.run()
    plain = small()
    trainer(plain, pictures, how).run()
    assert not torch.equal(before, flat(model))
    torch.testing.assert_close(flat(model), flat(plain), rtol=0.1, atol=0.02)
    assert (run.state()["scaler"] is None) == (scaler is None)
    if scaler is not None:
        state = run.state()
        state["scaler"]["scale"] = 4096.0
        again = torch.amp.GradScaler("cpu", init_scale=8.0)
        trainer(small(), pictures, how, scaler=again).load_state(state)
        assert again.get_scale() == 4096.0


def test_processes_share_each_batch_and_no_image_is_another_ones() -> None:
    """Each of two processes goes through half of what one process goes through in a step."""
    pictures, seen = random_pictures(), {}
    for ranks, rank in ((1, 0), (2, 0), (2, 1)):
        run, taken = trainer(small(), pictures, recipe(), rank=rank, ranks=ranks), []
        batch = run._batch
        run._batch = lambda indices, taken=taken, batch=batch: (taken.append(indices.tolist()), batch(indices))[1]  # type: ignore[method-assign,misc]
        run.run()
        seen[ranks, rank] = taken
    assert [len(one) for one in seen[2, 0]] == [4, 4, 4]
    for whole, first, second in zip(seen[1, 0], seen[2, 0], seen[2, 1], strict=True):
        assert first + second == whole


def test_processes_weigh_classes_over_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of both processes' gradients is that of one process, also where their halves hold other classes."""
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2])
    pictures = ImageSet(random_pictures(8).images, labels, tuple("abcdefghij"))
    how = recipe(class_weights="inverse", steps=1, learning_rate=1.0)
    weights = 8 / (3 * labels.bincount().double())
    weights = weights * 3 / weights.sum()

    def change(ranks: int, rank: int) -> torch.Tensor:
        model = small()
        before = flat(model)
        run = trainer(model, pictures, how, rank=rank, ranks=ranks)
        total = float(weights[labels].sum())
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.fill_(total))
        run.run()
        return flat(model) - before

    one = change(1, 0)
    torch.testing.assert_close((change(2, 0) + change(2, 1)) / 2, one, rtol=1e-4, atol=1e-6)


def test_channels_last_changes_no_result() -> None:
    found = []
    for channels_last in (False, True):
        model = small()
        if channels_last:
            model.to(memory_format=torch.channels_last)
        trainer(model, random_pictures(), recipe(), channels_last=channels_last).run()
        found.append(flat(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_dropout_and_stochastic_depth_are_the_recipes() -> None:
    model = build_model("vit_layer6_32", image_size=8, num_classes=10)
    regularise(model, recipe(dropout=0.25, stochastic_depth=0.3))
    assert {one.p for one in model.modules() if isinstance(one, nn.Dropout)} == {0.25}
    rates = [one.rate for one in model.modules() if isinstance(one, StochasticDepth)]
    blocks = len(rates) // 2
    assert rates == pytest.approx([0.3 * index / (blocks - 1) for index in range(blocks) for _ in range(2)])
    untouched = build_model("vit_layer6_32", image_size=8, num_classes=10)
    regularise(untouched, recipe())
    assert {one.p for one in untouched.modules() if isinstance(one, nn.Dropout)} != {0.25}


def _ladder(model: nn.Module) -> dict[str, float]:
    kinds = {"StochasticDepth": ("rate", "p"), "DropPath": ("drop_prob",)}
    return {
        path: getattr(one, name)
        for path, one in model.named_modules()
        for name in kinds.get(type(one).__name__, ())
        if hasattr(one, name)
    }


@pytest.mark.integration
def test_the_ladder_of_stochastic_depth_is_that_of_the_models_themselves() -> None:
    import timm
    import torchvision

    with torch.device("meta"):
        own = build_model("vit_base16", image_size=32, num_classes=10)
        swin = torchvision.models.swin_t()
    names = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto")
    models = [(own, 0.1), (swin, 0.2), *((timm.create_model(one, drop_path_rate=0.1), 0.1) for one in names)]
    for model, rate in models:
        expected = _ladder(model)
        assert max(expected.values()) == pytest.approx(rate)
        regularise(model, recipe(stochastic_depth=0.7))
        assert max(_ladder(model).values()) == pytest.approx(0.7)
        regularise(model, recipe(stochastic_depth=rate))
        assert _ladder(model) == pytest.approx(expected, abs=1e-8)


@pytest.mark.integration
def test_stochastic_depth_reaches_timms_and_torchvisions_layers() -> None:
    import timm
    import torchvision

    deit = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.1)
    regularise(deit, recipe(stochastic_depth=0.4))
    assert max(one.drop_prob for one in deit.modules() if type(one).__name__ == "DropPath") == pytest.approx(0.4)
    swin = torchvision.models.swin_t()
    regularise(swin, recipe(stochastic_depth=0.4))
    assert max(one.p for one in swin.modules() if type(one).__name__ == "StochasticDepth") == pytest.approx(0.4)


def test_what_a_model_has_no_layers_for_is_told() -> None:
    assert regularise(nn.Linear(2, 2), recipe(dropout=0.1, stochastic_depth=0.1)) == ("dropout", "stochastic depth")
    assert regularise(nn.Linear(2, 2), recipe(dropout=0.0, stochastic_depth=0.0)) == ()
    assert regularise(build_model("vit_layer6_32", image_size=8, num_classes=10), recipe(stochastic_depth=0.1)) == ()


def test_frozen_modules_stay_in_eval_mode() -> None:
    torch.manual_seed(0)
    model = PatchClassifier(dropout=0.5)
    run = trainer(model, random_pictures(), recipe(), frozen=(model.drop,))
    run.run()
    assert not model.drop.training
    assert model.training

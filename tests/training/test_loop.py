"""The training loop: it learns, repeats itself under a seed, keeps to its budget, and says when it diverges."""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.tiny import PatchClassifier, batches, random_pictures
from vitbench.core.errors import DataError, VitbenchError
from vitbench.models import build_model
from vitbench.training.augmentation.augment import normalise
from vitbench.training.data.datasets import describe_data, load_images
from vitbench.training.data.images import ImageSet
from vitbench.training.evaluate import evaluate
from vitbench.training.loop import Trainer, TrainingDiverged, TrainingResult, train
from vitbench.training.muon import SpectralMuon
from vitbench.training.optimizers import hidden_matrices, make_optimizers
from vitbench.training.recipes import Recipe, load_recipe


def _recipe(**keys: Any) -> Recipe:
    budget = {} if {"images", "steps", "epochs", "seconds"} & set(keys) else {"steps": 6}
    return Recipe(**{"name": "test", "learning_rate": 1e-2, "batch_size": 8, **budget, **keys})


def _train(model: nn.Module, pictures: ImageSet, recipe: Recipe, seed: int = 0, **more: Any) -> TrainingResult:
    more.setdefault("autocast", contextlib.nullcontext)
    more.setdefault("synchronize", lambda: None)
    return train(model, pictures, recipe, device="cpu", seed=seed, **more)


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _model(**keys: Any) -> PatchClassifier:
    torch.manual_seed(0)
    return PatchClassifier(**keys)


def test_two_runs_under_a_seed_give_equal_weights() -> None:
    recipe = _recipe(augment=["crop", "flip"], clip_norm=1.0, label_smoothing=0.1, warmup=0.2)
    trained = []
    for noise, seed in ((1, 5), (2, 5), (3, 6)):
        model = _model()
        torch.manual_seed(noise)  # what the caller drew before does not matter
        result = _train(model, random_pictures(), recipe, seed=seed)
        trained.append((_weights(model), result.losses))
    assert torch.equal(trained[0][0], trained[1][0])
    assert trained[0][1] == trained[1][1]
    assert not torch.equal(trained[0][0], trained[2][0])


def test_real_digits_are_learned() -> None:
    info = describe_data("digits")
    pictures = load_images(info, "train", image_size=(8, 8))
    held_out = load_images(info, "test", image_size=(8, 8))
    model = _model(side=8)
    result = _train(model, pictures, _recipe(images=3000, batch_size=32))
    tested = evaluate(model, held_out, device="cpu", autocast=contextlib.nullcontext, batch_size=64)
    assert sum(result.losses[-10:]) < 0.5 * sum(result.losses[:10])
    assert tested.correct / tested.total > 0.8


@pytest.mark.integration
def test_brief_recipe_trains_a_vision_transformer_of_the_registry() -> None:
    info = describe_data("digits")
    pictures = load_images(info, "train", image_size=(32, 32), images=64)
    torch.manual_seed(0)
    model = build_model("vit_layer6_32", image_size=32, num_classes=10)
    before = _weights(model)
    result = _train(model, pictures, load_recipe("brief", images=64))
    assert result.images_seen == 64
    assert not torch.equal(before, _weights(model))


@pytest.mark.parametrize(
    ("budget", "seen", "steps"),
    [
        ({"images": 50}, 50, 7),
        ({"images": 5}, 5, 1),
        ({"steps": 9}, 72, 9),
        ({"epochs": 1}, 40, 5),
        ({"epochs": 2.1}, 84, 11),
    ],
)
def test_budget_is_kept_to_the_image(budget: dict[str, Any], seen: int, steps: int) -> None:
    heard: list[tuple[int, int | None, float]] = []
    result = _train(_model(), random_pictures(40), _recipe(**budget), on_step=lambda *step: heard.append(step))
    assert (result.images_seen, result.steps, result.stopped_because) == (seen, steps, next(iter(budget)))
    assert [step for step, _, _ in heard] == list(range(1, steps + 1))
    assert {total for _, total, _ in heard} == {steps}
    assert tuple(loss for _, _, loss in heard) == result.losses
    assert len(result.losses) == steps
    assert result.duration_s > 0


@pytest.mark.integration
def test_time_budget_stops_after_its_seconds() -> None:
    result = _train(_model(), random_pictures(), _recipe(seconds=0.3))
    assert result.stopped_because == "seconds"
    assert result.steps > 5
    assert 0.3 <= result.duration_s < 1.5


def test_time_budget_takes_one_step_at_least() -> None:
    assert _train(_model(), random_pictures(), _recipe(seconds=1e-9)).steps == 1


def test_every_image_comes_once_before_any_comes_again() -> None:
    steps = list(batches(10, _recipe(images=25, batch_size=4), seed=0))
    assert [len(step) for step in steps] == [4, 4, 4, 4, 4, 4, 1]
    seen = torch.cat(steps).tolist()
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20] != list(range(10))
    assert torch.cat(list(batches(10, _recipe(images=25, batch_size=4), seed=1))).tolist() != seen


def test_more_images_in_a_batch_than_there_are() -> None:
    (step,) = batches(3, _recipe(steps=1, batch_size=8), seed=0)
    assert torch.bincount(step).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_step_is_that_of_torchs_adamw() -> None:
    pictures = random_pictures(8)
    recipe = _recipe(steps=1, batch_size=8, schedule="constant", weight_decay=0.1, clip_norm=0.05, label_smoothing=0.2)
    model = _model(dropout=0.0)
    by_hand = copy.deepcopy(model)
    _train(model, pictures, recipe)
    (order,) = batches(8, recipe, seed=0)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.1)
    logits = by_hand((pictures.images[order].float() / 255 - 0.5) / 0.5)
    nn.functional.cross_entropy(logits, pictures.labels[order], label_smoothing=0.2).backward()
    nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05)
    optimizer.step()
    torch.testing.assert_close(_weights(model), _weights(by_hand), rtol=1e-5, atol=1e-7)


def test_learning_rate_follows_the_recipe() -> None:
    recipe = _recipe(steps=4, warmup=0.5, min_learning_rate=1e-3)
    rates: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        step = torch.optim.AdamW.step

        def spy(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return step(self, *args, **kwargs)

        patch.setattr(torch.optim.AdamW, "step", spy)
        _train(_model(), random_pictures(), recipe)
    assert rates == pytest.approx([recipe.learning_rate_at(progress) for progress in (0.125, 0.375, 0.625, 0.875)])
    assert rates[0] < rates[1] < 1e-2


def test_frozen_parameters_stay() -> None:
    model = _model()
    model.patches.requires_grad_(False)
    before = model.patches.weight.clone()
    _train(model, random_pictures(), _recipe(weight_decay=0.5))
    assert torch.equal(model.patches.weight, before)


def test_heads_of_a_distilled_model_share_the_loss() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = PatchClassifier(dropout=0.0), PatchClassifier(dropout=0.0)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.first(images), self.second(images)

    torch.manual_seed(0)
    model, pictures = TwoHeads(), random_pictures(8)
    recipe = _recipe(steps=1, batch_size=8)
    with torch.no_grad():
        images = pictures.images / 127.5 - 1
        expected = sum(float(nn.functional.cross_entropy(logits, pictures.labels)) for logits in model(images)) / 2
    assert _train(model, pictures, recipe).losses[0] == pytest.approx(expected, rel=1e-5)


def test_loss_that_is_not_finite_names_the_step_and_the_way_out() -> None:
    class Breaks(PatchClassifier):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(images) * (float("nan") if self.calls == 4 else 1.0)

    heard: list[float] = []
    with pytest.raises(
        TrainingDiverged, match=r"loss of training step 4 is nan.*Lower the learning rate \(0.01\)"
    ) as it:
        _train(Breaks(), random_pictures(), _recipe(steps=9), on_step=lambda step, total, loss: heard.append(loss))
    assert it.value.step == 4
    assert isinstance(it.value, VitbenchError)
    assert len(heard) == 3


def test_learning_rate_that_explodes_is_told() -> None:
    with pytest.raises(TrainingDiverged):
        _train(_model(), random_pictures(), _recipe(learning_rate=1e30, schedule="constant", steps=20))


def test_scaler_of_half_precision_is_used_and_clips_true_gradients() -> None:
    pictures, recipe = random_pictures(), _recipe(clip_norm=0.1)
    plain, scaled = _model(dropout=0.0), _model(dropout=0.0)
    _train(plain, pictures, recipe)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    _train(scaled, pictures, recipe, scaler=scaler)
    torch.testing.assert_close(_weights(plain), _weights(scaled), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [1.0, None])
@pytest.mark.parametrize("spoiled", [0, 1])
def test_an_overflow_in_one_optimizers_gradients_keeps_both_from_stepping(
    clip_norm: float | None, spoiled: int
) -> None:
    torch.manual_seed(0)
    pictures = random_pictures()
    model = build_model("vit_basic_tutorial", image_size=8, num_classes=pictures.num_classes)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    recipe = _recipe(optimizer="muon", clip_norm=clip_norm, weight_decay=0.1, steps=2)
    trainer = Trainer(
        model,
        pictures,
        recipe,
        device="cpu",
        autocast=contextlib.nullcontext,
        scaler=scaler,
        synchronize=lambda: None,
        seed=0,
    )
    assert [type(one) for one in trainer.optimizers] == [torch.optim.Muon, torch.optim.AdamW]
    parameter = trainer.optimizers[spoiled].param_groups[0]["params"][0]
    hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    before = _weights(model)
    trainer.run(until=8)
    assert torch.equal(_weights(model), before)
    assert scaler.get_scale() == 512.0
    hook.remove()
    trainer.run()
    assert bool(torch.isfinite(_weights(model)).all())
    for optimizer in trainer.optimizers:
        assert optimizer.state  # both have stepped
    assert scaler.get_scale() == 512.0


class Normed(nn.Module):
    """Batch normalisation of patches, four an image, and of one number a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.of_patches = nn.BatchNorm2d(16)
        self.of_pictures = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.of_pictures(self.of_patches(self.patches(images)).mean((2, 3))))
        return logits


@pytest.mark.parametrize(
    ("keys", "counted"),
    [({"batch_size": 8, "epochs": 1}, (2, 1)), ({"batch_size": 3, "accumulate": 2, "steps": 3}, (6, 3))],
)
def test_a_left_over_image_goes_by_running_statistics_where_it_has_none_of_its_own(
    keys: dict[str, Any], counted: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = Normed()
    before = _weights(model)
    _train(model, random_pictures(9), _recipe(**keys))
    assert (int(model.of_patches.num_batches_tracked), int(model.of_pictures.num_batches_tracked)) == counted
    assert not torch.equal(before, _weights(model))
    assert model.of_pictures.training
    assert not model.of_pictures._forward_pre_hooks


def test_parts_of_one_image_each_are_not_normalised_in_silence() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        _train(Normed(), random_pictures(8), _recipe(batch_size=4, accumulate=4))


def test_autocast_surrounds_the_forward_pass_and_the_device_is_waited_for() -> None:
    seen: list[torch.dtype] = []
    waited: list[int] = []
    model = _model()
    model.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    _train(
        model,
        random_pictures(),
        _recipe(steps=2),
        autocast=lambda: torch.autocast("cpu", torch.bfloat16),
        synchronize=lambda: waited.append(1),
    )
    assert seen == [torch.bfloat16] * 2
    assert len(waited) == 2  # before and after, not in between


def test_model_with_too_few_classes_is_refused() -> None:
    with pytest.raises(DataError, match="has 4 classes, but the data set has 10"):
        _train(_model(classes=4), random_pictures(), _recipe())


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    model = build_model("cifar_dynamic_vit_learned", num_classes=10)
    muon, adamw = make_optimizers(model, _recipe(optimizer="muon", weight_decay=0.1), 10)
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert matrices | rest == set(names.values())
    assert not matrices & rest
    assert "blocks.0.attn.qkv.weight" in matrices
    assert "blocks.5.mlp.fc2.weight" in matrices
    assert {"head.weight", "patch_embed.proj.weight", "pos_embed", "blocks.0.norm1.weight"} <= rest
    assert not any(name.endswith("bias") for name in matrices)
    assert {group["lr"] for optimizer in (muon, adamw) for group in optimizer.param_groups} == {1e-2}
    assert {group["weight_decay"] for optimizer in (muon, adamw) for group in optimizer.param_groups} == {0.1}


def test_muon_leaves_scores_and_classifiers_to_adamw() -> None:
    with torch.device("meta"):
        model = build_model("cifar_dynamic_vit_dense")
    shapes = {tuple(matrix.shape) for matrix in hidden_matrices(model, 10)}
    assert shapes == {(1152, 384), (384, 384), (1536, 384), (384, 1536)}
    with torch.device("meta"):
        torchvisions = build_model("torchvision:vit_b_16", num_classes=7)
    assert len(hidden_matrices(torchvisions, 7)) == 12 * 4  # in_proj is a bare parameter there


@pytest.mark.parametrize(
    ("factor", "muon"),
    [
        (None, partial(torch.optim.Muon, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")),
        (4.0, partial(SpectralMuon, lr=4e-2, weight_decay=0.025)),
    ],
)
def test_steps_are_those_of_muon_and_adamw(factor: float | None, muon: Any) -> None:
    settings = {"optimizer": "muon", "muon_factor": factor, "schedule": "constant", "weight_decay": 0.1}
    recipe = _recipe(steps=3, warmup=0.0, **settings)
    pictures = random_pictures()
    model, again = (build_model("vit_basic_tutorial", image_size=8, num_classes=pictures.num_classes) for _ in range(2))
    again.load_state_dict(model.state_dict())
    for one in (model, again):
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    begin = copy.deepcopy(model.state_dict())
    _train(model, pictures, recipe)
    moved = (model.blocks[0].mlp.fc1.weight - begin["blocks.0.mlp.fc1.weight"]).detach()
    matrices = hidden_matrices(again, pictures.num_classes)
    ids = {id(matrix) for matrix in matrices}
    optimizers = [
        muon(matrices),
        torch.optim.AdamW([p for p in again.parameters() if id(p) not in ids], lr=1e-2, weight_decay=0.1),
    ]
    again.train()
    for indices in batches(len(pictures), recipe, 0):
        for optimizer in optimizers:
            optimizer.zero_grad()
        images = normalise(pictures.images[indices], torch.float32)
        nn.functional.cross_entropy(again(images), pictures.labels[indices]).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert moved.abs().max() > 1e-3
    torch.testing.assert_close(_weights(model), _weights(again), rtol=0, atol=1e-6)


def test_a_models_own_loss_is_trained_too() -> None:
    class WithOwnLoss(PatchClassifier):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Parameter(torch.tensor(3.0))

        def auxiliary_loss(self) -> torch.Tensor:
            return self.extra**2

    torch.manual_seed(0)
    model = WithOwnLoss()
    before = float(model.extra.detach())
    result = _train(model, random_pictures(), _recipe(steps=20))
    assert abs(float(model.extra.detach())) < before
    assert result.losses[0] > 9  # cross entropy on top of 3 squared

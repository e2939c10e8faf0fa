"""Trainings that begin with weights: frozen parts, features, heads, sizes, colours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.experiments.training.asking import MODEL, KilledError, die_after_saving, request, transfer, weights
from vitbench.cli import run_command
from vitbench.core.errors import UsageError
from vitbench.experiments.training import resume_training, start_training
from vitbench.experiments.training.checkpoint import load_state
from vitbench.experiments.training.progress import TrainingProgress
from vitbench.experiments.training.request import LAST
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import load_checkpoint, read_facts


def test_weights_of_another_normalisation_are_warned_of(whole: Path, tmp_path: Path) -> None:
    class Heard(TrainingProgress):
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    heard = Heard()
    begin = str(whole / "checkpoints" / "best.safetensors")
    start_training(request(weights=begin, recipe={"mean": [0.4, 0.5, 0.6], "images": 20}), tmp_path / "run", heard)
    assert [text for text in heard.warnings if "--set mean=0.5,0.5,0.5 keeps it" in text] == heard.warnings != []


def test_published_weights_are_trained_tested_and_described_with_their_own_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.experiments.training import setup
    from vitbench.models import describe_model

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    card = replace(describe_model(MODEL), mean=mean, std=std)
    seen: list[float] = []

    def build(name: str, *, pretrained: bool = False, **size: Any) -> torch.nn.Module:
        model = build_model(name, **size)
        model.register_forward_pre_hook(lambda _, given: seen.append(round(float(given[0].min()), 3)))
        return model

    monkeypatch.setattr(setup, "describe_model", lambda name: card)
    monkeypatch.setattr(setup, "build_model", build)
    start_training(request(pretrained=True, recipe={"images": 60, "augment": [], "mixup": 0.0}), tmp_path / "run")
    facts = read_facts(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert (tuple(facts["recipe"]["mean"]), tuple(facts["recipe"]["std"])) == (mean, std)
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (tuple(evaluation["mean"]), tuple(evaluation["std"])) == (mean, std)
    # black, which every batch of digits holds, is the same number in training, validation and test
    assert set(seen) == {round(-0.485 / 0.229, 3)}


def test_a_frozen_backbone_trains_on_features_as_it_would_on_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.experiments.training.setup import Setup

    passes: list[int] = []

    def build(*names: Any, **keys: Any) -> torch.nn.Module:
        model = build_model(*names, **keys)
        model.get_submodule("blocks.0").register_forward_hook(lambda *found: passes.append(len(found[2])))
        return model

    monkeypatch.setattr("vitbench.experiments.training.setup.build_model", build)
    summaries = [start_training(transfer(), tmp_path / "features")]
    # the 100 images to train on and the 287 held out go through the backbone once; the rest are the tests at the end
    assert passes[:7] == [64, 36, 64, 64, 64, 64, 31]
    assert set(passes[7:]) == {50}
    passes.clear()
    monkeypatch.setattr(Setup, "_cache_features", lambda self, state: None)
    summaries.append(start_training(transfer(), tmp_path / "pictures"))
    assert passes.count(20) >= 100 // 20
    one, other = weights(tmp_path / "features"), weights(tmp_path / "pictures")
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)
    for row, expected in zip(summaries[0].history, summaries[1].history, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert row["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-4)
    head = 48 * 10 + 10
    assert (summaries[0].figures["trainable_params"], summaries[0].figures["params"]) == (
        head,
        summaries[1].figures["params"],
    )


def test_test_images_go_through_a_frozen_backbone_once_where_none_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.experiments.training.setup import Setup

    summary = start_training(transfer(recipe={"validation": 0.0}), tmp_path / "features")
    figures, last = summary.figures["last"], summary.history[-1]
    assert (last["test_accuracy"], last["test_loss"]) == (figures["test_accuracy"], pytest.approx(figures["test_loss"]))
    monkeypatch.setattr(Setup, "_cache_features", lambda self, state: None)
    expected = start_training(transfer(recipe={"validation": 0.0}), tmp_path / "pictures").history
    assert [row["test_loss"] for row in summary.history] == [
        pytest.approx(row["test_loss"], rel=1e-4) for row in expected
    ]


def test_features_that_do_not_fit_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitbench.experiments.training.setup.spare_memory", lambda: 1000)
    heard: list[str] = []
    progress = TrainingProgress()
    monkeypatch.setattr(progress, "note", heard.append)
    summary = start_training(transfer(), tmp_path / "run", progress)
    (message,) = [text for text in heard if "are not kept" in text]
    assert message.endswith("they would take 0.0 GB, more than half of the memory that is free")
    assert summary.figures["trainable_params"] == 48 * 10 + 10


def test_the_colours_of_a_recipe_stay_where_a_card_states_none(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pth"
    torch.save(build_model(MODEL, image_size=8, num_classes=10).state_dict(), path)
    mean = [0.1, 0.2, 0.3]
    start_training(request(weights=str(path), recipe={"images": 20, "mean": mean}), tmp_path / "run")
    assert read_facts(tmp_path / "run" / "checkpoints" / "last.safetensors")["recipe"]["mean"] == mean


def test_a_frozen_pruning_model_drops_patches_while_its_head_trains_as_when_it_is_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, int]] = set()

    def build(*names: Any, **keys: Any) -> torch.nn.Module:
        model = build_model(*names, **keys)
        model.get_submodule("blocks.5").register_forward_hook(
            lambda _, given, result: seen.add((model.get_submodule("head").training, result.shape[1]))
        )
        return model

    monkeypatch.setattr("vitbench.experiments.training.setup.build_model", build)
    content = request(
        model="cifar_dynamic_vit_pruned", image_size="16", freeze="backbone", train_images=20, test_images=10,
        recipe={"images": 20, "augment": ["flip"], "mixup": 0.0, "ema": 0.0, "validation": 0.0},
    )  # fmt: skip
    start_training(content, tmp_path / "run")
    assert {training for training, _ in seen} == {True, False}
    assert len({tokens for _, tokens in seen}) == 1
    assert max(tokens for _, tokens in seen) < 17  # 16 patches and CLS


def test_weights_of_other_classes_start_a_training_with_a_new_head(whole: Path, tmp_path: Path) -> None:
    from tests.training.data.folders import make_image_folder

    make_image_folder(tmp_path / "pictures", train=20, test=5)
    start = str(whole / "checkpoints" / "best.safetensors")
    content = transfer(data=str(tmp_path / "pictures"), weights=start, train_images=None)
    with pytest.raises(UsageError, match="--replace-head"):
        start_training(content, tmp_path / "run")
    summary = start_training(replace(content, replace_head=True), tmp_path / "run")
    assert "its head left out" in summary.figures["origin"]
    before, after = build_model(MODEL, image_size=8, num_classes=10), weights(tmp_path / "run")
    load_checkpoint(before, start)
    for key, value in before.state_dict().items():
        if not key.startswith("head"):
            assert torch.equal(value, after[key]), key


def test_a_head_may_have_room_for_more_classes(tmp_path: Path) -> None:
    summary = start_training(request(num_classes=12, recipe={"images": 400}), tmp_path / "run")
    by_class = summary.figures["last"]["class_f1"]
    assert list(by_class)[-2:] == ["class 10", "class 11"]
    assert weights(tmp_path / "run")["head.weight"].shape == (12, 48)
    # the digits have ten classes: those that no image is of count in no mean over classes
    assert summary.figures["last"]["macro_f1"] == pytest.approx(sum(list(by_class.values())[:10]) / 10)
    assert sum(by_class.values()) > 0
    # Muon orthogonalises hidden matrices, and a head of whatever width is none
    state = load_state(tmp_path / "run" / LAST)
    assert state is not None
    (muon, adamw) = state["optimizers"]
    shapes = [
        {tuple(one.get("momentum_buffer", one.get("exp_avg")).shape) for one in kept["state"].values()}
        for kept in (muon, adamw)
    ]
    assert ((12, 48) in shapes[0], (12, 48) in shapes[1]) == (False, True)


def test_a_checkpoint_with_room_for_more_classes_is_evaluated_on_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = start_training(request(num_classes=12, recipe={"images": 400}), tmp_path / "run")
    path = str(tmp_path / "run" / "checkpoints" / "last.safetensors")
    words = ["evaluate", MODEL, "--weights", path, "--data", "digits", "--test-images", "50", "--json"]
    assert run_command(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"]["value"] == summary.figures["last"]["test_accuracy"]
    assert found["macro"]["f1"] == pytest.approx(summary.figures["last"]["macro_f1"])
    assert found["macro"]["method"].startswith("scikit-learn's means over all 10 classes of the data (the head has 12)")
    assert [one["name"] for one in found["classes"]][9:] == ["9", "class 10", "class 11"]


def test_weights_from_elsewhere_get_the_colours_of_the_card_also_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.experiments.training import setup
    from vitbench.models import describe_model

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    card = replace(describe_model(MODEL), mean=mean, std=std)
    monkeypatch.setattr(setup, "describe_model", lambda name: card)
    path = tmp_path / "foreign.pth"
    torch.save(build_model(MODEL, image_size=8, num_classes=10).state_dict(), path)
    heard: list[str] = []
    progress = TrainingProgress()
    monkeypatch.setattr(progress, "note", heard.append)
    with monkeypatch.context() as patch:
        die_after_saving(patch, 2)
        with pytest.raises(KilledError):
            start_training(request(weights=str(path)), tmp_path / "run", progress)
    note = "Images are normalised as vit_basic_tutorial's card says: mean 0.485,0.456,0.406, std 0.229,0.224,0.225"
    assert note in heard
    path.unlink()
    resume_training(tmp_path / "run")
    facts = read_facts(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert (tuple(facts["recipe"]["mean"]), tuple(facts["recipe"]["std"])) == (mean, std)


def test_images_have_the_size_that_weights_of_ours_were_trained_at(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(whole / "checkpoints" / "last.safetensors")
    heard: list[str] = []
    progress = TrainingProgress()
    monkeypatch.setattr(progress, "note", heard.append)
    monkeypatch.setattr(progress, "warn", heard.append)
    short = {"images": 20}
    start_training(request(weights=path, image_size=None, recipe=short), tmp_path / "same", progress)
    assert read_facts(tmp_path / "same" / "checkpoints" / "last.safetensors")["image_size"] == [8, 8]
    assert "Images are 8 px, as those of the weights' training" in heard
    assert not [text for text in heard if "resampled" in text]
    start_training(request(weights=path, image_size="16", recipe=short), tmp_path / "other", progress)
    assert read_facts(tmp_path / "other" / "checkpoints" / "last.safetensors")["image_size"] == [16, 16]
    assert "The weights: positions resampled from 2x2 to 4x4 patches (bicubic, as vitbench)" in heard

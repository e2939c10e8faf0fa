"""What a training does and leaves behind: files, curves, seeds, devices, patience."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.experiments.training.asking import MODEL, KilledError, assert_same_weights, request, weights
from vitbench.cli import run_command
from vitbench.core.errors import ModelFailed, UsageError
from vitbench.experiments.open_model import OutOfMemory
from vitbench.experiments.training import resume_training, start_training
from vitbench.experiments.training.checkpoint import load_state
from vitbench.experiments.training.progress import TrainingProgress
from vitbench.experiments.training.request import LAST
from vitbench.models.weights.checkpoints import read_facts
from vitbench.training.recipes import load_recipe


def test_a_training_leaves_all_that_it_promises(whole: Path) -> None:
    names = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert names >= {
        "training.json",
        "history.csv",
        "curves.png",
        "summary.json",
        "report.md",
        LAST,
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
        "evaluation.json",
        "evaluation.md",
        "confusion.png",
        "reliability.png",
    }
    assert not [name for name in names if name.endswith(".part")]
    for name in ("curves.png", "confusion.png", "reliability.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG"), name
    summary = json.loads((whole / "summary.json").read_text())
    rows, figures = summary["history"], summary["figures"]
    assert [row["images"] for row in rows] == [100, 200, 300]
    assert figures["images_seen"] == 300
    assert figures["steps"] == 15
    assert (figures["training_images"], figures["test_images"]) == (100, 50)
    best = max(rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert figures["best"]["epoch"] == best["epoch"]
    facts = read_facts(whole / "checkpoints" / "last.safetensors")
    assert (facts["model"], facts["data"], facts["classes"]) == (MODEL, "digits", [str(digit) for digit in range(10)])
    assert facts["recipe"]["mixup"] == 0.4


def test_curves_are_drawn_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.experiments.training import session

    drawn: list[int] = []
    monkeypatch.setattr(session, "write_curves", lambda rows, path, title: drawn.append(len(rows)))
    start_training(request(), tmp_path / "run")
    assert drawn == [1, 2, 3]


def test_the_same_seed_gives_equal_weights_and_another_does_not(whole: Path, tmp_path: Path) -> None:
    torch.rand(7)  # what was drawn before does not matter
    start_training(request(), tmp_path / "again")
    assert_same_weights(weights(whole), weights(tmp_path / "again"))
    start_training(request(seed=1), tmp_path / "other")
    other = weights(tmp_path / "other")
    assert not all(torch.equal(value, other[key]) for key, value in weights(whole).items())


def test_batch_normalisation_trains_with_an_image_left_over(tmp_path: Path) -> None:
    resnet = replace(request(), model="torchvision:resnet18", image_size="32", train_images=21, test_images=10)
    recipe = load_recipe("brief", epochs=1, batch_size=4).model_dump(mode="json")
    summary = start_training(replace(resnet, recipe=recipe), tmp_path / "run")
    assert summary.figures["images_seen"] == 21

    in_parts = {**recipe, "accumulate": 4}
    with pytest.raises(ModelFailed, match=r"\(resnet\.py:\d+ in forward.*fewer parts \(accumulate is 4\)") as caught:
        start_training(replace(resnet, recipe=in_parts), tmp_path / "parts")
    assert len(str(caught.value).splitlines()) == 1


def test_the_last_state_serves_as_weights_with_all_that_it_knows_of_itself(whole: Path) -> None:
    from vitbench.experiments.evaluation import evaluate_model

    # the weights that are tested, those of the moving average, and not those that are trained on
    state = load_state(whole / LAST)
    assert state is not None
    averaged = {key.removeprefix("module."): value for key, value in state["ema"].items() if key != "n_averaged"}
    assert_same_weights(state["model"], {key: averaged[key] for key in state["model"]})
    assert not torch.equal(state["trained"]["head.weight"], state["model"]["head.weight"])
    assert read_facts(whole / LAST) == read_facts(whole / "checkpoints" / "last.safetensors")
    one, other = (
        evaluate_model(MODEL, weights=str(whole / name), data="digits", device="cpu", test_images=50)
        for name in (LAST, "checkpoints/last.safetensors")
    )
    assert one["loss"]["value"] == other["loss"]["value"]


def test_two_gloo_processes_share_each_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step without dropout and augmentation: the same weights as one process with the whole batch."""
    options = ["train", "vit_layer6_32", "--image-size", "8", "--device", "cpu", "--threads", "1", "--no-tensorboard"]
    options += ["--train-images", "60", "--test-images", "20", "--set", "batch_size=20", "--set", "steps=4"]
    options += ["--set", "dropout=0", "--set", "optimizer=sgd", "--set", "lr=0.1", "--set", "validation=0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert run_command([*options, "--out", str(tmp_path / "one")]) == 0
    # as torchrun would start them, but with this process as the first
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    options += ["--out", str(tmp_path / "two")]
    second = subprocess.Popen(
        [sys.executable, "-m", "vitbench", *options],
        env={**environment, **together, "RANK": "1", "LOCAL_RANK": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for key, value in {**together, "RANK": "0", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(key, value)
        assert run_command(options) == 0
        _, errors = second.communicate(timeout=120)
        assert second.returncode == 0, errors
    finally:
        second.kill()
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-6)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["figures"]["processes"] == 2


def test_patience_ends_a_training_that_gets_no_better(tmp_path: Path) -> None:
    still = request(recipe={"images": 2000, "learning_rate": 1e-12, "min_learning_rate": 0, "patience": 2, "ema": 0.0})
    summary = start_training(still, tmp_path / "run")
    assert summary.figures["stopped_because"] == "patience"
    assert len(summary.history) == 3


@pytest.mark.parametrize("pauses", [False, True])
def test_patience_counts_from_the_last_higher_accuracy_though_the_loss_falls(
    pauses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.experiments.training.session import Session, Tester

    results = iter([(0.3, 2.0), (0.5, 1.9), (0.5, 1.8), (0.4, 1.7), (0.5, 1.6), (0.6, 1.5)])

    def test_epoch(self: Tester) -> dict[str, Any]:
        accuracy, loss = next(results)
        return {"validation_loss": loss, "validation_accuracy": accuracy}

    monkeypatch.setattr(Tester, "test_epoch", test_epoch)
    patient = request(recipe={"images": 2000, "patience": 3})
    if pauses:
        save = Session._save

        def save_and_die(self: Session) -> None:
            save(self)
            if len(self.rows) == 4:
                raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr(Session, "_save", save_and_die)
            with pytest.raises(KilledError):
                start_training(patient, tmp_path / "run")
        summary = resume_training(tmp_path / "run")
    else:
        summary = start_training(patient, tmp_path / "run")
    assert len(summary.history) == 5
    assert summary.figures["stopped_because"] == "patience"
    assert summary.figures["best"]["epoch"] == 5


def test_a_builder_of_ones_own_trains_that_meta_tensors_would_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitbench.models.imported._allowed", False)
    content = request(model=f"module:{__name__}:reads_numbers", allow_import=True, recipe={"images": 40})
    assert start_training(content, tmp_path / "run").figures["trainable_params"] == 3 * 10 + 10


def reads_numbers(*, image_size: tuple[int, int], num_classes: int) -> torch.nn.Module:
    """A builder with the usual ladder of rates, whose numbers a meta tensor does not have."""
    assert num_classes == 10
    rates = [one.item() for one in torch.linspace(0, 0.1, 2)]
    pool = torch.nn.AdaptiveAvgPool2d(1)
    return torch.nn.Sequential(pool, torch.nn.Flatten(), torch.nn.Dropout(rates[1]), torch.nn.Linear(3, num_classes))


@pytest.mark.usefixtures("drawn")
def test_an_attention_image_that_fails_does_not_cost_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")

    def fail(*_: Any) -> bytes:
        raise OutOfMemory("Out of memory on cpu. Give a smaller image")

    monkeypatch.setattr("vitbench.experiments.training.session.attention_png", fail)
    heard: list[str] = []
    progress = TrainingProgress()
    monkeypatch.setattr(progress, "note", heard.append)
    start_training(request(tensorboard=True, recipe={"images": 20}), tmp_path / "run", progress)
    assert (tmp_path / "run" / "report.md").is_file()
    assert "No attention figure in the TensorBoard logs: Out of memory on cpu. Give a smaller image" in heard


@pytest.mark.usefixtures("drawn")
def test_tensorboard_holds_curves_and_the_confusion_matrix(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = start_training(request(tensorboard=True, recipe={"images": 200}), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/accuracy", "validation/loss", "validation/accuracy", "learning/rate"} <= set(
        tags["scalars"]
    )
    assert [one.value for one in events.Scalars("validation/accuracy")] == pytest.approx(
        [row["validation_accuracy"] for row in summary.history]
    )
    assert {"curves", "confusion", "attention"} <= set(tags["images"])


def test_a_compiled_training_has_the_weights_of_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the compiler's front, whose graphs run as they are: compiling them takes half a minute (below)."""
    compiled: list[torch.nn.Module] = []

    def compile_front(model: torch.nn.Module, **options: Any) -> Any:
        compiled.append(model)
        return torch._dynamo.optimize("eager")(model)

    monkeypatch.setattr(torch, "compile", compile_front)
    asked = request(recipe={"images": 60, "dropout": 0})
    start_training(asked, tmp_path / "plain")
    assert not compiled
    start_training(replace(asked, compile=True), tmp_path / "compiled")
    assert compiled
    assert_same_weights(weights(tmp_path / "plain"), weights(tmp_path / "compiled"))


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"compile": True}, marks=pytest.mark.slow),
        {"channels_last": True},
        {"amp": "bf16"},
        {"deterministic": True},
    ],
)
def test_a_training_runs_under(keys: dict[str, Any], tmp_path: Path) -> None:
    try:
        summary = start_training(request(recipe={"images": 60}, **keys), tmp_path / "run")
    finally:
        torch.use_deterministic_algorithms(False)
    assert summary.figures["images_seen"] == 60
    assert all(row["train_loss"] > 0 for row in summary.history)
    # the only epoch is the best one, and both are tested in the same way
    last, best = summary.figures["last"], summary.figures["best"]
    assert best["test_loss"] == pytest.approx(last["test_loss"], rel=1e-5)


def test_the_same_from_python(whole: Path, tmp_path: Path) -> None:
    import vitbench

    asked = request()
    names = ("device", "image_size", "train_images", "test_images", "tensorboard", "threads")
    options = {name: getattr(asked, name) for name in names}
    settings = {
        "images": 300,
        "batch_size": 20,
        "augment": ["crop", "flip"],
        "mixup": 0.4,
        "ema": 0.9,
        "validation": 0.2,
    }
    summary = vitbench.train(MODEL, settings=settings, out=tmp_path / "run", **options)
    assert_same_weights(weights(whole), weights(summary.folder))
    for options, reason in (
        ({"tensorboard": 0}, "tensorboard is 0, not true or false"),
        ({"save_every": -1}, "save_every is -1: it should be greater than or equal to 0"),
        ({"num_classes": "10"}, "num_classes is '10', not a whole number"),
        ({"seed": None}, "seed is null, not a whole number"),
        ({"freeze": True}, "freeze is true, not text"),
    ):
        with pytest.raises(UsageError, match=f"options of the training are wrong: {reason}"):
            vitbench.train(MODEL, **options)
    with pytest.raises(UsageError, match="takes the name of a model, not Linear"):
        vitbench.train(torch.nn.Linear(2, 3))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no option 'epochs'"):
        vitbench.train(MODEL, epochs=3)
    with pytest.raises(UsageError, match="not one of: off, bf16, fp16"):
        vitbench.train(MODEL, amp=True)
    with pytest.raises(UsageError, match="train_images = 0 is not positive"):
        vitbench.train(MODEL, train_images=0)
    with pytest.raises(UsageError, match="erasing has no effect"):
        vitbench.train(MODEL, settings={"erasing": 0.5})


def test_a_probe_for_unused_parameters_moves_no_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs under torchrun alone: here by itself."""
    from vitbench.experiments.training.setup import Setup
    from vitbench.training.ranks import Ranks

    monkeypatch.setattr("vitbench.models.imported._allowed", False)
    asked = request(model=f"module:{__name__}:normalises", allow_import=True, recipe={"images": 40})
    start_training(asked, tmp_path / "run")
    setup = Setup(asked, Ranks(), TrainingProgress())
    setup.prepare()
    before = {name: buffer.clone() for name, buffer in setup.model.named_buffers()}
    assert len(before) == 3
    assert not setup._has_unused()
    assert all(torch.equal(buffer, before[name]) for name, buffer in setup.model.named_buffers())


def normalises(*, image_size: tuple[int, int], num_classes: int) -> torch.nn.Module:
    pool = torch.nn.AdaptiveAvgPool2d(1)
    return torch.nn.Sequential(torch.nn.BatchNorm2d(3), pool, torch.nn.Flatten(), torch.nn.Linear(3, num_classes))


def test_the_process_is_afterwards_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    other = 3 if before[0] != 3 else 2
    asked = request(threads=other, deterministic=True, recipe={"images": 40})
    start_training(asked, tmp_path / "run")
    now = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    assert now == before


def test_trainings_that_begin_in_one_second_get_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vitbench.experiments.training.folder.time.strftime", lambda form: "now")
    folders = [start_training(request(seed=seed, recipe={"images": 40})).folder for seed in (0, 1)]
    assert [folder.name for folder in folders] == [f"train-{MODEL}-now", f"train-{MODEL}-now-2"]
    assert [json.loads((folder / "training.json").read_text())["seed"] for folder in folders] == [0, 1]

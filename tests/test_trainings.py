"""Trainings as a user has them: interrupted, killed, diverged, out of memory, on a full disk, and gone on with."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
import torch

from vitbench.cli import run_command
from vitbench.errors import DataError, RunFolderError, StorageError, UsageError, VitbenchError
from vitbench.models import build_model
from vitbench.models.checkpoints import load_checkpoint, read_facts
from vitbench.registry import MODELS, Claim, model_registry
from vitbench.trained import OutOfMemory
from vitbench.training.loop import TrainingDiverged
from vitbench.training.recipes import load_recipe
from vitbench.training.states import load_state, save_state
from vitbench.trainings import (
    LAST,
    ModelFailed,
    TrainingOutOfMemory,
    TrainingProgress,
    TrainingRequest,
    resume_training,
    start_training,
)
from vitbench.trainings.records import read_training

MODEL = "vit_basic_tutorial"  # 48 wide, with dropout: what it draws has to be restored, too


def request(**keys: Any) -> TrainingRequest:
    recipe = {
        "images": 300,
        "batch_size": 20,
        "augment": ["crop", "flip"],
        "mixup": 0.4,
        "ema": 0.9,
        "validation": 0.2,
        **keys.pop("recipe", {}),
    }
    base = TrainingRequest(
        model=MODEL,
        data="digits",
        recipe=load_recipe("brief", **recipe).model_dump(mode="json"),
        device="cpu",
        image_size="8",
        train_images=100,
        test_images=50,
        tensorboard=False,
        threads=1,
    )
    return replace(base, **keys)


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of trainings, which cost more than these trainings, are drawn only for tests that ask for ``drawn``."""
    if "drawn" in request.fixturenames:
        return
    from vitbench.reports import evaluation
    from vitbench.trainings import session

    monkeypatch.setattr(session, "write_curves", lambda rows, path, title: path.write_bytes(b"curves"))
    for name in ("confusion_png", "reliability_png"):
        monkeypatch.setattr(evaluation, name, lambda result: b"picture")


@pytest.fixture
def drawn() -> None:
    """Asks for real pictures."""


def weights(folder: Path, name: str = LAST) -> dict[str, torch.Tensor]:
    state = load_state(folder / name)
    assert state is not None
    found: dict[str, torch.Tensor] = state["model"]
    return found


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupts."""
    folder = tmp_path_factory.mktemp("trainings") / "whole"
    start_training(request(), folder)
    return folder


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
    from vitbench.trainings import session

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


@pytest.mark.parametrize("steps", [1, 7, 10])
def test_a_training_gone_on_with_ends_as_one_without_a_pause(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    import vitbench.trainings.session as runs

    class StoppedError(Exception):
        pass

    def die(*_: Any) -> None:
        raise StoppedError

    # a checkpoint after every step, and the end in the middle of the one after
    monkeypatch.setattr(runs, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(runs, "_STEPS_AT_ONCE", 1)
    from vitbench.training.loop import Trainer

    step = Trainer._take_step
    monkeypatch.setattr(Trainer, "_take_step", lambda self: die() if self.steps == steps else step(self))
    with pytest.raises(StoppedError):
        start_training(request(), tmp_path / "run")
    monkeypatch.undo()
    summary = resume_training(tmp_path / "run")
    assert_same_weights(weights(whole), weights(tmp_path / "run"))
    ours, theirs = (load_state(folder / LAST) for folder in (whole, tmp_path / "run"))
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours["ema"]["module.head.weight"], theirs["ema"]["module.head.weight"])
    expected = json.loads((whole / "summary.json").read_text())["history"]
    assert without_times(summary.history) == without_times(expected)


class KilledError(Exception):
    pass


def die_after_saving(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The end right after a checkpoint; one is saved after every step."""
    import vitbench.trainings.session as runs

    saved: list[Path] = []

    def save_and_die(state: dict[str, Any], path: Path) -> None:
        save_state(state, path)
        saved.append(path)
        if len(saved) == times:
            raise KilledError

    monkeypatch.setattr(runs, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(runs, "save_state", save_and_die)


def without_times(rows: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "duration_s")} for row in rows]


# the first one lies before the first step, each epoch has one for each of its 5 steps and one at its end
@pytest.mark.parametrize("times", [6, 7, 18])
def test_an_end_between_the_last_step_of_an_epoch_and_its_test_loses_neither_line_nor_best(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    die_after_saving(monkeypatch, times)
    with pytest.raises(KilledError):
        start_training(request(), tmp_path / "run")
    monkeypatch.undo()
    summary = resume_training(tmp_path / "run")
    assert_same_weights(weights(whole), weights(tmp_path / "run"))
    expected = json.loads((whole / "summary.json").read_text())
    assert without_times(summary.history) == without_times(expected["history"])
    assert summary.figures["best"] == expected["figures"]["best"]
    name = "checkpoints/best.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_an_end_before_the_last_epoch_is_written_down_leaves_history_and_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.trainings.session import Session

    def die(*_: Any) -> None:
        raise KilledError

    monkeypatch.setattr(Session, "_show_epoch", die)
    with pytest.raises(KilledError):
        start_training(request(recipe={"images": 100}, save_every=1), tmp_path / "run")
    monkeypatch.undo()
    resume_training(tmp_path / "run")
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 2
    assert (tmp_path / "run" / "curves.png").is_file()
    assert (tmp_path / "run" / "checkpoints" / "epoch-0001.safetensors").is_file()


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint_in_the_middle_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitbench.trainings.session as runs
    from vitbench.training.loop import Trainer

    step = Trainer._take_step

    def poison(self: Trainer) -> None:
        step(self)
        if self.steps == 3:
            next(self.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(runs, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(Trainer, "_take_step", poison)
    with pytest.raises(TrainingDiverged):
        start_training(request(), tmp_path / "run")
    state = load_state(tmp_path / "run" / LAST)
    assert state is not None
    assert state["steps"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


def test_the_weights_that_a_training_began_with_need_not_be_there_to_go_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features of the frozen backbone have to come from the weights that it was frozen with."""
    begin = tmp_path / "begin.safetensors"
    begin.write_bytes((whole / "checkpoints" / "best.safetensors").read_bytes())
    asked = transfer(weights=str(begin))
    summary = start_training(asked, tmp_path / "whole")
    die_after_saving(monkeypatch, 4)
    with pytest.raises(KilledError):
        start_training(asked, tmp_path / "run")
    monkeypatch.undo()
    begin.unlink()
    resumed = resume_training(tmp_path / "run")
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert without_times(resumed.history) == without_times(summary.history)
    assert resumed.figures["origin"] == summary.figures["origin"]


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


@pytest.mark.parametrize("change", ["another picture", "another choice"])
def test_other_pictures_than_at_the_beginning_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    from tests.training.folders import make_image_folder

    folder, chosen = tmp_path / "pictures", tmp_path / "chosen.txt"
    make_image_folder(folder, train=20, test=5)
    chosen.write_text(" ".join(map(str, range(0, 40, 2))))
    asked = request(data=str(folder), recipe={"imbalance": str(chosen), "images": 90}, train_images=None)
    die_after_saving(monkeypatch, 2)
    with pytest.raises(KilledError):
        start_training(asked, tmp_path / "run")
    monkeypatch.undo()
    if change == "another choice":
        (tmp_path / "run" / "indices.txt").write_text(" ".join(map(str, range(20))))
    else:
        picture = next(folder.glob("train/*/*"))
        picture.with_stem("copy").write_bytes(picture.read_bytes())
    with pytest.raises(DataError, match="are not those that this training began with"):
        resume_training(tmp_path / "run")


def _with_header(whole: Path, folder: Path, **keys: Any) -> Path:
    """A copy of a training that is not tested yet, whose checkpoint says other things of itself; None leaves out."""
    shutil.copytree(whole, folder)
    (folder / "summary.json").unlink()
    state = load_state(folder / LAST)
    assert state is not None
    header = {**json.loads(state["vitbench"]), **keys}
    state["vitbench"] = json.dumps({key: value for key, value in header.items() if value is not None})
    save_state(state, folder / LAST)
    return folder


def test_a_training_goes_on_with_as_many_processes_as_it_began_with(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_state(whole / LAST)
    assert state is not None
    header = json.loads(state["vitbench"])
    assert (header["processes"], header["device"]) == (1, "cpu")
    folder = _with_header(whole, tmp_path / "of two", processes=2)
    way_out = f"Go on with: torchrun --nproc-per-node 2 -m vitbench train --resume {shlex.quote(str(folder))}"
    with pytest.raises(RunFolderError, match="began with 2 processes, and this is 1") as caught:
        resume_training(folder)
    assert str(caught.value).endswith(way_out)
    assert len(str(caught.value).splitlines()) == 1
    resume_training(_with_header(whole, tmp_path / "of before", processes=None, device=None))

    for key, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("vitbench.trainings.setup.joined", lambda ranks, kind: contextlib.nullcontext())
    folder = _with_header(whole, tmp_path / "of one")
    with pytest.raises(RunFolderError, match=r"began with 1 process, and these are 2: .* Go on with: vitbench train"):
        resume_training(folder)


def test_a_training_that_goes_on_on_another_device_is_warned_of(whole: Path, tmp_path: Path) -> None:
    class Told(TrainingProgress):
        warnings: ClassVar[list[str]] = []

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    resume_training(_with_header(whole, tmp_path / "run", device="cuda"), Told())
    assert Told.warnings == ["The training began on cuda and is now on cpu: it may not come out as without a pause"]


def test_a_folder_from_elsewhere_runs_no_code(whole: Path, tmp_path: Path) -> None:
    content = json.loads((whole / "training.json").read_text())
    content |= {"model": "module:antigravity:fly", "allow_import": True}
    (tmp_path / "training.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="add --allow-import if you trust it"):
        resume_training(tmp_path)
    assert "antigravity" not in sys.modules


def test_a_training_file_with_a_recipe_that_is_none_is_one_line(whole: Path, tmp_path: Path) -> None:
    content = json.loads((whole / "training.json").read_text())
    content["recipe"]["batch_size"] = 0
    (tmp_path / "training.json").write_text(json.dumps(content))
    with pytest.raises(RunFolderError, match=r"training\.json .* is damaged") as caught:
        resume_training(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_published_weights_are_trained_tested_and_described_with_their_own_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.models import describe_model
    from vitbench.trainings import setup

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


def test_a_training_of_published_weights_goes_on_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.trainings import setup

    fetched: list[str] = []

    def build(name: str, *, pretrained: bool = False, **size: Any) -> torch.nn.Module:
        model = build_model(name, **size)
        if pretrained:
            fetched.append(name)
            torch.nn.init.constant_(next(model.parameters()), 0.01)
        return model

    monkeypatch.setattr(setup, "build_model", build)
    content = request(pretrained=True, recipe={"images": 200})
    start_training(content, tmp_path / "whole")
    with monkeypatch.context() as patch:
        die_after_saving(patch, 2)
        with pytest.raises(KilledError):
            start_training(content, tmp_path / "run")
    assert fetched == [MODEL, MODEL]
    summary = resume_training(tmp_path / "run")
    assert fetched == [MODEL, MODEL]
    assert summary.figures["origin"] == "the published weights"
    assert_same_weights(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("keys", "text", "said"),
    [
        ({"deterministic": True}, "put_ does not have a deterministic implementation", "Leave out --deterministic"),
        ({"compile": True}, "InductorError: no compiler", "Leave out --compile"),
        ({}, "The operator 'aten::x' is not currently implemented for the 'MPS' device", "Give --device cpu"),
    ],
)
def test_what_the_device_cannot_do_is_one_line(
    keys: dict[str, Any], text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.training.loop import Trainer

    def fail(self: Trainer) -> None:
        raise RuntimeError(f"{text}\nmore lines")

    monkeypatch.setattr(Trainer, "_take_step", fail)
    try:
        with pytest.raises(VitbenchError, match=said) as caught:
            start_training(request(**keys), tmp_path / "run")
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(str(caught.value).splitlines()) == 1


def test_batch_normalisation_trains_with_a_picture_left_over(tmp_path: Path) -> None:
    resnet = replace(request(), model="torchvision:resnet18", image_size="32", train_images=21, test_images=10)
    recipe = load_recipe("brief", epochs=1, batch_size=4).model_dump(mode="json")
    summary = start_training(replace(resnet, recipe=recipe), tmp_path / "run")
    assert summary.figures["images_seen"] == 21

    in_parts = {**recipe, "accumulate": 4}
    with pytest.raises(ModelFailed, match=r"\(resnet\.py:\d+ in forward.*fewer parts \(accumulate is 4\)") as caught:
        start_training(replace(resnet, recipe=in_parts), tmp_path / "parts")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("raised", [ValueError, TypeError, AssertionError, RuntimeError])
def test_what_the_model_raises_in_a_step_is_one_line_with_its_place(
    raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.models.vit import VisionTransformer

    forward = VisionTransformer.forward
    # a model's mistake is told by the file that it is in
    code = "def forward(self, images):\n    if self.training:\n        raise Raised('wrong\\nlines')\n    return own(self, images)"
    names: dict[str, Any] = {"Raised": raised, "own": forward}
    exec(compile(code, str(tmp_path / "mine.py"), "exec"), names)
    monkeypatch.setattr(VisionTransformer, "forward", names["forward"])
    with pytest.raises(ModelFailed, match=rf"failed: {raised.__name__}: wrong \(mine.py:3 in forward\)") as caught:
        start_training(request(), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1


def test_our_own_mistakes_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.training.loop import Trainer

    monkeypatch.setattr(Trainer, "_take_step", Mock(side_effect=ValueError("ours")))
    with pytest.raises(ValueError, match="ours") as caught:
        start_training(request(), tmp_path / "run")
    assert not isinstance(caught.value, VitbenchError)


def test_several_processes_cannot_share_a_budget_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK or LOCAL_RANK is not set"):
        start_training(request())
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UsageError, match="cannot agree on a budget in seconds"):
        start_training(request(recipe={"images": None, "seconds": 1}))


def _start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "vitbench",
        "train",
        MODEL,
        "--device",
        "cpu",
        "--image-size",
        "8",
        "--threads",
        "1",
    ]
    command += ["--set", "epochs=400", "--no-tensorboard", "--out", str(folder), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _wait_for_epochs(folder: Path, epochs: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = folder / "history.csv"
        if path.is_file() and len(path.read_text().splitlines()) > epochs:
            return
        time.sleep(0.02)
    raise AssertionError("no epoch within a minute")


def test_kill_9_leaves_a_checkpoint_that_loads_and_can_be_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = _start(folder)
    try:
        _wait_for_epochs(folder, 2)
    finally:
        process.kill()
        process.wait()
    state = load_state(folder / LAST)
    assert state is not None
    assert state["seen"] >= 2 * 1437
    model = build_model(MODEL, image_size=8, num_classes=10)
    load_checkpoint(model, folder / LAST)
    content = json.loads((folder / "training.json").read_text())
    content["recipe"]["epochs"] = state["seen"] // 1437 + 1  # enough has been seen
    (folder / "training.json").write_text(json.dumps(content))
    summary = resume_training(folder)
    assert summary.figures["images_seen"] >= state["seen"]
    assert [row["epoch"] for row in summary.history] == sorted({row["epoch"] for row in summary.history})


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_saves_says_how_to_go_on_and_exits_with_130(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = _start(folder)
    try:
        _wait_for_epochs(folder, 1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].endswith(f"Go on with: vitbench train --resume {folder}")
    assert "Traceback" not in errors
    assert load_state(folder / LAST) is not None


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    diverging = request(
        recipe={"optimizer": "sgd", "learning_rate": 1e20, "warmup": 0.0, "clip_norm": None, "ema": 0.0}
    )
    with pytest.raises(TrainingDiverged, match="Lower the learning rate"):
        start_training(diverging, tmp_path / "run")
    state = load_state(tmp_path / "run" / LAST)
    assert state is not None
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


def test_a_damaged_checkpoint_is_one_clear_line(whole: Path, tmp_path: Path) -> None:
    content = (whole / LAST).read_bytes()
    cases = {"half": content[: len(content) // 2], "empty": b"", "text": b"no checkpoint", "pickle": b"\x80\x02."}
    for name, damaged in cases.items():
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / LAST).write_bytes(damaged)
        (folder / "training.json").write_bytes((whole / "training.json").read_bytes())
        with pytest.raises(DataError, match=r"last\.pt is damaged") as caught:
            resume_training(folder)
        assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_that_memory_does_not_suffice_for_is_not_called_damaged(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    size = (whole / LAST).stat().st_size
    said = r"last\.pt is too large for now: it takes .* GB of memory, and .* free memory, then --resume"
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=size - 1))
        with pytest.raises(DataError, match=said) as caught:
            load_state(whole / LAST)
        assert "damaged" not in str(caught.value)
        patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=size))
        assert load_state(whole / LAST) is not None

    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", Mock(side_effect=error))
            with pytest.raises(DataError, match=said):
                load_state(whole / LAST)


def test_a_checkpoint_with_code_is_refused_and_not_run(whole: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "run-by-pickle"),))

    (tmp_path / "checkpoints").mkdir()
    torch.save({"vitbench": Evil()}, tmp_path / LAST)
    (tmp_path / "training.json").write_bytes((whole / "training.json").read_bytes())
    with pytest.raises(DataError, match="damaged"):
        resume_training(tmp_path)
    assert not (tmp_path / "run-by-pickle").exists()


def test_the_checkpoint_of_another_training_does_not_fit(whole: Path, tmp_path: Path) -> None:
    start_training(request(recipe={"ema": 0.0, "images": 20}), tmp_path / "other")
    (tmp_path / "other" / LAST).write_bytes((whole / LAST).read_bytes())
    (tmp_path / "other" / "summary.json").unlink()
    with pytest.raises(DataError, match="does not fit"):
        resume_training(tmp_path / "other")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_state({"vitbench": "{}", "number": 1}, path)
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        return opened(Path("/dev/full"), mode) if "w" in mode else opened(self, mode, *args, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match="is kept"):
        save_state({"vitbench": "{}", "number": torch.zeros(100_000)}, path)
    monkeypatch.undo()
    state = load_state(path)
    assert state is not None
    assert state["number"] == 1


def test_out_of_memory_says_what_to_change(tmp_path: Path) -> None:
    """For real: a process that may not take more."""
    pytest.importorskip("resource")
    if not sys.platform.startswith("linux"):
        pytest.skip("RLIMIT_DATA holds on Linux")
    code = (
        "import resource, torch; from vitbench.models import build_model;"
        "torch.set_num_threads(1); build_model('vit_basic', image_size=64, num_classes=10);"
        "used = int(next(l for l in open('/proc/self/status') if l.startswith('VmData')).split()[1]) * 1024;"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + 600_000_000,) * 2);"
        "import sys; from vitbench.cli import run_command; sys.exit(run_command(sys.argv[1:]))"
    )
    arguments = [
        "train",
        "vit_basic",
        "--image-size",
        "64",
        "--set",
        "batch_size=256",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    arguments += ["--test-images", "20", "--no-tensorboard", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Out of memory on cpu at batch_size 256" in done.stderr
    assert "--set accumulate=2" in done.stderr
    assert "Traceback" not in done.stderr
    assert TrainingOutOfMemory.cause == "out_of_memory"


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "advice"),
    [
        (20, 1, "Go through the model in more parts (--set accumulate=2 gives the same steps), or take --amp"),
        (3, 2, "(--set accumulate=3 gives"),
        (1, 1, "at batch_size 1. Take --amp"),
        (4, 4, "at batch_size 4 in 4 parts. Take --amp"),
    ],
)
def test_more_parts_are_advised_where_a_batch_has_them(
    batch_size: int, accumulate: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.training.loop import Trainer

    monkeypatch.setattr(Trainer, "_take_step", Mock(side_effect=torch.OutOfMemoryError("out of memory")))
    with pytest.raises(TrainingOutOfMemory) as caught:
        start_training(request(recipe={"batch_size": batch_size, "accumulate": accumulate}), tmp_path / "run")
    assert advice in str(caught.value)


def test_memory_that_runs_out_in_the_final_test_has_a_way_out_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitbench.training.evaluate

    short_of = Mock(side_effect=torch.OutOfMemoryError("out of memory"))
    monkeypatch.setattr(vitbench.training.evaluate, "collect_answers", short_of)
    with pytest.raises(TrainingOutOfMemory, match="tested, 64 pictures at once") as caught:
        start_training(request(recipe={"images": 20}), tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.safetensors"
    assert f"vitbench evaluate {MODEL} --weights {path} with a smaller --batch-size" in str(caught.value)
    assert "--set accumulate=" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert path.is_file()


def test_more_classes_in_the_data_than_in_the_head(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--num-classes 3 is less than the 10 classes of digits"):
        start_training(request(num_classes=3), tmp_path / "run")


def test_a_folder_that_is_taken_or_holds_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(RunFolderError, match="not empty"):
        start_training(request(), tmp_path)
    with pytest.raises(RunFolderError, match="holds no training"):
        resume_training(tmp_path)
    assert run_command(["train", "--resume", str(tmp_path / "nowhere")]) == 2
    assert "holds no training" in capsys.readouterr().err


def test_the_last_state_serves_as_weights_with_all_that_it_knows_of_itself(whole: Path) -> None:
    from vitbench.evaluation import evaluate_model

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


def test_a_finished_training_is_not_trained_again(whole: Path) -> None:
    before = (whole / LAST).stat().st_mtime_ns
    summary = resume_training(whole)
    assert summary.figures["images_seen"] == 300
    assert (whole / LAST).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "Which model?"),
        (["train", "vit_basik"], "Did you mean 'vit_basic'"),
        (["train", MODEL, "--recipe", "breif"], "Did you mean 'brief'"),
        (["train", MODEL, "--set", "learning_rat=1"], "Did you mean 'learning_rate'"),
        (["train", MODEL, "--set", "lr"], "no key=value"),
        (["train", MODEL, "--set", "lr=fast"], "learning_rate"),
        (["train", MODEL, "--set", "augment=crop,flop"], "Did you mean 'flip'"),
        (["train", MODEL, "--set", "epochs=2", "--set", "images=9"], "one budget"),
        (["train", MODEL, "--data", "digit"], "Did you mean 'digits'"),
        (["train", MODEL, "--imbalance", "cubic:3"], "neither linear:R nor exponential:R"),
        (["train", MODEL, "--imbalance", "linear:100000"], "leaves a class"),
        (["train", MODEL, "--freeze", "everything"], "none of: none, backbone"),
        (["train", MODEL, "--freeze", "blocks:99"], "4 blocks"),
        (["train", MODEL, "--image-size", "33"], "33"),
        (["train", MODEL, "--device", "tpu"], "tpu"),
        (["train", MODEL, "--amp-dtype", "bf16"], "together with --amp"),
        (["train", MODEL, "--pretrained"], "no published weights"),
        (["train", MODEL, "--weights", "/nowhere/w.pt"], "does not exist"),
        (["train", MODEL, "--resume", "x"], "leave out"),
        (["train", "--resume", "x", "--validation", "0"], "leave out --validation"),
        (["train", "--resume", "x", "--imbalance", "linear:2"], "leave out --imbalance"),
        (["train", "--resume", "x", "--seed", "0"], "leave out --seed"),
        (["train", MODEL, "--image-size", "large"], "'large' is neither N nor HxW"),
        (["train", MODEL, "--set", "mean=0.5"], "each of the three channels"),
        (["train", MODEL, "--set", "patience=2"], "--validation 0.1"),
        (["train", MODEL, "--set", "rotation=30"], "does nothing without rotation in augment"),
        (["train", MODEL, "--replace-head"], "together with --weights"),
        (["train", MODEL, "--weights", "w.pt", "--pretrained"], "two beginnings"),
        (["train", MODEL, "--validation", "0.1", "--set", "validation=0.2"], "The validation is given twice"),
        (["train", MODEL, "--imbalance", "linear:2", "--set", "imbalance=none"], "The imbalance is given twice"),
        (["train", MODEL, "--seed", "0", "--set", "seed=1"], "The seed is given twice, by --seed and as a key"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert said in error


def test_a_wrong_request_leaves_no_folder_that_blocks_the_next_try(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        start_training(request(num_classes=3), tmp_path / "run")
    start_training(request(recipe={"images": 20}), tmp_path / "run")


def test_two_gloo_processes_share_each_batch(tmp_path: Path) -> None:
    """One step without dropout and augmentation: the same weights as one process with the whole batch."""
    options = ["train", "vit_layer6_32", "--image-size", "8", "--device", "cpu", "--threads", "1", "--no-tensorboard"]
    options += ["--train-images", "60", "--test-images", "20", "--set", "batch_size=20", "--set", "steps=4"]
    options += ["--set", "dropout=0", "--set", "optimizer=sgd", "--set", "lr=0.1", "--set", "validation=0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    together = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "vitbench",
    ]
    assert run_command([*options, "--out", str(tmp_path / "one")]) == 0
    arguments = [*together, *options, "--out", str(tmp_path / "two")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
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
    from vitbench.trainings.session import Session

    told = iter([(0.3, 2.0), (0.5, 1.9), (0.5, 1.8), (0.4, 1.7), (0.5, 1.6), (0.6, 1.5)])

    def test_epoch(self: Session) -> dict[str, Any]:
        accuracy, loss = next(told)
        return {"validation_loss": loss, "validation_accuracy": accuracy}

    monkeypatch.setattr(Session, "_test_epoch", test_epoch)
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


def transfer(**keys: Any) -> TrainingRequest:
    recipe = {"augment": [], "mixup": 0.0, "ema": 0.0, "images": 200, **keys.pop("recipe", {})}
    return request(freeze="backbone", recipe=recipe, **keys)


def test_a_frozen_backbone_trains_on_features_as_it_would_on_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.trainings.setup import Setup

    passes: list[int] = []

    def build(*names: Any, **keys: Any) -> torch.nn.Module:
        model = build_model(*names, **keys)
        model.get_submodule("blocks.0").register_forward_hook(lambda *found: passes.append(len(found[2])))
        return model

    monkeypatch.setattr("vitbench.trainings.setup.build_model", build)
    summaries = [start_training(transfer(), tmp_path / "features")]
    # the 100 pictures to train on and the 287 held out go through the backbone once; the rest are the tests at the end
    assert passes[:7] == [64, 36, 64, 64, 64, 64, 31]
    assert set(passes[7:]) == {50}
    passes.clear()
    monkeypatch.setattr(Setup, "_cache_features", lambda self, state: None)
    summaries.append(start_training(transfer(), tmp_path / "pictures"))
    assert passes.count(20) >= 200 // 20
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


def test_test_pictures_go_through_a_frozen_backbone_once_where_none_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.trainings.setup import Setup

    summary = start_training(transfer(recipe={"validation": 0.0}), tmp_path / "features")
    figures, last = summary.figures["last"], summary.history[-1]
    assert (last["test_accuracy"], last["test_loss"]) == (figures["test_accuracy"], pytest.approx(figures["test_loss"]))
    monkeypatch.setattr(Setup, "_cache_features", lambda self, state: None)
    expected = start_training(transfer(recipe={"validation": 0.0}), tmp_path / "pictures").history
    assert [row["test_loss"] for row in summary.history] == [
        pytest.approx(row["test_loss"], rel=1e-4) for row in expected
    ]


def test_features_that_do_not_fit_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitbench.trainings.setup.spare_memory", lambda: 1000)
    heard: list[str] = []
    progress = TrainingProgress()
    monkeypatch.setattr(progress, "note", heard.append)
    summary = start_training(transfer(), tmp_path / "run", progress)
    (said,) = [text for text in heard if "cannot be kept" in text]
    assert said.endswith("they would take 0.0 GB, more than half of the memory that is free")
    assert summary.figures["trainable_params"] == 48 * 10 + 10


@pytest.mark.parametrize("kept", [True, False])
def test_a_training_goes_on_with_features_or_without_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """However much memory there is then."""
    monkeypatch.setattr("vitbench.trainings.setup.spare_memory", lambda: 10**12 if kept else 0)
    start_training(transfer(), tmp_path / "whole")
    die_after_saving(monkeypatch, 3)
    with pytest.raises(KilledError):
        start_training(transfer(), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr("vitbench.trainings.setup.spare_memory", lambda: 0 if kept else 10**12)
    resume_training(tmp_path / "run")
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_an_option_that_an_earlier_version_passed_over_stops_no_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_after_saving(monkeypatch, 2)
    with pytest.raises(KilledError):
        start_training(request(), tmp_path / "run")
    monkeypatch.undo()
    path = tmp_path / "run" / "training.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_dir": "data", "download": True}))
    assert resume_training(tmp_path / "run").figures["images_seen"] == 300


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

    monkeypatch.setattr("vitbench.trainings.setup.build_model", build)
    content = request(
        model="cifar_dynamic_vit_pruned", image_size="16", freeze="backbone", train_images=20, test_images=10,
        recipe={"images": 20, "augment": ["flip"], "mixup": 0.0, "ema": 0.0, "validation": 0.0},
    )  # fmt: skip
    start_training(content, tmp_path / "run")
    assert {training for training, _ in seen} == {True, False}
    assert len({tokens for _, tokens in seen}) == 1
    assert max(tokens for _, tokens in seen) < 17  # 16 patches and CLS


def test_features_are_gone_on_with_and_the_checkpoint_is_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_training(transfer(recipe={"ema": 0.9}), tmp_path / "whole")
    die_after_saving(monkeypatch, 3)
    with pytest.raises(KilledError):
        start_training(transfer(recipe={"ema": 0.9}), tmp_path / "run")
    monkeypatch.undo()
    resume_training(tmp_path / "run")
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    load_checkpoint(build_model(MODEL, image_size=8, num_classes=10), tmp_path / "run" / LAST)


def test_a_training_goes_on_without_the_file_of_indices_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indices = tmp_path / "mine.txt"
    indices.write_text(" ".join(map(str, range(0, 400, 3))))
    content = request(recipe={"imbalance": str(indices)}, train_images=None)
    expected = start_training(content, tmp_path / "whole").figures["recipe_hash"]
    die_after_saving(monkeypatch, 8)
    with pytest.raises(KilledError):
        start_training(content, tmp_path / "run")
    monkeypatch.undo()
    indices.unlink()
    assert resume_training(tmp_path / "run").figures["recipe_hash"] == expected
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_training_goes_on_with_pictures_that_have_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.training.folders import make_image_folder

    make_image_folder(tmp_path / "pictures", train=20, test=5)
    content = request(data=str(tmp_path / "pictures"), train_images=None)
    start_training(content, tmp_path / "whole")
    die_after_saving(monkeypatch, 2)
    with pytest.raises(KilledError):
        start_training(content, tmp_path / "run")
    monkeypatch.undo()
    now = tmp_path / "elsewhere" / "pictures"
    now.parent.mkdir()
    (tmp_path / "pictures").rename(now)
    with pytest.raises(DataError, match="pictures"):
        resume_training(tmp_path / "run")
    with pytest.raises(DataError, match="not those that this training began with"):
        resume_training(tmp_path / "run", data="digits")
    assert json.loads((tmp_path / "run" / "training.json").read_text())["data"] == str(tmp_path / "pictures")
    resume_training(tmp_path / "run", data=str(now))
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "training.json").read_text())["data"] == str(now)


def test_moved_pictures_need_a_checkpoint_that_can_tell_them(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_bytes((whole / "training.json").read_bytes())
    with pytest.raises(RunFolderError, match="no checkpoint yet"):
        resume_training(tmp_path, data="digits")


def test_weights_of_other_classes_start_a_training_with_a_new_head(whole: Path, tmp_path: Path) -> None:
    from tests.training.folders import make_image_folder

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
    # the digits have ten classes: those that no picture is of count in no mean over classes
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
    from vitbench.models import describe_model
    from vitbench.trainings import setup

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
    told = "Pictures are normalised as vit_basic_tutorial's card says: mean 0.485,0.456,0.406, std 0.229,0.224,0.225"
    assert told in heard
    path.unlink()
    resume_training(tmp_path / "run")
    facts = read_facts(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert (tuple(facts["recipe"]["mean"]), tuple(facts["recipe"]["std"])) == (mean, std)


def test_pictures_have_the_size_that_weights_of_ours_were_trained_at(
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
    assert "Pictures are 8 px, as those of the weights' training" in heard
    assert not [text for text in heard if "resampled" in text]
    start_training(request(weights=path, image_size="16", recipe=short), tmp_path / "other", progress)
    assert read_facts(tmp_path / "other" / "checkpoints" / "last.safetensors")["image_size"] == [16, 16]
    assert "The weights' positions are resampled from 2x2 to 4x4 patches" in heard


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
def test_an_attention_picture_that_fails_does_not_cost_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")

    def fail(*_: Any) -> bytes:
        raise OutOfMemory("Out of memory on cpu. Give a smaller picture")

    monkeypatch.setattr("vitbench.trainings.session.attention_png", fail)
    heard: list[str] = []
    progress = TrainingProgress()
    monkeypatch.setattr(progress, "note", heard.append)
    start_training(request(tensorboard=True, recipe={"images": 20}), tmp_path / "run", progress)
    assert (tmp_path / "run" / "report.md").is_file()
    assert "No attention picture in the TensorBoard logs: Out of memory on cpu. Give a smaller picture" in heard


@pytest.mark.usefixtures("drawn")
def test_tensorboard_holds_curves_and_the_confusion_matrix(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = start_training(request(tensorboard=True), tmp_path / "run")
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


def test_what_python_asks_for_is_checked_as_a_command_line() -> None:
    import vitbench

    for options, said in (
        ({"weights": "w.pt", "pretrained": True}, "two beginnings"),
        ({"replace_head": True}, "together with --weights"),
        ({"seed": 0, "settings": {"seed": 1}}, "The seed is given twice"),
    ):
        with pytest.raises(UsageError, match=said):
            vitbench.train(MODEL, **options)  # type: ignore[arg-type]


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
    with pytest.raises(UsageError, match="no option 'epochs'"):
        vitbench.train(MODEL, epochs=3)
    with pytest.raises(UsageError, match="none of: off, bf16, fp16"):
        vitbench.train(MODEL, amp=True)
    with pytest.raises(UsageError, match="train_images = 0 is not positive"):
        vitbench.train(MODEL, train_images=0)
    with pytest.raises(UsageError, match="erasing does nothing"):
        vitbench.train(MODEL, settings={"erasing": 0.5})


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = _start(folder)
    try:
        _wait_for_epochs(folder, 1)
        with pytest.raises(RunFolderError, match="Another vitbench is training"):
            resume_training(folder)
    finally:
        process.kill()
        process.wait()


# Published figures judged by trainings


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Trainings by the recipe brief as it is, on all digits, tested on all of theirs."""
    folder = tmp_path_factory.mktemp("seeds")
    brief = load_recipe("brief").model_dump(mode="json")
    brief = replace(request(), recipe=brief, train_images=None, test_images=None)
    for seed in range(3):
        start_training(replace(brief, seed=seed), folder / str(seed))
    return [folder / str(seed) for seed in range(3)]


Judge = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def judge(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Judge:
    """``vitbench claims`` of figures that a source might have printed of this model, by brief on digits of 8 px."""
    known = model_registry()  # filled first, or the card would be taken for a packaged one
    fields = {"source": "a README", "recipe": "brief", "data": "digits"}
    claims = (
        Claim(quantity="top1", value=0.5, printed="50 %", **fields),
        Claim(quantity="loss", value=9.0, printed="9.00", **fields),
    )
    card = replace(known.get(MODEL), claims=claims, image_size=(8, 8))
    monkeypatch.setitem(MODELS._items, MODEL, card)

    def ask(*folders: Path) -> dict[str, dict[str, Any]]:
        capsys.readouterr()
        assert run_command(["claims", *map(str, folders), "--models", MODEL, "--json"]) == 0
        return {row["quantity"]: row for row in json.loads(capsys.readouterr().out)}

    return ask


def test_trainings_judge_published_figures(three_seeds: list[Path], judge: Judge) -> None:
    figures = [json.loads((folder / "summary.json").read_text())["figures"] for folder in three_seeds]
    assert (figures[0]["image_size"], figures[0]["num_classes"]) == ([8, 8], 10)
    one = judge(three_seeds[0])
    assert one["top1"]["verdict"] in ("agrees", "contradicted")
    assert one["top1"]["computed"] == pytest.approx(figures[0]["last"]["test_accuracy"])
    assert (one["loss"]["verdict"], one["loss"]["computed"]) == (
        "not checkable here",
        pytest.approx(figures[0]["last"]["test_loss"]),
    )
    three = judge(*three_seeds)
    assert three["loss"]["verdict"] == "contradicted"
    assert three["loss"]["computed"] == pytest.approx(sum(each["last"]["test_loss"] for each in figures) / 3)
    assert "seeds 0, 1, 2" in three["loss"]["reason"]
    assert judge()["top1"]["verdict"] == "not checkable here"


def test_an_earlier_summary_without_sizes_judges_all_the_same(
    three_seeds: list[Path], judge: Judge, tmp_path: Path
) -> None:
    folder = shutil.copytree(three_seeds[0], tmp_path / "run")
    content = json.loads((folder / "summary.json").read_text())
    for key in ("image_size", "num_classes"):
        del content["figures"][key]
    (folder / "summary.json").write_text(json.dumps(content))
    assert judge(folder) == judge(three_seeds[0])


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"train_images": 1000}, {"train_images": "1000"}),
        ({"weights": "best.pt"}, {"began_with": "a checkpoint"}),
        ({"weights": "best.pt", "pretrained": True}, {"began_with": "a checkpoint"}),
        ({"pretrained": True}, {"began_with": "pretrained"}),
        ({"freeze": "backbone"}, {"freeze": "backbone"}),
    ],
    ids=str,
)
def test_a_training_of_another_kind_judges_nothing(
    three_seeds: list[Path], judge: Judge, tmp_path: Path, changes: dict[str, Any], options: dict[str, str]
) -> None:
    folder = shutil.copytree(three_seeds[0], tmp_path / "run")
    content = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps({**content, **changes}))
    assert dict(read_training(folder).cell.options) == options
    assert judge(folder)["top1"]["computed"] is None


def test_a_training_by_a_changed_recipe_judges_nothing(whole: Path, judge: Judge) -> None:
    assert judge(whole)["top1"]["computed"] is None


def test_a_training_that_is_not_finished_judges_nothing_and_says_how_to_go_on(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "summary.json").unlink()
    assert run_command(["claims", str(folder), "--models", MODEL]) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert f"is not finished: first go on with it: vitbench train --resume {folder}" in errors


def test_the_report_of_a_training_is_named(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["report", str(whole)]) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert f"its report is {whole / 'report.md'}" in errors
    assert f"vitbench claims {whole}" in errors

"""A resumed training ends like one without a pause, or says why it cannot be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
import torch

from tests.experiments.training.asking import (
    MODEL,
    KilledError,
    assert_same_weights,
    die_after_saving,
    request,
    transfer,
    weights,
    without_times,
)
from vitbench.core.errors import DataError, RunFolderError, UsageError
from vitbench.experiments.training import resume_training, start_training
from vitbench.experiments.training.checkpoint import load_state, save_state
from vitbench.experiments.training.progress import TrainingProgress
from vitbench.experiments.training.request import LAST
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import load_checkpoint


@pytest.mark.parametrize("steps", [1, 7])
def test_a_resumed_training_ends_like_one_without_a_pause(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    import vitbench.experiments.training.session as runs

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
    half = tmp_path / "run" / ".history.csv.abc.part"  # of a process that was killed while it wrote
    half.write_text("epoch,")
    summary = resume_training(tmp_path / "run")
    assert not half.exists()
    assert_same_weights(weights(whole), weights(tmp_path / "run"))
    ours, theirs = (load_state(folder / LAST) for folder in (whole, tmp_path / "run"))
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours["ema"]["module.head.weight"], theirs["ema"]["module.head.weight"])
    expected = json.loads((whole / "summary.json").read_text())["history"]
    assert without_times(summary.history) == without_times(expected)


# the first one lies before the first step, each epoch has one for each of its 5 steps and one at its end
@pytest.mark.parametrize("times", [6, 18])
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
    from vitbench.experiments.training.session import Session

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


def test_the_weights_that_a_training_began_with_need_not_be_there_to_resume(
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


@pytest.mark.parametrize("change", ["another image", "another choice"])
def test_a_training_does_not_resume_with_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    from tests.training.data.folders import make_image_folder

    folder, chosen = tmp_path / "pictures", tmp_path / "chosen.txt"
    make_image_folder(folder, train=10, test=2)
    chosen.write_text(" ".join(map(str, range(0, 20, 2))))
    asked = request(data=str(folder), recipe={"imbalance": str(chosen), "images": 40}, train_images=None)
    die_after_saving(monkeypatch, 2)
    with pytest.raises(KilledError):
        start_training(asked, tmp_path / "run")
    monkeypatch.undo()
    if change == "another choice":
        (tmp_path / "run" / "indices.txt").write_text(" ".join(map(str, range(10))))
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


def test_a_training_resumes_with_as_many_processes_as_it_began_with(
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
    monkeypatch.setattr("vitbench.training.ranks.joined", lambda ranks, device: contextlib.nullcontext())
    folder = _with_header(whole, tmp_path / "of one")
    with pytest.raises(RunFolderError, match=r"began with 1 process, and these are 2: .* Go on with: vitbench train"):
        resume_training(folder)


def test_resuming_on_another_device_is_warned_of(whole: Path, tmp_path: Path) -> None:
    class Heard(TrainingProgress):
        warnings: ClassVar[list[str]] = []

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    resume_training(_with_header(whole, tmp_path / "run", device="cuda"), Heard())
    assert Heard.warnings == [
        "The training began on cuda and is now on cpu: its result may differ from one without a pause"
    ]


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


def test_a_training_of_published_weights_resumes_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.experiments.training import setup

    fetched: list[str] = []

    def build(name: str, *, pretrained: bool = False, **size: Any) -> torch.nn.Module:
        model = build_model(name, **size)
        if pretrained:
            fetched.append(name)
            torch.nn.init.constant_(next(model.parameters()), 0.01)
        return model

    monkeypatch.setattr(setup, "build_model", build)
    content = request(pretrained=True, recipe={"images": 60})
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
    message = r"last\.pt is too large for now: it needs .* GB of memory, and .* free memory, then --resume"
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=size - 1))
        with pytest.raises(DataError, match=message) as caught:
            load_state(whole / LAST)
        assert "damaged" not in str(caught.value)
        patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=size))
        assert load_state(whole / LAST) is not None

    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", Mock(side_effect=error))
            with pytest.raises(DataError, match=message):
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


def test_a_finished_training_is_not_trained_again(whole: Path) -> None:
    before = (whole / LAST).stat().st_mtime_ns
    summary = resume_training(whole)
    assert summary.figures["images_seen"] == 300
    assert (whole / LAST).stat().st_mtime_ns == before


@pytest.mark.parametrize("kept", [True, False])
def test_a_training_resumes_with_features_or_without_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """However much memory there is then."""
    monkeypatch.setattr("vitbench.experiments.training.setup.spare_memory", lambda: 10**12 if kept else 0)
    start_training(transfer(), tmp_path / "whole")
    die_after_saving(monkeypatch, 3)
    with pytest.raises(KilledError):
        start_training(transfer(), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr("vitbench.experiments.training.setup.spare_memory", lambda: 0 if kept else 10**12)
    resume_training(tmp_path / "run")
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_an_option_that_an_earlier_version_passed_over_stops_no_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_after_saving(monkeypatch, 2)
    with pytest.raises(KilledError):
        start_training(request(recipe={"images": 40}), tmp_path / "run")
    monkeypatch.undo()
    path = tmp_path / "run" / "training.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_dir": "data", "download": True}))
    assert resume_training(tmp_path / "run").figures["images_seen"] == 40


def test_features_resume_and_the_checkpoint_is_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_training(transfer(recipe={"ema": 0.9}), tmp_path / "whole")
    die_after_saving(monkeypatch, 3)
    with pytest.raises(KilledError):
        start_training(transfer(recipe={"ema": 0.9}), tmp_path / "run")
    monkeypatch.undo()
    resume_training(tmp_path / "run")
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    load_checkpoint(build_model(MODEL, image_size=8, num_classes=10), tmp_path / "run" / LAST)


def test_a_training_resumes_without_the_file_of_indices_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indices = tmp_path / "mine.txt"
    indices.write_text(" ".join(map(str, range(0, 400, 3))))
    content = request(recipe={"imbalance": str(indices), "images": 100}, train_images=None)
    expected = start_training(content, tmp_path / "whole").figures["recipe_hash"]
    die_after_saving(monkeypatch, 3)
    with pytest.raises(KilledError):
        start_training(content, tmp_path / "run")
    monkeypatch.undo()
    indices.unlink()
    assert resume_training(tmp_path / "run").figures["recipe_hash"] == expected
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_training_resumes_with_images_that_have_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.training.data.folders import make_image_folder

    make_image_folder(tmp_path / "pictures", train=5, test=2)
    content = request(data=str(tmp_path / "pictures"), train_images=None, recipe={"images": 60, "batch_size": 8})
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


def test_moved_images_need_a_checkpoint_that_can_tell_them(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_bytes((whole / "training.json").read_bytes())
    with pytest.raises(RunFolderError, match="no checkpoint yet"):
        resume_training(tmp_path, data="digits")

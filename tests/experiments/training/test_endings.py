"""How trainings end early: interrupted, killed, diverged, out of memory, on a full disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tests.experiments.training.asking import MODEL, request
from vitbench.cli import run_command
from vitbench.core.errors import ModelFailed, RunFolderError, StorageError, VitbenchError
from vitbench.experiments.training import resume_training, start_training
from vitbench.experiments.training.checkpoint import load_state, save_state
from vitbench.experiments.training.progress import TrainingProgress
from vitbench.experiments.training.request import LAST, TrainingOutOfMemory
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import load_checkpoint
from vitbench.training.loop import TrainingDiverged


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint_in_the_middle_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitbench.experiments.training.session as runs
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


@pytest.mark.parametrize(
    ("keys", "text", "message"),
    [
        ({"deterministic": True}, "put_ does not have a deterministic implementation", "Leave out --deterministic"),
        ({"compile": True}, "InductorError: no compiler", "Leave out --compile"),
        ({}, "The operator 'aten::x' is not currently implemented for the 'MPS' device", "Give --device cpu"),
    ],
)
def test_what_the_device_cannot_do_is_one_line(
    keys: dict[str, Any], text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.training.loop import Trainer

    def fail(self: Trainer) -> None:
        raise RuntimeError(f"{text}\nmore lines")

    monkeypatch.setattr(Trainer, "_take_step", fail)
    try:
        with pytest.raises(VitbenchError, match=message) as caught:
            start_training(request(**keys), tmp_path / "run")
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("raised", [ValueError, TypeError, AssertionError, RuntimeError])
def test_what_the_model_raises_in_a_step_is_one_line_with_its_place(
    raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.models.architectures.vit import VisionTransformer

    forward = VisionTransformer.forward
    # a model's mistake is recognised by the file that it is in
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


QUICK = ["train", MODEL, "--device", "cpu", "--image-size", "8", "--threads", "1", "--no-tensorboard"]


def _wait_for_epochs(folder: Path, epochs: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        path = folder / "history.csv"
        if path.is_file() and len(path.read_text().splitlines()) > epochs:
            return
        time.sleep(0.02)
    raise AssertionError("no epoch within a minute")


def test_kill_9_leaves_a_lock_until_then_and_a_checkpoint_to_resume_from(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "vitbench", *QUICK, "--train-images", "100", "--test-images", "20"]
    command += ["--set", "epochs=5000", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    try:
        _wait_for_epochs(folder, 2)
        with pytest.raises(RunFolderError, match="Another vitbench is training"):
            resume_training(folder)
    finally:
        process.kill()
        process.wait()
    state = load_state(folder / LAST)
    assert state is not None
    assert state["seen"] >= 2 * 100
    model = build_model(MODEL, image_size=8, num_classes=10)
    load_checkpoint(model, folder / LAST)
    content = json.loads((folder / "training.json").read_text())
    content["recipe"]["epochs"] = state["seen"] // 100 + 1  # enough has been seen
    (folder / "training.json").write_text(json.dumps(content))
    summary = resume_training(folder)
    assert summary.figures["images_seen"] >= state["seen"]
    assert [row["epoch"] for row in summary.history] == sorted({row["epoch"] for row in summary.history})


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_saves_after_the_step_names_the_way_to_resume_and_exits_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitbench.training.loop import Trainer

    step = Trainer._take_step

    def interrupted(self: Trainer) -> None:
        if self.steps == 3:
            signal.raise_signal(signal.SIGINT)
        step(self)

    monkeypatch.setattr(Trainer, "_take_step", interrupted)
    folder = tmp_path / "run"
    assert run_command([*QUICK, "--set", "epochs=5", "--test-images", "20", "--out", str(folder)]) == 130
    errors = capsys.readouterr().err
    assert errors.strip().splitlines()[-1].endswith(f"Go on with: vitbench train --resume {folder}")
    assert "Traceback" not in errors
    state = load_state(folder / LAST)
    assert state is not None
    assert state["steps"] == 4


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    diverging = request(
        recipe={"optimizer": "sgd", "learning_rate": 1e20, "warmup": 0.0, "clip_norm": None, "ema": 0.0}
    )
    with pytest.raises(TrainingDiverged, match="Lower the learning rate"):
        start_training(diverging, tmp_path / "run")
    state = load_state(tmp_path / "run" / LAST)
    assert state is not None
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


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
    arguments = ["train", "vit_basic", "--image-size", "64", "--set", "batch_size=256"]
    arguments += ["--device", "cpu", "--threads", "1"]
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
    with pytest.raises(TrainingOutOfMemory, match="tested, 64 images at once") as caught:
        start_training(request(recipe={"images": 20}), tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.safetensors"
    assert f"vitbench evaluate {MODEL} --weights {path} with a smaller --batch-size" in str(caught.value)
    assert "--set accumulate=" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert path.is_file()


def test_a_table_that_is_open_elsewhere_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows does not let a file be replaced that a spreadsheet has open; here the first epoch finds it so."""

    class Heard(TrainingProgress):
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    replace = os.replace
    refused = []

    def refuse_once(source: Any, target: Any) -> None:
        if Path(target).name == "history.csv" and not refused:
            refused.append(target)
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_once)
    heard = Heard()
    start_training(request(), tmp_path / "run", heard)
    assert [text for text in heard.warnings if "history.csv" in text and "goes on" in text] == heard.warnings != []
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 4

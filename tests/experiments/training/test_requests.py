"""What cannot be trained is one line, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.training.asking import MODEL, request
from vitbench.cli import run_command
from vitbench.core.errors import RunFolderError, UsageError
from vitbench.experiments.training import resume_training, start_training


def test_several_processes_cannot_share_a_budget_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK or LOCAL_RANK is not set"):
        start_training(request())
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UsageError, match="cannot agree on a budget in seconds"):
        start_training(request(recipe={"images": None, "seconds": 1}))


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Which model?"),
        (["train", "vit_basik"], "Did you mean 'vit_basic'"),
        (["train", MODEL, "--recipe", "breif"], "Did you mean 'brief'"),
        (["train", MODEL, "--set", "learning_rat=1"], "Did you mean 'learning_rate'"),
        (["train", MODEL, "--set", "lr"], "not key=value"),
        (["train", MODEL, "--set", "lr=fast"], "learning_rate"),
        (["train", MODEL, "--set", "augment=crop,flop"], "Did you mean 'flip'"),
        (["train", MODEL, "--set", "epochs=2", "--set", "images=9"], "one budget"),
        (["train", MODEL, "--data", "digit"], "Did you mean 'digits'"),
        (["train", MODEL, "--imbalance", "cubic:3"], "neither linear:R nor exponential:R"),
        (["train", MODEL, "--imbalance", "linear:100000"], "leaves a class"),
        (["train", MODEL, "--freeze", "everything"], "not one of: none, backbone"),
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
        (["train", MODEL, "--set", "rotation=30"], "has no effect without rotation in augment"),
        (["train", MODEL, "--replace-head"], "together with --weights"),
        (["train", MODEL, "--weights", "w.pt", "--pretrained"], "two starting points"),
        (["train", MODEL, "--validation", "0.1", "--set", "validation=0.2"], "The validation is given twice"),
        (["train", MODEL, "--imbalance", "linear:2", "--set", "imbalance=none"], "The imbalance is given twice"),
        (["train", MODEL, "--seed", "0", "--set", "seed=1"], "The seed is given twice, by --seed and as a key"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error


def test_a_wrong_request_leaves_no_folder_that_blocks_the_next_try(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        start_training(request(num_classes=3), tmp_path / "run")
    start_training(request(recipe={"images": 20}), tmp_path / "run")


def test_what_python_asks_for_is_checked_as_a_command_line() -> None:
    import vitbench

    for options, message in (
        ({"weights": "w.pt", "pretrained": True}, "two starting points"),
        ({"replace_head": True}, "together with --weights"),
        ({"seed": 0, "settings": {"seed": 1}}, "The seed is given twice"),
    ):
        with pytest.raises(UsageError, match=message):
            vitbench.train(MODEL, **options)  # type: ignore[arg-type]

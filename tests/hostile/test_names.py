"""Names from strangers that would lead out of a folder: one line, or a file where it belongs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.hostile.asking import BASIC, LONG, MODEL, ask, one_error
from vitbench.core import run_folder as store
from vitbench.experiments.prediction import OutputNames
from vitbench.experiments.training.folder import default_folder
from vitbench.experiments.training.request import TrainingRequest
from vitbench.training.recipes import load_recipe

NAMES = [
    "../x",
    "..",
    "/etc/passwd",
    "..\\x",
    "a\0b",
    LONG,
    "x.",
    "a/../../b",
    "~root",
    "猫" * 200,
    " ",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_folders_and_files_named_after_things_stay_where_they_belong(tmp_path: Path, name: str) -> None:
    request = TrainingRequest(model=f"module:{name}:f", data="digits", recipe={})
    folder = default_folder(request.model)
    assert folder.parts[0] == "runs"
    assert len(folder.parts) == 2
    stem = OutputNames(tmp_path).take(name)
    assert Path(stem).name == stem
    assert (tmp_path / stem).resolve().parent == tmp_path.resolve()
    assert len(stem.encode()) < 200


@pytest.mark.parametrize(
    "option", ["--models", "--data", "--recipe", "--weights", "--suite", "--devices", "--metrics", "--data-dir"]
)
@pytest.mark.parametrize("name", ["../x", LONG, "a\x1b[2Jb"])
@pytest.mark.usefixtures("quickly")
def test_a_hostile_name_in_any_option_is_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = ["run", "--suite", "smoke", option, name] if option != "--suite" else ["run", "--suite", name]
    words += ["--data", "cifar10"] if option == "--data-dir" else []
    code, out, errors = ask(capsys, *words)
    assert (code, out) == (2, "")
    one_error(errors)
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]


@pytest.mark.parametrize("command", [["report"], ["run", "--resume"], ["train", "--resume"], ["sweep", "--resume"]])
def test_a_name_that_no_system_takes_is_one_line_everywhere(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    code, out, errors = ask(capsys, *command, LONG)
    assert (code, out) == (2, "")
    one_error(errors)


def test_a_sweep_from_elsewhere_does_not_train_outside_its_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    request = asdict(TrainingRequest(model=MODEL, data="digits", recipe=load_recipe("brief").model_dump(mode="json")))
    (tmp_path / "sweep").mkdir()
    for name in ("../outside", "/tmp/outside", "..", "001/../../outside", "", 7, "001\n", "٠٠١"):
        plan = {"schema": 1, "settings": [{"name": name, "changes": {}, "request": request}]}
        (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(plan))
        code, _, errors = ask(capsys, "sweep", "--resume", tmp_path / "sweep")
        assert code == 2
        assert "is not a folder of a sweep" in one_error(errors)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["sweep", "sweep.json"]


@pytest.mark.parametrize(
    "link", [store.DAMAGED, store.RECORDS, store.NOISE, store.LOCK, store.CHECKPOINTS, "checkpoints/a.part"]
)
def test_links_in_a_run_folder_from_elsewhere_are_not_followed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, link: str
) -> None:
    """A damaged line of records.jsonl is set aside into a file: were that a link to .bashrc, the line would be run."""
    mine = tmp_path / ".bashrc"
    mine.write_text("alias ll=ls\n")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / store.SUITE).write_text(BASIC)
    (folder / store.RECORDS).write_text("touch owned\n")
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).unlink(missing_ok=True)
    (folder / link).symlink_to(mine)
    code, _, errors = ask(capsys, "run", "--resume", folder)
    assert code == 2
    assert f"holds a link, {Path(link).name!r}" in one_error(errors)
    assert mine.read_text() == "alias ll=ls\n"


def test_links_in_a_training_from_elsewhere_are_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "train"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.pt.part").symlink_to(tmp_path / "mine")
    (folder / "training.json").write_text("{}")
    code, _, errors = ask(capsys, "train", "--resume", folder)
    assert code == 2
    assert "'last.pt.part'" in one_error(errors)
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "001").symlink_to(folder)
    code, _, errors = ask(capsys, "sweep", "--resume", sweep)
    assert code == 2
    assert "'001'" in one_error(errors)

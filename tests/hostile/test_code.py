"""Suites, run folders and lists that would have code run: nothing of them is imported."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tests.hostile.asking import MODEL, Executed, ask, one_error
from tests.reports.fabricate import infer
from vitbench.cli import run_command
from vitbench.core import run_folder as store
from vitbench.core.errors import DataError, UsageError
from vitbench.core.records import Cell
from vitbench.reports import write_report
from vitbench.runner.plan import check_before_loading
from vitbench.runner.run import resume_run
from vitbench.suites import make_suite
from vitbench.training.data.datasets import describe_data, load_images
from vitbench.training.data.subsets import choose_imbalanced
from vitbench.training.recipes import load_recipe

pytestmark = pytest.mark.integration


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a mark where it is imported, in the current folder and on every path; returns the mark."""
    mark = tmp_path / "imported"
    place = tmp_path / "modules"
    place.mkdir()
    for folder in (place, tmp_path):
        (folder / "trap_of_a_suite.py").write_text(f"open({str(mark)!r}, 'w').close()\ndef build(**_): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", str(place))
    return mark


def test_a_suite_imports_nothing(
    strict_server: None, trap: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    suite = tmp_path / "foreign.toml"
    suite.write_text('models = ["module:trap_of_a_suite:build"]\ndevices = "cpu"\nmetrics = ["params"]\n')
    for words in (["--out", "run"], ["--dry-run"], ["--out", "run", "--quick"]):
        code, _, errors = ask(capsys, "run", "--suite", suite, *words)
        assert code == 2
        assert "would import and run code: add --allow-import if you trust it" in one_error(errors)
    assert not trap.exists()
    assert not (tmp_path / "run").exists()


def test_nor_does_a_run_folder_from_elsewhere(
    strict_server: None, trap: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / store.SUITE).write_text(
        'models = ["module:trap_of_a_suite:build"]\ndevices = "cpu"\nmetrics = ["params"]\n'
    )
    foreign = infer(
        Cell(
            model="module:trap_of_a_suite:build",
            image_size=(8, 8),
            num_classes=2,
            batch_size=1,
            device="cpu",
            threads=1,
        )
    )
    (folder / store.RECORDS).write_text(foreign.to_json() + "\n")
    (folder / store.LOCK).write_text("import os; os.system('touch imported')")
    with pytest.raises(UsageError, match="would import and run code"):
        resume_run(folder)
    code, _, errors = ask(capsys, "run", "--resume", folder)
    assert code == 2
    assert "add --allow-import" in one_error(errors)
    assert run_command(["report", str(folder)]) == 0
    write_report([folder], tmp_path / "both")
    assert not trap.exists()


def test_names_of_modules_are_told_from_names_of_files(trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["show"],
        ["flops"],
        ["evaluate", "--data", "digits", "--pretrained"],
        ["train"],
        ["sweep", "--seeds", "0"],
    ):
        code, _, errors = ask(capsys, command[0], "module:trap_of_a_suite:build", *command[1:])
        assert code == 2
        assert "add --allow-import" in one_error(errors)
    assert not trap.exists()


def test_recipes_and_lists_of_pictures_are_data(trap: Path, tmp_path: Path) -> None:
    evil = pickle.dumps(Executed(tmp_path / "imported"), protocol=0)
    (tmp_path / "recipe.toml").write_bytes(evil)
    with pytest.raises(UsageError, match="not valid TOML"):
        load_recipe(str(tmp_path / "recipe.toml"))
    for content in (evil, b"__import__('trap_of_a_suite')", b"[1, 2, exec('1')]"):
        (tmp_path / "indices.txt").write_bytes(content)
        with pytest.raises(DataError, match="whole numbers only"):
            choose_imbalanced([0, 1], [0, 1], str(tmp_path / "indices.txt"), 0)
    assert not trap.exists()


def test_a_suite_cannot_name_a_file_that_is_unpickled(trap: Path, tmp_path: Path) -> None:
    """Data sets that torchvision unpickles are checked by their sums first."""
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
        "batches.meta",
    ):
        (folder / name).write_bytes(pickle.dumps(Executed(trap)))
    content = {"name": "x", "models": [MODEL], "training": {"data": "cifar10", "data_dir": str(tmp_path / "cifar")}}
    check_before_loading(make_suite(content, "x"))
    with pytest.raises(DataError, match="damaged"):
        load_images(describe_data("cifar10", root=tmp_path / "cifar"), "test", image_size=(8, 8), images=10)
    assert not trap.exists()

"""Faults are injected where VITBENCH_FAULTS asks for them, and nowhere else. What comes of them: test_soak.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.cli import run_command
from vitbench.executors import faults


def test_without_the_variable_nothing_is_loaded_or_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    assert faults.load_injector() is None
    assert faults.describe() == {}


def test_the_variable_names_the_module_that_injects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "tests.faults.injection")
    assert faults.load_injector().__name__ == "tests.faults.injection"
    assert "not measurements" in faults.describe()["faults"]


def test_a_module_that_cannot_be_imported_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(faults.VARIABLE, "no_such_module")
    assert run_command(["run", "--suite", "smoke", "--data", "none", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "VITBENCH_FAULTS=no_such_module cannot be imported" in line
    assert not (tmp_path / "run").exists()

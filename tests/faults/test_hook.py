"""Faults are injected where VITBENCH_FAULTS asks for them, and nowhere else. What comes of them: test_soak.py."""

from __future__ import annotations

import pytest

from vitbench.executors import faults


def test_without_the_variable_nothing_is_loaded_or_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    assert faults.load_injector() is None
    assert faults.describe() == {}


def test_the_variable_names_the_module_that_injects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.VARIABLE, "tests.faults.injection")
    assert faults.load_injector().__name__ == "tests.faults.injection"
    assert "not measurements" in faults.describe()["faults"]

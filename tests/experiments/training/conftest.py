"""A training that nothing interrupts; images only where they are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.training.asking import request
from vitbench.experiments.training import start_training


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of trainings, which cost more than these trainings, are drawn only for tests that ask for ``drawn``."""
    if "drawn" in request.fixturenames:
        return
    from vitbench.experiments.training import session
    from vitbench.reports import evaluation

    monkeypatch.setattr(session, "write_curves", lambda rows, path, title: path.write_bytes(b"curves"))
    for name in ("confusion_png", "reliability_png"):
        monkeypatch.setattr(evaluation, name, lambda result: b"picture")


@pytest.fixture
def drawn() -> None:
    """Asks for real images."""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupts."""
    folder = tmp_path_factory.mktemp("trainings") / "whole"
    start_training(request(), folder)
    return folder

"""A training that nothing interrupts; figures only where they are looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.training.asking import request
from vitbench.experiments.training import start_training


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these train."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest) -> None:
    """Only tests that ask for ``drawn`` get figures."""
    if "drawn" not in request.fixturenames:
        request.getfixturevalue("undrawn")


@pytest.fixture
def drawn() -> None:
    """Asks for real figures."""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupts."""
    folder = tmp_path_factory.mktemp("trainings") / "whole"
    start_training(request(), folder)
    return folder

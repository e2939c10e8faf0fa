"""Workers that may import, and such that may not; a limit of time for what is to be refused at once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import pytest
from torch import nn

from tests.hostile.asking import MODEL, ROOT, SIZE
from tests.launching import SharedLauncher, lending
from vitbench.executors.launcher import Launcher, make_launcher
from vitbench.models import build_model
from vitbench.runner import run as runner


@pytest.fixture
def quickly() -> Iterator[None]:
    """What is refused is refused at once."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 5


@pytest.fixture(scope="module")
def server(fork_server: Launcher) -> Iterator[list[SharedLauncher]]:
    """Workers that may import."""
    with lending(fork_server) as launchers, pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield launchers


@pytest.fixture(scope="module")
def strict_launcher() -> Iterator[Launcher]:
    with make_launcher() as launcher:
        yield launcher


@pytest.fixture
def strict_server(strict_launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that may not import, as they are without --allow-import."""

    def lend(preload: Iterable[str] = (), *, allow_import: bool = False) -> Launcher:
        assert not allow_import
        return SharedLauncher(strict_launcher)

    monkeypatch.setattr(runner, "make_launcher", lend)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return build_model(MODEL, image_size=SIZE, num_classes=10)

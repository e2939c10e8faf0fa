"""One thread and one fork server for all tests; golden files: texts under tests/golden/, rewritten by ``pytest --update-golden``."""

from __future__ import annotations

import difflib
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# One thread: with two on a contended machine a test can take many times as long. Workers set their own anyway.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with Ctrl-C ignored, which their children inherit: tests send it to theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from tests.launching import SharedLauncher
    from vitbench.executors.launcher import Launcher

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/ with what the code gives now")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``-m 'not integration'`` replaces the -m of pyproject.toml and so must leave out what that leaves out, and what
    starts workers.
    """
    for item in items:
        starts_workers = {"fork_server", "server", "launcher"} & set(getattr(item, "fixturenames", ()))
        if starts_workers or any(item.get_closest_marker(name) for name in ("slow", "cuda", "mps", "browser")):
            item.add_marker("integration")


@pytest.fixture(scope="session", autouse=True)
def never_waiting() -> Iterator[None]:
    """Runs do not wait until the machine is quiet: other tests keep it busy."""
    from vitbench.runner.quiet import Patience

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitbench.runner.timed.Patience", lambda *_: Patience(0.0))
        yield


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)`` fails unless tests/golden/<name> holds ``text``; with --update-golden it is made to."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        if not path.exists():
            pytest.fail(f"{path} does not exist. Make it with: pytest --update-golden")
        expected = path.read_text(encoding="utf-8")
        if text != expected:
            lines = difflib.unified_diff(expected.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm="")
            pytest.fail("differs; if it is meant to, run pytest --update-golden\n" + "\n".join(lines), pytrace=False)

    return check


def pytest_collection_finish() -> None:
    """What is loaded by now stays: a collection of garbage, which each timed call makes, need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[Launcher]:
    """Workers that may import from the checkout, for the tests that change neither variables nor what is loaded."""
    from tests.launching import ROOT, make_launcher

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        launcher = make_launcher(["torch._dynamo"], allow_import=True)
    with launcher:
        yield launcher


@pytest.fixture
def shared_workers(fork_server: Launcher) -> Iterator[list[SharedLauncher]]:
    """Runs in this process get their workers from ``fork_server``."""
    from tests.launching import lending

    with lending(fork_server) as launchers:
        yield launchers

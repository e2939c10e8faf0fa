"""One fork server for many tests: real workers and the real command line, without its seconds a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from vitbench.executors import launcher as launching
from vitbench.executors.launcher import Launcher, Worker
from vitbench.regression import snapshot
from vitbench.runner import doctor, run

#: As it is before a test lends another launcher.
make_launcher = launching.make_launcher

ROOT = Path(__file__).parents[1]


class SharedLauncher(Launcher):
    """Hands on another launcher's workers and leaves it open; ``started`` are those of this run."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.started: list[Worker] = []

    def start(self) -> Worker:
        worker = self.launcher.start()
        self.started.append(worker)
        return worker

    def wait_until_ready(self) -> None:
        self.launcher.wait_until_ready()

    def close(self) -> None:
        for worker in self.started:
            if worker.alive():
                worker.kill()


@contextlib.contextmanager
def shared_server(*preload: str) -> Iterator[list[SharedLauncher]]:
    """Runs inside this context share a server of their own, begun in the folder and with the variables of now."""
    with make_launcher(["torch._dynamo", *preload], allow_import=True) as launcher, lending(launcher) as launchers:
        yield launchers


@contextlib.contextmanager
def lending(launcher: Launcher) -> Iterator[list[SharedLauncher]]:
    """Runs inside this context share ``launcher``; the list holds what each of them got."""
    launchers: list[SharedLauncher] = []

    def lend(preload: Iterable[str] = (), *, allow_import: bool = False) -> Launcher:
        launchers.append(SharedLauncher(launcher))
        return launchers[-1]

    with pytest.MonkeyPatch.context() as patch:
        for module in (launching, run, doctor, snapshot):
            patch.setattr(module, "make_launcher", lend)
        yield launchers


def left_behind() -> list[psutil.Process]:
    """What this process started and what came of that, less the fork servers, which wait for the next run."""
    own = psutil.Process()
    servers = [one for one in own.children() if "vitbench.executors.fork_server" in one.cmdline()]
    return [one for one in own.children(recursive=True) if one not in servers and one.status() != psutil.STATUS_ZOMBIE]

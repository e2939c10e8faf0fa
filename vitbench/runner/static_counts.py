"""Count parameters, FLOPs and the like of each distinct model and size once, by a few shared workers.

Nothing here is timed: these workers, and only these, run at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from vitbench.core.errors import USAGE_CAUSES
from vitbench.core.records import Cell
from vitbench.devices.host.environment import usable_cores
from vitbench.executors.conversation import Outcome, converse, finish
from vitbench.executors.launcher import Launcher, Worker
from vitbench.executors.protocol import Measure, Task

StaticKey = tuple[str, tuple[int, int], int, int, str]

#: With fewer models a second worker does not pay for its start.
_MODELS_A_WORKER = 8
_MOST_WORKERS = 8


def static_key(cell: Cell) -> StaticKey:
    """What parameters and FLOPs depend on: cells with one key share these values."""
    return cell.model, cell.image_size, cell.num_classes, cell.in_channels, cell.attention


class StaticCounter:
    """Counts in the background from the start, in the order of the cells; use it as a context manager.

    A worker that dies is replaced, and only the model that it counted fails. ``task``: what a worker does with a cell,
    by default measure ``metrics``; ``key``: cells with one key share an outcome; ``models_a_worker``: how many models
    make another worker worth its start.
    """

    def __init__(
        self,
        launcher: Launcher,
        metrics: tuple[str, ...],
        timeout_s: float,
        *,
        task: Callable[[Cell], Task] | None = None,
        key: Callable[[Cell], Hashable] = static_key,
        models_a_worker: int = _MODELS_A_WORKER,
    ) -> None:
        self._launcher = launcher
        self._task = task or (lambda cell: Measure(cell=cell, process="static", metrics=metrics))
        self._key = key
        self._models_a_worker = models_a_worker
        self._timeout_s = timeout_s
        self._starting = threading.Lock()
        self._local = threading.local()
        self._workers: list[Worker] = []
        self._outcomes: dict[Hashable, Future[Outcome]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def begin(self, cells: Iterable[Cell]) -> int:
        """Start on all that ``cells`` need; returns how many outcomes that are."""
        keys: dict[Hashable, Cell] = {}
        for cell in cells:
            keys.setdefault(self._key(cell), cell)
        if self._pool is None:
            count = min(len(keys) // self._models_a_worker, usable_cores(), _MOST_WORKERS)
            self._pool = ThreadPoolExecutor(max(count, 1), thread_name_prefix="static")
        for key, cell in keys.items():
            if key not in self._outcomes:
                self._outcomes[key] = self._pool.submit(self._count, cell)
        return len(keys)

    def outcome(self, cell: Cell) -> Outcome:
        """The outcome of a cell's model and size; waits for it, and starts on it if ``begin`` has not."""
        self.begin([cell])
        return self._outcomes[self._key(cell)].result()

    def close(self) -> None:
        """Stop what is under way and end the workers."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        with self._starting:
            for worker in self._workers:
                if worker.alive():
                    worker.kill()
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def __enter__(self) -> StaticCounter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, cell: Cell) -> Outcome:
        worker = self._worker()
        outcome = converse(worker, self._task(cell), timeout_s=self._timeout_s)
        if outcome.failure is not None and outcome.failure.cause not in USAGE_CAUSES:
            outcome = finish(worker, outcome, "cpu")
        return outcome

    def _worker(self) -> Worker:
        """This thread's own worker, a new one after a death."""
        worker: Worker | None = getattr(self._local, "worker", None)
        if worker is None or not worker.alive():
            with self._starting:
                if self._closed:
                    raise RuntimeError("the counter is closed")
                worker = self._launcher.start()
                self._workers = [one for one in self._workers if one.alive()] + [worker]
            self._local.worker = worker
        return worker

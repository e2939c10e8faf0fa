"""A cell costs at most 0.3 s beyond the measuring itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.conftest import spread
from vitbench.core.records import Cell
from vitbench.executors.conversation import converse, finish
from vitbench.executors.launcher import Launcher, SpawnLauncher, make_launcher
from vitbench.executors.protocol import Measure
from vitbench.metrics import Budget

CELL = Cell(model="vit_layer6_32", image_size=(32, 32), num_classes=10, batch_size=1, device="cpu", threads=1)
TASK = Measure(process="time", metrics=("latency",), cell=CELL, budget=Budget(seconds=0.05, min_samples=2))


def overheads(launcher: Launcher, count: int) -> list[float]:
    """Seconds of one process of a cell beyond what its worker spent on its task."""
    found = []
    for _ in range(count):
        begin = time.perf_counter()
        worker = launcher.start()
        outcome = converse(worker, TASK, timeout_s=60)
        finish(worker, outcome, "cpu")
        found.append(time.perf_counter() - begin - outcome.seconds)
        assert outcome.failure is None
    return found


def test_cell_overhead_forked_and_spawned(say: Callable[[str], None]) -> None:
    with make_launcher() as forking:
        forking.wait_until_ready()
        forked = overheads(forking, 30)
    with SpawnLauncher() as spawning:
        spawned = overheads(spawning, 5)
    say(f"one process of a cell, beyond its task, forked: {spread(forked)}")
    say(f"one process of a cell, beyond its task, spawned: {spread(spawned)}")
    say(f"a cell of lightweight (memory and five timed processes): {6 * sorted(forked)[len(forked) // 2]:.3f} s")
    assert 6 * sorted(forked)[len(forked) // 2] < 0.3

"""A plain loop follows each turn of a cell, and what it took is kept by process."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import loops_in_turn
from benchmarks.loops_in_turn import Burst, Loops, loops_after_turns
from tests.reports.fabricate import cell
from vitbench.devices.host.load import Use
from vitbench.executors.protocol import Measure
from vitbench.runner.quiet import Judge
from vitbench.runner.turns import Participant


class Program:
    """Each call takes a second longer than the one before."""

    def __init__(self, threads: int) -> None:
        self.calls = 0

    def run(self, model: str, calls: int, seconds: float = 0.0) -> list[float]:
        self.calls += calls
        return [float(number) for number in range(self.calls - calls, self.calls)]

    def close(self) -> None: ...


class Cell(Participant):
    """Has a turn in each second piece of its process."""

    def __init__(self, model: str, turns: Sequence[bool]) -> None:
        self.task = Measure(cell=cell(model), process="time", metrics=("latency",), budget=None)  # type: ignore[arg-type]
        self.turns = list(turns)


def test_the_loops_alternate_and_only_follow_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops_in_turn, "Program", Program)
    monkeypatch.setattr(Participant, "take_turn", lambda self, *_, **__: Use(0.1, 0.0) if self.turns.pop(0) else None)
    loops = Loops(["a", "b"], threads=2)
    cells = [Cell("a", [True, True, False]), Cell("a", [True]), Cell("b", [False, True])]
    with loops_after_turns(loops):
        for one in cells:
            while one.turns:
                one.take_turn(None, Judge(2))
    assert [[burst.loop for burst in process] for process in loops.bursts["a"]] == [[0, 1], [0]]
    assert [[burst.loop for burst in process] for process in loops.bursts["b"]] == [[0]]
    warm = 2 * loops_in_turn.WARM_UP  # of two models
    counted = range(warm + loops_in_turn.COLD, warm + loops_in_turn.CALLS)
    assert loops.bursts["a"][0][0].samples == list(counted)


def test_bursts_are_kept_beside_the_records(tmp_path: Path) -> None:
    bursts = {"a": [[Burst(0, [0.5]), Burst(1, [0.25, 0.5])], []]}
    loops_in_turn.write_bursts(tmp_path, bursts)
    assert loops_in_turn.read_bursts(tmp_path) == bursts

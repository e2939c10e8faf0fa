"""``vitbench run`` of some models at batch 1, with plain loops of the same models in turn with it.

``python -m benchmarks.loops_in_turn FOLDER --models M,... --threads N [options of vitbench run]`` runs the command line
itself, with one hook: after each turn of a cell one of two processes calls the cell's model in a plain loop, the other
one after the next turn. What the loops took stays beside the run's records (``RESULT``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest import mock

from benchmarks.model_calls import Program
from vitbench.cli import run_command
from vitbench.devices.host.load import Use
from vitbench.executors.protocol import Measure
from vitbench.runner.quiet import Judge
from vitbench.runner.turns import Participant, ReferenceTurn

RESULT = "plain_loops.json"
LOOPS = 2
#: Calls of a loop before anything else; calls and seconds after a turn, at least, of which the first do not count.
WARM_UP = 10
CALLS, SECONDS, COLD = 8, 0.1, 3


@dataclass(frozen=True)
class Burst:
    """What one of the loops did after a turn: which of them, and the seconds of each call that counts."""

    loop: int
    samples: Sequence[float]


#: By model and process of the run, one after each turn.
Bursts = dict[str, list[list[Burst]]]


@dataclass
class Loops:
    """Two processes with all models, and their bursts."""

    models: Sequence[str]
    threads: int
    bursts: Bursts = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._programs = [Program(self.threads) for _ in range(LOOPS)]
        self._next: dict[str, Iterator[int]] = {model: itertools.cycle(range(LOOPS)) for model in self.models}
        self._seen: dict[int, tuple[Participant, list[Burst]]] = {}
        for program in self._programs:
            for model in self.models:
                program.run(model, WARM_UP)

    def follow(self, cell: Participant) -> None:
        """A burst of the cell's model."""
        assert isinstance(cell.task, Measure)
        model = cell.task.cell.model
        if id(cell) not in self._seen:
            self._seen[id(cell)] = cell, []
            self.bursts.setdefault(model, []).append(self._seen[id(cell)][1])
        loop = next(self._next[model])
        samples = self._programs[loop].run(model, CALLS, SECONDS)[COLD:]
        self._seen[id(cell)][1].append(Burst(loop, [round(one, 9) for one in samples]))

    def close(self) -> None:
        """End the processes."""
        for program in self._programs:
            program.close()


def main() -> None:
    """Run, and write what the loops took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", required=True)
    parser.add_argument("--threads", type=int, required=True)
    given, others = parser.parse_known_args()
    words = ["--models", given.models, "--image-sizes", "native", "--batch-sizes", "1", "--modes", "infer"]
    words += ["--data", "none", "--metrics", "latency", "--threads", str(given.threads), *others]
    loops = Loops(given.models.split(","), given.threads)
    try:
        with loops_after_turns(loops):
            code = run_command(["run", *words, "--out", str(given.folder)])
    finally:
        loops.close()
    if code == 0:
        write_bursts(given.folder, loops.bursts)
    sys.exit(code)


def loops_after_turns(loops: Loops) -> mock._patch[object]:
    """While it lasts, a burst follows each turn of a cell."""
    take_turn = Participant.take_turn

    def take_turn_and_loop(
        cell: Participant, before: ReferenceTurn | None, judge: Judge, *, replays: bool = True
    ) -> Use | None:
        use = take_turn(cell, before, judge, replays=replays)
        if use is not None:  # None where a process only begins or ends
            loops.follow(cell)
        return use

    return mock.patch.object(Participant, "take_turn", take_turn_and_loop)


def write_bursts(folder: Path, bursts: Bursts) -> None:
    """Keep the bursts of a run in its folder."""
    found = {model: [[asdict(one) for one in process] for process in processes] for model, processes in bursts.items()}
    (folder / RESULT).write_text(json.dumps(found, separators=(",", ":")), encoding="utf-8")


def read_bursts(folder: Path) -> Bursts:
    """What ``write_bursts`` kept."""
    found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return {model: [[Burst(**one) for one in process] for process in processes] for model, processes in found.items()}


if __name__ == "__main__":
    main()

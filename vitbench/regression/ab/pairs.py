"""Measure one pair: fresh processes of both sides, alive at the same time, take turns running."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from vitbench.regression.ab.processes import Process, Side

#: The length of a turn. Shared machines change their speed by a third within tens of milliseconds, as the core's other
#: hardware thread gets and loses work: pairs of equal length repeated better with turns of 20 ms than of 50, and no
#: better with 8.
TURN_S = 0.02
#: The rounds of turns in a pair, after one round of warm-up. Pairs that would last longer than ``PAIR_S`` have fewer,
#: but at least ``LEAST_ROUNDS``.
ROUNDS = 60
LEAST_ROUNDS = 6
PAIR_S = 4.0
#: The clocks: wall time, and CPU time of all threads.
CLOCKS = ("wall", "cpu")
#: The three processes of a pair: base, base once more (any difference between these two is noise), and head.
BASE, CONTROL, HEAD = ("base", "control", "head")


@dataclass(frozen=True)
class Pair:
    """The times of one pair by clock and role: seconds of a call, one value a round (its median).

    ``cell`` is the cell's id, ``number`` counts the pairs of a cell from 1.
    """

    cell: str
    number: int
    wall: dict[str, tuple[float, ...]]
    cpu: dict[str, tuple[float, ...]]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Pair:
        """Read a line that ``to_json`` wrote. Raises ValueError for any other."""
        try:
            data = json.loads(line)
            clocks = {
                clock: {str(role): tuple(float(x) for x in times) for role, times in data[clock].items()}
                for clock in CLOCKS
            }
            return cls(cell=str(data["cell"]), number=int(data["number"]), **clocks)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a pair: {type(error).__name__}: {error}") from error

    def difference(self, clock: str, one: str = HEAD, others: Sequence[str] = (BASE, CONTROL)) -> float | None:
        """The logarithm of ``one`` over the geometric mean of ``others``: the median over the rounds, which ignores
        disturbed ones. None if the clock was too coarse for a call.
        """
        times: Mapping[str, Sequence[float]] = getattr(self, clock)
        rounds = list(zip(*(times[role] for role in (one, *others)), strict=True))
        if not rounds or min(map(min, rounds)) <= 0:
            return None
        return median(math.log(own) - math.fsum(map(math.log, rest)) / len(rest) for own, *rest in rounds)


def measure_pair(
    sides: Mapping[str, Side], cell: Mapping[str, Any], *, name: str, number: int, shuffle: random.Random,
    rounds: int | None = None, turn_s: float = TURN_S,
) -> tuple[Pair, dict[str, dict[str, Any]]]:  # fmt: skip
    """Start a process for each role in ``sides``, give them ``rounds`` rounds of turns, each in a drawn order, and end
    them. By default as many rounds as fit into ``PAIR_S``.

    Returns the pair and the facts that each process reported. Raises SideError if one fails, dies or hangs.
    """
    processes: dict[str, Process] = {}
    try:
        # in a drawn order, as it decides which memory a process gets
        for role in shuffle.sample(list(sides), len(sides)):
            processes[role] = sides[role].start(cell, "measure")
        # they build at the same time; no turn is timed before all of them wait
        facts = {role: process.ready() for role, process in processes.items()}
        times: dict[str, dict[str, list[float]]] = {clock: {role: [] for role in sides} for clock in CLOCKS}
        if rounds is None:
            seconds = sum(max(process.seconds, turn_s) for process in processes.values())
            rounds = min(max(round(PAIR_S / seconds), LEAST_ROUNDS), ROUNDS)
        for count in range(rounds + 1):
            for role in shuffle.sample(list(sides), len(sides)):
                event = processes[role].turn(turn_s)
                for clock in CLOCKS if count else ():
                    times[clock][role].append(round(float(event[clock]), 9))
    finally:
        for process in processes.values():
            process.close()
    wall, cpu = ({role: tuple(found) for role, found in times[clock].items()} for clock in CLOCKS)
    return Pair(cell=name, number=number, wall=wall, cpu=cpu), facts

"""One pair: fresh processes of both sides that are alive at once and take turns, one running at a time."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from vitbench.regression.ab.processes import Process, Side

#: How long a turn is. Shared machines change their speed by a third within tens of milliseconds, as the core's other
#: half gets and loses work: pairs of equal length repeated better with turns of 20 ms than of 50, and no better with 8.
TURN_S = 0.02
#: How many rounds of turns a pair has, and how few where a call lasts longer than a turn, so that a pair would take
#: more than so many seconds. A first round more is warm-up.
ROUNDS = 60
LEAST_ROUNDS = 6
PAIR_S = 4.0
#: The clocks: wall time, and CPU time of all threads.
CLOCKS = ("wall", "cpu")
#: Who plays: the base, the base once more (what these two differ by is noise), and the head.
BASE, CONTROL, HEAD = ROLES = ("base", "control", "head")


@dataclass(frozen=True)
class Pair:
    """What the processes of one pair took: by role and clock, seconds of a call, one value a round (its median).

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
        """The pair of one line. Raises ValueError if it is none."""
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
        """The logarithm of ``one`` over the geometric mean of ``others``: the median over the rounds, so that what
        disturbs a few of them does not count. None where a clock was too coarse to see a call.
        """
        times: Mapping[str, Sequence[float]] = getattr(self, clock)
        rounds = list(zip(*(times[role] for role in (one, *others)), strict=True))
        if not rounds or min(map(min, rounds)) <= 0:
            return None
        return median(math.log(own) - math.fsum(map(math.log, rest)) / len(rest) for own, *rest in rounds)


def play_pair(
    sides: Mapping[str, Side], cell: Mapping[str, Any], *, name: str, number: int, shuffle: random.Random,
    rounds: int | None = None, turn_s: float = TURN_S,
) -> tuple[Pair, dict[str, dict[str, Any]]]:  # fmt: skip
    """Fresh processes for each role in ``sides``, ``rounds`` rounds of turns in an order drawn for each, and their end.
    ``rounds`` is by default as many as fit into ``PAIR_S``.

    Returns the pair and the facts that each process told of itself. Raises SideError if one fails, dies or hangs.
    """
    processes: dict[str, Process] = {}
    try:
        for role in shuffle.sample(list(sides), len(sides)):  # who starts first gets other memory
            processes[role] = sides[role].start(cell, "play")
        # they build at the same time; a turn is timed only when all of them wait
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
    wall, cpu = ({role: tuple(times[clock][role]) for role in _in_order(sides)} for clock in CLOCKS)
    return Pair(cell=name, number=number, wall=wall, cpu=cpu), facts


def _in_order(sides: Mapping[str, Side]) -> list[str]:
    """The roles in their order, others after them."""
    return sorted(sides, key=lambda role: (ROLES.index(role) if role in ROLES else len(ROLES), role))

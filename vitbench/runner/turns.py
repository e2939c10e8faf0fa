"""Several processes alive at once, of which one runs at a time: cells, and the reference.

Speed drifts with the machine, so that what is to be compared is measured within the same seconds: a cell gets a tenth
of a second, then the next one, and the reference in between. A cell's samples go with what the reference took just
before and just after them. ``reference.py`` says what the reference computes; this module only says whose turn it is.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from vitbench.executors.conversation import Conversation, Outcome, finish
from vitbench.executors.launcher import Launcher, Worker
from vitbench.executors.protocol import Measure, RunReference, Turn, Waiting

#: How long a turn is: long against a switch of processes (some 0.1 ms), short against the drift of a machine. A call
#: that takes longer is not cut.
TURN_S = 0.1
#: The reference has a turn when its last one is longer ago than this.
REFERENCE_EVERY_S = 0.15
#: How long the reference may take to load, which where workers are spawned is the import of torch, and for a turn.
_LOADING_LIMIT_S = 300.0
_TURN_LIMIT_S = 60.0


@dataclass(frozen=True)
class ReferenceTurn:
    """One turn of the reference: the seconds of each step, the CPU seconds of a step, and when it was over."""

    samples: tuple[float, ...]
    cpu_seconds: float
    ended: float

    def to_json(self) -> dict[str, Any]:
        """What a cell's process is told of it."""
        return {"samples": self.samples, "cpu_seconds": self.cpu_seconds}


class Player:
    """A process that takes turns: granted one, it runs until it waits for the next, or is over."""

    def __init__(self, worker: Worker, task: Measure | RunReference, *, timeout_s: float, device: str) -> None:
        self._conversation = Conversation(worker, task, timeout_s=timeout_s, device=device)
        self._worker = worker
        self._device = device
        self._since: ReferenceTurn | None = None  # the reference's first turn after this player's last one
        self._has_sampled_enough = False

    @property
    def over(self) -> bool:
        """Whether it wants no more turns: done, dead or late."""
        return self._conversation.over

    @property
    def spent_s(self) -> float:
        """Seconds for which it ran."""
        return self._conversation.spent_s

    @property
    def needs_reference(self) -> bool:
        """Whether it has its samples and lacks but what the reference takes after them."""
        return self._has_sampled_enough and self._since is None

    def prepare(self) -> None:
        """Build what is to be measured; nothing of this is timed."""
        self._note(self._conversation.go_on())

    def play(self, before: ReferenceTurn | None) -> None:
        """One turn, with the reference's last one."""
        turn = Turn(
            seconds=TURN_S,
            before=before.to_json() if before else None,
            after_last=self._since.to_json() if self._since else None,
        )
        self._since = None
        self._note(self._conversation.go_on(turn))

    def reference_ran(self, turn: ReferenceTurn) -> None:
        """Note the reference's turn for the samples before it."""
        if self._since is None:
            self._since = turn

    def _note(self, event: Waiting | None) -> None:
        self._has_sampled_enough = event is not None and event.last

    def finish(self) -> Outcome:
        """End the process; what came of its task."""
        try:
            return finish(self._worker, self._conversation.outcome, self._device)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._worker.alive():
            self._worker.kill()


class Reference:
    """The reference of one device and thread count, through a whole run; its process is replaced if it dies.

    Processes of one program differ by about 1 %, the reference's like any other's. So each process of a cell is paired
    with another one of the reference (``renew``), or their common error would be in no interval. Where the reference
    cannot run at all (a full device), ``problem`` says why, and the cells do without.
    """

    #: After so many deaths in a row it is given up, until it is renewed.
    _MOST_DEATHS = 3

    def __init__(self, launcher: Launcher, device: str, threads: int, *, cores: Sequence[int] | None = None) -> None:
        self.device = device
        self.threads = threads
        self.cores = cores
        self.problem = ""
        self._launcher = launcher
        self._player: Conversation | None = None
        self._deaths = 0

    def turn(self) -> ReferenceTurn | None:
        """One turn; None if there is no reference."""
        while not self.problem:
            if self._player is None:
                worker = self._launcher.start()
                self._player = Conversation(worker, self._task(), timeout_s=math.inf, device=self.device)
                if self._player.go_on(limit_s=_LOADING_LIMIT_S) is not None:  # it has loaded: an event without facts
                    self._player.go_on(Turn(seconds=TURN_S), limit_s=_TURN_LIMIT_S)  # its warm-up counts for nothing
            over = self._player.over
            event = None if over else self._player.go_on(Turn(seconds=TURN_S), limit_s=_TURN_LIMIT_S)
            if event is not None:
                self._deaths = 0
                return ReferenceTurn(event.samples, event.cpu_seconds, time.monotonic())
            self._bury()
        return None

    def opponent(self) -> ReferencePlayer:
        """A fresh process of the reference that takes turns as if it were a cell: what differs is noise."""
        return ReferencePlayer(self._launcher.start(), self._task(), device=self.device)

    def renew(self) -> None:
        """End the process, if there is one, and load another one; what went wrong before is forgotten."""
        self.close()
        self.problem, self._deaths = "", 0
        self.turn()

    def close(self) -> None:
        """End the process."""
        if self._player is not None:
            self._player.worker.end()
            self._player = None

    def _task(self) -> RunReference:
        return RunReference(
            device=self.device, threads=self.threads, cores=None if self.cores is None else tuple(self.cores)
        )

    def _bury(self) -> None:
        assert self._player is not None
        outcome = finish(self._player.worker, self._player.outcome, self.device)
        self._player = None
        self._deaths += 1
        if self._deaths >= self._MOST_DEATHS:
            self.problem = outcome.failure.detail if outcome.failure else "it ended by itself"


class ReferencePlayer(Player):
    """The reference as if it were a cell. ``samples`` and ``reference_samples`` are seconds of a step, one a turn."""

    def __init__(self, worker: Worker, task: RunReference, *, device: str) -> None:
        super().__init__(worker, task, timeout_s=math.inf, device=device)
        self.samples: list[float] = []
        self.reference_samples: list[float] = []
        self._waiting: list[tuple[float, ReferenceTurn]] = []  # samples that lack the reference's turn after them

    def prepare(self) -> None:
        for _ in range(2):  # loads, and warms up
            if not self.over:
                self._conversation.go_on(Turn(seconds=TURN_S), limit_s=_LOADING_LIMIT_S)

    def play(self, before: ReferenceTurn | None) -> None:
        event = self._conversation.go_on(Turn(seconds=TURN_S), limit_s=_TURN_LIMIT_S)
        if event is not None and before is not None:
            self._waiting.append((median(event.samples), before))

    def reference_ran(self, turn: ReferenceTurn) -> None:
        for sample, before in self._waiting:
            self.samples.append(sample)
            self.reference_samples.append((median(before.samples) * median(turn.samples)) ** 0.5)
        self._waiting.clear()


def take_turns(
    players: Sequence[Player],
    reference: Reference | None,
    *,
    opponent: ReferencePlayer | None = None,
    shuffle: random.Random | None = None,
) -> None:
    """Let ``players`` run, one at a time, until all are over; the reference has a turn whenever its last one is stale.

    The order is drawn anew in each round, so that no cell always follows the same one. ``opponent`` plays along until
    the others are over.
    """
    order = random.Random(0) if shuffle is None else shuffle
    everyone: list[Player] = [*players, *([opponent] if opponent else [])]
    for player in everyone:
        player.prepare()
    last = _reference_turn(reference, everyone)
    while any(not player.over for player in players):
        active = [player for player in everyone if not player.over]
        order.shuffle(active)
        for player in active:
            stale = last is None or time.monotonic() - last.ended > REFERENCE_EVERY_S
            if stale or player.needs_reference:
                last = _reference_turn(reference, everyone)
            player.play(last)
    _reference_turn(reference, everyone)


def _reference_turn(reference: Reference | None, players: Sequence[Player]) -> ReferenceTurn | None:
    turn = reference.turn() if reference else None
    if turn is not None:
        for player in players:
            player.reference_ran(turn)
    return turn

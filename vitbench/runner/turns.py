"""Several processes alive at once, of which one runs at a time: cells, and the reference.

Speed drifts with the machine. What is to be compared is therefore measured within the same seconds: a cell gets a tenth
of a second, then the next one, and the reference in between. A cell's samples go with what the reference took just
before and just after them. A turn that was not quiet is taken again (``quiet``).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from vitbench.devices.host.load import Use, UseWatch
from vitbench.executors.conversation import Conversation
from vitbench.executors.launcher import Launcher
from vitbench.executors.protocol import Measure, RunReference, Turn
from vitbench.metrics.support.timing import reference_seconds
from vitbench.runner.quiet import Judge, Patience, Verdict

#: How long a turn is at least: long against a switch of processes (some 0.1 ms), short against the drift of a machine.
#: A call that takes longer is not cut.
TURN_S = 0.1
#: A turn has so many calls at least: the first one meets caches that others emptied.
TURN_CALLS = 5
#: The reference has a turn when its last one is longer ago than this.
REFERENCE_EVERY_S = 0.15
#: How long the reference may take to load (where workers are spawned it imports torch), and for a turn.
_LOADING_LIMIT_S = 300.0
_TURN_LIMIT_S = 60.0


@dataclass(frozen=True)
class ReferenceTurn:
    """One turn of the reference: the seconds of each step, the CPU seconds of a step, when it ended, and what other
    programs used meanwhile.
    """

    samples: tuple[float, ...]
    cpu_seconds: float
    ended: float
    use: Use | None = None

    def to_worker(self) -> dict[str, Any]:
        """What a worker learns of it."""
        return {"samples": self.samples, "cpu_seconds": self.cpu_seconds}


@dataclass(frozen=True)
class _Taken:
    """A turn of a cell: the seconds of each call, what other programs used, and the reference's turn before it."""

    samples: tuple[float, ...]
    use: Use
    before: ReferenceTurn | None


@dataclass
class Participant(Conversation):
    """A process that takes turns: granted one, it runs until it waits for the next, or is over. After ``replays_s``
    seconds no turn is taken again.
    """

    replays_s: float = math.inf
    _since: ReferenceTurn | None = field(default=None, init=False)  # the reference's first turn after this one's last
    _has_sampled_enough: bool = field(default=False, init=False)
    _taken: _Taken | None = field(default=None, init=False)  # its last turn
    _series: int = field(default=0, init=False)  # of turns: a process may measure one thing after another

    @property
    def needs_reference(self) -> bool:
        """Whether it has its samples and lacks only the reference's turn after them."""
        return self._has_sampled_enough and self._since is None

    def prepare(self) -> None:
        """Build what is to be measured; nothing of this is timed."""
        self.go_on()

    def take_turn(self, before: ReferenceTurn | None, judge: Judge, *, replays: bool = True) -> Use | None:
        """Run for one turn; ``before`` is the reference's last one. Returns what other programs used meanwhile. Without
        ``replays`` its last turn counts whatever it was like.
        """
        verdict = self._verdict(judge)
        turn = Turn(
            seconds=TURN_S,
            calls=TURN_CALLS,
            # a slow cell must not run into its timeout because of turns that are taken again
            replay=replays
            and verdict is not None
            and not verdict.counts
            and self.spent_s < min(self.replays_s, self.timeout_s / 2),
            other_load=verdict.other_load if verdict else None,
            before=before.to_worker() if before else None,
            after_last=self._since.to_worker() if self._since else None,
        )
        self._since = self._taken = None
        watch = UseWatch(judge.cores)
        event = self.go_on(turn)
        self._has_sampled_enough = event is not None and event.last
        if event is None:
            return None
        if not event.samples:
            self._series += 1
            return None
        self._taken = _Taken(event.samples, watch.stop(event.turn_cpu_s), before)
        return self._taken.use

    def _verdict(self, judge: Judge) -> Verdict | None:
        """What its last turn was like, by the reference's turns around it."""
        if self._taken is None:
            return None
        assert isinstance(self.task, Measure)
        samples = self._taken.samples
        call_s = median(samples[1:] if len(samples) > 2 else samples)
        sides = [side for side in (self._taken.before, self._since) if side]
        uses = [self._taken.use, *(side.use for side in sides if side.use)]
        step_s = reference_seconds([side.samples for side in sides], call_s)
        return judge.judge((self.task.cell.id, self._series), call_s, step_s, uses)

    def reference_ran(self, turn: ReferenceTurn) -> None:
        """Note the reference's turn for the samples before it."""
        if self._since is None:
            self._since = turn


@dataclass
class Control(Participant):
    """The reference as if it were a cell: how much it differs from the reference is noise.

    ``samples`` and ``reference_samples`` are seconds of a step, one a turn.
    """

    timeout_s: float = math.inf
    samples: list[float] = field(default_factory=list)
    reference_samples: list[float] = field(default_factory=list)
    _waiting: list[tuple[float, ReferenceTurn]] = field(default_factory=list)  # samples without the turn after them

    def prepare(self) -> None:
        for _ in range(2):  # loads, and warms up
            if not self.over:
                self.go_on(Turn(seconds=TURN_S), limit_s=_LOADING_LIMIT_S)

    def take_turn(self, before: ReferenceTurn | None, judge: Judge, *, replays: bool = True) -> Use | None:
        event = self.go_on(Turn(seconds=TURN_S), limit_s=_TURN_LIMIT_S)
        if event is not None and before is not None:
            self._waiting.append((median(event.samples), before))
        return None

    def reference_ran(self, turn: ReferenceTurn) -> None:
        for sample, before in self._waiting:
            self.samples.append(sample)
            self.reference_samples.append((median(before.samples) * median(turn.samples)) ** 0.5)
        self._waiting.clear()


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
        self.problem = ""
        self._task = RunReference(device=device, threads=threads, cores=None if cores is None else tuple(cores))
        self._cores = cores
        self._launcher = launcher
        self._process: Conversation | None = None
        self._deaths = 0

    def turn(self) -> ReferenceTurn | None:
        """One turn; None if there is no reference."""
        while not self.problem:
            if self._process is None:
                self._process = Conversation(self._launcher.start(), self._task, math.inf, self.device)
                if self._process.go_on(limit_s=_LOADING_LIMIT_S) is not None:  # it has loaded: an event without samples
                    # the warm-up does not count
                    self._process.go_on(Turn(seconds=TURN_S), limit_s=_TURN_LIMIT_S)
            over = self._process.over
            watch = UseWatch(self._cores)
            event = None if over else self._process.go_on(Turn(seconds=TURN_S), limit_s=_TURN_LIMIT_S)
            if event is not None:
                self._deaths = 0
                use = watch.stop(event.turn_cpu_s)
                return ReferenceTurn(event.samples, event.cpu_seconds, time.monotonic(), use)
            failure = self._process.finish().failure
            self._process = None
            self._deaths += 1
            if self._deaths >= self._MOST_DEATHS:
                self.problem = failure.detail if failure else "it ended by itself"
        return None

    def start_control(self) -> Control:
        """A fresh process of the reference that takes turns as if it were a cell."""
        return Control(self._launcher.start(), self._task, device=self.device)

    def renew(self) -> None:
        """End the process, if there is one, and load another one; earlier problems are forgotten."""
        self.close()
        self.problem, self._deaths = "", 0
        self.turn()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.worker.end()
            self._process = None


def take_turns(
    participants: Sequence[Participant],
    reference: Reference | None,
    judge: Judge,
    *,
    patience: Patience | None = None,
    control: Control | None = None,
    order: random.Random | None = None,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Let ``participants`` run, one at a time, until all are over; the reference has a turn when its last one is stale.

    The order is drawn anew in each round, so that no cell always follows the same one. ``control`` takes part until the
    others are over. ``judge`` says which turns are taken again, ``patience`` waits while other programs disturb, and
    when it is over nothing is taken again. ``between`` is called between two turns, when nothing is timed.
    """
    shuffle = (order or random.Random(0)).shuffle
    patience = patience or Patience(0.0)
    everyone: list[Participant] = [*participants, *([control] if control else [])]
    for one in everyone:
        one.prepare()
    last = _reference_turn(reference, everyone)
    while any(not one.over for one in participants):
        active = [one for one in everyone if not one.over]
        shuffle(active)
        for one in active:
            between()
            patience.wait_if_disturbed(judge)
            stale = last is None or time.monotonic() - last.ended > REFERENCE_EVERY_S
            if stale or one.needs_reference:
                last = _reference_turn(reference, everyone)
                patience.note(last.use if last else None, judge)
            patience.note(one.take_turn(last, judge, replays=not patience.is_over), judge)
    _reference_turn(reference, everyone)


def _reference_turn(reference: Reference | None, participants: Sequence[Participant]) -> ReferenceTurn | None:
    turn = reference.turn() if reference else None
    if turn is not None:
        for one in participants:
            one.reference_ran(turn)
    return turn

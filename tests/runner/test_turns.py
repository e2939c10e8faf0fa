"""Processes that take turns: who runs when, what a death leaves, and what goes with the reference's turns."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from vitbench.core.records import Cell, Measurement
from vitbench.core.stats.relative import relative_samples
from vitbench.devices import Failure
from vitbench.devices.host.load import Use
from vitbench.executors import conversation
from vitbench.executors.conversation import Conversation
from vitbench.executors.launcher import Launcher, Worker, make_launcher
from vitbench.executors.protocol import Done, Event, Failed, Measure, RunReference, Task, Turn, Waiting
from vitbench.metrics import Budget
from vitbench.runner import turns
from vitbench.runner.quiet import Judge, Verdict
from vitbench.runner.turns import (
    REFERENCE_EVERY_S,
    TURN_CALLS,
    TURN_S,
    Control,
    Participant,
    Reference,
    ReferenceTurn,
    take_turns,
)

ROOT = Path(__file__).parents[2]
#: Does not mind what other programs do.
JUDGE = Judge(1, on_host=False)
SHORT = Budget(seconds=0.25, min_samples=60, max_samples=100_000)


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


# whose turn it is: scripted participants on a clock of their own


class ScriptedReference(Reference):
    """Takes a tenth of a second a turn, and notes when it ran; none of its turns if it ``is_missing``."""

    def __init__(self, log: list[str], clock: Clock, *, is_missing: bool = False) -> None:
        super().__init__(Launcher(), "cpu", 1)
        self.log = log
        self.clock = clock
        self.is_missing = is_missing

    def turn(self) -> ReferenceTurn | None:
        if self.is_missing:
            return None
        self.log.append("reference")
        self.clock.now += TURN_S
        return ReferenceTurn((float(self.log.count("reference")),), 1.0, self.clock.now)


class ScriptedParticipant(Participant):
    """Wants ``wanted`` turns of ``seconds`` each, then what the reference takes after them."""

    def __init__(self, name: str, log: list[str], clock: Clock, *, wanted: int, seconds: float = TURN_S) -> None:
        self.name = name
        self.log = log
        self.clock = clock
        self.wanted = wanted
        self.seconds = seconds
        self.befores: list[ReferenceTurn | None] = []
        self.afters: list[ReferenceTurn | None] = []
        self._since = None
        self._has_sampled_enough = False
        self._is_over = False

    @property
    def over(self) -> bool:
        return self._is_over

    def prepare(self) -> None:
        self.log.append(f"prepare {self.name}")

    def take_turn(self, before: ReferenceTurn | None, judge: Judge, *, replays: bool = True) -> Use | None:
        if self.befores:
            self.afters.append(self._since)
        self._since = None
        if len(self.befores) == self.wanted:
            self._is_over = True
            return None
        self.log.append(self.name)
        self.befores.append(before)
        self.clock.now += self.seconds
        self._has_sampled_enough = len(self.befores) == self.wanted
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)
    return clock


def rounds(log: Sequence[str]) -> list[list[str]]:
    """What was played between one turn of the reference and the next."""
    found: list[list[str]] = [[]]
    for name in log:
        if name == "reference":
            found.append([])
        elif not name.startswith("prepare"):
            found[-1].append(name)
    return found


def test_everyone_is_prepared_before_the_first_turn(clock: Clock) -> None:
    log: list[str] = []
    participants = [ScriptedParticipant(name, log, clock, wanted=2) for name in "abc"]
    take_turns(participants, ScriptedReference(log, clock), JUDGE)
    assert log[:3] == ["prepare a", "prepare b", "prepare c"]
    assert log[3] == log[-1] == "reference"


def test_everyone_gets_the_turns_that_it_wants_one_in_each_round(clock: Clock) -> None:
    log: list[str] = []
    participants = [
        ScriptedParticipant(name, log, clock, wanted=wanted) for name, wanted in (("a", 1), ("b", 5), ("c", 5))
    ]
    take_turns(participants, ScriptedReference(log, clock), JUDGE)
    played = [name for name in log if name in "abc"]
    assert sorted(played[:3]) == ["a", "b", "c"]
    assert [sorted(played[i : i + 2]) for i in range(3, 11, 2)] == [["b", "c"]] * 4


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_reference_runs_when_its_last_turn_is_stale(clock: Clock, count: int) -> None:
    """A turn is 0.1 s: two of them, and the last one is longer ago than 0.15 s."""
    assert TURN_S < REFERENCE_EVERY_S < 2 * TURN_S
    log: list[str] = []
    take_turns(
        [ScriptedParticipant(str(n), log, clock, wanted=20) for n in range(count)], ScriptedReference(log, clock), JUDGE
    )
    between = [len(names) for names in rounds(log)[1:]]
    assert max(between) == 2
    assert between[: 10 * count - 2 * count] == [2] * (8 * count)  # until some lack only what comes after them


def test_the_reference_runs_less_often_than_it_is_stale_only_after_long_calls(clock: Clock) -> None:
    log: list[str] = []
    take_turns(
        [ScriptedParticipant(name, log, clock, wanted=4, seconds=5.0) for name in "ab"],
        ScriptedReference(log, clock),
        JUDGE,
    )
    assert max(len(names) for names in rounds(log)) == 1


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("seconds", [0.01, TURN_S, 3.0])
def test_the_last_sample_of_each_has_the_reference_on_both_sides(clock: Clock, count: int, seconds: float) -> None:
    log: list[str] = []
    participants = [ScriptedParticipant(str(n), log, clock, wanted=n + 1, seconds=seconds) for n in range(count)]
    take_turns(participants, ScriptedReference(log, clock), JUDGE)
    for participant in participants:
        assert len(participant.befores) == len(participant.afters) == participant.wanted
        assert None not in participant.befores
        assert participant.afters[-1] is not None
        for before, after in zip(participant.befores, participant.afters, strict=True):
            assert before is not None
            assert after is None or after.samples[0] == before.samples[0] + 1  # the very next one


def test_between_turns_means_before_each_turn_and_never_during_one(clock: Clock) -> None:
    log: list[str] = []
    participants = [ScriptedParticipant(name, log, clock, wanted=3) for name in "ab"]
    take_turns(participants, ScriptedReference(log, clock), JUDGE, between=lambda: log.append("|"))
    turns_between = "".join(log[3:]).replace("reference", "").split("|")
    assert all(len(names) <= 1 for names in turns_between)
    assert "".join(turns_between).count("a") == 3


def test_without_a_reference_everyone_takes_turns(clock: Clock) -> None:
    log: list[str] = []
    participants = [ScriptedParticipant(name, log, clock, wanted=3) for name in "ab"]
    take_turns(participants, ScriptedReference(log, clock, is_missing=True), JUDGE)
    assert sorted(name for name in log if name in "ab") == ["a"] * 3 + ["b"] * 3
    assert participants[0].befores == participants[0].afters == [None] * 3


def test_the_order_is_drawn_anew_in_each_round_and_the_same_for_the_same_seed(clock: Clock) -> None:
    def order(seed: int) -> list[tuple[str, ...]]:
        log: list[str] = []
        participants = [ScriptedParticipant(name, log, clock, wanted=30) for name in "abcd"]
        take_turns(participants, ScriptedReference(log, clock), JUDGE, order=random.Random(seed))
        played = [name for name in log if name in "abcd"]
        return [tuple(played[i : i + 4]) for i in range(0, len(played), 4)]

    found = order(1)
    assert all(sorted(one) == list("abcd") for one in found)
    assert len(set(found)) > 10
    assert {one[0] for one in found} == set("abcd")
    assert order(1) == found != order(2)


# conversations with scripted workers


class ScriptedWorker(Worker):
    """Answers each message with the next of its ``answers`` (events); dies when there are none left."""

    def __init__(self, answers: Sequence[Event], on_message: Callable[[], None] = lambda: None) -> None:
        self.answers = deque(answers)
        self.on_message = on_message
        self.messages: list[Task | Turn] = []
        self.deadlines: list[float] = []
        self.killed = False

    def send(self, message: Task | Turn) -> None:
        self.messages.append(message)
        self.on_message()

    def next_event(self, deadline: float) -> Event | None:
        self.deadlines.append(deadline)
        return self.answers.popleft() if self.answers else None

    def alive(self) -> bool:
        return bool(self.answers) and not self.killed

    def wait(self, timeout: float) -> int | None:
        return -9

    def stderr_tail(self) -> str:
        return ""

    def close_input(self) -> None:
        """Nobody listens."""

    def kill(self) -> None:
        self.killed = True


class ScriptedLauncher(Launcher):
    def __init__(self, workers: Sequence[ScriptedWorker]) -> None:
        self.workers = deque(workers)

    def start(self) -> Worker:
        return self.workers.popleft()


REFERENCE = RunReference(device="cpu", threads=1)


def reference_events(*seconds: float) -> list[Event]:
    """A reference process: it has loaded, then takes so many seconds a step in each turn."""
    return [Waiting(), *(Waiting(samples=(s * 0.5, s, s * 9), cpu_seconds=s) for s in seconds)]


def test_time_spent_waiting_does_not_count_towards_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(conversation, "time", clock)

    def work() -> None:
        clock.now += 3.0

    worker = ScriptedWorker([Waiting()] * 4, work)
    talk = Conversation(worker, REFERENCE, timeout_s=10)
    for expected_left in (10, 7, 4, 1):
        clock.now += 1000.0
        begin = clock.now
        assert talk.go_on(Turn(seconds=0.1)) == Waiting()
        assert worker.deadlines[-1] - begin == pytest.approx(expected_left)
    assert talk.spent_s == pytest.approx(12.0)
    assert worker.messages == [REFERENCE] + [Turn(seconds=0.1)] * 3  # the task first, whatever the reply


def test_the_first_turn_of_a_process_of_the_reference_is_its_warmup_and_counts_for_nothing() -> None:
    worker = ScriptedWorker(reference_events(100.0, 1.0, 2.0))
    reference = Reference(ScriptedLauncher([worker]), "cpu", 1)
    first, second = reference.turn(), reference.turn()
    assert first is not None
    assert second is not None
    assert (first.samples, second.samples) == ((0.5, 1.0, 9.0), (1.0, 2.0, 18.0))
    assert worker.messages[0] == REFERENCE
    assert worker.messages[1:] == [Turn(seconds=TURN_S)] * 3


def test_a_reference_that_dies_is_replaced_and_after_three_deaths_given_up() -> None:
    workers = [ScriptedWorker(reference_events(9.0, 1.0)), ScriptedWorker([]), ScriptedWorker(reference_events(9.0))]
    workers.append(ScriptedWorker(reference_events(9.0, 2.0, 3.0)))
    reference = Reference(ScriptedLauncher(workers), "cpu", 1)
    assert reference.turn() is not None
    assert reference.turn() is None
    assert "SIGKILL" in reference.problem
    assert reference.turn() is None  # asks for no more processes
    assert [worker.killed for worker in workers] == [True, True, True, False]
    reference.renew()  # for other cells, it may well run
    turn = reference.turn()
    assert (reference.problem, turn and turn.cpu_seconds) == ("", 3.0)


def test_the_problem_of_a_reference_that_does_not_fit_is_its_devices_message() -> None:
    full = Failed(failure=Failure("oom", "out_of_memory", "no room"))
    reference = Reference(ScriptedLauncher([ScriptedWorker([full, Done(seconds=0.0)]) for _ in range(3)]), "cpu", 1)
    assert reference.turn() is None
    assert reference.problem == "no room"


def test_renew_pairs_the_next_processes_with_another_one_of_the_reference() -> None:
    workers = [ScriptedWorker(reference_events(9.0, 1.0, 1.0)), ScriptedWorker(reference_events(9.0, 5.0, 6.0))]
    reference = Reference(ScriptedLauncher(workers), "cpu", 1)
    reference.turn()
    reference.renew()
    turn = reference.turn()
    assert turn is not None
    assert turn.cpu_seconds == 6.0
    assert workers[0].killed


def test_the_next_turn_says_what_the_last_one_was_like() -> None:
    """The first turn of a series is judged by its second; another series has a fastest turn of its own."""
    cell = Cell(model="x", image_size=(8, 8), num_classes=4, batch_size=1, device="cpu", threads=1)
    task = Measure(process="time", metrics=("latency",), cell=cell, turns=True)
    answers = [Waiting(), *(Waiting(samples=(9.0, s, s)) for s in (1.0, 1.5, 1.0)), Waiting(), Waiting(samples=(8.0,))]
    worker = ScriptedWorker([*answers, Done(seconds=1.0)])
    participant = Participant(worker, task, timeout_s=1e9)
    participant.prepare()
    judge = Judge(1, on_host=False)
    while not participant.over:
        participant.take_turn(turn_of(1.0), judge)
        participant.reference_ran(turn_of(1.0))
    granted = [message for message in worker.messages if isinstance(message, Turn)]
    assert {(turn.seconds, turn.calls) for turn in granted} == {(TURN_S, TURN_CALLS)}
    assert [turn.replay for turn in granted] == [False, False, True, False, False, False]
    assert [turn.other_load is None for turn in granted] == [True, False, False, False, True, False]
    assert granted[1].before == granted[1].after_last == {"samples": (1.0,), "cpu_seconds": 1.0}


@pytest.mark.parametrize("limits", [{"timeout_s": 13}, {"timeout_s": 1e9, "replays_s": 6.5}])
def test_a_process_near_its_limit_takes_no_turn_again(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, float]
) -> None:
    clock = Clock()
    monkeypatch.setattr(conversation, "time", clock)

    def work() -> None:
        clock.now += 2.0

    cell = Cell(model="x", image_size=(8, 8), num_classes=4, batch_size=1, device="cpu", threads=1)
    task = Measure(process="time", metrics=("latency",), cell=cell, turns=True)
    worker = ScriptedWorker([Waiting(), *(Waiting(samples=(s,)) for s in (1.0, 2.0, 2.0, 2.0, 2.0))], work)
    participant = Participant(worker, task, **limits)
    participant.prepare()
    judge = Judge(1, on_host=False)
    for _ in range(5):
        participant.take_turn(None, judge)
    assert [turn.replay for turn in worker.messages if isinstance(turn, Turn)] == [False, False, True, False, False]


def control_of(*seconds: float) -> Control:
    participant = Control(ScriptedWorker(reference_events(*seconds)), REFERENCE, device="cpu")
    participant.prepare()
    return participant


def turn_of(seconds: float) -> ReferenceTurn:
    return ReferenceTurn((seconds,), seconds, 0.0)


def test_the_control_pairs_its_samples_with_both_sides() -> None:
    participant = control_of(99.0, 10.0, 20.0)
    participant.take_turn(turn_of(1.0), JUDGE)
    participant.reference_ran(turn_of(4.0))
    participant.reference_ran(turn_of(100.0))  # not the first one after it
    participant.take_turn(turn_of(100.0), JUDGE)
    participant.reference_ran(turn_of(1.0))
    assert participant.samples == [10.0, 20.0]
    assert participant.reference_samples == pytest.approx([2.0, 10.0])


def test_two_turns_of_the_control_within_one_pause_of_the_reference_pair_with_the_same_sides() -> None:
    """It happens when the others have short turns: each sample keeps its own pair."""
    participant = control_of(99.0, 10.0, 20.0, 30.0)
    participant.take_turn(turn_of(1.0), JUDGE)
    participant.take_turn(turn_of(1.0), JUDGE)
    participant.reference_ran(turn_of(4.0))
    participant.take_turn(turn_of(9.0), JUDGE)
    participant.reference_ran(turn_of(9.0))
    assert participant.samples == [10.0, 20.0, 30.0]
    assert participant.reference_samples == pytest.approx([2.0, 2.0, 9.0])


def test_a_control_that_hangs_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    control = control_of(1.0, 2.0)
    limits = []
    monkeypatch.setattr(control, "go_on", lambda request, limit_s=math.inf: limits.append(limit_s))
    control.take_turn(turn_of(1.0), JUDGE)
    assert limits == [turns._TURN_LIMIT_S]


def test_samples_of_the_reference_against_nothing_are_none() -> None:
    participant = control_of(99.0, 10.0, 20.0)
    participant.take_turn(None, JUDGE)
    participant.reference_ran(turn_of(4.0))
    participant.take_turn(turn_of(4.0), JUDGE)
    assert participant.reference_samples == []
    participant.take_turn(turn_of(4.0), JUDGE)  # it dies
    assert participant.over
    participant.reference_ran(turn_of(4.0))
    assert len(participant.samples) == len(participant.reference_samples) == 1


# real workers


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file into which ``notes_its_calls`` writes."""
    return tmp_path_factory.mktemp("turns") / "calls.txt"


@pytest.fixture(scope="module")
def launcher(calls: Path) -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("CALLS", str(calls))
        with make_launcher(allow_import=True) as launcher:
            launcher.wait_until_ready()
            yield launcher


class LoggedReference(Reference):
    """Notes begin and end of each of its turns; its process is killed before each of the first ``deaths`` ones."""

    def __init__(self, launcher: Launcher, *, deaths: int = 0) -> None:
        super().__init__(launcher, "cpu", 1)
        self.deaths = deaths
        self.intervals: list[tuple[float, float]] = []

    def turn(self) -> ReferenceTurn | None:
        if self.deaths and self._process is not None:
            self._process.worker.kill()
            self._process.worker.wait(10)
            self.deaths -= 1
        begin = time.monotonic()
        try:
            return super().turn()
        finally:
            self.intervals.append((begin, time.monotonic()))


def participant_of(
    launcher: Launcher, name: str, *, classes: int = 4, timeout_s: float = 60, cores: tuple[int, ...] | None = None
) -> Participant:
    cell = Cell(
        model=f"module:tests.failing_models:{name}",
        image_size=(8, 8),
        num_classes=classes,
        batch_size=1,
        device="cpu",
        threads=1,
    )
    task = Measure(process="time", metrics=("latency", "throughput"), cell=cell, budget=SHORT, cores=cores, turns=True)
    return Participant(launcher.start(), task, timeout_s=timeout_s, device="cpu")


def latency_of(participant: Participant) -> Measurement:
    outcome = participant.finish()
    assert outcome.failure is None, outcome.failure
    (found,) = (one for one in outcome.measurements if one.metric == "latency")
    return found


def test_never_two_run_at_once(launcher: Launcher, calls: Path) -> None:
    reference = LoggedReference(launcher)
    control = reference.start_control()
    participants = [participant_of(launcher, "notes_its_calls", classes=classes) for classes in (2, 3, 4)]
    take_turns(participants, reference, JUDGE, control=control)
    for participant in participants:
        latency_of(participant)
    reference.close()
    control.worker.kill()
    lines = [line.split() for line in calls.read_text().splitlines()]
    assert {line[0] for line in lines} == {"2", "3", "4"}
    spans = [(float(begin), float(end)) for _, begin, end in lines] + reference.intervals
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    owners = [line[0] for line in sorted(lines, key=lambda line: float(line[1]))]
    changes = sum(one != other for one, other in itertools.pairwise(owners))
    assert changes > 3  # they took turns, rather than running one after the other
    assert len(control.samples) == len(control.reference_samples) > 3


def test_a_death_and_a_hang_in_the_middle_leave_the_others_whole(launcher: Launcher) -> None:
    reference = LoggedReference(launcher)
    names = ("works_slowly", "kills_itself_later", "hangs_later", "works_slowly")
    participants = [participant_of(launcher, name, timeout_s=2 if name == "hangs_later" else 60) for name in names]
    take_turns(participants, reference, JUDGE)
    reference.close()
    killed, late = participants[1].finish(), participants[2].finish()
    assert killed.failure is not None
    assert late.failure is not None
    assert (killed.failure.status, killed.signal) == ("killed", 9)
    assert late.failure.status == "timeout"
    assert "longer than 2 s" in late.failure.detail
    for participant in (participants[0], participants[3]):
        latency = latency_of(participant)
        (relative,) = relative_samples(latency.samples, latency.turns, latency.reference_samples)
        assert len(relative) >= 30
        assert sum(latency.samples[0][1:]) > 0.5 * SHORT.seconds
        assert len(latency.turns[0]) >= 3
    assert not reference.problem


def test_the_time_of_a_process_is_that_of_its_own_turns(launcher: Launcher) -> None:
    reference = LoggedReference(launcher)
    begin = time.monotonic()
    participants = [participant_of(launcher, "works_slowly") for _ in range(4)]
    take_turns(participants, reference, JUDGE)
    wall = time.monotonic() - begin
    reference.close()
    for participant in participants:
        latency_of(participant)
        assert SHORT.seconds <= participant.spent_s < wall / 2
    assert sum(participant.spent_s for participant in participants) < wall


def test_a_reference_that_dies_once_is_replaced_and_every_sample_keeps_its_relative(launcher: Launcher) -> None:
    reference = LoggedReference(launcher, deaths=2)
    participant = participant_of(launcher, "works_slowly")
    take_turns([participant], reference, JUDGE)
    reference.close()
    assert reference.deaths == 0
    assert not reference.problem
    latency = latency_of(participant)
    assert len(latency.reference_samples[0]) == len(latency.turns[0])
    assert min(latency.reference_samples[0]) > 0


class Disturbed(Judge):
    """Finds every turn disturbed by half a core, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked: list[tuple[float, float | None]] = []

    def judge(self, cell: Hashable, call_s: float, reference_s: float | None, uses: Sequence[Use]) -> Verdict:
        self.asked.append((call_s, reference_s))
        assert len(uses) >= 2  # of the turn itself, and of the reference beside it
        return Verdict(0.5, disturbed=True, slow=False)


@pytest.mark.integration
def test_disturbed_turns_are_taken_again_until_too_much_is_spent(launcher: Launcher) -> None:
    found = {}
    for name, judge in (("quiet", JUDGE), ("disturbed", Disturbed())):
        reference = LoggedReference(launcher)
        participant = participant_of(launcher, "works_slowly")
        take_turns([participant], reference, judge)
        reference.close()
        found[name] = latency_of(participant)
    disturbed = found["disturbed"]
    assert sum(disturbed.samples[0]) >= 1.2 * SHORT.seconds  # of which the timer itself takes a little
    assert set(disturbed.other_load[0]) == {0.5}
    assert len(disturbed.other_load[0]) == len(disturbed.turns[0]) == len(disturbed.reference_samples[0])
    assert len(found["quiet"].other_load[0]) == len(found["quiet"].turns[0])
    assert isinstance(judge, Disturbed)
    assert len(judge.asked) == len(disturbed.turns[0])
    assert all(reference_s is not None and min(call_s, reference_s) > 0 for call_s, reference_s in judge.asked)


class DeadlyLauncher(Launcher):
    """Its workers are killed as soon as they have started."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.started: list[Worker] = []

    def start(self) -> Worker:
        worker = self.launcher.start()
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(10)
        self.started.append(worker)
        return worker


def test_a_reference_that_cannot_live_is_given_up_and_cells_do_without(launcher: Launcher) -> None:
    deadly = DeadlyLauncher(launcher)
    reference = Reference(deadly, "cpu", 1)
    participants = [participant_of(launcher, "works_slowly") for _ in range(2)]
    take_turns(participants, reference, JUDGE)
    assert "SIGKILL" in reference.problem
    assert len(deadly.started) == 3
    for participant in participants:
        latency = latency_of(participant)
        assert latency.reference_samples == ()
        assert sum(latency.turns[0]) == len(latency.samples[0]) >= 30


def test_processes_end_when_their_turns_do(launcher: Launcher) -> None:
    """A run that is given up closes the pipe: a process that waits for its turn must not stay."""
    participant = participant_of(launcher, "works_slowly")
    participant.prepare()
    worker = participant.worker
    assert worker.alive()
    worker.close_input()
    assert worker.wait(20) is not None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell a process's cores")
def test_cells_and_reference_are_bound_to_the_cores_that_are_asked_for(launcher: Launcher) -> None:
    core = max(os.sched_getaffinity(0))
    reference = Reference(launcher, "cpu", 1, cores=(core,))
    participant = participant_of(launcher, "works", cores=(core,))
    participant.prepare()
    assert reference.turn() is not None
    assert reference._process is not None
    for worker in (participant.worker, reference._process.worker):
        assert psutil.Process(worker.pid).cpu_affinity() == [core]
    participant.worker.kill()
    reference.close()

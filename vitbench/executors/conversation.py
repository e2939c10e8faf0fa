"""The runner's end of the pipe: give a worker a task, collect its events, turn its death or silence into a status."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vitbench.core.errors import UsageError, WorkerError
from vitbench.core.records import Measurement, Status
from vitbench.core.registry import DEVICES
from vitbench.devices import Device, Failure, split_name
from vitbench.devices.failures import OUT_OF_MEMORY
from vitbench.devices.host.memory import oom_kill_count
from vitbench.executors import protocol, stacks
from vitbench.executors.launcher import Launcher, Worker, WorkerTimeoutError
from vitbench.executors.protocol import Task, TrainingStep, Turn, Waiting

#: How many lines of a failed worker's stderr a record keeps.
STDERR_LINES = 20
#: Windows' exit codes from here on are errors (NTSTATUS); STATUS_NO_MEMORY and STATUS_COMMITMENT_LIMIT are two.
_NT_ERROR = 0xC0000000
_NT_NO_MEMORY = (0xC0000017, 0xC000012D)
#: Signals that a process does not cause itself.
_SENT_BY_OTHERS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGUSR1", "SIGUSR2")
#: Signals (ILL, ABRT, BUS, FPE, KILL, SEGV, TERM) that a shell reports as 128 plus their number.
_CRASHES_THROUGH_A_SHELL = (4, 6, 7, 8, 9, 11, 15)


@dataclass
class Outcome:
    """The result of a task."""

    measurements: list[Measurement] = field(default_factory=list)
    answers: list[protocol.Answer] = field(default_factory=list)
    failure: Failure | None = None
    signal: int | None = None
    stderr_tail: str = ""
    note: str = ""
    seconds: float = 0.0


@dataclass
class Conversation:
    """A worker that carries out one task, in pieces where it takes turns with others.

    Between two pieces the worker waits and does nothing; ``timeout_s`` bounds the sum of the pieces.
    """

    worker: Worker
    task: Task
    timeout_s: float
    device: str = "cpu"
    on_progress: Callable[[TrainingStep], None] | None = None
    outcome: Outcome = field(default_factory=Outcome)
    over: bool = False
    started: bool = False
    spent_s: float = 0.0
    kills_before: int | None = field(default_factory=oom_kill_count)  # it may be killed while it waits, too

    def go_on(self, turn: Turn | None = None, *, limit_s: float = math.inf) -> Waiting | None:
        """Send the task, or later a ``turn``, and listen until the worker waits for its next turn.

        Returns None once it is ``over``: done, dead, or late (then it is killed). ``limit_s`` bounds this piece.
        """
        begin = time.monotonic()
        self.worker.send(turn if self.started and turn is not None else self.task)
        self.started = True
        try:
            left = max(self.timeout_s - self.spent_s, 0.0)
            return self._listen(begin + min(left, limit_s), limit_s if limit_s < left else self.timeout_s)
        finally:
            self.spent_s += time.monotonic() - begin

    def finish(self) -> Outcome:
        """End the worker, which serves no other task (see ``finish``)."""
        return finish(self.worker, self.outcome, self.device)

    def _listen(self, deadline: float, limit_s: float) -> Waiting | None:
        while True:
            try:
                event = self.worker.next_event(deadline)
            except WorkerTimeoutError:
                self._end_late_worker(limit_s)
                break
            match event:
                case Waiting():
                    return event
                case protocol.MeasurementTaken():
                    self.outcome.measurements.append(event.measurement)
                case protocol.Answer():
                    self.outcome.answers.append(event)
                case protocol.Failed():
                    self.outcome.failure = event.failure
                case TrainingStep() if self.on_progress is not None:
                    self.on_progress(event)
                case protocol.Done():
                    self.outcome.seconds = event.seconds
                    break
                case None:
                    self._note_death()
                    break
        self.over = True
        return None

    def _note_death(self) -> None:
        code, text, outcome = self.worker.wait(10), self.worker.stderr_tail(), self.outcome
        outcome.stderr_tail = stacks.shorten(text, STDERR_LINES)
        if outcome.failure is None:  # else it reported its failure and then died
            kills = oom_kill_count()
            evidence = kills is not None and self.kills_before is not None and kills > self.kills_before
            outcome.failure, outcome.signal = classify_death(code, text, self.device, memory_evidence=evidence)

    def _end_late_worker(self, limit_s: float) -> None:
        call = stacks.last_call(self.worker.ask_for_stack())
        where = f"last in {call}" if call else "where it hung is not known: it printed no stack when asked"
        self.worker.kill()
        self.worker.wait(10)
        what = self.task.process if isinstance(self.task, protocol.Measure) else "worker"
        detail = f"the {what} process took longer than {limit_s:g} s; {where}"
        self.outcome.failure = Failure("timeout", "timeout", detail)


def converse(worker: Worker, task: Task, *, timeout_s: float, device: str = "cpu") -> Outcome:
    """Give ``worker`` a task that takes no turns and listen until it is done, dead or late (then it is killed)."""
    conversation = Conversation(worker, task, timeout_s, device)
    conversation.go_on()
    return conversation.outcome


def ask(launcher: Launcher, question: Task, timeout_s: float = 600.0) -> list[Mapping[str, Any]]:
    """The answers of a fresh worker. Raises UsageError for one that reports wrong usage, WorkerError without any."""
    worker = launcher.start()
    outcome = finish(worker, converse(worker, question, timeout_s=timeout_s), "cpu")
    if outcome.failure is not None or not outcome.answers:
        last = outcome.stderr_tail.splitlines()
        why = outcome.failure.detail if outcome.failure else "it sent nothing"
        raise WorkerError(f"A worker could not answer {question}: {why}{': ' + last[-1] if last else ''}")
    for answer in outcome.answers:
        if answer.error:
            raise UsageError(answer.error)
    return [answer.values for answer in outcome.answers]


def finish(worker: Worker, outcome: Outcome, device: str) -> Outcome:
    """End a worker that serves no other task; its measurements fail if it printed that its device failed."""
    worker.end()
    text = worker.stderr_tail()
    cause, line = _device_class(device).stderr_failure(text)
    if cause and outcome.failure is None:
        status: Status = "oom" if cause in OUT_OF_MEMORY else "error"
        outcome.failure = Failure(status, cause, f"the worker finished, but printed that its device failed: {line}")
        # kept, but under that status: the work that they measure may never have been done
        outcome.measurements = [
            replace(one, status=status, detail=outcome.failure.detail) if one.status == "ok" else one
            for one in outcome.measurements
        ]
    outcome.note = _device_class(device).stderr_note(text)
    if outcome.failure is not None:
        outcome.stderr_tail = stacks.shorten(text, STDERR_LINES)
    return outcome


def classify_death(code: int | None, stderr: str, device: str, *, memory_evidence: bool) -> tuple[Failure, int | None]:
    """The status of a worker that died, and the signal that ended it.

    ``memory_evidence``: whether the kernel counted a kill for memory meanwhile. A SIGKILL without it is ``killed``
    with the cause ``probable_oom``: somebody else may have sent it.
    """
    if code is not None and code >= _NT_ERROR:  # an access violation on Windows, and the like
        if code in _NT_NO_MEMORY:
            return Failure("oom", "out_of_memory", f"ended by the system for lack of memory ({code:#x})"), None
        return Failure("killed", "crash", f"the worker crashed with {code:#x}"), None
    number = _signal_of(code)
    explained = _device_class(device).explain_death(stderr, by_signal=number is not None)
    why = f": {explained.detail}" if explained is not None and explained.detail else ""
    out_of_memory = explained.cause if explained is not None and explained.status == "oom" else None
    if number is None:
        if out_of_memory is not None:
            detail = f"ended by itself with exit code {code} because memory could not be allocated{why}"
            return Failure("oom", out_of_memory, detail), None
        return Failure("error", "exit", f"the worker ended by itself with exit code {code} before it was done"), None
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    if number == getattr(signal, "SIGKILL", 9):
        if memory_evidence:
            detail = "killed by the kernel for memory (the cgroup's oom_kill count rose)"
            return Failure("oom", "oom_kill", detail), number
        return Failure("killed", "probable_oom", f"killed by {name}: probably for memory, without evidence"), number
    if out_of_memory is not None:
        return Failure("oom", out_of_memory, f"aborted ({name}) because memory could not be allocated{why}"), number
    if explained is not None:
        return Failure(explained.status, explained.cause, f"the worker crashed with {name}{why}"), number
    if name in _SENT_BY_OTHERS:
        return Failure("killed", "terminated", f"ended by {name}, which somebody else sent"), number
    return Failure("killed", "crash", f"the worker crashed with {name}"), number


def _signal_of(code: int | None) -> int | None:
    """The signal in an exit code; None for a process that ended by itself. A shell in between adds 128."""
    if code is None:
        return None
    if code < 0:
        return -code
    return code - 128 if hasattr(signal, "SIGKILL") and code - 128 in _CRASHES_THROUGH_A_SHELL else None


def _device_class(device: str) -> type[Device]:
    kind: type[Device] = DEVICES.get(split_name(device)[0])
    return kind

"""One task, one worker: what it measured, or how it failed. A worker's death gets its status here and nowhere else."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitbench.devices import Device, Failure, split_name
from vitbench.devices.cpu import oom_kill_count
from vitbench.processes import Worker, WorkerTimeoutError
from vitbench.records import Measurement, measurement_from_dict
from vitbench.registry import DEVICES

#: How many lines of a failed worker's stderr a record keeps.
STDERR_LINES = 20


@dataclass
class Outcome:
    """What came of a task."""

    measurements: list[Measurement] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    failure: Failure | None = None
    signal: int | None = None
    stderr_tail: str = ""
    note: str = ""
    seconds: float = 0.0


def converse(
    worker: Worker,
    task: Mapping[str, Any],
    *,
    timeout_s: float,
    device: str = "cpu",
    on_progress: Callable[[Mapping[str, Any]], None] | None = None,
) -> Outcome:
    """Give ``worker`` a task and listen until it is done, dead or late (then it is killed)."""
    outcome = Outcome()
    kills_before = oom_kill_count()
    deadline = time.monotonic() + timeout_s
    worker.send(task)
    while True:
        try:
            event = worker.next_event(deadline)
        except WorkerTimeoutError:
            worker.kill()
            worker.wait(10)
            detail = f"the {task.get('process', task['kind'])} process took longer than {timeout_s:g} s"
            outcome.failure = Failure("timeout", "timeout", detail)
            break
        if event is None:
            _worker_died(worker, outcome, device, kills_before)
            break
        kind = event.pop("event")
        if kind == "measurement":
            outcome.measurements.append(measurement_from_dict(event["measurement"]))
        elif kind == "answer":
            outcome.answers.append(event)
        elif kind == "failure":
            outcome.failure = Failure(event["status"], event["cause"], event["detail"])
        elif kind == "progress" and on_progress is not None:
            on_progress(event)
        elif kind == "done":
            outcome.seconds = event["seconds"]
            break
    return outcome


def finish(worker: Worker, outcome: Outcome, device: str) -> Outcome:
    """End a worker that serves no other task, and read in its last words whether its figures can be trusted."""
    worker.end()
    text = worker.stderr_tail()
    cause = _device_class(device).stderr_cause(text)
    if cause and outcome.failure is None:
        outcome.failure = Failure("error", cause, "the worker finished, but printed that its device failed")
    outcome.note = _device_class(device).stderr_note(text)
    if outcome.failure is not None:
        outcome.stderr_tail = last_lines(text)
    return outcome


def classify_death(code: int | None, stderr: str, device: str, *, memory_evidence: bool) -> tuple[Failure, int | None]:
    """The status of a worker that died, and the signal that ended it.

    ``memory_evidence``: whether the kernel counted a kill for memory meanwhile. A SIGKILL without it is ``killed``
    with the cause ``probable_oom``: somebody else may have sent it.
    """
    if code is None or code >= 0:
        return Failure("error", "exit", f"the worker ended by itself with exit code {code} before it was done"), None
    number = -code
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    if number == getattr(signal, "SIGKILL", 9):
        if memory_evidence:
            return Failure(
                "oom", "oom_kill", "killed by the kernel for memory (the cgroup's oom_kill count rose)"
            ), number
        return Failure("killed", "probable_oom", f"killed by {name}: probably for memory, without evidence"), number
    cause = _device_class(device).stderr_cause(stderr)
    if cause == "out_of_memory":
        return Failure("oom", cause, f"aborted ({name}) because memory could not be had"), number
    return Failure("killed", cause or "crash", f"the worker crashed with {name}"), number


def last_lines(text: str) -> str:
    """The end of a worker's stderr as a record keeps it."""
    return "\n".join(text.splitlines()[-STDERR_LINES:])


def _worker_died(worker: Worker, outcome: Outcome, device: str, kills_before: int | None) -> None:
    code = worker.wait(10)
    text = worker.stderr_tail()
    outcome.stderr_tail = last_lines(text)
    if outcome.failure is None:  # else it failed, said so, and then died
        kills = oom_kill_count()
        evidence = kills is not None and kills_before is not None and kills > kills_before
        outcome.failure, outcome.signal = classify_death(code, text, device, memory_evidence=evidence)


def _device_class(device: str) -> type[Device]:
    kind: type[Device] = DEVICES.get(split_name(device)[0])
    return kind

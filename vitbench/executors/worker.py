"""Measure in this process: tasks come in on stdin, events go out on stdout (see ``protocol``).

A worker is a program (``python -m vitbench.executors.worker``) or a fork of the server that has its libraries loaded
(``fork_server``); it cannot tell which. What a model prints goes to stderr, so that it never mixes with events.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vitbench.core.errors import Unsupported
from vitbench.core.records import Cell, measurement_from_dict
from vitbench.devices import open_device
from vitbench.executors import lifeline, stacks
from vitbench.executors.cell_trainer import CellTrainer
from vitbench.executors.faults import load_injector
from vitbench.executors.protocol import (
    Answer,
    CountExact,
    Done,
    Emit,
    Event,
    Failed,
    Measure,
    MeasurementTaken,
    RunReference,
    Task,
    Turn,
    Waiting,
    read_task,
    read_turn,
    to_line,
)
from vitbench.executors.questions import ANSWERS, answer
from vitbench.metrics import Subject
from vitbench.metrics.support.in_process import failure_of, library_claims, make_subject, prepare_process, run_metric

#: The argument that lets workers import the builders that ``module:`` names ask for.
ALLOW_IMPORT = "--allow-import"

#: How long idle threads of OpenMP may spin: GNU's some 3 ms (libgomp, GOMP_SPINCOUNT unset), LLVM's and Intel's as
#: KMP_BLOCKTIME says, which is set to 1 ms for workers that are spawned.
_SPINNING_S = 0.006


def main() -> None:
    """Carry out tasks until stdin ends, or until one fails so that this process can no longer be trusted."""
    stacks.print_stack_when_asked()
    lifeline.end_with_runner()
    # events keep the real stdout; everything that is printed from now on lands on stderr
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: Event) -> None:
        stream.write(to_line(event))
        stream.flush()

    while line := sys.stdin.readline():  # not an iterator, which would read ahead: turns are taken through it as well
        begin = time.perf_counter()
        usable = handle(read_task(line), emit)
        emit(Done(seconds=time.perf_counter() - begin))
        if not usable:
            return


def handle(task: Task, emit: Emit) -> bool:
    """Carry out one task; returns whether this process may take another one."""
    return _HANDLERS[type(task)](task, emit)


def measure(task: Measure, emit: Emit) -> bool:
    """Measure one cell's metrics that share a process; emits each measurement as soon as it is complete.

    An exception of the model becomes a ``Failed`` event and ends the worker: after an out-of-memory error (or a lost
    device) nothing that this process measures can be trusted.
    """
    cell = task.cell
    try:
        bind_to_cores(task.cores)
        allocator, memory_cap = prepare_process(cell, task.process)
        subject = subject_of(task, emit)
        subject.allocator, subject.memory_cap = allocator, memory_cap
        if (injector := load_injector()) is not None:
            injector.in_worker(cell, task.process, subject)
        for name in task.metrics:
            for measurement in run_metric(name, subject):
                # a metric may be anybody's: a measurement that cannot be read again is this cell's failure
                measurement_from_dict(asdict(measurement))
                emit(MeasurementTaken(measurement=measurement))
    except Exception as error:  # the edge: every failure of a model becomes a status
        return _report_failure(error, cell, emit) and task.process == "static"
    return True


def count_exact(task: CountExact, emit: Emit) -> bool:
    """What a baseline file holds of one model, an answer each for the model and its runs; a failure as for a cell."""
    from vitbench.analysis.exact_counts import count_model

    try:
        prepare_process(task.cell, "static")
        for values in count_model(make_subject(task.cell), task.runs, bound=task.bound):
            emit(Answer(values=values))
    except Exception as error:  # the edge, as for a cell
        return _report_failure(error, task.cell, emit)
    return True


def run_reference(task: RunReference, emit: Emit) -> bool:
    """Run the reference for as many seconds as each turn has, until there are no more turns."""
    import torch

    from vitbench.metrics.support.reference import make_reference
    from vitbench.metrics.support.timing import step_durations

    try:
        bind_to_cores(task.cores)
        torch.set_num_threads(task.threads)
        device = open_device(task.device)
        step = make_reference(device.torch_device)
        gc.collect()
        gc.freeze()  # each turn collects: nothing that is here already need be looked at again
        emit(Waiting())
        while (turn := _next_turn()) is not None:
            durations = step_durations(step, device, turn.seconds)
            _let_threads_sleep(task.threads)
            emit(Waiting(**durations))
    except Exception as error:  # the edge, as for a cell
        emit(Failed(failure=open_device(task.device).classify(error)))
        traceback.print_exc()
    return False


_HANDLERS: dict[type, Callable[[Any, Emit], bool]] = {
    **dict.fromkeys(ANSWERS, answer),
    CountExact: count_exact,
    RunReference: run_reference,
    Measure: measure,
}


class PipeTurns:
    """Turns as the runner grants them through this process's input (metrics know no runner)."""

    def __init__(self, emit: Emit, cell: Cell, cores: Sequence[int] | None) -> None:
        from vitbench.metrics.support.reference import VERSION, batch_of

        self._emit = emit
        self._threads = cell.threads
        batch = batch_of(open_device(cell.device).torch_device)
        count = f"batch {batch}, {cell.threads} thread{'s' if cell.threads > 1 else ''}"
        bound = f"bound to cores {', '.join(map(str, cores))}" if cores else ""
        both = f", both {bound}" if bound else ""
        self.reference_name = f"reference {VERSION} (vitbench.reference, fp32, {count}{both})"
        self.method = f"in turns with {self.reference_name}"
        self.method_without_reference = "without the reference" + (f", {bound}" if bound else "")

    def wait(self, *, last: bool = False) -> Mapping[str, Any]:
        """See metrics.subject.Turns; ends the process if there will be no more turns."""
        _let_threads_sleep(self._threads)
        self._emit(Waiting(last=last))
        turn = _next_turn()
        if turn is None:
            raise SystemExit
        return vars(turn)


def bind_to_cores(cores: Sequence[int] | None) -> None:
    """Let this process run on these logical cores only. Raises Unsupported where the system cannot."""
    import psutil

    if cores is None:
        return
    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):
        raise Unsupported("this system binds no process to cores: leave out cores")
    process.cpu_affinity(list(cores))


def subject_of(task: Measure, emit: Emit) -> Subject:
    """The cell of a task as its metrics see it, with what its kind of process adds."""
    cell = task.cell
    subject = make_subject(cell, task.weights)
    subject.budget = task.budget
    subject.rotates = task.process == "time"
    if "published" in task.metrics:
        subject.claims = library_claims(cell)
    if task.turns:
        subject.turns = PipeTurns(emit, cell, task.cores)
    if task.training is not None:
        subject.trainer = CellTrainer(subject, task.training, emit, task.weights.path if task.weights else None)
    return subject


def _report_failure(error: Exception, cell: Cell, emit: Emit) -> bool:
    """Emit what an exception means; returns whether this process may go on to count."""
    failure = failure_of(error, cell)
    emit(Failed(failure=failure))
    traceback.print_exception(error)
    return failure.status != "oom" and failure.cause != "device_lost"


def _let_threads_sleep(threads: int) -> None:
    """Wait until OpenMP's threads have stopped spinning, which they do for some milliseconds after their last work: the
    next turn is another process's.
    """
    if threads > 1:
        time.sleep(_SPINNING_S)


def _next_turn() -> Turn | None:
    line = sys.stdin.readline()
    return read_turn(line) if line else None


if __name__ == "__main__":
    import faulthandler

    faulthandler.enable()  # a crash in native code leaves a Python traceback on stderr
    if ALLOW_IMPORT in sys.argv[1:]:
        from vitbench.models.imported import allow_imports

        allow_imports()
    with contextlib.suppress(KeyboardInterrupt):
        main()

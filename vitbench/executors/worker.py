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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitbench.core.errors import UsageError
from vitbench.core.records import Cell, measurement_from_dict
from vitbench.devices import find_devices, open_device
from vitbench.devices.host.memory import available_memory
from vitbench.executors import lifeline, protocol, stacks
from vitbench.executors.cell_trainer import CellTrainer
from vitbench.executors.faults import load_injector
from vitbench.executors.protocol import Emit, Event, Measure, Task, Turn, Waiting, from_line, to_line
from vitbench.metrics import Subject
from vitbench.metrics.support.in_process import failure_of, library_claims, make_subject, prepare_process, run_metric

#: How long idle threads of OpenMP may spin: GNU's some 3 ms (libgomp, GOMP_SPINCOUNT unset), LLVM's and Intel's as
#: KMP_BLOCKTIME says, which is set to 1 ms for workers that are spawned.
_SPINNING_S = 0.006

Answers = Iterator[dict[str, Any]]


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
        usable = handle(from_line(line), emit)
        emit(protocol.Done(seconds=time.perf_counter() - begin))
        if not usable:
            return


def handle(task: Task, emit: Emit) -> bool:
    """Carry out one task; returns whether this process may take another one."""
    match task:
        case Measure():
            return measure(task, emit)
        case protocol.CountExact():
            return count_exact(task, emit)
        case protocol.RunReference():
            return run_reference(task, emit)
    try:
        for values in _ANSWERS[type(task)](task):
            emit(protocol.Answer(values=values))
    except UsageError as error:
        emit(protocol.Answer(error=str(error)))
    return True


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
                emit(protocol.MeasurementTaken(measurement=measurement))
    except Exception as error:  # the edge: every failure of a model becomes a status
        return _report_failure(error, cell, emit) and task.process in ("static", "prediction")
    return True


def count_exact(task: protocol.CountExact, emit: Emit) -> bool:
    """What a baseline file holds of one model, an answer each for the model and its runs; a failure as for a cell."""
    from vitbench.analysis.exact_counts import count_model

    try:
        prepare_process(task.cell, "static")
        for values in count_model(make_subject(task.cell), task.runs, bound=task.bound):
            emit(protocol.Answer(values=values))
    except Exception as error:  # the edge, as for a cell
        return _report_failure(error, task.cell, emit)
    return True


def run_reference(task: protocol.RunReference, emit: Emit) -> bool:
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
            begin_s = time.process_time()
            durations = step_durations(step, device, turn.seconds)
            _let_threads_sleep(task.threads)
            emit(Waiting(**durations, turn_cpu_s=time.process_time() - begin_s))
    except Exception as error:  # the edge, as for a cell
        emit(protocol.Failed(failure=open_device(task.device).classify(error)))
        traceback.print_exc()
    return False


class PipeTurns:
    """Turns as the runner grants them through this process's input (metrics know no runner)."""

    def __init__(self, emit: Emit, cell: Cell, cores: Sequence[int] | None) -> None:
        from vitbench.metrics.support.reference import VERSION, batch_of

        self._emit = emit
        self._threads = cell.threads
        self._begin_s = time.process_time()
        batch = batch_of(open_device(cell.device).torch_device)
        count = f"batch {batch}, {cell.threads} thread{'s' if cell.threads > 1 else ''}"
        bound = f"bound to cores {', '.join(map(str, cores))}" if cores else ""
        both = f", both {bound}" if bound else ""
        self.reference_name = f"reference {VERSION} (vitbench.reference, fp32, {count}{both})"
        self.method = f"in turns with {self.reference_name}"
        self.method_without_reference = "without the reference" + (f", {bound}" if bound else "")

    def wait(self, *, last: bool = False, samples: Sequence[float] = ()) -> Mapping[str, Any]:
        """See metrics.subject.Turns; ends the process if there will be no more turns."""
        _let_threads_sleep(self._threads)
        turn_cpu_s = time.process_time() - self._begin_s
        self._emit(Waiting(last=last, samples=tuple(samples), turn_cpu_s=turn_cpu_s))
        turn = _next_turn()
        if turn is None:
            raise SystemExit
        self._begin_s = time.process_time()
        return vars(turn)


def bind_to_cores(cores: Sequence[int] | None) -> None:
    """Let this process run on these logical cores only; a plan refuses them where the system cannot."""
    if cores is not None:
        import psutil

        psutil.Process().cpu_affinity(list(cores))


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
    emit(protocol.Failed(failure=failure))
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
    return from_line(line) if line else None


# Questions before anything is measured.


def describe(question: protocol.Describe) -> Answers:
    from vitbench.devices.host.environment import describe_libraries

    devices = {name: open_device(name).describe() for name in find_devices()}
    yield {"devices": devices, "libraries": describe_libraries()}


def match(question: protocol.Match) -> Answers:
    from vitbench.models.zoo import match_external

    for pattern in question.patterns:
        yield {"pattern": pattern, "models": match_external(pattern)}


def inspect(question: protocol.Inspect) -> Answers:
    from vitbench.models import describe_model

    for name in question.models:
        card = describe_model(name)
        yield {
            "model": name,
            "image_size": list(card.image_size),
            "num_classes": card.num_classes,
            "published_weights": card.published_weights,
            "published_classes": card.published_classes,
        }


def digest(question: protocol.Digest) -> Answers:
    from vitbench.models import describe_model
    from vitbench.models.weights.checkpoints import digest_of
    from vitbench.models.weights.claimed import resolve

    path, size = question.weights.path, {}
    if question.model:
        resolved = resolve(describe_model(question.model), path, entry=question.weights.entry)
        size = {"image_size": list(resolved.image_size)}
    yield {"digest": digest_of(path)[:16], **size}


def try_weights(question: protocol.TryWeights) -> Answers:
    subject = make_subject(question.cell, question.weights)
    subject.build()
    yield {"notes": subject.weights_note}


def fetch(question: protocol.Fetch) -> Answers:
    from vitbench.training.data.datasets import describe_data, load_images

    info = describe_data(question.data, root=Path(question.data_dir) if question.data_dir else None, download=True)
    load_images(info, "test", image_size=(8, 8), images=info.num_classes, download=True)
    yield {}


def calibrate(question: protocol.Calibrate) -> Answers:
    """On a small transformer encoder layer."""
    import torch

    torch.set_num_threads(question.threads)
    device = open_device(question.device)
    batch, tokens, width, hidden = 8, 65, 256, 1024
    layer = torch.nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True, norm_first=True).to(
        device.torch_device
    )
    inputs = torch.randn(batch, tokens, width, device=device.torch_device)
    flops = 2 * batch * (tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width)
    with torch.no_grad():
        for _ in range(5):  # the first calls prepare kernels
            layer(inputs)
        device.synchronize()
        calls: list[float] = []
        begin = time.perf_counter()
        while len(calls) < 3 or time.perf_counter() - begin < 0.3:
            start = time.perf_counter()
            layer(inputs)
            device.synchronize()
            calls.append(time.perf_counter() - start)
        yield {"flops_per_s": flops / min(calls)}  # models are counted meanwhile, and other programs may run


def measure_roof(question: protocol.MeasureRoof) -> Answers:
    import torch

    from vitbench.analysis.roofline import measure_round, working_sets

    torch.set_num_threads(question.threads)
    device = open_device(question.device)
    sets = question.working_sets
    if sets is None:
        sets = working_sets(device.caches(), available_memory())
    products = [(dtype, size) for dtype, size in question.products]
    yield from measure_round(device, products, sets, dispatch=question.dispatch, kernel_s=question.kernel_s)


def trace_work(question: protocol.TraceWork) -> Answers:
    """A model that fails says nothing of the others: its reason is an answer."""
    from vitbench.analysis.roof_shares import trace_work

    try:
        yield from map(asdict, trace_work(make_subject(question.cell)))
    except UsageError as error:
        yield {"unsupported": str(error)}
    except Exception as error:  # the edge, as for a cell
        yield {"unsupported": failure_of(error, question.cell).detail}


def predict_largest(question: protocol.PredictLargest) -> Answers:
    """By traces on fake tensors: nothing is loaded or allocated."""
    import torch

    from vitbench.metrics.predicted_memory import batch_trace

    cell = question.cell
    try:
        memory_bytes = open_device(cell.device).memory_for_tensors(cell.memory_limit)
        batch = batch_trace(cell).largest(memory_bytes)
    except Exception as error:  # the edge: a search without a prediction begins at one image
        yield {"unsupported": failure_of(error, cell).detail}
        return
    method = f"traces on fake CPU tensors, {memory_bytes} bytes for tensors, torch {torch.__version__}"
    yield {"batch": batch, "method": method}


def count_breaks(task: protocol.CountBreaks) -> Answers:
    """The graph breaks by reason, or why they are unknown."""
    from vitbench.analysis.exact_counts import count_graph_breaks
    from vitbench.core.errors import Unsupported

    prepare_process(task.cell, "static")
    try:
        yield {"counts": count_graph_breaks(make_subject(task.cell), train=task.train)}
    except Unsupported as reason:
        yield {"absent": str(reason)}


_ANSWERS: dict[type, Callable[[Any], Answers]] = {
    protocol.Describe: describe,
    protocol.Match: match,
    protocol.Inspect: inspect,
    protocol.Digest: digest,
    protocol.TryWeights: try_weights,
    protocol.Fetch: fetch,
    protocol.Calibrate: calibrate,
    protocol.CountBreaks: count_breaks,
    protocol.MeasureRoof: measure_roof,
    protocol.TraceWork: trace_work,
    protocol.PredictLargest: predict_largest,
}


if __name__ == "__main__":
    import faulthandler

    faulthandler.enable()  # a crash in native code leaves a Python traceback on stderr
    if "--allow-import" in sys.argv[1:]:
        from vitbench.models.imported import allow_imports

        allow_imports()
    with contextlib.suppress(KeyboardInterrupt):
        main()

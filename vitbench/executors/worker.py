"""Measure in this process: tasks come in as lines of JSON on stdin, events go out as lines of JSON on stdout.

A worker is a program (``python -m vitbench.executors.worker``) or a fork of the server that has its libraries loaded
(forkserver.py); it cannot tell which. What a model prints goes to stderr, so that it never mixes with events.

Tasks have a ``kind``: ``describe`` (devices and libraries), ``inspect`` (names, native sizes), ``match`` (what a
pattern means), ``digest`` and ``weights`` (of a checkpoint, and whether it fits), ``calibrate`` (a rough speed),
``fetch`` (a data set), ``exact`` (what a lock holds of a model), ``measure`` (``process``, ``metrics``, ``cell``, ...).
Events: ``measurement``, ``progress``,
``failure`` (an exception, turned into a status here and nowhere else), ``answer``, and ``done`` after each task.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from vitbench.core.errors import Unsupported, UsageError
from vitbench.core.records import Cell, Measurement, cell_from_dict, measurement_from_dict
from vitbench.core.registry import METRICS, PRETRAINED, Claim, is_external
from vitbench.devices import Failure, find_devices, open_device
from vitbench.executors import chaos, lifeline, stacks
from vitbench.metrics import Budget, NotFiniteError, Subject
from vitbench.models.tracebacks import model_places, with_places

#: The argument that lets workers import the builders that ``module:`` names ask for.
ALLOW_IMPORT = "--allow-import"

Emit = Callable[[dict[str, Any]], None]

#: Seconds between two progress events of a training run.
PROGRESS_EVERY_S = 0.5
#: How long idle threads of OpenMP may spin: GNU's some 3 ms (libgomp, GOMP_SPINCOUNT unset), LLVM's and Intel's as
#: KMP_BLOCKTIME says, which is set to 1 ms for workers that are spawned.
_SPINNING_S = 0.006


def main(events: IO[str] | None = None) -> None:
    """Answer tasks until stdin ends, or until one fails in a way after which this process is not to be trusted."""
    stacks.print_stack_when_asked()
    lifeline.end_with_runner()
    if events is None:
        # events keep the real stdout; everything that is printed from now on lands on stderr
        events = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    stream = events

    def emit(event: dict[str, Any]) -> None:
        stream.write(json.dumps(event, allow_nan=False) + "\n")
        stream.flush()

    while line := sys.stdin.readline():  # not an iterator, which would read ahead: turns are taken through it as well
        task = json.loads(line)
        begin = time.perf_counter()
        usable = handle(task, emit)
        emit({"event": "done", "seconds": time.perf_counter() - begin})
        if not usable:
            return


def handle(task: Mapping[str, Any], emit: Emit) -> bool:
    """Carry out one task; returns whether this process may take another one."""
    if task["kind"] == "describe":
        emit({"event": "answer", **_describe()})
        return True
    if task["kind"] == "calibrate":
        emit({"event": "answer", "flops_per_s": calibrate(task["device"], task["threads"])})
        return True
    if task["kind"] == "reference":
        serve_reference(task, emit)
        return False
    if task["kind"] == "fetch":
        emit({"event": "answer", **_fetch(task)})
        return True
    if task["kind"] == "digest":
        emit({"event": "answer", **_digest(task)})
        return True
    if task["kind"] == "weights":
        emit({"event": "answer", **_try_weights(task)})
        return True
    if task["kind"] == "match":
        for pattern in task["patterns"]:
            emit({"event": "answer", "pattern": pattern, **_match(pattern)})
        return True
    if task["kind"] == "inspect":
        for name in task["models"]:
            emit({"event": "answer", "model": name, **_inspect(name)})
        return True
    if task["kind"] == "exact":
        return count_exact(task, emit)
    return measure(task, emit)


def measure(task: Mapping[str, Any], emit: Emit) -> bool:
    """Measure one cell's metrics that share a process; emits each measurement as soon as there is one.

    An exception of the model becomes a ``failure`` event and ends the worker: after an out-of-memory error (or a lost
    device) nothing that this process measures can be trusted.
    """
    cell = cell_from_dict(task["cell"])
    try:
        bind_to_cores(task.get("cores"))
        allocator, memory_cap = prepare_process(cell, task["process"])
        subject = make_subject(cell, task, emit)
        subject.allocator, subject.memory_cap = allocator, memory_cap
        chaos.strike_in_worker(cell, task["process"], subject)
        for name in task["metrics"]:
            for measurement in run_metric(name, subject):
                found = asdict(measurement)
                measurement_from_dict(found)  # a metric may be anybody's: what no reader takes is this cell's failure
                emit({"event": "measurement", "measurement": found})
    except Exception as error:  # the edge: every failure of a model becomes a status
        return _tell_failure(error, cell, emit) and task["process"] == "static"
    return True


def count_exact(task: Mapping[str, Any], emit: Emit) -> bool:
    """What a lock holds of one model, an answer each for the model and its runs; a failure event as for a cell."""
    from vitbench.analysis.exact_counts import count_model

    cell = cell_from_dict(task["cell"])
    try:
        prepare_process(cell, "static")
        runs = [cell_from_dict(run) for run in task["runs"]]
        for answer in count_model(make_subject(cell, task, emit), runs, bound=task["bound"]):
            emit({"event": "answer", **answer})
    except Exception as error:  # the edge, as for a cell
        return _tell_failure(error, cell, emit)
    return True


def _tell_failure(error: Exception, cell: Cell, emit: Emit) -> bool:
    """Emit what an exception means; returns whether this process may go on to count."""
    failure = failure_of(error, cell)
    emit({"event": "failure", **asdict(failure)})
    traceback.print_exception(error)
    return failure.status != "oom" and failure.cause != "device_lost"


def run_metric(name: str, subject: Subject) -> Iterator[Measurement]:
    """A metric's measurements; what it says it cannot tell here (Unsupported) becomes spoken absences."""
    metric = METRICS.get(name)
    missing = metric.yields_in(subject.cell.mode)
    try:
        for measurement in metric.measure(subject):
            missing.pop(measurement.metric, None)
            yield measurement
    except Unsupported as reason:
        for absent, unit in missing.items():
            yield Measurement.absent(absent, unit, "unsupported", str(reason))


def failure_of(error: BaseException, cell: Cell) -> Failure:
    """The status and cause of an exception on the cell's device: ``model_bug``, with the place, for one that nothing
    explains and that the model's own code raised while it was built or run.
    """
    device = open_device(cell.device)
    explained = device.explain(error)
    # what the files and the network refuse is nobody's bug
    places = () if explained or isinstance(error, OSError) else model_places(error)
    failure = explained or device.classify(error)
    return replace(failure, cause="model_bug", detail=with_places(failure.detail, places)) if places else failure


def prepare_process(cell: Cell, process: str) -> tuple[str, str]:
    """Threads, seeds, memory limit and allocator of a cell's process, before its first operator; says what the
    allocator is, and what holds the limit.
    """
    import numpy as np
    import torch

    torch.set_num_threads(cell.threads)
    random.seed(cell.seed)
    np.random.seed(cell.seed % 2**32)
    torch.manual_seed(cell.seed)
    if process == "static":
        return "", ""  # nothing is allocated on meta
    if process == "counters":
        open_device("cpu").limit_memory(None)  # a real model on the CPU, whatever the cell's device and limit
        return "", ""
    device = open_device(cell.device)
    allocator = device.steady_allocator() if process == "memory" else ""
    return allocator, device.limit_memory(cell.memory_limit)


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
        self.method = f"in turns with reference {VERSION} (vitbench.reference, fp32, {count}{both})"
        self.method_without_reference = "without the reference" + (f", {bound}" if bound else "")

    def wait(self, *, last: bool = False) -> Mapping[str, Any]:
        """See metrics.subject.Turns; ends the process if there will be no more turns."""
        _let_threads_sleep(self._threads)
        self._emit({"event": "waiting", "last": last})
        grant = _next_turn()
        if grant is None:
            raise SystemExit
        return grant


def bind_to_cores(cores: Sequence[int] | None) -> None:
    """Let this process run on these logical cores only. Raises Unsupported where the system cannot."""
    import psutil

    if cores is None:
        return
    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):
        raise Unsupported("this system binds no process to cores: leave out cores")
    process.cpu_affinity(list(cores))


def serve_reference(task: Mapping[str, Any], emit: Emit) -> None:
    """Run the reference for as many seconds as each turn has, until there are no more turns."""
    import torch

    from vitbench.metrics.support.reference import make_reference
    from vitbench.metrics.support.timing import step_durations

    device_name = task["device"]
    try:
        bind_to_cores(task.get("cores"))
        torch.set_num_threads(task["threads"])
        device = open_device(device_name)
        step = make_reference(device.torch_device)
        gc.collect()
        gc.freeze()  # each turn collects: nothing that is here already need be looked at again
        emit({"event": "waiting"})
        while (grant := _next_turn()) is not None:
            turn = step_durations(step, device, grant["seconds"])
            _let_threads_sleep(task["threads"])
            emit({"event": "waiting", **turn})
    except Exception as error:  # the edge, as for a cell
        emit({"event": "failure", **asdict(open_device(device_name).classify(error))})
        traceback.print_exc()


def _let_threads_sleep(threads: int) -> None:
    """OpenMP's threads go on spinning for some milliseconds after their last work; that is not to be in the next turn,
    which is somebody else's.
    """
    if threads > 1:
        time.sleep(_SPINNING_S)


def _next_turn() -> dict[str, Any] | None:
    line = sys.stdin.readline()
    return json.loads(line) if line else None


def make_subject(cell: Cell, task: Mapping[str, Any], emit: Emit) -> Subject:
    """The cell as its metrics see it."""
    import torch

    from vitbench.models import build_model, describe_model, use_attention

    def build() -> torch.nn.Module:
        torch.manual_seed(cell.seed)  # the same weights in each process of a cell
        real = torch.get_default_device().type != "meta"  # on meta there is nothing to load weights into
        published = cell.weights.startswith(f"{PRETRAINED}:")
        model = build_model(
            cell.model, image_size=cell.image_size, num_classes=cell.num_classes, pretrained=published and real
        )
        if real and "weights" in task:
            subject.weights_note = _load(model, cell, task["weights"])
        elif real and published and describe_model(cell.model).published_classes != cell.num_classes:
            subject.weights_note = "its head left out, a random one in its place"
        return model

    subject = Subject(
        cell=cell,
        device=open_device(cell.device),
        build=build,
        attention=lambda model: use_attention(model, cell.attention),
        budget=Budget(**task.get("budget", {})),
        claims=_library_claims(cell) if "published" in task.get("metrics", ()) else (),
        rotates=task.get("process") == "time",
        turns=PipeTurns(emit, cell, task.get("cores")) if task.get("turns") else None,
    )
    if task.get("process") == "training":
        subject.trainer = CellTrainer(subject, task["training"], emit, task.get("weights", {}).get("path"))
    return subject


def _load(model: Any, cell: Cell, settings: Mapping[str, Any]) -> str:
    """A checkpoint into ``model``; returns what was not loaded as it is.

    Raises CheckpointError if it does not fit, or is not the one of the plan.
    """
    from vitbench.models.weights.checkpoints import CheckpointError, load_checkpoint

    report = load_checkpoint(model, settings["path"], replace_head=settings["replace_head"])
    if report.digest != cell.weights:
        raise CheckpointError(f"{report.path} has changed since the run began ({cell.weights} is now {report.digest})")
    notes = ["its head left out, a random one in its place"] if report.replaced_head else []
    if report.resampled:
        old, new = (f"{grid[0]}x{grid[1]}" for grid in report.resampled)
        notes.append(f"positions resampled from {old} to {new} patches")
    return ", ".join(notes)


def _digest(task: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint is; with a ``model``, also the size (px) that the file's weights were trained at."""
    from vitbench.models.weights.checkpoints import digest_of
    from vitbench.models.weights.claimed import size_in_file

    path = task["weights"]["path"]
    try:
        size = {"image_size": list(size_in_file(task["model"], path))} if "model" in task else {}
        return {"digest": digest_of(path)[:16], **size}
    except UsageError as error:
        return {"error": str(error)}


def _try_weights(task: Mapping[str, Any]) -> dict[str, Any]:
    """Build a cell's model with its weights on the CPU, once."""
    cell = cell_from_dict(task["cell"])
    try:
        make_subject(cell, task, lambda event: None).build()
    except UsageError as error:
        return {"error": str(error)}
    return {}


def _library_claims(cell: Cell) -> tuple[Claim, ...]:
    """The claims that only the model's library knows, if the cell is of the size and classes that they are for."""
    from vitbench.models import describe_model

    if not is_external(cell.model):
        return ()
    card = describe_model(cell.model)
    fits = (card.image_size, card.num_classes) == (cell.image_size, cell.num_classes)
    return card.claims if fits else ()


class CellTrainer:
    """Joins training with a cell: what the accuracy metric is handed (metrics know no training, training no cells).

    ``checkpoint``: the file that the model's weights come from, if they come from one.
    """

    def __init__(
        self, subject: Subject, settings: Mapping[str, Any], emit: Emit, checkpoint: str | None = None
    ) -> None:
        from vitbench.training.data.datasets import describe_data
        from vitbench.training.recipes import Recipe

        self.subject = subject
        self.settings = settings
        self.emit = emit
        self.checkpoint = checkpoint
        self.recipe = Recipe(**settings["recipe"])
        root = settings.get("data_dir")
        download = bool(settings.get("download"))
        self.info = describe_data(settings["data"], root=Path(root) if root else None, download=download)
        self._last_progress = 0.0

    def train(self, model: Any) -> dict[str, Any]:
        """Train by the recipe on the training pictures, or on a seeded subset; what is held out for validation is left
        alone.
        """
        from vitbench.metrics.support.subject import check_trains
        from vitbench.training.data.datasets import load_training_images
        from vitbench.training.loop import train
        from vitbench.training.optimizers import regularise

        cell, device = self.subject.cell, self.subject.device
        check_trains(cell.dtype)
        lacking = regularise(model, self.recipe)
        pictures, _ = load_training_images(
            self.info,
            image_size=cell.image_size,
            images=self._most_images(),
            seed=cell.seed,
            validation=self.recipe.validation,
            imbalance=self.recipe.imbalance,
            download=bool(self.settings.get("download")),
        )
        result = train(
            model,
            pictures,
            self.recipe,
            device=device.name,
            autocast=lambda: device.autocast(cell.dtype),
            scaler=self.subject.scaler if self.subject.scaler.is_enabled() else None,
            synchronize=device.synchronize,
            seed=cell.seed,
            on_step=self._report,
        )
        return {
            "images_seen": result.images_seen,
            "steps": result.steps,
            "duration_s": result.duration_s,
            "losses": result.losses,
            "recipe": f"recipe {self.recipe.name} ({self.recipe.hash})"
            + (f", without {' and '.join(lacking)}, which the model has no layers for" if lacking else ""),
            "budget": self.settings.get("budget", ""),
            "class_sizes": pictures.labels.bincount(minlength=pictures.num_classes).tolist(),
        }

    def evaluate(self, model: Any) -> dict[str, Any]:
        """Test on held-out pictures: the same ones whatever the cell's seed. Raises NotFiniteError for logits that no
        score can be made of.
        """
        import torch

        from vitbench.training.data.datasets import load_images
        from vitbench.training.evaluate import collect_answers
        from vitbench.training.scores import score

        cell, device = self.subject.cell, self.subject.device
        pictures = load_images(
            self.info, "test", image_size=cell.image_size, images=self.settings.get("test_images"), seed=0
        )
        mean, std = self._normalisation()
        answers = collect_answers(
            model,
            pictures,
            mean=mean,
            std=std,
            device=device.name,
            autocast=lambda: device.autocast(cell.dtype),
            batch_size=self.recipe.test_batch_size,
            synchronize=device.synchronize,
        )
        bad = int((~torch.isfinite(answers.logits)).sum())
        if bad:
            raise NotFiniteError(f"{bad} of {answers.logits.numel()} logits of held-out pictures are not finite")
        found = score(answers.logits.numpy(), pictures.labels.numpy())
        return {
            "correct": found.correct,
            "total": found.total,
            "loss": found.loss,
            "macro_f1": found.macro.f1,
            "class_f1": [one.f1 for one in found.classes],
            "class_precision": [one.precision for one in found.classes],
            "class_recall": [one.recall for one in found.classes],
            "class_names": list(pictures.class_names),
        }

    def _most_images(self) -> int | None:
        """How many training pictures are read at most: no more than a training by pictures or steps can see. Where
        classes differ in size on purpose, or are drawn with replacement, the sizes are part of what is compared, and
        all are read.
        """
        recipe = self.recipe
        whole = recipe.epochs is not None or recipe.imbalance is not None or recipe.sampler == "weighted"
        seen = None if whole else recipe.total_images(self.info.train_images)
        return min((one for one in (seen, self.settings.get("train_images")) if one is not None), default=None)

    def _normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """The mean and standard deviation of each channel that the weights were trained with."""
        from vitbench.models import describe_model
        from vitbench.models.normalisation import normalisation_of
        from vitbench.models.weights.checkpoints import read_facts

        cell = self.subject.cell
        if cell.trains:
            return self.recipe.mean, self.recipe.std
        card = describe_model(cell.model)
        if cell.weights.startswith(f"{PRETRAINED}:"):
            return card.mean, card.std
        return normalisation_of(card, read_facts(self.checkpoint) if self.checkpoint else {})

    def save(self, model: Any) -> str:
        """Write ``checkpoints/<cell id>.safetensors`` into the run folder, whole or not at all."""
        folder = self.settings.get("checkpoints")
        if not folder:
            return ""
        from vitbench.models.weights.checkpoints import save_checkpoint

        cell = self.subject.cell
        path = Path(folder) / f"{cell.id}.safetensors"
        facts = {
            "model": cell.model,
            "image_size": list(cell.image_size),
            "num_classes": cell.num_classes,
            "classes": list(self.info.class_names),
            "data": cell.data,
            "recipe": self.recipe.model_dump(mode="json"),
            "seed": cell.seed,
        }
        save_checkpoint(model, path, facts)
        return f"{path.parent.name}/{path.name}"

    def _report(self, step: int, total: int | None, loss: float) -> None:
        now = time.monotonic()
        if now - self._last_progress >= PROGRESS_EVERY_S:
            self._last_progress = now
            self.emit({"event": "progress", "step": step, "total": total, "loss": loss})


def _describe() -> dict[str, Any]:
    from vitbench.devices.host.environment import describe_libraries

    names = find_devices()
    return {"devices": {name: open_device(name).describe() for name in names}, "libraries": describe_libraries()}


def _inspect(name: str) -> dict[str, Any]:
    from vitbench.models import describe_model

    try:
        card = describe_model(name)
    except UsageError as error:
        return {"error": str(error)}
    return {
        "image_size": list(card.image_size),
        "num_classes": card.num_classes,
        "published_weights": card.published_weights,
        "published_classes": card.published_classes,
    }


def _match(pattern: str) -> dict[str, Any]:
    from vitbench.models.zoo import match_external

    try:
        return {"models": match_external(pattern)}
    except UsageError as error:
        return {"error": str(error)}


def _fetch(task: Mapping[str, Any]) -> dict[str, Any]:
    """Download a data set now, while nothing has been measured that a failure could waste."""
    from vitbench.training.data.datasets import describe_data, load_images

    root = Path(task["data_dir"]) if task.get("data_dir") else None
    try:
        info = describe_data(task["data"], root=root, download=True)
        load_images(info, "test", image_size=(8, 8), images=info.num_classes, download=True)
    except UsageError as error:
        return {"error": str(error)}
    return {}


def calibrate(device_name: str, threads: int) -> float:
    """FLOP/s of this machine on a small transformer encoder layer: for estimates of a run's time, never for results."""
    import torch

    torch.set_num_threads(threads)
    device = open_device(device_name)
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
        begin, calls = time.perf_counter(), 0
        while calls < 3 or time.perf_counter() - begin < 0.2:
            layer(inputs)
            device.synchronize()
            calls += 1
        return flops * calls / (time.perf_counter() - begin)


if __name__ == "__main__":
    import faulthandler

    faulthandler.enable()  # a crash in native code leaves a Python traceback on stderr
    if ALLOW_IMPORT in sys.argv[1:]:
        from vitbench.models.imported import allow_imports

        allow_imports()
    with contextlib.suppress(KeyboardInterrupt):
        main()

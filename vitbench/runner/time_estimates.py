"""How long cells will take: from FLOPs and a device's speed on one small layer, right to a factor of 2 or 3.

For the progress display only; no result depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitbench.core.errors import WorkerError
from vitbench.core.records import Cell
from vitbench.core.registry import METRICS
from vitbench.devices import split_name
from vitbench.devices.host.memory import available_memory
from vitbench.executors.conversation import Outcome, ask
from vitbench.executors.launcher import Launcher
from vitbench.executors.protocol import Calibrate
from vitbench.runner.static_counts import StaticKey, static_key
from vitbench.runner.training_plan import TrainingPlan
from vitbench.runner.turns import TURN_S
from vitbench.suites import Suite
from vitbench.suites.batch_search import expected_attempts, guess_largest

#: Seconds to build a model, warm up and end a process, beside its sampling.
_PROCESS_S = 0.4
#: Seconds to read an energy counter at rest and under load; nothing where there is none.
_ENERGY_S = 3.5
#: Seconds to count a model on ``meta``, by two workers.
STATIC_S = 0.4
#: A training step computes about three forward passes (forward, and twice that backward).
_STEP_IN_FORWARDS = 3.0
#: FLOP/s of a device that could not be asked: a modest CPU.
_UNKNOWN_RATE = 2e10


def estimate_seconds(
    suite: Suite,
    cells: Sequence[Cell],
    training: TrainingPlan | None,
    static: Mapping[StaticKey, Outcome],
    launcher: Launcher,
    devices: Mapping[str, Mapping[str, Any]],
) -> dict[str, float]:
    """Seconds by id of each cell, or of the batch search that it is the base of. ``devices``: the facts of each."""
    rates = {device: _flops_per_s(device, cells, launcher) for device in {cell.device for cell in cells}}
    estimates: dict[str, float] = {}
    for cell in cells:
        counts = {
            one.metric: one.value
            for one in static[static_key(cell)].measurements
            if one.metric in ("params", "flops") and one.status == "ok"
        }
        flops = counts.get("flops", 1e9)
        one_image = flops / rates[cell.device]
        if cell.tests and training is not None:
            estimates[cell.id] = _training_seconds(suite, cell, training, one_image)
        elif suite.frontier is None:
            estimates[cell.id] = _cell_seconds(suite, cell, one_image)
        else:
            memory = _memory_bytes(suite, cell.device, devices[cell.device])
            largest = guess_largest(counts.get("params", 1e7), flops, cell.mode, memory)
            estimates[cell.id] = _search_seconds(suite, cell, one_image, largest)
    return estimates


def _flops_per_s(device: str, cells: Sequence[Cell], launcher: Launcher) -> float:
    threads = next(cell.threads for cell in cells if cell.device == device)
    try:
        (answer,) = ask(launcher, Calibrate(device=device, threads=threads))
    except WorkerError:  # a device that is full, or broken: its cells will report it, and an estimate stops nothing
        return _UNKNOWN_RATE
    return float(answer["flops_per_s"])


def _training_seconds(suite: Suite, cell: Cell, training: TrainingPlan, one_image: float) -> float:
    """A training (if the cell trains) and a test, where one image's forward pass takes ``one_image`` seconds."""
    tested = (suite.training.test_images if suite.training else None) or training.info.test_images
    seconds, trained = 0.0, 0
    if cell.trains:
        recipe = training.recipe_of(cell)
        seconds = recipe.seconds or 0.0
        trained = recipe.total_images(training.count_training_images(recipe)) or 0
    return _PROCESS_S + seconds + one_image * (trained * _STEP_IN_FORWARDS + tested)


def _call_seconds(cell: Cell, one_image: float) -> float:
    """One forward pass or training step."""
    return one_image * cell.batch_size * (_STEP_IN_FORWARDS if cell.mode == "train" else 1)


def _cell_seconds(suite: Suite, cell: Cell, one_image: float) -> float:
    """The processes of a cell on its device."""
    call = _call_seconds(cell, one_image)
    kinds = {metric.process for metric in map(METRICS.get, suite.metrics) if cell.mode in metric.modes}
    total = 0.0
    if "time" in kinds:
        sampling = max(suite.measure.seconds, suite.measure.min_samples * call)
        # with a turn of the reference after every one or two of the cell's
        total += suite.measure.processes * (_PROCESS_S + sampling * (1 + TURN_S / max(call, 2 * TURN_S)))
    if "energy" in kinds:
        total += _ENERGY_S
    if "memory" in kinds:
        total += _PROCESS_S + 4 * call
    return total


def _search_seconds(suite: Suite, base: Cell, one_image: float, largest: int) -> float:
    """A batch search: batches beyond ``largest`` fail in their first call, and one that takes longer than the timeout
    ends the search.
    """
    assert suite.frontier is not None
    total = 0.0
    for batch in expected_attempts(largest, suite.frontier.max_batch):
        cell = replace(base, batch_size=batch)
        fits = batch <= largest
        seconds = _cell_seconds(suite, cell, one_image) if fits else _PROCESS_S + _call_seconds(cell, one_image) / 2
        total += min(seconds, suite.timeout_s)
        if seconds > suite.timeout_s:
            break
    return total


def _memory_bytes(suite: Suite, device: str, facts: Mapping[str, Any]) -> float:
    """What a cell may take there: the suite's limit, or what the machine has."""
    if suite.memory_limit is not None:
        return float(suite.memory_limit)
    on_host = split_name(device)[0] == "cpu" or not facts.get("memory_bytes")
    return float(available_memory() if on_host else facts["memory_bytes"])

"""What goes over the pipe between the runner and a worker, one JSON object a line.

The runner sends a *task*; where a worker takes turns with others, also a *turn* each time that it waits for one. The
worker answers with *events*, of which the last is ``Done``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from vitbench.core.records import Cell, Measurement, measurement_from_dict
from vitbench.core.validation import parse
from vitbench.devices import Failure
from vitbench.metrics.support.in_process import WeightsFile
from vitbench.metrics.support.subject import Budget

# Questions, which ``Answer`` events follow.


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Which devices and libraries are there? ``devices`` (facts by name) and ``libraries``."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which models of other libraries do patterns match? An answer each: ``pattern`` and ``models``."""

    patterns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What does expansion need to know of models of other libraries? An answer each, see ``worker.inspect``."""

    models: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What is the ``digest`` of a checkpoint? With a ``model`` also: at what ``image_size`` (px) was it trained?"""

    weights: WeightsFile
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class TryWeights:
    """Do a cell's weights fit its model, and how do they differ from the file (``notes``, for people)? Builds it on the
    CPU, which may download published weights.
    """

    cell: Cell
    weights: WeightsFile | None = None


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """How fast is a device, roughly? ``flops_per_s``, for estimates of a run's time, never for results."""

    device: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class MeasureRoof:
    """One round of the machine's roof: an answer a kernel, see ``analysis.roofline.measure_round``.

    ``products``: (dtype, n) of each product; ``working_sets`` in bytes, None for those that the caches suggest.
    """

    device: str
    threads: int
    products: tuple[tuple[str, int], ...]
    working_sets: tuple[int, ...] | None
    dispatch: bool
    kernel_s: float


@dataclass(frozen=True, kw_only=True)
class TraceWork:
    """Which operators does a call of a cell consist of? An answer for each kind of call (``roof_shares.Work``), or one
    with the ``unsupported`` reason.
    """

    cell: Cell


@dataclass(frozen=True, kw_only=True)
class PredictLargest:
    """What is the largest batch of a cell likely to be? ``batch`` and its ``method``, or the ``unsupported`` reason."""

    cell: Cell


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download a data set if it is not there, while a failure wastes no measurement."""

    data: str
    data_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class CountExact:
    """Count what a baseline file holds of a model: an answer for the model, and one for each of its ``runs``.

    ``bound``: also what depends on torch's version.
    """

    cell: Cell
    runs: tuple[Cell, ...] = ()
    bound: bool = True


@dataclass(frozen=True, kw_only=True)
class CountBreaks:
    """Count the graph breaks of a model for a baseline file. No tensor bytes are counted in this process later."""

    cell: Cell
    train: bool = False


# Tasks that measure.


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a cell trains and is tested. ``budget`` is text for the record; limits are numbers of images;
    ``checkpoints`` is the folder that keeps the trained weights.
    """

    recipe: Mapping[str, Any]
    data: str
    budget: str = ""
    data_dir: str | None = None
    download: bool = False
    train_images: int | None = None
    test_images: int | None = None
    checkpoints: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Take those metrics of a cell that share a process: static, counters, memory, time, energy or training.

    With ``turns`` the worker waits for a ``Turn`` before it takes samples.
    """

    process: str
    metrics: tuple[str, ...]
    cell: Cell
    budget: Budget = field(default_factory=Budget)
    cores: tuple[int, ...] | None = None
    weights: WeightsFile | None = None
    training: TrainingSettings | None = None
    turns: bool = False


@dataclass(frozen=True, kw_only=True)
class RunReference:
    """Run the reference model for as many seconds as each turn has, until there are no more turns."""

    device: str
    threads: int
    cores: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Leave to run for at least ``seconds`` and ``calls``. ``before``: the reference's last turn; ``after_last``: its
    first one after this worker's last turn; each with the ``samples`` (s) and the ``cpu_seconds`` of its steps.

    About the worker's last turn: ``replay``, whether it is taken again, so that it is not charged to the budget, and
    ``other_load``, the cores that other programs used during it.
    """

    seconds: float
    calls: int = 1
    replay: bool = False
    other_load: float | None = None
    before: Mapping[str, Any] | None = None
    after_last: Mapping[str, Any] | None = None


Question = (
    Describe
    | Match
    | Inspect
    | Digest
    | TryWeights
    | Calibrate
    | MeasureRoof
    | TraceWork
    | PredictLargest
    | Fetch
    | CountBreaks
    | CountExact
)
Task = Question | Measure | RunReference


# Events.


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer to a question, or the error that makes the question wrong usage."""

    values: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class MeasurementTaken:
    measurement: Measurement


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The worker waits for its next turn. ``last``: it has its samples and lacks only the reference's turn after them.

    ``samples`` are the seconds of each call of the turn that it had, ``turn_cpu_s`` the CPU seconds of all its threads
    since that turn began. The reference also sends the CPU seconds of a step.
    """

    last: bool = False
    samples: tuple[float, ...] = ()
    turn_cpu_s: float = 0.0
    cpu_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """How far a training is. ``total`` is unknown for a budget of seconds."""

    step: int
    total: int | None
    loss: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    failure: Failure


@dataclass(frozen=True, kw_only=True)
class Done:
    seconds: float


Event = Answer | MeasurementTaken | Waiting | TrainingStep | Failed | Done
Emit = Callable[[Event], None]

_KINDS = {kind.__name__: kind for kind in (*get_args(Task), Turn, *get_args(Event))}
#: How fields that are not plain JSON are read.
_FIELDS: dict[str, Callable[[Any], Any]] = {
    "cell": lambda values: parse(values, Cell, "cell"),
    "runs": lambda values: parse(values, tuple[Cell, ...], "runs"),
    "budget": lambda values: Budget(**values),
    "weights": lambda values: WeightsFile(**values),
    "training": lambda values: TrainingSettings(**values),
    "measurement": measurement_from_dict,
    "failure": lambda values: Failure(**values),
}


def to_line(message: Task | Turn | Event) -> str:
    """The message as a line of JSON. Raises ValueError for a number that JSON does not have, such as NaN."""
    return json.dumps({"kind": type(message).__name__, **asdict(message)}, allow_nan=False) + "\n"


def from_line(line: str) -> Any:
    """The task, turn or event in a line. Raises JSONDecodeError for half a line."""
    values = json.loads(line)
    kind = _KINDS[values.pop("kind")]
    for name, value in values.items():
        if value is not None and name in _FIELDS:
            values[name] = _FIELDS[name](value)
        elif isinstance(value, list):
            values[name] = tuple(value)
    return kind(**values)

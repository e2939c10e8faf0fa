"""What goes over the pipe between the runner and a worker, one JSON object a line.

The runner sends a *task*; where a worker takes turns with others, also a *turn* each time that it waits for one. The
worker answers with *events*, of which the last is ``Done``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from vitbench.core.records import Cell, Measurement, cell_from_dict, measurement_from_dict
from vitbench.devices import Failure
from vitbench.metrics.support.in_process import WeightsFile
from vitbench.metrics.support.subject import Budget

# Tasks that a worker answers: each is followed by ``Answer`` events.


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Which devices and libraries are there? Answer: ``devices`` (facts by name) and ``libraries``."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which models of other libraries do patterns match? An answer each: ``pattern`` and ``models``."""

    patterns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What does expansion need to know of models of other libraries?

    An answer each: ``model``, ``image_size``, ``num_classes``, ``published_weights`` and ``published_classes``.
    """

    models: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What is the ``digest`` of a checkpoint? With a ``model`` also: at what ``image_size`` was it trained?"""

    weights: WeightsFile
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class TryWeights:
    """Do a cell's weights fit its model? Builds it on the CPU, which may download published weights; no values."""

    cell: Cell
    weights: WeightsFile | None = None


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """How fast is a device, roughly? Answer: ``flops_per_s``."""

    device: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download a data set if it is not there; no values."""

    data: str
    data_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class CountExact:
    """Count what a baseline file holds of a model: an answer for the model, and one for each of its runs."""

    cell: Cell
    runs: tuple[Cell, ...] = ()
    bound: bool = True  # also what depends on torch's version


# Tasks that measure: ``MeasurementTaken`` events follow.


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a cell trains and is tested. ``budget`` is text for the record; limits are numbers of images."""

    recipe: Mapping[str, Any]
    data: str
    budget: str = ""
    data_dir: str | None = None
    download: bool = False
    train_images: int | None = None
    test_images: int | None = None
    checkpoints: str | None = None  # the folder that keeps the trained weights


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Take those metrics of a cell that share one process.

    ``process`` is the kind of process: static, counters, memory, time, energy or training.
    """

    process: str
    metrics: tuple[str, ...]
    cell: Cell
    budget: Budget = field(default_factory=Budget)
    cores: tuple[int, ...] | None = None
    weights: WeightsFile | None = None
    training: TrainingSettings | None = None
    turns: bool = False  # wait for a turn before each of the samples


@dataclass(frozen=True, kw_only=True)
class RunReference:
    """Run the reference model for as many seconds as each turn has, until there are no more turns."""

    device: str
    threads: int
    cores: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Leave to run for ``seconds``. ``before``: the reference's last turn; ``after_last``: its first one after this
    worker's last turn; each with the ``samples`` (s) and the ``cpu_seconds`` of its steps.
    """

    seconds: float
    before: Mapping[str, Any] | None = None
    after_last: Mapping[str, Any] | None = None


Task = Describe | Match | Inspect | Digest | TryWeights | Calibrate | Fetch | CountExact | Measure | RunReference


# Events.


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer to a question, or why it is wrong usage."""

    values: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class MeasurementTaken:
    """A measurement, sent as soon as it is complete."""

    measurement: Measurement


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The worker waits for its next turn. ``last``: it has its samples and lacks only the reference's turn after them.

    The reference sends the ``samples`` (seconds a step) and ``cpu_seconds`` (a step) of the turn that it had.
    """

    last: bool = False
    samples: tuple[float, ...] = ()
    cpu_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """How far a training is. ``total`` is unknown for a budget of seconds."""

    step: int
    total: int | None
    loss: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The task failed; the worker has turned the exception into a status."""

    failure: Failure


@dataclass(frozen=True, kw_only=True)
class Done:
    """The task is over, after ``seconds``."""

    seconds: float


Event = Answer | MeasurementTaken | Waiting | TrainingStep | Failed | Done
Emit = Callable[[Event], None]

_TASKS: dict[str, type[Task | Turn]] = {
    "describe": Describe,
    "match": Match,
    "inspect": Inspect,
    "digest": Digest,
    "weights": TryWeights,
    "calibrate": Calibrate,
    "fetch": Fetch,
    "exact": CountExact,
    "measure": Measure,
    "reference": RunReference,
    "turn": Turn,
}
_EVENTS: dict[str, type[Event]] = {
    "answer": Answer,
    "measurement": MeasurementTaken,
    "waiting": Waiting,
    "progress": TrainingStep,
    "failure": Failed,
    "done": Done,
}
_KINDS = {kind: name for name, kind in (*_TASKS.items(), *_EVENTS.items())}
#: How fields that are not plain JSON are read.
_FIELDS: dict[str, Callable[[Any], Any]] = {
    "cell": cell_from_dict,
    "runs": lambda cells: tuple(map(cell_from_dict, cells)),
    "budget": lambda values: Budget(**values),
    "weights": lambda values: WeightsFile(**values),
    "training": lambda values: TrainingSettings(**values),
    "measurement": measurement_from_dict,
    "failure": lambda values: Failure(**values),
}
_Message = TypeVar("_Message")


def kind_of(message: Task | Turn | Event) -> str:
    """The name of a message's kind, such as ``measure``."""
    return _KINDS[type(message)]


def to_line(message: Task | Turn | Event) -> str:
    """The message as a line of JSON. Raises ValueError for a number that JSON does not have, such as NaN."""
    return json.dumps({"kind": kind_of(message), **asdict(message)}, allow_nan=False) + "\n"


def read_task(line: str) -> Task:
    """The task in a line. Raises ValueError if it is not one."""
    return _read(json.loads(line), _TASKS)  # type: ignore[return-value]


def read_turn(line: str) -> Turn:
    """The turn in a line. Raises ValueError if it is not one."""
    return _read(json.loads(line), {"turn": Turn})


def event_of(content: Mapping[str, Any]) -> Event:
    """The event of a JSON object. Raises ValueError if it is not one."""
    return _read(content, _EVENTS)


def _read(content: Mapping[str, Any], kinds: Mapping[str, type[_Message]]) -> _Message:
    values = dict(content)
    kind = values.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"{kind!r} is not any of {', '.join(kinds)}")
    return kinds[kind](**{name: _read_field(name, value) for name, value in values.items()})


def _read_field(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in _FIELDS:
        return _FIELDS[name](value)
    return tuple(value) if isinstance(value, list) else value

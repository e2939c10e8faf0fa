"""The types that everything hands on: a Cell is measured and becomes a Record of Measurements.

Schema history of a record line:

1. first version
2. a measurement may hold ``turns``, ``first_stage`` and ``group``
3. a measurement may hold ``reference`` and ``executed``, which its ``method`` stated in words before
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vitbench.core.shapes import (
    COUNT,
    FLAG,
    LIST,
    NUMBER,
    OBJECT,
    POSITIVE,
    SHARE,
    TEXT,
    WHOLE,
    check_present,
    check_shape,
)

SCHEMA = 3

Status = Literal["ok", "oom", "unsupported", "timeout", "killed", "error"]
Mode = Literal["infer", "train"]
Dtype = Literal["fp32", "bf16", "fp16", "amp"]
Attention = Literal["fused", "explicit"]

STATUSES: tuple[str, ...] = get_args(Status)
MODES: tuple[str, ...] = get_args(Mode)
DTYPES: tuple[str, ...] = get_args(Dtype)
ATTENTIONS: tuple[str, ...] = get_args(Attention)

# What a line may hold, beside what is looked at where it is taken in: a line of wrong types is no record.
_CELL = {
    **dict.fromkeys(("model", "device", "dtype", "mode", "attention", "weights"), TEXT),
    **dict.fromkeys(("num_classes", "batch_size", "threads"), POSITIVE),
    **dict.fromkeys(("data", "recipe_hash"), TEXT.or_null()),
    "compile": FLAG,
    "memory_limit": COUNT.or_null(),
    "seed": WHOLE,
}
_MEASUREMENT = {
    **dict.fromkeys(("metric", "unit", "method", "reference", "group", "status", "detail"), TEXT),
    "executed": FLAG,
    "samples": [LIST],
    "reference_samples": [LIST],
    "turns": [[COUNT]],
    "first_stage": COUNT.or_null(),
}
_RECORD = {
    **dict.fromkeys(("status", "environment", "started_at", "cause", "stderr_tail", "detail"), TEXT),
    "measurements": [OBJECT],
    "schema": COUNT,
    "duration_s": NUMBER,
    "signal": WHOLE.or_null(),
}
#: Figures of one value that reports reckon with: how many of something, shares, and the bounds of a search.
_ONE_VALUE = {
    **dict.fromkeys(("params", "trainable_params", "params_without_gradient", "buffers", "memory_limit"), COUNT),
    **dict.fromkeys(("training_images", "training_steps", "training_batch_size"), COUNT),
    **dict.fromkeys(("test_images", "frontier_bound"), POSITIVE),
    **dict.fromkeys(("accuracy", "macro_f1"), SHARE),
}
_NOISE = {"device": TEXT, "threads": POSITIVE, "started_at": TEXT, "samples": LIST, "reference_samples": LIST}

#: How schemas before 3 named the reference.
_REFERENCE_IN_METHOD = re.compile(r"in turns with (reference .*?\))")

#: Statuses that leave the exit code of a run at 0: running out of memory is a data point.
HARMLESS: frozenset[str] = frozenset({"ok", "oom"})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid.

    ``image_size`` is (height, width) in pixels, ``batch_size`` in images, ``memory_limit`` in bytes beyond the size of
    a worker that has its libraries loaded. ``weights`` is ``random``, ``train:<recipe>`` (the cell trains and tests the
    model), ``pretrained:<name>`` (as the model's library publishes them), or a checkpoint's digest. A cell with
    ``data`` tests the model on it. ``options`` is what later axes add.
    """

    model: str
    image_size: tuple[int, int]
    num_classes: int
    batch_size: int
    device: str
    threads: int
    dtype: str = "fp32"
    mode: str = "infer"
    attention: str = "fused"
    compile: bool = False
    memory_limit: int | None = None
    weights: str = "random"
    data: str | None = None
    recipe_hash: str | None = None
    seed: int = 0
    options: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        """The resume key: a hash of the fields that differ from their defaults, so that a new axis leaves it valid."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def trains(self) -> bool:
        """Whether this is a training cell: it trains on ``data`` and tests, rather than timing random weights."""
        return self.weights.startswith("train:")

    @property
    def tests(self) -> bool:
        """Whether it tests the model on ``data``, after training or with given weights, rather than timing it."""
        return self.data is not None

    @property
    def label(self) -> str:
        """What a progress line shows: ``vit_basic 32px b32 cpu fp32 infer``."""
        what = f"{self.weights if self.trains else 'test'} on {self.data}" if self.tests else self.mode
        extra = (["explicit"] if self.attention == "explicit" else []) + (["compile"] if self.compile else [])
        size = format_image_size(self.image_size)
        return " ".join([self.model, f"{size}px", f"b{self.batch_size}", self.device, self.dtype, what, *extra])

    @property
    def conditions_label(self) -> str:
        """What a progress line shows of cells that take turns: ``32px b32 cpu infer``."""
        return f"{format_image_size(self.image_size)}px b{self.batch_size} {self.device} {self.mode}"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One metric of one cell.

    ``samples`` holds one tuple a process with every sample in the order in which it was taken, warm-up included, in the
    base ``unit`` (s, byte, FLOP, MAC, image, image/s, ...). ``method`` says how, with versions.

    Samples that were taken in turns with the reference also have, one tuple a process, ``turns`` (how many samples each
    turn took, in order), ``reference_samples`` (one a turn: what the reference took then, in the same unit) and
    ``reference`` (which one: its version, batch, threads and cores; only times over the same one are comparable).
    Measurements of one ``group`` took turns with each other as well: the first process of one with the first of the
    other, and so on. ``first_stage`` is the number of processes after which it was decided how many there would be in
    all, which the interval has to know; None if that was fixed beforehand.

    ``executed``: the value was counted while the model ran on numbers, so that it can depend on the machine.
    """

    metric: str
    unit: str
    samples: tuple[tuple[float, ...], ...]
    method: str
    reference_samples: tuple[tuple[float, ...], ...] = ()
    turns: tuple[tuple[int, ...], ...] = ()
    reference: str = ""
    first_stage: int | None = None
    group: str = ""
    executed: bool = False
    status: Status = "ok"
    detail: str = ""

    @classmethod
    def single(
        cls, metric: str, unit: str, value: float, method: str, detail: str = "", *, executed: bool = False
    ) -> Measurement:
        """A value that one look gives exactly (a count, a size)."""
        return cls(metric=metric, unit=unit, samples=((value,),), method=method, detail=detail, executed=executed)

    @classmethod
    def absent(cls, metric: str, unit: str, status: Status, detail: str, method: str = "") -> Measurement:
        """A figure that there is none of, and why."""
        return cls(metric=metric, unit=unit, samples=(), method=method, status=status, detail=detail)

    @property
    def value(self) -> float:
        """The only sample of a measurement that has exactly one; raises ValueError for any other."""
        if len(self.samples) != 1 or len(self.samples[0]) != 1:
            raise ValueError(f"{self.metric} holds {[len(s) for s in self.samples]} samples, not one")
        return self.samples[0][0]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What came of one cell: exactly one per cell, whatever happened to it.

    ``environment`` is the hash of the environment that it was measured in, ``started_at`` ISO 8601 with zone,
    ``duration_s`` seconds of wall time. ``cause`` is a finer name than ``status`` (``oom_single_buffer``,
    ``probable_oom``, ``not_finite``, ``crash``, ...), ``stderr_tail`` the last lines that the worker printed when it
    failed.
    """

    cell: Cell
    status: Status
    measurements: tuple[Measurement, ...]
    environment: str
    started_at: str
    duration_s: float
    schema: int = SCHEMA
    cause: str = ""
    signal: int | None = None
    stderr_tail: str = ""
    detail: str = ""

    def measurement(self, metric: str) -> Measurement | None:
        """The measurement of that name, or None if the cell has none."""
        return next((m for m in self.measurements if m.metric == metric), None)

    def to_json(self) -> str:
        """One line of JSON without a line end; non-finite numbers are refused (ValueError): they are errors, not
        data.
        """
        text = json.dumps(dataclasses.asdict(self), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        # halves of characters, as which bytes that are no text come in an error, are escaped: UTF-8 has none
        return text.encode("utf-8", errors="backslashreplace").decode("utf-8")

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record of one line. Raises ValueError for a line that is damaged or of a newer schema."""
        try:
            return record_from_dict(json.loads(line))
        except (TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"not a record: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class NoiseCheck:
    """One process of the reference that took turns with the reference as if it were a cell: what differs is noise.

    ``samples`` are seconds of a step, one value a turn, ``reference_samples`` what the other one took then.
    """

    device: str
    threads: int
    started_at: str
    samples: tuple[float, ...]
    reference_samples: tuple[float, ...]

    def to_json(self) -> str:
        """One line of JSON without a line end."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> NoiseCheck:
        """The check of one line. Raises ValueError if it is none."""
        try:
            data = json.loads(line)
            check_present(data, _NOISE)
            samples, reference = _samples([data["samples"], data["reference_samples"]])
            check = cls(**{**data, "samples": samples, "reference_samples": reference})
        except (TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"not a noise check: {type(error).__name__}: {error}") from error
        if len(check.samples) != len(check.reference_samples) or min(check.reference_samples, default=0) <= 0:
            raise ValueError("not a noise check: its samples do not pair")
        return check


def cell_from_dict(data: Mapping[str, Any]) -> Cell:
    """A Cell from its JSON object. Raises ValueError for a value that is none of its field's, and TypeError for a field
    that this version does not know.
    """
    check_present(data, _CELL, "cell")
    if data.get("mode", "infer") not in MODES:
        raise ValueError(f"unknown mode {data['mode']!r}")
    return Cell(
        **{
            **data,
            "image_size": _image_size_pair(data["image_size"]),
            "options": tuple((str(k), str(v)) for k, v in data.get("options", ())),
        }
    )


def measurement_from_dict(data: Mapping[str, Any]) -> Measurement:
    """A Measurement from its JSON object. Raises ValueError for a value that is none of its field's, an unknown status,
    a sample that is no finite number, or turns that do not add up to the samples.
    """
    check_present(data, _MEASUREMENT, "measurement")
    if data.get("status", "ok") not in STATUSES:
        raise ValueError(f"unknown status {data['status']!r}")
    measurement = Measurement(
        **{
            **data,
            "samples": _samples(data["samples"]),
            "reference_samples": _samples(data.get("reference_samples", ())),
            "turns": tuple(map(tuple, data.get("turns", ()))),
        }
    )
    if measurement.turns and [sum(counts) for counts in measurement.turns] != [len(one) for one in measurement.samples]:
        raise ValueError(f"the turns of {measurement.metric} do not add up to its samples")
    if measurement.reference_samples and [len(counts) for counts in measurement.turns] != [
        len(one) for one in measurement.reference_samples
    ]:
        raise ValueError(f"the reference samples of {measurement.metric} are not one a turn")
    if any(x <= 0 for process in measurement.reference_samples for x in process):
        raise ValueError(f"a reference sample of {measurement.metric} is not positive")
    if measurement.metric in _ONE_VALUE and measurement.status == "ok":
        value = measurement.value
        whole = int(value) if value == int(value) else value  # 10 may have been written as 10.0
        check_shape(whole, _ONE_VALUE[measurement.metric], measurement.metric)
    return measurement


def record_from_dict(data: Mapping[str, Any]) -> Record:
    """A Record from its JSON object. Raises ValueError, TypeError or KeyError if it is none."""
    check_present(data, {"schema": _RECORD["schema"]})
    if data["schema"] > SCHEMA:
        raise ValueError(f"schema {data['schema']} is newer than this vitbench reads ({SCHEMA}): upgrade vitbench")
    check_present(data, _RECORD)
    data = upgrade(data)
    if data["status"] not in STATUSES:
        raise ValueError(f"unknown status {data['status']!r}")
    return Record(
        **{
            **data,
            "cell": cell_from_dict(data["cell"]),
            "measurements": tuple(measurement_from_dict(m) for m in data["measurements"]),
        }
    )


def upgrade(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON object of a record with the fields that its schema did not have: before schema 3 the reference of a time
    and whether a count was executed stood in ``method`` alone.
    """
    if data["schema"] >= 3:
        return data
    methods = {one["metric"]: one["method"] for one in data["measurements"]}
    measurements = []
    for one in data["measurements"]:
        # a CPU time was taken in the same turns as the time itself, whose method names the reference
        timed = methods.get(one["metric"].removesuffix("_cpu_time"), "")
        named = _REFERENCE_IN_METHOD.search(timed) if one.get("reference_samples") else None
        measurements.append({**one, "reference": named[1] if named else "", "executed": "executed" in one["method"]})
    return {**data, "schema": SCHEMA, "measurements": measurements}


def parse_image_size(text: str | int) -> tuple[int, int]:
    """``224`` -> (224, 224) and ``231x240`` -> (231, 240): height x width in px. Raises ValueError for anything
    else.
    """
    parts = str(text).lower().split("x")
    if len(parts) > 2 or not all(part.strip().lstrip("+-").isdigit() for part in parts):
        raise ValueError(f"Image size {text!r} is neither N nor HxW in pixels, such as 224 or 231x240")
    numbers = [int(part) for part in parts]
    if min(numbers) < 1:
        raise ValueError(f"Image size {text!r} is not positive: give pixels, such as 224 or 231x240")
    return numbers[0], numbers[-1]


def format_image_size(size: tuple[int, int]) -> str:
    """The shortest spelling: (224, 224) -> ``224`` and (231, 240) -> ``231x240``."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _image_size_pair(value: Any) -> tuple[int, int]:
    height, width = value
    check_present({"height": height, "width": width}, {"height": POSITIVE, "width": POSITIVE}, "image_size")
    return height, width


def _samples(value: Any) -> tuple[tuple[float, ...], ...]:
    samples = tuple(tuple(process) for process in value)
    flat = [x for process in samples for x in process]
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in flat):
        raise ValueError("a sample is not a finite number")
    return samples

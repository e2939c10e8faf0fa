"""The types of the main path: a Cell is measured and becomes a Record of Measurements.

Schema history of a record line:

1. first version
2. a measurement may hold ``turns``, ``first_stage`` and ``group``
3. a measurement may hold ``reference`` and ``executed``, which its ``method`` stated in words before
4. a measurement may hold ``other_load`` and ``lower_bound`` (left out where it is false; earlier counts left operators
   out without a word); the first call of a process is ``first_call`` and no longer a sample
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from vitbench.core.validation import Count, Flag, Number, Positive, Share, Whole, adapter, parse

SCHEMA = 4

T = TypeVar("T")

Status = Literal["ok", "oom", "unsupported", "timeout", "killed", "error"]
Mode = Literal["infer", "train"]
Dtype = Literal["fp32", "bf16", "fp16", "amp"]
Attention = Literal["fused", "explicit"]

STATUSES: tuple[str, ...] = get_args(Status)
MODES: tuple[str, ...] = get_args(Mode)
DTYPES: tuple[str, ...] = get_args(Dtype)
ATTENTIONS: tuple[str, ...] = get_args(Attention)


class _Finite:
    """A finite number of either type: counts stay ``int``."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kinds = [
            core_schema.int_schema(strict=True, ge=-(2**63), lt=2**64),
            core_schema.float_schema(strict=True, allow_inf_nan=False),
        ]
        return core_schema.custom_error_schema(
            core_schema.union_schema([*kinds]),
            custom_error_type="finite_number",
        )


#: One tuple a process.
Samples = tuple[tuple[Annotated[float, _Finite], ...], ...]

#: Metrics of one value, with its type: counts, shares, and the bounds of a search.
_ONE_VALUE: dict[str, Any] = {
    **dict.fromkeys(("params", "trainable_params", "params_without_gradient", "buffers", "memory_limit"), Count),
    **dict.fromkeys(("training_images", "training_steps", "training_batch_size", "frontier_predicted"), Count),
    **dict.fromkeys(("test_images", "frontier_bound", "classes_without_images"), Positive),
    **dict.fromkeys(("accuracy", "macro_f1", "macro_f1_present"), Share),
}

#: How the detail of a lower bound begins to name what it leaves out.
LOWER_BOUND = "a lower bound, without operators that no formula covers: "

#: How schemas before 3 named the reference.
_REFERENCE_IN_METHOD = re.compile(r"in turns with (reference .*?\))")

#: The channels of colour images, and the option of cells whose images have others.
RGB, IN_CHANNELS = 3, "in_channels"

#: Fields that a type does not have are refused.
_STRICT_FIELDS: ConfigDict = {"extra": "forbid"}

#: Statuses that leave the exit code of a run at 0: running out of memory is a data point.
HARMLESS: frozenset[str] = frozenset({"ok", "oom"})


def channel_options(channels: int) -> tuple[tuple[str, str], ...]:
    """The options of a cell whose images have so many channels."""
    return () if channels == RGB else ((IN_CHANNELS, str(channels)),)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid.

    ``image_size`` is (height, width) in pixels, ``num_classes`` 0 for a model without a head, ``batch_size`` in images,
    ``memory_limit`` in bytes beyond the size of a worker that has its libraries loaded. ``weights`` is ``random``,
    ``train:<recipe>`` (the cell trains and tests the model), ``pretrained:<name>`` (as the model's library publishes
    them), or a checkpoint's digest. A cell with ``data`` tests the model on it. ``options`` is what later axes add.
    """

    __pydantic_config__ = _STRICT_FIELDS

    model: str
    image_size: tuple[Positive, Positive]
    num_classes: Count
    batch_size: Positive
    device: str
    threads: Positive
    dtype: str = "fp32"
    mode: Annotated[str, Field(pattern="^(infer|train)$")] = "infer"
    attention: str = "fused"
    compile: Flag = False
    memory_limit: Count | None = None
    weights: str = "random"
    data: str | None = None
    recipe_hash: str | None = None
    seed: Whole = 0
    options: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        """The resume key: a hash of the fields that differ from their defaults, so that a new axis leaves it valid."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def in_channels(self) -> int:
        """The channels of its images: 3 unless its options say otherwise."""
        return int(dict(self.options).get(IN_CHANNELS, RGB))

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
    base ``unit`` (s, byte, FLOP, MAC, image, image/s, ...). ``method`` says how, with versions. The first call of a
    process is no sample of its times: it is ``first_call``.

    Samples that were taken in turns with the reference also have, one tuple a process, ``turns`` (how many samples each
    turn took, in order), ``reference_samples`` (one a turn: the seconds of a reference step then), ``reference`` (which
    one: its version, batch, threads and cores; only times over the same one are comparable) and, where the system
    reports it, ``other_load`` (one a turn: the cores that other programs used during it).
    Measurements of one ``group`` took turns with each other as well: the first process of one with the first of the
    other, and so on. ``first_stage`` is the number of processes after which their total was decided, which the interval
    depends on; None if the total was fixed.

    ``executed``: the value was counted while the model ran on numbers, so that it can depend on the machine.
    ``lower_bound``: the value leaves out work that could not be counted, which ``detail`` names.

    ``fastest_reference``: the seconds of a reference step in the fastest turns of the whole run. Who reads a run finds
    it (``run_folder.read_records``); no file holds it.
    """

    __pydantic_config__ = _STRICT_FIELDS

    metric: str
    unit: str
    samples: Samples
    method: str
    reference_samples: Samples = ()
    turns: tuple[tuple[Count, ...], ...] = ()
    reference: str = ""
    other_load: Samples = ()
    first_stage: Count | None = None
    group: str = ""
    executed: Flag = False
    lower_bound: Flag = False
    status: Status = "ok"
    detail: str = ""
    fastest_reference: float | None = dataclasses.field(default=None, compare=False)

    @classmethod
    def single(
        cls, metric: str, unit: str, value: float, method: str, detail: str = "", *, executed: bool = False
    ) -> Measurement:
        """One exact value (a count, a size)."""
        return cls(metric=metric, unit=unit, samples=((value,),), method=method, detail=detail, executed=executed)

    @classmethod
    def absent(cls, metric: str, unit: str, status: Status, detail: str, method: str = "") -> Measurement:
        """A value that is missing, and why."""
        return cls(metric=metric, unit=unit, samples=(), method=method, status=status, detail=detail)

    @property
    def left_out(self) -> str:
        """The operators whose work a lower bound leaves out, with their calls; empty for any other value."""
        return self.detail.partition(LOWER_BOUND)[2] if self.lower_bound else ""

    @property
    def value(self) -> float:
        """The only sample of a measurement that has exactly one; raises ValueError for any other."""
        if len(self.samples) != 1 or len(self.samples[0]) != 1:
            raise ValueError(f"{self.metric} holds {[len(s) for s in self.samples]} samples, not one")
        return self.samples[0][0]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one cell: exactly one per cell, whatever happened to it.

    ``environment`` is the hash of the environment that it was measured in, ``started_at`` ISO 8601 with zone,
    ``duration_s`` seconds of wall time. ``cause`` is a finer name than ``status`` (``oom_single_buffer``,
    ``probable_oom``, ``not_finite``, ``crash``, ...), ``stderr_tail`` the last lines that the worker printed when it
    failed.
    """

    __pydantic_config__ = _STRICT_FIELDS

    cell: Cell
    status: Status
    measurements: tuple[Measurement, ...]
    environment: str
    started_at: str
    duration_s: Number
    schema: Count = SCHEMA
    cause: str = ""
    signal: Whole | None = None
    stderr_tail: str = ""
    detail: str = ""

    def measurement(self, metric: str) -> Measurement | None:
        """The measurement of that name, or None if the cell has none."""
        return next((m for m in self.measurements if m.metric == metric), None)

    def to_json(self) -> str:
        """One line of JSON without a line end. Raises ValueError for a number that is not finite."""
        content = dataclasses.asdict(self)
        for one in content["measurements"]:
            del one["fastest_reference"]
            if not one["lower_bound"]:  # as before there were any
                del one["lower_bound"]
        text = json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        # surrogates, which stand for bytes that are not text, are escaped: UTF-8 has none
        return text.encode("utf-8", errors="backslashreplace").decode("utf-8")

    @classmethod
    def from_json(cls, line: str | bytes) -> Record:
        """The record of one line, as the present schema has it. Raises ValueError for a line that is damaged or of a
        newer schema.
        """
        record = _parse(line, cls)
        for measurement in record.measurements:
            _check_measurement(measurement)
        return upgrade(record)


@dataclass(frozen=True, kw_only=True)
class NoiseCheck:
    """One process of the reference that took turns with the reference: their difference is noise.

    ``samples`` and ``reference_samples`` are seconds of a step, one value a turn.
    """

    __pydantic_config__ = _STRICT_FIELDS

    device: str
    threads: Positive
    started_at: str
    samples: tuple[Number, ...]
    reference_samples: tuple[Number, ...]

    def to_json(self) -> str:
        """One line of JSON without a line end."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> NoiseCheck:
        """The check of one line. Raises ValueError for a line that is damaged."""
        check = _parse(line, cls)
        if len(check.samples) != len(check.reference_samples) or min(check.reference_samples, default=0) <= 0:
            raise ValueError("its samples do not pair with positive reference_samples")
        return check


def _parse(line: str | bytes, kind: type[T]) -> T:
    with contextlib.suppress(ValidationError):
        fast: T = adapter(kind).validate_json(line)  # type: ignore[arg-type]
        if getattr(fast, "schema", 0) <= SCHEMA:
            return fast
    # pydantic's parser refuses escaped surrogates, which stand for bytes that are not text
    try:
        content = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(f"schema {schema} is newer than this vitbench reads ({SCHEMA}): upgrade vitbench")
    found: T = parse(content, kind)
    return found


def measurement_from_dict(data: Any) -> Measurement:
    """A Measurement from its JSON object. Raises ValueError for a value of the wrong type, a sample that is not a
    finite number, or turns that do not add up to the samples.
    """
    measurement: Measurement = parse(data, Measurement, "measurement")
    _check_measurement(measurement)
    return measurement


def _check_measurement(one: Measurement) -> None:
    """Raises ValueError where the parts of a measurement contradict each other."""
    if one.turns and [sum(counts) for counts in one.turns] != [len(process) for process in one.samples]:
        raise ValueError(f"the turns of {one.metric} do not add up to its samples")
    if one.reference_samples:
        if [len(counts) for counts in one.turns] != [len(process) for process in one.reference_samples]:
            raise ValueError(f"the reference samples of {one.metric} are not one a turn")
        if any(x <= 0 for process in one.reference_samples for x in process):
            raise ValueError(f"a reference sample of {one.metric} is not positive")
    if one.other_load and [len(counts) for counts in one.turns] != [len(process) for process in one.other_load]:
        raise ValueError(f"the other load of {one.metric} is not one a turn")
    if one.metric in _ONE_VALUE and one.status == "ok":
        value = one.value
        whole = int(value) if value == int(value) else value  # 10 may have been written as 10.0
        parse(whole, _ONE_VALUE[one.metric], one.metric)


def upgrade(record: Record) -> Record:
    """A record as the present schema has it: what earlier ones stated in words, or had among the samples, in fields."""
    if record.schema >= SCHEMA:
        return record
    measurements = list(record.measurements)
    if record.schema < 3:
        methods = {one.metric: one.method for one in measurements}
        measurements = [_name_reference(one, methods) for one in measurements]
    timed = {one.metric: one for one in measurements}
    first_calls = [_first_call(one) for one in measurements if one.metric in _OF_CALLS.values() and any(one.samples)]
    measurements = [_without_first_call(one, timed) for one in measurements]
    return replace(record, schema=SCHEMA, measurements=(*measurements, *first_calls))


#: What had first calls among its samples before schema 4, with the metric that has the seconds of these calls.
_OF_CALLS = {
    **dict.fromkeys(("latency", "latency_cpu_time", "throughput"), "latency"),
    **dict.fromkeys(("training_step", "training_step_cpu_time", "training_throughput"), "training_step"),
}


def _name_reference(one: Measurement, methods: Mapping[str, str]) -> Measurement:
    # a CPU time was taken in the same turns as the time itself, whose method names the reference
    timed = methods.get(one.metric.removesuffix("_cpu_time"), "")
    named = _REFERENCE_IN_METHOD.search(timed) if one.reference_samples else None
    return replace(one, reference=named[1] if named else "", executed="executed" in one.method)


def _first_call(one: Measurement) -> Measurement:
    calls = tuple(process[:1] for process in one.samples)
    return Measurement(metric="first_call", unit="s", samples=calls, method=f"the first call of: {one.method}")


def _without_first_call(one: Measurement, timed: Mapping[str, Measurement]) -> Measurement:
    """A time without the first call of each process that has others."""
    calls = timed.get(_OF_CALLS.get(one.metric, ""))
    if calls is None or not any(one.samples):
        return one
    samples, turns, reference = [], [], []
    for number, process in enumerate(one.samples):
        counts = one.turns[number] if one.turns else ()
        times = one.reference_samples[number] if one.reference_samples else ()
        # a CPU time has one value a turn: the first is the first call's where that turn had no other
        first_turns = [some[:1] for some in calls.turns[number : number + 1]]
        has_first_call = not one.metric.endswith("_cpu_time") or first_turns == [(1,)]
        if has_first_call and len(process) > 1:
            process = process[1:]
            alone = counts[:1] == (1,)
            counts = counts[1:] if alone or not counts else (counts[0] - 1, *counts[1:])
            times = times[1:] if alone else times
        samples.append(process)
        turns.append(counts)
        reference.append(times)
    return replace(
        one,
        samples=tuple(samples),
        turns=tuple(turns) if one.turns else (),
        reference_samples=tuple(reference) if one.reference_samples else (),
    )


def parse_image_size(text: str | int) -> tuple[int, int]:
    """``224`` -> (224, 224) and ``231x240`` -> (231, 240): height x width in px. Raises ValueError."""
    parts = str(text).lower().split("x")
    if len(parts) > 2 or not all(part.strip().lstrip("+-").isdigit() for part in parts):
        raise ValueError(f"Image size {text!r} is neither N nor HxW in pixels, such as 224 or 231x240")
    numbers = [int(part) for part in parts]
    if min(numbers) < 1:
        raise ValueError(f"Image size {text!r} is not positive: give pixels, such as 224 or 231x240")
    return numbers[0], numbers[-1]


def parse_grid(text: object) -> tuple[int, int]:
    """``4x16`` or ``4X16`` -> (4, 16): rows x columns of patches. Raises ValueError."""
    found = re.fullmatch(r"\s*([1-9][0-9]{0,8})\s*[xX]\s*([1-9][0-9]{0,8})\s*", str(text))
    if found is None:
        raise ValueError(f"{text!r} is not ROWSxCOLUMNS of the patches in the file, such as 4x16")
    return int(found[1]), int(found[2])


def format_image_size(size: tuple[int, int]) -> str:
    """The shortest spelling: (224, 224) -> ``224`` and (231, 240) -> ``231x240``."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"

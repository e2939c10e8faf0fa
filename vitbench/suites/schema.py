"""The keys of a suite file and what they mean: each table of the TOML is a class here."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from vitbench.core.records import RGB, Attention, Cell, Dtype, Mode, format_image_size, parse_grid, parse_image_size
from vitbench.core.registry import METRICS
from vitbench.core.stats.intervals import MIN_PROCESSES
from vitbench.core.stats.relative import MIN_FIRST_STAGE
from vitbench.suites.thresholds import parse_fraction, parse_tolerance, written_tolerance

#: A model's own image size.
NATIVE = "native"
#: ``weights`` that nobody has trained.
RANDOM = "random"
#: The option of training cells that use only some of the training images.
TRAIN_IMAGES = "train_images"
#: What a suite with [frontier] measures by default: each attempt takes seconds.
FRONTIER_METRICS = ("params", "flops", "predicted_peak_memory", "memory")

#: Limits that only a typing mistake exceeds.
_LARGEST_SIDE = 65_536
_MOST_BYTES = 2**60

_BYTES = re.compile(r"^(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]i?B|B)?$", re.IGNORECASE)
_UNITS = {
    "b": 1,
    **{f"{p}b": 1000**n for n, p in enumerate("kmgt", 1)},
    **{f"{p}ib": 1024**n for n, p in enumerate("kmgt", 1)},
}


def parse_bytes(value: int | float | str) -> int:
    """``8GiB``, ``500 MB`` or a number of bytes. Raises ValueError for anything else, and for less than 1 byte."""
    match = _BYTES.match(str(value).strip())
    amount = float(match["number"]) * _UNITS[(match["unit"] or "B").lower()] if match else 0
    if not 1 <= amount <= _MOST_BYTES:
        raise ValueError(f"{value!r} is not a valid memory size: give 8GiB, 500MB or a number of bytes")
    return int(amount)


def matches(name: str, pattern: str) -> bool:
    """Whether ``name`` is ``pattern``, or matches it as a shell pattern."""
    return fnmatch.fnmatchcase(name, pattern)


def written_size(size: Any) -> int | str:
    """An image size as a suite file has it: 224, ``231x240`` or ``native``."""
    if size == NATIVE:
        return NATIVE
    text = format_image_size(size)
    return int(text) if text.isdigit() else text


def _image_size(value: Any) -> Any:
    if value == NATIVE:
        return value
    if isinstance(value, list | tuple):
        value = "x".join(str(side) for side in value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"Image size {value!r} is neither N nor HxW in pixels, such as 224 or 231x240")
    size = parse_image_size(value)
    if max(size) > _LARGEST_SIDE:
        raise ValueError(f"Image size {value!r} is too large: give sides of at most {_LARGEST_SIDE} px")
    return size


def _grid(value: Any) -> str:
    return "x".join(map(str, parse_grid(value)))


def _unicode(text: str) -> str:
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):  # of a file name in another encoding
        raise ValueError(f"{text!r} is not valid Unicode, which a suite file takes: rename the file")
    return text


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


T = TypeVar("T")
Listed = Annotated[tuple[T, ...], BeforeValidator(_as_list)]
Some = Annotated[tuple[T, ...], BeforeValidator(_as_list), Field(min_length=1)]
Positive = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Classes = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Channels = Annotated[int, Field(ge=1, le=4096, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Text = Annotated[str, AfterValidator(_unicode)]
Name = Annotated[Text, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]
ImageSize = Annotated[tuple[int, int] | Literal["native"], BeforeValidator(_image_size)]
#: Written as per cent, because a bare 1.5 is refused.
Tolerance = Annotated[float, BeforeValidator(parse_tolerance), PlainSerializer(written_tolerance)]
Threads = Annotated[int, Field(ge=1, le=4096, strict=True)] | Literal["auto"]


class Table(BaseModel):
    """A table of a suite file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Measure(Table):
    """How much is sampled: fresh processes per timed cell, and seconds and steady samples in each, without turns that
    are taken again because the machine was not quiet. While other programs disturb, a run waits for at most
    ``patience_s`` in all.

    ``precision``: from five processes on, their spread decides how many more follow, until the 95 % interval of the
    relative latency is at most this wide to either side ("5%" or 0.05), ``max_processes`` have run, or the next one
    would not fit into ``max_seconds`` of the cell; none follow where the cell's rank among those that it took turns
    with is clear. 0 runs exactly ``processes``. ``cores``: the logical cores that timed
    processes are bound to (Linux, Windows); by default the system chooses.
    """

    processes: Positive = 5
    seconds: Seconds = 1.0
    min_samples: Positive = 10
    max_samples: Positive = 1000
    precision: Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1, allow_inf_nan=False)] = 0.05
    max_processes: Positive = 15
    max_seconds: Seconds = 60.0
    patience_s: Annotated[float, Field(ge=0, le=1e8, allow_inf_nan=False)] = 60.0
    cores: tuple[Annotated[int, Field(ge=0, strict=True)], ...] | None = None

    @property
    def fewest_processes(self) -> int:
        """Three, which show how processes differ, where the suite is to know that; else one."""
        return MIN_PROCESSES if self.processes >= MIN_FIRST_STAGE else 1

    @model_validator(mode="after")
    def _in_order(self) -> Measure:
        if self.min_samples > self.max_samples:
            raise ValueError(f"min_samples ({self.min_samples}) is more than max_samples ({self.max_samples})")
        return self


class Training(Table):
    """Training cells: a data set, recipes, and which of their settings are overridden. At most one budget is given.

    ``data``: a data set's name or the path of an image folder; ``data_dir``: the folder of downloaded data sets.
    ``recipe``: one or several, names or paths; each makes training cells of its own. A budget (``images``, ``steps``,
    ``epochs`` or ``seconds``) replaces that of every recipe; ``share`` is the fraction of it that is trained.
    ``train_images`` and ``test_images``: at most so many images are trained and tested on; by default all.
    ``devices``: where cells are trained, by default each of the suite's devices; ``auto`` is one device, the first
    accelerator of the suite's, else the first of them.
    """

    data: Text = "digits"
    data_dir: Text | None = None
    download: bool = False
    recipe: Some[Name] = ("brief",)
    images: Positive | None = None
    steps: Positive | None = None
    epochs: Seconds | None = None
    seconds: Seconds | None = None
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    batch_size: Positive | None = None
    image_size: ImageSize | None = None
    train_images: Positive | None = None
    test_images: Positive | None = None
    devices: Some[Text] | None = None
    timeout_s: Seconds = 3600.0

    @field_validator("recipe", "devices")
    @classmethod
    def _once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _one_budget(self) -> Training:
        given = [name for name in ("images", "steps", "epochs", "seconds") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given together: a training has one budget")
        return self


class Frontier(Table):
    """Search the largest batch that fits instead of measuring given batches: doubling from 1 up to ``max_batch``
    images, then bisection to one image.
    """

    max_batch: Positive = 1024


class Conditions(Table):
    """Keys that select cells: a cell must have one of the listed values of every key given."""

    image_sizes: Listed[ImageSize] | None = None
    batch_sizes: Listed[Positive] | None = None
    devices: Listed[Text] | None = None
    dtypes: Listed[Dtype] | None = None
    attention: Listed[Attention] | None = None
    compile: Listed[bool] | None = None
    modes: Listed[Mode] | None = None
    threads: Listed[Positive] | None = None

    @field_validator("image_sizes")
    @classmethod
    def _in_pixels(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if NATIVE in (value or ()):
            raise ValueError("a rule names sizes in pixels, not 'native'")
        return value

    def meets(self, cell: Cell) -> bool:
        """Whether ``cell`` matches every key."""
        values = {
            "image_sizes": cell.image_size,
            "batch_sizes": cell.batch_size,
            "devices": cell.device,
            "dtypes": cell.dtype,
            "attention": cell.attention,
            "compile": cell.compile,
            "modes": cell.mode,
            "threads": cell.threads,
        }
        return all(getattr(self, key) is None or value in getattr(self, key) for key, value in values.items())


class Exclude(Conditions):
    """Drops the cells that match every key given.

    ``models`` and ``recipes`` may be patterns (``cifar_*``); a rule with ``recipes`` matches training cells only.
    """

    models: Listed[Text] | None = None
    recipes: Listed[Name] | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Exclude:
        if not self.model_dump(exclude_none=True):
            raise ValueError("an empty [[exclude]] would drop every cell: give at least one key")
        return self

    @property
    def text(self) -> str:
        """Its keys in one line: ``modes train, batch_sizes 1``."""
        given = {key: getattr(self, key) for key in type(self).model_fields if getattr(self, key) is not None}
        if self.image_sizes is not None:
            given["image_sizes"] = [written_size(size) for size in self.image_sizes]
        return ", ".join(f"{key} {' '.join(map(str, values))}" for key, values in given.items())

    def drops(self, cell: Cell) -> bool:
        """Whether ``cell`` matches every key."""
        if self.models is not None and not any(matches(cell.model, pattern) for pattern in self.models):
            return False
        if self.recipes is not None:
            recipe = cell.weights.removeprefix("train:")
            if not cell.trains or not any(matches(recipe, pattern) for pattern in self.recipes):
                return False
        return self.meets(cell)


class Threshold(Conditions):
    """How far a value may get worse before a gate fails (``tolerance``: "5%" or 0.05; by default the metric's own), or
    that it does not gate at all (``gate = false``). The last table that matches a value counts.

    ``metric`` is a name or a pattern (``tensor_peak*``), ``cells`` are names or patterns of models; the other keys are
    those of an ``[[exclude]]``.
    """

    metric: Name
    cells: Some[Name] = ("*",)
    tolerance: Tolerance | None = None
    gate: bool = True

    def covers(self, cell: Cell, metric: str) -> bool:
        """Whether it is about this value."""
        of_model = any(matches(cell.model, pattern) for pattern in self.cells)
        return of_model and matches(metric, self.metric) and self.meets(cell)


class Suite(Table):
    """What to measure. Every list is an axis; scalars may stand for lists of one.

    ``devices``: names or ``auto`` (every device found). ``image_sizes``: px, ``HxW`` or ``native`` (each model's own,
    or what a checkpoint was trained at if the file says so). ``num_classes``: by default the data set's if the suite
    trains, else each model's own; 0: backbones, which are not trained. ``in_channels``: of the images; models of timm
    and your own builders take others than 3. ``threads``: a number or ``auto`` (the physical cores). ``weights``:
    ``random``, ``pretrained`` (as the models' libraries publish them) or the path of a checkpoint of the one model;
    with given weights the training section says what to test on, and nothing is trained. ``entry``: which weights of a
    checkpoint that has several. ``replace_head``: leave out its head of another class count. ``grid``: rows and columns
    of its patches, ``4x16``. ``memory_limit``: bytes that a worker may use beyond its libraries. ``timeout_s``: for
    each process of a cell. ``frontier``: search batch sizes rather than give them; such a suite trains nothing, and by
    default measures parameters, FLOPs and memory.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    description: Text = ""
    models: Some[Text]
    image_sizes: Some[ImageSize] = ("native",)
    num_classes: Classes | None = None
    in_channels: Channels = RGB
    frontier: Frontier | None = None  # before the keys that are checked against it
    batch_sizes: Some[Positive] = (1,)
    devices: Some[Text] = ("auto",)
    dtypes: Some[Dtype] = ("fp32",)
    attention: Some[Attention] = ("fused",)
    compile: Some[bool] = (False,)
    modes: Some[Mode] = ("infer",)
    threads: Some[Threads] = ("auto",)
    metrics: Some[Text] = ()
    seeds: Some[Seed] = (0,)
    weights: Name = RANDOM
    entry: Name | None = None
    replace_head: bool = False
    grid: Annotated[str, BeforeValidator(_grid)] | None = None
    memory_limit: Annotated[int, BeforeValidator(parse_bytes)] | None = None
    timeout_s: Seconds = 300.0
    measure: Measure = Measure()
    training: Training | None = None
    exclude: tuple[Exclude, ...] = ()
    thresholds: tuple[Threshold, ...] = ()

    @field_validator("batch_sizes", "training", "exclude", "metrics")
    @classmethod
    def _fits_a_search(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("frontier") is not None:  # defaults are not validated
            _refuse_in_a_search(str(info.field_name), value)
        return value

    @field_validator(
        "models", "image_sizes", "batch_sizes", "devices", "dtypes", "attention", "modes", "metrics", "seeds"
    )
    @classmethod
    def _once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(value))  # a value given twice is measured once

    @model_validator(mode="before")
    @classmethod
    def _all_metrics(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        usual = default_metrics() if data.get("frontier") is None else list(FRONTIER_METRICS)
        return {**data, "metrics": data.get("metrics") or usual}

    @model_serializer(mode="wrap")
    def _as_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        if self.frontier is not None:
            content.pop("batch_sizes", None)  # a search refuses them when the content is read again
        return content


def default_metrics() -> list[str]:
    """The metrics of a suite that names none."""
    return [name for name in METRICS if METRICS.get(name).by_default]


def _refuse_in_a_search(key: str, value: Any) -> None:
    """Raises ValueError for what does not go with [frontier]."""
    if key == "batch_sizes":
        raise ValueError("batch sizes are not given with [frontier], which searches them up to its max_batch")
    if key == "training" and value is not None:
        raise ValueError("nothing is trained with [frontier]: leave [training] (--data) out")
    if key == "exclude" and any(rule.batch_sizes is not None for rule in value):
        raise ValueError("a rule for batch_sizes has no effect with [frontier], which searches them")
    if key == "metrics" and "memory" not in value:
        raise ValueError("[frontier] needs the metric memory, which finds out what fits")

"""Suites: TOML files that say what to measure, validated before anything runs, expanded to cells.

Importing this loads no torch. The keys of a suite are the fields of :class:`Suite`; a suite is the cross product of
its axes, less what an ``[[exclude]]`` table drops.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from vitbench.core.errors import ImageSizeError, SuiteError, UnknownNameError
from vitbench.core.files import read_toml
from vitbench.core.records import (
    ATTENTIONS,
    DTYPES,
    MODES,
    Attention,
    Cell,
    Dtype,
    Mode,
    format_image_size,
    parse_image_size,
)
from vitbench.core.registry import METRICS
from vitbench.models.cards import PRETRAINED, find_models, is_external, is_pattern
from vitbench.suites.batch_search import most_attempts
from vitbench.suites.thresholds import known_metrics, parse_tolerance

BUILT_IN = Path(__file__).parent
DEFAULT_SUITE = "lightweight"
NATIVE = "native"
#: What a suite with [frontier] measures of each attempt unless it says otherwise: that takes seconds.
FRONTIER_METRICS = ("params", "flops", "memory")
#: What ``weights`` may be beside a path.
RANDOM = "random"
#: The option of a training cell that saw so many of the training pictures at most.
TRAIN_IMAGES = "train_images"

#: More cells than these are a slip of the keyboard: at ten seconds each they would take a day.
MOST_CELLS = 10_000
#: What a plan holds of each cell in memory, roughly.
_BYTES_A_CELL = 2_000

#: What a suite may say: more than a person would, little enough to be read in the first second.
_MOST_BYTES = 2**60
_LARGEST_SIDE = 65_536
_LONGEST_LIST = 10_000
_LONGEST_TEXT = 4096
#: Control characters, and halves of characters, as which bytes that are no text come from a command line.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


_BYTES = re.compile(r"^(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]i?B|B)?$", re.IGNORECASE)
_UNITS = {
    "b": 1,
    **{f"{p}b": 1000**n for n, p in enumerate("kmgt", 1)},
    **{f"{p}ib": 1024**n for n, p in enumerate("kmgt", 1)},
}


def parse_bytes(value: int | float | str) -> int:
    """``8GiB``, ``500 MB`` or a number of bytes. Raises ValueError for anything else, and for less than 1 byte."""
    match = _BYTES.match(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is no amount of memory, such as 8GiB, 500MB or a number of bytes")
    amount = float(match["number"]) * _UNITS[(match["unit"] or "B").lower()]
    if amount < 1:
        raise ValueError(f"{value!r} is not positive")
    if amount > _MOST_BYTES:
        raise ValueError(f"{_shown(value)} is more memory than any machine has")
    return int(amount)


def _image_size(value: Any) -> Any:
    if value == NATIVE:
        return value
    if isinstance(value, list | tuple):
        value = "x".join(str(side) for side in value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"Image size {value!r} is neither N nor HxW in pixels, such as 224 or 231x240")
    size = parse_image_size(value)
    if max(size) > _LARGEST_SIDE:
        raise ValueError(f"Image size {_shown(value)} is too large: give sides of at most {_LARGEST_SIDE} px")
    return size


def _one_or_many(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return [value]
    if len(value) > _LONGEST_LIST:
        raise ValueError(f"the list has {len(value):,} entries: give at most {_LONGEST_LIST:,}")
    return value


def _shown(value: object) -> str:
    """What was given, in a message: not all of it if it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text):,} characters)"


#: Command-line options that are not called like the key that they replace.
OPTIONS = {"seeds": "seed", "timeout_s": "timeout"}

Positive = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Name = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]
ImageSize = Annotated[tuple[int, int] | Literal["native"], BeforeValidator(_image_size)]
Threads = Annotated[int, Field(ge=1, le=4096, strict=True)] | Literal["auto"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measure(_Table):
    """How much is sampled: fresh processes a timed cell, and in each seconds and samples.

    ``precision``: from five processes on, their spread decides how many more there will be, so that the 95 % interval
    of the relative latency is at most this wide to either side (0.05: 5 %); not more than ``max_processes`` in all, nor
    than fit into ``max_seconds`` of the cell. 0 asks for no more processes than ``processes``. ``cores``: the logical
    cores that timed processes are bound to (Linux, Windows); by default the system chooses.
    """

    processes: Positive = 5
    seconds: Seconds = 1.0
    min_samples: Positive = 10
    max_samples: Positive = 1000
    precision: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.05
    max_processes: Positive = 15
    max_seconds: Seconds = 60.0
    cores: tuple[Annotated[int, Field(ge=0, strict=True)], ...] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Measure:
        if self.min_samples > self.max_samples:
            raise ValueError(f"min_samples ({self.min_samples}) is more than max_samples ({self.max_samples})")
        return self


class Training(_Table):
    """Training cells: a data set, recipes, and what of them is overridden. At most one budget is given.

    ``data``: a data set's name or the path of an image folder; ``data_dir``: where downloaded data sets are.
    ``recipe``: one or several, names or paths; each makes training cells of its own. A budget (``images``, ``steps``,
    ``epochs`` or ``seconds``) replaces that of every recipe; ``share`` is the fraction of it that is trained.
    ``train_images``: how many training pictures there are at most, ``test_images``: how many held-out pictures are
    tested; by default all. ``devices``: where is trained, each of the suite's by default; ``auto`` is one device, the
    first accelerator of the suite's, else the first of them.
    """

    data: str = "digits"
    data_dir: str | None = None
    download: bool = False
    recipe: Annotated[tuple[Name, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = ("brief",)
    images: Positive | None = None
    steps: Positive | None = None
    epochs: Seconds | None = None
    seconds: Seconds | None = None
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    batch_size: Positive | None = None
    image_size: ImageSize | None = None
    train_images: Positive | None = None
    test_images: Positive | None = None
    devices: Annotated[tuple[str, ...], BeforeValidator(_one_or_many), Field(min_length=1)] | None = None
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


class Frontier(_Table):
    """Search the largest batch that fits instead of measuring given batches: doubling from 1 up to ``max_batch``
    images, then bisection to one image.
    """

    max_batch: Positive = 1024


class _Conditions(_Table):
    """Keys by which a rule picks cells; one matches if the cell's value is in its list."""

    image_sizes: Annotated[tuple[ImageSize, ...], BeforeValidator(_one_or_many)] | None = None
    batch_sizes: Annotated[tuple[Positive, ...], BeforeValidator(_one_or_many)] | None = None
    devices: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] | None = None
    dtypes: Annotated[tuple[Dtype, ...], BeforeValidator(_one_or_many)] | None = None
    attention: Annotated[tuple[Attention, ...], BeforeValidator(_one_or_many)] | None = None
    compile: Annotated[tuple[bool, ...], BeforeValidator(_one_or_many)] | None = None
    modes: Annotated[tuple[Mode, ...], BeforeValidator(_one_or_many)] | None = None
    threads: Annotated[tuple[Positive, ...], BeforeValidator(_one_or_many)] | None = None

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


class Exclude(_Conditions):
    """Drops the cells that match every key given; a key matches if the cell's value is in its list.

    ``models`` and ``recipes`` may be patterns (``cifar_*``); a rule with ``recipes`` matches training cells only.
    """

    models: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] | None = None
    recipes: Annotated[tuple[Name, ...], BeforeValidator(_one_or_many)] | None = None

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
            given["image_sizes"] = [_written_size(size) for size in self.image_sizes]
        return ", ".join(f"{key} {' '.join(map(str, values))}" for key, values in given.items())

    def drops(self, cell: Cell) -> bool:
        """Whether ``cell`` matches every key."""
        if self.models is not None and not any(_matches(cell.model, pattern) for pattern in self.models):
            return False
        if self.recipes is not None:
            recipe = cell.weights.removeprefix("train:")
            if not cell.trains or not any(_matches(recipe, pattern) for pattern in self.recipes):
                return False
        return self.meets(cell)


class Threshold(_Conditions):
    """How far a figure may get worse before a gate fails (``tolerance``: "5%" or 0.05; by default the metric's own), or
    that it does not count at all (``gate = false``). The last table that matches a figure counts.

    ``metric`` is a name or a pattern (``tensor_peak*``), ``cells`` are names or patterns of models; the other keys are
    those of an ``[[exclude]]``.
    """

    metric: Name
    cells: Annotated[tuple[Name, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = ("*",)
    tolerance: Annotated[float, BeforeValidator(parse_tolerance)] | None = None
    gate: bool = True

    def covers(self, cell: Cell, metric: str) -> bool:
        """Whether it is about this figure."""
        of_model = any(_matches(cell.model, pattern) for pattern in self.cells)
        return of_model and _matches(metric, self.metric) and self.meets(cell)


class Suite(_Table):
    """What to measure. Every list is an axis; scalars may stand for lists of one.

    ``devices``: names or ``auto`` (every device found). ``image_sizes``: px, ``HxW`` or ``native`` (each model's own,
    or what a checkpoint was trained at if the file says so). ``num_classes``: by default the data set's, where the
    suite trains, else each model's own. ``threads``: a number or ``auto`` (the physical cores). ``weights``:
    ``random``, ``pretrained`` (as the models' libraries publish them) or the path of a checkpoint of the one model;
    then a training section says what to test on, and nothing is trained.
    ``replace_head``: leave out a checkpoint's head of another class count. ``memory_limit``: bytes that a worker may
    take beyond its libraries. ``timeout_s``: for each process of a cell. ``frontier``: search batch sizes rather than
    give them; such a suite trains nothing, and by default measures parameters, FLOPs and memory.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    description: str = ""
    models: Annotated[tuple[str, ...], BeforeValidator(_one_or_many), Field(min_length=1)]
    image_sizes: Annotated[tuple[ImageSize, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = ("native",)
    num_classes: Positive | None = None
    frontier: Frontier | None = None  # before what is checked against it
    batch_sizes: Annotated[tuple[Positive, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = (1,)
    devices: Annotated[tuple[str, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = ("auto",)
    dtypes: Annotated[tuple[Dtype, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = ("fp32",)
    attention: Annotated[tuple[Attention, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = ("fused",)
    compile: Annotated[tuple[bool, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = (False,)
    modes: Annotated[tuple[Mode, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = ("infer",)
    threads: Annotated[tuple[Threads, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = ("auto",)
    metrics: Annotated[tuple[str, ...], BeforeValidator(_one_or_many), Field(min_length=1)] = ()
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**31, strict=True)], ...],
        BeforeValidator(_one_or_many),
        Field(min_length=1),
    ] = (0,)
    weights: Annotated[str, Field(min_length=1)] = RANDOM
    replace_head: bool = False
    memory_limit: Annotated[int, BeforeValidator(parse_bytes)] | None = None
    timeout_s: Seconds = 300.0
    measure: Measure = Measure()
    training: Training | None = None
    exclude: tuple[Exclude, ...] = ()
    thresholds: tuple[Threshold, ...] = ()

    @field_validator("batch_sizes", "training", "exclude", "metrics")
    @classmethod
    def _fits_a_search(cls, value: Any, info: ValidationInfo) -> Any:
        """What a search of batch sizes leaves no room for. Called for what is given, not for defaults."""
        if info.data.get("frontier") is not None:
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
        """A search has batch sizes of its own, which content that is read again must not give."""
        content: dict[str, Any] = serialize(self)
        if self.frontier is not None:
            content.pop("batch_sizes", None)
        return content


class _Thresholds(_Table):
    """The thresholds of a suite without the suite."""

    thresholds: tuple[Threshold, ...] = ()


def _refuse_in_a_search(key: str, value: Any) -> None:
    """Raises ValueError for what does not go with [frontier]."""
    if key == "batch_sizes":
        raise ValueError("batch sizes are not given with [frontier], which searches them up to its max_batch")
    if key == "training" and value is not None:
        raise ValueError("nothing is trained with [frontier]: leave [training] (--data) out")
    if key == "exclude" and any(rule.batch_sizes is not None for rule in value):
        raise ValueError("a rule for batch_sizes says nothing with [frontier], which searches them")
    if key == "metrics" and "memory" not in value:
        raise ValueError("[frontier] needs the metric memory, which finds out what fits")


def default_metrics() -> list[str]:
    """What a suite that names no metrics measures."""
    return [name for name in METRICS if METRICS.get(name).by_default]


class NoCellsLeftError(SuiteError):
    """A suite whose rules drop every cell."""


@dataclass(frozen=True)
class ModelFacts:
    """What expansion needs to know of a model: its native size (px), its classes, whether a size is legal, the name of
    its published weights (empty if there are none) and the classes of their head.
    """

    image_size: tuple[int, int]
    num_classes: int
    check_image_size: Callable[[tuple[int, int]], None]
    published_weights: str = ""
    published_classes: int | None = None


@dataclass(frozen=True)
class RecipeFacts:
    """What expansion needs to know of a recipe."""

    name: str
    hash: str
    batch_size: int


@dataclass(frozen=True)
class TrainingFacts:
    """What expansion needs to know of a suite's training: the data set's label and classes, the recipes (at least one),
    and ``train_images`` if these are less than all.
    """

    data: str
    num_classes: int
    recipes: tuple[RecipeFacts, ...]
    train_images: int | None = None


def list_suites() -> dict[str, Path]:
    """The built-in suites: name to file."""
    return {path.stem: path for path in sorted(BUILT_IN.glob("*.toml"))}


def find_suite(name_or_path: str) -> Path:
    """The file of a built-in suite, or the path given. Raises UnknownNameError or SuiteError."""
    built_in = list_suites()
    if name_or_path in built_in:
        return built_in[name_or_path]
    path = Path(name_or_path)
    there = os.path.isfile(path)  # not Path.is_file, which raises for a name that no system takes
    if path.suffix == ".toml" or there:
        if not there:
            raise SuiteError(f"Suite file {name_or_path!r} does not exist. See: vitbench list suites")
        return path
    raise UnknownNameError("suite", name_or_path, built_in, "vitbench list suites")


def load_suite(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Suite:
    """Read and validate a suite; ``overrides`` (key to value) replace its keys, named as command-line options in
    errors.

    Raises SuiteError (file, key, allowed keys or values) and UnknownNameError.
    """
    path = find_suite(name_or_path)
    try:
        content = read_toml(path, f"Suite {path.name}")
    except ValueError as error:
        raise SuiteError(str(error)) from error
    content.setdefault("name", path.stem)
    return make_suite(content, path.name, overrides or {})


def make_suite(content: Mapping[str, Any], source: str, overrides: Mapping[str, Any] | None = None) -> Suite:
    """Validate a suite's content. Raises SuiteError, and UnknownNameError for models and metrics."""
    overrides = overrides or {}
    _refuse_strange_texts({**content, **overrides}, source, overrides)
    try:
        suite = Suite.model_validate({**content, **overrides})
    except ValidationError as error:
        raise SuiteError(_first_problem(error, source, overrides)) from error
    for name in suite.metrics:
        METRICS.get(name)
    for rule in suite.exclude:
        for pattern in rule.models or ():
            find_models(pattern)  # a typo would drop nothing, in silence
    names = tuple(dict.fromkeys(itertools.chain.from_iterable(find_models(pattern) for pattern in suite.models)))
    check_thresholds(suite.thresholds, f"Suite {source}, key thresholds", models=names)
    return suite.model_copy(update={"models": names})


def make_thresholds(
    tables: Any, source: str, *, models: Iterable[str] | None = None, metrics: Iterable[str] = ()
) -> tuple[Threshold, ...]:
    """Validate ``[[thresholds]]`` tables alone, which ``source`` (``Suite mine.toml``) gives. Raises SuiteError as
    ``check_thresholds`` does, and for a table that is none.
    """
    _refuse_strange_texts({"thresholds": tables}, source, {})
    try:
        rules = _Thresholds.model_validate({"thresholds": tables}).thresholds
    except ValidationError as error:
        raise SuiteError(_first_problem(error, source, {})) from error
    check_thresholds(rules, f"Suite {source}, key thresholds", models=models, metrics=metrics)
    return rules


def check_thresholds(
    rules: Iterable[Threshold], where: str, *, models: Iterable[str] | None = None, metrics: Iterable[str] = ()
) -> None:
    """Raises SuiteError, in a line that begins with ``where``, for a rule that is about nothing: a metric that is none
    of ours, of those registered or of ``metrics``, or a pattern that none of ``models`` matches.
    """
    names = list(models) if models is not None else None
    known = known_metrics(metrics)
    for rule in rules:
        if not any(_matches(name, rule.metric) for name in known):
            close = difflib.get_close_matches(rule.metric, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}"
            raise SuiteError(f"{where}: there is no metric {_shown(rule.metric)} to compare. {hint}")
        for pattern in rule.cells if names is not None else ():
            # what a pattern over other libraries' names means is known only to them
            if not any(_matches(name, pattern) or (is_external(name) and is_pattern(name)) for name in names or ()):
                raise SuiteError(f"{where}: no model is called {_shown(pattern)} here: {_some_of(names or [])}")


def _some_of(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _refuse_strange_texts(content: Mapping[str, Any], source: str, overrides: Mapping[str, Any]) -> None:
    """Names become parts of files, of lines and of tables: no text but a description goes over several lines, and none
    holds what is no text. Raises SuiteError.
    """
    for key, value in content.items():
        for text in _texts_in(value):
            found = _NO_TEXT.search(text.replace("\n", "").replace("\t", "") if key == "description" else text)
            where = f"Option --{OPTIONS.get(key, key.replace('_', '-'))}" if key in overrides else f"Suite {source}"
            if found is not None:
                raise SuiteError(f"{where}: {_shown(text)} holds {found[0]!r}, which is no sign of a text")
            if len(text) > _LONGEST_TEXT:
                raise SuiteError(f"{where}: {_shown(text)} is too long: give at most {_LONGEST_TEXT:,} characters")


def _texts_in(value: Any) -> Iterator[str]:
    """Every text in lists and tables, however nested; without their keys, which are checked by name."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts_in(one)


def count_cells(suite: Suite, *, devices: int = 1) -> tuple[int, str]:
    """How many cells a suite asks for, by arithmetic, before its rules drop any; and the factors, in words.

    ``devices``: how many ``auto`` stands for. A pattern over other libraries' names counts as one model until it is
    replaced by what it means, and an attempt of a search for the largest batch counts as a cell.
    """
    named = len({name for name in suite.devices if name != "auto"}) + (devices if "auto" in suite.devices else 0)
    metrics = [METRICS.get(name) for name in suite.metrics]
    timed = [metric for metric in metrics if metric.process != "training"]
    common = {"models": len(suite.models), "devices": named, "dtypes": len(suite.dtypes), "seeds": len(suite.seeds)}
    factors = {
        **common,
        "image_sizes": len(suite.image_sizes),
        "batch_sizes": len(suite.batch_sizes),
        "modes": sum(any(mode in metric.modes for metric in timed) for mode in suite.modes),
        "attention": len(suite.attention),
        "compile": len(set(suite.compile)),
        "threads": len(set(suite.threads)),
    }
    if suite.frontier is not None:
        factors["batch_sizes"] = most_attempts(suite.frontier.max_batch)
    total, most = math.prod(factors.values()), factors
    if suite.training is not None and len(timed) < len(metrics):
        own_size = suite.weights == RANDOM and suite.training.image_size is not None
        trained = {
            **common,
            "devices": len(suite.training.devices or ()) or named,
            "image_sizes": 1 if own_size else len(suite.image_sizes),
            "recipes": len(suite.training.recipe) if suite.weights == RANDOM else 1,
        }
        count = math.prod(trained.values())
        total, most = total + count, most if total >= count else trained
    return total, " x ".join(f"{count:,} {name}" for name, count in most.items() if count > 1)


def check_count(suite: Suite, *, devices: int = 1, allow_many: bool = False) -> None:
    """Raises SuiteError for a suite of more than MOST_CELLS cells, unless ``allow_many``; and in any case if planning
    them would take more memory than there is. See ``count_cells``.
    """
    count, factors = count_cells(suite, devices=devices)
    if count <= MOST_CELLS:
        return
    asked = f"Suite {suite.name!r} asks for {count:,} cells ({factors})"
    if suite.exclude:
        asked += " before its [[exclude]] rules"
    if not allow_many:
        raise SuiteError(f"{asked}, more than {MOST_CELLS:,}: give shorter lists, or --yes to go on all the same")
    from vitbench.devices.host.memory import available_memory

    free = available_memory()
    if count * _BYTES_A_CELL > free:
        raise SuiteError(
            f"{asked}, for whose plan {free / 1e9:.1f} GB of free memory do not suffice, also with --yes: make several "
            "suites of it"
        )


def expand(
    suite: Suite,
    *,
    devices: Sequence[str],
    threads: int,
    models: Mapping[str, ModelFacts],
    training: TrainingFacts | None,
    checkpoint: str = "",
    note: Callable[[str], None] = lambda text: None,
) -> list[Cell]:
    """The cells of a suite, in the order in which they are measured: the timed ones model by model, then the training
    ones.

    ``devices`` are those that ``auto`` stands for (in ``[training]``, too: a plan puts one device in its place before),
    ``threads`` what ``auto`` threads are, ``checkpoint`` is the digest of the suite's checkpoint, if it has one.
    ``note`` is told how many cells the rules drop. Raises ImageSizeError for a size that a model does not take,
    SuiteError for a model without published weights where these are asked for.
    """
    named = _named_devices(suite.devices, devices)
    timed_metrics = [name for name in suite.metrics if METRICS.get(name).process != "training"]
    cells: list[Cell] = []
    if timed_metrics:
        axes = itertools.product(
            suite.models,
            suite.image_sizes,
            named,
            suite.dtypes,
            suite.attention,
            suite.compile,
            suite.threads,
            suite.seeds,
            suite.modes,
            suite.batch_sizes,
        )
        for model, size, device, dtype, attention, compiled, count, seed, mode, batch_size in axes:
            if not any(mode in METRICS.get(name).modes for name in timed_metrics):
                continue
            cells.append(
                Cell(
                    model=model,
                    image_size=_pixels(models[model], size),
                    num_classes=_classes(suite, models[model], training),
                    batch_size=batch_size,
                    device=device,
                    threads=threads if count == "auto" else count,
                    dtype=dtype,
                    mode=mode,
                    attention=attention,
                    compile=compiled,
                    memory_limit=suite.memory_limit,
                    weights=_weights(suite, model, models[model], checkpoint),
                    seed=seed,
                )
            )
    if training is not None and len(timed_metrics) < len(suite.metrics):
        assert suite.training is not None
        # weights that are given are tested at the sizes that are measured; a training may have a size of its own
        own_size = suite.training.image_size if suite.weights == RANDOM else None
        sizes = suite.image_sizes if own_size is None else (own_size,)
        count = suite.threads[0]
        learns = suite.weights == RANDOM
        recipes = training.recipes if learns else training.recipes[:1]
        # weights that are given are tested wherever they are timed
        places = _named_devices(suite.training.devices or ("auto",), named) if learns else named
        fewer = ((TRAIN_IMAGES, str(training.train_images)),) if learns and training.train_images else ()
        for model, size, device, dtype, recipe, seed in itertools.product(
            suite.models, sizes, places, suite.dtypes, recipes, suite.seeds
        ):
            cells.append(
                Cell(
                    model=model,
                    image_size=_pixels(models[model], size),
                    num_classes=_classes(suite, models[model], training),
                    batch_size=recipe.batch_size,
                    device=device,
                    threads=threads if count == "auto" else count,
                    dtype=dtype,
                    mode="train" if learns else "infer",
                    attention=suite.attention[0],
                    memory_limit=suite.memory_limit,
                    weights=f"train:{recipe.name}" if learns else _weights(suite, model, models[model], checkpoint),
                    data=training.data,
                    recipe_hash=recipe.hash if learns else None,
                    seed=seed,
                    options=fewer,
                )
            )
    if suite.weights == PRETRAINED and not suite.replace_head:
        _refuse_random_heads(cells, models)
    kept = [cell for cell in cells if not any(rule.drops(cell) for rule in suite.exclude)]
    for cell in kept:
        try:
            models[cell.model].check_image_size(cell.image_size)
        except ImageSizeError as error:
            raise ImageSizeError(with_training_size(suite, cell, str(error))) from error
    if not kept and not cells:
        raise SuiteError(
            f"Suite {suite.name!r} has no cells: none of its metrics ({', '.join(suite.metrics)}) applies to its modes "
            f"({', '.join(suite.modes)}), or accuracy is asked for without a training section (--data)"
        )
    if not kept:
        raise NoCellsLeftError(
            f"Suite {suite.name!r} has no cells left: its [[exclude]], modes and metrics drop all {len(cells)}"
        )
    if len(kept) < len(cells):
        note(_left_out(suite.exclude, cells))
    return list({cell.id: cell for cell in kept}.values())


def with_training_size(suite: Suite, cell: Cell, problem: str) -> str:
    """``problem`` of a cell, and where its size is from if it is none of those that are measured."""
    if not cell.trains or suite.training is None or suite.training.image_size is None:
        return problem
    return (
        f"{problem}. {format_image_size(cell.image_size)} px is the size that suite {suite.name!r} trains at "
        "([training] image_size): change it there, or train nothing with --data none"
    )


def _left_out(rules: Sequence[Exclude], cells: Sequence[Cell]) -> str:
    """How many of ``cells`` each rule drops, in one line; the first one that does counts."""
    dropped_by = [[n for n, rule in enumerate(rules) if rule.drops(cell)] for cell in cells]
    counts = Counter(numbers[0] for numbers in dropped_by if numbers)
    told = [rules[n].text + (f" ({counts[n]})" if len(counts) > 1 else "") for n in sorted(counts)]
    total = sum(counts.values())
    return f"{total} cell{'s' if total != 1 else ''} left out by [[exclude]]: {'; '.join(told)}"


def _named_devices(names: Sequence[str], auto: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for name in names for one in (auto if name == "auto" else [name])))


def to_toml(suite: Suite) -> str:
    """The suite as a TOML text that loads as the same suite."""
    content = suite.model_dump(mode="json", exclude_none=True)
    content["image_sizes"] = [_written_size(size) for size in suite.image_sizes]
    if suite.training is not None and suite.training.image_size is not None:
        content["training"]["image_size"] = _written_size(suite.training.image_size)
    given: Sequence[_Conditions] = (*suite.exclude, *suite.thresholds)
    rules = {key: content.pop(key, []) for key in ("exclude", "thresholds")}
    for rule, written in zip(given, itertools.chain.from_iterable(rules.values()), strict=True):
        if rule.image_sizes is not None:
            written["image_sizes"] = [_written_size(size) for size in rule.image_sizes]
    tables = {key: content.pop(key) for key in ("measure", "frontier", "training") if key in content}
    lines = [f"{key} = {_written(value)}" for key, value in content.items()]
    for key, table in tables.items():
        lines += ["", f"[{key}]", *(f"{name} = {_written(value)}" for name, value in table.items())]
    for kind, written_rules in rules.items():
        for table in written_rules:
            lines += ["", f"[[{kind}]]", *(f"{name} = {_written(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _written(value: Any) -> str:
    # JSON's strings, numbers, booleans and arrays of them are TOML's too
    return json.dumps(value, ensure_ascii=False)


def _written_size(size: Any) -> int | str:
    if size == NATIVE:
        return NATIVE
    text = format_image_size(size)
    return int(text) if text.isdigit() else text


def _pixels(facts: ModelFacts, size: Any) -> tuple[int, int]:
    pair: tuple[int, int] = facts.image_size if size == NATIVE else size
    return pair


def _refuse_random_heads(cells: Sequence[Cell], models: Mapping[str, ModelFacts]) -> None:
    """Testing published weights with a head that nothing has trained says nothing. Raises SuiteError."""
    for cell in cells:
        published = models[cell.model].published_classes
        if cell.tests and published not in (None, cell.num_classes):
            raise SuiteError(
                f"The published head of {cell.model} has {published} classes, {cell.data} has {cell.num_classes}: its "
                "head would be random. Add --replace-head if you want to test that, or --data none"
            )


def _weights(suite: Suite, model: str, facts: ModelFacts, checkpoint: str) -> str:
    """What a cell's ``weights`` are under the suite's."""
    if suite.weights == RANDOM:
        return RANDOM
    if suite.weights != PRETRAINED:
        return checkpoint
    if not facts.published_weights:
        raise SuiteError(
            f"{model} has no published weights: leave out --pretrained, or choose models that have (timm:NAME, "
            "torchvision:NAME, vit_b16_finetune, vit_b16_transfer)"
        )
    return f"{PRETRAINED}:{facts.published_weights}"


def _classes(suite: Suite, facts: ModelFacts, training: TrainingFacts | None) -> int:
    if training is not None:
        if suite.num_classes not in (None, training.num_classes):
            raise SuiteError(
                f"Suite {suite.name!r} says num_classes = {suite.num_classes}, but its training data {training.data} "
                f"has {training.num_classes} classes. Leave num_classes out"
            )
        return training.num_classes
    return suite.num_classes or facts.num_classes


def _matches(name: str, pattern: str) -> bool:
    import fnmatch

    return fnmatch.fnmatchcase(name, pattern)


def _first_problem(error: ValidationError, source: str, overrides: Mapping[str, Any]) -> str:
    """One line for the first problem: where (file or option, key), what, and what is allowed."""
    problems = error.errors(include_url=False)
    # a key with a typo is both unknown and missing: the typo is what the user can see
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    path = [str(part) for part in problem["loc"] if not str(part).startswith("function-")]
    keys = [part for part in path if not part.isdigit()]
    top = keys[0] if keys else ""
    where = (
        f"Option --{OPTIONS.get(top, top.replace('_', '-'))}"
        if top in overrides
        else f"Suite {source}, key {'.'.join(keys) or '(top)'!s}"
    )
    if problem["type"] == "extra_forbidden":
        tables: dict[str, type[BaseModel]] = {
            "measure": Measure,
            "frontier": Frontier,
            "training": Training,
            "exclude": Exclude,
            "thresholds": Threshold,
        }
        allowed = list((tables.get(keys[0], Suite) if len(keys) > 1 else Suite).model_fields)
        close = difflib.get_close_matches(keys[-1], allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"Suite {source}: unknown key {_shown('.'.join(keys))}.{hint} Allowed: {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"Suite {source}: the key {'.'.join(keys)!r} is missing"
    message = re.sub(r"^Value error, ", "", problem["msg"])[:400]
    choices: Iterable[str] = {"dtypes": DTYPES, "attention": ATTENTIONS, "modes": MODES}.get(
        keys[-1] if keys else "", ()
    )
    if problem["type"] == "literal_error" and choices:
        given = problem["input"]
        close = difflib.get_close_matches(str(given), list(choices), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{where}: {_shown(given)} is not allowed.{hint} Allowed: {', '.join(choices)}"
    shown = "" if problem["type"] == "value_error" else f" (given: {_shown(problem['input'])})"
    return f"{where}: {message}{shown}"

"""Read and write the baseline file ``vitbench.lock.json``: exact values of models, committed beside the code.

An entry describes a model (at an image size, number of classes and attention implementation) or a run of it (also with
dtype, batch and mode). The file alone says what to count again. Nothing in it depends on the machine or, except for the
dates of accepted changes, on the day. Loads no torch.

Schema history:

1. first version. Later: ``uncounted``, which an older file lacks; it is not compared then
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from vitbench.core.errors import UsageError
from vitbench.core.files import read_json
from vitbench.core.records import Attention, Cell, Dtype, Mode, format_image_size, parse_image_size
from vitbench.core.run_folder import write_atomically
from vitbench.core.text import one_line
from vitbench.core.validation import Count, Positive, check, parse

SCHEMA = 1
FORMAT = "vitbench lock"
DEFAULT_NAME = "vitbench.lock.json"

# what kind of value a metric has
NUMBER, WORDS, TABLE, STATE_DICT = "a count", "words", "counts by name", "tensors by name"


@dataclass(frozen=True)
class Metric:
    """``kind``: how its value is stored; ``bound``: whether only values of one minor version of torch compare."""

    unit: str
    kind: str
    bound: bool = False


#: Metrics of a model's entry.
MODEL_METRICS: dict[str, Metric] = {
    "params": Metric("parameter", NUMBER),
    "trainable_params": Metric("parameter", NUMBER),
    "buffers": Metric("element", NUMBER),
    "state_dict": Metric("", STATE_DICT),
    "output": Metric("", WORDS),
    "flops": Metric("FLOP", NUMBER),
    "training_flops": Metric("FLOP", NUMBER),
    "uncounted": Metric("1", TABLE),
    "without_gradient": Metric("parameter", TABLE),
    "graph_breaks": Metric("1", TABLE, bound=True),
}
#: Metrics of a run's entry.
RUN_METRICS: dict[str, Metric] = {
    "output": Metric("", WORDS),
    "tensor_peak": Metric("byte", NUMBER, bound=True),
    "operators": Metric("1", TABLE, bound=True),
}
BOUND = tuple(name for name, one in {**MODEL_METRICS, **RUN_METRICS}.items() if one.bound)


@dataclass(frozen=True, kw_only=True, order=True)
class Place:
    """What an entry describes: a model, or with ``batch_size``, ``dtype`` and ``mode`` a run of it. ``image_size`` is
    (height, width) in px.
    """

    model: str
    image_size: tuple[int, int]
    num_classes: int
    attention: str = "fused"
    batch_size: int = 0
    dtype: str = ""
    mode: str = ""

    @property
    def is_run(self) -> bool:
        """Whether it is a run rather than a model."""
        return self.batch_size > 0

    @property
    def of_model(self) -> Place:
        """The place of the model that a run belongs to."""
        return replace(self, batch_size=0, dtype="", mode="")

    @property
    def label(self) -> str:
        """The entry's name: ``vit_basic 32px 10 classes``, of a run ``vit_basic 32px 10 classes b32 fp32 train``."""
        words = [self.model, f"{format_image_size(self.image_size)}px", f"{self.num_classes} classes"]
        words += [f"b{self.batch_size}", self.dtype, self.mode] if self.is_run else []
        return " ".join([*words, *(["explicit"] if self.attention == "explicit" else [])])

    @classmethod
    def of_cell(cls, cell: Cell) -> Place:
        """The place of the run that a cell describes."""
        names = ("model", "image_size", "num_classes", "attention", "batch_size", "dtype", "mode")
        return cls(**{name: getattr(cell, name) for name in names})

    def cell(self) -> Cell:
        """The cell that a worker counts."""
        run = {"batch_size": self.batch_size, "dtype": self.dtype, "mode": self.mode} if self.is_run else {}
        return Cell(
            model=self.model,
            image_size=self.image_size,
            num_classes=self.num_classes,
            attention=self.attention,
            device="cpu",
            threads=1,
            **{"batch_size": 1, **run},  # type: ignore[arg-type]
        )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """``figures``: values by metric (a count, words, or a table); ``absent``: by metric, why there is no value.
    ``uncounted`` are the calls of operators that no formula covers, without which the FLOPs are a lower bound; entries
    of an earlier vitbench lack it. ``failed``: why there are no values at all. ``gone``: it failed because the model no
    longer exists.
    """

    place: Place
    figures: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    failed: str = ""
    gone: bool = False


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """Changes accepted on purpose: the pattern, the reason, the day (ISO 8601), and each change in words."""

    pattern: str
    reason: str
    date: str
    changes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The content of a baseline file. ``torch`` and ``libraries``: the versions it was counted with; ``entries`` are
    sorted by place.
    """

    torch: str
    vitbench: str
    libraries: Mapping[str, str]
    entries: tuple[Entry, ...]
    accepted: tuple[Accepted, ...] = ()


def metrics_of(place: Place, *, bound: bool = True) -> dict[str, Metric]:
    """The metrics of an entry. ``bound``: include those that depend on torch's minor version."""
    table = RUN_METRICS if place.is_run else MODEL_METRICS
    return {name: one for name, one in table.items() if bound or not one.bound}


def minor_version(version: str) -> str:
    """``2.15.0+cpu`` -> ``2.15``."""
    return ".".join(version.partition("+")[0].split(".")[:2])


def digest(tensors: Mapping[str, str]) -> str:
    """Hash a state dict, in any order of its keys, to 16 hexadecimal digits."""
    text = "\n".join(f"{key}: {tensors[key]}" for key in sorted(tensors))
    return hashlib.sha256(text.encode("utf-8", errors="backslashreplace")).hexdigest()[:16]


def write_lock(path: Path, lock: Lock) -> None:
    """Replace ``path`` in one step. Raises RunFolderError or StorageError if it cannot be written."""
    write_atomically(path, lock_to_text(lock).encode("utf-8"))


def lock_to_text(lock: Lock) -> str:
    """Sorted JSON, one value a line."""
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "torch": lock.torch,
        "vitbench": lock.vitbench,
        "libraries": dict(lock.libraries),
        "models": {one.place.label: _written(one) for one in lock.entries if not one.place.is_run},
        "runs": {one.place.label: _written(one) for one in lock.entries if one.place.is_run},
        "accepted": [asdict(one) for one in lock.accepted],
    }
    # ASCII only: no character may change the direction of the text that a reviewer sees
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _written(entry: Entry) -> dict[str, Any]:
    place = asdict(entry.place)
    content = {key: value for key, value in place.items() if value or key == "num_classes"}  # a model has no batch size
    content["image_size"] = format_image_size(entry.place.image_size)
    if entry.failed:
        return {**content, "failed": entry.failed}
    figures = dict(entry.figures)
    if "state_dict" in figures:
        figures["state_dict"] = {"digest": digest(figures["state_dict"]), "tensors": figures["state_dict"]}
    return {**content, "figures": figures, **({"absent": dict(entry.absent)} if entry.absent else {})}


class _Entry(TypedDict):
    model: str
    image_size: str
    num_classes: Count
    attention: Attention
    batch_size: NotRequired[Positive]
    dtype: NotRequired[Dtype]
    mode: NotRequired[Mode]
    figures: NotRequired[dict[str, Any]]
    absent: NotRequired[dict[str, str]]
    failed: NotRequired[str]


class _Baseline(TypedDict):
    torch: str
    vitbench: str
    libraries: dict[str, str]
    models: dict[str, _Entry]
    runs: dict[str, _Entry]
    accepted: list[Accepted]


class _StateDict(TypedDict):
    digest: str
    tensors: dict[str, str]


_VALUES = {NUMBER: Count, WORDS: str, TABLE: dict[str, Count], STATE_DICT: _StateDict}


def read_lock(path: Path) -> Lock:
    """Read a baseline file. Raises UsageError for a missing file, and for one that is damaged, of a newer schema, or
    edited by hand so that it holds what no snapshot writes.
    """
    try:
        content = read_json(path, dict[str, Any])
        if content.get("format") != FORMAT:
            raise ValueError(f'it is not a baseline: it lacks "format": "{FORMAT}"')
        check(content.get("schema"), Count, "schema")
        if content["schema"] > SCHEMA:
            raise ValueError(f"schema {content['schema']} is newer than this vitbench reads ({SCHEMA}): upgrade it")
        return _to_lock(parse(content, _Baseline))
    except OSError as error:
        raise UsageError(
            f"Baseline {str(path)!r} cannot be read: {error.strerror}. Make one: vitbench snapshot"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"Baseline {str(path)!r} cannot be used: {error}. Restore it from version control, or remove it and make "
            "another: vitbench snapshot"
        ) from error


def _to_lock(content: _Baseline) -> Lock:
    entries = [_to_entry(label, one) for label, one in {**content["models"], **content["runs"]}.items()]
    models = {one.place for one in entries if not one.place.is_run}
    for one in entries:
        if one.place.of_model not in models:
            raise ValueError(f"{_quote(one.place.label)} is a run of a model that has no entry")
    return Lock(
        torch=content["torch"],
        vitbench=content["vitbench"],
        libraries=content["libraries"],
        entries=tuple(sorted(entries, key=lambda one: one.place)),
        accepted=tuple(content["accepted"]),
    )


def _to_entry(label: str, one: Mapping[str, Any]) -> Entry:
    names = ("model", "num_classes", "attention", "batch_size", "dtype", "mode")
    size = parse_image_size(one["image_size"])
    place = Place(image_size=size, **{name: one[name] for name in names if name in one})
    if place.label != label:
        raise ValueError(f"{_quote(label)} describes {_quote(place.label)}")
    if one.get("failed"):
        return Entry(place=place, failed=one["failed"])
    figures, absent, metrics = dict(one.get("figures", {})), one.get("absent", {}), metrics_of(place)
    wrong = sorted(({*figures, *absent} ^ set(metrics)) - (set() if place.is_run else {"uncounted"}))
    if wrong:
        raise ValueError(f"{_quote(label)} {'lacks' if wrong[0] in metrics else 'cannot have'} {wrong[0]}")
    for name, value in figures.items():
        where = f"{_quote(label)}, {name}"
        check(value, _VALUES[metrics[name].kind], where)
        if metrics[name].kind == STATE_DICT:
            figures[name] = value["tensors"]
            if digest(value["tensors"]) != value["digest"]:
                raise ValueError(f"{where}: the tensors do not match the digest, so one of them has been edited")
    return Entry(place=place, figures=figures, absent=absent)


def _quote(label: str) -> str:
    return repr(one_line(label, 120))

"""A lock: exact figures of models in a file that is committed beside the code, and what differs from it.

An entry is of a model (at an image size, classes and kind of attention) or of a run of it (with dtype, batch and mode).
The file alone says what has to be counted again. Nothing in it depends on the machine, nor on when it was made but for
the dates of what was accepted. Loads no torch.

Schema history:

1. first version
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitbench.core.errors import UsageError
from vitbench.core.records import ATTENTIONS, DTYPES, MODES, Cell, format_image_size, parse_image_size
from vitbench.core.run_folder import write_atomically
from vitbench.core.shapes import COUNT, POSITIVE, TEXT, Kind, Maybe, check_shape, depth_exceeds
from vitbench.core.text import one_line
from vitbench.regression.change import Change

SCHEMA = 1
FORMAT = "vitbench lock"
#: What a lock is called unless told otherwise.
DEFAULT_NAME = "vitbench.lock.json"

#: The lock of every ViT of timm stays below.
LARGEST_LOCK_BYTES = 100_000_000
MOST_ENTRIES = 20_000
_DEEPEST = 8
_LONGEST_NAME = 1000
_LONGEST_SIDE = 65_536
_LONGEST_REASON = 1000
_MERGE_MARKS = re.compile(r"^(<{7}|={7}|>{7})", re.MULTILINE)

#: The metric of a change that is of the whole entry: whether it can be counted at all.
STATUS = "status"
#: What stands in place of a cell where all are meant.
ALL_CELLS = "all cells"
#: How many things a text names before it counts the rest.
_MOST_NAMED = 4

# what a metric's figure is
_NUMBER, _WORDS, _TABLE, _STATE = "a count", "words", "counts by name", "tensors by name"


@dataclass(frozen=True)
class Metric:
    """``kind``: how its figure is kept; ``bound``: whether it means anything only under one minor version of torch."""

    unit: str
    kind: str
    bound: bool = False


#: Of the entry of a model.
MODEL_METRICS: dict[str, Metric] = {
    "params": Metric("parameter", _NUMBER),
    "trainable_params": Metric("parameter", _NUMBER),
    "buffers": Metric("element", _NUMBER),
    "state_dict": Metric("", _STATE),
    "output": Metric("", _WORDS),
    "flops": Metric("FLOP", _NUMBER),
    "training_flops": Metric("FLOP", _NUMBER),
    "without_gradient": Metric("parameter", _TABLE),
    "graph_breaks": Metric("1", _TABLE, bound=True),
}
#: Of the entry of a run.
RUN_METRICS: dict[str, Metric] = {
    "output": Metric("", _WORDS),
    "tensor_peak": Metric("byte", _NUMBER, bound=True),
    "operators": Metric("1", _TABLE, bound=True),
}
BOUND = tuple(name for name, one in {**MODEL_METRICS, **RUN_METRICS}.items() if one.bound)


class LockError(UsageError):
    """A file that is no lock, or one that says what no snapshot wrote."""


@dataclass(frozen=True, kw_only=True, order=True)
class Place:
    """What an entry is of: a model, or with ``dtype``, ``batch_size`` and ``mode`` a run of it. ``image_size`` is
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
        """The entry of the model that a run is of."""
        return replace(self, batch_size=0, dtype="", mode="")

    @property
    def label(self) -> str:
        """The entry's name: ``vit_basic 32px 10 classes``, of a run ``vit_basic 32px 10 classes b32 fp32 train``."""
        words = [self.model, f"{format_image_size(self.image_size)}px", f"{self.num_classes} classes"]
        words += [f"b{self.batch_size}", self.dtype, self.mode] if self.is_run else []
        return " ".join([*words, *(["explicit"] if self.attention == "explicit" else [])])

    def cell(self) -> Cell:
        """What a worker is told of it."""
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
    """``figures`` by metric (a count, words, or a table); ``absent``: why there is no figure; ``failed``: why there is
    none at all, empty if there are some. ``gone``: it failed because there is no such model any more.
    """

    place: Place
    figures: Mapping[str, Any]
    absent: Mapping[str, str]
    failed: str = ""
    gone: bool = False


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """Changes that somebody took on purpose: the pattern, the reason, the day (ISO 8601), and each in words."""

    pattern: str
    reason: str
    date: str
    changes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Lock:
    """``torch`` and ``libraries`` are the versions that it was counted with; ``entries`` in order of their places."""

    torch: str
    vitbench: str
    libraries: Mapping[str, str]
    entries: tuple[Entry, ...]
    accepted: tuple[Accepted, ...] = ()

    def entry(self, place: Place) -> Entry | None:
        """The entry of a place, if there is one."""
        return next((one for one in self.entries if one.place == place), None)


def metrics_of(place: Place, *, bound: bool = True) -> dict[str, Metric]:
    """The metrics of an entry. ``bound``: also those of torch's minor version."""
    table = RUN_METRICS if place.is_run else MODEL_METRICS
    return {name: one for name, one in table.items() if bound or not one.bound}


def minor_version(version: str) -> str:
    """``2.15.0+cpu`` -> ``2.15``."""
    return ".".join(version.partition("+")[0].split(".")[:2])


def digest(tensors: Mapping[str, str]) -> str:
    """16 hexadecimal digits that are equal for equal state dicts."""
    text = "\n".join(f"{key}: {tensors[key]}" for key in sorted(tensors))
    return hashlib.sha256(text.encode("utf-8", errors="backslashreplace")).hexdigest()[:16]


# files


def write_lock(path: Path, lock: Lock) -> None:
    """Replace ``path`` in one step. Raises RunFolderError or StorageError if it cannot be written."""
    write_atomically(path, lock_to_text(lock).encode("utf-8"))


def lock_to_text(lock: Lock) -> str:
    """JSON, sorted, one figure a line."""
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "torch": lock.torch,
        "vitbench": lock.vitbench,
        "libraries": dict(lock.libraries),
        "models": {one.place.label: _written(one) for one in lock.entries if not one.place.is_run},
        "runs": {one.place.label: _written(one) for one in lock.entries if one.place.is_run},
        "accepted": [
            {"pattern": one.pattern, "reason": one.reason, "date": one.date, "changes": list(one.changes)}
            for one in lock.accepted
        ],
    }
    # all in ASCII, so that no sign changes the direction of a reviewer's lines
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _written(entry: Entry) -> dict[str, Any]:
    place = entry.place
    content: dict[str, Any] = {
        "model": place.model,
        "image_size": format_image_size(place.image_size),
        "num_classes": place.num_classes,
        "attention": place.attention,
    }
    if place.is_run:
        content |= {"batch_size": place.batch_size, "dtype": place.dtype, "mode": place.mode}
    if entry.failed:
        return {**content, "failed": entry.failed}
    figures = dict(entry.figures)
    if "state_dict" in figures:
        figures["state_dict"] = {"digest": digest(figures["state_dict"]), "tensors": figures["state_dict"]}
    return {**content, "figures": figures, **({"absent": dict(entry.absent)} if entry.absent else {})}


def _one_of(known: Sequence[str]) -> Kind:
    return Kind(f"one of {', '.join(known)}", lambda value: value in known)


_ENTRY = {
    "model": TEXT,
    "image_size": TEXT,
    "num_classes": POSITIVE,
    "attention": _one_of(ATTENTIONS),
    "figures": Maybe({...: Kind("a figure", lambda value: isinstance(value, int | str | dict))}, null=False),
    "absent": Maybe({...: TEXT}, null=False),
    "failed": Maybe(TEXT, null=False),
}
_SHAPE = {
    "torch": TEXT,
    "vitbench": TEXT,
    "libraries": {...: TEXT},
    "models": {...: _ENTRY},
    "runs": {...: {**_ENTRY, "batch_size": POSITIVE, "dtype": _one_of(DTYPES), "mode": _one_of(MODES)}},
    "accepted": [{"pattern": TEXT, "reason": TEXT, "date": TEXT, "changes": [TEXT]}],
}
_KNOWN_KEYS = {"batch_size", "dtype", "mode", *_ENTRY}


def read_lock(path: Path) -> Lock:
    """The lock in a file. Raises LockError, in one line, for a file that is not there or that is none: damaged, of a
    newer schema, too large, or edited by hand so that it says what no snapshot wrote.
    """
    try:
        return _to_lock(_parsed(_text_of(path)))
    except OSError as error:
        raise LockError(f"Lock {str(path)!r} cannot be read: {error.strerror}. Make one: vitbench snapshot") from error
    except ValueError as error:
        raise LockError(
            f"Lock {str(path)!r} cannot be used: {error}. Take it from version control again, or remove it and make it "
            "anew: vitbench snapshot"
        ) from error


def _text_of(path: Path) -> str:
    if not path.is_file():
        if path.exists():
            raise ValueError("it is no regular file")
        raise FileNotFoundError(2, "no such file")
    with path.open("rb") as file:
        content = file.read(LARGEST_LOCK_BYTES + 1)
    if len(content) > LARGEST_LOCK_BYTES:
        raise ValueError(f"it has more than {LARGEST_LOCK_BYTES:,} bytes")
    return content.decode("utf-8")


def _parsed(text: str) -> dict[str, Any]:
    if _MERGE_MARKS.search(text):
        raise ValueError("it holds the marks of a merge conflict")
    try:
        content = json.loads(text, object_pairs_hook=_once_each, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no whole JSON ({error})") from error
    if depth_exceeds(content, _DEEPEST):
        raise ValueError("it is nested too deeply")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f'it is no lock: it lacks "format": "{FORMAT}"')
    check_shape(content, {"schema": COUNT})
    if content["schema"] > SCHEMA:
        raise ValueError(f"schema {content['schema']} is newer than this vitbench reads ({SCHEMA}): upgrade vitbench")
    check_shape(content, _SHAPE)
    return content


def _once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{one_line(twice, 80)!r} stands in it twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no figure")


def _to_lock(content: Mapping[str, Any]) -> Lock:
    tables = [(label, one, False) for label, one in content["models"].items()]
    tables += [(label, one, True) for label, one in content["runs"].items()]
    if len(tables) > MOST_ENTRIES:
        raise ValueError(f"it has {len(tables):,} entries, more than {MOST_ENTRIES:,}")
    places = {label: _to_place(label, one, run) for label, one, run in tables}
    models = {place for place in places.values() if not place.is_run}
    for label, place in places.items():
        if place.of_model not in models:
            raise ValueError(f"{_named(label)} is a run of a model that it has no entry of")
    entries = [_to_entry(label, one, places[label]) for label, one, _ in tables]
    return Lock(
        torch=content["torch"],
        vitbench=content["vitbench"],
        libraries=content["libraries"],
        entries=tuple(sorted(entries, key=lambda one: one.place)),
        accepted=tuple(Accepted(**{**one, "changes": tuple(one["changes"])}) for one in content["accepted"]),
    )


def _to_place(label: str, one: Mapping[str, Any], run: bool) -> Place:
    if len(label) > _LONGEST_NAME or not label.isprintable():
        raise ValueError(f"{_named(label)} is no name of an entry")
    unknown = sorted(set(one) - _KNOWN_KEYS)
    if unknown:
        raise ValueError(f"{_named(label)} has {one_line(unknown[0], 80)!r}, which no entry has")
    size = parse_image_size(one["image_size"])
    if max(size) > _LONGEST_SIDE:
        raise ValueError(f"{_named(label)} has a picture of more than {_LONGEST_SIDE} px")
    more = {key: one[key] for key in ("batch_size", "dtype", "mode")} if run else {}
    place = Place(
        model=one["model"], image_size=size, num_classes=one["num_classes"], attention=one["attention"], **more
    )
    if place.label != label:
        raise ValueError(f"{_named(label)} says that it is {_named(place.label)}")
    return place


def _to_entry(label: str, one: Mapping[str, Any], place: Place) -> Entry:
    figures, absent = dict(one.get("figures", {})), one.get("absent", {})
    if one.get("failed"):
        if figures or absent:
            raise ValueError(f"{_named(label)} has both figures and a failure")
        return Entry(place=place, figures={}, absent={}, failed=one["failed"])
    metrics = metrics_of(place)
    for name in (*figures, *absent):
        if name not in metrics or (name in figures and name in absent):
            raise ValueError(f"{_named(label)} has {one_line(name, 80)!r}, which it cannot have")
    for name, metric in metrics.items():
        if name in figures:
            figures[name] = _to_figure(figures[name], metric.kind, f"{_named(label)}, {name}")
        elif name not in absent:
            raise ValueError(f"{_named(label)} lacks {name}")
    return Entry(place=place, figures=figures, absent=absent)


_FIGURES = {
    _NUMBER: COUNT,
    _WORDS: TEXT,
    _TABLE: {...: COUNT},
    _STATE: {"digest": TEXT, "tensors": {...: TEXT}},
}


def _to_figure(value: Any, kind: str, where: str) -> Any:
    check_shape(value, _FIGURES[kind], where)
    if kind != _STATE:
        return value
    if digest(value["tensors"]) != value["digest"]:
        raise ValueError(f"{where}: the tensors are not those that the digest is of, so one of them has been edited")
    return value["tensors"]


def _named(label: str) -> str:
    return repr(one_line(label, 120))


# what differs


def compare_locks(base: Lock, head: Lock) -> list[Change]:
    """Each figure of ``base`` against the same of ``head``, which has entries of the same places.

    What differs at all is *worse*: a lock that no longer says what the code does hides the next change. Figures that
    belong to torch's minor version are compared only if both locks have the same; else a change a metric, which does
    not gate, says so.
    """
    found = {one.place: one for one in head.entries}
    bound = minor_version(base.torch) == minor_version(head.torch)
    fallen = {one.place for one in base.entries if not one.place.is_run and found[one.place].failed and not one.failed}
    changes: list[Change] = []
    for entry in base.entries:
        if entry.place.is_run and entry.place.of_model in fallen:
            continue  # told of once, with the model
        metrics = metrics_of(entry.place, bound=bound)
        changes += _compare(entry, found[entry.place], metrics)
    if not bound:
        for name in BOUND:
            if any(name in one.figures for one in base.entries):
                changes.append(_not_comparable(name, base.torch, head.torch))
    return changes


def _compare(base: Entry, head: Entry, metrics: Mapping[str, Metric]) -> Iterator[Change]:
    label = base.place.label
    if base.failed or head.failed:
        yield _compare_status(label, base, head)
        return
    for name, metric in metrics.items():
        before, after = base.figures.get(name), head.figures.get(name)
        shown = [_shown(value, metric.kind) for value in (before, after)]
        if before is None or after is None:
            # the reason's words are nobody's figure
            same = before is None and after is None
            reasons = [f"not told: {one_line(one.absent.get(name, ''))}" for one in (base, head)]
            detail = "" if same else reasons[1] if after is None else f"it was {reasons[0]}"
        else:
            same = before == after
            detail = "" if same else _words(name, metric, base, head)
        yield Change(
            cell=label,
            metric=name,
            unit=metric.unit,
            base=shown[0] if before is not None else "not told",
            head=shown[1] if after is not None else "not told",
            verdict="same" if same else "worse",
            exact=True,
            detail=detail,
        )


def _compare_status(label: str, base: Entry, head: Entry) -> Change:
    states = ["gone" if one.gone else "failed" if one.failed else "ok" for one in (base, head)]
    same = bool(base.failed) == bool(head.failed)
    if same:
        detail = ""
    elif head.gone:
        detail = f"the model is not there any more: {head.failed}"
    elif head.failed:
        detail = f"it {'does not run' if base.place.is_run else 'cannot be built or run'} any more: {head.failed}"
    else:
        detail = f"it works now; the lock says: {base.failed}"
    return Change(
        cell=label,
        metric=STATUS,
        unit="",
        base=states[0],
        head=states[0] if same else states[1],
        verdict="same" if same else "worse",
        exact=True,
        detail=one_line(detail),
    )


def _not_comparable(name: str, base: str, head: str) -> Change:
    return Change(
        cell=ALL_CELLS,
        metric=name,
        unit="",
        base=f"torch {minor_version(base)}",
        head=f"torch {minor_version(head)}",
        verdict="not comparable",
        exact=True,
        gates=False,
        detail=f"checked only under torch {minor_version(base)}, which the lock was made with",
    )


def _shown(value: Any, kind: str) -> float | str | None:
    if value is None:
        return None
    if kind == _TABLE:
        return sum(value.values())
    return digest(value) if kind == _STATE else value


def _words(name: str, metric: Metric, base: Entry, head: Entry) -> str:
    """What a difference is, in words, where the two states do not say it."""
    before, after = base.figures[name], head.figures[name]
    if name in ("params", "trainable_params", "buffers"):
        thing = {"params": "parameters", "trainable_params": "trainable parameters", "buffers": "buffer elements"}[name]
        states = [one.figures.get("state_dict", {}) for one in (base, head)]
        is_buffer = name == "buffers"
        kept = [{k: v for k, v in one.items() if _is_buffer(v) == is_buffer} for one in states]
        reasons = describe_tensors(*kept, frozen=name == "trainable_params") if kept[0] != kept[1] else ""
        return f"{_signed(after - before)} {thing}" + (f": {reasons}" if reasons else "")
    if metric.kind == _STATE:
        return describe_tensors(before, after)
    if name == "graph_breaks":
        return _told(_table_changes(before, after, new="new break: {}", gone="no longer: {}"))
    if name == "without_gradient":
        return _told(_table_changes(before, after, new="{} gets none now", gone="{} gets one now"))
    if metric.kind == _TABLE:
        return _told(f"{key} {before.get(key, 0):,} -> {after.get(key, 0):,}" for key in _differing(before, after))
    return ""  # both states say it


def describe_tensors(base: Mapping[str, str], head: Mapping[str, str], *, frozen: bool = True) -> str:
    """What differs between two state dicts (key to ``float32 192x64``): what is added, removed, renamed, of another
    dtype or shape, and with ``frozen`` what is trained no longer. Tensors below one name are one thing.
    """
    added, removed = _grouped(head, base), _grouped(base, head)
    parts = []
    for old, inside in list(removed.items()):
        # the same tensors below another name
        new = next((one for one, other in added.items() if other == inside and _parent(one) == _parent(old)), None)
        new = new or next((one for one, other in added.items() if other == inside), None)
        if new is not None:
            parts.append(f"{_thing(old, inside)} is {new} now")
            del added[new], removed[old]
    parts += [f"{_thing(name, inside)} added" for name, inside in added.items()]
    parts += [f"{_thing(name, inside)} removed" for name, inside in removed.items()]
    kinds: dict[str, list[str]] = {}
    for key in sorted(base.keys() & head.keys()):
        if base[key] != head[key]:
            for change in _spec_changes(base[key], head[key], frozen):
                kinds.setdefault(change, []).append(key)
    for change, keys in kinds.items():
        names = keys[0] if len(keys) == 1 else f"{len(keys)} tensors ({_told(keys)})"
        parts.append(f"{names} {change}")
    return _told(parts)


def _spec_changes(base: str, head: str, frozen: bool) -> list[str]:
    (old_type, _, old_rest), (new_type, _, new_rest) = base.partition(" "), head.partition(" ")
    (old_shape, _, old_kind), (new_shape, _, new_kind) = old_rest.partition(" "), new_rest.partition(" ")
    changes = [f"{old_shape} -> {new_shape}"] if old_shape != new_shape else []
    changes += [f"{old_type} -> {new_type}"] if old_type != new_type else []
    if old_kind != new_kind and frozen:
        changes.append(f"{old_kind or 'trained'} -> {new_kind or 'trained'}")
    return changes


def _grouped(these: Mapping[str, str], others: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The keys that ``others`` lack, below the shortest name that ``others`` know nothing of: name to what follows."""
    known = {".".join(parts[:count]) for parts in (key.split(".") for key in others) for count in range(len(parts) + 1)}
    groups: dict[str, dict[str, str]] = {}
    for key in sorted(these.keys() - others.keys()):
        parts = key.split(".")
        names = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        name = next((one for one in names if one not in known), key)
        groups.setdefault(name, {})[key[len(name) :]] = these[key]
    return groups


def _thing(name: str, inside: Mapping[str, str]) -> str:
    """``head.bias``, or ``blocks.6 (12 tensors)``."""
    if len(inside) == 1:
        return name + next(iter(inside))
    return f"{name} ({len(inside)} tensors)"


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _is_buffer(spec: str) -> bool:
    return spec.endswith(" buffer")


def _table_changes(base: Mapping[str, int], head: Mapping[str, int], *, new: str, gone: str) -> Iterator[str]:
    for key in _differing(base, head):
        if key not in base:
            yield new.format(key) + (f" ({head[key]:,})" if head[key] > 1 else "")
        elif key not in head:
            yield gone.format(key)
        else:
            yield f"{key} {base[key]:,} -> {head[key]:,}"


def _differing(base: Mapping[str, int], head: Mapping[str, int]) -> list[str]:
    """The names whose counts differ: first what was not there before, then by how much."""
    names = [key for key in base.keys() | head.keys() if base.get(key) != head.get(key)]
    return sorted(names, key=lambda key: (-abs(head.get(key, 0) - base.get(key, 0)), key))


def _told(parts: Iterable[str]) -> str:
    listed = list(parts)
    more = len(listed) - _MOST_NAMED
    return ", ".join(listed[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _signed(number: int) -> str:
    return f"{number:+,}"


# accepting


@dataclass(frozen=True)
class Rule:
    """What ``--accept`` asks for: the changes of cells (and of metrics) that match, and why."""

    pattern: str
    reason: str

    def takes(self, change: Change) -> bool:
        """Whether it means ``change``."""
        cell, sign, metric = self.pattern.rpartition("#")
        if not sign:
            cell, metric = self.pattern, "*"
        return (cell == change.cell or fnmatch.fnmatchcase(change.cell, cell)) and fnmatch.fnmatchcase(
            change.metric, metric
        )


def parse_rule(text: str) -> Rule:
    """``pattern: reason``. The pattern is of cells (``vit_basic *``), and with ``#`` of metrics (``*#operators``).
    Raises UsageError for a text without a reason.
    """
    pattern, _, reason = (part.strip() for part in text.partition(": "))
    example = "such as --accept 'vit_basic *: a wider head' or --accept '*#operators: one copy more, for clarity'"
    if not pattern or not reason or pattern.endswith("#"):
        raise UsageError(f"Option --accept: {one_line(text, 200)!r} is no 'cell or pattern: reason', {example}")
    if not text.isprintable() or len(text) > _LONGEST_REASON:
        raise UsageError(f"Option --accept: give one line of at most {_LONGEST_REASON} characters, {example}")
    return Rule(pattern, reason)


def accept(base: Lock, head: Lock, changes: Sequence[Change], rules: Sequence[Rule], date: str) -> Lock:
    """``base`` with the figures of ``head`` where a rule takes the change, and an entry for each rule among what was
    accepted. ``date``: of today, ISO 8601. A model that is gone takes its entries along.

    Raises UsageError for a rule that takes no change, with the cells that have one, and for an entry that cannot be
    counted whole under this torch.
    """
    open_changes = [one for one in changes if one.gates and one.verdict == "worse"]
    same_torch = minor_version(base.torch) == minor_version(head.torch)
    found = {one.place.label: one for one in head.entries}
    entries = {one.place.label: one for one in base.entries}
    accepted: list[Accepted] = []
    for rule in rules:
        taken = [one for one in open_changes if rule.takes(one)]
        if not taken:
            raise UsageError(_no_match(rule, changes))
        open_changes = [one for one in open_changes if not rule.takes(one)]
        for change in taken:
            if change.metric == STATUS and not found[change.cell].failed and not same_torch:
                raise UsageError(
                    f"{change.cell} works now, but not all its figures can be counted under torch {head.torch}: make "
                    "the lock anew with vitbench snapshot"
                )
            _take(entries, found, change)
        texts = tuple(one_line(f"{one.cell}: {one.metric} {_states(one)}") for one in taken)
        accepted.append(Accepted(pattern=rule.pattern, reason=rule.reason, date=date, changes=texts))
    return replace(
        base,
        entries=tuple(sorted(entries.values(), key=lambda one: one.place)),
        accepted=(*base.accepted, *accepted),
    )


def _take(entries: dict[str, Entry], found: Mapping[str, Entry], change: Change) -> None:
    """Put what ``change`` is of as it is now in place of what the lock says."""
    label = change.cell
    now = found[label]
    if change.metric != STATUS:
        entry, name = entries[label], change.metric
        figures = {key: value for key, value in entry.figures.items() if key != name}
        absent = {key: value for key, value in entry.absent.items() if key != name}
        if name in now.figures:
            figures[name] = now.figures[name]
        else:
            absent[name] = now.absent[name]
        entries[label] = replace(entry, figures=figures, absent=absent)
        return
    below = [one for one in entries.values() if one.place.is_run and one.place.of_model == now.place]
    for one in [entries[label], *(below if now.failed else [])]:
        if now.gone:
            del entries[one.place.label]
        else:
            entries[one.place.label] = found[one.place.label]


def _states(change: Change) -> str:
    def shown(value: float | str | None) -> str:
        return f"{value:,}" if isinstance(value, int) else str(value)

    text = f"{shown(change.base)} -> {shown(change.head)}"
    return f"{text} ({change.detail})" if change.detail else text


def _no_match(rule: Rule, changes: Sequence[Change]) -> str:
    open_changes = [one for one in changes if one.gates and one.verdict == "worse"]
    start = f"Option --accept: {rule.pattern!r} is of no cell that has changed"
    if not open_changes:
        return f"{start}: nothing has"
    if any(rule.takes(one) for one in open_changes):
        return f"{start} and is not accepted already by an earlier --accept"
    cells = list(dict.fromkeys(one.cell for one in open_changes))
    return f"{start}. Changed: {', '.join(cells[:5])}{f' and {len(cells) - 5} more' if len(cells) > 5 else ''}"


def remaining(changes: Iterable[Change], rules: Sequence[Rule]) -> list[Change]:
    """The changes that no rule takes."""
    return [one for one in changes if not (one.gates and one.verdict == "worse" and _taken(one, rules))]


def _taken(change: Change, rules: Sequence[Rule]) -> bool:
    return any(rule.takes(change) for rule in rules)

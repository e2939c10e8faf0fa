"""Save checkpoints, and load weights from untrusted files into a model.

No file runs code or makes us allocate more memory than the model takes, and a model takes all of its weights or none.
The names of other libraries are in layouts.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.core.errors import DataError, StorageError, UsageError
from vitbench.core.files import (
    LARGEST_CHECKPOINT_BYTES,
    MOST_TENSORS,
    SAVE_AGAIN,
    CodeError,
    RefusedError,
    check_fits,
    check_legacy,
    check_zip,
)
from vitbench.core.records import parse_grid
from vitbench.devices.host.memory import spare_memory
from vitbench.models.weights.claimed import HEADS, RANDOM_HEAD
from vitbench.models.weights.entries import Entry, Wanted, find_entry
from vitbench.models.weights.layouts import UNKNOWN, Layout, Weight, common_prefix, layout_of, match_parts
from vitbench.models.weights.positions import Fitted, Grid, fit_positions, is_bound_to_size
from vitbench.models.weights.timm_filters import convert_by_timm

#: Of dicts in a file: what trainings save has the weights in the first or the second.
_DEEPEST = 3
#: The entry of our own ``last.pt`` that is tested: the moving average, where there is one.
_TESTED = "model"
#: What no model computes with: counts of thop and of averaged models, the token of masked images, the pooler of Hugging
#: Face's models, whose classifiers do not use it.
_NEEDLESS = re.compile(r"(.*\.)?(total_ops|total_params)|n_averaged|mask_token|pooler\.dense\.(weight|bias)")
#: Of a file, for a model that is a backbone alone.
_HEAD = re.compile(rf"({'|'.join(map(re.escape, HEADS))})(\.\d+)?\.(weight|bias)|head(_dist)?\.bn\.\w+")  # bn: LeViT
#: Buffers that a constructor computes: the model's own are kept, whether the file has them or not.
_CONSTANT = re.compile(r"(.*\.)?(relative_position_index|attn_mask)")
_LARGEST_HEADER_BYTES = 16_000_000  # safetensors' own limit is 100 MB, which it takes a second to read for each weight
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NAMED = 5  # keys of each kind in a message

Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # the model's, the file's


class CheckpointError(DataError):
    """Weights that do not fit: ``missing`` and ``mismatched`` are the model's keys, ``unexpected`` the file's."""

    def __init__(
        self,
        message: str,
        *,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        mismatched: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected
        self.mismatched = mismatched


@dataclass(frozen=True)
class CheckpointReport:
    """What load_checkpoint has done.

    ``path``: the file's name. ``layout``: the library whose names the file has, or ``as in the model``. ``digest``: the
    first 16 hexadecimal digits of the file's SHA-256. ``tensors``: how many the file holds. ``dtype``: of the file's
    numbers; several in alphabetical order. ``resampled``: (old, new) grid of the position embedding, each (height,
    width) in patches, if it was resampled. ``replaced_head``: whether the model kept its own head. ``facts``: those
    given to save_checkpoint; empty for other files. ``notes``: for people, what was taken and assumed, and what differs
    from the file.
    """

    path: str
    layout: str
    digest: str
    tensors: int
    dtype: str
    resampled: tuple[Grid, Grid] | None = None
    replaced_head: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    *,
    replace_head: bool = False,
    entry: str | None = None,
    grid: str | None = None,
) -> CheckpointReport:
    """Load the weights in a file into ``model``, in place, all of them or none.

    The file is safetensors or of ``torch.save``: a state dict, or dicts with one in them, by the names of any of
    layouts.LAYOUTS. A prefix that all names have is taken off. Positions of another grid are resampled as the library
    of the layout does it, numbers are cast to the model's dtypes.

    Args:
        model: of the architecture that was saved, not on meta; wrapped by DataParallel or torch.compile or not.
        path: the file.
        replace_head: keep the model's own head (random in a fresh model) if the file's has another number of classes or
            is missing. A head that fits is loaded all the same.
        entry: which of several sets of weights in the file: the key of the dict, such as ``teacher``, or their prefix.
        grid: rows and columns of the patches in the file, ``4x16``; by default those of our own facts, else a square.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape.
        DataError: the file is not there, cannot be read, holds more than numbers, or holds NaN or infinity; several
            entries have the model's weights, and ``entry`` does not say which.
        UsageError: the model is on meta; ``grid`` is not that of the file.
    """
    path = Path(path)
    try:
        given = None if grid is None else parse_grid(grid)
    except ValueError as error:
        raise UsageError(f"--grid {error}") from error
    model = _unwrapped(model)
    own: dict[str, Tensor] = model.state_dict()
    if any(value.is_meta for value in own.values()):
        raise UsageError("A model on the meta device has no memory for weights: build it on a real device")
    with _contents(path) as contents:
        facts, names = contents.facts, _own_names(own)
        of_model = wanted_of(model)
        found = find_entry(path.name, contents.folders, of_model, contents.entry(entry))
        in_file = contents.weights(path, found)
        patterns = [_NEEDLESS] if of_model.head else [_NEEDLESS, _HEAD]
        needless = [n for n in in_file if n not in names and any(one.fullmatch(n) for one in patterns)]
        weights = {n: one for n, one in in_file.items() if n not in needless and not _CONSTANT.fullmatch(n)}
        fitted, difference, left_out = _fit(path, match_parts(weights, names), model, names, found.layout, facts, given)
        head = difference.head if replace_head else set()
        _check_difference(path, difference, head, next(iter(fitted.unfit.values()), ""))

        loaded = {name: key for name, key in names.items() if not _CONSTANT.fullmatch(name) and key not in head}
        state = own | {key: _read(path, fitted.weights[name], own[key]) for name, key in loaded.items()}
        digest, replaced = digest_of(path)[:16], sorted({key.rpartition(".")[0] for key in head})
        left_out = [*(key for name in needless for key in in_file[name].keys), *left_out]
        model.load_state_dict(state, strict=True)
    return CheckpointReport(
        path=path.name,
        layout="vitbench" if facts else found.layout.name,
        digest=digest,
        tensors=len(in_file),
        dtype=", ".join(sorted({one.dtype for one in in_file.values()})),
        resampled=fitted.resampled,
        replaced_head=bool(replaced),
        facts=facts,
        notes=(*_notes(contents, found, left_out, replaced), *fitted.notes),
    )


def digest_of(path: str | Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits. Raises DataError if it cannot be read."""
    path = Path(path)
    if not _format_of(path):  # a hole of zeros would be read for hours
        raise _no_format(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_facts(path: str | Path) -> dict[str, Any]:
    """The facts given to save_checkpoint, or those in the ``last.pt`` of a training; empty for any other file.

    Raises DataError if there is no such file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    kind = _format_of(path)
    if kind == "zip":
        try:
            return _facts_of_training(_load_torch(path, kind))
        except DataError:  # reported when its weights are loaded
            return {}
    if kind != "safetensors":
        return {}
    try:
        with safe_open(path, framework="np") as file:
            return _facts(file.metadata())
    except (OSError, SafetensorError):
        return {}


def shapes_for(path: Path, wanted: Callable[[], Wanted], entry: str | None = None) -> dict[str, tuple[int, ...]]:
    """Our names -> the shapes that a file claims for the weights of a model, found as load_checkpoint does.

    ``wanted`` is asked only where the names do not say where they are. Raises DataError.
    """
    with _contents(path) as contents:
        layout = layout_of(contents.leaves)
        if entry is None and layout is not UNKNOWN and not any(contents.folders.values()):
            names = {layout.our_name(key) or key: key for key in contents.leaves}
            found = Entry("", layout, names, frozenset(), 0)
        else:
            found = find_entry(path.name, contents.folders, wanted(), contents.entry(entry))
        return {name: one.shape for name, one in contents.weights(path, found).items()}


def save_checkpoint(model: nn.Module, path: Path, facts: Mapping[str, Any]) -> None:
    """Write the state dict as safetensors, atomically, with ``facts`` as JSON in its header (``vitbench``).

    Raises StorageError if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # a copy of each: safetensors refuses tensors that share memory
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, part, metadata={"vitbench": json.dumps(facts, allow_nan=False)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave the name without the content
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"Could not write the checkpoint {path.name}: {error}") from error


# --- what is in the file


def _check_is_file(path: Path) -> None:
    if not os.path.exists(path):  # not Path.exists, which raises for a name that no system takes
        raise DataError(f"Checkpoint {str(path)!r} does not exist (seen from {Path.cwd()})")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise DataError(f"Checkpoint {str(path)!r} is {what}: give a safetensors file or one of torch.save")
    size = path.stat().st_size
    if size > LARGEST_CHECKPOINT_BYTES:
        raise DataError(
            f"Checkpoint {path.name!r} has {size / 1e9:,.0f} GB, more than any model here "
            f"({LARGEST_CHECKPOINT_BYTES / 1e9:.0f} GB): give another file"
        )


def _format_of(path: Path) -> str:
    """``safetensors``, ``zip`` (torch.save), ``pickle`` (torch.save before 1.6) or ``""``, by the first bytes."""
    _check_is_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not start:
        raise DataError(f"Checkpoint {path.name!r} is empty: copy or download it again")
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _LARGEST_HEADER_BYTES:
        return "safetensors"
    return "pickle" if start.startswith(b"\x80") else ""


def _no_format(path: Path) -> DataError:
    return DataError(f"Checkpoint {path.name!r} is neither safetensors nor a file of torch.save, or it is damaged")


@dataclass(frozen=True, eq=False)
class _Leaf:
    """What a file has under ``key`` in the dicts ``folder`` (``teacher.``): a Weight, or what torch.load returned."""

    folder: str
    key: object
    value: object


@dataclass(frozen=True, eq=False)
class _Contents:
    """What a file claims to hold, without reading it: full name -> leaf; the facts of our own files."""

    leaves: Mapping[str, _Leaf]
    facts: Mapping[str, Any]
    of_training: bool = False

    @property
    def folders(self) -> dict[str, str]:
        return {name: leaf.folder for name, leaf in self.leaves.items()}

    def entry(self, chosen: str | None) -> str | None:
        """The entry that the user has chosen; of the ``last.pt`` of our trainings that which is tested."""
        return _TESTED if self.of_training and chosen is None else chosen

    def weights(self, path: Path, entry: Entry) -> dict[str, Weight]:
        """Our names -> the weights of an entry. Raises CheckpointError, DataError for one that is not a weight."""
        if entry.doubled:
            both = " and ".join(_shown(self.leaves[name].key) for name in entry.doubled)
            raise CheckpointError(f"Checkpoint {path.name!r} holds both {both}, which are one weight: remove one")
        found = {}
        for name, full in entry.names.items():
            leaf = self.leaves[full]
            found[name] = leaf.value if isinstance(leaf.value, Weight) else _torch_weight(path, leaf.key, leaf.value)
        return found

    def prefix(self, entry: Entry) -> str:
        """The prefix of the names in the dict that an entry is in."""
        folder = next((self.leaves[full].folder for full in entry.names.values()), "")
        return entry.prefix.removeprefix(folder)

    def others(self, entry: Entry) -> list[str]:
        """What else in the file has weights by names of this entry, be it a few: its rivals and other dicts."""
        own = {self.leaves[full].folder for full in entry.names.values()}
        known, prefix = tuple(f"{one}." for one in entry.rivals), self.prefix(entry)
        found = set()
        for leaf in self.leaves.values():
            if leaf.folder in own or leaf.folder.startswith(known) or not _is_weight(leaf.value):
                continue
            key = str(leaf.key)
            for form in (key, key[len(common_prefix([key])) :], key.removeprefix(prefix)):
                if (entry.layout.our_name(form) or form) in entry.names:
                    found.add(leaf.folder.removesuffix(".") or ".")
        return [*entry.rivals, *sorted(found.difference(entry.rivals))]


def _notes(
    contents: _Contents,
    entry: Entry,
    needless: Sequence[str],
    replaced: Sequence[str],
) -> Iterator[str]:
    """What has been taken from a file, and what is not as in the file, for people. ``replaced``: layers of the head."""
    prefix = contents.prefix(entry)
    folder = entry.prefix.removesuffix(prefix).removesuffix(".")
    if folder and not contents.of_training:
        yield f"taken from the file's entry {_shown(folder)}"
    if prefix:
        yield f"the prefix {_shown(prefix)} taken off their names"
    others = [] if contents.of_training else contents.others(entry)
    if others:
        yield f"other weights of this model in the file left out: {', '.join(map(_shown, others))}"
    for name, leaf in contents.leaves.items():
        if isinstance(leaf.value, list | tuple) and sum(map(_is_weight, leaf.value)) >= len(entry.used) // 2 > 0:
            yield f"left out {_shown(name)}, which has tensors without names, perhaps a moving average"
    tensors = [str(leaf.key) for name in entry.outside if _is_weight((leaf := contents.leaves[name]).value)]
    for keys, why in ((tensors, "without that prefix"), (needless, "which the model does not use")):
        if keys:
            more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
            yield f"left out {', '.join(map(_shown, keys[:2]))}{more}, {why}"
    if len(replaced) > 1:
        yield f"its heads left out, random ones in their place: {', '.join(map(_shown, replaced))}"
    elif replaced:
        yield RANDOM_HEAD


def _is_weight(value: object) -> bool:
    return isinstance(value, Weight | Tensor)


@contextmanager
def _contents(path: Path) -> Iterator[_Contents]:
    kind = _format_of(path)
    if not kind:
        raise _no_format(path)
    if kind != "safetensors":
        state = _load_torch(path, kind)
        facts = _facts_of_training(state)
        yield _Contents(_torch_leaves(path, state), facts, of_training=bool(facts))
        return
    from safetensors import SafetensorError, safe_open

    try:
        # numpy's maps the file read-only; torch's writable mapping counts as memory, whole, before a shape is seen
        with safe_open(path, framework="np") as file:
            keys = list(file.keys())
            _check_count(path, len(keys))
            slices = {key: file.get_slice(key) for key in keys}
            leaves = {
                key: _Leaf(
                    "",
                    key,
                    Weight(
                        (key,),
                        tuple(one.get_shape()),
                        _SAFETENSORS_DTYPES.get(one.get_dtype(), one.get_dtype().lower()),
                        partial(_safetensor, path, key),
                    ),
                )
                for key, one in slices.items()
            }
            if not leaves:
                raise _no_state_dict(path, "an empty dict")
            yield _Contents(leaves, _facts(file.metadata()))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _safetensor(path: Path, key: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        value: Tensor = file.get_tensor(key)
    return value


def _facts(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        facts = json.loads((metadata or {}).get("vitbench", "{}"))
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _facts_of_training(state: object) -> dict[str, Any]:
    """The facts in the ``last.pt`` of a training; empty for any other content."""
    header = state.get("vitbench") if isinstance(state, Mapping) else None
    try:
        content = json.loads(header) if isinstance(header, str) else None
    except (ValueError, RecursionError):
        return {}
    facts = content.get("facts") if isinstance(content, dict) else None
    return facts if isinstance(facts, dict) else {}


def _torch_leaves(path: Path, state: object) -> dict[str, _Leaf]:
    """What a file of torch.save holds, in dicts whose keys are texts: full name -> leaf."""
    if not isinstance(state, Mapping):
        raise _no_state_dict(path, type(state).__name__)
    leaves: dict[str, _Leaf] = {}
    waiting: list[tuple[str, int, Mapping[Any, Any]]] = [("", 0, state)]
    seen, is_deep = {id(state)}, False
    while waiting:
        folder, depth, content = waiting.pop(0)
        for key, value in content.items():
            if isinstance(value, Mapping) and isinstance(key, str):
                is_deep |= depth >= _DEEPEST
                if id(value) not in seen and depth < _DEEPEST:
                    seen.add(id(value))
                    waiting.append((f"{folder}{key}.", depth + 1, value))
                continue
            name = f"{folder}{key}"
            if name in leaves:
                raise DataError(f"Checkpoint {path.name!r} holds {_shown(name)} twice: remove one")
            leaves[name] = _Leaf(folder, key, value)
        _check_count(path, len(leaves))
    if not leaves:
        raise _no_state_dict(path, f"dicts of more than {_DEEPEST} levels" if is_deep else "an empty dict")
    return leaves


def _no_state_dict(path: Path, what: str) -> DataError:
    return DataError(f"Checkpoint {path.name!r} holds {what}, not a state dict. {SAVE_AGAIN}")


def _check_count(path: Path, count: int) -> None:
    if count > MOST_TENSORS:
        raise DataError(f"Checkpoint {path.name!r} holds {count:,} tensors, more than any model has ({MOST_TENSORS:,})")


def _torch_weight(path: Path, key: object, value: object) -> Weight:
    where = f"Checkpoint {path.name!r}: {_shown(key)}"
    if not isinstance(key, str) or not isinstance(value, Tensor):
        raise DataError(f"{where} is {type(value).__name__}, not a named tensor. {SAVE_AGAIN}")
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise DataError(f"{where} is a sparse, quantised or meta tensor. Save it as a dense one")
    # A view of a few numbers can claim any shape: casting it would allocate that
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise DataError(
            f"{where} claims the shape {tuple(value.shape)} but holds fewer numbers. Save its .contiguous()"
        )
    return Weight((key,), tuple(value.shape), str(value.dtype).removeprefix("torch."), value.detach)


def _load_torch(path: Path, kind: str) -> Any:
    """The content of a file of torch.save, without running its code. Tensors of a zip file are mapped, not read."""
    try:
        # torch takes any path that ends so for safetensors, but not an open file, which it cannot map
        mapped = kind == "zip" and not path.name.endswith(".safetensors")
        if not mapped:
            check_fits(path, spare_memory())
        check_zip(path) if kind == "zip" else check_legacy(path)
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(str(path) if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except CodeError as error:
        raise DataError(f"Checkpoint {path.name!r} is refused, as it holds {error}. {SAVE_AGAIN}") from error
    except RefusedError as error:
        raise DataError(f"Checkpoint {path.name!r} {error}") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"pickled code ({found[1]})" if found else "a pickle of more than tensors, or it is damaged"
        raise DataError(f"Checkpoint {path.name!r} is refused, as it holds {what}. {SAVE_AGAIN}") from error
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return DataError(f"Checkpoint {path.name!r} cannot be read, perhaps cut short or damaged: {reason[:200]}")


# --- how it fits the model


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DataParallel and torch.compile, whose prefixes are removed from the keys of files as well."""
    try:
        return model.get_submodule(common_prefix(model.state_dict()).removesuffix("."))
    except AttributeError:  # a state_dict() that a user has overridden
        return model


def _own_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Our names for the keys of a model's state dict -> its keys, without those of a head of no classes."""
    own = [key for key, value in state.items() if value.numel()]
    layout = layout_of(own)
    names = {layout.our_name(key) or key: key for key in own}
    return names if len(names) == len(own) else {key: key for key in own}


def wanted_of(model: nn.Module) -> Wanted:
    """Our names of the weights of a model, which may be on meta."""
    names = _own_names(model.state_dict())
    layers = _head_layers(model)
    head = {name for name, key in names.items() if key.rpartition(".")[0] in layers}
    body = {name for name in names if name not in head and not _CONSTANT.fullmatch(name)}
    return Wanted(frozenset(body), frozenset(head))


def _head_layers(model: nn.Module) -> tuple[str, ...]:
    """The names of the layers whose outputs are the classes."""
    get_classifier = getattr(model, "get_classifier", None)  # timm's
    if callable(get_classifier):
        chosen = get_classifier()
        parts = list(chosen) if isinstance(chosen, tuple | list) else [chosen]
    else:
        parts = [getattr(model, name, None) for name in ("head", "heads", "head_dist", "classifier", "fc")]
    layers = []
    for part in parts:
        if isinstance(part, nn.Sequential) and len(part) and isinstance(part[-1], nn.Identity):
            continue  # of a model without classes: what is left of a head of several layers
        linear = [one for one in part.modules() if isinstance(one, nn.Linear | nn.Conv2d)] if part is not None else []
        layers += [name for name, one in model.named_modules() if linear and one is linear[-1]]
    return tuple(layers)


@dataclass(frozen=True)
class _Difference:
    """How weights differ from what a model takes; ``head``: its keys of head layers that are missing or do not fit."""

    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, Shapes]
    head: set[str]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    @property
    def of_head_only(self) -> bool:
        return not self.unexpected and self.head.issuperset((*self.missing, *self.mismatched))


def _difference(
    model: nn.Module,
    weights: Mapping[str, Weight],
    loaded: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    unfit: Collection[str],
) -> _Difference:
    missing = [key for name, key in loaded.items() if name not in weights]
    unexpected = [key for name, one in weights.items() if name not in loaded for key in one.keys]
    mismatched = {
        key: (wanted[name], weights[name].shape)
        for name, key in loaded.items()
        if name in weights and (wanted[name] != weights[name].shape or name in unfit)
    }
    return _Difference(missing, unexpected, mismatched, _unfitting_head(model, missing, mismatched))


def _fit(
    path: Path,
    weights: dict[str, Weight],
    model: nn.Module,
    names: Mapping[str, str],
    layout: Layout,
    facts: Mapping[str, Any],
    grid: Grid | None,
) -> tuple[Fitted, _Difference, Sequence[str]]:
    """The weights of a file (our names) in the shapes that a model takes, by the rules of their layout or by timm's
    filter; how they still differ; and the file's keys that the filter leaves out.

    ``names``: our names -> the model's keys. Raises CheckpointError for as many positions as the model has on an
    unknown grid, UsageError for a ``grid`` that is not that of the file.
    """
    own = model.state_dict()
    wanted = {name: tuple(own[key].shape) for name, key in names.items()}
    fitted = fit_positions(weights, wanted, model, layout, facts, grid)
    for name, why in fitted.unfit.items():
        if fitted.weights[name].shape == wanted[name]:  # as many positions, but which are they?
            raise CheckpointError(f"Checkpoint {path.name!r}: {why}", mismatched=(names[name],))
    loaded = {name: key for name, key in names.items() if not _CONSTANT.fullmatch(name)}
    difference = _difference(model, fitted.weights, loaded, wanted, fitted.unfit)
    converted = None if difference.of_head_only else convert_by_timm(fitted.weights, model, fitted.names, facts)
    if converted is not None:
        other = _difference(model, converted.weights, loaded, wanted, fitted.unfit)
        if other.of_head_only or len(other) < len(difference):
            notes = [*fitted.notes, converted.note]
            return replace(fitted, weights=converted.weights, notes=notes), other, converted.left_out
    elif not facts and not fitted.names and any(is_bound_to_size(n, one.shape) for n, one in fitted.weights.items()):
        fitted.notes.append("positions taken for those of the model's own image size")
    return fitted, difference, ()


def _check_difference(path: Path, difference: _Difference, replaced: Collection[str], note: str) -> None:
    """Raises CheckpointError where weights differ in more than the ``replaced`` keys of the head; ``note`` says why
    positions do not fit.
    """
    missing = [key for key in difference.missing if key not in replaced]
    mismatched = {key: shapes for key, shapes in difference.mismatched.items() if key not in replaced}
    if not replaced and difference.of_head_only and difference.head:
        note = _other_head(difference.head, missing, mismatched)
    if missing or difference.unexpected or mismatched:
        raise _unfitting(path, missing, difference.unexpected, mismatched, note)


def _unfitting_head(model: nn.Module, missing: Collection[str], mismatched: Mapping[str, Shapes]) -> set[str]:
    """The model's keys of head layers that the file lacks or has for other classes, and of further ones for the same
    classes: the mean of a trained and a random one says nothing.
    """
    layers = {layer: _outputs(model.get_submodule(layer)) for layer in _head_layers(model)}
    classes = set()
    for layer, count in layers.items():
        own = {f"{layer}.weight", f"{layer}.bias"}
        classes_differ = [key for key, (ours, theirs) in mismatched.items() if key in own and ours[1:] == theirs[1:]]
        if classes_differ or f"{layer}.weight" in missing:
            classes.add(count)
    return {f"{layer}.{p}" for layer, count in layers.items() if count in classes for p in ("weight", "bias")}


def _outputs(layer: nn.Module) -> object:
    return getattr(layer, "out_features", getattr(layer, "out_channels", None))


def _other_head(head: Collection[str], missing: Collection[str], mismatched: Mapping[str, Shapes]) -> str:
    way_out = "To keep the model's own head, which is random unless trained, give replace_head=True (--replace-head)"
    for key, (ours, theirs) in mismatched.items():
        if key in head and ours and theirs:
            return f"It has {theirs[0]} classes and the model {ours[0]}: build the model for {theirs[0]}. {way_out}"
    layers = sorted({key.rpartition(".")[0] for key in head})
    absent = [layer for layer in layers if f"{layer}.weight" in missing]
    if len(absent) == len(layers):
        return f"It has no head. {way_out}"
    way_out = way_out.replace("own head, which is random", "own heads, which are random")
    has, lacks = (" and ".join(map(repr, one)) for one in ([one for one in layers if one not in absent], absent))
    return f"Of the model's {len(layers)} heads it has {has} but not {lacks}. {way_out}"


def _unfitting(
    path: Path,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Mapping[str, Shapes],
    note: str,
) -> CheckpointError:
    shapes = [f"{_shown(key)} (expected {ours}, found {_shown(theirs)})" for key, (ours, theirs) in mismatched.items()]
    kinds = {
        "missing": [_shown(key) for key in missing],
        "unexpected": [_shown(key) for key in unexpected],
        "of another shape": shapes,
    }
    found = [
        f"{kind} {', '.join(ones[:_NAMED])}" + (f" and {len(ones) - _NAMED} more" if len(ones) > _NAMED else "")
        for kind, ones in kinds.items()
        if ones
    ]
    return CheckpointError(
        f"Checkpoint {path.name!r} does not fit the model: {'; '.join(found)}. "
        f"{note or 'Load it into the architecture that it was saved from'}",
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
    )


def _read(path: Path, weight: Weight, own: Tensor) -> Tensor:
    """The weight in the dtype of the model's. Raises DataError for another kind of number, NaN and infinity."""
    value = weight.read()
    where = f"Checkpoint {path.name!r}: {', '.join(_shown(key) for key in weight.keys)}"
    if value.is_complex() or value.is_floating_point() != own.is_floating_point():
        raise DataError(
            f"{where} is of {weight.dtype}, the model's of {own.dtype}: give weights that are not quantised"
        )
    cast = value.to(own.dtype)
    if cast.is_floating_point() and not torch.isfinite(cast).all():
        raise DataError(f"{where} holds NaN or infinity (as {own.dtype}): the training that saved it has diverged")
    return cast


def _shown(thing: object) -> str:
    """A key or shape of a file in a message: on one line, of bounded length."""
    text = repr(thing)
    return text if len(text) <= 120 else f"{text[:117]}..."

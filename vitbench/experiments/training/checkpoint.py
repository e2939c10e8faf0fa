"""``last.pt``: everything needed to resume a training, replaced in one step and validated when it is read.

Loads torch.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import torch
from typing_extensions import TypedDict

from vitbench.core.errors import DataError, StorageError
from vitbench.core.files import CodeError, RefusedError, check_zip, parse_json
from vitbench.core.validation import Count, Number, Positive, Whole, check
from vitbench.devices.failures import explain_exception
from vitbench.devices.host.memory import available_memory
from vitbench.experiments.training.request import LAST, SCHEMA

#: Numbers, texts, tensors and lists in the state of a training; the losses of an epoch are the most.
_MOST_PARTS = 1_000_000


class _Facts(TypedDict):
    data: str


class _Best(TypedDict):
    epoch: Number
    accuracy: Number
    loss: Number


class _Header(TypedDict):
    schema: Whole
    facts: _Facts
    best: NotRequired[_Best | None]
    origin: NotRequired[str | None]
    pictures: NotRequired[str | None]
    device: NotRequired[str | None]
    processes: NotRequired[Positive | None]


class _Stretch(TypedDict):
    losses: list[Number]
    images: Count
    correct: Count
    since_s: Number


class _State(TypedDict):
    seen: Count
    steps: Count
    elapsed_s: Number
    stretch: _Stretch


@dataclass(frozen=True, eq=False)
class Saved:
    """A checkpoint: the tensors and numbers of ``Trainer.state``, and what it says of itself in ``header``: ``facts``,
    ``history`` (a row an epoch), ``best``, ``origin`` (where the weights started), ``pictures`` (a digest of the
    images), ``processes`` and ``device``.
    """

    state: dict[str, Any]
    header: dict[str, Any]


def save_last(folder: Path, saved: Saved) -> None:
    """Replace ``last.pt``. Raises StorageError; the old one then stays."""
    save_state({"vitbench": json.dumps({"schema": SCHEMA, **saved.header}), **saved.state}, folder / LAST)


def read_last(folder: Path) -> Saved | None:
    """The last checkpoint, or None if there is none. Raises DataError for a damaged one."""
    state = load_state(folder / LAST)
    if state is None:
        return None
    try:
        check(state["vitbench"], str, "its header")
        header = parse_json(state["vitbench"], _Header)
        if header["schema"] != SCHEMA:
            raise ValueError(f"it is of schema {header['schema']}, not {SCHEMA}")
        check(state, _State)
    except (ValueError, KeyError) as error:
        raise does_not_fit(folder, error) from error
    return Saved(state, header)


def does_not_fit(folder: Path, error: Exception) -> DataError:
    """The error for a checkpoint that is not one of this training."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{LAST} of {str(folder)!r} does not fit this training: {reason}")


def save_state(state: dict[str, Any], path: Path) -> None:
    """Replace ``path`` by ``state`` in one step. Raises StorageError for a full disk; the old file then stays."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise StorageError(
            f"Could not write {path.name}: {reason}. The one before it is kept: free space, then --resume"
        ) from error


def load_state(path: Path) -> dict[str, Any] | None:
    """What save_state wrote, on the CPU; None if there is no file. Runs no code of the file. Raises DataError for a
    damaged file, or one larger than the free memory.
    """
    if not path.is_file():
        return None
    try:
        check_zip(path)
        # all free memory may be used: the training takes most of the tensors without a copy
        if path.stat().st_size > available_memory():
            raise _too_large(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "vitbench" not in state:
            raise ValueError("it is not a checkpoint of a training")
        _refuse_hollow(state)
    except DataError:
        raise
    except CodeError as error:
        raise _damaged(path, f"it holds {error}") from error
    except RefusedError as error:
        raise _damaged(path, f"it {error}") from error
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        failure = explain_exception(error, ())
        if failure is not None and failure.status == "oom":
            raise _too_large(path) from error
        raise _damaged(path, (str(error).splitlines() or [type(error).__name__])[0][:300]) from error
    return state


def _too_large(path: Path) -> DataError:
    return DataError(
        f"Checkpoint {path.name} is too large for now: it needs {path.stat().st_size / 1e9:.2f} GB of memory, and "
        f"{available_memory() / 1e9:.2f} GB are free. It stays as it is: free memory, then --resume"
    )


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"Checkpoint {path.name} is damaged ({reason}). Start anew, from the weights of best.safetensors or "
        "last.safetensors if they are there (--weights)"
    )


def _refuse_hollow(state: dict[str, Any]) -> None:
    """Raises ValueError for content that would grow when it is copied: tensors that claim more numbers than they hold,
    and lists that contain themselves, or one list many times.
    """
    waiting: list[Any] = [state]
    looked_at = 0
    while waiting:
        one = waiting.pop()
        looked_at += 1
        if looked_at + len(waiting) > _MOST_PARTS:
            raise ValueError("it has more parts than a training leaves")
        if isinstance(one, torch.Tensor):
            if not one.is_meta and one.numel() * one.element_size() > one.untyped_storage().nbytes():
                raise ValueError(f"a tensor claims the shape {tuple(one.shape)} but holds fewer numbers")
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one

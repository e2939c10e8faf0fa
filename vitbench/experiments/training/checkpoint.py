"""``last.pt``: everything needed to resume a training, replaced in one step and validated when it is read.

Loads torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from vitbench.core.errors import DataError
from vitbench.core.files import parse_json
from vitbench.core.validation import Count, Number, Positive, Whole, check
from vitbench.experiments.training.request import LAST, SCHEMA
from vitbench.training.states import load_state, save_state


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

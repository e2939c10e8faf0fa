"""A training's folder: its name, its request, its summary, its lock. Only ``versions`` loads torch."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NotRequired

import filelock
from pydantic import ValidationError
from typing_extensions import TypedDict

from vitbench.core.errors import RunFolderError, UsageError
from vitbench.core.files import read_json
from vitbench.core.run_folder import LOCK, cannot_write, make_new_folder, write_atomically
from vitbench.core.validation import Count, Number, Positive, Share, check, parse
from vitbench.experiments.training.request import REQUEST, SCHEMA, SUMMARY, TrainingRequest
from vitbench.training.data.datasets import options_of_data
from vitbench.training.recipes import Recipe


class _Versions(TypedDict):
    versions: NotRequired[dict[str, str]]


class _Tested(TypedDict):
    test_correct: Count
    test_accuracy: Share
    test_loss: Number


class _Best(_Tested):
    epoch: Number


class _Last(_Tested):
    macro_f1: NotRequired[Share]
    macro_f1_present: NotRequired[Share]
    classes_without_images: NotRequired[Count]


class _Figures(TypedDict):
    """The part of summary.json that is read again; earlier versions wrote no sizes."""

    model: str
    data: str
    recipe: str
    recipe_hash: str
    seed: Count
    epochs: Number
    training_duration_s: Number
    test_images: Positive
    image_size: NotRequired[list[Positive]]
    num_classes: NotRequired[Positive]
    class_sizes: list[Any]
    last: _Last
    best: NotRequired[_Best]


class _Row(TypedDict):
    epoch: Number
    learning_rate: Number
    train_loss: Number
    train_accuracy: Number
    images: Count


class _Summary(TypedDict):
    figures: _Figures
    history: list[_Row]


def read_request(folder: Path) -> tuple[TrainingRequest, dict[str, Any]]:
    """The request in a run folder, and the versions that it began with. Raises RunFolderError if there is none."""
    path = folder / REQUEST
    try:
        content = read_json(path, _Versions)
        if content.pop("schema", None) != SCHEMA:
            raise RunFolderError(
                f"{path.name} of {str(folder)!r} was written by another version of vitbench: resume with that one, or "
                "start the training anew"
            )
        versions = content.pop("versions", {})
        return request_from_dict(content), versions
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(f"{str(folder)!r} holds no training: {REQUEST} is not there ({error.strerror})") from error
    except ValueError as error:
        raise RunFolderError(f"{path.name} of {str(folder)!r} is damaged ({error}): start the training anew") from error


def request_from_dict(content: dict[str, Any]) -> TrainingRequest:
    """A request from its JSON object. Raises ValueError, in one line, for an invalid one."""
    request: TrainingRequest = parse(content, TrainingRequest)
    root, download = options_of_data(request.data, request.data_dir, request.download)
    request = replace(request, data_dir=root, download=download)
    try:
        Recipe(**request.recipe)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part)[:80] for part in ("recipe", *problem["loc"]))
        raise ValueError(f"{place}: {problem['msg']}") from error
    return request


def read_summary(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The values and the history (a row an epoch) of a finished training. Raises RunFolderError for a damaged file."""
    path = folder / SUMMARY
    try:
        content = read_json(path, _Summary)
        check_history(content["history"])
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}. Make it readable") from error
    except ValueError as error:
        raise RunFolderError(
            f"{path} is damaged ({error}). Remove it, then: vitbench train --resume {folder}, which tests the trained "
            "model again"
        ) from error
    return content["figures"], content["history"]


def check_history(rows: Any, which: str | None = None) -> None:
    """Raises ValueError unless ``rows`` are a history: the same numbers in each row, among them loss and accuracy on
    ``which`` split the epochs were tested on (``test`` or ``validation``; by default either).
    """
    check(rows, list[_Row], "history")
    check(rows, list[dict[str, Number]], "history")
    for one in rows:
        kinds = [which] if which else ["validation" if "validation_loss" in rows[0] else "test"]
        missing = [f"{kind}_{key}" for kind in kinds for key in ("loss", "accuracy") if f"{kind}_{key}" not in one]
        if missing:
            raise ValueError(f"a row of its history has no {missing[0]}")
        if one.keys() != rows[0].keys():
            raise ValueError("the rows of its history differ in what they hold")


def check_request(request: TrainingRequest) -> None:
    """Raises UsageError for a request that could not be read again from its JSON to resume it."""
    if not isinstance(request.model, str):
        raise UsageError(f"A training takes the name of a model, not {type(request.model).__name__}")
    try:
        parse({**asdict(request), "amp": "off"}, TrainingRequest)  # Setup has an error of its own for amp
    except ValueError as error:
        raise UsageError(f"The options of the training are wrong: {error}") from error


def default_folder(model: str, kind: str = "train") -> Path:
    """``runs/train-MODEL-TIME``."""
    name = "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in model)
    return Path("runs") / f"{kind}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_is_free(folder: Path) -> None:
    """Raises RunFolderError if something is in ``folder``, or it is a file."""
    try:
        if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
            raise RunFolderError(
                f"{str(folder)!r} is not empty: choose another folder, or resume it with --resume {folder}"
            )
    except OSError as error:
        raise cannot_write(folder, error) from error


def make_folder(folder: Path, *, named: bool) -> Path:
    """Make ``folder``, or one beside it if it exists and the user did not name it. Returns the folder."""
    try:
        if not named:
            return make_new_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def write_request(folder: Path, request: TrainingRequest) -> None:
    """Write the request into ``folder``, whose lock is held: from then on it can be resumed."""
    check_is_free(folder)
    write_json(folder / REQUEST, {"schema": SCHEMA, **asdict(request), "versions": versions()})


def write_data_paths(folder: Path, request: TrainingRequest) -> None:
    """Update in ``folder`` where its data set is."""
    content = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    now = {"data": request.data, "data_dir": request.data_dir}
    if any(content.get(key) != value for key, value in now.items()):
        write_json(folder / REQUEST, {**content, **now})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace ``path`` in one step. Raises StorageError or RunFolderError as write_atomically does."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def versions() -> dict[str, str]:
    """What has to be the same for a resumed training to end with the same weights."""
    import torch

    from vitbench import __version__

    return {"python": platform.python_version(), "torch": torch.__version__, "vitbench": __version__}


def take_lock(folder: Path) -> filelock.BaseFileLock:
    """The lock of ``folder``, held. Raises RunFolderError if another process trains in it."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise RunFolderError(f"Another vitbench is training in {str(folder)!r} now: wait for it, or end it") from error
    return lock

"""A training's folder: what it is called, that it is free, what it was asked for. Loads torch only to tell versions."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock

from vitbench.errors import RunFolderError
from vitbench.store import cannot_write, write_atomically
from vitbench.training.recipes import Recipe
from vitbench.trainings.request import REQUEST, SCHEMA, TrainingRequest


def read_request(folder: Path) -> tuple[TrainingRequest, dict[str, Any]]:
    """What a run folder was asked for, and the versions it began with. Raises RunFolderError if it holds no
    training.
    """
    path = folder / REQUEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(f"{str(folder)!r} holds no training: {REQUEST} is not there ({error.strerror})") from error
    except ValueError as error:
        raise RunFolderError(f"{path.name} of {str(folder)!r} is damaged ({error}): start the training anew") from error
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise RunFolderError(f"{path.name} of {str(folder)!r} was written by another version of vitbench")
    versions = content.pop("versions", {})
    try:
        request = TrainingRequest(**content)
        Recipe(**request.recipe)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(
            f"{path.name} of {str(folder)!r} is damaged ({reason}): start the training anew"
        ) from error
    return request, versions


def default_folder(request: TrainingRequest) -> Path:
    """``runs/train-MODEL-TIME``."""
    name = "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in request.model)
    return Path("runs") / f"train-{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_is_free(folder: Path) -> None:
    """Raises RunFolderError if something is in ``folder``, or it is a file."""
    try:
        if folder.exists() and any(folder.iterdir()):
            raise RunFolderError(
                f"{str(folder)!r} is not empty: choose another folder, or go on with --resume {folder}"
            )
    except OSError as error:
        raise cannot_write(folder, error) from error


def claim_folder(folder: Path, request: TrainingRequest) -> None:
    """Make ``folder``, and note in it what it is for: from then on it can be gone on with."""
    check_is_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    write_json(folder / REQUEST, {"schema": SCHEMA, **asdict(request), "versions": versions()})


def note_where_pictures_are(folder: Path, request: TrainingRequest) -> None:
    """Keep in ``folder`` where its data set is now, if that has changed."""
    content = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    now = {"data": request.data, "data_dir": request.data_dir}
    if any(content.get(key) != value for key, value in now.items()):
        write_json(folder / REQUEST, {**content, **now})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace ``path`` in one step. Raises StorageError or RunFolderError as write_atomically does."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def versions() -> dict[str, str]:
    """What has to be the same for a training to go on to the same weights."""
    import torch

    from vitbench import __version__

    return {"python": platform.python_version(), "torch": torch.__version__, "vitbench": __version__}


def take_lock(lock: filelock.BaseFileLock, folder: Path) -> None:
    """Raises RunFolderError if another process trains in ``folder``."""
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise RunFolderError(f"Another vitbench is training in {str(folder)!r} now: wait for it, or end it") from error

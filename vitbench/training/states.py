"""The state of a training on disk: whole or not at all, and read without running any code of the file. Loads torch."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from vitbench.errors import DataError, StorageError


def save_state(state: dict[str, Any], path: Path) -> None:
    """Replace ``path`` by ``state`` in one step. Raises StorageError if the disk does not take it; the old one
    stays.
    """
    import torch

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
    """What save_state wrote, on the CPU; None if there is none. Runs no code of the file. Raises DataError if it is
    damaged.
    """
    import torch

    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "vitbench" not in state:
            raise ValueError("it is no checkpoint of a training")
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"Checkpoint {path.name} is damaged ({reason}). Start anew, from the weights of best.safetensors or "
            "last.safetensors if they are there (--weights)"
        ) from error
    return state

"""Save the state of a training in one step, and load it without running code of the file. Loads torch."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from vitbench.core.errors import DataError, StorageError
from vitbench.core.files import CodeError, RefusedError, check_zip
from vitbench.devices.failures import explain_exception
from vitbench.devices.host.memory import available_memory

#: Numbers, texts, tensors and lists in the state of a training; the losses of an epoch are the most.
_MOST_PARTS = 1_000_000


def save_state(state: dict[str, Any], path: Path) -> None:
    """Replace ``path`` by ``state`` in one step. Raises StorageError for a full disk; the old file then stays."""
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
    """What save_state wrote, on the CPU; None if there is no file. Runs no code of the file. Raises DataError for a
    damaged file, or one larger than the free memory.
    """
    import torch

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
    import torch

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

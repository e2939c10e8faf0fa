"""The folder of a run: made or refused, locked for one run, and what must hold before it is resumed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from vitbench.core import run_folder as store
from vitbench.core.errors import RunFolderError, StorageError
from vitbench.core.records import Record
from vitbench.runner.plan import Plan, weights_of
from vitbench.suites import Suite, load_suite
from vitbench.training.data.datasets import options_of_data


def new_folder(out: str | Path | None, suite_name: str) -> Path:
    """The folder of a run, made if need be. Raises RunFolderError if it is not empty or cannot be written."""
    folder = Path("runs") / f"{suite_name}-{datetime.now():%Y%m%d-%H%M%S}" if out is None else Path(out)
    try:
        if out is None:
            folder = store.make_new_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = [path for path in folder.iterdir() if path.name != store.LOCK and not store.is_leftover(path)]
        probe = folder / f".writable{store.PART}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunFolderError(f"Cannot write to {folder}: {error.strerror}. Choose another folder with --out") from error
    if content:
        way_out = f"or resume it: vitbench run --resume {folder}" if (folder / store.SUITE).is_file() else ""
        raise RunFolderError(f"{folder} is not empty. Choose a new folder with --out {way_out}".rstrip())
    return folder


@contextlib.contextmanager
def locked(folder: Path, *, new: bool = False) -> Iterator[None]:
    """Only one run writes to a folder at a time. Raises RunFolderError if another one does.

    The lock of a run that was killed is free: the system holds it for the process, not the file. The unfinished files
    of such a run are removed. A ``new`` folder is removed if it stays empty, but only while it is locked: an empty one
    can belong to a run that is still planning.
    """
    import filelock

    lock = filelock.FileLock(folder / store.LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunFolderError(
            f"{folder} is in use by another vitbench run. Wait for it, or choose another folder"
        ) from None
    except OSError as error:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise store.cannot_write(folder, error) from error
    try:
        store.remove_leftovers(folder)
        yield
    finally:
        if new:
            _remove_if_empty(folder)
        lock.release()
        if new and os.name == "nt":  # Windows removes no open file, and not the lock file of another run
            _remove_if_empty(folder)


@contextlib.contextmanager
def naming_the_way_on(folder: Path) -> Iterator[None]:
    """The error of a full disk names the command that resumes the run."""
    try:
        yield
    except StorageError as error:
        way_out = f"vitbench run --resume {folder}" if (folder / store.SUITE).is_file() else "start again"
        raise StorageError(f"{str(error).rstrip('.')}. Free some space, then: {way_out}") from error


def suite_as_run(folder: Path) -> Suite:
    """The suite of a run folder, by the rules that the run began with.

    Before ``precision`` existed, a run stopped at its ``processes``.
    """
    suite = load_suite(str(folder / store.SUITE))
    if suite.training is not None:
        section = suite.training
        root, download = options_of_data(section.data, section.data_dir, section.download)
        suite = suite.model_copy(
            update={"training": section.model_copy(update={"data_dir": root, "download": download})}
        )
    if "precision" in suite.measure.model_fields_set:
        return suite
    return suite.model_copy(update={"measure": suite.measure.model_copy(update={"precision": 0.0})})


def refuse_changed_environment(folder: Path, plan: Plan) -> None:
    """Raises RunFolderError if the environment differs from that of the run's last session."""
    known = store.read_environment(folder)
    if not known["sessions"] or plan.environment_hash in known["environments"]:
        return
    named = known["sessions"][-1].get("environment")
    if named not in known["environments"]:
        raise RunFolderError(
            f"{folder / store.ENVIRONMENT} is damaged (its last session names no environment that it holds). Move it "
            "away to resume without it"
        )
    differences = list(environment_differences(known["environments"][named], plan.environment))
    if not differences:
        return  # this version records more than the one that began the run; what both record is equal
    raise RunFolderError(
        f"The environment of {folder} has changed ({'; '.join(differences[:4])}): its values would not be comparable. "
        "Start a new run, or resume with --allow-changed-environment"
    )


def refuse_changed_checkpoint(folder: Path, plan: Plan, done: Sequence[Record]) -> None:
    """Raises RunFolderError if the records of a run are of another checkpoint than the plan's cells."""
    if weights_of(plan.suite) is None:
        return
    before = {record.cell.weights for record in done}
    now = {cell.weights for cell in plan.cells}
    if before and not before & now:
        raise RunFolderError(
            f"{plan.suite.weights} has changed since the run in {folder} began ({', '.join(sorted(before))} is now "
            f"{', '.join(sorted(now))}): put the old file back, or start a new run"
        )


def environment_differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """``system.cpu: A -> B``: what differs of all that both environments record."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        grown = path in ("system", "libraries") or path.startswith("devices.")  # where later versions record more
        for key in sorted(old if grown else {*old, *new}):
            yield from environment_differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path}: {old} -> {new}"


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] in ([], [store.LOCK]):
            shutil.rmtree(folder)

"""Train one model into a run folder: start, resume after any interruption, test, report.

A folder holds ``training.json`` (the request), ``history.csv`` (a row an epoch), ``curves.png``,
``checkpoints/last.pt`` (everything needed to resume), ``checkpoints/last.safetensors`` and ``best.safetensors``
(weights), and at the end ``summary.json`` and ``report.md``. Read ``session.py`` first.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import RunFolderError, UsageError
from vitbench.core.files import refuse_links
from vitbench.experiments.training.folder import check_is_free, check_request, default_folder, read_request, versions
from vitbench.experiments.training.progress import TrainingProgress
from vitbench.experiments.training.request import LAST, TrainingRequest, TrainingSummary, check_beginning

if TYPE_CHECKING:
    from vitbench.experiments.training.session import Session


def train(
    model: str,
    *,
    data: str = "digits",
    recipe: str = "brief",
    settings: Mapping[str, Any] | None = None,
    out: Path | None = None,
    progress: TrainingProgress | None = None,
    **options: Any,
) -> TrainingSummary:
    """``vitbench train`` from Python: ``settings`` replace keys of ``recipe`` (a built-in one, or the path of a file),
    ``out`` is the run folder, and ``options`` are fields of TrainingRequest (``device``, ``seed``, ...).

    Raises as ``start_training`` does, and RecipeError; UsageError for an unknown option.
    """
    from vitbench.training.recipes import check_settings, load_recipe

    if settings and "seed" in settings and "seed" in options:
        raise UsageError("The seed is given twice, as an option and among the settings: leave out one of them")
    chosen = load_recipe(recipe, **(settings or {}))
    check_settings(chosen, settings or {})
    options.setdefault("seed", chosen.seed or 0)
    known = {one.name for one in dataclasses.fields(TrainingRequest)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(f"A training has no option {unknown[0]!r}. Options: {', '.join(sorted(known))}")
    options = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    request = TrainingRequest(model=model, data=str(data), recipe=chosen.model_dump(mode="json"), **options)
    check_request(request)
    return start_training(request, None if out is None else Path(out), progress)


def start_training(
    request: TrainingRequest, out: Path | None = None, progress: TrainingProgress | None = None
) -> TrainingSummary:
    """Train into ``out``, new or empty (by default ``runs/train-MODEL-TIME``).

    Raises UsageError for a request that cannot be trained, TrainingDiverged, TrainingOutOfMemory, ModelFailed,
    StorageError for a full disk, and TrainingInterrupted; after the last five the training can be resumed.
    """
    check_beginning(request)
    with _session(request, progress) as session:
        folder = Path(session.ranks.share(str(out or default_folder(request.model))))
        if session.ranks.first and out is not None:
            check_is_free(folder)
        return session.run(folder, named=out is not None)


def resume_training(
    folder: Path,
    progress: TrainingProgress | None = None,
    *,
    allow_import: bool = False,
    data: str | None = None,
    data_dir: str | None = None,
) -> TrainingSummary:
    """Resume the training in ``folder`` from its last checkpoint; from the start if there is none.

    ``allow_import`` has to be given again: a folder from elsewhere must not be able to run code. ``data`` and
    ``data_dir`` say where the same images are now, if they have moved.

    Raises RunFolderError for a folder without a training, DataError for a damaged checkpoint, else as
    ``start_training``.
    """
    refuse_links(folder, ["checkpoints", "tensorboard"])
    request, before = read_request(folder)
    changed = [f"{key} {before.get(key)} is now {now}" for key, now in versions().items() if before.get(key) != now]
    moved: dict[str, Any] = {k: v for k, v in {"data": data, "data_dir": data_dir}.items() if v is not None}
    if moved and not (folder / LAST).is_file():
        raise RunFolderError(
            f"{str(folder)!r} has no checkpoint yet to compare these images with: start the training anew"
        )
    with _session(dataclasses.replace(request, allow_import=allow_import, **moved), progress) as session:
        if changed:
            session.progress.warn(
                f"The training began with other versions ({', '.join(changed)}): its result may differ from one "
                "without a pause"
            )
        return session.run(folder, resumed=True)


@contextlib.contextmanager
def _session(request: TrainingRequest, progress: TrainingProgress | None) -> Iterator[Session]:
    """This process's session, joined to those of the other processes; only the first one shows progress."""
    from vitbench.experiments.training.session import Session
    from vitbench.experiments.training.setup import Setup, restored_settings
    from vitbench.training.ranks import joined, ranks_from_environment

    ranks = ranks_from_environment()
    shown = progress if progress is not None and ranks.first else TrainingProgress()
    with restored_settings():
        session = Session(Setup(request, ranks, shown))
        with joined(ranks, session.setup.device.torch_device):
            yield session

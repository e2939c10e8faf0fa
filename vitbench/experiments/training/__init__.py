"""Train one model into a run folder: start, go on after any end, test, and leave what a reader wants to see.

Joins models, devices and training. A folder holds ``training.json`` (what was asked for), ``history.csv`` (a line an
epoch), ``curves.png``, ``checkpoints/last.pt`` (everything that is needed to go on), ``checkpoints/last.safetensors``
and ``best.safetensors`` (weights), ``summary.json`` and ``report.md`` at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitbench.core.errors import ModelFailed, RunFolderError, UsageError
from vitbench.core.files import refuse_links
from vitbench.experiments.training.folder import check_is_free, check_request, default_folder, read_request, versions
from vitbench.experiments.training.progress import TrainingProgress
from vitbench.experiments.training.request import (
    LAST,
    REQUEST,
    SUMMARY,
    TrainingInterrupted,
    TrainingOutOfMemory,
    TrainingRequest,
    TrainingSummary,
    check_beginning,
)

__all__ = [
    "LAST",
    "REQUEST",
    "SUMMARY",
    "ModelFailed",
    "TrainingInterrupted",
    "TrainingOutOfMemory",
    "TrainingProgress",
    "TrainingRequest",
    "TrainingSummary",
    "read_request",
    "resume_training",
    "start_training",
    "train",
]


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
    """``vitbench train`` from Python: ``settings`` replace keys of the recipe (a built-in one, or the path of a file);
    ``options`` are fields of TrainingRequest (``device``, ``image_size``, ``seed``, ``pretrained``, ``freeze``, ...).

    Raises as ``start_training`` does, and RecipeError; UsageError for an option that there is not.
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

    Raises UsageError for what cannot be, TrainingDiverged, TrainingOutOfMemory, ModelFailed, StorageError for a full
    disk, and TrainingInterrupted; in the last five what was saved stays and can be gone on with.
    """
    from vitbench.experiments.training.session import Session
    from vitbench.experiments.training.setup import Setup, as_it_was
    from vitbench.training.ranks import ranks_from_environment

    check_beginning(request)
    ranks = ranks_from_environment()
    progress = progress if progress is not None and ranks.first else TrainingProgress()
    with as_it_was():
        session = Session(Setup(request, ranks, progress))
        with session.setup.joined():
            folder = Path(ranks.share(str(out or default_folder(request))))
            if ranks.first and out is not None:
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
    """Go on where ``folder``'s last checkpoint is, with what it was started with; from the start if there is none.

    ``allow_import`` has to be given again: a folder from elsewhere must not be able to run code. ``data`` and
    ``data_dir`` say where the same images are now, if they have moved.

    Raises RunFolderError for a folder that holds no training, DataError for a damaged checkpoint, else as
    ``start_training``.
    """
    from vitbench.experiments.training.session import Session
    from vitbench.experiments.training.setup import Setup, as_it_was
    from vitbench.training.ranks import ranks_from_environment

    ranks = ranks_from_environment()
    progress = progress if progress is not None and ranks.first else TrainingProgress()
    refuse_links(folder, ["checkpoints", "tensorboard"])
    request, begun_with = read_request(folder)
    if begun_with != versions():
        changed = ", ".join(
            f"{key} {begun_with.get(key)} is now {value}"
            for key, value in versions().items()
            if begun_with.get(key) != value
        )
        progress.warn(f"The training began with other versions ({changed}): it may not come out as without a pause")
    moved: dict[str, Any] = {k: v for k, v in {"data": data, "data_dir": data_dir}.items() if v is not None}
    if moved and not (folder / LAST).is_file():
        raise RunFolderError(
            f"{str(folder)!r} has no checkpoint yet that could tell whether these are its images: start the training "
            "anew"
        )
    with as_it_was():
        session = Session(Setup(dataclasses.replace(request, allow_import=allow_import, **moved), ranks, progress))
        with session.setup.joined():
            return session.run(folder, resumed=True)

"""Train one model under several settings of a recipe, one after the other, and compare them.

A folder holds ``sweep.json`` (the plan), a run folder for each setting, and ``sweep.md``, ``sweep.csv``, ``sweep.png``,
which are rewritten after each training. A finished training is never repeated.
"""

from __future__ import annotations

import gc
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from vitbench.core.errors import RunFolderError, StorageError, UsageError, VitbenchError
from vitbench.core.files import read_json, refuse_links
from vitbench.core.run_folder import write_atomically
from vitbench.core.validation import Flag, Number
from vitbench.devices import find_device
from vitbench.experiments.training import resume_training, start_training
from vitbench.experiments.training.folder import (
    check_is_free,
    default_folder,
    make_folder,
    read_summary,
    request_from_dict,
    write_json,
)
from vitbench.experiments.training.progress import TrainingProgress
from vitbench.experiments.training.request import (
    REQUEST,
    SUMMARY,
    TrainingInterrupted,
    TrainingOutOfMemory,
    TrainingRequest,
    check_beginning,
)
from vitbench.models import describe_model
from vitbench.models.weights.claimed import resolve
from vitbench.training.data.datasets import describe_data

PLAN = "sweep.json"
FAILURE = "failure.json"
SCHEMA = 1


#: What a key of a recipe can be set to.
_Value = str | Flag | Number | None


class _PlannedSetting(TypedDict):
    name: Any
    changes: dict[str, _Value | list[_Value]]
    request: dict[str, Any]


class _Plan(TypedDict):
    settings: list[_PlannedSetting]


class _Failure(TypedDict):
    status: str
    detail: str


@dataclass(frozen=True)
class Setting:
    """One training of a sweep: the folder's name, what differs between the trainings, and the request."""

    name: str
    changes: dict[str, Any]
    request: TrainingRequest


@dataclass(frozen=True)
class SweepSummary:
    """``lines``: the rows of sweep.csv, one a setting."""

    folder: Path
    lines: tuple[dict[str, Any], ...]

    @property
    def failed(self) -> int:
        """How many trainings failed."""
        return sum(line["status"] != "ok" for line in self.lines)


def expand_settings(products: Sequence[str], tries: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The changes of each training: the cross product of ``key=a,b`` in ``products``, for each of ``tries`` (``key=a
    key=b``), for each seed.

    Items of lists are joined by ``+`` (``augment=crop+flip``). Raises UsageError for another form, and for a key
    in both.
    """
    from vitbench.training.recipes import ALIASES, LISTS, parse_settings

    axes: list[list[str]] = []
    for product in products:
        key, sign, values = product.partition("=")
        choices = [value.strip() for value in values.split(",") if value.strip()]
        if not sign or not choices:
            raise UsageError(f"--set {product!r} is not key=value,value, such as learning_rate=1e-2,1e-3")
        axes.append([f"{key}={value}" for value in choices])
    found: list[dict[str, Any]] = []
    for one in tries or [""]:
        for combination in itertools.product(*axes):
            words = [*one.split(), *combination]
            listed = []
            for word in words:
                key, sign, value = word.partition("=")
                name = ALIASES.get(key.strip(), key.strip())
                listed.append(f"{key}{sign}{value.replace('+', ',')}" if name in LISTS else word)
            changes = parse_settings(listed)
            if seeds and "seed" in changes:
                raise UsageError("Seeds are given twice, by --seeds and as a key: leave out one of them")
            found += [{**changes, "seed": seed} for seed in seeds] if seeds else [changes]
    return found


def plan_sweep(
    request: TrainingRequest, recipe: str, changes: Sequence[dict[str, Any]], fixed: Mapping[str, Any]
) -> list[Setting]:
    """A setting for each of ``changes`` to ``recipe``; ``fixed`` keys are the same in all. Raises RecipeError for a
    wrong setting, and UsageError for a wrong ``request``.
    """
    from vitbench.training.recipes import check_settings, load_recipe

    check_beginning(request)
    settings = []
    varying = [key for key in dict.fromkeys(key for one in changes for key in one) if key]
    for number, one in enumerate(changes, 1):
        # without a seed the recipe's counts
        keys = {key: value for key, value in one.items() if key != "seed" or value is not None}
        loaded = load_recipe(recipe, **{**fixed, **keys})
        check_settings(loaded, {key: value for key, value in {**fixed, **keys}.items() if key != "seed"})
        seed = request.seed if loaded.seed is None else loaded.seed
        made = replace(request, recipe=loaded.model_dump(mode="json"), seed=seed)
        # the values in this training, also of keys that only others change
        settings.append(Setting(f"{number:03d}", {key: {**made.recipe, "seed": seed}[key] for key in varying}, made))
    return settings


def start_sweep(
    settings: Sequence[Setting], out: Path | None, progress: Callable[[], TrainingProgress], say: Callable[[str], None]
) -> SweepSummary:
    """Train each setting into ``out``, new or empty (by default ``runs/sweep-MODEL-TIME``). Raises UsageError for a
    model, data set, device, size or checkpoint that no training could use.
    """
    request = settings[0].request
    if not request.allow_import:
        resolve(describe_model(request.model), request.weights, request.image_size, entry=request.entry)
    root = None if request.data_dir is None else Path(request.data_dir)
    describe_data(request.data, root=root, download=request.download)
    find_device(request.device)
    folder = out or default_folder(request.model, "sweep")
    make_folder(folder, named=True)
    check_is_free(folder)
    plan = {"schema": SCHEMA, "settings": [asdict(one) for one in settings]}
    write_json(folder / PLAN, plan)
    return _run(folder, settings, progress, say)


def resume_sweep(
    folder: Path,
    progress: Callable[[], TrainingProgress],
    say: Callable[[str], None],
    *,
    allow_import: bool = False,
) -> SweepSummary:
    """Run the trainings that ``folder`` lacks. ``allow_import`` has to be given again: a folder from elsewhere must not
    be able to run code. Raises RunFolderError for a folder without a sweep.
    """
    refuse_links(folder)
    try:
        content = read_json(folder / PLAN, _Plan)
        settings = [
            Setting(one["name"], one["changes"], request_from_dict({**one["request"], "allow_import": allow_import}))
            for one in content["settings"]
        ]
        _check_settings(settings)
    except OSError as error:
        raise RunFolderError(f"{str(folder)!r} holds no sweep: {PLAN} is not there ({error.strerror})") from error
    except ValueError as error:
        raise RunFolderError(f"{PLAN} of {str(folder)!r} is damaged ({error}): start the sweep anew") from error
    if not allow_import and any(not (folder / one.name / SUMMARY).is_file() for one in settings):
        describe_model(settings[0].request.model)  # one error for a forbidden import, not a failure of each training
    return _run(folder, settings, progress, say)


def _check_settings(settings: Sequence[Setting]) -> None:
    """Raises ValueError for settings that ``plan_sweep`` never makes."""
    from vitbench.training.recipes import Recipe

    names = [one.name for one in settings]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch("[0-9]{3,}", name):  # it might lead elsewhere
            raise ValueError(f"{str(name)[:80]!r} is not a folder of a sweep")
    if not names:
        raise ValueError("it has no settings")
    if len(set(names)) < len(names):
        raise ValueError("two of its settings have one folder")
    known = {*Recipe.model_fields, "seed"} - {"name", "description"}
    other = [key for one in settings for key in one.changes if key not in known]
    if other:
        raise ValueError(f"a recipe has no key {other[0][:80]!r}")


def _run(
    folder: Path, settings: Sequence[Setting], progress: Callable[[], TrainingProgress], say: Callable[[str], None]
) -> SweepSummary:
    for number, one in enumerate(settings, 1):
        run = folder / one.name
        if (run / SUMMARY).is_file():
            continue
        gc.collect()  # the training before: models and errors are in reference cycles
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        changes = ", ".join(f"{key} {'none' if value is None else value}" for key, value in one.changes.items())
        say(f"Training {number} of {len(settings)}: {changes}")
        (run / FAILURE).unlink(missing_ok=True)
        try:
            if (run / REQUEST).is_file():
                resume_training(run, progress(), allow_import=one.request.allow_import)
            else:
                start_training(one.request, run, progress())
        except TrainingInterrupted as interrupt:
            raise KeyboardInterrupt(f"Interrupted. Go on with: vitbench sweep --resume {folder}") from interrupt
        except StorageError:
            raise
        except VitbenchError as error:
            status = "oom" if isinstance(error, TrainingOutOfMemory) else getattr(error, "cause", "error")
            run.mkdir(exist_ok=True)
            write_json(run / FAILURE, {"status": status, "detail": str(error)})
            say(f"Training {number} failed: {error}")
        _report(folder, settings)
    return SweepSummary(folder, tuple(_report(folder, settings)))


def _read_failure(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, _Failure)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}. Make it readable") from error
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}). Remove it: its training is then repeated") from error
    return dict(found)


def _report(folder: Path, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    from vitbench.reports.plots.curves import write_sweep_curves
    from vitbench.reports.training import sweep_csv, sweep_lines, sweep_markdown

    courses = []
    for one in settings:
        course: dict[str, Any] = {"name": one.name, "changes": one.changes, "status": "not trained", "detail": ""}
        run = folder / one.name
        if (run / FAILURE).is_file():
            course |= _read_failure(run / FAILURE)
        if (run / SUMMARY).is_file():
            figures, history = read_summary(run)
            course |= {"status": "ok", "figures": figures, "history": history}
        courses.append(course)
    lines = sweep_lines(courses)
    title = (
        f"{settings[0].request.model} on {next((c['figures']['data'] for c in courses if 'figures' in c), 'its data')}"
    )
    write_atomically(folder / "sweep.csv", sweep_csv(lines).encode())
    write_atomically(folder / "sweep.md", sweep_markdown(courses, title).encode())
    write_sweep_curves(courses, folder / "sweep.png", title)
    return lines

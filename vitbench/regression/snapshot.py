"""A suite becomes a lock, and a lock is counted again: what workers count of each model, as entries.

Nothing is timed and nothing needs a device, so that several workers count at the same time.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import vitbench
from vitbench.core.errors import UNKNOWN_NAME, USAGE_CAUSES, UsageError, WorkerError
from vitbench.core.records import Cell
from vitbench.core.registry import METRICS
from vitbench.core.text import one_line
from vitbench.devices import Failure
from vitbench.devices.failures import OF_THE_HOST
from vitbench.executors.conversation import Outcome
from vitbench.executors.launcher import Launcher, libraries_of, make_launcher
from vitbench.executors.protocol import CountExact
from vitbench.models.cards import is_imported
from vitbench.regression.lock_file import Entry, Lock, Place, metrics_of, minor_version
from vitbench.runner.plan import look_up_models
from vitbench.runner.static_counts import StaticCounter
from vitbench.suites import RANDOM, Suite, check_count, expand
from vitbench.suites.overrides import prepare_suite
from vitbench.training.data.datasets import describe_data
from vitbench.training.data.downloads import DOWNLOADS

#: Of one model with all its runs.
TIMEOUT_S = 600.0
#: A second worker shares the libraries that the server has loaded.
_MODELS_A_WORKER = 2
#: Loaded once in the server rather than in each worker.
_PRELOAD = ("vitbench.analysis.exact_counts",)
#: Why counting ended that say nothing of the model: nothing is allocated for it, so that memory is the machine's.
_OF_THE_MACHINE = OF_THE_HOST | {"probable_oom", "terminated", "timeout"}
#: Seconds between two lines of progress.
_TELL_EVERY_S = 5.0

Note = Callable[[str], None]


def take_snapshot(
    suite: str,
    overrides: Mapping[str, Any],
    *,
    allow_import: bool = False,
    note: Note = lambda text: None,
) -> Lock:
    """Count what ``suite`` (a name or the path of a TOML file) asks for, with ``overrides`` of its keys.

    Of the suite count its models, sizes, classes, kinds of attention, dtypes, batches and modes; what it measures and
    trains does not. A model that fails is an entry that says so. Raises UsageError for what cannot be.
    """
    prepared = _exact_part(prepare_suite(suite, overrides))
    check_count(prepared)
    _refuse_imports(prepared.models, allow_import)
    with make_launcher((*_PRELOAD, *libraries_of(prepared.models)), allow_import=allow_import) as launcher:
        places = _places_of(prepared, launcher)
        entries = _count(places, launcher, note, refuse=True)
    return _lock(entries, places)


def repeat_snapshot(lock: Lock, *, allow_import: bool = False, note: Note = lambda text: None) -> Lock:
    """The figures that the entries of ``lock`` have now, less those that another minor version of torch gives another
    meaning. Raises UsageError if it names code of somebody's own that may not be imported.
    """
    places = [one.place for one in lock.entries]
    _refuse_imports((place.model for place in places), allow_import)
    if not places:
        return _lock([], [])
    bound = minor_version(lock.torch) == minor_version(torch_version())
    preload = (*_PRELOAD, *libraries_of(place.model for place in places))
    with make_launcher(preload, allow_import=allow_import) as launcher:
        return _lock(_count(places, launcher, note, bound=bound), places)


def torch_version() -> str:
    """The release of the torch that is installed, without how it was built; loads no torch."""
    return importlib.metadata.version("torch").partition("+")[0]


def _exact_part(suite: Suite) -> Suite:
    """What exact figures depend on, of a suite: neither devices nor threads, nor what it trains."""
    # a rule that names what does not count here drops nothing here
    kept = [rule for rule in suite.exclude if not (rule.devices or rule.threads or rule.compile or rule.recipes)]
    return suite.model_copy(
        update={
            "num_classes": suite.num_classes or _classes_of_data(suite),
            "metrics": ("params", "flops"),
            "devices": ("cpu",),
            "threads": (1,),
            "compile": (False,),
            "seeds": (0,),
            "weights": RANDOM,
            "replace_head": False,
            "memory_limit": None,
            "frontier": None,
            "training": None,
            "exclude": tuple(kept),
        }
    )


def _classes_of_data(suite: Suite) -> int | None:
    """The classes of the data that a suite trains on, which need not be there; None for a suite that does not train."""
    section = suite.training
    if section is None or not any(METRICS.get(name).process == "training" for name in suite.metrics):
        return None
    if section.data in DOWNLOADS:
        return len(DOWNLOADS[section.data].class_names)
    return describe_data(section.data, root=Path(section.data_dir) if section.data_dir else None).num_classes


def _refuse_imports(models: Iterable[str], allow_import: bool) -> None:
    if allow_import:
        return
    name = next(filter(is_imported, models), None)
    if name is not None:
        raise UsageError(f"{name} would import and run code: add --allow-import if you trust it")


def _places_of(suite: Suite, launcher: Launcher) -> list[Place]:
    """The models and runs of a suite."""
    suite, facts = look_up_models(suite, launcher)
    check_count(suite)
    cells = expand(suite, devices=("cpu",), threads=1, models=facts, training=None)
    runs = {Place.of_cell(cell) for cell in cells}
    return sorted({*runs, *(run.of_model for run in runs)})


def _count(
    places: Sequence[Place], launcher: Launcher, note: Note, *, bound: bool = True, refuse: bool = False
) -> list[Entry]:
    """An entry for each place, in their order. ``refuse``: a model that cannot be had is wrong usage (UsageError)."""
    models = [place for place in places if not place.is_run]
    runs: dict[Place, list[Place]] = {model: [] for model in models}
    for place in places:
        if place.is_run:
            runs[place.of_model].append(place)
    cells = {model: model.cell() for model in models}
    of_cell = {cell: model for model, cell in cells.items()}

    def task(cell: Cell) -> CountExact:
        return CountExact(cell=cell, runs=tuple(run.cell() for run in runs[of_cell[cell]]), bound=bound)

    count = f"{len(models)} model{'s' if len(models) != 1 else ''} and {len(places) - len(models)} runs of them"
    note(f"Counting {count} ...")
    launcher.wait_until_ready()
    told_at = time.monotonic()
    entries: dict[Place, Entry] = {}
    with StaticCounter(launcher, (), TIMEOUT_S, task=task, models_a_worker=_MODELS_A_WORKER) as counter:
        counter.begin(cells.values())
        for number, model in enumerate(models, start=1):
            outcome = counter.outcome(cells[model])
            if refuse and outcome.failure is not None and outcome.failure.cause in USAGE_CAUSES:
                raise UsageError(outcome.failure.detail)
            for entry in _entries_of(model, runs[model], outcome, bound):
                entries[entry.place] = entry
            if time.monotonic() - told_at > _TELL_EVERY_S and number < len(models):
                told_at = time.monotonic()
                note(f"{number} of {len(models)} models ...")
    return [entries[place] for place in places]


def _entries_of(model: Place, runs: Sequence[Place], outcome: Outcome, bound: bool) -> Iterable[Entry]:
    """What came of one task: an entry for the model, and one for each of its runs."""
    failure = outcome.failure
    if failure is not None and failure.cause in _OF_THE_MACHINE:
        raise WorkerError(f"{model.label} could not be counted: {failure.detail}. {_way_out(failure)}")
    why = one_line(f"{failure.detail.splitlines()[0] if failure.detail else failure.cause}", 500) if failure else ""
    if failure is None and len(outcome.answers) != 1 + len(runs):
        raise WorkerError(f"A worker gave {len(outcome.answers)} answers for {model.label}, not {1 + len(runs)}")
    for index, place in enumerate([model, *runs]):
        if index >= len(outcome.answers):
            yield Entry(
                place=place,
                figures={},
                absent={},
                failed=why,
                gone=failure is not None and failure.cause == UNKNOWN_NAME,
            )
            continue
        answer = outcome.answers[index].values
        if "failed" in answer:
            yield Entry(place=place, figures={}, absent={}, failed=answer["failed"])
            continue
        expected = metrics_of(place, bound=bound)
        if set(expected) != {*answer["figures"], *answer["absent"]}:
            raise WorkerError(f"A worker counted {', '.join(answer['figures'])} of {place.label}")
        yield Entry(place=place, figures=answer["figures"], absent=answer["absent"])


def _way_out(failure: Failure) -> str:
    if failure.cause == "timeout":
        return "Try again on a machine with less to do; if it hangs there, too, it is the model"
    if failure.cause == "disk_full":
        return "Make room on the disk, and try again"
    return "Give it more memory, or try again"


def _lock(entries: Sequence[Entry], places: Sequence[Place]) -> Lock:
    used = [name for name in ("timm", "torchvision") if any(place.model.startswith(f"{name}:") for place in places)]
    return Lock(
        torch=torch_version(),
        vitbench=vitbench.__version__,
        libraries={name: importlib.metadata.version(name) for name in used},
        entries=tuple(sorted(entries, key=lambda one: one.place)),
    )


def notes_on(base: Lock, head: Lock) -> list[str]:
    """What a reader of the comparison of two locks has to know: versions that differ, what cannot be told."""
    notes = []
    if minor_version(base.torch) != minor_version(head.torch):
        notes.append(
            f"Operators, tensor bytes and graph breaks were not compared: the lock was made with torch {base.torch}, "
            f"this is {head.torch}. Make it anew with vitbench snapshot once the rest holds."
        )
    for name, version in sorted(base.libraries.items()):
        now = head.libraries.get(name)
        if now is not None and now != version:
            notes.append(f"The lock was made with {name} {version}, this is {now}.")
    return notes

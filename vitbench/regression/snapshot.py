"""Count the exact values of a suite's models for a baseline, and count those of a baseline again.

Nothing is timed and nothing needs a device, so several workers count at the same time.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import vitbench
from vitbench.core.errors import UNKNOWN_NAME, USAGE_CAUSES, UsageError, WorkerError
from vitbench.core.records import RGB, Cell
from vitbench.core.registry import METRICS
from vitbench.core.text import one_line
from vitbench.devices.failures import OF_THE_HOST
from vitbench.executors.conversation import Outcome
from vitbench.executors.launcher import Launcher, libraries_of, make_launcher
from vitbench.executors.protocol import CountBreaks, CountExact
from vitbench.models.cards import is_imported
from vitbench.regression.lock_file import Entry, Lock, Place, minor_version
from vitbench.runner.plan import look_up_models
from vitbench.runner.static_counts import StaticCounter
from vitbench.suites import RANDOM, Suite, check_count, expand
from vitbench.suites.overrides import prepare_suite
from vitbench.training.data.datasets import describe_data
from vitbench.training.data.downloads import DOWNLOADS

#: The limit for one model with all its runs.
TIMEOUT_S = 600.0
#: A second worker shares the libraries that the server has loaded.
_MODELS_A_WORKER = 2
#: Loaded once in the server instead of in each worker.
_PRELOAD = ("vitbench.analysis.exact_counts",)
#: Causes that say nothing about the model: counting allocates no tensors, so memory is the machine's problem.
_OF_THE_MACHINE = OF_THE_HOST | {"probable_oom", "terminated", "timeout"}
_WAYS_OUT = {
    "timeout": "Try again on an idle machine; if it hangs there as well, the model hangs",
    "disk_full": "Make room on the disk, and try again",
}
#: Seconds between two lines of progress.
_PROGRESS_EVERY_S = 5.0


def take_snapshot(
    suite: str,
    overrides: Mapping[str, Any],
    *,
    allow_import: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Lock:
    """Count the models, sizes, classes, attention implementations, dtypes, batch sizes and modes of ``suite`` (a name
    or the path of a TOML file), with ``overrides`` of its keys. A model that fails has an entry that says so. Raises
    UsageError.
    """
    prepared = _exact_part(prepare_suite(suite, overrides))
    check_count(prepared)
    _refuse_imports(prepared.models, allow_import)
    with make_launcher((*_PRELOAD, *libraries_of(prepared.models)), allow_import=allow_import) as launcher:
        known, facts = look_up_models(prepared, launcher)
        check_count(known)
        cells = expand(known, devices=("cpu",), threads=1, models=facts, training=None)
        runs = {Place.of_cell(cell) for cell in cells}
        places = sorted({*runs, *(run.of_model for run in runs)})
        entries = _count(places, launcher, note, refuse=True)
    return _lock(entries, places)


def repeat_snapshot(lock: Lock, *, allow_import: bool = False, note: Callable[[str], None] = lambda text: None) -> Lock:
    """Count the entries of ``lock`` again, except for values that depend on torch's minor version if that has changed.
    Raises UsageError if it names ``module:`` code without ``allow_import``.
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
    """The installed version of torch without its build; loads no torch."""
    return importlib.metadata.version("torch").partition("+")[0]


def _exact_part(suite: Suite) -> Suite:
    """The part of a suite that exact values depend on: no devices, threads or training. Raises UsageError."""
    if suite.in_channels != RGB:
        raise UsageError(f"Suite {suite.name!r} sets in_channels, which baseline files do not hold: give another suite")
    # exclusions by device, thread or recipe do not apply
    kept = [rule for rule in suite.exclude if not (rule.devices or rule.threads or rule.compile or rule.recipes)]
    return suite.model_copy(
        update={
            "num_classes": _classes_of_data(suite) if suite.num_classes is None else suite.num_classes,
            "metrics": ("params", "flops"),
            "devices": ("cpu",),
            "threads": (1,),
            "compile": (False,),
            "seeds": (0,),
            "weights": RANDOM,
            "entry": None,
            "grid": None,
            "replace_head": False,
            "memory_limit": None,
            "frontier": None,
            "training": None,
            "exclude": tuple(kept),
        }
    )


def _classes_of_data(suite: Suite) -> int | None:
    """The classes of the data that a suite trains on, even if it is not downloaded; None without training."""
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


def _count(
    places: Sequence[Place],
    launcher: Launcher,
    note: Callable[[str], None],
    *,
    bound: bool = True,
    refuse: bool = False,
) -> list[Entry]:
    """An entry for each place, in their order. ``refuse``: raise UsageError for an unavailable model."""
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
    noted_at = time.monotonic()
    entries: dict[Place, Entry] = {}
    with StaticCounter(launcher, (), TIMEOUT_S, task=task, models_a_worker=_MODELS_A_WORKER) as counter:
        counter.begin(cells.values())
        for number, model in enumerate(models, start=1):
            outcome = counter.outcome(cells[model])
            if refuse and outcome.failure is not None and outcome.failure.cause in USAGE_CAUSES:
                raise UsageError(outcome.failure.detail)
            for entry in _entries_of(model, runs[model], outcome):
                entries[entry.place] = entry
            if time.monotonic() - noted_at > _PROGRESS_EVERY_S and number < len(models):
                noted_at = time.monotonic()
                note(f"{number} of {len(models)} models ...")
    if bound:
        whole = [model for model in models if not entries[model].failed]
        entries |= _count_breaks({model: entries[model] for model in whole}, runs, launcher)
    return [entries[place] for place in places]


def _count_breaks(
    entries: Mapping[Place, Entry], runs: Mapping[Place, Sequence[Place]], launcher: Launcher
) -> dict[Place, Entry]:
    """The entries of models with their graph breaks (of inference; of training if no run infers, as a trace is slow).

    Workers of their own count them: where torch's tracer fails, tensor bytes of the same process are wrong afterwards.
    """
    cells = {model: model.cell() for model in entries}
    trains = {cells[model]: bool(runs[model]) and all(run.mode == "train" for run in runs[model]) for model in entries}
    found = {}
    with StaticCounter(
        launcher,
        (),
        TIMEOUT_S,
        task=lambda cell: CountBreaks(cell=cell, train=trains[cell]),
        models_a_worker=_MODELS_A_WORKER,
    ) as counter:
        counter.begin(cells.values())
        for model, entry in entries.items():
            outcome = counter.outcome(cells[model])
            _raise_if_of_the_machine(model, outcome)
            values = outcome.answers[0].values if outcome.answers else {"absent": _why_it_failed(outcome)}
            if "counts" in values:
                found[model] = replace(entry, figures={**entry.figures, "graph_breaks": values["counts"]})
            else:
                found[model] = replace(entry, absent={**entry.absent, "graph_breaks": values["absent"]})
    return found


def _entries_of(model: Place, runs: Sequence[Place], outcome: Outcome) -> Iterator[Entry]:
    """The entries of one task: the model's and those of its runs."""
    _raise_if_of_the_machine(model, outcome)
    failure, why = outcome.failure, _why_it_failed(outcome)
    gone = failure is not None and failure.cause == UNKNOWN_NAME
    for index, place in enumerate([model, *runs]):
        if index >= len(outcome.answers):
            yield Entry(place=place, failed=why, gone=gone)
        else:
            yield Entry(place=place, **outcome.answers[index].values)


def _raise_if_of_the_machine(model: Place, outcome: Outcome) -> None:
    failure = outcome.failure
    if failure is not None and failure.cause in _OF_THE_MACHINE:
        way_out = _WAYS_OUT.get(failure.cause, "Give it more memory, or try again")
        raise WorkerError(f"{model.label} could not be counted: {failure.detail}. {way_out}")


def _why_it_failed(outcome: Outcome) -> str:
    failure = outcome.failure
    return one_line((failure.detail or failure.cause).splitlines()[0], 500) if failure else ""


def _lock(entries: Sequence[Entry], places: Sequence[Place]) -> Lock:
    used = [name for name in ("timm", "torchvision") if any(place.model.startswith(f"{name}:") for place in places)]
    return Lock(
        torch=torch_version(),
        vitbench=vitbench.__version__,
        libraries={name: importlib.metadata.version(name) for name in used},
        entries=tuple(sorted(entries, key=lambda one: one.place)),
    )


def notes_on(base: Lock, head: Lock) -> list[str]:
    """Notes on a comparison of two baselines: versions that differ, and values that were not compared."""
    notes = []
    if minor_version(base.torch) != minor_version(head.torch):
        notes.append(
            "Operators, tensor bytes and graph breaks were not compared: the baseline was made with torch "
            f"{base.torch}, this is {head.torch}. Make it again with vitbench snapshot once the rest passes."
        )
    if any(not (one.place.is_run or one.failed or "uncounted" in one.figures) for one in base.entries):
        notes.append(
            "Operators that no formula covers were not compared: an earlier vitbench made the baseline. Make it again "
            "with vitbench snapshot once the rest passes."
        )
    for name, version in sorted(base.libraries.items()):
        now = head.libraries.get(name)
        if now is not None and now != version:
            notes.append(f"The baseline was made with {name} {version}, this is {now}.")
    notes += lower_bounds(head)
    return notes


def lower_bounds(lock: Lock) -> list[str]:
    """A note for each model whose FLOPs are a lower bound, with the operators that they leave out."""
    notes = []
    for entry in lock.entries:
        operators = entry.figures.get("uncounted")
        if operators:
            listed = ", ".join(f"{name} x{calls}" for name, calls in sorted(operators.items()))
            notes.append(
                f"The FLOPs of {entry.place.label} are a lower bound: no formula covers {listed}. "
                "Equal bounds without the same operators pass."
            )
    return notes

"""Run a suite: a plan's cells become records, each safe on the disk as soon as there is one. Cells that take turns are
finished together: up to a group of them is lost when a run is killed.

Read this first, then ``measuring`` (how a cell becomes a record) and ``turns`` (how several share the machine).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vitbench.core import run_folder as store
from vitbench.core.errors import RunFolderError, StorageError, UsageError
from vitbench.core.files import refuse_links
from vitbench.core.records import HARMLESS, STATUSES, Cell, Record
from vitbench.core.registry import METRICS
from vitbench.devices.host.environment import describe_session, usable_cores
from vitbench.devices.host.load import LoadWatch
from vitbench.executors import faults
from vitbench.executors.launcher import Launcher, libraries_of, make_launcher
from vitbench.models.cards import PRETRAINED, is_imported
from vitbench.runner.measure import MIN_FIRST_STAGE, CellMeasurer
from vitbench.runner.plan import (
    Plan,
    check_before_loading,
    check_excluded_recipes,
    make_plan,
    parse_budget,
    weights_of,
)
from vitbench.runner.progress import Progress, SilentProgress
from vitbench.suites import DEFAULT_SUITE, NATIVE, RANDOM, Suite, list_suites, load_suite, make_suite, to_toml
from vitbench.suites.batch_search import base_of, bounds_a_search, search, unfinished
from vitbench.training.data.datasets import options_of_data
from vitbench.training.data.downloads import DOWNLOADS
from vitbench.training.recipes import BUDGETS

#: --quick: one short process a cell and a quarter of the training.
_QUICK_MEASURE = {"processes": 1, "seconds": 0.3, "min_samples": 5}
_QUICK_SHARE_OF_TRAINING = 0.25
_QUICK_TEST_IMAGES = 200
#: How long the machine is looked at before the cells, and the load that is nothing to warn of, in seconds and cores.
_LOOK_S = 0.2
_TOLERATED_LOAD = 0.3


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during the cells; the message says how to go on."""


@dataclass(frozen=True)
class RunSummary:
    """What a run left: its folder, the records of its cells, and the files of its report."""

    folder: Path
    records: tuple[Record, ...]
    report: tuple[Path, ...]

    @property
    def failed(self) -> tuple[Record, ...]:
        """The records that failed for another reason than memory: what makes the exit code 1."""
        return tuple(record for record in self.records if record.status not in HARMLESS and not bounds_a_search(record))


def run_suite(
    suite: str = DEFAULT_SUITE,
    *,
    out: str | Path | None = None,
    quick: bool = False,
    allow_import: bool = False,
    allow_many_cells: bool = False,
    progress: Progress | None = None,
    **overrides: Any,
) -> RunSummary:
    """Measure a suite into a new run folder and write its report.

    ``suite`` is a built-in one's name or the path of a TOML file; ``overrides`` replace its keys
    (``models=["vit_basic"]``, ``batch_sizes=[1, 8]``, ``metrics=...``, ``data="digits"``, ``recipe=["brief"]``,
    ``budget="images=30000"``, ``seeds=[0, 1]``, ...). ``out`` is the run folder, new or empty; by default
    ``runs/<suite>-<time>``. ``allow_import`` lets names of the form ``module:package.module:function`` import code of
    your own. ``allow_many_cells`` goes on with a suite of more than 10,000 cells. Raises UsageError for what cannot be,
    StorageError when the disk is full (the run can be resumed).
    """
    prepared = prepare_suite(suite, overrides, quick=quick)
    return run_prepared(
        prepared, out=out, allow_import=allow_import, allow_many_cells=allow_many_cells, progress=progress
    )


def run_prepared(
    suite: Suite,
    *,
    out: str | Path | None = None,
    allow_import: bool = False,
    allow_many_cells: bool = False,
    progress: Progress | None = None,
) -> RunSummary:
    """Measure a suite that is made already: see ``run_suite``."""
    chosen = check_before_loading(suite, allow_many_cells=allow_many_cells)
    folder = new_folder(out, chosen.name)
    reporter = progress or SilentProgress()
    with _locked(folder, new=True), _launch(chosen, allow_import) as launcher, _resumable(folder):
        plan = make_plan(chosen, launcher, reporter.note, allow_many_cells=allow_many_cells)
        store.write_atomically(folder / store.SUITE, to_toml(plan.suite).encode("utf-8"))
        return _run(plan, plan.cells, folder, launcher, reporter)


def resume_run(
    folder: str | Path,
    *,
    retry: Sequence[str] = (),
    allow_changed_environment: bool = False,
    allow_import: bool = False,
    allow_many_cells: bool = False,
    progress: Progress | None = None,
) -> RunSummary:
    """Measure the cells of a run that have no record yet, and again those whose status is in ``retry``.

    Raises RunFolderError if the folder is no run, is in use, or the environment has changed since (unless that is
    allowed).
    """
    path = Path(folder)
    for status in retry:
        if status not in STATUSES or status == "ok":
            raise UsageError(f"Status {status!r} cannot be retried. Give any of: {', '.join(STATUSES[1:])}")
    if not (path / store.SUITE).is_file():
        raise RunFolderError(f"{path} cannot be resumed: it has no {store.SUITE}. Give the folder of a run")
    refuse_links(path, [store.CHECKPOINTS])
    suite = check_before_loading(_suite_as_run(path), allow_many_cells=allow_many_cells)
    reporter = progress or SilentProgress()
    with _launch(suite, allow_import) as launcher, _locked(path), _resumable(path):
        store.check_writable(path)
        for problem in store.set_damaged_lines_aside(path):
            reporter.warn(f"{problem}: set aside in {store.DAMAGED}, the cell is measured again")
        done = store.read_records(path) if (path / store.RECORDS).is_file() else []
        plan = make_plan(suite, launcher, reporter.note, allow_many_cells=allow_many_cells)
        if not allow_changed_environment:
            _refuse_changed_environment(path, plan)
        _refuse_changed_checkpoint(path, plan, done)
        kept = [record for record in done if record.status not in retry]
        return _run(plan, _missing(plan, kept), path, launcher, reporter, kept)


def plan_suite(
    suite: str = DEFAULT_SUITE,
    *,
    quick: bool = False,
    allow_import: bool = False,
    allow_many_cells: bool = False,
    note: Callable[[str], None] = lambda text: None,
    **overrides: Any,
) -> Plan:
    """What ``run_suite`` would measure, without measuring it or downloading anything. Raises UsageError like it."""
    chosen = check_before_loading(prepare_suite(suite, overrides, quick=quick), allow_many_cells=allow_many_cells)
    with make_launcher(counting_modules(chosen), allow_import=allow_import) as launcher:
        return make_plan(chosen, launcher, note, allow_many_cells=allow_many_cells, allow_downloads=False)


def prepare_suite(name_or_path: str, overrides: Mapping[str, Any], *, quick: bool = False) -> Suite:
    """Load a suite with overrides: its keys, ``data``, ``data_dir``, ``download``, ``recipe`` and ``budget`` (such as
    ``images=30000``) of its training section, and ``processes`` and ``precision`` of how much it measures.
    """
    name_or_path = str(name_or_path)
    keys = {key: value for key, value in overrides.items() if value is not None}
    training: dict[str, Any] = {key: keys.pop(key) for key in ("data", "data_dir", "download", "recipe") if key in keys}
    budget = parse_budget(str(keys.pop("budget"))) if "budget" in keys else {}
    sampling = {key: keys.pop(key) for key in ("processes", "precision") if key in keys}
    suite = load_suite(name_or_path, keys)
    own_file = keys.get("weights", RANDOM) not in (RANDOM, PRETRAINED)
    if own_file and "image_sizes" not in keys and name_or_path in list_suites() and not _imports(suite):
        # a checkpoint's own size, not what a built-in suite has for its models
        suite = _changed(suite, name_or_path, image_sizes=[NATIVE])
    check_excluded_recipes(suite)
    _check_training_options(suite, training, budget, metrics_given="metrics" in keys)
    if name_or_path in list_suites():
        suite = less_what_options_replace(suite, {*keys, *training}, training.get("data"))
    if suite.devices != ("auto",) and "devices" in keys and suite.training is not None:
        # devices that are named are those to train on, too
        suite = suite.model_copy(update={"training": suite.training.model_copy(update={"devices": None})})
    if "timeout_s" in keys and (training or suite.training is not None):
        training["timeout_s"] = keys["timeout_s"]
    if training.get("data") == "none":
        suite = suite.model_copy(update={"training": None})
    elif training or budget:
        section = suite.training.model_dump(exclude_none=True) if suite.training else {}
        if budget:
            section = {key: value for key, value in section.items() if key not in (*BUDGETS, "share")}
        if training.get("data", section.get("data")) != section.get("data") and training["data"] not in DOWNLOADS:
            section = {key: value for key, value in section.items() if key not in ("data_dir", "download")}
        suite = _changed(suite, name_or_path, training={**section, **training, **budget})
    if quick:
        suite = _changed(suite, name_or_path, **_quick_changes(suite, shorter=not budget))
    if sampling:  # said in so many words, it counts more than --quick
        suite = _changed(suite, name_or_path, measure={**suite.measure.model_dump(), **sampling})
    if sampling.get("precision") and suite.measure.processes < MIN_FIRST_STAGE:
        raise UsageError(
            f"--precision takes {MIN_FIRST_STAGE} processes at least, to know how they differ; there are "
            f"{suite.measure.processes}. Add --processes {MIN_FIRST_STAGE}"
        )
    return suite


def less_what_options_replace(suite: Suite, given: set[str], data: str | None) -> Suite:
    """A built-in suite without what it says about axes and data of its own where options (``given``) say otherwise:
    rules all of whose keys are given, and the picture size of its trainings.
    """
    options = {"recipes": "recipe"}
    if "exclude" not in given:
        kept = [
            rule
            for rule in suite.exclude
            if not {options.get(key, key) for key in rule.model_dump(exclude_none=True)} <= given
        ]
        suite = suite.model_copy(update={"exclude": tuple(kept)})
    section = suite.training
    other_data = section is not None and data is not None and data != section.data
    if section is not None and "training" not in given and (other_data or "image_sizes" in given):
        suite = suite.model_copy(update={"training": section.model_copy(update={"image_size": None})})
    return suite


def _imports(suite: Suite) -> bool:
    """Whether a builder of one's own is in it, of which no size is known."""
    return any(map(is_imported, suite.models))


def _changed(suite: Suite, source: str, **changes: Any) -> Suite:
    return make_suite({**suite.model_dump(exclude_none=True), **changes}, source)


def _check_training_options(
    suite: Suite, training: Mapping[str, Any], budget: Mapping[str, Any], *, metrics_given: bool
) -> None:
    """Raises UsageError for options that would do nothing."""
    none = training.get("data") == "none"
    metric = next((name for name in suite.metrics if METRICS.get(name).process == "training"), None)
    given = [f"--{key.replace('_', '-')}" for key in (*training, *(["budget"] if budget else []))]
    if given and suite.training is None and "data" not in training:
        raise UsageError(
            f"Suite {suite.name!r} does not train: --data-dir, --download, --recipe and --budget go with --data"
        )
    if none and len(given) > 1:
        other = next(option for option in given if option != "--data")
        raise UsageError(f"{other} is about training, --data none says that there is none: leave one of them out")
    if metric is not None and metrics_given and (none or (suite.training is None and "data" not in training)):
        why = "--data none leaves none: give" if none else f"suite {suite.name!r} has none: add"
        raise UsageError(
            f"--metrics asks for {metric}, which is not had without a training section, and {why} --data NAME, or "
            f"leave {metric} out"
        )
    if metric is None and given and not none and suite.frontier is None:
        raise UsageError(
            f"{given[0]} is about accuracy, which is not measured here: add accuracy to --metrics, or leave "
            f"{given[0]} out"
        )
    named = next((option for option in given if option in ("--recipe", "--budget")), None)
    if named and suite.weights != RANDOM:
        raise UsageError(f"{named} says how to train, but weights that are given are only tested: leave it out")


def _quick_changes(suite: Suite, *, shorter: bool) -> dict[str, Any]:
    """Less of everything; ``shorter``: of the training, too."""
    measure = suite.measure.model_dump()
    changes: dict[str, Any] = {"measure": {**measure, **{k: min(measure[k], v) for k, v in _QUICK_MEASURE.items()}}}
    if suite.training is not None:
        section = suite.training.model_dump(exclude_none=True)
        if shorter:
            section["share"] *= _QUICK_SHARE_OF_TRAINING
        section["test_images"] = min(section.get("test_images") or _QUICK_TEST_IMAGES, _QUICK_TEST_IMAGES)
        changes["training"] = section
    return changes


def _missing(plan: Plan, kept: Sequence[Record]) -> list[Cell]:
    """The cells of a plan that none of ``kept`` is of, or whose search these do not end."""
    if plan.suite.frontier is not None:
        return unfinished(plan.cells, kept, plan.suite.frontier.max_batch)
    ids = {record.cell.id for record in kept}
    return [cell for cell in plan.cells if cell.id not in ids]


def _measured(
    plan: Plan, cells: Sequence[Cell], kept: Sequence[Record], measurer: CellMeasurer, progress: Progress
) -> Iterator[Record]:
    """The records of ``cells``, or those of the searches that they are the bases of, as soon as there is one."""
    if plan.suite.frontier is None:
        return measurer.measure(cells)
    return search(cells, kept, plan.suite.frontier.max_batch, measurer.measure, progress)


def _run(
    plan: Plan,
    cells: Sequence[Cell],
    folder: Path,
    launcher: Launcher,
    progress: Progress,
    kept: Sequence[Record] = (),
) -> RunSummary:
    """Measure ``cells`` into ``folder``, where ``kept`` are known already, then write the report of everything
    there.
    """
    injector, notes = faults.load_injector(), faults.describe()
    for warning in notes.values():
        progress.warn(warning)
    # of a search nobody knows beforehand how many cells it takes
    planned = {"planned_cells": len(plan.cells)} if plan.suite.frontier is None else {}
    session = {**describe_session(), **planned, **notes}
    store.add_session(folder, plan.environment_hash, plan.environment, session)
    checkpoints = folder / store.CHECKPOINTS
    if any(cell.trains for cell in cells):
        try:
            checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise store.cannot_write(checkpoints, error) from error
    writer = store.RecordWriter(folder, before_write=injector.before_write if injector else None)
    _warn_of_too_many_threads(plan, cells, progress)
    measurer = CellMeasurer(plan, launcher, checkpoints, progress)
    progress.searches = plan.suite.frontier is not None
    try:
        with (
            measurer,
            progress.running(folder, list(cells), dict(plan.estimates), already=len(plan.cells) - len(cells)),
        ):
            checked = 0
            for record in _measured(plan, cells, kept, measurer, progress):
                writer.append(record)
                store.add_noise(folder, measurer.noise[checked:])
                checked = len(measurer.noise)
                progress.cell_done(record)
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted. Go on with: vitbench run --resume {folder}") from None
    finally:
        writer.close()
    from vitbench.reports import write_report

    progress.note("Writing the report ...")
    ids = {cell.id for cell in plan.cells}
    records = tuple(
        record
        for record in store.read_records(folder)
        # an attempt of a search belongs to the cell that the search is planned by
        if (record.cell if plan.suite.frontier is None else base_of(record.cell)).id in ids
    )
    return RunSummary(folder, records, tuple(write_report([folder], folder)))


def _warn_of_too_many_threads(plan: Plan, cells: Sequence[Cell], progress: Progress) -> None:
    """More threads than free cores can multiply a time by tens."""
    kinds = {METRICS.get(name).process for name in plan.suite.metrics}
    timed = [cell.threads for cell in cells if cell.device == "cpu" and kinds & {"time", "training"}]
    if not timed:
        return
    watch = LoadWatch()
    time.sleep(_LOOK_S)
    # the load is the whole machine's; a container, or an affinity, may leave us fewer cores than it has
    free = max(min(float(usable_cores()), (os.cpu_count() or 1) - (watch.stop().other_load or 0.0)), 0.0)
    if max(timed) > free + _TOLERATED_LOAD:
        progress.warn(
            f"cells use {max(timed)} thread{'s' if max(timed) > 1 else ''}, but {free:.1f} of {usable_cores()} cores "
            "are free: times can come out many times too long. Stop what else is running"
            f"{', or give --threads 1' if max(timed) > 1 else ''}"
        )


def _launch(suite: Suite, allow_import: bool) -> Launcher:
    faults.load_injector()  # a module that is not there ends the run at once
    return make_launcher(modules_of(suite), allow_import=allow_import)


def modules_of(suite: Suite) -> list[str]:
    """What the suite's workers need beside the usual, each of which takes a second: loaded once, and only if it is
    needed.
    """
    modules = counting_modules(suite)
    kinds = {METRICS.get(name).process for name in suite.metrics}
    learns = suite.training is not None and "training" in kinds
    if suite.memory_limit is not None and _imports(suite):
        # the limit is of what comes after the libraries, of which a builder of one's own may import any
        modules += [name for name in ("timm", "torchvision") if name not in modules]
    if learns:
        assert suite.training is not None
        modules += ["sklearn.metrics", *(["sklearn.datasets"] if suite.training.data == "digits" else [])]
    if "counters" in kinds:
        modules += ["fvcore.nn", "thop"]
    return modules


def counting_modules(suite: Suite) -> list[str]:
    """Those of ``modules_of`` that a plan needs: it builds and counts, and trains nothing."""
    # torch's compiler comes in with the first sum of two tensors on meta, and with the first optimizer
    return ["torch._dynamo", *libraries_of(suite.models)]


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
        way_out = f"or go on with it: vitbench run --resume {folder}" if (folder / store.SUITE).is_file() else ""
        raise RunFolderError(f"{folder} is not empty. Choose a new folder with --out {way_out}".rstrip())
    return folder


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] in ([], [store.LOCK]):
            shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(folder: Path, *, new: bool = False) -> Iterator[None]:
    """Only one run writes to a folder at a time. Raises RunFolderError if another one does.

    The lock of a run that was killed is free: the system holds it for the process, not the file. What that run was in
    the middle of writing goes. A ``new`` folder goes if nothing came into it, but only while it is ours: an empty one
    can be that of a run that still plans.
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
        if new and os.name == "nt":  # where no file goes that is open, a lock that another run has by now neither
            _remove_if_empty(folder)


@contextlib.contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """A disk that is full ends the run with the words that go on with it."""
    try:
        yield
    except store.MisplacedError:
        raise  # it says what to go on with
    except StorageError as error:
        way_out = f"vitbench run --resume {folder}" if (folder / store.SUITE).is_file() else "start again"
        raise StorageError(f"{str(error).rstrip('.')}. Free some space, then: {way_out}") from error


def _suite_as_run(folder: Path) -> Suite:
    """The suite of a run folder, by the rules that it began with: before there was a ``precision``, it stopped at its
    ``processes``.
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


def _refuse_changed_environment(folder: Path, plan: Plan) -> None:
    known = store.read_environment(folder)
    if not known["sessions"] or plan.environment_hash in known["environments"]:
        return
    named = known["sessions"][-1].get("environment")
    if named not in known["environments"]:
        raise RunFolderError(
            f"{folder / store.ENVIRONMENT} is damaged (its last session names no environment that it holds). Move it "
            "away to go on without it"
        )
    last = known["environments"][named]
    differences = list(_differences(last, plan.environment))
    if not differences:
        return  # this version looks at more than the one that began the run; what both know is equal
    changes = "; ".join(differences[:4])
    raise RunFolderError(
        f"The environment of {folder} has changed ({changes}): its figures would not be comparable. "
        "Start a new run, or go on with --allow-changed-environment"
    )


def _refuse_changed_checkpoint(folder: Path, plan: Plan, done: Sequence[Record]) -> None:
    """Figures of two checkpoints must not stand in one run as if they were of one."""
    if weights_of(plan.suite) is None:
        return
    before = {record.cell.weights for record in done}
    now = {cell.weights for cell in plan.cells}
    if before and not before & now:
        raise RunFolderError(
            f"{plan.suite.weights} has changed since the run in {folder} began ({', '.join(sorted(before))} is now "
            f"{', '.join(sorted(now))}): put the old file back, or start a new run"
        )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        grown = path in ("system", "libraries") or path.startswith("devices.")  # where later versions look at more
        for key in sorted(old if grown else {*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield f"{path}: {old} -> {new}"


@contextlib.contextmanager
def terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM acts like Ctrl-C inside this context: workers end, records stay, the run can be resumed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""Run a suite: the cells of a plan become records, each written to the disk as soon as it is complete.

Cells that take turns are completed together: a run that is killed loses at most one group of them.

Read this first, then ``measure`` (how a cell becomes a record) and ``turns`` (how several share the machine).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitbench.core import run_folder as store
from vitbench.core.errors import RunFolderError, UsageError
from vitbench.core.files import refuse_links
from vitbench.core.records import HARMLESS, STATUSES, Cell, Record
from vitbench.core.registry import METRICS
from vitbench.devices.host.environment import describe_session, usable_cores
from vitbench.devices.host.load import LoadWatch
from vitbench.executors import faults
from vitbench.executors.launcher import Launcher, libraries_of, make_launcher
from vitbench.models.cards import is_imported
from vitbench.runner.folder import (
    locked,
    naming_the_way_on,
    new_folder,
    refuse_changed_checkpoint,
    refuse_changed_environment,
    suite_as_run,
)
from vitbench.runner.measure import CellMeasurer
from vitbench.runner.plan import Plan, check_before_loading, make_plan
from vitbench.runner.progress import Progress
from vitbench.suites import DEFAULT_SUITE, Suite, to_toml
from vitbench.suites.batch_search import base_of, bounds_a_search, search, unfinished
from vitbench.suites.overrides import prepare_suite

#: How long the load of the machine is watched before the cells (s), and the load that causes no warning (cores).
_LOOK_S = 0.2
_TOLERATED_LOAD = 0.3


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during the cells; the message names the command that resumes the run."""


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
    suite: str | Suite = DEFAULT_SUITE,
    *,
    out: str | Path | None = None,
    quick: bool = False,
    allow_import: bool = False,
    allow_many_cells: bool = False,
    progress: Progress | None = None,
    **overrides: Any,
) -> RunSummary:
    """Measure a suite into a new run folder and write its report.

    ``suite`` is a built-in one's name, the path of a TOML file, or a Suite; ``overrides`` replace a file's keys
    (``models=["vit_basic"]``, ``batch_sizes=[1, 8]``, ``metrics=...``, ``data="digits"``, ``recipe=["brief"]``,
    ``budget="images=30000"``, ``seeds=[0, 1]``, ...). ``out`` is the run folder, new or empty; by default
    ``runs/<suite>-<time>``. ``allow_import`` lets names of the form ``module:package.module:function`` import your own
    code. ``allow_many_cells`` allows suites of more than 10,000 cells. Raises UsageError for an invalid request,
    StorageError when the disk is full (the run can be resumed).
    """
    prepared = suite if isinstance(suite, Suite) else prepare_suite(suite, overrides, quick=quick)
    chosen = check_before_loading(prepared, allow_many_cells=allow_many_cells)
    folder = new_folder(out, chosen.name)
    reporter = progress or Progress()
    with (
        locked(folder, new=True),
        make_launcher(modules_of(chosen), allow_import=allow_import) as launcher,
        naming_the_way_on(folder),
    ):
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

    Raises RunFolderError if the folder is not a run, is in use, or the environment has changed since (unless that is
    allowed).
    """
    path = Path(folder)
    retry = [status.lower() for status in retry]  # a report prints OOM
    for status in retry:
        if status not in STATUSES or status == "ok":
            raise UsageError(f"Status {status!r} cannot be retried. Give any of: {', '.join(STATUSES[1:])}")
    if not (path / store.SUITE).is_file():
        raise RunFolderError(f"{path} cannot be resumed: it has no {store.SUITE}. Give the folder of a run")
    refuse_links(path, [store.CHECKPOINTS])
    suite = check_before_loading(suite_as_run(path), allow_many_cells=allow_many_cells)
    reporter = progress or Progress()
    with make_launcher(modules_of(suite), allow_import=allow_import) as launcher, locked(path), naming_the_way_on(path):
        store.check_writable(path)
        for problem in store.set_damaged_lines_aside(path):
            reporter.warn(f"{problem}: set aside in {store.DAMAGED}, the cell is measured again")
        done = store.read_records(path) if (path / store.RECORDS).is_file() else []
        plan = make_plan(suite, launcher, reporter.note, done=done, allow_many_cells=allow_many_cells)
        if not allow_changed_environment:
            refuse_changed_environment(path, plan)
        refuse_changed_checkpoint(path, plan, done)
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
    with make_launcher(modules_of(chosen, measures=False), allow_import=allow_import) as launcher:
        return make_plan(chosen, launcher, note, allow_many_cells=allow_many_cells, allow_downloads=False)


def _run(
    plan: Plan,
    cells: Sequence[Cell],
    folder: Path,
    launcher: Launcher,
    progress: Progress,
    kept: Sequence[Record] = (),
) -> RunSummary:
    """Measure ``cells`` into ``folder``, which holds the records ``kept``; then write the report of all its records."""
    _note_session(plan, folder, progress)
    _warn_of_too_many_threads(plan, cells, progress)
    with CellMeasurer(plan, launcher, folder / store.CHECKPOINTS, progress) as measurer:
        _write_records(plan, cells, kept, folder, measurer, progress)
    return _write_report(plan, folder, progress)


def _write_records(
    plan: Plan, cells: Sequence[Cell], kept: Sequence[Record], folder: Path, measurer: CellMeasurer, progress: Progress
) -> None:
    """Append the record of each cell, or of each attempt of its batch search, as soon as it is complete."""
    searches = plan.suite.frontier
    progress.searches = searches is not None
    injector = faults.load_injector()
    writer = store.RecordWriter(folder, before_write=injector.before_write if injector else None)
    records = measurer.measure(cells)
    if searches is not None:
        records = search(cells, kept, plan.predictions, searches.max_batch, measurer.measure, progress)
    written = 0
    try:
        plan.estimates.begin(cells, kept)
        with progress.running(folder, list(cells), plan.estimates, already=len(plan.cells) - len(cells)):
            for record in records:
                writer.append(record)
                store.add_noise(folder, measurer.timer.noise[written:])
                written = len(measurer.timer.noise)
                progress.cell_done(record)
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted. Resume with: vitbench run --resume {folder}") from None
    finally:
        writer.close()


def _write_report(plan: Plan, folder: Path, progress: Progress) -> RunSummary:
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


def _missing(plan: Plan, kept: Sequence[Record]) -> list[Cell]:
    """The cells of a plan that have no record in ``kept``, or whose search these do not complete."""
    if plan.suite.frontier is not None:
        return unfinished(plan.cells, kept, plan.suite.frontier.max_batch)
    ids = {record.cell.id for record in kept}
    return [cell for cell in plan.cells if cell.id not in ids]


def _note_session(plan: Plan, folder: Path, progress: Progress) -> None:
    """Add this session to ``environment.json``; warn if faults are injected into it."""
    injected = faults.describe()
    for warning in injected.values():
        progress.warn(warning)
    # how many cells a batch search takes is not known beforehand
    planned = {"planned_cells": len(plan.cells)} if plan.suite.frontier is None else {}
    store.add_session(folder, plan.environment_hash, plan.environment, {**describe_session(), **planned, **injected})


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


def modules_of(suite: Suite, *, measures: bool = True) -> list[str]:
    """What the suite's workers need beside the usual modules; each takes a second, so that it is loaded once.

    Without ``measures`` what a plan needs, which builds and counts, and trains nothing.
    """
    # torch's compiler comes in with the first sum of two tensors on meta, and with the first optimizer
    modules = ["torch._dynamo", *libraries_of(suite.models)]
    if not measures:
        return modules
    kinds = {METRICS.get(name).process for name in suite.metrics}
    if suite.memory_limit is not None and any(map(is_imported, suite.models)):
        # the limit counts what comes after the libraries, any of which a user's builder may import
        modules += [name for name in ("timm", "torchvision") if name not in modules]
    if suite.training is not None and "training" in kinds:
        modules += ["sklearn.metrics", *(["sklearn.datasets"] if suite.training.data == "digits" else [])]
    if "counters" in kinds:
        modules += ["fvcore.nn", "thop"]
    return modules


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

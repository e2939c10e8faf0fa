"""Many stored runs to one series a cell and metric, and the steps in each: when did a figure change, and by how much.

Exact figures (counts, tensor bytes, statuses) step whenever they differ from the run before. Times relative to the
reference and measured memory scatter: there a step is found by ``steps``, with a stated chance of false alarms.
Absolute times, throughput, energy and accuracies are shown and never judged: on a shared machine the same code differs
by tens of per cent from minute to minute. Timings of different machines are different series. Loads no torch.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from vitbench.core.errors import RunFolderError, UnknownNameError, UsageError, VitbenchError
from vitbench.core.records import Cell, Measurement, Record
from vitbench.core.run_folder import RECORDS, DamagedRecordWarning, read_environment, read_records
from vitbench.core.stats.estimates import first_stage_of, measurement_estimate, reference_of
from vitbench.core.stats.statistics import (
    MIN_PROCESSES,
    RUN_TO_RUN,
    Estimate,
    estimate,
    estimate_relative,
    in_quiet_turns,
    relative_samples,
)
from vitbench.core.text import one_line
from vitbench.regression.cell_names import cell_names
from vitbench.regression.change_points import FALSE_ALARMS, find_breaks
from vitbench.regression.pytest_benchmark_json import (
    StoredRun,
    digest_of,
    is_stored_run,
    parse_time,
    read_stored_run,
    times_in,
)
from vitbench.suites.thresholds import RELATIVE, STATUS, nature_of

#: What a series is judged by: ``exact`` (any difference is a step), ``relative`` (a time over the reference's) and
#: ``memory`` (as measured) by step detection, ``shown`` not at all.
Kind = Literal["exact", "relative", "memory", "shown"]
KINDS: tuple[str, ...] = get_args(Kind)

#: How much measured memory of the same code differs from run to run: the standard deviation of its logarithm,
MEMORY_RUN_TO_RUN = 0.01
#: and that of its bytes, which decides for small models: some pages more or less.
MEMORY_SCATTER_BYTES = 100_000

#: How much the processes of one run differ in a relative time (standard deviation of the logarithm), where a run has
#: too few of them to tell.
PROCESS_SPREAD = 0.1

#: Not looked at for runs: what version control, installers and caches keep.
_PASSED_OVER = frozenset({".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", ".tox", ".mypy_cache"})
#: Deeper than anybody sorts runs.
_DEEPEST = 12


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One stored run: its name, when it began (UTC), the commit that it measured (empty if unknown), and what else may
    explain a step: versions, the system, variables.
    """

    run: str
    at: datetime
    commit: str = ""
    conditions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def short_commit(self) -> str:
        """``0123456789ab+changes``, or an empty text."""
        name, plus, rest = self.commit.partition("+")
        return f"{name[:12]}{plus}{rest}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A figure of one run, in the base unit of its series; words for a status or a shape. ``deviation``: the standard
    deviation of its logarithm that is expected between runs, None where nothing is judged by it.
    """

    moment: Moment
    value: float | str
    low: float | None = None
    high: float | None = None
    deviation: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """One metric of one cell over time; ``machine`` in words where figures depend on it, else empty."""

    cell: str
    model: str
    metric: str
    unit: str
    kind: Kind
    machine: str
    points: tuple[Point, ...]

    @cached_property
    def numbers(self) -> list[float]:
        """The values, if they are numbers."""
        return [float(point.value) for point in self.points if not isinstance(point.value, str)]

    @property
    def name(self) -> str:
        """``vit_basic 32px b1 cpu fp32 infer: flops``."""
        return f"{self.cell}: {self.metric}"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A change of level of a series: the point number ``index`` is the first of the new one.

    ``before`` and ``after`` are the levels in the series' unit, ``ratio`` one over the other with its 95 % interval
    (None for words and from 0). ``chance`` bounds the probability of such a find in a history in which nothing changes;
    0 for exact figures. ``runs_before`` and ``runs_after`` count the runs on either level.
    """

    series: Series
    index: int
    before: float | str
    after: float | str
    ratio: float | None
    low: float | None = None
    high: float | None = None
    chance: float = 0.0
    runs_before: int = 1
    runs_after: int = 1

    @property
    def begins(self) -> Moment:
        """The run in which the new level is seen first."""
        return self.series.points[self.index].moment

    @property
    def last_before(self) -> Moment:
        """The run before."""
        return self.series.points[self.index - 1].moment

    @property
    def also_changed(self) -> tuple[str, ...]:
        """What else is different between the two runs: ``torch 2.14.0 -> 2.15.0``."""
        one, other = self.last_before.conditions, self.begins.conditions
        names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        return tuple(f"{name} {one.get(name) or 'none'} -> {other.get(name) or 'none'}" for name in names)


@dataclass(frozen=True, kw_only=True)
class History:
    """All series, the runs that they are from by time, and what could not be read, one line each."""

    series: tuple[Series, ...]
    moments: tuple[Moment, ...]
    problems: tuple[str, ...] = ()
    false_alarms: float = FALSE_ALARMS

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps of all series, by time, those of one run together: exact ones first."""
        rows = sum(is_searched(one) for one in self.series)
        found = [step for one in self.series for step in find_steps(one, rows=rows, false_alarms=self.false_alarms)]
        return tuple(sorted(found, key=lambda step: (step.begins.at, KINDS.index(step.series.kind), step.series.name)))


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run folder as it was read."""

    path: Path
    name: str
    records: tuple[Record, ...]
    environment: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What there is to read, by time, and what was passed over and why, one line each."""

    folders: tuple[RunFolder, ...]
    stored: tuple[StoredRun, ...]
    problems: tuple[str, ...]


# reading


def read_history(
    places: Sequence[Path | str],
    *,
    metrics: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
) -> History:
    """The series of all runs under ``places``: run folders at any depth, and files of pytest-benchmark.

    Arguments and errors are those of ``find_runs`` and ``make_history``.
    """
    return make_history(find_runs(places), metrics=metrics, models=models)


def make_history(found: Found, *, metrics: Sequence[str] | None = None, models: Sequence[str] | None = None) -> History:
    """The series of the runs that were ``found``.

    ``metrics`` and ``models`` are names or shell patterns. Without ``metrics`` the series are those that are judged,
    and absolute times only where there is nothing else. Raises UsageError for names that nothing bears.
    """
    chosen = _chosen([*_series_of(found.folders), *_series_of_stored(found.stored)], metrics, models)
    moments = {point.moment.run: point.moment for one in chosen for point in one.points}
    return History(
        series=tuple(chosen),
        moments=tuple(sorted(moments.values(), key=_by_time)),
        problems=found.problems,
    )


def find_runs(places: Sequence[Path | str]) -> Found:
    """Run folders and files of pytest-benchmark under ``places``, at any depth, by time.

    Copies of a run count once, and so do files that were made from a run folder that is here. Raises UsageError for a
    place that is not there, and if there is no run at all.
    """
    folders: list[RunFolder] = []
    stored: list[StoredRun] = []
    problems: list[str] = []
    seen: dict[Path, None] = {}
    for place in map(Path, places):
        if not place.exists():
            raise UsageError(f"{place} is not there. Give a folder of runs, or JSON of pytest-benchmark")
        place = place.parent if place.name == RECORDS and place.is_file() else place
        for path in [place] if place.is_file() else _walk(place, problems):
            if path.resolve() in seen:
                continue
            seen[path.resolve()] = None
            if path.is_dir():
                folders += _read_folder(path, place, problems)
            elif path == place or is_stored_run(path):
                try:
                    stored.append(read_stored_run(path))
                except UsageError as error:
                    problems.append(one_line(str(error)))
    folders = _without_copies(folders, problems)
    known = {digest_of(one.records) for one in folders}
    measured = [times_in(one.records) for one in folders]
    stored = [one for one in stored if not one.digest or one.digest not in known]
    # also of a part of a run, as --models makes, or of one that --resume has added to
    stored = [one for one in stored if not one.times or not any(one.times <= times for times in measured)]
    stored = _named_apart([one for one in stored if not any(one.times < other.times for other in stored if one.times)])
    if not folders and not stored:
        why = f" ({problems[0]})" if problems else ""
        raise UsageError(
            f"No run under {', '.join(map(str, places))}{why}. Give a folder that vitbench run has written into, or "
            "one with JSON of pytest-benchmark"
        )
    stored.sort(key=lambda one: one.at)
    return Found(folders=tuple(folders), stored=tuple(stored), problems=tuple(problems))


def _walk(place: Path, problems: list[str]) -> Iterable[Path]:
    """Run folders below ``place`` (or itself) and files that may be pytest-benchmark's, by name."""
    depth = len(place.parts)

    def tell(error: OSError) -> None:
        problems.append(one_line(f"{error.filename} passed over: {error.strerror}"))

    for name, below, files in os.walk(place, onerror=tell):
        path = Path(name)
        if RECORDS in files:
            below.clear()  # what is in a run folder belongs to that run
            yield path
            continue
        deep = len(path.parts) - depth >= _DEEPEST
        below[:] = [] if deep else sorted(one for one in below if one not in _PASSED_OVER)
        yield from (path / file for file in sorted(files) if file.endswith(".json"))


def _read_folder(path: Path, place: Path, problems: list[str]) -> list[RunFolder]:
    """A run folder, or nothing and a problem."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", DamagedRecordWarning)
            records = read_records(path)
        environment = _environment(path, problems)
    except (VitbenchError, OSError, ValueError) as error:
        problems.append(one_line(f"{path} passed over: {error}"))
        return []
    damaged = [one for one in told if issubclass(one.category, DamagedRecordWarning)]
    if damaged:
        count = f"{len(damaged)} line{'s' if len(damaged) > 1 else ''}"
        problems.append(one_line(f"{path}: {count} of {RECORDS} passed over: {damaged[0].message}"))
    dated = tuple(record for record in records if parse_time(record.started_at) is not None)
    if not dated:
        problems.append(one_line(f"{path} passed over: it holds no record{' with a date' if records else ''}"))
        return []
    relative = path.relative_to(place) if path != place else Path(path.resolve().name)
    return [RunFolder(path=path, name=relative.as_posix(), records=dated, environment=environment)]


def _environment(path: Path, problems: list[str]) -> Mapping[str, Any]:
    """What is told of the environment; a damaged file costs the commits, not the run."""
    try:
        return read_environment(path)
    except RunFolderError as error:
        problems.append(one_line(f"Commits and machine of this run are not known: {error}"))
        return {}


def _without_copies(folders: Sequence[RunFolder], problems: list[str]) -> list[RunFolder]:
    found: dict[str, RunFolder] = {}
    for one in sorted(folders, key=_began):
        digest = digest_of(one.records)
        if digest in found:
            problems.append(one_line(f"{one.path} passed over: it is a copy of {found[digest].path}"))
        else:
            found[digest] = one
    names: dict[str, int] = {}
    result = []
    for one in found.values():  # two places may hold runs of one name
        names[one.name] = names.get(one.name, 0) + 1
        number = names[one.name]
        result.append(one if number == 1 else dataclasses.replace(one, name=f"{one.name} ({number})"))
    return result


def _named_apart(stored: Sequence[StoredRun]) -> list[StoredRun]:
    names: dict[str, int] = {}
    result = []
    for one in stored:
        names[one.name] = names.get(one.name, 0) + 1
        number = names[one.name]
        result.append(one if number == 1 else dataclasses.replace(one, name=f"{one.name} ({number})"))
    return result


def _began(folder: RunFolder) -> datetime:
    return min(_time_of(record) for record in folder.records)


def _time_of(record: Record) -> datetime:
    return parse_time(record.started_at) or datetime.fromtimestamp(0, UTC)


def _by_time(moment: Moment) -> tuple[datetime, str]:
    return moment.at, moment.run


# series


def _series_of(folders: Sequence[RunFolder]) -> list[Series]:
    """The series of run folders, cells in order of first appearance."""
    labels = cell_names(record.cell for folder in folders for record in folder.records)
    found: dict[tuple[str, str, Kind, str, str], list[Point]] = {}
    facts: dict[tuple[str, str, Kind, str, str], tuple[Cell, str]] = {}

    def add(cell: Cell, metric: str, unit: str, kind: Kind, machine: str, point: Point, reference: str = "") -> None:
        key = (cell.id, metric, kind, machine, reference)
        found.setdefault(key, []).append(point)
        facts.setdefault(key, (cell, unit))

    for folder in folders:  # by time, so that points are, too
        at = _began(folder)
        for record in folder.records:
            described = (folder.environment.get("environments") or {}).get(record.environment) or {}
            moment = Moment(
                run=folder.name,
                at=at,
                commit=_commit_of(record, folder.environment),
                conditions=_conditions(record, described, folder.environment),
            )
            machine = machine_of(described, record.cell.device)
            # what fits depends on the machine
            add(record.cell, STATUS, "", "exact", machine, Point(moment=moment, value=_status(record)))
            for one in record.measurements:
                if one.status == "ok" and any(one.samples):
                    for metric, unit, kind, point in _points(record, one, moment):
                        counted = kind == "exact" and "executed" not in one.method
                        # as in comparisons: the time over another reference is another figure
                        reference = reference_of(one) if kind == "relative" else ""
                        add(record.cell, metric, unit, kind, "" if counted else machine, point, reference)
    return [
        Series(
            cell=labels[key[0]],
            model=facts[key][0].model,
            metric=key[1],
            unit=facts[key][1],
            kind=key[2],
            machine=key[3],
            points=tuple(points),
        )
        for key, points in found.items()
    ]


def _status(record: Record) -> str:
    return record.status if record.status == "ok" or not record.cause else f"{record.status} ({record.cause})"


def _points(record: Record, one: Measurement, moment: Moment) -> Iterable[tuple[str, str, Kind, Point]]:
    """What one measurement of ``record`` adds to series: (metric, unit, kind, point)."""
    kind = kind_of(one.metric)
    if one.reference_samples and kind == "shown":
        relative = _relative(one)
        if relative is not None and not one.metric.endswith("_cpu_time"):
            point = Point(
                moment=moment,
                value=relative.value,
                low=relative.low,
                high=relative.high,
                deviation=_relative_deviation(relative),
            )
            yield RELATIVE + one.metric, "× reference", "relative", point
    figure = measurement_estimate(record, one)  # as the reports of each run have it
    if figure is None:
        return
    deviation = None
    if kind == "memory" and figure.value > 0:
        deviation = math.hypot(MEMORY_RUN_TO_RUN, MEMORY_SCATTER_BYTES / figure.value)
    yield (
        one.metric,
        one.unit,
        kind if kind != "memory" or deviation is not None else "shown",
        Point(moment=moment, value=figure.value, low=figure.low, high=figure.high, deviation=deviation),
    )


def kind_of(metric: str) -> Kind:
    """How a metric of a record is judged, by the table that the gates go by. What no gate judges (the memory of a whole
    process is mostly libraries), and what other packages measure, is shown.
    """
    nature = nature_of(metric)
    if nature.kind in ("exact", "torch") and nature.gates:
        return "exact"
    return "memory" if nature.kind == "measured" and nature.gates else "shown"


def _relative(one: Measurement) -> Estimate | None:
    """The time over the reference's with the interval of this run's processes; None if it cannot be told."""
    try:
        quiet = in_quiet_turns(one.samples, one.turns, one.reference_samples)
        if quiet is None:
            return estimate(relative_samples(one.samples, one.turns, one.reference_samples))
        return estimate_relative(quiet, first_stage_of(one))
    except ValueError:  # a sample that is not positive
        return None


def _relative_deviation(figure: Estimate) -> float:
    """What runs differ by, and what this run's processes leave open.

    The latter by the interval: of few processes it is wide, as their spread is hardly known.
    """
    if figure.n_processes >= MIN_PROCESSES and figure.low and figure.high:
        own = (math.log(figure.high) - math.log(figure.low)) / (2 * 1.96)
    else:
        own = PROCESS_SPREAD / math.sqrt(max(figure.n_processes, 1))
    return math.hypot(RUN_TO_RUN, own)


def _series_of_stored(runs: Sequence[StoredRun]) -> list[Series]:
    """The series of pytest-benchmark's files: medians, and the exact figures in ``extra_info``."""
    found: dict[tuple[str, str, Kind, str], list[Point]] = {}
    for run in runs:
        moment = Moment(run=run.name, at=run.at, commit=run.commit, conditions=_stored_conditions(run.machine))
        machine = _stored_machine(run.machine)
        for one in run.benchmarks:
            found.setdefault((one.name, "median", "shown", machine), []).append(Point(moment=moment, value=one.median))
            for key, value in one.extra.items():
                if kind_of(key) == "exact" or key in STORED_EXACT:
                    point = Point(moment=moment, value=value)
                    found.setdefault((one.name, key, "exact", ""), []).append(point)
    units = {"median": "s"}
    return [
        Series(
            cell=name,
            model=name,
            metric=metric,
            unit=units.get(metric, ""),
            kind=kind,
            machine=machine,
            points=tuple(points),
        )
        for (name, metric, kind, machine), points in found.items()
    ]


#: What our pytest plugin notes beside a time, apart from what is exact in records.
STORED_EXACT = frozenset({"output", "state_dict"})


def _commit_of(record: Record, environment: Mapping[str, Any]) -> str:
    """The commit of the session that measured the record: the last one that began before it."""
    return str(_session_of(record, environment).get("commit") or "")


def _session_of(record: Record, environment: Mapping[str, Any]) -> Mapping[str, Any]:
    sessions: list[Mapping[str, Any]] = list(environment.get("sessions") or [])
    at = _time_of(record)
    # a session's time has no fractions of a second
    before = [one for one in sessions if (began := parse_time(str(one.get("started_at")))) and began <= at]
    return (before or sessions or [{}])[-1 if before else 0]


def machine_of(environment: Mapping[str, Any], device: str) -> str:
    """What decides how fast ``device`` is, in words: processor and cores, or the device's own name. Versions are no
    part of it: a step that torch makes is one. Empty if nothing is known.
    """
    system = environment.get("system") or {}
    names = {key: (one or {}).get("name") for key, one in (environment.get("devices") or {}).items()}
    known = names.get(device) or next((name for key, name in names.items() if key.split(":")[0] == device), None)
    parts = [str(system.get("cpu") or "")]
    if known and known != system.get("cpu"):
        parts = [str(known), *parts]
    cores = system.get("usable_cores") or system.get("logical_cores")
    parts += [f"{cores:g} cores"] if isinstance(cores, int | float) else []
    return ", ".join(filter(None, parts))


def _conditions(record: Record, described: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    system, libraries = described.get("system") or {}, described.get("libraries") or {}
    versions = {key: str(one) for key, one in (libraries.get("versions") or {}).items()}
    variables = system.get("variables")
    session = _session_of(record, environment)
    return {
        "vitbench": str(session.get("vitbench") or ""),
        **versions,
        **{key: str(libraries[key]) for key in ("mkl_version", "onednn_version", "blas") if libraries.get(key)},
        **{key: str(system[key]) for key in ("python", "os") if system.get(key)},
        **({str(key): str(value) for key, value in variables.items()} if isinstance(variables, Mapping) else {}),
    }


def _stored_machine(machine: Mapping[str, Any]) -> str:
    cpu = machine.get("cpu")
    facts = cpu if isinstance(cpu, Mapping) else {}
    count = facts.get("usable_cores") or facts.get("count")
    return ", ".join(filter(None, [str(facts.get("brand_raw") or ""), f"{count} cores" if count else ""]))


def _stored_conditions(machine: Mapping[str, Any]) -> dict[str, str]:
    keys = {"python": "python_version", "os": "system", "os release": "release"}
    libraries = machine.get("libraries")
    more = {str(key): str(one) for key, one in libraries.items()} if isinstance(libraries, Mapping) else {}
    return {**{key: str(machine[name]) for key, name in keys.items() if machine.get(name)}, **more}


def _chosen(series: Sequence[Series], metrics: Sequence[str] | None, models: Sequence[str] | None) -> list[Series]:
    """The series of these models and metrics."""
    chosen = list(series)
    if models:
        _check_names("model", models, {one.model for one in series}, "vitbench history without --models")
        chosen = [one for one in chosen if _matches(one.model, models)]
    if metrics:
        _check_names("metric", metrics, {one.metric for one in series}, "vitbench history without --metric")
        return [one for one in chosen if _matches(one.metric, metrics)]
    timed = {one.cell for one in chosen if one.kind == "relative"}

    def wanted(one: Series) -> bool:
        if one.kind != "shown" or one.metric in ("median", "accuracy"):
            return True
        # where no time can be judged, the absolute one is better than none
        return one.metric in ("latency", "training_step") and one.cell not in timed

    return [one for one in chosen if wanted(one)]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_names(kind: str, patterns: Sequence[str], known: set[str], see: str) -> None:
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in known):
            raise UnknownNameError(f"{kind} of these runs", pattern, known, see)


# steps


def find_steps(series: Series, *, rows: int = 1, false_alarms: float = FALSE_ALARMS) -> list[Step]:
    """The steps of a series, by time. ``rows``: how many series are searched in all (see ``steps.find_breaks``)."""
    if series.kind == "exact":
        return _exact_steps(series)
    return _noisy_steps(series, rows, false_alarms) if is_searched(series) else []


def is_searched(series: Series) -> bool:
    """Whether step detection is done on it: noisy figures of two runs or more."""
    return (
        series.kind in ("relative", "memory")
        and len(series.points) > 1
        and len(series.numbers) == len(series.points)
        and min(series.numbers) > 0
        and all(point.deviation for point in series.points)
    )


def _exact_steps(series: Series) -> list[Step]:
    points = series.points
    cuts = [index for index in range(1, len(points)) if points[index].value != points[index - 1].value]
    ends = [0, *cuts, len(points)]
    steps = []
    for start, cut, end in zip(ends[:-2], cuts, ends[2:], strict=True):
        before, after = points[cut - 1].value, points[cut].value
        numbers = isinstance(before, int | float) and isinstance(after, int | float) and before
        steps.append(
            Step(
                series=series,
                index=cut,
                before=before,
                after=after,
                ratio=float(after) / float(before) if numbers else None,
                runs_before=cut - start,
                runs_after=end - cut,
            )
        )
    return steps


def _noisy_steps(series: Series, rows: int, false_alarms: float) -> list[Step]:
    logs = [math.log(value) for value in series.numbers]
    deviations = [float(point.deviation or 0) for point in series.points]
    breaks = find_breaks(logs, deviations, rows=rows, false_alarms=false_alarms)
    ends = [0, *(one.index for one in breaks), len(logs)]
    levels = [
        math.exp(_weighted_mean(logs[start:end], deviations[start:end])) for start, end in itertools.pairwise(ends)
    ]
    return [
        Step(
            series=series,
            index=one.index,
            before=levels[number],
            after=levels[number + 1],
            ratio=math.exp(one.change),
            low=math.exp(one.low),
            high=math.exp(one.high),
            chance=one.chance,
            runs_before=one.before,
            runs_after=one.after,
        )
        for number, one in enumerate(breaks)
    ]


def _weighted_mean(values: Sequence[float], deviations: Sequence[float]) -> float:
    weights = [1 / one**2 for one in deviations]
    return math.fsum(w * x for w, x in zip(weights, values, strict=True)) / math.fsum(weights)

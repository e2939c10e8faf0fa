"""Turn stored runs into series: one metric of one cell over time.

Timings from different machines are different series. Loads no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, get_args

from vitbench.core.records import Measurement, Record
from vitbench.core.stats.estimates import first_stage_of, measurement_estimate, quiet_times
from vitbench.core.stats.intervals import MIN_PROCESSES, RUN_TO_RUN, Estimate, estimate
from vitbench.core.stats.relative import estimate_quiet, relative_samples
from vitbench.regression.change_text import cell_names
from vitbench.regression.pytest_benchmark_json import StoredRun, parse_time
from vitbench.regression.stored_runs import RunFolder, time_of
from vitbench.suites.thresholds import RELATIVE, STATUS, yields_of

#: How steps of a series are found: ``exact`` (any difference is a step), ``relative`` (a time over the reference's) and
#: ``memory`` (as measured) by step detection, ``shown`` not at all.
Kind = Literal["exact", "relative", "memory", "shown"]
KINDS: tuple[str, ...] = get_args(Kind)

#: How much the measured memory of the same code differs between runs: the standard deviation of its logarithm,
MEMORY_RUN_TO_RUN = 0.01
#: and of its bytes, which dominates for small models: some pages more or less.
MEMORY_SCATTER_BYTES = 100_000

#: How much the processes of one run differ in a relative time (standard deviation of the logarithm), for runs with too
#: few processes to estimate it.
PROCESS_SPREAD = 0.1


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One stored run: its name, when it began (UTC), the commit it measured (empty if unknown), and conditions that may
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
    """The value of one run, in the base unit of its series; words for a status or a shape.

    ``deviation``: the standard deviation of its logarithm expected between runs; None where no test uses it.
    """

    moment: Moment
    value: float | str
    low: float | None = None
    high: float | None = None
    deviation: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """One metric of one cell over time. ``machine`` is empty where values do not depend on it."""

    cell: str
    model: str
    metric: str
    unit: str
    kind: Kind
    machine: str
    points: tuple[Point, ...]

    @cached_property
    def numbers(self) -> list[float]:
        """The values that are numbers."""
        return [float(point.value) for point in self.points if not isinstance(point.value, str)]

    @property
    def name(self) -> str:
        """``vit_basic 32px b1 cpu fp32 infer: flops``."""
        return f"{self.cell}: {self.metric}"


def series_of_folders(folders: Sequence[RunFolder]) -> list[Series]:
    """The series of run folders (by time), with cells in order of first appearance."""
    names = cell_names(record.cell for folder in folders for record in folder.records)
    return _join(
        one
        for folder in folders
        for record in folder.records
        for one in _values_of(record, folder, names[record.cell.id])
    )


def _join(values: Iterable[tuple[str, Series]]) -> list[Series]:
    """Join series of one point, in order of first appearance. Each comes with the reference of a relative time, or
    what a lower bound leaves out: values of which that differs are different series, as in comparisons.
    """
    found: dict[tuple[str, ...], list[Series]] = {}
    for relative_to, one in values:
        found.setdefault((one.cell, one.metric, one.kind, one.machine, relative_to), []).append(one)
    return [
        dataclasses.replace(group[0], points=tuple(point for one in group for point in one.points))
        for group in found.values()
    ]


def _values_of(record: Record, folder: RunFolder, name: str) -> Iterator[tuple[str, Series]]:
    """The status of a record and the values of its measurements, as ``_join`` takes them. ``name``: the cell's."""
    described = (folder.environment.get("environments") or {}).get(record.environment) or {}
    session = _session_of(record, folder.environment)
    moment = Moment(
        run=folder.name,
        at=folder.began,
        commit=str(session.get("commit") or ""),
        conditions=_conditions(session, described),
    )
    machine = machine_of(described, record.cell.device)
    status = record.status if record.status == "ok" or not record.cause else f"{record.status} ({record.cause})"
    # what fits into memory depends on the machine
    point = Point(moment=moment, value=status)
    whole = Series(
        cell=name, model=record.cell.model, metric=STATUS, unit="", kind="exact", machine=machine, points=(point,)
    )
    yield "", whole
    for one in record.measurements:
        if one.status == "ok" and any(one.samples):
            yield from _measured(record, one, whole, moment)


def _measured(record: Record, one: Measurement, whole: Series, moment: Moment) -> Iterator[tuple[str, Series]]:
    """The value of a measurement, and for a time also its ratio to the reference's. ``whole``: the cell's status."""
    kind = kind_of(one.metric)
    if one.reference_samples and one.unit == "s" and kind == "shown" and not one.metric.endswith("_cpu_time"):
        relative = _relative(one)
        if relative is not None:
            expected = _relative_deviation(relative)
            point = Point(moment=moment, value=relative.value, low=relative.low, high=relative.high, deviation=expected)
            metric = RELATIVE + one.metric
            yield (
                one.reference,
                dataclasses.replace(whole, metric=metric, unit="× reference", kind="relative", points=(point,)),
            )
    value = measurement_estimate(record, one)
    if value is None:
        return
    deviation = None
    if kind == "memory":
        if value.value > 0:
            deviation = math.hypot(MEMORY_RUN_TO_RUN, MEMORY_SCATTER_BYTES / value.value)
        else:
            kind = "shown"
    machine = "" if kind == "exact" and not one.executed else whole.machine
    point = Point(moment=moment, value=value.value, low=value.low, high=value.high, deviation=deviation)
    found = dataclasses.replace(whole, metric=one.metric, unit=one.unit, kind=kind, machine=machine, points=(point,))
    yield one.left_out, found


def kind_of(metric: str) -> Kind:
    """The kind of a metric's series, from the table that the gates use. Metrics that no gate judges (such as the memory
    of a whole process, which is mostly libraries) are shown, as are those of other packages.
    """
    value = yields_of(metric)
    if value.kind in ("exact", "torch") and value.gates:
        return "exact"
    return "memory" if value.kind == "measured" and value.gates else "shown"


def _relative(one: Measurement) -> Estimate | None:
    """The time over the reference's with its interval over this run's processes; None if a sample is not positive."""
    try:
        quiet, stage = quiet_times(one), first_stage_of(one)
        if quiet is None:
            return estimate(relative_samples(one.samples, one.turns, one.reference_samples))
        return estimate_quiet(quiet.relative, stage.relative if stage else None)
    except ValueError:
        return None


def _relative_deviation(relative: Estimate) -> float:
    """Combine the variation between runs with the uncertainty that this run's processes leave.

    The latter follows from the interval, which is wide for few processes, as they hardly show their own spread.
    """
    if relative.n_processes >= MIN_PROCESSES and relative.low and relative.high:
        own = (math.log(relative.high) - math.log(relative.low)) / (2 * 1.96)
    else:
        own = PROCESS_SPREAD / math.sqrt(max(relative.n_processes, 1))
    return math.hypot(RUN_TO_RUN, own)


def _session_of(record: Record, environment: Mapping[str, Any]) -> Mapping[str, Any]:
    """The session that measured the record: the last one that began before it."""
    sessions: list[Mapping[str, Any]] = list(environment.get("sessions") or [])
    at = time_of(record)
    # a session's time has no fractions of a second
    before = [one for one in sessions if (began := parse_time(str(one.get("started_at")))) and began <= at]
    return (before or sessions or [{}])[-1 if before else 0]


def machine_of(environment: Mapping[str, Any], device: str) -> str:
    """Name the hardware that decides how fast ``device`` is: processor and cores, or the device's own name. Versions
    are left out, so that a step caused by torch stays within one series. Empty if nothing is known.
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


def _conditions(session: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, str]:
    system, libraries = described.get("system") or {}, described.get("libraries") or {}
    versions = {key: str(one) for key, one in (libraries.get("versions") or {}).items()}
    variables = system.get("variables")
    return {
        "vitbench": str(session.get("vitbench") or ""),
        **versions,
        **{key: str(libraries[key]) for key in ("mkl_version", "onednn_version", "blas") if libraries.get(key)},
        **{key: str(system[key]) for key in ("python", "os") if system.get(key)},
        **({str(key): str(value) for key, value in variables.items()} if isinstance(variables, Mapping) else {}),
    }


def series_of_stored(runs: Sequence[StoredRun]) -> list[Series]:
    """The series of pytest-benchmark's files (by time): medians, and the exact values in ``extra_info``."""
    return _join(one for run in runs for one in _stored_values(run))


def _stored_values(run: StoredRun) -> Iterator[tuple[str, Series]]:
    cpu = run.machine.get("cpu")
    facts = cpu if isinstance(cpu, Mapping) else {}
    count = facts.get("usable_cores") or facts.get("count")
    machine = ", ".join(filter(None, [str(facts.get("brand_raw") or ""), f"{count} cores" if count else ""]))
    moment = Moment(run=run.name, at=run.at, commit=run.commit, conditions=_stored_conditions(run.machine))
    for one in run.benchmarks:
        point = Point(moment=moment, value=one.median)
        whole = Series(
            cell=one.name, model=one.name, metric="median", unit="s", kind="shown", machine=machine, points=(point,)
        )
        yield "", whole
        for key, value in one.extra.items():
            if kind_of(key) == "exact" or key in ("output", "state_dict"):  # the pytest plugin stores these two as well
                point = Point(moment=moment, value=value)
                yield "", dataclasses.replace(whole, metric=key, unit="", kind="exact", machine="", points=(point,))


def _stored_conditions(machine: Mapping[str, Any]) -> dict[str, str]:
    keys = {"python": "python_version", "os": "system", "os release": "release"}
    libraries = machine.get("libraries")
    more = {str(key): str(one) for key, one in libraries.items()} if isinstance(libraries, Mapping) else {}
    return {**{key: str(machine[name]) for key, name in keys.items() if machine.get(name)}, **more}

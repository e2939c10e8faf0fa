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
from typing import Any, Literal, NamedTuple, get_args

from vitbench.core.records import Measurement, Record
from vitbench.core.stats.estimates import first_stage_of, measurement_estimate
from vitbench.core.stats.intervals import MIN_PROCESSES, RUN_TO_RUN, Estimate, estimate
from vitbench.core.stats.relative import estimate_relative, in_quiet_turns, relative_samples
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

#: What the pytest plugin stores beside a time, apart from the exact metrics of records.
STORED_EXACT = frozenset({"output", "state_dict"})


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


class _Reading(NamedTuple):
    """One point, and the series that it belongs to. ``reference``: the reference of a relative time."""

    cell: str
    metric: str
    unit: str
    kind: Kind
    machine: str
    reference: str
    point: Point


def _grouped(readings: Iterable[tuple[str, str, _Reading]]) -> list[Series]:
    """The series of (cell name, model, reading), in order of first appearance."""
    found: dict[tuple[str, ...], tuple[str, str, list[_Reading]]] = {}
    for name, model, one in readings:
        key = (one.cell, one.metric, one.kind, one.machine, one.reference)
        found.setdefault(key, (name, model, []))[2].append(one)
    return [
        Series(
            cell=name,
            model=model,
            metric=group[0].metric,
            unit=group[0].unit,
            kind=group[0].kind,
            machine=group[0].machine,
            points=tuple(one.point for one in group),
        )
        for name, model, group in found.values()
    ]


def series_of_folders(folders: Sequence[RunFolder]) -> list[Series]:
    """The series of run folders (by time), with cells in order of first appearance."""
    names = cell_names(record.cell for folder in folders for record in folder.records)
    return _grouped(
        (names[record.cell.id], record.cell.model, one)
        for folder in folders
        for record in folder.records
        for one in _readings(record, folder)
    )


def _readings(record: Record, folder: RunFolder) -> Iterator[_Reading]:
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
    yield _Reading(record.cell.id, STATUS, "", "exact", machine, "", Point(moment=moment, value=status))
    for one in record.measurements:
        if one.status == "ok" and any(one.samples):
            yield from _readings_of(record, one, moment, machine)


def _readings_of(record: Record, one: Measurement, moment: Moment, machine: str) -> Iterator[_Reading]:
    """The value of a measurement, and for a time also its ratio to the reference's."""
    kind = kind_of(one.metric)
    if one.reference_samples and kind == "shown" and not one.metric.endswith("_cpu_time"):
        relative = _relative(one)
        if relative is not None:
            point = Point(
                moment=moment,
                value=relative.value,
                low=relative.low,
                high=relative.high,
                deviation=_relative_deviation(relative),
            )
            # times over different references are different series, as in comparisons
            yield _Reading(
                record.cell.id, RELATIVE + one.metric, "× reference", "relative", machine, one.reference, point
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
    counted = kind == "exact" and not one.executed
    point = Point(moment=moment, value=value.value, low=value.low, high=value.high, deviation=deviation)
    yield _Reading(record.cell.id, one.metric, one.unit, kind, "" if counted else machine, "", point)


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
        quiet = in_quiet_turns(one.samples, one.turns, one.reference_samples)
        if quiet is None:
            return estimate(relative_samples(one.samples, one.turns, one.reference_samples))
        return estimate_relative(quiet, first_stage_of(one))
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
    return _grouped((one.cell, one.cell, one) for run in runs for one in _stored_readings(run))


def _stored_readings(run: StoredRun) -> Iterator[_Reading]:
    moment = Moment(run=run.name, at=run.at, commit=run.commit, conditions=_stored_conditions(run.machine))
    machine = _stored_machine(run.machine)
    for one in run.benchmarks:
        yield _Reading(one.name, "median", "s", "shown", machine, "", Point(moment=moment, value=one.median))
        for key, value in one.extra.items():
            if kind_of(key) == "exact" or key in STORED_EXACT:
                yield _Reading(one.name, key, "", "exact", "", "", Point(moment=moment, value=value))


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

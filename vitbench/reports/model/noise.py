"""How noisy a run was: the reference against itself, the load beside it, and the cells that were disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vitbench.core.records import Cell, NoiseCheck, Record
from vitbench.core.stats.comparisons import noise_floor
from vitbench.core.stats.intervals import Estimate, estimate
from vitbench.core.stats.warm_up import median, process_medians
from vitbench.devices.host.load import GPU_SLOWED, OTHER_LOAD, STEAL
from vitbench.reports.model.runs import Run
from vitbench.reports.model.values import MetricValue, mean_of, value_of

#: Metrics that take turns with the reference.
TIMED = ("latency", "training_step")
#: A cell counts as disturbed from these on: cores busy with other programs, cores' time taken by the host,
DISTURBING_LOAD = 0.25
DISTURBING_STEAL = 0.02
#: the share of time in which heat or a power limit slowed a GPU,
DISTURBING_SLOWDOWN = 0.01
#: and the reference's slowest tenth of turns over its fastest while the cell was measured.
DISTURBING_DRIFT = 1.5


@dataclass(frozen=True)
class NoiseLevel:
    """How noisy one run was on one device with one thread count.

    ``paired``: whether cells took turns with the reference. ``same``: the reference over itself, which should be 1;
    None if that was not measured. ``floor``: the smallest difference (0.02: 2 %) that the run distinguishes between two
    cells of ``processes`` processes each; None with fewer than two checks. ``drift``: the reference's slowest tenth of
    turns over its fastest.
    """

    run: str
    device: str
    threads: int
    paired: bool
    same: Estimate | None
    floor: float | None
    processes: int
    drift: float | None


def noise_levels(run: Run) -> list[NoiseLevel]:
    """The noise of each device and thread count that a run timed cells with."""
    groups: dict[tuple[str, int], list[MetricValue]] = {}
    for record in run.records:
        for one in timed_values(record):
            groups.setdefault((record.cell.device, record.cell.threads), []).append(one)
    found = []
    for (device, threads), values in groups.items():
        checks = [check for check in run.noise if (check.device, check.threads) == (device, threads)]
        ratios = [_ratios(check) for check in checks]
        processes = round(median([len(one.measurement.samples) for one in values if one.measurement]))
        medians = process_medians(ratios)
        floor = noise_floor(medians, processes) if len(medians) > 1 and min(medians) > 0 else None
        turns = [x for one in values for x in _reference_turns(one)]
        same = estimate(ratios) if ratios else None
        found.append(NoiseLevel(run.name, device, threads, bool(turns), same, floor, processes, _drift(turns)))
    return found


def noise_floors(runs: Sequence[Run]) -> dict[tuple[str, str, int], float]:
    """The noise floor of each run's device and thread count, where it is known."""
    levels = [one for run in runs for one in noise_levels(run)]
    return {(one.run, one.device, one.threads): one.floor for one in levels if one.floor is not None}


class Disturbance(NamedTuple):
    """What was in the way of a timed cell, and how much of it (cores, or a ratio of speeds)."""

    cause: Literal["load", "slowed", "steal", "drift"]
    amount: float


def disturbances(record: Record) -> list[Disturbance]:
    """Why a timed cell's values are doubtful; empty if nothing was in its way, or nothing is known."""
    found = []
    load, steal, slowed = (mean_of(record, metric) or 0.0 for metric in (OTHER_LOAD, STEAL, GPU_SLOWED))
    if load >= DISTURBING_LOAD:
        found.append(Disturbance("load", load))
    if slowed >= DISTURBING_SLOWDOWN:
        found.append(Disturbance("slowed", slowed))
    if steal >= DISTURBING_STEAL:
        found.append(Disturbance("steal", steal))
    for one in timed_values(record):
        drift = _drift(_reference_turns(one))
        if drift is not None and drift >= DISTURBING_DRIFT:
            found.append(Disturbance("drift", drift))
    return found


class Shortfall(NamedTuple):
    """A cell whose interval is wider than the run asked for: half its width (0.05: 5 %), and why."""

    cell: Cell
    reached: float
    reason: str


def shortfalls(records: Sequence[Record]) -> list[Shortfall]:
    """The timed cells that did not reach the precision that the run asked for."""
    found = []
    for record in records:
        for one in timed_values(record):
            detail, relative = one.measurement.detail if one.measurement else "", one.relative
            if detail and relative is not None and relative.low is not None and relative.high is not None:
                reached = max(relative.high / relative.value, relative.value / relative.low) - 1
                found.append(Shortfall(record.cell, reached, detail))
    return found


def timed_values(record: Record) -> list[MetricValue]:
    """The times of a record that were measured in turns with the reference where it ran."""
    return [one for metric in TIMED if (one := value_of(record, metric)).value is not None]


def _reference_turns(one: MetricValue) -> list[float]:
    return [x for process in one.measurement.reference_samples for x in process] if one.measurement else []


def _ratios(check: NoiseCheck) -> list[float]:
    return [own / other for own, other in zip(check.samples, check.reference_samples, strict=True)]


def _drift(turns: Sequence[float]) -> float | None:
    """The 90th over the 10th percentile."""
    import numpy as np

    if len(turns) < 10:
        return None
    low, high = np.quantile(np.asarray(turns), [0.1, 0.9])
    return float(high / low)

"""How noisy a run was: the reference against itself, the load beside it, and the cells that were disturbed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitbench.core.records import Record
from vitbench.core.stats.comparisons import noise_floor
from vitbench.core.stats.intervals import Estimate, estimate, median, process_medians
from vitbench.devices.host.load import GPU_SLOWED, OTHER_LOAD, STEAL
from vitbench.reports.format import number
from vitbench.reports.model.runs import Run
from vitbench.reports.model.values import MetricValue, value_of

#: Metrics that take turns with the reference.
TIMED = ("latency", "training_step")
#: From when on a cell counts as disturbed (cores, or of a slowed GPU a share of the time),
_DISTURBING = (
    (OTHER_LOAD, "{} cores busy with other programs", 0.25),
    (GPU_SLOWED, "heat or a power limit held the GPU's clock down", 0.01),
    (STEAL, "{} cores' time taken by the host", 0.02),
)
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
        pairs = [zip(check.samples, check.reference_samples, strict=True) for check in checks]
        ratios = [[own / other for own, other in pair] for pair in pairs]
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


def disturbances(record: Record) -> list[str]:
    """Why a timed cell's values are doubtful, in words; empty if nothing was in its way, or nothing is known."""
    found = [(text, _mean_of(record, metric), least) for metric, text, least in _DISTURBING]
    for one in timed_values(record):
        found.append(("the machine's own speed changed {}-fold", _drift(_reference_turns(one)), DISTURBING_DRIFT))
    return [text.format(number(amount, 2)) for text, amount, least in found if amount is not None and amount >= least]


def _mean_of(record: Record, metric: str) -> float | None:
    """The mean of all samples; None without any."""
    one = record.measurement(metric)
    samples = [x for process in one.samples for x in process] if one else []
    return math.fsum(samples) / len(samples) if samples else None


def shortfall(one: MetricValue) -> float | None:
    """Half the width of an interval (0.05: 5 %) that is wider than the run asked for; None for any other."""
    relative = one.relative
    if not (one.measurement and one.measurement.detail) or not relative or not relative.low or not relative.high:
        return None
    return max(relative.high / relative.value, relative.value / relative.low) - 1


def timed_values(record: Record) -> list[MetricValue]:
    """The times of a record that were measured in turns with the reference where it ran."""
    return [one for metric in TIMED if (one := value_of(record, metric)).value is not None]


def _reference_turns(one: MetricValue) -> list[float]:
    return [x for process in one.measurement.reference_samples for x in process] if one.measurement else []


def _drift(turns: Sequence[float]) -> float | None:
    """The 90th over the 10th percentile."""
    import numpy as np

    if len(turns) < 10:
        return None
    low, high = np.quantile(np.asarray(turns), [0.1, 0.9])
    return float(high / low)

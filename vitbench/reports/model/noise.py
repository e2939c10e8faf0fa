"""How noisy a run was: the reference against itself, other programs beside it, and the cells that were disturbed."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitbench.core.records import Record
from vitbench.core.run_folder import SUITE
from vitbench.core.stats.comparisons import noise_floor
from vitbench.core.stats.intervals import MIN_PROCESSES, Estimate, estimate, median, process_medians
from vitbench.core.stats.relative import QUIET_LOAD
from vitbench.devices.host.load import GPU_SLOWED, OTHER_LOAD, STEAL
from vitbench.reports.format import number
from vitbench.reports.model.runs import Run, usable_cores
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
#: A disturbed value whose interval's ends differ by more than this factor is busy.
BUSY = 2.0
#: A run is called disturbed if other programs used cores in this share of its turns.
_DISTURBED_TURNS = 0.05
#: Models that a command names.
_MOST_NAMED = 30
#: A time under load is shown beside that of quiet turns if it is outside its interval or differs by more than this.
_UNDER_LOAD = 0.1
#: How the detail of a measurement begins that has too few samples.
_TOO_FEW = "too few"


@dataclass(frozen=True)
class OtherPrograms:
    """What other programs used while something was timed: ``cores`` on average, in the ``share`` of turns in which they
    used more than a quiet turn has. ``by_turn`` is False for records before schema 4: they know it by process.
    """

    cores: float
    share: float
    by_turn: bool

    def text(self, of_cores: int | None = None, whose: str = "the") -> str:
        """``0.90 of 2 cores in 43 % of the turns``."""
        cores = number(self.cores, 2) + (f" of {of_cores}" if of_cores else "") + " cores"
        return f"{cores} in {100 * self.share:.0f} % of {whose} {'turns' if self.by_turn else 'processes'}"


def other_programs(values: Sequence[MetricValue]) -> OtherPrograms | None:
    """What other programs used beside these times; None if that is not known, or every turn was quiet."""
    by_turn = [x for one in values if one.measurement for process in one.measurement.other_load for x in process]
    loads = by_turn or [x for one in values if one.record for x in _samples_of(one.record, OTHER_LOAD)]
    high = [load for load in loads if load > QUIET_LOAD]
    return OtherPrograms(math.fsum(high) / len(high), len(high) / len(loads), bool(by_turn)) if high else None


def busy_beside(one: MetricValue) -> OtherPrograms | None:
    """What other programs used beside a time or rate whose interval's ends differ by more than ``BUSY``; None for any
    other value.
    """
    took_turns = one.measurement is not None and one.measurement.reference_samples
    estimate = one.estimate_between_runs
    if not took_turns or one.disturbance is None or estimate is None or not estimate.low or estimate.high is None:
        return None
    return other_programs([one]) if estimate.high / estimate.low > BUSY else None


def differs_under_load(one: MetricValue) -> bool:
    """Whether a time over all turns is another than that of its quiet turns."""
    quiet, loaded = one.estimate_between_runs, one.under_load
    if quiet is None or loaded is None or one.all_turns_count:
        return False
    inside = quiet.low is None or quiet.high is None or quiet.low <= loaded.value <= quiet.high
    return not inside or abs(loaded.value / quiet.value - 1) > _UNDER_LOAD


def has_few_samples(one: MetricValue) -> bool:
    """Whether a process of it gave fewer steady samples than a median takes."""
    return one.status == "ok" and one.measurement is not None and one.measurement.detail.startswith(_TOO_FEW)


def turns_used(one: MetricValue) -> str:
    """Which turns count: ``quiet``, ``slow`` (quiet ones of a machine that was slower than at other times of the run),
    ``all``, or empty for what took no turns with the reference.
    """
    return "all" if one.all_turns_count else "slow" if one.slower else "quiet" if one.quiet else ""


def disturbance_line(run: Run, folder: Path | str = "") -> str:
    """What disturbed the times of a run, by how much, and what to do, in one line; empty if nothing did. ``folder``
    is the run's.
    """
    cells = [(record, found) for record in run.records if (found := timed_values(record))]
    values = [one for _, found in cells for one in found]
    doubtful = [record for record, found in cells if any(busy_beside(one) or _lacks_quiet(one) for one in found)]
    others = other_programs(values)
    if others and others.share >= _DISTURBED_TURNS:
        what = f"Other programs used {others.text(usable_cores(run))}"
    elif doubtful:
        what = "The machine's own speed changed"
    else:
        return ""
    if not any(one.quiet for one in values):
        return (
            f"{what}, and all turns count: quiet ones are known from {MIN_PROCESSES} processes on. Close other "
            f"programs and run again, or add `--processes {MIN_PROCESSES}`."
        )
    if not doubtful:
        return f"{what}. Values are those of the quiet turns: there is nothing to repeat."
    models = dict.fromkeys(record.cell.model for record in doubtful)
    # of very many models the whole suite
    narrowed = ["--models", ",".join(models)] if len(models) <= _MOST_NAMED else []
    command = shlex.join(["vitbench", "run", "--suite", str(Path(folder) / SUITE), *narrowed])
    few = f"{len(doubtful)} of {len(cells)} cells had too few quiet turns (marked busy, † or §)"
    return f"{what}. Values are those of quiet turns, but {few}. Close other programs and repeat them: `{command}`"


def _lacks_quiet(one: MetricValue) -> bool:
    """Whether all turns count although there were enough processes, or the machine was slow in all of them."""
    return one.quiet is not None and (one.all_turns_count or one.slower is not None)


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
    samples = _samples_of(record, metric)
    return math.fsum(samples) / len(samples) if samples else None


def _samples_of(record: Record, metric: str) -> list[float]:
    one = record.measurement(metric)
    return [x for process in one.samples for x in process] if one else []


def shortfall(one: MetricValue) -> float | None:
    """Half the width of an interval (0.05: 5 %) that is wider than the run asked for; None for any other."""
    relative = one.relative
    if (
        not (one.measurement and one.measurement.detail)
        or has_few_samples(one)
        or not relative
        or not relative.low
        or not relative.high
    ):
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

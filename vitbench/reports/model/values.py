"""One metric of one record as a number with its interval, or the status that stands in its place."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vitbench.core.records import Measurement, Record, Status
from vitbench.core.stats.estimates import RATE, first_stage_of, measurement_estimate, quiet_times, under_load
from vitbench.core.stats.intervals import (
    HOST_DRIFT,
    Estimate,
    allow_for_runs,
    estimate,
    percentile,
    steady_in_turns,
)
from vitbench.core.stats.relative import QUIET, QUIET_LOAD, QuietTime, QuietTimes, estimate_quiet, relative_samples


@dataclass(frozen=True)
class MetricValue:
    """What a record says of one metric. ``status`` is None where the metric was not asked for."""

    record: Record | None = None
    measurement: Measurement | None = None
    status: Status | None = None
    detail: str = ""

    @cached_property
    def estimate(self) -> Estimate | None:
        """The number in base units, or None unless the status is ``ok``."""
        if self.status != "ok" or self.measurement is None or self.record is None:
            return None
        return measurement_estimate(self.record, self.measurement)

    @property
    def value(self) -> float | None:
        """The point estimate in base units."""
        return self.estimate.value if self.estimate else None

    @cached_property
    def estimate_between_runs(self) -> Estimate | None:
        """``estimate``; the interval of a time or rate in quiet turns includes how fast the host is in other runs, and
        in the fastest turns of this one.
        """
        if self.estimate is None or self.quiet is None:
            return self.estimate
        seen = float(np.std(np.log(self.quiet.reference), ddof=1))
        found = allow_for_runs(self.estimate, math.hypot(HOST_DRIFT, seen))
        if found.low is None or found.high is None:
            return found
        if self.measurement is not None and self.measurement.unit == RATE:
            return replace(found, high=found.high * self.quiet.slower)
        return replace(found, low=found.low / self.quiet.slower)

    @cached_property
    def under_load(self) -> Estimate | None:
        """``estimate`` over all turns, whatever else ran; None where it has no quiet turns to differ from."""
        return under_load(self.measurement) if self.quiet and self.measurement else None

    @cached_property
    def disturbance(self) -> float | None:
        """The cores that other programs used on average over its turns, where these are beyond ``QUIET_LOAD``."""
        one = self.measurement
        if one is None or self.record is None:
            return None
        # records before schema 4 have it by process
        loads = one.other_load if one.other_load else getattr(self.record.measurement("other_load"), "samples", ())
        each = [load for process in loads for load in process]
        mean = math.fsum(each) / len(each) if each else 0.0
        return mean if mean > QUIET_LOAD else None

    @cached_property
    def relative_samples(self) -> list[list[float]]:
        """The samples of each process over the reference's of the same turns; empty without a reference."""
        one = self.measurement
        if self.status != "ok" or one is None or not one.reference_samples or not any(one.samples) or one.unit != "s":
            return []
        return relative_samples(one.samples, one.turns, one.reference_samples)

    @cached_property
    def relative_between_runs(self) -> Estimate | None:
        """``relative`` with an interval that, from three processes on, includes run-to-run variation."""
        return allow_for_runs(self.relative) if self.relative else None

    @cached_property
    def relative(self) -> Estimate | None:
        """The time over the reference's, of quiet turns from three processes on; None without a reference."""
        if not self.relative_samples:
            return None
        if self.quiet is None:
            return estimate(self.relative_samples)
        return estimate_quiet(self.quiet.relative, self.first_stage)

    @cached_property
    def quiet(self) -> QuietTimes | None:
        """The time in quiet turns with what each process contributes; None with fewer than three processes."""
        return quiet_times(self.measurement) if self.status == "ok" and self.measurement else None

    @property
    def all_turns_count(self) -> bool:
        """Whether it took turns with the reference, and too few processes had quiet ones."""
        one = self.measurement
        if self.status != "ok" or one is None or not one.reference_samples:
            return False
        return self.quiet is None or not self.quiet.seconds.quiet

    @property
    def slower(self) -> float | None:
        """By which factor the machine was slower throughout than at other times of the run; None if it was not."""
        return self.quiet.slower if self.quiet is not None and self.quiet.slower > QUIET else None

    @cached_property
    def first_stage(self) -> QuietTime | None:
        """``quiet.relative`` of the processes that decided how many there would be, if more followed."""
        stage = first_stage_of(self.measurement) if self.quiet and self.measurement else None
        return stage.relative if stage else None

    @property
    def batch_size(self) -> int | None:
        """Images a batch of the cell."""
        return self.record.cell.batch_size if self.record else None

    @cached_property
    def steady_samples(self) -> list[float]:
        """The samples that count, of all turns of all processes; empty without a value."""
        if self.status != "ok" or self.measurement is None:
            return []
        turns = self.measurement.turns or tuple((len(process),) for process in self.measurement.samples)
        pairs = zip(self.measurement.samples, turns, strict=True)
        return [x for process, counts in pairs for turn in steady_in_turns(process, counts) for x in turn]

    def percentile(self, q: float) -> float | None:
        """The quantile of ``steady_samples``; None if there are too few."""
        return percentile(self.steady_samples, q)


def value_of(record: Record | None, metric: str) -> MetricValue:
    """The value of one metric of one record; without a record it was not asked for.

    Kept beside the record's fields, as ``cached_property`` does: tables, plots and files ask for the same estimates.
    """
    if record is None:
        return MetricValue()
    known: dict[str, MetricValue] = vars(record).setdefault("_values", {})
    if metric not in known:
        known[metric] = _find_value(record, metric)
    return known[metric]


def _find_value(record: Record, metric: str) -> MetricValue:
    measurement = record.measurement(metric)
    if measurement is not None:
        if measurement.status == "ok" and not any(measurement.samples):
            return MetricValue(record, measurement, "error", "no samples")
        return MetricValue(record, measurement, measurement.status, measurement.detail)
    # A failed cell that names what it lacks was not asked for anything else.
    names_what_it_lacks = any(one.status != "ok" for one in record.measurements)
    if record.status != "ok" and not names_what_it_lacks:
        return MetricValue(record, None, record.status, record.detail or record.cause)
    return MetricValue(record)

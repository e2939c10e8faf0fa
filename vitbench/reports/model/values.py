"""One metric of one record as a number with its interval, or the status that stands in its place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from vitbench.core.records import Measurement, Record, Status
from vitbench.core.stats.estimates import first_stage_of, measurement_estimate
from vitbench.core.stats.intervals import Estimate, allow_for_runs, estimate, percentile, steady
from vitbench.core.stats.relative import Relative, estimate_relative, in_quiet_turns, relative_samples


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
    def relative_samples(self) -> list[list[float]]:
        """The samples of each process over the reference's of the same turns; empty without a reference."""
        one = self.measurement
        if self.status != "ok" or one is None or not one.reference_samples or not any(one.samples):
            return []
        return relative_samples(one.samples, one.turns, one.reference_samples)

    @cached_property
    def relative_between_runs(self) -> Estimate | None:
        """``relative`` with an interval that, from three processes on, includes run-to-run variation."""
        if self.relative is None or not self.relative.low:  # a clock too coarse to see anything gives 0
            return self.relative
        return allow_for_runs(self.relative)

    @cached_property
    def relative(self) -> Estimate | None:
        """The number over the reference's, of quiet turns from three processes on; None without a reference."""
        if not self.relative_samples or self.measurement is None:
            return None
        if self.in_quiet_turns is None:
            return estimate(self.relative_samples)
        return estimate_relative(self.in_quiet_turns, self.first_stage)

    @cached_property
    def in_quiet_turns(self) -> Relative | None:
        """The relative value with what each process contributes; None with fewer than three processes."""
        one = self.measurement
        if not self.relative_samples or one is None or min(map(min, filter(None, one.samples)), default=0) <= 0:
            return None
        return in_quiet_turns(one.samples, one.turns, one.reference_samples)

    @cached_property
    def first_stage(self) -> Relative | None:
        """``in_quiet_turns`` of the processes that decided how many there would be, if more followed."""
        return first_stage_of(self.measurement) if self.in_quiet_turns and self.measurement else None

    @property
    def batch_size(self) -> int | None:
        """Images a batch of the cell."""
        return self.record.cell.batch_size if self.record else None

    def percentile(self, q: float) -> float | None:
        """The quantile of the steady samples of all processes; None if there are too few.

        Leaves out the first sample of each turn of more than two: other programs have just filled the caches.
        """
        if self.status != "ok" or self.measurement is None:
            return None
        turns = self.measurement.turns or tuple((len(process),) for process in self.measurement.samples)
        samples = []
        for process, counts in zip(self.measurement.samples, turns, strict=True):
            firsts = {sum(counts[:index]) for index, count in enumerate(counts) if index > 0 and count > 2}
            cut = len(process) - len(steady(process))
            samples += [x for index, x in enumerate(process) if index >= cut and index not in firsts]
        return percentile(samples, q)


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

"""The value of a stored measurement, by the kind of its samples. Loads no torch."""

from __future__ import annotations

import dataclasses
import math

from vitbench.core.records import Measurement, Record
from vitbench.core.stats.intervals import WILSON, Estimate, estimate, wilson_interval
from vitbench.core.stats.relative import Relative, in_quiet_turns

#: Metrics whose samples are a course over time, not repetitions: their value is the last one.
SERIES = frozenset({"training_loss"})
SERIES_KIND = "none: the last of a series"

#: Metrics with one value a class, not repetitions: their value is the mean over the classes.
BY_CLASS = frozenset({"class_f1", "class_precision", "class_recall"})
BY_CLASS_KIND = "none: one value a class"


def measurement_estimate(record: Record, measurement: Measurement) -> Estimate | None:
    """The estimate of one measurement of ``record``, in the measurement's unit; None if it has no samples.

    An accuracy gets its Wilson interval from the record's ``test_images``; of a series the last value counts, of one
    value a class their mean.
    """
    samples = [process for process in measurement.samples if process]
    if not samples:
        return None
    if measurement.metric in SERIES:
        return Estimate(samples[-1][-1], None, None, SERIES_KIND, len(samples), sum(map(len, samples)))
    if measurement.metric in BY_CLASS:
        values = [x for process in samples for x in process]
        return Estimate(math.fsum(values) / len(values), None, None, BY_CLASS_KIND, len(samples), len(values))
    result = estimate(samples, first_stage=measurement.first_stage)
    tested = record.measurement("test_images")
    if measurement.metric == "accuracy" and tested is not None and tested.status == "ok" and any(tested.samples):
        total = round(tested.value)
        low, high = wilson_interval(round(result.value * total), total)
        result = dataclasses.replace(result, low=low, high=high, kind=WILSON)
    return result


def first_stage_of(one: Measurement) -> Relative | None:
    """The first stage, after which the number of processes was decided, in its quiet turns; None if there is none."""
    count = one.first_stage
    if count is None or count >= len(one.samples):
        return None
    return in_quiet_turns(one.samples[:count], one.turns[:count], one.reference_samples[:count])

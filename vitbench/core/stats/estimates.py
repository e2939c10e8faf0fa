"""The value of a stored measurement, by the kind of its samples. Loads no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from vitbench.core.records import Measurement, Record
from vitbench.core.stats.intervals import WILSON, Estimate, estimate, wilson_interval
from vitbench.core.stats.relative import QuietTimes, estimate_quiet, fastest_turns, in_quiet_turns

#: Metrics whose samples are a course over time, not repetitions: their value is the last one.
SERIES = frozenset({"training_loss"})
SERIES_KIND = "none: the last of a series"

#: Metrics with one value a class, not repetitions: their value is the mean over the classes.
BY_CLASS = frozenset({"class_f1", "class_precision", "class_recall"})
BY_CLASS_KIND = "none: one value a class"

#: How the metrics of processor time end.
CPU_TIME = "_cpu_time"

#: The unit of rates: their turns are quiet where the time of an image is short.
RATE = "image/s"


def measurement_estimate(record: Record, measurement: Measurement) -> Estimate | None:
    """The estimate of one measurement of ``record``, in the measurement's unit; None if it has no samples.

    A time or rate that took turns with the reference is that of quiet turns, from three processes on. An accuracy gets
    its Wilson interval from the record's ``test_images``; of a series the last value counts, of one value a class their
    mean.
    """
    samples = [process for process in measurement.samples if process]
    if not samples:
        return None
    if measurement.metric in SERIES:
        return Estimate(samples[-1][-1], None, None, SERIES_KIND, len(samples), sum(map(len, samples)))
    if measurement.metric in BY_CLASS:
        values = [x for process in samples for x in process]
        return Estimate(math.fsum(values) / len(values), None, None, BY_CLASS_KIND, len(samples), len(values))
    quiet = quiet_times(measurement)
    if quiet is not None:
        stage = first_stage_of(measurement)
        result = estimate_quiet(quiet.seconds, stage.seconds if stage else None)
        return _rate(result) if measurement.unit == RATE else result
    result = estimate(samples, first_stage=measurement.first_stage)
    tested = record.measurement("test_images")
    if measurement.metric == "accuracy" and tested is not None and tested.status == "ok" and any(tested.samples):
        total = round(tested.value)
        low, high = wilson_interval(round(result.value * total), total)
        result = dataclasses.replace(result, low=low, high=high, kind=WILSON)
    return result


def under_load(measurement: Measurement) -> Estimate | None:
    """The estimate over all turns, whatever else ran; None for what has no quiet turns of its own."""
    if quiet_times(measurement) is None:
        return None
    return estimate([process for process in measurement.samples if process], first_stage=measurement.first_stage)


def quiet_times(one: Measurement, *, processes: int | None = None) -> QuietTimes | None:
    """A time (for a rate: the time of an image) in its quiet turns, of the first ``processes`` or all; None without the
    reference, with fewer than three processes, or if a sample is not positive.
    """
    samples, reference = one.samples[:processes], one.reference_samples[:processes]
    smallest = min(map(min, filter(None, samples)), default=0)
    if not reference or smallest <= 0:
        return None
    if one.unit == RATE:
        if math.isinf(1 / smallest):
            return None
        samples = tuple(tuple(1 / rate for rate in process) for process in samples)
    loads = one.other_load[:processes]
    return in_quiet_turns(samples, one.turns[:processes], reference, loads, one.fastest_reference)


def with_fastest_reference(records: Sequence[Record]) -> list[Record]:
    """The records of one run, whose times know how fast their reference was in the fastest turns of the run, on the
    same machine and device.
    """

    def place_of(record: Record, one: Measurement) -> tuple[object, ...]:
        # of the reference, too, CPU time is another time
        return record.environment, record.cell.device, one.reference, one.metric.endswith(CPU_TIME)

    turns: dict[tuple[object, ...], list[float]] = {}
    for record in records:
        # latency and throughput of a cell have the same turns of the reference
        for place, samples in {(place_of(record, one), one.reference_samples) for one in record.measurements}:
            turns.setdefault(place, []).extend(seconds for process in samples for seconds in process)
    fastest = {place: fastest_turns(seconds) for place, seconds in turns.items() if seconds}

    def knowing(record: Record, one: Measurement) -> Measurement:
        if not one.reference_samples:
            return one
        return dataclasses.replace(one, fastest_reference=fastest[place_of(record, one)])

    return [
        dataclasses.replace(record, measurements=tuple(knowing(record, one) for one in record.measurements))
        for record in records
    ]


def first_stage_of(one: Measurement) -> QuietTimes | None:
    """The first stage, after which the number of processes was decided, in its quiet turns; None if there is none."""
    count = one.first_stage
    return None if count is None or count >= len(one.samples) else quiet_times(one, processes=count)


def _rate(time: Estimate) -> Estimate:
    """The rate of a time."""
    low, high = (None if bound is None else 1 / bound for bound in (time.high, time.low))
    return dataclasses.replace(time, value=1 / time.value, low=low, high=high)

"""Latency: the time from a batch on the device to its output, without transfers."""

from __future__ import annotations

from collections.abc import Iterator

from vitbench.core.records import Measurement
from vitbench.core.registry import METRICS, Column
from vitbench.metrics.support.subject import Subject
from vitbench.metrics.support.timing import FIRST_CALL, duration, forward_durations, timing_method


@METRICS.measured(
    "latency",
    process="time",
    modes=("infer",),
    yields=[
        duration("latency", gates=True, column=Column("latency", "ms", 1e3, main=True)),
        duration("latency_cpu_time"),
        FIRST_CALL,
    ],
    summary="seconds of one forward pass of one batch, every sample kept",
)
def measure_latency(subject: Subject) -> Iterator[Measurement]:
    """Every duration; the first call is a value of its own, and readers detect the warm-up after it."""
    timing = forward_durations(subject)
    yield from timing.measurements("latency", timing_method(subject, "one forward pass", timing))

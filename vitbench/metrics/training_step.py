"""The time of one training step on random images and labels."""

from __future__ import annotations

from collections.abc import Iterator

from vitbench.core.records import Measurement
from vitbench.core.registry import METRICS, Column, Yields
from vitbench.metrics.support.subject import Subject
from vitbench.metrics.support.timing import FIRST_CALL, duration, sample_durations, timing_method


@METRICS.measured(
    "training_step",
    process="time",
    modes=("train",),
    yields=[
        duration("training_step", gates=True, column=Column("training step", "ms", 1e3, main=True)),
        duration("training_step_cpu_time"),
        FIRST_CALL,
        Yields("training_throughput", "image/s", "shown", "more", column=Column("training", "image/s")),
    ],
    summary="seconds of one training step (forward, backward, AdamW) of one batch, and its images a second",
)
def measure_training_step(subject: Subject) -> Iterator[Measurement]:
    """Every duration, without loading and augmenting images; the first step is a value of its own."""
    subject.prepare()
    timing = sample_durations(subject.step, subject.device, subject.budget, subject.turns)
    subject.run_once()
    method = timing_method(subject, "zero_grad, forward, cross entropy, backward and AdamW step", timing)
    yield from timing.measurements("training_step", method)
    yield timing.rates("training_throughput", subject.cell.batch_size, f"batch / {method}")

"""Throughput: images a second with batches back to back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vitbench.core.records import Measurement
from vitbench.core.registry import METRICS, Yields
from vitbench.metrics.support.subject import Subject
from vitbench.metrics.support.timing import forward_durations, sample_durations, timing_method

#: Batches queued between two synchronisations: enough to hide each launch behind the batch before.
QUEUED_BATCHES = 8
#: The share of a process's time for throughput, whose samples are of several batches each.
SHARE_OF_BUDGET = 0.5


@METRICS.measured(
    "throughput",
    process="time",
    modes=("infer",),
    yields=[Yields("throughput", "image/s", "shown", "more")],  # reports show the best of all batches
    summary="images a second, batches back to back",
)
def measure_throughput(subject: Subject) -> Iterator[Measurement]:
    """On an asynchronous device: windows of several batches with one synchronisation at their end, so that it never
    idles.

    On a synchronous device, where nothing can be queued: the batch size over the durations of the latency.
    """
    size, device = subject.cell.batch_size, subject.device
    if device.asynchronous:
        images = QUEUED_BATCHES * size
        budget = dataclasses.replace(subject.budget, seconds=subject.budget.seconds * SHARE_OF_BUDGET)

        def window() -> None:
            for _ in range(QUEUED_BATCHES):
                subject.forward()

        subject.prepare()
        timing = sample_durations(window, device, budget, subject.turns)
        subject.run_once()  # the output must be finite; the latency, which also checks, may not be among the metrics
        what = timing_method(subject, f"{QUEUED_BATCHES} forward passes back to back", timing)
    else:
        images = size
        timing = forward_durations(subject)
        what = timing_method(subject, "each forward pass of the latency", timing)
    yield timing.rates("throughput", images, f"{images} images / {what}")

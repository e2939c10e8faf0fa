"""The one timer: how long a call takes, every sample kept."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from vitbench.devices import Device
from vitbench.metrics.subject import Budget, Subject


def sample_durations(call: Callable[[], object], device: Device, budget: Budget) -> tuple[float, ...]:
    """Seconds of each call, in order, the first one included; the device is waited for on both sides of each sample.

    Garbage is collected before, not during: a collection inside a sample would be charged to the model. Durations are
    kept to the nanosecond, which is finer than the clock.
    """
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    samples: list[float] = []
    try:
        device.synchronize()
        begin = None
        while True:
            start = time.perf_counter()
            call()
            device.synchronize()  # a GPU returns before its kernels have run
            end = time.perf_counter()
            samples.append(round(end - start, 9))
            begin = end if begin is None else begin  # the first call may compile: that is not the budget's to pay
            enough = len(samples) >= budget.min_samples and end - begin >= budget.seconds
            if enough or len(samples) >= budget.max_samples:
                return tuple(samples)
    finally:
        if collecting:
            gc.enable()


def forward_durations(subject: Subject) -> tuple[float, ...]:
    """Seconds of each forward pass of this process's cell, taken once however many metrics are made of them."""
    if subject.durations is None:
        subject.durations = sample_durations(subject.forward, subject.device, subject.budget)
        subject.run_once()  # numbers that are not finite would be the times of another computation
    return subject.durations


def timing_method(device: Device, what: str) -> str:
    """How a duration was got, for its Measurement."""
    import torch

    wait = f"torch.{device.kind}.synchronize on both sides" if device.asynchronous else "synchronous device"
    return f"time.perf_counter around {what}, {wait}, inputs already on the device, torch {torch.__version__}"

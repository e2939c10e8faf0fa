"""Energy: joules of an image by the device's own counter, and its power at rest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from vitbench.core.records import Measurement
from vitbench.core.registry import METRICS, Column, Yields
from vitbench.metrics.support.subject import Subject

#: Seconds at rest and under load: counters move every few hundredths of a second.
IDLE_S = 1.0
LOADED_S = 2.0

_shown = partial(Yields, kind="shown", better="less")


@METRICS.measured(
    "energy",
    process="energy",
    modes=("infer", "train"),
    yields=[
        _shown(
            "energy_per_image",
            "J/image",
            column=Column("energy", "J/image", training_heading="training energy", main=True),
        ),
        _shown("power", "W", column=Column("power", "W", training_heading="training power")),
        _shown(
            "idle_power",
            "W",
            column=Column("power at rest before", "W", training_heading="power at rest before training"),
        ),
    ],
    summary="joules of one image by the device's energy counter, and its power at rest (NVIDIA GPUs; Linux with RAPL)",
    by_default=False,
)
def measure_energy(subject: Subject) -> Iterator[Measurement]:
    """The counter's rise over calls back to back, power at rest included. Raises Unsupported without a counter."""
    device = subject.device
    device.energy_joules()
    subject.run_once()
    device.synchronize()
    begin_s, begin_j = time.perf_counter(), device.energy_joules()
    time.sleep(IDLE_S)
    idle = (device.energy_joules() - begin_j) / (time.perf_counter() - begin_s)

    call = subject.step if subject.cell.mode == "train" else subject.forward
    calls = 0
    begin_s, begin_j = time.perf_counter(), device.energy_joules()
    while time.perf_counter() - begin_s < LOADED_S:
        call()
        device.synchronize()
        calls += 1
    joules, seconds = device.energy_joules() - begin_j, time.perf_counter() - begin_s
    what = "training step" if subject.cell.mode == "train" else "forward pass"
    method = f"{device.energy_method}, over {LOADED_S:g} s of one {what} after the other"
    images = calls * subject.cell.batch_size
    yield Measurement.single(
        "energy_per_image", "J/image", joules / images, method, f"{images} images in {seconds:.2f} s"
    )
    yield Measurement.single("power", "W", joules / seconds, method)
    yield Measurement.single("idle_power", "W", idle, f"{device.energy_method}, over {IDLE_S:g} s at rest before")

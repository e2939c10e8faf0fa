"""Peak memory of a forward pass or a training step. Runs in a process of its own, whose allocator is set for this."""

from __future__ import annotations

import gc
from collections.abc import Iterator

from vitbench.metrics.subject import Subject
from vitbench.records import Measurement
from vitbench.registry import METRICS

#: How often the peak is looked for; the figure is the largest. A second look costs one call and catches a lazy library.
LOOKS = 2


@METRICS.measured(
    "memory",
    process="memory",
    modes=("infer", "train"),
    yields={
        "weights_memory": "byte",
        "inference_peak_memory": "byte",
        "training_peak_memory": "byte",
        "process_peak_memory": "byte",
    },
    only_in={"inference_peak_memory": "infer", "training_peak_memory": "train"},
    summary="bytes of the weights, and the peak of a forward pass (infer) or of a training step (train)",
)
def measure_memory(subject: Subject) -> Iterator[Measurement]:
    """The peak while a batch is in flight, after one warm-up call.

    Devices that account for their tensors (CUDA) tell the peak itself. Of a CPU only the size of the whole process is
    known, most of which is libraries: there the peak is the bytes of what stays (weights, batch, optimizer state) plus
    the rise of the resident high-water mark during a call, and the whole process's mark stands beside it.
    """
    device = subject.device
    training = subject.cell.mode == "train"
    name = "training_peak_memory" if training else "inference_peak_memory"
    weights = sum(t.numel() * t.element_size() for t in (*subject.model.parameters(), *subject.model.buffers()))
    yield Measurement.single("weights_memory", "byte", weights, "bytes of parameters and buffers as they run")

    subject.run_once()  # the first call allocates what libraries keep; also: is the output finite?
    peaks, rises = [], []
    for _ in range(LOOKS):
        if training:
            subject.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        device.synchronize()
        before = device.memory_now()
        device.reset_peak()
        with device.watch(subject.model):
            output = subject.step() if training else subject.forward()
            device.synchronize()
        peaks.append(device.peak())
        rises.append(max(peaks[-1] - before, 0))
        del output
    if device.peak_is_total:
        yield Measurement.single(name, "byte", max(peaks), device.memory_method)
        return
    resident = subject.resident_bytes()
    stays = "weights, batch and optimizer state" if training else "weights and batch"
    method = f"bytes of {stays} + rise during one call of the {device.memory_method}, {subject.allocator}"
    yield Measurement.single(name, "byte", resident + max(rises), method, f"of which rise {max(rises)} bytes")
    yield Measurement.single("process_peak_memory", "byte", max(peaks), f"{device.memory_method}, whole process")

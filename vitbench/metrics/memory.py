"""Peak memory of a forward pass or a training step, in a process with an allocator set for this."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from typing import Literal

from vitbench.core.errors import Unsupported
from vitbench.core.records import Measurement
from vitbench.core.registry import METRICS, Column, Yields
from vitbench.metrics.support.subject import Subject

#: Tensors at the peak by category, as in support/tensor_memory.py, which loads torch.
PARTS = ("weights", "batch", "gradients", "optimizer", "activations")
#: The parts that only a training step has.
_MODE_OF: dict[str, Literal["train"]] = {"gradients": "train", "optimizer": "train"}

#: Resident memory repeats within 3 % at worst on one machine, and within 1 % from 20 MB on.
TOLERANCE = 0.05

#: Calls whose peaks are read; the largest counts. The second catches libraries that allocate late.
LOOKS = 2

_measured = partial(Yields, unit="byte", kind="measured", better="less", tolerance=TOLERANCE)


@METRICS.measured(
    "memory",
    process="memory",
    modes=("infer", "train"),
    yields=[
        Yields("weights_memory", "byte", "exact", "less", gates=True, column=Column("weights", "MB", 1e-6)),
        _measured(
            "inference_peak_memory", gates=True, mode="infer", column=Column("peak memory", "MB", 1e-6, main=True)
        ),
        _measured("training_peak_memory", gates=True, mode="train", column=Column("training peak", "MB", 1e-6)),
        # most of it is libraries and caches
        _measured("process_peak_memory", column=Column("process peak", "MB", 1e-6)),
        Yields("memory_limit", "byte", "condition", optional=True),
        _measured("reserved_peak_memory", optional=True),
        _measured("process_gpu_memory", optional=True),
        _measured("driver_memory", optional=True),
    ],
    summary="bytes of the weights, and the peak of a forward pass (infer) or of a training step (train)",
)
def measure_memory(subject: Subject) -> Iterator[Measurement]:
    """The peak during a call, after one warm-up call.

    Devices that account for their tensors (CUDA) report the peak itself. A CPU reports only the size of the whole
    process, most of which is libraries. There the peak is the bytes kept between calls (weights, batch, optimizer
    state) plus the rise of the resident high-water mark during a call; the mark itself is a measurement, too.
    """
    limit = subject.cell.memory_limit
    if limit is not None and subject.memory_cap:  # first: what follows may exceed it
        yield Measurement.single("memory_limit", "byte", limit, subject.memory_cap)
    device = subject.device
    training = subject.cell.mode == "train"
    name = "training_peak_memory" if training else "inference_peak_memory"
    held = _held_by_others(subject) if device.peak_is_total else 0
    weights = sum(t.numel() * t.element_size() for t in (*subject.model.parameters(), *subject.model.buffers()))
    yield Measurement.single("weights_memory", "byte", weights, "bytes of parameters and buffers as they run")

    subject.warm_up()  # the first call allocates what libraries keep
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
    for reserved, (size, how) in device.reserved_memory().items():
        yield Measurement.single(reserved, "byte", size, how)
    if device.peak_is_total:
        less = f", less {held} bytes that were held before" if held else ""
        yield Measurement.single(name, "byte", max(peaks) - held, device.memory_method + less)
    else:
        resident = subject.resident_bytes()
        stays = "weights, batch and optimizer state" if training else "weights and batch"
        method = f"bytes of {stays} + rise during one call of the {device.memory_method}, {subject.allocator}"
        yield Measurement.single(name, "byte", resident + max(rises), method, f"of which rise {max(rises)} bytes")
        yield Measurement.single("process_peak_memory", "byte", max(peaks), f"{device.memory_method}, whole process")


def _held_by_others(subject: Subject) -> int:
    """Bytes on the device that are not the subject's: of ``vitbench.measure``'s caller; none in a worker."""
    subject.device.synchronize()
    own = subject.resident_bytes() if "model" in vars(subject) else 0
    return max(subject.device.memory_now() - own, 0)


@METRICS.measured(
    "tensor_memory",
    process="memory",
    modes=("infer", "train"),
    yields=[
        Yields("tensor_peak", "byte", "torch", "less", gates=True),
        *(
            Yields(f"tensor_peak_{part}", "byte", "torch", "less", gates=True, mode=_MODE_OF.get(part))
            for part in PARTS
        ),
    ],
    summary="exact bytes of live tensors at the worst moment of a call, and what they are",
)
def measure_tensor_memory(subject: Subject) -> Iterator[Measurement]:
    """The bytes of live tensors, followed through the dispatcher: equal on each run and machine.

    Excludes the kernels' own workspace. Raises Unsupported for compiled cells, whose code does not dispatch.
    """
    import torch

    from vitbench.metrics.support.tensor_memory import follow_call

    if subject.cell.compile:
        raise Unsupported("compiled code allocates without dispatching, so that its tensors cannot be followed")
    training = subject.cell.mode == "train"
    subject.warm_up()  # the optimizer's state exists from the second step on
    peak = follow_call(subject).peak()
    call = "training step" if training else "forward pass"
    method = f"bytes of live storages at their most during one {call}, by dispatch"
    method += f" (nn.MultiheadAttention's fast path off), torch {torch.__version__}"
    yield Measurement.single("tensor_peak", "byte", sum(peak.values()), method)
    for kind, size in peak.items():
        if training or kind not in _MODE_OF:
            yield Measurement.single(f"tensor_peak_{kind}", "byte", size, f"{method}; of these, {kind}")

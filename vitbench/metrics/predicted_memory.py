"""The peak memory of a call as predicted without running it: also for a batch that does not fit."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vitbench.core.errors import Unsupported
from vitbench.core.records import Cell, Measurement
from vitbench.core.registry import METRICS, Column, Yields
from vitbench.metrics.support.subject import Subject

if TYPE_CHECKING:
    from vitbench.metrics.support.memory_trace import BatchTrace


@METRICS.measured(
    "predicted_peak_memory",
    process="prediction",
    modes=("infer", "train"),
    yields=[
        Yields("predicted_peak_memory", "byte", "torch", "less", column=Column("predicted peak", "MB", 1e-6)),
    ],
    summary="bytes of live tensors at the worst moment of a call, predicted without allocating them",
)
def predict_peak_memory(subject: Subject) -> Iterator[Measurement]:
    """What ``tensor_peak`` measures, from traces on fake tensors.

    Raises Unsupported for devices other than the CPU, whose operators save other tensors, and as ``BatchTrace`` does.
    """
    import torch

    from vitbench.metrics.support.memory_trace import BatchTrace

    cell = subject.cell
    if subject.device.kind != "cpu":
        raise Unsupported("predicted and checked for the CPU only; vitbench fit estimates other devices")
    # a module of the caller's has no name to share its traces by, and is measured at one batch
    alone = cell.batch_size == 1 or cell.weights == "given"
    peak = BatchTrace(subject).direct(cell.batch_size) if alone else batch_trace(cell).peak(cell.batch_size)
    batches = f"at batch {cell.batch_size}" if alone else "at batches 2 and 3"
    method = f"live tensor bytes predicted from traces on fake tensors {batches}, torch {torch.__version__}"
    detail = f"at {peak.operator} of the {peak.phase} pass" if peak.phase != "optimizer" else "in the optimizer"
    yield Measurement.single("predicted_peak_memory", "byte", peak.bytes, method, detail)


def batch_trace(cell: Cell) -> BatchTrace:
    """The traces of a named model in a cell's size, classes, attention, dtype and mode, shared by all of its batches.

    Raises Unsupported as ``BatchTrace`` does.
    """
    return _batch_trace(replace(cell, batch_size=1, threads=1, memory_limit=None, weights="random", seed=0))


@functools.lru_cache(maxsize=8)
def _batch_trace(cell: Cell) -> BatchTrace:
    from vitbench.metrics.support.in_process import make_subject
    from vitbench.metrics.support.memory_trace import BatchTrace

    return BatchTrace(make_subject(cell))

"""FLOPs of one forward pass of one image: counted where every operator passes, and as two other tools count them.

A multiply-add is two FLOPs. Counted are matrix products, convolutions and attention; norms, softmax and activations
are not.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitbench.errors import Unsupported
from vitbench.metrics.subject import CHANNELS, Subject
from vitbench.other_counters import count_by_fvcore, count_by_thop
from vitbench.records import Measurement
from vitbench.registry import METRICS

if TYPE_CHECKING:
    import torch


@METRICS.measured(
    "flops",
    process="static",
    modes=("infer", "train"),
    yields={"flops": "FLOP", "macs": "MAC"},
    summary="FLOPs and multiply-adds of one image's forward pass, counted on meta",
)
def measure_flops(subject: Subject) -> Iterator[Measurement]:
    """FlopCounterMode on ``meta``: on a real device it misses fused attention on some (CPU: torch 2.13, MPS: 2.15)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    method = f"FlopCounterMode on meta, batch of 1, torch {torch.__version__}"
    with subject.on_meta(1) as (model, images), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    flops = counter.get_total_flops()
    yield Measurement.single("flops", "FLOP", flops, f"{method}; matrix products, convolutions and attention")
    yield Measurement.single("macs", "MAC", flops // 2, f"{method}; FLOPs / 2")


@METRICS.measured(
    "fvcore",
    process="counters",
    modes=("infer", "train"),
    yields={"flops_fvcore": "FLOP"},
    summary="the same as fvcore counts it (misses fused attention; adds norms)",
)
def measure_fvcore(subject: Subject) -> Iterator[Measurement]:
    """fvcore traces a real run; its figure is multiply-adds, here doubled. Whatever breaks in it is ``unsupported``."""
    method = f"2 x fvcore {importlib.metadata.version('fvcore')} FlopCountAnalysis on the CPU, batch of 1"
    model, images = _real_model(subject)
    try:
        with subject.attention(model):
            found = count_by_fvcore(model, images)
    except Unsupported as reason:
        yield Measurement.absent("flops_fvcore", "FLOP", "unsupported", str(reason), method)
        return
    missed = ", ".join(f"{name} x{count}" for name, count in sorted(found.missed.items()))
    yield Measurement.single(
        "flops_fvcore", "FLOP", found.total, method, f"operators without a formula: {missed or 'none'}"
    )


@METRICS.measured(
    "thop",
    process="counters",
    modes=("infer", "train"),
    yields={"flops_thop": "FLOP"},
    summary="the same as thop counts it (modules only; misses @, F.linear and bare parameters)",
)
def measure_thop(subject: Subject) -> Iterator[Measurement]:
    """thop hooks modules in a real run; its figure is multiply-adds, here doubled. Whatever breaks in it is
    ``unsupported``.
    """
    method = f"2 x thop {importlib.metadata.version('thop')} profile on the CPU, batch of 1"
    model, images = _real_model(subject)
    try:
        with subject.attention(model):
            found = count_by_thop(model, images)
    except Unsupported as reason:
        yield Measurement.absent("flops_thop", "FLOP", "unsupported", str(reason), method)
        return
    yield Measurement.single("flops_thop", "FLOP", found.total, method)


def _real_model(subject: Subject) -> tuple[torch.nn.Module, torch.Tensor]:
    import torch

    # torch.device("cpu"), not the cell's device: neither tool depends on it, and the GPU's memory stays untouched
    with torch.device("cpu"):
        # gradients stay on, as whoever calls these tools leaves them: without, nn.MultiheadAttention takes a path that
        # fvcore sees nothing of
        model = subject.build().to("cpu").eval()
        return model, torch.zeros(1, CHANNELS, *subject.cell.image_size)

"""Roofs of round numbers."""

from __future__ import annotations

from typing import Any

from vitbench.analysis.roofline import Ceiling, MachineRoof


def known(value: float, at: int = 0) -> Ceiling:
    return Ceiling(at=at, value=value, spread=0.01, rounds=7)


def refused(at: int = 0) -> Ceiling:
    return Ceiling(at=at, value=None, spread=0.14, rounds=25, reason="its rounds spread by 14 % (at most 10 %)")


def machine(**changes: Any) -> MachineRoof:
    """100 GFLOP/s in fp32 and 1,000 in bf16; 100 GB/s for 1 MB, 10 GB/s for 100 MB; 2 us for a dispatch."""
    fields: dict[str, Any] = {
        "device": "cpu",
        "threads": 2,
        "torch": "2.15.0",
        "compute": {"fp32": known(100e9, 1024), "bf16": known(1000e9, 2048)},
        "bandwidth": (known(100e9, 10**6), known(10e9, 10**8)),
        "dispatch": known(2e-6),
        **changes,
    }
    return MachineRoof(**fields)

"""How far a figure may move before a gate speaks: what each metric is, and the thresholds that a suite sets.

One table says of each metric whether it is exact, measured or timed, which way is better, and what a gate does with it
if nobody says otherwise. A suite's ``[[thresholds]]`` and the options of a command say otherwise. Knows no records'
values and no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from vitbench.core.errors import UsageError
from vitbench.core.records import Cell
from vitbench.core.registry import METRICS

#: What a metric is to a gate:
#:
#: ``exact``      a count or a word: no noise, whatever the machine
#: ``torch``      exact too, but it counts what torch does: only under one minor version of torch
#: ``measured``   repeats within some per cent on one machine: compared with a tolerance, there only
#: ``relative``   a time over the reference's, of several processes: tested, on one machine only
#: ``fraction``   right answers among test pictures: tested if it gates
#: ``shown``      differs between runs of the same code by more than a gate can allow, or nobody knows by how much
#: ``condition``  says what was measured and where, not how it went: not listed
#: ``unknown``    a metric that the table does not have
Kind = Literal["exact", "torch", "measured", "relative", "fraction", "shown", "condition", "unknown"]

#: Two runs of identical code on one machine are shown to be within so much of each other in nine of ten cases, and in
#: three of four where something else runs beside them (225 pairs of runs of four models, no false alarm among them). At
#: 20 % it is three of four and half of them, at 10 % none: what runs differ by alone is 11 % to either side.
RELATIVE_TOLERANCE = 0.25
#: Resident memory repeats within 3 % at worst, and within 1 % from 20 MB on;
MEASURED_TOLERANCE = 0.05
#: of smaller cells the kernel's count alone moves by up to 0.3 MB.
SMALLEST_BYTES = 500_000

#: Of an option, in characters.
_LONGEST = 300
#: Largest tolerance that is no slip of the keyboard: eleven times as much.
_LARGEST_TOLERANCE = 10.0


@dataclass(frozen=True, kw_only=True)
class Nature:
    """What a metric is to a gate; ``more_is_better`` says which way is worse, ``gates`` whether it counts unless a
    threshold says otherwise, ``tolerance`` by how much it may get worse until then (0.05: 5 %; of a fraction: 5
    points).
    """

    kind: Kind
    more_is_better: bool = False
    gates: bool = False
    tolerance: float = 0.0


#: Figures that a comparison makes of several measurements, beside those of the metrics themselves.
STATUS = "status"
CELL = "cell"
LARGEST_BATCH = "largest_batch"
RELATIVE = "relative_"

_EXACT = Nature(kind="exact", gates=True)
_BY_TORCH = Nature(kind="torch", gates=True)
_MEMORY = Nature(kind="measured", gates=True, tolerance=MEASURED_TOLERANCE)
_SHOWN = Nature(kind="shown")
_CONDITION = Nature(kind="condition")
UNKNOWN = Nature(kind="unknown")

#: Every metric of ours, by the name that its measurements have.
NATURES: Mapping[str, Nature] = {
    STATUS: _EXACT,
    # a cell that HEAD has not measured: told as not comparable, and as worse where a threshold gates it
    CELL: Nature(kind="exact", more_is_better=True),
    LARGEST_BATCH: Nature(kind="measured", more_is_better=True, gates=True),
    **dict.fromkeys(("params", "trainable_params", "params_bytes", "buffers", "buffers_bytes"), _EXACT),
    **dict.fromkeys(("params_without_gradient", "flops", "macs", "weights_memory"), _EXACT),
    # exact, but they change with the tool and miss what it misses
    **dict.fromkeys(("flops_fvcore", "flops_thop"), Nature(kind="exact")),
    **dict.fromkeys(("tensor_peak", "tensor_peak_weights", "tensor_peak_batch", "tensor_peak_activations"), _BY_TORCH),
    **dict.fromkeys(("tensor_peak_gradients", "tensor_peak_optimizer"), _BY_TORCH),
    **dict.fromkeys(("inference_peak_memory", "training_peak_memory"), _MEMORY),
    # most of it is libraries and caches
    **dict.fromkeys(
        ("process_peak_memory", "reserved_peak_memory", "process_gpu_memory", "driver_memory"),
        Nature(kind="measured", tolerance=MEASURED_TOLERANCE),
    ),
    **dict.fromkeys(
        (f"{RELATIVE}latency", f"{RELATIVE}training_step"),
        Nature(kind="relative", gates=True, tolerance=RELATIVE_TOLERANCE),
    ),
    **dict.fromkeys(
        (f"{RELATIVE}latency_cpu_time", f"{RELATIVE}training_step_cpu_time"),
        Nature(kind="relative", tolerance=RELATIVE_TOLERANCE),
    ),
    **dict.fromkeys(("latency", "latency_cpu_time", "training_step", "training_step_cpu_time"), _SHOWN),
    **dict.fromkeys(("throughput", "training_throughput"), Nature(kind="shown", more_is_better=True)),
    **dict.fromkeys(("energy_per_image", "power", "idle_power", "training_duration"), _SHOWN),
    "accuracy": Nature(kind="fraction", more_is_better=True),
    "macro_f1": Nature(kind="shown", more_is_better=True),
    **dict.fromkeys(("test_loss", "training_loss"), _SHOWN),
    **dict.fromkeys(("class_f1", "class_precision", "class_recall"), _CONDITION),
    **dict.fromkeys(("test_images", "training_images", "training_steps"), _CONDITION),
    **dict.fromkeys(("published_params", "published_flops", "published_top1"), _CONDITION),
    **dict.fromkeys(("memory_limit", "frontier_bound"), _CONDITION),
    **dict.fromkeys(("other_load", "cpu_steal", "cpu_frequency", "cpu_temperature"), _CONDITION),
    **dict.fromkeys(("gpu_clock", "gpu_temperature", "gpu_slowed"), _CONDITION),
}


def nature_of(metric: str) -> Nature:
    """What a metric is to a gate. One that other packages have registered is ``unknown``: shown, and gated only where a
    threshold names it and each side has a single figure.
    """
    return NATURES.get(metric, UNKNOWN)


class Rule(Protocol):
    """One table of a suite's ``[[thresholds]]``, or one option of a command."""

    @property
    def tolerance(self) -> float | None:
        """By how much the figure may get worse (0.05: 5 %); None leaves it to the gate."""

    @property
    def gate(self) -> bool:
        """Whether the figure counts for the exit code."""

    def covers(self, cell: Cell, metric: str) -> bool:
        """Whether it is about this figure."""


@dataclass(frozen=True)
class Threshold:
    """What the rules say of one figure; None where they are silent, and then the gate's own default counts."""

    tolerance: float | None = None
    gate: bool | None = None


def threshold_for(rules: Sequence[Rule], cell: Cell, metric: str) -> Threshold:
    """What the last of ``rules`` that covers this figure says; the others before it count for nothing."""
    for rule in reversed(rules):
        if rule.covers(cell, metric):
            return Threshold(rule.tolerance, rule.gate)
    return Threshold()


def more_is_better(metric: str) -> bool | None:
    """Of a metric that other packages have registered: what they say of it; None if they do not, or are not here."""
    found = next((one for _, one in METRICS.items() if metric in one.yields or metric in one.also_yields), None)
    return None if found is None else found.more_is_better


def known_metrics(others: Iterable[str] = ()) -> list[str]:
    """The names that a threshold can be about: ours, those of registered metrics, and ``others``."""
    registered = (name for _, metric in METRICS.items() for name in (*metric.yields, *metric.also_yields))
    names = {*NATURES, *registered, *others}
    return sorted(name for name in names if nature_of(name).kind != "condition")


def parse_tolerance(value: Any) -> float:
    """``"5%"``, ``0.05`` or ``0`` -> a fraction. Raises ValueError for anything else: a bare 5 could be meant as 5 % or
    as five times as much.
    """
    example = "such as '5%', 0.05, or 0 for no tolerance"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no tolerance, {example}")
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    found = number / 100 if text.endswith("%") else number
    if not 0 <= found <= _LARGEST_TOLERANCE:
        raise ValueError(f"{value!r} is no tolerance, {example}")
    if found >= 1 and not text.endswith("%"):
        raise ValueError(f"{value!r} could be meant as per cent: write '{text}%', or '{100 * found:g}%'")
    return found


def parse_option(text: str) -> dict[str, Any]:
    """``metric=7%``, ``metric@models=off`` -> the content of a ``[[thresholds]]`` table. Raises UsageError."""
    left, sign, value = (part.strip() for part in text.rpartition("="))
    metric, at, cells = (part.strip() for part in left.partition("@"))
    if not sign or not metric or not value or (at and not cells) or not text.isprintable() or len(text) > _LONGEST:
        raise UsageError(
            f"Option --threshold: {text[:_LONGEST]!r} is not METRIC=TOLERANCE, such as 'relative_latency=30%', "
            "'params@cifar_*=off' (not gated) or 'accuracy=on'"
        )
    content: dict[str, Any] = {"metric": metric, "cells": cells or "*"}
    if value.lower() in ("on", "off"):
        return {**content, "gate": value.lower() == "on"}
    try:
        return {**content, "tolerance": parse_tolerance(value)}
    except ValueError as error:
        raise UsageError(f"Option --threshold: {text!r}: {error}; or on, or off") from error

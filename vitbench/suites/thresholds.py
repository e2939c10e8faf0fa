"""How far a value may move before a gate fails: what its metric declares, and the thresholds that a suite sets.

Each metric declares its values' kind, direction and tolerance (core/registry.py). A suite's ``[[thresholds]]`` and the
options of a command override them. Knows no records' values and no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from vitbench.core.errors import UsageError
from vitbench.core.records import Cell
from vitbench.core.registry import METRICS, Yields

#: Resident memory repeats within 3 % at worst, and within 1 % from 20 MB on (so that memory metrics allow 5 %);
#: of smaller cells the kernel's count alone moves by up to 0.3 MB.
SMALLEST_BYTES = 500_000

#: Largest tolerance that is not a typing mistake: eleven times as much.
_LARGEST_TOLERANCE = 10.0

#: Values that a comparison derives from several measurements.
STATUS = "status"
CELL = "cell"
LARGEST_BATCH = "largest_batch"
RELATIVE = "relative_"

#: Values of records and comparisons that no metric declares.
_UNDECLARED = {
    one.name: one
    for one in (
        Yields(STATUS, "", "exact", gates=True),
        # a cell that HEAD has not measured: not comparable, and worse where a threshold gates it
        Yields(CELL, "", "exact", "more"),
        Yields(LARGEST_BATCH, "image", "measured", "more", gates=True),
        *(Yields(name, "", "condition") for name in ("frontier_bound", "frontier_predicted", "other_load")),
        *(Yields(name, "", "condition") for name in ("cpu_steal", "cpu_frequency", "cpu_temperature")),
        *(Yields(name, "", "condition") for name in ("gpu_clock", "gpu_temperature", "gpu_slowed")),
    )
}


def yields_of(name: str) -> Yields:
    """What is declared of a value. One that nobody declares is ``unknown``: shown, and gated only where a threshold
    names it and each side has a single number.
    """
    declared = METRICS.values.get(name) or _UNDECLARED.get(name)
    if declared is not None:
        return declared
    timed = METRICS.values.get(name.removeprefix(RELATIVE))
    if timed is not None and timed.kind == "time" and name.startswith(RELATIVE):
        return Yields(name, "× reference", "relative", "less", gates=timed.gates, tolerance=timed.tolerance)
    return Yields(name, "")


class Rule(Protocol):
    """One table of a suite's ``[[thresholds]]``, or one ``--threshold``."""

    @property
    def tolerance(self) -> float | None:
        """By how much the value may get worse (0.05: 5 %); None for the metric's own tolerance."""

    @property
    def gate(self) -> bool:
        """Whether the value counts for the exit code."""

    def covers(self, cell: Cell, metric: str) -> bool:
        """Whether it is about this value."""


@dataclass(frozen=True)
class Threshold:
    """What the rules set for one value; None where the metric's own default counts."""

    tolerance: float | None = None
    gate: bool | None = None


def threshold_for(rules: Sequence[Rule], cell: Cell, metric: str) -> Threshold:
    """What the last of ``rules`` that covers this value sets."""
    for rule in reversed(rules):
        if rule.covers(cell, metric):
            return Threshold(rule.tolerance, rule.gate)
    return Threshold()


def known_metrics(others: Iterable[str] = ()) -> list[str]:
    """The names that a threshold can be about: declared values, relative times, and ``others``."""
    relative = {RELATIVE + name for name, value in METRICS.values.items() if value.kind == "time"}
    names = {*METRICS.values, *_UNDECLARED, *relative, *others}
    return sorted(name for name in names if yields_of(name).kind != "condition")


def parse_fraction(value: Any) -> float:
    """``"5%"``, ``"0.05"`` or ``0.05`` -> exactly that fraction. Raises ValueError for anything but a number."""
    text = str(value).strip()
    try:
        number = Decimal(text.removesuffix("%"))  # a float of 0.7 over 100 is not the float 0.007
        return float(number.scaleb(-2) if text.endswith("%") else number)
    except ArithmeticError:
        raise ValueError(f"{value!r} is not a fraction, such as '5%' or 0.05") from None


def parse_tolerance(value: Any) -> float:
    """``"5%"``, ``0.05`` or ``0`` -> a fraction. Raises ValueError for anything else: a bare 5 could be meant as 5 % or
    as five times as much.
    """
    example = "such as '5%', 0.05, or 0 for no tolerance"
    text = str(value).strip()
    try:
        found = parse_fraction(value)
    except ValueError:
        found = -1.0
    if not 0 <= found <= _LARGEST_TOLERANCE:
        raise ValueError(f"{value!r} is not a valid tolerance, {example}")
    if found >= 1 and not text.endswith("%"):
        raise ValueError(f"{value!r} could be meant as per cent: write '{text}%', or '{written_tolerance(found)}'")
    return found


def written_tolerance(fraction: float) -> str:
    """A tolerance as files hold it: ``1.5`` -> ``"150%"``, which ``parse_tolerance`` reads as exactly that fraction."""
    return f"{Decimal(repr(fraction)).scaleb(2):f}%"


def parse_option(text: str) -> dict[str, Any]:
    """``metric=7%``, ``metric@models=off`` -> the content of a ``[[thresholds]]`` table. Raises UsageError."""
    left, sign, value = (part.strip() for part in text.rpartition("="))
    metric, at, cells = (part.strip() for part in left.partition("@"))
    if not sign or not metric or not value or (at and not cells) or not text.isprintable():
        raise UsageError(
            f"Option --threshold: {text!r} is not METRIC=TOLERANCE, such as 'relative_latency=30%', "
            "'params@cifar_*=off' (not gated) or 'accuracy=on'"
        )
    content: dict[str, Any] = {"metric": metric, "cells": cells or "*"}
    if value.lower() in ("on", "off"):
        return {**content, "gate": value.lower() == "on"}
    try:
        parse_tolerance(value)
    except ValueError as error:
        raise UsageError(f"Option --threshold: {text!r}: {error}; or on, or off") from error
    return {**content, "tolerance": value}

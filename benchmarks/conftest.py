"""The tool's own speed. Run alone, on a quiet machine: ``pytest benchmarks``. Never part of the tests."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import pytest

LINES: list[str] = []


@pytest.fixture
def say() -> Callable[[str], None]:
    """Keep a line for the end of the session."""
    return LINES.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("values")
    for line in LINES:
        terminalreporter.write_line(line)


def paired_ratio(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> tuple[float, float, float]:
    """Median, first and third quartile of the time of ``ours`` over ``theirs``, taken in turns, who begins alternating.

    The machine's speed drifts within minutes: only what is measured within the same second can be compared.
    """
    ratios = []
    for index in range(pairs):
        first, second = (ours, theirs) if index % 2 else (theirs, ours)
        a, b = _seconds(first), _seconds(second)
        ratios.append(a / b if index % 2 else b / a)
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high


def spread(values: Sequence[float]) -> str:
    """``median (first to third quartile)`` of seconds."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} s ({low:.3f} to {high:.3f})"


def spread_of_ratios(ratios: Sequence[float]) -> str:
    """``median (first to third quartile)``."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.4f} ({low:.4f} to {high:.4f})"


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin

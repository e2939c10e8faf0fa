"""Cells that took turns with the reference, made up of round numbers: what each process took is a ratio to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.reports.fabricate import ok, size
from vitbench.core.records import Cell, Measurement, NoiseCheck, Record
from vitbench.devices.host.load import OTHER_LOAD, STEAL

#: What the reference takes in each turn, in seconds.
REFERENCE_S = 0.01
#: Turns of each process, and samples of each turn.
TURNS, SAMPLES = 10, 2
REFERENCE = "reference 1 (fp32, 2 threads)"
METHOD = f"time.perf_counter around one call, torch 2.15.0; in turns with {REFERENCE}"


def timed(
    metric: str,
    ratios: Sequence[float],
    *,
    reference: Sequence[float] = (REFERENCE_S,) * TURNS,
    group: str = "",
    named: str = REFERENCE,
) -> Measurement:
    """One process a ratio: each sample is that many times what the ``reference`` (seconds, one a turn) took then."""
    return Measurement(
        metric=metric,
        unit="s",
        samples=tuple(tuple(ratio * time for time in reference for _ in range(SAMPLES)) for ratio in ratios),
        turns=tuple((SAMPLES,) * len(reference) for _ in ratios),
        reference_samples=tuple(tuple(reference) for _ in ratios),
        group=group,
        reference=named,
        method=METHOD,
    )


def paired(of: Cell, ratios: Sequence[float], *, extra: Sequence[Measurement] = (), **how: Any) -> Record:
    """A cell of a model's size and of its latency, or of its training step."""
    metric = "training_step" if of.mode == "train" else "latency"
    return ok(of, [*size(of), timed(metric, ratios, **how), *extra])


def loads(other: float | None = None, steal: float | None = None, processes: int = 3) -> list[Measurement]:
    """What was beside each process of a cell, in cores."""
    found = []
    for metric, value in ((OTHER_LOAD, other), (STEAL, steal)):
        if value is not None:
            samples = ((value,),) * processes
            found.append(Measurement(metric=metric, unit="core", samples=samples, method=f"{metric}, made up"))
    return found


def check(ratio: float, device: str = "cpu", threads: int = 2) -> NoiseCheck:
    """A process of the reference that took ``ratio`` times as long as the reference."""
    reference = (REFERENCE_S,) * TURNS
    return NoiseCheck(
        device=device,
        threads=threads,
        started_at="2026-01-02T03:04:06+00:00",
        samples=tuple(ratio * time for time in reference),
        reference_samples=reference,
    )


def tables(page: str) -> list[list[dict[str, str]]]:
    """The tables of a Markdown page, each a list of its lines: heading -> text."""
    found: list[list[dict[str, str]]] = []
    headings: list[str] = []
    for line in page.splitlines():
        if not line.startswith("|"):
            headings = []
            continue
        texts = [text.strip().replace("\0", "|") for text in line.replace("\\|", "\0").strip("|").split("|")]
        if not headings:
            headings = texts
            found.append([])
        elif not line.startswith("|:") and not line.startswith("|-"):
            found[-1].append(dict(zip(headings, texts, strict=True)))
    return found

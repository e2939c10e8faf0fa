"""Cells that took turns with the reference, made up of round numbers: what each process took is a ratio to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.reports.fabricate import ok, size
from vitbench.core.records import Cell, Measurement, NoiseCheck, Record
from vitbench.devices.host.load import OTHER_LOAD, STEAL
from vitbench.reports.markdown.tables import table_text
from vitbench.reports.model.main_tables import main_tables
from vitbench.reports.model.noise import noise_floors
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run

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


def section(page: str, title: str) -> str:
    """What is folded under a title, with what is folded inside; empty without such a section."""
    _, found, rest = page.partition(f"\n<details>\n<summary>{title}</summary>\n")
    lines: list[str] = []
    depth = 1 if found else 0
    for line in rest.splitlines():
        depth += (line == "<details>") - (line == "</details>")
        if depth == 0:
            break
        lines.append(line)
    return "\n".join(lines)


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


def main_lines(runs: Sequence[Run]) -> list[list[dict[str, str]]]:
    """The lines of each main table with all of its columns, those that a page folds, too."""
    found = main_tables(build_rows(runs), noise_floors(runs))
    parts = [[tables(table_text(part))[0] for part in (one.shown, one.left_out)] for one in found]
    return [[{**shown, **rest} for shown, rest in zip(*pair, strict=True)] for pair in parts]

"""How sure a run can be: the reference against itself, the load beside it, cells that were disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitbench.core.records import NoiseCheck, Record, format_image_size
from vitbench.core.stats.statistics import Estimate, estimate, median, noise_floor, process_medians
from vitbench.devices.host.load import GPU_SLOWED, OTHER_LOAD, STEAL
from vitbench.reports.format import cell_text, number, percent, table
from vitbench.reports.model.rows import Figure, figure, mean_of
from vitbench.reports.model.runs import Run

#: Times that take turns with the reference.
TIMED = ("latency", "training_step")
#: From these on a cell counts as disturbed: cores busy with something else, cores' time stolen by the host, and how far
#: the reference's own speed moved while the cell was measured (its slowest tenth of turns over its fastest).
DISTURBING_LOAD = 0.25
DISTURBING_STEAL = 0.02
#: and the share of the time in which heat or a power limit slowed a GPU.
DISTURBING_SLOWDOWN = 0.01
DISTURBING_DRIFT = 1.5


@dataclass(frozen=True)
class Certificate:
    """What one run knows of its noise on one device with one thread count.

    ``paired``: whether cells took turns with the reference. ``same`` is the reference over itself, which should be 1,
    None if it never played against itself; ``floor`` the smallest difference between two cells of ``processes``
    processes each that the run tells apart (0.02: 2 %), None with fewer than two checks; ``drift`` the slowest over the
    fastest tenth of the reference's turns beside cells.
    """

    run: str
    device: str
    threads: int
    paired: bool
    same: Estimate | None
    floor: float | None
    processes: int
    drift: float | None


def certify(run: Run) -> list[Certificate]:
    """One certificate for each device and thread count that a run timed cells with."""
    places: dict[tuple[str, int], list[Figure]] = {}
    for record in run.records:
        for one in _timed(record):
            places.setdefault((record.cell.device, record.cell.threads), []).append(one)
    found = []
    for (device, threads), figures in places.items():
        checks = [check for check in run.noise if (check.device, check.threads) == (device, threads)]
        ratios = [_ratios(check) for check in checks]
        processes = round(median([len(one.measurement.samples) for one in figures if one.measurement]))
        medians = process_medians(ratios)
        floor = noise_floor(medians, processes) if len(medians) > 1 and min(medians) > 0 else None
        turns = [
            x for one in figures if one.measurement for process in one.measurement.reference_samples for x in process
        ]
        same = estimate(ratios) if ratios else None
        found.append(Certificate(run.name, device, threads, bool(turns), same, floor, processes, _drift(turns)))
    return found


def noise_floors(runs: Sequence[Run]) -> dict[tuple[str, str, int], float]:
    """The noise floor of each run's device and thread count, where it is known."""
    return {
        (one.run, one.device, one.threads): one.floor for run in runs for one in certify(run) if one.floor is not None
    }


def disturbances(record: Record) -> list[str]:
    """Why a timed cell's figures are to be doubted; empty if nothing was in its way, or nothing is known."""
    found = []
    load, steal = mean_of(record, OTHER_LOAD), mean_of(record, STEAL)
    if load is not None and load >= DISTURBING_LOAD:
        found.append(f"{number(load, 2)} cores busy with something else")
    if (mean_of(record, GPU_SLOWED) or 0.0) >= DISTURBING_SLOWDOWN:
        found.append("heat or a power limit held the GPU's clock down")
    if steal is not None and steal >= DISTURBING_STEAL:
        found.append(f"{number(steal, 2)} cores' time taken by the host")
    for one in _timed(record):
        turns = [x for process in one.measurement.reference_samples for x in process] if one.measurement else []
        drift = _drift(turns)
        if drift is not None and drift >= DISTURBING_DRIFT:
            found.append(f"the machine's own speed moved {number(drift, 2)} times")
    return found


def noise_section(runs: Sequence[Run]) -> str:
    """The certificate of each run in words, and the cells that were disturbed; empty if nothing was timed."""
    lines = [f"- {_words(one, len(runs) > 1)}" for run in runs for one in certify(run)]
    if not lines:
        return ""
    disturbed = [
        [
            *([cell_text(run.name)] if len(runs) > 1 else []),
            cell_text(record.cell.model),
            f"{cell_text(record.cell.device)} {format_image_size(record.cell.image_size)} px b{record.cell.batch_size}"
            f" {record.cell.mode}",
            cell_text("; ".join(reasons)),
        ]
        for run in runs
        for record in run.records
        if (reasons := disturbances(record))
    ]
    headings = [*(["run"] if len(runs) > 1 else []), "disturbed", "cell", "by"]
    timed = [record for run in runs for record in run.records if _timed(record)]
    if disturbed:
        tail = table(headings, disturbed, headings)
    elif any(record.measurement(OTHER_LOAD) for record in timed):
        tail = "No cell was disturbed, as far as this machine tells."
    else:
        tail = "This machine does not tell what else it did."
    return "\n\n".join(["\n".join(lines), tail, *_shortfalls(timed)])


def _shortfalls(records: Sequence[Record]) -> list[str]:
    """The cells whose figures are not as sure as the run was asked for, in one paragraph; [] if all are."""
    found = []
    for record in records:
        for one in _timed(record):
            detail = one.measurement.detail if one.measurement else ""
            relative = one.relative
            if not detail or relative is None or relative.low is None or relative.high is None:
                continue
            reached = percent(max(relative.high / relative.value, relative.value / relative.low) - 1).lstrip("+")
            cell = f"{record.cell.model} b{record.cell.batch_size} {record.cell.mode}"
            found.append(f"{cell_text(cell)} (within {reached} %: {cell_text(detail)})")
    return [f"Less sure than was asked for: {'; '.join(found)}."] if found else []


def _words(one: Certificate, name_run: bool) -> str:
    threads = f"{one.threads} thread{'s' if one.threads > 1 else ''}"
    where = ", ".join([*([cell_text(one.run)] if name_run else []), cell_text(one.device), threads])
    if one.same is None and one.paired:
        return f"**{where}**: the reference never played against itself, so that no noise floor is known."
    if one.same is None:
        return f"**{where}**: timed without the reference; times of different minutes are not to be compared."
    count = one.same.n_processes
    parts = [f"the reference against itself, {count} process{'es' if count > 1 else ''}: {_interval(one.same)}"]
    if one.floor is not None:
        parts.append(
            f"differences under **{percent(one.floor).lstrip('+')} %** (the noise floor of cells of {one.processes} "
            f"process{'es' if one.processes > 1 else ''}) are ties"
        )
    else:
        parts.append("too few to tell a noise floor")
    if one.drift is not None:
        parts.append(
            f"the machine's own speed moved {number(one.drift, 3)} times between its slowest and fastest tenth"
        )
    return f"**{where}**: " + "; ".join(parts) + "."


def _interval(same: Estimate) -> str:
    if same.low is None or same.high is None:
        return f"{same.value:.3f}"
    holds = same.low <= 1 <= same.high
    return f"{same.value:.3f} [{same.low:.3f}, {same.high:.3f}]" + (
        "" if holds else " (it should hold 1, and does not)"
    )


def _ratios(check: NoiseCheck) -> list[float]:
    return [own / other for own, other in zip(check.samples, check.reference_samples, strict=True)]


def _timed(record: Record) -> list[Figure]:
    return [one for metric in TIMED if (one := figure(record, metric)).value is not None]


def _drift(turns: Sequence[float]) -> float | None:
    """The 90th over the 10th percentile."""
    import numpy as np

    if len(turns) < 10:
        return None
    low, high = np.quantile(np.asarray(turns), [0.1, 0.9])
    return float(high / low)

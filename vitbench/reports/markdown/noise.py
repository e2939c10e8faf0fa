"""The noise of each run in words, and the cells that were disturbed."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.core.records import Cell, Record, format_image_size
from vitbench.core.stats.intervals import Estimate
from vitbench.devices.host.load import OTHER_LOAD
from vitbench.reports.format import cell_text, number, percent, table
from vitbench.reports.model.noise import NoiseLevel, disturbances, noise_levels, shortfall, timed_values
from vitbench.reports.model.runs import Run


def noise_section(runs: Sequence[Run]) -> str:
    """The noise level of each run in words, and the cells that were disturbed; empty if nothing was timed."""
    lines = [f"- {_level_text(one, len(runs) > 1)}" for run in runs for one in noise_levels(run)]
    if not lines:
        return ""
    disturbed = [
        [cell_text(text) for text in (*names, record.cell.model, _cell_name(record.cell), "; ".join(reasons))]
        for run in runs
        for names in [[run.name] if len(runs) > 1 else []]
        for record in run.records
        if (reasons := disturbances(record))
    ]
    timed = [record for run in runs for record in run.records if timed_values(record)]
    if disturbed:
        headings = [*(["run"] if len(runs) > 1 else []), "disturbed", "cell", "by"]
        tail = table(headings, disturbed, headings)
    elif any(record.measurement(OTHER_LOAD) for record in timed):
        tail = "No cell was disturbed, as far as this machine reports."
    else:
        tail = "This machine does not report what else it did."
    return "\n\n".join(["\n".join(lines), tail, *_shortfalls(timed)])


def _cell_name(cell: Cell) -> str:
    return f"{cell.device} {format_image_size(cell.image_size)} px b{cell.batch_size} {cell.mode}"


def _shortfalls(timed: Sequence[Record]) -> list[str]:
    """The cells that did not reach the precision that the run asked for, in one paragraph; [] if all did."""
    found = []
    for record, one in ((each, one) for each in timed for one in timed_values(each)):
        reached = shortfall(one)
        if reached is not None and one.measurement:
            cell = cell_text(f"{record.cell.model} b{record.cell.batch_size} {record.cell.mode}")
            found.append(f"{cell} (within {percent(reached).lstrip('+')} %: {cell_text(one.measurement.detail)})")
    return [f"Less precise than asked for: {'; '.join(found)}."] if found else []


def _level_text(one: NoiseLevel, name_run: bool) -> str:
    names = [*([one.run] if name_run else []), one.device]
    where = ", ".join([*map(cell_text, names), _count(one.threads, "thread")])
    if one.same is None and one.paired:
        return f"**{where}**: the reference was never compared with itself, so the noise floor is unknown."
    if one.same is None:
        return f"**{where}**: timed without the reference; times of different minutes are not comparable."
    parts = [f"the reference against itself, {_count(one.same.n_processes, 'process')}: {_interval(one.same)}"]
    if one.floor is not None and one.floor > 1:
        parts.append(f"too noisy to tell cells of {_count(one.processes, 'process')} apart")
    elif one.floor is not None:
        parts.append(
            f"differences under **{percent(one.floor).lstrip('+')} %** (the noise floor of cells of "
            f"{_count(one.processes, 'process')}) are ties"
        )
    else:
        parts.append("too few processes to estimate a noise floor")
    if one.drift is not None:
        drift = number(one.drift, 3)
        parts.append(f"the machine's own speed changed {drift}-fold between its slowest and fastest tenth")
    return f"**{where}**: " + "; ".join(parts) + "."


def _interval(same: Estimate) -> str:
    if same.low is None or same.high is None:
        return f"{same.value:.3f}"
    contains = "" if same.low <= 1 <= same.high else " (it should contain 1, and does not)"
    return f"{same.value:.3f} [{same.low:.3f}, {same.high:.3f}]{contains}"


def _count(count: int, thing: str) -> str:
    plural = "es" if thing.endswith("s") else "s"
    return f"{count} {thing}" + ("" if count == 1 else plural)

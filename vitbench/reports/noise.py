"""The noise of each run in words, and the cells that were disturbed or are less precise than asked for."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.core.records import Cell, format_image_size
from vitbench.core.stats.intervals import Estimate
from vitbench.devices.host.load import OTHER_LOAD
from vitbench.reports.format import number, percent
from vitbench.reports.model.noise import NoiseLevel, disturbances, noise_levels, shortfall, timed_values
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tables import Column, Table, Value, text_value


def noise_parts(runs: Sequence[Run]) -> list[Table | str]:
    """The noise level of each run in words, then the cells that were disturbed and those that are less precise than
    asked for; [] if nothing was timed.
    """
    several = len(runs) > 1
    lines: list[Table | str] = [_level_text(one, several) for run in runs for one in noise_levels(run)]
    if not lines:
        return []
    cells = [(run, record) for run in runs for record in run.records if timed_values(record)]
    disturbed = [
        (*_cell_names(run, record.cell, several), text_value("; ".join(reasons)))
        for run, record in cells
        if (reasons := disturbances(record))
    ]
    imprecise = [
        (
            *_cell_names(run, record.cell, several),
            text_value(f"{100 * short:.1f} %"),
            text_value(one.measurement.detail),
        )
        for run, record in cells
        for one in timed_values(record)
        if (short := shortfall(one)) is not None and one.measurement
    ]
    names = ["run", "model", "cell"] if several else ["model", "cell"]
    if disturbed:
        lines.append(_table([*names, "disturbed by"], disturbed))
    elif any(record.measurement(OTHER_LOAD) for _, record in cells):
        lines.append("No cell was disturbed, as far as this machine reports.")
    else:
        lines.append("This machine does not report what else it did.")
    return [*lines, *([_table([*names, "known within", "asked for"], imprecise)] if imprecise else [])]


def _table(names: Sequence[str], lines: Sequence[tuple[Value, ...]]) -> Table:
    return Table(tuple(Column(name=name) for name in names), tuple(lines))


def _cell_names(run: Run, cell: Cell, several: bool) -> list[Value]:
    name = f"{cell.device} {format_image_size(cell.image_size)} px b{cell.batch_size} {cell.mode}"
    return [text_value(text) for text in (*([run.name] if several else []), cell.model, name)]


def _level_text(one: NoiseLevel, name_run: bool) -> str:
    where = ", ".join([*([one.run] if name_run else []), one.device, _count(one.threads, "thread")])
    if one.same is None and one.paired:
        return f"{where}: the reference was never compared with itself, so the noise floor is unknown."
    if one.same is None:
        return f"{where}: timed without the reference; times of different minutes are not comparable."
    parts = [f"the reference against itself, {_count(one.same.n_processes, 'process')}: {_interval(one.same)}"]
    if one.floor is not None and one.floor > 1:
        parts.append(f"too noisy to tell cells of {_count(one.processes, 'process')} apart")
    elif one.floor is not None:
        parts.append(
            f"differences under {percent(one.floor).lstrip('+')} % (the noise floor of cells of "
            f"{_count(one.processes, 'process')}) are ties"
        )
    else:
        parts.append("too few processes to estimate a noise floor")
    if one.drift is not None:
        drift = number(one.drift, 3)
        parts.append(f"the machine's own speed changed {drift}-fold between its slowest and fastest tenth")
    return f"{where}: " + "; ".join(parts) + "."


def _interval(same: Estimate) -> str:
    if same.low is None or same.high is None:
        return f"{same.value:.3f}"
    contains = "" if same.low <= 1 <= same.high else " (it should contain 1, and does not)"
    return f"{same.value:.3f} [{same.low:.3f}, {same.high:.3f}]{contains}"


def _count(count: int, thing: str) -> str:
    plural = "es" if thing.endswith("s") else "s"
    return f"{count} {thing}" + ("" if count == 1 else plural)

"""Measure the machine's roof, a fresh process a round, and the time of a run's cells at it, by operator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitbench.analysis.roof_shares import TIMED, Work, roof_time
from vitbench.analysis.roofline import Ceiling, MachineRoof, Sweep, best_of, ceiling_of
from vitbench.core import run_folder as store
from vitbench.core.errors import DeviceError, RunFolderError, Unsupported, UsageError, WorkerError
from vitbench.core.files import refuse_links
from vitbench.core.records import DTYPES, Record
from vitbench.devices import canonical_device_name, open_device, split_name
from vitbench.devices.host.environment import capture_environment, default_threads, usable_cores
from vitbench.executors.conversation import ask
from vitbench.executors.launcher import Launcher, libraries_of, make_launcher
from vitbench.executors.protocol import Describe, MeasureRoof, TraceWork
from vitbench.reports.model.roof import RoofedCell, roofline_json
from vitbench.reports.model.values import value_of
from vitbench.runner.folder import environment_differences, locked
from vitbench.runner.quiet import Judge

Note = Callable[[str], None]
#: kind, dtype, and the size of a kernel of the sweep
_Kernel = tuple[str, str, int]
#: How long a round may take (s).
_ROUND_S = 120.0


def roof_alone(
    device: str = "auto",
    threads: int | None = None,
    dtypes: Sequence[str] = (),
    note: Note = lambda text: None,
) -> MachineRoof:
    """The roof of one device; by default with all physical cores, in fp32 and the lower precision of autocast.

    Raises UsageError for an unknown device, dtype, or more threads than cores.
    """
    name = canonical_device_name(device)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UsageError(f"Option --dtypes: {dtype!r} is not one of {', '.join(DTYPES)}")
    if threads is not None and threads > usable_cores():
        raise UsageError(f"Option --threads: there are {usable_cores()} cores here, not {threads}. Give fewer")
    with make_launcher() as launcher:
        described = _describe(launcher, note)
        found = list(described["devices"])
        if name == "auto":
            name = next((one for one in found if open_device(one).asynchronous), found[0])
        if name not in found:
            raise DeviceError(f"Device {name!r} is not there. Found: {', '.join(found)}. See: vitbench list devices")
        torch = described["libraries"]["versions"]["torch"]
        cores = threads or default_threads()
        return measure_roof(launcher, name, cores, dtypes or ("fp32", "amp"), torch=torch, note=note)


def add_roof(folder: Path, note: Note = lambda text: None) -> list[Path]:
    """Measure the roof of the devices and threads of a run's timed cells, in the dtypes that these compute in, and the
    cells' time at it; write ``roofline.json`` and the report. Returns what was written.

    Raises RunFolderError if the folder holds no timed cell, or none that was measured in the present environment,
    Unsupported if all of the roof's compute or bandwidth is refused.
    """
    from vitbench.reports import write_report

    records = [one for one in store.read_records(folder) if not one.cell.tests]
    timed = [one for one in records if value_of(one, TIMED[one.cell.mode]).value is not None]
    if not timed:
        raise RunFolderError(f"{folder} has no timed cell, which a roof could be compared with. Give another run")
    refuse_links(folder)
    with locked(folder), make_launcher(libraries_of({one.cell.model for one in timed})) as launcher:
        described = _describe(launcher, note)
        timed = _of_this_environment(folder, timed, described)
        places: dict[tuple[str, int], list[Record]] = {}
        for record in timed:
            places.setdefault((record.cell.device, record.cell.threads), []).append(record)
        roofs, cells = [], {}
        torch = described["libraries"]["versions"]["torch"]
        for (name, count), records in places.items():
            dtypes = [record.cell.dtype for record in records]
            roof = measure_roof(launcher, name, count, dtypes, torch=torch, note=note)
            if not any(one.value for one in roof.compute.values()) or not any(one.value for one in roof.bandwidth):
                name, reason = next(iter(roof.refused.items()))
                raise Unsupported(f"No share without a roof: {name}: {reason}. Nothing was written")
            roofs.append(roof)
            for number, record in enumerate(records, 1):
                note(f"[{number}/{len(records)}] {record.cell.label}: tracing its operators")
                cells[record.cell.id] = _roofed(record, roof, launcher)
        store.write_atomically(folder / store.ROOFLINE, roofline_json(roofs, cells).encode("utf-8"))
        return [folder / store.ROOFLINE, *write_report([folder], folder)]


def measure_roof(
    launcher: Launcher,
    device: str,
    threads: int,
    dtypes: Sequence[str],
    *,
    torch: str,
    sweep: Sweep | None = None,
    note: Note = lambda text: None,
) -> MachineRoof:
    """The roof by rounds of all kernels in fresh processes: after ``sweep.rounds`` only of those whose rounds spread.
    ``amp`` stands for two of the ``dtypes``.

    A kernel beside which other programs used more cores than its threads leave free has no value in that round.
    """
    sweep = sweep or Sweep()
    low = open_device(device).amp_dtype
    named = (("fp32", low) if dtype == "amp" else (dtype,) for dtype in dtypes)
    kinds = list(dict.fromkeys(one for some in named for one in some))
    judge = Judge(threads, on_host=split_name(device)[0] == "cpu")
    values: dict[_Kernel, list[float]] = {}
    reasons: dict[_Kernel, str] = {}
    task = MeasureRoof(
        device=device,
        threads=threads,
        products=tuple((dtype, size) for dtype in kinds for size in sweep.sizes),
        working_sets=sweep.working_sets or None,
        dispatch=True,
        kernel_s=sweep.kernel_s,
    )
    begin = time.monotonic()
    note(f"Measuring the roof of {device}, {threads} thread{'s' if threads > 1 else ''}: at most {sweep.seconds:g} s")
    for number in range(1, sweep.most_rounds + 1):
        for answer in ask(launcher, task, timeout_s=_ROUND_S):
            kernel = answer["kind"], answer["dtype"], answer["at"]
            found = values.setdefault(kernel, [])
            if answer["value"] is None:
                reasons[kernel] = answer["reason"]
            elif not judge.disturbs(answer["other_load"]):
                found.append(answer["value"])
        roof = _roof_of(device, threads, torch, kinds, values, reasons)
        if number < sweep.rounds:
            continue
        again = [kernel for kernel in values if kernel not in reasons and _ceiling(roof, *kernel).value is None]
        if not again or time.monotonic() - begin > sweep.seconds:
            break
        if number == sweep.rounds:
            note(f"More rounds of what spreads, or was disturbed: {', '.join(roof.refused)}")
        task = replace(
            task,
            products=tuple((dtype, size) for kind, dtype, size in again if kind == "compute"),
            working_sets=tuple(size for kind, _, size in again if kind == "bandwidth"),
            dispatch=any(kind == "dispatch" for kind, _, _ in again),
        )
    return roof


def _roof_of(
    device: str,
    threads: int,
    torch: str,
    dtypes: Iterable[str],
    values: Mapping[_Kernel, Sequence[float]],
    reasons: Mapping[_Kernel, str],
) -> MachineRoof:
    compute = {}
    for dtype in dtypes:
        sizes = {kernel[2]: found for kernel, found in values.items() if kernel[:2] == ("compute", dtype)}
        reason = next((text for kernel, text in reasons.items() if kernel[:2] == ("compute", dtype)), "")
        compute[dtype] = best_of(sizes, reason)
    *triads, dispatch = (
        ceiling_of(kernel[2], found, reasons.get(kernel, ""))
        for kernel, found in sorted(values.items())
        if kernel[0] != "compute"
    )
    return MachineRoof(
        device=device, threads=threads, torch=torch, compute=compute, bandwidth=tuple(triads), dispatch=dispatch
    )


def _ceiling(roof: MachineRoof, kind: str, dtype: str, at: int) -> Ceiling:
    """What the rounds of a kernel are for."""
    if kind == "bandwidth":
        return next(one for one in roof.bandwidth if one.at == at)
    return roof.compute[dtype] if kind == "compute" else roof.dispatch


def _roofed(record: Record, roof: MachineRoof, launcher: Launcher) -> RoofedCell:
    """A cell at the roof, or why it has none."""
    try:
        work = ask(launcher, TraceWork(cell=record.cell))
        if reason := work[0].get("unsupported"):
            raise Unsupported(reason)
        return RoofedCell(environment=record.environment, time=roof_time([Work(**one) for one in work], roof))
    except (Unsupported, WorkerError) as error:
        return RoofedCell(environment=record.environment, time=None, unavailable=str(error))


def _of_this_environment(folder: Path, records: Sequence[Record], described: Mapping[str, Any]) -> list[Record]:
    """The records that were measured on this machine as it is now. Raises RunFolderError without any."""
    environments = store.read_environment(folder)["environments"]
    differences = {}
    for name in dict.fromkeys(record.environment for record in records):
        known = environments.get(name)
        if known is None:
            differences[name] = ["environment.json does not describe it"]
            continue
        devices = {one: described["devices"].get(one) for one in known.get("devices") or {}}
        differences[name] = list(environment_differences(known, capture_environment(described["libraries"], devices)))
    here = [record for record in records if not differences[record.environment]]
    if not here:
        named = "; ".join(next(iter(differences.values()))[:3])
        raise RunFolderError(
            f"The run in {folder} was measured in another environment ({named}): this machine's roof says nothing of "
            "it. Measure the roof there, or the run here"
        )
    return here


def _describe(launcher: Launcher, note: Note) -> Mapping[str, Any]:
    note("Loading torch, looking for devices ...")
    launcher.wait_until_ready()
    (described,) = ask(launcher, Describe())
    return described

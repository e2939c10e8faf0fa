"""Runs: their records, and where they were measured. Host, user and folder names are left out of reports."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitbench.core import run_folder as store
from vitbench.core.records import NoiseCheck, Record
from vitbench.reports.model.roof import Roof, read_roof

_LIBRARIES = ("torch", "torchvision", "timm", "fvcore", "thop")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The records of one run; ``environment`` as in ``environment.json``, empty if unknown; ``noise`` what the
    reference took against itself; ``roof`` the machine's, where ``vitbench roofline`` measured it.
    """

    name: str
    records: Sequence[Record]
    environment: Mapping[str, Any] = field(default_factory=dict)
    noise: Sequence[NoiseCheck] = ()
    roof: Roof | None = None


def read_runs(folders: Iterable[Path | str]) -> list[Run]:
    """One Run a folder, named like the folder; of equal names the later ones get a number.

    Raises RunFolderError for a folder without a run.
    """
    paths = [Path(folder) for folder in folders]
    return [_read_run(name, path) for name, path in zip(run_names(paths), paths, strict=True)]


def _read_run(name: str, folder: Path) -> Run:
    records = store.read_records(folder)
    environment, noise = store.read_environment(folder), store.read_noise(folder)
    return Run(name=name, records=records, environment=environment, noise=noise, roof=read_roof(folder, records))


def run_names(folders: Sequence[Path]) -> list[str]:
    """A different name for each folder, without the path to it: ``a``, ``b``, ``a (2)``."""
    names: list[str] = []
    for folder in folders:
        base = folder.resolve().name or "run"
        name, number = base, 2
        while name in names:
            name, number = f"{base} ({number})", number + 1
        names.append(name)
    return names


@dataclass(frozen=True)
class Machine:
    """The facts of each environment, the versions of vitbench, and the commands of the run's sessions."""

    environments: tuple[tuple[str, ...], ...]
    versions: tuple[str, ...]
    commands: tuple[str, ...]


def planned_cells(run: Run) -> int:
    """How many cells the run has when it is complete, by its last session that knows; 0 if none does."""
    planned = [session.get("planned_cells") for session in run.environment.get("sessions") or []]
    return next((count for count in reversed(planned) if count), 0)


def machine_of(run: Run) -> Machine:
    """What is known of the environments that a record names, and of the commands."""
    environments = _mapping(run.environment.get("environments"))
    named = list(dict.fromkeys(record.environment for record in run.records))
    devices = {record.cell.device for record in run.records}
    known = [_facts(_mapping(environments[name]), devices) for name in named if name in environments]
    sessions = [_mapping(session) for session in run.environment.get("sessions") or []]
    versions = dict.fromkeys(text for session in sessions if (text := _version(session)))
    commands = dict.fromkeys(str(session["command_line"]) for session in sessions if session.get("command_line"))
    return Machine(tuple(filter(None, known)), tuple(versions), tuple(commands))


def usable_cores(run: Run) -> int | None:
    """The logical cores that the run could use; None if unknown, or if its environments differ."""
    environments = _mapping(run.environment.get("environments"))
    systems = [_mapping(_mapping(environments.get(record.environment)).get("system")) for record in run.records]
    found = {system.get("usable_cores") for system in systems}
    return next(iter(found)) if len(found) == 1 else None


def _facts(environment: Mapping[str, Any], devices: Collection[str]) -> tuple[str, ...]:
    system = _mapping(environment.get("system"))
    libraries = _mapping(environment.get("libraries"))
    versions = _mapping(libraries.get("versions"))
    facts = [str(system["cpu"])] if system.get("cpu") else []
    if system.get("usable_cores"):
        facts.append(f"{system['usable_cores']} usable of {system.get('logical_cores', '?')} logical cores")
    memory = [value for key in ("memory_bytes", "container_memory_bytes") if (value := system.get(key))]
    if memory:
        facts.append(f"{min(memory) / 1e9:.1f} GB of memory")
    described = _mapping(environment.get("devices"))
    facts += [_device(name, _mapping(described[name])) for name in sorted(devices) if name in described]
    facts += [str(system["os"])] if system.get("os") else []
    facts += [f"Python {system['python']}"] if system.get("python") else []
    facts += [f"{name} {versions[name]}" for name in _LIBRARIES if versions.get(name)]
    facts += ["a debug build of torch"] if libraries.get("debug_build") else []
    return tuple(filter(None, facts))


def _device(name: str, facts: Mapping[str, Any]) -> str:
    """``cuda:0 is NVIDIA H200 (150.1 GB)``; nothing for a processor, which is named already."""
    if name == "cpu" or not facts.get("name"):
        return ""
    memory = facts.get("memory_bytes")
    return f"{name} is {facts['name']}" + (f" ({memory / 1e9:.1f} GB)" if memory else "")


def _version(session: Mapping[str, Any]) -> str:
    if not session.get("vitbench"):
        return ""
    version, commit = f"vitbench {session['vitbench']}", str(session.get("commit") or "")
    changes = "+changes" if "+changes" in commit else ""
    return f"{version} (commit {commit[:10]}{changes})" if commit else version


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

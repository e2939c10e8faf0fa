"""Runs: their records, and where they were measured. Host, user and folder names are left out of reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitbench.core import run_folder as store
from vitbench.core.records import NoiseCheck, Record
from vitbench.reports.model.roof import Roof, read_roof


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


def planned_cells(run: Run) -> int:
    """How many cells the run has when it is complete, by its last session that knows; 0 if none does."""
    planned = [session.get("planned_cells") for session in run.environment.get("sessions") or []]
    return next((count for count in reversed(planned) if count), 0)


def usable_cores(run: Run) -> int | None:
    """The logical cores that the run could use; None if unknown, or if its environments differ."""
    environments = as_mapping(run.environment.get("environments"))
    systems = [as_mapping(as_mapping(environments.get(record.environment)).get("system")) for record in run.records]
    found = {system.get("usable_cores") for system in systems}
    return next(iter(found)) if len(found) == 1 else None


def as_mapping(value: Any) -> Mapping[str, Any]:
    """What a file says where a mapping should be; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}

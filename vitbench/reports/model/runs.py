"""Run folders as the reports see them: a name, records, and where they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitbench.core import run_folder as store
from vitbench.core.records import NoiseCheck, Record


@dataclass(frozen=True, kw_only=True)
class Run:
    """The records of one run; ``environment`` as in ``environment.json``, empty if unknown; ``noise`` what the
    reference took against itself.
    """

    name: str
    records: Sequence[Record]
    environment: Mapping[str, Any] = field(default_factory=dict)
    noise: Sequence[NoiseCheck] = ()


def read_runs(folders: Iterable[Path | str]) -> list[Run]:
    """One Run a folder, named like the folder; of equal names the later ones get a number.

    Raises RunFolderError for a folder that is none.
    """
    paths = [Path(folder) for folder in folders]
    return [
        Run(
            name=name,
            records=store.read_records(path),
            environment=store.read_environment(path),
            noise=store.read_noise(path),
        )
        for name, path in zip(run_names(paths), paths, strict=True)
    ]


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

"""Find stored runs under some folders: run folders of vitbench and files of pytest-benchmark, by time."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from vitbench.core.errors import RunFolderError, UsageError, VitbenchError
from vitbench.core.records import Record
from vitbench.core.run_folder import RECORDS, DamagedRecordWarning, read_environment, read_records
from vitbench.core.text import one_line
from vitbench.regression.pytest_benchmark_json import (
    StoredRun,
    digest_of,
    is_stored_run,
    parse_time,
    read_stored_run,
    times_in,
)

#: Folders that hold no runs: version control, installed packages and caches.
_SKIPPED = frozenset({".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", ".tox", ".mypy_cache"})


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run folder with the records that have a date."""

    path: Path
    name: str
    records: tuple[Record, ...]
    environment: Mapping[str, Any]

    @property
    def began(self) -> datetime:
        """When its first record was started."""
        return min(time_of(record) for record in self.records)


_Run = TypeVar("_Run", RunFolder, StoredRun)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The runs by time, and in one line each what was skipped and why."""

    folders: tuple[RunFolder, ...]
    stored: tuple[StoredRun, ...]
    problems: tuple[str, ...]


def find_runs(places: Sequence[Path | str]) -> Found:
    """Read run folders and files of pytest-benchmark under ``places``, at any depth.

    Copies of a run count once, as do files made from a run folder that is here as well. Raises UsageError for a place
    that does not exist, and if there is no run at all.
    """
    folders: list[RunFolder] = []
    stored: list[StoredRun] = []
    problems: list[str] = []
    seen: set[Path] = set()
    for place in map(Path, places):
        if not place.exists():
            raise UsageError(f"{place} does not exist. Give a folder of runs, or JSON of pytest-benchmark")
        place = place.parent if place.name == RECORDS and place.is_file() else place
        for path in [place] if place.is_file() else _walk(place, problems):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            if path.is_dir():
                folders += _read_folder(path, place, problems)
            elif path == place or is_stored_run(path):
                try:
                    stored.append(read_stored_run(path))
                except UsageError as error:
                    problems.append(one_line(str(error)))
    folders = _without_copies(folders, problems)
    stored = _not_made_from(folders, stored)
    if not folders and not stored:
        why = f" ({problems[0]})" if problems else ""
        raise UsageError(
            f"No run under {', '.join(map(str, places))}{why}. Give a folder that vitbench run has written into, or "
            "one with JSON of pytest-benchmark"
        )
    return Found(folders=tuple(folders), stored=tuple(stored), problems=tuple(problems))


def time_of(record: Record) -> datetime:
    """When the record was started."""
    return parse_time(record.started_at) or datetime.fromtimestamp(0, UTC)


def _walk(place: Path, problems: list[str]) -> Iterable[Path]:
    """Yield the run folders below ``place`` (or itself), and the files that may be pytest-benchmark's, by name."""

    def note(error: OSError) -> None:
        problems.append(one_line(f"{error.filename} skipped: {error.strerror}"))

    for name, below, files in os.walk(place, onerror=note):
        path = Path(name)
        if RECORDS in files:
            below.clear()  # everything in a run folder belongs to that run
            yield path
            continue
        below[:] = sorted(one for one in below if one not in _SKIPPED)
        yield from (path / file for file in sorted(files) if file.endswith(".json"))


def _read_folder(path: Path, place: Path, problems: list[str]) -> list[RunFolder]:
    """Read a run folder; if that fails, return nothing and add a problem."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DamagedRecordWarning)
            records = read_records(path)
        environment: Mapping[str, Any] = {}
        try:
            environment = read_environment(path)
        except RunFolderError as error:  # costs the commits, not the run
            problems.append(one_line(f"Commits and machine of this run are unknown: {error}"))
    except (VitbenchError, OSError, ValueError) as error:
        problems.append(one_line(f"{path} skipped: {error}"))
        return []
    damaged = [one for one in caught if issubclass(one.category, DamagedRecordWarning)]
    if damaged:
        count = f"{len(damaged)} line{'s' if len(damaged) > 1 else ''}"
        problems.append(one_line(f"{path}: {count} of {RECORDS} skipped: {damaged[0].message}"))
    dated = tuple(record for record in records if parse_time(record.started_at) is not None)
    if not dated:
        problems.append(one_line(f"{path} skipped: it holds no record{' with a date' if records else ''}"))
        return []
    relative = path.relative_to(place) if path != place else Path(path.resolve().name)
    return [RunFolder(path=path, name=relative.as_posix(), records=dated, environment=environment)]


def _without_copies(folders: Sequence[RunFolder], problems: list[str]) -> list[RunFolder]:
    found: dict[str, RunFolder] = {}
    for one in sorted(folders, key=lambda folder: folder.began):
        first = found.setdefault(digest_of(one.records), one)
        if first is not one:
            problems.append(one_line(f"{one.path} skipped: it is a copy of {first.path}"))
    return _with_unique_names(found.values())


def _not_made_from(folders: Sequence[RunFolder], stored: Sequence[StoredRun]) -> list[StoredRun]:
    """The runs of pytest-benchmark by time, less the exports of a folder that is here, or of part of it (as
    ``--models`` writes), and less the exports that a later one of the same run contains.
    """
    known = {digest_of(one.records) for one in folders}
    measured = [times_in(one.records) for one in folders]
    kept = [
        one
        for one in stored
        if one.digest not in known and not (one.times and any(one.times <= times for times in measured))
    ]
    kept = [one for one in kept if not (one.times and any(one.times < other.times for other in kept))]
    return sorted(_with_unique_names(kept), key=lambda one: one.at)


def _with_unique_names(runs: Iterable[_Run]) -> list[_Run]:
    """Number the runs of one name: ``main``, ``main (2)``."""
    counts: dict[str, int] = {}
    named = []
    for one in runs:
        counts[one.name] = counts.get(one.name, 0) + 1
        number = counts[one.name]
        named.append(one if number == 1 else dataclasses.replace(one, name=f"{one.name} ({number})"))
    return named

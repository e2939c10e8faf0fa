"""Keep records: one append-only file, one record a line, on the disk before the next cell starts.

A run folder holds ``records.jsonl`` (records), ``environment.json`` (where and how it ran), ``noise.jsonl`` (the
reference against itself), ``suite.toml`` (the suite as run), ``checkpoints/`` and the report. A line that cannot be
read is moved to ``records.damaged.jsonl`` and its cell is measured again; nothing is thrown away.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitbench.errors import RunFolderError, StorageError, VitbenchError
from vitbench.records import NoiseCheck, Record

RECORDS = "records.jsonl"
DAMAGED = "records.damaged.jsonl"
ENVIRONMENT = "environment.json"
SUITE = "suite.toml"
NOISE = "noise.jsonl"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


class DamagedRecordWarning(UserWarning):
    """A line of records.jsonl that is no record."""


@dataclass(frozen=True)
class _Line:
    text: str
    record: Record | None
    problem: str = ""


def read_records(folder: Path) -> list[Record]:
    """The records of a run folder, in order of first appearance; a cell's last record counts.

    Damaged lines are passed over with a DamagedRecordWarning. Raises RunFolderError if ``folder`` is no run folder.
    """
    path = folder / RECORDS
    if not path.is_file():
        raise RunFolderError(
            f"{folder} is no run folder: it has no {RECORDS}. Give the folder that a run was written to"
        )
    latest: dict[str, Record] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        if line.record is None:
            warnings.warn(f"{path}, line {number}: {line.problem}; set aside", DamagedRecordWarning, stacklevel=2)
        else:
            latest[line.record.cell.id] = line.record  # a later record of the same cell keeps the first one's place
    return list(latest.values())


def set_damaged_lines_aside(folder: Path) -> list[str]:
    """Move the lines that are no records to ``records.damaged.jsonl``; returns what was wrong with each.

    The damaged text is safe on the disk before ``records.jsonl`` is replaced, in one step, by its good lines.
    """
    path = folder / RECORDS
    if not path.is_file():
        return []
    lines = _read_lines(path)
    damaged = [(number, line) for number, line in enumerate(lines, start=1) if line.record is None]
    if not damaged:
        return []
    try:
        with (folder / DAMAGED).open("a", encoding="utf-8", errors="surrogateescape") as aside:
            aside.write("".join(line.text + "\n" for _, line in damaged))
            aside.flush()
            _flush_to_disk(aside.fileno())
    except OSError as error:
        raise cannot_write(folder / DAMAGED, error) from error
    good = "".join(line.text + "\n" for line in lines if line.record is not None)
    write_atomically(path, good.encode("utf-8"))
    return [f"{RECORDS}, line {number}: {line.problem}" for number, line in damaged]


class RecordWriter:
    """Appends records to a run folder, each one whole and on the disk before ``append`` returns."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORDS
        try:
            # O_APPEND: a line goes to the end whatever else has the file open
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        except OSError as error:
            raise RunFolderError(
                f"Cannot write {self.path}: {error.strerror}. Choose another folder with --out"
            ) from error

    def append(self, record: Record) -> None:
        """Write one record. Raises StorageError if the disk does not take it; the file then ends as it did before."""
        line = (record.to_json() + "\n").encode("utf-8")
        size_before = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            _flush_to_disk(self._file)
        except OSError as error:
            os.ftruncate(self._file, size_before)  # half a line would damage the next one
            raise StorageError(
                f"Cannot write to {self.path}: {error.strerror}. The records before it are safe: "
                f"free some space, then: vitbench run --resume {self.path.parent}"
            ) from error

    def close(self) -> None:
        """Close the file; appending is over."""
        os.close(self._file)


def read_environment(folder: Path) -> dict[str, Any]:
    """``environment.json``: ``{"schema", "environments": {hash: {...}}, "sessions": [{...}]}``; empty ones if there is
    none.

    Raises RunFolderError if the file is damaged.
    """
    path = folder / ENVIRONMENT
    if not path.is_file():
        return {"schema": 1, "environments": {}, "sessions": []}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}). Move it away to go on without it") from error
    return content


def add_session(
    folder: Path, environment_hash: str, environment: Mapping[str, Any], session: Mapping[str, Any]
) -> None:
    """Note in ``environment.json`` that a session measured into this folder in this environment."""
    content = read_environment(folder)
    content["environments"][environment_hash] = dict(environment)
    content["sessions"].append({**session, "environment": environment_hash})
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / ENVIRONMENT, text.encode("utf-8"))


def add_noise(folder: Path, checks: Sequence[NoiseCheck]) -> None:
    """Append to ``noise.jsonl``. Raises StorageError if the disk does not take it."""
    if not checks:
        return
    path = folder / NOISE
    try:
        with path.open("ab") as file:
            before = file.tell()
            try:
                whole = before == 0 or path.read_bytes()[-1:] == b"\n"  # else a crash left half a line
                text = ("" if whole else "\n") + "".join(check.to_json() + "\n" for check in checks)
                file.write(text.encode("utf-8"))
                file.flush()
                _flush_to_disk(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), before)  # half a line would damage the next one
                raise
    except OSError as error:
        raise cannot_write(path, error) from error


def read_noise(folder: Path) -> list[NoiseCheck]:
    """The noise checks of a run folder; none if it has none. Lines that are none are passed over with a
    DamagedRecordWarning.
    """
    path = folder / NOISE
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    checks = []
    for number, line in enumerate(lines, start=1):
        try:
            checks += [NoiseCheck.from_json(line)] if line.strip() else []
        except ValueError as error:
            warnings.warn(f"{path}, line {number}: {error}; passed over", DamagedRecordWarning, stacklevel=2)
    return checks


def cannot_write(path: Path, error: OSError) -> VitbenchError:
    """What a failed write means: a full disk (StorageError), or a place that cannot be written (RunFolderError)."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return StorageError(f"Cannot write {path}: {error.strerror}")
    return RunFolderError(f"Cannot write {path}: {error.strerror}. Choose another folder")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step: a reader, or a crash, sees the old content or the new one, never half.

    Raises StorageError if the disk does not take it, RunFolderError if nothing can be written there.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            _flush_to_disk(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise StorageError(f"Cannot write {path}: {error.strerror}") from error


def _read_lines(path: Path) -> list[_Line]:
    # surrogateescape: damaged bytes are to survive the way to the side file
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    whole, _, rest = text.rpartition("\n")
    lines = [_parse(line) for line in whole.split("\n") if line.strip()] if whole else []
    if rest.strip():
        lines.append(_Line(rest, None, "cut off before its end"))
    return lines


def _parse(text: str) -> _Line:
    try:
        text.encode("utf-8")
        return _Line(text, Record.from_json(text))
    except ValueError as error:
        return _Line(text, None, f"damaged ({error})")


def _flush_to_disk(descriptor: int) -> None:
    os.fsync(descriptor)

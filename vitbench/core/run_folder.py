"""Keep records: one append-only file, one record a line, on the disk before the next cell starts.

A run folder holds ``records.jsonl`` (records), ``environment.json`` (where and how it ran), ``noise.jsonl`` (the
reference against itself), ``suite.toml`` (the suite as run), ``checkpoints/``, the report and, where it was measured,
``roofline.json`` (the machine's roof). A line that cannot be read is moved to ``records.damaged.jsonl`` and its cell is
measured again; nothing is thrown away.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from vitbench.core.errors import RunFolderError, StorageError, VitbenchError
from vitbench.core.files import read_json
from vitbench.core.records import Cell, NoiseCheck, Record
from vitbench.core.stats.estimates import with_fastest_reference
from vitbench.core.validation import Count, Flag, Number

RECORDS = "records.jsonl"
DAMAGED = "records.damaged.jsonl"
ENVIRONMENT = "environment.json"
SUITE = "suite.toml"
NOISE = "noise.jsonl"
ROOFLINE = "roofline.json"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
#: Marks the folder of a training, which holds no records.
TRAINING = "training.json"


class _Facts(TypedDict, total=False):
    """Of a system, its libraries, or a device."""

    os: str | None
    machine: str | None
    python: str | None
    cpu: str | None
    name: str | None
    physical_cores: Number | None
    logical_cores: Number | None
    usable_cores: Number | None
    memory_bytes: Count | None
    container_memory_bytes: Count | None
    versions: dict[str, str | None]
    debug_build: Flag | None


class _Environment(TypedDict, total=False):
    system: _Facts
    libraries: _Facts
    devices: dict[str, _Facts]


class _Session(TypedDict, total=False):
    environment: str | None
    started_at: str | None
    command_line: str | None
    vitbench: str | None
    commit: str | None
    planned_cells: Count | None


class _Environments(TypedDict):
    """What is read again of ``environment.json``."""

    schema: Count
    environments: dict[str, _Environment]
    sessions: list[_Session]


#: The end of the name of a file that is being written.
PART = ".part"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
#: Names here are devices and open files, which must be written into, never replaced.
_DEVICES = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))


class DamagedRecordWarning(UserWarning):
    """A line of records.jsonl that cannot be read."""


def iterate_records(folder: Path) -> Iterator[Record]:
    """The records of a run folder one by one, in the order in which they were written; a cell's last record counts.

    Damaged lines are skipped with a DamagedRecordWarning. Raises RunFolderError if ``folder`` is not a run folder.
    """
    path = folder / RECORDS
    if not path.is_file():
        if (folder / TRAINING).is_file():
            raise RunFolderError(
                f"{folder} holds a training, not a run: its report is {folder / 'report.md'}. To judge published "
                f"claims by it: vitbench claims {folder}"
            )
        raise RunFolderError(
            f"{folder} is not a run folder: it has no {RECORDS}. Give the folder that a run was written to"
        )
    for number, _, record in _read_lines(path):
        if isinstance(record, Record):
            yield record
        else:
            warnings.warn(f"{path}, line {number}: {record}; set aside", DamagedRecordWarning, stacklevel=2)


def read_records(folder: Path) -> list[Record]:
    """The last record of each cell of a run folder, in order of first appearance; its measurements know the run's
    ``fastest_reference``. Warns and raises as ``iterate_records`` does.
    """
    # a dict keeps the position of a key that is set again
    return with_fastest_reference(list({record.cell.id: record for record in iterate_records(folder)}.values()))


def set_damaged_lines_aside(folder: Path) -> list[str]:
    """Move damaged lines to ``records.damaged.jsonl``; returns what was wrong with each.

    The damaged text is safe on the disk before ``records.jsonl`` is replaced, in one step, by its good lines.
    """
    path = folder / RECORDS
    lines = list(_read_lines(path)) if path.is_file() else []
    damaged = [line for _, line, record in lines if isinstance(record, str)]
    if not damaged:
        return []
    with _reporting(folder / DAMAGED), (folder / DAMAGED).open("ab") as aside:
        aside.write(b"".join(line + b"\n" for line in damaged))
        aside.flush()
        _flush_to_disk(aside.fileno())
    write_atomically(path, b"".join(line + b"\n" for _, line, record in lines if isinstance(record, Record)))
    return [f"{RECORDS}, line {number}: {record}" for number, _, record in lines if isinstance(record, str)]


class RecordWriter:
    """Appends records to a run folder, each one whole and on the disk before ``append`` returns.

    ``before_write`` receives the cell, the line and the file descriptor before each write: tests inject faults there.
    """

    def __init__(self, folder: Path, before_write: Callable[[Cell, bytes, int], None] | None = None) -> None:
        self._before_write = before_write
        self.path = folder / RECORDS
        try:
            # O_APPEND: a line goes to the end whatever else has the file open
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        except OSError as error:
            raise RunFolderError(
                f"Cannot write {self.path}: {error.strerror}. Choose another folder with --out"
            ) from error
        for one in (folder, folder.parent):
            _flush_folder(one)

    def append(self, record: Record) -> None:
        """Write one record.

        Raises StorageError if the disk does not take it, and the file ends as it did before; RunFolderError if the file
        is no longer there.
        """
        line = (record.to_json() + "\n").encode("utf-8")
        try:
            with _whole_or_not_at_all(self._file):
                if self._before_write is not None:
                    self._before_write(record.cell, line, self._file)
                written = 0
                while written < len(line):
                    written += os.write(self._file, line[written:])
        except OSError as error:
            raise StorageError(
                f"Cannot write to {self.path}: {error.strerror}. The records before it are safe"
            ) from error
        if not self.path.exists():
            raise RunFolderError(
                f"{self.path} was moved or removed during the run. If you moved the folder, resume it where it is now: "
                "vitbench run --resume DIR"
            )

    def close(self) -> None:
        """Close the file; appending is over."""
        with contextlib.suppress(OSError):  # each record has been flushed, or its failure reported
            os.close(self._file)


def make_new_folder(path: Path) -> Path:
    """Make the folder ``path``, or where it is taken ``path-2`` and so on; returns the one that was made.

    Two runs that begin in the same second get one each. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}-{number}" for number in itertools.count(2)))
    while True:
        folder = path.with_name(next(names))
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder


def check_writable(folder: Path) -> None:
    """Raises RunFolderError if a run cannot be resumed in ``folder`` because nothing can be written there, StorageError
    if its disk is full.
    """
    records, probe = folder / RECORDS, folder / f".writable{PART}"
    try:
        if records.is_file():
            os.close(os.open(records, os.O_WRONLY | os.O_APPEND))
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise cannot_write(folder, error) from error
        raise RunFolderError(
            f"{folder} cannot be resumed: it cannot be written ({error.strerror}). Make it writable, or resume a copy"
        ) from error


def is_leftover(path: Path) -> bool:
    """Whether a killed run left this file of a run folder unfinished."""
    return path.name.endswith(PART) and (path.name.startswith(".") or path.parent.name == CHECKPOINTS)


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of killed runs. The caller holds the folder's lock."""
    for path in (*folder.glob(f".*{PART}"), *(folder / CHECKPOINTS).glob(f"*{PART}")):
        with contextlib.suppress(OSError):
            path.unlink()


def read_environment(folder: Path) -> dict[str, Any]:
    """``environment.json``: ``{"schema", "environments": {hash: {...}}, "sessions": [{...}]}``, empty if there is no
    file. Raises RunFolderError if it is damaged.
    """
    path = folder / ENVIRONMENT
    if not path.is_file():
        return {"schema": 1, "environments": {}, "sessions": []}
    try:
        content: dict[str, Any] = read_json(path, _Environments)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}. Make it readable, or move it away") from error
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}). Move it away to continue without it") from error
    return content


def add_session(
    folder: Path, environment_hash: str, environment: Mapping[str, Any], session: Mapping[str, Any]
) -> None:
    """Note in ``environment.json`` that a session measured into this folder in this environment."""
    content = read_environment(folder)
    content["environments"][environment_hash] = dict(environment)
    content["sessions"].append({**session, "environment": environment_hash})
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # surrogates, which stand for bytes that are not text, are escaped: UTF-8 has none
    write_atomically(folder / ENVIRONMENT, text.encode("utf-8", errors="backslashreplace"))


def add_noise(folder: Path, checks: Sequence[NoiseCheck]) -> None:
    """Append to ``noise.jsonl``. Raises StorageError if the disk does not take it."""
    if not checks:
        return
    path = folder / NOISE
    with _reporting(path), path.open("ab") as file, _whole_or_not_at_all(file.fileno()):
        whole = file.tell() == 0 or path.read_bytes()[-1:] == b"\n"  # else a crash left half a line
        text = ("" if whole else "\n") + "".join(check.to_json() + "\n" for check in checks)
        file.write(text.encode("utf-8"))
        file.flush()


def read_noise(folder: Path) -> list[NoiseCheck]:
    """The noise checks of a run folder. Damaged lines are skipped with a DamagedRecordWarning."""
    path = folder / NOISE
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    checks = []
    for number, line in enumerate(lines, start=1):
        try:
            checks += [NoiseCheck.from_json(line)] if line.strip() else []
        except ValueError as error:
            warnings.warn(f"{path}, line {number}: {error}; skipped", DamagedRecordWarning, stacklevel=2)
    return checks


def cannot_write(path: Path, error: OSError) -> VitbenchError:
    """The error for a failed write: StorageError for a full disk, else RunFolderError."""
    if error.errno in _DISK_FULL:
        return StorageError(f"Cannot write {path}: {error.strerror}")
    # Windows does not replace a file that a program has open
    close = "Close the program that has it open, or choose" if sys.platform == "win32" and path.is_file() else "Choose"
    return RunFolderError(f"Cannot write {path}: {error.strerror or error}. {close} another folder")


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """A failure to write ``path`` is one of vitbench's errors."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def _whole_or_not_at_all(descriptor: int) -> Iterator[None]:
    """What is appended in this context is on the disk after it; if that fails, the file ends as it did before."""
    size_before = os.fstat(descriptor).st_size
    try:
        yield
        _flush_to_disk(descriptor)
    except OSError:
        # half a line would damage the next one; where it has to stay, it is set aside on resume
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size_before)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step: a reader, or a crash, sees the old content or the new one, never half. A device or
    a pipe (``/dev/stdout``) is written into.

    Raises StorageError if the disk does not take it, RunFolderError if ``path`` cannot be written.
    """
    with _reporting(path):
        if path.absolute().parent in _DEVICES or (path.exists() and not path.is_file() and not path.is_dir()):
            path.write_bytes(content)
            return
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                _flush_to_disk(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
            _flush_folder(path.parent)
        except BaseException:  # Ctrl-C, too
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def _read_lines(path: Path) -> Iterator[tuple[int, bytes, Record | str]]:
    """Number and content of each line with its record, or with what is wrong with it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            found: Record | str = "cut off before its end"
            if line.endswith(b"\n"):
                try:
                    found = Record.from_json(line) if line.strip() else ""
                except ValueError as error:
                    found = f"damaged ({error})"
            if found:
                yield number, line.rstrip(b"\n"), found


def _flush_to_disk(descriptor: int) -> None:
    if sys.platform == "darwin":  # where fsync leaves data in the drive's cache
        import fcntl

        with contextlib.suppress(OSError):  # not every file system can
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to the disk: without its name a flushed file is lost. Windows cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

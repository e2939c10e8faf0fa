"""Write runs in the format of pytest-benchmark, for its ``compare`` and dashboards, and read its files.

Each timed cell becomes one benchmark: its time in seconds over the steady samples of all processes. These times are
absolute, so a comparison by pytest-benchmark includes how fast the machine was at the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

import vitbench
from vitbench.core.errors import UsageError
from vitbench.core.files import read_json
from vitbench.core.records import Measurement, Record, format_image_size
from vitbench.core.run_folder import cannot_write, write_atomically
from vitbench.core.stats.estimates import first_stage_of, quiet_times
from vitbench.core.stats.intervals import steady
from vitbench.core.stats.relative import estimate_quiet
from vitbench.core.validation import Flag, Number, is_number

#: The version of pytest-benchmark whose format this is.
FORMAT = "5.3.1"

#: The time of a cell, by mode.
TIMES = {"infer": "latency", "train": "training_step"}

#: The key of vitbench's own facts in a file.
OURS = "vitbench"


class _Commit(TypedDict, total=False):
    id: str | None
    dirty: Flag | None


class _Stats(TypedDict):
    median: Number


class _Benchmark(TypedDict):
    name: str
    fullname: NotRequired[str | None]
    stats: _Stats
    extra_info: NotRequired[dict[str, Any] | None]


class _Ours(TypedDict, total=False):
    run: str | None
    digest: str | None
    times: list[str] | None


class _File(TypedDict):
    datetime: str
    machine_info: NotRequired[dict[str, Any] | None]
    commit_info: NotRequired[_Commit | None]
    benchmarks: list[_Benchmark]
    vitbench: NotRequired[_Ours | None]


#: The file name of a stored run: a number, an underscore, anything.
_STORED = re.compile(r"(\d{4,})_.*\.json")
_LONGEST_NAME = 60


@dataclass(frozen=True, kw_only=True)
class StoredBenchmark:
    """One benchmark of a file: the median of its rounds in seconds, and the numbers and texts of its ``extra_info``."""

    name: str
    median: float
    extra: Mapping[str, float | str]


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """The content of one file. ``at`` has a time zone. ``commit`` ends in ``+changes`` if the checkout was not clean,
    and is empty if unknown. ``digest`` and ``times`` (see ``times_in``): of the run folder that the file was made from.
    """

    name: str
    at: datetime
    commit: str
    machine: Mapping[str, Any]
    benchmarks: tuple[StoredBenchmark, ...]
    digest: str = ""
    times: frozenset[str] = frozenset()


def digest_of(records: Sequence[Record]) -> str:
    """Hash which cells a run measured, when and where, to 12 hexadecimal digits."""
    facts = sorted((one.cell.id, one.started_at, one.environment, one.status) for one in records)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def times_in(records: Sequence[Record]) -> frozenset[str]:
    """Hash each timed record of a run to 12 hexadecimal digits."""
    facts = ((one.cell.id, one.started_at, one.environment) for one in records if _timed(one) is not None)
    return frozenset(hashlib.sha256(json.dumps(one).encode()).hexdigest()[:12] for one in facts)


def to_benchmarks(name: str, records: Sequence[Record], environment: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a file for the run ``name`` with its ``records``; ``environment`` as in ``environment.json``.
    Cells without a time are left out, as they would look fast.
    """
    timed = [(record, one) for record in records if (one := _timed(record)) is not None]
    at = min((moment for one in records if (moment := parse_time(one.started_at))), default=None)
    hashes = [record.environment for record, _ in timed] or [record.environment for record in records]
    described = environment.get("environments", {}).get(hashes[0], {}) if hashes else {}
    return {
        "machine_info": _machine_info(described),
        "commit_info": _commit_info(environment, at),
        "benchmarks": [_benchmark(record, one) for record, one in timed],
        "datetime": (at or datetime.fromtimestamp(0, UTC)).isoformat(),
        "version": FORMAT,
        OURS: {
            "version": vitbench.__version__,
            "run": name,
            "digest": digest_of(records),
            "times": sorted(times_in(records)),
        },
    }


def write_storage(folder: Path, runs: Sequence[tuple[str, Sequence[Record], Mapping[str, Any]]]) -> list[Path]:
    """Write runs (name, records, environment) into a storage folder of pytest-benchmark, oldest first, as
    ``<machine>/0001_<commit>_<time>_<name>.json``; numbers continue those in the folder. Returns the new files.

    Skips runs that the folder holds already, and those without any time. Raises RunFolderError for a folder that cannot
    be written, StorageError if the disk does not take a file.
    """
    there = []
    number = 0  # over all machines, so that 0002 is one run
    for path in folder.glob("*/*.json"):
        if found := _STORED.fullmatch(path.name):
            number = max(number, int(found[1]))
            with contextlib.suppress(UsageError):
                there.append(read_stored_run(path))
    known = {run.digest for run in there}
    contents = [to_benchmarks(*run) for run in runs]
    written = []
    for content in sorted(contents, key=lambda one: datetime.fromisoformat(one["datetime"])):
        times = set(content[OURS]["times"])
        if not content["benchmarks"] or content[OURS]["digest"] in known or any(times <= run.times for run in there):
            continue
        known.add(content[OURS]["digest"])
        machine = content["machine_info"]
        python = ".".join(str(machine["python_version"]).split(".")[:2]) or "unknown"
        # pytest-benchmark's folder for a kind of machine: Linux-CPython-3.11-64bit
        parts = [machine["system"] or "unknown", machine["python_implementation"], python, "64bit"]
        place = folder / _plain("-".join(parts))
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(place, error) from error
        number += 1
        path = place / f"{number:04}_{_file_name(content)}.json"
        write_file(path, content)
        written.append(path)
    return written


def write_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write the content of ``to_benchmarks``. Raises as ``write_storage`` does."""
    write_atomically(path, (json.dumps(content, indent=4, allow_nan=False) + "\n").encode())


def _timed(record: Record) -> Measurement | None:
    """The time of a record, if it has one."""
    if record.cell.tests or record.cell.mode not in TIMES:
        return None
    one = record.measurement(TIMES[record.cell.mode])
    return one if one is not None and one.status == "ok" and any(one.samples) else None


def _benchmark(record: Record, one: Measurement) -> dict[str, Any]:
    cell = record.cell
    names = ("model", "image_size", "batch_size", "num_classes", "device", "threads", "dtype", "mode", "attention")
    fields = {name: getattr(cell, name) for name in (*names, "compile", "memory_limit", "weights", "seed")}
    label = f"{cell.label.replace(' ', '-')}-t{cell.threads}-{cell.id[:6]}"  # the hash keeps different cells apart
    samples = sorted(x for process in one.samples for x in steady(process))
    return {
        "group": one.metric,
        "name": f"{one.metric}[{label}]",
        "fullname": f"vitbench::{one.metric}[{label}]",
        "params": {**fields, "image_size": format_image_size(cell.image_size), **dict(cell.options)},
        "param": label,
        "extra_info": _extra(record, one),
        "options": {
            "disable_gc": True,
            "timer": "perf_counter",
            "min_rounds": 1,
            "max_time": 0.0,
            "min_time": 0.0,
            "warmup": True,
        },
        "stats": {**stats_of(samples), "iterations": 1},
    }


def stats_of(samples: Sequence[float]) -> dict[str, Any]:
    """The statistics of pytest-benchmark, by its definitions, of at least one sample in ascending order, in seconds."""
    count, total = len(samples), math.fsum(samples)
    mean = total / count
    deviation = statistics.stdev(samples) if count > 1 else 0.0
    q1, q3 = _quartiles(samples)
    fence = 1.5 * (q3 - q1)
    inside = [x for x in samples if q1 - fence <= x <= q3 + fence]
    far, outside = sum(abs(x - mean) > deviation for x in samples), count - len(inside)
    return {
        "min": samples[0],
        "max": samples[-1],
        "mean": mean,
        "stddev": deviation,
        "rounds": count,
        "median": statistics.median(samples),
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": outside,
        "stddev_outliers": far,
        "outliers": f"{far};{outside}",
        "ld15iqr": inside[0],
        "hd15iqr": inside[-1],
        "ops": count / total if total else 0,
        "total": total,
    }


def _quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """The first and third quartile, interpolated as pytest-benchmark does for an odd number."""
    count = len(samples)
    if count == 1:
        return samples[0], samples[0]
    if count % 2 == 0:
        half = count // 2
        return statistics.median(samples[:half]), statistics.median(samples[half:])
    quarter, rest = divmod(count, 4)
    if rest == 1:
        low = 0.25 * samples[quarter - 1] + 0.75 * samples[quarter]
        return low, 0.75 * samples[3 * quarter] + 0.25 * samples[3 * quarter + 1]
    low = 0.75 * samples[quarter] + 0.25 * samples[quarter + 1]
    return low, 0.25 * samples[3 * quarter + 1] + 0.75 * samples[3 * quarter + 2]


def _extra(record: Record, timed: Measurement) -> dict[str, Any]:
    """The cell's other values that are one number, and its time relative to the reference."""
    found: dict[str, Any] = {"cell": record.cell.id, "processes": len(timed.samples), "unit": "s"}
    for one in record.measurements:
        if one.status == "ok" and len(one.samples) == 1 and len(one.samples[0]) == 1:
            found[one.metric] = one.value
    quiet, stage = quiet_times(timed), first_stage_of(timed)
    if quiet is not None:
        relative = estimate_quiet(quiet.relative, stage.relative if stage else None)
        found[f"{timed.metric}_relative"] = relative.value
        found[f"{timed.metric}_relative_low"], found[f"{timed.metric}_relative_high"] = relative.low, relative.high
    return found


def _machine_info(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The machine by pytest-benchmark's keys, without its name, which is private."""
    system = environment.get("system") or {}
    name, _, release = str(system.get("os") or "").partition(" ")
    versions = (environment.get("libraries") or {}).get("versions") or {}
    return {
        "node": "",
        "processor": system.get("machine") or "",
        "machine": system.get("machine") or "",
        "python_compiler": "",
        "python_implementation": "CPython",
        "python_implementation_version": system.get("python") or "",
        "python_version": system.get("python") or "",
        "python_build": ["", ""],
        "release": release,
        "system": name,
        "cpu": {
            "brand_raw": system.get("cpu") or "",
            "count": system.get("logical_cores"),
            "physical_cores": system.get("physical_cores"),
            "usable_cores": system.get("usable_cores"),
            "bits": 64,
        },
        "memory_bytes": system.get("memory_bytes"),
        "devices": {key: (one or {}).get("name") for key, one in (environment.get("devices") or {}).items()},
        "libraries": dict(versions),
    }


def _commit_info(environment: Mapping[str, Any], at: datetime | None) -> dict[str, Any]:
    sessions = environment.get("sessions") or []
    commit = next((str(one["commit"]) for one in sessions if one.get("commit")), "")
    return {
        "id": commit.removesuffix("+changes") or "unversioned",
        "time": at.isoformat() if at else None,
        "author_time": None,
        "dirty": commit.endswith("+changes"),
        "project": "vitbench",
        "branch": "(unknown)",
    }


def _file_name(content: Mapping[str, Any]) -> str:
    commit = content["commit_info"]["id"][:12]
    at = datetime.fromisoformat(content["datetime"]).astimezone(UTC).strftime("%Y%m%d_%H%M%S")
    changes = "_uncommitted-changes" if content["commit_info"]["dirty"] else ""
    return f"{_plain(commit)}_{at}{changes}_{_plain(content[OURS]['run'])}"


def _plain(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text)[:_LONGEST_NAME].strip("-.") or "unknown"


def is_stored_run(path: Path) -> bool:
    """Whether a file begins like one of pytest-benchmark."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return False
    # the machine comes first in such a file
    return head.lstrip().startswith(b"{") and b'"machine_info"' in head[:200]


def read_stored_run(path: Path) -> StoredRun:
    """Read a file of pytest-benchmark. Raises UsageError for any other."""
    try:
        content = read_json(path, _File)
        at = parse_time(content["datetime"])
        if at is None:
            raise ValueError("datetime is not a date")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}. Give a file of pytest-benchmark") from error
    except ValueError as error:
        raise UsageError(
            f"{path} is not JSON of pytest-benchmark ({error}). Give a file of --benchmark-save or --benchmark-json"
        ) from error
    commit = content.get("commit_info") or {}
    ours = content.get(OURS) or {}
    known = str(commit.get("id") or "")
    return StoredRun(
        name=path.stem,
        at=at,
        commit="" if known in ("", "unversioned") else known + ("+changes" if commit.get("dirty") else ""),
        machine=content.get("machine_info") or {},
        benchmarks=tuple(
            StoredBenchmark(
                name=str(one.get("fullname") or one["name"]),
                median=float(one["stats"]["median"]),
                # without lists, objects and truth values
                extra={k: x for k, x in (one.get("extra_info") or {}).items() if isinstance(x, str) or is_number(x)},
            )
            for one in content["benchmarks"]
        ),
        digest=str(ours.get("digest") or ""),
        times=frozenset(ours.get("times") or ()),
    )


def parse_time(text: str) -> datetime | None:
    """Read an ISO 8601 time, in UTC unless it has a zone. None for any other text."""
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None

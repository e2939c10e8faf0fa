"""What happens to a run whose folder, disk or clock is taken from under it: one clear line, and nothing is lost."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import vitbench
from tests.launching import SharedLauncher
from vitbench.cli import run_command
from vitbench.core import run_folder as store
from vitbench.core.errors import RunFolderError, VitbenchError
from vitbench.core.records import Record
from vitbench.devices.host import environment
from vitbench.runner import folder as folders
from vitbench.runner import measure as measuring
from vitbench.runner import timed
from vitbench.runner.progress import Progress
from vitbench.runner.run import RunSummary, resume_run

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vitbench"
SIZES = [1, 2, 3]


class JumpingClock(datetime):
    """Goes back by an hour, and a little more, each time that it is read; then it stands."""

    readings = 0
    most_readings = 10**9

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        cls.readings = min(cls.readings + 1, cls.most_readings)
        return datetime(2026, 1, 1, 12) - cls.readings * timedelta(hours=1, milliseconds=1)


@pytest.fixture(autouse=True)
def place(shared_workers: list[SharedLauncher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder: Path | None, progress: Progress | None = None, metric: str = "params") -> RunSummary:
    """Three cells; at its native size a model's parameters are had at once."""
    return vitbench.run_suite(
        "smoke",
        models=["module:tests.failing_models:works"],
        image_sizes=["native" if metric == "params" else 8],
        batch_sizes=SIZES,
        modes=["infer"],
        threads=[1],
        metrics=[metric],
        measure={"processes": 1, "seconds": 0.05, "min_samples": 2},
        data="none",
        out=folder,
        allow_import=True,
        progress=progress,
    )


class Sabotage(Progress):
    """Does something once the first cell is done."""

    def __init__(self, do: Callable[[], object]) -> None:
        super().__init__()
        self.do = do
        self.warnings: list[str] = []

    def cell_done(self, record: Record) -> None:
        super().cell_done(record)
        if self.done == 1:
            self.do()

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def sizes(folder: Path) -> list[int]:
    return sorted(record.cell.batch_size for record in store.read_records(folder))


def complete(folder: Path) -> None:
    """A resume measures what is missing, and nothing twice."""
    before = (folder / store.RECORDS).read_bytes()
    summary = resume_run(folder, allow_import=True)
    assert (folder / store.RECORDS).read_bytes().startswith(before)
    assert sorted(record.cell.batch_size for record in summary.records) == SIZES
    assert {record.status for record in summary.records} == {"ok"}
    assert (folder / "report.md").exists()


def test_a_run_whose_folder_is_moved_ends_there_and_is_completed_there(place: Path) -> None:
    folder = place / "run"
    with pytest.raises(RunFolderError, match="was moved or removed during the run") as caught:
        run(folder, Sabotage(lambda: folder.rename(place / "elsewhere")))
    assert len(str(caught.value).splitlines()) == 1
    assert sizes(place / "elsewhere") == SIZES[:2]  # the one that was under way, too
    complete(place / "elsewhere")


def test_a_disk_that_fills_up_while_half_a_line_is_written_is_one_line_and_the_run_is_completed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real limit on the size of files, which falls into the second record and then is lifted."""
    resource = pytest.importorskip("resource")
    folder = place / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / store.RECORDS).stat().st_size + 100, hard))

    try:
        with pytest.raises(VitbenchError) as caught:
            run(folder, Sabotage(limit))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    text = str(caught.value)
    assert "File too large" in text
    assert text.count("vitbench run --resume") == 1
    assert len(text.splitlines()) == 1
    assert sizes(folder) == SIZES[:1]
    assert store.set_damaged_lines_aside(folder) == []
    complete(folder)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is mounted read-only; for root nothing less is."""
    disk = place / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a disk needs root")
    try:
        run(disk / "run")
        before = {path.name: path.read_bytes() for path in (disk / "run").iterdir() if path.is_file()}
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert run_command(["run", "--resume", str(disk / "run"), "--allow-import"]) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1, errors
        assert "Read-only file system" in errors[0]
        assert {path.name: path.read_bytes() for path in (disk / "run").iterdir() if path.is_file()} == before
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        complete(disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_read_only_records_are_refused_on_resume_with_the_way_out(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(place / "run")
    records = place / "run" / store.RECORDS
    if os.geteuid() == 0:  # whom no permission stops, but a program that runs cannot be written to
        shutil.copy(shutil.which("sleep") or "/bin/sleep", records)
        busy = subprocess.Popen([str(records), "600"])
    else:
        records.chmod(0o444)
        busy = None
    try:
        assert run_command(["run", "--resume", str(place / "run"), "--allow-import"]) == 2
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1, errors
    assert "cannot be resumed" in errors[0]
    assert "Make it writable" in errors[0]


def test_a_killed_run_that_left_unfinished_files_is_completed(place: Path) -> None:
    folder = place / "run"
    run(folder)
    lines = (folder / store.RECORDS).read_bytes().splitlines(keepends=True)
    (folder / store.RECORDS).write_bytes(lines[0] + b"\0" * 512)
    (folder / f".{store.RECORDS}.abcdefgh{store.PART}").write_bytes(lines[0][:50])
    (folder / f".{store.SUITE}.abcdefgh{store.PART}").touch()
    progress = Sabotage(lambda: None)
    summary = resume_run(folder, allow_import=True, progress=progress)
    assert sorted(record.cell.batch_size for record in summary.records) == SIZES
    assert any("records.jsonl, line 2: cut off" in text for text in progress.warnings)
    assert not [path for path in folder.rglob("*") if path.name.endswith(store.PART)]
    assert (folder / store.RECORDS).read_bytes().startswith(lines[0])


def test_a_folder_in_which_a_run_was_killed_while_it_began_counts_as_empty(place: Path) -> None:
    folder = place / "run"
    folder.mkdir()
    for name in (store.LOCK, f".{store.SUITE}.abcdefgh{store.PART}", f".writable{store.PART}"):
        (folder / name).touch()
    assert sorted(record.cell.batch_size for record in run(folder).records) == SIZES
    assert not [path for path in folder.iterdir() if store.is_leftover(path)]


def test_a_clock_that_jumps_back_disturbs_neither_folders_nor_durations_nor_a_resume(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (folders, measuring, timed, environment):
        monkeypatch.setattr(module, "datetime", JumpingClock)
    first = run(None, metric="latency")
    JumpingClock.most_readings = JumpingClock.readings  # from now on it is always the same moment
    (runs,) = {first.folder.parent}
    now = f"smoke-{JumpingClock.now():%Y%m%d-%H%M%S}"
    assert first.folder.name > now  # although it was before
    (runs / now).mkdir()
    second = run(None)
    assert second.folder.name == f"{now}-2"
    for record in first.records:
        assert record.status == "ok"
        assert 0 < record.duration_s < 60
        latency = record.measurement("latency")
        assert latency is not None
        assert all(0 <= sample < 10 for process in latency.samples for sample in process)
    lines = (second.folder / store.RECORDS).read_bytes().splitlines(keepends=True)
    (second.folder / store.RECORDS).write_bytes(lines[0])
    complete(second.folder)


def test_no_duration_or_deadline_comes_from_the_wall_clock() -> None:
    """``time.time`` is nowhere, and ``datetime.now`` only where a moment is written down."""
    written_down = {"folder.py", "measure.py", "timed.py", "api.py", "environment.py", "check.py", "session.py"}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            name = f"{node.value.id}.{node.attr}"
            assert name not in ("time.time", "time.time_ns", "datetime.utcnow", "datetime.today"), path
            if name == "datetime.now":
                assert path.name in written_down, path
            assert node.attr not in ("st_mtime", "st_ctime"), path


def test_a_run_started_in_a_folder_that_is_gone_says_so_in_one_line(tmp_path: Path) -> None:
    code = "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); from vitbench.cli import run_command; sys.exit(run_command(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "--suite", "smoke"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr

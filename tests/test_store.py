"""Records reach the disk whole or not at all, and come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from vitbench import store
from vitbench.errors import RunFolderError, StorageError
from vitbench.records import Cell, Measurement, Record


def make_record(model: str = "vit_basic", batch_size: int = 1, status: str = "ok", value: float = 0.25) -> Record:
    cell = Cell(model=model, image_size=(32, 32), num_classes=10, batch_size=batch_size, device="cpu", threads=2)
    latency = Measurement(metric="latency", unit="s", samples=((value, value),), method="test")
    return Record(
        cell=cell,
        status=status,  # type: ignore[arg-type]
        measurements=(latency,),
        environment="abc",
        started_at="2026-01-01T00:00:00+00:00",
        duration_s=1.0,
    )


def write(folder: Path, *records: Record) -> None:
    writer = store.RecordWriter(folder)
    for record in records:
        writer.append(record)
    writer.close()


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [make_record(batch_size=size) for size in (1, 2)]
    write(tmp_path, *records)
    assert store.read_records(tmp_path) == records


def test_the_last_record_of_a_cell_counts_and_keeps_the_place_of_the_first(tmp_path: Path) -> None:
    first, other, again = make_record(status="timeout"), make_record(batch_size=2), make_record(value=0.5)
    write(tmp_path, first, other, again)
    assert store.read_records(tmp_path) == [again, other]
    assert len((tmp_path / store.RECORDS).read_text().splitlines()) == 3  # append-only


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda line: line[: len(line) // 2], id="half a line"),
        pytest.param(lambda line: line.replace(b'"status":"ok"', b'"status":"fine"', 1), id="unknown status"),
        pytest.param(lambda line: b"\xff\xfe" + line[2:], id="bytes that are no text"),
        pytest.param(lambda line: line.replace(b"0.25", b"NaN"), id="a sample that is no number"),
        pytest.param(lambda line: line.replace(b'"schema":2', b'"schema":99'), id="newer schema"),
        pytest.param(lambda line: b"[1, 2]", id="JSON that is no record"),
    ],
)
def test_a_damaged_line_is_set_aside_and_nothing_else_is_lost(tmp_path: Path, damage) -> None:
    records = [make_record(batch_size=size) for size in (1, 2, 3)]
    write(tmp_path, *records)
    path = tmp_path / store.RECORDS
    lines = path.read_bytes().splitlines()
    damaged = damage(lines[1])
    path.write_bytes(b"\n".join([lines[0], damaged, lines[2]]) + b"\n")
    with pytest.warns(store.DamagedRecordWarning, match="line 2"):
        assert store.read_records(tmp_path) == [records[0], records[2]]
    problems = store.set_damaged_lines_aside(tmp_path)
    assert len(problems) == 1
    assert (tmp_path / store.DAMAGED).read_bytes() == damaged + b"\n"
    assert path.read_bytes() == lines[0] + b"\n" + lines[2] + b"\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(store.read_records(tmp_path)) == 2


def test_a_line_cut_off_at_the_end_does_not_spoil_the_next_record(tmp_path: Path) -> None:
    records = [make_record(batch_size=size) for size in (1, 2)]
    write(tmp_path, *records)
    path = tmp_path / store.RECORDS
    path.write_bytes(path.read_bytes()[:-10])
    assert "cut off" in store.set_damaged_lines_aside(tmp_path)[0]
    write(tmp_path, make_record(batch_size=3))
    assert [record.cell.batch_size for record in store.read_records(tmp_path)] == [1, 3]


def test_a_file_that_may_not_grow_leaves_whole_records_and_says_how_to_go_on(tmp_path: Path) -> None:
    """A real write failure: the process may write no file beyond a size that falls into the third record."""
    script = """
import resource, sys
from pathlib import Path
from tests.test_store import make_record
from vitbench import store
folder = Path(sys.argv[1])
line = len(make_record().to_json()) + 1
resource.setrlimit(resource.RLIMIT_FSIZE, (int(2.5 * line), int(2.5 * line)))
writer = store.RecordWriter(folder)
for size in (1, 2, 3):
    writer.append(make_record(batch_size=size))
"""
    pytest.importorskip("resource")
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert "StorageError: Cannot write to" in done.stderr
    assert f"vitbench run --resume {tmp_path}" in done.stderr
    assert [record.cell.batch_size for record in store.read_records(tmp_path)] == [1, 2]
    assert store.set_damaged_lines_aside(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_full_disk_raises_storage_error_for_whole_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> tuple[int, str]:
        (tmp_path / "half").touch()
        return os.open("/dev/full", os.O_WRONLY), str(tmp_path / "half")

    (tmp_path / "report.md").write_text("old")
    monkeypatch.setattr(store.tempfile, "mkstemp", full)
    with pytest.raises(StorageError, match="No space left"):
        store.write_atomically(tmp_path / "report.md", b"new")
    assert (tmp_path / "report.md").read_text() == "old"
    assert not (tmp_path / "half").exists()


def test_a_folder_without_records_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run folder"):
        store.read_records(tmp_path)


def test_sessions_add_up_and_a_damaged_environment_is_said(tmp_path: Path) -> None:
    store.add_session(tmp_path, "h1", {"cpu": "a"}, {"started_at": "t1"})
    store.add_session(tmp_path, "h2", {"cpu": "b"}, {"started_at": "t2"})
    content = store.read_environment(tmp_path)
    assert content["environments"] == {"h1": {"cpu": "a"}, "h2": {"cpu": "b"}}
    assert [session["environment"] for session in content["sessions"]] == ["h1", "h2"]
    (tmp_path / store.ENVIRONMENT).write_text(json.dumps(content)[:20])
    with pytest.raises(RunFolderError, match="damaged"):
        store.read_environment(tmp_path)

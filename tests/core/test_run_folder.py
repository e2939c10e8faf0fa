"""Records reach the disk whole or not at all, and come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitbench.core import run_folder as store
from vitbench.core.errors import RunFolderError, StorageError
from vitbench.core.records import Cell, Measurement, Record


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
        pytest.param(lambda line: line.replace(b'"schema":4', b'"schema":99'), id="newer schema"),
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


@pytest.mark.integration
def test_a_file_that_may_not_grow_leaves_whole_records_and_says_how_to_go_on(tmp_path: Path) -> None:
    """A real write failure: the process may write no file beyond a size that falls into the third record."""
    script = """
import resource, sys
from pathlib import Path
from tests.core.test_run_folder import make_record
from vitbench.core import run_folder as store
folder = Path(sys.argv[1])
line = len(make_record().to_json()) + 1
resource.setrlimit(resource.RLIMIT_FSIZE, (int(2.5 * line), int(2.5 * line)))
writer = store.RecordWriter(folder)
for size in (1, 2, 3):
    writer.append(make_record(batch_size=size))
"""
    pytest.importorskip("resource")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert "StorageError: Cannot write to" in done.stderr
    assert "The records before it are safe" in done.stderr
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
    with pytest.raises(RunFolderError, match="is not a run folder"):
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


# what a crash of the machine, a full disk, or somebody else does to the file


def test_whatever_byte_the_file_is_cut_at_every_whole_record_stays(tmp_path: Path) -> None:
    records = [make_record(batch_size=size) for size in (1, 2, 3)]
    write(tmp_path, *records)
    path = tmp_path / store.RECORDS
    content = path.read_bytes()
    ends = [number + 1 for number, byte in enumerate(content) if byte == ord("\n")]
    cuts = {*range(0, len(content), 61), *ends, *(end - 1 for end in ends), len(content) - 2}
    for cut in sorted(cuts):
        path.write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends)
        problems = store.set_damaged_lines_aside(tmp_path)
        assert len(problems) == (cut not in (0, *ends))
        assert store.read_records(tmp_path) == records[:whole]
        assert path.read_bytes() == content[: ends[whole - 1] if whole else 0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_full_disk_that_half_a_line_cannot_be_taken_back_from_is_still_one_storage_error(tmp_path: Path) -> None:
    """/dev/full takes nothing, and cannot be cut."""
    (tmp_path / store.RECORDS).symlink_to("/dev/full")
    writer = store.RecordWriter(tmp_path)
    with pytest.raises(StorageError, match="No space left on device"):
        writer.append(make_record())
    writer.close()


def test_half_a_line_that_could_not_be_taken_back_is_set_aside_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [make_record(batch_size=size) for size in (1, 2)]
    write(tmp_path, records[0])
    path = tmp_path / store.RECORDS

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_flush_to_disk", fail)
        patch.setattr(store.os, "ftruncate", fail)
        with pytest.raises(StorageError):
            write(tmp_path, records[1])
    path.write_bytes(path.read_bytes()[:-20])  # what the disk took
    assert len(store.set_damaged_lines_aside(tmp_path)) == 1
    assert store.read_records(tmp_path) == records[:1]


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[tuple[Path, store.RecordWriter]]:
    """A run folder with what a resume needs, and a writer that has written one record into it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / store.SUITE).write_text("suite")
    (folder / store.ENVIRONMENT).write_text("{}")
    writer = store.RecordWriter(folder)
    writer.append(make_record(batch_size=1))
    yield folder, writer
    writer.close()


def sizes_in(folder: Path) -> list[int]:
    return [record.cell.batch_size for record in store.read_records(folder)]


def test_a_run_folder_that_was_moved_ends_the_run_and_has_every_record(
    writing: tuple[Path, store.RecordWriter],
) -> None:
    folder, writer = writing
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    with pytest.raises(RunFolderError, match=r"was moved or removed during the run.*vitbench run --resume DIR$"):
        writer.append(make_record(batch_size=2))
    assert sizes_in(elsewhere) == [1, 2]
    assert not folder.exists()


def test_a_records_file_that_became_read_only_is_written_to_the_end(writing: tuple[Path, store.RecordWriter]) -> None:
    folder, writer = writing
    (folder / store.RECORDS).chmod(0o444)
    writer.append(make_record(batch_size=2))
    assert sizes_in(folder) == [1, 2]


def test_leftovers_of_a_killed_run_go_and_nothing_else(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from vitbench.core import run_folder as store; "
        "store.os.replace = lambda *_: os.kill(os.getpid(), 9); "
        "store.write_atomically(Path(sys.argv[1]) / 'records.jsonl', b'half')"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    (leftover,) = tmp_path.iterdir()
    assert store.is_leftover(leftover)
    (tmp_path / store.CHECKPOINTS).mkdir()
    (tmp_path / store.CHECKPOINTS / "0123.safetensors.part").touch()
    kept = [tmp_path / "notes.part", tmp_path / ".hidden", tmp_path / store.CHECKPOINTS / "0123.safetensors"]
    for path in kept:
        path.touch()
    store.remove_leftovers(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_folders_made_at_the_same_moment_are_different_ones(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: store.make_new_folder(tmp_path / "runs" / "one"), range(40)))
    assert len(set(made)) == 40
    assert {path.name for path in made} == {"one", *(f"one-{number}" for number in range(2, 41))}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of Unix")
def test_what_is_no_file_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    store.write_atomically(pipe, b"content")
    reader.join(10)
    assert read == [b"content"]
    assert pipe.is_fifo()
    # as /dev/stdout where the output goes into a file
    monkeypatch.setattr("vitbench.core.run_folder._DEVICES", (tmp_path,))
    (tmp_path / "target").write_bytes(b"before it")
    (tmp_path / "stdout").symlink_to(tmp_path / "target")
    store.write_atomically(tmp_path / "stdout", b"more")
    assert (tmp_path / "stdout").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"more"

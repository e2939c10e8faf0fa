"""Many cells, many faults, many kills: one correct record a cell, and nothing left but these."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.faults.injection import OOM_TEXTS
from tests.faults.soaking import PLANNED, Soak, survive
from vitbench.core import run_folder as store
from vitbench.core.records import Record

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(psutil.Process, "environ"), reason="processes are known by a variable"),
]

KINDS = [kind for kind in PLANNED if kind]
#: Two hundred.
FAULTS = {
    "oom:cpu": 30,
    "oom:cuda": 30,
    "oom:mps": 30,
    "sigkill": 30,
    "sigsegv": 25,
    "nan": 20,
    "error": 20,
    "hang": 15,
}
MEGABYTE = 2**20
MOST_GROWTH = 10 * MEGABYTE


# twenty cells: every kind of fault, a full disk, and a kill -9 in the middle of a record


@dataclass(frozen=True)
class Story:
    """A soak and what its sessions said, one after the other."""

    soak: Soak
    codes: list[int]
    texts: list[str]
    written: list[bytes]  # the records after each session

    def record(self, kind: str) -> Record:
        """The record of the first cell with that fault."""
        cell = next(cell for cell, fault in self.soak.faults.items() if fault == kind)
        return next(record for record in store.read_records(self.soak.folder) if record.cell.id == cell)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    place = tmp_path_factory.mktemp("small") / "soak"
    soak = Soak(place, image_sizes=[4], batch_sizes=[1, 2, 3, 4], seeds=[0, 1, 2, 3, 4], timeout_s=2)
    soak.draw_faults(dict.fromkeys(KINDS, 1), random.Random(6))
    free = [cell.id for cell in soak.cells if cell.id not in soak.faults]
    soak.faults |= {free[6]: "disk_full", free[9]: "corrupt_record"}
    outcome = Story(soak, [], [], [])
    while True:
        with soak.session() as session:
            outcome.codes.append(session.wait(120))
            outcome.texts.append(session.log.read_text())
            outcome.written.append((soak.folder / store.RECORDS).read_bytes())
        if outcome.codes[-1] == 1 and "--resume" not in session.last_words:
            return outcome
        assert len(outcome.codes) < 6, outcome


def test_cells_with_faults_in_a_run_that_is_killed_are_one_record_each_of_the_planned_status(story: Story) -> None:
    assert len(story.soak.cells) == 20
    assert len(story.soak.faults) == 10
    # a full disk, killed in the middle of a record, done: 1 because cells failed
    assert story.codes == [1, -9, 1], story.texts
    story.soak.check_records()
    story.soak.check_nothing_is_left()
    # a session repeats nothing: whole lines of those before it stay as they are
    for before, after in itertools.pairwise(story.written):
        assert after.startswith(before[: before.rfind(b"\n") + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_leaves_what_its_kind_leaves(story: Story, kind: str) -> None:
    record = story.record(kind)
    status, causes, number = PLANNED[kind]
    assert (record.status, record.signal) == (status, number)
    assert record.cause in causes
    if kind.startswith("oom:"):
        assert OOM_TEXTS[kind.removeprefix("oom:")] in record.detail
    if kind == "hang":
        assert "last in injection.py:" in record.detail
        assert "in in_worker" in record.stderr_tail
    if kind == "sigsegv":
        assert "Fatal Python error: Segmentation fault" in record.stderr_tail
        assert "in in_worker" in record.stderr_tail
    if kind == "nan":
        assert "not finite" in record.detail


def test_a_full_disk_ends_the_session_with_1_and_the_way_on(story: Story) -> None:
    last = story.texts[0].strip().splitlines()[-1]
    assert "No space left on device" in last
    assert last.endswith(f"vitbench run --resume {story.soak.folder}")
    assert last.count("--resume") == 1
    assert "Traceback" not in story.texts[0]
    assert story.record("disk_full").status == "ok"


def test_half_a_record_is_set_aside_and_its_cell_measured_again(story: Story) -> None:
    assert "cut off before its end: set aside" in story.texts[2]
    whole = story.record("corrupt_record").to_json().encode()
    damaged = (story.soak.folder / store.DAMAGED).read_bytes()
    assert damaged.startswith(whole[:40])  # the cell: times differ
    assert 0 < len(damaged) < len(whole)


def test_every_session_notes_that_faults_were_injected(story: Story) -> None:
    for text in story.texts:
        assert "Warning: VITBENCH_FAULTS=tests.faults.injection injects faults" in text
    sessions = store.read_environment(story.soak.folder)["sessions"]
    assert len(sessions) == 3
    assert all("not measurements" in session["faults"] for session in sessions)


# a thousand


def thousand_cells(place: Path) -> Soak:
    return Soak(
        place,
        image_sizes=[4, 6, 8, 10],
        batch_sizes=[1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        seeds=list(range(25)),
        timeout_s=3,
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_cells_with_two_hundred_faults_are_a_thousand_records_and_the_runner_does_not_grow(
    tmp_path: Path,
) -> None:
    soak = thousand_cells(tmp_path / "soak")
    soak.draw_faults(FAULTS, random.Random(1))
    assert len(soak.cells) == 1000
    assert len(soak.faults) == 200
    begin = time.monotonic()
    early: list[tuple[int, int, int]] = []
    late: list[tuple[int, int, int]] = []
    with soak.session() as session:
        runner = psutil.Process(session.process.pid)
        while session.process.poll() is None:
            records = soak.records_so_far()
            # before the report, which loads what draws it
            chosen = early if 100 <= records < 150 else late if 940 <= records < 990 else None
            if chosen is not None:
                chosen.append((runner.memory_info().rss, runner.num_fds(), runner.num_threads()))
            time.sleep(0.1)
        assert session.process.returncode == 1, session.log.read_text()
    soak.check_records()
    soak.check_nothing_is_left()
    rss, files, threads = (
        [statistics.median(sample[which] for sample in samples) for samples in (early, late)] for which in range(3)
    )
    print(
        f"\n1000 cells, 200 faults: {time.monotonic() - begin:.0f} s; the runner's memory {rss[0] / MEGABYTE:.1f} MiB "
        f"after 100 cells, {rss[1] / MEGABYTE:.1f} MiB after 940; files {files}, threads {threads}"
    )
    assert rss[1] - rss[0] < MOST_GROWTH
    assert files[1] - files[0] <= 4
    assert threads[1] - threads[0] <= 2


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_thousand_cells_survive_twenty_kills_three_full_disks_and_three_corrupt_records(tmp_path: Path) -> None:
    rng = random.Random(20)
    soak = thousand_cells(tmp_path / "soak")
    soak.draw_faults({**FAULTS, "disk_full": 2, "disk_full_worker": 1, "corrupt_record": 3}, rng)
    begin = time.monotonic()
    sessions = survive(soak, kills=20, most_records=60, rng=rng)
    print(f"\n20 kills: {sessions} sessions, {time.monotonic() - begin:.0f} s")
    soak.check_records()
    soak.check_nothing_is_left()
    assert sessions >= 21

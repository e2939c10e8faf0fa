"""Runs of many tiny cells under injected faults and kill -9, from the command line, and what is to come of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults.injection import FILE, STOPPING
from vitbench.core import run_folder as store
from vitbench.core.records import Cell
from vitbench.executors.faults import VARIABLE

ROOT = Path(__file__).parents[2]
MODEL = "module:tests.failing_models:works"
#: fault -> (status, causes that may be named, signal) of the record that it is to leave
PLANNED: dict[str, tuple[str, tuple[str, ...], int | None]] = {
    "": ("ok", ("",), None),
    "oom:cpu": ("oom", ("out_of_memory",), None),
    "oom:cuda": ("oom", ("out_of_memory",), None),
    "oom:mps": ("oom", ("out_of_memory",), None),
    "sigkill": ("killed", ("probable_oom",), 9),
    "sigsegv": ("killed", ("crash",), 11),
    "hang": ("timeout", ("timeout",), None),
    "nan": ("error", ("not_finite",), None),
    "error": ("error", ("exception", "model_bug"), None),
}
_MARK = "VITBENCH_TEST_MARK"


@dataclass
class Soak:
    """A suite of tiny cells in ``place``, some of which have a fault; sessions go into ``place``/run."""

    place: Path
    image_sizes: list[int]
    batch_sizes: list[int]
    seeds: list[int]
    timeout_s: float
    faults: dict[str, str] = field(default_factory=dict)  # cell id -> fault
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def folder(self) -> Path:
        return self.place / "run"

    @property
    def cells(self) -> list[Cell]:
        axes = itertools.product(self.image_sizes, self.seeds, self.batch_sizes)
        return [
            Cell(
                model=MODEL,
                image_size=(size, size),
                num_classes=4,
                batch_size=batch,
                device="cpu",
                threads=1,
                seed=seed,
            )
            for size, seed, batch in axes
        ]

    def draw_faults(self, counts: Mapping[str, int], rng: random.Random) -> None:
        """Give so many cells each of these faults."""
        kinds = [kind for kind, count in counts.items() for _ in range(count)]
        chosen = rng.sample(self.cells, len(kinds))
        self.faults = {cell.id: kind for cell, kind in zip(chosen, kinds, strict=True)}

    @property
    def statuses(self) -> dict[str, str]:
        """The status that each cell is to have at last, by its id."""
        return {cell.id: PLANNED[self._fault_of(cell)][0] for cell in self.cells}

    def _fault_of(self, cell: Cell) -> str:
        kind = self.faults.get(cell.id, "")
        return "" if kind in STOPPING else kind

    # sessions

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """The run from its beginning, or its resume; killed if it still runs at the end."""
        resumes = (self.folder / store.SUITE).is_file()
        self.place.mkdir(exist_ok=True)
        temporary = self.place / "tmp"
        temporary.mkdir(exist_ok=True)
        suite, faults = self.place / "soak.toml", self.place / "faults.json"
        suite.write_text(
            f'models = ["{MODEL}"]\nimage_sizes = {self.image_sizes}\nbatch_sizes = {self.batch_sizes}\nnum_classes = 4\n'
            f"seeds = {self.seeds}\ndevices = ['cpu']\nthreads = [1]\nmetrics = ['memory']\n"
            f"timeout_s = {self.timeout_s}\n[measure]\nprocesses = 1\nseconds = 0.05\nmin_samples = 2\n"
        )
        faults.write_text(json.dumps(self.faults))
        what = ["--resume", str(self.folder)] if resumes else ["--suite", str(suite), "--out", str(self.folder)]
        variables = {VARIABLE: "tests.faults.injection", FILE: str(faults), _MARK: self.mark, "TMPDIR": str(temporary)}
        log = self.place / "log.txt"
        with log.open("w") as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "vitbench",
                    "run",
                    *what,
                    "--allow-import",
                ],
                cwd=ROOT,
                env={**os.environ, **variables},
                stdout=output,
                stderr=output,
            )
        try:
            yield Session(self, process, log)
        finally:
            process.kill()
            process.wait()

    def records_so_far(self) -> int:
        """Lines of the records file."""
        path = self.folder / store.RECORDS
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    # what is to come of it

    def check_records(self) -> None:
        """Exactly one line a cell, with the status and cause that its fault is to leave."""
        lines = (self.folder / store.RECORDS).read_bytes().splitlines()
        records = store.read_records(self.folder)
        cells = self.cells
        assert len(lines) == len(records) == len(cells)
        assert {record.cell.id for record in records} == {cell.id for cell in cells}
        assert store.set_damaged_lines_aside(self.folder) == []
        for record in records:
            kind = self._fault_of(record.cell)
            status, causes, number = PLANNED[kind]
            assert (record.status, record.signal) == (status, number), (kind, record.detail)
            assert record.cause in causes, (kind, record.cause, record.detail)

    def check_nothing_is_left(self) -> None:
        """No process, and no file that was not finished."""
        deadline = time.monotonic() + 20
        while (alive := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive
        # torch makes a folder for what it compiles when it is imported
        assert [path for path in (self.place / "tmp").rglob("*") if not path.is_dir()] == []
        expected = {
            "records.jsonl",
            "environment.json",
            "suite.toml",
            "report.md",
            "report.html",
            "report.csv",
            ".lock",
            "noise.jsonl",
        }
        found = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}
        assert found <= expected | {store.DAMAGED}

    def processes(self) -> list[psutil.Process]:
        """What a session started and that still runs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@dataclass
class Session:
    """A running ``vitbench run``."""

    soak: Soak
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, timeout_s: float) -> int:
        """Its exit code (minus the signal that ended it)."""
        return self.process.wait(timeout_s)

    def wait_for_records(self, count: int, timeout_s: float = 120) -> bool:
        """Whether there came to be so many records before it ended."""
        deadline = time.monotonic() + timeout_s
        while self.soak.records_so_far() < count:
            assert time.monotonic() < deadline, self.log.read_text()
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        return True

    def kill(self) -> None:
        """kill -9 of the runner, and of nothing else."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def last_words(self) -> str:
        return self.log.read_text().strip().splitlines()[-1]


def survive(soak: Soak, kills: int, most_records: int, rng: random.Random) -> int:
    """Run ``soak`` to its end through so many kill -9 of the runner, each at a moment drawn from ``rng``: some while it
    begins, most after so many more records at most. Returns how many sessions it took.
    """
    sessions = done = 0
    while True:
        sessions += 1
        with soak.session() as session:
            if done < kills:
                if rng.random() < 0.2:
                    session.process.poll()
                    time.sleep(rng.uniform(0.0, 6.0))
                else:
                    session.wait_for_records(soak.records_so_far() + rng.randint(1, most_records))
                    time.sleep(rng.uniform(0.0, 0.2))
                if session.process.poll() is None:
                    session.kill()
                    done += 1
                    continue
            code = session.wait(3600)
            if code == -signal.SIGKILL:  # a corrupt record
                continue
            if "No space left on device" in session.last_words:
                assert code == 1
                assert session.last_words.endswith(f"vitbench run --resume {soak.folder}"), session.last_words
                assert session.last_words.count("--resume") == 1
                continue
            assert code == 1, session.log.read_text()  # cells failed, which the exit code tells
            assert done == kills
            return sessions

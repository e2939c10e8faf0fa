"""Suites that ask for nothing but counts: each record safe at once, by workers that a model may take down."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT

import psutil
import pytest

import vitbench
from tests.launching import SharedLauncher, left_behind, shared_server
from vitbench.analysis.closed_form import ClosedForm, closed_form
from vitbench.cli import run_command
from vitbench.core import run_folder as store
from vitbench.core.records import Cell, Record
from vitbench.executors.launcher import Launcher, Worker
from vitbench.models.cards import model_registry
from vitbench.models.zoo import match_external
from vitbench.runner.progress import Progress
from vitbench.runner.run import RunSummary, resume_run
from vitbench.runner.static_counts import StaticCounter, static_key

ROOT = Path(__file__).parents[2]
OURS = ("vit_layer6_32", "vit_layer12_32", "vit_basic_tutorial", "cifar_vit_tiny")
#: What goes wrong while it is built -> (status, cause, signal, a part of the detail).
ENDINGS = {
    "raises_when_built": ("error", "model_bug", None, "IndexError: there is no block 13"),
    "kills_itself_when_built": ("killed", "probable_oom", 9, "SIGKILL"),
    "exits_when_built": ("error", "exit", None, "exit code 7"),
    "hangs_when_built": ("timeout", "timeout", None, "the static process took longer than 2 s"),
}


def failing(name: str) -> str:
    return f"module:tests.failing_models:{name}"


def static_suite(path: Path, models: list[str], **keys: object) -> Path:
    """A suite of parameters and FLOPs at each model's own size."""
    lines = [f"{key} = {str(value).replace(chr(39), chr(34))}" for key, value in keys.items()]
    names = ", ".join(f'"{name}"' for name in models)
    path.write_text(
        "\n".join(
            [f"models = [{names}]", 'devices = ["cpu"]', "threads = [1]", 'metrics = ["params", "flops"]', *lines]
        )
    )
    return path


def lines_in(folder: Path) -> list[str]:
    path = folder / store.RECORDS
    return path.read_text().splitlines() if path.exists() else []


def wait_until(what: str, reached: object) -> None:
    deadline = time.monotonic() + 60
    while not reached():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the builder leaves_a_line does."""
    return tmp_path_factory.mktemp("builds") / "builds"


@pytest.fixture(scope="module")
def server(builds: Path) -> Iterator[list[SharedLauncher]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("BUILDS", str(builds))
        with shared_server() as launchers:
            yield launchers


class Watching(Progress):
    """Notes how many records are on the disk whenever one is told of."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.on_disk: list[int] = []

    def cell_done(self, record: Record) -> None:
        super().cell_done(record)
        self.on_disk.append(len(lines_in(self.folder)))


@pytest.fixture(scope="module")
def watched(server: list[SharedLauncher], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSummary, Watching]:
    """A run of models that go wrong and between them models that do not."""
    folder = tmp_path_factory.mktemp("watched")
    models = [one for pair in zip(map(failing, ENDINGS), OURS, strict=True) for one in pair]
    suite = static_suite(folder / "counts.toml", models, timeout_s=2)
    progress = Watching(folder / "run")
    return vitbench.run_suite(str(suite), out=folder / "run", allow_import=True, progress=progress), progress


@pytest.mark.parametrize("name", ENDINGS)
def test_a_model_that_goes_wrong_takes_only_its_own_record_along(
    watched: tuple[RunSummary, Watching], name: str
) -> None:
    record = next(one for one in watched[0].records if one.cell.model == failing(name))
    *ending, words = ENDINGS[name]
    assert [record.status, record.cause, record.signal] == ending
    assert words in record.detail
    assert {one.status for one in record.measurements} == {record.status}
    assert {one.metric for one in record.measurements} >= {"params", "flops"}  # absent, and said so


def test_models_between_those_that_go_wrong_are_counted_as_ever(watched: tuple[RunSummary, Watching]) -> None:
    ours = [record for record in watched[0].records if record.cell.model in OURS]
    assert [record.cell.model for record in ours] == list(OURS)
    for record in ours:
        counted = {one.metric: one.value for one in record.measurements if one.status == "ok"}
        form = by_formula(record.cell.model)
        assert record.status == "ok"
        assert (counted["params"], counted["macs"], counted["flops"]) == (form.params, form.macs, form.flops)


def by_formula(name: str) -> ClosedForm:
    card = model_registry().get(name)
    return closed_form(card, card.image_size, card.num_classes)


def test_records_appear_one_by_one_and_no_worker_is_left(watched: tuple[RunSummary, Watching]) -> None:
    summary, progress = watched
    assert progress.on_disk == list(range(1, 9))
    assert [record.cell.model for record in store.read_records(summary.folder)] == [
        record.cell.model for record in summary.records
    ]
    wait_until("only fork servers are left", lambda: not left_behind())


def test_what_went_wrong_is_repeated_only_when_asked(watched: tuple[RunSummary, Watching]) -> None:
    summary, _ = watched
    before = {record.cell.id: record.started_at for record in store.read_records(summary.folder)}
    again = resume_run(summary.folder, retry=["KILLED"], allow_import=True)
    repeated = [record.cell.model for record in again.records if record.started_at != before[record.cell.id]]
    assert repeated == [failing("kills_itself_when_built")]
    assert len(again.records) == 8


def test_a_run_is_resumed_after_torch_has_set_a_variable_of_its_own(
    watched: tuple[RunSummary, Watching], monkeypatch: pytest.MonkeyPatch
) -> None:
    """vitbench.show_models() and other counting in the calling process make torch do so."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/tmp/torchinductor_somebody")
    assert len(resume_run(watched[0].folder, allow_import=True).records) == 8


# --- killed and interrupted: real processes in the middle of many models


class Started:
    """``vitbench run`` of many models, the tenth of which waits for a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        self.file = folder / "go on"
        self.before = match_external("timm:deit*")[:9]
        self.after = [*match_external("timm:pit*"), *OURS]
        models = [*self.before, failing("waits_for_a_file"), *self.after]
        suite = static_suite(folder / "many.toml", models)
        arguments = ["run", "--suite", str(suite), "--allow-import", "--out", str(self.folder)]
        self.process = self.start(*arguments)
        wait_until("nine records", lambda: self.process.poll() is not None or len(lines_in(self.folder)) >= 9)
        assert self.process.poll() is None, self.process.communicate()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "vitbench", *arguments],
            cwd=ROOT,
            env={**os.environ, "WAIT_FOR": str(self.file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    run = Started(tmp_path)
    yield run
    run.process.kill()
    run.process.communicate()


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_run_killed_between_its_counts_is_resumed_and_repeats_nothing(started: Started) -> None:
    workers = psutil.Process(started.process.pid).children(recursive=True)
    assert len(workers) > 1  # the server and a worker that waits
    started.process.kill()
    started.process.communicate()
    assert_gone(workers)
    before = lines_in(started.folder)
    assert [Record.from_json(line).cell.model for line in before] == started.before
    started.file.touch()
    resumed = started.start("run", "--resume", str(started.folder), "--allow-import")
    _, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, errors
    lines = lines_in(started.folder)
    assert lines[:9] == before  # untouched
    records = store.read_records(started.folder)
    assert [record.cell.model for record in records] == [
        *started.before, failing("waits_for_a_file"), *started.after
    ]  # fmt: skip
    assert {record.status for record in records} == {"ok"}
    assert max(Counter(record.cell.id for record in records).values()) == 1


@pytest.mark.slow
def test_ctrl_c_between_counts_ends_with_130_and_leaves_no_worker(started: Started) -> None:
    workers = psutil.Process(started.process.pid).children(recursive=True)
    assert len(workers) > 1
    begin = time.monotonic()
    started.process.send_signal(SIGINT)
    _, errors = started.process.communicate(timeout=30)
    assert started.process.returncode == 130
    assert time.monotonic() - begin < 10  # the model that waits is not waited for
    assert errors.rstrip().splitlines()[-1] == f"Interrupted. Resume with: vitbench run --resume {started.folder}"
    assert "Traceback" not in errors
    assert_gone(workers)
    assert len(lines_in(started.folder)) == 9


# --- the counter itself


class CountingLauncher(Launcher):
    """Knows its workers, and how many of them were alive at the same time."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.workers: list[Worker] = []
        self.most_alive = 0

    def start(self) -> Worker:
        self.workers.append(self.launcher.start())
        self.most_alive = max(self.most_alive, sum(worker.alive() for worker in self.workers))
        return self.workers[-1]


@pytest.fixture
def launcher(server: list[SharedLauncher]) -> CountingLauncher:
    from vitbench.runner import run as runner

    return CountingLauncher(runner.make_launcher([]))


def cell_of(name: str, *, image_size: int = 32, num_classes: int = 10) -> Cell:
    size = (image_size, image_size)
    return Cell(model=name, image_size=size, num_classes=num_classes, batch_size=1, device="cpu", threads=1)


def sizes(count: int) -> list[Cell]:
    """``count`` cells that share no figure."""
    return [cell_of("vit_layer6_32", num_classes=classes) for classes in range(2, 2 + count)]


@pytest.mark.parametrize(("models", "workers"), [(1, 1), (15, 1), (16, 2), (24, 2)])
def test_many_models_are_counted_by_two_workers_and_few_by_one(
    launcher: CountingLauncher, monkeypatch: pytest.MonkeyPatch, models: int, workers: int
) -> None:
    monkeypatch.setattr("vitbench.runner.static_counts.usable_cores", lambda: 2)
    some = sizes(models)
    with StaticCounter(launcher, ("params",), 60) as counter:
        assert counter.begin(some) == models
        found = [counter.outcome(cell).measurements[0].value for cell in some]
    width = 128
    assert [value - found[0] for value in found] == [(width + 1) * more for more in range(models)]
    assert (len(launcher.workers), launcher.most_alive) == (workers, workers)


def test_no_more_workers_are_used_than_there_are_cores(
    launcher: CountingLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitbench.runner.static_counts.usable_cores", lambda: 1)
    with StaticCounter(launcher, ("params",), 60) as counter:
        some = sizes(16)
        counter.begin(some)
        assert all(counter.outcome(cell).failure is None for cell in some)
    assert len(launcher.workers) == 1


def test_a_worker_that_dies_is_replaced_by_one(launcher: CountingLauncher) -> None:
    names = ["vit_layer6_32", *map(failing, ("kills_itself_when_built", "raises_when_built")), "vit_basic_tutorial"]
    with StaticCounter(launcher, ("params",), 60) as counter:
        some = [cell_of(name) for name in names]
        counter.begin(some)
        causes = [failure.cause if (failure := counter.outcome(cell).failure) else "" for cell in some]
    assert causes == ["", "probable_oom", "model_bug", ""]
    assert (len(launcher.workers), launcher.most_alive) == (3, 1)


def test_a_size_that_is_refused_costs_no_worker(launcher: CountingLauncher) -> None:
    some = [cell_of("torchvision:vit_b_16", image_size=33), cell_of("vit_layer6_32")]
    with StaticCounter(launcher, ("params",), 60) as counter:
        counter.begin(some)
        refused, counted = (counter.outcome(cell) for cell in some)
    assert refused.failure is not None
    assert refused.failure.cause == "usage"
    assert counted.failure is None
    assert len(launcher.workers) == 1


def test_a_cell_that_nobody_announced_is_counted_when_it_is_asked_for(launcher: CountingLauncher) -> None:
    cell = cell_of("vit_layer6_32")
    with StaticCounter(launcher, ("params",), 60) as counter:
        assert counter.outcome(cell) is counter.outcome(cell)
    assert len(launcher.workers) == 1


def test_closing_a_counter_waits_for_no_model_and_leaves_no_process(launcher: CountingLauncher) -> None:
    wait_until("only fork servers are left", lambda: not left_behind())
    counter = StaticCounter(launcher, ("params",), 600)
    counter.begin(cell_of(name) for name in (failing("hangs_when_built"), *OURS))
    wait_until("the model hangs, and its child", lambda: len(left_behind()) >= 2)
    begin = time.monotonic()
    counter.close()
    assert time.monotonic() - begin < 5
    assert len(launcher.workers) == 1  # none was started for the models behind it
    wait_until("all are gone", lambda: not left_behind())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("static")]


def test_each_key_is_counted_once(server: list[SharedLauncher], builds: Path, tmp_path: Path) -> None:
    builds.unlink(missing_ok=True)
    suite = static_suite(
        tmp_path / "shared.toml",
        [failing("leaves_a_line")],
        batch_sizes=[1, 2, 4],
        dtypes=["fp32", "bf16"],
        seeds=[0, 1],
        modes=["infer", "train"],
        attention=["fused", "explicit"],
    )
    summary = vitbench.run_suite(str(suite), out=tmp_path / "run", allow_import=True)
    assert len(summary.records) == 3 * 2 * 2 * 2 * 2
    assert {record.status for record in summary.records} == {"ok"}
    assert len({static_key(record.cell) for record in summary.records}) == 2
    assert builds.read_text().splitlines() == ["(224, 224) 1000"] * 2  # fused and explicit


def test_counts_at_a_size_that_is_asked_for_are_the_same_before_the_first_cell(
    server: list[SharedLauncher], tmp_path: Path
) -> None:
    """Sizes can be refused, so that these are counted by the plan; own sizes cannot."""
    values = []
    for sizes_asked in (["native"], [32]):
        suite = static_suite(tmp_path / "sizes.toml", list(OURS), image_sizes=sizes_asked)
        summary = vitbench.run_suite(str(suite), out=tmp_path / f"run-{sizes_asked[0]}")
        values.append(
            [[(one.metric, one.value, one.method) for one in record.measurements] for record in summary.records]
        )
    assert values[0] == values[1]


def test_a_size_that_a_zoos_model_refuses_ends_a_static_run_before_its_first_record(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = static_suite(tmp_path / "refused.toml", ["vit_layer6_32", "torchvision:vit_b_16"], image_sizes=[100])
    code = run_command(
        ["run", "--suite", str(suite), "--models", "torchvision:vit_b_16", "--out", str(tmp_path / "run")]
    )
    errors = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert errors[-1].startswith("Error: Image size 100 does not fit torchvision:vit_b_16: ")
    assert not (tmp_path / "run").exists()


def test_measure_counts_parameters_alone(server: list[SharedLauncher]) -> None:
    record = vitbench.measure("vit_basic_tutorial", metrics=["params"])
    assert record.status == "ok", record.detail
    params = record.measurement("params")
    assert params is not None
    assert params.value == by_formula("vit_basic_tutorial").params
    assert {one.metric for one in record.measurements} == {
        "params", "trainable_params", "params_bytes", "buffers", "buffers_bytes"
    }  # fmt: skip

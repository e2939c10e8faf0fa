"""Whole runs as people do them: from the command line, interrupted, resumed, merged.

Runs that are killed, and disks that are full: tests/faults/test_soak.py and test_lost_runs.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil
import pytest

import vitbench
from tests.launching import lending
from tests.reports.paired import section
from vitbench.cli import run_command
from vitbench.core import run_folder as store
from vitbench.core.errors import UsageError
from vitbench.core.records import Cell, Record
from vitbench.executors.conversation import Outcome, converse, finish
from vitbench.executors.launcher import Launcher, SpawnLauncher
from vitbench.executors.protocol import Measure

ROOT = Path(__file__).parents[2]
WORKS = "module:tests.failing_models:works"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vitbench", *arguments]


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run_here(launcher: Launcher, *arguments: str) -> Done:
    """The command line in this process, with workers of the server that all tests share."""
    out, err = io.StringIO(), io.StringIO()
    with lending(launcher), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(ROOT):
        code = run_command(list(arguments))
    return Done(code, out.getvalue(), err.getvalue())


def small_suite(folder: Path, cells: int = 4, seconds: float = 0.4) -> Path:
    """A suite of ``cells`` cells of about ``seconds`` each."""
    path = folder / "small.toml"
    path.write_text(
        f'models = ["{WORKS}"]\nimage_sizes = [8]\nbatch_sizes = {list(range(1, cells + 1))}\ndevices = ["cpu"]\nthreads = [1]\n'
        f'metrics = ["params", "latency"]\n[measure]\nprocesses = 1\nseconds = {seconds}\nmax_samples = 100000000\npatience_s = 0\n'
    )
    return path


def batch_sizes(records: list[Record]) -> list[int]:
    return [record.cell.batch_size for record in records]


def records_so_far(folder: Path) -> int:
    path = folder / store.RECORDS
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run of four cells that has two records."""
    folder = tmp_path / "run"
    arguments = ["run", "--suite", str(small_suite(tmp_path, 4, 0.3)), "--allow-import", "--out", str(folder)]
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while records_so_far(folder) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    yield process, folder
    process.kill()
    process.communicate()


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_run_ends_with_130_leaves_no_worker_and_can_be_resumed(
    started: tuple[subprocess.Popen[str], Path], fork_server: Launcher, number: signal.Signals
) -> None:
    process, folder = started
    workers = children_of(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.rstrip().splitlines()[-1] == f"Interrupted. Resume with: vitbench run --resume {folder}"
    assert "Traceback" not in errors
    assert_gone(workers)
    assert run_here(fork_server, "run", "--resume", str(folder), "--allow-import").returncode == 0
    assert batch_sizes(store.read_records(folder)) == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def finished(fork_server: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three cells."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = ["run", "--suite", str(small_suite(folder, 3, 0.1)), "--allow-import", "--out", str(folder / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["/usr/bin/vitbench", *arguments])  # for the session
        done = run_here(fork_server, *arguments)
    assert done.returncode == 0, done.stderr
    assert f"\n{WORKS} " in done.stdout  # the table
    return folder / "run"


def copy_of(run: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(run, target)
    return target


def test_a_run_folder_holds_what_it_promises(finished: Path) -> None:
    for name in ("records.jsonl", "environment.json", "suite.toml", "report.md", "report.csv"):
        assert (finished / name).stat().st_size > 0
    environment = store.read_environment(finished)
    (session,) = environment["sessions"]
    assert session["command_line"].startswith("vitbench run --suite")
    assert session["environment"] in environment["environments"]
    assert {record.environment for record in store.read_records(finished)} == {session["environment"]}
    text = (finished / "environment.json").read_text()
    assert str(Path.home()) + os.sep not in text


def test_a_folder_takes_one_run_at_a_time(finished: Path, fork_server: Launcher, tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path / "run")
    with filelock.FileLock(folder / store.LOCK):
        second = run_here(fork_server, "run", "--resume", str(folder), "--allow-import")
    assert second.returncode == 2
    assert "is in use by another vitbench run" in second.stderr


def test_a_refused_run_leaves_the_folder_of_one_that_still_plans(fork_server: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with filelock.FileLock(folder / store.LOCK):  # all that a run has before its plan
        second = run_here(fork_server, "run", "--models", "vit_basic", "--data", "none", "--out", str(folder))
        assert (second.returncode, "is in use by another vitbench run" in second.stderr) == (2, True)
        assert (folder / store.LOCK).exists()


def test_a_damaged_record_is_set_aside_and_its_cell_measured_again(
    finished: Path, fork_server: Launcher, tmp_path: Path
) -> None:
    folder = copy_of(finished, tmp_path / "run")
    lines = (folder / store.RECORDS).read_bytes().splitlines(keepends=True)
    (folder / store.RECORDS).write_bytes(lines[0] + lines[2])
    assert run_here(fork_server, "report", str(folder)).returncode == 0
    assert "**run**: 2 of 3 cells (" in (folder / "report.md").read_text()
    (folder / store.RECORDS).write_bytes(lines[0] + lines[1][:100] + b"\n" + lines[2])
    done = run_here(fork_server, "run", "--resume", str(folder), "--allow-import")
    assert done.returncode == 0
    assert "records.jsonl, line 2" in done.stderr
    assert (folder / store.DAMAGED).read_bytes() == lines[1][:100] + b"\n"
    assert sorted(batch_sizes(store.read_records(folder))) == [1, 2, 3]
    assert (folder / store.RECORDS).read_bytes().startswith(lines[0] + lines[2])
    assert [session["planned_cells"] for session in store.read_environment(folder)["sessions"]] == [3, 3]
    assert "**run**: 3 cells (3 ok)" in (folder / "report.md").read_text()
    complete = (folder / store.RECORDS).read_bytes()
    assert run_here(fork_server, "run", "--resume", str(folder), "--allow-import").returncode == 0
    assert (folder / store.RECORDS).read_bytes() == complete  # nothing left to do


def test_a_run_with_a_tolerance_above_100_per_cent_is_resumed_and_compared(
    fork_server: Launcher, tmp_path: Path
) -> None:
    suite, folder = tmp_path / "wide.toml", str(tmp_path / "run")
    suite.write_text(
        f'models = ["{WORKS}"]\nimage_sizes = [8]\ndevices = ["cpu"]\nmetrics = ["params"]\n'
        '[[thresholds]]\nmetric = "relative_latency"\ntolerance = "150%"\n'
    )
    for arguments in (
        ["run", "--suite", str(suite), "--allow-import", "--out", folder],
        ["run", "--resume", folder, "--allow-import"],
        ["compare", folder, folder, "--threshold", "params=150%"],
    ):
        done = run_here(fork_server, *arguments)
        assert done.returncode == 0, done.stderr
    assert 'tolerance = "150%"' in (tmp_path / "run" / store.SUITE).read_text()


def test_a_changed_environment_is_refused_unless_it_is_allowed(
    finished: Path, fork_server: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(finished, tmp_path / "run")
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "5")
    lines = (folder / store.RECORDS).read_text().splitlines()
    (folder / store.RECORDS).write_text("\n".join(lines[:2]) + "\n")
    refused = run_here(fork_server, "run", "--resume", str(folder), "--allow-import")
    assert refused.returncode == 2
    assert "system.variables.MKL_DEBUG_CPU_TYPE: None -> 5" in refused.stderr
    assert records_so_far(folder) == 2
    allowed = run_here(fork_server, "run", "--resume", str(folder), "--allow-import", "--allow-changed-environment")
    assert allowed.returncode == 0, allowed.stderr
    assert len({record.environment for record in store.read_records(folder)}) == 2


def test_two_runs_become_one_table_with_a_row_each(finished: Path, fork_server: Launcher, tmp_path: Path) -> None:
    second = copy_of(finished, tmp_path / "second")
    done = run_here(fork_server, "report", str(finished), str(second), "--out", str(tmp_path / "both"))
    assert done.returncode == 0, done.stderr
    rows = [
        line for line in (tmp_path / "both" / "report.md").read_text().splitlines() if line.startswith(f"| {WORKS} ")
    ]
    assert len([row for row in rows if "| run " in row or "| second " in row]) >= 2
    frame = vitbench.load_records(finished, second)
    assert sorted(set(frame["run"])) == ["run", "second"]
    assert len(frame[(frame.metric == "latency") & (frame.batch_size == 1)]) == 2


def test_a_report_is_rebuilt_without_torch_and_comes_out_the_same(finished: Path, tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path / "run")
    before = {name: (folder / name).read_bytes() for name in ("report.md", "report.csv")}
    for name in before:
        (folder / name).unlink()
    code = (
        "import sys; from vitbench.cli import run_command; code = run_command(sys.argv[1:]); "
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_smoke_trains_measures_and_draws(fork_server: Launcher, tmp_path: Path) -> None:
    """The main job in small, from the command line, on real digits."""
    folder = tmp_path / "smoke"
    smoke = ("run", "--suite", "smoke", "--models", "vit_layer6_32", "--batch-sizes", "8", "--threads", "1")
    done = run_here(fork_server, *smoke, "--out", str(folder))
    assert done.returncode == 0, done.stderr
    records = store.read_records(folder)
    assert [(record.cell.mode, record.cell.batch_size, record.cell.trains) for record in records] == [
        ("infer", 8, False),
        ("train", 8, False),
        ("train", 32, True),
    ]
    assert {record.status for record in records} == {"ok"}
    infer, train, training = records
    assert infer.measurement("params").value == 827_530
    assert infer.measurement("flops").value == 2 * 58_018_560
    assert infer.measurement("weights_memory").value == 4 * 827_530
    assert infer.measurement("inference_peak_memory").value > 4 * 827_530
    # a training step holds weights, gradients and two optimizer states at least
    assert train.measurement("training_peak_memory").value > 4 * 4 * 827_530
    assert train.measurement("params_without_gradient").value == 0
    assert len(infer.measurement("latency").samples[0]) >= 3
    assert training.measurement("params").value < 827_530  # of the model at 16 px, whose position embedding is smaller
    assert {one.status for one in training.measurements} == {"ok"}
    assert training.measurement("test_images").value == 100
    checkpoint = folder / "checkpoints" / f"{training.cell.id}.safetensors"
    from vitbench.models.weights.checkpoints import load_checkpoint, read_facts

    facts = read_facts(checkpoint)
    load_checkpoint(vitbench.build_model("vit_layer6_32", image_size=facts["image_size"][0]), checkpoint)
    assert facts["data"] == "digits"
    assert (folder / "accuracy-latency.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "accuracy-params.png").exists()


PLAIN = """
optimizer = "adamw"
learning_rate = 1e-3
batch_size = 16
epochs = 2
"""
THIN = (
    PLAIN
    + """
imbalance = "linear:10"
sampler = "weighted"
class_weights = "inverse"
augment = ["crop", "jitter"]
mixup = 0.8
ema = 0.9
dropout = 0.2
mean = [0.4, 0.4, 0.4]
"""
)


@pytest.fixture(scope="module")
def two_recipes(fork_server: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two models by two recipes, one of which a rule keeps from one of them."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "plain.toml").write_text(PLAIN)
    (folder / "thin.toml").write_text(THIN)
    (folder / "mine.toml").write_text(
        'models = ["vit_basic_tutorial", "vit_layer6_32"]\nimage_sizes = [8]\ndevices = ["cpu"]\nthreads = [1]\n'
        'metrics = ["params", "accuracy"]\n'
        f'[training]\nrecipe = ["{folder / "thin.toml"}"]\ntest_images = 100\ntrain_images = 1000\n'
        '[[exclude]]\nmodels = "vit_layer*"\nrecipes = "thin"\n'
    )
    recipes = f"{folder / 'plain.toml'},{folder / 'thin.toml'}"
    done = run_here(
        fork_server,
        *("run", "--suite", str(folder / "mine.toml"), "--recipe", recipes, "--budget", "images=64"),
        *("--out", str(folder / "run")),
    )
    assert done.returncode == 0, done.stderr
    assert "\nTraining\n" in done.stdout
    return folder / "run"


def test_each_recipe_trains_a_cell_unless_a_rule_drops_it(two_recipes: Path) -> None:
    records = [record for record in store.read_records(two_recipes) if record.cell.trains]
    assert [(record.cell.model, record.cell.weights, record.status) for record in records] == [
        ("vit_basic_tutorial", "train:plain", "ok"),
        ("vit_basic_tutorial", "train:thin", "ok"),
        ("vit_layer6_32", "train:plain", "ok"),
    ]
    for record in records:
        assert record.measurement("training_images").value == 64
        assert record.measurement("training_steps").value == 4
        told = "images = 64, not the recipe's epochs = 2; at most 1000 training pictures"
        assert record.measurement("training_images").detail == told
        assert record.cell.options == (("train_images", "1000"),)
        by_class = record.measurement("class_f1")
        assert by_class.detail == ", ".join(map(str, range(10)))
        (values,) = by_class.samples
        assert len(values) == 10
        assert sum(values) / 10 == pytest.approx(record.measurement("macro_f1").value)
    sizes = [record.measurement("training_images").method.rpartition(" of ")[2] for record in records]
    assert sizes[0] == sizes[2] == "64"
    thin = [int(word) for word in sizes[1].partition("class: ")[2].rstrip(")").split()]
    assert thin == sorted(thin, reverse=True)
    # all of the imbalanced pictures, although fewer are seen: how large classes are is what is compared
    assert sum(thin) == pytest.approx(0.55 * 1437, rel=0.02)  # linear:10 keeps (1 + 0.1) / 2 of equally large classes
    assert thin[0] / thin[9] == pytest.approx(10, rel=0.1)
    assert thin[0] >= 8 * thin[-1]


def test_the_report_sets_the_trainings_side_by_side(two_recipes: Path) -> None:
    trainings = section((two_recipes / "report.md").read_text(), "Trainings in detail")
    lines = [line for line in trainings.splitlines() if line.startswith("| vit_")]
    # what came of each, then F1, precision and recall by class
    assert [[word.strip() for word in line.strip("|").split("|")][:2] for line in lines] == 4 * [
        ["vit_basic_tutorial", "plain"],
        ["vit_basic_tutorial", "thin"],
        ["vit_layer6_32", "plain"],
    ]
    assert "macro_f1" in (two_recipes / "report.csv").read_text().splitlines()[0]
    frame = vitbench.load_records(two_recipes)
    assert set(frame[frame.metric == "class_f1"]["interval_kind"]) == {"none: one value a class"}


def test_a_run_of_several_recipes_is_resumed_without_repeating_anything(
    two_recipes: Path, fork_server: Launcher, tmp_path: Path
) -> None:
    folder = copy_of(two_recipes, tmp_path / "run")
    lines = (folder / store.RECORDS).read_text().splitlines(keepends=True)
    (folder / store.RECORDS).write_text("".join(lines[:-1]))
    done = run_here(fork_server, "run", "--resume", str(folder))
    assert done.returncode == 0, done.stderr
    again = (folder / store.RECORDS).read_text().splitlines(keepends=True)
    assert again[:-1] == lines[:-1]
    first, second = Record.from_json(lines[-1]), Record.from_json(again[-1])
    assert first.cell == second.cell
    # the same seed: the same images, weights and answers
    assert first.measurement("class_f1") == second.measurement("class_f1")
    assert first.measurement("training_loss") == second.measurement("training_loss")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "brief,brif"), "Unknown recipe 'brif'. Did you mean 'brief'?"),
        (("--budget", "picture=3"), "Option --budget: 'picture' is not one of images, steps, epochs, seconds."),
        (("--budget", "images=many"), "Option --budget: images = 'many' is not a whole number from 1 on"),
        (("--recipe", ","), "A list is empty"),
        (("--data", "none", "--recipe", "brief"), "leave one of them out"),
    ],
)
def test_a_mistake_in_recipe_or_budget_gets_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run_command(["run", "--suite", "smoke", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_dry_run_shows_each_recipes_cells(fork_server: Launcher) -> None:
    done = run_here(
        fork_server,
        *("run", "--suite", "imbalance", "--models", "vit_basic_tutorial", "--data", "digits"),
        *("--budget", "images=64", "--dry-run"),
    )
    assert done.returncode == 0, done.stderr
    trainings = [line for line in done.stdout.splitlines() if "train:" in line]
    assert [line.split("imbalanced-")[1].split()[0] for line in trainings] == ["baseline", "sampler", "weights", "both"]


def test_dry_run_measures_nothing(fork_server: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / "dry"
    done = run_here(fork_server, "run", "--suite", "smoke", "--dry-run", "--out", str(folder))
    assert done.returncode == 0
    assert "8 cells, about" in done.stdout
    assert "vit_layer6_32 32px b1 cpu fp32 infer" in done.stdout
    assert not folder.exists()


@pytest.mark.usefixtures("shared_workers")
def test_measure_takes_a_name_in_fresh_processes() -> None:
    record = vitbench.measure(
        "vit_layer6_32", batch_size=2, threads=1, processes=2, seconds=0.1, metrics=["params", "latency"]
    )
    assert record.status == "ok"
    assert record.measurement("params").value == 827_530
    assert len(record.measurement("latency").samples) == 2


@pytest.mark.integration
def test_measure_takes_a_module_of_ones_own_in_the_calling_process_and_leaves_it_alone() -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    record = vitbench.measure(model, image_size=8, mode="train", batch_size=4, threads=1, seconds=0.05)
    assert record.status == "ok", record.detail
    assert record.cell.num_classes == 5
    assert record.measurement("params").value == 3 * 64 * 5 + 5
    assert record.measurement("flops").value == 2 * 3 * 64 * 5
    assert record.measurement("training_step").method.endswith("in the calling process")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_measure_leaves_each_part_of_a_module_in_its_mode_and_random_numbers_as_they_were() -> None:
    import torch

    model = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(192, 5)
    )
    model.train()
    model[0].eval()  # frozen
    torch.manual_seed(3)
    vitbench.measure(model, image_size=8, threads=1, metrics=["params", "flops"])
    assert [part.training for part in model] == [False, True, True, True]
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert drawn == torch.rand(1)


def test_texts_and_paths_are_taken_for_each_other(tmp_path: Path) -> None:
    from vitbench.core.errors import DataError, UsageError

    with pytest.raises(UsageError, match="no_such_suite"):
        vitbench.run_suite(tmp_path / "no_such_suite", out=tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cifar10"):
        vitbench.evaluate_model("vit_basic", weights="w.pt", data="cifar10", data_dir=str(tmp_path))
    with pytest.raises(UsageError, match="takes the name of a model, not int"):
        vitbench.evaluate_model(3, weights="w.pt", data="digits")  # type: ignore[arg-type]


def test_what_cannot_be_counted_of_a_module_leaves_its_other_measurements_alone() -> None:
    import torch

    class NeverOnMeta(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.is_meta:
                raise IndexError("no such token")
            return super().forward(images.flatten(1))

    model = NeverOnMeta(3 * 8 * 8, 5)
    wanted = ["flops", "latency", "params"]
    record = vitbench.measure(model, image_size=8, threads=1, seconds=0.05, metrics=wanted)
    assert (record.status, record.detail) == ("ok", "")
    assert record.measurement("flops").status == record.measurement("macs").status == "error"
    assert "no such token" in record.measurement("flops").detail
    assert record.measurement("params").value == 3 * 64 * 5 + 5
    assert record.measurement("latency").status == "ok"
    alone = vitbench.measure(model, image_size=8, threads=1, metrics=["flops", "params"])  # as in a suite of counts
    assert (alone.status, alone.cause) == ("error", "model_bug")
    assert alone.measurement("params").status == "ok"


def test_after_a_module_has_failed_the_rest_is_absent_with_the_reason() -> None:
    import torch

    class OnlyOne(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 1:
                raise IndexError("one picture, please")
            return super().forward(images.flatten(1))

    record = vitbench.measure(
        OnlyOne(3 * 8 * 8, 5), image_size=8, batch_size=2, threads=1, metrics=["latency", "params", "memory"]
    )
    assert (record.status, record.cause) == ("error", "model_bug")
    assert {one.metric: one.status for one in record.measurements} == {
        **dict.fromkeys(("params", "trainable_params", "params_bytes", "buffers", "buffers_bytes"), "ok"),
        "weights_memory": "ok",  # told before the first call failed
        **dict.fromkeys(("inference_peak_memory", "process_peak_memory"), "error"),
        **dict.fromkeys(("latency", "latency_cpu_time", "first_call"), "error"),
    }
    assert "one picture, please" in record.measurement("process_peak_memory").detail
    assert record.measurement("latency").detail.startswith("not tried, because what came before it ended so: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metrics": ["accuracy"]}, "'accuracy' trains a model, which measure() does not. Use run_suite() with data"),
        ({"metrics": ["params", "accuracy"]}, "'accuracy' trains a model"),
        ({"metrics": []}, "metrics=[] is empty. Give names"),
        ({"metrics": ["training_step"]}, "nothing of training_step applies to mode='infer'. Give the other mode"),
        ({"threads": 0}, "threads"),
    ],
    ids=str,
)
def test_measure_refuses_what_it_would_not_do(arguments: dict[str, Any], words: str) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))
    with pytest.raises(UsageError) as caught:
        vitbench.measure(model, image_size=8, **arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_spawned_workers_measure_and_die_as_forked_ones_do(fork_server: Launcher) -> None:
    """What macOS and Windows do: an interpreter for each worker."""

    def outcome_of(launcher: Launcher, builder: str) -> Outcome:
        cell = Cell(
            model=f"module:tests.failing_models:{builder}",
            image_size=(8, 8),
            num_classes=4,
            batch_size=1,
            device="cpu",
            threads=1,
        )
        worker = launcher.start()
        task = Measure(process="memory", metrics=("params", "memory"), cell=cell)
        return finish(worker, converse(worker, task, timeout_s=120), "cpu")

    with contextlib.chdir(ROOT), SpawnLauncher(["--allow-import"]) as spawning:
        spawned, killed = outcome_of(spawning, "works"), outcome_of(spawning, "kills_itself")
    forked = outcome_of(fork_server, "works")
    assert spawned.failure is None
    assert [one.metric for one in spawned.measurements] == [one.metric for one in forked.measurements]
    assert spawned.measurements[0] == forked.measurements[0]
    assert killed.failure is not None
    assert (killed.failure.status, killed.signal) == ("killed", 9)


@pytest.mark.integration
def test_workers_do_not_import_from_the_current_folder(tmp_path: Path) -> None:
    """A timm/ that lies where the run is started would be imported by its workers, and run."""
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise SystemExit('taken from the current folder')")
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "vitbench",
            "run",
            "--suite",
            "zoo-static",
            "--models",
            "vit_layer6_32",
            "--dry-run",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_resumed_folder_that_cannot_be_written_gets_one_line(
    finished: Path, fork_server: Launcher, tmp_path: Path
) -> None:
    folder = copy_of(finished, tmp_path / "run")
    (folder / store.LOCK).unlink()
    (folder / store.LOCK).mkdir()  # as good as a folder that refuses new files, and root is refused too
    done = run_here(fork_server, "run", "--resume", str(folder), "--allow-import")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr

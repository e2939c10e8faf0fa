"""``vitbench ab`` in real git repositories, with real processes of both sides."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest
import torch

from vitbench.cli import run_command
from vitbench.core.errors import UsageError
from vitbench.core.records import Cell
from vitbench.devices import Device
from vitbench.devices.cpu import CpuDevice
from vitbench.devices.cuda import CudaDevice
from vitbench.devices.mps import MpsDevice
from vitbench.regression.ab import processes, side
from vitbench.regression.ab.cells import check_options, choose_cells, choose_suite, make_trials
from vitbench.regression.ab.pairs import BASE, CONTROL, HEAD, Pair, measure_pair
from vitbench.regression.ab.processes import Side, SideError
from vitbench.regression.ab.sequential import Rule, weigh
from vitbench.regression.ab.session import Comparison, _check_own, notes_on
from vitbench.regression.ab.verdicts import Trial, judge
from vitbench.regression.ab.worktrees import InfrastructureError, State, check_out
from vitbench.regression.change import exit_code
from vitbench.suites import make_thresholds
from vitbench.suites.thresholds import parse_option

MODEL = "module:mine:build"
PLAIN = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(192, 192) for _ in range(8)])
    def forward(self, images):
        x = images.flatten(1)
        for _ in range(REPEATS):
            y = self.layers(x)
        return y

def build(*, image_size, num_classes):
    return Model()
"""
SLOW = PLAIN.replace("REPEATS", "16")
FAST = PLAIN.replace("REPEATS", "2")
DYING = FAST.replace(
    "y = self.layers(x)", "import os; print('out of luck', file=__import__('sys').stderr); os._exit(3)"
)
OPTIONS = ("--models", MODEL, "--image-sizes", "8", "--num-classes", "10", "--allow-import")


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path, source: str, name: str) -> None:
    (folder / "mine.py").write_text(source)
    git(folder, "add", "mine.py")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", name)
    git(folder, "tag", name)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's repository with two tagged states; the newest is ``fast``."""
    folder = tmp_path_factory.mktemp("template")
    git(folder, "init", "--quiet")
    for name, source in (("slow", SLOW), ("fast", FAST)):
        commit(folder, source, name)
    return folder


@pytest.fixture
def repository(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template, as the working folder."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_ab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command, with pairs of fewer rounds: the differences here are large."""
    monkeypatch.setattr("vitbench.regression.ab.pairs.ROUNDS", 8)

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = run_command(["ab", *arguments])
        return Done(code, *capsys.readouterr())

    return run


def trial(source: Path | None = None) -> Trial:
    suite = choose_suite(None, {"models": [MODEL], "image_sizes": [8], "num_classes": 10})
    return make_trials(choose_cells(suite, allow_import=True), ())[0]


def pairs_of(cell: str, cpu: list[float], wall: list[float] | None = None) -> list[Pair]:
    """Pairs whose head is so many times as slow as base and control."""

    def times(ratio: float) -> dict[str, tuple[float, ...]]:
        return {BASE: (1.0, 1.0, 1.0), CONTROL: (1.0, 1.0, 1.0), HEAD: (ratio,) * 3}

    walls = wall or cpu
    return [
        Pair(cell=cell, number=number, wall=times(walls[number - 1]), cpu=times(ratio))
        for number, ratio in enumerate(cpu, 1)
    ]


@pytest.mark.integration
def test_added_work_is_found_and_the_same_code_raises_no_alarm(
    repository: Path, run_ab: Callable[..., Done], tmp_path: Path
) -> None:
    """Real processes, from the command to its exit code. Base and its control are the same code, measured in turns."""
    outputs = tmp_path / "changes.md", tmp_path / "changes.json", tmp_path / "changes.xml"
    done = run_ab(
        "--base", "fast", "--head", "slow", *OPTIONS, "--margin", "60%", "--out", str(tmp_path / "out"),
        "--markdown", str(outputs[0]), "--json", str(outputs[1]), "--junit", str(outputs[2]),
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Regression: " in done.stdout
    assert "slower by more than 60.0 %" in outputs[0].read_text()
    found = json.loads(outputs[1].read_text())
    assert found["exit_code"] == 1
    (change,) = (one for one in found["changes"] if one["metric"] == "latency_cpu_time")
    assert change["verdict"] == "worse"
    assert 2 < change["ratio"] < 16  # the layers run 16 times instead of twice
    assert "<failure" in outputs[2].read_text()
    pairs = [Pair.from_json(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert [pair.number for pair in pairs] == list(range(1, found["cells"][0]["pairs"] + 1))
    same = weigh([pair.difference("cpu", CONTROL, (BASE,)) or 0.0 for pair in pairs], Rule(margin=0.6, detect=0.63))
    assert same.slower > Rule.alpha
    facts = json.loads((tmp_path / "out" / "ab.json").read_text())
    assert facts["commits"]["head"] == git(repository, "rev-parse", "slow")
    assert git(repository, "worktree", "list").count("\n") == 0
    assert git(repository, "status", "--porcelain") == ""


def test_changes_that_are_not_committed_are_the_head_unless_another_is_named(repository: Path) -> None:
    (repository / "mine.py").write_text(SLOW)
    with check_out("fast", ".") as (base, head):
        assert (base.root / "mine.py").read_text() == FAST
        assert (head.root / "mine.py").read_text() == SLOW
        assert head.changed
        assert head.label == git(repository, "rev-parse", "HEAD")[:10] + "+"
        assert base.label == f"fast ({base.commit[:10]})"
    assert not base.root.exists()
    assert (repository / "mine.py").read_text() == SLOW


def test_a_worktree_goes_when_the_comparison_fails(repository: Path) -> None:
    def fail() -> None:
        with check_out("slow", "fast") as (base, _):
            (base.root / "left over").write_text("by a build")
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError):
        fail()
    assert git(repository, "worktree", "list").count("\n") == 0


@pytest.mark.integration
def test_a_commit_under_way_is_left_alone(repository: Path) -> None:
    """git tells its hooks where the index of the commit is, and a git that a hook starts would write into it."""
    hook = repository / ".git" / "hooks" / "pre-commit"
    code = "from vitbench.regression.ab.worktrees import check_out\nwith check_out('slow', '.') as (base, _): print(base.root)"
    hook.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)}\n")
    hook.chmod(0o755)
    for options in (("--all",), ()):
        (repository / "mine.py").write_text(f"{FAST}# by {options}\n")
        if not options:
            git(repository, "add", "mine.py")
        git(repository, "commit", "--quiet", *options, "--message", "mine")
        assert git(repository, "show", "HEAD:mine.py") == f"{FAST}# by {options}".strip()
        assert git(repository, "status", "--porcelain", "--untracked-files=no") == ""
    assert git(repository, "worktree", "list").count("\n") == 0


def test_worktrees_of_others_stay_and_those_of_killed_runs_go(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "--quiet", "--detach", str(tmp_path / "theirs"))
    (tmp_path / "theirs").rename(tmp_path / "not mounted now")
    (tmp_path / "vitbench-ab-killed").mkdir()
    git(repository, "worktree", "add", "--quiet", "--detach", str(tmp_path / "vitbench-ab-killed" / "base"))
    shutil.rmtree(tmp_path / "vitbench-ab-killed")
    with check_out("slow", "fast"):
        assert "vitbench-ab-killed" not in git(repository, "worktree", "list")
    (tmp_path / "not mounted now").rename(tmp_path / "theirs")
    assert git(tmp_path / "theirs", "status", "--porcelain") == ""


def test_a_worktree_goes_where_a_hook_fails(repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(InfrastructureError, match="git worktree failed"), check_out("slow", "fast"):
        pass
    assert git(repository, "worktree", "list").count("\n") == 0


def test_refs_that_are_not_there_are_wrong_usage(
    repository: Path, run_ab: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = run_ab("--base", "nowhere", *OPTIONS)
    assert unknown.returncode == 2
    assert "has no commit 'nowhere'" in unknown.stderr
    option = run_ab("--base", "--upload-pack=touch bad", *OPTIONS)
    assert option.returncode == 2
    assert not list(repository.glob("bad*"))
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{repository}", str(shallow))
    monkeypatch.chdir(shallow)
    assert "The clone is shallow: git fetch --unshallow" in run_ab("--base", "HEAD~1", *OPTIONS).stderr
    monkeypatch.chdir(tmp_path)
    outside = run_ab("--base", "HEAD", *OPTIONS)
    assert outside.returncode == 2
    assert "is not in a git repository" in outside.stderr


WRONG_USAGE = [
    ((), "Give --suite NAME or --models A,B"),
    (("--models", MODEL), "add --allow-import if you trust it"),
    (("--models", "vit_layer6_33"), "Did you mean 'vit_layer6_32'?"),
    (("--suite", "frontier"), "searches for the largest batch"),
    (("--models", "vit_basic", "--margin", "5"), "could be meant as per cent"),
    (("--models", "vit_basic", "--margin", "99%"), "leaves nothing to detect"),
    (("--models", "vit_basic", "--inconclusive", "maybe"), "not one of pass, warn, fail"),
    (("--models", "vit_basic", "--mode", "test"), "Allowed: infer, train, both"),
    (("--models", "vit_basic", "--batch-sizes", "many"), "is not a whole number"),
    (("--models", "vit_basic", "--junit", "nowhere/at/all.xml"), "there is no folder"),
    (("--models", "vit_basic", "--threshold", "latency"), "is not METRIC=TOLERANCE"),
    (("--models", "vit_basic", "--threshold", "relative_latency=10%"), "give latency or latency_cpu_time"),
    (("--models", "vit_basic", "--threshold", "params=10%"), "'params=10%' names nothing that is timed here"),
    (("--models", "vit_basic", "--threshold", "training_step=10%"), "names nothing that is timed here"),
    (
        ("--models", "vit_basic", "--threshold", "latency_cpu_time=10%", "--threshold", "latency=5%"),
        "'latency_cpu_time=10%' has no effect beside 'latency=5%': one margin holds for both clocks of a cell",
    ),
    (("--models", "vit_basic", "--threshold", "latenzy=10%"), "Did you mean 'latency'?"),
    (("--models", "vit_basic", "--threshold", "latency@vit_typo=10%"), "no model is called 'vit_typo' here"),
    (("--suite", "cores.toml"), "sets measure.cores, which vitbench ab does not"),
]


@pytest.mark.integration
def test_wrong_usage_is_one_line_and_exit_code_2(repository: Path, run_ab: Callable[..., Done]) -> None:
    (repository / "cores.toml").write_text('models = "vit_basic"\n[measure]\ncores = [0]\n')
    for arguments, words in WRONG_USAGE:
        done = run_ab(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr
    assert not (repository / "runs").exists()


def test_a_cell_that_neither_side_runs_is_inconclusive_beside_others() -> None:
    neither, fine = trial(), trial()
    neither.failed = {BASE: "base: it fails", HEAD: "head: it fails"}
    fine.pairs = pairs_of("x", spread(1.0, 5))
    changes = judge([neither, fine], Rule.alpha)
    assert [(one.verdict, one.gates) for one in changes[:2]] == [("inconclusive", True), ("same", True)]
    assert changes[0].detail == "base: it fails; head: it fails"


class FakeSide:
    """A side without real processes.

    ``unbuildable`` sides cannot build the model; ``flaky`` ones fail the first time. Processes of ``broken`` sides die
    in their sixth turn. The machine has room for two processes: beside two others, those of ``victim`` are killed.
    ``measured`` lists the sides that were started to measure; Ctrl-C is pressed when it has ``interrupted_after``.
    """

    unbuildable: tuple[str, ...] = ()
    flaky: ClassVar[set[str]] = set()
    broken: tuple[str, ...] = ()
    victim = ""
    interrupted_after = 0
    alive = 0
    measured: ClassVar[list[str]] = []

    def __init__(self, state: State) -> None:
        self.state = state

    def __enter__(self) -> FakeSide:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, cell: Mapping[str, Any], role: str) -> FakeProcess:
        FakeSide.alive += 1
        if role == "measure":
            self.measured.append(self.state.name)
        return FakeProcess(self.state.name, role, height=cell["image_size"][0])


@dataclass
class FakeProcess:
    side: str
    role: str
    height: int
    seconds: float = 0.01
    turns: int = 0

    def ready(self) -> dict[str, object]:
        if self.side in FakeSide.unbuildable:
            raise SideError(self.side, "ValueError: no such layer")
        if self.side in FakeSide.flaky:
            FakeSide.flaky.remove(self.side)
            raise SideError(self.side, "the process died; Killed")
        if self.role == "measure" and FakeSide.alive > 2 and self.side == FakeSide.victim:
            raise SideError(self.side, "the process died; Killed")
        if self.height == 16:
            raise SideError(self.side, "ValueError: 16 px is not a multiple of 12")
        return {"parameters": self.height, "own": True, "torch": "x"}

    def turn(self, seconds: float) -> dict[str, object]:
        self.turns += 1
        if FakeSide.interrupted_after == len(FakeSide.measured):
            raise KeyboardInterrupt
        if self.turns > 5 and self.side in FakeSide.broken:
            raise SideError(self.side, "the process died; out of luck")
        return {"wall": 0.01, "cpu": 0.01, "calls": 1}

    def close(self) -> None:
        FakeSide.alive -= 1


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitbench.regression.ab.session.Side", FakeSide)
    initial = {
        "unbuildable": (),
        "flaky": set(),
        "broken": (),
        "victim": "",
        "interrupted_after": 0,
        "alive": 0,
        "measured": [],
    }
    for name, value in initial.items():
        monkeypatch.setattr(FakeSide, name, value)


@pytest.fixture
def run_fakes(repository: Path, run_ab: Callable[..., Done], tmp_path: Path, fakes: None) -> Callable[..., Done]:
    """The command with faked processes of its sides."""
    return lambda *options: run_ab(
        "--base", "slow", "--head", "fast", *OPTIONS, "--out", str(tmp_path / "out"), *options
    )


@pytest.mark.integration
def test_a_side_that_cannot_build_a_model(run_fakes: Callable[..., Done], tmp_path: Path) -> None:
    """A head that fails is a regression, a base that fails is not, and both failing is wrong usage."""
    FakeSide.unbuildable = (HEAD,)
    head = run_fakes("--out", str(tmp_path / "head"))
    assert head.returncode == 1
    assert "head: ValueError: no such layer" in head.stdout
    FakeSide.unbuildable = (BASE,)
    base = run_fakes("--out", str(tmp_path / "base"))
    assert base.returncode == 0, base.stdout
    assert "1 cell was not compared: base: ValueError: no such layer" in base.stdout
    assert "fails" in base.stdout
    assert "for information only" not in base.stdout
    assert "base: ValueError: no such layer" in base.stderr
    assert "not comparable" in run_fakes("--out", str(tmp_path / "all"), "--all").stdout
    FakeSide.unbuildable = (BASE, HEAD)
    both = run_fakes("--out", str(tmp_path / "both"))
    assert both.returncode == 2
    assert "Nothing was compared, as neither side runs a cell: base: ValueError: no such layer" in both.stderr


def test_a_process_that_is_killed_while_it_builds_is_tried_again(run_fakes: Callable[..., Done]) -> None:
    FakeSide.flaky = {HEAD}
    done = run_fakes()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No regression" in done.stdout
    assert not FakeSide.flaky


@pytest.mark.parametrize("victim", [BASE, HEAD])
def test_processes_that_do_not_run_beside_each_other_blame_no_side(
    run_fakes: Callable[..., Done], tmp_path: Path, victim: str
) -> None:
    FakeSide.victim = victim
    done = run_fakes()
    assert done.returncode == 4, done.stdout + done.stderr
    assert f"a pair failed 2 times ({victim}: the process died; Killed), but each side runs alone" in done.stderr
    assert sorted(FakeSide.measured[-2:]) == [BASE, HEAD]
    (cell,) = json.loads((tmp_path / "out" / "ab.json").read_text())["cells"]
    assert cell["failed"] == {}
    assert "do not fit into memory" in cell["together"]


@pytest.mark.parametrize(("broken", "code"), [((HEAD,), 1), ((BASE, HEAD), 2)])
def test_a_side_that_also_fails_alone_is_blamed(
    run_fakes: Callable[..., Done], tmp_path: Path, broken: tuple[str, ...], code: int
) -> None:
    FakeSide.broken = broken
    done = run_fakes()
    assert done.returncode == code, done.stdout + done.stderr
    (cell,) = json.loads((tmp_path / "out" / "ab.json").read_text())["cells"]
    assert cell["failed"] == {side: f"{side}: the process died; out of luck" for side in broken}


def test_an_interrupted_comparison_keeps_its_pairs(run_fakes: Callable[..., Done], tmp_path: Path) -> None:
    FakeSide.interrupted_after = 6
    done = run_fakes()
    assert done.returncode == 130
    assert "Interrupted. The pairs so far are in" in done.stderr
    (line,) = (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()
    assert Pair.from_json(line).number == 1
    assert json.loads((tmp_path / "out" / "ab.json").read_text())["cells"][0]["pairs"] == 1


@pytest.mark.usefixtures("fakes")
def test_time_that_is_up_leaves_open_cells_inconclusive(tmp_path: Path) -> None:
    states = [State(name, name, "0" * 40, False, tmp_path, Path(sys.executable)) for name in (BASE, HEAD)]
    comparison = Comparison(base=states[0], head=states[1], trials=[trial()], folder=tmp_path, max_seconds=0)
    comparison.run()
    assert {(one.verdict, one.detail.split(".")[0]) for one in comparison.changes} == {
        ("inconclusive", "0 pairs: too few to judge")
    }
    assert exit_code(comparison.changes, inconclusive_fails=True) == 3
    notes = notes_on(comparison)
    assert "Time was up after 0 s: cells not clear by then are inconclusive." in notes
    assert "Base and head are the same commit: any difference is noise." in notes


def test_a_cell_whose_processes_do_not_run_together_is_inconclusive_beside_others() -> None:
    full, fine = trial(), trial()
    full.together = "three processes at once do not fit"
    full.pairs = pairs_of("x", spread(1.5, 3))
    fine.pairs = pairs_of("x", spread(1.0, 5))
    changes = judge([full, fine], Rule.alpha)
    assert [(one.verdict, one.gates) for one in changes[:2]] == [("inconclusive", True), ("same", True)]
    assert (changes[0].base, changes[0].head, changes[0].detail) == ("runs", "runs", full.together)
    assert full.is_over(1)
    assert exit_code(changes, inconclusive_fails=True) == 3


@pytest.mark.usefixtures("fakes")
def test_a_model_that_cannot_be_built_in_one_size_is_compared_in_the_others(tmp_path: Path) -> None:
    suite = choose_suite(None, {"models": [MODEL], "image_sizes": [16, 24, 12], "num_classes": 10})
    trials = make_trials(choose_cells(suite, allow_import=True), ())
    states = [State(name, name, "0" * 40, False, tmp_path, Path(sys.executable)) for name in (BASE, HEAD)]
    Comparison(base=states[0], head=states[1], trials=trials, folder=tmp_path).run()
    found = {one.cell.image_size[0]: (set(one.failed), one.parameters, bool(one.pairs)) for one in trials}
    assert found == {
        16: ({BASE, HEAD}, {}, False),
        24: (set(), {BASE: 24, HEAD: 24}, True),
        12: (set(), {BASE: 12, HEAD: 12}, True),
    }


@pytest.mark.integration
def test_code_that_is_not_in_the_folders_compared_is_refused(
    repository: Path, run_ab: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "installed"
    elsewhere.mkdir()
    (elsewhere / "theirs.py").write_text(FAST)
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    options = ("--models", "module:theirs:build", *OPTIONS[2:])
    done = run_ab("--base", "slow", "--head", "fast", *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert f"loads nothing from the folder of base ({elsewhere / 'theirs.py'} is used instead)" in done.stderr
    assert "--install" in done.stderr


def test_an_environment_of_its_own_has_to_hold_what_is_compared(tmp_path: Path) -> None:
    def of(installed: bool) -> Side:
        return Side(State(BASE, BASE, "0" * 40, False, tmp_path, Path(sys.executable), installed=installed))

    facts = {"own": False, "source": "/elsewhere/theirs.py"}
    with pytest.raises(UsageError, match=r"from the folder or environment of base \(/elsewhere.*in src$"):
        _check_own(of(True), "vit", facts)
    with pytest.raises(UsageError, match=r"from the folder of base .*--install gives each side"):
        _check_own(of(False), "vit", facts)
    _check_own(of(True), "vit", {**facts, "own": True})


def test_what_is_own_is_of_the_folder_or_of_the_environment_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, environment = tmp_path / "folder", tmp_path / "environment"
    for one in (folder, environment):
        one.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "prefix", str(environment))

    def own(name: str, file: Path, installed: bool) -> bool:
        module = types.ModuleType(name)
        module.__file__ = str(file)
        monkeypatch.setattr(sys, "modules", {name: module})
        return side.loads_own_files(installed)

    assert own("mine", folder / "mine.py", False)
    assert own("mine", folder / "mine.py", True)
    assert not own("mine", environment / "lib" / "mine.py", False)
    assert own("mine.part", environment / "lib" / "mine" / "part.py", True)
    assert not own("_distutils_hack", environment / "lib" / "_distutils_hack" / "__init__.py", True)
    assert not own("theirs", tmp_path / "theirs.py", True)


def test_a_model_that_reads_numbers_while_it_is_built_is_built_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(cell: dict[str, Any]) -> torch.nn.Module:
        rates = [one.item() for one in torch.linspace(0, 0.1, 3)]
        return torch.nn.Sequential(*[torch.nn.Dropout(rate) for rate in rates], torch.nn.Linear(2, 3))

    told: dict[str, Any] = {}
    monkeypatch.setattr(side, "build", build)
    side.probe({"model": "vit"}, types.SimpleNamespace(send=lambda **event: told.update(event)))  # type: ignore[arg-type]
    assert (told["event"], told["parameters"]) == ("probed", 9)


def test_a_side_whose_python_cannot_start_is_an_infrastructure_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_LOOK_S", 0.05)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no python today >&2\nexit 1\n")
    python.chmod(0o755)
    state = State(HEAD, HEAD, "0" * 40, False, tmp_path, python)
    with Side(state) as side:
        process = side.start(asdict(trial().cell), "probe")
        with pytest.raises(InfrastructureError, match="head: no process started; no python today"):
            process.ready()


@pytest.mark.integration
def test_a_side_without_torch_is_an_infrastructure_error(
    repository: Path, run_ab: Callable[..., Done], tmp_path: Path
) -> None:
    (repository / "torch.py").write_text("raise ImportError('this is not torch')\n")
    done = run_ab("--base", "slow", *OPTIONS, "--out", str(tmp_path / "out"))
    assert done.returncode == 4
    assert "torch cannot be imported: this is not torch" in done.stderr


@pytest.mark.integration
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel ends processes with their parent")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_runner_that_ends_leaves_no_process(repository: Path, tmp_path: Path, end: signal.Signals) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vitbench", "ab", "--base", "fast", "--head", "slow", *OPTIONS, "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as runner:
        deadline = time.monotonic() + 60
        while not (children := psutil.Process(runner.pid).children(recursive=True) if out.is_dir() else []):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        runner.send_signal(end)
    assert runner.returncode == (130 if end == signal.SIGTERM else -signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    if end == signal.SIGTERM:
        assert git(repository, "worktree", "list").count("\n") == 0


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[dict[str, Side]]:
    """A fast base and a head that is not there yet."""
    for name in (BASE, HEAD):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(FAST)
    states = [State(name, name, "0" * 40, False, tmp_path / name, Path(sys.executable)) for name in (BASE, HEAD)]
    with Side(states[0]) as base, Side(states[1]) as head:
        yield {BASE: base, CONTROL: base, HEAD: head}


def all_end(pids: Iterable[int]) -> bool:
    """Whether these processes are gone within seconds."""
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.integration
def test_a_pair_is_three_fresh_processes_that_run_one_at_a_time(sides: dict[str, Side], tmp_path: Path) -> None:
    log = tmp_path / "log"
    source = FAST.replace(
        "        return y",
        f"        import os, time\n        open({str(log)!r}, 'a').write(f'{{os.getpid()}} {{time.monotonic()}}\\n')\n        return y",
    )
    for name in (BASE, HEAD):
        (tmp_path / name / "mine.py").write_text(source)
    pair, facts = measure_pair(
        sides, asdict(trial().cell), name="x", number=1, shuffle=random.Random(0), rounds=5, turn_s=0.01
    )
    assert {len(times) for clock in (pair.wall, pair.cpu) for times in clock.values()} == {5}
    assert set(facts) == {BASE, CONTROL, HEAD}
    calls = [(int(pid), float(when)) for pid, when in (line.split() for line in log.read_text().splitlines())]
    pids = {pid for pid, _ in calls}
    assert len(pids) == 3
    # after all are warm, calls of one process come in runs: five rounds and one of warm-up, three turns each
    warm = [pid for pid, _ in sorted(calls, key=lambda call: call[1])]
    last = {pid: [i for i, one in enumerate(warm) if one == pid] for pid in pids}
    turns = 1 + sum(a != b for a, b in zip(warm[-60:], warm[-59:], strict=False))
    assert all(len(found) > 6 for found in last.values())
    assert turns <= 18
    assert all_end(pids)


@pytest.mark.integration
def test_each_side_runs_its_own_code_and_ignores_other_programs_that_connect(
    sides: dict[str, Side], tmp_path: Path
) -> None:
    (tmp_path / HEAD / "mine.py").write_text(FAST.replace("range(8)", "range(9)"))
    started = {name: sides[name].start(asdict(trial().cell), "probe") for name in (BASE, HEAD)}
    with socket.create_connection(("127.0.0.1", sides[BASE]._listener.getsockname()[1])) as other:
        other.sendall(b'{"event": "hello", "token": "guess", "pid": 1}\n')
        found = {name: process.ready() for name, process in started.items()}
    assert {name: facts["parameters"] for name, facts in found.items()} == {BASE: 8 * 192 * 193, HEAD: 9 * 192 * 193}
    assert {name: Path(facts["source"]).parent.name for name, facts in found.items()} == {BASE: "base", HEAD: "head"}


@pytest.mark.integration
def test_a_process_that_dies_or_fails_is_reported_with_its_last_line(
    sides: dict[str, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of the base dies in its first call. One of the head fails, and reports the variables of workers."""
    (tmp_path / BASE / "mine.py").write_text(DYING)
    names = ("CUDA_DEVICE_ORDER", "KMP_BLOCKTIME", "PYTHONHASHSEED")
    for name in names[:2]:
        monkeypatch.delenv(name, raising=False)
    source = f"import os\n\ndef build(**_):\n    raise ValueError(str({{k: os.environ.get(k) for k in {names}}}) + '\\nmore')\n"
    (tmp_path / HEAD / "mine.py").write_text(source)
    dying, failing = (sides[name].start(asdict(trial().cell), "measure") for name in (BASE, HEAD))
    with pytest.raises(SideError, match="^base: the process died; out of luck$"):
        dying.ready()
    with pytest.raises(SideError) as caught:
        failing.ready()
    variables = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "KMP_BLOCKTIME": "1", "PYTHONHASHSEED": "0"}
    assert str(caught.value) == f"head: ValueError: {variables}"


@pytest.mark.integration
def test_a_process_that_hangs_is_told_of_and_ended(
    sides: dict[str, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / HEAD / "mine.py").write_text(FAST.replace("y = self.layers(x)", "import time; time.sleep(600)"))
    monkeypatch.setattr(processes, "BUILD_S", 2.0)
    process = sides[HEAD].start(asdict(trial().cell), "measure")
    with pytest.raises(SideError, match=r"head: it hangs: no answer within 2 s") as caught:
        process.ready()
    assert caught.value.side == HEAD
    process.close()
    assert all_end([process.pid])


def registry_cell(mode: str, dtype: str, attention: str) -> Cell:
    overrides = {"models": ["cifar_vit_tiny"], "modes": [mode], "dtypes": [dtype], "attention": [attention]}
    (cell,) = choose_cells(choose_suite(None, overrides))
    return cell


@pytest.mark.integration
def test_a_process_times_training_steps_with_explicit_attention(sides: dict[str, Side]) -> None:
    cell = registry_cell("train", "amp", "explicit")
    process = sides[BASE].start(asdict(cell), "measure")
    assert process.ready()["shape"] == [1, cell.num_classes]
    event = process.turn(0.01)
    assert event["calls"] >= 1
    assert 0 < event["wall"] < 5


@pytest.mark.parametrize(("mode", "dtype"), [("infer", "fp32"), ("infer", "bf16"), ("train", "fp32")])
def test_models_of_the_registry_are_called_in_every_way(mode: str, dtype: str) -> None:
    cell = registry_cell(mode, dtype, "fused")
    call, shape = side.make_call(asdict(cell))
    assert shape == [1, cell.num_classes]
    assert side.take_turn(call, 0.0)["calls"] == 1


class Pruned(torch.nn.Linear):
    """A model with a loss of its own, which counts how often that is asked for."""

    def __init__(self) -> None:
        super().__init__(3 * 8 * 8, 10)
        self.ratio = torch.nn.Parameter(torch.ones(()))
        self.asked = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flatten(1))

    def auxiliary_loss(self) -> torch.Tensor | None:
        self.asked += 1
        return self.ratio.square() if self.training else None


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_a_training_step_takes_the_loss_that_a_model_has_of_its_own(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Pruned()
    monkeypatch.setattr(side, "build", lambda cell: model)
    call, shape = side.make_call({**asdict(trial().cell), "mode": mode})
    assert shape == [1, 10]
    asked = model.asked
    call()
    assert model.asked - asked == (1 if mode == "train" else 0)
    assert (model.ratio.grad is not None) == (mode == "train")


@pytest.mark.parametrize("device", [CpuDevice, CudaDevice, MpsDevice])
def test_amp_is_what_it_is_in_a_run(device: type[Device]) -> None:
    kinds = {"bf16": "bfloat16", "fp16": "float16"}
    assert side.amp_dtype(device.kind) == kinds[device(device.kind).amp_dtype]


@pytest.mark.parametrize(
    ("dtype", "low", "scales"), [("amp", "float16", True), ("amp", "bfloat16", False), ("fp32", "float16", False)]
)
def test_a_step_in_fp16_scales_its_loss(dtype: str, low: str, scales: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = []

    class Scaler(torch.amp.GradScaler):
        def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
            scaled.append(self.is_enabled())
            return super().step(optimizer, *args, **kwargs)

    monkeypatch.setattr(side, "build", lambda cell: Pruned())
    monkeypatch.setattr(side, "amp_dtype", lambda kind: low)
    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    call, _ = side.make_call({**asdict(trial().cell), "mode": "train", "dtype": dtype})
    call()
    assert scaled == [scales, scales]  # the first step is a trial


@pytest.mark.parametrize("threads", [1, 2])
def test_a_turn_of_several_threads_is_over_when_they_sleep(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[object] = []

    class FakeLine:
        def __init__(self) -> None:
            self.turns: list[dict[str, float] | None] = [None, {"turn": 0.0}, {"turn": 0.0}]

        def send(self, *, event: str, **facts: object) -> None:
            happened.append(event)

        def receive(self) -> dict[str, float] | None:
            return self.turns.pop()

    for name in ("set_num_threads", "set_num_interop_threads"):
        monkeypatch.setattr(torch, name, lambda count: None)
    monkeypatch.setattr(side, "gc", SimpleNamespace(collect=lambda: None, disable=lambda: None))
    monkeypatch.setattr(side, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(side, "make_call", lambda cell: (lambda: None, [1]))
    clocks = {"perf_counter": time.perf_counter, "process_time": time.process_time}
    monkeypatch.setattr(side, "time", SimpleNamespace(**clocks, sleep=happened.append))
    side.measure({"threads": threads}, FakeLine())  # type: ignore[arg-type]
    rest = [side.SPINNING_S] if threads > 1 else []
    assert happened == ["ready", *rest, "turn", *rest, "turn"]


def test_a_difference_is_the_median_of_the_rounds() -> None:
    pair = Pair(
        cell="x", number=1,
        wall={BASE: (1.0, 2.0, 1.0), CONTROL: (1.0, 2.0, 4.0), HEAD: (1.1, 2.2, 20.0)},
        cpu={BASE: (0.0,), CONTROL: (1.0,), HEAD: (1.0,)},
    )  # fmt: skip
    assert pair.difference("wall") == pytest.approx(0.0953102, abs=1e-6)
    assert pair.difference("cpu") is None  # a clock too coarse to see a call
    assert pair.difference("wall", CONTROL, (BASE,)) == 0.0
    assert Pair.from_json(pair.to_json()) == pair


def verdicts(*trials: Trial) -> dict[tuple[int, str], tuple[str, bool]]:
    changes = judge(trials, Rule.alpha)
    names = [(index, clock) for index, one in enumerate(trials) for clock in one.clocks if not one.failed]
    return {name: (change.verdict, change.gates) for name, change in zip(names, changes, strict=True)}


def spread(ratio: float, count: int) -> list[float]:
    return [ratio * (1 + 0.002 * (number % 3 - 1)) for number in range(count)]


def test_the_clock_of_the_processor_passes_and_either_alarms() -> None:
    calm, waiting, unclear = trial(), trial(), trial()
    calm.pairs = pairs_of("x", spread(1.0, 5))
    waiting.pairs = pairs_of("x", spread(1.0, 5), spread(1.2, 5))  # it sleeps
    unclear.pairs = pairs_of("x", spread(1.0, 5), [0.7, 1.5, 1.0, 0.8, 1.2])
    assert verdicts(calm) == {(0, "cpu"): ("same", True), (0, "wall"): ("same", False)}
    assert verdicts(waiting)[0, "wall"] == ("worse", True)
    assert verdicts(unclear)[0, "wall"] == ("inconclusive", False)


def test_faster_code_is_better_and_unclear_code_is_inconclusive() -> None:
    faster, unclear = trial(), trial()
    faster.pairs = pairs_of("x", spread(0.8, 5))
    unclear.pairs = pairs_of("x", [0.9, 1.2, 1.0, 1.1, 0.95])
    assert verdicts(faster)[0, "cpu"] == ("better", True)
    assert verdicts(unclear)[0, "cpu"] == ("inconclusive", True)


def test_a_machine_on_which_base_differs_from_itself_is_not_believed() -> None:
    doubtful = trial()
    doubtful.pairs = [
        Pair(cell="x", number=one.number, wall=one.wall, cpu={**one.cpu, CONTROL: (1.3 + 0.001 * one.number,) * 3})
        for one in pairs_of("x", spread(1.5, 10))
    ]
    changes = judge([doubtful], Rule.alpha)
    # the wall clock alone would say worse: a machine that does not agree with itself is believed on neither
    assert {one.metric: one.verdict for one in changes} == dict.fromkeys(
        ("latency", "latency_cpu_time"), "inconclusive"
    )
    assert exit_code(changes) == 0
    assert exit_code(changes, inconclusive_fails=True) == 3
    details = {one.metric: one.detail for one in changes}
    assert "base differs from itself by +30" in details["latency_cpu_time"]
    assert "on the other clock: this machine is too noisy now" in details["latency"]


def test_what_does_not_gate_is_judged_by_itself() -> None:
    shown, gating = trial(), trial()
    shown.gates = False
    shown.pairs = pairs_of("x", spread(1.5, 5))
    gating.pairs = pairs_of("x", spread(1.0, 5))
    assert verdicts(shown, gating)[0, "cpu"] == ("worse", False)
    assert exit_code(judge([shown, gating], Rule.alpha)) == 0


@pytest.mark.parametrize(("platform", "clocks"), [("linux", ("cpu", "wall")), ("win32", ("wall",))])
def test_the_clock_of_processes_is_too_coarse_on_windows(
    platform: str, clocks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trial()
    monkeypatch.setattr("vitbench.regression.ab.verdicts.sys.platform", platform)
    assert one.clocks == clocks


def test_more_cells_take_more_evidence() -> None:
    weak = [1.043, 1.037, 1.046, 1.034, 1.041]
    alone = trial()
    alone.pairs = pairs_of("x", weak)
    p = alone.evidence("cpu", tests=1)
    assert p is not None
    assert Rule.alpha / 40 < p.slower <= Rule.alpha
    others = [trial() for _ in range(20)]
    for other in others:
        other.pairs = pairs_of("x", spread(1.0, 5))
    assert verdicts(alone)[0, "cpu"][0] == ("worse" if p.slower <= Rule.alpha / 2 else "same")
    assert verdicts(alone, *others)[0, "cpu"][0] != "worse"


def test_thresholds_set_the_margin_and_what_gates() -> None:
    suite = choose_suite(None, {"models": ["vit_basic", "cifar_vit_tiny"], "modes": ["infer", "train"]})
    rules = make_thresholds(
        [
            {"metric": "latency", "cells": "cifar_*", "tolerance": "10%"},
            {"metric": "training_step", "cells": "vit_basic", "gate": False},
        ],
        "a test",
    )
    asked = make_thresholds([{"metric": "latency", "cells": "vit_basic", "tolerance": "20%"}], "an option")
    trials = make_trials(choose_cells(suite), rules)
    assert [one.rule.margin for one in trials if one.cell.model == "cifar_vit_tiny" and one.cell.mode == "infer"] == [
        0.1
    ]
    # --margin goes before the suite, --threshold before both
    trials = make_trials(choose_cells(suite), rules, asked, margin=0.03)
    found = {(one.cell.model, one.cell.mode): (one.rule.margin, round(one.rule.detect, 3), one.gates) for one in trials}
    assert found == {
        ("vit_basic", "infer"): (0.2, 0.23, True),
        ("vit_basic", "train"): (0.03, 0.06, False),
        ("cifar_vit_tiny", "infer"): (0.03, 0.06, True),
        ("cifar_vit_tiny", "train"): (0.03, 0.06, True),
    }


def test_margins_of_cpu_times_stand_beside_those_of_other_cells_times() -> None:
    cells = choose_cells(choose_suite(None, {"models": ["vit_basic", "cifar_vit_tiny"]}))
    texts = ("latency@cifar_*=5%", "latency_cpu_time=10%")
    rules = make_thresholds([parse_option(text) for text in texts], "an option")
    check_options(texts, rules, cells)
    assert {one.cell.model: one.rule.margin for one in make_trials(cells, (), rules)} == {
        "vit_basic": 0.1,
        "cifar_vit_tiny": 0.05,
    }


def test_a_suite_gives_its_timed_cells_with_one_thread() -> None:
    cells = choose_cells(choose_suite("smoke", {}))
    assert {cell.threads for cell in cells} == {1}
    assert not any(cell.tests for cell in cells)
    assert {(cell.batch_size, cell.mode) for cell in cells} == {(1, "infer"), (2, "infer"), (2, "train")}
    with pytest.raises(UsageError, match="would import and run code"):
        choose_cells(choose_suite(None, {"models": [MODEL]}))


#: Builds the package from its folder with nothing that has to be fetched.
BACKEND = """
import zipfile

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = "mine-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
        wheel.write("mine.py")
        wheel.writestr("mine-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: mine\\nVersion: 1\\n")
        wheel.writestr("mine-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("mine-1.dist-info/RECORD", "")
    return name
"""


@pytest.mark.slow
def test_an_environment_of_its_own_comes_before_what_is_installed_here(repository: Path) -> None:
    (repository / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "mine"\nversion = "1"\n'
    )
    (repository / "backend.py").write_text(BACKEND)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "installable")
    code = "import mine, torch, sys; print(mine.__file__, torch.__file__, sys.prefix, sep='\\n')"
    with check_out("HEAD", "HEAD", install=True) as (base, head):
        assert base.python != head.python
        done = subprocess.run([str(base.python), "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    mine, torch_file, prefix = done.stdout.split()
    assert mine.startswith(prefix)
    assert not torch_file.startswith(prefix)  # what is installed here need not be fetched again
    (repository / "backend.py").write_text("raise ImportError('error: no backend today')")
    with (
        pytest.raises(InfrastructureError, match="pip failed: .*no backend today"),
        check_out("HEAD", ".", install=True),
    ):
        pass


def test_a_comparison_whose_folder_cannot_be_written_is_trouble_of_the_machine(tmp_path: Path) -> None:
    state = State(BASE, BASE, "0" * 40, False, tmp_path, Path(sys.executable))
    comparison = Comparison(base=state, head=state, trials=[], folder=tmp_path / "not there")
    with pytest.raises(InfrastructureError, match="not there"):
        comparison.run()

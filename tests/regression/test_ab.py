"""``vitbench ab`` in real git repositories, with real processes of both sides."""

from __future__ import annotations

import json
import random
import shlex
import shutil
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
from vitbench.devices import Device
from vitbench.devices.cpu import CpuDevice
from vitbench.devices.cuda import CudaDevice
from vitbench.devices.mps import MpsDevice
from vitbench.regression.ab import processes, side
from vitbench.regression.ab.cells import check_options, choose_cells, choose_suite, make_trials
from vitbench.regression.ab.pairs import BASE, CONTROL, HEAD, Pair, play_pair
from vitbench.regression.ab.processes import Side, SideError
from vitbench.regression.ab.sequential import Rule
from vitbench.regression.ab.session import Comparison, Trial, _check_own, judge, read_pairs
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
SLOW = PLAIN.replace("REPEATS", "4")
FAST = PLAIN.replace("REPEATS", "2")
BROKEN = "def build(*, image_size, num_classes):\n    raise ValueError('no such layer\\nand more')\n"
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


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's repository with a state of each kind, tagged; the newest is ``fast``."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet")
    for name, source in (("broken", BROKEN), ("dying", DYING), ("slow", SLOW), ("fast", FAST)):
        commit(folder, source, name)
    monkeypatch.chdir(folder)
    return folder


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_ab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command, with pairs of fewer rounds: what is looked for here is plain to see."""
    monkeypatch.setattr("vitbench.regression.ab.pairs.ROUNDS", 12)

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


def test_work_that_is_added_is_found_and_the_same_code_passes(
    repository: Path, run_ab: Callable[..., Done], tmp_path: Path
) -> None:
    outputs = tmp_path / "changes.md", tmp_path / "changes.json", tmp_path / "changes.xml"
    slower = run_ab(
        "--base", "fast", "--head", "slow", *OPTIONS, "--out", str(tmp_path / "slower"),
        "--markdown", str(outputs[0]), "--json", str(outputs[1]), "--junit", str(outputs[2]),
    )  # fmt: skip
    assert slower.returncode == 1, slower.stdout + slower.stderr
    assert "worse" in slower.stdout
    assert "slower by more than 2.0 %" in outputs[0].read_text()
    found = json.loads(outputs[1].read_text())
    assert found["exit_code"] == 1
    (change,) = [one for one in found["changes"] if one["metric"] == "latency_cpu_time"]
    assert change["verdict"] == "worse"
    assert 1.3 < change["ratio"] < 2.5  # the layers run four times instead of twice
    assert "<failure" in outputs[2].read_text()
    kept = read_pairs(tmp_path / "slower" / "pairs.jsonl")
    assert [pair.number for pair in kept] == list(range(1, len(kept) + 1))
    assert json.loads((tmp_path / "slower" / "ab.json").read_text())["commits"]["head"] == git(
        repository, "rev-parse", "slow"
    )
    assert git(repository, "worktree", "list").count("\n") == 0
    assert git(repository, "status", "--porcelain") == ""

    same = run_ab("--base", "fast", *OPTIONS, "--out", str(tmp_path / "same"), "--margin", "60%")
    assert same.returncode == 0, same.stdout + same.stderr
    assert "No regression" in same.stdout
    assert "the same commit: what differs is noise" in same.stdout


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
    assert "is in no git repository" in outside.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Give --suite NAME or --models A,B"),
        (("--models", MODEL), "add --allow-import if you trust it"),
        (("--models", "vit_layer6_33"), "Did you mean 'vit_layer6_32'?"),
        (("--suite", "frontier"), "searches for the largest batch"),
        (("--models", "vit_basic", "--margin", "5"), "could be meant as per cent"),
        (("--models", "vit_basic", "--margin", "99%"), "leaves nothing to find"),
        (("--models", "vit_basic", "--inconclusive", "maybe"), "not one of pass, warn, fail"),
        (("--models", "vit_basic", "--mode", "test"), "Allowed: infer, train, both"),
        (("--models", "vit_basic", "--batch-sizes", "many"), "is no whole number"),
        (("--models", "vit_basic", "--junit", "nowhere/at/all.xml"), "there is no folder"),
        (("--models", "vit_basic", "--threshold", "latency"), "is not METRIC=TOLERANCE"),
        (("--models", "vit_basic", "--threshold", "relative_latency=10%"), "give latency or latency_cpu_time"),
        (("--models", "vit_basic", "--threshold", "params=10%"), "'params=10%' is about nothing that is timed here"),
        (("--models", "vit_basic", "--threshold", "training_step=10%"), "is about nothing that is timed here"),
        (
            ("--models", "vit_basic", "--threshold", "latency_cpu_time=10%", "--threshold", "latency=5%"),
            "'latency_cpu_time=10%' would set nothing beside 'latency=5%': one margin is for both clocks of a cell",
        ),
        (("--models", "vit_basic", "--threshold", "latenzy=10%"), "Did you mean 'latency'?"),
        (("--models", "vit_basic", "--threshold", "latency@vit_typo=10%"), "no model is called 'vit_typo' here"),
        (("--suite", "cores.toml"), "sets measure.cores, which vitbench ab does not"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    repository: Path, run_ab: Callable[..., Done], arguments: tuple[str, ...], words: str
) -> None:
    (repository / "cores.toml").write_text('models = "vit_basic"\n[measure]\ncores = [0]\n')
    done = run_ab(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (repository / "runs").exists()


def test_a_head_that_fails_is_a_regression_and_a_base_that_fails_is_not(
    repository: Path, run_ab: Callable[..., Done], tmp_path: Path
) -> None:
    head = run_ab("--base", "fast", "--head", "broken", *OPTIONS, "--out", str(tmp_path / "head"))
    assert head.returncode == 1
    assert "head: ValueError: no such layer" in head.stdout
    base = run_ab("--base", "broken", "--head", "fast", *OPTIONS, "--out", str(tmp_path / "base"), "--all")
    assert base.returncode == 0, base.stdout
    assert "not comparable" in base.stdout
    short = run_ab("--base", "broken", "--head", "fast", *OPTIONS, "--out", str(tmp_path / "short"))
    assert short.returncode == 0, short.stdout
    assert "1 cell was not compared: base: ValueError: no such layer" in short.stdout
    assert "fails" in short.stdout
    assert "for information only" not in short.stdout
    assert "base: ValueError: no such layer" in short.stderr
    dying = run_ab("--base", "fast", "--head", "dying", *OPTIONS, "--out", str(tmp_path / "dying"))
    assert dying.returncode == 1
    assert "the process died; out of luck" in dying.stdout


WRONG_SIZE = FAST.replace("x = images.flatten(1)", "x = images.reshape(1, 5)")


def test_where_neither_side_runs_chance_blames_nobody(
    repository: Path, run_ab: Callable[..., Done], tmp_path: Path
) -> None:
    (repository / "mine.py").write_text(WRONG_SIZE)
    git(repository, "commit", "--quiet", "--all", "--message", "both")
    for seed in range(2):  # who is waited for first is drawn: head, base
        done = run_ab("--base", "HEAD", *OPTIONS, "--out", str(tmp_path / f"both-{seed}"), "--seed", str(seed))
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Nothing was compared, as neither side runs a cell" in done.stderr
        assert "reshape" in done.stderr or "shape" in done.stderr
        facts = json.loads((tmp_path / f"both-{seed}" / "ab.json").read_text())
        assert set(facts["cells"][0]["failed"]) == {BASE, HEAD}
    unknown = run_ab("--base", "fast", "--models", "module:mine:biuld", *OPTIONS[2:], "--out", str(tmp_path / "typo"))
    assert unknown.returncode == 2
    assert "biuld" in unknown.stderr


def test_a_cell_that_neither_side_runs_is_inconclusive_beside_others() -> None:
    neither, fine = trial(), trial()
    neither.failed = {BASE: "base: it fails", HEAD: "head: it fails"}
    fine.pairs = pairs_of("x", spread(1.0, 5))
    changes = judge([neither, fine], Rule.alpha)
    assert [(one.verdict, one.gates) for one in changes[:2]] == [("inconclusive", True), ("same", True)]
    assert changes[0].detail == "base: it fails; head: it fails"


class CrowdedSide:
    """A side on a machine that has room for two of its processes: beside two others, those of ``victim`` are killed.
    Those of ``broken`` sides die in their sixth turn, wherever they are. ``played`` holds who was started to play.
    """

    victim = ""
    broken: tuple[str, ...] = ()
    alive = 0
    played: ClassVar[list[str]] = []

    def __init__(self, state: State) -> None:
        self.state = state

    def __enter__(self) -> CrowdedSide:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, cell: Mapping[str, Any], role: str) -> CrowdedProcess:
        CrowdedSide.alive += 1
        if role == "play":
            self.played.append(self.state.name)
        return CrowdedProcess(self.state.name, role)


@dataclass
class CrowdedProcess:
    side: str
    role: str
    seconds: float = 0.01
    turns: int = 0

    def ready(self) -> dict[str, object]:
        if self.role == "play" and CrowdedSide.alive > 2 and self.side == CrowdedSide.victim:
            raise SideError(self.side, "the process died; Killed")
        return {"parameters": 1, "own": True, "torch": "x"}

    def turn(self, seconds: float) -> dict[str, object]:
        self.turns += 1
        if self.turns > 5 and self.side in CrowdedSide.broken:
            raise SideError(self.side, "the process died; out of luck")
        return {"wall": 0.01, "cpu": 0.01, "calls": 1}

    def close(self) -> None:
        CrowdedSide.alive -= 1


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitbench.regression.ab.session.Side", CrowdedSide)
    for name, value in (("victim", ""), ("broken", ()), ("alive", 0), ("played", [])):
        monkeypatch.setattr(CrowdedSide, name, value)


@pytest.mark.usefixtures("crowded")
@pytest.mark.parametrize("victim", [BASE, HEAD])
def test_processes_that_do_not_run_beside_each_other_blame_no_side(
    repository: Path, run_ab: Callable[..., Done], tmp_path: Path, victim: str
) -> None:
    CrowdedSide.victim = victim
    done = run_ab("--base", "slow", "--head", "fast", *OPTIONS, "--out", str(tmp_path / "out"))
    assert done.returncode == 4, done.stdout + done.stderr
    assert f"a pair failed 2 times ({victim}: the process died; Killed), but each side runs alone" in done.stderr
    assert sorted(CrowdedSide.played[-2:]) == [BASE, HEAD]
    (cell,) = json.loads((tmp_path / "out" / "ab.json").read_text())["cells"]
    assert cell["failed"] == {}
    assert "do not fit into memory" in cell["together"]


@pytest.mark.usefixtures("crowded")
def test_a_side_that_fails_alone_too_is_to_blame(repository: Path, run_ab: Callable[..., Done], tmp_path: Path) -> None:
    CrowdedSide.broken = (HEAD,)
    done = run_ab("--base", "slow", "--head", "fast", *OPTIONS, "--out", str(tmp_path / "out"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert json.loads((tmp_path / "out" / "ab.json").read_text())["cells"][0]["failed"] == {
        HEAD: "head: the process died; out of luck"
    }


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


class SizedSide(CrowdedSide):
    """A side whose model has as many parameters as its picture is high, and cannot be built for 16 px."""

    def start(self, cell: Mapping[str, Any], role: str) -> CrowdedProcess:
        process = super().start(cell, role)
        return SizedProcess(process.side, role, height=cell["image_size"][0])


@dataclass
class SizedProcess(CrowdedProcess):
    height: int = 0

    def ready(self) -> dict[str, object]:
        if self.height == 16:
            raise SideError(self.side, "ValueError: 16 px are no multiple of 12")
        return {**super().ready(), "parameters": self.height}


@pytest.mark.usefixtures("crowded")
def test_what_cannot_be_built_in_one_size_is_compared_in_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitbench.regression.ab.session.Side", SizedSide)
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
    assert f"nothing in the folder of base is loaded ({elsewhere / 'theirs.py'} is what runs)" in done.stderr
    assert "--install" in done.stderr


def test_an_environment_of_its_own_has_to_hold_what_is_compared(tmp_path: Path) -> None:
    def of(installed: bool) -> Side:
        return Side(State(BASE, BASE, "0" * 40, False, tmp_path, Path(sys.executable), installed=installed))

    facts = {"own": False, "source": "/elsewhere/theirs.py"}
    with pytest.raises(UsageError, match=r"in the folder or environment of base is loaded \(/elsewhere.*in src$"):
        _check_own(of(True), "vit", facts)
    with pytest.raises(UsageError, match=r"in the folder of base is loaded .*--install gives each side"):
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


def test_a_process_that_is_killed_while_it_builds_is_tried_again(
    repository: Path, run_ab: Callable[..., Done], tmp_path: Path
) -> None:
    once = f"import os, pathlib\nflag = pathlib.Path({str(tmp_path / 'flag')!r})\n"
    once += "if not flag.exists():\n    flag.touch()\n    os.kill(os.getpid(), 9)\n"
    (repository / "mine.py").write_text(once + FAST)
    done = run_ab("--base", "fast", *OPTIONS, "--out", str(tmp_path / "out"), "--margin", "60%")
    assert (tmp_path / "flag").exists()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_side_whose_python_cannot_start_is_trouble_of_the_machine(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no python today >&2\nexit 1\n")
    python.chmod(0o755)
    state = State(HEAD, HEAD, "0" * 40, False, tmp_path, python)
    with Side(state) as side:
        process = side.start(asdict(trial().cell), "probe")
        with pytest.raises(InfrastructureError, match="head: no process began; no python today"):
            process.ready()


def test_a_side_without_torch_is_trouble_of_the_machine(
    repository: Path, run_ab: Callable[..., Done], tmp_path: Path
) -> None:
    (repository / "torch.py").write_text("raise ImportError('this is not torch')\n")
    done = run_ab("--base", "slow", *OPTIONS, "--out", str(tmp_path / "out"))
    assert done.returncode == 4
    assert "torch cannot be imported: this is not torch" in done.stderr


def test_time_that_is_over_leaves_what_is_open_inconclusive(
    repository: Path, run_ab: Callable[..., Done], tmp_path: Path
) -> None:
    done = run_ab(
        "--base", "fast", *OPTIONS, "--max-seconds", "1", "--out", str(tmp_path / "out"), "--inconclusive", "fail"
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "too few to say anything" in done.stdout
    assert "The time was over after 1 s" in (tmp_path / "out" / "report.md").read_text()


def test_an_interrupted_comparison_keeps_its_pairs_and_leaves_no_process(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vitbench", "ab", "--base", "fast", "--head", "slow", *OPTIONS, "--out", str(out)]
    # a margin that 3 pairs cannot clear
    with subprocess.Popen([*command, "--margin", "90%"], stderr=subprocess.PIPE, text=True) as runner:
        pairs = out / "pairs.jsonl"
        deadline = time.monotonic() + 60
        while not (pairs.is_file() and pairs.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        children = psutil.Process(runner.pid).children(recursive=True)
        assert children
        runner.terminate()
        runner.communicate(timeout=30)
    assert runner.returncode in (0, 1, 130)  # it may just have been done
    assert read_pairs(pairs)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert git(repository, "worktree", "list").count("\n") == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel ends forked processes with their server")
def test_a_killed_runner_leaves_no_process(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vitbench", "ab", "--base", "fast", "--head", "slow", *OPTIONS, "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as runner:
        deadline = time.monotonic() + 60
        while not (out / "pairs.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(1)
        children = psutil.Process(runner.pid).children(recursive=True)
        runner.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    # the next comparison forgets the worktree of the dead one
    with check_out("slow", "fast"):
        pass
    subprocess.run(["git", "worktree", "prune"], check=True)


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


def test_a_pair_is_three_fresh_processes_that_run_one_at_a_time(sides: dict[str, Side], tmp_path: Path) -> None:
    log = tmp_path / "log"
    source = FAST.replace(
        "        return y",
        f"        import os, time\n        open({str(log)!r}, 'a').write(f'{{os.getpid()}} {{time.monotonic()}}\\n')\n        return y",
    )
    for name in (BASE, HEAD):
        (tmp_path / name / "mine.py").write_text(source)
    pair, facts = play_pair(
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
    again, _ = play_pair(
        sides, asdict(trial().cell), name="x", number=2, shuffle=random.Random(0), rounds=2, turn_s=0.01
    )
    assert again.number == 2
    new = {int(line.split()[0]) for line in log.read_text().splitlines()} - pids
    assert len(new) == 3


def test_each_side_runs_its_own_code_and_the_same_measuring_file(sides: dict[str, Side], tmp_path: Path) -> None:
    found = {}
    for name in (BASE, HEAD):
        (tmp_path / name / "mine.py").write_text(FAST.replace("range(8)", "range(8)" if name == BASE else "range(9)"))
        process = sides[name].start(asdict(trial().cell), "probe")
        found[name] = process.ready()
        process.close()
    assert found[HEAD]["parameters"] - found[BASE]["parameters"] == 192 * 193
    assert {name: Path(facts["source"]).parent.name for name, facts in found.items()} == {BASE: "base", HEAD: "head"}


def test_a_process_that_hangs_is_told_of_and_ended(
    sides: dict[str, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / HEAD / "mine.py").write_text(FAST.replace("y = self.layers(x)", "import time; time.sleep(600)"))
    monkeypatch.setattr(processes, "BUILD_S", 2.0)
    process = sides[HEAD].start(asdict(trial().cell), "play")
    with pytest.raises(SideError, match=r"head: nothing came within 2 s: it hangs") as caught:
        process.ready()
    assert caught.value.side == HEAD
    process.close()
    assert all_end([process.pid])


def test_a_stranger_who_knocks_is_not_taken_for_a_process(sides: dict[str, Side]) -> None:
    import socket

    side = sides[BASE]
    process = side.start(asdict(trial().cell), "probe")
    with socket.create_connection(("127.0.0.1", side._listener.getsockname()[1])) as stranger:
        stranger.sendall(b'{"event": "hello", "token": "guess", "pid": 1}\n')
        assert process.ready()["parameters"] == 8 * 192 * 193
    process.close()


@pytest.mark.parametrize(
    ("mode", "dtype", "attention"),
    [
        ("infer", "fp32", "fused"),
        ("infer", "bf16", "explicit"),
        ("train", "amp", "explicit"),
        ("train", "fp32", "fused"),
    ],
)
def test_models_of_the_registry_are_timed_in_every_way(
    sides: dict[str, Side], mode: str, dtype: str, attention: str
) -> None:
    overrides = {"models": ["cifar_vit_tiny"], "modes": [mode], "dtypes": [dtype], "attention": [attention]}
    (cell,) = choose_cells(choose_suite(None, overrides))
    process = sides[BASE].start(asdict(cell), "play")
    assert process.ready()["shape"] == [1, cell.num_classes]
    event = process.turn(0.01)
    process.close()
    assert event["calls"] >= 1
    assert 0 < event["wall"] < 5


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
    monkeypatch.setattr(side.gc, "disable", lambda: None)
    monkeypatch.setattr(side, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(side, "make_call", lambda cell: (lambda: None, [1]))
    clocks = {"perf_counter": time.perf_counter, "process_time": time.process_time}
    monkeypatch.setattr(side, "time", SimpleNamespace(**clocks, sleep=happened.append))
    side.play({"threads": threads}, FakeLine())  # type: ignore[arg-type]
    rest = [side.SPINNING_S] if threads > 1 else []
    assert happened == ["ready", *rest, "turn", *rest, "turn"]


def test_processes_of_sides_have_the_variables_of_workers(
    sides: dict[str, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_DEVICE_ORDER", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    source = "import os\n\ndef build(**_):\n    raise ValueError({k: os.environ.get(k) for k in NAMES})\n"
    names = ("CUDA_DEVICE_ORDER", "KMP_BLOCKTIME", "PYTHONHASHSEED")
    (tmp_path / HEAD / "mine.py").write_text(source.replace("NAMES", repr(names)))
    process = sides[HEAD].start(asdict(trial().cell), "probe")
    with pytest.raises(SideError) as caught:
        process.ready()
    process.close()
    found = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "KMP_BLOCKTIME": "1", "PYTHONHASHSEED": "0"}
    assert str(caught.value) == f"head: ValueError: {found}"


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


def test_a_half_written_pair_is_left_out_and_a_damaged_one_told(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    line = pairs_of("x", [1.0])[0].to_json()
    path.write_text(f"{line}\n{line[:20]}")
    assert len(read_pairs(path)) == 1
    path.write_text(f"{line[:20]}\n{line}\n")
    with pytest.raises(ValueError, match="Unterminated|Expecting"):
        read_pairs(path)


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
    assert "on the other clock: this machine cannot tell now" in details["latency"]


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
    monkeypatch.setattr("vitbench.regression.ab.session.sys.platform", platform)
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
    assert {(cell.batch_size, cell.mode) for cell in cells} == {(1, "infer"), (8, "infer"), (8, "train")}
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

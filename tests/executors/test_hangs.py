"""A worker that hangs is ended with everything that it started, and its record says where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from vitbench.core.records import Cell
from vitbench.executors import lifeline, stacks
from vitbench.executors.conversation import STDERR_LINES, Outcome, converse, finish
from vitbench.executors.launcher import Launcher, SpawnedWorker, Worker, make_launcher
from vitbench.executors.protocol import Match, Measure

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "tests" / "executors" / "hanging_models.py").read_text().splitlines()
#: builder -> (the call that never returns, in whose function it stands)
HANGS = {
    "sleeps": ("time.sleep(3600)", "go_wrong"),
    "waits_for_its_own_lock": ("with lock, lock:", "go_wrong"),
    "loops_in_native_code": ("collections.deque(itertools.repeat(0), maxlen=0)", "go_wrong"),
    "blocks_in_native_code": ("ctypes.PyDLL(None).sleep(3600)", "go_wrong"),
    "hangs_in_the_backward_pass": ("time.sleep(0.001)", "backward"),
    "waits_for_an_event": ("threading.Event().wait()", "go_wrong"),
}
TIMEOUT_S = 2

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="forks, and asks for stacks by a signal"),
]


def line_of(builder: str, text: str) -> int:
    """The number of the line of a builder in hanging_models.py."""
    start = next(number for number, line in enumerate(SOURCE) if line.startswith(f"def {builder}("))
    return next(number for number, line in enumerate(SOURCE[start:], start + 1) if line.strip() == text)


def task_of(builder: str) -> Measure:
    cell = Cell(
        model=f"module:tests.executors.hanging_models:{builder}",
        image_size=(8, 8),
        num_classes=4,
        batch_size=1,
        device="cpu",
        threads=1,
        mode="train" if "backward" in builder else "infer",
    )
    return Measure(process="memory", metrics=("memory",), cell=cell)


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("left") / "behind"


@pytest.fixture(scope="module")
def launcher(left_behind: Path) -> Iterator[Launcher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("LEFT_BEHIND", str(left_behind))
        with make_launcher(["torch._dynamo"], allow_import=True) as launcher:  # as a suite with training steps has it
            launcher.wait_until_ready()
            yield launcher


@pytest.fixture(scope="module")
def outcomes(launcher: Launcher) -> dict[str, Outcome]:
    """All of them, which hang at the same time."""
    workers = {name: launcher.start() for name in HANGS}
    found: dict[str, Outcome] = {}

    def hang(name: str, worker: Worker) -> None:
        outcome = converse(worker, task_of(name), timeout_s=TIMEOUT_S)
        found[name] = finish(worker, outcome, "cpu")

    threads = [threading.Thread(target=hang, args=item) for item in workers.items()]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begin < TIMEOUT_S + 15
    return found


def wait_until_gone(pids: list[int]) -> list[int]:
    """Those that still run after a while."""
    deadline = time.monotonic() + 15
    while True:
        alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.05)


def written_pids(path: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 30
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.02)
    return [int(line) for line in path.read_text().split()]


@pytest.mark.parametrize("builder", HANGS)
def test_a_timeout_says_in_which_line_the_worker_was(outcomes: dict[str, Outcome], builder: str) -> None:
    outcome = outcomes[builder]
    assert outcome.failure is not None
    assert (outcome.failure.status, outcome.failure.cause) == ("timeout", "timeout")
    text, function = HANGS[builder]
    call = f"hanging_models.py:{line_of(builder, text)} in {function}"
    said = outcome.failure.detail.partition("; ")[2]
    if builder == "waits_for_an_event":
        assert said.startswith("last in threading.py:")
        assert said.endswith(f" in wait, from {call}")
    else:
        assert said == f"last in {call}"


@pytest.mark.parametrize("builder", HANGS)
def test_the_record_keeps_the_inner_end_of_the_stack(outcomes: dict[str, Outcome], builder: str) -> None:
    lines = outcomes[builder].stderr_tail.splitlines()
    assert len(lines) <= STDERR_LINES
    assert any(line.startswith("Stack, the innermost call first: ") for line in lines)
    calls = [line for line in lines if line.startswith('  File "')]
    assert HANGS[builder][1] in "".join(calls[:3])
    if "backward" not in builder:
        assert any(line.endswith(" in forward") for line in calls)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux gives a process the orphans below it")
@pytest.mark.parametrize("builder", ["leaves_a_daemon", "leaves_a_daemon_and_hangs"])
def test_what_a_worker_leaves_behind_in_a_session_of_its_own_ends_with_it(
    launcher: Launcher, left_behind: Path, builder: str
) -> None:
    before = left_behind.read_text().count("\n") if left_behind.exists() else 0
    worker = launcher.start()
    outcome = finish(worker, converse(worker, task_of(builder), timeout_s=TIMEOUT_S), "cpu")
    assert (outcome.failure is None) == (builder == "leaves_a_daemon")
    pid = written_pids(left_behind, before + 1)[-1]
    assert wait_until_gone([pid]) == []
    worker = launcher.start()  # the server is none the worse for it
    outcome = finish(worker, converse(worker, replace(task_of("sleeps"), metrics=()), timeout_s=30), "cpu")
    assert outcome.failure is None


_RUNNER = """
import sys, time
from tests.executors.test_hangs import task_of
from vitbench.executors.launcher import make_launcher
launcher = make_launcher(allow_import=True)
for builder in ("leaves_a_daemon_and_hangs", "loops_in_native_code", "sleeps"):
    worker = launcher.start()
    worker.send(task_of(builder))
    print(worker.pid, flush=True)
time.sleep(3600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere workers are spawned")
def test_a_killed_runner_takes_workers_along_that_would_compute_for_ever(tmp_path: Path) -> None:
    left = tmp_path / "left"
    runner = subprocess.Popen(
        [sys.executable, "-c", _RUNNER],
        cwd=ROOT,
        env={**os.environ, "LEFT_BEHIND": str(left)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert runner.stdout is not None
        workers = [int(runner.stdout.readline()) for _ in range(3)]
        below = [child.pid for child in psutil.Process(runner.pid).children(recursive=True)]
        daemons = written_pids(left, 1)
        time.sleep(0.5)  # well into it
        assert set(workers) < set(below)
    finally:
        runner.send_signal(signal.SIGKILL)
        runner.communicate()
    assert wait_until_gone([*below, *daemons]) == []


def test_a_spawned_worker_answers_with_its_stack_and_is_held_by_a_lifeline(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = SpawnedWorker()
    try:
        assert converse(worker, Match(patterns=()), timeout_s=60).failure is None  # it has begun
        deadline = time.monotonic() + 20
        stack = worker.ask_for_stack()
        while " in main" not in stacks.last_call(stack) and time.monotonic() < deadline:
            stack = worker.ask_for_stack()  # it was still handing over its last event
        assert " in main" in stacks.last_call(stack)
        assert stack.strip() in worker._stderr.decode()
        assert lifeline.VARIABLE in psutil.Process(worker.pid).environ()
    finally:
        assert worker.end() == 0


def test_on_windows_a_worker_waits_for_its_runner_and_not_for_what_launched_it() -> None:
    """The interpreter of a virtual environment there is a launcher, which waits for the real one."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as runner:
        code = (
            "import sys, time, psutil; from vitbench.executors import lifeline; sys.platform = 'win32'; "
            "lifeline.end_with_runner(); print(1, flush=True); time.sleep(60)"
        )
        environment = {**os.environ, lifeline.VARIABLE: str(runner.pid)}
        with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"1\n"
            assert worker.poll() is None
            runner.kill()
            runner.wait()
            assert worker.wait(20) == 1


@pytest.mark.parametrize("call", ["time.sleep(60)", "__import__('ctypes').CDLL(None).sleep(60)"])
def test_a_process_on_a_lifeline_ends_when_the_other_end_is_gone(call: str) -> None:
    theirs, ours = os.pipe()
    code = f"import time; from vitbench.executors import lifeline; lifeline.end_with_runner(); print(1, flush=True); {call}"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=[theirs],
        env={**os.environ, lifeline.VARIABLE: str(theirs)},
        stdout=subprocess.PIPE,
    )
    os.close(theirs)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        os.close(ours)
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()


# what is kept of a text


DUMP = """Current thread 0x00007f00 [python] (most recent call first):
  File "/home/me/model.py", line 12 in forward
  File "/home/me/model.py", line 7 in <module>
"""


def test_a_crash_keeps_its_name_and_its_innermost_calls() -> None:
    inner = "\n".join(f'  File "/home/me/deep.py", line {number} in call{number}' for number in range(100))
    text = f"a warning\nFatal Python error: Segmentation fault\n\nCurrent thread 0x0f (most recent call first):\n{inner}\n\nExtension modules: numpy, torch (total: 2)\n"
    kept = stacks.shorten(text, 20).splitlines()
    assert kept[:3] == [
        "a warning",
        "Fatal Python error: Segmentation fault",
        "Stack, the innermost call first: deep.py:0 in call0",
    ]
    assert kept[3:-1] == inner.splitlines()[:16]
    assert kept[-1] == "  ... and 84 calls further out"
    assert len(kept) == 20


def test_of_several_threads_the_one_that_the_signal_reached_counts() -> None:
    other = 'Thread 0x01 (most recent call first):\n  File "/x/pool.py", line 3 in idle\n\n'
    assert stacks.last_call(other + DUMP) == "model.py:12 in forward"
    assert stacks.last_call(DUMP + "\n" + other) == "model.py:12 in forward"
    assert "pool.py" not in stacks.shorten(other + DUMP + "\n" + other, 20)
    assert stacks.last_call(other) == "pool.py:3 in idle"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", False),
        ("a warning\n", False),
        (DUMP.splitlines()[0] + "\n", False),
        (DUMP, True),
        ("x\n" + DUMP + "y\n", True),
    ],
)
def test_a_stack_is_whole_once_it_has_calls(text: str, whole: bool) -> None:
    assert stacks.is_whole(text) == whole


def test_a_text_without_a_stack_keeps_its_end() -> None:
    text = "\n".join(f"line {number}" for number in range(100))
    assert stacks.shorten(text, 20).splitlines() == [f"line {number}" for number in range(80, 100)]
    assert stacks.shorten("", 20) == ""
    assert stacks.last_call(text) == ""


def test_what_follows_a_stack_is_kept_too() -> None:
    kept = stacks.shorten(f"before\n{DUMP}after\n", 20).splitlines()
    assert kept[0] == "before"
    assert kept[-1] == "after"

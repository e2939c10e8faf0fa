"""The pytest plugin in sessions of its own: most in this process, where torch is loaded, some as a user starts them."""

from __future__ import annotations

import fnmatch
import gc
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import scipy.special  # noqa: F401
import torch

from vitbench.core.errors import RunFolderError, UsageError
from vitbench.regression import model_guard
from vitbench.regression.expected_values import EXACT, read_expected
from vitbench.regression.history import make_history
from vitbench.regression.stored_runs import find_runs

pytest_plugins = ["pytester"]
pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).parents[2]
INSTALLED = any(point.value == "vitbench.pytest_plugin" for point in importlib.metadata.entry_points(group="pytest11"))
PLUGIN = [] if INSTALLED else ["-p", "vitbench.pytest_plugin"]
QUICK = ["-p", "no:cacheprovider", "--benchmark-max-time=0.02"]
UNTIMED = "--benchmark-disable"

MODEL = """
import os, time
import torch
from torch import nn


class Mean(nn.Module):
    def __init__(self, width=8, layers=1):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), *(nn.Linear(width, width) for _ in range(layers)))
        self.head = nn.Linear(width, 10)
        self.calls = []

    def forward(self, images):
        time.sleep(float(os.environ.get("SLOW", "0")))
        if not images.is_meta and "Fake" not in type(images).__name__:
            self.calls.append((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        return self.head(self.body(images.mean(dim=(2, 3))))
"""
#: Weights and biases of Mean(8, 1).
PARAMS = (3 + 1) * 8 + (8 + 1) * 8 + (8 + 1) * 10
FLOPS = 2 * (3 * 8 + 8 * 8 + 8 * 10)

TORCH = ".".join(torch.__version__.split(".")[:2])

FIVE_LINES = """
from mean import Mean

def test_mean(vitbench):
    vitbench(Mean(), image_size=16, batch_size=2)
"""


@pytest.fixture(autouse=True)
def not_a_worker_of_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pytest runs that these tests start are runs of their own, in which pytest-benchmark may time."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module", autouse=True)
def _everything_is_loaded() -> None:
    """A session in this process forgets what it has loaded, and torch takes seconds to load anew. What is loaded is
    garbage of no collection.
    """
    with model_guard.open_subject(torch.nn.Flatten(), {"image_size": 4}) as subject:
        model_guard.count_exactly(subject)
    gc.freeze()


def test_a_module_is_counted_in_its_own_type_and_channels() -> None:
    """4 patches of 4 channels x 16 pixels to 8 numbers."""
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 4, 4), torch.nn.Flatten()).bfloat16()
    with model_guard.open_subject(model, {"image_size": 8, "in_channels": 4}) as subject:
        found = model_guard.count_exactly(subject)
    assert (subject.cell.dtype, found["output"], found["flops"]) == ("bf16", "bfloat16 1x32", 2 * 4 * 4 * 16 * 8)


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(mean=MODEL)
    return pytester


def run(suite: pytest.Pytester, test: str | None, *options: str) -> pytest.RunResult:
    if test is not None:
        suite.makepyfile(test_it=test)
    sys.modules.pop("mean", None)
    return suite.runpytest_inprocess(*PLUGIN, *QUICK, *options)


def start(suite: pytest.Pytester, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a user does: a program of its own."""
    command = [sys.executable, "-m", "pytest", *PLUGIN, "-p", "no:cacheprovider", *options]
    return subprocess.run(
        command, cwd=suite.path, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def expected(suite: pytest.Pytester) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((suite.path / "vitbench-expected.json").read_text())
    return content


def expect(suite: pytest.Pytester, **tests: dict[str, Any]) -> None:
    """Write the file of expected figures; of the tests in test_it.py, by name."""
    noted = {f"test_it.py::{name}": {"torch": TORCH, **figures} for name, figures in tests.items()}
    (suite.path / "vitbench-expected.json").write_text(json.dumps({"schema": 1, "tests": noted}))


# exact figures


@pytest.mark.integration
def test_figures_are_noted_then_compared_and_a_change_is_named(suite: pytest.Pytester) -> None:
    noted = run(suite, FIVE_LINES, "--vitbench-update")
    noted.assert_outcomes(passed=1)
    noted.stdout.fnmatch_lines(["vitbench: recorded the exact values of 1 test in vitbench-expected.json: review it"])
    (figures,) = expected(suite)["tests"].values()
    assert list(expected(suite)["tests"]) == ["test_it.py::test_mean"]
    assert (figures["params"], figures["flops"], figures["output"]) == (PARAMS, FLOPS, "float32 2x10")
    assert figures["tensor_peak"] > 4 * (PARAMS + 2 * 3 * 16 * 16)
    changed = run(suite, FIVE_LINES.replace("Mean()", "Mean(layers=2)"))
    changed.assert_outcomes(failed=1)
    changed.stdout.fnmatch_lines(
        [
            "exact values differ from those in vitbench-expected.json (test_it.py::test_mean):",
            f"  params: {PARAMS} expected, {PARAMS + 72} found (+72)",
            f"  flops: {FLOPS} expected, {FLOPS + 128} found (+128)",
            "  state_dict: 6 entries, digest * expected, 8 entries, digest * found",
            "If the change is meant, record it with --vitbench-update, and have it reviewed.",
        ],
        consecutive=False,
    )


CHANGES = {
    "nothing": ("", ""),
    "output": ("nn.Linear(width, 10)", "nn.Linear(width, 11)"),
    "state_dict": ("self.head", "self.neck"),
    "trainable_params": ("nn.Linear(width, 10)", "nn.Linear(width, 10).requires_grad_(False)"),
    "buffers": ("self.calls = []", "self.calls = []; self.register_buffer('more', torch.zeros(3))"),
    "tensor_peak": ("self.body(images", "self.body(images.clone()"),
    # nothing is known without numbers any more: that is a change, too
    "flops": ("        return self.head", "        assert images.sum() != 1.5\n        return self.head"),
}


@pytest.mark.integration
def test_each_kind_of_change_is_caught_and_named(suite: pytest.Pytester) -> None:
    names = [name.replace("_", "") for name in CHANGES]
    test = "".join(
        f"import {name}\n\ndef test_{name}(vitbench):\n    vitbench({name}.Mean(), image_size=16)\n\n" for name in names
    )
    for name in names:
        (suite.path / f"{name}.py").write_text(MODEL)
    run(suite, test, "--vitbench-update", UNTIMED).assert_outcomes(passed=len(names))
    for name, (old, new) in zip(names, CHANGES.values(), strict=True):
        (suite.path / f"{name}.py").write_text(MODEL.replace(old, new) if old else MODEL)
        sys.modules.pop(name, None)
    result = run(suite, None, UNTIMED)
    result.assert_outcomes(passed=1, failed=len(names) - 1)
    for name in [name for name in CHANGES if name != "nothing"]:
        result.stdout.fnmatch_lines(
            [f"*(test_it.py::test_{name.replace('_', '')}):", f"  {name}: * expected, * found*"], consecutive=False
        )


def test_an_update_keeps_what_tests_noted_that_did_not_run(suite: pytest.Pytester) -> None:
    expect(suite, test_mean={"params": 1}, test_other={"params": 2}, test_gone={"params": 3})
    run(suite, FIVE_LINES, "--vitbench-update", UNTIMED).assert_outcomes(passed=1)
    params = {key.split("::")[1]: one["params"] for key, one in expected(suite)["tests"].items()}
    assert params == {"test_gone": 3, "test_mean": PARAMS, "test_other": 2}


def test_what_follows_torch_is_not_compared_under_another_torch(suite: pytest.Pytester) -> None:
    two = FIVE_LINES + "\ndef test_other(vitbench):\n    vitbench(Mean(), image_size=16)\n"
    old = {"torch": "1.13", "tensor_peak": 1}
    expect(suite, test_mean={**old, "params": PARAMS}, test_other={**old, "params": 5})
    result = run(suite, two, UNTIMED)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            f"  params: 5 expected, {PARAMS} found*",
            f"vitbench: tensor_peak not compared: recorded under torch 1.13, this is {TORCH}",
        ]
    )


def test_figures_can_stand_in_the_test_itself_and_tests_without_any_are_told_of(suite: pytest.Pytester) -> None:
    three = FIVE_LINES + f"    vitbench.assert_exact(params={PARAMS}, flops={FLOPS}, output='float32 2x10')\n"
    three += "\ndef test_wrong(vitbench):\n    vitbench(Mean(), image_size=16)\n    vitbench.assert_exact(params=5)\n"
    three += "\ndef test_bare(vitbench):\n    vitbench(Mean(), image_size=16)\n"
    result = run(suite, three, UNTIMED)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "exact values differ from those in the test:",
            f"  params: 5 expected, {PARAMS} found*",
            "vitbench: no exact values are expected of test_it.py::test_bare yet: record them with --vitbench-update",
        ]
    )


def test_a_damaged_file_is_told_in_one_line(suite: pytest.Pytester) -> None:
    (suite.path / "vitbench-expected.json").write_text('{"schema": 1, "tests": {"a": 3}}')
    result = run(suite, FIVE_LINES, UNTIMED)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*vitbench-expected.json cannot be read (tests.a is 3, not an object). Mend it, or *"])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize("text", ['<<<<<<< HEAD\n{"schema": 1}', '{"schema": 99, "tests": {}}'])
def test_a_damaged_file_is_written_anew_by_an_update_which_says_so(suite: pytest.Pytester, text: str) -> None:
    (suite.path / "vitbench-expected.json").write_text(text)
    result = run(suite, FIVE_LINES, UNTIMED, "--vitbench-update")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "vitbench: vitbench-expected.json was damaged and is replaced: it lacks the tests that did not run",
            "vitbench: recorded the exact values of 1 test in vitbench-expected.json: review it",
        ]
    )
    assert expected(suite)["tests"]["test_it.py::test_mean"]["params"] == PARAMS


def unwritable(*_: Any) -> None:
    raise RunFolderError("Cannot write here: Read-only file system")


def test_figures_that_cannot_be_written_fail_the_session_in_one_line(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitbench.core.run_folder.write_atomically", unwritable)
    result = run(suite, FIVE_LINES, UNTIMED, "--vitbench-update")
    result.assert_outcomes(passed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["vitbench: the exact values of 1 test could not be recorded: Cannot write here: Read-only file system"]
    )
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


@pytest.mark.slow
def test_what_a_worker_of_xdist_cannot_write_fails_the_session_too(suite: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    suite.makepyfile(test_it=FIVE_LINES)
    suite.makeconftest(
        "import pytest, vitbench.core.run_folder\nfrom vitbench.core.errors import RunFolderError\n\n"
        "def unwritable(*_):\n    raise RunFolderError('Cannot write here')\n\n"
        "vitbench.core.run_folder.write_atomically = unwritable\n"
    )
    done = start(suite, "-n", "1", "--vitbench-update")
    assert done.returncode == 1, done.stdout
    assert "vitbench: the exact values of 1 test could not be recorded: Cannot write here" in done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 99, "tests": {}}', '{"schema": 1}', '{"a": ' * 9999])
def test_a_file_of_another_kind_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "vitbench-expected.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"cannot be read \(.*\)\. Mend it"):
        read_expected(path)


# how it measures


@pytest.mark.integration
def test_the_forward_pass_is_timed_in_eval_without_gradients_on_one_thread_and_on_a_copy(
    suite: pytest.Pytester,
) -> None:
    result = run(
        suite,
        """
import torch
from mean import Mean

CALLS = []

class Spy(Mean):
    def __deepcopy__(self, memo):
        copied = Mean()
        copied.calls = CALLS
        return copied

def test_it(vitbench, benchmark):
    model = Spy().train()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    figures = vitbench(model, image_size=16)
    assert set(CALLS) == {(False, False, 1)}
    assert len(CALLS) > 10
    assert model.training and model.calls == []
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    info = benchmark.extra_info
    assert info["params"] == figures["params"] and info["flops"] == figures["flops"]
    assert (info["batch_size"], info["device"], info["threads"]) == (1, "cpu", 1)
    assert info["warmup_calls"] >= 10
    assert benchmark.stats.stats.rounds >= 5
""",
    )
    result.assert_outcomes(passed=1)


def test_the_device_is_waited_for_on_both_sides_of_each_call() -> None:
    events: list[str] = []

    class FakeDevice:
        def synchronize(self) -> None:
            events.append("wait")

    class FakeSubject:
        device = FakeDevice()

        def prepare(self) -> None:
            events.append("prepare")

        def forward(self) -> str:
            events.append("call")
            return "output"

    call = model_guard.timed_call(FakeSubject())  # type: ignore[arg-type]
    assert [call(), call()] == ["output", "output"]
    assert events == ["prepare", "wait", "call", "wait", "call", "wait"]


def test_warm_up_goes_on_until_the_calls_have_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    made = [0]

    def call() -> None:
        made[0] += 1
        clock[0] += 0.001 * (1 + 9 * math.exp(-made[0] / 60) + 0.02 * (made[0] % 3))

    # a tenth of a second would be over after a dozen calls, seven times as slow as later ones
    assert 150 <= model_guard.warm_up(call, 0.1) <= 600

    def never() -> None:
        made[0] += 1
        clock[0] += 1.0 / made[0]

    begin = clock[0]
    model_guard.warm_up(never, 0.1)
    assert clock[0] - begin <= 1.0 + 0.1


@pytest.mark.integration
def test_the_marker_gives_what_a_call_does_not_and_models_may_be_names(suite: pytest.Pytester) -> None:
    test = """
import pytest
from mean import Mean

@pytest.mark.vitbench(image_size=(8, 16), batch_size=4, exact=["params", "output"])
@pytest.mark.parametrize("width", [8, 16])
def test_it(vitbench, width):
    assert vitbench(Mean(width), batch_size=3)["output"] == "float32 3x10"

@pytest.mark.vitbench(exact=["params"])
def test_name(vitbench):
    assert vitbench("vit_basic_tutorial")["params"] > 100_000
"""
    words = ["--vitbench-update", "--strict-markers", "-m", "vitbench", UNTIMED]
    run(suite, test, *words).assert_outcomes(passed=3)
    noted = expected(suite)["tests"]
    assert list(noted) == ["test_it.py::test_it[16]", "test_it.py::test_it[8]", "test_it.py::test_name"]
    assert set(noted["test_it.py::test_it[8]"]) == {"params", "output", "torch"}


WRONG = {
    "no size": ("vitbench(Mean())", "vitbench(model) needs image_size=*"),
    "an unknown argument": ("vitbench(Mean(), size=16)", "vitbench(..., size=...): known are image_size, *"),
    "a size that is none": ("vitbench(Mean(), image_size='big')", "Image size 'big' is neither N nor HxW*"),
    "no batch": (
        "vitbench(Mean(), image_size=16, batch_size=0)",
        "vitbench(..., batch_size=0): give a whole number of 1 or more",
    ),
    "no device": ("vitbench(Mean(), image_size=16, device='tpu')", "*'tpu'*"),
    "no dtype": ("vitbench(Mean(), image_size=16, dtype='int4')", "vitbench(..., dtype='int4'): known are fp32*"),
    "no figure": (
        "vitbench(Mean(), image_size=16, exact=['speed'])",
        "vitbench(..., exact='speed'): known are params*",
    ),
    "two models": ("[vitbench(Mean(), image_size=16) for _ in 'ab']", "vitbench(...) takes one model a test*"),
    "too early": ("vitbench.assert_exact(params=3)", "vitbench.assert_exact(...) comes after vitbench(model, ...)"),
    "not finite": ("m = Mean(); m.head.bias.data[0] = float('nan'); vitbench(m, image_size=16)", "*are not finite*"),
    "an unknown name": ("vitbench('vit_tny')", "Unknown model 'vit_tny'*"),
}


def test_wrong_usage_is_one_line_without_a_traceback(suite: pytest.Pytester) -> None:
    calls = "".join(f"\ndef test_{i}(vitbench):\n    {call}\n" for i, (call, _) in enumerate(WRONG.values()))
    result = run(suite, f"from mean import Mean\n{calls}", UNTIMED)
    result.assert_outcomes(failed=len(WRONG))
    for i, (_, words) in enumerate(WRONG.values()):
        result.stdout.re_match_lines([rf"_+ test_{i} _+", fnmatch.translate(words)], consecutive=True)
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize(("marker", "words"), [("(224)", "*takes names: *"), ("(size=3)", "*(size=...): known are*")])
def test_a_wrong_marker_is_one_line(suite: pytest.Pytester, marker: str, words: str) -> None:
    test = f"import pytest\n\n@pytest.mark.vitbench{marker}\ndef test_it(vitbench):\n    pass\n"
    result = run(suite, test)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([words])


# beside pytest-benchmark


@pytest.mark.integration
def test_its_options_work_as_ever(suite: pytest.Pytester) -> None:
    other = FIVE_LINES + "\ndef test_other():\n    pass\n"
    run(suite, other, "--benchmark-only").assert_outcomes(passed=1, skipped=1)
    run(suite, other, "--benchmark-skip").assert_outcomes(passed=1, skipped=1)


def test_exact_figures_are_compared_where_times_are_switched_off(suite: pytest.Pytester) -> None:
    expect(suite, test_mean={"params": 5})
    result = run(suite, FIVE_LINES, UNTIMED)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  params: 5 expected*"])


def test_without_pytest_benchmark_exact_figures_are_compared_and_a_warning_says_so(suite: pytest.Pytester) -> None:
    expect(suite, test_mean={"params": 5}, test_good={"params": PARAMS})
    good = "\ndef test_good(vitbench):\n    vitbench(Mean(), image_size=16)\n"
    suite.makepyfile(test_it=FIVE_LINES + good)
    result = suite.runpytest_inprocess(*PLUGIN, "-p", "no:cacheprovider", "-p", "no:benchmark")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["  params: 5 expected*", "*NoTimesWarning: pytest-benchmark is not installed: exact values were checked*"]
    )


def test_a_session_that_does_not_use_it_sees_nothing_of_it(suite: pytest.Pytester) -> None:
    result = run(suite, "def test_it():\n    pass\n")
    result.assert_outcomes(passed=1)
    assert "vitbench:" not in result.stdout.str()
    assert not list(suite.path.glob("vitbench-*"))


def test_loading_it_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, vitbench.pytest_plugin; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_is_an_entry_point_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"vitbench": "vitbench.pytest_plugin"}
    assert any(one.startswith("pytest-benchmark") for one in project["optional-dependencies"]["pytest"])


@pytest.mark.integration
def test_a_slow_down_fails_by_pytest_benchmarks_own_rule_and_history_reads_what_it_stored(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW", "0.002")
    words = ["--benchmark-max-time=0.1", "--benchmark-save=run"]
    run(suite, FIVE_LINES, *words, "--vitbench-update").assert_outcomes(passed=1)
    # the same code passes where the threshold leaves room for the machine
    same = run(suite, None, *words, "--benchmark-compare=0001", "--benchmark-compare-fail=min:300%")
    same.assert_outcomes(passed=1)
    assert same.ret == 0
    monkeypatch.setenv("SLOW", "0.006")
    slow = run(suite, None, *words, "--benchmark-compare=0001", "--benchmark-compare-fail=mean:5%")
    assert slow.ret != 0
    assert "Performance has regressed" in slow.stdout.str() + slow.stderr.str()
    assert "exact values differ" not in slow.stdout.str()
    stored = json.loads(next(suite.path.glob(".benchmarks/*/0001_run.json")).read_text())
    (one,) = stored["benchmarks"]
    assert one["extra_info"]["params"] == PARAMS
    assert one["stats"]["median"] >= 0.002
    history = make_history(find_runs([suite.path / ".benchmarks"]))
    assert {series.metric for series in history.series} == {"median", *EXACT}
    assert history.steps == ()


@pytest.mark.slow
def test_several_processes_note_their_figures_in_one_file(suite: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    tests = "".join(f"\ndef test_{i}(vitbench):\n    vitbench(Mean({8 + i}), image_size=16)\n" for i in range(6))
    suite.makepyfile(test_it="from mean import Mean\n" + tests)
    done = start(suite, "-n", "2")
    assert "vitbench: no exact values are expected of test_it.py::test_" in done.stdout
    assert "and 3 more yet: record them with --vitbench-update" in done.stdout
    done = start(suite, "-n", "2", "--vitbench-update")
    assert done.returncode == 0, done.stdout
    assert "vitbench: recorded the exact values of 6 tests in vitbench-expected.json: review it" in done.stdout
    assert len(expected(suite)["tests"]) == 6
    noted = expected(suite)
    for one in noted["tests"].values():
        one["torch"] = "1.0.0"
    (suite.path / "vitbench-expected.json").write_text(json.dumps(noted))
    done = start(suite, "-n", "2")
    assert "not compared: recorded under torch 1.0" in done.stdout

"""How much is sampled, and where: --processes, --precision, measure.cores, and the warning before the cells."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vitbench.cli import run_command
from vitbench.core.errors import SuiteError, UsageError
from vitbench.core.records import Cell
from vitbench.devices.host.load import Load
from vitbench.runner import plan as planning
from vitbench.runner import run as runner
from vitbench.runner.plan import Plan, check_before_loading
from vitbench.runner.progress import Progress
from vitbench.suites import Suite, load_suite, make_suite, to_toml
from vitbench.suites.overrides import prepare_suite
from vitbench.suites.schema import Measure


def suite_of(measure: dict[str, Any] | None = None, **keys: Any) -> Suite:
    content = {"name": "x", "models": ["vit_basic"], "measure": measure or {}, **keys}
    return make_suite(content, "x.toml")


# the options


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The overrides of each ``vitbench run``, which is stopped before it plans anything."""
    seen: list[dict[str, Any]] = []
    ignored = ("out", "allow_import", "allow_many_cells", "progress")

    def stop(suite: str, *, quick: bool, **options: Any) -> None:
        overrides = {key: value for key, value in options.items() if key not in ignored}
        seen.append(overrides)
        prepare_suite(suite, overrides, quick=quick)
        raise UsageError("planned")

    monkeypatch.setattr(runner, "run_suite", stop)
    return seen


@pytest.mark.parametrize(
    ("text", "precision"),
    [("5%", 0.05), ("0.05", 0.05), (" 2.5 % ", 0.025), ("0", 0.0), ("0%", 0.0), ("99%", 0.99), ("1e-3", 0.001)],
)
def test_a_precision_is_a_share_or_a_percentage(asked: list[dict[str, Any]], text: str, precision: float) -> None:
    run_command(["run", "--suite", "smoke", "--precision", text])
    assert asked[0]["precision"] == pytest.approx(precision)
    assert prepare_suite("smoke", {"precision": precision, "processes": 5}).measure.precision == precision


def test_a_precision_takes_five_processes() -> None:
    """The suite has one: how processes differ could not be known, and the option would do nothing."""
    with pytest.raises(UsageError, match="takes 5 processes at least.* there are 1. Add --processes 5"):
        prepare_suite("smoke", {"precision": 0.05})
    assert prepare_suite("smoke", {"precision": 0.0}).measure.processes == 1


@pytest.mark.parametrize("text", ["5", "-1", "-1%", "x", "", "%", "1", "100%", "inf", "nan", "nan%", "5%%"])
def test_an_invalid_precision_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["run", "--suite", "smoke", "--precision", text]) == 2
    errors = capsys.readouterr().err
    assert errors == f"Error: Option --precision: {text!r} is not a fraction of the time, such as 5% or 0.05\n"
    assert not list(tmp_path.iterdir())


def test_processes_replace_those_of_the_suite_and_leave_the_rest(asked: list[dict[str, Any]]) -> None:
    run_command(["run", "--suite", "smoke", "--processes", "7"])
    assert asked[0]["processes"] == 7
    before, after = prepare_suite("smoke", {}), prepare_suite("smoke", {"processes": 7})
    assert after.measure == before.measure.model_copy(update={"processes": 7})
    assert after.model_copy(update={"measure": before.measure}) == before


def test_options_that_are_not_given_leave_the_suite_as_it_is(asked: list[dict[str, Any]]) -> None:
    run_command(["run", "--suite", "smoke"])
    assert asked[0].keys().isdisjoint({"processes", "precision"})
    assert prepare_suite("smoke", asked[0]) == load_suite("smoke")


def test_both_options_go_together_and_with_a_measure_section() -> None:
    suite = prepare_suite("smoke", {"processes": 9, "precision": 0.0, "measure": {"seconds": 0.5, "cores": [0]}})
    assert suite.measure == Measure(processes=9, precision=0.0, seconds=0.5, cores=(0,))


@pytest.mark.parametrize("text", ["0", "-3", "many", "1.5"])
def test_processes_are_a_whole_number_of_at_least_one(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert run_command(["run", "--suite", "smoke", "--processes", text]) == 2
    errors = capsys.readouterr().err
    assert "--processes" in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize(("key", "value"), [("processes", 0), ("precision", 1.0), ("precision", -0.1)])
def test_from_python_they_are_checked_too(key: str, value: float) -> None:
    with pytest.raises(SuiteError, match=f"key measure.{key}"):
        prepare_suite("smoke", {key: value})


def test_a_run_that_goes_on_takes_neither(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--processes", "3"), ("--precision", "0")):
        assert run_command(["run", "--resume", "nowhere", option, value]) == 2
        assert f"leave out {option}" in capsys.readouterr().err


# the suite's section


@pytest.mark.parametrize(
    "measure",
    [
        {},
        {"processes": 3, "seconds": 0.25, "min_samples": 2, "max_samples": 7},
        {"precision": 0.0},
        {"patience_s": 0.0},
        {"precision": 1e-5, "max_processes": 40, "max_seconds": 1e8},
        {"cores": [0]},
        {"cores": [3, 1, 2]},
        {"processes": 20, "max_processes": 5},
    ],
    ids=str,
)
def test_what_is_measured_survives_being_written(measure: dict[str, Any], tmp_path: Path) -> None:
    suite = suite_of(measure)
    path = tmp_path / "suite.toml"
    path.write_text(to_toml(suite), encoding="utf-8")
    assert load_suite(str(path)) == suite
    written = tomllib.loads(path.read_text(encoding="utf-8"))["measure"]
    assert ("cores" in written) == ("cores" in measure)
    for key, value in measure.items():
        assert written[key] == value


@pytest.mark.parametrize(
    ("measure", "key"),
    [
        ({"precision": 1}, "precision"),
        ({"precision": -0.01}, "precision"),
        ({"precision": float("nan")}, "precision"),
        ({"precision": "150%"}, "precision"),
        ({"precision": "five"}, "precision"),
        ({"precision": True}, "precision"),
        ({"max_processes": 0}, "max_processes"),
        ({"max_seconds": 0}, "max_seconds"),
        ({"max_seconds": float("inf")}, "max_seconds"),
        ({"patience_s": -1}, "patience_s"),
        ({"patience_s": float("inf")}, "patience_s"),
        ({"cores": [-1]}, "cores"),
        ({"cores": ["0"]}, "cores"),
        ({"cores": 2}, "cores"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(measure: dict[str, Any], key: str) -> None:
    with pytest.raises(SuiteError, match=f"Suite x.toml, key measure.{key}"):
        suite_of(measure)


# cores


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose cores 0 to 3 may be used, and two threads by default."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(planning, "default_threads", lambda: 2)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("cores", "threads"), [([0], [1]), ([0, 1], [2]), ([3, 1], [1, 2]), ([0, 1], ["auto"]), (None, [64])], ids=str
)
def test_cores_that_can_be_had(cores: list[int] | None, threads: list[int | str]) -> None:
    measure = {} if cores is None else {"cores": cores}
    suite = suite_of(measure, threads=threads)
    assert check_before_loading(suite).measure == suite.measure


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("cores", [[4], [0, 7], []], ids=str)
def test_cores_that_are_not_there_are_refused(cores: list[int]) -> None:
    with pytest.raises(UsageError) as caught:
        check_before_loading(suite_of({"cores": cores}, threads=[1]))
    assert str(caught.value) == f"measure.cores = {cores} are not available here. Give any of [0, 1, 2, 3]"


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("cores", "threads", "message"),
    [
        ([0], [2], "2 threads do not fit on the 1 of measure.cores"),
        ([0, 1], [1, 3], "3 threads do not fit on the 2 of measure.cores"),
        ([0], ["auto"], "2 threads do not fit on the 1 of measure.cores"),
    ],
    ids=str,
)
def test_more_threads_than_cores_are_refused(cores: list[int], threads: list[int | str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_before_loading(suite_of({"cores": cores}, threads=threads))
    assert str(caught.value) == f"{message}: give more cores, or --threads"


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("cores", "threads"), [([0], [1, "auto"]), ([0, 0], [2])], ids=str)
def test_threads_that_do_not_fit_in_another_way_are_refused_too(cores: list[int], threads: list[int | str]) -> None:
    with pytest.raises(UsageError, match="2 threads do not fit on the 1 of"):
        check_before_loading(suite_of({"cores": cores}, threads=threads))


def test_macos_binds_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UsageError, match=r"macOS binds no process to cores: leave measure\.cores out"):
        check_before_loading(suite_of({"cores": [0]}, threads=[1]))


def test_a_suite_file_with_cores_that_are_not_there_gets_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('models = ["vit_basic"]\n[measure]\ncores = [4096]\n')
    assert run_command(["run", "--suite", str(path), "--out", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("Error: m")
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


# the warning before the cells


class Warnings(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def warnings_of(
    monkeypatch: pytest.MonkeyPatch,
    *,
    threads: int,
    other_load: float | None,
    metrics: tuple[str, ...] = ("latency",),
    device: str = "cpu",
) -> list[str]:
    """What is said on a machine of two usable cores before a cell with so many threads."""

    class Watch:
        def stop(self) -> Load:
            return Load(other_load=other_load)

    monkeypatch.setattr(runner, "LoadWatch", Watch)
    monkeypatch.setattr(runner, "_LOOK_S", 0.0)
    monkeypatch.setattr(runner, "usable_cores", lambda: 2)
    suite = suite_of(metrics=list(metrics), training={"images": 8})
    cells = [
        Cell(model="vit_basic", image_size=(32, 32), num_classes=10, batch_size=1, device=device, threads=count)
        for count in (1, threads)
    ]
    progress = Warnings()
    runner._warn_of_too_many_threads(Plan(suite, cells, None, {}, {}, {}), cells, progress)
    return progress.texts


def test_more_threads_than_free_cores_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = warnings_of(monkeypatch, threads=2, other_load=0.9)
    assert text == (
        "cells use 2 threads, but 1.1 of 2 cores are free: times can come out many times too long. Stop what else is "
        "running, or give --threads 1"
    )


def test_one_thread_needs_a_free_core_too(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = warnings_of(monkeypatch, threads=1, other_load=1.8)
    assert text.startswith("cells use 1 thread, but 0.2 of 2 cores are free")


@pytest.mark.parametrize("metrics", [("latency",), ("throughput",), ("training_step",), ("accuracy",)])
def test_times_and_trainings_are_warned_of(monkeypatch: pytest.MonkeyPatch, metrics: tuple[str, ...]) -> None:
    assert len(warnings_of(monkeypatch, threads=4, other_load=0.0, metrics=metrics)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 2, "other_load": 0.0},
        {"threads": 2, "other_load": 0.29},
        {"threads": 2, "other_load": None},
        {"threads": 1, "other_load": 1.0},
        {"threads": 4, "other_load": 2.0, "device": "cuda"},
        {"threads": 4, "other_load": 2.0, "metrics": ("params", "memory")},
    ],
    ids=str,
)
def test_what_is_nothing_to_warn_of(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    assert warnings_of(monkeypatch, **options) == []

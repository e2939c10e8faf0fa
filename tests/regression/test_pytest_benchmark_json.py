"""Runs as pytest-benchmark's files, and its files as runs: checked with pytest-benchmark itself."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reports.fabricate import ENVIRONMENT, cell, failed, infer, train_step
from tests.reports.paired import paired
from vitbench.cli import run_command
from vitbench.core.errors import UsageError
from vitbench.core.records import Record
from vitbench.regression.history import make_history
from vitbench.regression.pytest_benchmark_json import (
    is_stored_run,
    read_stored_run,
    stats_of,
    to_benchmarks,
    write_file,
    write_storage,
)
from vitbench.regression.stored_runs import find_runs
from vitbench.reports.model.values import value_of

ROOT = Path(__file__).parents[2]
REAL = ROOT / "results" / "amd-epyc-2-cores"

pytest_benchmark = pytest.importorskip("pytest_benchmark")


@pytest.fixture(autouse=True)
def not_a_worker_of_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pytest runs that these tests start are runs of their own, in which pytest-benchmark may time."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)


def at(record: Record, day: int) -> Record:
    return dataclasses.replace(record, started_at=f"2026-01-{day:02}T03:04:06+00:00")


def compare(storage: Path, *words: str) -> str:
    """What ``pytest-benchmark compare`` prints; it must end well and complain of nothing."""
    command = [sys.executable, "-m", "pytest_benchmark", "--storage", f"file://{storage}", "compare", *words]
    done = subprocess.run(command, cwd=storage, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Failed to load" not in done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 21, 50])
def test_statistics_are_pytest_benchmarks_own(count: int) -> None:
    from pytest_benchmark.stats import Stats

    numbers = random.Random(count)
    samples = sorted(numbers.lognormvariate(-6, 0.5) for _ in range(count))
    samples[-1] *= 5  # an outlier
    theirs = Stats()
    for sample in samples:
        theirs.update(sample)
    ours = stats_of(samples)
    assert set(ours) == set(Stats.fields)
    for field in Stats.fields:
        wanted = getattr(theirs, field)
        assert ours[field] == (wanted if isinstance(wanted, str) else pytest.approx(wanted, rel=1e-12)), field


def test_one_benchmark_stands_for_each_timed_cell() -> None:
    records = [infer(cell()), infer(cell(batch=8)), train_step(cell(mode="train")), failed(cell(batch=512), "oom")]
    content = to_benchmarks("night", records, ENVIRONMENT)
    names = [one["name"] for one in content["benchmarks"]]
    assert [name.split("-t2-")[0] for name in names] == [
        "latency[vit_micro-32px-b1-cpu-fp32-infer",
        "latency[vit_micro-32px-b8-cpu-fp32-infer",
        "training_step[vit_micro-32px-b1-cpu-fp32-train",
    ]
    first = content["benchmarks"][0]
    assert first["params"]["batch_size"] == 1
    assert first["extra_info"]["params"] == 1_213_450
    assert first["group"] == "latency"
    # 37 steady samples of 40: three are warm-up in that cell
    assert first["stats"]["rounds"] == 37
    assert first["stats"]["median"] == pytest.approx(0.0056, rel=0.05)


def test_relative_latency_has_the_interval_that_the_reports_have() -> None:
    """Where the first processes decided how many there would be, it is of their spread."""
    record = paired(cell(), (1.9, 1.95, 2.0, 2.05, 2.1, *[2.0] * 10))
    latency = dataclasses.replace(record.measurement("latency"), first_stage=5)
    record = dataclasses.replace(
        record, measurements=tuple(latency if one.metric == "latency" else one for one in record.measurements)
    )
    (one,) = to_benchmarks("night", [record], ENVIRONMENT)["benchmarks"]
    extra = one["extra_info"]
    relative = value_of(record, "latency").relative
    assert relative is not None
    found = (extra["latency_relative"], extra["latency_relative_low"], extra["latency_relative_high"])
    assert found == (relative.value, relative.low, relative.high)


def test_relative_latency_goes_along() -> None:
    (one,) = to_benchmarks("night", [paired(cell(), [2.0, 2.02, 1.98, 2.01])], ENVIRONMENT)["benchmarks"]
    extra = one["extra_info"]
    assert extra["latency_relative_low"] < extra["latency_relative"] < extra["latency_relative_high"]
    assert extra["latency_relative"] == pytest.approx(2.0, rel=0.01)


def test_commit_and_machine_come_from_the_environment_without_names_of_hosts() -> None:
    content = to_benchmarks("night", [infer(cell())], ENVIRONMENT)
    assert content["commit_info"]["id"] == "0123456789abcdef0123456789abcdef01234567"
    assert content["commit_info"]["dirty"] is True
    machine = content["machine_info"]
    assert (machine["node"], machine["system"], machine["python_version"]) == ("", "Linux", "3.12.4")
    assert machine["cpu"]["brand_raw"] == "Example CPU @ 2.50GHz"


@pytest.mark.integration
def test_pytest_benchmark_compares_two_real_runs(tmp_path: Path) -> None:
    assert run_command(["history", str(REAL / "lightweight-digits"), str(REAL / "lightweight-cifar10"),
                        "--pytest-benchmark", str(tmp_path / "store")]) == 0  # fmt: skip
    printed = compare(tmp_path / "store", "0001", "0002")
    assert "benchmark 'latency': 32 tests" in printed
    assert "latency[vit_layer6_32-32px-b1-cpu-fp32-infer-t2-" in printed
    assert "(0001_" in printed
    assert "(0002_" in printed
    only = compare(tmp_path / "store", "0001", "--group-by", "param:model", "--columns", "median,rounds")
    assert "benchmark 'model=vit_basic'" in only


def test_runs_that_are_there_are_not_written_again_and_numbers_go_on(tmp_path: Path) -> None:
    first, second, third = ([at(infer(cell()), day)] for day in (1, 2, 3))
    runs: list[Any] = [("b", second, ENVIRONMENT), ("a", first, ENVIRONMENT)]
    written = write_storage(tmp_path, runs)
    assert [path.name for path in written] == [
        "0001_0123456789ab_20260101_030406_uncommitted-changes_a.json",
        "0002_0123456789ab_20260102_030406_uncommitted-changes_b.json",
    ]
    assert {path.parent.name for path in written} == {"Linux-CPython-3.12-64bit"}
    assert write_storage(tmp_path, runs) == []
    (third_path,) = write_storage(tmp_path, [*runs, ("c", third, ENVIRONMENT)])
    assert third_path.name.startswith("0003_")


def test_a_run_without_times_is_no_file(tmp_path: Path) -> None:
    assert write_storage(tmp_path, [("a", [failed(cell(), "oom")], ENVIRONMENT)]) == []
    assert list(tmp_path.rglob("*.json")) == []


def test_several_runs_do_not_go_into_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["history", str(REAL), "--pytest-benchmark", str(tmp_path / "one.json")]
    assert run_command(words) == 2
    assert "runs do not go into one file. Give a folder" in capsys.readouterr().err
    assert not (tmp_path / "one.json").exists()


@pytest.mark.integration
def test_one_run_goes_into_one_file_that_pytest_benchmark_reads(tmp_path: Path) -> None:
    words = ["history", str(REAL / "lightweight-digits"), "--pytest-benchmark", str(tmp_path / "one.json")]
    assert run_command(words) == 0
    assert "16 tests" in compare(tmp_path, str(tmp_path / "one.json"), "--group-by", "group")


def test_what_we_write_we_read(tmp_path: Path) -> None:
    records = [at(infer(cell()), 5)]
    content = to_benchmarks("night", records, ENVIRONMENT)
    write_file(tmp_path / "a.json", content)
    assert is_stored_run(tmp_path / "a.json")
    run = read_stored_run(tmp_path / "a.json")
    assert run.at.day == 5
    assert run.commit.endswith("4567+changes")
    assert run.benchmarks[0].median == content["benchmarks"][0]["stats"]["median"]
    assert run.benchmarks[0].extra["params"] == 1_213_450


TESTS = """
import time

def test_sleep(benchmark):
    benchmark.extra_info["flops"] = FLOPS
    benchmark.extra_info["note"] = [1, 2]
    benchmark.pedantic(time.sleep, args=(0.002,), rounds=5)
"""


@pytest.mark.integration
def test_history_reads_what_pytest_benchmark_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flops in (100, 120):
        (tmp_path / "test_it.py").write_text(TESTS.replace("FLOPS", str(flops)))
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--benchmark-save=run"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    history = make_history(find_runs([tmp_path / ".benchmarks"]))
    by_metric = {one.metric: one for one in history.series}
    assert by_metric["median"].kind == "shown"
    assert [0.002 <= value < 0.2 for value in by_metric["median"].numbers] == [True] * 2
    (step,) = history.steps
    assert (step.series.metric, step.before, step.after, step.runs_before) == ("flops", 100, 120, 1)
    assert run_command(["history", str(tmp_path / ".benchmarks")]) == 0
    assert "test_it.py::test_sleep" in capsys.readouterr().out


GOOD: dict[str, Any] = {
    "machine_info": {"cpu": {"brand_raw": "x", "count": 2}},
    "commit_info": {"id": "abc", "dirty": False},
    "benchmarks": [{"name": "a", "fullname": "t.py::a", "stats": {"median": 0.1}, "extra_info": {}}],
    "datetime": "2026-01-02T03:04:05+00:00",
}
BROKEN = {
    "a list": [],
    "no benchmarks": {key: value for key, value in GOOD.items() if key != "benchmarks"},
    "a median that is text": {**GOOD, "benchmarks": [{"name": "a", "stats": {"median": "fast"}}]},
    "a median that is too large": {**GOOD, "benchmarks": [{"name": "a", "stats": {"median": 10**400}}]},
    "a name that is a number": {**GOOD, "benchmarks": [{"name": 3, "stats": {"median": 0.1}}]},
    "a date that is none": {**GOOD, "datetime": "yesterday"},
    "extras that are a list": {**GOOD, "benchmarks": [{"name": "a", "stats": {"median": 0.1}, "extra_info": [1]}]},
    "a commit that is a list": {**GOOD, "commit_info": ["abc"]},
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_told_of_in_one_line_and_passed_over(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "Linux-x"
    place.mkdir()
    (place / "0001_good.json").write_text(json.dumps(GOOD))
    (place / "0002_bad.json").write_text(json.dumps(BROKEN[what]))
    assert run_command(["history", str(place / "0001_good.json"), str(place / "0002_bad.json")]) == 0
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "0002_bad.json is not JSON of pytest-benchmark (" in told.err
    assert "1 run" in told.out


@pytest.mark.parametrize("text", ["", "{", "\0\0\0", '{"a": ' * 100_000, "NaN"])
def test_a_file_that_is_no_json_is_a_usage_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "0001_x.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"0001_x\.json is not JSON of pytest-benchmark"):
        read_stored_run(path)


def test_an_export_of_a_part_or_of_a_run_that_grew_counts_once(tmp_path: Path) -> None:
    from tests.regression.test_history import write_run

    one, other = infer(cell()), infer(cell("vit_nano"))
    place, store = tmp_path / "runs" / "a", tmp_path / "runs" / "store"
    write_run(place, [one, failed(cell("vit_nano"), "timeout")])
    words = ["history", str(place), "--pytest-benchmark", str(store)]
    assert run_command([*words, "--models", one.cell.model]) == 0
    assert len(make_history(find_runs([tmp_path / "runs"])).moments) == 1
    shutil.rmtree(place)
    write_run(place, [one, other])  # resumed with --retry
    assert len(make_history(find_runs([tmp_path / "runs"])).moments) == 1
    assert run_command(words) == 0
    shutil.rmtree(place)
    assert len(list(store.rglob("*.json"))) == 2
    assert len(make_history(find_runs([store])).moments) == 1


def test_an_export_beside_its_run_counts_once(tmp_path: Path) -> None:
    from tests.regression.test_history import write_run

    records = [infer(cell())]
    write_run(tmp_path / "runs" / "a", records)
    alone = make_history(find_runs([tmp_path / "runs" / "a"]))
    assert run_command(["history", str(tmp_path), "--pytest-benchmark", str(tmp_path / "runs" / "store")]) == 0
    both = make_history(find_runs([tmp_path / "runs"]))
    assert len(both.moments) == 1
    assert len(both.series) == len(alone.series)
    moved = tmp_path / "moved"
    (tmp_path / "runs" / "store").rename(moved)
    assert {one.metric for one in make_history(find_runs([moved])).series} >= {"median", "params"}

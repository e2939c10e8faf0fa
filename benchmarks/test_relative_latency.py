"""The same cells in ten separate runs, some under load: which is repeatable, milliseconds or relative latency?"""

from __future__ import annotations

import contextlib
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from vitbench.core.records import Record
from vitbench.core.run_folder import read_records
from vitbench.reports.model.values import value_of

#: The load beside each run.
LOADS = (
    (),
    (),
    ("busy",),
    (),
    ("bursts",),
    ("memory",),
    (),
    ("busy", "busy"),
    ("bursts", "bursts"),
    ("busy", "memory"),
)
MODELS = ("vit_layer6_32", "vit_basic_tutorial", "cifar_vit_tiny", "cifar_lightweight_vit")
THREADS = 1


@contextlib.contextmanager
def other_load(kinds: Sequence[str]) -> Iterator[None]:
    started = [subprocess.Popen([sys.executable, str(Path(__file__).with_name("load.py")), kind]) for kind in kinds]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Record]]:
    """Each run's records by model, sampled as the suite ``lightweight`` does, by a program of its own: the load beside
    it is then none of its children, whose time it would take for its own.
    """
    options = ["--suite", "lightweight", "--models", ",".join(MODELS), "--batch-sizes", "1", "--modes", "infer"]
    options += ["--threads", str(THREADS), "--data", "none", "--metrics", "memory,latency"]
    found = []
    for number, kinds in enumerate(LOADS):
        folder = tmp_path_factory.mktemp("runs") / str(number)
        with other_load(kinds):
            subprocess.run([sys.executable, "-m", "vitbench", "run", *options, "--out", str(folder)], check=True)
        found.append({record.cell.model: record for record in read_records(folder)})
    return found


def variation(values: Sequence[float]) -> float:
    """The coefficient of variation."""
    return statistics.stdev(values) / statistics.fmean(values)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", MODELS)
def test_relative_latency_varies_at_most_half_as_much(
    say: Callable[[str], None], runs: list[dict[str, Record]], model: str
) -> None:
    figures = [value_of(run[model], "latency") for run in runs]
    cpu = [value_of(run[model], "latency_cpu_time") for run in runs]
    raw = [one.value or math.nan for one in figures]
    estimates = [one.relative_between_runs for one in figures if one.relative_between_runs]
    narrow = [one.relative for one in figures if one.relative]
    relative = [one.value for one in estimates]
    relative_cpu = [one.relative.value for one in cpu if one.relative]
    quiet = [one.in_quiet_turns for one in figures if one.in_quiet_turns]
    # what is left of the variance between the runs once that of their processes is taken off (method of moments)
    between = statistics.variance([one.log_value for one in quiet]) - statistics.fmean(one.variance for one in quiet)
    pooled = statistics.median(relative)
    covered, covered_by_processes = (
        sum(one.low <= pooled <= one.high for one in some if one.low is not None and one.high is not None)
        for some in (estimates, narrow)
    )
    widths = [100 * (one.high / one.value - 1) for one in estimates if one.high is not None]
    beyond = 100 * math.sqrt(max(between, 0))
    counts = " ".join(f"{one.n_processes}/{one.all_processes}" for one in quiet)
    say(
        f"{model}: CV of ms {100 * variation(raw):.1f} %, of relative latency {100 * variation(relative):.1f} %, "
        f"of relative CPU time {100 * variation(relative_cpu):.1f} %; {covered} of {len(runs)} intervals hold "
        f"{pooled:.3f}, the median of all runs (those of the run's processes alone: {covered_by_processes}); "
        f"interval +- {min(widths):.1f} to {max(widths):.1f} %; runs differ by {beyond:.1f} % beyond their processes; "
        f"processes in quiet turns {counts}"
    )
    assert len(relative) == len(runs)
    assert variation(relative) <= 0.5 * variation(raw)
    assert covered >= 9

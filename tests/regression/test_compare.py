"""Two runs compared: exact figures to the unit, times with a promised error rate, and what cannot be compared."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pytest
from scipy.stats import norm

import vitbench.regression.compare
from tests.reports.fabricate import (
    ENVIRONMENT,
    cell,
    counters,
    failed,
    infer,
    ok,
    size,
    trained,
    training_cell,
    write_run,
)
from tests.reports.paired import loads, paired, timed
from vitbench.cli import run_command
from vitbench.core.errors import UsageError
from vitbench.core.records import LOWER_BOUND, Cell, Measurement, Record
from vitbench.core.registry import METRICS, Yields
from vitbench.core.run_folder import read_records
from vitbench.core.stats.comparisons import holm
from vitbench.core.stats.intervals import RUN_TO_RUN
from vitbench.core.stats.relative import QuietTime, processes_for
from vitbench.regression.change import FINE, INCONCLUSIVE, INFRASTRUCTURE, REGRESSION, Change, exit_code
from vitbench.regression.change_text import cell_names
from vitbench.regression.compare import ERROR_RATE, Comparison, compare_runs
from vitbench.regression.compare.evidence import STAGED, Fractions, LogRatio
from vitbench.reports.model.runs import Run
from vitbench.suites import make_thresholds
from vitbench.suites.batch_search import BOUND

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "amd-epyc-2-cores"


def run(*records: Record, name: str = "run", environment: Mapping[str, Any] = ENVIRONMENT) -> Run:
    return Run(name=name, records=list(records), environment=environment)


def single(metric: str, value: float, unit: str = "byte", method: str = "made up") -> Measurement:
    return Measurement.single(metric, unit, value, method)


def compared(base: Sequence[Record], head: Sequence[Record], *tables: dict[str, Any], **options: Any) -> Comparison:
    metrics = [table["metric"] for table in tables]
    rules = make_thresholds(list(tables), "mine.toml", metrics=metrics)
    return compare_runs(
        run(*base), run(*head, environment=options.pop("head_environment", ENVIRONMENT)), rules, **options
    )


def of(comparison: Comparison, metric: str) -> Change:
    """The only change of that metric."""
    (found,) = [change for change in comparison.changes if change.metric == metric]
    return found


def elsewhere(record: Record) -> Record:
    return dataclasses.replace(record, environment="e2")


def environments(torch: str | None = "2.15.0", cpu: str = "Another CPU") -> dict[str, Any]:
    content = copy.deepcopy(ENVIRONMENT)
    other = copy.deepcopy(ENVIRONMENT["environments"]["e1"])
    other["system"]["cpu"] = cpu
    other["libraries"]["versions"] = {"torch": torch} if torch else {}
    content["environments"]["e2"] = other
    return content


# exact figures


def test_a_run_is_the_same_as_itself() -> None:
    records = [infer(cell(batch=batch)) for batch in (1, 32)]
    found = compared(records, records)
    assert {change.verdict for change in found.changes if change.exact} == {"same"}
    assert exit_code(found.changes, inconclusive_fails=True) == FINE
    assert "BASE and HEAD hold the same records" in found.notes


@pytest.mark.parametrize(("by", "verdict"), [(1, "worse"), (-1, "better"), (0, "same")])
def test_one_parameter_is_a_change(by: int, verdict: str) -> None:
    one = cell()
    before = ok(one, [single("params", 5_717_416, "parameter")])
    after = ok(one, [single("params", 5_717_416 + by, "parameter")])
    change = of(compared([before], [after]), "params")
    assert change.verdict == verdict
    assert change.exact
    assert change.gates
    assert (change.base, change.head) == (5_717_416, 5_717_416 + by)


def test_a_tolerance_of_a_suite_loosens_an_exact_figure() -> None:
    one = cell()
    before, after = ok(one, [single("flops", 1e9, "FLOP")]), ok(one, [single("flops", 1.04e9, "FLOP")])
    assert of(compared([before], [after]), "flops").verdict == "worse"
    assert of(compared([before], [after], {"metric": "flops", "tolerance": "5%"}), "flops").verdict == "same"
    assert of(compared([before], [after], {"metric": "flops", "tolerance": "3%"}), "flops").verdict == "worse"
    off = of(compared([before], [after], {"metric": "flops", "gate": False}), "flops")
    assert (off.verdict, off.gates) == ("worse", False)
    other = of(compared([before], [after], {"metric": "flops", "cells": "cifar_*", "gate": False}), "flops")
    assert other.gates


def test_a_count_that_rises_from_nothing_is_worse() -> None:
    one = cell()
    before = ok(one, [single("params_without_gradient", 0, "parameter")])
    after = ok(one, [single("params_without_gradient", 7, "parameter")])
    assert (
        of(compared([before], [after], {"metric": "*", "tolerance": "50%"}), "params_without_gradient").verdict
        == "worse"
    )


def test_other_tools_counts_are_shown_and_do_not_gate() -> None:
    one = cell()
    found = compared([ok(one, counters(1e9, None))], [ok(one, counters(2e9, 1e9))])
    fvcore = of(found, "flops_fvcore")
    assert (fvcore.verdict, fvcore.gates) == ("worse", False)
    assert of(found, "flops_thop").verdict == "better"
    assert exit_code(found.changes) == FINE


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ("ok", "oom", "worse"),
        ("ok", "error", "worse"),
        ("ok", "timeout", "worse"),
        ("oom", "killed", "worse"),
        ("oom", "ok", "better"),
        ("timeout", "oom", "better"),
        ("error", "killed", "not comparable"),
        ("oom", "oom", "same"),
    ],
)
def test_an_ending_is_worse_or_better(before: str, after: str, verdict: str) -> None:
    one = cell()

    def record(status: str) -> Record:
        return ok(one, size(one)) if status == "ok" else failed(one, status, "cause", f"it ended by {status}")

    found = compared([record(before)], [record(after)])
    status = of(found, "status")
    assert status.verdict == verdict
    assert status.gates
    if verdict == "worse":
        assert status.detail == f"it ended by {after}"
        assert exit_code(found.changes) == REGRESSION
    # what is missing for that reason is not told again, and what both have is still compared
    assert {change.metric for change in found.changes} == {"status", "params", "trainable_params", "flops", "macs"}


def test_a_metric_that_fails_in_a_cell_that_is_well_is_worse() -> None:
    one = cell()
    absent = Measurement.absent("latency", "s", "error", "it broke")
    before, after = paired(one, (1.0, 1.0, 1.0)), ok(one, [*size(one), absent])
    change = of(compared([before], [after]), "relative_latency")
    assert (change.verdict, change.base, change.head, change.detail) == ("worse", "measured", "error", "it broke")
    assert of(compared([after], [before]), "relative_latency").verdict == "better"


def test_a_metric_that_head_did_not_measure_is_not_comparable() -> None:
    one = cell()
    found = compared([paired(one, (1.0, 1.0, 1.0))], [ok(one, size(one))])
    change = of(found, "relative_latency")
    assert (change.verdict, change.detail) == ("not comparable", "HEAD did not measure it")
    assert exit_code(found.changes, inconclusive_fails=True) == FINE


def test_a_unit_that_changed_is_not_compared() -> None:
    one = cell()
    found = compared([ok(one, [single("flops", 1e9, "FLOP")])], [ok(one, [single("flops", 1, "GFLOP")])])
    assert of(found, "flops").verdict == "not comparable"


def test_conditions_are_not_listed() -> None:
    one = cell()
    found = compared([ok(one, loads(0.1, 0.2))], [ok(one, loads(0.9, 0.0))])
    assert {change.metric for change in found.changes} == {"status"}


# measured memory


@pytest.mark.parametrize(
    ("base", "head", "verdict"),
    [
        (100e6, 104e6, "same"),
        (100e6, 106e6, "worse"),
        (100e6, 94e6, "better"),
        # the kernel's count of a small cell moves by a third of it
        (0.56e6, 0.82e6, "same"),
        (0.56e6, 1.2e6, "worse"),
    ],
)
def test_measured_memory_has_a_tolerance_and_the_counts_own_noise(base: float, head: float, verdict: str) -> None:
    one = cell()
    before, after = (ok(one, [single("inference_peak_memory", value)]) for value in (base, head))
    assert of(compared([before], [after]), "inference_peak_memory").verdict == verdict


def test_a_tolerance_of_nothing_asks_for_equal_bytes() -> None:
    one = cell()
    before, after = (ok(one, [single("inference_peak_memory", value)]) for value in (100e6, 100e6 + 1))
    rule = {"metric": "inference_peak_memory", "tolerance": 0}
    assert of(compared([before], [after], rule), "inference_peak_memory").verdict == "worse"


# times


def test_holms_adjustment_is_as_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def relative(rng: np.random.Generator, log_value: float, spread: float = 0.05, processes: int = 5) -> QuietTime:
    """One run's figure: what differs between runs, then between its processes."""
    return processes_in(log_value + rng.normal(0, RUN_TO_RUN) + rng.normal(0, spread, processes))


def processes_in(logs: np.ndarray) -> QuietTime:
    """A run whose processes took so long, as logarithms."""
    processes = len(logs)
    influences = tuple((logs - logs.mean()) / processes)
    return QuietTime(float(logs.mean()), influences, float(processes), processes, processes, 100)


def alarms(rng: np.random.Generator, ratios: Sequence[float], margin: float) -> list[bool]:
    """Which cells of one suite are called worse, whose HEAD is truly that many times slower."""
    p_values = [
        LogRatio.of((relative(rng, 0.0), None), (relative(rng, math.log(ratio)), None)).tail(math.log1p(margin))
        for ratio in ratios
    ]
    return [p <= ERROR_RATE for p in holm(p_values)]


@pytest.mark.integration
def test_false_alarms_of_a_whole_suite_stay_under_the_promised_rate() -> None:
    rng = np.random.default_rng(1)
    # the worst case that is no regression: every cell slower by exactly its tolerance
    suites = 2000
    false = sum(any(alarms(rng, [1.25] * 24, 0.25)) for _ in range(suites))
    assert false / suites <= ERROR_RATE + 3 * math.sqrt(ERROR_RATE * (1 - ERROR_RATE) / suites)


@pytest.mark.integration
def test_identical_code_raises_no_alarm_in_a_thousand_suites() -> None:
    rng = np.random.default_rng(2)
    assert not any(any(alarms(rng, [1.0] * 24, 0.25)) for _ in range(1000))


def test_a_slow_cell_is_found_among_many_that_are_not() -> None:
    rng = np.random.default_rng(3)
    found = [alarms(rng, [2.2] + [1.0] * 23, 0.25) for _ in range(300)]
    assert sum(one[0] for one in found) >= 0.97 * len(found)
    assert not any(any(one[1:]) for one in found)


def test_the_smallest_slow_down_that_is_told_is_found_nine_times_in_ten() -> None:
    rng = np.random.default_rng(4)
    told = [
        LogRatio.of((relative(rng, 0.0), None), (relative(rng, 0.0), None)).smallest_found(
            math.log1p(0.25), ERROR_RATE, 0.9
        )
        for _ in range(500)
    ]
    ratio = float(np.median(told))
    found = sum(alarms(rng, [ratio], 0.25)[0] for _ in range(1500))
    assert 0.86 <= found / 1500 <= 0.94


def test_an_interval_covers_what_another_run_would_show() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(1500):
        one = LogRatio.of((relative(rng, 0.0), None), (relative(rng, math.log(1.1)), None))
        _, low, high = one.interval
        covered += low <= 1.1 <= high
    assert 0.935 <= covered / 1500 <= 0.975


def test_where_the_first_processes_decided_their_spread_counts() -> None:
    rng = np.random.default_rng(6)
    first, more = relative(rng, 0.0, 0.2, 5), relative(rng, 0.0, 0.2, 15)
    tight = LogRatio.of((more, None), (more, None))
    staged = LogRatio.of((more, first), (more, None))
    part = first.variance * 5 / 15
    assert staged.error.variance == pytest.approx(part + more.variance + 2 * RUN_TO_RUN**2)
    assert staged.error.quantile(0.99) > tight.error.quantile(0.99)
    assert (staged.p_factor, tight.p_factor) == (STAGED, 1.0)
    wide = dataclasses.replace(staged, value=0.5)
    assert wide.tail(0.1) == pytest.approx(2 * wide.error.tail(0.4 / math.sqrt(wide.error.variance)))
    found = math.log(staged.smallest_found(0.1, ERROR_RATE, 0.5))
    assert dataclasses.replace(staged, value=found).tail(0.1) == pytest.approx(ERROR_RATE)


@pytest.mark.integration
@pytest.mark.parametrize("own", [0.02, 0.08])
def test_false_alarms_stay_under_the_promised_rate_where_five_processes_decided_how_many_there_would_be(
    own: float,
) -> None:
    """Two runs of equal code; the simulation's error is 0.07 %."""
    rng = np.random.default_rng(7)
    alarms, most = 0, 30
    for logs in rng.normal(0, RUN_TO_RUN, (20_000, 2, 1)) + rng.normal(0, own, (20_000, 2, most)):
        sides: list[tuple[QuietTime, QuietTime | None]] = []
        for run in logs:
            first = processes_in(run[:5])
            whole = processes_in(run[: min(processes_for(first, 0.05), most)])
            sides.append((whole, None if whole.n_processes == 5 else first))
        found = LogRatio.of(sides[0], sides[1])
        alarms += found.tail(0.0) <= ERROR_RATE
    assert 0.004 <= alarms / 20_000 <= ERROR_RATE + 0.002


def spread(middle: float, seed: int = 0, processes: int = 5) -> tuple[float, ...]:
    return tuple(middle * np.exp(np.random.default_rng(seed).normal(0, 0.02, processes)))


def timed_suite(slower: Mapping[str, float] = MappingProxyType({}), seed: int = 0) -> list[Record]:
    """A suite of eight cells, some slower."""
    records = []
    for number, model in enumerate(("vit_nano", "vit_micro", "vit_small", "vit_big")):
        for mode in ("infer", "train"):
            one = cell(model, 32, mode=mode)
            middle = (number + 1) * slower.get(f"{model} {mode}", 1.0)
            records.append(paired(one, spread(middle, seed + 10 * number + (mode == "train"))))
    return records


def test_a_clear_slow_down_is_worse_and_nothing_else_is() -> None:
    found = compared(timed_suite(), timed_suite({"vit_small train": 2.0}, seed=100))
    worse = [change for change in found.changes if change.verdict == "worse"]
    assert [(change.cell, change.metric) for change in worse] == [
        ("vit_small 32px b32 cpu fp32 train", "relative_training_step")
    ]
    (one,) = worse
    assert not one.exact
    assert one.ratio == pytest.approx(2.0, rel=0.05)
    assert one.low is not None
    assert one.low > 1.25
    assert "Holm, 8 values" in one.detail
    assert exit_code(found.changes) == REGRESSION
    rest = [change for change in found.changes if change.metric.startswith("relative_") and change is not one]
    assert {change.verdict for change in rest} == {"same"}
    assert len(rest) == 7


def test_a_clear_speed_up_is_better() -> None:
    found = compared(timed_suite({"vit_big infer": 2.0}), timed_suite(seed=100))
    assert [change.cell for change in found.changes if change.verdict == "better"] == [
        "vit_big 32px b32 cpu fp32 infer"
    ]
    assert exit_code(found.changes) == FINE


def test_what_lies_about_the_tolerance_is_inconclusive() -> None:
    found = compared(timed_suite(), timed_suite({"vit_big infer": 1.25}, seed=100))
    (one,) = [change for change in found.changes if change.verdict == "inconclusive"]
    assert "exceeds the tolerance of 25 %" in one.detail
    assert exit_code(found.changes) == FINE
    assert exit_code(found.changes, inconclusive_fails=True) == INCONCLUSIVE


def test_a_threshold_decides_how_slow_is_too_slow() -> None:
    slow = timed_suite({"vit_big infer": 2.0}, seed=100)

    def verdict(*tables: dict[str, Any]) -> tuple[str, bool]:
        found = compared(timed_suite(), slow, *tables)
        (one,) = [c for c in found.changes if c.cell.startswith("vit_big") and c.metric == "relative_latency"]
        return one.verdict, one.gates

    assert verdict() == ("worse", True)
    assert verdict({"metric": "relative_latency", "tolerance": "150%"}) == ("same", True)
    assert verdict({"metric": "relative_latency", "cells": "vit_big", "gate": False}) == ("worse", False)


def test_the_run_says_what_it_could_have_seen() -> None:
    found = compared(timed_suite(), timed_suite(seed=100))
    (note,) = [line for line in found.notes if "tested together" in line]
    assert "8 values are tested together" in note
    assert "at most 1 %" in note
    assert found.facts["tested_figures"] == 8
    assert 1.3 < found.facts["smallest_slowdown_found"] < 1.8
    assert f"{100 * (found.facts['smallest_slowdown_found'] - 1):.0f} %" in note


def test_absolute_times_are_shown_and_never_gate() -> None:
    one = cell()
    before = paired(one, (1.0, 1.0, 1.0))
    after = paired(one, (1.0, 1.0, 1.0), reference=(0.05,) * 10)  # a machine five times as slow
    found = compared([before], [after])
    absolute = of(found, "latency")
    assert (absolute.verdict, absolute.gates) == ("not comparable", False)
    assert absolute.ratio == pytest.approx(5.0)
    assert of(found, "relative_latency").verdict == "same"
    forced = compared([before], [after], {"metric": "latency", "tolerance": "1%"})
    assert not of(forced, "latency").gates


def test_few_processes_are_inconclusive_and_no_reference_is_not_comparable() -> None:
    one = cell()
    few = of(compared([paired(one, (1.0,))], [paired(one, (9.0,))]), "relative_latency")
    assert few.verdict == "inconclusive"
    assert "--processes 5" in few.detail
    alone = of(compared([infer(one, processes=5)], [infer(one, processes=5, speed=0.1)]), "relative_latency")
    assert alone.verdict == "not comparable"
    assert "without the reference" in alone.detail


def test_another_reference_is_not_compared() -> None:
    one = cell()
    found = compared(
        [paired(one, (1.0, 1.0, 1.0))], [paired(one, (9.0, 9.0, 9.0), named="reference 2 (fp32, 2 threads)")]
    )
    assert of(found, "relative_latency").verdict == "not comparable"


def test_cpu_time_is_compared_where_a_threshold_asks_for_it() -> None:
    one = cell()
    before, after = (
        ok(one, [timed("latency", (1.0,) * 5), timed("latency_cpu_time", (ratio,) * 5)]) for ratio in (1.0, 3.0)
    )
    assert not [c for c in compared([before], [after]).changes if c.metric == "relative_latency_cpu_time"]
    asked = compared([before], [after], {"metric": "relative_latency_cpu_time", "tolerance": "25%"})
    assert of(asked, "relative_latency_cpu_time").verdict == "worse"


def test_a_disturbed_run_says_so() -> None:
    one = cell()
    quiet = paired(one, (1.0,) * 5)
    busy = paired(one, spread(1.3), extra=loads(1.0, 0.0, processes=5))
    change = of(compared([quiet], [busy]), "relative_latency")
    assert change.verdict == "inconclusive"
    assert "HEAD was disturbed (1.0 cores busy with other programs)" in change.detail


def test_samples_that_make_no_figure_are_told_not_raised() -> None:
    one = cell()
    bad = timed("latency", (1.0, 1.0, 1.0), reference=(0.0,) * 10)
    found = compared([ok(one, [bad])], [paired(one, (1.0, 1.0, 1.0))])
    change = of(found, "relative_latency")
    assert (change.verdict, change.gates) == ("not comparable", True)
    assert "not positive" in change.detail


# other machines


def test_times_and_memory_of_other_machines_are_not_compared() -> None:
    one = cell()
    extra = [single("inference_peak_memory", 100e6), single("tensor_peak", 50e6)]
    before = paired(one, (1.0,) * 5, extra=extra)
    more = [single("inference_peak_memory", 300e6), single("tensor_peak", 50e6)]
    after = elsewhere(paired(one, (3.0,) * 5, extra=more))
    found = compared([before], [after], head_environment=environments())
    assert of(found, "relative_latency").verdict == "not comparable"
    assert of(found, "inference_peak_memory").verdict == "not comparable"
    assert of(found, "params").verdict == "same"
    assert of(found, "tensor_peak").verdict == "same"
    assert exit_code(found.changes) == FINE
    (note,) = [line for line in found.notes if "different environments" in line]
    assert "cpu: Example CPU @ 2.50GHz -> Another CPU" in note
    assert not found.facts["same_environment"]
    forced = compared([before], [after], head_environment=environments(), allow_different_machines=True)
    assert of(forced, "relative_latency").verdict == "worse"
    assert of(forced, "inference_peak_memory").verdict == "worse"
    assert any("as requested" in line for line in forced.notes)


@pytest.mark.parametrize(
    ("torch", "verdict"), [("2.15.1+cpu", "worse"), ("2.16.0", "not comparable"), (None, "not comparable")]
)
def test_tensor_bytes_are_compared_under_one_minor_torch(torch: str | None, verdict: str) -> None:
    one = cell()
    before = ok(one, [*size(one), single("tensor_peak", 50e6)])
    after = elsewhere(ok(one, [*size(one), single("tensor_peak", 60e6)]))
    for allow in (False, True):
        found = compared([before], [after], head_environment=environments(torch), allow_different_machines=allow)
        assert of(found, "tensor_peak").verdict == verdict
        assert of(found, "params").verdict == "same"


def test_lower_bounds_compare_only_without_the_same_operators() -> None:
    one = cell()

    def bound(value: float, left_out: str) -> Record:
        exact = Measurement.single("flops", "FLOP", value, "counted", LOWER_BOUND + left_out if left_out else "")
        return ok(one, [dataclasses.replace(exact, lower_bound=bool(left_out))])

    base = bound(1e9, "mine::product x1")
    assert of(compared([base], [base]), "flops").verdict == "same"
    more = of(compared([base], [bound(1.1e9, "mine::product x1")]), "flops")
    assert (more.verdict, more.detail) == ("worse", "lower bounds, both without mine::product x1")
    for other in (bound(1e9, "mine::product x2"), bound(1e9, "")):
        apart = of(compared([base], [other]), "flops")
        assert apart.verdict == "not comparable"
        assert "leaves out the same operators: BASE names mine::product x1, HEAD " in apart.detail
    assert apart.detail.endswith("HEAD none (records of an earlier vitbench name none)")


def test_executed_flops_of_another_machine_are_not_compared() -> None:
    one = cell()
    counted = [Measurement.single("flops", "FLOP", value, "executed", executed=True) for value in (1e9, 1.1e9)]
    before, after = (ok(one, [flops]) for flops in counted)
    assert of(compared([before], [after]), "flops").verdict == "worse"
    apart = compared([before], [elsewhere(after)], head_environment=environments())
    assert of(apart, "flops").verdict == "not comparable"


def test_running_out_of_memory_on_another_machine_is_no_regression() -> None:
    one = cell()
    before, after = ok(one, size(one)), elsewhere(failed(one, "oom"))
    assert of(compared([before], [after], head_environment=environments()), "status").verdict == "not comparable"
    broken = elsewhere(failed(one, "error"))
    assert of(compared([before], [broken], head_environment=environments()), "status").verdict == "worse"


def test_an_environment_that_is_not_told_is_said_to_be() -> None:
    one = cell()
    found = compared([paired(one, (1.0,) * 3)], [elsewhere(paired(one, (1.0,) * 3))])
    assert any("environment.json does not describe them" in line for line in found.notes)


# accuracy


def test_accuracy_is_shown_with_the_interval_of_its_difference_and_gates_only_if_named() -> None:
    one = training_cell("vit_nano")
    before, after = trained(one, 300), trained(one, 200)
    found = compared([before], [after])
    shown = of(found, "accuracy")
    assert (shown.verdict, shown.gates) == ("worse", False)
    assert shown.detail.startswith("-27.8 points [-34.")
    assert exit_code(found.changes) == FINE
    gated = compared([before], [after], {"metric": "accuracy", "tolerance": "5%"})
    assert of(gated, "accuracy").verdict == "worse"
    assert exit_code(gated.changes) == REGRESSION
    loose = compared([before], [after], {"metric": "accuracy", "tolerance": "40%"})
    assert of(loose, "accuracy").verdict == "same"
    close = compared([before], [trained(one, 290)], {"metric": "accuracy", "tolerance": "1%"})
    assert of(close, "accuracy").verdict == "inconclusive"


def test_an_accuracy_that_did_not_move_is_the_same_without_a_tolerance() -> None:
    one = trained(training_cell("vit_nano"), 300)
    change = of(compared([one], [one], {"metric": "accuracy", "gate": True}), "accuracy")
    assert (change.verdict, change.gates) == ("same", True)


@pytest.mark.parametrize(
    ("better", "up", "down"), [("more", "better", "worse"), ("less", "worse", "better"), (None, "worse", "worse")]
)
def test_a_metric_of_another_package_moves_the_way_that_it_says(
    monkeypatch: pytest.MonkeyPatch, better: Literal["less", "more"] | None, up: str, down: str
) -> None:
    monkeypatch.setattr(METRICS, "_items", dict(METRICS.items()))
    monkeypatch.setattr(METRICS, "_values", dict(METRICS.values))
    METRICS.measured("top5", process="time", modes=("infer",), yields=[Yields("top5", "1", better=better)], summary="")(
        lambda subject: iter(())
    )

    def told(before: float, after: float) -> Change:
        sides = [
            [ok(cell(), [Measurement.single("top5", "1", value, "made up")])] for value in (before, after)
        ]  # fmt: skip
        return of(compared(*sides, {"metric": "top5", "tolerance": "1%"}), "top5")

    assert told(0.5, 0.9).verdict == up
    assert told(0.9, 0.5).verdict == down
    assert told(0.9, 0.899).verdict == "same"
    assert ("does not say what is better" in told(0.9, 0.5).detail) is (better is None)


def test_accuracies_after_other_trainings_are_not_compared() -> None:
    one = training_cell("vit_nano")
    other = trained(one, 100, total=180)
    change = of(compared([trained(one, 300)], [other], {"metric": "accuracy", "gate": True}), "accuracy")
    assert (change.verdict, change.detail) == ("not comparable", "other test images")


def test_the_interval_of_a_difference_is_newcombes() -> None:
    # Newcombe 1998, table II, comparison (a): 56/70 against 48/80, method 10
    low, high = Fractions(base=48 / 80, base_total=80, head=56 / 70, head_total=70).interval(norm.ppf(0.975))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_a_p_value_of_fractions_agrees_with_their_interval() -> None:
    one = Fractions(base=0.8, base_total=360, head=0.7, head_total=360)
    p = one.tail(0.02)
    assert one.interval(float(norm.isf(p)))[1] == pytest.approx(-0.02, abs=1e-6)
    assert one.tail(0.1) == pytest.approx(0.5)
    assert one.reversed().tail(0.0) == 0.5


def test_false_alarms_about_accuracy_stay_under_the_promised_rate() -> None:
    rng = np.random.default_rng(7)
    for truth in (0.5, 0.95):
        false = 0
        for _ in range(2000):
            base, head = rng.binomial(360, truth, 2) / 360
            false += Fractions(base, 360, head, 360).tail(0.0) <= ERROR_RATE
        assert false / 2000 <= ERROR_RATE + 3 * math.sqrt(ERROR_RATE / 2000)


# cells


def test_cells_of_one_run_only_are_told_and_not_compared() -> None:
    both, gone, new = cell(), cell(batch=32), cell("vit_big")
    found = compared([infer(both), infer(gone)], [infer(both), infer(new)])
    only = {change.cell: change for change in found.changes if change.metric == "cell"}
    assert only[gone.label].verdict == "not comparable"
    assert only[gone.label].gates
    assert only[gone.label].detail == "only in BASE"
    assert (only[new.label].base, only[new.label].head, only[new.label].gates) == (None, "measured", False)
    assert exit_code(found.changes, inconclusive_fails=True) == FINE
    assert [line for line in found.notes if "only in" in line] == [
        f"1 cell is only in BASE: {gone.label}",
        f"1 cell is only in HEAD: {new.label}",
    ]


def test_a_threshold_makes_a_missing_cell_a_regression() -> None:
    found = compared([infer(cell()), infer(cell(batch=32))], [infer(cell())], {"metric": "cell"})
    assert of(found, "cell").verdict == "worse"
    assert exit_code(found.changes) == REGRESSION
    other = compared([infer(cell()), infer(cell(batch=32))], [infer(cell())], {"metric": "cell", "cells": "cifar_*"})
    assert exit_code(other.changes) == FINE


def test_nothing_in_common_is_wrong_usage_and_says_what_differs() -> None:
    with pytest.raises(UsageError, match="no cell in common") as told:
        compared([infer(cell(threads=2))], [infer(cell(threads=8))])
    assert "vit_micro, for one, they differ in threads 2 and 8" in str(told.value)
    with pytest.raises(UsageError, match="holds no records"):
        compared([infer(cell())], [])


def test_cells_that_share_a_label_are_told_apart() -> None:
    one, other = cell(threads=1), cell(threads=2, options=(("train_images", "9"),))
    names = cell_names([one, other, cell("vit_big")])
    assert names[one.id] == f"{one.label} threads=1 options=none"
    assert names[other.id] == f"{one.label} threads=2 options=train_images=9"
    assert names[cell("vit_big").id] == cell("vit_big").label


# metrics of other packages


def test_a_metric_of_another_package_gates_only_where_a_threshold_names_it() -> None:
    one = cell()
    before, after = (ok(one, [single("their_count", value, "thing")]) for value in (100, 103))
    found = compared([before], [after])
    change = of(found, "their_count")
    assert (change.verdict, change.gates) == ("inconclusive", False)
    assert exit_code(found.changes, inconclusive_fails=True) == FINE
    assert of(compared([before], [after], {"metric": "their_count"}), "their_count").verdict == "worse"
    assert (
        of(compared([before], [after], {"metric": "their_count", "tolerance": "5%"}), "their_count").verdict == "same"
    )


def test_samples_of_another_packages_metric_never_gate() -> None:
    one = cell()
    before, after = (
        ok(one, [Measurement(metric="their_time", unit="s", samples=((value, value),), method="")])
        for value in (1.0, 9.0)
    )
    change = of(compared([before], [after], {"metric": "their_time"}), "their_time")
    assert (change.verdict, change.gates) == ("not comparable", False)


# searches for the largest batch


def attempts(base: Cell, largest: int, bound: int = 16, stop: str = "oom") -> list[Record]:
    """A search's records: doubling, then bisection."""
    from vitbench.suites.batch_search import expected_attempts

    marker = Measurement.single(BOUND, "image", bound, "made up")
    records = []
    for batch in expected_attempts(largest, bound):
        one = dataclasses.replace(base, batch_size=batch)
        record = ok(one, size(one)) if batch <= largest else failed(one, stop, "out_of_memory" if stop == "oom" else "")
        records.append(dataclasses.replace(record, measurements=(*record.measurements, marker)))
    return records


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(11, 9, "worse"), (9, 11, "better"), (11, 11, "same"), (16, 16, "same"), (16, 3, "worse")],
)
def test_the_largest_batch_of_a_search_is_compared(before: int, after: int, verdict: str) -> None:
    base = cell(memory_limit=2_000_000_000)
    found = compared(attempts(base, before), attempts(base, after))
    change = of(found, "largest_batch")
    assert change.verdict == verdict
    assert "memory_limit=2000MB" in change.cell
    assert change.base == (before if before < 16 else ">=16")
    # attempts of which only one search had need are no missing cells, and their endings are the search's
    assert not [c for c in found.changes if c.metric in ("cell", "status")]


def test_a_search_that_something_else_stopped_is_inconclusive() -> None:
    base = cell()
    change = of(compared(attempts(base, 11), attempts(base, 7, stop="timeout")), "largest_batch")
    assert change.verdict == "inconclusive"
    assert "HEAD was stopped at batch 8" in change.detail
    unfinished = of(compared(attempts(base, 11), attempts(base, 11)[:-1]), "largest_batch")
    assert (unfinished.verdict, unfinished.detail) == ("inconclusive", "HEAD is not finished")


def test_a_search_that_the_code_ended_is_worse() -> None:
    base = cell()
    broken = of(compared(attempts(base, 11), attempts(base, 0, stop="error")), "largest_batch")
    assert (broken.verdict, broken.gates) == ("worse", True)
    assert broken.detail == "HEAD ended with error at batch 1, which BASE runs"
    both = of(compared(attempts(base, 0, stop="error"), attempts(base, 0, stop="error")), "largest_batch")
    assert both.verdict == "inconclusive"
    beyond = of(compared(attempts(base, 3), attempts(base, 7, stop="error")), "largest_batch")
    assert beyond.verdict == "inconclusive"  # BASE did not get there


def test_a_search_that_is_missing_is_worse_where_cells_are_asked_for() -> None:
    records = attempts(cell(), 3)
    found = of(compared([*records, infer(cell("vit_nano"))], [infer(cell("vit_nano"))]), "largest_batch")
    assert found.verdict == "not comparable"
    asked = compared([*records, infer(cell("vit_nano"))], [infer(cell("vit_nano"))], {"metric": "cell"})
    assert (of(asked, "largest_batch").verdict, of(asked, "largest_batch").gates) == ("worse", True)


def test_a_search_with_another_bound_is_compared_as_far_as_it_went() -> None:
    base = cell()
    bounded = of(compared(attempts(base, 20, bound=64), attempts(base, 16, bound=16)), "largest_batch")
    assert bounded.verdict == "not comparable"
    smaller = of(compared(attempts(base, 20, bound=64), attempts(base, 9, bound=16)), "largest_batch")
    assert smaller.verdict == "worse"


# the command


def command(*arguments: object) -> int:
    return run_command(["compare", *map(str, arguments)])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """BASE, and a HEAD with one parameter more."""
    before = [infer(cell(batch=batch)) for batch in (1, 32)]
    one = before[0]
    grown = tuple(
        dataclasses.replace(m, samples=((m.value + 1,),)) if m.metric == "params" else m for m in one.measurements
    )
    after = [dataclasses.replace(one, measurements=grown), before[1]]
    return write_run(tmp_path / "main", run(*before)), write_run(tmp_path / "branch", run(*after))


def test_a_regression_ends_with_1_and_the_outputs_agree(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = {name: tmp_path / f"out.{name}" for name in ("markdown", "json", "junit")}
    assert command(*folders, *(f"--{name}={path}" for name, path in outputs.items())) == REGRESSION
    shown = capsys.readouterr()
    assert "Regression: 1 of" in shown.out
    assert "1,213,450" in shown.out
    assert "1,213,451" in shown.out
    assert shown.err.count("Wrote ") == 3
    content = json.loads(outputs["json"].read_text(encoding="utf-8"))
    assert content["exit_code"] == REGRESSION
    assert content["counts"]["worse"] == 1
    assert content["title"] == "vitbench compare: main -> branch"
    assert "1,213,451" in outputs["markdown"].read_text(encoding="utf-8")
    assert ET.parse(outputs["junit"]).getroot()[0].get("failures") == "1"


def test_the_same_the_other_way_round_is_fine(folders: tuple[Path, Path]) -> None:
    base, head = folders
    assert command(head, base) == FINE
    assert command(base, base) == FINE


def test_a_threshold_of_the_command_counts_before_the_suites(folders: tuple[Path, Path]) -> None:
    base, head = folders
    assert command(base, head, "--threshold", "params=1%") == FINE
    assert command(base, head, "--threshold", "params=1%", "--threshold", "params@vit_mi*=0") == REGRESSION
    (head / "suite.toml").write_text('[[thresholds]]\nmetric = "params"\ngate = false\n', encoding="utf-8")
    assert command(base, head) == FINE
    assert command(base, head, "--threshold", "params=on") == REGRESSION
    (base / "suite.toml").write_text('[[thresholds]]\nmetric = "params"\ntolerance = 0\n', encoding="utf-8")
    assert command(base, head) == FINE  # HEAD's suite counts


def test_a_page_can_be_printed(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*folders, "--markdown", "-") == REGRESSION
    assert capsys.readouterr().out.startswith("## vitbench compare: main")
    assert command(*folders, "--json", "-") == REGRESSION
    assert json.loads(capsys.readouterr().out)["base"] == "main"


def test_inconclusive_figures_warn_pass_or_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = cell()
    base = write_run(tmp_path / "a", run(paired(one, (1.0,))))
    head = write_run(tmp_path / "b", run(paired(one, (2.0,))))
    assert command(base, head) == FINE
    assert "Warning: 1 gated value is inconclusive" in capsys.readouterr().err
    assert command(base, head, "--inconclusive", "pass") == FINE
    assert capsys.readouterr().err == ""
    assert command(base, head, "--inconclusive", "fail") == INCONCLUSIVE
    assert "Error: 1 gated value is inconclusive" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--threshold", "prams=5%"], "Did you mean 'params'?"),
        (["--threshold", "params=5"], "'5%', or '500%'"),
        (["--threshold", "params"], "METRIC=TOLERANCE"),
        (["--threshold", "params@vit_x*=5%"], "no model is called 'vit_x*' here: vit_micro"),
        (["--threshold", "latency=5%"], "give relative_latency"),
        (["--threshold", "throughput=on"], "differs too much between runs to gate"),
        (["--inconclusive", "maybe"], "pass, warn, fail"),
        (["--junit", "-"], "not a file that can be written"),
        (["--json", "x", "--junit", "x"], "name one file"),
        (["--markdown", "."], "not a file that can be written"),
        (["--markdown", "no/such/place.md"], "there is no folder"),
    ],
)
def test_wrong_options_are_one_line_and_2(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    assert command(*folders, *options) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_wrong_folders_are_one_line_and_2(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, head = folders
    other = write_run(tmp_path / "other", run(infer(cell("vit_big"))))
    empty = write_run(tmp_path / "empty", run())
    for arguments, told in (
        ((base, tmp_path / "nowhere"), "is not a run folder"),
        ((base, base / "records.jsonl"), "is not a run folder"),
        ((base, other), "no cell in common"),
        ((empty, head), "holds no records"),
    ):
        assert command(*arguments) == 2
        shown = capsys.readouterr().err
        assert told in shown
        assert shown.count("\n") == 1
    (head / "suite.toml").write_text('[[thresholds]]\nmetric = "params"\ntolerance = 7\n', encoding="utf-8")
    assert command(base, head) == 2
    assert "suite.toml" in capsys.readouterr().err


def test_a_machine_that_does_not_let_us_read_ends_with_4(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Path, *_: Any, **__: Any) -> str:
        raise OSError(5, "Input/output error", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", broken)
        assert command(*folders) == INFRASTRUCTURE
    assert "Input/output error" in capsys.readouterr().err


def test_a_mistake_of_ours_is_no_regression(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Comparison:
        raise RuntimeError("ours")

    monkeypatch.setattr(vitbench.regression.compare, "compare_runs", broken)
    assert command(*folders) == INFRASTRUCTURE
    assert "RuntimeError: ours" in capsys.readouterr().err


@pytest.mark.integration
def test_a_reader_that_has_seen_enough_changes_no_exit_code(folders: tuple[Path, Path]) -> None:
    base, head = folders
    for arguments, code in (((base, head), REGRESSION), ((head, base), FINE)):
        started = subprocess.Popen(
            [sys.executable, "-m", "vitbench", "compare", *map(str, arguments), "--all"], stdout=subprocess.PIPE
        )
        assert started.stdout is not None
        started.stdout.close()
        assert started.wait(60) == code


@pytest.mark.integration
def test_a_terminal_that_knows_few_signs_still_gets_the_table(folders: tuple[Path, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vitbench", "compare", *map(str, folders), "--markdown", "-"],
        env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == REGRESSION
    assert b"| ? worse" in done.stdout


def test_damaged_lines_are_passed_over_with_a_warning(folders: tuple[Path, Path]) -> None:
    base, head = folders
    with (head / "records.jsonl").open("ab") as file:
        file.write(b'\x00\x00\n{"cut off')
    with pytest.warns(UserWarning, match="records.jsonl, line"):
        assert command(base, head) == REGRESSION


def test_records_of_a_newer_vitbench_are_told(folders: tuple[Path, Path]) -> None:
    base, head = folders
    path = head / "records.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"schema":4', '"schema":99', 1), encoding="utf-8")
    with pytest.warns(UserWarning, match="newer than this vitbench reads"):
        assert command(base, head) == FINE  # the cell that grew is the one that cannot be read


@pytest.mark.integration
def test_nothing_of_it_loads_torch(folders: tuple[Path, Path]) -> None:
    code = (
        "import sys; from vitbench.cli import run_command\n"
        f"assert run_command(['compare', {str(folders[0])!r}, {str(folders[1])!r}]) == 1\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


# committed results


@pytest.mark.parametrize("name", ["lightweight-digits", "lightweight-cifar10", "frontier-vit_base16-2GiB"])
def test_committed_results_are_no_worse_than_themselves(name: str) -> None:
    assert command(RESULTS / name, RESULTS / name, "--inconclusive", "pass") == FINE


def test_committed_results_of_two_suites_share_their_exact_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(RESULTS / "lightweight-digits", RESULTS / "lightweight-cifar10") == FINE
    shown = capsys.readouterr().out
    assert "none of 408 gated values is worse" in shown
    assert "8 cells are only in BASE" in shown


def test_a_committed_result_with_a_layer_more_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = tmp_path / "head"
    shutil.copytree(RESULTS / "lightweight-digits", head)
    records = {record.cell.id: record for record in read_records(head)}
    (small,) = [
        r
        for r in records.values()
        if r.cell.model == "vit_layer6_32" and r.cell.mode == "infer" and r.cell.batch_size == 1
    ]
    (large,) = [
        r
        for r in records.values()
        if r.cell.model == "vit_layer12_32" and r.cell.mode == "infer" and r.cell.batch_size == 1
    ]
    # the twelve layers in place of the six: more of everything, and slower
    records[small.cell.id] = dataclasses.replace(large, cell=small.cell)
    (head / "records.jsonl").write_text("".join(f"{r.to_json()}\n" for r in records.values()), encoding="utf-8")
    assert command(RESULTS / "lightweight-digits", head, "--json", "-") == REGRESSION
    changes = json.loads(capsys.readouterr().out)["changes"]
    worse = {change["metric"] for change in changes if change["verdict"] == "worse" and change["gates"]}
    assert {"params", "flops", "tensor_peak", "inference_peak_memory", "relative_latency"} <= worse
    assert {change["cell"] for change in changes if change["verdict"] == "worse"} == {small.cell.label}

"""What is said of quiet and busy runs is computed right: from records and pairs whose truth is known."""

import dataclasses
import math
import random
import statistics

import pytest

from benchmarks import busy_and_quiet
from benchmarks.busy_and_quiet import OneRun, Reading
from tests.reports.fabricate import cell
from tests.reports.paired import REFERENCE, REFERENCE_S, TURNS, loads, paired, tables
from vitbench.core.records import Measurement, Record
from vitbench.reports.model.runs import Run
from vitbench.suites import load_suite


def throughput(*rates: float) -> Measurement:
    return Measurement(metric="throughput", unit="image/s", samples=tuple((rate,) for rate in rates), method="made up")


def one_run(kind: str, value: float, *, marks: tuple[str, ...] = (), width: float = 0.05, drift: float = 1.0) -> OneRun:
    low, high = (1 - width) * value, (1 + width) * value
    readings = {
        "a latency b1, ms": Reading(value * drift, low * drift, high * drift, marks),
        "a latency b1, × reference": Reading(value, low, high, marks),
    }
    return OneRun(kind, 100.0, readings, {"reference 1": 0.001 * drift})


def readings(records: list[Record]) -> dict[str, Reading]:
    return busy_and_quiet.headline_readings(Run(name="run", records=records))


def test_the_suite_has_two_batches_of_inference_and_one_of_training() -> None:
    suite = load_suite(str(busy_and_quiet.SUITE))
    assert (len(suite.models), suite.batch_sizes, suite.training) == (3, (1, 8, 32), None)


@pytest.mark.parametrize("number", [0, 1])
def test_the_quiet_run_is_beside_each_run_under_load(number: int) -> None:
    kinds = busy_and_quiet.order(["half", "memory"], number)
    assert kinds[1] == "quiet"
    assert kinds != busy_and_quiet.order(["half", "memory"], number + 1)
    assert set(busy_and_quiet.order(["half"], number)) == {"half", "quiet"}


def test_headlines_are_milliseconds_relative_times_and_the_best_throughput() -> None:
    inference = [
        paired(cell("vit_nano", batch), [2.0] * 5, extra=[throughput(*[rate] * 5)])
        for batch, rate in [(1, 50.0), (32, 90.0)]
    ]
    found = readings([*inference, paired(cell("vit_nano", 8, mode="train"), [7.0] * 5)])
    assert {name: round(one.value, 6) for name, one in found.items()} == {
        "vit_nano latency b1, ms": 20.0,
        "vit_nano latency b1, × reference": 2.0,
        "vit_nano latency b32, ms": 20.0,
        "vit_nano latency b32, × reference": 2.0,
        "vit_nano training step b8, ms": 70.0,
        "vit_nano training step b8, × reference": 7.0,
        "vit_nano best throughput, image/s": 90.0,
    }


def test_a_rate_without_drift_is_that_of_a_reference_step() -> None:
    one = paired(cell("vit_nano"), [2.0] * 5)
    latency = one.measurement("latency")
    assert latency is not None
    rate = tuple(tuple(8 / seconds for seconds in process) for process in latency.samples)
    both = dataclasses.replace(latency, metric="throughput", unit="image/s", samples=rate)
    found = readings([dataclasses.replace(one, measurements=(*one.measurements, both))])
    assert found["vit_nano best throughput, image/s"].value == pytest.approx(8 / (2 * REFERENCE_S))
    assert found["vit_nano best throughput, × reference"].value == pytest.approx(8 / 2)


def test_the_variance_of_a_value_is_that_of_the_mean_of_its_processes() -> None:
    ratios = [2.0, 2.1, 1.95, 2.05, 2.02]
    found = readings([paired(cell("vit_nano"), ratios)])
    expected = statistics.variance([math.log(ratio) for ratio in ratios]) / len(ratios)
    assert found["vit_nano latency b1, ms"].variance == pytest.approx(expected, rel=0.2)
    assert found["vit_nano latency b1, × reference"].variance == pytest.approx(expected, rel=0.2)


def test_a_value_is_busy_where_its_interval_is_wide_and_something_else_ran() -> None:
    ratios = {"wide": [1.0, 2.4, 1.5, 0.4, 2.1], "narrow": [1.0, 1.01, 1.0, 0.99, 1.0]}
    found = {}
    for width, of_processes in ratios.items():
        for load in (0.0, 0.9):
            record = paired(cell("vit_nano"), of_processes, extra=loads(load, processes=5))
            found[width, load] = readings([record])["vit_nano latency b1, ms"]
    assert {key for key, one in found.items() if "busy" in one.marks} == {("wide", 0.9)}
    assert found["narrow", 0.9].marks == ()
    one_process = readings([paired(cell("vit_nano"), [2.0])])
    assert one_process["vit_nano latency b1, ms"].marks == ("all turns",)


def test_the_reference_of_a_run_is_that_of_its_quiet_turns() -> None:
    half_slow = [REFERENCE_S * (1.0 if turn % 2 else 1.7) for turn in range(TURNS)]
    run = Run(name="run", records=[paired(cell("vit_nano"), [2.0] * 3, reference=half_slow)])
    assert busy_and_quiet.quiet_reference(run) == {REFERENCE: pytest.approx(REFERENCE_S)}


def test_ratios_are_those_within_a_pair() -> None:
    quiet = [one_run("quiet", 10.0, drift=drift) for drift in (1.0, 2.0, 1.0, 1.0, 1.0)]
    half = [
        one_run("half", 10.5),
        one_run("half", 10.5, drift=2.0),
        one_run("half", 13.0, marks=("busy",)),
        one_run("half", 13.0, width=0.3),
        one_run("half", 20.0),
    ]
    rounds = [{"quiet": one, "half": other} for one, other in zip(quiet, half, strict=True)]
    counts, values = tables(busy_and_quiet.page(rounds))[:2]
    assert list(counts[0].values()) == ["beside `half`", "as printed", "2 of 5", "1 (busy 1)", "1", "1", "0"]
    assert list(counts[2].values()) == ["quiet over the quiet run before", "as printed", "2 of 4", "0", "0", "2", "0"]
    assert list(counts[3].values())[1:] == ["without drift", "4 of 4", "0", "0", "0", "0"]
    assert list(values[0].values())[:2] == ["a latency b1", "1.300 (2.000; 2 of 5)"]
    assert list(values[0].values())[3] == "1.000 (0.500; 2 of 4)"


def test_a_value_that_a_run_lacks_is_missing() -> None:
    lacks = OneRun("half", 1.0, {}, {})
    page = busy_and_quiet.page([{"quiet": one_run("quiet", 10.0), "half": lacks}])
    assert [line["missing"] for line in tables(page)[0]] == ["1", "1"]


def test_intervals_are_held_against_the_median_of_their_kind() -> None:
    found = [Reading(value, value - 1, value + 1, ()) for value in (10.0, 10.5, 11.0, 20.0)]
    assert busy_and_quiet.intervals_that_hold_the_median(found) == (3, 4)
    assert busy_and_quiet.intervals_that_hold_the_median([Reading(3.0, None, None, ())]) == (0, 0)


def test_what_runs_differ_by_beyond_their_processes_is_found() -> None:
    draw = random.Random(0)
    runs = [math.exp(draw.gauss(0, 0.05) + draw.gauss(0, 0.03)) for _ in range(4000)]
    found = busy_and_quiet.beyond([Reading(value, None, None, (), 0.03**2) for value in runs])
    assert found == pytest.approx(0.05, rel=0.05)
    assert busy_and_quiet.beyond([Reading(value, None, None, (), 1.0) for value in runs]) == 0.0

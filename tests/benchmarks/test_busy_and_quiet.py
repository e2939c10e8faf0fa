"""What is said of quiet and busy runs is computed right: from records and pairs whose truth is known."""

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


def one_run(kind: str, value: float, *, busy: bool = False, wall_s: float = 100.0) -> OneRun:
    low, high = (0.95 * value, 1.05 * value)
    return OneRun(kind, wall_s, {"a latency b1, ms": Reading(value, low, high, busy)}, {"reference 1": 0.001})


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
            found[width, load] = readings([record])["vit_nano latency b1, × reference"]
    assert {key for key, one in found.items() if one.busy} == {("wide", 0.9)}
    assert (found["wide", 0.0].high or 0.0) > 2 * (found["wide", 0.0].low or 0.0)


def test_the_reference_of_a_run_is_that_of_its_quiet_turns() -> None:
    half_slow = [REFERENCE_S * (1.0 if turn % 2 else 1.7) for turn in range(TURNS)]
    run = Run(name="run", records=[paired(cell("vit_nano"), [2.0] * 3, reference=half_slow)])
    assert busy_and_quiet.quiet_reference(run) == {REFERENCE: pytest.approx(REFERENCE_S)}


def test_ratios_are_those_within_a_pair() -> None:
    quiet = [one_run("quiet", value) for value in (10.0, 20.0, 10.0, 10.0)]
    half = [
        one_run("half", value, busy=busy) for value, busy in ((10.5, False), (21.0, True), (13.0, True), (20.0, False))
    ]
    rounds = [{"quiet": one, "half": other} for one, other in zip(quiet, half, strict=True)]
    page = busy_and_quiet.page(rounds)
    (line,) = tables(page)[0]
    assert line == {
        "value": "a latency b1, ms",
        "ratio, median": "1.175",
        "worst": "2.000",
        "0.9 to 1.1": "2 of 4",
        "marked busy": "2",
        "outside and not marked": "1",
        "missing": "0",
    }
    assert "50.0 % of 4 values" in page
    assert "1 are marked `busy` and 1 are not" in page
    # quiet over quiet: 2, 0.5 and 1
    (control,) = tables(page.split("## A quiet run over the one before")[1])[0]
    assert (control["ratio, median"], control["0.9 to 1.1"]) == ("1.000", "1 of 3")


def test_intervals_are_held_against_the_median_of_their_kind() -> None:
    found = [Reading(value, value - 1, value + 1, False) for value in (10.0, 10.5, 11.0, 20.0)]
    assert busy_and_quiet.intervals_that_hold_the_median(found) == (3, 4)
    assert busy_and_quiet.intervals_that_hold_the_median([Reading(3.0, None, None, False)]) == (0, 0)


def test_what_runs_differ_by_beyond_their_processes_is_found() -> None:
    draw = random.Random(0)
    runs = [math.exp(draw.gauss(0, 0.05) + draw.gauss(0, 0.03)) for _ in range(4000)]
    found = busy_and_quiet.beyond([Reading(value, None, None, False, 0.03**2) for value in runs])
    assert found == pytest.approx(0.05, rel=0.05)
    assert busy_and_quiet.beyond([Reading(value, None, None, False, 1.0) for value in runs]) == 0.0

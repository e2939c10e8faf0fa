"""What is said to be left of a run that plays itself: synthetic records on a clock that the test sets."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest

from vitbench.core.records import Cell, Measurement, Record
from vitbench.executors.protocol import TrainingStep
from vitbench.runner.time_estimates import REPORT_S, Rates, TimeEstimates
from vitbench.runner.training_plan import TrainingPlan
from vitbench.suites.batch_search import expected_attempts
from vitbench.suites.loading import make_suite
from vitbench.training.data.images import DataInfo
from vitbench.training.recipes import load_recipe

FLOPS = {"small": 1e9, "large": 4e9}
DATA = DataInfo(spec="d", label="d", class_names=("a", "b"), train_images=1000, test_images=100, summary="")


def cell(model: str, **changes: Any) -> Cell:
    given = {"image_size": (32, 32), "num_classes": 2, "batch_size": 1, "device": "cpu", "threads": 1, **changes}
    return Cell(model=model, **given)


def record(of: Cell, seconds: float, status: Any = "ok", *measurements: Measurement) -> Record:
    return Record(
        cell=of,
        status=status,
        measurements=measurements,
        environment="e",
        started_at="2026-01-01T00:00:00+00:00",
        duration_s=seconds,
        cause="probable_oom" if status == "oom" else "",
    )


class Play:
    """Estimates, the clock that they read, and all that they said was left, without the report."""

    def __init__(
        self,
        content: dict[str, Any],
        cells: list[Cell],
        rate: float,
        plan: TrainingPlan | None = None,
        predicted: int | None = None,
    ) -> None:
        self.now = 0.0
        known = {one.id: Rates(FLOPS[one.model], rate, predicted) for one in cells}
        suite = make_suite({"name": "x", "models": ["vit_basic"], **content}, "x.toml")
        self.estimates = TimeEstimates(suite, cells, plan, known, clock=lambda: self.now)
        self.said: list[tuple[float, float]] = []

    def wait(self, seconds: float) -> None:
        for _ in range(4):
            self.said.append((self.now, self.left()))
            self.now += seconds / 4

    def left(self) -> float:
        return self.estimates.left() - REPORT_S

    def ratios(self) -> list[float]:
        """What was said over what was true, from the first tenth of the run to the last."""
        return [said / (self.now - at) for at, said in self.said if 0.1 * self.now <= at <= 0.9 * self.now]

    def largest_rise(self) -> float:
        lowest = itertools.accumulate((said for _, said in self.said), min)
        return max(said / low for (_, said), low in zip(self.said, lowest, strict=True) if low > self.now / 20)


def training_play(wrong: float) -> Play:
    """Four trainings at 1e11 FLOP/s, of which a calibration said ``wrong`` times as many."""
    recipes = [load_recipe("brief", images=3200)]
    plan = TrainingPlan(tuple(recipes), tuple(recipes), DATA)
    cells = [
        cell(model, mode="train", weights="train:brief", data="d", batch_size=32, seed=seed)
        for model in FLOPS
        for seed in (0, 1)
    ]
    content = {"metrics": ["accuracy"], "training": {"recipe": "brief", "images": 3200}}
    play = Play(content, cells, 1e11 * wrong, plan)
    for one in cells:
        seconds = 5 * FLOPS[one.model] * 3200 / 1e11
        play.estimates.cell_started(one)
        for step in range(1, 21):
            play.wait(seconds / 20)
            play.estimates.training_step(TrainingStep(step=step, total=20, loss=1.0))
        play.wait(seconds / 50)
        play.estimates.record_done(record(one, seconds * 1.02))
    return play


@pytest.mark.parametrize("wrong", [0.5, 1.0, 3.0])
def test_trainings_correct_a_wrong_calibration_within_their_first_tenth(wrong: float) -> None:
    play = training_play(wrong)
    assert 1 / 1.3 < min(play.ratios()) <= max(play.ratios()) < 1.3
    assert play.largest_rise() < 4


def test_the_plan_is_right_where_the_calibration_is() -> None:
    play = training_play(1.0)
    assert play.said[0][1] == pytest.approx(play.now, rel=0.15)
    assert play.left() == 0  # nothing is left but the report
    assert play.estimates.left() == REPORT_S


TIMED = {"metrics": ["latency"], "modes": ["infer"], "measure": {"processes": 5, "seconds": 1.0, "min_samples": 10}}


def timed_play(wrong: float, slow: float, added: int = 0, spread: float = 0.02, precision: float = 0.0) -> Play:
    """Two groups of two cells each, of 5 and ``added`` processes, each ``slow`` times as long as on a quiet machine."""
    groups = [[cell(model, batch_size=size) for model in FLOPS] for size in (1, 8)]
    measure = {**TIMED["measure"], "precision": precision}
    play = Play({**TIMED, "measure": measure}, [one for group in groups for one in group], 1e11 * wrong)
    for group in groups:
        for one in group:
            play.estimates.cell_started(one)
        play.estimates.group_started(group)
        calls = {one.id: 1e-3 + FLOPS[one.model] * one.batch_size / 1e11 for one in group}
        for number in range(1, 6 + added):
            play.wait(slow * sum(0.4 + max(1.0, 12.5 * calls[one.id]) * 1.3 + 2 * calls[one.id] for one in group))
            total = 5 + added if number >= 5 else 5
            seconds = {
                key: value * math.exp(spread * (-1) ** (number // 2 + place))
                for place, (key, value) in enumerate(calls.items())
            }
            play.estimates.round_done(dict.fromkeys(calls, total - number), seconds)
        for one in group:
            play.estimates.record_done(record(one, 1.0))  # what a record says of a group is not the clock's
    return play


@pytest.mark.parametrize("wrong", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("slow", [1.0, 2.0])
def test_the_rounds_of_a_group_show_how_long_the_others_take(wrong: float, slow: float) -> None:
    play = timed_play(wrong, slow)
    late = play.ratios()[len(play.ratios()) // 4 :]
    assert 1 / 1.4 < min(late) <= max(late) < 1.4
    assert play.largest_rise() < 3


def test_processes_that_precision_adds_are_expected_and_then_known() -> None:
    fixed, open_, all_ = timed_play(1.0, 1.0), *(timed_play(1.0, 1.0, n, s, 0.05) for n, s in ((0, 0.01), (10, 0.1)))
    assert 1.3 < open_.said[0][1] / fixed.said[0][1] < 2  # most groups have clear ranks
    assert max(play.largest_rise() for play in (open_, all_)) < 1.6
    assert all_.ratios()[-10:] == pytest.approx([1.0] * 10, rel=0.2)  # known by then
    # not added in the first group: fewer are expected in the second
    assert open_.ratios()[-10] < 0.9 * open_.ratios()[0]


def test_what_is_under_way_counts_down_and_keeps_something_left() -> None:
    play = Play({"metrics": ["memory"]}, [cell("small")], 1e8)
    play.estimates.cell_started(cell("small"))
    first = play.left()
    play.now = 10.0
    assert play.left() == pytest.approx(first - 10, rel=0.01)
    play.now = 10_000.0
    assert play.left() == pytest.approx(1000, rel=0.1)  # a tenth of its time so far


def test_earlier_sessions_of_a_run_teach() -> None:
    cells = [cell(model, batch_size=size) for size in (1, 8) for model in FLOPS]
    content = {**TIMED, "measure": {**TIMED["measure"], "precision": 0.0}}
    fresh, resumed = (Play(content, cells, 1e9) for _ in range(2))
    done = []
    for one in cells[:2]:
        call = FLOPS[one.model] / 1e11  # a hundred times as fast as was calibrated
        samples = ((call,) * 10,) * 5
        times = Measurement(metric="latency", unit="s", samples=samples, method="m")
        done.append(record(one, 8.5, "ok", times))
    fresh.estimates.begin(cells[2:], [])
    unknown = record(cell("small", batch_size=64), 5.0)
    resumed.estimates.begin(cells[2:], [*done, unknown])
    assert resumed.left() < fresh.left() / 10


@pytest.mark.parametrize(
    ("predicted", "largest", "max_batch"),
    [(3, 3, 64), (None, 3, 9)],  # without a prediction the root of the bound is expected
)
def test_a_search_expects_the_attempts_that_are_left(predicted: int | None, largest: int, max_batch: int) -> None:
    bases = [cell("small"), cell("large")]
    play = Play({"frontier": {"max_batch": max_batch}}, bases, 1e9, predicted=predicted)
    before = play.left()
    taken = 0.0
    for batch in expected_attempts(largest, max_batch, predicted):
        status = "ok" if batch <= largest else "oom"
        one = replace(bases[0], batch_size=batch)
        seconds = 0.4 + batch * (4.0 if status == "ok" else 1.0)
        play.estimates.cell_started(one)
        play.wait(seconds)
        play.estimates.record_done(record(one, seconds, status))
        taken += seconds
    play.estimates.search_done(bases[0])
    assert play.left() < before - taken
    assert play.left() == pytest.approx(4 * taken, rel=0.3)  # as many attempts, of four times the FLOPs


def test_a_search_begins_at_its_prediction_unless_that_takes_longer_than_the_timeout() -> None:
    base = cell("small")
    for rate, predicted, begins in ((1e9, 10, True), (1e9, 10_000, True), (1e9, 0, True), (1e5, 10, False)):
        suite = {"frontier": {"max_batch": 16}, "timeout_s": 600}
        estimates = Play(suite, [base], rate, predicted=predicted).estimates
        assert estimates.start_of_search(base) == (predicted if begins else None)
    assert Play(suite, [base], 1e9).estimates.start_of_search(base) is None


def test_a_suite_of_counts_alone_needs_no_calibration() -> None:
    cells = [cell("small"), cell("large")]
    suite = make_suite({"name": "x", "models": ["vit_basic"], "metrics": ["params"]}, "x.toml")
    estimates = TimeEstimates(suite, cells, None, {}, clock=lambda: 0.0)
    before = estimates.left()
    estimates.record_done(record(cells[0], 0.4))
    assert estimates.left() == pytest.approx(before / 2 + REPORT_S / 2)

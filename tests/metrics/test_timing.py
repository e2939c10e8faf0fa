"""The one timer: turns, what the reference took beside them, CPU time, blocks, and batches in rotation."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.metrics.test_metrics import make_subject
from vitbench.core.records import measurement_from_dict
from vitbench.core.registry import METRICS
from vitbench.core.stats.relative import relative_samples
from vitbench.devices import open_device
from vitbench.executors.protocol import Measure
from vitbench.executors.worker import PipeTurns, subject_of
from vitbench.metrics import Budget
from vitbench.metrics.support import timing
from vitbench.metrics.support.subject import ROTATION, ROTATION_BYTES
from vitbench.metrics.support.timing import (
    Timing,
    block_median,
    forward_durations,
    sample_durations,
    step_durations,
    timing_method,
)

CPU = open_device("cpu")
TURN_S, CALL_S = 1 / 8, 1 / 64  # sums of these are exact


class Clock:
    """A clock that a test moves: wall and CPU seconds."""

    def __init__(self) -> None:
        self.wall = 0.0
        self.cpu = 0.0

    def perf_counter(self) -> float:
        return self.wall

    def process_time(self) -> float:
        return self.cpu

    def pass_by(self, wall: float, cpu: float = 0.0) -> None:
        self.wall += wall
        self.cpu += cpu


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def steps(seconds: float, cpu_seconds: float = 0.5) -> dict[str, Any]:
    """A turn of the reference with 100 equal steps."""
    return {"samples": [seconds] * 100, "cpu_seconds": cpu_seconds}


class ScriptedTurns:
    """Turns of ``seconds`` each, a long time apart; the reference has one before each, and one after the last."""

    reference_name = "reference 1"
    method, method_without_reference = "in turns", "without the reference"

    def __init__(
        self,
        clock: Clock,
        reference: Sequence[Mapping[str, Any] | None],
        seconds: float = TURN_S,
        *,
        calls: int = 1,
        replayed: Collection[int] = (),
    ) -> None:
        self.clock = clock
        self.reference = reference
        self.seconds = seconds
        self.calls = calls
        self.replayed = replayed  # the turns that are taken again, from 1 on
        self.waits: list[bool] = []
        self.seen: list[tuple[float, ...]] = []

    def wait(self, *, last: bool = False, samples: Sequence[float] = ()) -> Mapping[str, Any]:
        number = len(self.waits)
        turn = self.reference[number]
        self.waits.append(last)
        self.seen += [tuple(samples)] if samples else []
        self.clock.pass_by(1000.0, cpu=77.0)  # others run; whatever this process does meanwhile is no sample either
        return {
            "seconds": self.seconds,
            "calls": self.calls,
            "before": turn,
            "after_last": turn if number else None,
            "replay": number in self.replayed,
            "other_load": number / 8,
        }


def calling(clock: Clock, wall: float = CALL_S, cpu: float = CALL_S) -> Callable[[], None]:
    return lambda: clock.pass_by(wall, cpu)


def test_a_turn_is_used_and_given_up_and_waiting_counts_for_nothing(clock: Clock) -> None:
    turns = ScriptedTurns(clock, [steps(1.0)] * 5)
    found = sample_durations(calling(clock), CPU, Budget(seconds=4 * TURN_S, min_samples=1), turns)
    assert found.turns == (8, 8, 8, 8)
    assert found.samples == (CALL_S,) * 32
    assert found.cpu == (CALL_S,) * 4
    assert turns.waits == [False] * 4 + [True]
    assert turns.seen == [(CALL_S,) * 8] * 4


def test_the_first_call_of_a_process_is_a_value_of_its_own_and_nothing_pays_for_it(clock: Clock) -> None:
    durations = iter([1000.0] + [CALL_S] * 99)
    turns = ScriptedTurns(clock, [steps(1.0)] * 9)
    budget = Budget(seconds=2 * TURN_S, min_samples=1)
    found = sample_durations(lambda: clock.pass_by(next(durations), 1.0), CPU, budget, turns)
    assert (found.first_s, found.samples, found.cpu) == (1000.0, (CALL_S,) * 16, (1.0, 1.0))
    first = {one.metric: one for one in found.measurements("latency", "how")}["first_call"]
    assert (first.samples, first.unit, first.method) == (((1000.0,),), "s", "the first call of: how")


def test_a_turn_has_so_many_calls_however_long_they_are(clock: Clock) -> None:
    turns = ScriptedTurns(clock, [steps(1.0)] * 5, calls=5)
    found = sample_durations(calling(clock, wall=1.0), CPU, Budget(seconds=1.5, min_samples=10), turns)
    assert found.turns == (5, 5, 3)  # of each all but the first are steady: 4, 4 and the 2 that lack


def test_a_turn_that_takes_far_longer_than_its_calls_should_is_ended(clock: Clock) -> None:
    durations = iter([1.0] * 6 + [10.0] * 2 + [1.0] * 99)
    turns = ScriptedTurns(clock, [steps(1.0)] * 9, calls=5, replayed={2})
    budget = Budget(seconds=1.5, min_samples=20)
    found = sample_durations(lambda: clock.pass_by(next(durations)), CPU, budget, turns)
    assert found.turns == (5, 2, 5, 5, 5)


def test_a_process_beside_a_busy_program_ends_though_it_has_few_samples(clock: Clock) -> None:
    durations = iter([1.0] * 6 + [10.0] * 99)
    turns = ScriptedTurns(clock, [steps(1.0)] * 99, calls=5)
    found = sample_durations(lambda: clock.pass_by(next(durations)), CPU, Budget(seconds=1.0, min_samples=20), turns)
    assert found.turns == (5, 2, 2)  # 45 s: over twice the 20 that as many calls take at the fastest
    assert next(iter(found.measurements("latency", "how"))).detail.startswith("too few")


def test_a_budget_of_seconds_ends_no_turn_that_has_nothing_steady_yet(clock: Clock) -> None:
    turns = ScriptedTurns(clock, [steps(1.0)] * 5, calls=5)
    budget = Budget(seconds=TURN_S + CALL_S, min_samples=1)
    assert sample_durations(calling(clock), CPU, budget, turns).turns == (8, 3)


def test_fewest_and_most_samples_hold_across_turns(clock: Clock) -> None:
    few = sample_durations(
        calling(clock), CPU, Budget(seconds=0, min_samples=20), ScriptedTurns(clock, [steps(1.0)] * 9)
    )
    assert few.turns == (8, 8, 7)  # 7, 7 and 6 steady ones
    most = Budget(seconds=1e9, min_samples=1, max_samples=12)
    assert sample_durations(calling(clock), CPU, most, ScriptedTurns(clock, [steps(1.0)] * 9)).turns == (8, 4)


@pytest.mark.parametrize(
    "budget",
    [
        Budget(seconds=12 * TURN_S, min_samples=1),
        Budget(seconds=0, min_samples=84),
        Budget(seconds=1e9, min_samples=1, max_samples=96),
    ],
    ids=str,
)
def test_the_budget_does_not_pay_for_turns_that_are_taken_again(clock: Clock, budget: Budget) -> None:
    """Each of these budgets is twelve turns; the reference runs after every turn that may be the last."""

    def counts(replayed: Collection[int]) -> tuple[list[int], list[int]]:
        turns = ScriptedTurns(clock, [steps(1.0)] * 99, replayed=replayed)
        found = sample_durations(calling(clock), CPU, budget, turns)
        assert len(found.turns) == len(found.reference) == len(found.other_load)
        return list(found.turns), [number for number, last in enumerate(turns.waits) if last]

    assert counts(()) == ([8] * 12, [12])
    assert counts((1, 2)) == ([8] * 14, [14])
    assert counts((12,)) == ([8] * 13, [12, 13])
    assert counts((12, 13)) == ([8] * 14, [12, 13, 14])
    assert counts(range(99)) == ([8] * 15, [15])  # there it ends, whatever its turns were like


def test_what_other_programs_used_goes_with_each_turn(clock: Clock) -> None:
    turns = ScriptedTurns(clock, [steps(1.0)] * 9)
    found = sample_durations(calling(clock), CPU, Budget(seconds=3 * TURN_S, min_samples=1), turns)
    assert found.other_load == (1 / 8, 2 / 8, 3 / 8)
    unknown = replace(found, other_load=())
    for one in (*found.measurements("latency", "how"), found.rates("throughput", 2, "how")):
        known = one.metric != "first_call"
        assert one.other_load == ((found.other_load,) if known else ())
        assert (len(one.turns), len(one.reference_samples)) == ((1, 1) if known else (0, 0))
        assert measurement_from_dict(asdict(one)) == one
    assert next(unknown.measurements("latency", "how")).other_load == ()


def test_a_rate_is_that_of_the_same_turns(clock: Clock) -> None:
    turns = ScriptedTurns(clock, [steps(2.0)] * 9)
    found = sample_durations(calling(clock), CPU, Budget(seconds=TURN_S, min_samples=1), turns)
    rate, time_ = found.rates("throughput", 2, "how"), next(found.measurements("latency", "how"))
    assert rate.samples == (tuple(2 / CALL_S for _ in range(8)),)
    assert (rate.turns, rate.reference_samples, rate.reference) == (
        time_.turns,
        time_.reference_samples,
        "reference 1",
    )


@pytest.mark.parametrize(
    ("turns", "says"), [((3, 11), ""), ((11,), ""), ((5, 4, 4), ""), ((2, 9), ""), ((10,), "too few")]
)
def test_a_process_with_fewer_than_ten_steady_samples_says_so(turns: tuple[int, ...], says: str) -> None:
    """The first of a turn of more than two is not steady."""
    found = Timing(first_s=1.0, samples=(1.0,) * sum(turns), turns=turns, cpu=(1.0,) * len(turns))
    time_, cpu, first = found.measurements("latency", "how")
    for one in (time_, found.rates("throughput", 1, "how")):
        assert one.detail.partition(":")[0] == says
    assert (cpu.detail, first.detail) == ("", "")


def test_every_sample_is_kept_in_its_order(clock: Clock) -> None:
    durations = [(i + 1) / 1024 for i in range(101)]
    rest = iter(durations)
    turns = ScriptedTurns(clock, [steps(1.0)] * 99)
    found = sample_durations(
        lambda: clock.pass_by(next(rest)), CPU, Budget(seconds=1e9, min_samples=1, max_samples=100), turns
    )
    assert (found.first_s, *found.samples) == pytest.approx(durations, abs=1e-9)
    assert sum(found.turns) == 100
    assert len(found.turns) == len(found.cpu) == len(found.reference) == len(found.reference_cpu) > 5


def test_without_turns_everything_is_one_turn_without_a_reference(clock: Clock) -> None:
    found = sample_durations(calling(clock), CPU, Budget(seconds=TURN_S, min_samples=1))
    assert (found.turns, found.reference, found.reference_cpu, found.other_load) == ((8,), (), (), ())


def test_the_reference_of_a_turn_is_the_geometric_mean_of_both_sides(clock: Clock) -> None:
    reference = [steps(CALL_S, 1.0), steps(4 * CALL_S, 4.0), steps(CALL_S, 9.0)]
    turns = ScriptedTurns(clock, reference)
    found = sample_durations(calling(clock), CPU, Budget(seconds=2 * TURN_S, min_samples=1), turns)
    assert found.reference == pytest.approx((2 * CALL_S, 2 * CALL_S))
    assert found.reference_cpu == pytest.approx((2.0, 6.0))


@pytest.mark.parametrize(("missing", "expected"), [(0, (4, 6)), (1, (1, 9)), (2, (2, 4))])
def test_without_one_side_the_other_counts_alone(clock: Clock, missing: int, expected: tuple[float, ...]) -> None:
    reference: list[Mapping[str, Any] | None] = [steps(1.0, 1.0), steps(4.0, 4.0), steps(9.0, 9.0)]
    reference[missing] = None
    turns = ScriptedTurns(clock, reference)
    found = sample_durations(calling(clock), CPU, Budget(seconds=2 * TURN_S, min_samples=1), turns)
    assert found.reference == found.reference_cpu == pytest.approx(expected)


def test_where_a_turn_has_no_reference_the_process_has_none(clock: Clock) -> None:
    turns = ScriptedTurns(clock, [None, None, steps(1.0)])
    found = sample_durations(calling(clock), CPU, Budget(seconds=2 * TURN_S, min_samples=1), turns)
    assert (found.reference, found.reference_cpu) == ((), ())
    assert len(found.samples) == 16


def test_two_metrics_of_one_process_take_their_turns_one_after_the_other(clock: Clock) -> None:
    turns = ScriptedTurns(clock, [steps(float(n)) for n in range(1, 9)])
    budget = Budget(seconds=2 * TURN_S, min_samples=1)
    sample_durations(calling(clock), CPU, budget, turns)
    second = sample_durations(calling(clock), CPU, budget, turns)
    assert second.reference == pytest.approx((20**0.5, 30**0.5))  # after the last wait of the first: 4, 5, 6
    assert turns.waits == [False, False, True] * 2


def test_garbage_is_collected_before_and_not_during_even_if_a_call_fails() -> None:
    import gc

    during: list[bool] = []

    def fails() -> None:
        during.append(gc.isenabled())
        raise IndexError("token 65 is out of range")

    with pytest.raises(IndexError):
        sample_durations(fails, CPU, Budget())
    assert during == [False]
    assert gc.isenabled()


# CPU time


def test_cpu_time_is_that_of_a_call_over_a_turn(clock: Clock) -> None:
    cpu = iter([5.0, 0.25, 0.25, 0.0, 1.0, 1.0])
    turns = ScriptedTurns(clock, [steps(1.0)] * 4, seconds=1.0)
    found = sample_durations(
        lambda: clock.pass_by(0.5, next(cpu)), CPU, Budget(seconds=1e9, min_samples=1, max_samples=5), turns
    )
    assert found.turns == (2, 2, 1)
    assert found.cpu == pytest.approx((0.25, 0.5, 1.0))


@pytest.mark.integration
def test_a_call_that_sleeps_takes_no_cpu_time_and_one_that_computes_does() -> None:
    def computes() -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    asleep = sample_durations(lambda: time.sleep(0.05), CPU, Budget(seconds=0, min_samples=3))
    assert asleep.cpu[0] < 0.025 < min(asleep.samples)
    assert sample_durations(computes, CPU, Budget(seconds=0, min_samples=3)).cpu[0] >= 0.02


def test_a_timing_becomes_measurements_that_come_back_from_json(clock: Clock) -> None:
    turns = ScriptedTurns(clock, [steps(CALL_S, 0.5), steps(CALL_S, 0.5), steps(CALL_S, 2.0)])
    found = sample_durations(calling(clock), CPU, Budget(seconds=2 * TURN_S, min_samples=1), turns)
    wall, cpu, first = found.measurements("latency", "how")
    assert (wall.metric, cpu.metric) == ("latency", "latency_cpu_time")
    assert (wall.turns, cpu.turns) == (((8, 8),), ((1, 1),))
    assert relative_samples(wall.samples, wall.turns, wall.reference_samples) == [[1.0] * 16]
    assert relative_samples(cpu.samples, cpu.turns, cpu.reference_samples) == [[2 * CALL_S, CALL_S]]
    for one in (wall, cpu, first):
        assert measurement_from_dict(asdict(one)) == one


def test_a_turn_of_the_reference_has_its_steps_and_the_cpu_time_of_one(clock: Clock) -> None:
    turn = step_durations(calling(clock, cpu=1 / 128), CPU, TURN_S)
    assert turn == {"samples": (CALL_S,) * 8, "cpu_seconds": 1 / 128}


# blocks of the reference as long as a call


def test_blocks_are_consecutive_and_their_means_are_what_the_median_is_of() -> None:
    assert block_median([1.0, 3.0, 5.0, 5.0, 100.0, 0.0, 7.0], 2) == 5.0  # of 2, 5 and 50; the rest makes no block
    assert block_median([3.0, 1.0, 2.0], 1) == 2.0
    assert block_median([1.0, 2.0, 6.0], 4) == 3.0  # no whole block: the mean of all


def test_a_call_is_set_against_as_many_steps_as_last_as_long(clock: Clock) -> None:
    """A call lasts four steps; every eighth step takes five times as long, so every second block takes twice as long."""
    uneven = {"samples": [1 / 256] * 7 + [5 / 256] + ([1 / 256] * 7 + [5 / 256]) * 2, "cpu_seconds": 1.0}
    turns = ScriptedTurns(clock, [uneven] * 2)
    found = sample_durations(calling(clock), CPU, Budget(seconds=TURN_S, min_samples=1), turns)
    assert found.reference == pytest.approx((1.5 / 256,), abs=1e-9)  # the median of blocks of 1, 2, 1, 2, 1, 2


def stolen(rng: np.random.Generator, work_s: float, count: int) -> list[float]:
    """Durations of ``count`` pieces of work on a processor that is taken away for 4 ms, on average after each 15 ms."""
    total = work_s * count
    thefts = np.cumsum(rng.exponential(0.015, int(total / 0.015 * 2) + 50))
    ends = work_s * np.arange(1, count + 1)
    wall = ends + 0.004 * np.searchsorted(thefts, ends)
    return np.diff(wall, prepend=0.0).tolist()


@pytest.mark.parametrize("call_s", [0.0005, 0.02, 0.1])
def test_stolen_slices_lengthen_calls_and_matched_blocks_alike(clock: Clock, call_s: float) -> None:
    """A step of the reference takes 1 ms: whatever a call takes, its relative time is that without any theft."""
    rng = np.random.default_rng(0)
    count = max(round(2.0 / call_s), 40)
    durations = iter(stolen(rng, call_s, count + 1))
    reference = [{"samples": stolen(rng, 0.001, 2000), "cpu_seconds": 0.001} for _ in range(200)]
    turns = ScriptedTurns(clock, reference, seconds=1.0)
    budget = Budget(seconds=1e9, min_samples=1, max_samples=count)
    found = sample_durations(lambda: clock.pass_by(next(durations)), CPU, budget, turns)
    (relative,) = relative_samples([found.samples], [found.turns], [found.reference])
    assert np.median(relative) == pytest.approx(call_s / 0.001, rel=0.04)
    if call_s == 0.1:  # the median of the steps, which no theft moves, would call the same calls a quarter slower
        assert np.median(found.samples) / np.median(reference[0]["samples"]) > 1.2 * call_s / 0.001


# batches in rotation


class Watching(nn.Module):
    """Remembers the first number of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.seen: list[float] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(float(images.flatten()[0]))
        return self.layer(images.mean(dim=(2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_calls_take_several_batches_in_turn(mode: str) -> None:
    model = Watching()
    subject = make_subject(model, mode=mode, num_classes=2)
    subject.rotates = True
    for _ in range(2 * ROTATION):
        subject.run_once()
    assert len(set(model.seen[:ROTATION])) == ROTATION
    assert model.seen[:ROTATION] == model.seen[ROTATION:]
    assert model.seen[:ROTATION] == [float(batch.flatten()[0]) for batch in subject.batches]


def test_batches_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    def batches(seed: int) -> torch.Tensor:
        subject = make_subject(Watching(), seed=seed)
        subject.rotates = True
        return torch.stack(subject.batches)

    assert torch.equal(batches(0), batches(0))
    assert not torch.equal(batches(0), batches(1))


def test_the_first_batch_is_the_only_one_of_a_subject_that_does_not_rotate() -> None:
    still, rotating = make_subject(Watching()), make_subject(Watching())
    rotating.rotates = True
    assert len(still.batches) == 1
    assert torch.equal(still.images, rotating.images)


@pytest.mark.parametrize(("batch_size", "count"), [(1, ROTATION), (1000, 5), (5000, 1), (8000, 1)])
def test_batches_in_rotation_are_capped_by_their_bytes(batch_size: int, count: int) -> None:
    subject = make_subject(Watching(), batch_size=batch_size)
    subject.rotates = True
    assert len(subject.batches) == count
    assert count == 1 or count * 4 * 3 * 32**2 * batch_size <= ROTATION_BYTES


def test_only_timed_processes_rotate() -> None:
    cell = make_subject("vit_layer6_32").cell
    for process in ("time", "memory", "static"):
        subject = subject_of(Measure(process=process, metrics=(), cell=cell), lambda event: None)
        assert subject.rotates == (process == "time")
        assert subject.turns is None


def test_a_method_describes_inputs_and_turns() -> None:
    subject = make_subject("vit_layer6_32")
    paired = Timing(first_s=1.0, samples=(1.0,), turns=(1,), cpu=(1.0,), reference=(0.5,), reference_cpu=(0.5,))
    alone = replace(paired, reference=(), reference_cpu=())
    assert "always the same input batch (cache-hot)" in timing_method(subject, "one forward pass", alone)
    rotating = make_subject("vit_layer6_32")
    rotating.rotates = True
    rotating.turns = PipeTurns(lambda event: None, replace(rotating.cell, threads=2), (0, 3))
    method = timing_method(rotating, "one forward pass", paired)
    assert "8 input batches in rotation" in method
    assert method.endswith(
        "in turns with reference 1 (vitbench.reference, fp32, batch 1, 2 threads, both bound to cores 0, 3)"
    )
    assert timing_method(rotating, "one forward pass", alone).endswith("; without the reference, bound to cores 0, 3")
    unbound = PipeTurns(lambda event: None, rotating.cell, None)
    assert unbound.method_without_reference == "without the reference"


@pytest.mark.parametrize(
    ("metric", "mode"), [("latency", "infer"), ("throughput", "infer"), ("training_step", "train")]
)
@pytest.mark.parametrize("has_reference", [True, False])
def test_only_values_with_the_reference_name_it(clock: Clock, metric: str, mode: str, has_reference: bool) -> None:
    subject = make_subject("vit_layer6_32", mode=mode)
    subject.model.register_forward_hook(lambda *_: clock.pass_by(CALL_S, CALL_S))
    subject.budget = Budget(seconds=0, min_samples=3)
    subject.turns = ScriptedTurns(clock, [steps(1.0) if has_reference else None] * 9)
    found = next(iter(METRICS.get(metric).measure(subject)))
    assert found.method.endswith("; in turns" if has_reference else "; without the reference")


def test_latency_and_throughput_are_made_of_one_timing() -> None:
    subject = make_subject("vit_layer6_32")
    (latency, *_), (throughput,) = (list(METRICS.get(name).measure(subject)) for name in ("latency", "throughput"))
    assert latency.samples[0] == forward_durations(subject).samples
    assert throughput.samples[0] == pytest.approx([2 / seconds for seconds in latency.samples[0]], rel=1e-5)

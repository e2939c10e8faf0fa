"""How long a run still takes: one model, which the plan's minutes and the progress line's "left" come from.

A part of a cell takes ``fixed seconds + calls * seconds of a call``. Before anything is measured a call takes its FLOPs
over a device's speed on one small layer, right to a factor of 2 or 3. What has been measured corrects that: every
measured call says something of its device, its kind of process, its column of the table and its model (``_Speed``), and
what processes take beside their calls is corrected by their kind. No result depends on any of it.

The minutes cover the measuring and the report; a plan comes after loading the libraries and counting the models.
"""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from vitbench.core.errors import WorkerError
from vitbench.core.records import Cell, Measurement, Record
from vitbench.core.stats.relative import MIN_FIRST_STAGE
from vitbench.executors.conversation import Outcome, ask
from vitbench.executors.launcher import Launcher
from vitbench.executors.protocol import Calibrate, TrainingStep
from vitbench.runner.outcomes import metrics_by_process
from vitbench.runner.static_counts import StaticKey, static_key
from vitbench.runner.training_plan import TrainingPlan
from vitbench.runner.turns import TURN_CALLS, TURN_S
from vitbench.suites import Suite
from vitbench.suites.batch_search import base_of, expected_attempts, is_too_large

#: Seconds to start, load and end a process, beside its calls.
_PROCESS_S = 0.4
#: Seconds to read an energy counter at rest and under load; nothing where there is none.
_ENERGY_S = 3.5
#: Seconds to count a model on ``meta``, by two workers.
_STATIC_S = 0.4
#: Seconds to trace a model on fake tensors, a share of which each of its batches pays.
_PREDICTION_S = 0.5
#: Seconds to write the report.
REPORT_S = 3.0
#: Calls of a process that times, beside its samples: the first one, and a last one whose numbers are looked at.
_CALLS_BESIDE = 2
#: Calls of a memory process, and of one whose batch does not fit.
_MEMORY_CALLS, _FAILING_CALLS = 4.0, 1.0
#: A training step takes about four forward passes: forward, twice that backward, and the optimizer (3.1 to 6.4 in
#: recorded runs); an image of a training more, with data, augmentation and small batches.
_STEP_IN_FORWARDS = 4.0
_TRAINED_IN_FORWARDS = 5.0
#: Seconds that a call takes however small its batch: Python, and the launch of some hundred operators.
_LAUNCHES_S = 1e-3
#: FLOP/s of a device that could not be asked: a modest CPU.
_UNKNOWN_RATE = 2e10
#: Of the processes that precision may add, the share that is added, before any group has shown it; and for how many of
#: them that counts.
_ADDED_SHARE, _ADDED_PRIOR = 0.6, 8.0
#: Seconds of expected time that count against what was seen of a kind of processes.
_PRIOR_S = 1.0
#: The kinds of processes of a cell, in the order in which they run.
_IN_ORDER = ("static", "prediction", "counters", "memory", "time", "energy", "training")
_OF_MEMORY = ("memory", "too large")
#: What is under way and overdue takes this share of its time so far, at least.
_LEAST_LEFT = 0.1


@functools.cache
def _id(cell: Cell) -> str:
    """A cell's id, of which an estimate asks for thousands: hashed once."""
    return cell.id


@dataclass(frozen=True)
class Rates:
    """What is known of a cell before it runs: FLOPs of one image's forward pass, its device's FLOP/s, and the largest
    batch that is predicted, where that is searched.
    """

    flops: float
    flops_per_s: float
    predicted: int | None = None


class _Speed:
    """Logarithms of measured over expected seconds of a call, explained by additive effects of what calls share.

    Ridge regression by backfitting: an effect is the mean of its residuals, shrunk towards 0 the more, the fewer there
    are. Keys are listed from the most general to the most special.
    """

    #: How much calls of one key differ in common (standard deviations of logarithms): device, kind of process, column,
    #: model; and what is left.
    _SPREADS = (1.0, 0.5, 0.4, 0.4)
    _NOISE = 0.15
    _SWEEPS = 8

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[tuple[Hashable, ...], float]] = {}
        self._effects: dict[Hashable, float] | None = {}

    def observe(self, call: Hashable, keys: tuple[Hashable, ...], ratio: float) -> None:
        """``call`` took ``ratio`` times what was expected; this replaces what was said of it before."""
        self._seen[call] = (keys, math.log(max(ratio, 1e-9)))
        self._effects = None

    def ratio(self, call: Hashable, keys: tuple[Hashable, ...]) -> float:
        """Measured over expected seconds: its own if it has been measured."""
        if call in self._seen:
            return math.exp(self._seen[call][1])
        if self._effects is None:
            self._effects = self._fit()
        return math.exp(math.fsum(self._effects.get(key, 0.0) for key in keys))

    def _fit(self) -> dict[Hashable, float]:
        effects: dict[Hashable, float] = defaultdict(float)
        for _ in range(self._SWEEPS):
            for level, spread in enumerate(self._SPREADS):
                residuals: dict[Hashable, list[float]] = defaultdict(list)
                for keys, log in self._seen.values():
                    others = math.fsum(effects[key] for key in keys) - effects[keys[level]]
                    residuals[keys[level]].append(log - others)
                for key, values in residuals.items():
                    effects[key] = math.fsum(values) / (len(values) + (self._NOISE / spread) ** 2)
        return dict(effects)


class _Line:
    """Seconds of processes over the expected seconds of their calls: a least-squares line of relative errors, which one
    point moves little and two of different sizes define. Where memory is measured both parts are unlike those of times.
    """

    #: The intercept (s) and the slope before anything is seen, their standard deviations, and relative errors.
    _INTERCEPT, _SLOPE = (_PROCESS_S, 8.0), (1.5, 1.0)
    _NOISE = 0.3

    def __init__(self) -> None:
        (a, a_error), (b, b_error) = self._INTERCEPT, self._SLOPE
        self._sums = [1 / a_error**2, 0.0, 1 / b_error**2, a / a_error**2, b / b_error**2]

    def learn(self, expected: float, actual: float) -> None:
        weight = (self._NOISE * max(actual, 0.1)) ** -2
        terms = (1.0, expected, expected**2, actual, expected * actual)
        self._sums = [one + weight * term for one, term in zip(self._sums, terms, strict=True)]

    def seconds(self, expected: float) -> float:
        n, x, xx, y, xy = self._sums
        slope = max((n * xy - x * y) / (n * xx - x * x), 0.0)
        return max((y - slope * x) / n, 0.0) + slope * expected


class TimeEstimates:
    """What is left of a run, told what happens in it.

    ``known``: by id of each cell, or of the base cell of each search; a cell that is missing is only counted.
    ``calls_a_turn``: the fewest calls of a turn, of which the first does not count if there are more than two.
    """

    def __init__(
        self,
        suite: Suite,
        cells: Sequence[Cell],
        training: TrainingPlan | None,
        known: Mapping[str, Rates],
        *,
        calls_a_turn: int = TURN_CALLS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.suite = suite
        self._training = training
        self._known = known
        self._calls_a_turn = calls_a_turn
        self._clock = clock
        self._speed = _Speed()
        self._sums: dict[str, tuple[float, float]] = {}  # actual and expected seconds of processes, by kind
        self._memory: dict[str, _Line] = defaultdict(_Line)
        self._cells = {_id(cell): cell for cell in cells}
        self._todo = {_id(cell): self._tasks(cell) for cell in cells}
        self._ended: dict[str, int] = {}  # timed processes
        self._decided: dict[str, int] = {}  # timed processes that follow, once that is known
        self._added = 0.0, 0.0  # processes that were added and that could have been, a cell of each group
        self._attempts: dict[str, dict[int, tuple[str, str]]] = {}
        self._now: list[tuple[Cell, str]] = []  # the parts under way: a process of each cell of a group, or one cell's
        self._since = clock()

    # What the plan asks

    def __getitem__(self, cell_id: str) -> float:
        """The seconds of a cell, or of the search that it is the base of, from its beginning."""
        return self._seconds(self._cells[cell_id], self._tasks(self._cells[cell_id]))

    def left(self) -> float:
        """The seconds that are left; what is under way counts down between events."""
        elapsed = max(self._clock() - self._since, 0.0)
        step = math.fsum(self._step_seconds(cell, part) for cell, part in self._now)
        left = math.fsum(self._seconds(self._cells[cell_id], parts) for cell_id, parts in self._todo.items())
        if step:
            left += max(step - elapsed, _LEAST_LEFT * elapsed) - step
        return max(left, 0.0) + REPORT_S

    # What happens

    def begin(self, cells: Iterable[Cell], kept: Iterable[Record]) -> None:
        """``cells`` are to be measured; ``kept`` are the records of earlier sessions, which teach."""
        for record in kept:
            if self._base_id(record.cell) in self._cells:  # not one of an earlier plan
                self.record_done(record)
        self._todo = {_id(cell): self._tasks(cell) for cell in cells}
        self._now, self._since = [], self._clock()

    def cell_started(self, cell: Cell) -> None:
        """A cell begins: what it needs before its times."""
        if self._now and self._now[0][0] == cell:
            return
        self._end_parts()
        parts = self._parts(cell)
        before = [kind for kind in parts if kind not in ("time", "energy")] if "time" in parts else parts
        self._now = [(cell, kind) for kind in before]

    def group_started(self, cells: Iterable[Cell]) -> None:
        """The times of cells that take turns begin."""
        self._end_parts()
        self._now = [(cell, "time") for cell in cells]

    def round_done(self, more: Mapping[str, int], calls: Mapping[str, float]) -> None:
        """A process of each cell of the group has ended. By cell id: how many ``more`` follow, as far as that is
        decided, and the seconds of a call.
        """
        elapsed, first_stage = self._clock() - self._since, self.suite.measure.processes
        cells = [cell for cell, _ in self._now if _id(cell) in more]
        for cell in cells:
            if _id(cell) in calls:
                self._observe(cell, "time", calls[_id(cell)])
            count = self._ended[_id(cell)] = self._ended.get(_id(cell), 0) + 1
            if count == first_stage:
                most = self._most_added(cell)
                self._added = self._added[0] + more[_id(cell)] / len(cells), self._added[1] + most / len(cells)
            if count >= first_stage or not more[_id(cell)]:
                self._decided[_id(cell)] = more[_id(cell)]
        self._learn_overhead("time", elapsed, math.fsum(self._process_seconds(cell) for cell in cells))
        self._now = [(cell, "time") for cell in cells if self._processes_left(cell)]
        self._since = self._clock()

    def waited(self, seconds: float) -> None:
        """What is under way was held up: that says nothing of what follows."""
        self._since += seconds

    def training_step(self, event: TrainingStep) -> None:
        """The training under way has come further."""
        elapsed = self._clock() - self._since - _PROCESS_S
        if self._now and event.total and event.step and elapsed > 1:
            cell = self._now[0][0]
            trained, _ = self._images(cell)
            share = trained / event.total * event.step
            self._observe(cell, "training", elapsed / share)

    def record_done(self, record: Record) -> None:
        """A cell, or an attempt of a search, has its record."""
        cell = record.cell
        parts = self._parts(cell)
        if self.suite.frontier is None:
            self._todo.pop(_id(cell), None)
        else:
            self._attempts.setdefault(base_of(cell).id, {})[cell.batch_size] = (record.status, record.cause)
            if is_too_large(record.status, record.cause):
                self._learn_part(cell, "too large", record.duration_s)
        if record.status == "ok" and parts and "time" not in parts:
            self._learn_part(cell, parts[-1], record.duration_s)
        elif record.status == "ok" and _id(cell) not in self._ended:  # of an earlier session
            self._learn_times(record)
        self._now = [(one, kind) for one, kind in self._now if _id(one) != _id(cell)]
        self._since = self._clock()

    def search_done(self, base: Cell) -> None:
        """The search of ``base`` is over."""
        self._todo.pop(_id(base), None)
        self._now, self._since = [], self._clock()

    def start_of_search(self, base: Cell) -> int | None:
        """The predicted largest batch of ``base``, unless an attempt at it would take longer than the timeout: then a
        search had better come from below.
        """
        assert self.suite.frontier is not None
        predicted = self._rates(base).predicted
        if predicted is None:
            return None
        first = min(max(predicted, 1), self.suite.frontier.max_batch)
        return predicted if self._attempt_seconds(base, first, fits=True) <= self.suite.timeout_s else None

    # What parts there are, and how long each takes

    def _tasks(self, cell: Cell) -> list[str]:
        return self._parts(cell) if self.suite.frontier is None else ["search"]

    def _parts(self, cell: Cell) -> list[str]:
        kinds = metrics_by_process(cell, self.suite.metrics)
        unknown = not self._known
        return [kind for kind in _IN_ORDER if kind in kinds and (kind != "static" or unknown)]

    def _seconds(self, cell: Cell, parts: Iterable[str]) -> float:
        """What parts of a cell, or a search, still take, from the beginning of what is under way."""
        total = 0.0
        for part in parts:
            if part == "search":
                total += self._search_seconds(cell)
            else:
                total += self._step_seconds(cell, part) * (self._processes_left(cell) if part == "time" else 1)
        return total

    def _step_seconds(self, cell: Cell, kind: str) -> float:
        """A part, or one process that times."""
        seconds = self._process_seconds(cell) if kind == "time" else self._plain_seconds(cell, kind)
        actual, expected = self._sums.get(kind, (0.0, 0.0))
        return seconds * (actual + _PRIOR_S) / (expected + _PRIOR_S)

    def _plain_seconds(self, cell: Cell, kind: str) -> float:
        """A part, without what was seen of its overhead."""
        fixed, calls = self._calls(cell, kind)
        if kind in _OF_MEMORY:
            return self._memory[cell.device].seconds(calls * self._expected_call(cell, kind))
        return fixed + (calls * self._call_seconds(cell, kind) if calls else 0.0)

    def _calls(self, cell: Cell, kind: str) -> tuple[float, float]:
        """The fixed seconds of a part, and how many calls it makes."""
        if kind == "training":
            trained, tested = self._images(cell)
            recipe = self._training.recipe_of(cell) if self._training and cell.trains else None
            return _PROCESS_S + (recipe.seconds or 0.0 if recipe else 0.0), trained + tested
        if kind == "counters":  # a process each, of the first cell of a model
            return _PROCESS_S * len(metrics_by_process(cell, self.suite.metrics)[kind]), 0
        return {
            "static": (_STATIC_S, 0),
            "prediction": (_PREDICTION_S, 0),
            "energy": (_ENERGY_S, 0),
            "memory": (_PROCESS_S, _MEMORY_CALLS),
            "too large": (_PROCESS_S, _FAILING_CALLS),
        }[kind]

    def _images(self, cell: Cell) -> tuple[float, float]:
        """What a training computes: as many images' training steps, and the test in the same unit."""
        assert self._training is not None
        section = self.suite.training
        tested = (section.test_images if section else None) or self._training.info.test_images
        trained = 0
        if cell.trains:
            recipe = self._training.recipe_of(cell)
            trained = recipe.total_images(self._training.count_training_images(recipe)) or 0
        return trained, tested * self._rates(cell).flops / self._call_flops(cell, "training")

    def _call_flops(self, cell: Cell, kind: str) -> float:
        """The FLOPs of a call: of a batch, in a training of an image."""
        known = self._rates(cell)
        if kind != "training":
            return known.flops * cell.batch_size * (_STEP_IN_FORWARDS if cell.mode == "train" else 1)
        return known.flops * (_TRAINED_IN_FORWARDS if cell.trains else 1)

    def _expected_call(self, cell: Cell, kind: str) -> float:
        """The seconds of a call before anything was measured."""
        launches = _LAUNCHES_S / (cell.batch_size if kind == "training" else 1)
        return launches + self._call_flops(cell, kind) / self._rates(cell).flops_per_s

    def _call_seconds(self, cell: Cell, kind: str) -> float:
        return self._expected_call(cell, kind) * self._speed.ratio((_id(cell), kind), _keys(cell, kind))

    def _process_seconds(self, cell: Cell) -> float:
        """A process that times, with the reference's turns between its own, without what was seen of the overhead."""
        call, measure = self._call_seconds(cell, "time"), self.suite.measure
        cold = 1 if self._calls_a_turn > 2 else 0
        calls = measure.min_samples * self._calls_a_turn / (self._calls_a_turn - cold)
        sampling = min(max(measure.seconds, calls * call), measure.max_samples * call)
        turn = max(TURN_S, self._calls_a_turn * call)
        return _PROCESS_S + _CALLS_BESIDE * call + sampling * (1 + TURN_S / max(turn, 2 * TURN_S))

    def _most_added(self, cell: Cell) -> int:
        """How many processes precision may add."""
        measure = self.suite.measure
        if not measure.precision or measure.processes < MIN_FIRST_STAGE:
            return 0
        affordable = int(measure.max_seconds / self._step_seconds(cell, "time"))
        return max(min(measure.max_processes, affordable) - measure.processes, 0)

    def _processes_left(self, cell: Cell) -> float:
        if _id(cell) in self._decided:
            return self._decided[_id(cell)]
        measure = self.suite.measure
        affordable = int(measure.max_seconds / self._step_seconds(cell, "time"))
        first_stage = min(measure.processes, max(affordable, measure.fewest_processes))
        actual, most = self._added
        share = (actual + _ADDED_SHARE * _ADDED_PRIOR) / (most + _ADDED_PRIOR)
        return first_stage - self._ended.get(_id(cell), 0) + share * self._most_added(cell)

    def _search_seconds(self, base: Cell) -> float:
        """A batch search, or the rest of one: an attempt that takes longer than the timeout ends it."""
        assert self.suite.frontier is not None
        max_batch, total = self.suite.frontier.max_batch, 0.0
        predicted = self.start_of_search(base)
        largest = self._rates(base).predicted
        if largest is None:
            largest = math.isqrt(max_batch)  # anything: half of the doublings
        for batch in expected_attempts(largest, max_batch, predicted, self._attempts.get(_id(base), {})):
            seconds = self._attempt_seconds(base, batch, fits=batch <= largest)
            total += min(seconds, self.suite.timeout_s)
            if seconds > self.suite.timeout_s:
                break
        return total

    def _attempt_seconds(self, base: Cell, batch: int, *, fits: bool) -> float:
        cell = replace(base, batch_size=batch)
        return self._seconds(cell, self._parts(cell) if fits else ["too large"])

    def _rates(self, cell: Cell) -> Rates:
        return self._known[self._base_id(cell)]

    def _base_id(self, cell: Cell) -> str:
        if self.suite.frontier is not None:  # an attempt, perhaps one that is repeated without the limit
            cell = replace(base_of(cell), memory_limit=self.suite.memory_limit)
        return _id(cell)

    # What was seen

    def _observe(self, cell: Cell, kind: str, call_s: float) -> None:
        self._speed.observe((_id(cell), kind), _keys(cell, kind), call_s / self._expected_call(cell, kind))

    def _learn_part(self, cell: Cell, kind: str, seconds: float) -> None:
        """A part took ``seconds``: of its calls if they take most of it, else of its overhead."""
        fixed, calls = self._calls(cell, kind)
        if kind == "memory":
            self._memory[cell.device].learn(calls * self._expected_call(cell, kind), seconds)
        elif calls and kind not in _OF_MEMORY and seconds > 2 * fixed:
            self._observe(cell, kind, (seconds - fixed) / calls)
        else:
            self._learn_overhead(kind, seconds, self._plain_seconds(cell, kind))

    def _learn_overhead(self, kind: str, actual: float, expected: float) -> None:
        before = self._sums.get(kind, (0.0, 0.0))
        self._sums[kind] = before[0] + actual, before[1] + expected

    def _learn_times(self, record: Record) -> None:
        cell = record.cell
        timed = next((m for m in record.measurements if m.metric in ("latency", "training_step") and m.samples), None)
        if timed is None:
            return
        self._observe(cell, "time", median(sample for process in timed.samples for sample in process))
        others = math.fsum(self._step_seconds(cell, part) for part in self._parts(cell) if part != "time")
        seconds = max(record.duration_s - others, 0.0)
        self._learn_overhead("time", seconds, len(timed.samples) * self._process_seconds(cell))

    def _end_parts(self) -> None:
        """What cells need before their times has ended."""
        ended = [(cell, kind) for cell, kind in self._now if kind in self._todo.get(_id(cell), []) and kind != "time"]
        for cell, kind in ended:
            self._todo[_id(cell)].remove(kind)
        if ended:
            others = math.fsum(self._step_seconds(cell, kind) for cell, kind in ended[:-1])
            self._learn_part(*ended[-1], max(self._clock() - self._since - others, 0.0))
        self._now, self._since = [], self._clock()


def _keys(cell: Cell, kind: str) -> tuple[Hashable, ...]:
    """What a call shares with others, from the most general to the most special."""
    size = cell.batch_size, cell.image_size
    column = (kind, cell.device, cell.threads, cell.mode, *size, cell.dtype, cell.attention, cell.compile)
    return (cell.device, cell.threads), (kind, cell.device, cell.mode), column, cell.model


def make_estimates(
    suite: Suite,
    cells: Sequence[Cell],
    training: TrainingPlan | None,
    static: Mapping[StaticKey, Outcome],
    launcher: Launcher,
    predictions: Mapping[str, Measurement],
) -> TimeEstimates:
    """The estimates of a plan. ``predictions``: the largest batches of searches by cell id, where there are any."""
    rates = {device: _flops_per_s(device, cells, launcher) for device in {cell.device for cell in cells}}
    known = {}
    for cell in cells:
        counts = {
            one.metric: one.value
            for one in static[static_key(cell)].measurements
            if one.metric == "flops" and one.status == "ok"
        }
        predicted = predictions.get(_id(cell))
        flops = max(counts.get("flops", 1e9), 1.0)
        known[_id(cell)] = Rates(flops, rates[cell.device], round(predicted.value) if predicted else None)
    return TimeEstimates(suite, cells, training, known)


def _flops_per_s(device: str, cells: Sequence[Cell], launcher: Launcher) -> float:
    threads = next(cell.threads for cell in cells if cell.device == device)
    try:
        (answer,) = ask(launcher, Calibrate(device=device, threads=threads))
    except WorkerError:  # a device that is full, or broken: its cells will report it, and an estimate stops nothing
        return _UNKNOWN_RATE
    return float(answer["flops_per_s"])

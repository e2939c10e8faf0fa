"""Pareto fronts of accuracy against a cost, one a comparable condition, and how probable each point is on its front.

The probability is that of a parametric bootstrap (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", 6.5).
Times are drawn relative to the reference where all points have it: by Student's t from what each process moves them,
the same processes for cells that took turns with each other, and with what other runs differ by. Other costs are drawn
by their 95 % intervals, and those without one are exact. Accuracies are drawn by Jeffreys' beta law of their test
images, as if each model had images of its own. Lines that share a training share its draws. Simulated
(``benchmarks/front_probabilities.py``), this is nearer to the truth than drawing processes or independent times. Among
many models that hardly differ, probabilities under a half are too low.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from vitbench.core.stats.intervals import CONFIDENCE, RUN_TO_RUN
from vitbench.reports.model.lines import batch_of, value_columns
from vitbench.reports.model.noise import BUSY
from vitbench.reports.model.ranking import pareto_front, reference_of
from vitbench.reports.model.rows import Row
from vitbench.reports.model.tables import Value
from vitbench.reports.model.values import MetricValue, value_of

#: Costs that do not depend on the batch; by any other, lines of different batches are not compared.
OF_ANY_BATCH = ("params", "flops")
#: Costs that took turns with the reference, and the metric of each.
_TIMED = {"latency": "latency", "relative_latency": "latency", "throughput": "throughput"}
_SEED = 0
#: Draws of each point; of very many points fewer, so that all together are no more than ``_MOST_NUMBERS``.
_DRAWS, _MOST_NUMBERS = 2000, 4_000_000
#: Axes in which lines must not differ to be compared, beside the device. Image sizes of one data set do compare.
_CONDITIONS = ("run", "dtype", "threads", "memory limit", "classes", "data", "training size", "training device")


class Front(NamedTuple):
    """The indices of the ``lines`` on the front of one condition by ascending cost; ``probability`` of every line of
    the condition that has both values to be on it.
    """

    condition: str
    lines: tuple[int, ...]
    probability: Mapping[int, float]


def conditions_of(lines: Sequence[Row], cost: str) -> list[str]:
    """One key a line; by ``cost``, lines of different keys are not compared."""
    any_batch = cost in OF_ANY_BATCH
    return [_condition(line) + ("" if any_batch else f" | batch {batch_of(line)}") for line in lines]


def fronts(lines: Sequence[Row], cost: str) -> list[Front]:
    """One front a condition with at least one point; of ``throughput`` more is better."""
    columns = {column.id: column for column in value_columns(lines)}
    if cost not in columns or "accuracy" not in columns:
        return []
    groups: dict[str, list[int]] = {}
    costs, accuracies = ([columns[name].value(line) for line in lines] for name in (cost, "accuracy"))
    for index, condition in enumerate(conditions_of(lines, cost)):
        if costs[index].number is not None and accuracies[index].number is not None:
            groups.setdefault(condition, []).append(index)
    draws = max(1, min(_DRAWS, _MOST_NUMBERS // max(1, sum(map(len, groups.values())))))
    sign, found = (-1 if cost == "throughput" else 1), []
    for condition, indices in groups.items():
        points = [(sign * (costs[i].number or 0.0), accuracies[i].number or 0.0) for i in indices]
        on_front = tuple(indices[place] for place in pareto_front(points))
        times = [value_of(next(iter(lines[i].infer), None), _TIMED.get(cost, "")) for i in indices]
        probability = _probabilities([lines[i] for i in indices], [costs[i] for i in indices], times, sign, draws)
        found.append(Front(condition, on_front, dict(zip(indices, probability, strict=True))))
    return found


def _condition(line: Row) -> str:
    words = [line.cell.device, line.records[0].environment, *(line.axes[axis] for axis in _CONDITIONS)]
    return " | ".join([*words, *tested_as(line)])


def tested_as(line: Row) -> tuple[str, str]:
    """``images = 1536`` where the training was cut short, and ``360 test images``; "" where it is not known."""
    budget, images = line.trained("training_images").measurement, line.trained("test_images").value
    # its detail is "images = 1536, not the recipe's images = 1600"
    return budget.detail.partition(",")[0] if budget else "", "" if images is None else f"{images:.0f} test images"


def _probabilities(
    lines: Sequence[Row], costs: Sequence[Value], times: Sequence[MetricValue], sign: int, draws: int
) -> list[float]:
    """Of each line, in how many of the draws none beats it. ``times``: what of ``costs`` took turns."""
    random = np.random.default_rng(_SEED)
    in_turns = all(one.quiet for one in times) and len({reference_of(one) for one in times}) == 1
    # points that are equal in both (one training, one count) stand for each other
    drawn_from = [
        id(time.record) if in_turns else (cost.number, cost.interval) for cost, time in zip(costs, times, strict=True)
    ]
    keys = [(id(line.training), one) for line, one in zip(lines, drawn_from, strict=True)]
    distinct = {key: place for place, key in reversed(list(enumerate(keys)))}
    places = list(distinct.values())
    trainings = {id(line.training): line for line in lines}
    drawn = {key: _accuracies(line, draws, random) for key, line in trainings.items()}
    y = np.stack([drawn[id(lines[place].training)] for place in places])
    if in_turns:
        x = np.stack(_times([times[place] for place in places], draws, random))
    else:
        x = sign * np.stack([_draws(costs[place], draws, random) for place in places])
    hopeful = ~_always_beaten(x, y)
    x, y = x[hopeful], y[hopeful]
    # of equal costs the more accurate one first; lexsort takes twice as long
    order = np.argsort(x - np.abs(x) * y * 1e-9, axis=0, kind="stable")
    best = np.maximum.accumulate(np.take_along_axis(y, order, axis=0), axis=0)
    rises = np.ones_like(best, dtype=bool)
    rises[1:] = best[1:] > best[:-1]
    on_front = np.empty_like(rises)
    np.put_along_axis(on_front, order, rises, axis=0)
    share = dict(zip(itertools.compress(distinct, hopeful), on_front.mean(axis=1), strict=True))
    return [float(share.get(key, 0.0)) for key in keys]


def _always_beaten(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points (rows) some other one beats in every draw: without them the fronts are the same."""
    order = np.argsort(x.max(axis=1))
    best = np.maximum.accumulate(y.min(axis=1)[order])
    cheaper = np.searchsorted(x.max(axis=1)[order], x.min(axis=1), side="left")
    found: np.ndarray = (cheaper > 0) & (best[cheaper - 1] >= y.max(axis=1))
    return found


def _accuracies(line: Row, draws: int, random: np.random.Generator) -> np.ndarray:
    """What an accuracy may be; its value where the number of test images is unknown."""
    value, images = line.trained("accuracy").value or 0.0, round(line.trained("test_images").value or 0)
    if not images:
        return np.full(draws, value)
    right = round(value * images)
    return random.beta(right + 0.5, images - right + 0.5, draws)


def _times(times: Sequence[MetricValue], draws: int, random: np.random.Generator) -> list[np.ndarray]:
    """Logarithms of the times over the reference's, of quiet turns. The processes of cells that took turns with each
    other move together.
    """
    from scipy.special import gammaincinv

    found: dict[int, np.ndarray] = {}
    moves: dict[str, np.ndarray] = {}
    chances: dict[str, np.ndarray] = {}
    squares: dict[tuple[str, float], np.ndarray] = {}
    for one in times:
        assert one.quiet is not None
        assert one.measurement is not None
        if id(one.record) in found:  # trained several times
            continue
        whole, stage = one.quiet.relative, one.first_stage or one.quiet.relative
        group, half, wanted = one.measurement.group, max(stage.processes - 1, 1.0) / 2, len(stage.influences)
        if not group:
            own, square = random.normal(size=(wanted, draws)), random.standard_gamma(half, draws)
        else:
            known = moves.get(group, np.empty((0, draws)))
            more = random.normal(size=(max(wanted - len(known), 0), draws))
            moves[group] = np.concatenate([known, more])
            chance = chances.setdefault(group, random.random(draws))
            if (group, half) not in squares:
                squares[group, half] = gammaincinv(half, chance)
            own, square = moves[group][:wanted], squares[group, half]
        # all processes together reduce the variance of the first stage
        spread = math.sqrt(stage.processes / (stage.processes - 1) * stage.processes / whole.processes)
        student = np.asarray(stage.influences) @ own * spread * np.sqrt(half / square)
        found[id(one.record)] = whole.log_value + student + random.normal(0.0, RUN_TO_RUN, draws)
    return [found[id(one.record)] for one in times]


def _draws(cost: Value, draws: int, random: np.random.Generator) -> np.ndarray:
    """What a cost may be, log-normal by its interval; fixed without one or with an end that is not positive. Of a
    busy one the ends differ by a factor of ``BUSY`` at least.
    """
    value = cost.number or 0.0
    low, high = cost.interval or (1.0, BUSY if cost.busy else 1.0)
    if min(value, low) <= 0 or math.isinf(high):
        return np.full(draws, value)
    width = math.log(high / low) / (2 * NormalDist().inv_cdf(0.5 + CONFIDENCE / 2))
    return value * np.exp(random.normal(0.0, width, draws))

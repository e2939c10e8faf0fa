"""Pareto fronts of accuracy against a cost, one a comparable condition, and how probable each point is on its front.

The probability is that of a parametric bootstrap (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", 6.5):
costs are drawn from the normal law that their logarithms' 95 % interval describes, accuracies from the binomial law of
their test images. Lines that share a training share its draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from vitbench.core.stats.intervals import CONFIDENCE
from vitbench.reports.model.lines import batch_of, line_columns
from vitbench.reports.model.noise import BUSY
from vitbench.reports.model.ranking import pareto_front
from vitbench.reports.model.rows import Row
from vitbench.reports.model.tables import Value

#: Costs that do not depend on the batch; by any other, lines of different batches are not compared.
OF_ANY_BATCH = ("params", "flops")
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


def conditions_of(lines: Sequence[Row]) -> list[str]:
    """One key a line; lines of different keys are not compared."""
    return [f"{_condition(line)} | batch {batch_of(line)}" for line in lines]


def fronts(lines: Sequence[Row], cost: str) -> list[Front]:
    """One front a condition with at least one point; of ``throughput`` more is better."""
    columns = {column.id: column for column in line_columns(lines)}
    if cost not in columns or "accuracy" not in columns:
        return []
    groups: dict[str, list[int]] = {}
    costs, accuracies = ([columns[name].value(line) for line in lines] for name in (cost, "accuracy"))
    keys = [_condition(line) for line in lines] if cost in OF_ANY_BATCH else conditions_of(lines)
    for index, condition in enumerate(keys):
        if costs[index].number is not None and accuracies[index].number is not None:
            groups.setdefault(condition, []).append(index)
    sign, found = (-1 if cost == "throughput" else 1), []
    for condition, indices in groups.items():
        points = [(sign * (costs[i].number or 0.0), accuracies[i].number or 0.0) for i in indices]
        on_front = tuple(indices[place] for place in pareto_front(points))
        probability = _probabilities([lines[i] for i in indices], [costs[i] for i in indices], sign)
        found.append(Front(condition, on_front, dict(zip(indices, probability, strict=True))))
    return found


def _condition(line: Row) -> str:
    return " | ".join([line.cell.device, *(line.axes[axis] for axis in _CONDITIONS)])


def _probabilities(lines: Sequence[Row], costs: Sequence[Value], sign: int) -> list[float]:
    """Of each line, in how many of the draws none beats it."""
    random = np.random.default_rng(_SEED)
    draws = max(1, min(_DRAWS, _MOST_NUMBERS // len(lines)))
    drawn: dict[int, np.ndarray] = {}
    for line in lines:
        if id(line.training) not in drawn:
            value, images = line.trained("accuracy").value or 0.0, round(line.trained("test_images").value or 0)
            drawn[id(line.training)] = (
                random.binomial(images, value, draws) / images if images else np.full(draws, value)
            )
    # points that are equal in both (one training, one count) stand for each other
    keys = [(id(line.training), cost.number, cost.interval) for line, cost in zip(lines, costs, strict=True)]
    distinct = {key: place for place, key in reversed(list(enumerate(keys)))}
    places = list(distinct.values())
    x = sign * np.stack([_draws(costs[place], draws, random) for place in places])
    y = np.stack([drawn[id(lines[place].training)] for place in places])
    hopeful = ~_always_beaten(x, y)
    x, y = x[hopeful], y[hopeful]
    order = np.lexsort((-y, x), axis=0)
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


def _draws(cost: Value, draws: int, random: np.random.Generator) -> np.ndarray:
    """What a cost may be, log-normal by its interval; its value where there is none or an end is not positive. Of a
    busy one the ends differ by a factor of ``BUSY`` at least.
    """
    value = cost.number or 0.0
    low, high = cost.interval or (1.0, BUSY if cost.busy else 1.0)
    if min(value, low) <= 0 or math.isinf(high):
        return np.full(draws, value)
    width = math.log(high / low) / (2 * NormalDist().inv_cdf(0.5 + CONFIDENCE / 2))
    return value * np.exp(random.normal(0.0, width, draws))

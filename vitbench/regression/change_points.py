"""Find the changes of level in a row of noisy values, and bound the chance of a false alarm. Works on plain numbers.

The detector is binary segmentation (Scott and Knott 1974, "A cluster analysis method for grouping means in the analysis
of variance", Biometrics 30(3)) with a second scan for levels that came and went again, as circular segmentation has it
(Olshen et al. 2004, "Circular binary segmentation for the analysis of array-based DNA copy number data", Biostatistics
5(4)). Every cut is tested, and counting all cuts bounds the chance of a false alarm (Bonferroni): the bound needs no
simulation and holds for a handful of values.

A permutation test would need no model of the noise. But five values have too few orders for a small p-value: it could
find nothing before some ten runs. Here other runs show the size of the noise beforehand, though not exactly. That
knowledge has the weight of ``KNOWN_RUNS`` values, and the row's own spread adds to it as the row grows (a moderated t:
Smyth 2004, "Linear models and empirical Bayes methods", Statistical Applications in Genetics and Molecular Biology
3(1)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitbench.core.stats.intervals import CONFIDENCE

#: The expected noise is known from ten runs: nine degrees of freedom.
KNOWN_RUNS = 9

#: The largest chance that a set of rows without a change shows a step anywhere.
FALSE_ALARMS = 0.05

#: The fewest values of a level that came and went again. A single one is a disturbance.
SHORTEST_STAY = 2


@dataclass(frozen=True)
class Break:
    """A change of level: value ``index`` (from 0) is the first on the new one.

    ``change``: the new level less the old one, in the unit of the values, with its 95 % interval ``low`` to ``high``.
    ``chance`` bounds the probability of finding a cut as clear as this one although nothing changed. ``before`` and
    ``after``: the number of values on each level.
    """

    index: int
    change: float
    low: float
    high: float
    chance: float
    before: int
    after: int


def find_breaks(
    values: Sequence[float],
    deviations: Sequence[float],
    *,
    rows: int = 1,
    false_alarms: float = FALSE_ALARMS,
) -> list[Break]:
    """The changes of level in ``values``, which are in order of time. ``deviations``: the expected standard deviation
    of each, greater than 0. ``rows``: the number of rows searched in all, for which ``false_alarms`` holds together.
    """
    x, sd = np.asarray(values, dtype=float), np.asarray(deviations, dtype=float)
    weights = sd**-2
    cuts: set[int] = set()
    todo = [(0, len(x))]
    while todo:
        start, end = todo.pop()
        chance, inner = _clearest(x[start:end], weights[start:end])
        if chance * rows <= false_alarms:
            found = [start + cut for cut in inner]
            cuts.update(found)
            todo += zip([start, *found], [*found, end], strict=True)
    return _settle(x, weights, sorted(cuts), rows, false_alarms)


def _settle(x: np.ndarray, weights: np.ndarray, cuts: list[int], rows: int, false_alarms: float) -> list[Break]:
    """Move each cut to its best position between its neighbours, and drop unclear cuts, the weakest first."""
    while True:
        for _ in range(len(cuts)):
            ends = [0, *cuts, len(x)]
            moved = [
                low + _best_cut(x[low:high], weights[low:high])[0]
                for low, high in zip(ends[:-2], ends[2:], strict=True)
            ]
            # neighbours that meet are one cut
            if sorted(set(moved)) == cuts:
                break
            cuts = sorted(set(moved))
        ends = [0, *cuts, len(x)]
        breaks = [_judge(x, weights, *where, rows) for where in zip(ends[:-2], cuts, ends[2:], strict=True)]
        weakest = max(breaks, key=lambda one: one.chance, default=None)
        if weakest is None or weakest.chance <= false_alarms:
            return breaks
        cuts.remove(weakest.index)


def _clearest(x: np.ndarray, weights: np.ndarray) -> tuple[float, list[int]]:
    """The clearest cut, or pair of cuts: a bound of the chance to find one as clear, and the positions."""
    n = len(x)
    if n < 2:
        return 1.0, []
    cut, gain = _best_cut(x, weights)
    one = _chance(gain, x, weights, n - 1)
    pair, gain, looked_at = _best_pair(x, weights)
    if looked_at == 0:
        return one, [cut]
    two = _chance(gain, x, weights, looked_at)
    # two scans, each of which may alarm
    return (min(2 * one, 1.0), [cut]) if one <= two else (min(2 * two, 1.0), list(pair))


def _best_cut(x: np.ndarray, weights: np.ndarray) -> tuple[int, float]:
    """The cut into two levels that explains most, and how much of the weighted sum of squares it explains."""
    total, sums = _sums(x, weights)
    left, part = total[:-1], sums[:-1]
    gains = part**2 * (1 / left + 1 / (total[-1] - left))
    best = int(np.argmax(gains))
    return best + 1, float(gains[best])


def _best_pair(x: np.ndarray, weights: np.ndarray) -> tuple[tuple[int, int], float, int]:
    """The inner section that differs most from the rest, how much it explains, and how many sections were tried."""
    n = len(x)
    total, sums = (np.concatenate([[0.0], some]) for some in _sums(x, weights))
    best, most, looked_at = (0, 0), -1.0, 0
    for start in range(1, n - SHORTEST_STAY):
        ends = np.arange(start + SHORTEST_STAY, n)
        inner = total[ends] - total[start]
        gains = (sums[ends] - sums[start]) ** 2 * (1 / inner + 1 / (total[-1] - inner))
        looked_at += len(ends)
        index = int(np.argmax(gains))
        if gains[index] > most:
            best, most = (start, int(ends[index])), float(gains[index])
    return best, most, looked_at


def _sums(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative weights, and cumulative weighted values about their mean."""
    centred = x - np.average(x, weights=weights)
    return np.cumsum(weights), np.cumsum(weights * centred)


def _noise(gain: float, x: np.ndarray, weights: np.ndarray) -> tuple[float, int]:
    """(scale, degrees of freedom): the ratio of the variance about two levels to the expected one."""
    centred = x - np.average(x, weights=weights)
    rest = max(float(np.sum(weights * centred**2)) - gain, 0.0)
    freedom = KNOWN_RUNS + len(x) - 2
    return (KNOWN_RUNS + rest) / freedom, freedom


def _chance(gain: float, x: np.ndarray, weights: np.ndarray, looked_at: int) -> float:
    from scipy.special import stdtr

    scale, freedom = _noise(gain, x, weights)
    return min(2 * looked_at * float(stdtr(freedom, -math.sqrt(gain / scale))), 1.0)


def _judge(x: np.ndarray, weights: np.ndarray, start: int, cut: int, end: int, rows: int) -> Break:
    from scipy.special import stdtrit

    here, w = x[start:end], weights[start:end]
    at = cut - start
    left, right = float(w[:at].sum()), float(w[at:].sum())
    change = float(np.average(here[at:], weights=w[at:]) - np.average(here[:at], weights=w[:at]))
    gain = change**2 / (1 / left + 1 / right)
    scale, freedom = _noise(gain, here, w)
    half = float(stdtrit(freedom, 0.5 + CONFIDENCE / 2)) * math.sqrt(scale * (1 / left + 1 / right))
    chance = min(_chance(gain, here, w, len(here) - 1) * rows, 1.0)
    return Break(cut, change, change - half, change + half, chance, at, end - cut)

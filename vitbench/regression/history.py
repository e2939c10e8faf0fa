"""Find when a value changed over many stored runs, and by how much: the steps of each series.

Exact values (counts, tensor bytes, statuses) step whenever they differ from the run before. Times relative to the
reference and measured memory vary between runs: ``change_points`` finds their steps, with a stated chance of false
alarms. Absolute times, throughput, energy and accuracies are shown and never judged: on a shared machine the same code
differs by tens of per cent from minute to minute. Loads no torch.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vitbench.core.errors import UnknownNameError
from vitbench.regression.change_points import FALSE_ALARMS, find_breaks
from vitbench.regression.series import KINDS, Moment, Series, series_of_folders, series_of_stored
from vitbench.regression.stored_runs import Found


@dataclass(frozen=True, kw_only=True)
class Step:
    """A change of level of a series: point ``index`` is the first on the new level.

    ``before`` and ``after`` are the levels in the series' unit, ``ratio`` their ratio with its 95 % interval (None for
    words, and for a level of 0). ``chance`` bounds the probability of such a step in a history without a change; 0 for
    exact values. ``runs_before`` and ``runs_after`` count the runs on each level.
    """

    series: Series
    index: int
    before: float | str
    after: float | str
    ratio: float | None
    low: float | None = None
    high: float | None = None
    chance: float = 0.0
    runs_before: int = 1
    runs_after: int = 1

    @property
    def begins(self) -> Moment:
        """The first run on the new level."""
        return self.series.points[self.index].moment

    @property
    def last_before(self) -> Moment:
        """The last run on the old level."""
        return self.series.points[self.index - 1].moment

    @property
    def also_changed(self) -> tuple[str, ...]:
        """The conditions that differ between the two runs: ``torch 2.14.0 -> 2.15.0``."""
        one, other = self.last_before.conditions, self.begins.conditions
        names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        return tuple(f"{name} {one.get(name) or 'none'} -> {other.get(name) or 'none'}" for name in names)


@dataclass(frozen=True, kw_only=True)
class History:
    """All series, their runs by time, and in one line each what could not be read."""

    series: tuple[Series, ...]
    moments: tuple[Moment, ...]
    problems: tuple[str, ...] = ()
    false_alarms: float = FALSE_ALARMS

    @cached_property
    def _by_series(self) -> dict[int, list[Step]]:
        rows = sum(is_searched(one) for one in self.series)
        return {id(one): find_steps(one, rows=rows, false_alarms=self.false_alarms) for one in self.series}

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The steps of all series by time; within one run exact ones come first."""
        found = itertools.chain.from_iterable(self._by_series.values())
        return tuple(sorted(found, key=lambda step: (step.begins.at, KINDS.index(step.series.kind), step.series.name)))

    def steps_of(self, series: Series) -> list[Step]:
        """The steps of one of its series, by time."""
        return self._by_series[id(series)]


def make_history(found: Found, *, metrics: Sequence[str] | None = None, models: Sequence[str] | None = None) -> History:
    """The history of the runs that ``stored_runs.find_runs`` found.

    ``metrics`` and ``models`` are names or shell patterns. Without ``metrics`` the series are those that are judged,
    and absolute times only where nothing else exists. Raises UsageError for a name that no series has.
    """
    chosen = _choose([*series_of_folders(found.folders), *series_of_stored(found.stored)], metrics, models)
    moments = {point.moment.run: point.moment for one in chosen for point in one.points}
    return History(
        series=tuple(chosen),
        moments=tuple(sorted(moments.values(), key=lambda moment: (moment.at, moment.run))),
        problems=found.problems,
    )


def _choose(series: Sequence[Series], metrics: Sequence[str] | None, models: Sequence[str] | None) -> list[Series]:
    chosen = list(series)
    if models:
        _check_names("model", models, {one.model for one in series}, "vitbench history without --models")
        chosen = [one for one in chosen if _matches(one.model, models)]
    if metrics:
        _check_names("metric", metrics, {one.metric for one in series}, "vitbench history without --metric")
        return [one for one in chosen if _matches(one.metric, metrics)]
    timed = {one.cell for one in chosen if one.kind == "relative"}

    def wanted(one: Series) -> bool:
        if one.kind != "shown" or one.metric in ("median", "accuracy"):
            return True
        # an absolute time is better than none where no relative one exists
        return one.metric in ("latency", "training_step") and one.cell not in timed

    return [one for one in chosen if wanted(one)]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(name == pattern or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_names(kind: str, patterns: Sequence[str], known: set[str], see: str) -> None:
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in known):
            raise UnknownNameError(f"{kind} of these runs", pattern, known, see)


def find_steps(series: Series, *, rows: int = 1, false_alarms: float = FALSE_ALARMS) -> list[Step]:
    """The steps of a series, by time. ``rows``: the number of series searched in all (see ``find_breaks``)."""
    if series.kind == "exact":
        return _exact_steps(series)
    return _noisy_steps(series, rows, false_alarms) if is_searched(series) else []


def is_searched(series: Series) -> bool:
    """Whether step detection applies: values with noise, from two runs or more."""
    return (
        series.kind in ("relative", "memory")
        and len(series.points) > 1
        and len(series.numbers) == len(series.points)
        and min(series.numbers) > 0
        and all(point.deviation for point in series.points)
    )


def _exact_steps(series: Series) -> list[Step]:
    points = series.points
    cuts = [index for index in range(1, len(points)) if points[index].value != points[index - 1].value]
    ends = [0, *cuts, len(points)]
    steps = []
    for start, cut, end in zip(ends[:-2], cuts, ends[2:], strict=True):
        before, after = points[cut - 1].value, points[cut].value
        numbers = isinstance(before, int | float) and isinstance(after, int | float) and before
        steps.append(
            Step(
                series=series,
                index=cut,
                before=before,
                after=after,
                ratio=float(after) / float(before) if numbers else None,
                runs_before=cut - start,
                runs_after=end - cut,
            )
        )
    return steps


def _noisy_steps(series: Series, rows: int, false_alarms: float) -> list[Step]:
    logs = [math.log(value) for value in series.numbers]
    deviations = [float(point.deviation or 0) for point in series.points]
    breaks = find_breaks(logs, deviations, rows=rows, false_alarms=false_alarms)
    ends = [0, *(one.index for one in breaks), len(logs)]
    weights = [1 / one**2 for one in deviations]
    levels = [
        math.exp(statistics.fmean(logs[start:end], weights[start:end])) for start, end in itertools.pairwise(ends)
    ]
    return [
        Step(
            series=series,
            index=one.index,
            before=levels[number],
            after=levels[number + 1],
            ratio=math.exp(one.change),
            low=math.exp(one.low),
            high=math.exp(one.high),
            chance=one.chance,
            runs_before=one.before,
            runs_after=one.after,
        )
        for number, one in enumerate(breaks)
    ]

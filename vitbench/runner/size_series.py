"""Time models at a series of image sizes that take turns with each other, and so share the machine's drift."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vitbench.analysis.crossover import Crossover, Pair, find_brackets, next_to_try
from vitbench.analysis.latency_scaling import TimedPoint, elasticity
from vitbench.core.records import Cell, Record
from vitbench.core.stats.comparisons import Ratio
from vitbench.core.stats.intervals import CONFIDENCE, t_of_processes, t_quantile
from vitbench.executors.launcher import Launcher
from vitbench.reports.model.ranking import ratio_of
from vitbench.reports.model.values import MetricValue, value_of
from vitbench.runner.measure import GROUP, CellMeasurer
from vitbench.runner.plan import make_plan
from vitbench.runner.progress import Progress
from vitbench.suites import Suite

if TYPE_CHECKING:
    from vitbench.analysis.scaling import Point, Scaling, Size

#: The keys of a suite that times a series, beside its models and sizes.
SERIES = {
    "name": "scale",
    "devices": ["cpu"],
    "metrics": ["latency", "training_step"],
    "measure": {"processes": 5, "precision": 0.0, "seconds": 0.5},
}
#: How many sizes are tried within a bracket: each takes about half of it away.
_NARROWED = 4


def time_sizes(
    suite: Suite, models: Sequence[Scaling], sizes: Sequence[Size], launcher: Launcher, progress: Progress
) -> list[Record]:
    """The records of ``models`` at ``sizes``, otherwise as in ``suite``; neighbouring sizes take turns, all models at
    once.
    """
    names = tuple(one.cell.model for one in models)
    chosen = suite.model_copy(update={"models": names, "image_sizes": tuple(sizes)})
    plan = make_plan(chosen, launcher, progress.note)
    groups = group_by_size(plan.cells, suite.batch_sizes)
    with (
        CellMeasurer(plan, launcher, None, progress) as measurer,
        progress.running(None, plan.cells, plan.estimates, already=0),
    ):
        records = []
        for record in measurer.measure(plan.cells, groups):
            progress.cell_done(record)
            records.append(record)
    return records


def group_by_size(cells: Sequence[Cell], batches: Iterable[int]) -> list[list[Cell]]:
    """Cells that take turns: as many neighbouring sizes of one batch, each with all models, as make a group."""
    groups = []
    for batch in batches:
        by_size: dict[Size, list[Cell]] = {}
        for cell in sorted(cells, key=lambda cell: cell.image_size[0] * cell.image_size[1]):
            if cell.batch_size == batch:
                by_size.setdefault(cell.image_size, []).append(cell)
        sizes = list(by_size.values())
        parts = -(-sum(map(len, sizes)) // GROUP)
        width = -(-len(sizes) // parts)
        groups += [list(itertools.chain(*sizes[start : start + width])) for start in range(0, len(sizes), width)]
    return groups


def with_times(scaling: Scaling, records: Sequence[Record]) -> Scaling:
    """The model with its times out of ``records``, if there are any."""
    if not records:
        return scaling
    cell = records[0].cell
    return replace(
        scaling,
        times={batch: timed_points(records, scaling, batch) for batch in scaling.batches},
        machine=f"{cell.device}, {cell.threads} thread{'s' if cell.threads > 1 else ''}",
    )


def timed_points(records: Sequence[Record], scaling: Scaling, batch: int) -> list[TimedPoint]:
    """The times of one model and batch by N, each with the elasticity from the timed size before it."""
    found: list[TimedPoint] = []
    before: tuple[Point, MetricValue] | None = None
    own = {(one.cell.model, one.cell.batch_size, one.cell.image_size): one for one in records}
    for point in scaling.points:
        record = own.get((scaling.cell.model, batch, point.image_size))
        if record is None:  # a size that the crossover of FLOPs or memory added
            continue
        value, step = _time_of(record), None
        if value.estimate is not None:
            ratio = ratio_of(value, before[1]) if before and before[0].n < point.n else None
            if before and ratio:
                step = elasticity(ratio, point.n / before[0].n, point.flops / before[0].flops)
            before = point, value
        found.append(
            TimedPoint(
                image_size=point.image_size,
                n=point.n,
                estimate=value.estimate,
                status=record.status,
                detail=record.detail,
                step=step,
            )
        )
    return found


def cross_latency(
    pair: Pair, records: list[Record], batch: int, again: Callable[[list[Size]], list[Record]]
) -> Crossover:
    """Where the times of two models cross: between the last size at which the first model is clearly faster and the
    first at which it is clearly slower, or the other way round.

    Up to ``_NARROWED`` sizes in between are timed by ``again``, whose records are added to ``records``. Each size has
    a t test of the ratio at 5 % divided by how many sizes are tested at most (Bonferroni), so that all sides hold
    together in 95 % of series, wherever the further sizes are.
    """
    allowed, tests = pair.allowed(), len({one.cell.image_size for one in records}) + _NARROWED
    for _ in range(_NARROWED):
        n = next_to_try(_signs(pair, records, batch, tests), list(allowed))
        if n is None:
            break
        size = allowed.pop(n)
        if pair.add(size):
            records += again([size])
    signs = _signs(pair, records, batch, tests)
    return Crossover(
        quantity=f"time, batch {batch}",
        signs=signs,
        method=f"timed in turns; t tests of paired ratios, for {tests} sizes together at 95 %",
        brackets=find_brackets(signs),
        neither="not distinguishable",
    )


def _signs(pair: Pair, records: Sequence[Record], batch: int, tests: int) -> dict[int, int]:
    """By N: -1 where the first model is clearly faster, 1 where it is clearly slower, 0 where neither is."""
    n_of = {point.image_size: point.n for point in pair.one.points}
    values: dict[Size, dict[str, MetricValue]] = {}
    for record in records:
        if record.cell.batch_size == batch:
            values.setdefault(record.cell.image_size, {})[record.cell.model] = _time_of(record)
    found = {}
    for size, times in values.items():
        one, other = times[pair.one.cell.model], times[pair.other.cell.model]
        ratio = ratio_of(one, other)
        if ratio is not None and one.estimate is not None and other.estimate is not None:
            found[n_of[size]] = sign_of(ratio, min(one.estimate.n_processes, other.estimate.n_processes), tests)
    return found


def sign_of(ratio: Ratio, processes: int, tests: int) -> int:
    """1 or -1 where the ratio of so many paired processes is clearly above or below 1, else 0: by its 95 % t interval,
    widened to hold in all of ``tests`` together.
    """
    wider = t_quantile(processes - 1, 1 - (1 - CONFIDENCE) / 2 / tests) / t_of_processes(processes)
    half = wider * math.log(ratio.high / ratio.low) / 2
    return 0 if abs(math.log(ratio.value)) <= half else 1 if ratio.value > 1 else -1


def _time_of(record: Record) -> MetricValue:
    return value_of(record, "training_step" if record.cell.mode == "train" else "latency")

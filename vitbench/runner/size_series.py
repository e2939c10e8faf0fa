"""Time models at a series of image sizes that take turns with each other, and so share the machine's drift."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from vitbench.analysis.crossover import Crossover, Pair, next_to_try
from vitbench.analysis.latency_scaling import TimedPoint, elasticity
from vitbench.core.records import Cell, Record
from vitbench.core.stats.comparisons import Ratio
from vitbench.executors.launcher import Launcher
from vitbench.reports.model.ranking import ratio_of
from vitbench.reports.model.values import MetricValue, value_of
from vitbench.runner.measure import GROUP, CellMeasurer
from vitbench.runner.plan import make_plan
from vitbench.runner.progress import Progress
from vitbench.suites import Suite

if TYPE_CHECKING:
    from vitbench.analysis.scaling import Scaling, Size

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


def timed_points(records: Sequence[Record], scaling: Scaling, batch: int) -> list[TimedPoint]:
    """The times of one model and batch by N, each with the elasticity from the timed size before it."""
    known = {point.image_size: point for point in scaling.points}
    found: list[TimedPoint] = []
    before: tuple[int, int, MetricValue] | None = None
    own = [one for one in records if one.cell.model == scaling.cell.model and one.cell.batch_size == batch]
    for record in sorted(own, key=lambda one: known[one.cell.image_size].n):
        point, value = known[record.cell.image_size], _time_of(record)
        step = None
        if value.estimate is not None:
            ratio = ratio_of(value, before[2]) if before else None
            if before and ratio and before[0] < point.n:
                step = elasticity(ratio, before[0], point.n, point.flops / before[1] if before[1] else None)
            before = point.n, point.flops, value
        found.append(
            TimedPoint(
                image_size=record.cell.image_size,
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
    first at which it is clearly slower, or the other way round, by 95 % intervals of paired ratios.

    Up to ``_NARROWED`` sizes in between are timed by ``again``, whose records are added to ``records``.
    """
    allowed = pair.allowed()
    for _ in range(_NARROWED):
        n = next_to_try(_signs(pair, records, batch), list(allowed))
        if n is None:
            break
        pair.add(allowed[n])
        records += again([allowed[n]])
    method = "timed in turns, 95 % intervals of paired ratios"
    return Crossover(
        quantity=f"time, batch {batch}",
        signs=_signs(pair, records, batch),
        method=method,
        neither="not distinguishable",
    )


def _signs(pair: Pair, records: Sequence[Record], batch: int) -> dict[int, int]:
    """By N: -1 where the first model is clearly faster, 1 where it is clearly slower, 0 where neither is."""
    by_size: dict[Size, dict[str, MetricValue]] = {}
    for record in records:
        if record.cell.batch_size == batch:
            by_size.setdefault(record.cell.image_size, {})[record.cell.model] = _time_of(record)
    found = {}
    for size, times in by_size.items():
        ratio = ratio_of(times[pair.one.cell.model], times[pair.other.cell.model])
        if ratio is not None:
            found[pair.n_of[size]] = _sign(ratio)
    return found


def _sign(ratio: Ratio) -> int:
    return 0 if not ratio.tells_apart else 1 if ratio.value > 1 else -1


def _time_of(record: Record) -> MetricValue:
    return value_of(record, "training_step" if record.cell.mode == "train" else "latency")

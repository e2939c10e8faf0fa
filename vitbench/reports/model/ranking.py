"""Who is faster, as far as the measurements show: ranks by relative latency, with ties; and Pareto fronts."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.core.stats.comparisons import Ratio, compare, compare_relative
from vitbench.core.stats.intervals import process_medians
from vitbench.reports.model.values import MetricValue


def ratio_of(one: MetricValue, other: MetricValue) -> Ratio | None:
    """``one`` over ``other`` by what each took relative to the reference; None if they have no common one.

    Cells that took turns with each other are compared process by process. Others are compared if the same reference ran
    on the same machine with as many threads.
    """
    if one.measurement is None or other.measurement is None or one.record is None or other.record is None:
        return None
    if not one.relative_samples or not other.relative_samples or reference_of(one) != reference_of(other):
        return None
    group = one.measurement.group
    paired = bool(group) and group == other.measurement.group
    if one.quiet and other.quiet:
        first_stages = one.first_stage, other.first_stage
        return compare_relative(one.quiet.relative, other.quiet.relative, paired=paired, first_stages=first_stages)
    return compare(process_medians(one.relative_samples), process_medians(other.relative_samples), paired=paired)


def differ(ratio: Ratio | None, floor: float) -> bool:
    """Whether the interval of a ratio excludes 1, and the ratio is beyond the noise ``floor`` (0.02: 2 %)."""
    return ratio is not None and ratio.tells_apart and max(ratio.value, 1 / ratio.value) > 1 + floor


def ranks(values: Sequence[MetricValue], floor: float = 0.0) -> list[tuple[int, int] | None]:
    """The best and the worst rank (from 1) that each value can have: equal without a tie, shared where this run cannot
    distinguish values.

    None for a value without a reference, and for all if two of those that have one cannot be compared. Values of one
    record (a row that is repeated) count once.
    """
    known = [index for index, value in enumerate(values) if value.relative]
    distinct = list({id(values[index].record): index for index in known}.values())
    if len({reference_of(values[index]) for index in known}) > 1 or len(distinct) < 2:
        return [None] * len(values)
    found: dict[int, tuple[int, int]] = {}
    for index in distinct:
        ratios = [ratio_of(values[index], values[other]) for other in distinct if other != index]
        if any(ratio is None for ratio in ratios):
            return [None] * len(values)
        apart = [ratio for ratio in ratios if ratio and differ(ratio, floor)]
        faster = sum(ratio.value > 1 for ratio in apart)
        slower = sum(ratio.value < 1 for ratio in apart)
        found[id(values[index].record)] = faster + 1, len(distinct) - slower
    return [found[id(value.record)] if value.relative else None for value in values]


def reference_of(value: MetricValue) -> tuple[str, ...]:
    """What must be equal for relative latencies to be comparable."""
    assert value.record is not None
    assert value.measurement is not None
    cell = value.record.cell
    return value.record.environment, cell.device, str(cell.threads), value.measurement.reference


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points (cost, value) that none beats, by ascending cost.

    A point is beaten by another one that costs no more and is worth no less, and differs. Equal points stay together.
    """
    front: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        _, value = points[index]
        if value > best or (front and points[index] == points[front[-1]]):
            front.append(index)
            best = value
    return front

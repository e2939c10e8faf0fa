"""Who is faster, as far as the measurements tell: places by relative latency, with ties said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitbench.core.stats.statistics import Ratio, compare, compare_relative, process_medians
from vitbench.reports.model.rows import Figure


@dataclass(frozen=True)
class Place:
    """The best and the worst place (from 1) that the figures leave open; equal if nothing ties."""

    best: int
    worst: int

    def __str__(self) -> str:
        return str(self.best) if self.best == self.worst else f"{self.best}-{self.worst}"


def ratio_of(one: Figure, other: Figure) -> Ratio | None:
    """``one`` over ``other`` by what each took relative to the reference; None if they have no common one.

    Cells that took turns with each other are compared process by process. Others are compared if the same reference ran
    on the same machine with as many threads.
    """
    if one.measurement is None or other.measurement is None or one.record is None or other.record is None:
        return None
    if not one.relative_samples or not other.relative_samples or _reference(one) != _reference(other):
        return None
    group = one.measurement.group
    paired = bool(group) and group == other.measurement.group
    if one.in_quiet_turns and other.in_quiet_turns:
        first_stages = one.first_stage, other.first_stage
        return compare_relative(one.in_quiet_turns, other.in_quiet_turns, paired=paired, first_stages=first_stages)
    return compare(process_medians(one.relative_samples), process_medians(other.relative_samples), paired=paired)


def tells_apart(ratio: Ratio | None, floor: float) -> bool:
    """Whether two cells differ: the interval of their ratio leaves 1 out, and the ratio is beyond the noise ``floor``
    (0.02: 2 %).
    """
    return ratio is not None and ratio.tells_apart and max(ratio.value, 1 / ratio.value) > 1 + floor


def places(figures: Sequence[Figure], floor: float = 0.0) -> list[Place | None]:
    """The place of each figure among all of them; None for one that cannot be compared with all the others that have a
    relative value. Figures that share a place are a tie: this run does not tell them apart. Figures of one record (a
    row that is repeated) are one.
    """
    known = [index for index, figure in enumerate(figures) if figure.relative]
    distinct = list({id(figures[index].record): index for index in known}.values())
    if len({_reference(figures[index]) for index in known}) > 1 or len(distinct) < 2:
        return [None] * len(figures)
    found: dict[int, Place] = {}
    for index in distinct:
        ratios = [ratio_of(figures[index], figures[other]) for other in distinct if other != index]
        if any(ratio is None for ratio in ratios):
            return [None] * len(figures)
        apart = [ratio for ratio in ratios if ratio and tells_apart(ratio, floor)]
        faster = sum(ratio.value > 1 for ratio in apart)
        slower = sum(ratio.value < 1 for ratio in apart)
        found[id(figures[index].record)] = Place(faster + 1, len(distinct) - slower)
    return [found[id(figure.record)] if figure.relative else None for figure in figures]


def _reference(figure: Figure) -> tuple[str, ...]:
    """What must be equal for relative latencies to be comparable."""
    assert figure.record is not None
    assert figure.measurement is not None
    cell = figure.record.cell
    return figure.record.environment, cell.device, str(cell.threads), figure.measurement.reference

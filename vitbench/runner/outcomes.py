"""What the processes of a cell sent becomes its measurements: completed with absences, several processes merged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vitbench.core.records import Cell, Measurement
from vitbench.core.registry import METRICS, Metric
from vitbench.devices import Failure
from vitbench.executors.conversation import Outcome

#: A failure of these processes, in this order, is a failure of the cell; that of a comparison column is not.
ESSENTIAL = ("memory", "time", "energy", "training")


def metrics_by_process(cell: Cell, names: Iterable[str]) -> dict[str, list[Metric]]:
    """The metrics that apply to a cell, by the kind of process that takes them."""
    groups: dict[str, list[Metric]] = {}
    for name in names:
        metric = METRICS.get(name)
        # a cell with data is (trained and) tested; the cells beside it are timed
        wanted = metric.process in ("static", "training") if cell.tests else metric.process != "training"
        if cell.mode in metric.modes and wanted:
            groups.setdefault(metric.process, []).append(metric)
    return groups


def complete(cell: Cell, metrics: Sequence[Metric], outcome: Outcome) -> list[Measurement]:
    """The measurements of ``metrics`` in ``outcome``, and an absent one for each that its failure left out."""
    wanted = {name: unit for metric in metrics for name, unit in metric.yields_in(cell.mode).items()}
    known = {value.name for metric in metrics for value in metric.yields}
    found = [measurement for measurement in outcome.measurements if measurement.metric in known]
    if outcome.failure is not None:
        present = {measurement.metric for measurement in found}
        status, detail = outcome.failure.status, outcome.failure.detail
        found += [
            Measurement.absent(name, unit, status, detail) for name, unit in wanted.items() if name not in present
        ]
    return found


def not_tried(failure: Failure, before: str = "the process before it") -> Outcome:
    """The outcome of metrics that are not tried any more, because ``before`` failed."""
    detail = f"not tried, because {before} ended so: {failure.detail}"
    return Outcome(failure=Failure(failure.status, failure.cause, detail))


def merge(outcomes: Sequence[Outcome], first_stage: int | None = None, group: str = "") -> Outcome:
    """Several processes' outcomes as one: the samples of each process side by side, and the failure that ended them."""
    merged: dict[str, list[Measurement]] = {}
    last = outcomes[-1]
    for outcome in outcomes:
        for measurement in outcome.measurements:
            merged.setdefault(measurement.metric, []).append(measurement)
    found = [side_by_side(parts, first_stage, group) for parts in merged.values()]
    if last.failure is not None:
        # samples of the processes before a failure are kept under its status: they are not this cell's result
        status, detail = last.failure.status, last.failure.detail
        unfinished = {m.metric for m in last.measurements}
        found = [
            m if m.metric in unfinished or len(outcomes) == 1 else replace(m, status=status, detail=detail)
            for m in found
        ]
    return replace(last, measurements=found, seconds=sum(outcome.seconds for outcome in outcomes))


def side_by_side(parts: Sequence[Measurement], first_stage: int | None, group: str) -> Measurement:
    """One measurement of several processes. It has the reference's samples only if each process has them; where only
    some had the reference beside them, the method names both ways.
    """
    paired = all(part.reference_samples for part in parts)
    loads_known = all(part.other_load for part in parts)
    methods = dict.fromkeys(part.method for part in parts if part.method)
    failed = next((part for part in parts if part.status != "ok"), None)  # one bad process spoils the measurement
    details = dict.fromkeys(part.detail for part in parts if part.detail)
    return replace(
        failed or parts[0],
        detail=failed.detail if failed else "; ".join(details),
        method="; in other processes: ".join(methods),
        samples=tuple(process for part in parts for process in part.samples),
        turns=tuple(process for part in parts for process in part.turns),
        reference_samples=tuple(process for part in parts for process in part.reference_samples) if paired else (),
        other_load=tuple(process for part in parts for process in part.other_load) if loads_known else (),
        first_stage=first_stage,
        reference=parts[0].reference if paired else "",
        group=group if paired else "",
    )

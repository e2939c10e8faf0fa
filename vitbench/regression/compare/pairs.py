"""Compare one cell, measured in BASE and in HEAD: for each metric a Change, or a test that waits for the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from vitbench.core.records import HARMLESS, Measurement, Record
from vitbench.core.registry import Yields
from vitbench.core.stats.intervals import CONFIDENCE, MIN_PROCESSES
from vitbench.regression.change import Change, Verdict
from vitbench.regression.compare.environments import Apart
from vitbench.regression.compare.evidence import Fractions, LogRatio, Pending
from vitbench.reports.model.noise import disturbances
from vitbench.reports.model.values import MetricValue, value_of
from vitbench.suites.batch_search import is_attempt, shown_status
from vitbench.suites.thresholds import RELATIVE, SMALLEST_BYTES, STATUS, Rule, threshold_for, yields_of

#: How bad a status is; a less bad one is better.
_BADNESS = {"ok": 0, "oom": 1, "unsupported": 1, "timeout": 2, "killed": 2, "error": 2}
#: Statuses that depend on the machine as much as on the code.
_OF_THE_MACHINE = frozenset({"oom", "timeout", "killed"})
_OF_REFERENCE = "× reference"

_Value = float | str | None


@dataclass(frozen=True)
class Pair:
    """A cell's record in BASE and in HEAD. ``name``: the cell's; ``apart``: what keeps the two environments apart."""

    base: Record
    head: Record
    name: str
    rules: Sequence[Rule]
    apart: Apart

    def findings(self) -> list[Change | Pending]:
        """The cell's status, then its metrics in HEAD's order."""
        found: list[Change | Pending] = [] if is_attempt(self.head) or is_attempt(self.base) else [self._status()]
        metrics = [one.metric for record in (self.head, self.base) for one in record.measurements]
        for metric in dict.fromkeys(metrics):
            if yields_of(metric).kind != "condition":
                try:
                    found += self._metric(metric)
                except ValueError as error:  # samples that vitbench does not write
                    reason = f"its samples are not valid: {error}"
                    found.append(self._change(_gated_name(metric), (None, None), "not comparable", reason))
        return found

    def _status(self) -> Change:
        one, other = self.base, self.head
        verdict: Verdict = "same"
        detail = ""
        if one.status != other.status:
            worse, better = _BADNESS[other.status] > _BADNESS[one.status], _BADNESS[other.status] < _BADNESS[one.status]
            failed = other if other.status != "ok" else one
            verdict = "worse" if worse else "better" if better else "not comparable"
            verdict, detail = self._unless_machine(one.status, other.status, verdict, failed.detail or failed.cause)
        elif one.status not in HARMLESS:
            detail = other.detail or other.cause
        return self._change(STATUS, (shown_status(one.status), shown_status(other.status)), verdict, detail)

    def _unless_machine(self, one: str | None, other: str | None, verdict: Verdict, detail: str) -> tuple[Verdict, str]:
        """The verdict on two statuses, unless the machines may explain them."""
        if self.apart.times and {one, other} & _OF_THE_MACHINE:
            return "not comparable", f"{self.apart.times}, which have other memory and speed"
        return verdict, detail

    def _metric(self, metric: str) -> list[Change | Pending]:
        one, other = value_of(self.base, metric), value_of(self.head, metric)
        value = yields_of(metric)
        if one.measurement is None or other.measurement is None:
            return self._missing(metric)
        if one.status != "ok" or other.status != "ok":
            return self._failed(metric, one, other)
        unit = one.measurement.unit
        if unit != other.measurement.unit:
            reason = f"measured in {unit} and in {other.measurement.unit}"
            return [self._change(metric, (one.value, other.value), "not comparable", reason)]
        if value.kind in ("exact", "tool", "torch", "measured"):
            return [self._counted(metric, unit, (one.measurement, other.measurement))]
        if value.kind == "fraction":
            return [self._fraction(metric, unit, one.value, other.value)]
        if value.kind == "unknown":
            return [self._unknown(metric, unit, one, other)]
        reason = self.apart.times or "absolute values of different runs differ by 41 % and more on identical code"
        if metric in ("macro_f1", "macro_f1_present", "test_loss", "training_loss"):
            reason = "its variation by chance is unknown"
        shown = self._for_information(metric, unit, one, other, reason)
        relative = _gated_name(metric)
        if relative == metric or not (self._threshold(relative)[0] or yields_of(relative).gates):
            return [shown]  # CPU time is relative only where a threshold gates it
        same_reference = one.measurement.reference == other.measurement.reference
        return [self._relative(relative, one, other, same_reference), shown]

    def _missing(self, metric: str) -> list[Change | Pending]:
        """A metric that one run did not measure. If the cell's statuses differ, they say why."""
        name = _gated_name(metric)
        if self.base.status != self.head.status or yields_of(name).kind in ("shown", "unknown"):
            return []
        base, head = ("measured" if record.measurement(metric) else None for record in (self.base, self.head))
        reason = f"{'BASE' if base is None else 'HEAD'} did not measure it"
        return [self._change(name, (base, head), "not comparable", reason)]

    def _failed(self, metric: str, one: MetricValue, other: MetricValue) -> list[Change | Pending]:
        if self.base.status != self.head.status or one.status == other.status:
            return []
        base, head = ("measured" if side.status == "ok" else shown_status(side.status or "") for side in (one, other))
        verdict: Verdict = "worse" if one.status == "ok" else "better" if other.status == "ok" else "not comparable"
        failed = other if other.status != "ok" else one
        verdict, detail = self._unless_machine(one.status, other.status, verdict, failed.detail)
        return [self._change(_gated_name(metric), (base, head), verdict, detail)]

    def _counted(self, metric: str, unit: str, both: tuple[Measurement, Measurement]) -> Change:
        """Exact values, and measured ones that repeat within a tolerance."""
        base, head = _single(self.base, metric), _single(self.head, metric)
        value, (_, tolerance) = yields_of(metric), self._threshold(metric)
        reason = ""
        if base is None or head is None:
            reason = "it has several values instead of one"
        elif value.kind == "measured":
            reason = self.apart.times
        elif value.kind == "torch":
            reason = self.apart.torch
        elif both[0].left_out != both[1].left_out:
            names = [one.left_out or "none (records of an earlier vitbench name none)" for one in both]
            reason = "a lower bound compares only with one that leaves out the same operators: "
            reason += f"BASE names {names[0]}, HEAD {names[1]}"
        elif any(one.executed for one in both):
            reason = self.apart.torch or self.apart.times  # a model may branch on the last digits of a number
        if reason or base is None or head is None:
            return self._change(metric, (base, head), "not comparable", reason, unit=unit)
        allowed = tolerance * abs(base)
        if value.kind == "measured" and tolerance > 0 and unit == "byte":
            allowed = max(allowed, SMALLEST_BYTES)
        verdict = verdict_of(base, head, allowed, value)
        detail = ""
        if verdict in ("worse", "better"):
            detail = f"tolerance {100 * tolerance:g} %" if tolerance else ""
            if value.kind == "tool" and both[0].method != both[1].method:
                detail = "counted by another version of the tool"
            if both[0].left_out:
                detail = f"lower bounds, both without {both[0].left_out}"
        return self._change(metric, (base, head), verdict, detail, unit=unit)

    def _relative(self, metric: str, one: MetricValue, other: MetricValue, same_reference: bool) -> Change | Pending:
        base_value, head_value = (side.relative.value if side.relative else None for side in (one, other))
        states = (base_value, head_value)
        reason = self.apart.times
        if not reason and (base_value is None or head_value is None):
            reason = "timed without the reference, and absolute times of different runs are not compared"
        elif not reason and not same_reference:
            reason = "timed relative to another reference, or with another number of threads"
        if reason:
            return self._change(metric, states, "not comparable", reason, unit=_OF_REFERENCE)
        if one.quiet is None or other.quiet is None:
            reason = f"fewer than {MIN_PROCESSES} processes do not show how processes differ: --processes 5 does"
            ratio = _ratio_of(base_value, head_value)
            return self._change(metric, states, "inconclusive", reason, unit=_OF_REFERENCE, ratio=ratio)
        found = LogRatio.of((one.quiet.relative, one.first_stage), (other.quiet.relative, other.first_stage))
        ratio, low, high = found.interval
        _, tolerance = self._threshold(metric)
        margin = math.log1p(tolerance)
        times = f"{_seconds(one)} -> {_seconds(other)} in these runs"
        detail = times + self._disturbed()
        return Pending(
            change=self._change(
                metric, states, "inconclusive", detail, unit=_OF_REFERENCE, ratio=ratio, low=low, high=high
            ),
            worse=found.tail(margin),
            better=found.reversed().tail(margin),
            within=-margin <= math.log(low) and math.log(high) <= margin,
            reason=f"{times}; the interval exceeds the tolerance of {100 * tolerance:g} %{self._disturbed()}",
            log_ratio=found,
            margin=margin,
        )

    def _fraction(self, metric: str, unit: str, base: float | None, head: float | None) -> Change | Pending:
        base_total, head_total = (_single(record, "test_images") for record in (self.base, self.head))
        conditions = ("test_images", "training_images", "training_steps")
        unlike = [name for name in conditions if _single(self.base, name) != _single(self.head, name)]
        reason = ""
        if unlike:
            reason = f"other {' and '.join(name.replace('_', ' ') for name in unlike)}"
        elif not base_total or base is None or head is None or not (0 <= base <= 1 and 0 <= head <= 1):
            reason = "the number of test images is unknown"
        if reason or base is None or head is None or not base_total or not head_total:
            return self._change(metric, (base, head), "not comparable", reason, unit=unit)
        gates, tolerance = self._threshold(metric)
        if base == head and (not gates or tolerance == 0):  # no interval fits into a tolerance of 0
            return self._change(metric, (base, head), "same", unit=unit)
        found = Fractions(base, round(base_total), head, round(head_total))
        low, high = found.interval(NormalDist().inv_cdf(0.5 + CONFIDENCE / 2))
        detail = f"{_points(head - base)} points [{_points(low)}, {_points(high)}], from the number of test images"
        return Pending(
            change=self._change(metric, (base, head), "inconclusive", detail, unit=unit),
            worse=found.tail(tolerance),
            better=found.reversed().tail(tolerance),
            within=-tolerance <= low and high <= tolerance,
            reason=detail,
        )

    def _unknown(self, metric: str, unit: str, one: MetricValue, other: MetricValue) -> Change:
        """A metric of another package: it gates only where a threshold names it."""
        threshold = threshold_for(self.rules, self.head.cell, metric)
        base, head = _single(self.base, metric), _single(self.head, metric)
        if base is None or head is None:
            return self._for_information(metric, unit, one, other, "how its samples differ between runs is unknown")
        value = yields_of(metric)
        verdict = verdict_of(base, head, (threshold.tolerance or 0.0) * abs(base), value)
        detail = ""
        if value.better is None and verdict == "better":
            verdict, detail = "worse", "any move beyond the tolerance counts: its metric does not say what is better"
        if not threshold.gate and verdict != "same":
            verdict, detail = "inconclusive", "a metric of another package gates only where a threshold names it"
        elif self.apart.times and verdict != "same":
            verdict, detail = "not comparable", self.apart.times
        return self._change(metric, (base, head), verdict, detail, unit=unit, gates=bool(threshold.gate))

    def _for_information(self, metric: str, unit: str, one: MetricValue, other: MetricValue, reason: str) -> Change:
        same = one.value is not None and one.value == other.value
        verdict: Verdict = "same" if same else "not comparable"
        ratio, detail = _ratio_of(one.value, other.value), "" if same else reason
        return self._change(metric, (one.value, other.value), verdict, detail, unit=unit, gates=False, ratio=ratio)

    def _threshold(self, metric: str) -> tuple[bool, float]:
        """Whether a value gates, and its tolerance."""
        value, found = yields_of(metric), threshold_for(self.rules, self.head.cell, metric)
        by_default = value.gates and value.kind != "time"  # times gate relative to the reference
        return (
            by_default if found.gate is None else found.gate,
            value.tolerance if found.tolerance is None else found.tolerance,
        )

    def _disturbed(self) -> str:
        both = (("BASE", disturbances(self.base)), ("HEAD", disturbances(self.head)))
        return "".join(f"; {name} was disturbed ({reasons[0]})" for name, reasons in both if reasons)

    def _change(
        self, metric: str, states: tuple[_Value, _Value], verdict: Verdict, detail: str = "", **fields: Any
    ) -> Change:
        """A change of this cell. By default it has no unit, and the thresholds say whether it gates."""
        base, head = states
        exact = yields_of(metric).kind in ("exact", "tool", "torch")
        if exact and isinstance(base, int | float) and isinstance(head, int | float):
            fields["ratio"] = _ratio_of(base, head)
        fields = {"unit": "", "gates": self._threshold(metric)[0], **fields}
        return Change(
            cell=self.name, metric=metric, base=base, head=head, verdict=verdict, exact=exact, detail=detail, **fields
        )


def verdict_of(base: float, head: float, allowed: float, value: Yields) -> Verdict:
    """Whether ``head`` is worse or better than ``base`` by more than ``allowed``, in their unit."""
    worse_by = base - head if value.better == "more" else head - base
    return "worse" if worse_by > allowed else "better" if -worse_by > allowed else "same"


def _gated_name(metric: str) -> str:
    """The value that gates a metric: the relative one for times."""
    relative = f"{RELATIVE}{metric}"
    return relative if yields_of(relative).kind == "relative" else metric


def _single(record: Record, metric: str) -> float | None:
    """The value of a measurement that has exactly one sample."""
    one = record.measurement(metric)
    if one is None or one.status != "ok" or [len(process) for process in one.samples] != [1]:
        return None
    return one.samples[0][0]


def _ratio_of(base: float | None, head: float | None) -> float | None:
    return head / base if base is not None and head is not None and base > 0 else None


def _seconds(one: MetricValue) -> str:
    seconds = one.value or 0.0
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"

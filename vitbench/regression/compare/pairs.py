"""One cell, measured in BASE and in HEAD: metric by metric a Change, or a test that waits for the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from vitbench.core.records import HARMLESS, Measurement, Record
from vitbench.core.registry import Yields
from vitbench.core.stats.intervals import CONFIDENCE, MIN_PROCESSES
from vitbench.regression.change import Change, Verdict
from vitbench.regression.compare.environments import Apart
from vitbench.regression.compare.evidence import Fractions, LogRatio, Pending
from vitbench.reports.markdown.noise import disturbance_texts
from vitbench.reports.model.rows import shown_status
from vitbench.reports.model.values import MetricValue, value_of
from vitbench.suites.batch_search import is_attempt
from vitbench.suites.thresholds import (
    RELATIVE,
    SMALLEST_BYTES,
    STATUS,
    Rule,
    threshold_for,
    yields_of,
)

#: How bad an ending is; what is less bad is better.
_BADNESS = {"ok": 0, "oom": 1, "unsupported": 1, "timeout": 2, "killed": 2, "error": 2}
#: Endings that say as much of the machine as of the code.
_OF_THE_MACHINE = frozenset({"oom", "timeout", "killed"})
_OF_REFERENCE = "× reference"


@dataclass(frozen=True)
class Pair:
    """A cell's record in BASE and in HEAD, and what it is called."""

    base: Record
    head: Record
    name: str
    rules: Sequence[Rule]
    apart: Apart

    def findings(self) -> list[Change | Pending]:
        """What there is to say of it: its status first, then metric by metric in HEAD's order."""
        found: list[Change | Pending] = [] if is_attempt(self.head) or is_attempt(self.base) else [self._status()]
        metrics = [one.metric for record in (self.head, self.base) for one in record.measurements]
        for metric in dict.fromkeys(metrics):
            if yields_of(metric).kind != "condition":
                try:
                    found += self._metric(metric)
                except ValueError as error:  # samples that no run of ours would have written
                    reason = f"its samples make no figure: {error}"
                    name = _gated_name(metric)
                    gates, _ = self._threshold(name, yields_of(name))
                    found.append(self._change(name, "", (None, None), "not comparable", reason, gates))
        return found

    def _status(self) -> Change:
        one, other = self.base, self.head
        gates, _ = self._threshold(STATUS, yields_of(STATUS))
        verdict: Verdict = "same"
        detail = ""
        if one.status != other.status:
            worse, better = _BADNESS[other.status] > _BADNESS[one.status], _BADNESS[other.status] < _BADNESS[one.status]
            verdict = "worse" if worse else "better" if better else "not comparable"
            told = other if other.status != "ok" else one
            detail = told.detail or told.cause
            if self.apart.times and {one.status, other.status} & _OF_THE_MACHINE:
                verdict, detail = "not comparable", f"{self.apart.times}, which have other memory and speed"
        elif one.status not in HARMLESS:
            detail = other.detail or other.cause
        states = (shown_status(one.status), shown_status(other.status))
        return self._change(STATUS, "", states, verdict, detail, gates)

    def _metric(self, metric: str) -> list[Change | Pending]:
        one, other = value_of(self.base, metric), value_of(self.head, metric)
        value = yields_of(metric)
        if one.measurement is None or other.measurement is None:
            return self._missing(metric)
        if one.status != "ok" or other.status != "ok":
            return self._failed(metric, one, other)
        unit = one.measurement.unit
        if unit != other.measurement.unit:
            gates, _ = self._threshold(metric, value)
            reason = f"measured in {unit} and in {other.measurement.unit}"
            return [self._change(metric, "", (one.value, other.value), "not comparable", reason, gates)]
        if value.kind in ("exact", "tool", "torch", "measured"):
            return [self._counted(metric, unit, value, (one.measurement, other.measurement))]
        if value.kind == "fraction":
            return [self._fraction(metric, unit, value, one, other)]
        if value.kind == "unknown":
            return [self._unknown(metric, unit, one, other)]
        shown = self._aside(metric, unit, one, other, self._why_shown(metric))
        relative = _gated_name(metric)
        gates, _ = self._threshold(relative, yields_of(relative))
        if relative == metric or not (gates or yields_of(relative).gates):
            return [shown]  # of CPU time too, unless somebody gates it
        same_reference = one.measurement.reference == other.measurement.reference
        return [self._relative(relative, one, other, same_reference), shown]

    def _missing(self, metric: str) -> list[Change | Pending]:
        """A metric that one run did not take. Where the cell ended otherwise, its status says why."""
        name = _gated_name(metric)
        if self.base.status != self.head.status or yields_of(name).kind in ("shown", "unknown"):
            return []
        gates, _ = self._threshold(name, yields_of(name))
        base, head = ("measured" if record.measurement(metric) else None for record in (self.base, self.head))
        reason = f"{'BASE' if base is None else 'HEAD'} did not measure it"
        return [self._change(name, "", (base, head), "not comparable", reason, gates)]

    def _failed(self, metric: str, one: MetricValue, other: MetricValue) -> list[Change | Pending]:
        """A metric that has no figure in one of them."""
        if self.base.status != self.head.status or one.status == other.status:
            return []
        name = _gated_name(metric)
        gates, _ = self._threshold(name, yields_of(name))
        base, head = ("measured" if side.status == "ok" else shown_status(side.status or "") for side in (one, other))
        verdict: Verdict = "worse" if one.status == "ok" else "better" if other.status == "ok" else "not comparable"
        detail = (other if other.status != "ok" else one).detail
        if self.apart.times and {one.status, other.status} & _OF_THE_MACHINE:
            verdict, detail = "not comparable", f"{self.apart.times}, which have other memory and speed"
        return [self._change(name, "", (base, head), verdict, detail, gates)]

    def _counted(self, metric: str, unit: str, value: Yields, both: tuple[Measurement, Measurement]) -> Change:
        """Exact figures, and those that repeat within a tolerance."""
        base, head = _point(self.base, metric), _point(self.head, metric)
        gates, tolerance = self._threshold(metric, value)
        reason = ""
        if base is None or head is None:
            reason = "it has not one figure, but several"
        elif value.kind == "measured":
            reason = self.apart.times
        elif value.kind == "torch":
            reason = self.apart.torch
        elif any(one.executed for one in both):
            reason = self.apart.torch or self.apart.times  # what a model does with numbers follows their last digits
        if reason or base is None or head is None:
            return self._change(metric, unit, (base, head), "not comparable", reason, gates)
        allowed = tolerance * abs(base)
        if value.kind == "measured" and tolerance > 0 and unit == "byte":
            allowed = max(allowed, SMALLEST_BYTES)
        verdict = verdict_of(base, head, allowed, value)
        detail = ""
        if verdict in ("worse", "better"):
            detail = f"tolerance {100 * tolerance:g} %" if tolerance else ""
            if value.kind == "tool" and both[0].method != both[1].method:
                detail = "counted by another version of the tool"
        return self._change(metric, unit, (base, head), verdict, detail, gates)

    def _relative(self, metric: str, one: MetricValue, other: MetricValue, same_reference: bool) -> Change | Pending:
        gates, tolerance = self._threshold(metric, yields_of(metric))
        base_value, head_value = (side.relative.value if side.relative else None for side in (one, other))
        states = (base_value, head_value)
        reason = self.apart.times
        if not reason and (base_value is None or head_value is None):
            reason = "timed without the reference, and times of different runs are not compared"
        elif not reason and not same_reference:
            reason = "the reference, or its number of threads, is another one"
        if reason:
            return self._change(metric, _OF_REFERENCE, states, "not comparable", reason, gates)
        sides = [(side.in_quiet_turns, side.first_stage) for side in (one, other)]
        (base, base_first), (head, head_first) = sides
        if base is None or head is None:
            reason = f"fewer than {MIN_PROCESSES} processes say nothing of how processes differ: --processes 5 does"
            ratio = _ratio_of(base_value, head_value)
            return self._change(metric, _OF_REFERENCE, states, "inconclusive", reason, gates, ratio)
        found = LogRatio.of((base, base_first), (head, head_first))
        _, low, high = found.interval
        margin = math.log1p(tolerance)
        was = f"{_seconds(one)} -> {_seconds(other)} in these runs"
        disturbed = self._disturbed()
        return Pending(
            change=self._change(
                metric, _OF_REFERENCE, states, "inconclusive", f"{was}{disturbed}", gates, *found.interval
            ),
            worse=found.tail(margin),
            better=found.reversed().tail(margin),
            within=-margin <= math.log(low) and math.log(high) <= margin,
            reason=f"{was}; the interval reaches beyond the tolerance of {100 * tolerance:g} %{disturbed}",
            log_ratio=found,
            margin=margin,
        )

    def _fraction(
        self, metric: str, unit: str, value: Yields, one: MetricValue, other: MetricValue
    ) -> Change | Pending:
        gates, tolerance = self._threshold(metric, value)
        base, head = one.value, other.value
        base_total, head_total = (_point(record, "test_images") for record in (self.base, self.head))
        conditions = ("test_images", "training_images", "training_steps")
        unlike = [name for name in conditions if _point(self.base, name) != _point(self.head, name)]
        reason = ""
        if unlike:
            reason = f"other {' and '.join(name.replace('_', ' ') for name in unlike)}"
        elif not base_total or base is None or head is None or not (0 <= base <= 1 and 0 <= head <= 1):
            reason = "how many pictures were tested is not known"
        if reason or base is None or head is None or not base_total or not head_total:
            return self._change(metric, unit, (base, head), "not comparable", reason, gates)
        found = Fractions(base, round(base_total), head, round(head_total))
        if base == head and (not gates or tolerance == 0):  # no interval fits into a tolerance of nothing
            return self._change(metric, unit, (base, head), "same", "", gates)
        low, high = found.interval(NormalDist().inv_cdf(0.5 + CONFIDENCE / 2))
        told = f"{_points(head - base)} points [{_points(low)}, {_points(high)}], as far as the test pictures go"
        return Pending(
            change=self._change(metric, unit, (base, head), "inconclusive", told, gates),
            worse=found.tail(tolerance),
            better=found.reversed().tail(tolerance),
            within=-tolerance <= low and high <= tolerance,
            reason=told,
        )

    def _unknown(self, metric: str, unit: str, one: MetricValue, other: MetricValue) -> Change:
        """A metric that other packages made: what is known of it is that somebody gates it, or does not."""
        said = threshold_for(self.rules, self.head.cell, metric)
        base, head = _point(self.base, metric), _point(self.head, metric)
        if base is None or head is None:
            return self._aside(metric, unit, one, other, "nobody knows how its samples differ between runs")
        allowed = (said.tolerance or 0.0) * abs(base)
        value = yields_of(metric)
        verdict = verdict_of(base, head, allowed, value)
        detail = ""
        if value.better is None and verdict == "better":
            verdict, detail = "worse", "any move beyond the tolerance counts: its metric does not say what is better"
        if not said.gate and verdict != "same":
            verdict, detail = "inconclusive", "this metric is not one of ours: a threshold that names it gates it"
        elif self.apart.times and verdict != "same":
            verdict, detail = "not comparable", self.apart.times
        return self._change(metric, unit, (base, head), verdict, detail, bool(said.gate))

    def _aside(self, metric: str, unit: str, one: MetricValue, other: MetricValue, reason: str) -> Change:
        """What is shown for information."""
        verdict: Verdict = "same" if one.value is not None and one.value == other.value else "not comparable"
        detail = "" if verdict == "same" else reason
        ratio = _ratio_of(one.value, other.value)
        return self._change(metric, unit, (one.value, other.value), verdict, detail, False, ratio)

    def _why_shown(self, metric: str) -> str:
        if metric in ("macro_f1", "test_loss", "training_loss"):
            return "how far it moves by chance is not known"
        if self.apart.times:
            return self.apart.times
        return "absolute figures of different runs differ by 41 % and more on identical code"

    def _threshold(self, metric: str, value: Yields) -> tuple[bool, float]:
        """Whether a value gates, and its tolerance."""
        said = threshold_for(self.rules, self.head.cell, metric)
        by_default = value.gates and value.kind != "time"  # times gate relative to the reference
        return (
            by_default if said.gate is None else said.gate,
            value.tolerance if said.tolerance is None else said.tolerance,
        )

    def _disturbed(self) -> str:
        found = [
            f"{name} was disturbed ({reasons[0]})"
            for name, record in (("BASE", self.base), ("HEAD", self.head))
            if (reasons := disturbance_texts(record))
        ]
        return "".join(f"; {text}" for text in found)

    def _change(
        self,
        metric: str,
        unit: str,
        states: tuple[float | str | None, float | str | None],
        verdict: Verdict,
        detail: str,
        gates: bool,
        ratio: float | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> Change:
        base, head = states
        exact = yields_of(metric).kind in ("exact", "tool", "torch")
        if exact and isinstance(base, int | float) and isinstance(head, int | float):
            ratio = _ratio_of(base, head)
        return Change(
            cell=self.name,
            metric=metric,
            unit=unit,
            base=base,
            head=head,
            verdict=verdict,
            exact=exact,
            gates=gates,
            ratio=ratio,
            low=low,
            high=high,
            detail=detail,
        )


def verdict_of(base: float, head: float, allowed: float, value: Yields) -> Verdict:
    """Whether ``head`` is worse or better than ``base`` by more than ``allowed``, in their unit."""
    worse_by = base - head if value.better == "more" else head - base
    return "worse" if worse_by > allowed else "better" if -worse_by > allowed else "same"


def _gated_name(metric: str) -> str:
    """What a metric is gated by: a time by the relative one, others by themselves."""
    relative = f"{RELATIVE}{metric}"
    return relative if yields_of(relative).kind == "relative" else metric


def _point(record: Record, metric: str) -> float | None:
    """The figure of a measurement that has exactly one."""
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

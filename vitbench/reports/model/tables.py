"""Tables as data: columns with units, lines of values with intervals and statuses; nothing is rounded or escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from vitbench.core.records import Status
from vitbench.core.stats.intervals import Estimate
from vitbench.reports.model.noise import OtherPrograms, busy_beside, has_few_samples
from vitbench.reports.model.values import MetricValue

#: How many digits of a number mean something:
#:
#: ``text``         there is no number, the value is a word
#: ``counted``      exact, four significant digits are enough to read
#: ``measured``     three significant digits
#: ``rough``        two significant digits
#: ``whole``        no decimals; ``grouped``: with commas between thousands
#: ``tenths``       one decimal; ``hundredths``: two; ``thousandths``: three
#: ``change``       a signed difference in per cent
#: ``rank``         a rank or a range of tied ranks
Precision = Literal[
    "text", "counted", "measured", "rough", "whole", "grouped", "tenths", "hundredths", "thousandths", "change", "rank"
]


@dataclass(frozen=True)
class Display:
    """How a number is shown: in ``unit``, of which ``scale`` make one base unit, with ``precision``."""

    unit: str = ""
    scale: float = 1.0
    precision: Precision = "measured"


TEXT = Display(precision="text")
IMAGE_SIZE = Display("px", precision="text")


class Note(NamedTuple):
    """What qualifies a value: a ``batch`` other than the column's, a number of ``processes``, of ``models``, of test
    ``images`` or of ``classes`` that no test image is of.
    """

    kind: Literal["batch", "processes", "models", "images", "classes"]
    number: int


#: What is to be known of a value: of a time or rate that ``all turns`` count (quiet ones are unknown) or that it has
#: ``few samples``, of a count that it is a ``lower bound``.
Mark = Literal["all turns", "slow machine", "few samples", "lower bound"]


@dataclass(frozen=True, kw_only=True)
class Value:
    """What one column says of one line: a ``number`` in base units, a ``text``, or a ``status`` in its place.

    ``interval`` holds the ends of the 95 % interval, of a rank the best and the worst. ``status`` is None where nothing
    was asked for; ``reason`` says why there is no number, or what a lower bound leaves out. A ``busy``
    value has what other programs used beside it. A value with a ``display`` of its own is not shown as its column says;
    a unit that is not the column's stands beside the number.
    """

    number: float | None = None
    interval: tuple[float, float] | None = None
    text: str | None = None
    status: Status | Literal["too few samples"] | None = None
    reason: str = ""
    note: Note | None = None
    busy: OtherPrograms | None = None
    marks: tuple[Mark, ...] = ()
    display: Display | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """The heading of a column: ``name``, the ``batch`` that its values are of, and the unit.

    ``data`` and ``images``: what accuracies were tested on, where all lines share it. ``brackets``: what stands in
    brackets behind the numbers, if that is not an interval.
    """

    name: str
    display: Display = TEXT
    batch: int | None = None
    data: str = ""
    images: int | None = None
    brackets: str = ""

    @property
    def is_text(self) -> bool:
        """Whether its values are words rather than numbers."""
        return self.display.precision == "text"


@dataclass(frozen=True)
class Table:
    """Columns, and one value a column in each line."""

    columns: tuple[Column, ...]
    lines: tuple[tuple[Value, ...], ...]


def filled_table(columns: Sequence[Column], lines: Sequence[Sequence[Value]]) -> Table:
    """A table without the columns in which no line has anything."""
    kept = [place for place in range(len(columns)) if any(line[place].status is not None for line in lines)]
    return Table(tuple(columns[place] for place in kept), tuple(tuple(line[place] for place in kept) for line in lines))


def text_value(text: str) -> Value:
    """A word."""
    return Value(text=text, status="ok")


def number_value(number: float | None, display: Display | None = None, note: Note | None = None) -> Value:
    """An exact number; an empty value for None."""
    return Value(number=number, status=None if number is None else "ok", display=display, note=note)


def estimate_value(estimate: Estimate | None, note: Note | None = None) -> Value:
    """A number with its interval; an empty value for None."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return number_value(estimate.value if estimate else None, note=note)
    return Value(number=estimate.value, interval=(estimate.low, estimate.high), status="ok", note=note)


def metric_value(found: MetricValue, note: Note | None = None) -> Value:
    """A metric of a record: its estimate with the marks of its time, or its status with the reason."""
    if found.estimate is None:
        return Value(status=found.status, reason=found.detail, note=note)
    return marked(estimate_value(found.estimate_between_runs, note), found)


def marked(value: Value, found: MetricValue) -> Value:
    """``value`` with what is to be known of ``found``; without an interval where it is busy."""
    busy = busy_beside(found)
    left_out = found.measurement.left_out if found.measurement else ""
    marks: dict[Mark, bool] = {
        "all turns": found.all_turns_count,
        "slow machine": found.slower is not None,
        "few samples": has_few_samples(found),
        "lower bound": left_out != "",
    }
    shown = tuple(one for one, is_so in marks.items() if is_so)
    if not shown and busy is None:  # most of them
        return value
    interval = None if busy else value.interval
    return replace(value, interval=interval, busy=busy, marks=shown, reason=left_out or value.reason)

"""Values and headings of reports/model/ as plain text: digits, brackets and marks are decided here, for every format.

Nothing is escaped: each format escapes for itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.reports.format import NOT_ASKED, number, percent, plain_text, with_interval
from vitbench.reports.model.noise import BUSY
from vitbench.reports.model.tables import Column, Display, Mark, Table, Value
from vitbench.suites.batch_search import shown_status

#: Significant digits by precision; then those with a fixed number of decimals.
DIGITS = {"counted": 4, "measured": 3, "rough": 2}
DECIMALS = {"whole": 0, "tenths": 1, "hundredths": 2, "thousandths": 3}
#: How marks stand beside a value; a lower bound before it.
MARKS: dict[Mark, str] = {"all turns": "†", "slow machine": "§", "few samples": "‡", "lower bound": "≥"}


def heading_text(column: Column) -> str:
    """``latency b1 (ms)``, ``accuracy on digits, n = 360 (%)``."""
    text = plain_text(column.name)
    text += f" on {plain_text(column.data)}" if column.data else ""
    text += "" if column.batch is None else f" b{column.batch}"
    text += "" if column.images is None else f", n = {column.images}"
    unit = column.brackets or column.display.unit
    return f"{text} ({unit})" if unit else text


def value_text(value: Value, column: Column) -> str:
    """One cell of a table: the number with its interval, a word, or the status in its place."""
    if value.text is not None:
        return plain_text(value.text) if column.is_text else value.text
    if value.number is not None:
        display = value.display or column.display
        text = "≥ " if "lower bound" in value.marks else ""
        text += number_text(value.number, value.interval, display)
        text += f" {display.unit}" if display.unit not in ("", column.display.unit) else ""
        text += " busy" if value.busy else ""
    elif value.status is None:
        text = NOT_ASKED
    else:
        text = value.reason if value.status == "too few samples" else shown_status(value.status)
    if value.note is not None:
        kind, count = value.note
        notes = {"batch": f"b{count}", "processes": f"{count}", "models": f"n = {count}", "images": f"n = {count}"}
        text += f" ({notes.get(kind, f'{count} classes without images')})"
    return " ".join([text, *(MARKS[mark] for mark in value.marks if mark != "lower bound")])


def number_text(value: float, interval: tuple[float, float] | None, display: Display) -> str:
    """``12.3 [12.1, 12.6]`` in the display's unit, which is left out."""
    if display.precision == "change":
        return percent(value)
    if display.precision == "rank" and interval is not None:
        return "-".join(f"{rank}" for rank in dict.fromkeys(interval))
    shown, *between = (one * display.scale for one in (value, *(interval or ())))
    if display.precision == "grouped":
        return f"{round(shown):,}"
    if display.precision in DECIMALS:
        decimals = DECIMALS[display.precision]
        text = f"{shown:.{decimals}f}"
        return f"{text} [{', '.join(f'{end:.{decimals}f}' for end in between)}]" if between else text
    low, high = between or (None, None)
    return with_interval(shown, low, high, DIGITS[display.precision])


def marks_text(shown: Table) -> list[str]:
    """What the marks in a table mean, one paragraph a mark; [] without marks."""
    values = [value for line in shown.lines for value in line]
    busy = [value.busy for value in values if value.busy]
    texts = []
    if busy:
        cores = _from_to([number(one.cores, 2) for one in busy])
        shares = _from_to([f"{100 * one.share:.0f}" for one in busy])
        what = f"other programs used {cores} cores in {shares} % of the {'turns' if busy[0].by_turn else 'processes'}"
        texts = [f"busy: {what}, and the ends of the interval differ by more than a factor of {BUSY:g}."]
    left_out = "; ".join(dict.fromkeys(value.reason for value in values if "lower bound" in value.marks))
    meanings: dict[Mark, str] = {
        "all turns": "all turns count: fewer than three processes, or too few with quiet turns",
        "slow machine": "the machine was slower throughout than at other times of the run, and the interval reaches to "
        "what it would be then; × reference holds",
        "few samples": "a process had fewer than ten steady samples",
        "lower bound": f"a lower bound, without operators that no formula covers ({plain_text(left_out, 1000)})",
    }
    found = {mark for value in values for mark in value.marks}
    return [*texts, *(f"{MARKS[mark]}: {meaning}." for mark, meaning in meanings.items() if mark in found)]


def _from_to(numbers: Sequence[str]) -> str:
    """``0.30 to 1.2``, or the only one."""
    return " to ".join(dict.fromkeys([min(numbers, key=float), max(numbers, key=float)]))

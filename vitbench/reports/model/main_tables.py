"""The main table of each device and image size as people read it: at most nine columns, and what these leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from vitbench.reports.model.columns import Floors, RowColumn, axis_columns, main_table
from vitbench.reports.model.rows import DEFAULT_OPTION, Row, axis_values, sort_key, varying_axes
from vitbench.reports.model.tables import Column, Table, Value, text_value

MOST_COLUMNS = 9
#: Name and unit of the columns that are shown, those that are left out first last.
BY_IMPORTANCE = (
    *(("latency", "ms"), ("accuracy", "%"), ("latency", "× reference"), ("peak memory", "MB"), ("params", "M")),
    *(("best throughput", "image/s"), ("GFLOPs", ""), ("training step", "ms")),
)
#: More conditions than these share one column, which names those that differ from the usual ones.
_MOST_AXES = 2
#: Values that are not worth a word where all rows share them.
DULL = {"compile": "no", "memory limit": "none", "weights": "random"}

Conditions = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MainTable:
    """The rows of one device and image size. ``left_out``: the other columns, and the status. ``usual``: what each row
    has unless it names another, of the conditions that vary on the page.
    """

    device: str
    image_size: str
    shown: Table
    left_out: Table
    usual: Conditions


def main_tables(rows: Sequence[Row], floors: Floors) -> list[MainTable]:
    """One table a device and image size. ``floors`` as ``main_table`` takes them."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=sort_key):
        groups.setdefault((row.cell.device, row.image_size), []).append(row)
    on_page = varying_axes(rows)
    return [_table_of(*names, group, on_page, floors) for names, group in groups.items()]


def shared_conditions(rows: Sequence[Row]) -> Conditions:
    """What all rows share, without what nobody would ask for."""
    values = {axis: found[0] for axis, found in axis_values(rows).items() if len(found) == 1 and axis != "run"}
    return tuple((axis, value) for axis, value in values.items() if value != DULL.get(axis))


def _table_of(device: str, size: str, rows: Sequence[Row], on_page: Sequence[str], floors: Floors) -> MainTable:
    axes = varying_axes(rows)
    names = axis_columns(axes)
    usual = tuple((axis, _most_common(rows, axis)) for axis in on_page if axis not in axes or len(axes) > _MOST_AXES)
    if len(axes) > _MOST_AXES:
        names = [RowColumn(Column(name="conditions"), lambda row: _unusual(row, dict(usual)))]
    table = main_table(rows, names, floors)
    first = range(1 + len(names))
    ranked = [place for place in _by_importance(table.columns, first) if _key(table.columns[place]) in BY_IMPORTANCE]
    shown = sorted([*first, *ranked[: MOST_COLUMNS - len(first)]])
    left_out = [place for place in range(len(table.columns)) if place in first or place not in shown]
    return MainTable(device, size, _only(table, shown), _only(table, left_out), tuple(one for one in usual if one[1]))


def narrow(table: Table, most: int) -> Table:
    """At most ``most`` columns of a table: the names and conditions before its values, then the important ones."""
    first = range(len(list(takewhile(lambda column: column.is_text, table.columns))))
    return _only(table, sorted([*first, *_by_importance(table.columns, first)][:most]))


def _by_importance(columns: Sequence[Column], first: range) -> list[int]:
    """The places of the columns of values, the most important ones first."""

    def rank(place: int) -> int:
        key = _key(columns[place])
        return BY_IMPORTANCE.index(key) if key in BY_IMPORTANCE else len(BY_IMPORTANCE)

    return sorted((place for place in range(len(columns)) if place not in first), key=rank)


def _key(column: Column) -> tuple[str, str]:
    return column.name, column.display.unit


def _most_common(rows: Sequence[Row], axis: str) -> str:
    return Counter(row.axes.get(axis, DEFAULT_OPTION) for row in rows).most_common(1)[0][0]


def _unusual(row: Row, usual: dict[str, str]) -> Value:
    values = {axis: row.axes.get(axis, DEFAULT_OPTION) for axis in usual}
    named = [f"{axis} {value}" for axis, value in values.items() if value and value != usual[axis]]
    return text_value(", ".join(named)) if named else Value()


def _only(table: Table, places: Sequence[int]) -> Table:
    lines = (tuple(line[place] for place in places) for line in table.lines)
    return Table(tuple(table.columns[place] for place in places), tuple(lines))


def failed_rows(tables: Sequence[MainTable]) -> dict[str, list[str]]:
    """What failed, to the rows in which it did: ``{"OOM at batch 32": ["vit_huge", "vit_large, fp32"]}``."""
    found: dict[str, list[str]] = {}
    for one in tables:
        where = [f"{one.device} {one.image_size} px"] if len(tables) > 1 else []
        words = [place for place, column in enumerate(one.left_out.columns) if column.is_text]
        for line in one.left_out.lines:
            *names, status = (line[place].text or "" for place in words)
            if status != "ok":
                found.setdefault(status, []).append(", ".join(filter(None, [*names, *where])))
    return found

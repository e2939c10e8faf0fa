"""The machine's roof, and what share of it the cells of a run reach, as tables for a terminal."""

from __future__ import annotations

from vitbench.analysis.roofline import MOST_SPREAD, Ceiling, MachineRoof
from vitbench.core.records import Record
from vitbench.reports.markdown.tables import paragraph_text, table_text
from vitbench.reports.model.columns import PERCENT_OF_ROOF, WHOLE, bound_value, share_value
from vitbench.reports.model.roof import CellRoof, Roof, machine_name
from vitbench.reports.model.tables import Column, Display, Table, Value, number_value, text_value
from vitbench.reports.value_text import marks_text

_SPREAD = Column(name="spread", display=Display("%", 100, "tenths"))
_ROUNDS = Column(name="rounds", display=WHOLE)
#: Characters of an operator's name, so that a line fits a terminal.
_LONGEST = 16


def machine_text(roof: MachineRoof) -> str:
    """Attainable compute by dtype; bandwidth by working set, with the intensity from which compute bounds."""
    compute = Table(
        (
            Column(name="dtype"),
            Column(name="attainable compute", display=Display("GFLOP/s", 1e-9)),
            _SPREAD,
            _ROUNDS,
            Column(name="n of the products", display=WHOLE),
        ),
        tuple(
            (text_value(dtype), *_measured(one), number_value(one.at if one.value else None))
            for dtype, one in roof.compute.items()
        ),
    )
    ridges = [Column(name=f"ridge {dtype}", display=Display("FLOP/byte")) for dtype in roof.compute]
    bandwidth = Table(
        (
            Column(name="working set", display=Display("MB", 1e-6)),
            Column(name="bandwidth", display=Display("GB/s", 1e-9)),
            _SPREAD,
            _ROUNDS,
            *ridges,
        ),
        tuple(
            (number_value(one.at), *_measured(one), *(_ridge(top, one) for top in roof.compute.values()))
            for one in roof.bandwidth
        ),
    )
    dispatch = roof.dispatch.value
    took = "unknown" if dispatch is None else f"at least {1e6 * dispatch:.3g} us"
    reasons: dict[str, list[str]] = {}
    for name, reason in roof.refused.items():
        reasons.setdefault(reason, []).append(name)
    refused = [f"Refused: {', '.join(names)}: {reason}." for reason, names in reasons.items()]
    heading = f"## Roof of {machine_name(roof)}, torch {roof.torch}"
    return "\n\n".join(
        [heading, table_text(compute), table_text(bandwidth), f"Dispatch of an operator: {took}.", *refused]
    )


def cells_text(roof: Roof) -> str:
    """One line a cell of the roof's records, by descending share; then why others have none."""
    known: list[tuple[Record, CellRoof]] = []
    reasons: dict[str, list[str]] = {}
    for cell_id, record in roof.records.items():
        if (found := roof.of(cell_id)) is not None:
            known.append((record, found))
        elif reason := roof.unavailable(cell_id):
            reasons.setdefault(reason, []).append(record.cell.label)
    columns = (
        Column(name="cell"),
        Column(name="% of roof", display=PERCENT_OF_ROOF),
        Column(name="bound by"),
        Column(name="longest"),
    )
    several = len(roof.machines) > 1
    lines = [
        (
            text_value(f"{record.cell.label}, {record.cell.threads} threads" if several else record.cell.label),
            share_value(found, record),
            bound_value(found, record),
            text_value(_most(found)),
        )
        for record, found in sorted(known, key=lambda pair: -pair[1].share)
    ]
    shown = Table(columns, tuple(lines))
    parts = [table_text(shown), *map(paragraph_text, marks_text(shown))] if known else []
    if any(found.share > 1 + MOST_SPREAD for _, found in known):
        parts.append(
            f"The roof is too low for shares above {100 * (1 + MOST_SPREAD):.0f} %. Measure it on a quiet machine."
        )
    for reason, cells in reasons.items():
        named = f"{', '.join(cells[:3])}{', ...' if len(cells) > 3 else ''}"
        parts.append(f"No share of {len(cells)} cell{'s' if len(cells) > 1 else ''} ({named}): {reason}.")
    return "\n\n".join(parts)


def _measured(one: Ceiling) -> tuple[Value, Value, Value]:
    """Value, spread and rounds; a refused value is a word."""
    shown = Value(text="refused") if one.value is None else number_value(one.value)
    return shown, number_value(one.spread), number_value(one.rounds)


def _ridge(compute: Ceiling, bandwidth: Ceiling) -> Value:
    return number_value(compute.value / bandwidth.value if compute.value and bandwidth.value else None)


def _most(found: CellRoof) -> str:
    """``addmm 71 %``: the operator with most of the roof's time."""
    total = sum(one.roof_s for one in found.operators)
    named = (f"{one.name[:_LONGEST]} {100 * one.roof_s / total:.0f} %" for one in found.operators if one.roof_s)
    return next(named, "")

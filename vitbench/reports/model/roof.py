"""``roofline.json`` of a run folder: the machine's roof, and what share of it each timed cell reaches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from vitbench.analysis.roof_shares import TIMED, Bound, OperatorShare, RoofTime
from vitbench.analysis.roofline import METHOD, MachineRoof
from vitbench.core import run_folder as store
from vitbench.core.errors import RunFolderError
from vitbench.core.files import read_json
from vitbench.core.records import Record
from vitbench.core.validation import Count, parse
from vitbench.reports.model.values import value_of

#: Of ``roofline.json``. 1: first version.
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class RoofedCell:
    """A cell as the file has it: its time at the roof, or why that is ``unavailable``. ``environment``: the hash of the
    environment that cell and roof were measured in.
    """

    environment: str
    time: RoofTime | None
    unavailable: str = ""


class RooflineFile(TypedDict):
    """The content of ``roofline.json``. ``cells`` by id."""

    schema: Count
    method: str
    roofs: list[MachineRoof]
    cells: dict[str, RoofedCell]


@dataclass(frozen=True, kw_only=True)
class CellRoof:
    """The ``share`` of the roof that a cell reaches: the roof's time over the measured one. Its interval (``low``,
    ``high``) is that of the measured time, without the roof's own error. ``bound``: what bounds it, None where that is
    unknown. ``operators`` by descending time at the roof. ``left_out``: the share is a lower bound, without the FLOPs
    of these.
    """

    share: float
    low: float | None
    high: float | None
    bound: Bound | None
    measured_s: float
    operators: tuple[OperatorShare, ...]
    left_out: str = ""


@dataclass(frozen=True)
class Roof:
    """The roof of one run, and the ``method`` of the machines' values. A cell that was measured again in another
    environment has none.
    """

    method: str
    machines: Sequence[MachineRoof]
    cells: Mapping[str, RoofedCell]
    records: Mapping[str, Record] = field(repr=False)

    def of(self, cell_id: str) -> CellRoof | None:
        """The cell's share; None where its time at the roof, or its measured time, is unavailable."""
        found, record = self.cells.get(cell_id), self.records.get(cell_id)
        if found is None or found.time is None or record is None or record.environment != found.environment:
            return None
        measured, time = value_of(record, TIMED[record.cell.mode]).estimate_between_runs, found.time
        if measured is None or measured.value <= 0:
            return None
        return CellRoof(
            share=time.roof_s / measured.value,
            low=time.roof_s / measured.high if measured.high else None,
            high=time.roof_s / measured.low if measured.low else None,
            bound=time.bound(measured.value),
            measured_s=measured.value,
            operators=time.operators,
            left_out=time.left_out,
        )

    def unavailable(self, cell_id: str) -> str:
        """Why a cell has no share; empty if it has one, or if the roof says nothing of it."""
        return self.cells[cell_id].unavailable if cell_id in self.cells else ""


def machine_name(roof: MachineRoof) -> str:
    """``cpu, 2 threads``."""
    return f"{roof.device}, {roof.threads} thread{'s' if roof.threads > 1 else ''}"


def shares_of(roof: Roof) -> list[dict[str, Any]]:
    """Each cell of the file with its share, as JSON: its id, its fields, and those of CellRoof or why it has none."""
    found = []
    for cell_id in roof.cells:
        record, share = roof.records.get(cell_id), roof.of(cell_id)
        if record is not None:
            values = asdict(share) if share else {"unavailable": roof.unavailable(cell_id) or "measured anew since"}
            found.append({"id": cell_id, "cell": asdict(record.cell), **values})
    return found


def roofline_json(roofs: Sequence[MachineRoof], cells: Mapping[str, RoofedCell]) -> str:
    """The text of ``roofline.json``."""
    content = {
        "schema": SCHEMA,
        "method": METHOD,
        "roofs": [asdict(one) for one in roofs],
        "cells": {cell_id: asdict(one) for cell_id, one in cells.items()},
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def read_roof(folder: Path, records: Sequence[Record]) -> Roof | None:
    """The roof of a run folder with these ``records``; None without the file. Raises RunFolderError if it is
    damaged.
    """
    path = folder / store.ROOFLINE
    if not path.is_file():
        return None
    try:
        content = read_json(path, RooflineFile)
        if content["schema"] > SCHEMA:
            raise ValueError(f"schema {content['schema']} is newer than this vitbench reads ({SCHEMA})")
        roofs, cells = parse(content["roofs"], list[MachineRoof]), parse(content["cells"], dict[str, RoofedCell])
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}. Make it readable, or move it away") from error
    except ValueError as error:
        raise RunFolderError(
            f"{path} is damaged ({error}). Make it anew: vitbench roofline {folder}, or move it away"
        ) from error
    return Roof(content["method"], roofs, cells, {record.cell.id: record for record in records})

"""``roofline.json``: round trip, what a damaged one says, and what reports show of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.roofs import machine, refused
from tests.reports.fabricate import cell, full_run, write_run
from tests.reports.paired import paired, section, tables
from vitbench.analysis.roof_shares import Work, roof_time
from vitbench.core.errors import RunFolderError
from vitbench.core.run_folder import ROOFLINE
from vitbench.reports import write_report
from vitbench.reports.markdown.page import render_markdown
from vitbench.reports.markdown.roof import cells_text, machine_text
from vitbench.reports.model.columns import share_value
from vitbench.reports.model.roof import Roof, RoofedCell, roofline_json, shares_of
from vitbench.reports.model.runs import Run, read_runs
from vitbench.reports.table import render_csv

#: A millisecond at the roof of ``machine``, in 500 operators that take a millisecond to dispatch.
WORK = [
    Work(name="addmm", dtype="fp32", calls=50, flops=10**6, bytes=10**4),
    Work(name="gelu", dtype="fp32", calls=450, flops=0, bytes=10**5),
]


def written(folder: Path, run: Run | None = None, **changes: Any) -> Run:
    """A run with its roof, from the disk. ``changes`` replace keys of the file."""
    run = run or full_run()
    write_run(folder, run)
    cells = {
        record.cell.id: RoofedCell(environment="e1", time=roof_time(WORK, machine()))
        for record in run.records
        if not record.cell.tests and record.cell.model != "vit_big"
    }
    compiled = next(record for record in run.records if record.cell.model == "vit_big" and not record.cell.tests)
    cells[compiled.cell.id] = RoofedCell(environment="e1", time=None, unavailable="a compiled cell dispatches nothing")
    content = json.loads(roofline_json([machine()], cells)) | changes
    (folder / ROOFLINE).write_text(json.dumps(content), encoding="utf-8")
    return read_runs([folder])[0]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run = written(tmp_path / "first")
    assert run.roof is not None
    assert run.roof.machines == [machine()]
    record = next(record for record in run.records if record.cell.model == "vit_nano")
    found = run.roof.of(record.cell.id)
    assert found is not None
    expected = roof_time(WORK, machine())
    assert found.operators == expected.operators
    assert found.share == pytest.approx(expected.roof_s / found.measured_s)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.share < found.high


def test_a_cell_measured_again_elsewhere_has_no_share(tmp_path: Path) -> None:
    run = written(tmp_path / "first")
    moved = [dataclasses.replace(record, environment="e2") for record in run.records]
    write_run(tmp_path / "second", dataclasses.replace(run, records=moved))
    (tmp_path / "second" / ROOFLINE).write_bytes((tmp_path / "first" / ROOFLINE).read_bytes())
    (again,) = read_runs([tmp_path / "second"])
    assert again.roof is not None
    assert [again.roof.of(cell_id) for cell_id in again.roof.cells] == [None] * len(again.roof.cells)
    assert {one["unavailable"] for one in shares_of(again.roof)} == {
        "measured anew since",
        "a compiled cell dispatches nothing",
    }


def test_the_share_follows_the_record_that_counts(tmp_path: Path) -> None:
    """A cell that was measured again takes its new time; its time at the roof stays."""
    slow, fast = (written(tmp_path / name, full_run(speed=speed)).roof for name, speed in (("a", 1.0), ("b", 2.0)))
    assert slow is not None
    assert fast is not None
    for cell_id, roofed in slow.cells.items():
        if roofed.time is not None and slow.records[cell_id].cell.mode == "infer":
            one, other = slow.of(cell_id), fast.of(cell_id)
            assert one is not None
            assert other is not None
            assert other.share == pytest.approx(2 * one.share)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"schema": "1"},
        {"method": None},
        {"roofs": [{}]},
        {"roofs": {}},
        {"cells": []},
        {"cells": {"x": {"environment": "e1", "time": {"compute_s": -1}}}},
    ],
)
def test_a_damaged_file_is_one_line_with_the_way_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(RunFolderError, match=r"roofline.json is damaged \(.*\). Make it anew: vitbench roofline "):
        written(tmp_path / "first", **changes)


def test_reports_without_the_file_are_as_before(tmp_path: Path) -> None:
    (bare,) = read_runs([write_run(tmp_path / "first", full_run())])
    with_roof = written(tmp_path / "other" / "first")
    assert "roof" not in render_markdown([bare])
    assert "roof" not in render_csv([bare])
    assert "% of roof" in render_markdown([with_roof])
    texts, with_texts = (
        [line.partition(" % of roof: ")[0] for line in render_markdown([run]).splitlines() if line[:1] != "|"]
        for run in (bare, with_roof)
    )
    assert with_texts[-3].startswith("% of roof: the roof of cpu, 2 threads (100 GFLOP/s in fp32, ")
    assert with_texts[:-4] + with_texts[-2:] == texts


def test_a_report_with_a_roof(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    run = written(tmp_path / "first")
    details = section(render_markdown([run]), "Details")
    golden("roof.md", details)
    (lines,) = [table for table in tables(details) if "% of roof b1" in table[0]]
    assert {line["model"]: line["bound by b1"] for line in lines}["vit_big"] == "unsupported"
    write_report([tmp_path / "first"], tmp_path / "out")
    header = (tmp_path / "out" / "report.csv").read_text().splitlines()[0].split(",")
    assert {"latency_of_roof", "latency_of_roof_low", "latency_bound_by", "training_step_of_roof"} <= set(header)


def test_the_terminal_shows_the_machine_and_each_cell(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    run = written(tmp_path / "first")
    assert run.roof is not None
    part = machine(compute={"fp32": machine().compute["fp32"], "bf16": refused()}, dispatch=refused())
    golden("roofline.txt", f"{machine_text(part)}\n\n{cells_text(run.roof)}\n")


def test_a_share_has_the_marks_of_the_measured_time() -> None:
    """One process has no quiet turns of its own: all turns count."""
    record = paired(cell(), [1.0])
    time = dataclasses.replace(roof_time(WORK, machine()), left_out="mine::op x1")
    roof = Roof("", [], {record.cell.id: RoofedCell(environment="e1", time=time)}, {record.cell.id: record})
    found = roof.of(record.cell.id)
    assert found is not None
    value = share_value(found, record)
    assert (value.marks, value.reason) == (("all turns", "lower bound"), "mine::op x1")


def test_cells_of_several_machines_name_their_threads(tmp_path: Path) -> None:
    roof = written(tmp_path / "first").roof
    assert roof is not None
    assert "threads" not in cells_text(roof)
    both = dataclasses.replace(roof, machines=[machine(), machine(threads=1)])
    assert "vit_nano 32px b1 cpu fp32 infer, 2 threads" in cells_text(both)


def test_shares_far_above_the_roof_say_that_it_is_too_low(tmp_path: Path) -> None:
    fast, slow = (written(tmp_path / name, full_run(speed=speed)).roof for name, speed in (("a", 100.0), ("b", 1.0)))
    assert fast is not None
    assert slow is not None
    assert "The roof is too low for shares above 110 %" in cells_text(fast)
    assert "The roof is too low" not in cells_text(slow)


def test_a_refused_value_is_never_a_number() -> None:
    everything = machine(
        compute={"fp32": refused(512)}, bandwidth=(refused(10**6),), dispatch=refused()
    )  # fmt: skip
    text = machine_text(everything)
    for table in tables(text):
        for line in table:
            shown = line.get("attainable compute (GFLOP/s)") or line["bandwidth (GB/s)"]
            assert shown == "refused"
    assert text.endswith("Refused: fp32, 1 MB triad, dispatch: its rounds spread by 14 % (at most 10 %).")

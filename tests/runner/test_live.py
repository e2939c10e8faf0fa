"""The table and the line that a terminal shows during a run."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live

from tests.hostile.asking import ESCAPES, HOSTILE
from tests.reports.fabricate import cell, failed, infer, train_step, trained, training_cell
from vitbench.core.records import Record
from vitbench.runner import live
from vitbench.runner.live import LiveProgress, finished_row, finished_table, result_text
from vitbench.runner.time_estimates import Rates, TimeEstimates
from vitbench.suites import load_suite

LONG = "timm:" + "vit_giant_patch14_reg4_" * 9
RECORDS = [
    infer(cell()),
    infer(cell(LONG, batch=32, attention="explicit")),
    infer(cell("视觉变换器" * 8)),
    failed(cell("vit_big", batch=256), "oom", "out_of_memory", f"the allocator asked for 12 GB {LONG}"),
    train_step(cell(batch=32, mode="train")),
    trained(training_cell("vit_micro"), 288),
]


def shown(records: list[Record], width: int, before: int = 0) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as printed:
        console.print(finished_table([finished_row(record) for record in records], before, width))
    return printed.get()


@pytest.mark.parametrize("width", [100, 60])
def test_the_table_fits_the_terminal_with_one_line_a_cell(width: int) -> None:
    lines = shown(RECORDS, width).splitlines()
    assert len(lines) == 1 + len(RECORDS)
    assert max(map(cell_len, lines)) <= width
    assert ("conditions" in lines[0]) is (width == 100)
    for line, record in zip(lines[1:], RECORDS, strict=True):
        assert ("OOM" if record.status == "oom" else "ok") in line
        assert line.rstrip().endswith("4.5")


def test_a_cell_is_known_by_what_it_has() -> None:
    oom = failed(cell(), "oom", "out_of_memory")
    found = [result_text(record) for record in (*RECORDS[::4], RECORDS[5], oom)]
    assert found == ["latency 5.57 ms", "training step 389 ms", "accuracy 80.0 %", "out_of_memory"]
    counted = replace(RECORDS[0], measurements=RECORDS[0].measurements[:2])
    assert result_text(counted) == "params 1.213 M"
    assert result_text(replace(RECORDS[0], measurements=())) == ""


def test_how_many_cells_came_before_is_said() -> None:
    assert shown(RECORDS[:2], 100, before=10).splitlines()[0].strip() == "the last 2 of 12 finished"


def test_names_are_texts() -> None:
    name = HOSTILE.replace("\udcff", "")
    text = shown([failed(cell(name), "error", "exception", name)], 1000)
    assert not ESCAPES.search(text.replace("\n", ""))
    assert "[bold red]z[/] :smile:" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_run_ends_with_the_line_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    cells = [cell(batch=batch) for batch in range(1, 13)]
    estimates = TimeEstimates(load_suite("smoke"), cells, None, {one.id: Rates(1e9, 1e10) for one in cells})
    progress = LiveProgress()
    with progress.running(tmp_path, cells, estimates, 0):
        for one in cells:
            progress.cell_done(infer(one))
        progress._draw()
        drawn = stream.getvalue()
    assert "the last 8 of 12 finished" in drawn
    assert "12/12, " in drawn
    assert " vit_micro  " not in stream.getvalue()[len(drawn) :]


def test_nothing_is_drawn_while_a_turn_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now, drawn = [100.0], []
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0]))
    progress = LiveProgress()
    progress._live = cast(Live, SimpleNamespace(refresh=lambda: drawn.append(now[0])))

    def let_pass(seconds: float) -> None:
        """What the thread that redraws does in this time."""
        waits = iter([False] * round(seconds / live._REDRAW_S) + [True])
        progress._redraw_until(cast("live.threading.Event", SimpleNamespace(wait=lambda seconds: next(waits))))
        now[0] += seconds

    let_pass(2.0)
    assert len(drawn) == 4
    for _ in range(20):  # turns of 0.1 s
        progress.between_turns()
        let_pass(0.1)
    assert drawn[4:] == pytest.approx([102.0, 102.6, 103.2, 103.8])
    let_pass(60.0)  # a turn of a slow cell
    assert len(drawn) == 8
    with progress.waiting("other programs"):
        let_pass(1.0)
        assert len(drawn) == 10
    let_pass(60.0)
    assert len(drawn) == 10
    progress.round_done({}, {})
    let_pass(1.0)
    assert len(drawn) == 12

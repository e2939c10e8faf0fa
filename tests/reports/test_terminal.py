"""What a terminal shows of runs: it fits, it is no Markdown, and names are texts."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from rich.cells import cell_len

from tests.hostile.asking import ESCAPES, HOSTILE
from tests.reports.fabricate import cell, failed, full_run, infer, training_cell
from tests.reports.test_markdown import failing_run, varying_run
from vitbench.reports.model.main_tables import MOST_COLUMNS, main_tables, narrow
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.terminal import render_terminal


@pytest.mark.parametrize("width", [60, 100, 160])
def test_every_line_fits_but_those_with_a_command(width: int) -> None:
    name = "timm:" + "vit_giant_patch14_reg4_" * 8
    hostile = Run(name="r", records=[infer(cell(name)), failed(cell("视觉" * 90), "error", "exception", name)])
    for run in (full_run(), failing_run(), varying_run(), hostile):
        lines = render_terminal([run], width).splitlines()
        assert max(cell_len(line) for line in lines if "`vitbench " not in line) <= width


def test_the_summary_of_a_run(golden: Callable[[str, str], None]) -> None:
    golden("terminal.txt", render_terminal([full_run()], 100) + "\n")
    golden("terminal_failures_60.txt", render_terminal([failing_run()], 60) + "\n")


def test_names_and_messages_are_texts() -> None:
    name = f"[bold red]z :smile: {HOSTILE}"
    run = Run(name=name, records=[infer(cell(name)), failed(training_cell(name), "error", name, name)])
    for styled in (False, True):
        text = re.sub(r"\x1b\[[0-9;]*m", "", render_terminal([run, run], 1000, styled=styled))
        assert not ESCAPES.search(text.replace("\n", ""))
        assert "[bold red]z :smile:" in text


def test_styles_are_for_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    styled = render_terminal([failing_run()], 100, styled=True)
    assert "\x1b[1;31mOOM" in styled
    assert "\x1b" not in render_terminal([failing_run()], 100)


def test_a_narrow_table_keeps_names_and_what_is_compared_first() -> None:
    (table,) = main_tables(build_rows([full_run()]), {})
    assert [column.name for column in narrow(table.shown, 3).columns] == ["model", "latency", "accuracy"]
    assert narrow(table.shown, MOST_COLUMNS) == table.shown


def test_of_many_lines_a_screen_is_shown() -> None:
    text = render_terminal([Run(name="r", records=[infer(cell(f"vit_{n:03}")) for n in range(100)])], 100)
    assert sum(line.startswith("vit_") for line in text.splitlines()) == 40
    assert "In the report as well: 60 more lines" in text


def test_a_run_without_cells_says_so() -> None:
    assert render_terminal([Run(name="r", records=[])], 80) == "No cell has been measured yet."

"""A stopped benchmark continues: what ended well is kept, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kept_runs import run_program


def program(folder: Path, ending: str = "") -> list[str]:
    """Makes the folder and counts in a file beside it how often it ran."""
    count = folder.with_suffix(".count")
    code = f"import os; os.mkdir({str(folder)!r}); open({str(count)!r}, 'a').write('x'); print('made'); {ending}"
    return [sys.executable, "-c", code]


def test_a_program_that_ended_well_runs_once_and_its_seconds_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    seconds = run_program(folder, program(folder))
    assert run_program(folder, program(folder)) == pytest.approx(seconds, abs=0.001)
    assert folder.with_suffix(".count").read_text() == "x"
    assert folder.with_name("first.log").read_text() == "made\n"


def test_a_program_that_failed_is_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(subprocess.CalledProcessError):
        run_program(folder, program(folder, "raise SystemExit(3)"))
    run_program(folder, program(folder))
    assert folder.with_suffix(".count").read_text() == "xx"

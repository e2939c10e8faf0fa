"""``vitbench plot``: the files that it writes, and the one line that each mistake gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reports.fabricate import full_run, write_run
from vitbench.cli import run_command


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", full_run())


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(["plot", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.integration
@pytest.mark.parametrize("name", ["a.svg", "a.PNG", "a.pdf"])
def test_the_suffix_says_the_format(run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / name
    code, printed, errors = ask(capsys, "pareto", str(run), "--x", "params", "-o", str(out))
    assert (code, errors) == (0, "")
    assert printed == f"Wrote {out}\n"
    assert out.read_bytes()[:4] in (b"<?xm", b"\x89PNG", b"%PDF")


@pytest.mark.parametrize(
    ("kind", "folder", "out", "words"),
    [
        ("pareto", "run", "a.gif", "does not end with .svg, .png, .pdf"),
        ("pareto", "run", "missing/a.svg", "there is no folder"),
        ("limits", "run", "a.svg", "No search for the largest batch"),
        ("pareto", ".", "a.svg", "records.jsonl"),
        ("pie", "run", "a.svg", "'pie' is not one of pareto, "),
    ],
)
def test_each_mistake_gets_one_line(
    run: Path, kind: str, folder: str, out: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, errors = ask(capsys, kind, str(run.parent / folder), "-o", str(run.parent / out))
    assert (code, printed) == (2, "")
    assert words in errors
    assert len(errors.splitlines()) == 1
    assert not (run.parent / out).exists()


def test_a_plot_needs_a_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = ask(capsys, "pareto", str(run))
    assert code == 2
    assert "--out" in errors

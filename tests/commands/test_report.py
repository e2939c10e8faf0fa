"""``vitbench report``: which files it writes, what it prints, and the one line that each mistake gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hostile.asking import ask, one_error
from tests.reports.fabricate import cell, failed, full_run, infer, write_run
from vitbench import reports
from vitbench.reports import FORMATS
from vitbench.reports.model.runs import Run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = [infer(cell(), n=100), failed(cell(batch=32), "oom", "out_of_memory", "asked for 12 GB")]
    return write_run(tmp_path / "run", Run(name="run", records=records))


def test_all_files_are_written_and_a_summary_is_printed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, errors = ask(capsys, "report", folder)
    assert (code, errors) == (0, "")
    assert out.splitlines()[-1] == f"Wrote {folder / 'report.html'}"
    assert out.startswith("In short\n")
    assert {"report.csv", "report.md", "report.html"} <= {path.name for path in folder.iterdir()}
    assert "OOM vit_micro, cpu, 32 px, inference b32" in out
    assert "|" not in out  # no Markdown, no style
    assert "\x1b" not in out


@pytest.mark.parametrize("format", FORMATS)
def test_one_format_goes_to_a_file_or_is_printed(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, format: str
) -> None:
    before = sorted(folder.iterdir())
    file = tmp_path / "file"
    assert ask(capsys, "report", folder, "--format", format, "--out", file) == (0, f"Wrote {file}\n", "")
    content = file.read_text(encoding="utf-8")
    assert "vit_micro" in content.replace("\\_", "_")  # LaTeX escapes it
    assert ask(capsys, "report", folder, "--format", format, "--out", "-")[1] == content
    assert sorted(folder.iterdir()) == before
    code, out, _ = ask(capsys, "report", folder, "--format", format)
    assert code == 0
    if format == "html":
        assert out == f"Wrote {folder / 'report.html'}\n"
        assert (folder / "report.html").read_text(encoding="utf-8") == content
    else:
        assert out == content


def test_html_is_short_for_format_and_out(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    second = write_run(tmp_path / "second", full_run())
    page = tmp_path / "page.html"
    assert ask(capsys, "report", folder, second, "--html", page) == (0, f"Wrote {page}\n", "")
    assert "vit_nano" in page.read_text(encoding="utf-8")
    assert not (folder / "report.md").exists()


MISTAKES = {
    "--format pdf": "Option --format: 'pdf' is not one of html, markdown, latex, csv, json, terminal",
    "--format html": "The page of several runs needs a file",
    "--html .": "Option --out: '.' is not a file",
    "--html nowhere/page.html": "there is no folder 'nowhere'",
    "--html page.html --format csv": "leave out --format and --out",
    "--html page.html --out both": "leave out --format and --out",
    "--format csv --out run": "Option --out: 'run' is not a file that can be written: give a file's name",
    "--format csv --out nowhere/x.csv": "there is no folder 'nowhere'",
    "--out run/records.jsonl": "Choose another folder with --out",
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.items())
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.chdir(folder.parent)
    before = sorted(folder.parent.rglob("*"))
    code, out, errors = ask(capsys, "report", "run", "run", *words.split())
    assert (code, out) == (2, "")
    assert message in one_error(errors)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    folder.chmod(0o500)
    code, _, errors = ask(capsys, "report", folder)
    assert code == 2
    assert f"Cannot write into {folder}: Permission denied. Choose another folder with --out" in one_error(errors)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, _, errors = ask(capsys, "report", folder, "--format", "csv", "--out", "/dev/full")
    assert code == 1
    assert "/dev/full" in one_error(errors)


def test_a_mistake_of_ours_in_one_file_costs_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(runs: object) -> str:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("vitbench.reports.markdown.page.render_markdown", fail)
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        reports.write_report([folder], folder)
    (note,) = caught.value.__notes__
    assert note.startswith("Rendering report.md failed in vitbench itself. The records are complete. Written: ")
    assert (folder / "report.csv").is_file()
    assert (folder / "report.html").is_file()
    assert not (folder / "report.md").exists()

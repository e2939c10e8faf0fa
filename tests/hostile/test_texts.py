"""Texts of strangers in terminals, tables, spreadsheets and pictures: shown, and not obeyed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from tests.hostile.asking import ESCAPES, HOSTILE, MODEL, ask, one_error
from tests.launching import SharedLauncher
from tests.reports.fabricate import cell, failed, full_run, infer, trained, training_cell, write_run
from vitbench.cli import run_command
from vitbench.core import run_folder as store
from vitbench.core.records import Record
from vitbench.core.text import csv_text, one_line, printable_lines
from vitbench.reports.format import cell_text, without_paths
from vitbench.reports.markdown.page import render_markdown
from vitbench.reports.model.failures import merge_numbers
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tradeoffs import report_tradeoffs
from vitbench.reports.plots.curves import write_curves
from vitbench.reports.plots.pareto import draw_tradeoff
from vitbench.reports.table import render_csv
from vitbench.reports.terminal import render_terminal
from vitbench.reports.training import history_csv, sweep_csv, sweep_markdown
from vitbench.runner.live import LiveProgress
from vitbench.runner.progress import PlainProgress
from vitbench.runner.time_estimates import Rates, TimeEstimates
from vitbench.suites import load_suite

pytestmark = pytest.mark.integration


def raises(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    """A model that counts well on meta and says HOSTILE on a device."""

    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, num_classes)

        def forward(self, images: Tensor) -> Tensor:
            if images.device.type != "meta":
                print(HOSTILE.replace("\udcff", ""), file=sys.stderr)
                raise RuntimeError(HOSTILE)
            return self.head(images.mean(dim=(2, 3)))

    return Raises()


def cells_of_table(line: str) -> int:
    """How many cells a line of a Markdown table has, by its pipes that are not escaped."""
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) - 1


def assert_harmless_markdown(page: str) -> None:
    assert not ESCAPES.search(page.replace("\n", "").replace("\t", "")), ESCAPES.findall(page)
    plain = re.sub(r"`[^`\n]*`", "", page)  # what stands between backticks is shown as it is
    assert not re.search(r"<(?!br|/?details>|/?summary>)[a-z/!]", plain)
    assert "](http" not in plain
    assert "](javascript" not in plain
    assert not re.search(r"(?<!\\)\$", plain)
    width = 0
    for line in page.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        width = width or cells_of_table(line)
        assert cells_of_table(line) == width, line


def assert_harmless_csv(text: str) -> list[list[str]]:
    """No cell is carried out by a spreadsheet, or by a terminal that shows the file."""
    assert not ESCAPES.search(text.replace("\n", ""))
    lines = list(csv.reader(io.StringIO(text)))
    for line in lines:
        for one in line:
            number = re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", one)
            assert number or not one.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r")), one
    assert len({len(line) for line in lines}) == 1
    return lines


def test_a_text_becomes_one_harmless_cell() -> None:
    line = cell_text(HOSTILE, 2000)
    assert_harmless_markdown(f"| a | {line} |\n| a | b |")
    assert "\n" not in line
    for kept in ("cmd", "script", "owned", "rm -rf", "gnp.exe", "z"):
        assert kept in line
    assert (
        cell_text("vit_base16 a_b [1.0, 2.0] ~ 3 % (b32); image/s") == "vit_base16 a_b [1.0, 2.0] ~ 3 % (b32); image/s"
    )
    assert len(cell_text("\x1b" * 10_000_000)) < 1000


@given(st.text(st.characters() | st.sampled_from("|\\`<>[]()!*$=+-@\t\r\n\x1b\u202e"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_whatever_a_text_is_a_cell_is_harmless(text: str) -> None:
    assert_harmless_markdown(f"| a | {cell_text(text)} |\n| a | b |")
    assert_harmless_csv(f'"{csv_text(text).replace(chr(34), chr(34) * 2)}"\n')


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd", "'+cmd"),
        ("-cmd|' /C calc'!A0", "'-cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1+1", "'  =1+1"),
        ("\t=1", r"'\t=1"),
        ("\r=1", r"'\r=1"),
        ("\n=1", r"\n=1"),
        ("＝1+1", "'＝1+1"),
        ("-5", "-5"),
        ("-1.5e-3", "-1.5e-3"),
        ("+3", "+3"),
        ("-1+cmd", "'-1+cmd"),
        ("-", "'-"),
        ("vit_basic", "vit_basic"),
        ("a=b", "a=b"),
        ("", ""),
        ("\x1b[2J", r"\x1b[2J"),
    ],
)
def test_a_text_is_no_formula(text: str, shown: str) -> None:
    assert csv_text(text) == shown


def test_long_texts_keep_their_beginning_and_their_way_out() -> None:
    line = one_line("Unknown model '" + "\x1b" * 1_000_000 + "'. See: vitbench list models")
    assert line.startswith(r"Unknown model '\x1b\x1b")
    assert line.endswith("'. See: vitbench list models")
    assert len(line) <= 2000
    assert one_line("a\nb") == r"a\nb"
    assert printable_lines("a\x1b\nb\r") == "a\\x1b\nb\\r"


@pytest.mark.usefixtures("quickly")
def test_texts_made_to_be_slow_are_not() -> None:
    for text in (
        "'/" + "a/" * 200_000,
        "'/" * 200_000,
        '"/' + "a" * 1_000_000,
        "~" + "a" * 1_000_000,
        "/home/" * 200_000,
    ):
        without_paths(text)
        cell_text(text)
    assert merge_numbers(["1" * 10_000 + " images", "2 images"]) == [f"2/{'1' * 10_000} images"]


def hostile_run() -> Run:
    """A run whose every text is hostile."""
    run = full_run(name=HOSTILE)
    records: list[Record] = []
    for number, record in enumerate(run.records):
        model = f"module:{HOSTILE}:{record.cell.model}"
        changes: dict[str, Any] = {"model": model}
        if record.cell.model == "vit_nano":
            changes["options"] = ((HOSTILE, f"={HOSTILE}"),)
        if record.cell.data:
            changes |= {"data": HOSTILE, "weights": f"train:{HOSTILE} {number % 2}", "recipe_hash": HOSTILE}
        measurements = tuple(replace(one, method=HOSTILE, detail=HOSTILE) for one in record.measurements)
        records.append(replace(record, cell=replace(record.cell, **changes), measurements=measurements))
    bad = cell(HOSTILE, 8, device=HOSTILE, attention=HOSTILE, dtype=HOSTILE)
    records.append(failed(bad, "error", HOSTILE, HOSTILE, stderr_tail=HOSTILE))
    extra = replace(records[0].measurements[0], metric=f"-{HOSTILE}", unit=HOSTILE)
    records.append(replace(infer(cell("vit_nano", 4)), measurements=(*infer(cell("vit_nano", 4)).measurements, extra)))
    records.append(
        trained(training_cell("vit_nano", weights="train:=b", recipe_hash="=c"), 100, f1=(0.1,) * 10, names=HOSTILE)
    )
    environment = json.loads(json.dumps(run.environment))
    environment["environments"]["e1"]["system"] |= {"cpu": HOSTILE, "os": HOSTILE, "python": HOSTILE}
    environment["environments"]["e1"]["libraries"]["versions"]["torch"] = HOSTILE
    environment["environments"]["e1"]["devices"]["cuda:0"]["name"] = HOSTILE
    environment["sessions"][0] |= {"command_line": HOSTILE, "vitbench": HOSTILE, "commit": HOSTILE}
    return replace(run, records=records, environment=environment)


def test_a_report_of_hostile_texts_is_a_report() -> None:
    run = hostile_run()
    page = render_markdown([run])
    assert_harmless_markdown(page)
    for section in (
        "Failures, each with its cause",
        "Methods",
        "Trainings in detail",
        "Details",
        "FLOPs by other counters",
    ):
        assert f"\n<summary>{section}</summary>\n" in page
    for width in (60, 100):
        assert not ESCAPES.search(render_terminal([run], width).replace("\n", ""))


def test_its_csv_is_read_back_and_holds_no_formula() -> None:
    lines = assert_harmless_csv(render_csv([hostile_run()]))
    table = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert {"'-5", "'5"}.isdisjoint(one for row in table for one in row.values())
    assert any(row["run"].startswith("'=cmd|") for row in table)
    assert any(row["model"].startswith("'=cmd|") for row in table)
    latencies = [float(row["latency_ms"]) for row in table if row["latency_ms"]]
    assert len(latencies) > 5
    assert min(latencies) > 0


def test_negative_numbers_stay_numbers() -> None:
    record = infer(cell("vit_nano"))
    change = replace(record.measurements[0], metric="change", unit="1", samples=((-0.25,),))
    text = render_csv([Run(name="r", records=[replace(record, measurements=(*record.measurements, change))])])
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["inference_change"] == "-0.25"


@pytest.mark.filterwarnings("error")
def test_its_pictures_are_drawn_whatever_the_names_are(tmp_path: Path) -> None:
    pictures = report_tradeoffs(build_rows([hostile_run()])).values()
    assert len(pictures) == 2
    for picture in pictures:
        assert_harmless_markdown(cell_text(picture.caption))
        content = draw_tradeoff(picture, ".png")
        with Image.open(io.BytesIO(content)) as drawn:
            assert drawn.size == (1200, 780)
    rows = [
        {"epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.5}
        for epoch in (1, 2)
    ]
    with contextlib.suppress(UserWarning):  # a sign that the font lacks
        write_curves(rows, tmp_path / "curves.png", r"$\frac{$ \$ $x_{")
    assert history_csv([{"epoch": 1, "note": "=1+1", "loss": -0.5}]) == "epoch,note,loss\n1,'=1+1,-0.5\n"


def test_a_sweep_of_hostile_texts_is_harmless() -> None:
    courses = [
        {"name": HOSTILE, "changes": {HOSTILE: HOSTILE, "augment": ["=x"]}, "status": HOSTILE, "detail": HOSTILE},
        {"name": "=2", "changes": {HOSTILE: -3, "augment": None}, "status": "error", "detail": "-a"},
    ]
    from vitbench.reports.training import sweep_lines

    assert_harmless_csv(sweep_csv(sweep_lines(courses)))
    assert_harmless_markdown(sweep_markdown(courses, HOSTILE))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", ["plain", "live"])
def test_progress_shows_texts_and_obeys_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "3000")
    progress = PlainProgress(stream) if kind == "plain" else LiveProgress()
    bad = replace(cell(), model=HOSTILE.replace("\udcff", ""))
    estimates = TimeEstimates(load_suite("smoke"), [bad], None, {bad.id: Rates(1e9, 1e10)})
    with progress.running(tmp_path, [bad], estimates, 0):
        progress.cell_started(bad)
        progress.doing("time 1/5")
        progress.warn(HOSTILE)
        progress.cell_done(failed(bad, "error", "exception", HOSTILE))
        progress.note("end")
    shown = stream.getvalue()
    assert "\x1b[2J" not in shown
    assert not re.search(r"[\x00\x07\x9b\u202e\udcff]", shown)
    assert "[bold red]z[/] :smile:" in shown
    assert r"\x1b[2J" in shown


def test_the_command_line_says_hostile_names_back_as_texts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = "vit\x1b[2J\u202e\x9b"
    for words in (
        ["show", name],
        ["flops", name],
        ["list", name],
        ["list", "models", name],
        ["report", tmp_path / name],
        ["evaluate", name, "--data", "digits", "--weights", "x"],
        ["predict", MODEL, "--weights", tmp_path / name, "x.png"],
        ["train", name],
        ["sweep", name, "--seeds", "0,1"],
        ["claims", "--models", name],
        ["run", "--suite", name],
        ["run", f"--{name}"],
        [name],
    ):
        code, out, errors = ask(capsys, *words)
        assert code == 2, words
        assert not ESCAPES.search(out.replace("\n", ""))
        one_error(errors)


def test_damaged_records_are_told_of_in_one_harmless_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", full_run())
    lines = (folder / "records.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    first["\x1b[2J\n\u202e"] = 1
    deep = '{"schema":1,"cell":' + "[" * 100_000
    infinite = lines[1].replace('"image_size":[32,32]', '"image_size":[Infinity,32]')
    assert infinite != lines[1]
    (folder / "records.jsonl").write_text("\n".join([json.dumps(first), deep, infinite, *lines[2:]]) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "vitbench", "report", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert [line.partition(" ")[0] for line in told] == ["Warning:"] * 3
    assert not ESCAPES.search(done.stderr.replace("\n", "") + done.stdout.replace("\n", ""))


@pytest.fixture(scope="module")
def hostile_folder(
    server: list[SharedLauncher], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, str, str]:
    """A real run of a model that says HOSTILE: its folder, exit code, stdout and stderr."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    words = [
        "run",
        "--models",
        "module:tests.hostile.test_texts:raises",
        "--allow-import",
        "--data",
        "none",
        "--image-sizes",
        "16",
    ]
    words += [
        "--batch-sizes",
        "1",
        "--modes",
        "infer",
        "--threads",
        "1",
        "--devices",
        "cpu",
        "--metrics",
        "params,latency",
    ]
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = run_command([*words, "--out", str(folder)])
    return folder, code, out.getvalue(), errors.getvalue()


def test_what_a_model_says_reaches_the_record_whole(hostile_folder: tuple[Path, int, str, str]) -> None:
    folder, code, _, _ = hostile_folder
    assert code == 1
    (record,) = store.read_records(folder)
    assert record.status == "error"
    for part in ("=cmd|' /C calc'!A0", "\x1b[2J\x1b]0;owned\x07", "<script>alert(1)</script>", "\u202egnp.exe\x9b31m"):
        assert part in record.detail
    assert "<script>" in record.stderr_tail


def test_and_nothing_that_is_made_of_it_does_what_it_says(hostile_folder: tuple[Path, int, str, str]) -> None:
    folder, _, out, errors = hostile_folder
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert_harmless_markdown(page)
    assert "&lt;script&gt;" in page
    assert_harmless_csv((folder / "report.csv").read_text(encoding="utf-8"))
    assert not ESCAPES.search(out.replace("\n", ""))
    assert "<script>" in out  # text, not Markdown
    assert not ESCAPES.search(errors.replace("\n", ""))
    told = [line for line in errors.splitlines() if "cmd|" in line]
    assert len(told) == 1
    assert told[0].startswith("[1/1] module:tests.hostile.test_texts:raises")

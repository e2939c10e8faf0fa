"""What strangers write: suites, names, error texts, checkpoints and pictures that mean harm get a line, and no more."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.launching import SharedLauncher, shared_server
from tests.reports.fabricate import cell, failed, full_run, infer, trained, training_cell, write_run
from tests.training.folders import make_image_folder
from vitbench import runner, store, suites
from vitbench.cli import run_command
from vitbench.errors import DataError, SuiteError, UsageError
from vitbench.models import build_model
from vitbench.models.checkpoints import digest_of, load_checkpoint, save_checkpoint
from vitbench.planning import check_before_loading
from vitbench.prediction import OutputNames
from vitbench.printable import csv_text, one_line, printable_lines
from vitbench.processes import Launcher, make_launcher
from vitbench.progress import LiveProgress, PlainProgress
from vitbench.records import Cell, Record
from vitbench.reports import write_report
from vitbench.reports.format import cell_text, without_paths
from vitbench.reports.markdown import merge_numbers, render_markdown, render_summary
from vitbench.reports.plots import plan_pictures, render_png
from vitbench.reports.rows import build_rows
from vitbench.reports.runs import Run
from vitbench.reports.sweep import sweep_csv, sweep_markdown
from vitbench.reports.table import render_csv
from vitbench.reports.training import history_csv, write_curves
from vitbench.runner import resume_run
from vitbench.suites import check_count, count_cells, expand, load_suite, make_suite
from vitbench.trained import open_trained, read_picture
from vitbench.training.data import describe_data, load_images
from vitbench.training.folder import PictureFile, decode_picture
from vitbench.training.recipes import load_recipe
from vitbench.training.states import load_state
from vitbench.training.subsets import choose_imbalanced
from vitbench.trainings import TrainingRequest
from vitbench.trainings.folder import default_folder

ROOT = Path(__file__).parents[1]
MODEL = "vit_basic_tutorial"
SIZE = 16
#: Orders to a terminal, to a browser, to a spreadsheet, to Markdown, to matplotlib and to rich, and text that reads
#: backwards.
HOSTILE = (
    "=cmd|' /C calc'!A0 \x1b[2J\x1b]0;owned\x07<script>alert(1)</script>|`rm -rf`\n\r\n- not a list\x00 \u202egnp.exe\x9b31m "
    "![x](http://evil/x.png) [y](javascript:alert(1)) $\\frac{$ *b* &lt; [bold red]z[/] :smile: \udcff"
)
ESCAPES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


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


def one_error(errors: str) -> str:
    """The only line that is no note on what is under way."""
    notes = r"Loading torch|Looking for|Trying the weights|Reading the pictures|Counting|\d trainings|Training \d of"
    lines = [line for line in errors.splitlines() if not re.match(notes, line)]
    assert len(lines) == 1, errors
    assert lines[0].startswith("Error: ")
    assert not ESCAPES.search(errors.replace("\n", ""))
    assert len(lines[0]) < 2100
    return lines[0]


@pytest.fixture
def quickly() -> Iterator[None]:
    """What is refused is refused at once."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 5


@pytest.fixture(scope="module")
def server() -> Iterator[list[SharedLauncher]]:
    """Workers that may import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        with shared_server() as launchers:
            yield launchers


@pytest.fixture(scope="module")
def strict_launcher() -> Iterator[Launcher]:
    with make_launcher() as launcher:
        yield launcher


@pytest.fixture
def strict_server(strict_launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that may not import, as they are without --allow-import."""

    def lend(preload: Iterable[str] = (), *, allow_import: bool = False) -> Launcher:
        assert not allow_import
        return SharedLauncher(strict_launcher)

    monkeypatch.setattr(runner, "make_launcher", lend)


def ask(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = run_command([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- suites that ask for too much


def listed(count: int) -> list[int]:
    return list(range(1, count + 1))


def huge(folder: Path, *, seeds: int = 1000, batches: int = 1000, sizes: int = 100, more: str = "") -> Path:
    """A suite of 10 models; by default of 10^9 cells."""
    path = folder / "huge.toml"
    models = json.dumps([f"timm:model_{number}" for number in range(10)])
    path.write_text(
        f"models = {models}\nseeds = {listed(seeds)}\nbatch_sizes = {listed(batches)}\n"
        f'image_sizes = {listed(sizes)}\nmetrics = ["latency"]\n{more}'
    )
    return path


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--quick"]])
@pytest.mark.usefixtures("quickly")
def test_a_billion_cells_are_refused_with_their_count(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, errors = ask(capsys, "run", "--suite", huge(tmp_path), *words)
    assert (code, out) == (2, "")
    assert one_error(errors) == (
        "Error: Suite 'huge' asks for 1,000,000,000 cells (10 models x 1,000 seeds x 100 image_sizes x 1,000 "
        "batch_sizes), more than 10,000: give shorter lists, or --yes to go on all the same"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["huge.toml"]


def test_they_are_refused_before_torch_loads_and_in_little_memory(tmp_path: Path) -> None:
    code = (
        "import pathlib, re, sys, time\n"
        "from vitbench.cli import run_command\n"
        "begin = time.monotonic()\n"
        f"code = run_command(['run', '--suite', {str(huge(tmp_path, seeds=10_000, batches=10_000))!r}])\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]\n"
        "print(code, 'torch' in sys.modules, time.monotonic() - begin, peak)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    status, loaded, seconds, kibibytes = done.stdout.split()
    assert (status, loaded) == ("2", "False")
    assert "asks for 100,000,000,000 cells" in done.stderr
    assert float(seconds) < 4
    assert int(kibibytes) < 250_000


@pytest.mark.usefixtures("quickly")
def test_rules_that_leave_little_are_not_waited_for(tmp_path: Path) -> None:
    rules = "[[exclude]]\nbatch_sizes = 2\n" + "".join(f"[[exclude]]\nmodels = 'timm:model_{n}'\n" for n in range(9))
    suite = load_suite(str(huge(tmp_path, more=rules)))
    with pytest.raises(SuiteError, match=r"1,000,000,000 cells \(.*\) before its \[\[exclude\]\] rules, more than"):
        check_before_loading(suite)


@pytest.mark.usefixtures("quickly")
def test_what_memory_cannot_hold_is_refused_with_yes_as_well(tmp_path: Path) -> None:
    suite = load_suite(str(huge(tmp_path, seeds=10_000, batches=10_000, sizes=1000)))
    with pytest.raises(SuiteError, match=r"1,000,000,000,000 cells .* of free memory do not suffice, also with --yes"):
        check_before_loading(suite, allow_many_cells=True)


def test_ten_thousand_cells_are_asked_for_on_purpose() -> None:
    content = {"name": "x", "models": [MODEL], "metrics": ["latency"], "seeds": list(range(100))}
    check_count(make_suite({**content, "batch_sizes": listed(100)}, "x"))
    with pytest.raises(SuiteError, match="asks for 10,100 cells"):
        check_count(make_suite({**content, "batch_sizes": listed(101)}, "x"))
    check_count(make_suite({**content, "batch_sizes": listed(101)}, "x"), allow_many=True)


@pytest.mark.parametrize(
    "content",
    [
        {"models": [MODEL, "vit_basic"], "image_sizes": [16, 32, 64], "batch_sizes": [1, 2], "modes": ["infer", "train"]},
        {"models": [MODEL], "dtypes": ["fp32", "bf16"], "attention": ["fused", "explicit"], "compile": [False, True]},
        {"models": [MODEL], "modes": ["infer", "train"], "metrics": ["latency"], "threads": [1, 2], "seeds": [0, 1, 2]},
        {"models": [MODEL], "devices": ["cpu", "cuda:0"], "training": {"recipe": ["brief", "modern"]}, "seeds": [3, 4]},
        {"models": [MODEL], "image_sizes": [16, 32], "training": {"image_size": 16}, "metrics": ["accuracy", "latency"]},
        {"models": [MODEL], "batch_sizes": listed(50), "exclude": [{"batch_sizes": listed(49)}]},
    ],
)  # fmt: skip
def test_the_count_is_that_of_the_cells_before_rules(content: dict[str, Any]) -> None:
    suite = make_suite({"name": "x", **content}, "x")
    facts = suites.ModelFacts((16, 16), 10, lambda size: None)
    training = None
    if suite.training is not None:
        recipes = tuple(suites.RecipeFacts(name, name, 8) for name in suite.training.recipe)
        training = suites.TrainingFacts("digits", 10, recipes)
    bare = suite.model_copy(update={"exclude": ()})
    models = dict.fromkeys(suite.models, facts)
    cells = expand(bare, devices=["cpu"], threads=8, models=models, training=training)
    assert count_cells(suite)[0] == len(cells)


def test_yes_goes_on_and_a_dry_run_tells_how_many_are_left(
    server: list[SharedLauncher], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "many.toml"
    path.write_text(
        f'models = ["{MODEL}"]\nimage_sizes = [16]\nmetrics = ["latency"]\nthreads = 1\ndevices = "cpu"\n'
        f"seeds = {listed(101)}\nbatch_sizes = {listed(100)}\n[[exclude]]\nbatch_sizes = {listed(99)}\n"
    )
    code, out, errors = ask(capsys, "run", "--suite", path, "--dry-run")
    assert (code, out) == (2, "")
    assert "10,100 cells" in one_error(errors)
    code, out, _ = ask(capsys, "run", "--suite", path, "--dry-run", "--yes")
    assert code == 0
    assert out.splitlines()[-1].startswith("101 cells, about ")


def test_names_that_patterns_stand_for_are_counted_before_they_are_expanded(
    server: list[SharedLauncher],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suites, "MOST_CELLS", 7)
    words = [
        "run",
        "--models",
        "timm:vit_*",
        "--batch-sizes",
        "1",
        "--metrics",
        "params",
        "--data",
        "none",
        "--modes",
        "infer",
    ]
    code, _, errors = ask(
        capsys, *words, "--seed", "0", "--out", tmp_path / "run", "--threads", "1", "--devices", "cpu"
    )
    assert code == 2
    assert re.search(r"asks for \d{2,} cells \(\d+ models\)", one_error(errors))
    assert not (tmp_path / "run").exists()


def test_a_run_folder_from_elsewhere_is_counted_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(huge(tmp_path), tmp_path / "run" / store.SUITE)
    code, _, errors = ask(capsys, "run", "--resume", tmp_path / "run")
    assert code == 2
    assert "asks for 1,000,000,000 cells" in one_error(errors)


BASIC = f'models = ["{MODEL}"]\n'
ABSURD = {
    "10 MB": ("# " + "x" * 10_000_000, "Suite absurd.toml is too large: 10,000,002 bytes, at most 1,000,000 are read"),
    "lists in lists": ("models = " + "[" * 100_000, "Suite absurd.toml is nested too deeply"),
    "tables in tables": ("models = " + "{a=" * 100_000, "Suite absurd.toml is nested too deeply"),
    "a key of a hundred thousand parts": ("a" + ".a" * 100_000 + " = 1", "Suite absurd.toml is nested too deeply"),
    "a quoted key of parts": ("'a'" + ".'a'" * 100_000 + " = 1", "Suite absurd.toml is nested too deeply"),
    "a million models": ("models = [" + "'a'," * 240_000 + "]", "the list has 240,000 entries: give at most 10,000"),
    "a hundred thousand rules": (BASIC + "[[exclude]]\n" * 80_000, "there are 80,000 rules"),
    "a rule of many patterns": (BASIC + "[[exclude]]\nmodels = [" + "'*'," * 9000 + "]", "1 rules with 9,000 names"),
    "a number of ten thousand digits": (BASIC + "batch_sizes = 1" + "0" * 10_000, "Suite absurd.toml is no valid TOML"),
    "an integer": (BASIC + f"batch_sizes = {10**30}", "key batch_sizes: Input should be less than 2147483648"),
    "a batch": (BASIC + f"batch_sizes = [{10**12}]", "key batch_sizes: Input should be less than 2147483648"),
    "a side": (BASIC + f"image_sizes = {10**9}", "Image size 1000000000 is too large: give sides of at most 65536 px"),
    "two sides": (BASIC + "image_sizes = '16x1000000000'", "is too large: give sides of at most 65536 px"),
    "a side of digits": (BASIC + f"image_sizes = '{'9' * 4000}'", "key image_sizes: Image size '99999"),
    "a side of many digits": (BASIC + f"image_sizes = '{'9' * 5000}'", "is too long: give at most 4,096 characters"),
    "threads": (BASIC + "threads = 1000000", "key threads"),
    "processes": (BASIC + f"[measure]\nprocesses = {10**20}", "key measure.processes"),
    "classes": (BASIC + f"num_classes = {10**15}", "key num_classes"),
    "memory": (BASIC + "memory_limit = '9999999999TiB'", "is more memory than any machine has"),
    "memory of digits": (BASIC + f"memory_limit = '{'9' * 900}GiB'", "is more memory than any machine has"),
    "NaN seconds": (BASIC + "timeout_s = nan", "key timeout_s: Input should be"),
    "infinite seconds": (BASIC + "[measure]\nseconds = inf", "key measure.seconds: Input should be"),
    "minus infinity": (BASIC + "[training]\nepochs = -inf", "key training.epochs: Input should be"),
    "NUL in a name": ('name = "a\\u0000b"\n' + BASIC, r"Suite absurd.toml: 'a\x00b' holds '\x00', which is no sign of a text"),
    "a name of two lines": ('name = "a\\nb"\n' + BASIC, r"holds '\n', which is no sign of a text"),
    "a model of two lines": ('models = ["module:a\\nb:c"]', r"Suite absurd.toml: 'module:a\nb:c' holds '\n'"),
    "an escape in a path": (BASIC + '[training]\ndata = "/a\\u001b[2J"', r"holds '\x1b', which is no sign of a text"),
    "C1 in a device": (BASIC + 'devices = ["cpu\\u009b2J"]', r"holds '\x9b', which is no sign of a text"),
    "a long name": (f'name = "{"a" * 300}"\n' + BASIC, "key name: String should have at most 100 characters"),
    "a name of everything": (f'name = "{"a" * 100_000}"\n' + BASIC, "is too long: give at most 4,096 characters"),
    "a key of everything": ("a" * 900_000 + " = 1", "unknown key 'aaaa"),
    "right to left": ('models = ["vit\\u202eb"]', r"Unknown model 'vit\u202eb'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ABSURD)
@pytest.mark.usefixtures("quickly")
def test_an_absurd_suite_gets_one_line_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text, message = ABSURD[kind]
    (tmp_path / "absurd.toml").write_text(text)
    code, out, errors = ask(capsys, "run", "--suite", "absurd.toml")
    assert (code, out) == (2, ""), errors
    assert message in one_error(errors)
    assert [path.name for path in tmp_path.iterdir()] == ["absurd.toml"]


@pytest.mark.parametrize(
    "name", ["con", "CON", "aux.txt", "nul.", "lpt1.x", "a.", "..", "../x", "/etc/x", "..\\x", "a/b", ""]
)
def test_a_suite_is_not_called_what_cannot_be_a_folder(name: str) -> None:
    with pytest.raises(SuiteError, match="key name"):
        make_suite({"name": name, "models": [MODEL]}, "x.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# " + "x" * 10_000_000, "Recipe absurd.toml is too large"),
        ("augment = " + "[" * 100_000, "Recipe absurd.toml is nested too deeply"),
        ("learning_rate = nan\nbatch_size = 1\nsteps = 1", "key 'learning_rate'"),
        (f"learning_rate = 1.0\nbatch_size = {10**30}\nsteps = 1", "key 'batch_size'"),
        ("!!python/object/apply:os.system ['touch owned']", "is no valid TOML"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("quickly")
def test_an_absurd_recipe_gets_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "absurd.toml").write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        load_recipe(str(tmp_path / "absurd.toml"))
    assert "\n" not in str(caught.value)


def test_a_pipe_in_place_of_a_suite_is_not_waited_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", Path("/dev/zero"), tmp_path):
        code, _, errors = ask(capsys, "run", "--suite", path)
        assert code == 2
        one_error(errors)


# --- names that would leave the folder

LONG = "x" * 300
NAMES = [
    "../x",
    "..",
    "/etc/passwd",
    "..\\x",
    "a\0b",
    LONG,
    "CON",
    "con.x",
    "aux",
    "x.",
    "a/../../b",
    "~root",
    "猫" * 200,
    " ",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_folders_and_files_named_after_things_stay_where_they_belong(tmp_path: Path, name: str) -> None:
    request = TrainingRequest(model=f"module:{name}:f", data="digits", recipe={})
    folder = default_folder(request)
    assert folder.parts[0] == "runs"
    assert len(folder.parts) == 2
    stem = OutputNames(tmp_path).take(name)
    assert Path(stem).name == stem
    assert (tmp_path / stem).resolve().parent == tmp_path.resolve()
    assert len(stem.encode()) < 200
    assert stem.partition(".")[0].lower() not in ("con", "aux", "nul", "prn")


@pytest.mark.parametrize(
    "option", ["--models", "--data", "--recipe", "--weights", "--suite", "--devices", "--metrics", "--data-dir"]
)
@pytest.mark.parametrize("name", ["../x", "..\\x", LONG, "x" * 100_000, "CON", "a\x1b[2Jb"])
@pytest.mark.usefixtures("quickly")
def test_a_hostile_name_in_any_option_is_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = ["run", "--suite", "smoke", option, name] if option != "--suite" else ["run", "--suite", name]
    words += ["--data", "cifar10"] if option == "--data-dir" else []
    code, out, errors = ask(capsys, *words)
    assert (code, out) == (2, "")
    one_error(errors)
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]


@pytest.mark.parametrize("command", [["report"], ["run", "--resume"], ["train", "--resume"], ["sweep", "--resume"]])
def test_a_name_that_no_system_takes_is_one_line_everywhere(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    code, out, errors = ask(capsys, *command, LONG)
    assert (code, out) == (2, "")
    one_error(errors)


def test_a_sweep_from_elsewhere_does_not_train_outside_its_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    request = asdict(TrainingRequest(model=MODEL, data="digits", recipe=load_recipe("brief").model_dump(mode="json")))
    (tmp_path / "sweep").mkdir()
    for name in ("../outside", "/tmp/outside", "..", "001/../../outside", "", 7, "001\n", "٠٠١"):
        plan = {"schema": 1, "settings": [{"name": name, "changes": {}, "request": request}]}
        (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(plan))
        code, _, errors = ask(capsys, "sweep", "--resume", tmp_path / "sweep")
        assert code == 2
        assert "is no folder of a sweep" in one_error(errors)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["sweep", "sweep.json"]


@pytest.mark.parametrize(
    "link", [store.DAMAGED, store.RECORDS, store.NOISE, store.LOCK, store.CHECKPOINTS, "checkpoints/a.part"]
)
def test_links_in_a_run_folder_from_elsewhere_are_not_followed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, link: str
) -> None:
    """A damaged line of records.jsonl is set aside into a file: were that a link to .bashrc, the line would be run."""
    mine = tmp_path / ".bashrc"
    mine.write_text("alias ll=ls\n")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / store.SUITE).write_text(BASIC)
    (folder / store.RECORDS).write_text("touch owned\n")
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).unlink(missing_ok=True)
    (folder / link).symlink_to(mine)
    code, _, errors = ask(capsys, "run", "--resume", folder)
    assert code == 2
    assert f"holds a link, {Path(link).name!r}" in one_error(errors)
    assert mine.read_text() == "alias ll=ls\n"


def test_links_in_a_training_from_elsewhere_are_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "train"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.pt.part").symlink_to(tmp_path / "mine")
    (folder / "training.json").write_text("{}")
    code, _, errors = ask(capsys, "train", "--resume", folder)
    assert code == 2
    assert "'last.pt.part'" in one_error(errors)
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "001").symlink_to(folder)
    code, _, errors = ask(capsys, "sweep", "--resume", sweep)
    assert code == 2
    assert "'001'" in one_error(errors)


# --- texts


def cells_of_table(line: str) -> int:
    """How many cells a line of a Markdown table has, by its pipes that are not escaped."""
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) - 1


def assert_harmless_markdown(page: str) -> None:
    assert not ESCAPES.search(page.replace("\n", "").replace("\t", "")), ESCAPES.findall(page)
    plain = re.sub(r"`[^`\n]*`", "", page)  # what stands between backticks is shown as it is
    assert not re.search(r"<(?!br)[a-z/!]", plain)
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
    for section in ("Failures", "Methods", "Training", "Details", "FLOPs by other counters"):
        assert f"\n## {section}\n" in page
    assert_harmless_markdown(render_summary([run]))


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
    assert row["change"] == "-0.25"


@pytest.mark.filterwarnings("error")
def test_its_pictures_are_drawn_whatever_the_names_are(tmp_path: Path) -> None:
    pictures = plan_pictures(build_rows([hostile_run()]))
    assert len(pictures) == 2
    for picture in pictures:
        assert_harmless_markdown(picture.caption)
        content = render_png(picture)
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
    from vitbench.reports.sweep import sweep_lines

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
    with progress.running(tmp_path, [bad], {bad.id: 1.0}, 0):
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
        "module:tests.test_hostile:raises",
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
    assert_harmless_markdown(out)
    assert not ESCAPES.search(errors.replace("\n", ""))
    told = [line for line in errors.splitlines() if "cmd|" in line]
    assert len(told) == 1
    assert told[0].startswith("[1/1] module:tests.test_hostile:raises")


# --- checkpoints


class Executed:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


COMMANDS: dict[str, list[str]] = {
    "show": ["show", MODEL, "--image-size", "16", "--num-classes", "10"],
    "evaluate": ["evaluate", MODEL, "--data", "digits", "--test-images", "10", "--device", "cpu"],
    "predict": ["predict", MODEL, "--data", "digits", "--index", "0", "--device", "cpu"],
    "attention": ["attention", MODEL, "--data", "digits", "--out", "drawn", "--device", "cpu"],
    "train": ["train", MODEL, "--image-size", "16", "--set", "steps=1", "--out", "trained", "--device", "cpu"],
    "sweep": ["sweep", MODEL, "--seeds", "0", "--image-size", "16", "--set", "steps=1", "--out", "swept", "--device", "cpu"],
    "run": ["run", "--models", MODEL, "--image-sizes", "16", "--data", "digits", "--metrics", "accuracy", "--out", "run",
            "--devices", "cpu", "--threads", "1"],
}  # fmt: skip


def zipped(path: Path, pickled: bytes, more: dict[str, bytes] | None = None, **options: Any) -> Path:
    """A file as torch.save writes it, with a pickle of one's own."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in (more or {"archive/version": b"3\n"}).items():
            archive.writestr(name, content)
    return path


def pickled_call(function: str, *arguments: bytes) -> bytes:
    """A pickle that calls ``module name`` with pickled arguments."""
    return b"\x80\x02c" + function.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR."


MALICIOUS: dict[str, Callable[[Path, Path], Path]] = {
    "torch.save": lambda path, mark: (torch.save({"head.weight": Executed(mark)}, path), path)[1],
    "torch.save of old": lambda path, mark: (
        torch.save({"head.weight": Executed(mark)}, path, _use_new_zipfile_serialization=False), path)[1],
    "pickle 0": lambda path, mark: (path.write_bytes(pickle.dumps(Executed(mark), protocol=0)), path)[1],
    "pickle 5": lambda path, mark: (path.write_bytes(pickle.dumps(Executed(mark), protocol=5)), path)[1],
    "called safetensors": lambda path, mark: (
        torch.save({"state_dict": {"a": Executed(mark)}}, path.with_suffix(".safetensors")), path.with_suffix(".safetensors"))[1],
    "in a second part": lambda path, mark: zipped(
        path, pickle.dumps({}, protocol=2), {"archive/DATA.pkl": pickle.dumps(Executed(mark), protocol=2)}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "kind"),
    [("evaluate", kind) for kind in MALICIOUS]
    + [
        (command, kind)
        for command in COMMANDS
        if command not in ("run", "evaluate")
        for kind in ("torch.save", "pickle 0")
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_no_command_runs_the_code_in_a_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = MALICIOUS[kind](tmp_path / "evil.pt", tmp_path / "executed")
    code, out, errors = ask(capsys, *COMMANDS[command], "--weights", path)
    assert (code, out) == (2, "")
    assert f"Checkpoint '{path.name}' " in one_error(errors)
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("kind", ["torch.save of old", "called safetensors", "in a second part"])
@pytest.mark.filterwarnings("ignore")
def test_nor_does_a_run(
    server: list[SharedLauncher],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    path = MALICIOUS[kind](tmp_path / "evil.pt", tmp_path / "executed")
    monkeypatch.chdir(tmp_path)
    code, _, errors = ask(capsys, *COMMANDS["run"], "--weights", path)
    assert code == 2
    assert f"Checkpoint '{path.name}' " in one_error(errors)
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name]


def safetensors(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def hole(path: Path, size: int, begin: bytes = b"", end: bytes = b"") -> Path:
    """A file of ``size`` bytes that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(begin)
        file.seek(size - len(end))
        file.write(end)
        file.truncate(size)
    return path


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@functools.cache
def packed_zeros() -> bytes:
    """A zip file of a state dict's kind, but compressed: half a gigabyte of zeros in two megabytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        for number in range(16):
            archive.writestr(f"archive/data/{number}", bytes(32 << 20))
    return content.getvalue()


def repacked(path: Path) -> Path:
    path.write_bytes(packed_zeros())
    return path


def with_a_hole(path: Path) -> Path:
    """A safetensors file that has the 16 GiB that it claims, as a hole."""
    header = json.dumps({"cls_token": {"dtype": "F32", "shape": [2**32], "data_offsets": [0, 2**34]}}).encode()
    return hole(path, 8 + len(header) + 2**34, struct.pack("<Q", len(header)) + header)


def with_end(path: Path, *, size: int, listed: int, offset: int = 0) -> Path:
    """A zip file in a hole, whose end claims a list of parts of ``listed`` bytes."""
    large = struct.pack("<LQHHLLQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 1, 1, listed, offset)
    locator = struct.pack("<LLQL", 0x07064B50, 0, size - 98, 1)
    end = struct.pack("<LHHHHLLH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return hole(path, size, b"PK\3\4" + bytes(26), large + locator + end)


def prefixed(path: Path) -> Path:
    """More in front of the parts than the end says: zipfile and torch then see different parts."""
    inner = zipped(path.with_name("inner"), pickle.dumps({}, protocol=2)).read_bytes()
    path.with_name("inner").unlink()
    path.write_bytes(zipped(path, pickle.dumps({}, protocol=2)).read_bytes()[:40] + inner)
    return path


def many_views(path: Path) -> Path:
    one = torch.zeros(1)
    return saved(path, {f"w{number}": one for number in range(50_001)})


def chained(path: Path) -> Path:
    """Each call doubles a text: forty of them make a terabyte."""
    text = b"\x80\x02" + b"c_codecs\nencode\n(" * 40 + b"X\x01\x00\x00\x00a" + b"X\x03\x00\x00\x00hextR" * 40 + b"."
    return zipped(path, text)


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
TERA = 10**12
#: kind -> (how it is made, what is said of it)
BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a header that claims 10^15 bytes": (
        lambda path: safetensors(path, {"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}), "damaged"),
    "a shape that overflows": (
        lambda path: safetensors(path, {"a": {"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}), "damaged"),
    "a header of 2^60 bytes": (lambda path: safetensors(path, {"a": F32}, bytes(16), length=2**60), "is neither safetensors nor"),
    "a header beyond the file": (lambda path: safetensors(path, {"a": F32}, bytes(16), length=10**6), "damaged"),
    "a header of 20 MB": (
        lambda path: safetensors(path, b'{"__metadata__":{"x":"' + b"x" * 20_000_000 + b'"}}'), "is neither safetensors nor"),
    "a header of nothing but depth": (lambda path: safetensors(path, b'{"a":' + b"[" * 1_000_000), "damaged"),
    "offsets that overlap": (
        lambda path: safetensors(path, {"a": F32, "b": {**F32, "data_offsets": [8, 24]}}, bytes(24)), "damaged"),
    "offsets that run backwards": (lambda path: safetensors(path, {"a": {**F32, "data_offsets": [16, 0]}}, bytes(16)), "damaged"),
    "a hole of zeros": (lambda path: hole(path, 50 * 10**9), "is neither safetensors nor"),
    "a hole of 10^15 bytes": (lambda path: hole(path, 10**13), "has 10,000 GB, more than any model here (100 GB)"),
    "a safetensors file with a hole": (with_a_hole, "does not fit the model"),
    "more tensors than a model has": (
        lambda path: safetensors(path, {f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(50_001)}),
        "holds 50,001 tensors, more than any model has (50,000)"),
    "a view of 10^12 numbers": (
        lambda path: saved(path, {"head.weight": torch.zeros(1).expand(TERA)}), "claims the shape (1000000000000,) but holds fewer"),
    "an old file's view of 10^12 numbers": (
        lambda path: saved(path, {"head.weight": torch.zeros(1).expand(TERA)}, _use_new_zipfile_serialization=False),
        "claims the shape (1000000000000,) but holds fewer"),
    "a sparse view of 10^12 numbers": (
        lambda path: zipped(path, pickle.dumps({}, protocol=2)[:-1] + b"X\x01\x00\x00\x00actorch._utils\n_rebuild_sparse_tensor\n."),
        "'a' is a sparse tensor"),
    "half a gigabyte in two megabytes": (repacked, "is a compressed zip file"),
    "a zip file whose list is 90 GB": (lambda path: with_end(path, size=95 * 10**9, listed=90 * 10**9), "promises a list of parts of"),
    "a zip file whose list begins elsewhere": (lambda path: with_end(path, size=10_000, listed=0, offset=5), "no zip file as torch.save"),
    "a zip file behind another": (prefixed, "no zip file as torch.save"),
    "two parts of one name": (
        lambda path: zipped(path, pickle.dumps({}, protocol=2), {"archive/Data.pkl": b"."}), "holds two parts of one name"),
    "a table of contents of 40 MB": (
        lambda path: zipped(path, b"\x80\x02X" + struct.pack("<I", 40_000_000) + b"a" * 40_000_000 + b"."), "promises a table of contents"),
    "a version of 2 MB": (
        lambda path: zipped(path, pickle.dumps({}, protocol=2), {"archive/version": bytes(2_000_000)}), "promises 2,000,000 bytes in"),
    "50,001 names for one tensor": (many_views, "holds 50,001 tensors"),
    "bytes of 10^12 zeros": (
        lambda path: zipped(path, pickled_call("__builtin__ bytearray", b"\x8a\x06" + TERA.to_bytes(6, "little"))),
        "pickled code (__builtin__.bytearray)"),
    "a text that doubles forty times": (chained, "pickled code (_codecs.encode)"),
    "a copy to a device": (
        lambda path: zipped(path, pickled_call("torch._utils _rebuild_device_tensor_from_cpu_tensor")), "pickled code (torch._utils."),
    "code behind a name": (lambda path: zipped(path, pickled_call("torch _weights_only_unpickler.os.system")), "pickled code (torch."),
    "an old file of one long line": (lambda path: hole(path, 10**8, b"\x80\x02c"), "damaged"),
    "an old file with a text of 4 GB": (lambda path: (path.write_bytes(b"\x80\x02X\xff\xff\xff\xffa."), path)[1], "damaged"),
    "a tar file": (lambda path: (path.write_bytes(b"\x80" + bytes(511)), path)[1], "damaged"),
    "a folder": (lambda path: (path.mkdir(), path)[1], "is a folder"),
    "a pipe": (lambda path: (os.mkfifo(path), path)[1], "is no regular file"),
    "a device": (lambda path: (path.symlink_to("/dev/zero"), path)[1], "is no regular file"),
    "nothing": (lambda path: (path.touch(), path)[1], "is empty"),
    "300 characters": (lambda path: path.with_name(LONG), "does not exist"),
}  # fmt: skip


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return build_model(MODEL, image_size=SIZE, num_classes=10)


@contextlib.contextmanager
def within_memory(more: int) -> Iterator[None]:
    """No more than ``more`` bytes beyond what is taken already; what fails for memory says so."""
    import resource

    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmData:\s+(\d+) kB", status)
    assert found is not None
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(found[1]) * 1024 + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.usefixtures("quickly")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_a_checkpoint_that_is_a_bomb_is_one_line(tmp_path: Path, small: nn.Module, kind: str) -> None:
    make, message = BOMBS[kind]
    path = make(tmp_path / "bomb.pt")
    before = {key: value.clone() for key, value in small.state_dict().items()}
    with within_memory(400 << 20), pytest.raises(DataError) as caught:
        load_checkpoint(small, path)
    assert message in str(caught.value)
    assert "memory" not in str(caught.value).lower() or "memory" in message
    assert len(str(caught.value).splitlines()) == 1
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


def test_a_file_is_not_hashed_for_hours(tmp_path: Path, quickly: None) -> None:
    for size in (50 * 10**9, 10**13):
        with pytest.raises(DataError):
            digest_of(hole(tmp_path / "hole.pt", size))


def test_a_file_that_is_read_whole_has_to_fit_into_memory(
    tmp_path: Path, small: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    class Little:
        available = 200_000

    old = saved(tmp_path / "old.pt", small.state_dict(), _use_new_zipfile_serialization=False)
    renamed = saved(tmp_path / "zip.safetensors", small.state_dict())
    mapped = saved(tmp_path / "zip.pt", small.state_dict())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Little)
    for path in (old, renamed):
        with pytest.raises(
            DataError, match=r"would take 0.0 GB of memory, and 0.0 GB are to spare: convert it to safetensors"
        ):
            load_checkpoint(small, path)
    load_checkpoint(small, mapped)


@pytest.mark.parametrize("kind", ["bomb", "bytes", "code", "hollow", "tangled", "itself", "old"])
def test_the_state_of_a_training_from_elsewhere_is_no_bomb(tmp_path: Path, kind: str, quickly: None) -> None:
    path = tmp_path / "last.pt"
    tangled: list[Any] = []
    for _ in range(50):
        tangled = [tangled, tangled]
    itself: list[Any] = []
    itself.append(itself)
    if kind == "bomb":
        repacked(path)
    elif kind == "bytes":
        zipped(path, pickled_call("__builtin__ bytearray", b"\x8a\x06" + TERA.to_bytes(6, "little")))
    elif kind == "code":
        saved(path, {"vitbench": Executed(tmp_path / "executed")})
    elif kind == "hollow":
        saved(path, {"vitbench": "{}", "optimizers": [{"state": {0: {"exp_avg": torch.zeros(1).expand(TERA)}}}]})
    elif kind == "tangled":
        saved(path, {"vitbench": "{}", "optimizers": tangled})
    elif kind == "itself":
        saved(path, {"vitbench": "{}", "optimizers": itself})
    else:
        saved(path, {"vitbench": "{}"}, _use_new_zipfile_serialization=False)
    with (
        within_memory(400 << 20),
        pytest.raises(DataError, match=r"^Checkpoint last\.pt is damaged \(.*\)\. Start anew") as caught,
    ):
        load_state(path)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("claim", [{"num_classes": 1_000_000}, {"image_size": [8192, 8192]}])
def test_what_a_file_claims_of_its_training_is_held_against_its_weights(
    tmp_path: Path, small: nn.Module, claim: dict[str, Any], quickly: None
) -> None:
    path = tmp_path / "claims.safetensors"
    facts = {"model": MODEL, "image_size": [SIZE, SIZE], "num_classes": 10}
    save_checkpoint(small, path, {**facts, **claim})
    with within_memory(400 << 20):
        opened = open_trained(MODEL, weights=str(path), device="cpu")
    assert opened.num_classes == 10
    assert opened.image_size in ((SIZE, SIZE), (32, 32))


def test_ordinary_checkpoints_of_every_kind_still_load(tmp_path: Path, small: nn.Module) -> None:
    state = {key: value + 1 for key, value in small.state_dict().items()}
    optimizer = torch.optim.AdamW(small.parameters())
    small(torch.zeros(1, 3, SIZE, SIZE)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    beside = {
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": 3,
        "done": {1, 2},
        "best": None,
    }
    contents: list[Any] = [
        state,
        {"state_dict": state, **beside},
        {"model": {key: nn.Parameter(value) for key, value in state.items()}, "rng": torch.get_rng_state()},
        {"state_dict": {key: value.half() for key, value in state.items()}},
        {"model_state_dict": {f"module.{key}": value.bfloat16() for key, value in state.items()}},
    ]
    for number, content in enumerate(contents):
        for new in (True, False):
            load_checkpoint(small, saved(tmp_path / f"{number}.pt", content, _use_new_zipfile_serialization=new))
    save_file(state, tmp_path / "x.safetensors")
    load_checkpoint(small, tmp_path / "x.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in small.state_dict().items())


# --- pictures


def png(path: Path, *chunks: tuple[bytes, bytes], width: int = 4, height: int = 4) -> Path:
    """A PNG of ``width`` x ``height`` px with ``chunks`` before its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = (b"\0" + bytes(3 * width)) * min(height, 64)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(pixels)),
        (b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


ZEROS = zlib.compress(bytes(200 << 20))
#: kind -> how it is made
PICTURE_BOMBS: dict[str, Callable[[Path], Path]] = {
    "2.5 billion pixels": lambda path: png(path, width=50_000, height=50_000),
    "100 million pixels": lambda path: png(path, width=10_000, height=10_000),
    "a colour profile of 200 MB": lambda path: png(path, (b"iCCP", b"x\0\0" + ZEROS)),
    "a text of 200 MB": lambda path: png(path, (b"zTXt", b"x\0\0" + ZEROS)),
    "a text of 200 MB in any language": lambda path: png(path, (b"iTXt", b"x\0\1\0\0\0" + ZEROS)),
    "a hundred texts of a megabyte": lambda path: png(
        path, *[(b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 20)))] * 100),
    "a chunk of 2 GB": lambda path: (path.write_bytes(png(path).read_bytes()[:33] + b"\x7f\xff\xff\xff" + b"zTXt" + b"x" * 99), path)[1],
    "an animation that claims 10^9 frames and has none": lambda path: png(
        path, (b"acTL", struct.pack(">II", 10**9, 0)), width=70_000, height=70_000),
    "PostScript": lambda path: (Image.new("RGB", (8, 8)).save(path, format="EPS"), path)[1],
    "half a picture": lambda path: (
        Image.effect_noise((64, 64), 50).save(path, format="PNG"), path.write_bytes(path.read_bytes()[:800]), path)[2],
}  # fmt: skip


def animation(path: Path, kind: str) -> Path:
    """Thousands of small frames (of TIFF, which takes long to write, hundreds)."""
    frames = 300 if kind == "TIFF" else 3000
    pictures = [Image.new("RGB", (8, 8), (number % 256, number // 256, 0)) for number in range(frames)]
    pictures[0].save(path, format=kind, save_all=True, append_images=pictures[1:])
    return path


@pytest.fixture
def no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was run for a picture")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)


@pytest.mark.parametrize("kind", PICTURE_BOMBS)
@pytest.mark.usefixtures("quickly", "no_ghostscript")
@pytest.mark.filterwarnings("ignore")
def test_a_picture_that_is_a_bomb_is_one_line_wherever_it_is_read(tmp_path: Path, kind: str) -> None:
    path = PICTURE_BOMBS[kind](tmp_path / "bomb.png")
    with within_memory(150 << 20), pytest.raises(DataError) as alone:
        read_picture(path, (8, 8))
    with within_memory(150 << 20), pytest.raises(DataError, match=r"^bomb\.png of image folder ") as in_folder:
        decode_picture(tmp_path, PictureFile("bomb.png", path.stat().st_size, 0), (8, 8))
    for caught in (alone, in_folder):
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 700
        assert "memory does not suffice" not in str(caught.value)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_thousands_of_frames_the_first_one_is_read(tmp_path: Path, kind: str) -> None:
    path = animation(tmp_path / "many.png", kind)
    begin = time.monotonic()
    pixels, whole = read_picture(path, (8, 8))
    decoded = decode_picture(tmp_path, PictureFile("many.png", path.stat().st_size, 0), (8, 8))
    assert time.monotonic() - begin < 1
    assert whole.size == (8, 8)
    assert (pixels.permute(1, 2, 0).numpy() == decoded).all()
    assert int(pixels.max()) <= 8  # the first one is black


@pytest.mark.parametrize("command", ["predict", "attention", "evaluate", "train", "run"])
@pytest.mark.usefixtures("no_ghostscript")
@pytest.mark.filterwarnings("ignore")
def test_every_command_refuses_a_bomb_in_a_folder(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small: nn.Module,
    command: str,
    quickly: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_image_folder(tmp_path / "pets", train=2, test=2)
    weights = tmp_path / "two.safetensors"
    save_checkpoint(
        build_model(MODEL, image_size=SIZE, num_classes=2), weights, {"image_size": [SIZE, SIZE], "num_classes": 2}
    )
    for kind in ("PostScript", "100 million pixels"):
        for split in ("train", "test"):
            PICTURE_BOMBS[kind](folder / split / "cat" / "0.png")
        words = {
            "predict": ["predict", MODEL, "--weights", weights, folder / "test" / "cat" / "0.png"],
            "attention": ["attention", MODEL, "--weights", weights, "--data", folder, "--index", "0"],
            "evaluate": ["evaluate", MODEL, "--weights", weights, "--data", folder],
            "train": ["train", MODEL, "--data", folder, "--image-size", "16", "--set", "steps=1"],
            "run": ["run", "--models", MODEL, "--data", folder, "--metrics", "accuracy"],
        }[command]
        code, out, errors = ask(capsys, *words)
        assert (code, out) == (2, "")
        assert "0.png" in one_error(errors)


def test_large_pictures_are_decoded_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.training import folder as folders

    root = make_image_folder(tmp_path / "pets", train=8, size=(40, 40))
    inside, most, lock = 0, 0, threading.Lock()
    convert = Image.Image.convert

    def watched(self: Image.Image, *arguments: Any, **more: Any) -> Image.Image:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        result: Image.Image = convert(self, *arguments, **more)
        with lock:
            inside -= 1
        return result

    monkeypatch.setattr(Image.Image, "convert", watched)
    monkeypatch.setattr(folders, "_LARGE_PIXELS", 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    pictures = load_images(describe_data(str(root)), "train", image_size=(8, 8))
    assert len(pictures) == 16
    assert most == 1


# --- files that would run code


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a mark where it is imported, in the current folder and on every path; returns the mark."""
    mark = tmp_path / "imported"
    place = tmp_path / "modules"
    place.mkdir()
    for folder in (place, tmp_path):
        (folder / "trap_of_a_suite.py").write_text(f"open({str(mark)!r}, 'w').close()\ndef build(**_): pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", str(place))
    return mark


def test_a_suite_imports_nothing(
    strict_server: None, trap: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    suite = tmp_path / "foreign.toml"
    suite.write_text('models = ["module:trap_of_a_suite:build"]\ndevices = "cpu"\nmetrics = ["params"]\n')
    for words in (["--out", "run"], ["--dry-run"], ["--out", "run", "--quick"]):
        code, _, errors = ask(capsys, "run", "--suite", suite, *words)
        assert code == 2
        assert "would import and run code: add --allow-import if you trust it" in one_error(errors)
    assert not trap.exists()
    assert not (tmp_path / "run").exists()


def test_nor_does_a_run_folder_from_elsewhere(
    strict_server: None, trap: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / store.SUITE).write_text(
        'models = ["module:trap_of_a_suite:build"]\ndevices = "cpu"\nmetrics = ["params"]\n'
    )
    foreign = infer(
        Cell(
            model="module:trap_of_a_suite:build",
            image_size=(8, 8),
            num_classes=2,
            batch_size=1,
            device="cpu",
            threads=1,
        )
    )
    (folder / store.RECORDS).write_text(foreign.to_json() + "\n")
    (folder / store.LOCK).write_text("import os; os.system('touch imported')")
    with pytest.raises(UsageError, match="would import and run code"):
        resume_run(folder)
    code, _, errors = ask(capsys, "run", "--resume", folder)
    assert code == 2
    assert "add --allow-import" in one_error(errors)
    assert run_command(["report", str(folder)]) == 0
    write_report([folder], tmp_path / "both")
    assert not trap.exists()


def test_names_of_modules_are_told_from_names_of_files(trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["show"],
        ["flops"],
        ["evaluate", "--data", "digits", "--pretrained"],
        ["train"],
        ["sweep", "--seeds", "0"],
    ):
        code, _, errors = ask(capsys, command[0], "module:trap_of_a_suite:build", *command[1:])
        assert code == 2
        assert "add --allow-import" in one_error(errors)
    assert not trap.exists()


def test_recipes_and_lists_of_pictures_are_data(trap: Path, tmp_path: Path) -> None:
    evil = pickle.dumps(Executed(tmp_path / "imported"), protocol=0)
    (tmp_path / "recipe.toml").write_bytes(evil)
    with pytest.raises(UsageError, match="no valid TOML"):
        load_recipe(str(tmp_path / "recipe.toml"))
    for content in (evil, b"__import__('trap_of_a_suite')", b"[1, 2, exec('1')]"):
        (tmp_path / "indices.txt").write_bytes(content)
        with pytest.raises(DataError, match="whole numbers only"):
            choose_imbalanced([0, 1], [0, 1], str(tmp_path / "indices.txt"), 0)
    assert not trap.exists()


def test_a_suite_cannot_name_a_file_that_is_unpickled(trap: Path, tmp_path: Path) -> None:
    """Data sets that torchvision unpickles are checked by their sums first."""
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
        "batches.meta",
    ):
        (folder / name).write_bytes(pickle.dumps(Executed(trap)))
    content = {"name": "x", "models": [MODEL], "training": {"data": "cifar10", "data_dir": str(tmp_path / "cifar")}}
    check_before_loading(make_suite(content, "x"))
    with pytest.raises(DataError, match="damaged"):
        load_images(describe_data("cifar10", root=tmp_path / "cifar"), "test", image_size=(8, 8), images=10)
    assert not trap.exists()

"""Suites that ask for too much, or for what cannot be: one line at once, before torch is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.asking import BASIC, MODEL, ask, one_error
from tests.launching import SharedLauncher
from vitbench import suites
from vitbench.core import run_folder as store
from vitbench.core.errors import SuiteError, UsageError
from vitbench.runner.plan import check_before_loading
from vitbench.suites import check_count, expand, load_suite, make_suite
from vitbench.suites.expansion import count_cells
from vitbench.training.recipes import load_recipe


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
        "batch_sizes), more than 10,000: give shorter lists, or --yes to allow it"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["huge.toml"]


@pytest.mark.integration
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
    with pytest.raises(SuiteError, match=r"1,000,000,000,000 cells .* of free memory, also with --yes"):
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
    monkeypatch.setattr(suites.expansion, "MOST_CELLS", 7)
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


ABSURD = {
    "10 MB": ("# " + "x" * 10_000_000, "Suite absurd.toml is too large: at most 1,000,000 bytes are read"),
    "lists in lists": ("models = " + "[" * 100_000, "Suite absurd.toml is not valid TOML: maximum recursion depth exceeded"),
    "tables in tables": ("models = " + "{a=" * 100_000, "Suite absurd.toml is not valid TOML: maximum recursion depth exceeded"),
    "a number of ten thousand digits": (BASIC + "batch_sizes = 1" + "0" * 10_000, "Suite absurd.toml is not valid TOML"),
    "an integer": (BASIC + f"batch_sizes = {10**30}", "key batch_sizes: Input should be less than 2147483648"),
    "a batch": (BASIC + f"batch_sizes = [{10**12}]", "key batch_sizes: Input should be less than 2147483648"),
    "a side": (BASIC + f"image_sizes = {10**9}", "Image size 1000000000 is too large: give sides of at most 65536 px"),
    "two sides": (BASIC + "image_sizes = '16x1000000000'", "is too large: give sides of at most 65536 px"),
    "a side of digits": (BASIC + f"image_sizes = '{'9' * 4000}'", "key image_sizes: Image size '99999"),
    "threads": (BASIC + "threads = 1000000", "key threads"),
    "processes": (BASIC + f"[measure]\nprocesses = {10**20}", "key measure.processes"),
    "classes": (BASIC + f"num_classes = {10**15}", "key num_classes"),
    "memory": (BASIC + "memory_limit = '9999999999TiB'", "is not a valid memory size"),
    "memory of digits": (BASIC + f"memory_limit = '{'9' * 900}GiB'", "is not a valid memory size"),
    "NaN seconds": (BASIC + "timeout_s = nan", "key timeout_s: Input should be"),
    "infinite seconds": (BASIC + "[measure]\nseconds = inf", "key measure.seconds: Input should be"),
    "minus infinity": (BASIC + "[training]\nepochs = -inf", "key training.epochs: Input should be"),
    "a name of two lines": ('name = "a\\nb"\n' + BASIC, "key name: String should match pattern"),
    "an escape in a path": (BASIC + '[training]\ndata = "/a\\u001b[2J"', r"Image folder '/a\x1b[2J' does not exist"),
    "a long name": (f'name = "{"a" * 300}"\n' + BASIC, "key name: String should have at most 100 characters"),
    "right to left": ('models = ["vit\\u202eb"]', r"Unknown model 'vit\u202eb'"),
}  # fmt: skip


@pytest.mark.integration
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


@pytest.mark.parametrize("name", ["..", "../x", "/etc/x", "..\\x", "a/b", "", "a\nb", "a" * 101])
def test_a_suite_is_not_called_what_cannot_be_a_folder(name: str) -> None:
    with pytest.raises(SuiteError, match="key name"):
        make_suite({"name": name, "models": [MODEL]}, "x.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# " + "x" * 10_000_000, "Recipe absurd.toml is too large"),
        ("augment = " + "[" * 100_000, "Recipe absurd.toml is not valid TOML: maximum recursion depth exceeded"),
        ("learning_rate = nan\nbatch_size = 1\nsteps = 1", "key 'learning_rate'"),
        (f"learning_rate = 1.0\nbatch_size = {10**30}\nsteps = 1", "key 'batch_size'"),
        ("!!python/object/apply:os.system ['touch owned']", "is not valid TOML"),
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

"""``vitbench scale``: what it prints, and the one line that each mistake gets."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.reports.fabricate import failed
from vitbench.analysis.scaling import Scaling, Size, choose_sizes
from vitbench.cli import run_command
from vitbench.commands.scale import EXAMPLES
from vitbench.core.records import Record
from vitbench.models import imported
from vitbench.models.cards import model_registry

MODELS = ["module:tests.analysis.attention_models:small_softmax", "module:tests.analysis.attention_models:small_linear"]
IMPORTED = ["--allow-import", "--num-classes", "10"]


@pytest.fixture(autouse=True)
def imports_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a command line allows them; afterwards as before."""
    monkeypatch.setattr(imported, "_allowed", False)


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(["scale", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.integration
def test_the_text_is_as_it_was_reviewed(capsys: pytest.CaptureFixture[str], golden: Callable[[str, str], None]) -> None:
    code, out, errors = ask(
        capsys, *MODELS, *IMPORTED, "--image-sizes", "16:256", "--attention", "explicit", "--crossover"
    )
    assert code == 0
    assert "16 px ..." in errors
    assert max(map(len, out.splitlines())) <= 100
    golden("scale.txt", re.sub(r"torch [^;,\s]+", "torch VERSION", out))


@pytest.mark.integration
def test_json_has_base_units_and_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, *MODELS, *IMPORTED, "--image-sizes", "16,24,32,48", "--crossover", "--json")
    assert code == 0
    softmax, linear, crossing = json.loads(out)
    assert softmax["model"] == MODELS[0]
    assert linear["flops"]["b"] == 0
    assert softmax["flops"]["b"] == 2 * 2 * 2 * 384
    assert "on meta" in softmax["flops"]["method"]
    assert [one["n"] for one in softmax["sizes"]] == [16, 36, 64, 144]
    assert crossing["crossover_of"] == MODELS
    assert crossing["crossovers"][0]["brackets"] == [{"low": 63.5, "high": 63.5, "below": True}]


@pytest.mark.integration
def test_a_plot_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "scale.png"
    code, _, errors = ask(capsys, *MODELS, *IMPORTED, "--image-sizes", "16,24,32", "--crossover", "--plot", str(path))
    assert code == 0
    assert "Wrote" in errors
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.integration
@pytest.mark.usefixtures("shared_workers")
def test_times_of_two_models_have_elasticities_and_a_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vitbench.runner import size_series

    short = {"processes": 3, "precision": 0.0, "seconds": 0.01, "min_samples": 2}
    monkeypatch.setitem(size_series.SERIES, "measure", short)
    monkeypatch.setattr(size_series, "_NARROWED", 1)
    plot = tmp_path / "times.png"
    sizes = ["--image-sizes", "16,32,64", "--threads", "1", "--plot", str(plot)]
    code, out, errors = ask(capsys, *MODELS, *IMPORTED, *sizes, "--measure", "--crossover", "--json")
    assert code == 0, errors
    softmax, _, crossing = json.loads(out)
    times = softmax["batches"]["1"]["times"]
    assert {16, 64, 256} <= {one["n"] for one in times} <= {one["n"] for one in softmax["sizes"]}
    assert all(one["status"] == "ok" and one["estimate"]["value"] > 0 for one in times)
    assert all(one["step"]["low"] <= one["step"]["value"] <= one["step"]["high"] for one in times[1:])
    assert times[-1]["step"]["value"] > 0  # four times the patches
    assert crossing["crossovers"][-1]["quantity"] == "time, batch 1"
    assert plot.stat().st_size > 1000


@pytest.mark.integration
def test_times_that_failed_make_the_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any, models: list[Scaling], sizes: list[Size], **__: Any) -> list[Record]:
        cells = [replace(one.cell, image_size=size) for one in models for size in sizes]
        return [failed(cell, "timeout", detail="60 s are over") for cell in cells]

    monkeypatch.setattr("vitbench.runner.size_series.time_sizes", fail)
    monkeypatch.setattr("vitbench.executors.launcher.make_launcher", lambda *_, **__: contextlib.nullcontext())
    code, out, _ = ask(capsys, *MODELS, *IMPORTED, "--image-sizes", "16,24,32", "--measure", "--crossover")
    assert code == 1
    assert "24 px: timeout: 60 s are over" in out
    assert "time, batch 1    unknown: at no size are there values of both" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vit_tny"], "Unknown model 'vit_tny'"),
        (["cifar_vit_tiny", "--image-sizes", "1024:32"], "smaller one first"),
        (["cifar_vit_tiny", "--image-sizes", "abc"], "--image-sizes"),
        (["cifar_vit_tiny", "--image-sizes", "32"], "at least three sizes"),
        (["cifar_vit_tiny", "--image-sizes", "30,32,36"], "does not divide it"),
        (["vit_tiny16"], "fixed size"),
        (["cifar_vit_tiny", "--batch-sizes", "0"], "--batch-sizes"),
        (["cifar_vit_tiny", "--batch-sizes", ","], "empty"),
        (["cifar_vit_tiny", "--mode", "both"], "Give one"),
        (["cifar_vit_tiny", "--mode", "predict"], "--mode"),
        (["cifar_vit_tiny", "--attention", "flash"], "--attention"),
        (["cifar_vit_tiny", "--crossover"], "two models, not 1"),
        (["cifar_vit_tiny", "cifar_vit_tiny", "--crossover"], "two models, not 1"),
        (["vit_layer6_32", "vit_b16_scratch", "--crossover", "--image-sizes", "32,48,64"], "classes"),
        ([*MODELS, *IMPORTED, "--crossover", "--image-sizes", "16,8x32,24,32"], "16 and 8x32 both have 16"),
        (["cifar_vit_tiny", "--threads", "2"], "add --measure"),
        (["cifar_vit_tiny", "--device", "cpu"], "add --measure"),
        (["cifar_vit_tiny", "--measure", "--device", "auto"], "Give one"),
        (["cifar_vit_tiny", "--measure", "--device", "gpu"], "gpu"),
        (["cifar_vit_tiny", "--measure", "--device", "cuda:99"], "cuda:99"),
        (["cifar_vit_tiny", "--plot", "scale.jpg"], ".png"),
        (["cifar_vit_tiny", "--plot", "nowhere/scale.png"], "folder that exists"),
        ([MODELS[0]], "--allow-import"),
    ],
)
def test_a_mistake_gets_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, out, errors = ask(capsys, *arguments)
    assert (code, out) == (2, "")
    last = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert len(last) == 1, errors
    assert said in last[0]


@pytest.mark.parametrize("line", EXAMPLES.strip().splitlines())
def test_the_models_of_the_examples_take_their_sizes(line: str) -> None:
    """A model of a fixed size is no example."""
    words = shlex.split(line)
    sizes = words[words.index("--image-sizes") + 1] if "--image-sizes" in words else "32:1024"
    for name in itertools.takewhile(lambda word: not word.startswith("-"), words[2:]):
        card = model_registry().get(name)
        for size in choose_sizes(sizes, card.patch):
            card.check_image_size(size)

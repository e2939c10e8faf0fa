"""Published figures judged by trainings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.training.asking import MODEL, request
from vitbench.cli import run_command
from vitbench.experiments.training import start_training
from vitbench.experiments.training.records import read_training
from vitbench.models.cards import Claim, model_registry
from vitbench.training.recipes import load_recipe


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A training by the recipe brief as it is, on all digits, tested on all of theirs; and as if by two other seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    brief = load_recipe("brief").model_dump(mode="json")
    start_training(replace(request(), recipe=brief, train_images=None, test_images=None), folder / "0")
    for seed in (1, 2):
        shutil.copytree(folder / "0", folder / str(seed))
        for name in ("training.json", "summary.json"):
            content = json.loads((folder / "0" / name).read_text())
            figures = content.get("figures", content)
            figures["seed"] = seed
            if name == "summary.json":
                figures["last"]["test_loss"] += 0.01 * seed
            (folder / str(seed) / name).write_text(json.dumps(content))
    return [folder / str(seed) for seed in range(3)]


Judge = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def judge(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Judge:
    """``vitbench claims`` of figures that a source might have printed of this model, by brief on digits of 8 px."""
    known = model_registry()  # filled first, or the card would be taken for a packaged one
    fields = {"source": "a README", "recipe": "brief", "data": "digits"}
    claims = (
        Claim(quantity="top1", value=0.5, printed="50 %", **fields),
        Claim(quantity="loss", value=9.0, printed="9.00", **fields),
    )
    card = replace(known.get(MODEL), claims=claims, image_size=(8, 8))
    monkeypatch.setitem(model_registry()._items, MODEL, card)

    def ask(*folders: Path) -> dict[str, dict[str, Any]]:
        capsys.readouterr()
        assert run_command(["claims", *map(str, folders), "--models", MODEL, "--json"]) == 0
        return {row["quantity"]: row for row in json.loads(capsys.readouterr().out)}

    return ask


def test_trainings_judge_published_figures(three_seeds: list[Path], judge: Judge) -> None:
    figures = [json.loads((folder / "summary.json").read_text())["figures"] for folder in three_seeds]
    assert (figures[0]["image_size"], figures[0]["num_classes"]) == ([8, 8], 10)
    one = judge(three_seeds[0])
    assert one["top1"]["verdict"] in ("agrees", "contradicted")
    assert one["top1"]["computed"] == pytest.approx(figures[0]["last"]["test_accuracy"])
    assert (one["loss"]["verdict"], one["loss"]["computed"]) == (
        "not checkable here",
        pytest.approx(figures[0]["last"]["test_loss"]),
    )
    three = judge(*three_seeds)
    assert three["loss"]["verdict"] == "contradicted"
    assert three["loss"]["computed"] == pytest.approx(sum(each["last"]["test_loss"] for each in figures) / 3)
    assert "seeds 0, 1, 2" in three["loss"]["reason"]
    assert judge()["top1"]["verdict"] == "not checkable here"


def test_an_earlier_summary_without_sizes_judges_all_the_same(
    three_seeds: list[Path], judge: Judge, tmp_path: Path
) -> None:
    folder = shutil.copytree(three_seeds[0], tmp_path / "run")
    content = json.loads((folder / "summary.json").read_text())
    for key in ("image_size", "num_classes"):
        del content["figures"][key]
    (folder / "summary.json").write_text(json.dumps(content))
    assert judge(folder) == judge(three_seeds[0])


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"train_images": 1000}, {"train_images": "1000"}),
        ({"weights": "best.pt"}, {"began_with": "a checkpoint"}),
        ({"weights": "best.pt", "pretrained": True}, {"began_with": "a checkpoint"}),
        ({"pretrained": True}, {"began_with": "pretrained"}),
        ({"freeze": "backbone"}, {"freeze": "backbone"}),
    ],
    ids=str,
)
def test_a_training_of_another_kind_judges_nothing(
    three_seeds: list[Path], judge: Judge, tmp_path: Path, changes: dict[str, Any], options: dict[str, str]
) -> None:
    folder = shutil.copytree(three_seeds[0], tmp_path / "run")
    content = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps({**content, **changes}))
    assert dict(read_training(folder).cell.options) == options
    assert judge(folder)["top1"]["computed"] is None


def test_a_training_by_a_changed_recipe_judges_nothing(whole: Path, judge: Judge) -> None:
    assert judge(whole)["top1"]["computed"] is None


def test_a_training_that_is_not_finished_judges_nothing_and_says_how_to_go_on(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "summary.json").unlink()
    assert run_command(["claims", str(folder), "--models", MODEL]) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert f"is not finished. First resume it: vitbench train --resume {folder}" in errors


def test_the_report_of_a_training_is_named(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["report", str(whole)]) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert f"its report is {whole / 'report.md'}" in errors
    assert f"vitbench claims {whole}" in errors

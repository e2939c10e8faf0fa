"""Several settings side by side: the plan, the table, failures, resuming."""

from __future__ import annotations

import csv
import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vitbench.cli import run_command
from vitbench.core.errors import UsageError
from vitbench.experiments.sweep import expand_settings, plan_sweep
from vitbench.experiments.training.request import SUMMARY, TrainingRequest
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import save_checkpoint
from vitbench.reports.training import sweep_lines, sweep_markdown
from vitbench.training.loop import Trainer

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("undrawn")]
QUICK = ["--device", "cpu", "--image-size", "8", "--train-images", "40", "--test-images", "20", "--threads", "1"]


def test_settings_are_the_cross_product_of_each_try_and_seed() -> None:
    found = expand_settings(["batch_size=16,32"], ["lr=1e-2 epochs=2", "lr=1e-3 epochs=9"], [0, 1])
    assert len(found) == 8
    assert found[0] == {"learning_rate": 0.01, "epochs": 2, "batch_size": 16, "seed": 0}
    assert found[-1] == {"learning_rate": 0.001, "epochs": 9, "batch_size": 32, "seed": 1}


def test_lists_are_joined_by_plus() -> None:
    found = expand_settings(["augment=none,crop+flip"], [], [])
    assert found == [{"augment": []}, {"augment": ["crop", "flip"]}]


@pytest.mark.parametrize(
    ("products", "tries", "message"),
    [
        (["lr"], [], "is not key=value,value"),
        (["lr="], [], "is not key=value,value"),
        (["lr=1,2"], ["lr=3"], "twice"),
        (["warmpu=1"], [], "Did you mean 'warmup'"),
    ],
)
def test_wrong_settings_are_one_line(products: list[str], tries: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand_settings(products, tries, [])


def test_a_sweep_ends_in_one_table_also_when_a_training_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    arguments = [
        "sweep",
        "vit_basic_tutorial",
        "--set",
        "lr=1e-3,1e30",
        "--set",
        "images=40,80",
        "--set",
        "optimizer=sgd",
    ]
    arguments += ["--set", "clip_norm=none", "--set", "warmup=0", *QUICK, "--out", str(folder)]
    assert run_command(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.count("failed: The loss of training step") == 2
    with (folder / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["status"] for line in lines] == ["ok", "ok", "diverged", "diverged"]
    assert [line["images"] for line in lines] == ["40", "80", "40", "80"]
    good = lines[0]
    figures = json.loads((folder / "001" / SUMMARY).read_text())["figures"]
    assert float(good["test_accuracy"]) == figures["last"]["test_accuracy"]
    table = (folder / "sweep.md").read_text()
    assert table.count(" diverged |") == 2
    assert (folder / "sweep.png").stat().st_size > 5000

    # what is finished stays as it is; what failed is tried again
    before = (folder / "001" / SUMMARY).stat().st_mtime_ns
    assert run_command(["sweep", "--resume", str(folder)]) == 1
    assert (folder / "001" / SUMMARY).stat().st_mtime_ns == before


def test_epochs_that_are_varied_stand_beside_those_that_were_reached() -> None:
    tested = {"test_loss": 1.0, "test_accuracy": 0.5}
    figures = {"epochs": 4.0, "last": tested, "test_images": 30, "training_duration_s": 1.0}
    row = {"train_loss": 1.0, "train_accuracy": 0.5}
    course = {"name": "001", "changes": {"epochs": 20}, "status": "ok", "detail": "", "figures": figures}
    (line,) = sweep_lines([{**course, "history": [row]}])
    assert (line["epochs"], line["epochs_done"]) == (20, 4.0)
    table = sweep_markdown([{**course, "history": [row]}], "x")
    assert "| 001 | 20 | 50.00" in " ".join(table.split())


def test_the_seed_is_the_recipes_where_none_is_given(tmp_path: Path) -> None:
    request = TrainingRequest(model="vit_basic_tutorial", data="digits", recipe={})
    recipe = tmp_path / "mine.toml"
    recipe.write_text("learning_rate = 1e-3\nbatch_size = 8\nsteps = 1\nseed = 42\n")
    for changes, seeds in ((["lr=1,2"], [42, 42]), (["seed=none,0,7"], [42, 0, 7])):
        settings = plan_sweep(request, str(recipe), expand_settings(changes, [], []), {})
        assert [one.request.seed for one in settings] == seeds


@pytest.mark.parametrize("seed", ["1e3", "abc", "-1", "1.0"])
def test_a_seed_that_is_none_is_refused_before_the_first_training(
    seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", "vit_basic_tutorial", "--set", f"seed=0,{seed}", *QUICK, "--out", str(tmp_path / "sweep")]
    assert run_command(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "seed" in line
    assert not (tmp_path / "sweep").exists()


def test_each_line_says_what_holds_in_its_training() -> None:
    request = TrainingRequest(model="vit_basic_tutorial", data="digits", recipe={})

    def changes(recipe: str, products: list[str], tries: list[str]) -> list[dict[str, Any]]:
        return [one.changes for one in plan_sweep(request, recipe, expand_settings(products, tries, []), {})]

    assert changes("cifar-vit", ["clip_norm=none,0.5"], []) == [{"clip_norm": None}, {"clip_norm": 0.5}]
    assert changes("brief", [], ["lr=1e-3 epochs=2", "images=300"]) == [
        {"learning_rate": 1e-3, "epochs": 2, "images": None},
        {"learning_rate": 2e-3, "epochs": None, "images": 300},
    ]
    assert changes("brief", ["seed=none,7"], []) == [{"seed": 0}, {"seed": 7}]
    course = {"status": "error", "detail": "", "name": "001"}
    table = " ".join(sweep_markdown([{**course, "changes": {"clip_norm": None}}], "x").split())
    assert "| 001 | none | error |" in table


def test_a_key_that_does_nothing_is_refused_as_in_train() -> None:
    request = TrainingRequest(model="vit_basic_tutorial", data="digits", recipe={})
    with pytest.raises(UsageError, match="rotation has no effect without rotation in augment"):
        plan_sweep(request, "brief", expand_settings(["rotation=15,30"], [], []), {})
    plan_sweep(request, "brief", expand_settings(["rotation=15,30"], [], []), {"augment": ["rotation"]})


def test_seeds_are_given_once() -> None:
    with pytest.raises(UsageError, match="Seeds are given twice"):
        expand_settings(["seed=1,2"], [], [3])


def test_a_wrong_sweep_leaves_no_folder_that_blocks_the_next_try(tmp_path: Path) -> None:
    arguments = ["--seeds", "0", "--out", str(tmp_path / "sweep")]
    assert run_command(["sweep", "vit_basik", *arguments]) == 2
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("order", ["0.0001,0.2", "0.2,0.0001"])
def test_a_setting_that_cannot_be_is_a_line_wherever_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str
) -> None:
    folder = tmp_path / "sweep"
    arguments = ["sweep", "vit_basic_tutorial", "--set", f"validation={order}", "--set", "images=40", *QUICK]
    assert run_command([*arguments, "--out", str(folder)]) == 1
    with (folder / "sweep.csv").open() as file:
        statuses = {line["validation"]: line["status"] for line in csv.DictReader(file)}
    assert (statuses["0.2"], statuses["0.0001"] != "ok") == ("ok", True)
    assert "sweep.png" in capsys.readouterr().out
    # resumed, the sweep shows the message of the training that fails again, though no other is left to train
    assert run_command(["sweep", "--resume", str(folder)]) == 1
    with (folder / "sweep.csv").open() as file:
        assert {line["validation"]: line["status"] for line in csv.DictReader(file)} == statuses


def test_what_no_setting_can_do_is_refused_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sweep", "vit_basic_tutorial", "--seeds", "0,1,2", "--data", str(tmp_path / "nowhere")]
    assert run_command([*arguments, "--out", str(tmp_path / "sweep")]) == 2
    assert capsys.readouterr().err.count("Training 3") == 0
    assert not (tmp_path / "sweep").exists()


def test_a_training_of_a_sweep_finds_the_memory_of_those_before_it_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitbench.experiments.sweep as sweeps

    start, alive = sweeps.start_training, []

    def counted(*arguments: Any) -> Any:
        alive.append(sum(isinstance(one, Trainer) for one in gc.get_objects()))
        return start(*arguments)

    monkeypatch.setattr(sweeps, "start_training", counted)
    gc.collect()
    gc.disable()  # what it would have freed by chance
    try:
        learning_rates = "lr=1e30,1e-3,1e-2"  # the first one fails
        words = ["--set", learning_rates, "--set", "optimizer=sgd", "--set", "clip_norm=none", "--set", "images=40"]
        assert run_command(["sweep", "vit_basic_tutorial", *words, *QUICK, "--out", str(tmp_path / "sweep")]) == 1
    finally:
        gc.enable()
    assert alive == [0, 0, 0]


def test_a_sweep_from_elsewhere_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = TrainingRequest(model="module:antigravity:fly", data="digits", recipe={}, allow_import=True)
    settings = plan_sweep(request, "brief", [{"seed": 0}], {})
    content = {"schema": 1, "settings": [asdict(one) for one in settings]}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    assert run_command(["sweep", "--resume", str(tmp_path)]) == 2
    assert "would import and run code" in capsys.readouterr().err
    assert "antigravity" not in sys.modules


def test_a_sweep_of_a_model_of_ones_own_resumes_where_it_may_import_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vitbench.models.imported
    from vitbench.experiments.training.session import Session

    def run(*arguments: str) -> int:
        monkeypatch.setattr(vitbench.models.imported, "_allowed", False)  # as in a process of its own
        return run_command(["sweep", *arguments])

    def interrupted(self: Session) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "sweep"
    start = ["module:tests.failing_models:works", "--seeds", "0,1", "--set", "images=40", *QUICK, "--out", str(folder)]
    assert run(*start) == 2
    assert "add --allow-import" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(Session, "_end_epoch", interrupted)  # the first training has its checkpoint by then
        assert run(*start, "--allow-import") == 130
    assert (folder / "001" / "training.json").is_file()
    assert run("--resume", str(folder)) == 2
    assert "add --allow-import" in capsys.readouterr().err
    assert not list(folder.rglob("failure.json"))
    assert run("--resume", str(folder), "--allow-import") == 0
    assert run("--resume", str(folder)) == 0  # nothing is left to import


def test_a_sweep_starts_from_weights_of_other_classes_with_a_new_head(tmp_path: Path) -> None:
    path = tmp_path / "seven.safetensors"
    save_checkpoint(build_model("vit_basic_tutorial", image_size=8, num_classes=7), path, {})
    arguments = ["sweep", "vit_basic_tutorial", "--seeds", "0", "--set", "images=40", *QUICK, "--weights", str(path)]
    assert run_command([*arguments, "--out", str(tmp_path / "without")]) == 1
    assert run_command([*arguments, "--replace-head", "--out", str(tmp_path / "with")]) == 0
    figures = json.loads((tmp_path / "with" / "001" / SUMMARY).read_text())["figures"]
    assert figures["origin"].endswith("its head left out")


def test_a_sweep_downloads_where_it_may(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import vitbench.experiments.sweep as sweeps

    asked: list[TrainingRequest] = []

    def start(settings: list[sweeps.Setting], *more: object) -> None:
        asked.extend(one.request for one in settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "start_sweep", start)
    for options, download in ((["--download"], True), ([], False)):
        asked.clear()
        assert run_command(["sweep", "vit_basic", "--data", "cifar10", "--seeds", "0,1", *options]) == 130
        assert [one.download for one in asked] == [download] * 2


def test_a_sweep_resumes_after_an_end_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vitbench.experiments.sweep as sweeps

    start = sweeps.start_training
    arguments = ["sweep", "vit_basic_tutorial", "--seeds", "0,1", "--set", "images=40", *QUICK]

    def fail(request: object, out: Path, progress: object) -> object:
        if out.name == "002":
            raise KeyboardInterrupt
        return start(request, out, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(sweeps, "start_training", fail)
    assert run_command([*arguments, "--out", str(tmp_path / "sweep")]) == 130
    monkeypatch.undo()
    assert run_command(["sweep", "--resume", str(tmp_path / "sweep")]) == 0
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["status"], line["seed"]) for line in lines] == [("ok", "0"), ("ok", "1")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep"], "Which model?"),
        (["sweep", "vit_basic"], "A sweep varies something"),
        (["sweep", "vit_basik", "--seeds", "0"], "Did you mean 'vit_basic'"),
        (["sweep", "vit_basic", "--seeds", "a"], "whole numbers"),
        (["sweep", "vit_basic", "--resume", "x"], "leave out the argument model"),
        (["sweep", "--resume", "x", "--validation", "0"], "leave out --validation"),
        (["sweep", "--resume", "x", "--download"], "leave out --download"),
        (["sweep", "--resume", "x", "--replace-head"], "leave out --replace-head"),
        (["sweep", "vit_basic", "--seeds", "0", "--replace-head"], "together with --weights"),
        (["sweep", "--resume", "/nowhere"], "holds no sweep"),
        (["sweep", "vit_basic", "--validation", "0.1", "--set", "validation=0.2,0.3"], "The validation is given twice"),
        (["sweep", "vit_basic", "--imbalance", "linear:2", "--try", "imbalance=linear:3"], "imbalance is given twice"),
        (["sweep", "vit_basic", "--seeds", "0", "--weights", "w.pt", "--pretrained"], "two starting points"),
    ],
)
def test_wrong_usage_is_one_line_and_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error

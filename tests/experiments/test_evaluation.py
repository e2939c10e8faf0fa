"""``vitbench evaluate`` from the command line, against evaluating by hand; what it writes, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import classification_report
from torch import Tensor, nn

from tests.training.data.folders import make_image_folder
from vitbench.cli import run_command
from vitbench.core.stats.intervals import wilson_interval
from vitbench.experiments.evaluation import _score_values, evaluate_model
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import digest_of, load_checkpoint, save_checkpoint
from vitbench.reports.evaluation import evaluation_page, evaluation_text, write_evaluation
from vitbench.reports.plots.evaluation import confusion_png, reliability_png
from vitbench.training.data.datasets import describe_data, load_images
from vitbench.training.data.images import DataInfo
from vitbench.training.evaluate import evaluate
from vitbench.training.scores import score

pytestmark = pytest.mark.integration

MODEL = "vit_basic_tutorial"
SIZE = 16
DIGITS = [str(digit) for digit in range(10)]


class Shades(nn.Module):
    """As a builder of one's own would return it: the mean colour through one layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


def shades(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return Shades(num_classes)


def trips(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Trips(Shades):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError

    return Trips(num_classes)


def takes_no_classes(*, image_size: tuple[int, int]) -> nn.Module:
    return Shades(10)


def logits_and_features(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class Both(Shades):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(images), images[:, 0].flatten(1)

    return Both(num_classes)


def asks_for_too_much(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    class AsksForTooMuch(Shades):
        def forward(self, images: Tensor) -> Tensor:
            torch.empty(1 << 60, dtype=torch.uint8)
            return super().forward(images)

    return AsksForTooMuch(num_classes)


@pytest.fixture
def imports_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What --allow-import changes is put back afterwards."""
    import sys

    monkeypatch.setattr("vitbench.models.imported._allowed", False)
    monkeypatch.setattr(sys, "path", list(sys.path))


def checkpoint(path: Path, **more: Any) -> Path:
    """A random model for the digits as our training would save it."""
    torch.manual_seed(5)
    model = build_model(MODEL, image_size=SIZE, num_classes=10)
    with torch.no_grad():
        model.get_parameter("head.weight").mul_(20)  # sure of itself
    facts = {"model": MODEL, "image_size": [SIZE, SIZE], "num_classes": 10, "classes": DIGITS, "data": "digits"}
    save_checkpoint(model, path, {**facts, "recipe": {"name": "brief"}, "seed": 0, **more})
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("good") / "best.safetensors")


def ask(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = run_command([str(word) for word in ("evaluate", *words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def asked_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    code, out, _ = ask(capsys, *words, "--json")
    assert code == 0
    result: dict[str, Any] = json.loads(out)
    return result


def by_hand(path: Path) -> tuple[Tensor, Tensor]:
    """Logits and labels of all test digits."""
    model = build_model(MODEL, image_size=SIZE, num_classes=10).eval()
    load_checkpoint(model, path)
    pictures = load_images(describe_data("digits"), "test", image_size=(SIZE, SIZE))
    with torch.no_grad():
        return model(pictures.images / 127.5 - 1), pictures.labels


def test_figures_are_those_of_evaluating_by_hand(capsys: pytest.CaptureFixture[str], good: Path) -> None:
    result = asked_json(capsys, MODEL, "--weights", good, "--data", "digits", "--device", "cpu")
    logits, labels = by_hand(good)
    correct = int((logits.argmax(1) == labels).sum())
    low, high = wilson_interval(correct, 360)
    assert {key: result["accuracy"][key] for key in ("value", "low", "high", "correct", "total")} == {
        "value": correct / 360, "low": low, "high": high, "correct": correct, "total": 360
    }  # fmt: skip
    assert result["top5"]["correct"] == int((logits.topk(5).indices == labels[:, None]).sum())
    assert result["loss"]["value"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    report = classification_report(labels, logits.argmax(1), output_dict=True, zero_division=0)
    for name, row in zip(DIGITS, result["classes"], strict=True):
        assert row["name"] == name
        assert row["f1"] == pytest.approx(report[name]["f1-score"])
        assert (row["precision"], row["recall"]) == pytest.approx((report[name]["precision"], report[name]["recall"]))
    for kind in ("macro", "weighted"):
        assert result[kind]["precision"] == pytest.approx(report[f"{kind} avg"]["precision"])
        assert "zero_division=0" in result["macro"]["method"]
    counts = np.array(result["confusion"]["counts"])
    assert counts.sum(axis=1).tolist() == [int((labels == k).sum()) for k in range(10)]
    assert counts.trace() == correct
    assert sum(one["images"] for one in result["calibration"]["bins"]) == 360
    assert result["weights"]["digest"] == digest_of(good)[:16]
    assert (result["schema"], result["data"], result["images"]) == (1, "digits", 360)
    assert result["chosen"] == "all 360 images of the test split"
    assert result["training"] == {"data": "digits", "recipe": "brief", "seed": 0}
    assert result["throughput"]["value"] == pytest.approx(360 / result["throughput"]["duration_s"])
    assert "one pass of one process" in result["throughput"]["method"]


def test_accuracy_is_that_of_the_evaluation_that_runs_use(good: Path) -> None:
    result = evaluate_model(MODEL, weights=str(good), data="digits", test_images=100, batch_size=32, device="cpu")
    model = build_model(MODEL, image_size=SIZE, num_classes=10)
    load_checkpoint(model, good)
    pictures = load_images(describe_data("digits"), "test", image_size=(SIZE, SIZE), images=100, seed=0)
    direct = evaluate(model, pictures, device="cpu", autocast=contextlib.nullcontext, batch_size=50)
    assert (result["accuracy"]["correct"], result["accuracy"]["total"]) == (direct.correct, 100)
    assert result["loss"]["value"] == pytest.approx(direct.loss, rel=1e-5)
    assert result["chosen"] == "a stratified choice (seed 0) of 100 of 360 images of the test split"


def test_images_are_normalised_as_the_recipe_of_the_weights_says(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.safetensors", recipe={"name": "other", "mean": [0.2, 0.3, 0.4], "std": [1, 2, 3]})
    result = evaluate_model(MODEL, weights=str(path), data="digits", test_images=50, device="cpu")
    assert (result["mean"], result["std"]) == ([0.2, 0.3, 0.4], [1, 2, 3])
    model = build_model(MODEL, image_size=SIZE, num_classes=10).eval()
    load_checkpoint(model, path)
    pictures = load_images(describe_data("digits"), "test", image_size=(SIZE, SIZE), images=50, seed=0)
    mean, std = torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1), torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    with torch.no_grad():
        logits = model((pictures.images / 255 - mean) / std)
    assert result["loss"]["value"] == pytest.approx(
        float(nn.functional.cross_entropy(logits, pictures.labels)), rel=1e-4
    )


def test_amp_is_said_and_near(good: Path) -> None:
    exact, amp = (
        evaluate_model(MODEL, weights=str(good), data="digits", test_images=60, device="cpu", amp=amp)
        for amp in (False, True)
    )
    assert (exact["dtype"], amp["dtype"]) == ("fp32", "amp (bf16)")
    assert amp["loss"]["value"] != exact["loss"]["value"]
    assert amp["loss"]["value"] == pytest.approx(exact["loss"]["value"], rel=0.2)


def test_training_split_is_said_not_to_be_held_out(good: Path) -> None:
    result = evaluate_model(MODEL, weights=str(good), data="digits", split="train", test_images=40, device="cpu")
    assert result["chosen"].endswith("of 40 of 1437 images of the train split, which is not held out")


def test_folder_of_results(capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "evaluation"
    words = [MODEL, "--weights", good, "--data", "digits", "--test-images", "80", "--device", "cpu", "--out", out]
    code, text, errors = ask(capsys, *words)
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "confusion.png", "evaluation.json", "evaluation.md", "reliability.png"
    ]  # fmt: skip
    assert errors.splitlines() == [
        f"Wrote {out / name}" for name in ("evaluation.json", "confusion.png", "reliability.png", "evaluation.md")
    ]
    result = json.loads((out / "evaluation.json").read_text())
    assert text == evaluation_text(result) + "\n"
    page = (out / "evaluation.md").read_text()
    assert page == evaluation_page(result)
    for name in ("confusion.png", "reliability.png"):
        assert f"]({name})" in page
        with Image.open(out / name) as picture:
            assert picture.format == "PNG"
    assert str(tmp_path) not in page + json.dumps(result)
    assert f"{100 * result['accuracy']['value']:.2f} %" in text
    before = {path.name: path.stat().st_ino for path in out.iterdir()}
    code, _, _ = ask(capsys, *words)  # again: each file is replaced
    assert code == 0
    after = {path.name: path.stat().st_ino for path in out.iterdir()}
    assert set(after) == set(before)
    assert all(after[name] != before[name] for name in after)


def test_nothing_is_written_without_out(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text, errors = ask(capsys, MODEL, "--weights", good, "--data", "digits", "--test-images", "20")
    assert (code, errors, list(tmp_path.iterdir())) == (0, "", [])
    assert "expected calibration error" in text


def test_folder_that_cannot_be_made_is_told_before_the_work(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    code, out, errors = ask(capsys, MODEL, "--weights", good, "--data", "digits", "--out", tmp_path / "file")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"Error: Cannot write into .*/file: File exists\. Choose another folder with --out\n", errors)


# --- what does not fit


def one_line(answer: tuple[int, str, str], code: int, pattern: str) -> None:
    assert answer[:2] == (code, "")
    assert re.fullmatch(f"Error: {pattern}\n", answer[2]), answer[2]


def test_another_number_of_classes_is_one_line(capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path) -> None:
    pets = make_image_folder(tmp_path / "pets")
    one_line(
        ask(capsys, MODEL, "--weights", good, "--data", pets),
        2,
        r"The weights best\.safetensors \([0-9a-f]{16}\) have 10 classes, but folder:pets:[0-9a-f]{8} has 2\. Give the "
        r"data that they were trained for, or --replace-head for a random head",
    )
    code, out, errors = ask(capsys, MODEL, "--weights", good, "--data", pets, "--replace-head", "--json")
    assert code == 0
    assert errors == "Warning: the weights: its head left out, a random one in its place\n"
    result = json.loads(out)
    assert (result["num_classes"], result["images"], result["top5"]) == (2, 4, None)
    assert result["weights"]["notes"] == ["its head left out, a random one in its place"]


@pytest.mark.parametrize(
    ("classes", "warning"),
    [
        (DIGITS[::-1], "are those of the data in another order: class 0 is '9' there and '0' in digits"),
        (
            [*DIGITS[:9], "nine\x1b[2J"],
            r"have other names than those of the data: class 9 is 'nine\x1b[2J' there and '9' in digits",
        ),
    ],
)
def test_classes_of_other_names_are_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, classes: list[str], warning: str
) -> None:
    path = checkpoint(tmp_path / "a.safetensors", classes=classes)
    code, out, errors = ask(capsys, MODEL, "--weights", path, "--data", "digits", "--test-images", "20", "--json")
    assert (code, errors) == (0, f"Warning: the classes of the checkpoint {warning}\n")
    assert json.loads(out)["warnings"] == [f"the classes of the checkpoint {warning}"]


def test_outputs_that_are_not_finite_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = build_model(MODEL, image_size=SIZE, num_classes=10)
    with torch.no_grad():
        model.get_parameter("head.weight").fill_(3e38)  # finite, but its products are not
    save_checkpoint(model, tmp_path / "a.safetensors", {"model": MODEL, "image_size": [SIZE, SIZE]})
    one_line(
        ask(capsys, MODEL, "--weights", tmp_path / "a.safetensors", "--data", "digits", "--device", "cpu"),
        1,
        r"The outputs for \d+ of 360 images are NaN or infinite\. The weights are damaged, or .* diverged",
    )


def test_weights_that_are_nan_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = build_model(MODEL, image_size=SIZE, num_classes=10)
    with torch.no_grad():
        model.get_parameter("head.bias")[3] = torch.nan
    torch.save(model.state_dict(), tmp_path / "a.pt")
    words = [MODEL, "--weights", tmp_path / "a.pt", "--data", "digits", "--image-size", "16"]
    one_line(ask(capsys, *words), 2, r"Checkpoint 'a.pt': 'head.bias' holds NaN or infinity .*diverged")


@pytest.mark.usefixtures("imports_allowed")
@pytest.mark.parametrize(
    ("builder", "code", "pattern"),
    [
        (
            "trips",
            1,
            r"The model failed: AssertionError.* \(test_evaluation\.py:\d+ in forward\)\. Give another --image.*",
        ),
        (
            "takes_no_classes",
            2,
            r"module:.* cannot be called with image_size, num_classes: .* unexpected keyword argu.*",
        ),
        (
            "logits_and_features",
            1,
            r"the model returns \(float32 128x10, float32 128x64\): several that could be logits\. Return logits alone.*",
        ),
    ],
)
def test_a_models_own_failures_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, builder: str, code: int, pattern: str
) -> None:
    torch.save(Shades(10).state_dict(), tmp_path / "a.pt")
    words = ["--weights", tmp_path / "a.pt", "--data", "digits", "--image-size", "8", "--device", "cpu"]
    one_line(ask(capsys, f"module:{__name__}:{builder}", *words, "--allow-import"), code, pattern)


@pytest.mark.usefixtures("imports_allowed")
def test_memory_that_runs_out_is_one_line_with_what_to_change(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torch.save(Shades(10).state_dict(), tmp_path / "a.pt")
    words = [
        "--weights",
        tmp_path / "a.pt",
        "--data",
        "digits",
        "--image-size",
        "8",
        "--device",
        "cpu",
        "--batch-size",
        "64",
    ]
    name = f"module:{__name__}:asks_for_too_much"
    one_line(
        ask(capsys, name, *words, "--allow-import"),
        1,
        r"Out of memory on cpu\. Lower --batch-size \(64\) or --image-size, or give --device cpu or --amp\. The library "
        r"says: .*can't allocate memory.*",
    )


@pytest.mark.usefixtures("imports_allowed")
def test_builders_of_ones_own_are_tested_where_that_is_allowed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torch.save(Shades(10).state_dict(), tmp_path / "a.pt")
    words = [f"module:{__name__}:shades", "--weights", tmp_path / "a.pt", "--data", "digits", "--image-size", "8"]
    one_line(ask(capsys, *words), 2, "module:.* would import and run code: add --allow-import if you trust it")
    assert asked_json(capsys, *words, "--allow-import")["accuracy"]["total"] == 360


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["--data", "digits"], "No weights are given: add --weights PATH, or --pretrained .*"),
        (["--data", "digits", "--pretrained"], "vit_basic_tutorial has no published weights.*"),
        (["--data", "digitz", "--weights", "a.pt"], "Unknown data set 'digitz'. Did you mean 'digits'.*"),
        (
            ["--data", "cifar10", "--weights", "a.pt"],
            "Data set 'cifar10' needs the folder that it is in: give --data-dir.*",
        ),
        (["--data", "digits", "--weights", "a.pt"], "Checkpoint 'a.pt' does not exist.*"),
        (["--data", "digits", "--weights", "a.pt", "--split", "val"], "Unknown split 'val': give train or test"),
        (["--data", "digits", "--weights", "a.pt", "--device", "gpu"], "Unknown device 'gpu'.*"),
        (["--data", "digits", "--weights", "a.pt", "--bins", "0"], ".*--bins.*"),
        (["--weights", "a.pt"], "Missing option '--data'.*"),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], pattern: str) -> None:
    one_line(ask(capsys, MODEL, *words), 2, pattern)


def test_a_full_disk_costs_nothing_that_was_computed(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.core.errors import StorageError

    def write(path: Path, content: bytes) -> None:
        raise StorageError("No space left")

    monkeypatch.setattr("vitbench.reports.files.write_atomically", write)
    words = [MODEL, "--weights", good, "--data", "digits", "--test-images", "20", "--out", tmp_path / "out", "--json"]
    code, out, errors = ask(capsys, *words)
    assert (code, errors) == (1, "Error: No space left\n")
    assert json.loads(out)["images"] == 20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="an output that is always full is Linux'")
def test_an_output_that_is_full_costs_no_file(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", MODEL, "--weights", good, "--data", "digits", "--test-images", "20", "--out", tmp_path / "out"]
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code = run_command([*map(str, words), "--device", "cpu"])
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert "Error: The output cannot be written: No space left on device" in errors
    assert code != 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["images"] == 20


def test_a_folder_that_takes_no_file_is_told_before_the_work(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")  # root may write anywhere

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("vitbench.experiments.evaluation.evaluate_model", lambda *_, **__: pytest.fail("it was tested"))
    words = [MODEL, "--weights", good, "--data", "digits", "--out", tmp_path]
    one_line(ask(capsys, *words), 2, "Cannot write into .*: Permission denied. Choose another folder with --out")


def test_the_classes_of_a_head_with_a_name_of_its_own_are_found(tmp_path: Path) -> None:
    """Torchvision's MaxViT keeps its classes in classifier.5."""
    from vitbench.models.cards import ModelCard
    from vitbench.models.weights.claimed import classes_of

    card = ModelCard(
        name="torchvision:maxvit_t", builder="", summary="", family="torchvision", source="torchvision",
        image_size=(224, 224), num_classes=1000, patch=1, size_rule="any",
    )  # fmt: skip
    shapes = {"classifier.3.weight": (512, 512), "classifier.5.weight": (7, 512)}
    assert classes_of(card, shapes, {}) == 7
    assert classes_of(card, {"classifier.5.weight": (7, 99)}, {}) == 1000


@pytest.mark.parametrize(
    ("folders", "warned"),
    [
        (["goldfish", "tench", "great white shark"], "are those of the data in another order"),
        (["tench", "shark", "great white shark"], "have other names than those of the data"),
        (["tench", "goldfish", "great white shark"], None),
        (["n01440764", "n01443537", "n01484850"], None),
    ],
)
def test_published_classes_in_another_order_are_warned_of(good: Path, folders: list[str], warned: str | None) -> None:
    import dataclasses

    from vitbench.experiments.evaluation import _warnings
    from vitbench.experiments.open_model import ModelRequest, open_trained

    trained = dataclasses.replace(
        open_trained(ModelRequest(model=MODEL, weights=str(good), device="cpu")), facts={}, num_classes=3,
        class_names=("tench", "goldfish", "great white shark"),
    )  # fmt: skip
    info = dataclasses.replace(describe_data("digits"), class_names=tuple(folders))
    found = _warnings(trained, info)
    assert len(found) == (warned is not None)
    assert warned is None or warned in found[0]


# --- what is read


def made_up(names: list[str], images: int = 4000, seed: int = 0) -> dict[str, Any]:
    """A result of made-up logits."""
    generator = np.random.default_rng(seed)
    count = len(names)
    labels = generator.integers(0, count, images)
    logits = generator.normal(size=(images, count)).astype(np.float32)
    logits[np.arange(images), labels] += 3
    logits[np.arange(images), (labels + 1) % count] += 2
    info = DataInfo(
        spec="x",
        label="made-up",
        class_names=tuple(names),
        train_images=1,
        test_images=images,
        summary="",
    )
    return {
        "schema": 1, "model": "vit", "weights": {"text": "a.pt (00)", "digest": "00", "notes": []}, "training": {},
        "data": "made-up", "split": "test", "num_classes": count, "image_size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3,
        "device": "cpu", "device_name": "", "dtype": "fp32", "batch_size": 128, "threads": 1, "versions": {"vitbench": "0"},
        "warnings": [], "images": images, "chosen": "all", **_score_values(score(logits, labels), info.class_names, count),
        "throughput": {"value": 1.0, "unit": "image/s", "duration_s": 1.0, "method": "made up"},
    }  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [2, 25, 1000])
def test_images_of_any_number_of_classes(count: int) -> None:
    result = made_up([f"class number {index}" for index in range(count)], images=600)
    for render in (confusion_png, reliability_png):
        content = render(result)
        assert count > 2 or content == render(result)  # nothing of time or version in it
        with Image.open(io.BytesIO(content)) as picture:
            assert 600 <= min(picture.size) <= max(picture.size) <= 2400


@pytest.mark.filterwarnings("error")
def test_names_that_mean_something_to_others_are_shown_as_they_are(tmp_path: Path) -> None:
    names = [r"$\frac{$", "a|b", "<b>bold</b>", "猫\x1b[2J", "two\nlines", "x" * 300, "*s*"]
    result = made_up(names, images=200)
    page = evaluation_page(result)
    assert "\x1b" not in page
    assert r"| a\|b " in page
    assert r"two\\nlines" in page
    assert "&lt;b&gt;" in page
    write_evaluation(result, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result


def test_classes_without_images_are_not_the_worst() -> None:
    result = made_up([f"c{index:02d}" for index in range(40)])
    for one in result["classes"][:25]:
        one.update(images=0, f1=0.0)
    result["confusion"]["counts"] = [[0] * 40 for _ in range(40)]
    text = evaluation_text(result)
    assert "The 15 classes of 15 with the lowest F1; 25 more had no images (all of them" in text
    assert not re.search(r"^\| c(0\d|1\d|2[0-4]) +\| +0\.", text, re.MULTILINE)


def test_a_perfect_model_on_six_images_of_ten_classes_is_shown_by_both_rules() -> None:
    labels = np.arange(6)
    result = {**made_up(DIGITS), **_score_values(score(9 * np.eye(10)[labels], labels), DIGITS, 10)}
    assert result["macro"]["f1"] == pytest.approx(0.6)
    assert (result["macro"]["classes"], result["macro"]["classes_without_images"]) == (10, 4)
    assert (result["macro_present"]["f1"], result["macro_present"]["classes"]) == (1, 6)
    text, page = re.sub(" +", " ", evaluation_text(result)), evaluation_page(result)
    assert "F1: macro | 0.6000, 0.6000, 0.6000 (4 of 10 classes have no images and count 0) |" in text
    assert "| the same of the 6 classes present | 1.0000, 1.0000, 1.0000 |" in text
    assert "macro_present: scikit-learn's default: means over the 6 classes in labels or predictions" in page
    usual = made_up(DIGITS)
    assert usual["macro_present"] is None
    assert not re.search("classes present|no images", evaluation_text(usual))


def test_of_many_classes_a_terminal_shows_the_worst() -> None:
    names = [f"c{index:02d}" for index in range(40)]
    result = made_up(names)
    text, page = evaluation_text(result), evaluation_page(result)
    shown = [name for name in names if re.search(rf"^\| {name} +\| +0\.", text, re.MULTILINE)]
    worst = sorted(result["classes"], key=lambda one: (one["f1"], one["index"]))[:20]
    assert shown == sorted(one["name"] for one in worst)
    assert all(re.search(rf"^\| {name} +\| +0\.", page, re.MULTILINE) for name in names)
    assert "true \\ predicted" not in page  # the image shows it
    assert "true \\ predicted" in evaluation_page(made_up(names[:20]))


def test_what_is_confused_most_comes_first() -> None:
    result = made_up(["a", "b", "c"])
    result["confusion"]["counts"] = [[5, 1, 0], [7, 2, 3], [0, 0, 9]]
    for one, images in zip(result["classes"], (6, 12, 9), strict=True):
        one["images"] = images
    after = evaluation_text(result).rpartition("What is confused most:")[2].strip().splitlines()[2:]
    assert [re.split(r" *\| *", line)[1:-1] for line in after] == [
        ["b", "a", "7", "58.33 %"], ["b", "c", "3", "25.00 %"], ["a", "b", "1", "16.67 %"]
    ]  # fmt: skip


def test_nothing_confused_leaves_the_table_out() -> None:
    result = made_up(["a", "b"])
    result["confusion"]["counts"] = [[5, 0], [0, 3]]
    assert "confused" not in evaluation_text(result)


def test_reports_load_no_torch() -> None:
    import sys

    code = "import sys, vitbench.reports.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

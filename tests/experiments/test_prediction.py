"""``vitbench predict`` from the command line, against a plain forward pass; files that are no images among others."""

from __future__ import annotations

import functools
import io
import json
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.experiments.test_images import damaged, noise
from tests.training.data.folders import make_image_folder
from vitbench.cli import run_command
from vitbench.experiments.images import ImageSource, images_of_files, read_image
from vitbench.experiments.open_model import ModelRequest, open_trained
from vitbench.experiments.prediction import (
    BATCH_SIZE,
    Guess,
    OutputNames,
    Prediction,
    annotate,
    each_prediction,
    fit_image,
)
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import load_checkpoint, save_checkpoint
from vitbench.training.data.datasets import describe_data, load_images

pytestmark = pytest.mark.integration

MODEL = "vit_basic_tutorial"
SIZE = 16
ANIMALS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def checkpoint(path: Path, classes: list[str] | None, count: int = 7) -> Path:
    torch.manual_seed(2)
    model = build_model(MODEL, image_size=SIZE, num_classes=count)
    with torch.no_grad():
        model.get_parameter("head.weight").mul_(5)
    names = {} if classes is None else {"classes": classes}
    save_checkpoint(model, path, {"model": MODEL, "image_size": [SIZE, SIZE], "num_classes": count, **names})
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("good") / "best.safetensors", ANIMALS)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (24, 40)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def ask(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = run_command([str(word) for word in ("predict", MODEL, "--device", "cpu", *words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@functools.cache
def loaded(weights: Path, count: int) -> torch.nn.Module:
    model = build_model(MODEL, image_size=SIZE, num_classes=count).eval()
    load_checkpoint(model, weights)
    return model


def plain(path: Path, weights: Path, count: int = 7) -> Tensor:
    """The probabilities (K,) of an image through the model alone."""
    model = loaded(weights, count)
    pixels, _ = read_image(path, (SIZE, SIZE))
    with torch.no_grad():
        probabilities: Tensor = model(pixels[None] / 127.5 - 1).softmax(1)[0]
    return probabilities


def test_probabilities_are_those_of_a_plain_forward_pass(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path
) -> None:
    paths = [picture(tmp_path / f"{seed}.png", seed) for seed in range(3)]
    code, out, errors = ask(capsys, "--weights", good, *paths, "--top", "4", "--json")
    assert (code, errors) == (0, "")
    found = json.loads(out)
    assert [one["picture"] for one in found["pictures"]] == [str(path) for path in paths]
    for path, one in zip(paths, found["pictures"], strict=True):
        expected = plain(path, good)
        best = expected.topk(4)
        assert [guess["index"] for guess in one["classes"]] == best.indices.tolist()
        assert [guess["class"] for guess in one["classes"]] == [ANIMALS[k] for k in best.indices]
        assert [guess["probability"] for guess in one["classes"]] == pytest.approx(best.values.tolist(), rel=1e-5)
    assert (found["model"], found["image_size"], found["num_classes"]) == (MODEL, [SIZE, SIZE], 7)


def test_more_images_than_a_batch_come_out_in_order(good: Path, tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{seed}.png", seed, (8, 8)) for seed in range(BATCH_SIZE + 3)]
    paths.insert(5, tmp_path / "missing.png")
    warned: list[str] = []
    trained = open_trained(ModelRequest(model=MODEL, weights=str(good), device="cpu"))
    results = list(each_prediction(trained, images_of_files(paths), top=7, warn=warned.append))
    assert [one.image for one in results] == [str(path) for path in paths]
    assert warned == [f"{paths[5]} does not exist"]
    for path, one in zip(paths, results, strict=True):
        if isinstance(one, Prediction):
            assert sum(guess.probability for guess in one.guesses) == pytest.approx(1)
            expected = plain(path, good)
            assert [guess.probability for guess in one.guesses] == pytest.approx(
                expected.sort(descending=True).values.tolist(), rel=1e-4
            )


def test_table_names_each_image_once(capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path) -> None:
    paths = [picture(tmp_path / name, seed) for seed, name in enumerate(("one.png", "two.png"))]
    code, out, _ = ask(capsys, "--weights", good, *paths, "--top", "2")
    assert code == 0
    lines = [re.split(r"  +", line) for line in out.splitlines()]
    assert lines[0] == ["image", "class", "probability"]
    for number, path in enumerate(paths):
        best = plain(path, good).topk(2)
        first, second = lines[2 + 2 * number], lines[3 + 2 * number]
        assert first == [str(path), ANIMALS[best.indices[0]], f"{100 * best.values[0]:.1f} %"]
        assert second == ["", ANIMALS[best.indices[1]], f"{100 * best.values[1]:.1f} %"]
    assert len(lines) == 6


def test_more_classes_than_there_are_means_all(capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path) -> None:
    code, out, _ = ask(capsys, "--weights", good, picture(tmp_path / "a.png"), "--top", "100", "--json")
    assert code == 0
    assert sorted(guess["index"] for guess in json.loads(out)["pictures"][0]["classes"]) == list(range(7))


KINDS = ("missing", "folder", "empty", "text", "cut png", "cut jpeg", "huge", "16 bit")


def test_what_is_no_image_gets_one_line_and_the_rest_is_predicted(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path
) -> None:
    paths: list[Path] = []
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        paths += [damaged(tmp_path / kind, kind), picture(tmp_path / f"after {kind}.png")]
    code, out, errors = ask(capsys, "--weights", good, *paths, "--top", "1")
    assert code == 1
    lines = errors.splitlines()
    assert len(lines) == len(KINDS)
    for path, line in zip(paths[::2], lines, strict=True):
        assert line.startswith(f"Error: {path} ")
    assert [re.split(r"  +", line)[0] for line in out.splitlines()[2:]] == [str(path) for path in paths[1::2]]
    code, out, again = ask(capsys, "--weights", good, *paths, "--json")
    assert (code, again) == (1, errors)
    found = json.loads(out)["pictures"]
    assert [one["picture"] for one in found] == [str(path) for path in paths]
    assert [("error" in one, "classes" in one) for one in found] == [(True, False), (False, True)] * len(KINDS)


def test_exit_code_is_2_where_nothing_could_be_read(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path
) -> None:
    code, out, errors = ask(capsys, "--weights", good, tmp_path / "a.png", tmp_path, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert errors.splitlines() == [
        f"Error: {tmp_path / 'a.png'} does not exist", f"Error: {tmp_path} is a folder: give the images in it"
    ]  # fmt: skip
    assert list((tmp_path / "out").iterdir()) == []


def test_strange_names_are_escaped_where_they_are_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "a.safetensors", ["a\x1b[31m", "b\nb", "c\u202e", "d", "e", "f", "g"])
    path = picture(tmp_path / "red\x1b[31m\nblue.png")
    code, out, _ = ask(capsys, "--weights", weights, path, "--top", "7", "--out", tmp_path / "out")
    assert code == 0
    assert len(out.splitlines()) == 9
    assert not {"\x1b", "\u202e"} & set(out)
    assert r"red\x1b[31m\nblue.png" in out
    assert all(name in out for name in (r"a\x1b[31m", r"b\nb", r"c\u202e"))
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["red_31m_blue-predicted.png"]
    code, out, _ = ask(capsys, "--weights", weights, path, "--top", "7", "--json")
    assert json.loads(out)["pictures"][0]["picture"] == str(path)


# --- names of classes


def test_classes_nobody_named_have_their_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "a.safetensors", None)
    code, out, _ = ask(capsys, "--weights", weights, picture(tmp_path / "a.png"), "--top", "7")
    assert code == 0
    assert sorted(re.findall(r"class \d", out)) == [f"class {index}" for index in range(7)]


def test_names_of_classes_from_a_file(capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    names = tmp_path / "names.txt"
    names.write_bytes("\ufeffapfel\r\nbirne\r\nc d\r\né\r\ne\r\nf\r\ng\r\n\r\n".encode())
    code, out, _ = ask(capsys, "--weights", good, path, "--top", "7", "--classes", names, "--json")
    assert code == 0
    found = {guess["index"]: guess["class"] for guess in json.loads(out)["pictures"][0]["classes"]}
    assert [found[index] for index in range(7)] == ["apfel", "birne", "c d", "é", "e", "f", "g"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "2 class names are given, but the model has 7 classes"),
        (b"a\n\nc\n", r"Class names .*names.txt: line 2 is empty\. Give one name a line"),
        (b"\n", r"Class names .*names.txt: line 1 is empty\. Give one name a line"),
        (b"\xff\xfe\x00\x01", r".*names.txt is not a text in UTF-8: give class names, one a line"),
        (None, r"Class names .*names.txt cannot be read: No such file or directory. Give one name a line"),
    ],
)
def test_files_of_names_that_do_not_fit_are_one_line(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    words = ["--weights", good, picture(tmp_path / "a.png"), "--classes", tmp_path / "names.txt"]
    code, out, errors = ask(capsys, *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"Error: {message}\n", errors), errors


def test_head_of_1000_classes_has_imagenets_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "a.safetensors", None, 1000)
    path = picture(tmp_path / "a.png")
    code, out, _ = ask(capsys, "--weights", weights, path, "--top", "1000", "--json")
    assert code == 0
    names = {guess["index"]: guess["class"] for guess in json.loads(out)["pictures"][0]["classes"]}
    assert (names[0], names[1], names[283], names[999]) == ("tench", "goldfish", "Persian cat", "toilet tissue")


# --- images of data sets


def test_images_of_a_data_set_by_index(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "a.safetensors", None, 10)
    words = ["--weights", weights, "--data", "digits", "--index", "5,0", "--index", "359", "--json"]
    code, out, errors = ask(capsys, *words)
    assert (code, errors) == (0, "")
    found = json.loads(out)["pictures"]
    assert [one["picture"] for one in found] == ["digits test 5", "digits test 0", "digits test 359"]
    pictures = load_images(describe_data("digits"), "test", image_size=(SIZE, SIZE))
    model = build_model(MODEL, image_size=SIZE, num_classes=10).eval()
    load_checkpoint(model, weights)
    with torch.no_grad():
        expected = model(pictures.images[[5, 0, 359]] / 127.5 - 1).softmax(1)
    assert [one["classes"][0]["probability"] for one in found] == pytest.approx(expected.amax(1).tolist(), rel=1e-5)
    assert [one["true_class"] for one in found] == [str(int(pictures.labels[index])) for index in (5, 0, 359)]
    # nobody named the classes, so that they have the names of the data set
    assert [one["classes"][0]["class"] for one in found] == [str(k) for k in expected.argmax(1).tolist()]
    assert [one["right"] for one in found] == [one["true_class"] == one["classes"][0]["class"] for one in found]


def test_images_of_a_folder_by_index_beside_files(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path
) -> None:
    folder = make_image_folder(tmp_path / "pets")
    mine = picture(tmp_path / "mine.png")
    (folder / "train" / "dog" / "1.png").write_bytes(b"no image")
    words = ["--weights", good, mine, "--data", folder, "--index", "0,4,5", "--split", "train", "--json"]
    code, out, errors = ask(capsys, *words)
    assert code == 1
    assert re.fullmatch(r"Error: \S+/pets/train/dog/1\.png is not an image .*\n", errors)
    found = json.loads(out)["pictures"]
    names = [str(mine), "pets/train/cat/0.png", "pets/train/dog/1.png", "pets/train/dog/2.png"]
    assert [one["picture"] for one in found] == names
    assert [one.get("true_class") for one in found] == [None, "cat", None, "dog"]
    assert [guess["probability"] for guess in found[1]["classes"]] == pytest.approx(
        plain(folder / "train" / "cat" / "0.png", good).topk(5).values.tolist(), rel=1e-5
    )
    assert found[1]["right"] == (found[1]["classes"][0]["class"] == "cat")
    _, table, _ = ask(capsys, *words[:-1])
    assert re.search(r"^pets/train/cat/0\.png +cat +\w+ +\d+\.\d %$", table, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "There is nothing to predict: give the paths of images, or --data NAME --index N"),
        (["--data", "digits"], "--data NAME and --index N go together.*"),
        (["--index", "3"], "There is nothing to predict.*"),
        (["a.png", "--data-dir", "data"], "--data-dir and --download go with --data NAME.*"),
        (["a.png", "--index", "3"], "--data NAME and --index N go together.*"),
        (["--data", "digits", "--index", "360"], "digits has 360 test images, and none has --index 360. Give 0 to 359"),
        (["--data", "digits", "--index", "1,x"], "Option --index: 'x' is not a whole number from 0"),
        (["--data", "digits", "--index", "-1"], "Option --index: '-1' is not a whole number from 0"),
        (["--data", "digits", "--index", "1,"], "Option --index: '' is not a whole number from 0"),
        (
            ["--data", "digits", "--index", "1", "--split", "val"],
            "Unknown split 'val': give test or train|Unknown split.*",
        ),
        (["--data", "cifar10", "--index", "5"], "Data set 'cifar10' needs the folder that it is in.*"),
        (["a.png", "--top", "0"], ".*--top.*"),
        (["a.png", "--num-classes", "3"], "Checkpoint 'best.safetensors' does not fit the model: .*"),
        (["a.png", "--image-size", "17"], "Image size 17 does not fit vit_basic_tutorial: .*"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], good: Path, words: list[str], message: str
) -> None:
    code, out, errors = ask(capsys, "--weights", good, *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"Error: ({message})\n", errors), errors


def test_outputs_that_are_not_finite_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = build_model(MODEL, image_size=SIZE, num_classes=3)
    with torch.no_grad():
        model.get_parameter("head.weight").fill_(3e38)
    save_checkpoint(model, tmp_path / "a.safetensors", {"model": MODEL, "image_size": [SIZE, SIZE]})
    code, out, errors = ask(capsys, "--weights", tmp_path / "a.safetensors", picture(tmp_path / "a.png"))
    assert (code, out) == (1, "")
    assert errors.startswith("Error: The outputs of vit_basic_tutorial are NaN or infinite: ")


def test_one_image_whose_outputs_are_not_finite_costs_no_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(MODEL, image_size=SIZE, num_classes=3)
    save_checkpoint(model, tmp_path / "a.safetensors", {"model": MODEL, "image_size": [SIZE, SIZE]})
    paths = [picture(tmp_path / f"{name}.png", seed) for seed, name in enumerate("abc")]
    Image.new("RGB", (20, 20), (255, 255, 255)).save(paths[1])
    # white alone becomes infinite
    monkeypatch.setattr(
        "vitbench.training.augmentation.augment.normalise",
        lambda images, *_: images / (255.0 - images.float().mean((1, 2, 3), keepdim=True)),
    )
    code, out, errors = ask(capsys, "--weights", tmp_path / "a.safetensors", *paths, "--json")
    assert code == 1
    found = json.loads(out)["pictures"]
    assert ["classes" in one for one in found] == [True, False, True]
    assert errors.startswith("Error: The outputs of vit_basic_tutorial are NaN or infinite: ")
    assert "b.png" in errors


def test_a_disk_that_becomes_full_costs_no_answer(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.core.errors import StorageError
    from vitbench.core.run_folder import write_atomically

    def write(path: Path, content: bytes) -> None:
        if path.name.startswith("c"):
            raise StorageError("No space left")
        write_atomically(path, content)

    monkeypatch.setattr("vitbench.experiments.prediction.write_atomically", write)
    paths = [picture(tmp_path / f"{name}.png", seed) for seed, name in enumerate("abcd")]
    code, out, errors = ask(capsys, "--weights", good, *paths, "--out", tmp_path / "out", "--json")
    assert (code, errors) == (1, "Error: No space left\n")
    found = json.loads(out)["pictures"]
    assert [Path(one["picture"]).name for one in found] == ["a.png", "b.png", "c.png", "d.png"]
    assert ["file" in one for one in found] == [True, True, False, False]


def test_ctrl_c_costs_no_answer(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitbench.experiments import prediction

    each = prediction.each_prediction

    def interrupted(*arguments: Any, **options: Any) -> Any:
        for number, one in enumerate(each(*arguments, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(prediction, "each_prediction", interrupted)
    paths = [picture(tmp_path / f"{name}.png", seed) for seed, name in enumerate("abcd")]
    code, out, errors = ask(capsys, "--weights", good, *paths, "--json")
    assert (code, errors) == (130, "Interrupted.\n")
    assert [Path(one["picture"]).name for one in json.loads(out)["pictures"]] == ["a.png", "b.png"]


def test_what_was_not_loaded_as_it_stands_is_said(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path
) -> None:
    path = picture(tmp_path / "a.png")
    code, _, errors = ask(capsys, "--weights", good, path, "--image-size", "32")
    assert (code, errors) == (
        0,
        "Warning: the weights: positions resampled from 4x4 to 8x8 patches (bicubic, as vitbench)\n",
    )
    code, _, errors = ask(capsys, "--weights", good, path, "--num-classes", "3")
    assert code == 2
    assert "--replace-head" in errors
    code, _, errors = ask(capsys, "--weights", good, path, "--num-classes", "3", "--replace-head")
    assert (code, errors) == (0, "Warning: the weights: its head left out, a random one in its place\n")


# --- annotated images


def test_annotated_images_are_written(capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path) -> None:
    paths = [picture(tmp_path / "a.png", 1, (8, 8)), picture(tmp_path / "wide.png", 2, (20, 900))]
    out = tmp_path / "new" / "out"
    code, _, errors = ask(capsys, "--weights", good, *paths, "--data", "digits", "--index", "2", "--out", out)
    assert (code, errors) == (0, f"Wrote 3 images into {out}\n")
    names = ["a-predicted.png", "digits-test-2-predicted.png", "wide-predicted.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        with Image.open(out / name) as written:
            assert (written.format, written.width) == ("PNG", 480)
            assert written.height >= 5 * 26
    with Image.open(out / "a-predicted.png") as written, Image.open(paths[0]) as original:
        # the middle of each pixel of the small image, below the strip that holds the text
        enlarged, pixels = np.asarray(written.convert("RGB")), np.asarray(original)
        assert np.array_equal(enlarged[90:480:60, 30::60], pixels[1:])


def test_a_thousand_classes_of_any_length_fit_the_image() -> None:
    guesses = tuple(Guess(index=index, name="x" * 10 ** (index % 4), probability=0.2) for index in range(5))
    content = annotate(fit_image(noise(1, 1)), Prediction(image="a", guesses=guesses, truth="y\n" * 300))
    with Image.open(io.BytesIO(content)) as drawn:
        assert drawn.size[0] == 480


def test_written_names_differ_and_stay_in_the_folder(tmp_path: Path) -> None:
    names = OutputNames(tmp_path)
    stems = [
        "a",
        "A",
        "a",
        "../../etc/x",
        "..",
        "",
        "/",
        "e\u0301",
        "é",
        "ß",
        "SS",
        "a/b",
        "a\\b",
        "x" * 500,
        "猫" * 200,
    ]
    taken = [names.take(stem) for stem in stems]
    assert taken[:3] == ["a-predicted.png", "A-predicted-2.png", "a-predicted-3.png"]
    assert len({name.casefold() for name in taken}) == len(stems)
    for name in taken:
        assert Path(name).name == name
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
        assert len(name.encode()) < 200
        (tmp_path / name).touch()


def test_images_that_are_read_are_never_written_over(
    capsys: pytest.CaptureFixture[str], good: Path, tmp_path: Path
) -> None:
    first, second = picture(tmp_path / "a.png", 1), picture(tmp_path / "a-predicted.png", 2)
    link = tmp_path / "b-predicted.png"
    link.symlink_to(first)
    other = picture(tmp_path / "b.png", 3)
    before = {path: path.read_bytes() for path in (first, second, other)}
    code, out, _ = ask(capsys, "--weights", good, first, second, link, other, "--out", tmp_path, "--json")
    assert code == 0
    assert {path: path.read_bytes() for path in before} == before
    assert link.is_symlink()
    assert [one["file"] for one in json.loads(out)["pictures"]] == [
        "a-predicted-2.png", "a-predicted-predicted.png", "b-predicted-predicted.png", "b-predicted-2.png"
    ]  # fmt: skip


def test_whole_photographs_are_not_kept(good: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 1, (600, 800))
    alive: list[weakref.ref[Image.Image]] = []
    most = 0

    def read(size: tuple[int, int]) -> tuple[Tensor, Image.Image]:
        nonlocal most
        pixels, whole = read_image(path, size)
        alive.append(weakref.ref(whole))
        most = max(most, sum(reference() is not None for reference in alive))
        return pixels, whole

    trained = open_trained(ModelRequest(model=MODEL, weights=str(good), device="cpu"))
    sources = [ImageSource(name=str(number), stem="a", read=read) for number in range(12)]
    list(each_prediction(trained, sources, out=tmp_path))
    assert len(alive) == 12
    assert most <= 2  # the one before may still be there while the next is read

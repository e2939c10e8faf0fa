"""The axis of weights: a checkpoint, or what is published, is tested and timed as it is, or refused in one line."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import vitbench
from tests.launching import SharedLauncher, shared_server
from vitbench.cli import run_command
from vitbench.core import run_folder as store
from vitbench.core.records import Cell, Record
from vitbench.core.stats.intervals import wilson_interval
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import load_checkpoint, save_checkpoint
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import read_runs
from vitbench.runner.run import resume_run
from vitbench.training.data.datasets import describe_data, load_images
from vitbench.training.evaluate import Evaluation, evaluate

ROOT = Path(__file__).parents[2]
MODEL = "vit_basic_tutorial"
SIZE = 16
TESTED = 200  # pictures with --quick
Answer = tuple[int, str, str]


def checkpoint_of(path: Path, *, seed: int = 0, classes: int = 10, image_size: int = SIZE, scale: float = 1.0) -> Path:
    """A checkpoint of a random model, its last layer ``scale`` times as large."""
    torch.manual_seed(seed)
    model = build_model(MODEL, image_size=image_size, num_classes=classes)
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.mul_(scale)
    save_checkpoint(model, path, {"model": MODEL})
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which workers look for what was downloaded before."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def server(hub: Path) -> Iterator[list[SharedLauncher]]:
    """Workers that no weights can reach: an empty cache and no network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(hub))
        patch.delenv("HF_HUB_CACHE", raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
        with shared_server("timm", "torchvision") as launchers:
            yield launchers


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(tmp_path_factory.mktemp("good") / "good.safetensors", seed=3)


def arguments(out: Path, *more: str, metrics: str = "accuracy,params", size: int = SIZE) -> list[str]:
    data = "digits" if "accuracy" in metrics else "none"
    return [
        "run", "--models", MODEL, "--data", data, "--quick", "--metrics", metrics, "--image-sizes", str(size),
        "--batch-sizes", "1", "--modes", "infer", "--devices", "cpu", "--threads", "1", "--out", str(out), *more,
    ]  # fmt: skip


def suite_for(folder: Path) -> str:
    """A suite that tests at the sizes that it measures at: lightweight trains at a size of its own."""
    path = folder / "tests.toml"
    path.write_text('models = ["vit_basic_tutorial"]\n[training]\nrecipe = "brief"\nsteps = 8\n')
    return str(path)


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> Answer:
    code = run_command(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def value(record: Record, metric: str) -> float:
    measurement = record.measurement(metric)
    assert measurement is not None
    return measurement.value


def evaluated(path: Path, images: int = TESTED) -> Evaluation:
    """What a checkpoint is worth, without vitbench run."""
    model = build_model(MODEL, image_size=SIZE, num_classes=10)
    load_checkpoint(model, path)
    pictures = load_images(describe_data("digits"), "test", image_size=(SIZE, SIZE), images=images, seed=0)
    return evaluate(model, pictures, device="cpu", autocast=contextlib.nullcontext, batch_size=50)


@pytest.fixture(scope="module")
def tested(server: list[SharedLauncher], good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from the command line that tests a checkpoint."""
    folder = tmp_path_factory.mktemp("tested")
    words = arguments(folder / "run", "--weights", str(good))
    assert run_command(words) == 0
    return folder / "run"


def test_a_checkpoint_is_tested_and_not_trained(tested: Path, good: Path) -> None:
    timed, test = store.read_records(tested)
    assert [(one.cell.tests, one.cell.trains, one.cell.mode, one.status) for one in (timed, test)] == [
        (False, False, "infer", "ok"), (True, False, "infer", "ok")
    ]  # fmt: skip
    assert {one.cell.weights for one in (timed, test)} == {sha256(good)[:16]}
    assert (test.cell.data, test.cell.recipe_hash) == ("digits", None)
    assert not (tested / store.CHECKPOINTS).exists()
    assert {one.metric for one in test.measurements if not one.metric.endswith(("params", "bytes", "buffers"))} == {
        "accuracy", "class_f1", "class_precision", "class_recall", "macro_f1", "test_loss", "test_images"
    }  # fmt: skip
    assert value(timed, "params") == value(test, "params")


def test_its_accuracy_is_that_of_evaluating_it_directly(tested: Path, good: Path) -> None:
    test = store.read_records(tested)[1]
    direct = evaluated(good)
    assert value(test, "accuracy") == direct.correct / TESTED
    assert value(test, "test_loss") == pytest.approx(direct.loss, rel=1e-5)
    assert value(test, "test_images") == direct.total == TESTED
    accuracy = test.measurement("accuracy")
    assert accuracy is not None
    assert accuracy.detail == f"{direct.correct} of {TESTED} right"
    assert f"loading the weights {sha256(good)[:16]}" in accuracy.method


def test_the_report_shows_the_test_in_the_row_of_the_model(tested: Path, good: Path) -> None:
    (row,) = build_rows(read_runs([tested]))
    assert (len(row.infer), row.train, row.training is not None) == (1, (), True)
    assert row.axes["weights"] == sha256(good)[:16]
    assert (row.axes["data"], row.axes["recipe"], row.axes["training batch"]) == ("digits", "", "")
    assert row.status == "ok"
    figure = row.trained("accuracy").estimate
    direct = evaluated(good)
    assert figure is not None
    assert (figure.value, figure.low, figure.high) == (
        direct.correct / TESTED,
        *wilson_interval(direct.correct, TESTED),
    )
    page = (tested / "report.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith(f"| {MODEL} ")]
    assert lines
    assert any(f"{100 * direct.correct / TESTED:.1f}" in line for line in lines), lines
    assert "accuracy" in (tested / "report.csv").read_text().splitlines()[0]


def test_a_run_with_weights_is_resumed_without_repeating_anything(
    tested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(tested, tmp_path / "run")
    lines = (folder / store.RECORDS).read_text().splitlines(keepends=True)
    (folder / store.RECORDS).write_text(lines[0])
    code, _, errors = ask(capsys, "run", "--resume", str(folder), "--allow-changed-environment")
    assert code == 0, errors
    again = (folder / store.RECORDS).read_text().splitlines(keepends=True)
    assert again[0] == lines[0]
    first, second = Record.from_json(lines[1]), Record.from_json(again[1])
    assert (first.cell, value(first, "accuracy")) == (second.cell, value(second, "accuracy"))


def copy_of(run: Path, target: Path) -> Path:
    return Path(shutil.copytree(run, target))


def test_weights_of_a_suite_file_and_of_python_are_the_same_cells(
    server: list[SharedLauncher], tested: Path, good: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text(
        f'models = ["{MODEL}"]\nweights = "{good}"\nimage_sizes = [{SIZE}]\ndevices = ["cpu"]\nthreads = [1]\n'
        f'metrics = ["accuracy", "params"]\n[training]\ndata = "digits"\ntest_images = {TESTED}\n'
    )
    summary = vitbench.run_suite(str(suite), out=tmp_path / "run")
    assert [(one.cell.id, one.status) for one in summary.records] == [
        (one.cell.id, one.status) for one in store.read_records(tested)
    ]
    assert value(summary.records[1], "accuracy") == value(store.read_records(tested)[1], "accuracy")


# --- timed cells


def test_a_timed_cell_uses_the_weights(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights so large that the outputs overflow are an error, which others (``tested``) are not."""
    huge = checkpoint_of(tmp_path / "huge.safetensors", scale=3e38)
    words = arguments(tmp_path / "huge", metrics="latency")
    assert run_command([*words, "--weights", str(huge)]) == 1
    (record,) = store.read_records(tmp_path / "huge")
    assert (record.status, record.cause, record.cell.weights) == ("error", "not_finite", sha256(huge)[:16])


def test_a_test_that_overflows_is_an_error_and_no_accuracy(server: list[SharedLauncher], tmp_path: Path) -> None:
    huge = checkpoint_of(tmp_path / "huge.safetensors", scale=3e38)
    words = arguments(tmp_path / "run", "--weights", str(huge), metrics="accuracy")
    assert run_command(words) == 1
    (record,) = store.read_records(tmp_path / "run")
    accuracy = record.measurement("accuracy")
    assert accuracy is not None
    assert (record.status, record.cause, accuracy.status) == ("error", "not_finite", "error")
    (row,) = build_rows(read_runs([tmp_path / "run"]))
    assert row.status == "test error"


def test_a_dry_run_says_what_would_be_tested(
    server: list[SharedLauncher], good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ask(capsys, *arguments(tmp_path / "run", "--weights", str(good), "--dry-run"))
    assert code == 0
    assert f"{MODEL} 16px b32 cpu fp32 test on digits" in out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_downloads_nothing_and_says_so(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--devices", "cpu", "--dry-run"]
    published = ["--models", "timm:vit_tiny_patch16_224", "--metrics", "params", "--data", "none", "--pretrained"]
    code, out, err = ask(capsys, *words, *published, "--image-sizes", "224")
    assert (code, "timm:vit_tiny_patch16_224 224px b1 " in out) == (0, True)
    assert "The published weights are not tried, which may download them" in err
    data = tmp_path / "data"
    code, out, err = ask(capsys, *words, "--suite", "imbalance", "--data-dir", str(data), "--download")
    assert (code, "cifar-vit-base-imbalanced-both on cifar10" in out) == (0, True)
    assert "cifar10 is not looked at, which may download it" in err
    assert not data.exists()


# --- what is refused before the first cell


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def a_folder(folder: Path) -> Path:
    (folder / "weights").mkdir()
    return folder / "weights"


def a_pickle(folder: Path) -> Path:
    torch.save({"head": Malicious()}, folder / "code.pt")
    return folder / "code.pt"


def an_old_pickle(folder: Path) -> Path:
    (folder / "old.pkl").write_bytes(pickle.dumps(Malicious()))
    return folder / "old.pkl"


def not_finite(folder: Path) -> Path:
    model = build_model(MODEL, image_size=SIZE, num_classes=10)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    save_checkpoint(model, folder / "nan.safetensors", {})
    return folder / "nan.safetensors"


def of_another_model(folder: Path) -> Path:
    save_checkpoint(build_model("vit_layer6_32", num_classes=10), folder / "other.safetensors", {})
    return folder / "other.safetensors"


def an_empty_file(folder: Path) -> Path:
    (folder / "empty.pt").touch()
    return folder / "empty.pt"


def text(folder: Path) -> Path:
    (folder / "notes.pt").write_text("these are no weights")
    return folder / "notes.pt"


def of_other_classes(folder: Path) -> Path:
    return checkpoint_of(folder / "head.safetensors", classes=7)


REFUSED = [
    (lambda folder: folder / "nothing.pt", "nothing.pt' is not there, or no file (seen from"),
    (a_folder, "weights' is not there, or no file"),
    (a_pickle, "Checkpoint 'code.pt' is refused, as it holds pickled code ("),
    (an_old_pickle, "Checkpoint 'old.pkl' is refused, as it holds a pickle of more than tensors"),
    (an_empty_file, "Checkpoint 'empty.pt' is empty"),
    (text, "Checkpoint 'notes.pt' is neither safetensors nor a file of torch.save"),
    (not_finite, "Checkpoint 'nan.safetensors'"),
    (of_another_model, "Checkpoint 'other.safetensors' does not fit"),
    (of_other_classes, "Checkpoint 'head.safetensors' does not fit"),
    (of_other_classes, "--replace-head"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    REFUSED,
    ids=["absent", "folder", "pickle", "old pickle", "empty", "text", "NaN", "model", "head", "way out"],
)
def test_a_checkpoint_that_cannot_be_used_gets_one_line_before_the_first_cell(
    server: list[SharedLauncher],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: object,
    message: str,
) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    code, out, errors = ask(capsys, *arguments(tmp_path / "run", "--weights", str(path)))
    assert code == 2, errors
    assert out == ""
    assert one_error(errors).startswith("Error: ")
    assert message in one_error(errors)
    assert not (tmp_path / "run").exists()
    assert not list(ROOT.glob("executed")) + list(tmp_path.glob("executed"))


def one_error(errors: str) -> str:
    """The only line that is no note on what is under way."""
    notes = ("Loading torch", "Trying the weights", "The weights of ")
    lines = [line for line in errors.splitlines() if not line.startswith(notes)]
    assert len(lines) == 1, errors
    return lines[0]


def test_a_head_of_other_classes_is_left_out_where_that_is_asked_for(
    server: list[SharedLauncher], tmp_path: Path
) -> None:
    path = checkpoint_of(tmp_path / "head.safetensors", classes=7)
    words = arguments(tmp_path / "run", "--weights", str(path), "--replace-head")
    assert run_command(words) == 0
    timed, test = store.read_records(tmp_path / "run")
    assert {timed.status, test.status} == {"ok"}
    assert timed.cell.weights == test.cell.weights == sha256(path)[:16]
    assert value(test, "params") == sum(one.numel() for one in build_model(MODEL, image_size=SIZE).parameters())
    model = seeded(test.cell)  # the head is the model's own, by the cell's seed
    load_checkpoint(model, path, replace_head=True)
    pictures = load_images(describe_data("digits"), "test", image_size=(SIZE, SIZE), images=TESTED, seed=0)
    direct = evaluate(model, pictures, device="cpu", autocast=contextlib.nullcontext, batch_size=50)
    assert value(test, "accuracy") == direct.correct / TESTED


def test_one_of_several_sets_of_weights_is_tested_and_is_another_cell(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = {}
    for name, seed in (("student", 1), ("teacher", 2)):
        torch.manual_seed(seed)
        states[name] = build_model(MODEL, image_size=SIZE, num_classes=10).state_dict()
    path = tmp_path / "dino.pth"
    torch.save({**states, "epoch": 3}, path)
    code, _, errors = ask(capsys, *arguments(tmp_path / "run", "--weights", str(path)))
    assert code == 2
    assert "'student', 'teacher'" in one_error(errors)
    assert run_command(arguments(tmp_path / "run", "--weights", str(path), "--entry", "teacher")) == 0
    timed, test = store.read_records(tmp_path / "run")
    assert {timed.status, test.status} == {"ok"}
    assert timed.cell.weights == test.cell.weights == f"{sha256(path)[:16]}:teacher"
    model = seeded(test.cell)
    model.load_state_dict(states["teacher"])
    pictures = load_images(describe_data("digits"), "test", image_size=(SIZE, SIZE), images=TESTED, seed=0)
    direct = evaluate(model, pictures, device="cpu", autocast=contextlib.nullcontext, batch_size=50)
    assert value(test, "accuracy") == direct.correct / TESTED


def seeded(cell: Cell) -> nn.Module:
    torch.manual_seed(cell.seed)
    return build_model(cell.model, image_size=cell.image_size, num_classes=cell.num_classes)


def test_a_checkpoint_is_resampled_for_each_size_that_it_is_tested_at(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint_of(tmp_path / "large.safetensors", image_size=16)
    words = arguments(tmp_path / "run", "--suite", suite_for(tmp_path), "--weights", str(path), metrics="accuracy")
    assert run_command([*words, "--image-sizes", "8,16"]) == 0
    resampled = f"The weights of {MODEL} at 8 px: positions resampled from 4x4 to 2x2 patches ("
    assert resampled in capsys.readouterr().err
    records = store.read_records(tmp_path / "run")
    assert [(record.cell.image_size, record.status) for record in records] == [((8, 8), "ok"), ((16, 16), "ok")]


def test_a_checkpoint_of_ours_is_timed_and_tested_at_the_size_that_it_was_trained_at(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = build_model(MODEL, image_size=(24, 16), num_classes=10)
    path = tmp_path / "mine.safetensors"
    save_checkpoint(module, path, {"model": MODEL, "image_size": [24, 16], "num_classes": 10})
    words = [word for word in arguments(tmp_path / "run") if word not in (str(SIZE), "--image-sizes")]
    assert run_command([*words, "--weights", str(path)]) == 0
    records = store.read_records(tmp_path / "run")
    assert [(one.cell.image_size, one.cell.tests, one.status) for one in records] == [
        ((24, 16), False, "ok"),
        ((24, 16), True, "ok"),
    ]
    again = resume_run(tmp_path / "run")  # the suite in the folder stands for the same cells: nothing is left to do
    assert list(again.records) == records
    capsys.readouterr()
    code, out, _ = ask(capsys, *words, "--weights", str(path), "--image-sizes", "8", "--dry-run")
    assert code == 0
    assert f"{MODEL} 8px b1 cpu" in out
    assert f"{MODEL} 8px b32 cpu fp32 test on digits" in out


def test_a_checkpoint_without_a_size_is_tested_at_the_models_own(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--suite", "resolution", "--models", MODEL, "--metrics", "params", "--devices", "cpu", "--dry-run"]
    bare = tmp_path / "bare.pt"
    torch.save(build_model(MODEL, num_classes=10).state_dict(), bare)
    assert run_command([*words, "--weights", str(bare)]) == 0
    out = capsys.readouterr().out
    assert f"{MODEL} 32px b1" in out
    assert "\n1 cells" in out


MISTAKES = [
    (["--models", "vit_basic_tutorial,vit_basic", "--weights", "GOOD"], "A checkpoint fits one model"),
    (["--models", "timm:vit_tiny*", "--weights", "GOOD"], "A checkpoint fits one model"),
    (["--weights", "GOOD", "--pretrained"], "--weights and --pretrained are given together"),
    (["--replace-head"], "--replace-head goes with --weights PATH or --pretrained"),
    (["--entry", "teacher"], "--entry says how to read a file"),
    (["--entry", "teacher", "--pretrained"], "--entry says how to read a file"),
    (["--grid", "4x16"], "--grid says how to read a file"),
    (["--grid", "64", "--weights", "GOOD"], "'64'"),
    (["--pretrained"], f"{MODEL} has no published weights: leave out --pretrained, or choose models that have"),
    (["--weights", ""], "Option --weights: "),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_weights_that_contradict_the_rest_get_one_line_without_loading_torch(
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("vitbench.runner.run.make_launcher", None)  # never reached
    given = [str(good) if word == "GOOD" else word for word in words]
    code, out, errors = ask(capsys, *arguments(tmp_path / "run"), *given)
    assert (code, out) == (2, ""), errors
    assert message in one_error(errors)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["timm:vit_tiny_patch16_224", "torchvision:vit_b_16", "vit_b16_finetune"])
def test_published_weights_that_cannot_be_downloaded_get_one_line_that_says_what_to_do(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    words = ["run", "--models", model, "--metrics", "latency", "--data", "none", "--image-sizes", "224", "--pretrained"]
    code, out, errors = ask(capsys, *words, "--devices", "cpu", "--out", str(tmp_path / "run"))
    assert (code, out) == (2, ""), errors
    line = one_error(errors)
    assert line.startswith("Error: Could not download the weights of ")
    assert "Connect to the network once, copy the cache" in line
    assert not (tmp_path / "run").exists()


def test_a_model_of_timm_without_published_weights_is_refused(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    name = next(one for one in timm.list_models("vit_*") if not timm.get_pretrained_cfg(one).has_weights)
    words = ["run", "--models", f"timm:{name}", "--metrics", "params", "--data", "none", "--pretrained"]
    code, _, errors = ask(capsys, *words, "--out", str(tmp_path / "run"))
    assert code == 2
    assert one_error(errors).startswith(f"Error: timm:{name} has no published weights: leave out --pretrained")


# --- published weights: a file in the hub's cache stands for a download

PUBLISHED = "timm:mobilevit_xxs"
TAG = "cvnets_in1k"


@pytest.fixture
def published(server: list[SharedLauncher], hub: Path) -> Iterator[None]:
    """In the cache: mobilevit_xxs whose features are 10 whatever it sees, and whose head makes infinity of them."""
    torch.manual_seed(0)
    model = build_model(PUBLISHED)
    norm, head = model.get_submodule("final_conv.bn"), model.get_submodule("head.fc")
    with torch.no_grad():
        for tensor, number in ((norm.weight, 0.0), (norm.bias, 10.0), (head.weight, 3e38)):
            tensor.fill_(number)
    folder = hub / "hub" / f"models--timm--mobilevit_xxs.{TAG}"
    snapshot = folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(snapshot.name)
    save_checkpoint(model, snapshot / "model.safetensors", {})
    yield
    shutil.rmtree(folder)


@pytest.mark.usefixtures("published")
def test_published_weights_are_loaded_and_named(tmp_path: Path) -> None:
    words = ["run", "--models", PUBLISHED, "--quick", "--batch-sizes", "1", "--modes", "infer", "--devices", "cpu"]
    words += ["--threads", "1", "--image-sizes", "64"]
    timed = [*words, "--metrics", "latency", "--data", "none"]
    assert run_command([*timed, "--pretrained", "--out", str(tmp_path / "timed")]) == 1
    (record,) = store.read_records(tmp_path / "timed")
    assert (record.status, record.cause, record.cell.weights) == ("error", "not_finite", f"pretrained:{TAG}")
    # ten classes: the head is a fresh one, whose outputs are finite, and the same for all pictures: one class is right
    tested = [*words, "--metrics", "accuracy", "--data", "digits", "--pretrained"]
    assert run_command([*tested, "--out", str(tmp_path / "refused")]) == 2  # the tests would be of a random head
    tested += ["--replace-head", "--out", str(tmp_path / "tested")]
    assert run_command(tested) == 0
    (record,) = store.read_records(tmp_path / "tested")
    assert (record.status, record.cell.tests, record.cell.trains) == ("ok", True, False)
    assert (record.cell.weights, value(record, "test_images")) == (f"pretrained:{TAG}", TESTED)
    pictures = load_images(describe_data("digits"), "test", image_size=(SIZE, SIZE), images=TESTED, seed=0)
    assert value(record, "accuracy") in {int(count) / TESTED for count in pictures.labels.bincount()}


# --- a file that changes


def test_a_file_that_changes_during_a_run_is_an_error_of_the_cells_behind_it(
    server: list[SharedLauncher], tmp_path: Path
) -> None:
    """Two cells; the file is replaced as soon as the first has its record."""
    from vitbench.runner.progress import Progress

    path = checkpoint_of(tmp_path / "mine.safetensors", seed=1)
    old = sha256(path)[:16]

    class Replaces(Progress):
        def cell_done(self, record: Record) -> None:
            super().cell_done(record)
            checkpoint_of(path, seed=2)

    summary = vitbench.run_suite(
        suite_for(tmp_path),
        weights=str(path),
        metrics=["latency"],
        data="none",
        image_sizes=[SIZE],
        batch_sizes=[1, 2],
        devices=["cpu"],
        threads=[1],
        quick=True,
        out=tmp_path / "run",
        progress=Replaces(),
    )
    first, second = summary.records
    assert (first.status, second.status) == ("ok", "error")
    assert second.detail == f"mine.safetensors has changed since the run began ({old} is now {sha256(path)[:16]})"


def test_a_run_whose_checkpoint_has_gone_is_resumed_with_one_line(
    server: list[SharedLauncher], tested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(tested, tmp_path / "run")
    path = folder / store.SUITE
    text_of_suite = path.read_text()
    path.write_text(text_of_suite.replace("good.safetensors", "gone.safetensors"))
    before = (folder / store.RECORDS).read_bytes()
    code, _, errors = ask(capsys, "run", "--resume", str(folder), "--allow-changed-environment")
    assert code == 2
    assert "gone.safetensors' is not there" in one_error(errors)
    assert (folder / store.RECORDS).read_bytes() == before


def test_a_run_whose_checkpoint_has_changed_is_not_resumed_in_silence(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint_of(tmp_path / "mine.safetensors", seed=1)
    folder = tmp_path / "run"
    assert ask(capsys, *arguments(folder, "--weights", str(path), metrics="params"))[0] == 0
    checkpoint_of(path, seed=2)
    _, _, errors = ask(capsys, "run", "--resume", str(folder), "--allow-changed-environment")
    assert "mine.safetensors has changed" in errors


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that is there and cannot be read")
def test_a_checkpoint_that_cannot_be_read_is_wrong_usage(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = ask(capsys, *arguments(tmp_path / "run", "--weights", "/proc/self/mem"))
    assert code == 2
    assert one_error(errors).startswith("Error: Checkpoint 'mem' cannot be read")

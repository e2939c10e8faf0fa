"""JSON of runs and trainings from elsewhere that holds other things than it should: one line, and no traceback."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hostile.asking import ESCAPES, HOSTILE, MODEL, SIZE, ask, one_error
from tests.reports.fabricate import ENVIRONMENT, cell, full_run, infer, trained, training_cell, write_run
from tests.reports.paired import paired
from vitbench.analysis.claims import judge_runs
from vitbench.core import run_folder as store
from vitbench.core.records import Measurement, NoiseCheck, Record
from vitbench.executors import worker
from vitbench.executors.protocol import Event, Failed, Measure
from vitbench.experiments.training import train
from vitbench.experiments.training.checkpoint import load_state, save_state
from vitbench.experiments.training.folder import versions
from vitbench.experiments.training.records import read_training
from vitbench.experiments.training.request import LAST, REQUEST, SUMMARY, TrainingRequest
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import save_checkpoint
from vitbench.reports.markdown.page import render_markdown
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tradeoffs import report_tradeoffs
from vitbench.reports.table import render_csv, tidy_frame
from vitbench.reports.terminal import render_terminal
from vitbench.training.recipes import load_recipe

pytestmark = pytest.mark.integration

#: Of every kind that JSON has.
ANYTHING: list[Any] = [None, True, -1, 0.5, 10**400, "", "x", [], ["a"], {}, {"a": [1]}]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": [value]}
    return value


def changed(content: Any, *path: str | int, value: Any = ...) -> Any:
    """A copy in which ``value`` stands at ``path``, or, without one, nothing does."""
    if not path:
        return value
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def write(path: Path, content: Any) -> None:
    """``content`` as JSON, or, if it is bytes, as it is."""
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


#: kind -> what is in the file
BROKEN: dict[str, Any] = {
    "nothing": b"",
    "half": b'{"schema": 1, ',
    "no text": b"\xff\xfe{}",
    "brackets": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "depth": nested(200),
    "a list": [],
    "null": None,
    "a text": HOSTILE,
    "digits": b'{"schema": ' + b"9" * 10_000 + b"}",
}

# --- environment.json

ENVIRONMENTS: dict[str, tuple[Any, str]] = {
    **{kind: (content, "") for kind, content in BROKEN.items()},
    "no sessions": (changed(ENVIRONMENT, "sessions"), "sessions is missing"),
    "no environments": (changed(ENVIRONMENT, "environments"), "environments is missing"),
    "sessions by name": (changed(ENVIRONMENT, "sessions", value={}), "sessions is an object, not a list"),
    "a session that is a text": (changed(ENVIRONMENT, "sessions", 0, value="x"), "sessions[0] is 'x', not an object"),
    "a command line in words": (
        changed(ENVIRONMENT, "sessions", 0, "command_line", value=["vitbench", "run"]),
        "sessions[0].command_line is a list, not text",
    ),
    "a commit that is a number": (
        changed(ENVIRONMENT, "sessions", 0, "commit", value=7),
        "sessions[0].commit is 7, not text",
    ),
    "environments in a row": (changed(ENVIRONMENT, "environments", value=[]), "environments is a list, not an object"),
    "an environment that is null": (changed(ENVIRONMENT, "environments", "e1", value=None), "environments.e1 is null"),
    "a system that is null": (changed(ENVIRONMENT, "environments", "e1", "system", value=None), "e1.system is null"),
    "memory in words": (
        changed(ENVIRONMENT, "environments", "e1", "system", "memory_bytes", value="16 GB"),
        "environments.e1.system.memory_bytes is '16 GB', not a whole number",
    ),
    "memory beyond all numbers": (
        changed(ENVIRONMENT, "environments", "e1", "system", "memory_bytes", value=10**400),
        "memory_bytes is a number of too many digits",
    ),
    "versions in a row": (
        changed(ENVIRONMENT, "environments", "e1", "libraries", "versions", value=["2.15"]),
        "environments.e1.libraries.versions is a list",
    ),
    "a device that is a name": (
        changed(ENVIRONMENT, "environments", "e1", "devices", "cuda:0", value="GPU"),
        "environments.e1.devices.cuda:0 is 'GPU', not an object",
    ),
}


@pytest.fixture(scope="module")
def good_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = full_run()
    return write_run(tmp_path_factory.mktemp("good") / "run", replace(run, records=run.records[:3]))


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_a_report_of_a_broken_environment_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, good_run: Path, kind: str
) -> None:
    folder = shutil.copytree(good_run, tmp_path / "run")
    content, said = ENVIRONMENTS[kind]
    write(folder / store.ENVIRONMENT, content)
    code, out, errors = ask(capsys, "report", folder)
    assert (code, out) == (2, "")
    error = one_error(errors)
    assert error.startswith(f"Error: {folder / store.ENVIRONMENT} is damaged (")
    assert error.endswith("). Move it away to continue without it")
    assert said in error
    assert not (folder / "report.md").exists()


@pytest.mark.parametrize("kind", BROKEN)
def test_a_report_of_a_broken_roof_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, good_run: Path, kind: str
) -> None:
    folder = shutil.copytree(good_run, tmp_path / "run")
    write(folder / store.ROOFLINE, BROKEN[kind])
    code, out, errors = ask(capsys, "report", folder)
    assert (code, out) == (2, "")
    error = one_error(errors)
    assert error.startswith(f"Error: {folder / store.ROOFLINE} is damaged (")
    assert error.endswith(f"). Make it anew: vitbench roofline {folder}, or move it away")


def test_without_the_environment_there_is_a_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, good_run: Path
) -> None:
    folder = shutil.copytree(good_run, tmp_path / "run")
    (folder / store.ENVIRONMENT).unlink()  # as the line says
    assert ask(capsys, "report", folder)[0] == 0
    assert (folder / "report.md").exists()


@pytest.mark.parametrize("kind", ["a command line in words", "sessions by name", "depth"])
@pytest.mark.parametrize("command", ["claims", "compare"])
def test_so_it_is_for_every_command_that_reads_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, good_run: Path, command: str, kind: str
) -> None:
    folder = shutil.copytree(good_run, tmp_path / "run")
    write(folder / store.ENVIRONMENT, ENVIRONMENTS[kind][0])
    words = [folder, "--models", MODEL] if command == "claims" else [good_run, folder]
    code, _, errors = ask(capsys, command, *words)
    assert code == 2
    assert "environment.json is damaged (" in one_error(errors)


RESUMED: dict[str, tuple[Any, str]] = {
    "half": ENVIRONMENTS["half"],
    "a session of no environment": (ENVIRONMENT, "its last session names no environment that it holds"),
}


@pytest.mark.parametrize("kind", RESUMED)
@pytest.mark.usefixtures("strict_server")
@pytest.mark.integration
def test_so_it_is_for_a_run_that_is_gone_on_with(capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / store.SUITE).write_text(
        f'models = ["{MODEL}"]\nimage_sizes = [16]\nbatch_sizes = [1]\ndevices = ["cpu"]\nthreads = [1]\n'
        'metrics = ["params"]\n'
    )
    content, said = RESUMED[kind]
    write(folder / store.ENVIRONMENT, content)
    code, _, errors = ask(capsys, "run", "--resume", folder)
    assert code == 2
    assert said in one_error(errors)
    assert not (folder / store.RECORDS).exists()


def test_a_session_whose_texts_are_no_text_is_noted_and_read_again(tmp_path: Path) -> None:
    """A name of a file that is no UTF-8 stands in a command line as halves of characters."""
    for _ in range(2):
        store.add_session(tmp_path, "e", {"system": {"variables": {"A": "\ud800"}}}, {"command_line": "run \udcff"})
    content = store.read_environment(tmp_path)
    assert [session["command_line"] for session in content["sessions"]] == ["run \udcff"] * 2


# --- records.jsonl, noise.jsonl


def wrong_values(allowed: tuple[type, ...]) -> list[Any]:
    kinds = [value for value in ANYTHING if not isinstance(value, allowed) or (value is True and bool not in allowed)]
    return [value for value in kinds if not (value is None and type(None) in allowed)]


NULL = type(None)
LINE = json.loads(infer(cell()).to_json())
FIELDS: list[tuple[tuple[str | int, ...], tuple[type, ...]]] = [
    *((("cell", name), (str,)) for name in ("model", "device", "dtype", "mode", "attention", "weights")),
    *((("cell", name), (NULL, str)) for name in ("data", "recipe_hash")),
    *((("cell", name), ()) for name in ("num_classes", "batch_size", "threads", "image_size")),
    (("cell", "compile"), (bool,)),
    *((("measurements", 0, name), (str,)) for name in ("metric", "unit", "method", "detail", "group")),
    *((("measurements", 0, name), ()) for name in ("samples", "status")),
    *(((name,), (str,)) for name in ("environment", "started_at", "cause", "stderr_tail", "detail")),
    *(((name,), ()) for name in ("status", "cell", "measurements", "schema")),
]


@pytest.mark.parametrize(("place", "allowed"), FIELDS, ids=[".".join(map(str, place)) for place, _ in FIELDS])
def test_a_line_with_a_value_of_another_kind_is_no_record(
    place: tuple[str | int, ...], allowed: tuple[type, ...]
) -> None:
    refused = 0
    for value in wrong_values(allowed):
        if place[-1] in ("measurements", "samples") and value == []:
            continue  # nothing was measured
        with pytest.raises(ValueError, match="^") as caught:
            Record.from_json(json.dumps(changed(LINE, *place, value=value)))
        assert len(str(caught.value).splitlines()) == 1
        refused += 1
    assert refused >= 8
    assert Record.from_json(json.dumps(LINE)).cell.model == "vit_micro"


@pytest.mark.parametrize(
    ("metric", "samples"),
    [
        ("params", [[0.5]]),
        ("params", [[1, 2]]),
        ("params", [[-1]]),
        ("accuracy", [[1.5]]),
        ("accuracy", [[0.5], [0.5]]),
        ("test_images", [[0]]),
        ("test_images", []),
        ("frontier_bound", [[]]),
        ("latency", [[True]]),
        ("latency", [[10**400]]),
        ("latency", ["12"]),
    ],
)
def test_a_figure_that_reports_cannot_reckon_with_is_no_record(metric: str, samples: Any) -> None:
    one = asdict(Measurement(metric=metric, unit="1", samples=(), method=""))
    with pytest.raises(ValueError, match="^"):
        Record.from_json(json.dumps(changed(LINE, "measurements", value=[{**one, "samples": samples}])))


def test_a_report_passes_over_such_lines_and_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, good_run: Path
) -> None:
    folder = shutil.copytree(good_run, tmp_path / "run")
    bad = [changed(LINE, "cell", "model", value=[HOSTILE]), changed(LINE, "status", value=None), [], nested(300)]
    with (folder / store.RECORDS).open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in bad)
        file.write("[" * 100_000 + "\n")
    with pytest.warns(store.DamagedRecordWarning, match="set aside") as told:
        assert ask(capsys, "report", folder)[0] == 0
    lines = sorted({str(one.message) for one in told})
    assert len(lines) == len(bad) + 1
    assert "line 4: damaged (cell.model is a list, not text)" in lines[0]
    assert all(len(line.splitlines()) == 1 for line in lines)


@pytest.mark.parametrize("name", ["device", "threads", "started_at", "samples", "reference_samples"])
def test_a_line_with_a_value_of_another_kind_is_no_noise_check(name: str) -> None:
    good = json.loads(
        NoiseCheck(device="cpu", threads=1, started_at="", samples=(1.0,), reference_samples=(1.0,)).to_json()
    )
    allowed = (str,) if name in ("device", "started_at") else ()
    for value in wrong_values(allowed):
        with pytest.raises(ValueError, match="^"):
            NoiseCheck.from_json(json.dumps(changed(good, name, value=value)))


#: What a record may hold that no run of ours writes.
ODD: dict[str, list[list[float]]] = {
    "no process": [],
    "processes without samples": [[], []],
    "nothing": [[0.0] * 6] * 5,
    "less than nothing": [[-1.5] * 3] * 3,
    "next to nothing": [[5e-324] * 6] * 5,
    "very much": [[1.7e308] * 5] * 2,
    "both": [[-1.7e308, 1.7e308]],
    "unequal processes": [[1.0], [1.0, 2.0, 3.0], []],
}


@pytest.mark.parametrize("kind", ODD)
def test_whatever_figures_a_record_holds_there_is_a_report_of_it(kind: str) -> None:
    samples = ODD[kind]
    turns = [[1] * len(one) for one in samples]
    seen = 0
    records = []
    for number, record in enumerate(
        [infer(cell()), trained(training_cell("vit_micro"), 100), paired(cell(), [1.0] * 6)]
    ):
        line = json.loads(record.to_json())
        for index, one in enumerate(line["measurements"]):
            for in_turns in (False, True):
                odd = {**one, "samples": samples, "turns": turns if in_turns else []}
                odd["reference_samples"] = [[1.0] * len(counts) for counts in turns] if in_turns else []
                text = json.dumps(changed(line, "measurements", index, value=odd))
                seen += 1
                try:
                    found = Record.from_json(text)
                except ValueError:
                    continue  # set aside
                # a cell of its own each, so that one report is of all of them
                records.append(changed_seed(found, 1000 * number + 2 * index + in_turns))
    assert len(records) > seen // 3
    runs = [Run(name="odd", records=records, environment=ENVIRONMENT)]
    for text in (render_markdown(runs), render_terminal(runs, 100), render_csv(runs)):
        assert not ESCAPES.search(text.replace("\n", ""))
    assert len(tidy_frame(runs)) >= len(records)
    report_tradeoffs(build_rows(runs))
    judge_runs(records)


def changed_seed(record: Record, seed: int) -> Record:
    return Record.from_json(json.dumps(changed(json.loads(record.to_json()), "cell", "seed", value=seed)))


def test_a_metric_that_gives_no_measurement_is_its_cells_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its record could be written, and never read again."""
    broken = Measurement(metric="params", unit="parameter", samples=((1.0,),), method=None)  # type: ignore[arg-type]
    monkeypatch.setattr(worker, "run_metric", lambda name, subject: iter([broken]))
    monkeypatch.setattr(worker, "prepare_process", lambda cell, process: ("", ""))
    events: list[Event] = []
    task = Measure(process="static", metrics=("params",), cell=cell(MODEL, threads=1))
    worker.measure(task, events.append)
    (failed,) = events
    assert isinstance(failed, Failed)
    assert failed.failure.status == "error"
    assert "measurement.method is null, not text" in failed.failure.detail


# --- trainings

RECIPE = load_recipe("brief").model_dump(mode="json")
REQUESTED = asdict(TrainingRequest(model=MODEL, data="digits", recipe=RECIPE, device="cpu", image_size=str(SIZE)))
ROW = {
    **dict.fromkeys(("epoch", "learning_rate", "train_loss", "test_loss", "images_per_s", "duration_s"), 1.0),
    **dict.fromkeys(("train_accuracy", "test_accuracy"), 0.5),
    "step": 3,
    "images": 96,
}
TESTED = {"test_correct": 18, "test_accuracy": 0.5, "test_loss": 1.9}
SUMMED = {
    "schema": 1,
    "figures": {
        "model": MODEL,
        "data": "digits",
        "recipe": "brief",
        "recipe_hash": "0123",
        "seed": 3,
        **dict.fromkeys(("epochs", "training_duration_s"), 1.0),
        "test_images": 36,
        "image_size": [16, 16],
        "num_classes": 10,
        "class_sizes": [3, 3],
        "last": {**TESTED, "macro_f1": 0.4},
        "best": {"epoch": 1.0, "accuracy": 0.5, "loss": 1.9, **TESTED},
    },
    "history": [ROW, {**ROW, "epoch": 2.0}],
}


def a_training(folder: Path, request: Any = ..., summary: Any = SUMMED) -> Path:
    folder.mkdir(parents=True)
    write(folder / REQUEST, {"schema": 1, **REQUESTED, "versions": versions()} if request is ... else request)
    if summary is not None:
        write(folder / SUMMARY, summary)
    return folder


ASKED = {"schema": 1, **REQUESTED, "versions": {"torch": "2"}}
REQUESTS: dict[str, tuple[Any, str]] = {
    **{kind: (content, "") for kind, content in BROKEN.items()},
    "no model": (changed(ASKED, "model"), "model is missing"),
    "another field": ({**ASKED, "shell": "rm"}, "shell is not a known field"),
    "a model of many": (changed(ASKED, "model", value=[MODEL]), "model is a list, not text"),
    "a recipe that is a name": (changed(ASKED, "recipe", value="brief"), "recipe is 'brief', not an object"),
    "an empty recipe": (changed(ASKED, "recipe", value={}), "recipe.name: Field required"),
    "a recipe of words": (changed(ASKED, "recipe", "learning_rate", value="fast"), "recipe.learning_rate: "),
    "threads in words": (changed(ASKED, "threads", value="two"), "threads is 'two', not a whole number"),
    "half a thread": (changed(ASKED, "threads", value=0.5), "threads is 0.5"),
    "a flag in words": (changed(ASKED, "compile", value="no"), "compile is 'no', not true or false"),
    "versions in a row": (changed(ASKED, "versions", value=["2.15"]), "versions is a list, not an object"),
    "a version that is a number": (changed(ASKED, "versions", "torch", value=2), "versions.torch is 2, not text"),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_training_that_was_asked_for_in_other_words_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    request, said = REQUESTS[kind]
    folder = a_training(tmp_path / "training", request, None)
    code, out, errors = ask(capsys, "train", "--resume", folder)
    assert (code, out) == (2, "")
    error = one_error(errors)
    assert error.startswith(f"Error: training.json of {str(folder)!r} is damaged (")
    assert error.endswith("): start the training anew")
    assert said in error
    assert [path.name for path in folder.iterdir()] == [REQUEST]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seed", -1, "seed = -1 is not a number"),
        ("seed", 2**40, "seed = 1099511627776 is not a number"),
        ("threads", 10**6, "threads = 1000000 is more than any"),
    ],
)
def test_a_training_that_asks_for_more_than_there_is_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, field: str, value: int, said: str
) -> None:
    folder = a_training(tmp_path / "training", changed(ASKED, field, value=value), None)
    code, _, errors = ask(capsys, "train", "--resume", folder)
    assert code == 2
    assert said in errors.splitlines()[-1]
    assert "Traceback" not in errors


SUMMARIES: dict[str, tuple[Any, str]] = {
    **{kind: (content, "") for kind, content in BROKEN.items()},
    "no figures": (changed(SUMMED, "figures"), "figures is missing"),
    "no history": (changed(SUMMED, "history"), "history is missing"),
    "figures in a row": (changed(SUMMED, "figures", value=[]), "figures is a list, not an object"),
    "a model of many": (changed(SUMMED, "figures", "model", value=[]), "figures.model is a list, not text"),
    "no pictures": (changed(SUMMED, "figures", "test_images", value=0), "figures.test_images is 0"),
    "accuracy in per cent": (
        changed(SUMMED, "figures", "last", "test_accuracy", value=50),
        "should be less than or equal to 1",
    ),
    "accuracy in words": (changed(SUMMED, "figures", "last", "test_accuracy", value="50 %"), "is '50 %', not a number"),
    "a best that is null": (changed(SUMMED, "figures", "best", value=None), "figures.best is null, not an object"),
    "a loss that is none": (b'{"figures": {"last": {"test_loss": NaN}}}', "figures."),
    "a history by name": (changed(SUMMED, "history", value={}), "history is an object, not a list"),
    "an epoch that is a list": (changed(SUMMED, "history", 0, value=[]), "history[0] is a list, not an object"),
    "an epoch in words": (changed(SUMMED, "history", 1, "epoch", value="2"), "history[1].epoch is '2', not a number"),
    "an epoch without a test": (changed(SUMMED, "history", 0, "test_loss"), "a row of its history has no test_loss"),
    "epochs that differ": (changed(SUMMED, "history", 1, "more", value=1), "differ in what they hold"),
}


@pytest.mark.parametrize("kind", SUMMARIES)
def test_a_finished_training_whose_summary_is_broken_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    summary, said = SUMMARIES[kind]
    folder = a_training(tmp_path / "training", summary=summary if summary is not None else b"null")
    code, out, errors = ask(capsys, "train", "--resume", folder)
    assert (code, out) == (2, "")
    error = [line for line in errors.splitlines() if "is finished" not in line]
    assert one_error("\n".join(error)).startswith(f"Error: {folder / SUMMARY} is damaged (")
    assert said in error[0]
    assert f"Remove it, then: vitbench train --resume {folder}" in error[0]


def test_a_finished_training_whose_summary_is_whole_is_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = ask(capsys, "train", "--resume", a_training(tmp_path / "training"))
    assert code == 0
    assert "18 of 36 test images correct (50.00 %)" in out


UNJUDGED: dict[str, tuple[Any, str]] = {
    "no hash of its recipe": (changed(SUMMED, "figures", "recipe_hash"), "figures.recipe_hash is missing"),
    "a seed below nothing": (
        changed(SUMMED, "figures", "seed", value=-1),
        "figures.seed is -1: it should be greater than or equal to 0",
    ),
    "a size of one side": (changed(SUMMED, "figures", "image_size", value=[16]), "is not a height and a width"),
    "a size of words": (changed(SUMMED, "figures", "image_size", value=["a", "b"]), "figures.image_size[0] is 'a'"),
    "no classes": (changed(SUMMED, "figures", "num_classes", value=0), "figures.num_classes is 0"),
    "F1 in per cent": (changed(SUMMED, "figures", "last", "macro_f1", value=40), "should be less than or equal to 1"),
    "half a picture right": (
        changed(SUMMED, "figures", "last", "test_correct", value=1.5),
        "is 1.5, not a whole number",
    ),
    "more right than tested": (changed(SUMMED, "figures", "last", "test_correct", value=37), "is more than"),
}


@pytest.mark.parametrize("kind", ["half", "accuracy in words", *UNJUDGED])
def test_published_figures_are_not_judged_by_a_training_whose_summary_is_broken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    summary, said = {**SUMMARIES, **UNJUDGED}[kind]
    folder = a_training(tmp_path / "training", summary=summary if summary is not None else b"null")
    code, out, errors = ask(capsys, "claims", folder, "--models", MODEL)
    assert (code, out) == (2, "")
    assert one_error(errors).startswith(f"Error: {folder / SUMMARY} is damaged (")
    assert said in errors


def test_a_training_that_is_whole_is_read_with_its_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = a_training(tmp_path / "training", summary=SUMMED)
    assert ask(capsys, "claims", folder, "--models", MODEL)[0] == 0
    record = read_training(folder)
    figures = json.loads((folder / SUMMARY).read_text())["figures"]
    accuracy, loss = record.measurement("accuracy"), record.measurement("test_loss")
    assert accuracy is not None
    assert loss is not None
    assert accuracy.value == figures["last"]["test_correct"] / figures["test_images"]
    assert loss.value == figures["last"]["test_loss"]
    assert (record.cell.model, record.cell.recipe_hash) == (MODEL, figures["recipe_hash"])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that has saved its state and not been tested."""
    folder = tmp_path_factory.mktemp("stopped") / "training"
    settings = {"images": 64, "batch_size": 32}
    options: dict[str, Any] = {"train_images": 32, "test_images": 20, "threads": 1, "tensorboard": False}
    train(MODEL, settings=settings, out=folder, device="cpu", image_size=str(SIZE), **options)
    (folder / SUMMARY).unlink()
    return folder


HEADERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    **{kind: (lambda header, kind=kind: BROKEN[kind], "") for kind in ("half", "brackets", "depth", "a text")},
    "another schema": (lambda header: changed(header, "schema", value=7), "it is of schema 7, not 1"),
    "no facts": (lambda header: changed(header, "facts"), "facts is missing"),
    "facts in a row": (lambda header: changed(header, "facts", value=[]), "facts is a list, not an object"),
    "data of many": (lambda header: changed(header, "facts", "data", value=["digits"]), "facts.data is a list"),
    "no history": (lambda header: changed(header, "history"), "'history'"),
    "a history by name": (lambda header: changed(header, "history", value={}), "history is an object, not a list"),
    "an epoch in words": (lambda header: changed(header, "history", 0, "epoch", value="1"), "history[0].epoch is '1'"),
    "an epoch that was validated": (
        lambda header: changed(header, "history", value=[{k.replace("test", "validation"): v for k, v in ROW.items()}]),
        "a row of its history has no test_loss",
    ),
    "a best of words": (lambda header: changed(header, "best", value={"epoch": "1"}), "best.epoch is '1'"),
    "an origin that is a list": (lambda header: changed(header, "origin", value=[]), "origin is a list, not text"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.integration
def test_a_state_that_says_other_things_of_itself_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, stopped: Path, kind: str
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "training")
    state = load_state(folder / LAST)
    assert state is not None
    change, said = HEADERS[kind]
    header = change(json.loads(state["vitbench"]))
    text = header.decode("latin-1") if isinstance(header, bytes) else json.dumps(header)
    save_state({**state, "vitbench": text}, folder / LAST)
    code, out, errors = ask(capsys, "train", "--resume", folder)
    assert (code, out) == (2, "")
    assert said in one_error(errors)
    assert "checkpoints/last.pt" in errors
    assert not (folder / SUMMARY).exists()


STATES: dict[str, tuple[str, Any]] = {
    "a header that is a list": ("vitbench", ["{}"]),
    "pictures in words": ("seen", "many"),
    "steps below nothing": ("steps", -1),
    "no stretch": ("stretch", {}),
    "a stretch of words": ("stretch", {"losses": ["x"], "images": 1, "correct": 1, "since_s": 0.0}),
    "no generators": ("rng", []),
    "generators of words": ("rng", ["x"]),
    "optimizers by name": ("optimizers", {"adamw": 1}),
    "optimizers of words": ("optimizers", ["x"]),
    "weights of words": ("model", "x"),
}


def settings_of(state: dict[str, Any]) -> None:
    state["optimizers"][0]["param_groups"][0]["weight_decay"] = "x"


def moments_of(state: dict[str, Any]) -> None:
    one = next(iter(state["optimizers"][0]["state"].values()))
    one[next(key for key, value in one.items() if value.numel() > 1)] = torch.zeros(2, 3, 5, 7)


@pytest.mark.parametrize("change", [settings_of, moments_of])
@pytest.mark.filterwarnings("ignore")
@pytest.mark.integration
def test_an_optimizer_of_other_things_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, stopped: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "training")
    state = load_state(folder / LAST)
    assert state is not None
    change(state)
    save_state(state, folder / LAST)
    code, out, errors = ask(capsys, "train", "--resume", folder)
    assert (code, out) == (2, "")
    assert "does not fit this training: its optimizers hold" in one_error(errors)


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.integration
def test_a_state_of_other_things_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, stopped: Path, kind: str
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "training")
    state = load_state(folder / LAST)
    assert state is not None
    key, value = STATES[kind]
    save_state({**state, key: value}, folder / LAST)
    code, out, errors = ask(capsys, "train", "--resume", folder)
    assert (code, out) == (2, "")
    assert "does not fit this training" in one_error(errors)


@pytest.mark.integration
def test_a_state_that_is_whole_is_gone_on_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, stopped: Path
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "training")
    state = load_state(folder / LAST)
    assert state is not None
    save_state(state, folder / LAST)
    assert ask(capsys, "train", "--resume", folder)[0] == 0
    assert json.loads((folder / SUMMARY).read_text())["figures"]["images_seen"] == 64


# --- sweeps

PLANNED = {
    "schema": 1,
    "settings": [
        {"name": name, "changes": {"batch_size": size}, "request": REQUESTED}
        for name, size in (("001", 16), ("002", 32))
    ],
}
PLANS: dict[str, tuple[Any, str]] = {
    **{kind: (content, "") for kind, content in BROKEN.items()},
    "no settings": (changed(PLANNED, "settings", value=[]), "it has no settings"),
    "settings by name": (changed(PLANNED, "settings", value={}), "settings is an object, not a list"),
    "a setting that is null": (changed(PLANNED, "settings", 0, value=None), "settings[0] is null, not an object"),
    "no request": (changed(PLANNED, "settings", 0, "request"), "settings[0].request is missing"),
    "a request in a row": (changed(PLANNED, "settings", 0, "request", value=[]), "settings[0].request is a list"),
    "a request of other fields": (
        changed(PLANNED, "settings", 1, "request", "shell", value="rm"),
        "shell is not a known field",
    ),
    "a request without a model": (changed(PLANNED, "settings", 1, "request", "model"), "model is missing"),
    "changes in a row": (changed(PLANNED, "settings", 0, "changes", value=["batch_size"]), "changes is a list"),
    "changes of no key": (changed(PLANNED, "settings", 0, "changes", value={"name": 1}), "a recipe has no key 'name'"),
    "changes in objects": (
        changed(PLANNED, "settings", 0, "changes", "batch_size", value={"a": 1}),
        "settings[0].changes.batch_size is an object, not text or true or false or a number or a list",
    ),
    "one folder for both": (
        changed(PLANNED, "settings", 0, "name", value="002"),
        "two of its settings have one folder",
    ),
}


@pytest.mark.parametrize("kind", PLANS)
def test_a_sweep_that_was_planned_in_other_words_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    plan, said = PLANS[kind]
    write(tmp_path / "sweep.json", plan)
    code, out, errors = ask(capsys, "sweep", "--resume", tmp_path)
    assert (code, out) == (2, "")
    error = one_error(errors)
    assert error.startswith(f"Error: sweep.json of {str(tmp_path)!r} is damaged (")
    assert error.endswith("): start the sweep anew")
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        *((SUMMARY, SUMMARIES[kind][0], SUMMARIES[kind][1]) for kind in ("half", "epochs that differ")),
        ("failure.json", {"status": ["oom"], "detail": ""}, "status is a list, not text"),
        ("failure.json", {"status": "oom"}, "detail is missing"),
    ],
)
@pytest.mark.integration
def test_a_sweep_of_which_a_training_is_broken_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, file: str, content: Any, said: str
) -> None:
    write(tmp_path / "sweep.json", PLANNED)
    for name in ("001", "002"):
        a_training(tmp_path / name)
    assert ask(capsys, "sweep", "--resume", tmp_path)[0] == 0
    write(tmp_path / "002" / file, content)
    code, out, errors = ask(capsys, "sweep", "--resume", tmp_path)
    assert (code, out) == (2, "")
    error = one_error(errors)
    assert error.startswith(f"Error: {tmp_path / '002' / file} is damaged (")
    assert re.search(r"\)\. Remove it[,:] ", error)
    assert said in error


# --- what a checkpoint says of itself


@pytest.mark.parametrize(
    "facts",
    [
        *map(BROKEN.get, ("half", "objects", "null")),
        {"classes": {"a": 1}, "num_classes": "ten", "image_size": "16", "recipe": [], "model": 7, "data": [], "seed": {}},
        {"classes": [[1]] * 10, "num_classes": 10.5, "image_size": [16, None], "recipe": {"mean": "x", "std": [0, 0, 0]}},
        {"num_classes": True, "image_size": [10**400, 16], "recipe": {"mean": [10**400] * 3, "std": [None] * 3, "name": {}}},
    ],
    ids=["half", "objects", "null", "other kinds", "more of them", "numbers beyond all"],
)  # fmt: skip
@pytest.mark.integration
def test_an_evaluation_passes_over_what_a_checkpoint_says_in_other_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, facts: Any
) -> None:
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_checkpoint(build_model(MODEL, image_size=(SIZE, SIZE), num_classes=10), path, {})
    text = facts.decode("latin-1") if isinstance(facts, bytes) else json.dumps(facts)
    save_file(load_file(path), path, metadata={"vitbench": text})
    words = ["--data", "digits", "--test-images", "10", "--device", "cpu", "--image-size", str(SIZE), "--json"]
    code, out, errors = ask(capsys, "evaluate", MODEL, "--weights", path, *words)
    assert code == 0
    expected = (
        "Warning: the classes of the checkpoint have other names",
        "Warning: the weights: positions taken for a square grid of ",  # no facts say it
    )
    assert all(line.startswith(expected) for line in errors.splitlines())
    assert json.loads(out)["images"] == 10

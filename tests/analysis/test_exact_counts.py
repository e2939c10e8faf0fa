"""Exact values of real models, and ``snapshot`` and ``check`` on a package that changes between them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.custom_operator_models import real_only
from tests.launching import SharedLauncher
from tests.metrics.test_metrics import make_subject, measured
from tests.regression.locked_models import EDITS, NAME, write_package
from vitbench.analysis.exact_counts import (
    OperatorTally,
    count_graph_breaks,
    count_model,
    describe_state,
    exact_values,
)
from vitbench.cli import run_command
from vitbench.executors.launcher import Launcher, make_launcher
from vitbench.metrics import Subject
from vitbench.models import build_model
from vitbench.models.outputs import describe_output
from vitbench.regression import snapshot as snapshots
from vitbench.regression.lock_diff import compare_locks
from vitbench.regression.lock_file import Entry, Lock, Place, digest, read_lock, write_lock

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
LABEL = f"{NAME} 16px 10 classes"
SNAPSHOT = ("snapshot", "--models", NAME, "--image-sizes", "16", "--num-classes", "10", "--modes", "infer,train",
            "--batch-sizes", "2", "--suite", "seeds", "--allow-import")  # fmt: skip


def figures_of(subject: Subject, **run: Any) -> dict[str, Any]:
    """The values of one run."""
    *_, answer = count_model(subject, [replace(subject.cell, **run)])
    assert "failed" not in answer, answer
    assert not answer["absent"]
    return dict(answer["figures"])


# agreement with a real run


@pytest.mark.parametrize(
    ("model", "run"),
    [
        ("cifar_dynamic_vit_dense", {"mode": "train", "batch_size": 1}),  # most in the optimizer
        ("vit_basic_tutorial", {"mode": "infer", "batch_size": 3, "dtype": "bf16", "attention": "explicit"}),
        ("vit_basic_tutorial", {"mode": "train", "batch_size": 2, "dtype": "amp"}),
        ("cifar_dynamic_vit_pruned", {"mode": "infer", "batch_size": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_tensor_bytes_are_those_of_a_real_run(model: str, run: dict[str, Any]) -> None:
    figures = figures_of(make_subject(model, **run), **run)
    real = measured("tensor_memory", make_subject(model, **run))
    assert figures["tensor_peak"] == real["tensor_peak"].value


def test_operators_are_those_of_a_real_run() -> None:
    subject = make_subject("cifar_dynamic_vit_pruned", batch_size=2)
    figures = figures_of(subject)
    model = build_model("cifar_dynamic_vit_pruned", image_size=32, num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    with OperatorTally() as tally, torch.no_grad():
        model(images)
    assert figures["operators"] == dict(tally.counts)
    assert figures["operators"]["aten.topk"] == 4


def test_counts_on_meta_are_those_of_the_metrics() -> None:
    subject = make_subject("vit_layer6_32")
    answer = next(iter(count_model(subject, [], bound=False)))
    real = {**measured("params", make_subject("vit_layer6_32")), **measured("flops", make_subject("vit_layer6_32"))}
    for name in ("params", "trainable_params", "buffers", "flops"):
        assert answer["figures"][name] == real[name].value
    assert answer["figures"]["output"] == "float32 1x10"
    assert answer["figures"]["without_gradient"] == {}
    # twice the pictures, and twice the forward pass again for the backward one, but for the gradient of the pictures
    assert 5.9 < answer["figures"]["training_flops"] / real["flops"].value < 6


class Keeps(nn.Module):
    """A tied weight, a buffer, a frozen layer, and tensors that are neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(12, 12, bias=False)
        self.two = nn.Linear(12, 12, bias=False)
        self.two.weight = self.one.weight
        self.frozen = nn.Linear(12, 3).requires_grad_(False)
        self.register_buffer("steps", torch.tensor(3))
        self.tables = {"shift": [torch.ones(12)]}
        self._scale = torch.ones(12)
        self._tied = [self.one.weight]

    def forward(self, images: torch.Tensor) -> Any:
        hidden = self.two(self.one(images.flatten(1))) + self.tables["shift"][0]
        hidden = hidden * self._scale @ self._tied[0]
        return {"logits": self.frozen(hidden), "hidden": (hidden,)}


def test_what_a_module_keeps_beside_parameters_comes_along() -> None:
    subject = make_subject(Keeps(), image_size=(2, 2), num_classes=3)
    model, run = count_model(subject, [replace(subject.cell, batch_size=5)])
    assert model["figures"]["params"] == 144 + 39
    assert model["figures"]["trainable_params"] == 144
    assert model["figures"]["state_dict"] == {
        "frozen.bias": "float32 3 frozen",
        "frozen.weight": "float32 3x12 frozen",
        "one.weight": "float32 12x12",
        "steps": "int64 scalar buffer",
        "two.weight": "float32 12x12",
    }
    assert run["figures"]["output"] == "{logits: float32 5x3, hidden: (float32 5x12)}"
    assert describe_output(None) == "NoneType"


def subject_of(build: Callable[[], nn.Module]) -> Subject:
    """A subject that builds a module anew each time, as a worker does."""
    return replace(make_subject("vit_basic"), build=build)


class Breaks(nn.Module):
    """Breaks the graph at ``where``."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.layer = nn.Linear(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.where == "start":
            print("first")
        x = self.layer(images.mean(dim=(2, 3)))
        if self.where == "branch" and x.sum() > 1e9:
            x = x + 1
        if self.where == "training" and self.training:
            print("trains")
        if self.where == "end":
            self.last = x.sum().item()
        return x


@pytest.mark.parametrize(
    ("where", "train", "count"),
    [
        ("nowhere", False, 0),
        ("start", False, 1),
        ("branch", False, 1),
        ("end", False, 1),
        ("training", True, 1),
        ("training", False, 0),
    ],
)
def test_graph_breaks_are_found_wherever_they_are(where: str, train: bool, count: int) -> None:
    reasons = count_graph_breaks(subject_of(lambda: Breaks(where)), train=train)
    assert sum(reasons.values()) == count
    assert all(reason.isprintable() and str(ROOT) not in reason for reason in reasons)


def test_a_model_that_reads_values_has_the_reason_instead_of_counts() -> None:
    subject = subject_of(lambda: Breaks("branch"))
    model, run = count_model(subject, [subject.cell])
    assert set(model["absent"]) == {"output", "flops", "training_flops", "without_gradient"}
    assert set(run["absent"]) == {"output", "operators", "tensor_peak"}
    assert set(model["absent"].values()) | set(run["absent"].values()) == {
        "its forward pass depends on the numbers in the picture"
    }
    assert sum(count_graph_breaks(subject, train=False).values()) == 1


class Returns(nn.Linear):
    """Logits (B, 10), or what a test makes of them."""

    def __init__(self, output: Callable[[torch.Tensor], Any]) -> None:
        super().__init__(3, 10)
        self.output = output

    def forward(self, images: torch.Tensor) -> Any:
        return self.output(super().forward(images.mean(dim=(2, 3))))


def features_too(logits: torch.Tensor) -> Any:
    return logits, logits.repeat(1, 7)[:, :64]


def feature_map(logits: torch.Tensor) -> Any:
    return logits[..., None, None]


def real_kernel_alone(logits: torch.Tensor) -> Any:
    return real_only(logits, logits.new_ones(10, 10))


def cpu_kernel_alone(logits: torch.Tensor) -> Any:
    return torch.ops.tests_of_vitbench_models.cpu_only(logits)


@pytest.mark.parametrize(
    ("output", "absent"),
    [
        (features_too, {"training_flops", "without_gradient"}),
        (feature_map, {"training_flops", "without_gradient"}),
        (real_kernel_alone, {"output", "flops", "training_flops", "without_gradient"}),
        (cpu_kernel_alone, {"output", "flops", "training_flops", "without_gradient"}),
    ],
)
def test_a_baseline_of_what_cannot_be_counted_completely_is_read_again(
    output: Callable[[torch.Tensor], Any], absent: set[str], tmp_path: Path
) -> None:
    subject = subject_of(lambda: Returns(output))
    place = Place(model="returns", image_size=(32, 32), num_classes=10)
    of_run = replace(place, batch_size=1, dtype="fp32", mode="infer")
    model, run = count_model(subject, [subject.cell])
    assert set(model["absent"]) == absent
    assert model["figures"]["params"] == 3 * 10 + 10
    assert "failed" not in run, run
    model["figures"]["graph_breaks"] = {}  # counted in a process of its own
    lock = Lock(
        torch="2.15.0", vitbench="0", libraries={}, entries=(Entry(place=place, **model), Entry(place=of_run, **run))
    )
    write_lock(tmp_path / "lock.json", lock)
    assert read_lock(tmp_path / "lock.json") == lock


@pytest.mark.parametrize("output", [real_kernel_alone, cpu_kernel_alone])
def test_the_fixture_leaves_out_what_an_operator_without_a_kernel_on_meta_hides(
    output: Callable[[torch.Tensor], Any],
) -> None:
    values = exact_values(subject_of(lambda: Returns(output)))
    assert values["params"] == 40
    assert not {"flops", "output"} & set(values)
    assert values["tensor_peak"] > 0


# the commands


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the package, from which builders are imported, and one server for all commands."""
    folder = write_package(tmp_path_factory.mktemp("workplace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # a source is written anew within a second
        with make_launcher(("vitbench.analysis.exact_counts",), allow_import=True) as server:

            def lend(preload: Iterable[str] = (), *, allow_import: bool = False) -> Launcher:
                return SharedLauncher(server)

            patch.setattr(snapshots, "make_launcher", lend)
            yield folder


@pytest.fixture(scope="module")
def lock(workplace: Path) -> Path:
    """The lock of the package as it is."""
    write_package(workplace)
    assert run_command([*SNAPSHOT, "-o", "good.json"]) == 0
    return workplace / "good.json"


def check(lock: Path, *edits: str, more: Iterable[str] = ()) -> tuple[int, dict[str, dict[str, Any]]]:
    """Check the package with these edits; the exit code, and what is not the same by the rest of the cell's name (of a
    run: its batch and so on) and the metric.
    """
    write_package(lock.parent, *edits)
    code = run_command(["check", str(lock), "--allow-import", "--json", "found.json", *more])
    found = json.loads((lock.parent / "found.json").read_text())["changes"]
    return code, {
        f"{one['cell'].removeprefix(LABEL).strip()}#{one['metric']}": one for one in found if one["verdict"] != "same"
    }


def test_unchanged_code_passes(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = check(lock, "none")
    assert (code, found) == (0, {})
    printed = capsys.readouterr()
    assert "No regression" in printed.out
    assert "Counting 1 model and 2 runs" in printed.err


def test_a_model_whose_trace_fails_leaves_the_bytes_of_the_next_as_they_are(workplace: Path) -> None:
    def peaks(*models: str) -> dict[str, int]:
        command = ["snapshot", "--models", ",".join(models), "--suite", "seeds", "--allow-import", "-o", "some.json"]
        assert (
            run_command(
                [*command, "--image-sizes", "32", "--num-classes", "10", "--batch-sizes", "2", "--modes", "infer"]
            )
            == 0
        )
        entries = read_lock(workplace / "some.json").entries
        return {one.place.model: one.figures["tensor_peak"] for one in entries if "tensor_peak" in one.figures}

    failing = "module:tests.custom_operator_models:only_real"
    both = peaks(failing, "vit_basic_tutorial")
    entries = read_lock(workplace / "some.json").entries
    assert "fake" in next(one.absent["graph_breaks"] for one in entries if "graph_breaks" in one.absent)
    assert both == peaks("vit_basic_tutorial")


CAUGHT: dict[str, dict[str, str]] = {
    "an injected parameter": {
        "#params": "+2,048 parameters: blocks.0.extra added, blocks.1.extra added",
        "#trainable_params": "+2,048 trainable parameters: blocks.0.extra added, blocks.1.extra added",
        "#state_dict": "blocks.0.extra added, blocks.1.extra added",
        "#without_gradient": "blocks.0.extra gets none now (1,024), blocks.1.extra gets none now (1,024)",
    },
    "an extra layer": {
        "#params": "+4,288 parameters: blocks.2 (6 tensors) added",
        "#state_dict": "blocks.2 (6 tensors) added",
        "b2 fp32 infer#operators": "aten.addmm 5 -> 7",
        "#flops": "",
    },
    "a dtype change": {
        "#state_dict": "2 tensors (head.bias, head.weight) float32 -> bfloat16",
        "#output": "float32 1x10 -> bfloat16 1x10",
        "b2 fp32 infer#output": "float32 2x10 -> bfloat16 2x10",
    },
    "an added copy": {
        "b2 fp32 infer#operators": "aten.clone 0 -> 2",
        "b2 fp32 train#operators": "aten.clone ",
        "b2 fp32 train#tensor_peak": "",
    },
    "a frozen parameter": {
        "#trainable_params": "-1,568 trainable parameters: 2 tensors (embed.bias, embed.weight) trained -> frozen",
        "#state_dict": "2 tensors (embed.bias, embed.weight) trained -> frozen",
    },
    "a graph break": {"#graph_breaks": "new break: "},
    "a branch on a number": {
        "#graph_breaks": "new break: ",
        "#flops": "unavailable: its forward pass depends on the numbers in the picture",
        "b2 fp32 infer#operators": "unavailable: its forward pass depends on the numbers in the picture",
    },
    "a renamed key": {"#state_dict": "blocks.0.proj (2 tensors) is blocks.0.out now, blocks.1.proj (2 tensors) is blocks.1.out now"},
    "a wider head": {
        "#params": "+66 parameters: head.bias 10 -> 12, head.weight 10x32 -> 12x32",
        "#output": "float32 1x10 -> float32 1x12",
    },
    "a buffer": {"#buffers": "+5 buffer elements: scale added", "#state_dict": "scale added"},
    "an unused layer": {"#without_gradient": "spare.weight gets none now (16), spare.bias gets none now (4)"},
    "a builder that raises": {"#status": "cannot be built or run any more: IndexError: there is no block 13"},
    "a source that is none": {"#status": "ok -> failed: it cannot be built or run any more: module:pkg.net:build cannot be"},
    "a missing dependency": {"#status": "ok -> failed: it cannot be built or run any more: module:pkg.net:build cannot be imported: No module named 'installed_nowhere'"},
    "a builder that is gone": {"#status": "ok -> gone: the model no longer exists: Unknown builder"},
    "a forward pass that raises": {"#status": "cannot be built or run any more: RuntimeError"},
}  # fmt: skip
#: Edits after which nothing else than what stands above differs.
ALONE = ("an injected parameter", "a graph break", "a renamed key", "a builder that raises", "a builder that is gone")


#: Edits that stand for what a machine does to a worker, and what is said.
OF_THE_MACHINE = {
    "a kill": "killed by SIGKILL",
    "a hang": "the worker process took longer than 0.5 s",
    "no memory": "MemoryError. Give it more memory, or try again",
    "a full disk": "No space left on device. Make room on the disk, and try again",
}


@pytest.mark.parametrize("edit", OF_THE_MACHINE)
def test_a_failure_of_the_machine_is_not_a_change_of_the_code(
    lock: Path, edit: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if edit == "a hang":
        monkeypatch.setattr(snapshots, "TIMEOUT_S", 0.5)
    before = lock.read_bytes()
    write_package(lock.parent, edit)
    assert run_command(["check", str(lock), "--allow-import"]) == 4
    errors = capsys.readouterr().err
    assert "could not be counted: " in errors
    assert OF_THE_MACHINE[edit] in errors
    assert run_command([*SNAPSHOT, "-o", "ended.json"]) == 1
    assert not (lock.parent / "ended.json").exists()
    assert lock.read_bytes() == before


class NeedsMemory(nn.Linear):
    """Out of memory once its tensors are not on meta."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not images.is_meta:
            raise MemoryError
        return super().forward(images.mean(dim=(2, 3)))


@pytest.mark.parametrize("bound", [True, False], ids=["graph breaks", "a run"])
def test_out_of_memory_while_counting_is_not_a_value_of_the_model(bound: bool) -> None:
    subject = make_subject(NeedsMemory(3, 10))
    with pytest.raises(MemoryError):
        list(count_model(subject, [subject.cell], bound=bound))


@pytest.mark.parametrize("edit", [name for name in EDITS if name != "none" and name not in OF_THE_MACHINE])
def test_each_change_is_caught_with_the_right_words(lock: Path, edit: str) -> None:
    code, found = check(lock, edit)
    assert code == 1
    for name, words in CAUGHT[edit].items():
        assert name in found, list(found)
        one = found[name]
        assert words in f"{one['base']} -> {one['head']}: {one['detail']}"
        assert (one["verdict"], one["gates"], one["exact"]) == ("worse", True, True)
    if edit in ALONE:
        memory = {"b2 fp32 infer#tensor_peak", "b2 fp32 train#tensor_peak"}  # more weights take more bytes
        assert set(found) - memory == set(CAUGHT[edit])


def test_the_same_code_gives_the_same_bytes(lock: Path) -> None:
    write_package(lock.parent, "none")
    assert run_command([*SNAPSHOT, "-o", "again.json"]) == 0
    assert (lock.parent / "again.json").read_bytes() == lock.read_bytes()
    text = lock.read_text()
    assert str(lock.parent) not in text
    assert not re.search(r"20\d\d-\d\d", text)


def test_accepting_writes_the_values_the_reason_and_the_date(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = lock.with_name("mine.json")
    mine.write_bytes(lock.read_bytes())
    code, found = check(mine, "a wider head", more=["--accept", f"{LABEL}: twelve classes", "--markdown", "c.md"])
    assert code == 1  # the runs are not accepted
    assert all(name.startswith("b2 ") for name in found)
    assert "- Accepted: " in (lock.parent / "c.md").read_text()
    written = read_lock(mine)
    (accepted,) = written.accepted
    assert accepted.reason == "twelve classes"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", accepted.date)
    assert f"{LABEL}: output float32 1x10 -> float32 1x12" in accepted.changes
    words = "params 10,474 -> 10,540 (+66 parameters: head.bias 10 -> 12, head.weight 10x32 -> 12x32)"
    assert f"{LABEL}: {words}" in accepted.changes
    capsys.readouterr()

    more = ["--accept", "*infer#*: twelve", "--accept", "*: the rest"]
    assert check(mine, "a wider head", more=more) == (0, {})
    assert check(mine, "a wider head") == (0, {})
    assert [one.reason for one in read_lock(mine).accepted] == ["twelve classes", "twelve", "the rest"]
    # a new snapshot keeps what was accepted
    write_package(lock.parent, "a wider head")
    before = mine.read_bytes()
    assert run_command([*SNAPSHOT, "-o", "mine.json"]) == 0
    assert mine.read_bytes() == before


def test_a_pattern_without_a_change_leaves_the_lock_alone(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = lock.read_bytes()
    write_package(lock.parent, "a wider head")
    assert run_command(["check", "good.json", "--allow-import", "--accept", "vit_*: no such cell"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "matches no changed cell. Changed: " in errors[-1]
    assert lock.read_bytes() == before


def test_all_outputs_are_written(lock: Path) -> None:
    code, _ = check(lock, "an extra layer", more=["--markdown", "c.md", "--junit", "c.xml", "--all"])
    assert code == 1
    assert "blocks.2 (6 tensors) added" in (lock.parent / "c.md").read_text()
    assert 'type="regression"' in (lock.parent / "c.xml").read_text()


def test_under_another_torch_only_the_rest_is_checked(
    lock: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = lock.with_name("old.json")
    write_lock(old, replace(read_lock(lock), torch="1.13.1"))
    code, found = check(old, "an added copy")
    assert code == 0
    assert {one["verdict"] for one in found.values()} == {"not comparable"}
    assert "the baseline was made with torch 1.13.1" in capsys.readouterr().out
    assert check(old, "an extra layer")[0] == 1


MISTAKES = [
    (
        ["check", "nowhere.json"],
        "'nowhere.json' cannot be read: No such file or directory. Make one: vitbench snapshot",
    ),
    (["check", "pkg/net.py"], "cannot be used: "),
    (["check", "good.json"], "add --allow-import if you trust it"),
    (["check", "good.json", "--allow-import", "--accept", "no reason"], "is not 'cell or pattern: reason'"),
    (["check", "good.json", "--allow-import", "--json", "nowhere/x.json"], "there is no folder 'nowhere'"),
    (["check", "good.json", "--allow-import", "--json", "good.json"], "is the baseline file itself"),
    (["snapshot", "-o", "nowhere/x.json"], "there is no folder 'nowhere'"),
    (["snapshot", "-o", "pkg/net.py"], "cannot be used: "),
    (["snapshot", "--suite", "lightwait"], "Did you mean 'lightweight'?"),
    (["snapshot", "--models", "vit_basik"], "Did you mean 'vit_basic'?"),
    (["snapshot", "--models", "vit_basic", "--image-sizes", "33"], "Image size 33 does not fit vit_basic"),
    (["snapshot", "--models", NAME], "add --allow-import if you trust it"),
    (["snapshot", "--batch-sizes", "many"], "'many' is not a whole number"),
    (["snapshot", "--modes", "both"], "'both' is not allowed"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_exit_code_2(
    lock: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run_command(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("Error: ")
    assert words in line
    assert captured.out == ""


def test_a_snapshot_of_a_failing_model_has_the_failure(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_package(lock.parent, "a builder that raises")
    assert run_command([*SNAPSHOT, "-o", "failing.json"]) == 1
    assert "IndexError: there is no block 13" in capsys.readouterr().err
    assert all(one.failed for one in read_lock(lock.with_name("failing.json")).entries)
    failing = lock.with_name("failing.json")
    assert check(failing, "a builder that raises") == (0, {})
    code, found = check(failing, "none", more=["--accept", "*: it works"])
    assert (code, found) == (0, {})
    assert read_lock(failing).entries == read_lock(lock).entries


@pytest.mark.parametrize("command", ["snapshot", "check"])
def test_help_loads_neither_torch_nor_the_rest(command: str) -> None:
    code = (
        "import sys; from vitbench.cli import run_command; run_command(sys.argv[1:]); "
        "heavy = {'torch', 'rich', 'pandas', 'numpy'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout


# our own lock

OWN = ROOT / "vitbench.lock.json"


def test_our_own_lock_is_of_the_suite_lightweight() -> None:
    lock = read_lock(OWN)
    models = {one.place.model for one in lock.entries}
    assert len(models) == 8
    assert not any(one.failed or one.absent for one in lock.entries)
    assert {(one.place.batch_size, one.place.mode) for one in lock.entries if one.place.is_run} == {
        (1, "infer"), (32, "infer"), (32, "train"),
    }  # fmt: skip
    assert {one.verdict for one in compare_locks(lock, lock)} == {"same"}


OWN_MODELS = [one.place for one in read_lock(OWN).entries if not one.place.is_run]


@pytest.mark.parametrize("place", OWN_MODELS, ids=lambda place: place.model)
def test_our_own_lock_holds_for_parameters_and_keys(place: Place) -> None:
    entry = next(one for one in read_lock(OWN).entries if one.place == place)
    with torch.device("meta"):
        model = build_model(place.model, image_size=place.image_size, num_classes=place.num_classes)
    assert digest(describe_state(model)) == digest(entry.figures["state_dict"])
    assert sum(one.numel() for one in model.parameters()) == entry.figures["params"]

"""A model with an operator that no formula covers: every way to count it says so, and names the operator."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.custom_operator_models import WithProduct, real_only
from vitbench.api import measure
from vitbench.cli import run_command
from vitbench.core.records import Measurement, Record
from vitbench.core.run_folder import read_records
from vitbench.models import imported
from vitbench.regression.expected_values import differences
from vitbench.regression.model_guard import count_exactly, open_subject

pytestmark = pytest.mark.integration

NAME = "module:tests.custom_operator_models:with_product"
OPERATOR = "tests_of_vitbench_models::product"
#: Of torch's own products.
FLOPS = 2 * (3 * 8 + 8 * 10)
WORDS = f"{OPERATOR} x1"


@pytest.fixture(autouse=True)
def _imports_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported, "_allowed", True)


def bound(record: Record, metric: str = "flops") -> Measurement:
    found = record.measurement(metric)
    assert found is not None
    return found


def test_a_measurement_has_the_field_and_json_carries_it() -> None:
    record = measure(WithProduct(), image_size=32, metrics=["flops"])
    for metric, value in (("flops", FLOPS), ("macs", FLOPS // 2)):
        found = bound(record, metric)
        assert (found.status, found.value, found.lower_bound, found.left_out) == ("ok", value, True, WORDS)
    assert bound(Record.from_json(record.to_json())) == bound(record)
    exact = measure("vit_basic_tutorial", image_size=16, metrics=["flops"])
    assert not bound(exact).lower_bound
    assert "lower_bound" not in exact.to_json()


def test_show_and_flops_name_the_operator(capsys: pytest.CaptureFixture[str]) -> None:
    command = [NAME, "--image-size", "32", "--num-classes", "10", "--allow-import"]
    assert run_command(["show", *command, "--layers"]) == 0
    text = capsys.readouterr().out
    assert f"GFLOPs        at least {FLOPS / 1e9:.4g}" in text
    assert f"lower bound   no formula covers {WORDS}" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["other", "96", "51.6", "at", "least", f"{2 * 3 * 8 / 1e9:.4g}"] in rows
    assert ["head", "90", "48.4", f"{2 * 8 * 10 / 1e9:.4g}"] in rows
    assert run_command(["show", *command, "--layers", "--json"]) == 0
    (card,) = json.loads(capsys.readouterr().out)
    assert (card["flops"], card["lower_bound"], card["left_out"]) == (FLOPS, True, WORDS)
    assert {layer["path"]: layer["lower_bound"] for layer in card["layers"]} == {
        "first": False,
        "weight": False,
        "head": False,
        "(model)": True,
    }
    assert card["parts"]["head"] == {"params": 90, "flops": 2 * 8 * 10, "lower_bound": False}
    assert card["parts"]["other"] == {"params": 32 + 64, "flops": 2 * 3 * 8, "lower_bound": True}
    assert run_command(["flops", *command, "--no-others"]) == 0
    text = capsys.readouterr().out
    assert f"at least {FLOPS / 1e9:.4g}" in text
    assert f"WARNING: a lower bound: no formula covers {WORDS}" in text
    assert f"WARNING: a lower bound in training: no formula covers {WORDS}" in text
    assert run_command(["flops", *command, "--no-others", "--json"]) == 0
    (audit,) = json.loads(capsys.readouterr().out)
    assert (audit["lower_bound"], audit["without_formula"]) == (True, {OPERATOR: 1})
    assert (audit["training"]["lower_bound"], audit["training"]["without_formula"]) == (True, {OPERATOR: 1})


@pytest.mark.parametrize("name", [NAME, "module:tests.custom_operator_models:only_product"])
def test_other_counters_have_no_difference_to_a_lower_bound(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["flops", name, "--image-size", "32", "--num-classes", "10", "--allow-import"]
    assert run_command([*command, "--json"]) == 0
    (audit,) = json.loads(capsys.readouterr().out)
    for tool in ("fvcore", "thop"):
        assert audit[tool]["flops"] >= 0
        assert not {"difference", "unexplained"} & set(audit[tool])
    assert all("a lower bound" in text for text in audit["warnings"])
    assert run_command(command) == 0
    assert "without a known reason" not in capsys.readouterr().out


def test_without_flops_a_card_has_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["show", "module:tests.custom_operator_models:two_sparse", "--image-size", "32", "--num-classes", "10"]
    assert run_command([*command, "--allow-import"]) == 0
    text = capsys.readouterr().out
    assert "parameters    62 " in text
    assert "GFLOPs        unavailable: " in text
    assert "of two sparse matrices depend on which of their numbers meet" in text
    assert run_command([*command, "--allow-import", "--json"]) == 0
    (card,) = json.loads(capsys.readouterr().out)
    assert (card["params"], card["flops"], card["macs"]) == (32 + 30, None, None)
    assert "two sparse matrices" in card["flops_error"]


def test_a_run_marks_the_value_in_report_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    keys = {"models": [NAME], "image_sizes": [32], "num_classes": 10, "metrics": ["params", "flops"]}
    suite = tmp_path / "one.toml"
    suite.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items()))
    assert run_command(["run", "--suite", str(suite), "--allow-import", "--out", str(out)]) == 0
    assert "≥ " in capsys.readouterr().out
    (record,) = read_records(out)
    assert (bound(record).value, bound(record).lower_bound, bound(record).left_out) == (FLOPS, True, WORDS)
    report = (out / "report.md").read_text()
    assert f"≥: a lower bound, without operators that no formula covers ({WORDS})." in report
    (line,) = csv.DictReader(io.StringIO((out / "report.csv").read_text()))
    assert line["flops_lower_bound"] == line["macs_lower_bound"] == f"without {WORDS}"


def test_equal_bounds_without_the_same_operators_pass_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "lock.json"
    options = ["--image-sizes", "32", "--num-classes", "10", "--batch-sizes", "2", "--modes", "infer"]
    assert run_command(["snapshot", "--models", NAME, *options, "--allow-import", "-o", str(lock)]) == 0
    assert f"are a lower bound: no formula covers {WORDS}, {OPERATOR} in training x1" in capsys.readouterr().err
    (model,) = json.loads(lock.read_text())["models"].values()
    assert model["figures"]["uncounted"] == {OPERATOR: 1, f"{OPERATOR} in training": 1}
    assert run_command(["check", str(lock), "--allow-import"]) == 0
    assert "Equal bounds without the same operators pass" in capsys.readouterr().out
    content = json.loads(lock.read_text())
    (model,) = content["models"].values()
    model["figures"]["uncounted"] = {}
    lock.write_text(json.dumps(content))
    assert run_command(["check", str(lock), "--allow-import"]) == 1
    assert f"no formula covers {OPERATOR}" in capsys.readouterr().out
    del model["figures"]["uncounted"]
    lock.write_text(json.dumps(content))
    assert run_command(["check", str(lock), "--allow-import"]) == 0
    note = "Operators that no formula covers were not compared: an earlier vitbench made the baseline."
    assert capsys.readouterr().out.count(note) == 1


def test_the_pytest_fixture_compares_words_that_name_the_operator() -> None:
    with open_subject(WithProduct(), {"image_size": 32}) as subject:
        values = count_exactly(subject)
    assert values["flops"] == f"at least {FLOPS:,} (no formula covers {WORDS})"
    assert differences({"flops": FLOPS}, values) == [f"  flops: {FLOPS} expected, {values['flops']} found"]
    assert differences({"flops": values["flops"]}, values) == []


STORED = 4


class Middle(nn.Module):
    """3 -> 8, what a test gives, and 8 -> 10."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 8), nn.Linear(8, 10)
        self.weight = nn.Parameter(torch.ones(8, 8), requires_grad=False)
        self.register_buffer("sparse", torch.diag(torch.tensor([1.0] * STORED + [0.0] * (8 - STORED))).to_sparse())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.middle(self.first(images.mean(dim=(2, 3)))))
        return logits


class WithoutMetaKernel(Middle):
    def middle(self, x: Tensor) -> Tensor:
        return real_only(x, self.weight)


class ByNumPy(Middle):
    def middle(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() @ self.weight.numpy())


class BySparse(Middle):
    def middle(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.sparse, x.T).T


@pytest.mark.parametrize(
    ("model", "flops", "left_out"),
    [
        (WithoutMetaKernel, FLOPS, "tests_of_vitbench_models::real_only x1"),
        (ByNumPy, FLOPS, "NumPy (torch.Tensor.numpy) x2"),
        (BySparse, FLOPS + 2 * STORED, ""),
    ],
)
def test_what_does_not_run_on_meta_is_executed(model: type[Middle], flops: int, left_out: str) -> None:
    found = bound(measure(model(), image_size=32, metrics=["flops"]))
    assert (found.status, found.value, found.executed) == ("ok", flops, True)
    assert (found.lower_bound, found.left_out) == (bool(left_out), left_out)

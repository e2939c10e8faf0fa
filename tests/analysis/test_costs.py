"""``vitbench analyze``: costs add up, agree with the closed form, and are printed in 100 columns."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.data_dependent_models import KeepsLongTokens
from vitbench.analysis.closed_form import closed_form
from vitbench.analysis.cost_text import WIDTH, costs_to_text
from vitbench.analysis.costs import analyze_models
from vitbench.cli import run_command
from vitbench.core.errors import UsageError
from vitbench.models import describe_model, imported

HERE = "module:tests.analysis.test_costs"


@pytest.fixture(autouse=True)
def _imports_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported, "_allowed", True)  # put back afterwards, whatever a command sets


class InfersOnly(nn.Module):
    """Two linear layers that refuse to train."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 8), nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("only for inference")
        logits: Tensor = self.head(self.first(images.mean(dim=(2, 3))))
        return logits


class Sleeps(InfersOnly):
    """Its first layer takes at least 5 ms."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first.register_forward_pre_hook(lambda *_: None)
        self.first.forward = self._slow  # type: ignore[method-assign]

    def _slow(self, x: Tensor) -> Tensor:
        time.sleep(0.005)
        return nn.functional.linear(x, self.first.weight, self.first.bias)


def infers_only(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return InfersOnly(num_classes)


def sleeps(*, image_size: tuple[int, int], num_classes: int) -> nn.Module:
    return Sleeps(num_classes)


def answer_of(name: str, **options: Any) -> dict[str, Any]:
    (answer,) = analyze_models([name], **options)
    assert "error" not in answer, answer
    return answer


COUNTS = (
    "params",
    "calls_forward",
    "calls_backward",
    "flops_forward",
    "flops_backward",
    "elementwise_flops_forward",
    "elementwise_flops_backward",
    "bytes_forward",
    "bytes_backward",
    "saved_bytes",
    "uncovered_calls",
)


def added(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in COUNTS}


@pytest.mark.integration
@pytest.mark.parametrize("name", ["vit_layer6_32", "cifar_dynamic_vit_pruned"])
def test_costs_add_up_and_agree_with_the_closed_form(name: str) -> None:
    card = describe_model(name)
    exact = closed_form(card, card.image_size, card.num_classes)
    by_module = answer_of(name, batch_size=2)
    total = by_module["total"]
    assert (total["params"], total["flops_forward"]) == (exact.params, 2 * exact.flops)
    assert by_module["training_forward_flops"] == 2 * 2 * exact.training_macs
    counts = {name: total[name] for name in COUNTS}
    modules = {row["path"]: row for row in by_module["modules"]}
    assert added([row["own"] for row in modules.values()]) == counts
    assert total["intensity"] == total["flops_forward"] / total["bytes_forward"]
    for path, row in modules.items():
        inside = [other["own"] for name, other in modules.items() if f"{name}.".startswith(f"{path}.") or not path]
        assert added([row["total"]]) == added(inside)
    blocks = answer_of(name, batch_size=2, by="block")["blocks"]
    assert added(blocks) == counts
    assert tuple(row["tokens"] for row in blocks) == (*exact.tokens, None)
    operators = answer_of(name, batch_size=2, by="op")["operators"]
    unsplit = ("params", "saved_bytes")  # an operator has neither
    assert added(operators) == counts | dict.fromkeys(unsplit, 0)
    assert len({row["name"] for row in operators}) == len(operators)


@pytest.mark.integration
def test_explicit_attention_has_the_closed_forms_training_step() -> None:
    card = describe_model("vit_layer6_32")
    exact = closed_form(card, card.image_size, card.num_classes)
    total = answer_of("vit_layer6_32", batch_size=2, attention="explicit")["total"]
    assert total["flops_forward"] + total["flops_backward"] == 2 * exact.step_flops
    fused = answer_of("vit_layer6_32", batch_size=2)["total"]
    scores = 2 * 2 * 6 * 65 * 65 * 128  # the product that the fused kernel's backward pass repeats
    assert fused["flops_backward"] - total["flops_backward"] == scores
    assert fused["saved_bytes"] < total["saved_bytes"]


@pytest.mark.integration
def test_fused_attention_with_dropout_is_said_to_save_its_scores() -> None:
    fused, explicit = (answer_of("vit_base16", attention=attention) for attention in ("fused", "explicit"))
    assert fused["total"]["flops_backward"] == explicit["total"]["flops_backward"]  # no score is computed again
    assert "attention with dropout runs in parts in a training step on the CPU" in fused["method"]
    assert "dropout" not in explicit["method"]


@pytest.mark.integration
def test_the_text_is_as_reviewed(capsys: pytest.CaptureFixture[str], golden: Callable[[str, str], None]) -> None:
    pages = []
    for options in ([], ["--by", "block"], ["--depth", "1", "--batch-size", "8"]):
        assert run_command(["analyze", "vit_layer6_32", *options]) == 0
        pages.append(capsys.readouterr().out)
    golden("analyze.txt", "\n".join(pages).replace(torch.__version__, "VERSION"))


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    [
        "vit_base16",
        "cifar_dynamic_vit_pruned",
        "timm:swin_tiny_patch4_window7_224",
        "torchvision:vit_b_16",
        "timm:coat_tiny",
    ],
)
def test_the_text_fits_100_columns(name: str) -> None:
    for by in ("module", "op"):
        text = costs_to_text([answer_of(name, by=by)], depth=9)
        assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.integration
def test_a_plain_vit_is_not_folded() -> None:
    text = costs_to_text([answer_of("timm:vit_tiny_patch16_224")])
    assert "0 ... 11 (x12, equal)" in text
    assert "fc2" in text
    assert "folded" not in text
    assert len(text.splitlines()) <= 50


@pytest.mark.integration
@pytest.mark.parametrize("name", ["timm:mobilenetv3_large_100", "timm:swin_tiny_patch4_window7_224", "timm:coat_tiny"])
def test_models_of_many_unlike_blocks_are_folded_to_a_screen(name: str) -> None:
    answer = answer_of(name)
    text = costs_to_text([answer])
    assert len(text.splitlines()) <= 65
    assert re.search(r"Levels below \d are folded: --depth shows more", text)
    assert len(costs_to_text([answer], depth=9).splitlines()) > 65


def nested(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("tests.analysis.test_costs.InfersOnly", lambda num_classes: model)
    return costs_to_text([answer_of(f"{HERE}:infers_only", image_size="32", num_classes=10)])


def test_equal_modules_are_one_row_also_inside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal stages of three equal layers, and one of another width."""
    stages = [*([nn.Linear(4, 4) for _ in range(3)] for _ in range(2)), [nn.Linear(4, 4), nn.Linear(4, 8)]]
    first = [nn.AdaptiveAvgPool2d((4, 4)), nn.Linear(4, 4)]  # whose input needs no gradient
    model = nn.Sequential(*first, *(nn.Sequential(*one) for one in stages), nn.Flatten())
    lines = nested(nn.Sequential(model, nn.Linear(3 * 4 * 8, 10)), monkeypatch).splitlines()
    (row,) = (place for place, line in enumerate(lines) if "2 ... 3 (x2, equal)" in line)
    inside = lines[row + 1].split()
    assert inside[:6] == ["0", "...", "2", "(x3,", "equal)", "0.120"]  # six times 4 x 4 weights and 4 biases, in k
    assert any("0.*.* (x7)" in line for line in lines)  # the last stage's first layer is equal, too


def test_without_flops_there_is_no_share_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = nested(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(3)), monkeypatch)
    (model,) = (line.split() for line in text.splitlines() if "(model)" in line)
    assert model[-1] == "0"  # FLOP/B, and nothing behind it
    assert "most forward FLOPs" not in text


def test_a_model_that_only_infers_keeps_its_forward_pass(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["analyze", f"{HERE}:infers_only", "--image-size", "32", "--num-classes", "10", "--allow-import"]
    assert run_command(command) == 0
    assert "no backward pass: RuntimeError: only for inference" in capsys.readouterr().out
    assert run_command([*command, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["total"]["flops_forward"] == 2 * (3 * 8 + 8 * 10)
    assert answer["total"]["flops_backward"] is None
    assert answer["total"]["saved_bytes"] is None
    (first,) = [row["own"] for row in answer["modules"] if row["path"] == "first"]
    assert first["bytes_forward"] == 4 * (3 + 3 * 8 + 8 + 8)  # input, weight, bias and output
    assert first["intensity"] == 2 * 3 * 8 / first["bytes_forward"]
    assert set(answer) == {
        *("model", "image_size", "num_classes", "in_channels", "batch_size", "dtype", "attention", "by", "method"),
        *("executed", "training_error", "training_forward_flops", "left_out", "total", "modules"),
    }
    assert set(answer["total"]) == {*COUNTS, "intensity"}


def test_an_operator_without_a_formula_makes_a_lower_bound(capsys: pytest.CaptureFixture[str]) -> None:
    name = "module:tests.custom_operator_models:with_product"
    assert run_command(["analyze", name, "--image-size", "32", "--num-classes", "10", "--allow-import"]) == 0
    text = capsys.readouterr().out
    assert "≥: a lower bound, no formula covers tests_of_vitbench_models::product x1" in text
    (model,) = [line for line in text.splitlines() if "(model)" in line]
    assert "≥" in model
    assert not any("≥" in line for line in text.splitlines() if "first" in line)


def test_a_model_that_reads_the_image_is_executed() -> None:
    (answer,) = analyze_models(
        ["module:tests.data_dependent_models:keeps_long_tokens"], image_size="32", num_classes=10
    )
    assert "executed on the CPU" in answer["method"]
    assert answer["executed"]
    assert answer["total"]["flops_forward"] > 0
    assert "its costs depend on the image" in costs_to_text([answer], depth=3)
    assert KeepsLongTokens(10)  # its FLOPs for an image are in test_executed_flops.py


def test_times_are_of_modules_in_turns_with_calls_without_hooks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitbench.analysis.module_times.ROUND_SECONDS", 0.0)
    command = ["analyze", f"{HERE}:sleeps", "--image-size", "32", "--num-classes", "10", "--allow-import", "--time"]
    assert run_command([*command, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    times = answer["times"]
    assert times["rounds"] == 5
    assert times["call_s"] >= 0.005
    low, middle, high = times["hook_ratio"]
    assert 0 < low <= middle <= high
    own = {row["path"]: row["own"]["seconds"] for row in answer["modules"]}
    assert own["first"] >= 0.005
    assert times["sum_s"] == pytest.approx(sum(own.values()))
    assert times["sum_over_call"] == pytest.approx(times["sum_s"] / times["call_s"])
    (root,) = [row for row in answer["modules"] if row["path"] == ""]
    assert root["total"]["seconds"] == answer["total"]["seconds"] == pytest.approx(times["sum_s"])
    assert run_command(command) == 0
    printed = capsys.readouterr()
    assert printed.err == "Timing modules on cpu: some five seconds a model\n"
    words = " ".join(printed.out.split())
    assert re.search(r"A call takes [\d.]+ ms; with these hooks [\d.]+ times that", words)
    assert max(map(len, printed.out.splitlines())) <= WIDTH


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["vit_bse16"], 2, "Did you mean 'vit_base16'"),
        (["vit_layer6_32", "--batch-size", "0"], 2, "--batch-size 0 is not a batch of images: give at least 1"),
        (["vit_layer6_32", "--by", "layer"], 2, "--by 'layer' is not known: give module, op, block"),
        (["vit_layer6_32", "--attention", "flash"], 2, "--attention 'flash' is not known: give fused or explicit"),
        (["vit_layer6_32", "--image-size", "33"], 2, "33"),
        (["vit_layer6_32", "--device", "cuda"], 2, "--device cuda says where --time measures: add --time"),
        (["vit_layer6_32", "--device", "gpu", "--time"], 2, "Unknown device 'gpu'"),
        (["vit_layer6_32", "--time", "--by", "op"], 2, "--time measures modules: leave out --by op"),
        (
            [f"{HERE}:infers_only", "--image-size", "32", "--num-classes", "10", "--allow-import", "--by", "block"],
            1,
            "are not one list. Use --by module",
        ),
    ],
)
def test_wrong_requests_are_one_line(
    options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["analyze", *options]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_a_request_for_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="give at least 1"):
        analyze_models(["vit_layer6_32"], batch_size=-1)

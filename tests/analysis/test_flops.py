"""The FLOPs audit: our models to the unit, element-wise work by hand, and what other counters leave out."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.analysis.kinds import smallest_of_each_kind
from vitbench.analysis import flops_audit as audit
from vitbench.analysis.closed_form import closed_form
from vitbench.analysis.flops import (
    count_forward,
    count_fused_attention,
    count_training_step,
)
from vitbench.analysis.flops_audit import audit_flops
from vitbench.cli import run_command
from vitbench.metrics.support.fvcore_thop import OtherCount
from vitbench.models import build_model, imported
from vitbench.models.cards import load_model_cards

CARDS = {card.name: card for card in load_model_cards()}


@pytest.mark.integration
@pytest.mark.parametrize("name", smallest_of_each_kind())
def test_forward_backward_and_every_way_to_count_match_the_closed_form_to_the_unit(name: str) -> None:
    (found,) = audit_flops([name], others=False)
    card = CARDS[name]
    exact = closed_form(card, card.image_size, card.num_classes)
    assert found["flops"] == exact.flops
    assert set(found["other_ways"].values()) == {exact.flops}
    assert len(found["other_ways"]) == 4
    assert found["training"]["step_flops"] == exact.step_flops
    assert found["training"]["forward_flops"] == 2 * exact.training_macs
    assert found["without_formula"] == found["training"]["without_formula"] == {}
    assert found["warnings"] == []
    assert sum(one["flops"] for one in found["operators"].values()) == found["flops"]
    assert sum(one["flops"] for one in found["elementwise"].values()) == found["elementwise_flops"]


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    ["timm:mobilevit_xxs", "torchvision:vit_b_32"],
)
def test_matrix_work_is_what_flop_counter_mode_counts(name: str) -> None:
    (found,) = audit_flops([name], others=False)
    with torch.device("meta"):
        model = build_model(name).eval().requires_grad_(False)
        images = torch.empty(1, 3, *found["image_size"])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    assert found["flops"] == counter.get_total_flops()
    assert found["without_formula"] == {}


def test_element_wise_work_of_a_small_model_by_hand() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.LayerNorm(8), nn.GELU(), nn.Softmax(dim=-1)).eval()
        images = torch.empty(3, 3, 2, 2)
    counts = count_forward(model, images)
    assert counts.flops == 2 * 3 * 12 * 8
    work = {name: one.flops for name, one in counts.elementwise.items()}
    assert work == {
        "addmm (bias)": 3 * 8,
        "native_layer_norm": 7 * 3 * 8,  # 5, and 1 each for weight and bias
        "gelu": 5 * 3 * 8,
        "_softmax": 5 * 3 * 8,
    }
    assert all(one.calls == 1 for one in counts.elementwise.values())


def test_the_tanh_form_of_gelu_and_a_norm_without_weights_cost_what_their_formulas_say() -> None:
    x = torch.empty(2, 5, device="meta")
    assert count_forward(nn.GELU(approximate="tanh"), x).elementwise_flops == 9 * 10
    assert count_forward(nn.LayerNorm(5, elementwise_affine=False), x).elementwise_flops == 5 * 10


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_backward_of_a_grouped_convolution_takes_two_forward_passes(groups: int) -> None:
    class Twice(nn.Module):  # the first convolution takes the images, which need no gradient
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.second = nn.Conv2d(8, 16, 3, padding=1, groups=groups)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.second(self.first(images)).mean(dim=(2, 3))
            return logits

    with torch.device("meta"):
        forward, backward = count_training_step(Twice(), torch.empty(2, 3, 6, 6))
    first, second = 2 * 2 * 36 * 3 * 8, 2 * 2 * 36 * (8 // groups) * 9 * 16
    assert forward.flops == first + second
    assert backward.flops == first + 2 * second


def test_fused_attention_is_seen_inside_of_torchs_own_attention_layer() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
            return output

    class ByName(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(query=x, value=x, key=x)

    with torch.device("meta"):
        assert count_fused_attention(ByName(), torch.empty(2, 7, 12)) == 2 * 2 * 7 * 7 * (12 + 12)
        model, x = Own().eval().requires_grad_(False), torch.empty(2, 7, 12)
    assert count_fused_attention(model, x) == 2 * 3 * 2 * 7 * 7 * (4 + 4)
    assert torch.nn.functional.scaled_dot_product_attention.__module__ != __name__
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.integration
def test_what_fvcore_and_thop_miss_and_add_is_explained_to_the_flop() -> None:
    fused, explicit = (audit_flops(["vit_layer6_32"], attention=kind)[0] for kind in ("fused", "explicit"))
    attention = 6 * 2 * 2 * 65 * 65 * 128
    assert fused["fvcore"]["missed"] == {"aten::scaled_dot_product_attention": attention}
    assert explicit["fvcore"]["missed"] == {}
    for found in (fused, explicit):
        assert found["warnings"] == []
        assert list(found["thop"]["missed"].values()) == [attention]
        for tool in ("fvcore", "thop"):
            other = found[tool]
            assert other["unexplained"] == 0
            assert other["flops"] == found["flops"] - sum(other["missed"].values()) + sum(other["added"].values())
    assert fused["fvcore"]["added"] == {"layer_norm": 2 * 5 * (12 * 65 + 1) * 128}


#: Of one call of the shared layer (8 to 8 numbers) on four tokens.
CALL = 2 * 4 * 8 * 8


@pytest.mark.integration
@pytest.mark.parametrize(
    ("builder", "calls", "paths"),
    [("one_parent", 1, 1), ("two_parents", 2, 2), ("three_parents", 3, 3), ("two_names", 2, 1), ("nested", 5, 5)],
)
def test_what_thop_counts_of_a_shared_layer_is_explained_to_the_flop(
    builder: str, calls: int, paths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imported, "_allowed", True)
    (found,) = audit_flops([f"module:tests.analysis.shared_layers:{builder}"], image_size="4", num_classes=5)
    once = 2 * 4 * 3 * 2 * 2 * 8 + 2 * 8 * 5  # the patches and the head
    assert found["flops"] == once + calls * CALL
    thop = found["thop"]
    # each call counts once for each path, and the sum visits the layer once for each path
    assert thop["flops"] == once + paths * paths * calls * CALL
    assert list(thop["added"].values()) == ([(paths * paths - 1) * calls * CALL] if paths > 1 else [])
    assert (thop["missed"], thop["unexplained"], found["warnings"]) == ({}, 0, [])


@pytest.mark.integration
def test_a_layer_of_a_class_of_ones_own_is_one_that_thop_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported, "_allowed", True)
    (found,) = audit_flops(["module:tests.analysis.shared_layers:own_class"], image_size="4", num_classes=5)
    assert list(found["thop"]["missed"].values()) == [CALL]
    assert (found["thop"]["unexplained"], found["warnings"]) == (0, [])


@pytest.mark.integration
def test_attention_inside_of_torchs_own_layer_is_explained_too() -> None:
    (found,) = audit_flops(["vit_b16_scratch"], image_size="32")
    assert found["warnings"] == []
    assert found["fvcore"]["missed"] == {"aten::scaled_dot_product_attention": 12 * 2 * 2 * 5 * 5 * 768}


@pytest.mark.integration
def test_a_difference_without_a_known_reason_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(model: nn.Module, images: torch.Tensor) -> OtherCount:
        return OtherCount(tool="forgetful 1.0", by_operator={"linear": 1000})

    monkeypatch.setattr(audit, "count_by_fvcore", forgetful)
    (found,) = audit_flops(["vit_basic_tutorial"])
    (warning,) = found["warnings"]
    assert warning == f"{found['flops'] - 1000:,} FLOPs that fvcore does not count, without a known reason"


@pytest.mark.integration
def test_a_closed_form_that_is_off_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*args: Any) -> Any:
        return dataclasses.replace(closed_form(*args), macs=1)

    monkeypatch.setattr(audit, "closed_form", off)
    (found,) = audit_flops(["vit_basic_tutorial"], others=False)
    assert found["warnings"] == [f"the closed form gives 2 FLOPs, the dispatcher {found['flops']:,}"]


@pytest.mark.integration
def test_a_model_that_does_not_train_on_meta_keeps_its_forward_flops(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no kernel\nand more")

    monkeypatch.setattr(audit, "count_training_step", fail)
    assert run_command(["flops", "vit_basic_tutorial", "--no-others"]) == 0
    text = capsys.readouterr().out
    assert "training step: unavailable, a training step does not run on meta: RuntimeError: no kernel\n" in text
    assert "closed form" in text


@pytest.mark.integration
def test_the_command_prints_every_counter_and_the_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["flops", "vit_basic_tutorial", "--image-size", "16"]) == 0
    text = capsys.readouterr().out
    for part in ("dispatcher, on meta", "closed form", "+0.000 %", "fvcore misses", "thop misses", "native_layer_norm"):
        assert part in text
    assert "WARNING" not in text


@pytest.mark.integration
def test_the_command_answers_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["flops", "vit_basic_tutorial", "timm:test_vit", "--no-others", "--json"]) == 0
    mine, timms = json.loads(capsys.readouterr().out)
    assert mine["flops"] == 2 * mine["macs"]
    assert mine["closed_form"]["difference"] == 0
    assert "no closed form" in timms["closed_form"]["reason"]
    assert "fvcore" not in mine


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["vit_bsic"], 2, "Did you mean 'vit_basic'?"),
        (["vit_basic", "--image-size", "33"], 2, "does not divide it"),
        (["vit_basic", "--image-size", "x"], 2, "neither N nor HxW"),
        (["vit_basic", "--num-classes", "-1"], 2, "Invalid value for '--num-classes'"),
        (["vit_basic", "--attention", "flash"], 2, "give fused or explicit"),
        (["vit_basic_tutorial", "vit_bsic", "--no-others"], 1, "Did you mean 'vit_basic'?"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["flops", *arguments]) == code
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert line in errors[0]

"""A model's card: its counts, its parts, its claims judged, its weights; as text and as data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vitbench.analysis.closed_form import closed_form
from vitbench.analysis.model_summary import count_model, judge_models, show_models
from vitbench.analysis.rendering import cards_to_text
from vitbench.cli import run_command
from vitbench.core.errors import UnknownNameError, Unsupported, UsageError
from vitbench.models import build_model
from vitbench.models.cards import Claim, model_registry
from vitbench.models.weights.checkpoints import save_checkpoint

pytestmark = pytest.mark.integration

MODEL = "vit_basic_tutorial"


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The one card that ``vitbench show ... --json`` gives."""
    code, out, _ = ask(capsys, "show", *arguments, "--json")
    assert code == 0
    (card,) = json.loads(out)
    assert isinstance(card, dict)
    return card


# As data


def test_a_card_as_json_has_counts_parts_tokens_and_claims(capsys: pytest.CaptureFixture[str]) -> None:
    card = show(capsys, "vit_layer6_32")
    assert card["params"] == card["trainable_params"] == 827_530
    assert card["params_bytes"] == 4 * 827_530
    assert card["flops"] == 2 * card["macs"] == 116_037_120
    assert (card["buffers"], card["params_without_gradient"]) == (0, 0)
    assert (card["image_size"], card["num_classes"], card["patch"]) == ([32, 32], 10, 4)
    assert card["tokens_per_block"] == [65] * 6
    assert list(card["parts"]) == ["embedding", "attention", "MLP", "norms", "head"]
    assert card["parts"]["attention"] == {"params": 396_288, "flops": 64_097_280, "lower_bound": False}
    assert [claim["quantity"] for claim in card["claims"]] == ["top1", "loss"]
    assert card["recipes"] == ["vit-classification-cifar10"]
    assert card["config"]["depth"] == 6
    assert "layers" not in card
    assert "weights" not in card


def test_the_parts_of_a_card_add_up_to_its_counts(capsys: pytest.CaptureFixture[str]) -> None:
    card = show(capsys, "cifar_dynamic_vit_pruned")
    assert sum(part["params"] for part in card["parts"].values()) == card["params"]
    assert sum(part["flops"] for part in card["parts"].values()) == card["flops"] == 1_034_690_304
    assert card["tokens_per_block"] == [65, 65, 58, 46, 32, 19]


def test_layers_are_in_the_card_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    card = show(capsys, "vit_layer6_32", "--layers")
    assert sum(layer["params"] for layer in card["layers"]) == card["params"]
    assert sum(layer["flops"] for layer in card["layers"]) == card["flops"]
    assert {tuple(layer) for layer in card["layers"]} == {
        ("path", "kind", "part", "params", "flops", "output_shape", "lower_bound"),
    }
    paths = [layer["path"] for layer in card["layers"]]
    assert len(paths) == len(set(paths))
    embedding = next(layer for layer in card["layers"] if layer["kind"] == "Conv2d")
    assert (embedding["params"], embedding["flops"]) == (6_272, 786_432)
    assert embedding["output_shape"] == [1, 128, 8, 8]


def test_a_card_of_torchvision_judges_what_torchvision_publishes(capsys: pytest.CaptureFixture[str]) -> None:
    card = show(capsys, "torchvision:vit_b_32")
    verdicts = {claim["quantity"]: claim["verdict"] for claim in card["claims"]}
    assert verdicts == {"params": "agrees", "flops": "agrees as multiply-adds", "top1": "not checkable here"}
    assert card["params"] == 88_224_232
    assert card["patch"] is None
    assert card["tokens_per_block"] == [50] * 12


def test_a_card_of_timm_has_no_claims_but_parts(capsys: pytest.CaptureFixture[str]) -> None:
    card = show(capsys, "timm:vit_tiny_patch16_224")
    assert card["claims"] == card["recipes"] == []
    assert sum(part["params"] for part in card["parts"].values()) == card["params"] == 5_717_416


# Claims in a card


def claims_of(card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {claim["quantity"]: claim for claim in card["claims"]}


def test_claims_in_a_card_are_judged_by_what_was_counted(capsys: pytest.CaptureFixture[str]) -> None:
    claims = claims_of(show(capsys, "cifar_lightweight_vit"))
    assert claims["params"]["verdict"] == "contradicted"
    assert claims["params"]["computed"] == 8_923_786
    assert claims["params"]["reason"] == "counted on meta"
    assert claims["flops"]["verdict"] == "agrees as multiply-adds"
    change = claims["params_change_vs:cifar_vit_base"]
    assert change["computed"] == pytest.approx(8_923_786 / 18_979_338 - 1)


def test_claims_are_judged_at_the_own_size_whatever_size_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    own, larger = show(capsys, "cifar_vit_base"), show(capsys, "cifar_vit_base", "--image-size", "64")
    assert larger["flops"] > 3 * own["flops"]
    assert larger["tokens_per_block"] == [257] * 6
    for quantity in ("params", "flops"):
        at_own, at_larger = claims_of(own)[quantity], claims_of(larger)[quantity]
        assert at_larger["computed"] == at_own["computed"]
        assert at_larger["verdict"] == at_own["verdict"]
        assert at_larger["reason"].startswith("closed form")


def test_claims_are_judged_with_the_own_classes_whatever_classes_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    card = show(capsys, "vit_base16", "--num-classes", "10")
    assert card["params"] == 86_567_656 - 990 * 769
    assert claims_of(card)["params"]["computed"] == 86_567_656


def test_claims_of_torchvision_are_judged_at_the_own_size_too(capsys: pytest.CaptureFixture[str]) -> None:
    card = show(capsys, "torchvision:vit_b_32", "--image-size", "64", "--num-classes", "7")
    claims = claims_of(card)
    assert card["params"] < 88_000_000
    assert (claims["params"]["verdict"], claims["params"]["computed"]) == ("agrees", 88_224_232)
    assert claims["flops"]["verdict"] == "agrees as multiply-adds"


# As text


def test_the_text_of_a_card_has_its_values_with_units(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = ask(capsys, "show", "vit_layer6_32")
    assert (code, errors) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "vit_layer6_32  (32x32 px, 10 classes)"
    assert "  parameters    827,530 (3.3 MB), trainable 827,530" in lines
    assert "  GFLOPs        0.116 for one image (a multiply-add is two)" in lines
    assert "  GMACs         0.05802" in lines
    assert "  tokens        65 into each of 6 blocks" in lines
    assert "  recipe        vit-classification-cifar10" in lines
    rows = {words[0]: words[1:] for line in lines if (words := line.split())}
    assert rows["attention"] == ["396,288", "47.9", "0.0641", "55.2"]
    assert rows["norms"] == ["3,328", "0.4", "0", "0.0"]
    assert "  claims" in lines
    assert "78.31 % test accuracy" in out
    assert "  layers" not in lines


def test_the_text_of_a_pruned_model_has_the_tokens_of_each_block(capsys: pytest.CaptureFixture[str]) -> None:
    out = ask(capsys, "show", "cifar_dynamic_vit_pruned")[1]
    assert "  tokens        65, 65, 58, 46, 32, 19 into blocks 0 to 5" in out.splitlines()
    assert "contradicted" in out
    assert "pruning saves 30-40 %" in out


def test_the_text_of_layers_has_a_line_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    out = ask(capsys, "show", "vit_layer6_32", "--layers")[1]
    table = out.split("  layers\n")[1].splitlines()
    assert table[0].split() == ["layer", "class", "part", "output", "parameters", "FLOPs"]
    rows = {words[0]: words[1:] for line in table[1:] for words in [line.split()]}
    (embedding,) = (words for words in rows.values() if words[0] == "Conv2d")
    assert embedding == ["Conv2d", "embedding", "1x128x8x8", "6,272", "786,432"]
    assert rows["pos_embed"] == ["Parameter", "embedding", "8,192", "0"]
    assert all(len(line) == len(line.rstrip()) for line in table)


def test_several_cards_are_printed_and_failures_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = ask(capsys, "show", "vit_layer6_32", "vit_basik", MODEL)
    assert code == 1
    heads = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert [line.split()[0] for line in heads] == ["vit_layer6_32", MODEL]
    assert errors == "Error: Unknown model 'vit_basik'. Did you mean 'vit_basic'? See: vitbench list models\n"


def test_a_card_without_parts_has_the_reason() -> None:
    (card,) = show_models(["vit_layer6_32"])
    text = cards_to_text([{**card, "parts": {}, "tokens_per_block": [], "parts_error": "RuntimeError: no hooks"}])
    assert "  parts         unavailable: RuntimeError: no hooks" in text.splitlines()
    assert "tokens" not in text.split("claims")[0].split("configuration")[0].split("counted by")[1]


# Weights


def saved(path: Path, model: str = MODEL, **options: Any) -> Path:
    torch.manual_seed(1)
    save_checkpoint(build_model(model, **options), path, {"model": model})
    return path


def test_show_describes_a_checkpoint_that_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = saved(tmp_path / "good.safetensors")
    card = show(capsys, MODEL, "--weights", str(path))
    tensors = len(build_model(MODEL).state_dict())
    assert card["weights"]["file"].endswith("good.safetensors")
    assert card["weights"]["tensors"] == tensors
    assert card["weights"]["dtype"] == "float32"
    assert card["weights"]["facts"]["model"] == MODEL
    assert not card["weights"]["resampled"]
    assert not card["weights"]["replaced_head"]
    code, out, _ = ask(capsys, "show", MODEL, "--weights", str(path))
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("  weights "))
    assert "good.safetensors" in line
    assert f"{tensors} tensors, float32" in line
    assert card["weights"]["digest"] in line


def test_show_reports_a_head_that_was_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(saved(tmp_path / "hundred.safetensors", num_classes=100))
    code, out, errors = ask(capsys, "show", MODEL, "--weights", path, "--num-classes", "10")
    assert code == 2
    assert out == ""
    assert "--replace-head" in errors
    code, out, _ = ask(capsys, "show", MODEL, "--weights", path, "--num-classes", "10", "--replace-head")
    assert code == 0
    assert "its head left out, a random one in its place" in out


def test_a_card_of_weights_has_their_classes_and_their_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "hundred.safetensors"
    facts = {"model": MODEL, "image_size": [48, 48], "num_classes": 100}
    save_checkpoint(build_model(MODEL, image_size=48, num_classes=100), path, facts)
    card = show(capsys, MODEL, "--weights", str(path))
    assert (card["image_size"], card["num_classes"]) == ([48, 48], 100)
    assert not card["weights"]["resampled"]
    card = show(capsys, MODEL, "--weights", str(path), "--image-size", "32")
    assert (card["image_size"], card["num_classes"]) == ([32, 32], 100)
    assert card["weights"]["resampled"]


@pytest.mark.parametrize("extra", [[], ["--json"]], ids=["text", "json"])
def test_a_checkpoint_that_does_not_fit_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, extra: list[str]
) -> None:
    other = saved(tmp_path / "other.safetensors", "vit_layer6_32")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no checkpoint")
    for path in (other, damaged, tmp_path / "missing.safetensors"):
        code, out, errors = ask(capsys, "show", MODEL, "--weights", str(path), *extra)
        assert code == 2
        assert out == ""
        assert errors.startswith("Error: ")
        assert len(errors.strip().splitlines()) == 1, errors
        assert path.name in errors


def test_weights_go_with_one_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(saved(tmp_path / "good.safetensors"))
    code, out, errors = ask(capsys, "show", MODEL, "vit_basic", "--weights", path)
    assert (code, out) == (2, "")
    assert "A checkpoint fits one model, not 2" in errors


# Counting and judging models


def test_counts_are_for_the_own_size_by_closed_form_or_on_meta() -> None:
    ours, theirs = count_model("cifar_vit_base"), count_model("torchvision:vit_b_32")
    assert (ours.params, ours.flops, ours.method) == (18_979_338, 2 * 1_254_370_304, "closed form")
    assert (theirs.params, theirs.method) == (88_224_232, "counted on meta")
    assert theirs.flops / 2e9 == pytest.approx(4.409, abs=5e-4)  # as torchvision prints it


def test_counting_what_there_is_not_is_refused() -> None:
    for name in ("vit_basik", "torchvision:vit_b_33", "timm:vit_tny_patch16_224"):
        with pytest.raises(UnknownNameError):
            count_model(name)


def test_a_model_without_a_closed_form_is_counted_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package's model is under a name of its own, and there is no formula for it."""
    card = dataclasses.replace(
        model_registry().get(MODEL),
        name="mean_of_a_package",
        builder="tests.failing_models:works",
        config={},
        claims=(Claim(quantity="params", value=40, printed="40 parameters", source="the package"),),
    )
    monkeypatch.setitem(model_registry()._items, card.name, card)
    with pytest.raises(Unsupported):
        closed_form(card, card.image_size, 10)
    counts = count_model(card.name)
    assert (counts.params, counts.flops, counts.method) == (3 * 10 + 10, 2 * 3 * 10, "counted on meta")
    (one,) = judge_models([card.name])
    assert (one.verdict, one.computed) == ("agrees", 40)


def test_a_comparison_with_a_model_of_timm_counts_it() -> None:
    change = next(one for one in judge_models(["dynamic_vit_small"]) if "_change_vs:" in one.claim.quantity)
    assert change.verdict == "contradicted"  # -37 % is the quotient of two figures that were cut off
    assert change.computed == pytest.approx(-0.352, abs=1e-3)


def test_models_are_judged_by_pattern_and_each_once() -> None:
    names = [one.model for one in judge_models(["vit_layer*", "vit_layer6_32", "torchvision:vit_b_32"])]
    assert names == ["vit_layer6_32"] * 2 + ["vit_layer12_32"] * 2 + ["torchvision:vit_b_32"] * 3


def test_judging_what_there_is_not_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'vit_basic'"):
        judge_models(["vit_basik"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": "big"}, "neither N nor HxW"),
        ({"image_size": "0"}, "is not positive"),
        ({"num_classes": -1}, "--num-classes -1 is negative"),
    ],
)
def test_what_no_model_could_take_is_refused_before_any_is_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        show_models([MODEL], **options)

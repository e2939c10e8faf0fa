"""Lists: by family, by pattern, of other libraries, and what nothing matches."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from vitbench.cli import run_command
from vitbench.commands import list_
from vitbench.core.errors import UnknownNameError
from vitbench.models.cards import model_registry


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(["list", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    code, out, errors = ask(capsys, *arguments, "--json")
    assert (code, errors) == (0, "")
    found = json.loads(out)
    assert isinstance(found, list)
    return found


def one_error_line(answer: tuple[int, str, str]) -> str:
    code, out, errors = answer
    assert (code, out) == (2, "")
    assert errors.startswith("Error: ")
    assert len(errors.strip().splitlines()) == 1, errors
    return errors


# Families


def test_models_stand_under_their_families(capsys: pytest.CaptureFixture[str]) -> None:
    text = ask(capsys, "models")[1]
    families: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith(" "):
            families[line] = []
        elif line.strip() and not line.startswith("  model "):
            families[list(families)[-1]].append(line.split()[0])
    last = list(families)[-1]
    assert last.startswith("Any of timm")
    families.pop(last)
    expected: dict[str, list[str]] = {}
    for _, card in model_registry().items():
        expected.setdefault(card.family, []).append(card.name)
    assert families == expected


def test_every_model_of_ours_has_a_family_and_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "models")
    assert all(row["family"] and row["summary"] for row in found)
    params = {row["model"]: row["params"] for row in found}
    assert params["vit_base16"] == 86_567_656
    assert params["vit_layer6_32"] == 827_530
    assert all(isinstance(count, int) for count in params.values())
    assert list(found[0]) == ["model", "family", "image_size", "patch", "num_classes", "params", "summary"]


def test_parameters_are_listed_in_millions(capsys: pytest.CaptureFixture[str]) -> None:
    text = ask(capsys, "models", "vit_layer6_32")[1]
    assert "0.83 M" in text
    assert "num classes" in text  # headings without underscores


@pytest.mark.integration
def test_our_models_are_listed_without_torch() -> None:
    code = (
        "import sys; from vitbench.cli import run_command; run_command(['list', 'models', 'cifar_*']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cifar_vit_base_d12" in done.stdout


# Patterns


@pytest.mark.parametrize(
    ("what", "pattern", "names"),
    [
        ("models", "vit_layer*", ["vit_layer6_32", "vit_layer12_32"]),
        ("models", "vit_layer?_32", ["vit_layer6_32"]),
        ("models", "vit_base16", ["vit_base16"]),
        ("models", "cifar_dynamic_vit_[bd]*se", ["cifar_dynamic_vit_dense", "cifar_dynamic_vit_base_dense"]),
        ("datasets", "cifar*", ["cifar10", "cifar100"]),
        ("suites", "lightweight", ["lightweight"]),
        ("metrics", "flops", ["flops"]),
        ("devices", "cpu", ["cpu"]),
    ],
)
def test_a_pattern_lists_what_it_matches(
    capsys: pytest.CaptureFixture[str], what: str, pattern: str, names: list[str]
) -> None:
    key = what.removesuffix("s")
    assert [row[key] for row in rows(capsys, what, pattern)] == names
    text = ask(capsys, what, pattern)[1]
    assert all(name in text for name in names)
    assert "Any of timm" not in text  # told where the whole list is


def test_a_pattern_that_matches_all_gives_the_whole_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows(capsys, "models", "*") == rows(capsys, "models")


# Other libraries


def test_models_of_timm_are_listed_by_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    found = rows(capsys, "models", "timm:vit_tiny*")
    assert [row["model"] for row in found] == [f"timm:{name}" for name in sorted(timm.list_models("vit_tiny*"))]
    by_name = {row["model"]: row for row in found}
    assert by_name["timm:vit_tiny_patch16_384"]["image_size"] == "384"
    assert {(row["family"], row["params"], row["patch"]) for row in found} == {("timm", None, None)}
    code, text, _ = ask(capsys, "models", "timm:vit_tiny*")
    assert code == 0
    assert text.startswith("timm\n")
    assert "see vitbench show" in text
    assert "timm:vit_tiny_patch16_224" in text


def test_models_of_torchvision_are_listed_by_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "models", "torchvision:swin_?")
    assert [row["model"] for row in found] == ["torchvision:swin_b", "torchvision:swin_s", "torchvision:swin_t"]
    assert {row["num_classes"] for row in found} == {1000}


def test_a_name_without_a_pattern_is_listed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["model"] for row in rows(capsys, "models", "torchvision:vit_b_16")] == ["torchvision:vit_b_16"]


# What nothing matches


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["models", "vit_bsae16"], ["Unknown model 'vit_bsae16'. Did you mean 'vit_base16'?", "vitbench list models"]),
        (["models", "nothing*"], ["Unknown model 'nothing*'", "vitbench list models"]),
        (["datasets", "cifar-10"], ["Unknown dataset 'cifar-10'. Did you mean 'cifar10'?", "vitbench list datasets"]),
        (["metrics", "latancy"], ["Did you mean 'latency'?"]),
        (["models", "timm:vit_tny_patch16_224"], ["Did you mean 'timm:vit_tiny_patch16_224'?", "timm.list_models()"]),
        (["models", "torchvision:vit_b_61"], ["Did you mean 'torchvision:vit_b_16'?", "torchvision.models"]),
        (["modles", "vit_*"], ["Unknown list 'modles'. Did you mean 'models'?"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.parametrize("extra", [[], ["--json"]], ids=["text", "json"])
def test_what_nothing_matches_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], messages: list[str], extra: list[str]
) -> None:
    line = one_error_line(ask(capsys, *arguments, *extra))
    assert all(message in line for message in messages), line


@pytest.mark.parametrize("pattern", ["module:*", "module:tests.failing_models:works"])
def test_modules_of_ones_own_cannot_be_listed(capsys: pytest.CaptureFixture[str], pattern: str) -> None:
    """Nobody knows which there are; least of all are they torchvision's."""
    line = one_error_line(ask(capsys, "models", pattern))
    assert "module:alexnet" not in line
    assert "torchvision" not in line


def test_an_unknown_list_is_refused_by_the_library_too() -> None:
    with pytest.raises(UnknownNameError, match="Unknown list 'modles'"):
        list_.things("modles")

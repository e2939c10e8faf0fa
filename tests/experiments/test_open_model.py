"""A trained model as commands open it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from vitbench.core.errors import DataError, DeviceError, ImageSizeError, UnknownNameError, Unsupported, UsageError
from vitbench.core.text import printable
from vitbench.devices import find_device
from vitbench.experiments.open_model import ModelRequest, OutOfMemory, explain_oom, open_trained
from vitbench.models import build_model
from vitbench.models.weights.checkpoints import digest_of, save_checkpoint

MODEL = "vit_basic_tutorial"
DIGITS = [str(digit) for digit in range(10)]


def save(path: Path, facts: dict[str, Any] | None = None, *, size: int = 16, classes: int = 10) -> Path:
    """A random model of ``classes`` classes, in our format with ``facts``."""
    torch.manual_seed(1)
    save_checkpoint(build_model(MODEL, image_size=size, num_classes=classes), path, facts or {})
    return path


def whole_facts(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "image_size": [16, 16], "num_classes": 10, "classes": DIGITS, "recipe": {}, **more}


# --- models


def test_what_training_wrote_is_taken_up(tmp_path: Path) -> None:
    recipe = {"name": "mine", "mean": [0.1, 0.2, 0.3], "std": [1, 0.5, 0.25]}
    path = save(tmp_path / "best.safetensors", whole_facts(recipe=recipe, data="digits", seed=3))
    trained = open_trained(ModelRequest(model=MODEL, weights=str(path), device="cpu"))
    assert (trained.image_size, trained.num_classes, trained.class_names) == ((16, 16), 10, tuple(DIGITS))
    assert (trained.mean, trained.std) == ((0.1, 0.2, 0.3), (1, 0.5, 0.25))
    assert trained.digest == digest_of(path)[:16]
    assert trained.weights == f"best.safetensors ({trained.digest})"
    assert (trained.facts["data"], trained.facts["seed"], trained.notes) == ("digits", 3, ())
    assert not trained.module.training
    torch.manual_seed(1)
    expected = build_model(MODEL, image_size=16, num_classes=10).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in trained.module.state_dict().items())


def test_the_head_in_the_file_tells_the_classes_where_no_facts_do(tmp_path: Path) -> None:
    torch.save(build_model(MODEL, image_size=32, num_classes=7).state_dict(), tmp_path / "plain.pt")
    plain = open_trained(ModelRequest(model=MODEL, weights=str(tmp_path / "plain.pt"), device="cpu"))
    assert (plain.num_classes, plain.image_size, plain.class_names) == (7, (32, 32), None)
    assert (plain.class_name(3), dict(plain.facts)) == ("class 3", {})
    path = save(tmp_path / "ours.safetensors", {"model": MODEL}, classes=4, size=32)
    assert open_trained(ModelRequest(model=MODEL, weights=str(path), device="cpu")).num_classes == 4
    torch.save(build_model("vit_layer6_32", num_classes=3).state_dict(), tmp_path / "tanh.pt")  # head.fc1, head.fc2
    assert (
        open_trained(ModelRequest(model="vit_layer6_32", weights=str(tmp_path / "tanh.pt"), device="cpu")).num_classes
        == 3
    )


def test_options_come_before_facts(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", whole_facts())
    trained = open_trained(
        ModelRequest(model=MODEL, weights=str(path), device="cpu", image_size="24x32"), class_names=list("abcdefghij")
    )
    assert (trained.image_size, trained.class_name(2)) == ((24, 32), "c")
    assert trained.notes == ("positions resampled from 4x4 to 6x8 patches (bicubic, as vitbench)",)
    with pytest.raises(ImageSizeError, match="does not divide it"):
        open_trained(ModelRequest(model=MODEL, weights=str(path), device="cpu", image_size="30"))
    with pytest.raises(UsageError, match="3 class names are given, but the model has 10 classes"):
        open_trained(ModelRequest(model=MODEL, weights=str(path), device="cpu"), class_names=list("abc"))
    with pytest.raises(DataError, match="It has 10 classes and the model 4"):
        open_trained(ModelRequest(model=MODEL, weights=str(path), device="cpu", num_classes=4))


@pytest.mark.parametrize(
    "facts",
    [
        {"image_size": [10**9, 16]},
        {"image_size": "16"},
        {"image_size": [True, True]},
        {"num_classes": -3},
        {"num_classes": 10.5},
        {"classes": DIGITS[:3]},
        {"classes": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]},
        {"recipe": "brief"},
        {"recipe": {"mean": [0.1, 0.2], "std": [0, 1, 1]}},
        {"recipe": {"mean": "none", "std": [None] * 3}},
    ],
)
def test_facts_that_make_no_sense_are_passed_over(tmp_path: Path, facts: dict[str, Any]) -> None:
    path = save(tmp_path / "a.safetensors", facts, size=32)
    trained = open_trained(ModelRequest(model=MODEL, weights=str(path), device="cpu"))
    assert (trained.image_size, trained.num_classes, trained.class_names) == ((32, 32), 10, None)
    assert (trained.mean, trained.std) == ((0.5,) * 3, (0.5,) * 3)


def test_replaced_head_is_said_and_the_same_each_time(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", whole_facts())
    first, second = (
        open_trained(ModelRequest(model=MODEL, weights=str(path), device="cpu", num_classes=4, replace_head=True))
        for _ in range(2)
    )
    assert first.notes == ("its head left out, a random one in its place",)
    assert first.class_names is None
    heads = [one.module.state_dict()["head.weight"] for one in (first, second)]
    assert heads[0].shape[0] == 4
    assert torch.equal(*heads)


def test_a_head_of_1000_classes_has_the_names_of_imagenet(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", classes=1000)
    trained = open_trained(ModelRequest(model=MODEL, weights=str(path), device="cpu", image_size="16"))
    assert [trained.class_name(index) for index in (0, 1, 285, 999)] == [
        "tench", "goldfish", "Egyptian cat", "toilet tissue"
    ]  # fmt: skip


def test_a_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", whole_facts())
    with pytest.raises(DataError, match=r"does not fit the model: .*The file says that it is of 'vit_basic_tutorial'$"):
        open_trained(ModelRequest(model="vit_basic", weights=str(path), device="cpu"))


def test_weights_are_given_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No weights are given: add --weights PATH, or --pretrained"):
        open_trained(ModelRequest(model=MODEL))
    with pytest.raises(UsageError, match="are given together"):
        open_trained(ModelRequest(model=MODEL, weights="a.pt", pretrained=True))
    with pytest.raises(DataError, match="'no.pt' does not exist"):
        open_trained(ModelRequest(model=MODEL, weights="no.pt"))
    with pytest.raises(UnknownNameError, match="Did you mean 'vit_basic'"):
        open_trained(ModelRequest(model="vit_basci", weights="no.pt"))
    with pytest.raises(UsageError, match="has no published weights"):
        open_trained(ModelRequest(model=MODEL, pretrained=True))
    with pytest.raises(UsageError, match="--num-classes -1 is negative"):
        open_trained(ModelRequest(model=MODEL, weights="a.pt", num_classes=-1))


@pytest.mark.parametrize(("model", "classes"), [("vit_b16_finetune", None), ("vit_b16_transfer", 1000)])
def test_a_published_head_that_would_be_random_is_refused(model: str, classes: int | None) -> None:
    with pytest.raises(UsageError, match=rf"{model} have no head for {classes or 10} classes: it would be random"):
        open_trained(ModelRequest(model=model, pretrained=True, num_classes=classes, device="cpu"))


def test_published_weights_have_the_sizes_names_and_colours_of_their_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny_vit(architecture: str, *, weights: None, num_classes: int, image_size: int) -> torch.nn.Module:
        return torchvision.models.VisionTransformer(image_size, 16, 2, 2, 8, 16, num_classes=num_classes)

    monkeypatch.setattr(torchvision.models, "get_model", tiny_vit)
    published = tiny_vit("", weights=None, num_classes=1000, image_size=224).state_dict()
    monkeypatch.setattr(torchvision.models.ViT_B_16_Weights, "get_state_dict", lambda *args, **kwargs: dict(published))
    name = "torchvision:vit_b_16"
    trained = open_trained(ModelRequest(model=name, pretrained=True, device="cpu"))
    assert (trained.weights, trained.digest) == ("pretrained (torchvision IMAGENET1K_V1)", "")
    assert (trained.image_size, trained.num_classes, trained.class_name(1)) == ((224, 224), 1000, "goldfish")
    assert (trained.mean, trained.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(trained.module.state_dict()["heads.head.weight"], published["heads.head.weight"])
    with pytest.raises(UsageError, match="no head for 10 classes: it would be random"):
        open_trained(ModelRequest(model=name, pretrained=True, device="cpu", num_classes=10))
    replaced = open_trained(ModelRequest(model=name, pretrained=True, device="cpu", num_classes=10, replace_head=True))
    assert replaced.notes == ("its head left out, a random one in its place",)


def test_devices_by_name() -> None:
    assert find_device("cpu").name == "cpu"
    found = find_device("auto")
    assert found.asynchronous or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    with pytest.raises(DeviceError, match=r"Device 'cuda:77' is not there. Found: cpu"):
        find_device("cuda:77")
    with pytest.raises(UnknownNameError, match="Unknown device 'gpu'"):
        find_device("gpu")


def test_memory_that_runs_out_is_one_line_with_the_way_out() -> None:
    cpu = find_device("cpu")
    message = r"^Out of memory on cpu\. Lower it\. .*can't allocate memory"
    with pytest.raises(OutOfMemory, match=message) as caught, explain_oom(cpu, "Lower it"):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "\n" not in str(caught.value)
    message = "cpu cannot run this model: .*not implemented for 'Half'"
    with pytest.raises(Unsupported, match=message), explain_oom(cpu, "Lower it"):
        raise RuntimeError("\"unique\" not implemented for 'Half'\nmore")
    with pytest.raises(KeyError), explain_oom(cpu, "Lower it"):
        raise KeyError("a bug keeps its traceback")


def test_printable_shows_what_terminals_would_obey() -> None:
    assert printable("Katze mit Hut, 猫 é") == "Katze mit Hut, 猫 é"
    assert printable("a\x1b[31m\r\n\u202eb\udc80") == r"a\x1b[31m\r\n\u202eb\udc80"


def test_module_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, vitbench.experiments.open_model, vitbench.experiments.prediction, vitbench.commands.predict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Each metric on models whose values are known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitbench.core.errors import Unsupported
from vitbench.core.records import Cell, Measurement
from vitbench.core.registry import METRICS
from vitbench.devices import open_device
from vitbench.devices.base import Device
from vitbench.executors.cell_trainer import CellTrainer
from vitbench.executors.conversation import converse, finish
from vitbench.executors.launcher import Launcher
from vitbench.executors.protocol import Measure, TrainingSettings
from vitbench.metrics import Budget, NotFiniteError, Subject
from vitbench.metrics.support.in_process import run_metric
from vitbench.metrics.support.timing import sample_durations
from vitbench.models import build_model, describe_model, use_attention
from vitbench.models.weights.checkpoints import save_checkpoint
from vitbench.training.data.datasets import describe_data, load_images
from vitbench.training.data.images import ImageSet
from vitbench.training.data.subsets import imbalanced_counts
from vitbench.training.recipes import Recipe, load_recipe


def make_subject(model: str | nn.Module, **changes: Any) -> Subject:
    fields = {
        "model": model if isinstance(model, str) else "given",
        "image_size": (32, 32),
        "num_classes": 10,
        "batch_size": 2,
        "device": "cpu",
        "threads": 1,
    }
    cell = Cell(**{**fields, **changes})

    def build() -> nn.Module:
        return build_model(model, image_size=cell.image_size, num_classes=10) if isinstance(model, str) else model

    return Subject(
        cell=cell,
        device=open_device("cpu"),
        build=build,
        attention=lambda built: use_attention(built, cell.attention),
        budget=Budget(seconds=0.01, min_samples=3),
    )


def measured(metric: str, subject: Subject) -> dict[str, Measurement]:
    return {one.metric: one for one in run_metric(metric, subject)}


class Half(nn.Module):
    """12 parameters that are trained, 4 that are frozen, 3 that nothing uses, a buffer of 5 int64."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3, 4, bias=False)
        self.frozen = nn.Linear(4, 1, bias=False).requires_grad_(False)
        self.dead = nn.Parameter(torch.zeros(3))
        self.register_buffer("table", torch.zeros(5, dtype=torch.int64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.used(images.mean(dim=(2, 3)))
        return hidden + self.frozen(hidden)


class KeepsTensors(nn.Module):
    """Tensors that are neither parameter nor buffer, some by a private name, and one number that the forward pass
    reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.scale, self._shift = torch.ones(4), [torch.zeros(4)]
        self.gate = torch.tensor(0.5)
        self._seen = self.seen = ["shared"]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.layer(images.mean(dim=(2, 3))) * self.scale + self._shift[0]
        return hidden * self.gate if self.gate > 0 else hidden


def test_tensors_that_a_module_keeps_come_along_to_meta() -> None:
    subject = make_subject(KeepsTensors())
    found = {**measured("flops", subject), **measured("params_without_gradient", subject)}
    assert found["flops"].value == 2 * 3 * 4
    assert "on meta" in found["flops"].method  # one number does not make it depend on the picture
    assert found["params_without_gradient"].value == 0
    assert subject.meta_model.seen is subject.meta_model._seen


def test_parameters_are_counted_apart_by_what_they_are() -> None:
    subject = make_subject(Half())
    found = {**measured("params", subject), **measured("params_without_gradient", subject)}
    values = {name: one.value for name, one in found.items()}
    assert values == {
        "params": 12 + 4 + 3,
        "trainable_params": 12 + 3,
        "params_bytes": 4 * 19,
        "buffers": 5,
        "buffers_bytes": 40,
        "params_without_gradient": 3,
    }
    assert found["params_without_gradient"].detail == "dead"


@pytest.mark.parametrize("attention", ["fused", "explicit"])
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_flops_are_the_same_whatever_the_attention_and_mode(attention: str, mode: str) -> None:
    found = measured("flops", make_subject("vit_layer6_32", attention=attention, mode=mode, batch_size=7))
    assert found["flops"].value == 2 * 58_018_560  # of one image, whatever the batch
    assert found["macs"].value == 58_018_560


def test_fvcore_misses_fused_attention_by_exactly_its_products() -> None:
    """65 tokens, width 128, six blocks: 2 L^2 D multiply-adds a block, which explicit attention shows it."""
    fused = measured("fvcore", make_subject("vit_layer6_32"))["flops_fvcore"]
    explicit = measured("fvcore", make_subject("vit_layer6_32", attention="explicit"))["flops_fvcore"]
    assert explicit.value - fused.value == 2 * 6 * 2 * 65**2 * 128
    assert "scaled_dot_product_attention" in fused.detail
    assert "scaled_dot_product_attention" not in explicit.detail


def test_thop_misses_attention_products_in_any_case() -> None:
    for attention in ("fused", "explicit"):
        thop = measured("thop", make_subject("vit_layer6_32", attention=attention))["flops_thop"]
        assert thop.status == "ok"
        assert 2 * 58_018_560 - thop.value > 2 * 6 * 2 * 65**2 * 128 * 0.9


@pytest.mark.parametrize("metric", ["fvcore", "thop"])
def test_a_counter_that_breaks_is_unsupported_with_its_reason(metric: str) -> None:
    class Picky(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise KeyError("tracing is not for me")

    (found,) = measured(metric, make_subject(Picky())).values()
    assert found.status == "unsupported"
    assert f"{metric} breaks on this model: KeyError" in found.detail


def test_every_sample_is_kept_and_the_budget_ends_it() -> None:
    device, calls = open_device("cpu"), []
    samples = sample_durations(lambda: calls.append(1), device, Budget(seconds=0, min_samples=4, max_samples=9)).samples
    assert (len(calls), len(samples)) == (6, 5)  # the first call is no sample, and the first sample is not steady
    samples = sample_durations(lambda: None, device, Budget(seconds=1e9, min_samples=4, max_samples=9)).samples
    assert len(samples) == 9
    assert min(samples) > 0


def test_a_device_is_waited_for_on_both_sides_of_each_sample() -> None:
    """A device whose work goes on after the call returns: without waiting, its time would be charged to the next one."""
    order: list[str] = []

    class Asynchronous(Device):
        kind = "asynchronous"

        def synchronize(self) -> None:
            order.append("wait")

    budget = Budget(seconds=0, min_samples=1, max_samples=1)
    sample_durations(lambda: order.append("call"), Asynchronous("x"), budget)
    assert order == ["wait", "call", "wait", "call", "wait"]


def test_throughput_on_an_asynchronous_device_queues_batches() -> None:
    order: list[str] = []

    class Asynchronous(type(open_device("cpu"))):  # type: ignore[misc]
        asynchronous = True

        def synchronize(self) -> None:
            order.append("wait")

    subject = make_subject("vit_layer6_32")
    subject.device = Asynchronous("cpu")
    (found,) = measured("throughput", subject).values()
    assert "8 forward passes back to back" in found.method
    assert len(order) == 2 + len(found.samples[0])  # one wait a window of eight batches, the first of which is cold


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("metric", ["latency", "throughput"])
def test_outputs_that_are_not_finite_have_no_times(metric: str, asynchronous: bool) -> None:
    class Overflows(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) / 0.0

    class Either(type(open_device("cpu"))):  # type: ignore[misc]
        @property
        def asynchronous(self) -> bool:
            return asynchronous

    subject = make_subject(Overflows())
    subject.device = Either("cpu")
    with pytest.raises(NotFiniteError, match="are not finite"):
        measured(metric, subject)


def test_latency_and_throughput_share_their_samples_on_a_synchronous_device() -> None:
    subject = make_subject("vit_layer6_32", batch_size=4)
    latency = measured("latency", subject)["latency"].samples[0]
    rates = measured("throughput", subject)["throughput"].samples[0]
    assert rates == tuple(round(4 / seconds, 6) for seconds in latency)


@pytest.mark.integration
def test_the_first_call_is_kept_apart_and_not_paid_from_the_budget() -> None:
    """A first call that compiles for longer than the whole budget still leaves the budget's samples."""
    import time

    calls: list[int] = []

    def slow_at_first() -> None:
        time.sleep(0.005 if calls else 0.2)
        calls.append(1)

    found = sample_durations(slow_at_first, open_device("cpu"), Budget(seconds=0.1, min_samples=2))
    assert found.first_s >= 0.2
    assert len(found.samples) > 5


def test_attention_is_switched_once_and_not_in_each_sample() -> None:
    subject = make_subject("vit_layer6_32", attention="explicit")
    entered: list[str] = []
    switch = subject.attention

    def counted(model: nn.Module) -> Any:
        entered.append("entered")
        return switch(model)

    subject.attention = counted
    for _ in range(3):
        subject.forward()
    assert entered == ["entered"]
    assert not any(getattr(module, "fused_attn", False) for module in subject.model.modules())
    subject.close()
    assert all(getattr(module, "fused_attn", True) for module in subject.model.modules())


def test_a_training_that_ends_in_no_number_has_no_accuracy() -> None:
    class Broken:
        def train(self, model: nn.Module) -> dict[str, Any]:
            return {"images_seen": 1, "steps": 1, "duration_s": 1.0, "losses": (1.0,), "recipe": "r"}

        def evaluate(self, model: nn.Module) -> dict[str, Any]:
            return {"correct": 1, "total": 10, "loss": float("nan")}

        def save(self, model: nn.Module) -> str:
            return ""

    subject = make_subject("vit_layer6_32", mode="train", weights="train:r", data="digits")
    subject.trainer = Broken()
    with pytest.raises(NotFiniteError):
        list(run_metric("accuracy", subject))
    assert subject.device.classify(NotFiniteError("x")).cause == "not_finite"


class Known:
    """A trainer whose answers are known: F1 of three classes, one of them never right."""

    def train(self, model: nn.Module) -> dict[str, Any]:
        sizes = [500, 250, 50]
        told = {"recipe": "recipe r (0123)", "budget": "the recipe's own: steps = 5", "class_sizes": sizes}
        return {"images_seen": 160, "steps": 5, "duration_s": 1.5, "losses": (1.0, 0.5), **told}

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        by_class = {"class_f1": [0.8, 0.4, 0.0], "class_precision": [1.0, 0.3, 0.0], "class_recall": [2 / 3, 0.6, 0.0]}
        names = {"class_names": ["a", "b, or not", "c"]}
        present = {"macro_f1_present": None, "num_classes": 3, "classes_present": 3, "classes_without_images": 0}
        return {"correct": 6, "total": 10, "loss": 1.25, "macro_f1": 0.4, **present, **by_class, **names}

    def save(self, model: nn.Module) -> str:
        return "checkpoints/x.safetensors"


def test_accuracy_comes_with_f1_of_each_class_in_one_tuple() -> None:
    subject = make_subject("vit_layer6_32", mode="train", weights="train:r", data="digits")
    subject.trainer = Known()
    found = measured("accuracy", subject)
    assert {name: one.unit for name, one in found.items()} == METRICS.get("accuracy").yields_in("train")
    assert (found["accuracy"].value, found["macro_f1"].value, found["test_loss"].value) == (0.6, 0.4, 1.25)
    assert found["class_f1"].samples == ((0.8, 0.4, 0.0),)
    assert found["class_precision"].samples == ((1.0, 0.3, 0.0),)
    assert found["class_recall"].samples == ((0.666666667, 0.6, 0.0),)
    for metric in ("class_f1", "class_precision", "class_recall"):
        assert found[metric].detail == "a, b  or not, c"
    assert found["training_images"].detail == "the recipe's own: steps = 5"
    assert found["training_images"].method == "pictures seen, repeats counted, of 800 (by class: 500 250 50)"


def test_classes_without_images_are_counted_beside_macro_f1_and_the_mean_of_the_others_is_there() -> None:
    class Lacking(Known):
        def evaluate(self, model: nn.Module) -> dict[str, Any]:
            return {
                **super().evaluate(model),
                "macro_f1_present": 0.6,
                "classes_present": 2,
                "classes_without_images": 1,
            }

    subject = make_subject("vit_layer6_32", weights="0123456789abcdef", data="digits")
    subject.trainer = Lacking()
    found = measured("accuracy", subject)
    assert (found["macro_f1"].value, found["macro_f1_present"].value) == (0.4, 0.6)
    assert found["macro_f1"].detail == "1 of 3 classes have no held-out images and count 0"
    assert found["macro_f1"].method.startswith("mean over all 3 classes of F1 on held-out")
    assert found["macro_f1_present"].method.startswith("mean over the 2 classes in labels or predictions of F1")
    assert found["classes_without_images"].value == 1


def test_a_model_that_is_only_tested_has_f1_and_nothing_of_a_training() -> None:
    subject = make_subject("vit_layer6_32", weights="0123456789abcdef", data="digits")
    subject.trainer = Known()
    tested = {"accuracy", "macro_f1", "class_f1", "class_precision", "class_recall", "test_loss", "test_images"}
    assert set(measured("accuracy", subject)) == tested


def make_trainer(recipe: Recipe, subject: Subject | None = None, **settings: Any) -> CellTrainer:
    subject = subject or make_subject(
        "vit_basic_tutorial", image_size=(8, 8), mode="train", weights="train:r", data="digits", seed=3
    )
    given = {"recipe": recipe.model_dump(mode="json"), "data": "digits", "test_images": 100, **settings}
    return CellTrainer(subject, TrainingSettings(**given), lambda event: None)


BUDGETS = {"images", "steps", "epochs", "seconds"}


def small_recipe(**changes: Any) -> Recipe:
    return load_recipe("brief", **({} if BUDGETS & changes.keys() else {"images": 64}), **changes)


def pictures_read(monkeypatch: pytest.MonkeyPatch, trainer: CellTrainer) -> list[int]:
    """The images of each class of a training, without training."""

    class StopError(Exception):
        pass

    def stop(model: nn.Module, pictures: ImageSet, *rest: Any, **more: Any) -> None:
        sizes.extend(pictures.labels.bincount(minlength=10).tolist())
        raise StopError

    sizes: list[int] = []
    monkeypatch.setattr("vitbench.training.loop.train", stop)
    with pytest.raises(StopError):
        trainer.train(trainer.subject.model)
    return sizes


@pytest.mark.parametrize(
    ("changes", "settings", "count"),
    [
        ({}, {}, 64),  # no more than the training sees
        ({"images": 5000}, {}, 1437),
        ({"steps": 3}, {}, 96),
        ({"steps": 3}, {"train_images": 50}, 50),
        ({"epochs": 0.25}, {}, 1437),  # a quarter of an epoch is of all pictures
        ({"epochs": 2.0}, {"train_images": 50}, 50),
        ({"seconds": 1.0}, {}, 1437),
        ({"epochs": 1.0, "validation": 0.1}, {}, 1437 - 144),
        ({"epochs": 1.0, "validation": 0.1}, {"train_images": 2000}, 1437 - 144),
    ],
)
def test_a_training_reads_as_many_images_as_it_can_use(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], settings: dict[str, Any], count: int
) -> None:
    assert sum(pictures_read(monkeypatch, make_trainer(small_recipe(**changes), **settings))) == count


def test_an_imbalanced_training_has_fewer_images_of_the_later_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pictures_read(monkeypatch, make_trainer(small_recipe(epochs=1.0)))
    sizes = pictures_read(monkeypatch, make_trainer(small_recipe(epochs=1.0, imbalance="linear:10")))
    wanted = imbalanced_counts("linear:10", max(whole), 10)
    assert sizes == [min(pair) for pair in zip(whole, wanted, strict=True)]
    # a shorter training sees fewer pictures of the same classes: what is compared is how large these are
    shorter = make_trainer(small_recipe(images=400, imbalance="linear:10"))
    assert pictures_read(monkeypatch, shorter) == sizes
    drawn = make_trainer(small_recipe(images=400, sampler="weighted"))
    assert pictures_read(monkeypatch, drawn) == whole
    fewer = pictures_read(monkeypatch, make_trainer(small_recipe(epochs=1.0, imbalance="linear:10"), train_images=400))
    assert sum(fewer) == 400
    assert fewer[0] / fewer[9] == pytest.approx(sizes[0] / sizes[9], rel=0.1)


@pytest.mark.integration
def test_a_trained_cell_is_scored_as_scikit_learn_scores_it() -> None:
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

    recipe = small_recipe(images=320, mean=[0.1, 0.2, 0.3], std=[0.3, 0.2, 0.1], dropout=0.25)
    trainer = make_trainer(recipe)
    model = trainer.subject.model
    trained = trainer.train(model)
    assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} == {0.25}
    assert (trained["images_seen"], sum(trained["class_sizes"]), trained["budget"]) == (320, 320, "")
    found = trainer.evaluate(model)
    pictures = load_images(describe_data("digits"), "test", image_size=(8, 8), images=100, seed=0)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (recipe.mean, recipe.std))
    with torch.inference_mode():
        logits = model.eval()((pictures.images / 255 - mean) / std)
    predicted, labels = logits.argmax(-1).numpy(), pictures.labels.numpy()
    assert found["correct"] / found["total"] == accuracy_score(labels, predicted)
    assert found["class_f1"] == pytest.approx(f1_score(labels, predicted, average=None, zero_division=0))
    for metric, theirs in (("class_precision", precision_score), ("class_recall", recall_score)):
        assert found[metric] == pytest.approx(theirs(labels, predicted, average=None, zero_division=0))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, pictures.labels)), rel=1e-5)
    assert found["class_names"] == [str(digit) for digit in range(10)]


def test_a_checkpoint_of_ours_is_tested_with_the_normalisation_of_its_recipe(tmp_path: Path) -> None:
    recipe = small_recipe(mean=[0.1, 0.2, 0.3], std=[0.3, 0.2, 0.1])
    path = tmp_path / "mine.safetensors"
    save_checkpoint(build_model("vit_basic_tutorial", image_size=8), path, {"recipe": recipe.model_dump(mode="json")})
    subject = make_subject("vit_basic_tutorial", image_size=(8, 8), weights="0123456789abcdef", data="digits")
    settings = TrainingSettings(recipe=small_recipe().model_dump(mode="json"), data="digits", test_images=100)
    found = [
        CellTrainer(subject, settings, lambda event: None, checkpoint).evaluate(subject.model)["loss"]
        for checkpoint in (str(path), None)
    ]
    trainer = make_trainer(recipe)  # one that has trained it knows
    assert found[0] == trainer.evaluate(subject.model)["loss"]
    assert found[0] != found[1]


@pytest.mark.integration
def test_a_checkpoint_of_elsewhere_is_tested_with_the_normalisation_of_the_models_card(tmp_path: Path) -> None:
    """As ``vitbench evaluate`` tests it: one file has one accuracy."""
    path = tmp_path / "theirs.pt"
    torch.save(build_model("vit_b16_finetune", image_size=224, num_classes=10).state_dict(), path)
    subject = make_subject("vit_b16_finetune", image_size=(224, 224), weights="0123456789abcdef", data="digits")
    settings = TrainingSettings(recipe=small_recipe().model_dump(mode="json"), data="digits", test_images=10)
    card = describe_model("vit_b16_finetune")
    assert card.mean != (0.5, 0.5, 0.5)
    found = CellTrainer(subject, settings, lambda event: None, str(path))._normalisation()
    assert (tuple(found[0]), tuple(found[1])) == (card.mean, card.std)


def test_logits_that_are_not_finite_are_no_score() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.scale * images.mean(dim=(1, 2, 3))[:, None].repeat(1, 10) / 0.0

    with pytest.raises(NotFiniteError, match=r"1000 of 1000 logits"):
        make_trainer(small_recipe()).evaluate(Broken())


@pytest.mark.integration
def test_an_unavailable_value_has_its_reason() -> None:
    subject = make_subject("vit_layer6_32")

    class Blind(type(subject.device)):  # type: ignore[misc]
        def memory_now(self) -> int:
            raise Unsupported("this device keeps its memory to itself")

    subject.device = Blind("cpu")
    found = measured("memory", subject)
    assert found["weights_memory"].value == 4 * 827_530
    assert found["inference_peak_memory"].status == "unsupported"
    assert found["inference_peak_memory"].detail == "this device keeps its memory to itself"


def test_tied_weights_of_a_module_of_ones_own_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(images.mean(dim=(2, 3))))  # type: ignore[no-any-return]

    assert measured("params", make_subject(Tied()))["params"].value == 9


@pytest.mark.integration
def test_every_metric_yields_what_it_declares() -> None:
    for name, metric in METRICS.items():
        if metric.process == "training" or name == "published":
            continue
        for mode in metric.modes:
            found = measured(name, make_subject("vit_basic_tutorial", mode=mode))
            assert {key: one.unit for key, one in found.items()} == metric.yields_in(mode)
            assert all(one.method or (one.status == "unsupported" and one.detail) for one in found.values())


def peaks(launcher: Launcher, count: int, **changes: Any) -> list[float]:
    cell = make_subject("vit_layer6_32", **changes).cell
    found = []
    for _ in range(count):
        worker = launcher.start()
        outcome = converse(worker, Measure(process="memory", metrics=("memory",), cell=cell), timeout_s=60)
        finish(worker, outcome, "cpu")
        assert outcome.failure is None, outcome.failure
        name = "training_peak_memory" if cell.mode == "train" else "inference_peak_memory"
        found += [one.value for one in outcome.measurements if one.metric == name]
    return found


@pytest.mark.integration
def test_memory_repeats_between_processes(fork_server: Launcher) -> None:
    found = peaks(fork_server, 3, mode="train", batch_size=8)
    assert max(found) - min(found) <= max(0.005 * min(found), 0.5e6)


@pytest.mark.integration
def test_a_peak_is_the_weights_and_what_a_forward_pass_keeps_alive(fork_server: Launcher) -> None:
    """At its widest a block holds its input, its normalised input, and the MLP's hidden layer before and after GELU."""
    (small,), (large,) = peaks(fork_server, 1, batch_size=32), peaks(fork_server, 1, batch_size=96)
    token_bytes = 4 * 65 * 128  # of one image
    image_bytes = 4 * 3 * 32 * 32
    per_image = (large - small) / 64
    assert 4 * token_bytes + image_bytes < per_image < 8 * token_bytes + image_bytes
    assert small > 4 * 827_530


@pytest.mark.integration
def test_a_training_step_holds_weights_gradients_two_states_and_every_blocks_activations(fork_server: Launcher) -> None:
    (small,), (large,) = (peaks(fork_server, 1, mode="train", batch_size=size) for size in (4, 20))
    assert small > 4 * 4 * 827_530
    per_image = (large - small) / 16
    assert per_image > 6 * 10 * 4 * 65 * 128  # six blocks, at least ten token-wide tensors each for the backward pass


@pytest.mark.integration
def test_a_peak_holds_nothing_of_what_its_caller_holds() -> None:
    """``vitbench.measure`` shares the process of whoever calls it, on a device that accounts for all its tensors."""

    class Total(type(open_device("cpu"))):  # type: ignore[misc]
        peak_is_total = True
        memory_method = "a fake's own account"
        now = 5000

        def memory_now(self) -> int:
            return self.now

        def reset_peak(self) -> None:
            pass

        def peak(self) -> int:
            return 7000

    subject = make_subject("vit_basic_tutorial")
    subject.device = Total("cpu")
    found = measured("memory", subject)["inference_peak_memory"]
    assert (found.value, found.method) == (2000, "a fake's own account, less 5000 bytes that were held before")
    built = make_subject("vit_basic_tutorial")
    built.device = Total("cpu")
    built.device.now = 5000 + built.resident_bytes()  # type: ignore[attr-defined]
    assert measured("memory", built)["inference_peak_memory"].value == 2000
    alone = make_subject("vit_basic_tutorial")
    alone.device = Total("cpu")
    alone.device.now = 0  # type: ignore[attr-defined]
    assert measured("memory", alone)["inference_peak_memory"].value == 7000


class Scaler:
    """Skips the first steps, as torch's does while gradients overflow."""

    def __init__(self, skips: int) -> None:
        self.skips = skips

    def is_enabled(self) -> bool:
        return True

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self.skips -= 1
        if self.skips < 0:
            optimizer.step()

    def update(self) -> None:
        pass


@pytest.mark.integration
def test_steps_that_a_loss_scaler_skips_are_no_warm_up() -> None:
    subject = make_subject("vit_basic_tutorial", mode="train", dtype="amp")
    vars(subject)["scaler"] = Scaler(5)
    found = measured("tensor_memory", subject)
    assert found["tensor_peak_optimizer"].value > 0
    hopeless = make_subject("vit_basic_tutorial", mode="train", dtype="amp")
    vars(hopeless)["scaler"] = Scaler(1000)
    with pytest.raises(NotFiniteError, match="20 training steps were skipped"):
        hopeless.warm_up()


def test_nothing_trains_in_fp16_alone() -> None:
    with pytest.raises(Unsupported, match="overflows at AdamW's first step"):
        make_subject("vit_basic_tutorial", mode="train", dtype="fp16").step()

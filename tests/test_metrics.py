"""What each metric says of models whose figures are known by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from vitbench.conversation import converse, finish
from vitbench.devices import open_device
from vitbench.devices.base import Device
from vitbench.errors import Unsupported
from vitbench.metrics import Budget, NotFiniteError, Subject
from vitbench.metrics.timing import sample_durations
from vitbench.models import build_model, use_attention
from vitbench.processes import Launcher, make_launcher
from vitbench.records import Cell, Measurement
from vitbench.registry import METRICS
from vitbench.static_counts import measure_task
from vitbench.worker import run_metric


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
    assert len(samples) == len(calls) == 4
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

    sample_durations(lambda: order.append("call"), Asynchronous("x"), Budget(seconds=0, min_samples=2))
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
    assert len(order) == 1 + len(found.samples[0])  # one wait a window of eight batches


def test_latency_and_throughput_share_their_samples_on_a_synchronous_device() -> None:
    subject = make_subject("vit_layer6_32", batch_size=4)
    latency = measured("latency", subject)["latency"].samples[0]
    rates = measured("throughput", subject)["throughput"].samples[0]
    assert rates == tuple(round(4 / seconds, 6) for seconds in latency)


def test_the_first_call_is_kept_but_not_paid_from_the_budget() -> None:
    """A first call that compiles for longer than the whole budget still leaves the budget's samples."""
    import time

    calls: list[int] = []

    def slow_at_first() -> None:
        time.sleep(0.005 if calls else 0.2)
        calls.append(1)

    samples = sample_durations(slow_at_first, open_device("cpu"), Budget(seconds=0.1, min_samples=2)).samples
    assert samples[0] >= 0.2
    assert len(samples) > 5


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


def test_what_a_metric_cannot_tell_is_said() -> None:
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


def test_every_metric_yields_what_it_says() -> None:
    for name, metric in METRICS.items():
        if metric.process == "training" or name == "published":
            continue
        for mode in metric.modes:
            found = measured(name, make_subject("vit_layer6_32", mode=mode))
            assert {key: one.unit for key, one in found.items()} == metric.yields_in(mode)
            assert all(one.method or (one.status == "unsupported" and one.detail) for one in found.values())


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with make_launcher() as launcher:
        launcher.wait_until_ready()
        yield launcher


def peaks(launcher: Launcher, count: int, **changes: Any) -> list[float]:
    cell = make_subject("vit_layer6_32", **changes).cell
    found = []
    for _ in range(count):
        worker = launcher.start()
        outcome = converse(worker, measure_task(cell, "memory", ("memory",)), timeout_s=60)
        finish(worker, outcome, "cpu")
        assert outcome.failure is None, outcome.failure
        name = "training_peak_memory" if cell.mode == "train" else "inference_peak_memory"
        found += [one.value for one in outcome.measurements if one.metric == name]
    return found


def test_memory_repeats_between_processes(launcher: Launcher) -> None:
    found = peaks(launcher, 4, mode="train", batch_size=16)
    assert max(found) - min(found) <= max(0.005 * min(found), 0.5e6)


def test_a_peak_is_the_weights_and_what_a_forward_pass_keeps_alive(launcher: Launcher) -> None:
    """At its widest a block holds its input, its normalised input, and the MLP's hidden layer before and after GELU."""
    (small,), (large,) = peaks(launcher, 1, batch_size=32), peaks(launcher, 1, batch_size=160)
    token_bytes = 4 * 65 * 128  # of one image
    picture_bytes = 4 * 3 * 32 * 32
    per_image = (large - small) / 128
    assert 4 * token_bytes + picture_bytes < per_image < 8 * token_bytes + picture_bytes
    assert small > 4 * 827_530


def test_a_training_step_holds_weights_gradients_two_states_and_every_blocks_activations(launcher: Launcher) -> None:
    (small,), (large,) = peaks(launcher, 1, mode="train", batch_size=8), peaks(launcher, 1, mode="train", batch_size=40)
    assert small > 4 * 4 * 827_530
    per_image = (large - small) / 32
    assert per_image > 6 * 10 * 4 * 65 * 128  # six blocks, at least ten token-wide tensors each for the backward pass

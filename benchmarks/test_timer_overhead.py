"""What our timer adds: its median against a bare loop's in the same process, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from benchmarks.conftest import spread_of_ratios
from vitbench import build_model
from vitbench.devices import open_device
from vitbench.metrics import Budget
from vitbench.metrics.support.timing import sample_durations

ROUNDS = 150
CALLS = 20


@pytest.mark.parametrize("model", ["vit_layer6_32", "cifar_vit_tiny"])
def test_the_timer_adds_less_than_a_hundredth(say: Callable[[str], None], model: str) -> None:
    torch.set_num_threads(1)
    module = build_model(model).eval()
    images = torch.randn(1, 3, 32, 32)
    device = open_device("cpu")
    budget = Budget(seconds=0, min_samples=CALLS, max_samples=CALLS)

    def call() -> object:
        with torch.inference_mode():
            return module(images)

    def bare() -> float:
        found = []
        for _ in range(CALLS):
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
        return statistics.median(found)

    def ours() -> float:
        return statistics.median(sample_durations(call, device, budget).samples)

    ratios = []
    for number in range(ROUNDS):
        first, second = (ours, bare) if number % 2 else (bare, ours)
        a, b = first(), second()
        ratios.append(a / b if number % 2 else b / a)
    say(f"timer over bare loop, {model}: {spread_of_ratios(ratios)}")
    assert abs(statistics.median(ratios) - 1) < 0.01

"""One model by vitbench, a bare loop, torch.utils.benchmark, fvcore and thop, as a Markdown table:
``python -m benchmarks.compare_with_others``. Times are taken in turns in one process and printed as ratios.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch.utils.benchmark import Timer

from benchmarks.conftest import spread_of_ratios
from vitbench import build_model
from vitbench.analysis.flops_audit import audit_flops
from vitbench.devices import open_device
from vitbench.metrics import Budget
from vitbench.metrics.support.timing import sample_durations

MODEL, SIZE = "timm:vit_base_patch16_224", 224
ROUNDS, CALLS = 20, 5


def main() -> None:
    torch.set_num_threads(1)
    (fused,) = audit_flops([MODEL], image_size=str(SIZE))
    (explicit,) = audit_flops([MODEL], image_size=str(SIZE), attention="explicit")
    for audit in (fused, explicit):
        for key in ("forward", "elementwise", "fvcore", "thop"):
            if key in audit:
                print(audit["attention"], key, {k: v for k, v in audit[key].items() if not isinstance(v, list | dict)})
    print("parameters", sum(p.numel() for p in build_model(MODEL).parameters()))

    model, images, device = build_model(MODEL).eval(), torch.randn(1, 3, SIZE, SIZE), open_device("cpu")
    budget = Budget(seconds=0, min_samples=CALLS, max_samples=CALLS)

    def call() -> object:
        with torch.inference_mode():
            return model(images)

    def bare() -> float:
        found = []
        for _ in range(CALLS):
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
        return statistics.median(found)

    timer = Timer("call()", globals={"call": call}, num_threads=1)
    ways = {
        "vitbench's timer": lambda: statistics.median(sample_durations(call, device, budget).samples),
        "torch.utils.benchmark": lambda: timer.timeit(CALLS).mean,
    }
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    bare()
    for number in range(ROUNDS):
        for name, way in ways.items():
            first, second = (way, bare) if number % 2 else (bare, way)
            a, b = first(), second()
            ratios[name].append(a / b if number % 2 else b / a)
    for name, values in ratios.items():
        print(f"{name} over a bare loop: {spread_of_ratios(values)}")


if __name__ == "__main__":
    main()

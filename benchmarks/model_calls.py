"""A process that calls models whenever it is asked to, and waits in between.

``Program(threads)`` starts one; ``python -m benchmarks.model_calls THREADS`` is its other end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

SLEEP_S = 0.006  # until idle threads have stopped spinning


class Program:
    """A process that calls models at batch 1, one after another, in a plain loop."""

    def __init__(self, threads: int, variables: Mapping[str, str] | None = None) -> None:
        words = [sys.executable, "-m", "benchmarks.model_calls", str(threads)]
        environment = {**os.environ, **(variables or {})}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, model: str, calls: int = 1, seconds: float = 0.0) -> list[float]:
        """The seconds of each call: at least so many, for at least so many seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(model, calls, seconds, file=self._process.stdin, flush=True)
        found: list[float] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def answer(threads: int) -> None:
    """Call as stdin asks; a line of JSON with the seconds of the calls each time."""
    import torch

    torch.set_num_threads(threads)
    made: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        model, calls, seconds = line.split()
        if model not in made:
            made[model] = make_call(model)
        call, found = made[model], list[float]()
        with torch.inference_mode():
            start = time.perf_counter()
            while len(found) < int(calls) or time.perf_counter() - start < float(seconds):
                begin = time.perf_counter()
                call()
                found.append(time.perf_counter() - begin)
        time.sleep(SLEEP_S)
        print(json.dumps(found), flush=True)


def make_call(model: str) -> Callable[[], object]:
    """A forward pass of one image of the model's own size, or a step of the reference."""
    import torch

    from vitbench.metrics.support.reference import make_reference
    from vitbench.models import build_model, describe_model

    if model == "reference":
        return make_reference("cpu")
    built = build_model(model).eval()
    images = torch.randn(1, 3, *describe_model(model).image_size)
    return lambda: built(images)


if __name__ == "__main__":
    answer(int(sys.argv[1]))

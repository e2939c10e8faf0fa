"""How many calls of a process and of a turn are slow at first, and what limits threads that wait for each other.

``python -m benchmarks.turns_and_threads turns`` prints the first calls of a process, and of turns after the reference's
turns, over an undisturbed loop in the same process. ``python -m benchmarks.turns_and_threads threads [--busy]`` times
settings of OpenMP in turns, two threads, one process a setting, with another program on a core or without. Nothing
else should run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median, quantiles

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=20000": {"GOMP_SPINCOUNT": "20000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_PROC_BIND=true": {"OMP_PROC_BIND": "true"},
}
ROUNDS = 20
SLEEP_S = 0.006  # until idle threads have stopped spinning


class Program:
    """A process that calls a model: ``run("s 0.1")`` for so many seconds, ``run("12")`` so many times."""

    def __init__(self, model: str, threads: int, variables: Mapping[str, str] | None = None) -> None:
        words = [sys.executable, "-m", "benchmarks.turns_and_threads", "child", model, str(threads)]
        environment = {**os.environ, **(variables or {})}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, what: str) -> list[float]:
        """The seconds of each call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        seconds: list[float] = json.loads(self._process.stdout.readline())
        return seconds

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def child(model: str, threads: int) -> None:
    """Calls as stdin asks for them; a line of JSON with their seconds each time."""
    import torch

    torch.set_num_threads(threads)
    call = make_call(model)
    for line in sys.stdin:
        words = line.split()
        end = time.perf_counter() + float(words[1]) if words[0] == "s" else float("inf")
        found: list[float] = []
        for _ in itertools.count() if words[0] == "s" else range(int(words[0])):
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
            if time.perf_counter() >= end:
                break
        time.sleep(SLEEP_S)
        print(json.dumps(found), flush=True)


def make_call(model: str) -> Callable[[], object]:
    """A forward pass of one image, or a step of the reference."""
    import torch

    from vitbench.metrics.support.reference import make_reference
    from vitbench.models import build_model, describe_model

    if model == "reference":
        return make_reference("cpu")
    size = describe_model(model).image_size if ":" in model else (32, 32)
    built = build_model(model, image_size=size, num_classes=10).eval()
    images = itertools.cycle([torch.randn(1, 3, *size) for _ in range(8)])

    def call() -> object:
        with torch.inference_mode():
            return built(next(images))

    return call


def compare_turns(models: list[str], threads: int) -> None:
    """Print the first calls of a process and of a turn over the loop's."""
    reference = Program("reference", threads)
    print("| model, threads | loop (ms) | calls 1, 2, 3 of a process | calls 1, 2, 3 of a turn |\n|---|--:|---|---|")
    for model in models:
        program = Program(model, threads)
        first, loop, turns = program.run("3"), [], []
        for _ in range(5):
            loop += program.run("s 1.0")
            for _ in range(3):
                reference.run("s 0.1")
                turns.append(program.run("5"))
        whole = median(loop)
        of_turns = [median(turn[number] for turn in turns) / whole for number in range(3)]
        cells = [", ".join(f"{x:.2f}" for x in some) for some in ([x / whole for x in first], of_turns)]
        print(f"| {model}, {threads} | {whole * 1e3:.1f} | {cells[0]} | {cells[1]} |", flush=True)
        program.close()
    reference.close()


@contextlib.contextmanager
def busy_core(*, busy: bool) -> Iterator[None]:
    """Another program on one core, or none."""
    words = [sys.executable, "-m", "benchmarks.load", "busy"]
    other = subprocess.Popen(words) if busy else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def compare_settings(models: list[str], *, busy: bool) -> None:
    """Print the time of each setting over the default's, and its 90th percentile."""
    print("| model | setting | over the default, median [quartiles] | p90 (ms) |\n|---|---|---|--:|")
    for model in models:
        programs = {name: Program(model, 2, variables) for name, variables in SETTINGS.items()}
        for program in programs.values():
            program.run("10")
        found: dict[str, list[list[float]]] = {name: [] for name in programs}
        with busy_core(busy=busy):
            for _ in range(ROUNDS):
                for name in random.sample(list(programs), len(programs)):
                    found[name].append(programs[name].run("s 0.15"))
        for name, rounds in found.items():
            ratios = [median(one) / median(base) for one, base in zip(rounds, found["default"], strict=True)]
            low, middle, high = quantiles(ratios, n=4)
            slow = quantiles([x for one in rounds for x in one], n=10)[-1]
            print(f"| {model} | {name} | {middle:.2f} [{low:.2f}, {high:.2f}] | {slow * 1e3:.1f} |", flush=True)
        for program in programs.values():
            program.close()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["turns", "threads"])
    parser.add_argument("--models", default="vit_layer6_32,cifar_vit_tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    models = options.models.split(",")
    if options.what == "turns":
        compare_turns(models, options.threads)
    else:
        compare_settings(models, busy=options.busy)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        main()

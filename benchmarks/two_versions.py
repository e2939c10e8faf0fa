"""Time whole commands of two versions of vitbench in turns: ``python -m benchmarks.two_versions BASE HEAD``.

BASE and HEAD are checkouts. Each round runs each command once for both, in random order; the ratio HEAD/BASE of a round
survives the drift of the machine. Printed: the median ratio over the rounds, with the least and the largest.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = "vit_basic_tutorial,vit_layer6_32,vit_layer12_32,cifar_vit_tiny,cifar_lightweight_vit"
#: What is timed: the arguments of vitbench, in which OUT is a folder that does not exist yet.
COMMANDS = {
    "help": ["--help"],
    "memory and counts of five cells": [
        *("run", "--models", OURS, "--batch-sizes", "1", "--modes", "infer", "--data", "none", "--threads", "1"),
        *("--metrics", "params,flops,memory", "--out", "OUT"),
    ],
    "zoo-static, 24 models": ["run", "--suite", "zoo-static", "--models", "timm:vit_tiny*,timm:deit*", "--out", "OUT"],
    "report of a stored run": ["report", "RUN", "--out", "OUT"],
}
RUN = "results/amd-epyc-2-cores/lightweight-digits"


def seconds_of(checkout: Path, arguments: list[str]) -> float:
    """Wall time of one command of the version in ``checkout``."""
    with tempfile.TemporaryDirectory() as place:
        known = {"OUT": f"{place}/out", "RUN": str(checkout / RUN)}
        command = [sys.executable, "-m", "vitbench", *(known.get(one, one) for one in arguments)]
        begin = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        subprocess.run(command, check=True, cwd=place, env=environment, capture_output=True)
        return time.perf_counter() - begin


def main() -> None:
    """Parse the command line, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("head", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sides = [options.base.resolve(), options.head.resolve()]
    for name, arguments in COMMANDS.items():
        ratios = []
        for _ in range(options.rounds):
            took = {side: seconds_of(side, arguments) for side in random.sample(sides, 2)}
            ratios.append(took[sides[1]] / took[sides[0]])
        middle = statistics.median(ratios)
        print(f"{name}: {middle:.3f} [{min(ratios):.3f}, {max(ratios):.3f}], {options.rounds} rounds", flush=True)


if __name__ == "__main__":
    main()

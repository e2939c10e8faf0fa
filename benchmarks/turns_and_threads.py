"""How many calls of a process and of a turn are slow at first, and what limits threads that wait for each other.

``python -m benchmarks.turns_and_threads turns`` prints the first calls of a process, and of turns after the reference's
turns, over an undisturbed loop in the same process. ``python -m benchmarks.turns_and_threads threads [--busy]`` times
settings of OpenMP in turns, two threads, one process a setting, with another program on a core or without. Nothing
else should run meanwhile.
"""

from __future__ import annotations

import argparse
import random
from statistics import median, quantiles

from benchmarks.kept_runs import other_load
from benchmarks.model_calls import Program

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=20000": {"GOMP_SPINCOUNT": "20000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_PROC_BIND=true": {"OMP_PROC_BIND": "true"},
}
ROUNDS = 20


def compare_turns(models: list[str], threads: int) -> None:
    """Print the first calls of a process and of a turn over the loop's."""
    reference = Program(threads)
    print("| model, threads | loop (ms) | calls 1, 2, 3 of a process | calls 1, 2, 3 of a turn |\n|---|--:|---|---|")
    for model in models:
        program = Program(threads)
        first, loop, turns = program.run(model, 3), [], []
        for _ in range(5):
            loop += program.run(model, seconds=1.0)
            for _ in range(3):
                reference.run("reference", seconds=0.1)
                turns.append(program.run(model, 5))
        whole = median(loop)
        of_turns = [median(turn[number] for turn in turns) / whole for number in range(3)]
        cells = [", ".join(f"{x:.2f}" for x in some) for some in ([x / whole for x in first], of_turns)]
        print(f"| {model}, {threads} | {whole * 1e3:.1f} | {cells[0]} | {cells[1]} |", flush=True)
        program.close()
    reference.close()


def compare_settings(models: list[str], *, busy: bool) -> None:
    """Print the time of each setting over the default's, and its 90th percentile."""
    print("| model | setting | over the default, median [quartiles] | p90 (ms) |\n|---|---|---|--:|")
    for model in models:
        programs = {name: Program(2, variables) for name, variables in SETTINGS.items()}
        for program in programs.values():
            program.run(model, 10)
        found: dict[str, list[list[float]]] = {name: [] for name in programs}
        with other_load(["busy"] if busy else []):
            for _ in range(ROUNDS):
                for name in random.sample(list(programs), len(programs)):
                    found[name].append(programs[name].run(model, seconds=0.15))
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
    main()

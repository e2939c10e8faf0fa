"""Error rates of two-stage comparisons of equal programs, simulated, for ``measuring-experiments.md`` in results/.

``python -m benchmarks.two_stage_errors`` prints two tables in some minutes on one core. Logarithms of process medians
are normal; the first five processes decide how many there are, by ``statistics.processes_for``'s rule.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from scipy.special import stdtr, stdtrit

from vitbench.core.stats.comparisons import ErrorOfSum
from vitbench.core.stats.intervals import RUN_TO_RUN

FIRST, PRECISION = 5, 0.05
SPREADS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.2)
LEVELS = (0.01, 0.001, 0.0001)


def simulate(rng: np.random.Generator, own: float, count: int, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of ``count`` pairs of equal programs: their means' difference (count,), each mean's estimated variance and its
    number of processes (count, 2). ``own``: the standard deviation of a process's logarithm.
    """
    first = rng.normal(0, own, (count, 2, FIRST))
    variance = first.var(axis=2, ddof=1)
    wanted = (stdtrit(FIRST - 1, 0.975) ** 2) * variance / math.log1p(PRECISION) ** 2
    number = np.clip(np.ceil(np.maximum(wanted, FIRST)), FIRST, most)
    means = (first.sum(2) + rng.normal(0, 1, (count, 2)) * own * np.sqrt(number - FIRST)) / number
    return means[:, 0] - means[:, 1], variance / number, number


def freedom(parts: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Welch's and Satterthwaite's degrees of freedom (count,)."""
    return variance**2 / (parts**2 / (FIRST - 1)).sum(1)


def places(rng: np.random.Generator, count: int) -> list[str]:
    """The share of equal programs that a 95 % interval tells apart, by Welch's t and as ``compare_relative`` does."""
    shares = np.linspace(0, 1, 41)
    known = [ErrorOfSum(((share, 4.0), (1 - share, 4.0)), two_stage=True).quantile(0.975) for share in shares]
    lines = ["| a process's spread | processes, mean | Welch's t | as compared |", "|--:|--:|--:|--:|"]
    for own in SPREADS:
        difference, parts, number = simulate(rng, own, count, 10**9)
        variance = parts.sum(1)
        z = np.abs(difference) / np.sqrt(variance)
        welch = stdtrit(freedom(parts, variance), 0.975)
        two_stage = np.where((number > FIRST).any(1), np.interp(parts[:, 0] / variance, shares, known), welch)
        rates = [f"{100 * np.mean(z > bound):.1f} %" for bound in (welch, two_stage)]
        lines.append(f"| {100 * own:g} % | {number.mean():.1f} | {' | '.join(rates)} |")
    return lines


def gate(rng: np.random.Generator, count: int, most: int) -> list[str]:
    """How many times the level Welch's one-sided p-values fall below it, what runs differ by included."""
    lines = [f"| a process's spread | {' | '.join(f'{100 * level:g} %' for level in LEVELS)} |", "|--:|--:|--:|--:|"]
    for own in SPREADS:
        below = dict.fromkeys(LEVELS, 0)
        for _ in range(10):
            difference, parts, _ = simulate(rng, own, count, most)
            difference = difference + rng.normal(0, math.sqrt(2) * RUN_TO_RUN, count)
            variance = parts.sum(1) + 2 * RUN_TO_RUN**2
            p = stdtr(freedom(parts, variance), -np.abs(difference) / np.sqrt(variance))
            below = {level: found + int((p < level).sum()) for level, found in below.items()}
        cells = [f"{found / 2 / (10 * count) / level:.2f}" for level, found in below.items()]
        lines.append(f"| {100 * own:g} % | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="comparisons a line (the gate's: ten times as many)")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    print("Equal programs told apart at 95 %:\n")
    print("\n".join(places(rng, given.count)))
    for most in (15, 40):
        print(f"\nWelch's p-values below a level, over the level, with at most {most} processes:\n")
        print("\n".join(gate(rng, given.count, most)))


if __name__ == "__main__":
    main()

"""How often points are truly on a Pareto front, by the probability that a bootstrap gives them: simulated.

``python -m benchmarks.front_probabilities`` prints a table in a minute on one core. Eight models differ by about 5 % in
time, five processes by 3 %, and in accuracy on 360 images by about three points; in the second half of the table the
processes of all models share another 5 %, as those that take turns do. ``vitbench.reports.model.pareto`` draws as
``t, shared`` does.

Of 3,000 runs in each half, with seed 1:

| shared | draws | squared error | truly on the front where under 5 % | 40 to 60 % | over 95 % |
|--:|:--|--:|--:|--:|--:|
| 0 % | processes, shared | 0.166 | 12 % | 62 % | 98 % |
| 0 % | normal, shared | 0.164 | 11 % | 61 % | 98 % |
| 0 % | t, shared | 0.164 | 10 % | 63 % | 99 % |
| 0 % | t, each by itself | 0.164 | 9 % | 63 % | 99 % |
| 5 % | processes, shared | 0.168 | 12 % | 64 % | 97 % |
| 5 % | normal, shared | 0.166 | 11 % | 63 % | 98 % |
| 5 % | t, shared | 0.166 | 10 % | 64 % | 98 % |
| 5 % | t, each by itself | 0.177 | 7 % | 69 % | 99 % |
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import gammaincinv

RUNS, MODELS, PROCESSES, DRAWS, IMAGES = 3000, 8, 5, 400, 360
BETWEEN_MODELS, BETWEEN_PROCESSES = 0.05, 0.03


def front(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points are on the front of each draw; all (models, draws)."""
    order = np.lexsort((-y, x), axis=0)
    best = np.maximum.accumulate(np.take_along_axis(y, order, 0), axis=0)
    rises = np.ones_like(best, dtype=bool)
    rises[1:] = best[1:] > best[:-1]
    found = np.empty_like(rises)
    np.put_along_axis(found, order, rises, 0)
    return found


def draws_of(
    logs: np.ndarray, right: np.ndarray, random: np.random.Generator
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Costs and accuracies by several methods, from ``logs`` (models, processes) and ``right`` images (models,)."""
    beta = random.beta(right[:, None] + 0.5, IMAGES - right[:, None] + 0.5, (MODELS, DRAWS))
    binomial = random.binomial(IMAGES, (right / IMAGES)[:, None], (MODELS, DRAWS)) / IMAGES
    means = logs.mean(1)[:, None]
    influences = (logs - means) / PROCESSES
    chosen = random.integers(0, PROCESSES, (PROCESSES, DRAWS))
    yield "processes, shared", logs[:, chosen].mean(1), binomial
    moves = influences @ random.normal(size=(PROCESSES, DRAWS)) * np.sqrt(PROCESSES / (PROCESSES - 1))
    yield "normal, shared", means + moves, beta
    half = (PROCESSES - 1) / 2
    yield "t, shared", means + moves * np.sqrt(half / gammaincinv(half, random.random(DRAWS))), beta
    errors = np.sqrt((influences**2).sum(1) * PROCESSES / (PROCESSES - 1))[:, None]
    yield "t, each by itself", means + errors * random.standard_t(PROCESSES - 1, (MODELS, DRAWS)), beta


def simulate(shared: float, random: np.random.Generator) -> dict[str, np.ndarray]:
    """By method the stated probabilities and whether points are on the true front (2, points)."""
    found: dict[str, list[np.ndarray]] = {}
    for _ in range(RUNS):
        cost = random.normal(0, BETWEEN_MODELS, MODELS)
        accuracy = np.clip(0.8 + cost + random.normal(0, 0.03, MODELS), 0.05, 0.99)
        logs = cost[:, None] + random.normal(0, BETWEEN_PROCESSES, (MODELS, PROCESSES))
        logs += random.normal(0, shared, PROCESSES)
        truth = front(cost[:, None], accuracy[:, None])[:, 0]
        for name, x, y in draws_of(logs, random.binomial(IMAGES, accuracy), random):
            found.setdefault(name, []).append(np.stack([front(x, y).mean(1), truth]))
    return {name: np.concatenate(some, 1) for name, some in found.items()}


def main() -> None:
    """Print the table's lines."""
    random = np.random.default_rng(1)
    for shared in (0.0, 0.05):
        for name, (stated, true) in simulate(shared, random).items():
            ranges = stated < 0.05, abs(stated - 0.5) <= 0.1, stated > 0.95
            shares = " | ".join(f"{100 * true[one].mean():.0f} %" for one in ranges)
            print(f"| {100 * shared:.0f} % | {name} | {np.mean((stated - true) ** 2):.3f} | {shares} |")


if __name__ == "__main__":
    main()

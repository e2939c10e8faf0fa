"""Warm-up: the samples of a process after it has reached its steady state, and their median."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median as middle

import numpy as np

#: With fewer samples nothing is cut: a window of two or three is steady by chance, and a median tolerates one slow
#: sample.
MIN_SAMPLES_FOR_WARMUP = 10


def warmup_length(samples: Sequence[float]) -> int:
    """The number of leading samples before the steady state; at most half of them.

    No fixed count is right: the steady state came after 1, 20, 40 or thousands of iterations, depending on model, batch
    and machine, and some processes *start* faster than they continue. So the samples decide by the marginal standard
    error rule: cut where the standard error of the rest's mean is smallest (MSER; White 1997, "An effective truncation
    heuristic for bias reduction in simulation output", Simulation 69(6)). Ranks instead of values make it independent
    of the scale and robust against a single spike (an interrupt, a page fault). Samples that have not settled by the
    middle have no steady state to find: then little or nothing is cut, and the interval is wide.

    0 for fewer than ``MIN_SAMPLES_FOR_WARMUP`` samples.
    """
    n = len(samples)
    if n < MIN_SAMPLES_FOR_WARMUP:
        return 0
    ranks = _ranks(np.asarray(samples, dtype=float))
    # For each cut: the sums over all that is left, by cumulating from the end.
    rest = n - np.arange(n // 2 + 1)
    sums = np.cumsum(ranks[::-1])[::-1][: n // 2 + 1]
    squares = np.cumsum(ranks[::-1] ** 2)[::-1][: n // 2 + 1]
    standard_error = (squares - sums**2 / rest) / rest**2
    return int(np.argmin(standard_error))


def steady(samples: Sequence[float]) -> Sequence[float]:
    """The samples after the warm-up."""
    return samples[warmup_length(samples) :]


def median(samples: Sequence[float]) -> float:
    """The median. Raises ValueError if there is no sample."""
    if len(samples) == 0:
        raise ValueError("the median of no samples")
    return float(middle(samples))  # much faster than numpy's for the two or three samples of a turn


def process_medians(samples_by_process: Sequence[Sequence[float]]) -> list[float]:
    """The median of each process that has samples, warm-up left out."""
    return [median(steady(samples)) for samples in samples_by_process if len(samples) > 0]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]

"""How single calls scatter: quantiles of the latency of a line."""

from __future__ import annotations

import numpy as np

from vitbench.core.stats.intervals import samples_for_percentile
from vitbench.reports.model.rows import Row

#: From fast to slow calls.
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def spread_of(line: Row) -> tuple[float, ...] | None:
    """The ``QUANTILES`` (s) of the steady calls of a line's latency, all turns of all processes together.

    None with fewer calls than the outer ones take: ``samples_for_percentile(0.99)``.
    """
    samples = line.at_smallest_batch("latency").steady_samples
    if len(samples) < samples_for_percentile(QUANTILES[-1]):
        return None
    return tuple(map(float, np.quantile(samples, QUANTILES)))

"""How single calls scatter: quantiles of the latency of a line."""

from __future__ import annotations

import numpy as np

from vitbench.reports.model.rows import Row

#: From fast to slow calls.
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
#: With fewer calls none is beyond the outer quantiles. These describe the calls that were measured; for a statement
#: about others, as the tables' p99 is, one takes more (``samples_for_percentile``).
MIN_CALLS = 100


def spread_of(line: Row) -> tuple[float, ...] | None:
    """The ``QUANTILES`` (s) of the steady calls of a line's latency, all turns of all processes together; None with
    fewer than ``MIN_CALLS``.
    """
    samples = line.at_smallest_batch("latency").steady_samples
    return tuple(map(float, np.quantile(samples, QUANTILES))) if len(samples) >= MIN_CALLS else None

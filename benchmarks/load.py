"""Artificial load in its own process, until it is killed: ``python benchmarks/load.py busy|bursts|half|memory``."""

from __future__ import annotations

import random
import sys
import time

import numpy as np


def spin(seconds: float) -> None:
    """Keep one core busy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def main(kind: str) -> None:
    draw = random.Random(0)
    large = np.ones(30_000_000)
    while True:
        if kind == "busy":
            spin(1.0)
        elif kind == "bursts":
            spin(draw.uniform(0.2, 2.0))
            time.sleep(draw.uniform(0.2, 2.0))
        elif kind == "half":
            spin(10.0)
            time.sleep(10.0)
        elif kind == "memory":
            large *= 1.0000001  # 240 MB: every cache and the bus
        else:
            sys.exit(f"No such load: {kind}")


if __name__ == "__main__":
    main(sys.argv[1])

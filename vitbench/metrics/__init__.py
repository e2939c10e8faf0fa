"""Metrics: one file each, a generator of Measurements that registers itself by name. Importing this loads no torch.

``support/`` holds what they share: the subject they measure, the timer, the counters. May import suites, training,
models, devices and core. Start with latency.py, then support/subject.py.
"""

from __future__ import annotations

import importlib
import pkgutil

from vitbench.metrics.support.subject import Budget, NotFiniteError, Subject, Trainer

__all__ = ["Budget", "NotFiniteError", "Subject", "Trainer"]

for _module in pkgutil.iter_modules(__path__):  # a new file here is a new metric, with nothing else to change
    importlib.import_module(f"{__name__}.{_module.name}")

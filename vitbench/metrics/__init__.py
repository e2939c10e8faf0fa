"""Metrics by name: each a generator of Measurements in a file of its own. Importing this loads no torch."""

from __future__ import annotations

import importlib
import pkgutil

from vitbench.metrics.support.subject import Budget, NotFiniteError, Subject, Trainer

__all__ = ["Budget", "NotFiniteError", "Subject", "Trainer"]

for _module in pkgutil.iter_modules(__path__):  # a new file here is a new metric, with nothing else to change
    importlib.import_module(f"{__name__}.{_module.name}")

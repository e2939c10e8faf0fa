"""Benchmarks and complexity analysis for Vision Transformers.

The public names load on first use, so that ``import vitbench`` and ``vitbench --help`` never wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> the module that defines it
_PUBLIC = {
    "build_model": "vitbench.models",
    "load_checkpoint": "vitbench.models.weights.checkpoints",
    "fit": "vitbench.analysis.memory",
    "load_records": "vitbench.reports",
    "measure": "vitbench.api",
    "run_suite": "vitbench.runner.run",
    "train": "vitbench.experiments.training",
    "evaluate_model": "vitbench.experiments.evaluation",
    "Cell": "vitbench.core.records",
    "Measurement": "vitbench.core.records",
    "Record": "vitbench.core.records",
    "VitbenchError": "vitbench.core.errors",
}

__all__ = [
    "Cell",
    "Measurement",
    "Record",
    "VitbenchError",
    "__version__",
    "build_model",
    "evaluate_model",
    "fit",
    "load_checkpoint",
    "load_records",
    "measure",
    "run_suite",
    "train",
]

if TYPE_CHECKING:
    from vitbench.analysis.memory import fit
    from vitbench.api import measure
    from vitbench.core.errors import VitbenchError
    from vitbench.core.records import Cell, Measurement, Record
    from vitbench.experiments.evaluation import evaluate_model
    from vitbench.experiments.training import train
    from vitbench.models import build_model
    from vitbench.models.weights.checkpoints import load_checkpoint
    from vitbench.reports import load_records
    from vitbench.runner.run import run_suite


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'vitbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

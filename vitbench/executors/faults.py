"""A hook for tests of a run: the environment variable VITBENCH_FAULTS names a module that injects faults.

Its ``in_worker(cell, process, subject)`` is called in each worker once the cell's subject is made, and its
``before_write(cell, line, descriptor)`` before a record is written. The run warns, and its session says so.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

VARIABLE = "VITBENCH_FAULTS"


def load_injector() -> Any:
    """The module that the variable names; None without it."""
    name = os.environ.get(VARIABLE)
    return importlib.import_module(name) if name else None


def describe() -> dict[str, str]:
    """What a session notes of injected faults; empty without any."""
    name = os.environ.get(VARIABLE)
    return {"faults": f"{VARIABLE}={name} injects faults: these records are not measurements"} if name else {}

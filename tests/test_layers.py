"""Imports point down: the rooms of the package from top to bottom, no circles within one, and which load no torch."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "vitbench"

#: Top to bottom; a room imports only rooms below it.
ROOMS = [
    "__main__",
    "cli",
    "commands",
    "api pytest_plugin",
    "experiments",
    "regression",
    "runner",
    "reports",
    "executors",
    "analysis",
    "metrics",
    "suites",
    "training",
    "models",
    "devices",
    "core",
]
LEVEL = {part: level for level, parts in enumerate(ROOMS) for part in parts.split()}
#: What a command line needs before it measures, and what reads and renders results.
TORCH_FREE = [
    "cli",
    "core.records",
    "core.registry",
    "core.run_folder",
    "core.stats.estimates",
    "core.stats.comparisons",
    "core.stats.intervals",
    "devices",
    "devices.host.load",
    "metrics",
    "models",
    "pytest_plugin",
    "regression.change_points",
    "regression.compare",
    "regression.history",
    "regression.lock_diff",
    "regression.pytest_benchmark_json",
    "regression.snapshot",
    "reports",
    "runner.measure",
    "runner.roofline",
    "runner.run",
    "suites",
    "suites.thresholds",
]


def name_of(path: Path) -> str:
    """``vitbench/core/errors.py`` is ``core.errors``; a package is called after its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


@functools.cache
def imported_by(module: str, *, at_start: bool = False) -> frozenset[str]:
    """The modules that ``module`` imports, anywhere in it or, ``at_start``, as it loads."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(MODULES[module].read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if at_start and (isinstance(node, ast.FunctionDef) or is_for_types(node)):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("vitbench.") in MODULES else node.module for name in inner}
        waiting.extend(ast.iter_child_nodes(node))
    return frozenset(name.removeprefix("vitbench.") for name in found if name.startswith("vitbench."))


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__"}))  # whose names load when they are asked for
def test_imports_point_down(module: str) -> None:
    for other in imported_by(module):
        here, there = module.split(".")[0], other.split(".")[0]
        assert here == there or LEVEL[there] > LEVEL[here], f"{module} imports {other}, which is not below it"


@pytest.mark.integration
def test_no_imports_go_in_circles() -> None:
    graph = {module: imported_by(module, at_start=True) & set(MODULES) - {module} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def test_every_part_has_its_room() -> None:
    assert {module.split(".")[0] for module in MODULES} - {"__init__"} == set(LEVEL)


@pytest.mark.integration
@pytest.mark.parametrize("part", TORCH_FREE)
def test_importing_it_loads_no_torch(part: str) -> None:
    code = f"import sys, vitbench.{part}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Imports point down: the layers of the package, and what stays free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "vitbench"

#: The layers, the highest first; parts of one layer never import each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"sweeps"},
    {"trainings"},
    {"audit", "doctor", "evaluation", "prediction", "attention_pictures", "pytest_plugin"},
    {"ab", "api", "cards", "listing", "trained", "snapshots"},
    {"runner"},
    {"measuring"},
    {"planning"},
    {"static_counts", "turns"},
    {"compare"},
    {"progress", "conversation", "reports"},
    {"history"},
    {"claims", "pytest_benchmark_json", "lockfile", "cell_names"},
    {"processes", "store", "forkserver", "steps"},
    {"worker"},
    {"exact", "estimates"},
    {"metrics", "models", "training", "analysis", "suites", "statistics"},
    {"environment", "load"},
    {"outputs", "other_counters", "tensor_account", "reference", "tracebacks"},
    {"chaos", "frontier", "lifeline", "stacks", "untrusted", "thresholds"},
    {"devices"},
    {"normalisation", "fast_path"},
    {"registry"},
    {"records"},
    {"shapes"},
    {"errors", "printable", "changes"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
#: What reads and renders results, and what a command line needs before it measures.
TORCH_FREE = [
    "history",
    "steps",
    "pytest_benchmark_json",
    "pytest_plugin",
    "reports",
    "compare",
    "changes",
    "lockfile",
    "snapshots",
    "thresholds",
    "store",
    "statistics",
    "estimates",
    "suites",
    "records",
    "registry",
    "cli",
    "runner",
    "measuring",
    "load",
    "metrics",
    "devices",
    "models",
]


def parts_imported_by(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [
                f"{node.module}.{alias.name}" if node.module == "vitbench" else node.module for alias in node.names
            ]
        found |= {name.split(".")[1] for name in names if name.startswith("vitbench.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if part == "__init__":
        return  # the public names, loaded when they are asked for
    for other in parts_imported_by(path) - {part, "__version__"}:
        assert LEVEL[other] > LEVEL[part], f"{part} imports {other}, which is not below it"


def test_every_part_has_its_layer() -> None:
    parts = {
        path.name.removesuffix(".py")
        for path in ROOT.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("part", TORCH_FREE)
def test_importing_it_loads_no_torch(part: str) -> None:
    code = f"import sys, vitbench.{part}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

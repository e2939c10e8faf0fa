"""Write docs/operators.md: what is counted for every operator of the installed torch.

python benchmarks/operator_table.py
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torchvision  # noqa: F401 registers its operators
from torch.utils.flop_counter import flop_registry

from vitbench.metrics.support.operator_formulas import ELEMENTWISE, kind_of
from vitbench.metrics.support.product_formulas import PRODUCTS

#: Optimizers' operators, shifts of whole numbers, and what torch tests or checks itself with.
_LEFT_OUT = (
    *("_foreach", "_fused_ad", "_fused_sgd", "_amp", "__", "_test", "_foobar", "_use_", "_make_dep"),
    *("_functional_sym", "_cslt_sparse_mm_search", "hash_tensor"),
)
PAGE = Path(__file__).parents[1] / "docs" / "operators.md"

INTRODUCTION = """# What is counted for each operator

`benchmarks/operator_table.py` writes this page from the table that every count uses
(`metrics/support/product_formulas.py`, `operator_formulas.py`) and from the operators that torch {version} registers.
A test holds the page against it under that minor version of torch; under any version it holds each formula against a
hand count.

`FLOPs` are those of the products. A multiply-add is two. A product of complex numbers takes four times as many as its
formula says. An operator in place (`addmm_`) or into a given tensor (`out=`) counts as the operator does. Composite
operators (`matmul`, `einsum`, `linalg_vecdot`, `bilinear`, `outer`, ...) count as the parts that torch splits them
into: `outer` and `linalg_vecdot` multiply numbers one by one, which is element-wise work, and so does the backward pass
of a product with a vector for one of its gradients. The formulas are of dense work: a mask saves nothing.

An operator that is in none of the tables makes the value a **lower bound**. So do operators of other libraries, custom
ones included. `torch.utils.flop_counter.register_flop_formula` gives such an operator a formula.
"""


def operators() -> list[str]:
    """The operators of torch and torchvision that take or return tensors and have kernels of their own, without
    overloads and in-place marks. Composite ones never run as such.
    """
    found = set()
    for name in torch._C._dispatch_get_all_op_names():
        library, _, rest = name.partition("::")
        operator = rest.partition(".")[0]
        # what is written into a given tensor counts as the operator itself does
        if library not in ("aten", "torchvision") or operator.startswith(_LEFT_OUT) or rest.endswith("out"):
            continue
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
            continue
        packet = getattr(getattr(torch.ops, library), operator, None)
        overloads = [getattr(packet, one) for one in packet.overloads()] if packet else []
        if not any("Tensor" in str(one._schema) for one in overloads):
            continue
        operator = operator if operator.startswith("__") else operator.rstrip("_")
        found.add(operator if library == "aten" else f"{library}::{operator}")
    return sorted(found)


def render() -> str:
    """The page for the installed torch."""
    names = operators()
    version = ".".join(torch.__version__.split(".")[:2])
    by_torch = {packet.__name__ for packet in flop_registry if packet.__name__ in names} - set(PRODUCTS)
    products = _rows((name, PRODUCTS[name][0]) for name in names if name in PRODUCTS)
    products += [[_listed(by_torch), "torch's own formula (`torch.utils.flop_counter`)"]] if by_torch else []
    elementwise = _rows((name, ELEMENTWISE[name][0]) for name in names if kind_of(name) == "element-wise")
    free = [name for name in names if kind_of(name) == "free"]
    rest = [name for name in names if kind_of(name) is None and name not in by_torch]
    return "\n".join(
        [
            INTRODUCTION.format(version=version),
            "## Products\n",
            "`M K N`: a matrix (M, K) by one of (K, N), 1 for the side that a vector lacks. `L S d e`: L queries and S"
            " keys of width d, values of width e; `D` of all heads together. `B`: the batch.\n",
            *_table(products),
            "\n## Element-wise: the second value of `vitbench flops`, not part of `FLOPs`\n",
            *_table(elementwise),
            "\n## Free: they create, move, select or compare numbers\n",
            _listed(free),
            "\n## No formula: the value is a lower bound\n",
            "Factorisations, solvers and Fourier transforms multiply, but their work depends on the algorithm or on the"
            " numbers; the rest is rare in models.\n",
            _listed(rest),
            "",
        ]
    )


def _rows(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    names: dict[str, list[str]] = {}
    for name, words in pairs:
        names.setdefault(words, []).append(name)
    return [[_listed(several), words] for words, several in names.items()]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _table(rows: list[list[str]]) -> list[str]:
    return ["| operators | FLOPs |", "|---|---|", *(f"| {names} | {words} |" for names, words in rows)]


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")

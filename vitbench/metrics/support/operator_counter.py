"""Count the FLOPs of everything that runs in a context, operator by operator as torch dispatches them.

"FLOPs" means products: matrices, convolutions, attention. Element-wise work (norms, softmax, activations, sums) is
counted separately. What ran and is neither, nor free, is named: without it the FLOPs are a lower bound. On ``meta``
torch runs attention as matrix product, softmax, matrix product, so the result depends on no device, kernel or gradient
mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vitbench.core.errors import Unsupported
from vitbench.metrics.support.operator_formulas import ELEMENTWISE, NO_ARITHMETIC
from vitbench.metrics.support.product_formulas import PRODUCTS, numel
from vitbench.metrics.support.tensor_memory import consists_of_others, run_in_parts, tensors_in

#: Libraries of torch's own bookkeeping.
BOOKKEEPING = frozenset({"prim", "profiler"})
#: Products that add their first or third argument.
_WITH_BIAS = frozenset({"addmm", "baddbmm", "addbmm", "addmv", "addr"})
_FUSED_ATTENTION = "_scaled_dot_product_"


@dataclass(kw_only=True)
class OperatorCount:
    """``calls`` of one operator, their FLOPs by ``formula``, in words, and of a product the ``outputs`` in elements."""

    calls: int = 0
    flops: int = 0
    formula: str = ""
    outputs: int = 0


@dataclass(kw_only=True)
class Counts:
    """Products and element-wise work of one pass, the calls of operators that no formula covers, and why a product has
    no FLOPs here (empty if all have).
    """

    products: dict[str, OperatorCount] = field(default_factory=dict)
    elementwise: dict[str, OperatorCount] = field(default_factory=dict)
    without_formula: dict[str, int] = field(default_factory=dict)
    unsupported: str = ""
    calls: list[Any] = field(default_factory=list)  # what ``OperatorCounter.keep`` keeps of each call, in order

    @property
    def flops(self) -> int:
        """Products: a multiply-add is two. Raises Unsupported if one has no FLOPs here."""
        if self.unsupported:
            raise Unsupported(self.unsupported)
        return sum_products(self)

    def add(self, other: Counts) -> None:
        """Add what another pass took."""
        for mine, others in ((self.products, other.products), (self.elementwise, other.elementwise)):
            for name, one in others.items():
                _add(mine, name, one.flops, one.formula, one.calls, one.outputs)
        self.without_formula = sum_uncounted([other, self])
        self.calls = [*other.calls, *self.calls]
        self.unsupported = other.unsupported or self.unsupported

    @property
    def elementwise_flops(self) -> int:
        """Element-wise work."""
        return sum(one.flops for one in self.elementwise.values())

    @property
    def activations(self) -> int:
        """The elements that the products output, as in "Designing Network Design Spaces" (Radosavovic et al., CVPR
        2020); of attention its scores, too, whichever kernel computes it.
        """
        return sum(one.outputs for one in self.products.values())


def describe_uncounted(operators: Mapping[str, float]) -> str:
    """``mine::product x2, aten::linalg_qr x1``: the calls of the operators that no formula covers."""
    return ", ".join(f"{name} x{calls:g}" for name, calls in sorted(operators.items()))


class OperatorCounter(TorchDispatchMode):
    """Counts every operator dispatched inside the context in ``counts``.

    A formula registered with ``torch.utils.flop_counter.register_flop_formula`` makes its operator a product.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.higher_order.cond:
            return self._larger_branch(*args)
        if isinstance(func, HigherOrderOperator):
            output = func(*args, **kwargs)
            self._count(f"higher_order::{func.name()}", func, args, kwargs, output)
            return output
        if func.namespace in BOOKKEEPING:
            return func(*args, **kwargs)
        if consists_of_others(func):
            with self:
                return run_in_parts(func, args, kwargs)
        output = func(*args, **kwargs)
        self._count(name_of(func), func, args, kwargs, output)
        return output

    def keep(
        self, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any, work: tuple[int, int, bool]
    ) -> None:
        """Receives each call with its ``work``: FLOPs, element-wise FLOPs, and whether no formula covers it. A subclass
        that needs more than sums appends to ``counts.calls``.
        """

    def _larger_branch(self, _: Any, *branches_and_operands: Any) -> Any:
        """torch.cond: which branch runs depends on numbers. The one with more FLOPs counts; of operators without a
        formula, the most calls of any branch.
        """
        *branches, operands = branches_and_operands
        so_far, found = self.counts, []
        for branch in branches:
            self.counts = Counts()
            with self:
                output = branch(*operands)
            found.append(self.counts)
        self.counts = max(found, key=lambda counts: (bool(counts.unsupported), sum_products(counts)))
        names = {name for counts in found for name in counts.without_formula}
        most = {name: max(counts.without_formula.get(name, 0) for counts in found) for name in sorted(names)}
        self.counts.without_formula = most
        self.counts.add(so_far)
        return output

    def _count(self, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        counts = self.counts
        packet = getattr(func, "_overloadpacket", func)
        flops, elementwise, uncovered = 0, 0, False
        if name in PRODUCTS or packet in flop_registry:
            try:
                if name in PRODUCTS:
                    text, formula = PRODUCTS[name]
                    flops = formula(args, kwargs, output)
                else:
                    text = "registered with torch.utils.flop_counter"
                    flops = int(flop_registry[packet](*args, **kwargs, out_val=output))
            except Unsupported as reason:
                counts.unsupported = counts.unsupported or f"{name}: {reason}"
                return
            # (a + bi)(c + di) takes four multiply-adds
            flops *= 4 if _is_complex(output) else 1
            _add(counts.products, name, flops, text, outputs=_outputs_of(name, args, output))
            with_bias = name in ("convolution", "_convolution") and len(args) > 2 and args[2] is not None
            if with_bias or name in _WITH_BIAS:
                elementwise = numel(output)
                _add(counts.elementwise, f"{name} (bias)", elementwise, "1 an output")
        elif name in ELEMENTWISE:
            if _has_numbers(output):
                text, formula = ELEMENTWISE[name]
                elementwise = (2 if _is_complex(output) else 1) * formula(args, kwargs, output)
                _add(counts.elementwise, name, elementwise, text)
        elif name not in NO_ARITHMETIC and ("::" in name or _has_numbers((args, output))):
            uncovered = True
            full = name if "::" in name else f"aten::{name}"
            counts.without_formula[full] = counts.without_formula.get(full, 0) + 1
        self.keep(name, func, args, kwargs, output, (flops, elementwise, uncovered))


class LeavesTorch(TorchFunctionMode):
    """Names in ``counter`` what hands numbers to NumPy: what is computed there is not dispatched."""

    def __init__(self, counter: OperatorCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and _has_numbers(args):
            name = "NumPy (torch.Tensor.numpy)"
            calls = self._counter.counts.without_formula
            calls[name] = calls.get(name, 0) + 1
            self._counter.keep(name, func, args, {}, None, (0, 0, True))
        return func(*args, **(kwargs or {}))


def name_of(func: Any) -> str:
    """An operator's name in the tables: without overload and in-place mark, with its library unless that is aten."""
    packet = func._overloadpacket.__name__
    if func.namespace != "aten":
        return f"{func.namespace}::{packet}"
    return str(packet if packet.startswith("__") else packet.rstrip("_"))


def _has_numbers(values: Any) -> bool:
    """Whether any tensor is of real or complex numbers, rather than integers or booleans."""
    return any(one.is_floating_point() or one.is_complex() for one in tensors_in(values))


def _is_complex(output: Any) -> bool:
    return any(one.is_complex() for one in tensors_in(output))


def sum_products(counts: Counts) -> int:
    """The FLOPs of the products that have any here."""
    return sum(one.flops for one in counts.products.values())


def _outputs_of(name: str, args: Any, output: Any) -> int:
    """The elements that a product outputs; a fused attention of L queries and S keys also has L S scores a head."""
    scores = math.prod(args[0].shape[:-1]) * int(args[1].shape[-2]) if name.startswith(_FUSED_ATTENTION) else 0
    return numel(output) + scores


def _add(
    counts: dict[str, OperatorCount], name: str, flops: int, formula: str, calls: int = 1, outputs: int = 0
) -> None:
    one = counts.setdefault(name, OperatorCount(formula=formula))
    one.calls += calls
    one.flops += flops
    one.outputs += outputs


def sum_uncounted(several: Iterable[Counts]) -> dict[str, int]:
    """The calls of operators that no formula covers in several passes together."""
    calls: dict[str, int] = {}
    for counts in several:
        for name, number in counts.without_formula.items():
            calls[name] = calls.get(name, 0) + number
    return calls

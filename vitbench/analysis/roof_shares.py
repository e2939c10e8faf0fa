"""The time of a cell at the machine's roof, by operator, and what bounds the cell.

Operator by operator, because a whole model can be bound by neither compute nor bandwidth while each of its operators
is bound by one of them: max(sum F / P, sum Q / B) is at most the sum of max(F / P, Q / B), mostly less. Loads torch
only in ``trace_work``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from vitbench.analysis.roofline import MOST_SPREAD, MachineRoof
from vitbench.core.errors import Unsupported
from vitbench.core.validation import Count, Number

if TYPE_CHECKING:
    from vitbench.metrics.support.subject import Subject

Bound = Literal["compute", "bandwidth", "overhead", "unexplained"]

#: The metric that the roof's time is compared with, by the cell's mode.
TIMED = {"infer": "latency", "train": "training_step"}
#: What takes a smaller share of the measured time than this does not bound a cell.
LEAST_SHARE_OF_BOUND = 0.5
#: AdamW reads parameter, gradient and two moments, and writes all but the gradient.
_ADAMW_PASSES = 7
OPTIMIZER = "AdamW"


@dataclass(frozen=True, kw_only=True)
class Work:
    """``calls`` of one operator with the same ``flops`` and ``bytes`` each: FLOPs of products; bytes of each distinct
    input once and of each output once. Views move nothing. ``lower_bound``: no formula covers its FLOPs.
    """

    name: str
    dtype: str
    calls: int
    flops: int
    bytes: int
    lower_bound: bool = False


@dataclass(frozen=True, kw_only=True)
class OperatorShare:
    """All calls of one operator: their time at the roof (s), FLOPs and bytes."""

    name: str
    calls: Count
    roof_s: Number
    flops: Count
    bytes: Count


@dataclass(frozen=True, kw_only=True)
class RoofTime:
    """The time of a cell at the roof (s): of the operators that compute bounds, of those that bandwidth bounds.

    ``dispatch_s`` is what its calls take to dispatch at least, views included; None where that is unknown.
    ``operators`` by descending time. ``left_out`` names those whose FLOPs no formula covers, if any: then it is a lower
    bound.
    """

    compute_s: Number
    bandwidth_s: Number
    dispatch_s: Number | None
    operators: tuple[OperatorShare, ...]
    left_out: str = ""

    @property
    def roof_s(self) -> float:
        """The sum over operators of max(F / P, Q / B)."""
        return self.compute_s + self.bandwidth_s

    def bound(self, measured_s: float) -> Bound | None:
        """What bounds a cell that took ``measured_s``: the longer of the time at the roof and that of the dispatches,
        if it is at least half of the measured one; otherwise that is unexplained. The roof's time is called after what
        bounds most of it. None where that is less than half and a dispatch is unknown, and where it is longer than the
        measured time by more than rounds may spread: then the roof is too low.
        """
        least_s, dispatch_s = LEAST_SHARE_OF_BOUND * measured_s, self.dispatch_s or 0.0
        if self.roof_s > (1 + MOST_SPREAD) * measured_s:
            return None
        if max(self.roof_s, dispatch_s) < least_s:
            return None if self.dispatch_s is None else "unexplained"
        if dispatch_s > self.roof_s:
            return "overhead"
        return "compute" if self.compute_s >= self.bandwidth_s else "bandwidth"


def roof_time(work: Iterable[Work], roof: MachineRoof) -> RoofTime:
    """The time of all operators at the roof. Raises Unsupported where the roof that an operator needs is unknown."""
    seconds = {"compute": 0.0, "bandwidth": 0.0}
    uncovered: Counter[str] = Counter()
    operators: dict[str, OperatorShare] = {}
    for one in work:
        compute_s = one.calls * one.flops / roof.flops_per_s(one.dtype) if one.flops else 0.0
        bandwidth_s = one.calls * one.bytes / roof.bytes_per_s(one.bytes) if one.bytes else 0.0
        seconds["compute" if compute_s > bandwidth_s else "bandwidth"] += max(compute_s, bandwidth_s)
        if one.lower_bound:
            uncovered[one.name] += one.calls
        before = operators.get(one.name, OperatorShare(name=one.name, calls=0, roof_s=0.0, flops=0, bytes=0))
        operators[one.name] = replace(
            before,
            calls=before.calls + one.calls,
            roof_s=before.roof_s + max(compute_s, bandwidth_s),
            flops=before.flops + one.calls * one.flops,
            bytes=before.bytes + one.calls * one.bytes,
        )
    calls = sum(one.calls for one in operators.values())
    return RoofTime(
        compute_s=seconds["compute"],
        bandwidth_s=seconds["bandwidth"],
        dispatch_s=None if roof.dispatch.value is None else calls * roof.dispatch.value,
        operators=tuple(sorted(operators.values(), key=lambda one: -one.roof_s)),
        left_out=", ".join(f"{name} x{count}" for name, count in sorted(uncovered.items())),
    )


def trace_work(subject: Subject) -> list[Work]:
    """The operators of a call of the subject's cell, as they run on fake CPU tensors; of a training step also AdamW,
    which passes over each trained parameter, its gradient and its two moments.

    Raises Unsupported for a compiled cell, for a model that reads values of tensors, and where a product has no FLOPs
    that its shapes tell.
    """
    import torch

    from vitbench.metrics.support.fake_models import fake_mode, fake_subject, needs_real_tensors
    from vitbench.metrics.support.operator_trace import trace_operators
    from vitbench.metrics.support.subject import torch_dtype

    cell, train = subject.cell, subject.cell.mode == "train"
    if cell.compile:
        raise Unsupported("a compiled cell dispatches no operators that could be counted")
    low = torch_dtype(subject.device.amp_dtype)
    try:
        with fake_mode():
            fake = fake_subject(subject, cell)
            with subject.attention(fake.model), torch.autocast("cpu", low, enabled=cell.dtype == "amp"):
                trace = trace_operators(fake.model, fake.images, train=train)
    except Exception as error:
        if needs_real_tensors(error):
            first = str(error).strip().partition("\n")[0]
            raise Unsupported(f"a trace without data cannot follow the model: {first}") from error
        raise
    kinds = Counter(
        (one.name, one.dtype, one.flops, one.bytes_read + one.bytes_written, one.lower_bound) for one in trace.calls
    )
    work = [
        Work(name=name, dtype=dtype, calls=calls, flops=flops, bytes=moved, lower_bound=bound)
        for (name, dtype, flops, moved, bound), calls in kinds.items()
    ]
    if train:
        trained = [one for one in fake.model.parameters() if one.requires_grad]
        moved = _ADAMW_PASSES * sum(one.numel() * one.element_size() for one in trained)
        work.append(Work(name=OPTIMIZER, dtype="fp32", calls=1, flops=0, bytes=moved))
    return work

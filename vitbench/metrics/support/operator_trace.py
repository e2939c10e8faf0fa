"""Trace one pass operator by operator: FLOPs, bytes moved, the module that ran each, and what is saved for backward.

FLOPs are those of ``OperatorCounter``. Bytes are the least that an operator can move: each distinct region of its
inputs read once, each output written once; views and allocations are free. Caches and kernels that read twice are not
seen. On fake CPU tensors (``Subject.on_fake``) the operators are those of a run on the CPU: fused attention is one.

In the backward pass autograd's sequence numbers lead to a module. Each node of the graph takes the next number while
the forward pass runs, so that the modules' turns are intervals of numbers; ``torch``'s own ModuleTracker keeps stale
parents there.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakIdKeyDictionary

from vitbench.core.errors import Unsupported
from vitbench.metrics.support.operator_counter import LeavesTorch, OperatorCounter
from vitbench.metrics.support.product_formulas import stored_numbers
from vitbench.metrics.support.tensor_memory import tensors_in
from vitbench.models import without_fast_path
from vitbench.models.outputs import training_loss

#: Stands for the module of what runs between forward and backward pass, and of what no module's forward recorded.
LOSS, UNATTRIBUTED = "(loss)", "(unattributed)"

#: Operators that write an argument without reading it; those that read as many numbers of their first argument as they
#: return. ``empty...`` and ``new_empty...`` only reserve memory.
_OVERWRITE = frozenset(["copy", "fill", "zero", "normal", "uniform", "bernoulli", "exponential", "random"])
_SELECT = frozenset(["index", "index_select", "gather", "embedding", "take", "masked_select"])
_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}

#: Private functions of torch: without them the backward pass has no modules.
_next_number: Callable[[], float] = getattr(torch.autograd, "_get_sequence_nr", lambda: math.inf)
_current_node: Callable[[], Any] | None = getattr(torch._C, "_current_autograd_node", None)

Phase = Literal["forward", "backward"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorCall:
    """One dispatched operator.

    ``module`` is the path of the module that ran it; in the backward pass, of the one whose forward pass recorded it.
    "" is the model itself. ``phase`` is ``backward`` also for what activation checkpointing runs again.
    ``lower_bound``: no formula covers it. ``dtype`` (``fp32``, ``bf16``, ...) is that of the first floating-point
    tensor among inputs and outputs; empty without one.
    """

    name: str
    module: str
    phase: Phase
    flops: int
    elementwise_flops: int
    lower_bound: bool
    bytes_read: int
    bytes_written: int
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorTrace:
    """The calls of one pass in order, and by module path the output's shape (of the first call, if it is a tensor) and
    the bytes that it saved for the backward pass.

    Saved storages that are alive at the end of the forward pass count once, for the module that saved them first;
    parameters, buffers and the images are left out. Without ``train`` nothing is saved.
    """

    calls: tuple[OperatorCall, ...]
    saved_bytes: Mapping[str, int]
    output_shapes: Mapping[str, tuple[int, ...]]

    def flops(self, phase: Phase) -> int:
        """The products of a phase; the loss has none."""
        return sum(call.flops for call in self.calls if call.phase == phase)


def trace_operators(model: nn.Module, images: Tensor, *, train: bool = False) -> OperatorTrace:
    """One forward pass of ``model`` on ``images`` (B, C, H, W), and with ``train`` the loss and the backward pass.

    The model is in the mode that its caller chose. Both are fake (``Subject.on_fake``), on meta, where attention runs
    in parts, or real. nn.MultiheadAttention's fast path is off. Raises Unsupported if a product has no FLOPs that its
    shapes tell, and what the model raises.
    """
    tracer = _Tracer(model, images)
    with tracer.following(model), torch.set_grad_enabled(train), without_fast_path():
        # a forward pass of its own, as hooks for saved tensors dispatch operators
        saved = tracer.saved_by(lambda: model(images)) if train else {}
        torch.clear_autocast_cache()  # which keeps the first pass's casts of weights
        with tracer, LeavesTorch(tracer):
            output = model(images)
            if train:
                tracer.begin(LOSS)
                labels = torch.zeros(images.shape[0], dtype=torch.long, device=images.device)
                loss = training_loss(model, output, labels)
                tracer.phase = "backward"
                loss.backward()
    for parameter in model.parameters() if train else ():
        parameter.grad = None
    if tracer.counts.unsupported:
        raise Unsupported(tracer.counts.unsupported)
    return OperatorTrace(calls=tuple(tracer.counts.calls), saved_bytes=saved, output_shapes=tracer.output_shapes)


class _Tracer(OperatorCounter):
    """Keeps an OperatorCall for each operator that it sees."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.phase: Phase = "forward"
        self.output_shapes: dict[str, tuple[int, ...]] = {}
        self._running: list[str] = []
        self._turns: list[tuple[float, str]] = []  # a module owns the numbers of nodes from its turn on
        self._holders = {
            id(parameter): path
            for path, module in reversed(list(model.named_modules()))
            for parameter in module.parameters(recurse=False)
        }
        self._resident = WeakIdKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers(), images):
            if tensor.layout is torch.strided:
                self._resident[tensor.untyped_storage()] = True

    @contextlib.contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Know which module runs. A module that several hold has its first path."""
        handles = []
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(functools.partial(self._enter, path)))
            # checkpointing leaves a forward pass that it runs again by an exception
            handles.append(module.register_forward_hook(functools.partial(self._leave, path), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, module: str) -> None:
        """From now on nodes of the graph belong to ``module``."""
        self._turns.append((_next_number(), module))

    def _enter(self, path: str, *_: Any) -> None:
        self._running.append(path)
        self.begin(path)

    def _leave(self, path: str, _: nn.Module, __: Any, output: Any) -> None:
        self._running.pop()
        self.begin(self._running[-1] if self._running else UNATTRIBUTED)
        if isinstance(output, Tensor):
            self.output_shapes.setdefault(path, tuple(output.shape))

    def _module_now(self) -> str:
        if self._running:
            return self._running[-1]
        if self.phase == "forward":
            return LOSS
        if _current_node is None:
            return UNATTRIBUTED
        node = _current_node()
        if node is None:  # the first gradient
            return LOSS
        if type(node).__name__ == "AccumulateGrad":
            return self._holders.get(id(node.variable), UNATTRIBUTED)
        place = bisect.bisect_right(self._turns, node._sequence_nr(), key=lambda turn: turn[0]) - 1
        return self._turns[place][1] if place >= 0 else UNATTRIBUTED

    def saved_by(self, call: Callable[[], Any]) -> dict[str, int]:
        """The bytes that the graph of ``call`` keeps, by module."""
        savers = WeakIdKeyDictionary()  # storage -> module

        def pack(tensor: Tensor) -> Tensor:
            if tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if storage not in self._resident and storage not in savers:
                    savers[storage] = self._module_now()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            output = call()
        saved: dict[str, int] = {}
        for storage, module in list(savers.items()):
            saved[module] = saved.get(module, 0) + storage.nbytes()
        del output
        return saved

    def keep(
        self, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any, work: tuple[int, int, bool]
    ) -> None:
        flops, elementwise, uncovered = work
        read, written = count_bytes(name, func, args, kwargs, output)
        tensors = tensors_in([args, list(kwargs.values()), output])
        dtype = next((one.dtype for one in tensors if one.is_floating_point()), None)
        self.counts.calls.append(
            OperatorCall(
                name=name,
                module=self._module_now(),
                phase=self.phase,
                flops=flops,
                elementwise_flops=elementwise,
                lower_bound=uncovered,
                bytes_read=read,
                bytes_written=written,
                dtype="" if dtype is None else _DTYPES.get(dtype, str(dtype).removeprefix("torch.")),
            )
        )


def count_bytes(name: str, func: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> tuple[int, int]:
    """The least bytes (read, written) of a call of ``func``, whose name is ``name``.

    What it changes in place is read and written, or only written where it ignores the old numbers (``copy_``).
    """
    inputs = list(tensors_in([args, list(kwargs.values())]))
    outputs = list(tensors_in(output))
    changed, overwritten = _changed(name, func, args, kwargs)
    held = {_storage(one) for one in inputs}
    written = _distinct_bytes([*changed, *(one for one in outputs if _storage(one) not in held)])
    if name.startswith(("empty", "new_empty")) or (outputs and not written):
        return 0, 0
    if name.startswith("new_") or name.endswith("_like"):  # whose argument only gives the shape or the type
        return 0, written
    inputs = [one for one in inputs if all(one is not other for other in overwritten)]
    if name in _SELECT and inputs:
        return min(_distinct_bytes(inputs[:1]), written) + _distinct_bytes(inputs[1:]), written
    return _distinct_bytes(inputs), written


def _changed(name: str, func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The arguments that the operator's schema says it writes, and those of them whose old numbers it ignores."""
    changed, overwritten = [], []
    schema = getattr(func, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema is not None and schema.is_mutable else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            tensors = list(tensors_in(args[place] if place < len(args) else kwargs.get(argument.name)))
            changed += tensors
            overwritten += tensors if argument.kwarg_only or name in _OVERWRITE else []  # out=
    return changed, overwritten


def _storage(tensor: Tensor) -> int:
    """Names the tensor's storage while the tensor lives; sparse and oneDNN's tensors have none."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _distinct_bytes(tensors: list[Tensor]) -> int:
    """Bytes of the distinct regions of storages: an expanded axis is one number, a second equal view nothing."""
    regions: dict[int, dict[Any, int]] = {}
    storages: dict[int, int] = {}
    for tensor in tensors:
        if tensor.layout is torch.strided:
            region: Any = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
            axes = zip(tensor.shape, tensor.stride(), strict=True)
            numbers = math.prod(size if stride else min(size, 1) for size, stride in axes)
            storages[_storage(tensor)] = tensor.untyped_storage().nbytes()
        else:
            region, numbers = None, tensor.numel() if tensor.is_mkldnn else stored_numbers(tensor)
        regions.setdefault(_storage(tensor), {})[region] = numbers * tensor.element_size()
    sums = {storage: sum(some.values()) for storage, some in regions.items()}
    return sum(min(size, storages.get(storage, size)) for storage, size in sums.items())

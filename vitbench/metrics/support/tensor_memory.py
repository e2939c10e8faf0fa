"""Follow the live tensor bytes of a call: when each storage is allocated and freed, and the peak by category.

The bytes of a tensor's storage are added when an operator returns it and subtracted when its last reference ends. The
peak is exact and equal on each run. It excludes the kernels' own workspace and the allocator's rounding and cache.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitbench.metrics.support.subject import without_garbage_collection
from vitbench.models import without_fast_path

if TYPE_CHECKING:
    from vitbench.metrics.support.subject import Subject

#: Categories of tensors; a storage of several categories counts for the first.
KINDS = ("weights", "batch", "gradients", "optimizer", "activations")


class Event(NamedTuple):
    """One storage is allocated, resized or freed.

    ``storage`` is its number in order of appearance, ``change`` is in bytes. ``operator`` (``aten::addmm``) returned it
    in the ``phase`` forward, backward or optimizer; both are empty where it is freed, and for what was there before.
    """

    storage: int
    change: int
    operator: str = ""
    phase: str = ""


def worst(events: Sequence[Event], kinds: Mapping[int, str]) -> tuple[Event, dict[str, int]]:
    """The event after which most bytes are alive, and these by KINDS. ``kinds``: see ``TensorAccount``."""
    totals = list(itertools.accumulate(event.change for event in events))
    moment = totals.index(max(totals))
    parts = dict.fromkeys(KINDS, 0)
    for event in events[: moment + 1]:
        parts[kinds.get(event.storage, "activations")] += event.change
    return events[moment], parts


class TensorAccount(TorchDispatchMode):
    """Follows the storages of the tensors in ``before`` (by kind) and of those made inside; no others count.

    ``events`` are all changes in order; ``kinds`` holds the kinds of storages by number, the rest are activations.
    An operator that consists of others, which arrives whole in inference mode, is followed in its parts.
    """

    def __init__(self, before: Mapping[str, Iterable[Tensor]]) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.kinds: dict[int, str] = {}
        self.phase = "forward"  # or "optimizer"; a backward pass is recognised
        self._live: dict[int, tuple[int, int]] = {}  # address of a storage -> its number and bytes
        self._watchers: dict[int, weakref.ref[Any]] = {}
        self._count = 0
        for kind, tensors in before.items():
            for tensor in tensors:
                self.kinds.setdefault(self._see(tensor), kind)
        self._made_before = self._count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if consists_of_others(func):
            with self:
                return run_in_parts(func, args, kwargs or {})
        output = func(*args, **(kwargs or {}))
        for tensor in tensors_in(output):
            # what checkpointing computes again belongs to the backward pass
            in_backward = torch._C._current_graph_task_id() != -1
            self._see(tensor, func.name().partition(".")[0], "backward" if in_backward else self.phase)
        return output

    def enter_optimizer(self, *_: Any) -> None:
        """All operators from now on are the optimizer's; a hook for its step."""
        self.phase = "optimizer"

    def classify(self, after: Mapping[str, Iterable[Tensor]]) -> None:
        """State the kinds of tensors made inside (gradients, optimizer state)."""
        for kind, tensors in after.items():
            for tensor in tensors:
                known = self._live.get(tensor.untyped_storage()._cdata)
                if known is not None:
                    self.kinds.setdefault(known[0], kind)

    def close(self) -> None:
        """Note no more events, as what is freed from now on is not the call's, and sort what was freed in a row:
        autocast clears its cache of weights in the order of their addresses.
        """
        self._watchers.clear()
        rows = itertools.groupby(self.events, key=lambda event: not event.operator and event.change <= 0)
        self.events = [event for freed, row in rows for event in (sorted(row) if freed else row)]

    def peak(self) -> dict[str, int]:
        """The bytes at the peak so far, by KINDS; ``activations`` is all the rest, including temporary results of the
        backward pass and of the optimizer.
        """
        return worst(self.events, self.kinds)[1]

    @property
    def is_steady(self) -> bool:
        """Whether the same tensors are alive as before, but for gradients: no new optimizer state, no new cache."""
        alive = {number for number, _ in self._live.values() if self.kinds.get(number) != "gradients"}
        return alive == set(range(self._made_before))

    def _see(self, tensor: Tensor, operator: str = "", phase: str = "") -> int:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        known = self._live.get(address)
        if known is not None and known[1] == size:
            return known[0]
        number, before = known or (self._count, 0)
        if known is None:
            self._count += 1
            self._watchers[address] = weakref.ref(storage, lambda _: self._forget(address))
        self._live[address] = number, size  # an operator may have resized it
        self.events.append(Event(number, size - before, operator, phase))
        return number

    def _forget(self, address: int) -> None:
        number, size = self._live.pop(address)
        del self._watchers[address]
        self.events.append(Event(number, -size))


@functools.cache
def consists_of_others(func: Any) -> bool:
    """Whether an operator is nothing but a sequence of others. Such a one arrives whole in inference mode only."""
    if func is torch.ops.prim.device.default or not func._can_decompose():
        return False
    # silu_backward and the like have a kernel of their own beside a formula of others, and run that
    return not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU")


def run_in_parts(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Run an operator that consists of others as torch's own kernel does.

    ``func.decompose`` prefers a Python kernel where one is registered, as torch's compiler does when it loads: that of
    dropout copies its input in evaluation, which a call does not.
    """
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
        return func._op_dk(key, *args, **kwargs)
    return func.decompose(*args, **kwargs)


def follow_call(subject: Subject) -> TensorAccount:
    """The account of one forward pass or training step, in which nn.MultiheadAttention takes no fast path.

    Call it after the first one, which makes the optimizer's state and caches.
    """
    trains = subject.cell.mode == "train"
    if trains:
        subject.optimizer.zero_grad(set_to_none=True)
    account = TensorAccount(_kept_between_calls(subject))
    # tensors in reference cycles live until a collection, whose time depends on all that ran before
    with without_garbage_collection(collect=False), without_fast_path(), account:
        if trains:
            hook = subject.optimizer.register_step_pre_hook(account.enter_optimizer)
            output = subject.step()
            hook.remove()
        else:
            output = subject.forward()
        del output
    if trains:
        account.classify({"gradients": gradients_of(subject.model), "optimizer": state_of(subject.optimizer)})
    account.close()
    return account


def _kept_between_calls(subject: Subject) -> dict[str, list[Tensor]]:
    """The tensors by kind that are there before a call. Hold them no longer: a call may free some."""
    kept = {"weights": [*subject.model.parameters(), *subject.model.buffers()], "batch": [subject.images]}
    if subject.cell.mode == "train":
        kept["batch"].append(subject.labels)
        kept["optimizer"] = state_of(subject.optimizer)
    return kept


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors of an operator's output, which may be nested tuples and lists."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for one in output:
            yield from tensors_in(one)


def gradients_of(model: torch.nn.Module) -> list[Tensor]:
    """The gradients after a backward pass."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that an optimizer keeps between steps."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]

"""Track the peak of live tensor bytes during a call, by category.

The bytes of a tensor's storage are added when an operator returns it and subtracted when its last reference ends. The
peak is exact and equal on each run. It excludes the kernels' own workspace and the allocator's rounding and cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

#: Categories of tensors; a storage of several categories counts for the first.
KINDS = ("weights", "batch", "gradients", "optimizer", "activations")


class TensorAccount(TorchDispatchMode):
    """Follows the storages of the tensors in ``before`` (by kind) and of those made inside; no others count."""

    def __init__(self, before: Mapping[str, Iterable[Tensor]]) -> None:
        super().__init__()
        self._numbers = WeakIdKeyDictionary()  # storage -> number: an id() may come again
        self._live: dict[int, int] = {}  # number -> bytes
        self._watchers: dict[int, weakref.ref[Any]] = {}
        self._next = 0
        self._bytes = 0
        self._peak = 0
        self._at_peak: dict[int, int] = {}
        self._kinds: dict[int, str] = {}
        for kind, tensors in before.items():
            for tensor in tensors:
                self._kinds.setdefault(self._see(tensor), kind)
        self._note_peak()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tensors_in(output):
            self._see(tensor)
        self._note_peak()
        return output

    def peak(self, after: Mapping[str, Iterable[Tensor]] | None = None) -> dict[str, int]:
        """The bytes at the peak so far, by KINDS; ``activations`` is all the rest, including temporary results of the
        backward pass and of the optimizer. ``after``: the kinds of tensors made inside (gradients, optimizer state).
        """
        kinds = dict(self._kinds)
        for kind, tensors in (after or {}).items():
            for tensor in tensors:
                number = self._numbers.get(tensor.untyped_storage())
                if number is not None:
                    kinds.setdefault(number, kind)
        parts = dict.fromkeys(KINDS, 0)
        for number, size in self._at_peak.items():
            parts[kinds.get(number, "activations")] += size
        return parts

    def _see(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        number: int | None = self._numbers.get(storage)
        if number is None:
            number = self._next
            self._next += 1
            self._numbers[storage] = number
            self._watchers[number] = weakref.ref(storage, lambda _, number=number: self._forget(number))  # type: ignore[misc]
        size = storage.nbytes()
        self._bytes += size - self._live.get(number, 0)  # an operator may have resized it
        self._live[number] = size
        return number

    def _forget(self, number: int) -> None:
        self._bytes -= self._live.pop(number, 0)
        self._watchers.pop(number, None)

    def _note_peak(self) -> None:
        if self._bytes > self._peak:
            self._peak, self._at_peak = self._bytes, dict(self._live)


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

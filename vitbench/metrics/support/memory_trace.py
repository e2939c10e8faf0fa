"""The peak of live tensor bytes of a call at any batch, from traces on fake tensors: nothing is allocated.

From two images on, a call allocates and frees the same storages in the same order at every batch, and the size of each
is an affine function of the batch. Two traces give these functions, and the peak of any batch follows by arithmetic. A
batch of one takes other paths through torch, so that it has a trace of its own.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitbench.core.errors import Unsupported
from vitbench.metrics.support.fake_models import fake_mode, fake_subject, needs_real_tensors, reads_data, with_batch
from vitbench.metrics.support.subject import Subject, check_trains
from vitbench.metrics.support.tensor_memory import Event, TensorAccount, follow_call, worst

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The worst moment of one call: bytes of live tensors, ``parts`` of them by tensor_memory.KINDS.

    ``operator`` (``aten::addmm``) ran then, in the ``phase`` forward, backward or optimizer.
    """

    batch: int
    bytes: int
    parts: Mapping[str, int]
    operator: str
    phase: str


class BatchTrace:
    """The peaks of a cell's steady call at every batch. ``optimizer``: makes the optimizer, by default AdamW.

    Raises Unsupported for compiled cells, for weights in fp16 and recurrent layers that are trained, and for models
    that read values of tensors or have operators without shapes; beyond ``direct`` also where the tensors come and go
    in another order with another batch.
    """

    def __init__(self, subject: Subject, optimizer: MakeOptimizer | None = None) -> None:
        cell = subject.cell
        if cell.compile:
            raise Unsupported("compiled code allocates without dispatching, so that its tensors cannot be followed")
        if cell.mode == "train":
            check_trains(cell.dtype)
        self._mode = fake_mode()
        with _explained(), self._mode:
            self._fake = fake_subject(subject, cell, optimizer)
        if cell.mode == "train" and any(isinstance(one, nn.RNNBase) for one in self._fake.model.modules()):
            why = "torch does not state what nn.LSTM and the like keep for the backward pass"
            raise Unsupported(f"{why}. Use vitbench frontier")

    def peak(self, batch: int) -> Peak:
        """The peak of a call on ``batch`` images (1 or more), by arithmetic from 2 on."""
        if batch == 1:
            return self._one
        events = [
            event._replace(change=event.change + (batch - 2) * slope)
            for event, slope in zip(self._two.events, self._slopes, strict=True)
        ]
        return _peak_of(events, self._two.kinds, batch)

    def largest(self, memory_bytes: int, at_most: int = 2**20) -> int:
        """The largest batch, up to ``at_most``, whose peak is within ``memory_bytes``; 0 if one image is not."""
        return bisect.bisect_right(range(1, at_most + 1), memory_bytes, key=self._bytes_at)

    def direct(self, batch: int) -> Peak:
        """The peak by a trace at this batch."""
        account = self._follow(batch)
        return _peak_of(account.events, account.kinds, batch)

    @property
    def storages(self) -> int:
        """How many storages a call has, from first to last."""
        return len({event.storage for event in self._two.events})

    @functools.cached_property
    def _one(self) -> Peak:
        try:
            return self.direct(1)
        except ValueError as error:  # batch norm refuses one value a channel in training
            two = self.peak(2).bytes
            raise Unsupported(f"two images take {two:,} bytes, and the model refuses one: {error}") from error

    @functools.cached_property
    def _two(self) -> TensorAccount:
        return self._follow(2)

    @functools.cached_property
    def _slopes(self) -> list[int]:
        """What each image from the third on adds to each event, in bytes."""
        two, three = self._two, self._follow(3)
        _check_same_order(two, three)
        return [other.change - one.change for one, other in zip(two.events, three.events, strict=True)]

    @functools.cached_property
    def _lines(self) -> set[tuple[int, int]]:
        """Live bytes after each event: those of two images, and of each further one."""
        totals = itertools.accumulate(event.change for event in self._two.events)
        return set(zip(totals, itertools.accumulate(self._slopes), strict=True))

    def _bytes_at(self, batch: int) -> int:
        if batch == 1:
            return self._one.bytes
        return max(total + (batch - 2) * slope for total, slope in self._lines)

    def _follow(self, batch: int) -> TensorAccount:
        with _explained(), self._mode, self._fake.attention(self._fake.model):
            one = with_batch(self._fake, batch)
            account = follow_call(one)
            # a first call may make the optimizer's state, and some models keep tensors for the next call
            return account if account.is_steady else follow_call(one)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not needs_real_tensors(error):
            raise
        why = "reads values of tensors" if reads_data(error) else "has an operator whose shapes torch does not know"
        first = str(error).strip().partition("\n")[0]
        raise Unsupported(f"a call {why}, so that a trace without data cannot follow it: {first}") from error


def _peak_of(events: Sequence[Event], kinds: Mapping[int, str], batch: int) -> Peak:
    event, parts = worst(events, kinds)
    return Peak(batch=batch, bytes=sum(parts.values()), parts=parts, operator=event.operator, phase=event.phase)


def _check_same_order(two: TensorAccount, three: TensorAccount) -> None:
    """Raises Unsupported unless both have the same events but for their sizes."""
    if two.kinds != three.kinds:
        raise Unsupported("the tensors that stay between calls differ between batches of 2 and 3 images")
    for one, other in itertools.zip_longest(two.events, three.events):
        if one is None or other is None or one._replace(change=0) != other._replace(change=0):
            event = (one and one.operator) or (other and other.operator) or "freeing a tensor"
            raise Unsupported(
                f"batches of 2 and 3 images do not allocate the same tensors in the same order, from {event} on"
            )

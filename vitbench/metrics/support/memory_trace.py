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
from vitbench.core.records import Cell
from vitbench.metrics.support.fake_models import fake_mode, fake_subject, needs_real_tensors, reads_data, with_batch
from vitbench.metrics.support.in_process import subject_of
from vitbench.metrics.support.subject import Subject, check_trains
from vitbench.metrics.support.tensor_memory import TensorAccount, follow_call

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
    """The peak of a call at every batch. ``trace`` follows the call at one batch."""

    def __init__(self, trace: Callable[[int], TensorAccount]) -> None:
        self._trace = trace
        self._two, three = trace(2), trace(3)
        _check_same_order(self._two, three)
        self._changes = [event.change for event in self._two.events]
        self._slopes = [event.change - change for event, change in zip(three.events, self._changes, strict=True)]
        totals, slopes = itertools.accumulate(self._changes), itertools.accumulate(self._slopes)
        #: Live bytes after each event: those of two images, and of each further one.
        self._lines = sorted(set(zip(totals, slopes, strict=True)))

    def peak(self, batch: int) -> Peak:
        """The peak of a call on ``batch`` images (1 or more)."""
        if batch == 1:
            return self._one
        return _peak_of(self._two, self._changes_at(batch), batch)

    def largest(self, memory_bytes: int, at_most: int = 2**20) -> int:
        """The largest batch, up to ``at_most``, whose peak is within ``memory_bytes``; 0 if one image is not."""
        return bisect.bisect_right(range(1, at_most + 1), memory_bytes, key=self._bytes_at)

    def direct(self, batch: int) -> Peak:
        """The peak by a trace at this batch."""
        account = self._trace(batch)
        return _peak_of(account, [event.change for event in account.events], batch)

    @property
    def most_storages(self) -> int:
        """The most storages that are alive at once."""
        alive: set[int] = set()
        most = 0
        for event in self._two.events:
            if event.change < 0 and not event.operator:
                alive.discard(event.storage)
            else:
                alive.add(event.storage)
            most = max(most, len(alive))
        return most

    @functools.cached_property
    def _one(self) -> Peak:
        try:
            return self.direct(1)
        except ValueError as error:  # batch norm refuses one value a channel in training
            two = self.peak(2).bytes
            raise Unsupported(f"two images take {two:,} bytes, and the model refuses one: {error}") from error

    def _bytes_at(self, batch: int) -> int:
        if batch == 1:
            return self._one.bytes
        return max(total + (batch - 2) * slope for total, slope in self._lines)

    def _changes_at(self, batch: int) -> list[int]:
        return [change + (batch - 2) * slope for change, slope in zip(self._changes, self._slopes, strict=True)]


def trace_call(subject: Subject, optimizer: MakeOptimizer | None = None) -> Peak:
    """The peak of a cell's steady call at its own batch. ``optimizer``: makes the optimizer, by default AdamW.

    Raises Unsupported for compiled cells, weights in fp16 that are trained, and models that read values of tensors or
    have operators without shapes.
    """
    batch = subject.cell.batch_size
    account = _tracer(subject, optimizer)(batch)
    return _peak_of(account, [event.change for event in account.events], batch)


def trace_batches(cell: Cell, build: Callable[[], nn.Module], optimizer: MakeOptimizer | None = None) -> BatchTrace:
    """The peaks of a cell's steady call at every batch, from traces at 2 and 3 images. ``build`` makes the model on the
    current device.

    Raises Unsupported as ``trace_call`` does, and for a model whose tensors come and go in another order with another
    batch.
    """
    return trace_subject(subject_of(cell, build), optimizer)


def trace_subject(subject: Subject, optimizer: MakeOptimizer | None = None) -> BatchTrace:
    """``trace_batches`` of a subject at whatever batch, with its attention context and its device's autocast."""
    return BatchTrace(_tracer(subject, optimizer))


def _tracer(subject: Subject, optimizer: MakeOptimizer | None) -> Callable[[int], TensorAccount]:
    """Follows the cell's call at a batch, always on the same fake model."""
    if subject.cell.compile:
        raise Unsupported("compiled code allocates without dispatching, so that its tensors cannot be followed")
    if subject.cell.mode == "train":
        check_trains(subject.cell.dtype)
    mode = fake_mode()
    with _explained(), mode:
        fake = fake_subject(subject, subject.cell, optimizer)
    if subject.cell.mode == "train" and any(isinstance(module, nn.RNNBase) for module in fake.model.modules()):
        raise Unsupported("torch does not state what nn.LSTM and the like keep for the backward pass without running")

    def trace(batch: int) -> TensorAccount:
        with _explained(), mode, subject.attention(fake.model):
            one = with_batch(fake, batch)
            account = follow_call(one)
            # a first call may make the optimizer's state, and some models keep tensors for the next call
            return account if account.is_steady else follow_call(one)

    return trace


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


def _peak_of(account: TensorAccount, changes: Sequence[int], batch: int) -> Peak:
    totals = list(itertools.accumulate(changes))
    moment = totals.index(max(totals))
    event = account.events[moment]
    parts = account.parts_at(moment, changes)
    return Peak(batch=batch, bytes=totals[moment], parts=parts, operator=event.operator, phase=event.phase)


def _check_same_order(two: TensorAccount, three: TensorAccount) -> None:
    """Raises Unsupported unless both have the same events but for their sizes."""
    if two.kinds != three.kinds:
        raise Unsupported("the tensors that stay between calls differ between batches of 2 and 3 images")
    for one, other in itertools.zip_longest(two.events, three.events):
        same = None not in (one, other) and one._replace(change=0) == other._replace(change=0)
        if not same:
            event = (one and one.operator) or (other and other.operator) or "freeing a tensor"
            raise Unsupported(
                f"batches of 2 and 3 images do not allocate the same tensors in the same order, from {event} on"
            )

"""Find the largest batch that fits. Loads no torch.

A search belongs to a base cell (of batch 1) and tries batches of 1, 2, 4, ... up to a bound, then bisects between the
largest that fits and the smallest that did not, to exactly one image. Each attempt is a cell and a record. The next one
follows from the records alone, so that a stopped search can be resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from vitbench.core.records import Cell, Measurement, Record

#: Batch size -> (status, cause) of its attempt.
Attempts = Mapping[int, tuple[str, str]]

#: The measurement that marks a record as an attempt; its value is the search's bound, in images.
BOUND = "frontier_bound"
_METHOD = "batches of 1, 2, 4, ... images up to this bound, then bisection to one image, each in fresh processes"

#: Causes that mean memory whatever the status.
_FOR_MEMORY = ("probable_oom", "oom_kill")
#: (status, cause) of libraries that get no memory for something small: they crash, exit, or report another error.
_AMBIGUOUS = (("killed", "crash"), ("error", "exit"), ("error", "exception"))

#: Bytes of live tensors at the peak of a plain ViT's call, over those of one layer's input (B, N, D): in inference what
#: the widest layer holds, in training what all twelve keep for the backward pass. For estimates of time only.
_LIVE = {"infer": 12.0, "train": 200.0}
#: Matrices of N x N for each head that explicit attention holds then, and the usual width of a head.
_LIVE_MATRICES = {"infer": 2.0, "train": 24.0}
_HEAD_WIDTH = 64
#: Weights, and in training their gradients and AdamW's two states.
_COPIES_OF_WEIGHTS = {"infer": 1, "train": 4}
_FP32_BYTES = 4


def is_too_large(status: str, cause: str) -> bool:
    """Whether an attempt failed for memory rather than for another reason."""
    return status == "oom" or cause in _FOR_MEMORY


@dataclass(frozen=True)
class Standing:
    """The result of all attempts so far, in images a batch.

    ``largest``: the largest that fits, 0 if none is known. ``too_large``: the smallest beyond it that did not fit.
    ``stopped_at``: the one that ended the search for another reason than memory.
    """

    largest: int
    too_large: int | None
    stopped_at: int | None
    max_batch: int

    @property
    def next_batch(self) -> int | None:
        """The batch to try next; None when the search is over."""
        if self.stopped_at is not None or self.largest >= self.max_batch:
            return None
        if self.too_large is None:
            return min(1 << self.largest.bit_length(), self.max_batch)  # the next power of two
        middle = (self.largest + self.too_large) // 2
        return middle if middle > self.largest else None

    @property
    def reached_bound(self) -> bool:
        """Whether even the bound fits."""
        return self.stopped_at is None and self.largest >= self.max_batch


def stand(attempts: Attempts, max_batch: int) -> Standing:
    """The standing of a search up to ``max_batch`` images; larger attempts do not count."""
    known = {batch: ending for batch, ending in attempts.items() if batch <= max_batch}
    largest = max((batch for batch, (status, _) in known.items() if status == "ok"), default=0)
    # in a retried search a larger batch may fit now: then a smaller one that did not no longer counts
    beyond = [batch for batch, ending in known.items() if is_too_large(*ending) and batch > largest]
    other = [batch for batch, ending in known.items() if ending[0] != "ok" and not is_too_large(*ending)]
    return Standing(largest, min(beyond, default=None), min(other, default=None), max_batch)


def next_batch(attempts: Attempts, max_batch: int) -> int | None:
    """The batch size that a search tries after ``attempts``, or None if it is over."""
    return stand(attempts, max_batch).next_batch


def most_attempts(max_batch: int) -> int:
    """A search up to ``max_batch`` images takes no more attempts than this."""
    return 2 * math.ceil(math.log2(max_batch)) + 2


def spell(attempts: Attempts, max_batch: int) -> str:
    """The result of a search in words: ``>=1024`` (the bound fits), ``12``, ``OOM@1``, ``8 (timeout@16)``,
    ``8 to 15 (unfinished)``, ``8 or more (unfinished)``.
    """
    found = stand(attempts, max_batch)
    if found.stopped_at is not None:
        ending = f"{shown_status(attempts[found.stopped_at][0])}@{found.stopped_at}"
        return f"{found.largest} ({ending})" if found.largest else ending
    if found.next_batch is not None:
        most = "or more" if found.too_large is None else f"to {found.too_large - 1}"
        return f"{found.largest} {most} (unfinished)"
    if found.reached_bound:
        return f">={found.largest}"
    if found.too_large is not None and not found.largest:
        return f"{shown_status(attempts[found.too_large][0])}@{found.too_large}"
    return str(found.largest)


def shown_status(status: str) -> str:
    """``oom`` -> ``OOM``; the others as they are."""
    return "OOM" if status == "oom" else status


# searches and their records


class SearchWatcher(Protocol):
    """Receives the result of each search."""

    def search_done(self, cell: Cell, found: str) -> None:
        """``found``: the result of ``spell``."""


def base_of(cell: Cell) -> Cell:
    """The cell that all attempts of a search share but for their batch."""
    return replace(cell, batch_size=1)


def search_label(base: Cell) -> str:
    """A base cell's label without its batch: ``vit_base16 224px cpu fp32 infer``."""
    return base.label.replace(f" b{base.batch_size} ", " ", 1)


def is_attempt(record: Record) -> bool:
    """Whether a record comes from a search."""
    bound = record.measurement(BOUND)
    return bound is not None and bound.status == "ok"


def bounds_a_search(record: Record) -> bool:
    """Whether a record is an attempt that did not fit, which is not a failure."""
    return is_attempt(record) and is_too_large(record.status, record.cause)


def attempts_by_base(records: Iterable[Record]) -> dict[str, dict[int, tuple[str, str]]]:
    """The attempts of each search among ``records``, by the id of its base cell."""
    found: dict[str, dict[int, tuple[str, str]]] = {}
    for record in records:
        attempts = found.setdefault(base_of(record.cell).id, {})
        attempts[record.cell.batch_size] = (record.status, record.cause)
    return found


def unfinished(bases: Iterable[Cell], records: Iterable[Record], max_batch: int) -> list[Cell]:
    """The base cells whose search the attempts among ``records`` do not end."""
    known = attempts_by_base(records)
    return [base for base in bases if next_batch(known.get(base.id, {}), max_batch) is not None]


def search(
    bases: Iterable[Cell],
    records: Iterable[Record],
    max_batch: int,
    measure: Callable[[Sequence[Cell]], Iterable[Record]],
    watcher: SearchWatcher,
) -> Iterator[Record]:
    """Search each base cell's largest batch, starting from ``records``; yields the record of each new attempt before
    the next one is made.
    """
    known = attempts_by_base(records)
    bound = Measurement.single(BOUND, "image", max_batch, _METHOD)
    for base in bases:
        attempts = known.get(base.id, {})
        while (batch := next_batch(attempts, max_batch)) is not None:
            (record,) = measure([replace(base, batch_size=batch)])
            if (record.status, record.cause) in _AMBIGUOUS and base.memory_limit is not None:
                record = _compared(record, measure)
            attempts[batch] = (record.status, record.cause)
            yield replace(record, measurements=(*record.measurements, bound))
        watcher.search_done(base, spell(attempts, max_batch))


def _compared(record: Record, measure: Callable[[Sequence[Cell]], Iterable[Record]]) -> Record:
    """Repeat an ambiguous failure without the memory limit: if that ends in another way, memory was the cause."""
    (without,) = measure([replace(record.cell, memory_limit=None)])
    if without.status != "ok" and not is_too_large(without.status, without.cause):
        return replace(record, detail=f"{record.detail}; without the memory limit also {without.status}")
    detail = f"{record.detail}; without the memory limit {shown_status(without.status)}, so probably for memory"
    return replace(record, cause="probable_oom", detail=detail)


# how long it will take


def guess_largest(params: float, flops: float, mode: str, memory_bytes: float, attention: str = "fused") -> int:
    """About the largest batch of a plain ViT of 12 layers with so many parameters and FLOPs (of one image) that fits
    into ``memory_bytes``: for estimates of time, never for results.

    D is the width that gives 12 such layers (12 D^2 weights each) their parameters, and N solves
    FLOPs = 2 N parameters + 48 N^2 D.
    """
    params = max(params, 1.0)
    width = math.sqrt(params / 144)
    tokens = (math.sqrt(params**2 + 48 * width * flops) - params) / (48 * width)
    numbers = _LIVE[mode] * tokens * width
    if attention == "explicit":
        numbers += _LIVE_MATRICES[mode] * tokens**2 * width / _HEAD_WIDTH
    left = memory_bytes - _FP32_BYTES * params * _COPIES_OF_WEIGHTS[mode]
    return max(int(left / (_FP32_BYTES * max(numbers, 1.0))), 0)


def expected_attempts(largest: int, max_batch: int, made: Attempts | None = None) -> list[int]:
    """The batches that a search tries after those it ``made`` if ``largest`` is the largest that fits, in order."""
    attempts, found = dict(made or {}), []
    while (batch := next_batch(attempts, max_batch)) is not None:
        attempts[batch] = ("ok", "") if batch <= largest else ("oom", "")
        found.append(batch)
    return found

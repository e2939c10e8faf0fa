"""Find the largest batch that fits. Loads no torch.

A search belongs to a base cell (of batch 1) and tries batches of 1, 2, 4, ... up to a bound, then bisects between the
largest that fits and the smallest that did not, to exactly one image. Where the largest batch is predicted it begins
there, and moves on by growing steps until one batch fits and another does not: the prediction decides which batches are
tried, never what is found. Each attempt is a cell and a record. The next one follows from the records alone, so that a
stopped search can be resumed.
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
#: The measurement of attempts whose search began at a prediction, in images.
PREDICTED = "frontier_predicted"

#: Causes that mean memory whatever the status.
_FOR_MEMORY = ("probable_oom", "oom_kill")
#: (status, cause) of libraries that get no memory for something small: they crash, exit, or report another error.
_AMBIGUOUS = (("killed", "crash"), ("error", "exit"), ("error", "exception"))

#: The steps away from a prediction: 1 image, then at least this share of it, then the distance times so much.
_FIRST_SHARE, _GROWTH = 1 / 32, 3


def is_too_large(status: str, cause: str) -> bool:
    """Whether an attempt failed for memory rather than for another reason."""
    return status == "oom" or cause in _FOR_MEMORY


@dataclass(frozen=True)
class Standing:
    """The result of all attempts so far, in images a batch.

    ``largest``: the largest that fits, 0 if none is known. ``too_large``: the smallest beyond it that did not fit.
    ``stopped_at``: the smallest that failed for another reason than memory, below ``too_large``: none of this size or
    beyond is tried.
    """

    largest: int
    too_large: int | None
    stopped_at: int | None
    max_batch: int

    @property
    def is_over(self) -> bool:
        """Whether the result is known, which depends on no prediction."""
        return self.next_batch() is None

    def next_batch(self, predicted: int | None = None) -> int | None:
        """The batch to try next, where the largest was ``predicted``; None when the search is over."""
        doubled = min(1 << self.largest.bit_length(), self.max_batch)  # the next power of two
        if self.largest in (self.max_batch, (self.too_large or 0) - 1):
            return None
        if self.stopped_at is not None:  # a prediction may have led beyond what works
            return doubled if self.largest < doubled < self.stopped_at else None
        if predicted is not None:
            start = min(max(predicted, 1), self.max_batch)
            if self.largest < start < (self.too_large or math.inf):
                return start
            if self.too_large is None:
                return min(start + _step(self.largest - start, start), self.max_batch)
            if not self.largest:
                return max(start - _step(start - self.too_large, start), 1)
        return doubled if self.too_large is None else (self.largest + self.too_large) // 2

    @property
    def reached_bound(self) -> bool:
        """Whether even the bound fits."""
        return self.stopped_at is None and self.largest >= self.max_batch


def _step(distance: int, start: int) -> int:
    """How far from ``start`` the next batch is once ``distance`` is too near."""
    return max(distance * _GROWTH, int(start * _FIRST_SHARE)) if distance else 1


def stand(attempts: Attempts, max_batch: int) -> Standing:
    """The standing of a search up to ``max_batch`` images; larger attempts do not count."""
    known = {batch: ending for batch, ending in attempts.items() if batch <= max_batch}
    largest = max((batch for batch, (status, _) in known.items() if status == "ok"), default=0)
    # in a retried search a larger batch may fit now: then a smaller one that did not no longer counts
    beyond = [batch for batch, ending in known.items() if is_too_large(*ending) and batch > largest]
    too_large = min(beyond, default=None)
    other = [batch for batch, ending in known.items() if ending[0] != "ok" and not is_too_large(*ending)]
    # beyond a batch that is too large nothing else matters: only a prediction led there
    stopped_at = min((batch for batch in other if too_large is None or batch < too_large), default=None)
    return Standing(largest, too_large, stopped_at, max_batch)


def next_batch(attempts: Attempts, max_batch: int, predicted: int | None = None) -> int | None:
    """The batch size that a search tries after ``attempts``, or None if it is over. ``predicted``: what the largest
    batch is likely to be.
    """
    return stand(attempts, max_batch).next_batch(predicted)


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
    if not found.is_over:
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


def predictions_in(records: Iterable[Record]) -> dict[str, Measurement | None]:
    """What each search among ``records`` was predicted, by the id of its base cell; None: it was not."""
    found: dict[str, Measurement | None] = {}
    for record in records:
        base = base_of(record.cell).id
        found[base] = record.measurement(PREDICTED) or found.get(base)
    return found


def unfinished(bases: Iterable[Cell], records: Iterable[Record], max_batch: int) -> list[Cell]:
    """The base cells whose search the attempts among ``records`` do not end."""
    known = attempts_by_base(records)
    return [base for base in bases if not stand(known.get(base.id, {}), max_batch).is_over]


def search(
    bases: Iterable[Cell],
    records: Iterable[Record],
    predictions: Mapping[str, Measurement],
    max_batch: int,
    measure: Callable[[Sequence[Cell]], Iterable[Record]],
    watcher: SearchWatcher,
) -> Iterator[Record]:
    """Search each base cell's largest batch, starting from ``records``; yields the record of each new attempt before
    the next one is made. ``predictions``: PREDICTED by the id of a base cell, where there is one.
    """
    known = attempts_by_base(records)
    bound = Measurement.single(BOUND, "image", max_batch, _METHOD)
    for base in bases:
        attempts = known.get(base.id, {})
        predicted = predictions.get(base.id)
        start = round(predicted.value) if predicted else None
        while (batch := next_batch(attempts, max_batch, start)) is not None:
            (record,) = measure([replace(base, batch_size=batch)])
            if (record.status, record.cause) in _AMBIGUOUS and base.memory_limit is not None:
                record = _compared(record, measure)
            attempts[batch] = (record.status, record.cause)
            added = (bound,) if predicted is None else (bound, predicted)
            yield replace(record, measurements=(*record.measurements, *added))
        watcher.search_done(base, f"{spell(attempts, max_batch)} {spell_attempts(len(attempts), start)}")


def spell_attempts(count: int, predicted: int | None) -> str:
    """``in 3 attempts (predicted 11)``."""
    how_often = f"in {count} attempt{'s' if count != 1 else ''}"
    return how_often if predicted is None else f"{how_often} (predicted {predicted})"


def _compared(record: Record, measure: Callable[[Sequence[Cell]], Iterable[Record]]) -> Record:
    """Repeat an ambiguous failure without the memory limit: if that ends in another way, memory was the cause."""
    (without,) = measure([replace(record.cell, memory_limit=None)])
    if without.status != "ok" and not is_too_large(without.status, without.cause):
        return replace(record, detail=f"{record.detail}; without the memory limit also {without.status}")
    detail = f"{record.detail}; without the memory limit {shown_status(without.status)}, so probably for memory"
    return replace(record, cause="probable_oom", detail=detail)


# how long it will take


def expected_attempts(
    largest: int, max_batch: int, predicted: int | None = None, made: Attempts | None = None
) -> list[int]:
    """The batches that a search tries after those it ``made`` if ``largest`` is the largest that fits, in order."""
    attempts, found = dict(made or {}), []
    while (batch := next_batch(attempts, max_batch, predicted)) is not None:
        attempts[batch] = ("ok", "") if batch <= largest else ("oom", "")
        found.append(batch)
    return found

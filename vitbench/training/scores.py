"""Score logits against true classes: accuracy, loss, precision, recall, F1, confusions, calibration.

Works on numpy arrays; loads no torch. Shapes: ``N`` images, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
#: Images whose probabilities are computed at once: in double precision, all of many classes would take gigabytes.
_AT_ONCE = 4096
#: With no more classes than this, every answer is among the best five.
_TOP = 5


@dataclass(frozen=True, kw_only=True)
class MeanScores:
    """Precision, recall and F1 over classes: each counting the same (macro) or by its images (weighted)."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class ClassScores(MeanScores):
    """Those of one class: ``images`` are of it, ``predicted`` were taken for it."""

    images: int
    predicted: int


@dataclass(frozen=True, kw_only=True)
class ConfidenceBin:
    """The images whose confidence (the largest probability) is above ``low`` and up to ``high``.

    ``confidence`` is their mean one and ``accuracy`` the share of them that is right; both None where there are none.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None

    @property
    def gap(self) -> float:
        """|accuracy - confidence|; 0 where there are no images."""
        return 0.0 if self.accuracy is None or self.confidence is None else abs(self.accuracy - self.confidence)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of N images of K classes: ``total`` is N, ``correct`` counts images whose class is first,
    ``correct_in_5`` those whose class is among the first five (None for five classes or fewer). ``loss`` is the mean
    cross entropy in nat. ``macro`` is over all classes of the data: the ``classes_without_images`` count 0. ``present``
    is over the ``classes_present`` in labels or predictions, as scikit-learn's macro means are by default; None where
    these are the data's. ``confusion``: a row for each true class, a column for each predicted one.
    ``calibration_error`` is that of ``expected_calibration_error``, ``largest_gap`` the largest difference between
    confidence and accuracy in a bin, ``confidence`` the mean one; ``bins`` are of confidence, ascending.
    """

    total: int
    correct: int
    correct_in_5: int | None
    loss: float
    macro: MeanScores
    present: MeanScores | None
    weighted: MeanScores
    classes_present: int
    classes_without_images: int
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration_error: float
    largest_gap: float
    confidence: float
    bins: tuple[ConfidenceBin, ...]


def score(logits: Array, labels: Array, *, bins: int = 15, classes: int | None = None) -> Scores:
    """The scores of ``logits`` (N, K) against the true classes ``labels`` (N,), in double precision.

    ``classes``: how many the data has, the first ones; a head may have more, which are left out of the means.
    Of equal logits that of the lower class counts as larger. Precision, recall and F1 are scikit-learn's, where a
    fraction without a denominator (nothing predicted, no images) is 0. Raises ValueError for shapes that do not fit
    each other, labels that are not classes, and logits that are not finite.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} are not (N, K) and (N,)")
    total, count = logits.shape
    if labels.min() < 0 or labels.max() >= count:
        raise ValueError(f"a label is not among the {count} classes")
    if not np.isfinite(logits).all():
        raise ValueError("a logit is not finite")
    predicted, rank, loss, confidence = _score_images(logits, labels)
    names = np.arange(count)
    confusion = confusion_matrix(labels, predicted, labels=names)
    options: dict[str, Any] = {"labels": names, "zero_division": 0}
    precision, recall, f1, images = precision_recall_fscore_support(labels, predicted, **options)
    present = np.union1d(labels, predicted)

    def mean(kind: str, over: Array) -> MeanScores:
        options["labels"] = over
        return MeanScores(**_three(precision_recall_fscore_support(labels, predicted, average=kind, **options)[:3]))

    found = calibrate(confidence, rank == 0, bins)
    return Scores(
        total=total,
        correct=int((rank == 0).sum()),
        correct_in_5=int((rank < _TOP).sum()) if count > _TOP else None,
        loss=float(loss.mean()),
        macro=mean("macro", names[:classes]),
        present=None if np.array_equal(present, names[:classes]) else mean("macro", present),
        weighted=mean("weighted", names[:classes]),
        classes_present=len(present),
        classes_without_images=int((images[:classes] == 0).sum()),
        classes=tuple(
            ClassScores(
                **_three((precision[k], recall[k], f1[k])), images=int(images[k]), predicted=int(confusion[:, k].sum())
            )
            for k in range(count)
        ),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
        calibration_error=expected_calibration_error(found),
        largest_gap=max(one.gap for one in found),
        confidence=float(confidence.mean()),
        bins=found,
    )


def _score_images(logits: Array, labels: Array) -> tuple[Array, Array, Array, Array]:
    """(N,) each: the predicted class, how many classes come before the true one, the loss in nat, the confidence."""
    total, count = logits.shape
    predicted, rank = np.empty(total, np.int64), np.empty(total, np.int64)
    loss, confidence = np.empty(total), np.empty(total)
    for start in range(0, total, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        some, true = logits[part].astype(np.float64), labels[part]
        largest = some.max(axis=1, keepdims=True)
        normaliser = np.log(np.exp(some - largest).sum(axis=1))  # log sum exp(z - max z)
        own = some[np.arange(len(true)), true][:, None]
        predicted[part] = some.argmax(axis=1)
        before = (some > own) | ((some == own) & (np.arange(count) < true[:, None]))
        rank[part] = before.sum(axis=1)
        loss[part] = normaliser + (largest - own)[:, 0]
        confidence[part] = np.exp(-normaliser)
    return predicted, rank, loss, confidence


def calibrate(confidence: Array, right: Array, bins: int) -> tuple[ConfidenceBin, ...]:
    """Images by their confidence (N,) in ``bins`` bins of equal width; ``right`` (N,) says which are right.

    Bin m of M is the interval ((m - 1)/M, m/M] (Guo et al., 2017, arXiv:1706.04599, section 2). Raises ValueError for
    less than one bin.
    """
    if bins < 1:
        raise ValueError(f"{bins} bins: at least one is needed")
    edges = np.linspace(0.0, 1.0, bins + 1)
    # rounding may put a probability a hair above 1
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    found = []
    for index in range(bins):
        inside = place == index
        images = int(inside.sum())
        found.append(
            ConfidenceBin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                images=images,
                confidence=float(confidence[inside].mean()) if images else None,
                accuracy=float(right[inside].mean()) if images else None,
            )
        )
    return tuple(found)


def expected_calibration_error(bins: Sequence[ConfidenceBin]) -> float:
    """``sum over bins of |B|/N * |accuracy(B) - confidence(B)|`` (Guo et al., 2017, arXiv:1706.04599, equation 3)."""
    total = sum(one.images for one in bins)
    return sum(one.images / total * one.gap for one in bins)


def _three(values: Sequence[Any]) -> dict[str, float]:
    precision, recall, f1 = (float(value) for value in values)
    return {"precision": precision, "recall": recall, "f1": f1}

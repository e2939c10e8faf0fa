"""Scores against figures by hand, against torch and against scikit-learn."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    classification_report,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from vitbench.training.scores import calibrate, expected_calibration_error, score


def _logits_of(confidences: list[float]) -> np.ndarray:
    """Logits of two classes, class 0 having these probabilities."""
    return np.array([[math.log(p), math.log(1 - p)] for p in confidences])


def _random(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(images, classes)).astype(np.float32) * 2
    labels = generator.integers(0, classes, images)
    logits[np.arange(images), labels] += 1.0  # better than chance
    return logits, labels


@pytest.mark.parametrize(("images", "classes"), [(500, 12), (9000, 7), (60, 100)])
def test_accuracy_and_loss_are_those_of_torch_and_scikit_learn(images: int, classes: int) -> None:
    logits, labels = _random(images, classes)
    found = score(logits, labels)
    probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
    names = np.arange(classes)
    assert found.total == images
    assert found.correct / images == accuracy_score(labels, logits.argmax(1))
    assert found.correct_in_5 is not None
    assert found.correct_in_5 / images == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=names))
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    assert found.loss == pytest.approx(float(expected), rel=1e-12)
    assert found.loss == pytest.approx(log_loss(labels, probabilities, labels=names), rel=1e-9)
    assert found.confidence == pytest.approx(probabilities.max(1).mean(), rel=1e-12)
    assert found.macro.f1 == pytest.approx(
        f1_score(labels, logits.argmax(1), average="macro", labels=names, zero_division=0)
    )
    assert np.array_equal(found.confusion, confusion_matrix(labels, logits.argmax(1), labels=names))


def test_precision_recall_and_f1_by_hand() -> None:
    # true 0 0 0 1 1 2, predicted 0 0 1 1 2 0
    logits = np.eye(3)[[0, 0, 1, 1, 2, 0]]
    found = score(logits, np.array([0, 0, 0, 1, 1, 2]))
    assert found.confusion == ((2, 1, 0), (0, 1, 1), (1, 0, 0))
    rows = [(one.precision, one.recall, one.images, one.predicted) for one in found.classes]
    assert rows == [(2 / 3, 2 / 3, 3, 3), (1 / 2, 1 / 2, 2, 2), (0, 0, 1, 1)]
    assert [one.f1 for one in found.classes] == pytest.approx([2 / 3, 1 / 2, 0])
    assert found.macro.f1 == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert found.weighted.f1 == pytest.approx((3 * 2 / 3 + 2 * 1 / 2) / 6)
    assert found.weighted.recall == pytest.approx(found.correct / found.total) == pytest.approx(3 / 6)
    assert found.correct_in_5 is None  # of three classes all are among the best five


def test_six_right_answers_are_worth_one_over_the_classes_that_are_present() -> None:
    labels = np.array([0, 1, 2, 3, 4, 5])
    found = score(np.eye(10)[labels], labels)
    assert found.macro.f1 == pytest.approx(0.6)  # (6 * 1 + 4 * 0) / 10
    assert (found.classes_without_images, found.classes_present) == (4, 6)
    assert found.present is not None
    assert (found.present.precision, found.present.recall, found.present.f1) == (1, 1, 1)
    assert f1_score(labels, labels, average="macro") == 1


@pytest.mark.parametrize(
    ("images", "classes", "of_data"), [(500, 12, None), (30, 40, None), (25, 100, 60), (500, 12, 10)]
)
def test_means_and_classes_are_scikit_learns_whatever_classes_lack_images(
    images: int, classes: int, of_data: int | None
) -> None:
    logits, labels = _random(images, classes)
    labels %= of_data or classes
    predicted = logits.argmax(1)
    found = score(logits, labels, classes=of_data)
    for mean, options in (
        (found.macro, {"average": "macro", "labels": np.arange(of_data or classes)}),
        (found.present or found.macro, {"average": "macro"}),
        (found.weighted, {"average": "weighted"}),
    ):
        precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, zero_division=0, **options)
        assert (mean.precision, mean.recall, mean.f1) == pytest.approx((precision, recall, f1))
    assert found.classes_present == len({*labels.tolist(), *predicted.tolist()})
    assert (found.present is None) == (images == 500 and of_data is None)
    recalls = [one.recall for one in found.classes if one.images]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted and have no images
        assert sum(recalls) / len(recalls) == pytest.approx(balanced_accuracy_score(labels, predicted))
    report = classification_report(labels, predicted, output_dict=True, zero_division=0)
    for index, one in enumerate(found.classes):
        theirs = report.get(str(index), {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
        assert [one.precision, one.recall, one.f1, one.images] == pytest.approx(list(theirs.values()))
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted, labels=np.arange(classes)))


def test_bins_of_confidence_are_those_of_scikit_learns_calibration_curve() -> None:
    logits, labels = _random(700, 9)
    probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
    found = [one for one in score(logits, labels, bins=15).bins if one.images]
    accuracy, confidence = calibration_curve(logits.argmax(1) == labels, probabilities.max(1), n_bins=15)
    assert [one.accuracy for one in found] == pytest.approx(accuracy.tolist())
    assert [one.confidence for one in found] == pytest.approx(confidence.tolist())


@pytest.mark.filterwarnings("error")
def test_what_has_no_denominator_is_zero_without_a_warning() -> None:
    found = score(np.eye(4)[[0, 0, 1]], np.array([0, 1, 1]))  # class 2 and 3: no images, never predicted
    assert [(one.precision, one.recall, one.f1) for one in found.classes[2:]] == [(0, 0, 0)] * 2
    assert found.macro.recall == pytest.approx((1 + 1 / 2) / 4)
    assert found.weighted.recall == pytest.approx(2 / 3)


def test_calibration_error_by_hand() -> None:
    # bins (0.6, 0.8]: 0.7 right, 0.75 wrong; (0.8, 1]: 0.9 and 0.95 right
    found = score(_logits_of([0.7, 0.75, 0.9, 0.95]), np.array([0, 1, 0, 0]), bins=5)
    assert [one.images for one in found.bins] == [0, 0, 0, 2, 2]
    assert [one.accuracy for one in found.bins] == [None, None, None, 0.5, 1.0]
    assert [one.confidence for one in found.bins[3:]] == pytest.approx([0.725, 0.925])
    assert found.calibration_error == pytest.approx(0.5 * 0.225 + 0.5 * 0.075)
    assert found.largest_gap == pytest.approx(0.225)


def test_a_bin_holds_its_upper_end_and_not_its_lower() -> None:
    confidence = np.array([0.25, 0.2500001, 0.5, 0.75, 1.0, 1.0000001])
    found = calibrate(confidence, np.ones(6, bool), 4)
    assert [(one.low, one.high, one.images) for one in found] == [
        (0, 0.25, 1),
        (0.25, 0.5, 2),
        (0.5, 0.75, 1),
        (0.75, 1, 2),
    ]


@pytest.mark.parametrize(("surplus", "expected"), [(0.0, 0.0), (0.2, 0.2), (-0.1, 0.1)])
def test_calibration_error_is_how_much_confidence_exceeds_accuracy(surplus: float, expected: float) -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.3, 0.9, 200_000)
    right = generator.uniform(size=200_000) < confidence - surplus
    assert expected_calibration_error(calibrate(confidence, right, 15)) == pytest.approx(expected, abs=0.006)


def test_one_bin_leaves_the_difference_of_the_means() -> None:
    logits, labels = _random(400, 10)
    found = score(logits, labels, bins=1)
    assert found.calibration_error == pytest.approx(abs(found.confidence - found.correct / found.total))


def test_equal_logits_count_for_the_lower_class() -> None:
    found = score(np.zeros((8, 8)), np.arange(8))
    assert (found.correct, found.correct_in_5) == (1, 5)  # not all eight
    assert [one.predicted for one in found.classes] == [8, 0, 0, 0, 0, 0, 0, 0]
    assert found.loss == pytest.approx(math.log(8))


def test_huge_logits_do_not_overflow() -> None:
    found = score(np.array([[3e38, -3e38], [-1e30, 1e30]], np.float32), np.array([0, 0]))
    assert found.correct == 1
    assert found.loss == pytest.approx(1e30, rel=1e-6)
    assert found.confidence == 1.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.full((2, 3), np.nan), np.array([0, 1]), "not finite"),
        (np.array([[1.0, np.inf]]), np.array([0]), "not finite"),
        (np.zeros((2, 3)), np.array([0, 3]), "not among the 3 classes"),
        (np.zeros((2, 3)), np.array([0]), r"not \(N, K\) and \(N,\)"),
        (np.zeros((0, 3)), np.zeros(0, int), r"not \(N, K\) and \(N,\)"),
    ],
)
def test_what_cannot_be_scored_is_refused(logits: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(logits, labels)


def test_no_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        score(np.zeros((1, 2)), np.array([0]), bins=0)

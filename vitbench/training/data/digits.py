"""The embedded data set: scikit-learn's 1,797 handwritten digits (Alpaydin and Kaynak, 1998; UCI, CC BY 4.0)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitbench.core.errors import DataError
from vitbench.training.data.images import DataInfo, Split
from vitbench.training.data.subsets import choose_stratified

if TYPE_CHECKING:
    import numpy as np

NAME = "digits"
COUNT = 1797
TEST_COUNT = 360  # 20 %
#: Never changes: accuracies of all runs and versions are on the same held-out images.
SPLIT_SEED = "vitbench digits 1"
_BRIGHTEST = 16  # pixels are counts of 0 to 16 dark dots

SUMMARY = "1,797 real handwritten digits, 8x8 px gray, embedded (scikit-learn)"


def describe_digits() -> DataInfo:
    """Reads nothing: the digits are part of scikit-learn."""
    return DataInfo(
        spec=NAME,
        label=NAME,
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
        train_images=COUNT - TEST_COUNT,
        test_images=TEST_COUNT,
        summary=SUMMARY,
    )


def read_digits(split: Split) -> tuple[np.ndarray[Any, Any], list[int]]:
    """The images (N, 8, 8) uint8 of a split (80/20, stratified), and their classes. Raises DataError if scikit-learn's
    file has another shape.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = [int(label) for label in bunch.target]
    if bunch.images.shape != (COUNT, 8, 8):
        raise DataError(f"scikit-learn's digits have the shape {bunch.images.shape}, not ({COUNT}, 8, 8): reinstall it")
    held_out = set(choose_stratified(labels, TEST_COUNT, SPLIT_SEED))
    indices = [index for index in range(COUNT) if (index in held_out) == (split == "test")]
    pixels = np.round(bunch.images[indices] * (255 / _BRIGHTEST)).astype(np.uint8)
    return pixels, [labels[index] for index in indices]

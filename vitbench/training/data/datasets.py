"""Data sets by name or path: describe them (without torch), and load their images into memory.

A data set is ``digits`` (embedded), ``cifar10``, ``cifar100`` or ``fashion-mnist`` (in a folder, downloaded only when
asked for), or the path of an image folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vitbench.core.errors import DataError, UnknownNameError, UsageError
from vitbench.training.data.downloads import DOWNLOADS, describe_download, read_download
from vitbench.training.data.folder import ImagesOnDisk, describe_folder, read_images, read_listing
from vitbench.training.data.images import DataInfo, ImageSet, Split, check_memory, fits_comfortably, from_arrays
from vitbench.training.data.subsets import choose_imbalanced, choose_stratified

if TYPE_CHECKING:
    import numpy as np
    import torch

_Decode = Callable[[Sequence[int], tuple[int, int]], "torch.Tensor"]

#: scikit-learn's handwritten digits (Alpaydin and Kaynak, 1998; UCI, CC BY 4.0), split 80/20.
_DIGITS = DataInfo(
    spec="digits",
    label="digits",
    class_names=tuple("0123456789"),
    train_images=1437,
    test_images=360,
    summary="1,797 real handwritten digits, 8x8 px gray, embedded (scikit-learn)",
)
#: Never changes: accuracies of all runs and versions are on the same held-out images.
_SPLIT_SEED = "vitbench digits 1"
_BRIGHTEST = 16  # pixels of the digits are counts of 0 to 16 dark dots

DATASETS: tuple[str, ...] = (_DIGITS.spec, *DOWNLOADS)


def list_datasets() -> list[dict[str, Any]]:
    """A row a data set: name, classes, images, summary. Loads no torch."""
    rows: list[dict[str, Any]] = [
        {
            "dataset": one.label,
            "classes": one.num_classes,
            "train_images": one.train_images,
            "test_images": one.test_images,
            "summary": one.summary,
        }
        for one in (_DIGITS, *DOWNLOADS.values())
    ]
    anything = "an image folder of yours: train/<class>/* and test/<class>/*"
    rows.append({"dataset": "PATH", "classes": "any", "train_images": "any", "test_images": "any", "summary": anything})
    return rows


def describe_data(spec: str, *, root: Path | None = None, download: bool = False) -> DataInfo:
    """Describe ``spec``, a name or the path of an image folder. Quick; loads no torch.

    ``root``: the folder of cifar10, cifar100 and fashion-mnist; ``download``: they need not exist yet. Raises
    UnknownNameError for an unknown name, UsageError for a ``root`` or ``download`` with other data, and DataError for a
    data set that is missing, incomplete or damaged (as far as that shows without decoding every image).
    """
    if spec in DOWNLOADS:
        return describe_download(spec, root, download=download)
    path = Path(spec).expanduser()
    separators = tuple(sign for sign in (os.sep, os.altsep) if sign)
    is_path = path.exists() or spec.startswith(("~", ".")) or any(sign in spec for sign in separators)
    if spec != _DIGITS.spec and not is_path:
        raise UnknownNameError(
            "data set", spec, DATASETS, "vitbench list datasets, or give the path of an image folder (train/<class>/*)"
        )
    if root is not None or download:
        option = "--data-dir" if root is not None else "--download"
        raise UsageError(
            f"{option} is for {', '.join(DOWNLOADS)}, not for {spec!r}: leave it out, or name one of them, such as "
            "--data cifar10"
        )
    return _DIGITS if spec == _DIGITS.spec else describe_folder(spec)


def options_of_data(spec: str, root: str | None, download: bool) -> tuple[str | None, bool]:
    """``root`` and ``download`` where they apply to ``spec``: earlier versions stored them for any data."""
    return (root, download) if spec in DOWNLOADS else (None, False)


def load_images(
    info: DataInfo,
    split: Split,
    *,
    image_size: tuple[int, int],
    images: int | None = None,
    seed: int = 0,
    download: bool = False,
) -> ImageSet:
    """The images of a split in memory, resized to ``image_size`` (height, width) px. Loads torch.

    ``images``: at most so many, a stratified choice by ``seed``; no others are decoded. Gray images get three equal
    channels. Images of a folder that would take more than half of the free memory are decoded when they are needed.
    Raises DataError for an image or file that cannot be read (naming it), and if there is not enough memory.
    """
    labels, decode = _open(info, split, download=download)
    wanted = info.count(split) if images is None else min(images, info.count(split))
    return _decoded(info, labels, decode, choose_stratified(labels, wanted, seed), image_size)


def load_training_images(
    info: DataInfo,
    *,
    image_size: tuple[int, int],
    images: int | None = None,
    seed: int = 0,
    validation: float = 0.0,
    imbalance: str | None = None,
    download: bool = False,
    processes: int = 1,
) -> tuple[ImageSet, ImageSet | None]:
    """The training images, and those of them that are held out for validation (None if the fraction is 0).

    First the fraction ``validation`` is held out, stratified by ``seed``; then ``imbalance`` (see choose_imbalanced)
    thins out the classes of the rest; then at most ``images`` of these are chosen, stratified. ``processes`` share this
    machine's memory, each with its own copy. Raises as ``load_images`` does, and DataError for an impossible imbalance
    or a split that leaves nothing.
    """
    labels, decode = _open(info, "train", download=download, processes=processes)
    held_out: list[int] = []
    if validation > 0:
        held_out = choose_stratified(labels, round(validation * len(labels)), f"validation {seed}")
        if not 0 < len(held_out) < len(labels):
            raise DataError(f"validation = {validation} of {len(labels)} training images leaves one side empty")
    out = set(held_out)
    rest = [index for index in range(len(labels)) if index not in out]
    if imbalance is not None:
        rest = choose_imbalanced(labels, rest, imbalance, seed)
    if images is not None:
        rest = [rest[index] for index in choose_stratified([labels[index] for index in rest], images, seed)]
    training = _decoded(info, labels, decode, rest, image_size)
    return training, _decoded(info, labels, decode, held_out, image_size) if held_out else None


def _open(info: DataInfo, split: Split, *, download: bool, processes: int = 1) -> tuple[list[int], _Decode]:
    """The class of each image, and a function that makes a tensor of chosen images."""
    if info.spec in DATASETS:
        pixels, classes = read_arrays(info, split, download=download)

        def resize(chosen: Sequence[int], size: tuple[int, int]) -> torch.Tensor:
            check_memory(len(chosen), size, processes)
            return from_arrays(pixels[list(chosen)], size)

        return classes, resize
    listing = read_listing(info)
    files = listing.files[split]

    def decode(chosen: Sequence[int], size: tuple[int, int]) -> torch.Tensor:
        some = [files[index] for index in chosen]
        if fits_comfortably(processes * len(some), size):
            return read_images(listing.root, some, size)
        return cast("torch.Tensor", ImagesOnDisk(listing.root, some, size))

    return [file.label for file in files], decode


def read_arrays(info: DataInfo, split: Split, *, download: bool) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Images (N, h, w) or (N, h, w, 3) uint8 of one of DATASETS, and their classes. Raises as ``read_download``."""
    if info.spec != _DIGITS.spec:
        return read_download(info, split, download=download)
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = [int(label) for label in bunch.target]
    held_out = set(choose_stratified(labels, info.test_images, _SPLIT_SEED))
    indices = [index for index in range(len(labels)) if (index in held_out) == (split == "test")]
    pixels = np.round(bunch.images[indices] * (255 / _BRIGHTEST)).astype(np.uint8)
    return pixels, [labels[index] for index in indices]


def _decoded(
    info: DataInfo, labels: Sequence[int], decode: _Decode, chosen: Sequence[int], image_size: tuple[int, int]
) -> ImageSet:
    import torch

    return ImageSet(decode(chosen, image_size), torch.tensor([labels[index] for index in chosen]), info.class_names)

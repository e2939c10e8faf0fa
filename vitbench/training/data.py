"""Data sets by name or path: what there is (no torch), and their pictures in memory.

A data set is ``digits`` (embedded), ``cifar10``, ``cifar100`` or ``fashion-mnist`` (in a folder, downloaded only when
asked for), or the path of an image folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vitbench.errors import UnknownNameError
from vitbench.training.digits import NAME as DIGITS
from vitbench.training.digits import describe_digits, read_digits
from vitbench.training.downloads import DOWNLOADS, describe_download, read_download
from vitbench.training.folder import describe_folder, read_listing, read_pictures
from vitbench.training.pictures import DataInfo, PictureSet, Split, check_memory, from_arrays
from vitbench.training.subsets import choose_stratified

__all__ = ["DATASETS", "DataInfo", "PictureSet", "describe_data", "list_datasets", "load_images"]

DATASETS: tuple[str, ...] = (DIGITS, *DOWNLOADS)


def list_datasets() -> list[dict[str, Any]]:
    """What a command line shows: name, classes, pictures, what it is. Loads no torch."""
    digits = describe_digits()
    rows: list[dict[str, Any]] = [
        {
            "dataset": digits.label,
            "classes": digits.num_classes,
            "train_images": digits.train_images,
            "test_images": digits.test_images,
            "summary": digits.summary,
        }
    ]
    rows += [
        {
            "dataset": known.name,
            "classes": len(known.class_names),
            "train_images": known.train_images,
            "test_images": known.test_images,
            "summary": known.summary,
        }
        for known in DOWNLOADS.values()
    ]
    anything = "an image folder of yours: train/<class>/* and test/<class>/*"
    rows.append({"dataset": "PATH", "classes": "any", "train_images": "any", "test_images": "any", "summary": anything})
    return rows


def describe_data(spec: str, *, root: Path | None = None, download: bool = False) -> DataInfo:
    """What ``spec`` (a name, or the path of an image folder) is. Quick; loads no torch.

    ``root``: the folder of cifar10, cifar100 and fashion-mnist; ``download``: it need not be there yet. Raises
    UnknownNameError for a name that is none, and DataError for a data set that is missing, incomplete or damaged (as
    far as that shows without decoding every picture).
    """
    if spec == DIGITS:
        return describe_digits()
    if spec in DOWNLOADS:
        return describe_download(spec, root, download=download)
    path = Path(spec).expanduser()
    separators = tuple(sign for sign in (os.sep, os.altsep) if sign)
    if path.exists() or spec.startswith(("~", ".")) or any(sign in spec for sign in separators):
        return describe_folder(spec)
    raise UnknownNameError(
        "data set", spec, DATASETS, "vitbench list datasets, or give the path of an image folder (train/<class>/*)"
    )


def load_images(
    info: DataInfo,
    split: Split,
    *,
    image_size: tuple[int, int],
    images: int | None = None,
    seed: int = 0,
    download: bool = False,
) -> PictureSet:
    """The pictures of a split in memory, resized to ``image_size`` (height, width) px. Loads torch.

    ``images`` less than there are: a stratified choice by ``seed``, and nothing else is decoded; more: all there are.
    Gray pictures get three equal channels. Raises DataError for a picture or file that cannot be read (naming it), and
    when memory does not suffice.
    """
    import torch

    wanted = info.count(split) if images is None else min(images, info.count(split))
    check_memory(wanted, image_size)
    if info.spec == DIGITS or info.spec in DOWNLOADS:
        pixels, labels = read_digits(split) if info.spec == DIGITS else read_download(info, split, download=download)
        chosen = choose_stratified(labels, wanted, seed)
        tensor = from_arrays(pixels[chosen], image_size)
    else:
        listing = read_listing(info)
        files = listing.files[split]
        labels = [file.label for file in files]
        chosen = choose_stratified(labels, wanted, seed)
        tensor = read_pictures(listing.root, [files[index] for index in chosen], image_size)
    return PictureSet(tensor, torch.tensor([labels[index] for index in chosen]), info.class_names)

"""Images that a trained model is shown one by one: files, and images of data sets by their index.

Importing this module loads no torch, its functions do.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import DataError, UsageError
from vitbench.core.text import printable
from vitbench.experiments.open_model import DataRequest
from vitbench.training.data.images import DataInfo

if TYPE_CHECKING:
    import PIL.Image
    import torch

    #: An image as a model takes it, (3, H, W) uint8, and the whole image.
    ReadImage = tuple[torch.Tensor, PIL.Image.Image]


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Where an image comes from: its name for people, the ``stem`` of files that are written for it, its class
    ``truth`` where the data set knows it, and its file, if it is one.

    ``read`` takes (height, width) px and returns what ``read_image`` does.
    """

    name: str
    stem: str
    read: Callable[[tuple[int, int]], ReadImage]
    truth: str | None = None
    path: Path | None = None


def images_of_files(paths: Iterable[Path]) -> list[ImageSource]:
    """One source a path. Nothing is read yet."""
    return [
        ImageSource(name=str(path), stem=path.stem, read=functools.partial(read_image, path), path=path)
        for path in paths
    ]


def images_of_data(request: DataRequest, indices: Sequence[int]) -> tuple[list[ImageSource], DataInfo]:
    """The images of a split at ``indices``, from 0, in the order of the data set's files; and the data set.

    Raises UsageError for a split or index that does not exist, and what ``describe_data`` raises.
    """
    from vitbench.training.data.datasets import DATASETS, read_arrays
    from vitbench.training.data.folder import read_listing

    info, split = request.describe()
    count = info.count(split)
    for index in indices:
        if not 0 <= index < count:
            raise UsageError(
                f"{printable(info.label)} has {count:,} {split} images, and none has --index {index}. "
                f"Give 0 to {count - 1}"
            )
    if info.spec not in DATASETS:
        listing = read_listing(info)
        files = [listing.files[split][index] for index in indices]
        return [
            ImageSource(
                name=f"{listing.root.name}/{file.relative}",
                stem=Path(file.relative).stem,
                read=functools.partial(read_image, listing.root / file.relative),
                truth=info.class_names[file.label],
                path=listing.root / file.relative,
            )
            for file in files
        ], info
    pixels, labels = read_arrays(info, split, download=request.download)
    return [
        ImageSource(
            name=f"{info.label} {split} {index}",
            stem=f"{info.label}-{split}-{index}",
            read=functools.partial(_prepare_array, pixels[index]),
            truth=info.class_names[labels[index]],
        )
        for index in indices
    ], info


def read_image(path: Path, image_size: tuple[int, int]) -> ReadImage:
    """One image as a model takes it, (3, H, W) uint8 of ``image_size`` (height, width) px, and the whole of it.

    Prepared by ``decode``, like the images of a folder: the middle cut to the aspect, then resized. Both are upright
    and in RGB. Raises DataError, one line that names the file, for what cannot be read.
    """
    import torch

    from vitbench.training.data.images import decode

    shown = printable(str(path))
    _check_is_file(path, shown)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF tags and the like: the image can be read all the same
            pixels, whole = decode(path, image_size)
    except ValueError as error:
        raise DataError(f"{shown} {error}") from error
    # (H, W, 3) -> (3, H, W)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), whole


def _check_is_file(path: Path, shown: str) -> None:
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{shown} does not exist") from error
    except (OSError, ValueError) as error:  # names that no system takes
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{shown[:200]} cannot be read: {printable(reason)}") from error
    if path.is_dir():
        raise DataError(f"{shown} is a folder: give the images in it")
    if not path.is_file():
        raise DataError(f"{shown} is not a regular file: give an image")
    if found.st_size == 0:
        raise DataError(f"{shown} is empty: copy or download it again")


def _prepare_array(pixels: Any, image_size: tuple[int, int]) -> ReadImage:
    """An image (h, w) or (h, w, 3) uint8 of a data set in memory, prepared like the whole data set."""
    from PIL import Image

    from vitbench.training.data.images import from_arrays

    return from_arrays(pixels[None], image_size)[0], Image.fromarray(pixels).convert("RGB")

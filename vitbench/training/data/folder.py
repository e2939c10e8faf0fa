"""A data set that is an image folder: ``train/<class>/*`` and ``test/<class>/*``."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import DataError
from vitbench.training.data.images import SPLITS, DataInfo, Split, check_header, decode

if TYPE_CHECKING:
    import numpy as np
    import torch

#: Files with another ending (notes, thumbnail databases) are ignored.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_LAYOUT = "An image folder has train/<class>/* and test/<class>/*"


@dataclass(frozen=True)
class ImageFile:
    """An image's path below the data set's folder (``train/cat/1.jpg``), its size in bytes, its class."""

    relative: str
    size_bytes: int
    label: int


@dataclass(frozen=True)
class Listing:
    """The images of an image folder, sorted by class and name."""

    root: Path
    class_names: tuple[str, ...]
    files: dict[Split, tuple[ImageFile, ...]]

    @property
    def label(self) -> str:
        """``folder:<name>:<digest of the relative file names and sizes>``: tells data sets apart without a path."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for file in self.files[split]:
                # file systems differ in how they spell é
                line = f"{unicodedata.normalize('NFC', file.relative)}\0{file.size_bytes}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))  # a name may be in another encoding
        return f"folder:{re.sub(r'[^A-Za-z0-9._-]', '_', self.root.name) or 'root'}:{digest.hexdigest()[:8]}"


def describe_folder(spec: str) -> DataInfo:
    """List the folder and read the header of the first image of each class. Raises DataError for a wrong folder."""
    listing = list_images(Path(spec).expanduser())
    for split in SPLITS:
        seen: set[int] = set()
        for file in listing.files[split]:
            if file.label not in seen:
                seen.add(file.label)
                try:
                    check_header(listing.root / file.relative)
                except ValueError as error:
                    raise _unreadable(listing.root, file, error) from error
    train, test = (len(listing.files[split]) for split in SPLITS)
    return DataInfo(
        spec=spec,
        label=listing.label,
        class_names=listing.class_names,
        train_images=train,
        test_images=test,
        summary=f"image folder {listing.root.name}: {len(listing.class_names)} classes",
        path=listing.root,
    )


def list_images(folder: Path) -> Listing:
    """Every image of an image folder. Raises DataError unless both splits have images of the same classes."""
    root = Path(os.path.abspath(folder))  # "." has no name of its own
    if not root.exists():
        near = [found.name for found in sorted(root.parent.glob("*")) if found.name.lower() == root.name.lower()]
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"Image folder {str(folder)!r} does not exist.{hint} {_LAYOUT}")
    if not root.is_dir():
        raise DataError(f"{str(folder)!r} is a file, not a folder. {_LAYOUT}: unpack an archive first")
    try:
        classes = {split: _class_folders(folder, root / split) for split in SPLITS}
        train, test = (set(classes[split]) for split in SPLITS)
        if train != test:
            only = [f"{name}/ is only in train/" for name in sorted(train - test)]
            only += [f"{name}/ is only in test/" for name in sorted(test - train)]
            more = f" (and {len(only) - 3} more)" if len(only) > 3 else ""
            raise DataError(
                f"The classes of image folder {str(folder)!r} differ: {', '.join(only[:3])}{more}. "
                "Both need the same class folders"
            )
        names = tuple(classes["train"])
        if len(names) < 2:
            raise DataError(f"Image folder {str(folder)!r} has one class, {names[0]!r}: a model needs two or more")
        files = {split: _files_of(folder, root, split, names) for split in SPLITS}
    except OSError as error:
        raise DataError(f"Image folder {str(folder)!r} cannot be read: {error.strerror}: {error.filename}") from error
    return Listing(root, names, files)


def read_listing(info: DataInfo) -> Listing:
    """The images of a folder that was described. Raises DataError if it has changed since."""
    assert info.path is not None
    listing = list_images(info.path)
    if listing.label != info.label:
        raise DataError(f"Image folder {info.path.name!r} has changed since it was described: start again")
    return listing


def read_images(root: Path, files: Sequence[ImageFile], image_size: tuple[int, int]) -> torch.Tensor:
    """The images as (N, 3, H, W) uint8, decoded by ``decode_image`` in as many threads as there are cores (Pillow
    releases the interpreter's lock). Raises DataError for the first image in order that cannot be read.
    """
    import numpy as np
    import torch

    # an array, not a tensor: threads do not share torch's inference mode
    images = np.empty((len(files), 3, *image_size), dtype=np.uint8)

    def read(place: int) -> None:
        images[place] = decode_image(root, files[place], image_size).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            list(pool.map(read, range(len(files))))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(images)


class ImagesOnDisk:
    """Images (N, 3, H, W) uint8 that do not fit memory and are decoded whenever they are needed. It has what trainings
    and tests use of a tensor.
    """

    def __init__(self, root: Path, files: Sequence[ImageFile], image_size: tuple[int, int]) -> None:
        import torch

        self.root = root
        self.files = files
        self.image_size = image_size
        self.dtype = torch.uint8
        self.device = torch.device("cpu")
        self.shape = (len(files), 3, *image_size)

    def __len__(self) -> int:
        return len(self.files)

    def dim(self) -> int:
        return 4

    def index_select(self, dim: int, indices: torch.Tensor) -> torch.Tensor:
        """Those at ``indices`` (B,) along dimension 0."""
        if dim != 0:
            raise ValueError(f"images are along dimension 0, not {dim}")
        return read_images(self.root, [self.files[index] for index in indices.tolist()], self.image_size)

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """All of them, ``size`` at a time."""
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]

    def __getitem__(self, item: int | slice) -> torch.Tensor:
        if isinstance(item, slice):
            return read_images(self.root, self.files[item], self.image_size)
        return read_images(self.root, [self.files[item]], self.image_size)[0]


def decode_image(root: Path, file: ImageFile, image_size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """One image as RGB (H, W, 3) uint8 of ``image_size`` (height, width) px, prepared by ``decode``.

    Raises DataError naming the file relative to its folder: the text ends up in records.
    """
    try:
        return decode(root / file.relative, image_size)[0]
    except ValueError as error:
        raise _unreadable(root, file, error) from error


def _class_folders(shown: Path, split: Path) -> list[str]:
    if not split.is_dir():
        there = sorted(entry.name for entry in split.parent.iterdir() if not entry.name.startswith("."))
        found = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "") if there else "nothing"
        raise DataError(f"Image folder {str(shown)!r} has no {split.name}/ folder (found: {found}). {_LAYOUT}")
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{split.name}/ of image folder {str(shown)!r} has no class folders. {_LAYOUT}")
    return names


def _files_of(shown: Path, root: Path, split: Split, names: Sequence[str]) -> tuple[ImageFile, ...]:
    files: list[ImageFile] = []
    for label, name in enumerate(names):
        base = f"{split}/{name}"
        found = sorted(_walk(root / split / name, base))
        if not found:
            endings = " ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(f"{base}/ of image folder {str(shown)!r} is empty: no file ends in {endings}")
        for relative, size in found:
            if size == 0:
                raise DataError(f"{relative} of image folder {str(shown)!r} is empty: remove or replace it")
            files.append(ImageFile(relative, size, label))
    return tuple(files)


def _walk(folder: Path, relative: str) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{relative}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                found += _walk(Path(entry.path), path)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                found.append((path, entry.stat().st_size))
    return found


def _unreadable(root: Path, file: ImageFile, error: ValueError) -> DataError:
    return DataError(f"{file.relative} of image folder {root.name!r} {error}. Remove or replace it")

"""The data sets that are downloaded once into a folder: CIFAR-10, CIFAR-100 (Krizhevsky, 2009), Fashion-MNIST (Xiao,
2017).

Describing them looks for their files and loads no torch. CIFAR is read through torchvision, which checks the files'
MD5 sums before it unpickles them; Fashion-MNIST's plain IDX files are read here, packed or not.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import DataError
from vitbench.training.data.images import DataInfo, Split

if TYPE_CHECKING:
    import numpy as np

_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
_FASHION_CLASSES = "T-shirt/top|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|Ankle boot"


#: More than the largest file of these data sets (CIFAR-100's archive: 169 MB); a larger one is not hashed.
LARGEST_FILE_BYTES = 200_000_000
#: What packing may add to bytes that it cannot compress.
_PACKING_BYTES = 10_000
#: A folder of torchvision's first versions, from which it still reads images without checking them.
_LEGACY = "FashionMNIST/processed"


@dataclass(frozen=True, kw_only=True)
class Download(DataInfo):
    """A data set of torchvision: its class there, and the files below its folder.

    ``folders``: where the files may lie below the folder that the user names; torchvision's own place comes first.
    """

    torchvision_class: str
    folders: tuple[str, ...]
    files: tuple[str, ...]

    def find(self, root: Path) -> Path | None:
        """The folder below ``root`` that holds all files (packed with gzip or not), or None."""
        for folder in self.folders:
            if all(_packed_or_not(root / folder / name) for name in self.files):
                return root / folder
        return None


DOWNLOADS: dict[str, Download] = {
    one.spec: one
    for one in (
        Download(
            spec="cifar10",
            label="cifar10",
            torchvision_class="CIFAR10",
            folders=("cifar-10-batches-py",),
            files=(*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
            class_names=tuple(_CIFAR10_CLASSES.split()),
            train_images=50_000,
            test_images=10_000,
            summary="CIFAR-10, 32x32 px in colour (--data-dir, --download: 170 MB)",
        ),
        Download(
            spec="cifar100",
            label="cifar100",
            torchvision_class="CIFAR100",
            folders=("cifar-100-python",),
            files=("train", "test", "meta"),
            class_names=tuple(_CIFAR100_CLASSES.split()),
            train_images=50_000,
            test_images=10_000,
            summary="CIFAR-100, 32x32 px in colour (--data-dir, --download: 169 MB)",
        ),
        Download(
            spec="fashion-mnist",
            label="fashion-mnist",
            torchvision_class="FashionMNIST",
            folders=("FashionMNIST/raw", "."),
            files=tuple(
                f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
            ),
            class_names=tuple(_FASHION_CLASSES.split("|")),
            train_images=60_000,
            test_images=10_000,
            summary="Fashion-MNIST, 28x28 px gray (--data-dir, --download: 31 MB)",
        ),
    )
}


def describe_download(name: str, root: Path | None, *, download: bool) -> DataInfo:
    """``root`` is torchvision's. Raises DataError if files are missing, unless ``download`` allows to fetch them."""
    known = DOWNLOADS[name]
    if root is None:
        raise DataError(f"Data set {name!r} needs the folder that it is in: give --data-dir DIR (data_dir in a suite)")
    root = root.expanduser()
    if known.find(root) is None and not download:
        folder = known.folders[0]
        missing = next(file for file in known.files if not _packed_or_not(root / folder / file))
        raise DataError(
            f"Data set {name!r} is not in {str(root)!r}: {folder}/{missing} is missing or empty. "
            "Give the folder above it with --data-dir, or fetch it with --download"
        )
    return replace(known, path=root)


def read_download(info: DataInfo, split: Split, *, download: bool) -> tuple[np.ndarray[Any, Any], list[int]]:
    """The images (N, h, w, 3) or (N, h, w) uint8 of a split, and their classes.

    Downloads missing files first if ``download`` allows it. Raises DataError for files that are missing, damaged or
    unavailable.
    """
    known = DOWNLOADS[info.spec]
    assert info.path is not None
    if known.find(info.path) is None:
        if not download:
            describe_download(info.spec, info.path, download=False)  # says what is missing
        _through_torchvision(known, info.path, split, download=True)
    folder = known.find(info.path)
    if known.spec == "fashion-mnist" and folder is not None:
        part = "train" if split == "train" else "t10k"
        pixels = read_idx(folder / f"{part}-images-idx3-ubyte", (info.count(split), 28, 28))
        labels = read_idx(folder / f"{part}-labels-idx1-ubyte", (info.count(split),))
        if labels.max() >= info.num_classes:
            raise DataError(
                f"{part}-labels-idx1-ubyte of Fashion-MNIST is damaged: a class {labels.max()}, of {info.num_classes}. "
                "Remove it and use --download"
            )
        return pixels, labels.tolist()
    dataset = _through_torchvision(known, info.path, split, download=False)
    return dataset.data, [int(label) for label in dataset.targets]


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The unsigned bytes of an IDX file (or of ``path`` + ``.gz``), which must have ``shape``. Raises DataError.

    The format (http://yann.lecun.com/exdb/mnist): two zero bytes, 0x08 for unsigned bytes, the number of dimensions,
    each dimension as a big-endian 32-bit number, the bytes.
    """
    import numpy as np

    packed = path.with_name(path.name + ".gz")
    header = bytes((0, 0, 8, len(shape))) + b"".join(side.to_bytes(4, "big") for side in shape)
    size = len(header) + math.prod(shape)
    try:
        if not path.is_file() and packed.stat().st_size > size + size // 100 + _PACKING_BYTES:
            raise OSError(f"packed it has {packed.stat().st_size:,} bytes, more than unpacked")
        # one byte more than there should be: a gzip file can promise any number of them
        with path.open("rb") if path.is_file() else gzip.open(packed, "rb") as file:
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:  # a damaged gzip file is any of them
        raise DataError(
            f"{path.name} of Fashion-MNIST cannot be read: {error}. Remove it and use --download"
        ) from error
    if not content.startswith(header) or len(content) != size:
        raise DataError(
            f"{path.name} of Fashion-MNIST is damaged: not {'x'.join(map(str, shape))} bytes in the IDX format. "
            "Remove it and use --download"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _through_torchvision(known: Download, root: Path, split: Split, *, download: bool) -> Any:
    """torchvision's data set. It unpacks an archive, and unpickles a file of CIFAR, only if its MD5 sum is the
    published one: names and sizes in them are known.
    """
    from torchvision import datasets

    kind = getattr(datasets, known.torchvision_class)
    if known.spec == "fashion-mnist" and (root / _LEGACY).exists():
        raise DataError(f"{str(root / _LEGACY)!r} holds other images, which torchvision would read: remove it")
    archives = [root / kind.filename] if hasattr(kind, "filename") else []
    for path in (*archives, *(root / known.folders[0] / name for name in known.files)):
        if path.is_file() and path.stat().st_size > LARGEST_FILE_BYTES:
            raise DataError(
                f"{path.name} of {known.spec} is damaged: {path.stat().st_size:,} bytes, more than any file of it has "
                f"({LARGEST_FILE_BYTES:,}). Remove it and use --download"
            )
    try:
        return kind(root=str(root), train=split == "train", download=download)
    except (RuntimeError, OSError) as error:  # URLError is an OSError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = "could not be downloaded" if download else "is damaged"
        way_out = "Is there a network?" if download else f"Remove {known.folders[0]} and use --download"
        raise DataError(f"Data set {known.spec!r} {what}: {reason}. {way_out}") from error


def _packed_or_not(path: Path) -> bool:
    return any(one.is_file() and one.stat().st_size > 0 for one in (path, path.with_name(path.name + ".gz")))

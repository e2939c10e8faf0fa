"""Data sets as values: a description (without torch), images in memory, how they are decoded and get one size."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitbench.core.errors import DataError
from vitbench.core.text import one_line
from vitbench.devices.host.memory import available_memory

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

#: The formats that are read, whatever the file's name. Not all of Pillow's: some run other programs (EPS).
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

#: Images of more pixels are decoded one after the other: several at once would take gigabytes.
_LARGE_PIXELS = 20_000_000
_ONE_AT_A_TIME = threading.Lock()
#: Images that are resized at once: enough for speed, few enough for a small float copy.
_RESIZED_AT_ONCE = 512


class _OfClasses:
    """What has the names of all classes of a data set, whether or not each is among its images."""

    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """How many classes the data set has."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True)
class DataInfo(_OfClasses):
    """A data set as known without reading its images.

    ``spec`` is what the user wrote; ``label`` is its name in results, without a path. ``train_images`` and
    ``test_images`` are counts. ``path``: the folder that the images are read from, None for the embedded digits.
    """

    spec: str
    label: str
    class_names: tuple[str, ...]
    train_images: int
    test_images: int
    summary: str
    path: Path | None = None

    def count(self, split: Split) -> int:
        """How many images ``split`` has."""
        return self.train_images if split == "train" else self.test_images


@dataclass(frozen=True, eq=False)
class ImageSet(_OfClasses):
    """Images in memory: ``images`` (N, 3, H, W) uint8, ``labels`` (N,) int64, indices into ``class_names``.

    Raises ValueError for tensors of another shape or dtype.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        import torch

        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}, not uint8 (N, 3, H, W)")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels are {self.labels.dtype} {tuple(self.labels.shape)}, not int64 (N,), one an image")
        if len(self) == 0:
            raise ValueError("an image set holds at least one image")
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise ValueError(f"a label is not among the {len(self.class_names)} classes")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class FeatureSet(_OfClasses):
    """A frozen backbone's ``features`` (N, ...) float, ``labels`` (N,) int64, indices into ``class_names``."""

    features: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.features)


def from_arrays(pixels: np.ndarray[Any, Any], image_size: tuple[int, int]) -> torch.Tensor:
    """uint8 images (N, h, w) or (N, h, w, 3) as a tensor (N, 3, H, W) of ``image_size`` (H, W) px.

    Resized bilinearly, with antialiasing where they shrink; gray images get three equal channels.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    images = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)  # (N, h, w, 3) -> (N, 3, h, w)
    if tuple(images.shape[-2:]) != image_size:
        resized = torch.empty(*images.shape[:2], *image_size, dtype=torch.uint8)
        for some, out in zip(images.split(_RESIZED_AT_ONCE), resized.split(_RESIZED_AT_ONCE), strict=True):
            smooth = F.interpolate(some.float(), image_size, mode="bilinear", antialias=True)
            out.copy_(smooth.round_().clamp_(0, 255))
        images = resized
    return images.expand(-1, 3, -1, -1).contiguous()


def fits_comfortably(count: int, image_size: tuple[int, int]) -> bool:
    """Whether ``count`` images of ``image_size`` px take no more than half of the memory that is free."""
    return 2 * count * 3 * image_size[0] * image_size[1] <= available_memory()


def check_memory(count: int, image_size: tuple[int, int], processes: int = 1) -> None:
    """Raises DataError if ``count`` images of ``image_size`` px in each of ``processes`` do not fit the free memory.

    Under overcommit the kernel would kill the process instead of refusing the allocation.
    """
    needed, free = processes * count * 3 * image_size[0] * image_size[1], available_memory()
    if needed > free:
        each = f" in {processes} processes" if processes > 1 else ""
        raise DataError(
            f"{count} images of {image_size[0]}x{image_size[1]} px{each} take {needed / 1e9:.1f} GB of memory, but "
            f"{free / 1e9:.1f} GB are free. Give fewer images or a smaller image size"
        )


def decode(path: Path, image_size: tuple[int, int]) -> tuple[np.ndarray[Any, Any], PIL.Image.Image]:
    """An image as RGB (H, W, 3) uint8 of ``image_size`` (height, width) px, and the whole image in RGB.

    Turned upright by its EXIF tag; the middle is cut to the aspect of ``image_size`` and resized bilinearly with
    antialiasing. Raises ValueError with one line that says what is wrong and does not name the file.
    """
    import numpy as np
    from PIL import Image, ImageOps

    with _errors_in_one_line(path), Image.open(path, formats=IMAGE_FORMATS) as opened:
        if opened.mode.startswith(("I", "F")):
            raise _RefusedError(f"has more than 8 bits a channel (mode {opened.mode}): save it with 8 bits")
        pixels = _count_pixels(opened)
        with _ONE_AT_A_TIME if pixels > _LARGE_PIXELS else contextlib.nullcontext():
            whole = ImageOps.exif_transpose(opened).convert("RGB")
            fitted = ImageOps.fit(whole, (image_size[1], image_size[0]), Image.Resampling.BILINEAR)
    return np.array(fitted), whole


def check_header(path: Path) -> None:
    """Raises ValueError like ``decode`` for what the first bytes of the file show."""
    from PIL import Image

    with _errors_in_one_line(path), Image.open(path, formats=IMAGE_FORMATS) as opened:
        _count_pixels(opened)


class _RefusedError(ValueError):
    """An image that is not read, and why."""


def _count_pixels(opened: PIL.Image.Image) -> int:
    """How many pixels the image claims. Raises _RefusedError for so many that they may be meant to fill the memory."""
    from PIL import Image

    pixels, most = opened.width * opened.height, Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        raise _too_large(f"{pixels:,}")
    return pixels


def _too_large(claimed: str) -> _RefusedError:
    from PIL import Image

    return _RefusedError(
        f"is too large: it claims {claimed} pixels, at most {Image.MAX_IMAGE_PIXELS:,} are read. Shrink it first"
    )


@contextlib.contextmanager
def _errors_in_one_line(path: Path) -> Iterator[None]:
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except _RefusedError:
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"(\d+) pixels", str(error))
        raise _too_large(f"{int(found[1]):,}" if found else "more") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"is not an image ({', '.join(IMAGE_FORMATS)}), or its beginning is damaged") from error
    except MemoryError as error:
        raise ValueError("is too large: there is not enough memory to decode it. Shrink it first") from error
    except Exception as error:  # a damaged file can make a decoder raise anything
        # Pillow's own text names the absolute path
        text = getattr(error, "strerror", None) or str(error).replace(str(path), path.name) or type(error).__name__
        raise ValueError(f"cannot be read, perhaps cut short or damaged: {one_line(text, 200)}") from error

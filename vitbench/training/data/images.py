"""Data sets as values: a description (without torch), images in memory, and how they get one size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitbench.core.errors import DataError
from vitbench.devices.host.memory import available_memory

if TYPE_CHECKING:
    import numpy as np
    import torch

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

#: The formats that are read, whatever the file's name. Not all of Pillow's: some run other programs (EPS).
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

#: Images that are resized at once: enough for speed, few enough for a small float copy.
_RESIZED_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """A data set as known without reading its images.

    ``spec`` is what the user wrote; ``label`` is its name in results, without a path. ``train_images`` and
    ``test_images`` are counts. ``path``: the folder that the images are read from, None for the embedded digits.
    """

    spec: str
    label: str
    num_classes: int
    class_names: tuple[str, ...]
    train_images: int
    test_images: int
    summary: str
    path: Path | None = None

    def count(self, split: Split) -> int:
        """How many images ``split`` has."""
        return self.train_images if split == "train" else self.test_images


@dataclass(frozen=True, eq=False)
class ImageSet:
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

    @property
    def num_classes(self) -> int:
        """How many classes the data set has, whether or not each is among these images."""
        return len(self.class_names)


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The features of images by a frozen backbone: ``features`` (N, ...) float, ``labels`` (N,) int64, indices into
    ``class_names``.
    """

    features: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.features)

    @property
    def num_classes(self) -> int:
        """How many classes the data set has."""
        return len(self.class_names)


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
    needed, free = _needed_and_free(count, image_size)
    return 2 * needed <= free


def _needed_and_free(count: int, image_size: tuple[int, int]) -> tuple[int, int]:
    """Bytes."""
    return count * 3 * image_size[0] * image_size[1], available_memory()


def check_memory(count: int, image_size: tuple[int, int], processes: int = 1) -> None:
    """Raises DataError if ``count`` images of ``image_size`` px in each of ``processes`` do not fit the free memory.

    Under overcommit the kernel would kill the process instead of refusing the allocation.
    """
    needed, free = _needed_and_free(count, image_size)
    needed *= processes
    if needed > free:
        each = f" in {processes} processes" if processes > 1 else ""
        raise DataError(
            f"{count} images of {image_size[0]}x{image_size[1]} px{each} take {needed / 1e9:.1f} GB of memory, but "
            f"{free / 1e9:.1f} GB are free. Give fewer images or a smaller image size"
        )

"""Image folders on disk, made for a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def make_image_folder(
    root: Path,
    classes: Sequence[str] = ("cat", "dog"),
    *,
    train: int = 3,
    test: int = 2,
    size: tuple[int, int] = (10, 12),
) -> Path:
    """``root``/train/<class>/*.png and test/<class>/*.png of noise, (height, width) px; returns ``root``."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root

"""Decode one image file from elsewhere, which may be anything. Loads no torch."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.text import one_line
from vitbench.training.data.images import IMAGE_FORMATS

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

#: Images of more pixels are decoded one after the other: several at once would take gigabytes.
_LARGE_PIXELS = 20_000_000
_ONE_AT_A_TIME = threading.Lock()


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

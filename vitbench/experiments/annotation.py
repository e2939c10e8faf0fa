"""Predictions, how they are drawn on images, and the names of the files."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vitbench.core.text import printable

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    Font = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont

#: The annotated image: its width, the largest height of the image in it, in px.
_WIDTH, _HEIGHT = 480, 480
_MARGIN, _LINE = 12, 26
_INK, _PAPER, _BAR, _PALE = (20, 20, 20), (255, 255, 255), (0, 114, 178), (226, 226, 226)
#: Of a file name, in bytes: systems take 255.
_LONGEST_STEM = 150


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A class and its probability (0 to 1)."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of an image, best first.

    Args:
        image: its name for people.
        guesses: the classes.
        truth: its class, where the data set knows it.
        right: whether the likeliest class is the true one; None where the model's names are not the data set's.
        file: the annotated image's name in the output folder.
    """

    image: str
    guesses: tuple[Guess, ...]
    truth: str | None = None
    right: bool | None = None
    file: str | None = None


@dataclass
class OutputNames:
    """Names of files in ``folder`` that differ from each other and from the ``inputs``, also where a file system takes
    upper and lower case for the same.
    """

    folder: Path
    inputs: Iterable[Path] = ()
    _taken: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        folder = self.folder.resolve()
        for path in self.inputs:
            for one in (path.parent.resolve() / path.name, path.resolve()):
                if one.parent == folder:
                    self._taken.add(_folded(one.name))

    def take(self, stem: str) -> str:
        """A name for what is made of ``stem``: ``cat-predicted.png``, or ``cat-predicted-2.png`` if that is taken."""
        safe = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", stem)).strip(".")
        safe = safe.encode("utf-8")[:_LONGEST_STEM].decode("utf-8", errors="ignore") or "image"
        name, number = f"{safe}-predicted.png", 1
        while _folded(name) in self._taken:
            number += 1
            name = f"{safe}-predicted-{number}.png"
        self._taken.add(_folded(name))
        return name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def fit_image(whole: PIL.Image.Image) -> PIL.Image.Image:
    """The image at the size that it is annotated at: small ones as sharp squares, large ones smoothly."""
    from PIL.Image import Resampling

    scale = min(_WIDTH / whole.width, _HEIGHT / whole.height)
    size = max(1, round(whole.width * scale)), max(1, round(whole.height * scale))
    return whole.resize(size, Resampling.NEAREST if scale >= 2 else Resampling.LANCZOS)


def annotate(shown: PIL.Image.Image, prediction: Prediction) -> bytes:
    """A PNG: the image with its likeliest class on it, and below it a bar a class."""
    from PIL import Image, ImageDraw

    large, small = _font(20), _font(14)
    height = shown.height + 2 * _MARGIN + _LINE * len(prediction.guesses)
    strip = 34 if prediction.truth is None else 58
    top = strip if shown.height < 2 * strip else 0  # a flat image would vanish under the text
    canvas = Image.new("RGB", (_WIDTH, height + top), _PAPER)
    canvas.paste(_PALE, (0, 0, _WIDTH, shown.height + top))
    canvas.paste(shown, ((_WIDTH - shown.width) // 2, top))
    # dark enough for white letters on any image
    dark = Image.new("RGB", (_WIDTH, strip))
    canvas.paste(Image.blend(canvas.crop((0, 0, _WIDTH, strip)), dark, 0.7), (0, 0))
    draw = ImageDraw.Draw(canvas)
    best = prediction.guesses[0]
    percent = f"{100 * best.probability:.1f} %"
    room = _WIDTH - 2 * _MARGIN - draw.textlength(f" {percent}", font=large)
    draw.text((_MARGIN, 17), f"{_shortened(draw, best.name, large, room)} {percent}", _PAPER, large, anchor="lm")
    if prediction.truth is not None:
        verdict = {True: " (right)", False: " (wrong)", None: ""}[prediction.right]
        text = _shortened(draw, prediction.truth, small, _WIDTH - 2 * _MARGIN - 160)
        draw.text((_MARGIN, 44), f"true class: {text}{verdict}", _PAPER, small, anchor="lm")
    for row, guess in enumerate(prediction.guesses):
        _draw_bar(draw, shown.height + top + _MARGIN + row * _LINE, guess, small)
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    return buffer.getvalue()


def _draw_bar(draw: PIL.ImageDraw.ImageDraw, y: int, guess: Guess, font: Font) -> None:
    """One line: the name, a bar of the probability, the probability."""
    left, right = 190, _WIDTH - 80
    middle = y + _LINE / 2
    draw.text((_MARGIN, middle), _shortened(draw, guess.name, font, left - _MARGIN - 8), _INK, font, anchor="lm")
    draw.rectangle((left, y + 5, right, y + _LINE - 5), fill=_PALE)
    length = round((right - left) * guess.probability)
    if length:
        draw.rectangle((left, y + 5, left + length, y + _LINE - 5), fill=_BAR)
    draw.text((_WIDTH - _MARGIN, middle), f"{100 * guess.probability:.1f} %", _INK, font, anchor="rm")


def _shortened(draw: PIL.ImageDraw.ImageDraw, text: str, font: Font, room: float) -> str:
    """``text`` on one line of at most ``room`` px."""
    text = printable(text)
    if draw.textlength(text[:200], font=font) <= room and len(text) <= 200:
        return text
    text = text[:200]
    while text and draw.textlength(f"{text}…", font=font) > room:
        text = text[:-1]
    return f"{text}…"


def _font(size: int) -> Font:
    """DejaVu Sans, which comes with matplotlib; Pillow's own where it cannot be drawn."""
    import matplotlib
    from PIL import ImageFont

    try:
        return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
    except OSError:
        return ImageFont.load_default(size)

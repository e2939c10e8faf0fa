"""Predict the classes of images: files and images of data sets in, the likeliest classes out, drawn on them if asked.

Images are decoded one by one and go through the model in batches; one that cannot be read does not stop the others.
Importing this module loads no torch, its functions do.
"""

from __future__ import annotations

import dataclasses
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import DataError, UsageError, VitbenchError
from vitbench.core.run_folder import write_atomically
from vitbench.core.text import printable
from vitbench.experiments.images import ImageSource, images_of_data, images_of_files
from vitbench.experiments.open_model import DataRequest, ModelRequest, TrainedModel, explain_oom, open_trained

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont
    import torch

    Font = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont

#: Images that go through the model at once.
BATCH_SIZE = 32
TOP = 5
#: The annotated image: its width, the largest height of the image in it, in px.
_WIDTH, _HEIGHT = 480, 480
_MARGIN, _LINE = 12, 26
_INK, _PAPER, _BAR, _PALE = (20, 20, 20), (255, 255, 255), (0, 114, 178), (226, 226, 226)
#: Of a file name, in bytes: systems take 255.
_LONGEST_STEM = 150
_NOT_FINITE = "the weights are damaged, or their training diverged"


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A class and its probability (0 to 1)."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of an image, best first; ``truth`` is its class where the data set knows it, and ``right``
    whether that is the likeliest one (None where the model's names are not the data set's); ``file``: the annotated
    image's name in the output folder.
    """

    image: str
    guesses: tuple[Guess, ...]
    truth: str | None = None
    right: bool | None = None
    file: str | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An image without a prediction, and why, in one line; ``of_model``: the model failed, not the image."""

    image: str
    error: str
    of_model: bool = False


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What was found; ``stopped_by`` is what ended the work early (a full disk, no memory, Ctrl-C)."""

    trained: TrainedModel
    results: tuple[Prediction | Failure, ...]
    stopped_by: VitbenchError | KeyboardInterrupt | None = None

    @property
    def predicted(self) -> int:
        """How many images have a prediction."""
        return sum(isinstance(one, Prediction) for one in self.results)

    @property
    def exit_code(self) -> int:
        """0; 1 if some images have no prediction, 2 if none could be read."""
        if self.predicted == len(self.results):
            return 0
        of_model = any(isinstance(one, Failure) and one.of_model for one in self.results)
        return 1 if self.predicted or of_model else 2


def predict_images(
    request: ModelRequest,
    paths: Sequence[Path],
    data: DataRequest | None = None,
    indices: Sequence[int] = (),
    *,
    class_names: Sequence[str] | None = None,
    top: int = TOP,
    out: Path | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Predictions:
    """The ``top`` likeliest classes of the images ``paths``, and of those of ``data`` at ``indices``.

    ``class_names``: one a class. With ``out`` an annotated PNG of each goes into that folder, which must exist.
    ``warn`` receives each image that cannot be read, and what was not loaded as the weights have it. Raises UsageError
    before anything is predicted; what ends the work later is in the result, so that no prediction is lost.
    """
    sources, info = images_of_files(paths), None
    if data is not None:
        found, info = images_of_data(data, indices)
        sources += found
    if request.num_classes == 0:
        raise UsageError("--num-classes 0 builds a model without a head, which predicts no classes. Leave it out")
    trained = open_trained(request, class_names=class_names)
    for note in trained.notes:
        warn(f"Warning: the weights: {note}")
    if info is not None and trained.class_names is None and trained.num_classes == info.num_classes:
        trained = dataclasses.replace(trained, class_names=info.class_names)
    results: list[Prediction | Failure] = []
    try:
        for one in each_prediction(trained, sources, top=top, out=out, warn=lambda text: warn(f"Error: {text}")):
            results.append(one)
    except (VitbenchError, KeyboardInterrupt) as error:
        return Predictions(trained=trained, results=tuple(results), stopped_by=error)
    return Predictions(trained=trained, results=tuple(results))


def each_prediction(
    trained: TrainedModel,
    sources: Sequence[ImageSource],
    *,
    top: int = TOP,
    out: Path | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[Prediction | Failure]:
    """The ``top`` likeliest classes of each source (all, if there are fewer), in the order of ``sources``, batch by
    batch.

    Raises OutOfMemory; what a write into ``out`` raises comes at the end, after all predictions.
    """
    writer = _Writer(out, sources) if out else None
    batch: list[_Decoded | Failure] = []
    for source in sources:
        try:
            pixels, whole = source.read(trained.image_size)
        except DataError as error:
            warn(str(error))
            batch.append(Failure(image=source.name, error=str(error)))
            continue
        # scaled down: a batch of whole photographs would take gigabytes
        batch.append(_Decoded(source, pixels, fit_image(whole) if out else None))
        if sum(isinstance(one, _Decoded) for one in batch) == BATCH_SIZE:
            yield from _predict_batch(trained, batch, top, writer, warn)
            batch = []
    yield from _predict_batch(trained, batch, top, writer, warn)
    if writer and writer.error:
        raise writer.error


@dataclass(frozen=True)
class _Decoded:
    source: ImageSource
    pixels: torch.Tensor
    shown: PIL.Image.Image | None


class _Writer:
    """Write annotated images until a write fails; ``error`` is then why."""

    def __init__(self, folder: Path, sources: Sequence[ImageSource]) -> None:
        self.folder = folder
        self.names = OutputNames(folder, [source.path for source in sources if source.path is not None])
        self.error: VitbenchError | None = None

    def write(self, image: _Decoded, prediction: Prediction) -> Prediction:
        """The prediction, with the name of the file if it was written."""
        assert image.shown is not None
        if self.error:
            return prediction
        name = self.names.take(image.source.stem)
        try:
            write_atomically(self.folder / name, annotate(image.shown, prediction))
        except VitbenchError as error:
            self.error = error
            return prediction
        return dataclasses.replace(prediction, file=name)


def _predict_batch(
    trained: TrainedModel,
    batch: Sequence[_Decoded | Failure],
    top: int,
    writer: _Writer | None,
    warn: Callable[[str], None],
) -> Iterator[Prediction | Failure]:
    decoded = [one for one in batch if isinstance(one, _Decoded)]
    answers = _guess(trained, [one.pixels for one in decoded], top) if decoded else iter(())
    for one in batch:
        if isinstance(one, Failure):
            yield one
            continue
        name, guesses = one.source.name, next(answers)
        if not guesses:
            error = f"The outputs of {trained.name} are NaN or infinite: {_NOT_FINITE}"
            warn(f"{error} (image {printable(name)})")
            yield Failure(image=name, error=error, of_model=True)
            continue
        truth = one.source.truth
        comparable = truth is not None and truth in (trained.class_names or ())
        right = truth == guesses[0].name if comparable else None
        prediction = Prediction(image=name, guesses=guesses, truth=truth, right=right)
        yield writer.write(one, prediction) if writer else prediction


def _guess(trained: TrainedModel, pixels: Sequence[torch.Tensor], top: int) -> Iterator[tuple[Guess, ...]]:
    """The likeliest classes of images (3, H, W) uint8, an empty tuple where an output is not finite. Of equal
    probabilities the lower class comes first.
    """
    import torch

    from vitbench.models.outputs import input_dtype, mean_logits
    from vitbench.training.augmentation.augment import normalise

    device = trained.device
    with explain_oom(device, "Give a smaller --image-size, or --device cpu"), torch.inference_mode():
        images = torch.stack(list(pixels)).to(device.torch_device)
        inputs = normalise(images, input_dtype(trained.module), trained.mean, trained.std)
        # some devices have no double precision
        logits = mean_logits(trained.module(inputs)).cpu().double()
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :top]
    finite = torch.isfinite(logits).all(dim=1)
    for probabilities, classes, known in zip(logits.softmax(dim=1).tolist(), order.tolist(), finite, strict=True):
        guesses = (Guess(index=k, name=trained.class_name(k), probability=probabilities[k]) for k in classes)
        yield tuple(guesses) if known else ()


def read_class_names(path: Path) -> list[str]:
    """The names in a text file (UTF-8), one a line, in the order of the classes. Raises DataError."""
    shown = printable(str(path))
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{shown} is not a text in UTF-8: give class names, one a line") from error
    except OSError as error:
        raise DataError(f"Class names {shown} cannot be read: {error.strerror}. Give one name a line") from error
    if not all(names):
        raise DataError(f"Class names {shown}: line {names.index('') + 1} is empty. Give one name a line")
    return names


# --- files


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


# --- output


def predictions_to_text(results: Sequence[Prediction | Failure]) -> str:
    """A table: each image and its likeliest classes; the true one where it is known. Empty if there is nothing."""
    from tabulate import tabulate

    found = [one for one in results if isinstance(one, Prediction)]
    if not found:
        return ""
    truths = any(one.truth is not None for one in found)
    lines = []
    for one in found:
        first = [printable(one.image), *([printable(one.truth or "")] if truths else [])]
        for guess in one.guesses:
            lines.append([*first, printable(guess.name), f"{100 * guess.probability:.1f} %"])
            first = [""] * len(first)
    headings = ["image", *(["true class"] if truths else []), "class", "probability"]
    align = ("left",) * (len(headings) - 1) + ("right",)
    return tabulate(lines, headings, tablefmt="simple", colalign=align, disable_numparse=True)


def predictions_to_dict(trained: TrainedModel, results: Sequence[Prediction | Failure]) -> dict[str, Any]:
    """What --json prints: the model, and an object an image in the order given."""
    pictures: list[dict[str, Any]] = []
    for one in results:
        if isinstance(one, Failure):
            pictures.append({"picture": one.image, "error": one.error})
            continue
        classes = [{"index": g.index, "class": g.name, "probability": g.probability} for g in one.guesses]
        pictures.append({"picture": one.image, "classes": classes})
        if one.truth is not None:
            pictures[-1] |= {"true_class": one.truth, "right": one.right}
        if one.file is not None:
            pictures[-1]["file"] = one.file
    return {
        "model": trained.name,
        "weights": {"text": trained.weights, "digest": trained.digest, "notes": list(trained.notes)},
        "image_size": list(trained.image_size),
        "num_classes": trained.num_classes,
        "device": trained.device.name,
        "pictures": pictures,
    }

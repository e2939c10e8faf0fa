"""Say what is in pictures: files and pictures of data sets in, the likeliest classes out, drawn on them if asked.

Pictures are decoded one by one and given to the model in batches; one that cannot be read does not stop the others.
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
from vitbench.experiments.open_model import TrainedModel, explain_oom, read_image
from vitbench.training.data.datasets import describe_data
from vitbench.training.data.images import SPLITS, DataInfo, Split

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont
    import torch

    Font = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont

_NOT_FINITE = "the weights are damaged, or their training diverged"
#: Pictures that go through the model at once.
BATCH_SIZE = 32
TOP = 5

#: The annotated picture: its width, the largest height of the picture in it, in px.
_WIDTH, _HEIGHT = 480, 480
_MARGIN, _LINE = 12, 26
_INK, _PAPER, _BAR, _PALE = (20, 20, 20), (255, 255, 255), (0, 114, 178), (226, 226, 226)
#: What a file of class names may hold: a checkpoint given by mistake is not to be printed.
_LARGEST_CLASSES_FILE = 10_000_000
#: Of a file name, in bytes: systems take 255.
_LONGEST_STEM = 150
#: What Windows takes for a device, whatever follows after the dot.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\.", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A class and its probability (0 to 1)."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of a picture, best first; ``truth`` is its class where the data set knows it, and ``right``
    whether that is the likeliest, None where the model's names are not those of the data set.

    ``picture`` is its name for people, ``file`` the annotated picture's name in the output folder.
    """

    picture: str
    guesses: tuple[Guess, ...]
    truth: str | None = None
    right: bool | None = None
    file: str | None = None


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A picture that nothing could be said of, and why, in one line; ``of_model``: the model's fault, not its own."""

    picture: str
    error: str
    of_model: bool = False


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a picture comes from: its name for people, the ``stem`` of what is written for it, how to read it.

    ``read`` takes (height, width) px and returns what ``read_image`` does. ``path``: the file, if it is one.
    """

    name: str
    stem: str
    read: Callable[[tuple[int, int]], tuple[torch.Tensor, PIL.Image.Image]]
    truth: str | None = None
    path: Path | None = None


def files_as_sources(paths: Iterable[Path]) -> list[Source]:
    """One source a path, whatever is there: what is wrong with it shows when it is read."""
    return [Source(name=str(path), stem=path.stem, read=_reader(path), path=path) for path in paths]


def data_as_sources(
    data: str,
    indices: Sequence[int],
    *,
    split: str = "test",
    data_dir: Path | None = None,
    download: bool = False,
) -> tuple[list[Source], DataInfo]:
    """The pictures of a split at ``indices``, from 0, in the order of the data set's files; and the data set.

    Raises UsageError for a split or index that there is not, and what ``describe_data`` raises.
    """
    info = describe_data(data, root=data_dir, download=download)
    if split not in SPLITS:
        raise UsageError(f"Unknown split {split!r}: give {' or '.join(SPLITS)}")
    chosen: Split = "train" if split == "train" else "test"
    count = info.count(chosen)
    for index in indices:
        if not 0 <= index < count:
            raise UsageError(f"{info.label} has {count} {split} pictures: --index {index} is none of 0 to {count - 1}")
    from vitbench.training.data.digits import NAME, read_digits
    from vitbench.training.data.downloads import DOWNLOADS, read_download
    from vitbench.training.data.folder import read_listing

    if info.spec != NAME and info.spec not in DOWNLOADS:
        listing = read_listing(info)
        files = [listing.files[chosen][index] for index in indices]
        return [
            Source(
                name=f"{listing.root.name}/{file.relative}",
                stem=Path(file.relative).stem,
                read=_reader(listing.root / file.relative),
                truth=info.class_names[file.label],
                path=listing.root / file.relative,
            )
            for file in files
        ], info
    pixels, labels = read_digits(chosen) if info.spec == NAME else read_download(info, chosen, download=download)
    return [
        Source(
            name=f"{info.label} {chosen} {index}",
            stem=f"{info.label}-{chosen}-{index}",
            read=_array_reader(pixels[index]),
            truth=info.class_names[labels[index]],
        )
        for index in indices
    ], info


def name_classes(trained: TrainedModel, info: DataInfo) -> TrainedModel:
    """The model with the data set's names if nobody knows its own and there are as many."""
    if trained.class_names is not None or trained.num_classes != info.num_classes:
        return trained
    return dataclasses.replace(trained, class_names=info.class_names)


def predict_pictures(
    trained: TrainedModel,
    sources: Sequence[Source],
    *,
    top: int = TOP,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Prediction | Unread]:
    """A list of what ``each_prediction`` yields."""
    return list(each_prediction(trained, sources, top=top, out=out, tell=tell))


def each_prediction(
    trained: TrainedModel,
    sources: Sequence[Source],
    *,
    top: int = TOP,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[Prediction | Unread]:
    """The ``top`` likeliest classes of each source (all, if there are fewer), in the order of ``sources``, as they are
    found.

    With ``out`` an annotated PNG of each goes into that folder, which must be there. ``tell`` is told of each picture
    that cannot be read, and of one whose outputs are not finite. Raises OutOfMemory; what a write into ``out``
    raises comes at the end, after all answers, and nothing more is written.
    """
    names = OutputNames(out, [source.path for source in sources if source.path is not None]) if out else None
    waiting: list[_Read | Unread] = []
    failed: list[VitbenchError] = []

    def flush() -> Iterator[Prediction | Unread]:
        batch = [one for one in waiting if isinstance(one, _Read)]
        answers = _guess(trained, [one.pixels for one in batch], top) if batch else iter(())
        for one in waiting:
            if isinstance(one, Unread):
                yield one
                continue
            guesses = next(answers)
            if not guesses:
                error = f"The outputs of {trained.name} are NaN or infinite: {_NOT_FINITE}"
                tell(f"{error} (picture {printable(one.source.name)})")
                yield Unread(picture=one.source.name, error=error, of_model=True)
                continue
            truth = one.source.truth
            comparable = truth is not None and truth in (trained.class_names or ())
            right = truth == guesses[0].name if comparable else None
            found = Prediction(picture=one.source.name, guesses=guesses, truth=truth, right=right)
            if out and names and one.shown and not failed:
                name = names.take(one.source.stem)
                try:
                    write_atomically(out / name, annotate(one.shown, found))
                except VitbenchError as error:  # the answers are not lost with the pictures of them
                    failed.append(error)
                else:
                    found = dataclasses.replace(found, file=name)
            yield found
        waiting.clear()

    for source in sources:
        try:
            pixels, whole = source.read(trained.image_size)
        except DataError as error:
            tell(str(error))
            waiting.append(Unread(picture=source.name, error=str(error)))
            continue
        # a batch of whole photographs would take gigabytes
        waiting.append(_Read(source, pixels, fit_picture(whole) if out else None))
        if sum(isinstance(one, _Read) for one in waiting) == BATCH_SIZE:
            yield from flush()
    yield from flush()
    if failed:
        raise failed[0]


@dataclass(frozen=True)
class _Read:
    source: Source
    pixels: torch.Tensor
    shown: PIL.Image.Image | None


def _guess(trained: TrainedModel, pixels: Sequence[torch.Tensor], top: int) -> Iterator[tuple[Guess, ...]]:
    """The likeliest classes of pictures (3, H, W) uint8, none where an output is not finite. Of equal probabilities the
    lower class comes first.
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
    finite = torch.isfinite(logits).all(dim=1).tolist()
    probabilities = logits.softmax(dim=1)
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :top]
    for row, places, known in zip(probabilities, order.tolist(), finite, strict=True):
        yield tuple(
            Guess(index=place, name=trained.class_name(place), probability=float(row[place]))
            for place in (places if known else ())
        )


def read_class_names(path: Path) -> list[str]:
    """The names in a text file (UTF-8), one a line, in the order of the classes. Raises DataError."""
    shown = printable(str(path))
    if not path.is_file():
        raise DataError(f"Class names {shown} are not there, or no file: give a text with one name a line")
    try:
        if path.stat().st_size > _LARGEST_CLASSES_FILE:
            raise DataError(f"{shown} is too large for a file of class names: give one name a line")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown} is no text in UTF-8: give class names, one a line") from error
    except OSError as error:
        raise DataError(f"Class names {shown} cannot be read: {error.strerror}") from error
    names = [line.strip() for line in text.rstrip().split("\n")]
    if not all(names):
        where = f"line {names.index('') + 1} is empty" if len(names) > 1 else "the file is empty"
        raise DataError(f"Class names {shown}: {where}. Give one name a line")
    return names


def _reader(path: Path) -> Callable[[tuple[int, int]], tuple[torch.Tensor, PIL.Image.Image]]:
    return lambda image_size: read_image(path, image_size)


def _array_reader(pixels: Any) -> Callable[[tuple[int, int]], tuple[torch.Tensor, PIL.Image.Image]]:
    """Of a picture (h, w) or (h, w, 3) uint8 of a data set in memory, prepared as the whole data set is."""

    def read(image_size: tuple[int, int]) -> tuple[torch.Tensor, PIL.Image.Image]:
        from PIL import Image

        from vitbench.training.data.images import from_arrays

        return from_arrays(pixels[None], image_size)[0], Image.fromarray(pixels).convert("RGB")

    return read


# --- what is written


@dataclass
class OutputNames:
    """Names of files in a folder that differ from each other, and from the pictures that are read, also where large and
    small letters are the same.
    """

    folder: Path
    inputs: Iterable[Path] = ()
    _taken: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        folder = self.folder.resolve()
        for path in self.inputs:
            for place in (path.parent.resolve() / path.name, path.resolve()):
                if place.parent == folder:
                    self._taken.add(_folded(place.name))

    def take(self, stem: str) -> str:
        """A name for what is made of ``stem``: ``cat-predicted.png``, or ``cat-predicted-2.png`` if that is taken."""
        safe = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", stem)).strip(".")
        safe = safe.encode("utf-8")[:_LONGEST_STEM].decode("utf-8", errors="ignore") or "picture"
        if _DEVICE.match(safe):
            safe = f"_{safe}"
        name, number = f"{safe}-predicted.png", 1
        while _folded(name) in self._taken:
            number += 1
            name = f"{safe}-predicted-{number}.png"
        self._taken.add(_folded(name))
        return name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def fit_picture(whole: PIL.Image.Image) -> PIL.Image.Image:
    """The picture at the size that it is annotated at: small ones as sharp squares, large ones smoothly."""
    from PIL.Image import Resampling

    scale = min(_WIDTH / whole.width, _HEIGHT / whole.height)
    size = max(1, round(whole.width * scale)), max(1, round(whole.height * scale))
    return whole.resize(size, Resampling.NEAREST if scale >= 2 else Resampling.LANCZOS)


def annotate(shown: PIL.Image.Image, prediction: Prediction) -> bytes:
    """A PNG: the picture with its likeliest class on it, and below it a bar a class."""
    from PIL import Image, ImageDraw

    large, small = _font(20), _font(14)
    height = shown.height + 2 * _MARGIN + _LINE * len(prediction.guesses)
    strip = 34 if prediction.truth is None else 58
    top = strip if shown.height < 2 * strip else 0  # a flat picture would vanish under the text
    canvas = Image.new("RGB", (_WIDTH, height + top), _PAPER)
    canvas.paste(_PALE, (0, 0, _WIDTH, shown.height + top))
    canvas.paste(shown, ((_WIDTH - shown.width) // 2, top))
    # dark enough for white letters on any picture
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


# --- what is printed


def predictions_to_text(results: Sequence[Prediction | Unread]) -> str:
    """A table: each picture and its likeliest classes; the true one where it is known. Empty if there is nothing."""
    from tabulate import tabulate

    found = [one for one in results if isinstance(one, Prediction)]
    if not found:
        return ""
    truths = any(one.truth is not None for one in found)
    lines = []
    for one in found:
        for rank, guess in enumerate(one.guesses):
            first = [printable(one.picture), *([printable(one.truth or "")] if truths else [])]
            lines.append(
                [
                    *(first if rank == 0 else [""] * len(first)),
                    printable(guess.name),
                    f"{100 * guess.probability:.1f} %",
                ]
            )
    headings = ["picture", *(["true class"] if truths else []), "class", "probability"]
    align = ("left",) * (len(headings) - 1) + ("right",)
    return tabulate(lines, headings, tablefmt="simple", colalign=align, disable_numparse=True)


def predictions_to_dict(trained: TrainedModel, results: Sequence[Prediction | Unread]) -> dict[str, Any]:
    """What --json prints: the model, and an object a picture in the order given."""
    pictures: list[dict[str, Any]] = []
    for one in results:
        if isinstance(one, Unread):
            pictures.append({"picture": one.picture, "error": one.error})
            continue
        classes = [{"index": g.index, "class": g.name, "probability": g.probability} for g in one.guesses]
        pictures.append({"picture": one.picture, "classes": classes})
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

"""A trained model, ready for pictures: its weights on a device, what its pictures must look like, what its classes are.

What every command shares that uses a trained model. Importing this module loads no torch, its functions do.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import DataError, DeviceError, ModelFailed, Unsupported, UsageError, VitbenchError
from vitbench.core.registry import ModelCard
from vitbench.core.text import printable
from vitbench.devices import Device, canonical_device_name, find_devices, open_device
from vitbench.experiments.request import ModelRequest
from vitbench.models.normalisation import Channels, normalisation_of
from vitbench.models.tracebacks import model_places, with_places
from vitbench.training.data.images import IMAGE_FORMATS

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from vitbench.models.weights.checkpoints import CheckpointReport

_IMAGENET_CLASSES = 1000
_RANDOM_HEAD = "its head left out, a random one in its place"

__all__ = ["OutOfMemory", "TrainedModel", "explain_oom", "find_device", "open_trained", "printable", "read_image"]


class OutOfMemory(VitbenchError):  # noqa: N818  (what happened, not what is wrong with the code)
    """Memory ran out outside a measurement, where it is no result: one line with what to change."""

    cause = "out_of_memory"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with its weights on a device, and what its pictures must look like.

    Args:
        name: in the registry.
        module: on ``device``, in eval mode.
        device: where it is.
        image_size: (height, width) px.
        num_classes: of its head.
        class_names: None if nobody knows them.
        mean: of each channel, 0 to 1, as its pictures are normalised (training/augment.py's ``normalise``).
        std: the same.
        weights: what they are, for people: ``best.safetensors (0123456789abcdef)`` or ``pretrained (timm TAG)``.
        facts: what our training wrote into the checkpoint (model, image_size, num_classes, classes, data, recipe,
            seed); empty for other files.
        digest: the first 16 hexadecimal digits of the file's SHA-256; empty for published weights.
        notes: what was not loaded as it stands in the file, such as ``its head left out, a random one in its place``.
    """

    name: str
    module: torch.nn.Module
    device: Device
    image_size: tuple[int, int]
    num_classes: int
    class_names: tuple[str, ...] | None
    mean: Channels
    std: Channels
    weights: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    notes: tuple[str, ...] = ()

    def class_name(self, index: int) -> str:
        """The name of a class, ``class 3`` where nobody knows it."""
        return f"class {index}" if self.class_names is None else self.class_names[index]


def open_trained(request: ModelRequest, *, class_names: Sequence[str] | None = None) -> TrainedModel:
    """Build the model with the weights of a file, or with those that its library publishes, on the device.

    What is not given is taken from what our training wrote into the file, then from the file itself, then from the
    model's card. Images are normalised as the recipe of the training says, for other files as the card says.
    ``class_names``: one a class.

    Raises:
        UsageError: weights are missing or given twice; a model, device, size or file does not exist; the weights do
            not fit (CheckpointError); a published head would be random and ``replace_head`` is not given.
        OutOfMemory: the model does not fit the device.
    """
    _check_weights(request)
    import torch

    from vitbench.models import build_model, describe_model
    from vitbench.models.weights.claimed import resolve

    card = describe_model(request.model)
    device = find_device(request.device)
    resolved = resolve(card, request.weights, request.image_size, request.num_classes)
    size, classes = resolved.image_size, resolved.num_classes
    random_head = request.pretrained and _has_random_head(card, classes)
    if random_head and not request.replace_head:
        raise UsageError(
            f"The published weights of {request.model} have no head for {classes} classes: it would be random. Give "
            "--weights of a training, or add --replace-head if a random head will do"
        )
    with explain_oom(device, "Give a smaller model or --image-size, or --device cpu"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a head that is not loaded is the same each time
            module = build_model(request.model, image_size=size, num_classes=classes, pretrained=request.pretrained)
        if request.weights is None:
            text, digest = f"pretrained ({_publisher(card)})", ""
            notes = [_RANDOM_HEAD] if random_head else []
        else:
            report = _load(module, request, resolved.facts)
            text, digest = f"{printable(report.path)} ({report.digest})", report.digest
            notes = _notes_on(report)
        module = module.to(device.torch_device).eval()
    mean, std = normalisation_of(card, resolved.facts)
    return TrainedModel(
        name=request.model,
        module=module,
        device=device,
        image_size=size,
        num_classes=classes,
        class_names=_names(classes, class_names, resolved.facts),
        mean=mean,
        std=std,
        weights=text,
        facts=resolved.facts,
        digest=digest,
        notes=tuple(notes),
    )


def _check_weights(request: ModelRequest) -> None:
    if request.weights is None and not request.pretrained:
        raise UsageError(
            "No weights are given: add --weights PATH, or --pretrained for what timm and torchvision publish"
        )
    if request.weights is not None and request.pretrained:
        raise UsageError("--weights and --pretrained are given together: a model has one set of weights")
    if request.num_classes is not None and request.num_classes < 1:
        raise UsageError(f"--num-classes {request.num_classes} is not positive: a head needs at least one class")


def _load(module: torch.nn.Module, request: ModelRequest, facts: Mapping[str, Any]) -> CheckpointReport:
    """Load the checkpoint into ``module``. An error names the model that the file is of, where that is another."""
    from vitbench.models.weights.checkpoints import load_checkpoint

    assert request.weights is not None
    try:
        return load_checkpoint(module, request.weights, replace_head=request.replace_head)
    except DataError as error:
        trained = facts.get("model")
        if not isinstance(trained, str) or trained == request.model:
            raise
        raise DataError(f"{error}. The file says that it is of {printable(trained[:100])!r}") from error


def _notes_on(report: CheckpointReport) -> list[str]:
    notes = [_RANDOM_HEAD] if report.replaced_head else []
    if report.resampled:
        old, new = (f"{grid[0]}x{grid[1]}" for grid in report.resampled)
        notes.append(f"positions resampled from {old} to {new} patches")
    return notes


def find_device(name: str) -> Device:
    """The device of that name; ``auto`` is the first accelerator that is found, else the CPU.

    Raises UnknownNameError or DeviceError for what is no device, or is not there.
    """
    name = canonical_device_name(name)
    found = find_devices()
    if name == "auto":
        return next((device for device in map(open_device, found) if device.asynchronous), open_device(found[0]))
    if name not in found:
        raise DeviceError(f"Device {name!r} is not there. Found: {', '.join(found)}. See: vitbench list devices")
    return open_device(name)


@contextlib.contextmanager
def explain_oom(device: Device, way_out: str) -> Iterator[None]:
    """Turn memory that runs out on ``device`` inside into OutOfMemory, one line that ends with ``way_out``, an operator
    that the device lacks into Unsupported, and what the model's own code raises into ModelFailed. Everything else
    passes.
    """
    try:
        yield
    except VitbenchError:
        raise
    except Exception as error:
        failure = device.classify(error)
        detail = _first_line(failure.detail)
        if failure.status == "oom":
            raise OutOfMemory(f"Out of memory on {device.name}. {way_out}. The library says: {detail}") from error
        if failure.status == "unsupported":
            raise Unsupported(f"{device.name} cannot run this model: {detail}. Try --device cpu") from error
        if device.explain(error) is None and (places := model_places(error)):
            reason = with_places(detail.rstrip("."), places)
            raise ModelFailed(f"The model failed: {reason}. Give another --image-size, or mend the model") from error
        raise


def read_image(path: Path, image_size: tuple[int, int]) -> tuple[torch.Tensor, PIL.Image.Image]:
    """One picture as a model takes it, (3, H, W) uint8 of ``image_size`` (height, width) px, and the whole of it.

    Prepared as the pictures of an image folder are (training/folder.py): upright by its EXIF tag, its middle cut to the
    aspect, resized bilinearly with antialiasing. The whole one is upright, too, in RGB.

    Raises DataError, one line that names the file, if it is missing, a folder, no picture, cut short, has more than 8
    bits a channel, or so many pixels that it may be meant to fill the memory (Pillow's limit).
    """
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    _check_is_picture_file(path)
    shown = printable(str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF tags and the like: the picture is there all the same
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as opened:
                if opened.mode.startswith(("I", "F")):
                    raise DataError(f"{shown} has more than 8 bits a channel (mode {opened.mode}): save it with 8 bits")
                upright = ImageOps.exif_transpose(opened).convert("RGB")
            fitted = ImageOps.fit(upright, (image_size[1], image_size[0]), Image.Resampling.BILINEAR)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"(\d+) pixels", str(error))
        claims = f"{int(found[1]):,} pixels" if found else "more pixels"
        raise DataError(
            f"{shown} is too large: it claims {claims}, at most {Image.MAX_IMAGE_PIXELS:,} are read. Shrink it first"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(f"{shown} is no picture ({', '.join(IMAGE_FORMATS)}), or its beginning is damaged") from error
    except MemoryError as error:
        raise DataError(f"{shown} is too large: memory does not suffice to decode it. Shrink it first") from error
    except Exception as error:  # a damaged file can make a decoder raise anything
        reason = getattr(error, "strerror", None) or _first_line(str(error)) or type(error).__name__
        raise DataError(f"{shown} cannot be read, perhaps cut short or damaged: {printable(reason)}") from error
    # (H, W, 3) -> (3, H, W)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous(), upright


def _check_is_picture_file(path: Path) -> None:
    shown = printable(str(path))
    try:
        if path.is_dir():
            raise DataError(f"{shown} is a folder: give the pictures in it")
        if not path.exists():
            raise DataError(f"{shown} does not exist")
        if not path.is_file():
            raise DataError(f"{shown} is no regular file: give a picture")
        if path.stat().st_size == 0:
            raise DataError(f"{shown} has no content: copy or download it again")
    except DataError:
        raise
    except (OSError, ValueError) as error:  # names that no system takes
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{shown[:200]} cannot be read: {printable(reason)}") from error


def _first_line(text: str) -> str:
    line = printable((text.splitlines() or [""])[0].strip())
    return line if len(line) <= 200 else f"{line[:199]}…"


def _has_random_head(card: ModelCard, classes: int) -> bool:
    """Whether published weights leave the head random: it is for other classes, or always fresh, as in models that are
    made to be trained on.
    """
    published = card.published_classes
    return published is not None and (classes != published or card.num_classes != published)


def _publisher(card: ModelCard) -> str:
    library, colon, _ = card.name.partition(":")
    return f"{library} {card.published_weights}" if colon else card.published_weights


def _names(classes: int, given: Sequence[str] | None, facts: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes: given, of the training, ImageNet's for 1000 classes, or None."""
    if given is not None:
        if len(given) != classes:
            raise UsageError(f"{len(given)} class names are given, but the model tells {classes} classes apart")
        return tuple(given)
    told = facts.get("classes")
    if isinstance(told, list) and len(told) == classes and all(isinstance(name, str) for name in told):
        return tuple(told)
    if classes == _IMAGENET_CLASSES:
        from torchvision.models import ViT_B_16_Weights

        return tuple(ViT_B_16_Weights.DEFAULT.meta["categories"])
    return None

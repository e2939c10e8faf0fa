"""Open a trained model: its weights on a device, what its images must look like, the names of its classes.

Importing this module loads no torch, its functions do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitbench.core.errors import DataError, ModelFailed, Unsupported, UsageError, VitbenchError
from vitbench.core.text import one_line, printable
from vitbench.core.validation import Flag, Positive, Whole
from vitbench.devices import Device, find_device
from vitbench.devices.failures import LIMIT
from vitbench.models.cards import Channels, ModelCard
from vitbench.models.tracebacks import model_places, with_places
from vitbench.models.weights.claimed import RANDOM_HEAD, check_no_file, normalisation_of
from vitbench.training.data.datasets import describe_data
from vitbench.training.data.images import SPLITS, DataInfo, Split

if TYPE_CHECKING:
    import torch

    from vitbench.models.weights.checkpoints import CheckpointReport

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A model with weights, as the user names it: those of the checkpoint ``weights``, or the ``pretrained`` ones that
    its library publishes.

    ``entry``: which weights of a file that has several. ``replace_head`` leaves out a head of other classes; a random
    one, the same each time, takes its place. ``grid``: rows and columns of the patches in the file, ``4x16``; None is
    as the file says, else a square. ``device``: ``auto`` is the first accelerator found, else the CPU. ``image_size``
    (``224`` or ``231x240`` px) and ``num_classes``: None takes those of the weights, else the model's own.
    """

    model: str
    weights: str | None = None
    entry: str | None = None
    pretrained: Flag = False
    replace_head: Flag = False
    grid: str | None = None
    device: str = "auto"
    image_size: str | Positive | None = None
    num_classes: Whole | None = None


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """A split of a data set, as the user names it; the arguments are those of ``describe_data``."""

    data: str
    data_dir: Path | None = None
    download: bool = False
    split: str = "test"

    def describe(self) -> tuple[DataInfo, Split]:
        """The data set and the split. Raises UsageError, DataError."""
        for split in SPLITS:
            if self.split == split:
                return describe_data(self.data, root=self.data_dir, download=self.download), split
        raise UsageError(f"Unknown split {self.split!r}: give {' or '.join(SPLITS)}")


class OutOfMemory(VitbenchError):  # noqa: N818  (what happened, not what is wrong with the code)
    """Memory ran out outside a measurement, where it is not a result: one line with what to change."""

    cause = "out_of_memory"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with its weights on a device, and what its images must look like.

    ``module`` is on ``device``, in eval mode; ``image_size`` is (height, width) px; ``class_names`` is None if they are
    unknown; ``mean`` and ``std`` normalise each channel (0 to 1). ``weights`` is for people: ``best.safetensors
    (0123456789abcdef)`` or ``pretrained (timm TAG)``; ``digest``: the first 16 hex digits of the file's SHA-256.
    ``facts`` is what our training wrote into the checkpoint (model, image_size, num_classes, classes, data, recipe,
    seed), empty for other files; ``notes``: what was not loaded as the file has it.
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
        """The name of a class; ``class 3`` if it is unknown."""
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
    resolved = resolve(card, request.weights, request.image_size, request.num_classes, entry=request.entry)
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
            library, colon, _ = card.name.partition(":")
            text, digest = f"pretrained ({f'{library} ' if colon else ''}{card.published_weights})", ""
            notes = [RANDOM_HEAD] if random_head else []
        else:
            report = _load(module, request, resolved.facts)
            text, digest = f"{printable(report.path)} ({report.digest})", report.digest
            notes = list(report.notes)
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
    if request.weights is None:
        check_no_file(request.entry, request.grid)
    if request.weights is not None and request.pretrained:
        raise UsageError("--weights and --pretrained are given together: a model has one set of weights")
    if request.num_classes is not None and request.num_classes < 0:
        raise UsageError(
            f"--num-classes {request.num_classes} is negative. Give the classes, or 0 for a model without a head"
        )


def _load(module: torch.nn.Module, request: ModelRequest, facts: Mapping[str, Any]) -> CheckpointReport:
    """Load the checkpoint into ``module``. An error names the model that the file is of, where that is another."""
    from vitbench.models.weights.checkpoints import load_checkpoint

    assert request.weights is not None
    try:
        return load_checkpoint(
            module,
            request.weights,
            replace_head=request.replace_head,
            entry=request.entry,
            grid=request.grid,
        )
    except DataError as error:
        trained = facts.get("model")
        if not isinstance(trained, str) or trained == request.model:
            raise
        raise DataError(f"{error}. The file says that it is of {printable(trained[:100])!r}") from error


@contextlib.contextmanager
def explain_oom(device: Device, way_out: str) -> Iterator[None]:
    """Inside, failures of the model become one line: OutOfMemory, with ``way_out``; Unsupported for an operator that
    the device lacks; ModelFailed for what the model's own code raises. Other exceptions pass.
    """
    try:
        yield
    except VitbenchError:
        raise
    except Exception as error:
        failure = device.classify(error)
        detail = one_line((failure.detail.splitlines() or [""])[0].strip(), 200)
        if failure.status == "oom":
            raise OutOfMemory(f"Out of memory on {device.name}. {way_out}. The library says: {detail}") from error
        if failure.status == "unsupported" and failure.cause != LIMIT:
            raise Unsupported(f"{device.name} cannot run this model: {detail}. Try --device cpu") from error
        if (device.explain(error) is None or failure.cause == LIMIT) and (places := model_places(error)):
            reason = with_places(detail.rstrip("."), places)
            raise ModelFailed(f"The model failed: {reason}. Give another --image-size, or mend the model") from error
        raise


def _has_random_head(card: ModelCard, classes: int) -> bool:
    """Whether published weights leave the head random: it has other classes, or the model always gets a new one."""
    published = card.published_classes
    return published is not None and classes != 0 and (classes != published or card.num_classes != published)


def _names(classes: int, given: Sequence[str] | None, facts: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes: those given, those of the training, ImageNet's for 1000 classes, or None."""
    if given is not None:
        if len(given) != classes:
            raise UsageError(f"{len(given)} class names are given, but the model has {classes} classes")
        return tuple(given)
    trained = facts.get("classes")
    if isinstance(trained, list) and len(trained) == classes and all(isinstance(name, str) for name in trained):
        return tuple(trained)
    if classes == _IMAGENET_CLASSES:
        from torchvision.models import ViT_B_16_Weights

        return tuple(ViT_B_16_Weights.DEFAULT.meta["categories"])
    return None

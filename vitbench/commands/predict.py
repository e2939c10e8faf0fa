"""``vitbench predict``: what a trained model sees in pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitbench.commands.options import (
    AllowImport,
    Download,
    ImageSizeOfWeights,
    JsonObject,
    Model,
    Pretrained,
    ReplaceHead,
    WeightsOfModel,
)
from vitbench.core.errors import UsageError

EPILOG = (
    "Examples:  vitbench predict vit_layer6_32 --weights best.safetensors cat.jpg dog.jpg   |   "
    "vitbench predict torchvision:vit_b_16 --pretrained cat.jpg --out predicted   |   "
    "vitbench predict vit_layer6_32 --weights best.safetensors --data cifar10 --data-dir data --index 5,6,7"
)


def predict(
    model: Model,
    images: Annotated[list[Path] | None, typer.Argument(help="Pictures; or --data NAME --index N, or both.")] = None,
    weights: WeightsOfModel = None,
    pretrained: Pretrained = False,
    replace_head: ReplaceHead = False,
    data: Annotated[
        str | None, typer.Option(help="Pictures of digits, cifar10, cifar100, fashion-mnist or a picture folder.")
    ] = None,
    index: Annotated[
        list[str] | None, typer.Option(help="With --data: which pictures, from 0; commas, or again for more.")
    ] = None,
    split: Annotated[str, typer.Option(help="With --data: test or train.")] = "test",
    data_dir: Annotated[
        Path | None, typer.Option(help="Where cifar10, cifar100 and fashion-mnist are (or go, with --download).")
    ] = None,
    download: Download = False,
    top: Annotated[int, typer.Option(min=1, help="How many classes of each picture.")] = 5,
    classes: Annotated[
        Path | None, typer.Option(help="A text file of the classes' names, one a line. [default: those of the weights]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write each picture with its classes drawn on it into this folder.")
    ] = None,
    image_size: ImageSizeOfWeights = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes of the head. [default: those of the weights]")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto (an accelerator if there is one).")
    ] = "auto",
    allow_import: AllowImport = False,
    json: JsonObject = False,
) -> int:
    """Say what is in pictures: the likeliest classes and their probabilities, drawn on the pictures with --out.

    Exit code 1 if nothing could be said of some pictures, 2 if none could be read.
    """
    import sys

    chosen = _indices(index)
    if not images and data is None:
        raise UsageError("There is nothing to predict: give the paths of images, or --data NAME --index N")
    if (data is None) != (not chosen):
        raise UsageError("--data NAME and --index N go together: the data set, and which of its images, from 0")
    if data is None and (data_dir is not None or download):
        raise UsageError("--data-dir and --download go with --data NAME --index N: images are given as their paths")
    if allow_import:
        from vitbench.models.imported import allow_imports

        sys.path.insert(0, "")  # builders of one's own are found from the current folder
        allow_imports()
    from vitbench.core.text import one_line
    from vitbench.experiments import prediction
    from vitbench.experiments.request import DataRequest, ModelRequest
    from vitbench.reports.evaluation import make_folder

    if out is not None:
        make_folder(out)  # before the work: a folder that cannot be written is an error at once
    found = prediction.predict_images(
        ModelRequest(
            model=model,
            weights=weights,
            pretrained=pretrained,
            replace_head=replace_head,
            device=device,
            image_size=image_size,
            num_classes=num_classes,
        ),
        images or [],
        DataRequest(data=data, data_dir=data_dir, download=download, split=split) if data is not None else None,
        chosen,
        class_names=prediction.read_class_names(classes) if classes is not None else None,
        top=top,
        out=out,
        warn=lambda text: print(one_line(text), file=sys.stderr),
    )
    if json:
        import json as encoder

        print(encoder.dumps(prediction.predictions_to_dict(found.trained, found.results), indent=2, allow_nan=False))
    elif text := prediction.predictions_to_text(found.results):
        print(text)
    if isinstance(found.stopped_by, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        return 130
    if found.stopped_by is not None:
        raise found.stopped_by
    if out is not None and found.predicted:
        print(f"Wrote {found.predicted} image{'s' if found.predicted != 1 else ''} into {out}", file=sys.stderr)
    return found.exit_code


def _indices(values: list[str] | None) -> list[int]:
    """``["5,6", "7"]`` -> [5, 6, 7]. Raises UsageError for what is no whole number."""
    found = []
    for word in (word.strip() for value in values or [] for word in value.split(",")):
        if not (word.isascii() and word.isdigit()):
            raise UsageError(f"Option --index: {word!r} is not a whole number from 0")
        found.append(int(word))
    return found

"""``vitbench predict``: the likeliest classes of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option

from vitbench.commands import options
from vitbench.commands.output import note, print_json
from vitbench.core.errors import UsageError

EXAMPLES = """
vitbench predict vit_layer6_32 --weights best.safetensors cat.jpg dog.jpg
vitbench predict torchvision:vit_b_16 --pretrained cat.jpg --out predicted
vitbench predict vit_layer6_32 --weights best.safetensors --data cifar10 --data-dir data --index 5,6,7
"""


def predict(
    context: Context,
    model: options.Model,
    images: Annotated[list[Path] | None, Argument(help="Image files; or --data NAME --index N, or both.")] = None,
    weights: options.Weights = None,
    entry: options.Entry = None,
    pretrained: options.Pretrained = False,
    replace_head: options.ReplaceHead = False,
    grid: options.Grid = None,
    data: options.OptionalData = None,
    index: Annotated[
        list[str] | None, Option(metavar="N,...", help="With --data: which images, from 0. Repeatable.")
    ] = None,
    split: options.Split = "test",
    data_dir: options.DataDir = None,
    download: options.Download = False,
    top: Annotated[int, Option(metavar="N", min=1, help="How many classes of each image.")] = 5,
    classes: Annotated[Path | None, Option(metavar="FILE", help="Names of the classes, one on each line.")] = None,
    out: Annotated[Path | None, Option(metavar="DIR", help="Write the images with their classes drawn on.")] = None,
    image_size: options.ImageSize = None,
    num_classes: options.NumClasses = None,
    device: options.Device = "auto",
    allow_import: options.AllowImport = False,
    json: options.JsonObject = False,
) -> int:
    """Classify images, and draw the likeliest classes on them.

    Exit codes: 0 done, 1 some images have no answer, 2 no image could be read.
    """
    chosen = _indices(index)
    if not images and data is None:
        raise UsageError("There is nothing to predict: give the paths of images, or --data NAME --index N")
    if (data is None) != (not chosen):
        raise UsageError("--data NAME and --index N go together: the data set, and which of its images, from 0")
    if data is None and (data_dir is not None or download):
        raise UsageError("--data-dir and --download go with --data NAME --index N: images are given as their paths")
    if allow_import:
        options.allow_imports()
    from vitbench.experiments import prediction
    from vitbench.experiments.open_model import DataRequest, ModelRequest
    from vitbench.reports.files import make_folder

    if out is not None:
        make_folder(out)  # before the work: a folder that cannot be written is an error at once
    request = ModelRequest(**options.given(context, *ModelRequest.__dataclass_fields__))
    source = DataRequest(data=data, data_dir=data_dir, download=download, split=split) if data is not None else None
    names = prediction.read_class_names(classes) if classes is not None else None
    found = prediction.predict_images(
        request, images or [], source, chosen, class_names=names, top=top, out=out, warn=note
    )
    if json:
        print_json(prediction.predictions_to_dict(found.trained, found.results))
    elif text := prediction.predictions_to_text(found.results):
        print(text)
    if found.stopped_by is not None:
        raise found.stopped_by
    if out is not None and found.predicted:
        note(f"Wrote {found.predicted} image{'s' if found.predicted != 1 else ''} into {out}")
    return found.exit_code


def _indices(values: list[str] | None) -> list[int]:
    """``["5,6", "7"]`` -> [5, 6, 7]. Raises UsageError for anything but whole numbers."""
    found = []
    for word in (word.strip() for value in values or [] for word in value.split(",")):
        if not (word.isascii() and word.isdigit()):
            raise UsageError(f"Option --index: {word!r} is not a whole number from 0")
        found.append(int(word))
    return found

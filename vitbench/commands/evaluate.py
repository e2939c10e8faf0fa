"""``vitbench evaluate``: accuracy, loss, precision, recall, F1, confusions, calibration of a trained model."""

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
    WeightsOfModel,
)

EPILOG = (
    "Examples:  vitbench evaluate vit_layer6_32 --weights best.safetensors --data cifar10 --data-dir data   |   "
    "vitbench evaluate vit_basic_tutorial --weights best.safetensors --data digits --out evaluation   |   "
    "vitbench evaluate timm:vit_tiny_patch16_224 --pretrained --data pictures/ --json"
)


def evaluate(
    model: Model,
    data: Annotated[str, typer.Option(help="Test on: digits, cifar10, cifar100, fashion-mnist, or a picture folder.")],
    weights: WeightsOfModel = None,
    pretrained: Pretrained = False,
    replace_head: Annotated[
        bool, typer.Option("--replace-head", help="Leave out a head of other classes: a random one is tested.")
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where cifar10, cifar100 and fashion-mnist are (or go, with --download).")
    ] = None,
    download: Download = False,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    test_images: Annotated[
        int | None, typer.Option(min=1, help="Test on so many pictures, stratified, the same each time. [default: all]")
    ] = None,
    image_size: ImageSizeOfWeights = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto (an accelerator if there is one).")
    ] = "auto",
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision (autocast).")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 128,
    bins: Annotated[int, typer.Option(min=1, help="Bins of the calibration error.")] = 15,
    out: Annotated[
        Path | None, typer.Option(help="Write evaluation.json, evaluation.md and two pictures into this folder.")
    ] = None,
    allow_import: AllowImport = False,
    json: JsonObject = False,
) -> int:
    """Test a trained model: accuracy, loss, precision, recall, F1, confusions, calibration, throughput."""
    import sys

    if allow_import:
        from vitbench.models.imported import allow_imports

        sys.path.insert(0, "")  # builders of one's own are found from the current folder
        allow_imports()
    from vitbench.core.text import one_line
    from vitbench.experiments.evaluation import evaluate_model
    from vitbench.reports.evaluation import evaluation_text, make_folder, write_evaluation

    if out is not None:
        make_folder(out)  # first: what cannot be written is told before the work
    result = evaluate_model(
        model,
        weights=weights,
        pretrained=pretrained,
        replace_head=replace_head,
        data=data,
        data_dir=data_dir,
        download=download,
        split=split,
        test_images=test_images,
        image_size=image_size,
        device=device,
        amp=amp,
        batch_size=batch_size,
        bins=bins,
        note=lambda text: print(one_line(text), file=sys.stderr),
    )
    if json:
        import json as encoder

        text = encoder.dumps(result, indent=2, allow_nan=False)
    else:
        text = evaluation_text(result)
    unprinted: OSError | None = None
    try:
        print(text)
        sys.stdout.flush()  # printed first: a full disk loses none of it
    except OSError as error:  # nor does an output that is full, or closed by its reader, lose the files
        unprinted = error
    for path in write_evaluation(result, out) if out is not None else []:
        print(f"Wrote {path}", file=sys.stderr)
    if unprinted is not None:
        raise unprinted
    return 0

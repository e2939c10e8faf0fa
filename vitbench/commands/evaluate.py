"""``vitbench evaluate``: accuracy, loss, F1, confusions and calibration of a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitbench.commands.options import (
    AllowImport,
    Data,
    DataDir,
    Device,
    Download,
    ImageSize,
    JsonObject,
    Model,
    Pretrained,
    ReplaceHead,
    Split,
    TestImages,
    Weights,
    allow_imports,
)
from vitbench.commands.output import note, print_json

EXAMPLES = """
vitbench evaluate vit_layer6_32 --weights best.safetensors --data cifar10 --data-dir data
vitbench evaluate vit_basic_tutorial --weights best.safetensors --data digits --out evaluation
vitbench evaluate timm:vit_tiny_patch16_224 --pretrained --data images/ --json
"""


def evaluate(
    model: Model,
    data: Data,
    weights: Weights = None,
    pretrained: Pretrained = False,
    replace_head: ReplaceHead = False,
    data_dir: DataDir = None,
    download: Download = False,
    split: Split = "test",
    test_images: TestImages = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision (autocast).")] = False,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images in a batch.")] = 128,
    bins: Annotated[int, typer.Option(metavar="N", min=1, help="Bins of the calibration error.")] = 15,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write evaluation.json, evaluation.md and two plots there.")
    ] = None,
    allow_import: AllowImport = False,
    json: JsonObject = False,
) -> int:
    """Test a trained model: accuracy, loss, F1, confusions, calibration.

    Also precision, recall and throughput. With --replace-head a random head is tested.
    """
    if allow_import:
        allow_imports()
    from vitbench.experiments.evaluation import evaluate_model
    from vitbench.reports.evaluation import evaluation_text, make_folder, write_evaluation

    if out is not None:
        make_folder(out)  # before the work, so that an error comes at once
    result = evaluate_model(
        model, weights=weights, pretrained=pretrained, replace_head=replace_head,
        data=data, data_dir=data_dir, download=download, split=split, test_images=test_images,
        image_size=image_size, device=device, amp=amp, batch_size=batch_size, bins=bins, note=note,
    )  # fmt: skip
    unprinted: OSError | None = None
    try:
        if json:
            print_json(result)
        else:
            print(evaluation_text(result))
        sys.stdout.flush()  # first, so that a full disk loses none of it
    except OSError as error:  # the files are written although stdout is full or closed
        unprinted = error
    for path in write_evaluation(result, out) if out is not None else []:
        note(f"Wrote {path}")
    if unprinted is not None:
        raise unprinted
    return 0

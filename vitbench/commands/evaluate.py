"""``vitbench evaluate``: accuracy, loss, F1, confusions and calibration of a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from typer import Option

from vitbench.commands import options
from vitbench.commands.output import note, print_json

EXAMPLES = """
vitbench evaluate vit_layer6_32 --weights best.safetensors --data cifar10 --data-dir data
vitbench evaluate vit_basic_tutorial --weights best.safetensors --data digits --out evaluation
vitbench evaluate timm:vit_tiny_patch16_224 --pretrained --data images/ --json
"""


def evaluate(
    model: options.Model,
    data: options.Data,
    weights: options.Weights = None,
    entry: options.Entry = None,
    pretrained: options.Pretrained = False,
    replace_head: options.ReplaceHead = False,
    grid: options.Grid = None,
    data_dir: options.DataDir = None,
    download: options.Download = False,
    split: options.Split = "test",
    test_images: options.TestImages = None,
    image_size: options.ImageSize = None,
    device: options.Device = "auto",
    amp: Annotated[bool, Option("--amp", help="Mixed precision (autocast).")] = False,
    batch_size: Annotated[int, Option(metavar="N", min=1, help="Images in a batch.")] = 128,
    bins: Annotated[int, Option(metavar="N", min=1, help="Bins of the calibration error.")] = 15,
    out: Annotated[Path | None, Option(metavar="DIR", help="Write a report and two plots.")] = None,
    allow_import: options.AllowImport = False,
    json: options.JsonObject = False,
) -> int:
    """Test a trained model: accuracy, loss, F1, confusions, calibration.

    Also precision, recall and throughput. With --replace-head a random head is tested.
    """
    if allow_import:
        options.allow_imports()
    from vitbench.experiments.evaluation import evaluate_model
    from vitbench.reports.evaluation import evaluation_text, write_evaluation
    from vitbench.reports.files import make_folder

    if out is not None:
        make_folder(out)  # before the work, so that an error comes at once
    result = evaluate_model(
        model, weights=weights, entry=entry, pretrained=pretrained, replace_head=replace_head, grid=grid,
        data=data, data_dir=data_dir, download=download, split=split, test_images=test_images,
        image_size=image_size, device=device, amp=amp, batch_size=batch_size, bins=bins, note=note,
    )  # fmt: skip
    try:
        if json:
            print_json(result)
        else:
            print(evaluation_text(result))
        sys.stdout.flush()
    finally:  # the files are written although stdout is full or closed
        for path in write_evaluation(result, out) if out is not None else []:
            note(f"Wrote {path}")
    return 0

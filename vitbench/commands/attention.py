"""``vitbench attention``: what a trained model attends to, drawn over an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitbench.commands.options import (
    AllowImport,
    DataDir,
    Device,
    Download,
    ImageSize,
    JsonObject,
    Model,
    NumClasses,
    OptionalData,
    Pretrained,
    ReplaceHead,
    Weights,
    allow_imports,
)
from vitbench.commands.output import print_json
from vitbench.core.errors import UsageError

EXAMPLES = """
vitbench attention vit_layer6_32 --weights best.safetensors cat.png
vitbench attention timm:vit_tiny_patch16_224 --pretrained cat.png --layer 12 --head all
vitbench attention cifar_dynamic_vit_learned --weights best.safetensors --data digits --index 5 --gif
"""


def attention(
    model: Model,
    image: Annotated[Path | None, typer.Argument(help="An image file; or else --data NAME --index N.")] = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    replace_head: ReplaceHead = False,
    data: OptionalData = None,
    index: Annotated[
        int | None, typer.Option(metavar="N", help="With --data: which test image, from 0. [default: 0]")
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    layer: Annotated[str | None, typer.Option(metavar="N", help="A layer, from 1, or all. [default: all]")] = None,
    head: Annotated[str | None, typer.Option(metavar="N", help="A head, from 1, mean or all. [default: mean]")] = None,
    rollout: Annotated[
        bool, typer.Option("--rollout", help="Also draw the rollout, which is drawn anyway without --layer and --head.")
    ] = False,
    gif: Annotated[bool, typer.Option("--gif", help="Also write an animation through all layers.")] = False,
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="Also save all attention weights as maps.npz.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")] = Path("attention"),
    device: Device = "auto",
    image_size: ImageSize = None,
    num_classes: NumClasses = None,
    allow_import: AllowImport = False,
    json: JsonObject = False,
) -> int:
    """Draw what a trained model attends to in an image.

    Maps by layer and head, their rollout, the tokens that a pruning model keeps, an animation.
    """
    if (image is None) == (data is None):
        both = "both an image and --data" if data is not None else "neither an image nor --data"
        raise UsageError(f"There is {both}: give the path of one image, or --data NAME --index N")
    given = {f"--index {index}": index is not None, "--data-dir": data_dir is not None, "--download": download}
    if data is None and any(given.values()):
        option = next(name for name, there in given.items() if there)
        raise UsageError(f"{option} goes with --data NAME: an image is given as its path alone")
    if allow_import:
        allow_imports()
    from vitbench.experiments.attention import Choice, draw_attention, to_dict, to_text
    from vitbench.experiments.request import DataRequest, ModelRequest

    request = ModelRequest(
        model=model, weights=weights, pretrained=pretrained, replace_head=replace_head,
        device=device, image_size=image_size, num_classes=num_classes,
    )  # fmt: skip
    choice = Choice.parse(layer, head, rollout=rollout, gif=gif, save_maps=save_maps)
    source = None if data is None else DataRequest(data=data, data_dir=data_dir, download=download)
    report = draw_attention(request, choice, image=image, data=source, index=index or 0, out=out)
    if json:
        print_json(to_dict(report))
    else:
        print(to_text(report))
    return 0

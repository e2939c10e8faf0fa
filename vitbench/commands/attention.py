"""``vitbench attention``: what a trained model attends to, drawn over a picture."""

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
    "Examples:  vitbench attention vit_layer6_32 --weights best.safetensors cat.png   |   "
    "vitbench attention timm:vit_tiny_patch16_224 --pretrained cat.png --layer 12 --head all   |   "
    "vitbench attention cifar_dynamic_vit_learned --weights best.safetensors --data digits --index 5 --gif"
)


def attention(
    model: Model,
    image: Annotated[Path | None, typer.Argument(help="A picture; or else --data NAME --index N.")] = None,
    weights: WeightsOfModel = None,
    pretrained: Pretrained = False,
    replace_head: ReplaceHead = False,
    data: Annotated[
        str | None, typer.Option(help="Take a test picture of digits, cifar10, cifar100, fashion-mnist or a folder.")
    ] = None,
    index: Annotated[int | None, typer.Option(help="With --data: which test picture, from 0. [default: 0]")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where cifar10, cifar100 and fashion-mnist are (or go, with --download).")
    ] = None,
    download: Download = False,
    layer: Annotated[str | None, typer.Option(help="A layer, from 1, or all. [default: all]")] = None,
    head: Annotated[str | None, typer.Option(help="A head, from 1, mean or all. [default: mean]")] = None,
    rollout: Annotated[
        bool, typer.Option("--rollout", help="Also draw the rollout; without --layer and --head it is drawn anyway.")
    ] = False,
    gif: Annotated[bool, typer.Option("--gif", help="Also an animation through all layers.")] = False,
    save_maps: Annotated[bool, typer.Option("--save-maps", help="Also save all weights as maps.npz.")] = False,
    out: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("attention"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    image_size: ImageSizeOfWeights = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Classes of the head. [default: those of the weights]")
    ] = None,
    allow_import: AllowImport = False,
    json: JsonObject = False,
) -> int:
    """Draw what a trained model attends to in a picture: maps a layer and head, rollout, tokens kept, an animation."""
    if (image is None) == (data is None):
        both = "both an image and --data" if data is not None else "neither an image nor --data"
        raise UsageError(f"There is {both}: give the path of one image, or --data NAME --index N")
    given = {f"--index {index}": index is not None, "--data-dir": data_dir is not None, "--download": download}
    if data is None and any(given.values()):
        option = next(name for name, there in given.items() if there)
        raise UsageError(f"{option} goes with --data NAME: an image is given as its path alone")
    if allow_import:
        import sys

        from vitbench.models.imported import allow_imports

        sys.path.insert(0, "")  # builders of one's own are found from the current folder
        allow_imports()
    from vitbench.experiments.attention import Choice, draw_attention, to_dict, to_text
    from vitbench.experiments.request import DataRequest, ModelRequest

    report = draw_attention(
        ModelRequest(
            model=model,
            weights=weights,
            pretrained=pretrained,
            replace_head=replace_head,
            device=device,
            image_size=image_size,
            num_classes=num_classes,
        ),
        Choice.parse(layer, head, rollout=rollout, gif=gif, save_maps=save_maps),
        image=image,
        data=None if data is None else DataRequest(data=data, data_dir=data_dir, download=download),
        index=index or 0,
        out=out,
    )
    if json:
        import json as encoder

        print(encoder.dumps(to_dict(report), indent=2, allow_nan=False))
    else:
        print(to_text(report))
    return 0

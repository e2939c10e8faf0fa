"""``vitbench attention``: what a trained model attends to, drawn over an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option

from vitbench.commands import options
from vitbench.commands.output import print_json
from vitbench.core.errors import UsageError

EXAMPLES = """
vitbench attention vit_layer6_32 --weights best.safetensors cat.png
vitbench attention timm:vit_tiny_patch16_224 --pretrained cat.png --layer 12 --head all
vitbench attention cifar_dynamic_vit_learned --weights best.safetensors --data digits --index 5 --gif
"""


def attention(
    context: Context,
    model: options.Model,
    image: Annotated[Path | None, Argument(help="An image file; or else --data NAME --index N.")] = None,
    weights: options.Weights = None,
    entry: options.Entry = None,
    pretrained: options.Pretrained = False,
    replace_head: options.ReplaceHead = False,
    grid: options.Grid = None,
    data: options.OptionalData = None,
    index: Annotated[int | None, Option(metavar="N", help="With --data: which test image, from 0.")] = None,
    data_dir: options.DataDir = None,
    download: options.Download = False,
    layer: Annotated[str | None, Option(metavar="N", help="A layer, from 1, or all. [default: all]")] = None,
    head: Annotated[str | None, Option(metavar="N", help="A head, from 1, mean or all. [default: mean]")] = None,
    rollout: Annotated[bool, Option("--rollout", help="Draw the rollout also with --layer or --head.")] = False,
    gif: Annotated[bool, Option("--gif", help="Also write an animation through all layers.")] = False,
    save_maps: Annotated[bool, Option("--save-maps", help="Also save all attention weights as maps.npz.")] = False,
    out: Annotated[Path, Option(metavar="DIR", help="The folder to write.")] = Path("attention"),
    device: options.Device = "auto",
    image_size: options.ImageSize = None,
    num_classes: options.NumClasses = None,
    allow_import: options.AllowImport = False,
    json: options.JsonObject = False,
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
        options.allow_imports()
    from vitbench.experiments.attention import Choice, draw_attention, to_dict, to_text
    from vitbench.experiments.open_model import DataRequest, ModelRequest

    request = ModelRequest(**options.given(context, *ModelRequest.__dataclass_fields__))
    choice = Choice.parse(layer, head, rollout=rollout, gif=gif, save_maps=save_maps)
    source = None if data is None else DataRequest(data=data, data_dir=data_dir, download=download)
    report = draw_attention(request, choice, image=image, data=source, index=index or 0, out=out)
    if json:
        print_json(to_dict(report))
    else:
        print(to_text(report))
    return 0

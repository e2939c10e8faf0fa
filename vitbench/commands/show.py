"""``vitbench show``: models by their parts, without allocating their weights."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from vitbench.commands import options
from vitbench.commands.output import print_answers

EXAMPLES = """
vitbench show vit_base16
vitbench show vit_basic timm:vit_tiny_patch16_224 --image-size 224 --json
vitbench show vit_layer6_32 --layers
vitbench show vit_layer6_32 --weights best.pt
"""


def show(
    models: options.Models,
    image_size: options.ImageSize = None,
    num_classes: options.NumClasses = None,
    in_channels: options.InChannels = 3,
    layers: Annotated[bool, Option("--layers", help="Add a table of the layers.")] = False,
    weights: options.Weights = None,
    entry: options.Entry = None,
    replace_head: options.ReplaceHead = False,
    grid: options.Grid = None,
    allow_import: options.AllowImport = False,
    json: options.JsonArray = False,
) -> int:
    """Show models: parameters and FLOPs by part, tokens, published values.

    With --weights also whether the checkpoint fits the model.
    """
    from vitbench.analysis.model_summary import show_models
    from vitbench.analysis.rendering import cards_to_text

    if allow_import:
        options.allow_imports()
    summaries = show_models(
        models,
        image_size=image_size,
        num_classes=num_classes,
        in_channels=in_channels,
        layers=layers,
        weights=weights,
        entry=entry,
        replace_head=replace_head,
        grid=grid,
    )
    return print_answers(summaries, cards_to_text, json)

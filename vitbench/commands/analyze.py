"""``vitbench analyze``: what each module, operator or block of a model costs."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from vitbench.commands import options
from vitbench.commands.output import note, print_answers
from vitbench.core.errors import UsageError

EXAMPLES = """
vitbench analyze vit_base16
vitbench analyze timm:swin_tiny_patch4_window7_224 --depth 2 --time
vitbench analyze vit_base16 --by op --attention explicit
vitbench analyze cifar_dynamic_vit_pruned --by block
"""


def analyze(
    models: options.Models,
    image_size: options.ImageSize = None,
    num_classes: options.NumClasses = None,
    in_channels: options.InChannels = 3,
    batch_size: Annotated[int, Option(metavar="N", help="Images in a batch.")] = 1,
    by: Annotated[str, Option(help="What is listed: module, op or block.")] = "module",
    attention: Annotated[str, Option(help="fused or explicit.")] = "fused",
    depth: Annotated[
        int | None,
        Option(metavar="N", min=0, help="Levels of modules in the table (default: as many as fit a screen)."),
    ] = None,
    time: Annotated[bool, Option("--time", help="Measure the time of each module on --device.")] = False,
    device: options.Device = "cpu",
    allow_import: options.AllowImport = False,
    json: options.JsonArray = False,
) -> int:
    """Show what each module costs: FLOPs, saved activations, bytes moved.

    FLOPs forward and backward. All but --time is counted without allocating the model.
    """
    from vitbench.analysis.cost_text import costs_to_text
    from vitbench.analysis.costs import analyze_models
    from vitbench.devices import find_device

    if device != "cpu" and not time:
        raise UsageError(f"--device {device} says where --time measures: add --time")
    if time and by != "module":
        raise UsageError(f"--time measures modules: leave out --by {by}")
    where = find_device(device).name
    if time:
        note(f"Timing modules on {where}: some five seconds a model")
    if allow_import:
        options.allow_imports()
    answers = analyze_models(
        models,
        image_size=image_size,
        num_classes=num_classes,
        in_channels=in_channels,
        batch_size=batch_size,
        by=by,
        attention=attention,
        time_on=where if time else None,
    )
    return print_answers(answers, lambda found: costs_to_text(found, depth=depth), json)

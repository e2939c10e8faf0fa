"""``vitbench flops``: count the FLOPs of models in four ways and explain the differences."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from vitbench.commands import options
from vitbench.commands.output import print_answers

EXAMPLES = """
vitbench flops vit_base16
vitbench flops timm:vit_tiny_patch16_224 --attention explicit
vitbench flops vit_layer6_32 --image-size 64 --json
"""


def flops(
    models: options.Models,
    image_size: options.ImageSize = None,
    num_classes: options.NumClasses = None,
    in_channels: options.InChannels = 3,
    attention: Annotated[str, Option(help="fused or explicit: what fvcore and thop count.")] = "fused",
    no_others: Annotated[bool, Option("--no-others", help="Leave out fvcore and thop.")] = False,
    allow_import: options.AllowImport = False,
    json: options.JsonArray = False,
) -> int:
    """Count FLOPs in four ways, and explain why they differ.

    The closed form, torch's dispatcher, fvcore and thop; also element-wise work and a training step.
    """
    from vitbench.analysis.flops_audit import audit_flops
    from vitbench.analysis.rendering import audits_to_text

    if allow_import:
        options.allow_imports()
    audits = audit_flops(
        models,
        image_size=image_size,
        num_classes=num_classes,
        in_channels=in_channels,
        attention=attention,
        others=not no_others,
    )
    return print_answers(audits, audits_to_text, json)

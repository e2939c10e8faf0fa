"""``vitbench fit``: the largest batch that fits into memory, without allocating it."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from vitbench.commands import options
from vitbench.commands.output import note, print_answers

EXAMPLES = """
vitbench fit vit_base16 --memory 16GiB
vitbench fit timm:vit_huge_patch14_224 --memory 24GiB --dtype amp --checkpointing
vitbench fit vit_base16 timm:swin_tiny_patch4_window7_224 --memory 8GiB --device cuda --compare
vitbench fit vit_basic --memory 2GiB --mode infer --image-size 384 --json
"""


def fit(
    models: options.Models,
    memory: Annotated[str, Option(metavar="16GiB", help="The memory that tensors may take.")],
    mode: Annotated[str, Option(metavar="NAME", help="train or infer.")] = "train",
    dtype: Annotated[str, Option(metavar="NAME", help="fp32, bf16, fp16, or amp (mixed precision).")] = "fp32",
    optimizer: Annotated[str, Option(metavar="NAME", help="adamw, adam, or sgd (with momentum).")] = "adamw",
    checkpointing: Annotated[
        bool, Option("--checkpointing", help="Recompute each block's activations in the backward pass.")
    ] = False,
    attention: Annotated[str, Option(metavar="NAME", help="fused or explicit.")] = "fused",
    image_size: options.ImageSize = None,
    num_classes: options.NumClasses = None,
    in_channels: options.InChannels = 3,
    device: Annotated[str, Option(metavar="NAME", help="cpu, cuda, or auto: this machine's GPU, else cpu.")] = "auto",
    compare: Annotated[bool, Option("--compare", help="Add the largest batch with other options.")] = False,
    no_check: Annotated[
        bool, Option("--no-check", help="Leave out the direct trace that confirms the answer.")
    ] = False,
    allow_import: options.AllowImport = False,
    json: options.JsonArray = False,
) -> int:
    """Find the largest batch that fits into memory, without allocating it.

    Also what the peak is made of, where it is, and what one image takes. Exit code 1 if not even one image fits.
    """
    from vitbench.analysis.memory import choose_device, fit_models
    from vitbench.analysis.rendering import fits_to_text

    if allow_import:
        options.allow_imports()
    chosen = choose_device(device)
    fits = fit_models(
        models,
        memory=memory,
        image_size=image_size,
        num_classes=num_classes,
        in_channels=in_channels,
        check=not no_check,
        compare=compare,
        mode=mode,
        dtype=dtype,
        optimizer=optimizer,
        checkpointing=checkpointing,
        attention=attention,
        device=chosen,
    )
    code = print_answers(fits, fits_to_text, json)
    if device == "auto" and chosen == "cpu" and any("error" not in one for one in fits):
        note("No GPU here, so these are bytes of CPU tensors. For a GPU elsewhere add --device cuda")
    return code or int(any(one.get("largest_batch") == 0 for one in fits))

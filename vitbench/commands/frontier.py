"""``vitbench frontier``: the largest batch of each model and image size that a device or a memory limit allows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Context, Option

from vitbench.commands import options
from vitbench.commands.output import print_run
from vitbench.core.errors import UsageError

EXAMPLES = """
vitbench frontier vit_base16 --image-sizes 224,384 --memory-limit 2GiB
vitbench frontier vit_base16 timm:vit_tiny_patch16_224 --mode both --device cuda
vitbench frontier --resume runs/frontier-20260101-120000
"""
#: Longer than for other cells: the largest batch of a CPU takes long, and its time is not the question.
TIMEOUT_S = 600


def frontier(
    context: Context,
    models: options.OptionalModels = None,
    image_sizes: options.ImageSizes = None,
    mode: options.Mode = None,
    max_batch: Annotated[
        int | None, Option(metavar="N", min=1, help="The largest batch to try. [default: 1024]")
    ] = None,
    memory_limit: options.MemoryLimit = None,
    devices: options.Devices = None,
    dtypes: options.Dtypes = None,
    threads: options.ThreadCount = None,
    num_classes: options.NumClasses = None,
    timeout: Annotated[float | None, Option(metavar="SECONDS", help="Of each attempt. [default: 600]")] = None,
    allow_import: options.AllowImport = False,
    yes: Annotated[bool, Option("--yes", help="Allow more than 10,000 attempts.")] = False,
    out: options.RunFolder = None,
    resume: Annotated[Path | None, Option(metavar="DIR", help="Continue the searches of this run folder.")] = None,
) -> int:
    """Find the largest batch that fits into memory, and the memory it takes.

    By default: each model's own image size and classes, inference, fp32, every device, all physical cores.
    """
    if resume is not None:
        options.refuse_beside_resume(context, "allow_import", "yes")
    keys = options.suite_keys(context)
    if resume is None and "models" not in keys:
        raise UsageError("Which models? vitbench frontier MODEL ..., or --resume DIR. See: vitbench list models")

    from vitbench.runner.progress import make_progress
    from vitbench.runner.run import resume_run, run_suite, terminate_like_interrupt
    from vitbench.suites import make_suite

    allowed: dict[str, Any] = {"allow_import": allow_import, "allow_many_cells": yes}
    with terminate_like_interrupt():
        if resume is not None:
            summary = resume_run(resume, progress=make_progress(), **allowed)
        else:
            content = {"name": "frontier", "frontier": {}, "timeout_s": TIMEOUT_S}
            suite = make_suite(content, "vitbench frontier", keys)
            summary = run_suite(suite, out=out, progress=make_progress(), **allowed)
    return print_run(summary, "attempts failed for another reason than memory")

"""``vitbench frontier``: the largest batch of each model and picture size that a device, or a memory limit, takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitbench.commands.options import AllowImport, split_words
from vitbench.core.errors import UsageError

if TYPE_CHECKING:
    from vitbench.runner.run import RunSummary
    from vitbench.suites import Suite

EPILOG = (
    "Examples:  vitbench frontier vit_base16 --image-sizes 224,384 --memory-limit 2GiB   |   "
    "vitbench frontier vit_base16 timm:vit_tiny_patch16_224 --mode both --device cuda   |   "
    "vitbench frontier --resume runs/frontier-20260101-120000"
)
_MODES = {"infer": ["infer"], "train": ["train"], "both": ["infer", "train"]}
#: Longer than for other cells: the largest batch of a processor takes its time, and that is not what is asked.
TIMEOUT_S = 600


def frontier(
    models: Annotated[
        list[str] | None, typer.Argument(help="Names of models (vitbench list models, timm:NAME, torchvision:NAME).")
    ] = None,
    image_sizes: Annotated[
        str | None, typer.Option(help="Pixels: 224, 231x240, native; commas. [default: each model's own]")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="infer (forward passes), train (training steps) or both. [default: infer]")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Look no further than so many images. [default: 1024]")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Memory a worker may take beyond its libraries, such as 2GiB. [default: none]")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--device", "--devices", help="cpu, cuda, cuda:1, mps or auto (all that are found); commas. [default: auto]"
        ),
    ] = None,
    dtypes: Annotated[
        str | None, typer.Option("--dtype", "--dtypes", help="fp32, bf16, fp16, amp; commas. [default: fp32]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: the physical cores]")] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes of the head. [default: each model's own]")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that an attempt may take before the search ends. [default: 600]")
    ] = None,
    allow_import: AllowImport = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Go on although the searches may take more than 10,000 attempts.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The run folder itself, new or empty. [default: runs/frontier-TIME]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the searches of this run folder; takes no other option.")
    ] = None,
) -> int:
    """Find the largest batch that fits into memory, to one image, and what it takes."""
    from vitbench.runner.progress import make_progress
    from vitbench.runner.run import resume_run, run_prepared, terminate_like_interrupt

    given: dict[str, Any] = {
        "models": split_words(models or None),
        "image_sizes": split_words(image_sizes),
        "modes": _modes(mode),
        "frontier": None if max_batch is None else {"max_batch": max_batch},
        "memory_limit": memory_limit,
        "devices": split_words(devices),
        "dtypes": split_words(dtypes),
        "threads": threads,
        "num_classes": num_classes,
        "timeout_s": timeout,
    }
    given = {key: value for key, value in given.items() if value is not None}
    how: dict[str, Any] = {"allow_import": allow_import, "allow_many_cells": yes}
    with terminate_like_interrupt():
        try:
            if resume is not None:
                if given or out is not None:
                    raise UsageError("--resume goes on with the searches as they were asked for: leave out all else")
                return _told(resume_run(resume, **how, progress=make_progress()))
            return _told(run_prepared(_make_suite(given), out=out, **how, progress=make_progress()))
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "Interrupted.", file=sys.stderr)
            return 130


def _make_suite(given: dict[str, Any]) -> Suite:
    """The suite that the options ask for; errors name the options."""
    from vitbench.suites import make_suite

    if "models" not in given:
        raise UsageError("Which models? vitbench frontier MODEL ..., or --resume DIR. See: vitbench list models")
    return make_suite({"name": "frontier", "frontier": {}, "timeout_s": TIMEOUT_S}, "vitbench frontier", given)


def _told(summary: RunSummary) -> int:
    """Print the tables and what was written; returns the exit code."""
    from vitbench.core.text import printable
    from vitbench.reports import summary_tables

    print(summary_tables([summary.folder]))
    for path in summary.report:
        print(f"Wrote {printable(str(path))}")
    if summary.failed:
        count = len(summary.failed)
        print(
            f"{count} of {len(summary.records)} attempts failed for another reason than memory; see the report's "
            "failures",
            file=sys.stderr,
        )
    return 1 if summary.failed else 0


def _modes(text: str | None) -> list[str] | None:
    if text is not None and text not in _MODES:
        raise UsageError(f"Option --mode: {text!r} is not allowed. Allowed: {', '.join(_MODES)}")
    return None if text is None else _MODES[text]

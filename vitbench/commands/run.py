"""``vitbench run``: measure a suite into a run folder, or resume one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitbench.commands.options import (
    AllowImport,
    Attentions,
    BatchSizes,
    DataDir,
    Devices,
    Download,
    Dtypes,
    ImageSizes,
    MemoryLimit,
    ModelNames,
    Modes,
    Pretrained,
    ReplaceHead,
    RunFolder,
    Suite,
    Weights,
    refuse_beside_resume,
    split_words,
    suite_keys,
)
from vitbench.commands.output import note, print_run
from vitbench.core.errors import UsageError

if TYPE_CHECKING:
    from vitbench.runner.plan import Plan

EXAMPLES = """
vitbench run
vitbench run --suite smoke --out /tmp/smoke
vitbench run --models vit_basic,timm:vit_tiny_patch16_224 --image-sizes 224 --batch-sizes 1,8 --data none
vitbench run --suite imbalance --data-dir data --budget images=30000
vitbench run --resume runs/lightweight-20260101-120000 --retry timeout,killed
"""

Compile = Annotated[str | None, typer.Option(metavar="off,on", help="torch.compile.")]
Threads = Annotated[
    str | None, typer.Option(metavar="N,...", help="Threads on the CPU: numbers, or auto (the physical cores).")
]
Metrics = Annotated[str | None, typer.Option(metavar="NAME,...", help="What to measure (vitbench list metrics).")]
Processes = Annotated[int | None, typer.Option(metavar="N", min=1, help="Fresh processes for each timed cell.")]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="5%", help="From 5 processes on, add more until the interval of a time is this narrow; 0 adds none."
    ),
]
DataSet = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="NAME", help="Train on digits, cifar10, cifar100, fashion-mnist, an image folder, or none."
    ),
]
Recipes = Annotated[
    str | None,
    typer.Option("--recipe", metavar="NAME,...", help="Train by these recipes (vitbench list recipes) or .toml files."),
]
Budget = Annotated[
    str | None,
    typer.Option(metavar="images=N", help="How long each recipe trains: images=, steps=, epochs= or seconds=."),
]
Seeds = Annotated[
    str | None, typer.Option("--seed", metavar="N,...", help="Seeds of the weights, the images and the training.")
]
Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", help="Time limit of each process of a cell.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer samples and a quarter of the training, to try things out.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the cells and a time estimate; measure and download nothing.")
]
Resume = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Measure the cells of this run folder that have no record.")
]
Retry = Annotated[
    str | None,
    typer.Option(metavar="STATUS,...", help="With --resume: repeat cells of these statuses (timeout, killed, ...)."),
]
AllowChangedEnvironment = Annotated[
    bool, typer.Option("--allow-changed-environment", help="With --resume: accept an environment that has changed.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Allow suites of more than 10,000 cells.")]


def run(
    context: typer.Context,
    suite: Suite = "lightweight",
    models: ModelNames = None,
    image_sizes: ImageSizes = None,
    batch_sizes: BatchSizes = None,
    devices: Devices = None,
    dtypes: Dtypes = None,
    attention: Attentions = None,
    modes: Modes = None,
    compile: Compile = None,
    threads: Threads = None,
    metrics: Metrics = None,
    processes: Processes = None,
    precision: Precision = None,
    data: DataSet = None,
    data_dir: DataDir = None,
    download: Download = False,
    recipe: Recipes = None,
    budget: Budget = None,
    seed: Seeds = None,
    weights: Weights = None,
    replace_head: ReplaceHead = False,
    pretrained: Pretrained = False,
    memory_limit: MemoryLimit = None,
    timeout: Timeout = None,
    allow_import: AllowImport = False,
    quick: Quick = False,
    dry_run: DryRun = False,
    out: RunFolder = None,
    resume: Resume = None,
    retry: Retry = None,
    allow_changed_environment: AllowChangedEnvironment = False,
    yes: Yes = False,
) -> int:
    """Measure a suite of models on this machine and write a report.

    Options replace keys of the suite; NAME,... is a list with commas. With --weights or --pretrained the models are
    tested on the data, not trained.
    """
    if resume is not None:
        refuse_beside_resume(context, "retry", "allow_changed_environment", "allow_import", "yes")
    elif retry is not None or allow_changed_environment:
        raise UsageError("--retry and --allow-changed-environment need --resume DIR")
    keys = suite_keys(context)

    from vitbench.runner.progress import make_progress
    from vitbench.runner.run import plan_suite, resume_run, run_suite, terminate_like_interrupt

    allowed: dict[str, Any] = {"allow_import": allow_import, "allow_many_cells": yes}
    with terminate_like_interrupt():
        if resume is not None:
            again = split_words(retry) or ()
            changed = allow_changed_environment
            summary = resume_run(
                resume, retry=again, allow_changed_environment=changed, progress=make_progress(), **allowed
            )
        elif dry_run:
            _print_plan(plan_suite(suite, quick=quick, note=note, **allowed, **keys))
            return 0
        else:
            summary = run_suite(suite, out=out, quick=quick, progress=make_progress(), **allowed, **keys)
    return print_run(summary, "cells failed")


def _print_plan(plan: Plan) -> None:
    from vitbench.core.text import printable
    from vitbench.runner.progress import format_duration
    from vitbench.suites.batch_search import most_attempts, search_label

    bound = plan.suite.frontier.max_batch if plan.suite.frontier else None
    for cell in plan.cells:
        label = printable(cell.label if bound is None else f"{search_label(cell)}, batches up to {bound}")
        print(f"{plan.estimates[cell.id]:7.1f} s  {label}  ({cell.threads} thread{'s' if cell.threads > 1 else ''})")
    count = len(plan.cells)
    training = sum(plan.estimates[cell.id] for cell in plan.cells if cell.tests)
    part = f", of which training {format_duration(training)}" if training else ""
    what = f"{count} cells"
    if bound is not None:
        what = f"{count} search{'es' if count != 1 else ''} of at most {most_attempts(bound)} attempts"
    total = format_duration(sum(plan.estimates.values()))
    print(f"{what}, about {total}{part}: an estimate, right to a factor of 2 or 3")

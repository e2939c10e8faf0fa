"""``vitbench run``: measure a suite into a run folder, or resume one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Context, Option

from vitbench.commands import options
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

Compile = Annotated[str | None, Option(metavar="off,on", help="torch.compile.")]
Threads = Annotated[str | None, Option(metavar="N,...", help="Threads on the CPU, or auto: the physical cores.")]
Metrics = Annotated[str | None, Option(metavar="NAME,...", help="What to measure (vitbench list metrics).")]
Processes = Annotated[int | None, Option(metavar="N", min=1, help="Fresh processes for each timed cell.")]
Precision = Annotated[str | None, Option(metavar="5%", help="Add processes until intervals are this narrow; 0: none.")]
DataSet = Annotated[str | None, Option(metavar="NAME", help=f"Train on {options.DATA_SETS}, or none.")]
Recipes = Annotated[str | None, Option(metavar="NAME,...", help="Recipes (vitbench list recipes) or .toml files.")]
Budget = Annotated[str | None, Option(metavar="images=N", help="Of each recipe; or steps=, epochs=, seconds=.")]
Seeds = Annotated[str | None, Option(metavar="N,...", help="Seeds of the weights, the images and the training.")]
Timeout = Annotated[float | None, Option(metavar="SECONDS", help="Time limit of each process of a cell.")]
Quick = Annotated[bool, Option("--quick", help="Fewer samples and a tenth of the training, to try things out.")]
DryRun = Annotated[bool, Option("--dry-run", help="Print the cells and a time estimate; measure and download nothing.")]
Resume = Annotated[Path | None, Option(metavar="DIR", help="Measure the cells of this run folder that have no record.")]
Retry = Annotated[str | None, Option(metavar="STATUS,...", help="With --resume: repeat cells of these statuses.")]
AllowChangedEnvironment = Annotated[bool, Option("--allow-changed-environment", help="Resume in another environment.")]
Yes = Annotated[bool, Option("--yes", help="Allow suites of more than 10,000 cells.")]


def run(
    context: Context,
    suite: options.Suite = "lightweight",
    models: options.ModelNames = None,
    image_sizes: options.ImageSizes = None,
    in_channels: options.InChannels = 3,
    batch_sizes: options.BatchSizes = None,
    devices: options.Devices = None,
    dtypes: options.Dtypes = None,
    attention: options.Attentions = None,
    modes: options.Modes = None,
    compile: Compile = None,
    threads: Threads = None,
    metrics: Metrics = None,
    processes: Processes = None,
    precision: Precision = None,
    data: DataSet = None,
    data_dir: options.DataDir = None,
    download: options.Download = False,
    recipe: Recipes = None,
    budget: Budget = None,
    seed: Seeds = None,
    weights: options.Weights = None,
    entry: options.Entry = None,
    replace_head: options.ReplaceHead = False,
    grid: options.Grid = None,
    pretrained: options.Pretrained = False,
    memory_limit: options.MemoryLimit = None,
    timeout: Timeout = None,
    allow_import: options.AllowImport = False,
    quick: Quick = False,
    dry_run: DryRun = False,
    out: options.RunFolder = None,
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
        options.refuse_beside_resume(context, "retry", "allow_changed_environment", "allow_import", "yes")
    elif retry is not None or allow_changed_environment:
        raise UsageError("--retry and --allow-changed-environment need --resume DIR")
    keys = options.suite_keys(context)

    from vitbench.runner.progress import make_progress
    from vitbench.runner.run import plan_suite, resume_run, run_suite, terminate_like_interrupt

    allowed: dict[str, Any] = {"allow_import": allow_import, "allow_many_cells": yes}
    with terminate_like_interrupt():
        if resume is not None:
            allowed["allow_changed_environment"] = allow_changed_environment
            again = options.split_words(retry) or ()
            summary = resume_run(resume, retry=again, progress=make_progress(), **allowed)
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
        label = cell.label if bound is None else f"{search_label(cell)}, batches up to {bound}"
        if (predicted := plan.predictions.get(cell.id)) is not None:
            label += f", predicted {predicted.value:.0f}"
        threads = f"({cell.threads} thread{'s' if cell.threads > 1 else ''})"
        print(f"{plan.estimates[cell.id]:7.1f} s  {printable(label)}  {threads}")
    count = len(plan.cells)
    training = sum(plan.estimates[cell.id] for cell in plan.cells if cell.tests)
    part = f", of which training {format_duration(training)}" if training else ""
    what = f"{count} cells"
    if bound is not None:
        what = f"{count} search{'es' if count != 1 else ''} of at most {most_attempts(bound)} attempts"
    total = format_duration(plan.estimates.left())
    print(f"{what}, about {total}{part}: an estimate, right to a factor of 2 or 3")

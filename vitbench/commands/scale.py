"""``vitbench scale``: how FLOPs, memory and time of models grow with the image, and where two models cross."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Context, Option

from vitbench.commands import options
from vitbench.commands.output import note, print_answers
from vitbench.core.errors import UsageError

if TYPE_CHECKING:
    from vitbench.analysis.scaling import Scaling
    from vitbench.core.records import Record
    from vitbench.metrics import Subject
    from vitbench.models.cards import ModelCard
    from vitbench.suites import Suite

EXAMPLES = """
vitbench scale vit_base16
vitbench scale vit_base16 --image-sizes 224,384,512 --batch-sizes 1,8 --mode train
vitbench scale vit_layer6_32 --image-sizes 32:128 --measure --threads 1 --plot scale.png
vitbench scale cifar_vit_base cifar_lightweight_vit --image-sizes 16:128 --crossover --measure
"""

Sizes = Annotated[str, Option(metavar="SIZE,...", help="Pixels: a range as 32:1024, or a list as 224,231x240.")]
Attention = Annotated[str | None, Option(metavar="NAME", help="fused or explicit.")]
Measure = Annotated[bool, Option("--measure", help="Also time each size, in five fresh processes that take turns.")]
CrossoverFlag = Annotated[bool, Option("--crossover", help="Find where two models of the same classes cross.")]
Plot = Annotated[Path | None, Option(metavar="FILE.png", help="Write a plot with logarithmic axes.")]


def scale(
    context: Context,
    models: options.Models,
    image_sizes: Sizes = "32:1024",
    batch_sizes: options.BatchSizes = None,
    mode: options.Mode = None,
    attention: Attention = None,
    num_classes: options.NumClasses = None,
    in_channels: options.InChannels = 3,
    measure: Measure = False,
    devices: options.Devices = None,
    threads: options.ThreadCount = None,
    crossover: CrossoverFlag = False,
    plot: Plot = None,
    allow_import: options.AllowImport = False,
    json: options.JsonArray = False,
) -> int:
    """Show how FLOPs, memory and time of models grow with the image.

    FLOPs and memory are counted without running the model; --measure adds times on this machine.
    """
    from vitbench.analysis.model_summary import expand_names

    suite = _read_options(context, measure=measure, plot=plot)
    if allow_import:
        options.allow_imports()
    names = expand_names(suite.models)
    if crossover and len(names) != 2:
        raise UsageError(f"--crossover compares two models, not {len(names)}. Give two names")

    from vitbench.analysis.crossover import Pair
    from vitbench.analysis.scaling_text import answers_of, study_to_text
    from vitbench.core.records import HARMLESS
    from vitbench.core.run_folder import write_atomically
    from vitbench.devices import find_device
    from vitbench.executors.launcher import make_launcher
    from vitbench.reports.plots.scaling import draw_scaling
    from vitbench.runner.progress import make_progress
    from vitbench.runner.run import modules_of, terminate_like_interrupt
    from vitbench.runner.size_series import cross_latency, time_sizes, with_times

    find_device(suite.devices[0])  # one that is missing is told before models are counted
    counted, failed = _count(names, suite, image_sizes, crossover=crossover)
    pair = Pair(counted[0], counted[1], note) if crossover and not failed else None
    crossings = pair.cross_counts() if pair else []
    records: list[Record] = []
    if measure and counted:
        with terminate_like_interrupt(), make_launcher(modules_of(suite), allow_import=allow_import) as launcher:
            timed = functools.partial(time_sizes, suite, launcher=launcher, progress=make_progress())
            for some in [counted] if pair else [[one] for one in counted]:
                records += timed(some, [point.image_size for point in some[0].points])
            if pair is not None:
                again = functools.partial(timed, counted)
                crossings += [cross_latency(pair, records, batch, again) for batch in suite.batch_sizes]
    if pair is not None:
        counted = [pair.one, pair.other]
    counted = [with_times(one, records) for one in counted]
    if plot is not None and counted:
        write_atomically(plot, draw_scaling(counted, crossings))
        note(f"Wrote {plot}")
    code = print_answers(answers_of(counted, crossings) + failed, lambda _: study_to_text(counted, crossings), json)
    return code or int(any(record.status not in HARMLESS for record in records))


def _read_options(context: Context, *, measure: bool, plot: Path | None) -> Suite:
    """The series as a suite, checked as far as that goes without torch. Raises UsageError."""
    from vitbench.runner.plan import check_before_loading
    from vitbench.runner.size_series import SERIES
    from vitbench.suites import make_suite

    keys = options.suite_keys(context)
    keys.pop("image_sizes", None)
    if not measure and keys.keys() & {"devices", "threads"}:
        raise UsageError("--device and --threads are about times: add --measure")
    suite = check_before_loading(make_suite({**SERIES, "models": keys.pop("models")}, "vitbench scale", keys))
    for name, values in (("mode", suite.modes), ("attention", suite.attention), ("device", suite.devices)):
        if len(values) > 1 or values[0] == "auto":
            raise UsageError(f"Option --{name}: sizes are compared under one, not {', '.join(values)}. Give one")
    if plot is not None and (plot.suffix != ".png" or not plot.parent.is_dir()):
        raise UsageError(f"Option --plot: {str(plot)!r} is not a .png file in a folder that exists")
    return suite


def _count(
    names: Sequence[str], suite: Suite, image_sizes: str, *, crossover: bool
) -> tuple[list[Scaling], list[dict[str, Any]]]:
    """Each model at its sizes, those that cross at the same ones; and the answers for models that failed."""
    from vitbench.analysis.model_summary import inspect_model
    from vitbench.analysis.scaling import choose_sizes, scale_model, side_of_patches
    from vitbench.core.records import format_image_size
    from vitbench.models import describe_model

    if crossover and suite.num_classes is None:
        classes = [describe_model(name).num_classes for name in names]
        if len(set(classes)) > 1:
            raise UsageError(
                f"{names[0]} has {classes[0]} classes, {names[1]} has {classes[1]}: models that cross do the same "
                f"task. Give both --num-classes {classes[0]}"
            )

    def inspect(card: ModelCard, subject: Subject) -> dict[str, Any]:
        base = replace(subject.cell, mode=suite.modes[0])
        sides = [side_of_patches(replace(base, model=name)) for name in (names if crossover else [card.name])]
        sizes = choose_sizes(image_sizes, math.lcm(*sides))
        return {"scaling": scale_model(base, sizes, suite.batch_sizes, note)}

    answers = [
        inspect_model(
            name,
            inspect,
            num_classes=suite.num_classes,
            in_channels=suite.in_channels,
            attention=suite.attention[0],
        )
        for name in names
    ]
    failed = [answer for answer in answers if "error" in answer]
    counted: list[Scaling] = [answer["scaling"] for answer in answers if "error" not in answer]
    if crossover and not failed:
        for one, other in itertools.pairwise(counted[0].points):
            if one.n == other.n:
                sizes = " and ".join(format_image_size(point.image_size) for point in (one, other))
                raise UsageError(f"--crossover takes one size for each number of patches: {sizes} both have {one.n:,}")
    return counted, failed

"""``vitbench train``: one model, one recipe, one run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Context, Option

from vitbench.commands import options
from vitbench.core.errors import UsageError

if TYPE_CHECKING:
    from vitbench.experiments.training.request import TrainingSummary

EXAMPLES = """
vitbench train vit_basic_tutorial
vitbench train vit_layer6_32 --data cifar10 --data-dir data --recipe vit-classification-cifar10
vitbench train vit_b16_transfer --data images/ --pretrained --freeze backbone --recipe paper-replicating
vitbench train --resume runs/train-vit_layer6_32-20260101-120000
torchrun --nproc-per-node 2 -m vitbench train vit_basic --data digits
"""

Settings = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Replace a key of the recipe: epochs=20. Repeatable.")
]
AmpDtype = Annotated[str | None, Option(metavar="NAME", help="bf16 or fp16. [default: fp16 on GPUs, bf16 on the CPU]")]
Seed = Annotated[int | None, Option(metavar="N", min=0, help="Of everything random. [default: the recipe's, else 0]")]
Deterministic = Annotated[bool, Option("--deterministic", help="Only operators that repeat their results exactly.")]
Compile = Annotated[bool, Option("--compile", help="torch.compile the model.")]
ChannelsLast = Annotated[bool, Option("--channels-last", help="Channels-last memory format.")]
SaveEvery = Annotated[int, Option(metavar="N", min=0, help="Also keep a checkpoint every N epochs.")]
NoTensorboard = Annotated[bool, Option("--no-tensorboard", help="Write no TensorBoard logs.")]
Resume = Annotated[Path | None, Option(metavar="DIR", help="Resume this training; --data: where images are now.")]


def train(
    context: Context,
    model: options.OptionalModel = None,
    data: options.Data = "digits",
    data_dir: options.DataDir = None,
    download: options.Download = False,
    recipe: options.Recipe = "brief",
    settings: Settings = None,
    device: options.Device = "auto",
    amp: options.Amp = False,
    amp_dtype: AmpDtype = None,
    image_size: options.ImageSize = None,
    num_classes: options.NumClasses = None,
    train_images: options.TrainImages = None,
    test_images: options.TestImages = None,
    validation: options.Validation = None,
    imbalance: options.Imbalance = None,
    weights: options.Weights = None,
    entry: options.Entry = None,
    pretrained: options.Pretrained = False,
    replace_head: options.ReplaceHead = False,
    grid: options.Grid = None,
    freeze: options.Freeze = "none",
    seed: Seed = None,
    deterministic: Deterministic = False,
    compile: Compile = False,
    channels_last: ChannelsLast = False,
    threads: options.ThreadCount = None,
    save_every: SaveEvery = 0,
    no_tensorboard: NoTensorboard = False,
    allow_import: options.AllowImport = False,
    out: options.RunFolder = None,
    resume: Resume = None,
) -> int:
    """Train a model by a recipe, into a folder from which the training can be resumed.

    It starts from random weights, or from those of --weights or --pretrained.
    """
    if resume is not None:
        options.refuse_beside_resume(context, "allow_import", "data", "data_dir")
    elif model is None:
        raise UsageError("Which model? vitbench train MODEL (vitbench list models), or --resume DIR")
    if amp_dtype is not None and (not amp or amp_dtype not in ("bf16", "fp16")):
        raise UsageError(f"--amp-dtype {amp_dtype}: give bf16 or fp16, together with --amp")
    if allow_import:
        options.allow_imports()

    from vitbench.devices import find_device
    from vitbench.experiments import training
    from vitbench.experiments.training.progress import make_training_progress
    from vitbench.training.recipes import parse_settings

    if resume is not None:
        moved = options.given(context, "allow_import", "data", "data_dir")
        return _print_summary(training.resume_training(resume, make_training_progress(), **moved))
    changes = parse_settings(settings or [])
    held = options.given(context, "validation", "imbalance")
    options.refuse_twice([*held, *options.given(context, "seed")], changes)
    fields = options.given(context, *training.TrainingRequest.__dataclass_fields__)
    fields |= {"recipe": recipe, "tensorboard": not no_tensorboard}
    fields["amp"] = (amp_dtype or find_device(device).amp_dtype) if amp else "off"
    progress = make_training_progress()
    return _print_summary(training.train(settings={**changes, **held}, out=out, progress=progress, **fields))


def _print_summary(summary: TrainingSummary) -> int:
    from vitbench.core.text import one_line

    if not (figures := summary.figures):
        return 0  # not the first of several processes

    def correct(scores: dict[str, float]) -> str:
        share = 100 * scores["test_accuracy"]
        return f"{scores['test_correct']} of {figures['test_images']} test images correct ({share:.2f} %)"

    what = one_line(f"{figures['model']} on {figures['data']}")  # a folder from elsewhere may hold any text
    last = figures["last"]
    print(f"{what} after {figures['epochs']:g} epochs: {correct(last)}, loss {last['test_loss']:.4f}")
    if "best" in figures:
        best = figures["best"]
        print(f"Best on validation, after {best['epoch']:g} epochs: {correct(best)}")
    print(f"Wrote {summary.folder}/report.md, curves.png, history.csv, summary.json and checkpoints/")
    return 0

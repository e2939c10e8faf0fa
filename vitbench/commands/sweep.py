"""``vitbench sweep``: one model under several settings of a recipe, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Context, Option

from vitbench.commands import options
from vitbench.commands.output import note
from vitbench.core.errors import UsageError

EXAMPLES = """
vitbench sweep vit_basic_tutorial --data digits --set lr=1e-2,1e-3 --set batch_size=32,64
vitbench sweep vit_basic --try 'lr=1e-2 batch_size=32 epochs=20' --try 'lr=1e-3 batch_size=64 epochs=100' --seeds 0,1
vitbench sweep --resume runs/sweep-vit_basic-20260101-120000
"""

Products = Annotated[
    list[str] | None, Option("--set", metavar="KEY=A,B", help="All combinations of the values. Repeatable.")
]
Tries = Annotated[
    list[str] | None, Option("--try", metavar="'KEY=A KEY=B'", help="One setting of several keys. Repeatable.")
]
Seeds = Annotated[str | None, Option(metavar="N,...", help="Train each setting with each of these seeds.")]
Resume = Annotated[Path | None, Option(metavar="DIR", help="Train what this sweep still lacks.")]


def sweep(
    context: Context,
    model: options.OptionalModel = None,
    data: options.Data = "digits",
    data_dir: options.DataDir = None,
    download: options.Download = False,
    recipe: options.Recipe = "brief",
    products: Products = None,
    tries: Tries = None,
    seeds: Seeds = None,
    device: options.Device = "auto",
    image_size: options.ImageSize = None,
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
    amp: options.Amp = False,
    threads: options.ThreadCount = None,
    allow_import: options.AllowImport = False,
    out: options.RunFolder = None,
    resume: Resume = None,
) -> int:
    """Train a model under several settings and compare them."""
    if resume is not None:
        options.refuse_beside_resume(context, "allow_import")
    elif model is None:
        raise UsageError("Which model? vitbench sweep MODEL --set key=a,b, or --resume DIR")
    elif not products and not tries and not seeds:
        raise UsageError("A sweep varies something: give --set key=a,b, --try 'key=a key=b' or --seeds 0,1")
    if allow_import:
        options.allow_imports()

    from vitbench.devices import find_device
    from vitbench.experiments import sweep as sweeps
    from vitbench.experiments.training.progress import make_training_progress
    from vitbench.experiments.training.request import TrainingRequest

    if resume is not None or model is None:
        summary = sweeps.resume_sweep(Path(resume or ""), make_training_progress, note, allow_import=allow_import)
    else:
        changes = sweeps.expand_settings(products or [], tries or [], _seeds(seeds))
        fixed = options.given(context, "validation", "imbalance")
        for one in changes:
            options.refuse_twice(fixed, one)
        fields = options.given(context, *TrainingRequest.__dataclass_fields__)
        fields |= {"data": data, "recipe": {}, "amp": find_device(device).amp_dtype if amp else "off"}
        request = TrainingRequest(**fields)
        settings = sweeps.plan_sweep(request, recipe, changes, fixed)
        note(f"{len(settings)} trainings")
        summary = sweeps.start_sweep(settings, out, make_training_progress, note)
    print((summary.folder / "sweep.md").read_text(encoding="utf-8"))
    drawn = ", sweep.png" if (summary.folder / "sweep.png").is_file() else ""
    print(f"Wrote {summary.folder}/sweep.md, sweep.csv{drawn}")
    return 1 if summary.failed else 0


def _seeds(text: str | None) -> list[int]:
    words = options.split_words(text) or []
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"--seeds {text!r}: give whole numbers from 0, separated by commas")
    return [int(word) for word in words]

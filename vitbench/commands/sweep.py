"""``vitbench sweep``: one model under several settings of a recipe, in one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitbench.commands.options import AllowImport, Download, ReplaceHead, refuse_twice
from vitbench.core.errors import UsageError

EPILOG = (
    "Examples:  vitbench sweep vit_basic_tutorial --data digits --set lr=1e-2,1e-3 --set batch_size=32,64   |   "
    "vitbench sweep vit_basic --recipe vit-reproduction --try 'lr=1e-2 batch_size=32 epochs=20' "
    "--try 'lr=1e-3 batch_size=64 epochs=100' --try 'lr=1e-4 batch_size=64 epochs=50'"
)


def sweep(
    model: Annotated[str | None, typer.Argument(help="A model's name (vitbench list models).")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="digits, cifar10, cifar100, fashion-mnist, or a picture folder. [default: digits]"),
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Where cifar10, cifar100 and fashion-mnist are (or go, with --download).")
    ] = None,
    download: Download = False,
    recipe: Annotated[
        str | None, typer.Option(help="A built-in recipe (vitbench list recipes) or a .toml file. [default: brief]")
    ] = None,
    products: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="key=a,b: each value with each of the others'; lists joined by + (augment=crop+flip)."
        ),
    ] = None,
    tries: Annotated[
        list[str] | None, typer.Option("--try", help="'key=a key=b': one setting of several keys; again for more.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Train each setting with each of these seeds; commas.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto. [default: auto]")] = None,
    image_size: Annotated[str | None, typer.Option(help="Pixels, 224 or 231x240. [default: the model's own]")] = None,
    train_images: Annotated[
        int | None, typer.Option(min=1, help="Train on so many pictures, chosen by the seed.")
    ] = None,
    test_images: Annotated[int | None, typer.Option(min=1, help="Test on so many pictures.")] = None,
    validation: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Fraction of the training pictures held out.")
    ] = None,
    imbalance: Annotated[str | None, typer.Option(help="linear:10, exponential:100, or an index file.")] = None,
    weights: Annotated[str | None, typer.Option(help="Start each training from this checkpoint.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start each from the weights that timm or torchvision publish.")
    ] = False,
    replace_head: ReplaceHead = False,
    freeze: Annotated[
        str | None, typer.Option(help="none, backbone (train the head alone), blocks:N (embedding and first N blocks).")
    ] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision: autocast at the device's own dtype.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: torch's choice]")] = None,
    allow_import: AllowImport = False,
    out: Annotated[
        Path | None, typer.Option(help="The sweep's folder, new or empty. [default: runs/sweep-MODEL-TIME]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Train what this sweep still lacks; beside it only --allow-import.")
    ] = None,
) -> int:
    """Train a model under several settings and compare them."""
    from vitbench.experiments.sweep import expand_settings, plan_sweep, resume_sweep, start_sweep
    from vitbench.experiments.training import TrainingRequest
    from vitbench.experiments.training.progress import make_training_progress

    given: dict[str, Any] = {
        "data_dir": data_dir,
        "device": device,
        "image_size": image_size,
        "train_images": train_images,
        "test_images": test_images,
        "weights": weights,
        "download": download or None,
        "pretrained": pretrained or None,
        "replace_head": replace_head or None,
        "freeze": freeze,
        "threads": threads,
    }

    if allow_import:
        sys.path.insert(0, "")  # builders of one's own are found from the current folder

    from vitbench.core.text import one_line

    def say(text: str) -> None:
        print(one_line(text), file=sys.stderr, flush=True)

    try:
        if resume is not None:
            others = (
                model,
                data,
                recipe,
                products,
                tries,
                seeds,
                out,
                amp or None,
                validation,
                imbalance,
                *given.values(),
            )
            if any(other is not None for other in others):
                raise UsageError("--resume goes on with the sweep as it was started: leave out everything else")
            summary = resume_sweep(resume, make_training_progress, say, allow_import=allow_import)
        else:
            if model is None:
                raise UsageError("Which model? vitbench sweep MODEL --set key=a,b, or --resume DIR")
            if not products and not tries and not seeds:
                raise UsageError("A sweep varies something: give --set key=a,b, --try 'key=a key=b' or --seeds 0,1")
            changes = expand_settings(products or [], tries or [], _seeds(seeds))
            fixed = {k: v for k, v in {"validation": validation, "imbalance": imbalance}.items() if v is not None}
            for one in changes:
                refuse_twice(fixed, one)
            if amp:
                from vitbench.experiments.open_model import find_device

                given["amp"] = find_device(device or "auto").amp_dtype
            request = TrainingRequest(
                model=model,
                data=data or "digits",
                recipe={},
                allow_import=allow_import,
                **{k: v for k, v in given.items() if v is not None},
            )
            settings = plan_sweep(request, recipe or "brief", changes, fixed)
            say(f"{len(settings)} trainings")
            summary = start_sweep(settings, out, make_training_progress, say)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "Interrupted.", file=sys.stderr)
        return 130
    print((summary.folder / "sweep.md").read_text(encoding="utf-8"))
    drawn = ", sweep.png" if (summary.folder / "sweep.png").is_file() else ""
    print(f"Wrote {summary.folder}/sweep.md, sweep.csv{drawn}")
    return 1 if summary.failed else 0


def _seeds(text: str | None) -> list[int]:
    try:
        found = [int(word) for word in (text or "").split(",") if word.strip()]
    except ValueError:
        found = [-1]
    if any(seed < 0 for seed in found):
        raise UsageError(f"--seeds {text!r}: whole numbers from 0 on, separated by commas")
    return found

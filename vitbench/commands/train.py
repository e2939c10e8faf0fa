"""``vitbench train``: one model, one recipe, one run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitbench.commands.options import AllowImport, Download, ReplaceHead, refuse_twice
from vitbench.core.errors import UsageError

EPILOG = (
    "Examples:  vitbench train vit_basic_tutorial   |   "
    "vitbench train vit_layer6_32 --data cifar10 --data-dir data --recipe vit-classification-cifar10   |   "
    "vitbench train vit_b16_transfer --data pictures/ --pretrained --freeze backbone --recipe paper-replicating   |   "
    "vitbench train --resume runs/train-vit_layer6_32-20260101-120000   |   "
    "torchrun --nproc-per-node 2 -m vitbench train vit_basic --data digits"
)


def train(
    model: Annotated[
        str | None, typer.Argument(help="A model's name (vitbench list models, timm:NAME, torchvision:NAME).")
    ] = None,
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
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value in place of the recipe's, such as lr=1e-3 or epochs=20; again for more."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto. [default: auto]")] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision (autocast; fp16 with a loss scaler).")] = False,
    amp_dtype: Annotated[
        str | None, typer.Option(help="bf16 or fp16 for --amp. [default: fp16 on GPUs, bf16 on the CPU]")
    ] = None,
    image_size: Annotated[str | None, typer.Option(help="Pixels, 224 or 231x240. [default: the model's own]")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Classes of the head. [default: the data's]")] = None,
    train_images: Annotated[
        int | None, typer.Option(min=1, help="Train on so many pictures, chosen by the seed.")
    ] = None,
    test_images: Annotated[int | None, typer.Option(min=1, help="Test on so many pictures.")] = None,
    validation: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Fraction of the training pictures held out. [default: the recipe's]"),
    ] = None,
    imbalance: Annotated[
        str | None,
        typer.Option(help="Thin out classes: linear:10, exponential:100 (largest over smallest), or an index file."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Start from this checkpoint.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from the weights that timm or torchvision publish.")
    ] = False,
    replace_head: ReplaceHead = False,
    freeze: Annotated[
        str, typer.Option(help="none, backbone (train the head alone), blocks:N (embedding and first N blocks).")
    ] = "none",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of weights, pictures and training. [default: the recipe's, else 0]")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Only operators that repeat their numbers exactly (slower on GPUs).")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the model.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels-last memory format.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: torch's choice]")] = None,
    save_every: Annotated[
        int, typer.Option(min=0, help="Keep a checkpoint of every so many epochs, beside last and best.")
    ] = 0,
    no_tensorboard: Annotated[bool, typer.Option("--no-tensorboard", help="Write no TensorBoard logs.")] = False,
    allow_import: AllowImport = False,
    out: Annotated[
        Path | None, typer.Option(help="The run folder itself, new or empty. [default: runs/train-MODEL-TIME]")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the training in this folder, as it was started; beside it only --allow-import, and --data "
            "or --data-dir where the pictures (a folder of the same name) are now."
        ),
    ] = None,
) -> int:
    """Train a model by a recipe; go on after any interruption."""
    given: dict[str, Any] = {
        "data": data,
        "data_dir": data_dir,
        "device": device,
        "image_size": image_size,
        "num_classes": num_classes,
        "train_images": train_images,
        "test_images": test_images,
        "weights": weights,
        "threads": threads,
    }
    flags: dict[str, Any] = {
        "download": download,
        "pretrained": pretrained,
        "replace_head": replace_head,
        "deterministic": deterministic,
        "compile": compile,
        "channels_last": channels_last,
    }
    if allow_import:
        sys.path.insert(0, "")  # builders of one's own are found from the current folder
    if resume is not None:
        others = {
            **{key: value for key, value in given.items() if key not in ("data", "data_dir")},
            **flags,
            "model": model,
            "recipe": recipe,
            "set": settings or None,
            "amp": amp,
            "amp_dtype": amp_dtype,
            "validation": validation,
            "imbalance": imbalance,
            "freeze": freeze != "none",
            "seed": seed,
            "save_every": save_every or None,
            "no_tensorboard": no_tensorboard,
            "out": out,
        }
        named = [key for key, value in others.items() if value is not None and value is not False]
        if named:
            said = f"--{named[0].replace('_', '-')}" if named[0] != "model" else "everything else"
            raise UsageError(f"--resume goes on with the training as it was started: leave out {said}")
        where = {"data": data, "data_dir": data_dir}
        return _told(lambda: _resume(resume, allow_import=allow_import, **where))
    if model is None:
        raise UsageError("Which model? vitbench train MODEL (vitbench list models), or --resume DIR")
    if amp_dtype is not None and (not amp or amp_dtype not in ("bf16", "fp16")):
        raise UsageError(f"--amp-dtype {amp_dtype}: give bf16 or fp16, together with --amp")

    from vitbench.experiments.training import TrainingRequest
    from vitbench.training.recipes import check_settings, load_recipe, parse_settings

    changes = parse_settings(settings or [])
    refuse_twice({"validation": validation, "imbalance": imbalance, "seed": seed}, changes)
    changes |= {k: v for k, v in {"validation": validation, "imbalance": imbalance}.items() if v is not None}
    chosen = load_recipe(recipe or "brief", **changes)
    check_settings(chosen, changes)
    request = TrainingRequest(
        model=model,
        recipe=chosen.model_dump(mode="json"),
        amp=_amp(amp, amp_dtype, device or "auto"),
        freeze=freeze,
        seed=seed if seed is not None else chosen.seed or 0,
        save_every=save_every,
        tensorboard=not no_tensorboard,
        allow_import=allow_import,
        **{key: value for key, value in {**given, "data": data or "digits"}.items() if value is not None},
        **flags,
    )
    return _told(lambda: _start(request, out))


def _amp(wanted: bool, dtype: str | None, device: str) -> str:
    if not wanted:
        return "off"
    if dtype is not None:
        return dtype
    from vitbench.experiments.open_model import find_device

    return find_device(device).amp_dtype


def _start(request: Any, out: Path | None) -> Any:
    from vitbench.experiments.training import start_training
    from vitbench.experiments.training.progress import make_training_progress

    return start_training(request, out, make_training_progress())


def _resume(folder: Path, **options: Any) -> Any:
    from vitbench.experiments.training import resume_training
    from vitbench.experiments.training.progress import make_training_progress

    return resume_training(folder, make_training_progress(), **options)


def _told(work: Any) -> int:
    """Train, print what came of it."""
    try:
        summary = work()
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "Interrupted.", file=sys.stderr)
        return 130
    if not summary.figures:
        return 0  # not the first of several processes
    last, total = summary.figures["last"], summary.figures["test_images"]
    from vitbench.core.text import one_line  # a folder from elsewhere may hold any text

    what = one_line(f"{summary.figures['model']} on {summary.figures['data']}")
    print(
        f"{what} after {summary.figures['epochs']:g} epochs: "
        f"{last['test_correct']} of {total} test pictures right ({100 * last['test_accuracy']:.2f} %), loss "
        f"{last['test_loss']:.4f}"
    )
    if "best" in summary.figures:
        best = summary.figures["best"]
        print(
            f"Best on validation, after {best['epoch']:g} epochs: {best['test_correct']} of {total} test pictures "
            "right "
            f"({100 * best['test_accuracy']:.2f} %)"
        )
    print(f"Wrote {summary.folder}/report.md, curves.png, history.csv, summary.json and checkpoints/")
    return 0

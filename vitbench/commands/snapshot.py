"""``vitbench snapshot``: exact figures of a suite's models into a lock, a file to commit beside the code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitbench.commands.options import AllowImport, split_integers, split_words
from vitbench.core.errors import UsageError

EPILOG = (
    "Examples:  vitbench snapshot   |   vitbench snapshot --suite smoke -o smoke.lock.json   |   "
    "vitbench snapshot --models vit_basic,timm:vit_tiny_patch16_224 --image-sizes 224 --batch-sizes 1,8 "
    "--modes infer,train   |   vitbench snapshot --models module:pkg.models:build --image-sizes 32 --num-classes 10 "
    "--allow-import"
)


def snapshot(
    suite: Annotated[
        str | None, typer.Option(help="A built-in suite (vitbench list suites) or a .toml file. [default: lightweight]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The lock to write. [default: vitbench.lock.json]")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(help="Models: names, patterns (cifar_*), timm:NAME, torchvision:NAME, module:PKG.MOD:FN; commas."),
    ] = None,
    image_sizes: Annotated[str | None, typer.Option(help="Pixels: 224, 231x240, native; commas.")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Classes of the head.")] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="Images a batch; commas.")] = None,
    dtypes: Annotated[str | None, typer.Option(help="fp32, bf16, fp16, amp; commas.")] = None,
    attention: Annotated[str | None, typer.Option(help="fused, explicit; commas.")] = None,
    modes: Annotated[str | None, typer.Option(help="infer, train; commas.")] = None,
    allow_import: AllowImport = False,
) -> int:
    """Write the exact figures of a suite's models (no device, no timing) into a lock for vitbench check."""
    from dataclasses import replace

    from vitbench.core.text import one_line, printable
    from vitbench.regression.lock_file import DEFAULT_NAME, read_lock, write_lock
    from vitbench.regression.snapshot import take_snapshot
    from vitbench.runner.run import terminate_like_interrupt

    overrides: dict[str, Any] = {
        "models": split_words(models),
        "image_sizes": split_words(image_sizes),
        "num_classes": num_classes,
        "batch_sizes": split_integers(batch_sizes, "--batch-sizes"),
        "dtypes": split_words(dtypes),
        "attention": split_words(attention),
        "modes": split_words(modes),
    }
    path = out or Path(DEFAULT_NAME)
    if not path.parent.is_dir():
        raise UsageError(f"Cannot write {path}: {str(path.parent)!r} is no folder. Make it, or choose another with -o")
    # first of all: what is there may be no lock, or one with a list of what was accepted
    before = read_lock(path) if path.exists() else None

    def note(text: str) -> None:
        print(one_line(text), file=sys.stderr, flush=True)

    try:
        with terminate_like_interrupt():
            lock = take_snapshot(suite or "lightweight", overrides, allow_import=allow_import, note=note)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    if before is not None:
        lock = replace(lock, accepted=before.accepted)
    write_lock(path, lock)
    failed = [entry for entry in lock.entries if entry.failed]
    for entry in failed:
        note(f"Failed: {entry.place.label}: {entry.failed}")
    runs = sum(entry.place.is_run for entry in lock.entries)
    kept = f", with the {len(lock.accepted)} accepted changes that it held" if lock.accepted else ""
    print(f"Wrote {printable(str(path))}: {len(lock.entries) - runs} models, {runs} runs{kept}")
    return 1 if failed else 0

"""``vitbench snapshot``: exact values of a suite's models into a baseline file, to commit beside the code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Context, Option

from vitbench.commands import options
from vitbench.commands.output import note
from vitbench.core.errors import UsageError

EXAMPLES = """
vitbench snapshot
vitbench snapshot --suite smoke -o smoke.lock.json
vitbench snapshot --models vit_basic,timm:vit_tiny_patch16_224 --image-sizes 224 --batch-sizes 1,8 --modes infer,train
vitbench snapshot --models module:pkg.models:build --image-sizes 32 --num-classes 10 --allow-import
"""


def snapshot(
    context: Context,
    suite: options.Suite = "lightweight",
    out: Annotated[
        Path | None,
        Option("--out", "-o", metavar="FILE", help="The baseline file to write. [default: vitbench.lock.json]"),
    ] = None,
    models: options.ModelNames = None,
    image_sizes: options.ImageSizes = None,
    num_classes: options.NumClasses = None,
    batch_sizes: options.BatchSizes = None,
    dtypes: options.Dtypes = None,
    attention: options.Attentions = None,
    modes: options.Modes = None,
    allow_import: options.AllowImport = False,
) -> int:
    """Write exact values of a suite's models into a baseline file for vitbench check.

    Exit codes: 0 done, 1 a model failed, 2 wrong usage.
    """
    from dataclasses import replace

    from vitbench.core.text import printable
    from vitbench.regression.lock_file import DEFAULT_NAME, read_lock, write_lock
    from vitbench.regression.snapshot import lower_bounds, take_snapshot
    from vitbench.runner.run import terminate_like_interrupt

    keys = options.suite_keys(context)
    path = out or Path(DEFAULT_NAME)
    if not path.parent.is_dir():
        raise UsageError(
            f"Cannot write {path}: there is no folder {str(path.parent)!r}. Make it, or choose another (-o)"
        )
    before = read_lock(path) if path.exists() else None  # first: it may be another kind of file
    with terminate_like_interrupt():
        lock = take_snapshot(suite, keys, allow_import=allow_import, note=note)
    if before is not None:
        lock = replace(lock, accepted=before.accepted)
    write_lock(path, lock)
    failed = [entry for entry in lock.entries if entry.failed]
    for entry in failed:
        note(f"Failed: {entry.place.label}: {entry.failed}")
    for text in lower_bounds(lock):
        note(text)
    runs = sum(entry.place.is_run for entry in lock.entries)
    kept = f", with its {len(lock.accepted)} accepted changes" if lock.accepted else ""
    print(f"Wrote {printable(str(path))}: {len(lock.entries) - runs} models, {runs} runs{kept}")
    return 1 if failed else 0

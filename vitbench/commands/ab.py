"""``vitbench ab``: two commits of a repository timed against each other, now, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitbench.commands.gates import Everything, Inconclusive, JsonFile, Junit, Markdown
from vitbench.commands.options import AllowImport, split_integers, split_words
from vitbench.core.errors import UsageError

EPILOG = (
    "Examples:  vitbench ab --base main --models vit_layer6_32   |   "
    "vitbench ab --base v1.0 --head v1.1 --suite gate.toml --markdown changes.md   |   "
    "vitbench ab --base origin/main --models module:mymodels.vit:build --image-sizes 224 --allow-import"
)
#: To the line's begin, and away with what it holds; and what fits into most terminals.
_CLEAR = "\r\x1b[K"
_LONGEST = 100
_MODES = {"infer": ["infer"], "train": ["train"], "both": ["infer", "train"]}


def ab(
    base: Annotated[str, typer.Option(help="The git ref to compare with.")] = "HEAD",
    head: Annotated[
        str, typer.Option(help="The git ref that is judged; a dot is the working tree as it stands.")
    ] = ".",
    suite: Annotated[
        str | None, typer.Option(help="A suite, built in or a .toml file: its timed cells are compared.")
    ] = None,
    models: Annotated[str | None, typer.Option(help="Models; commas. [default: the suite's]")] = None,
    image_sizes: Annotated[
        str | None, typer.Option(help="Pixels: 224, 231x240, native; commas. [default: the suite's, or native]")
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Images a batch; commas. [default: the suite's, or 1]")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="infer, train or both. [default: the suite's, or infer]")] = None,
    devices: Annotated[
        str | None, typer.Option("--device", "--devices", help="cpu, cuda, cuda:1, mps; commas. [default: cpu]")
    ] = None,
    dtypes: Annotated[
        str | None, typer.Option("--dtype", "--dtypes", help="fp32, bf16, fp16, amp; commas. [default: fp32]")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes of the head. [default: each model's own]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: 1]")] = None,
    allow_import: AllowImport = False,
    install: Annotated[
        bool,
        typer.Option("--install", help="Give each side an environment of its own, with what that side asks for (pip)."),
    ] = False,
    margin: Annotated[
        str | None,
        typer.Option(help="A slow-down counts beyond so much: 5%. [default: the suite's thresholds, or 2%]"),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="METRIC=TOLERANCE or METRIC@MODELS=TOLERANCE, such as latency@vit_*=5%, or off; repeatable."),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=1, help="Begin no pair after so long; what is open then is inconclusive.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights, the inputs and the order of turns.")] = 0,
    everything: Everything = False,
    inconclusive: Inconclusive = "warn",
    markdown: Markdown = None,
    json: JsonFile = None,
    junit: Junit = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for the pairs and the report, new or empty. [default: runs/ab-TIME]")
    ] = None,
) -> int:
    """Time two states of a git repository against each other: fresh processes of both, in turns, until it is clear.

    Exit codes: 0 fine, 1 something is slower, 2 wrong usage, 3 something is inconclusive (with --inconclusive fail), 4
    the machine did not let us compare.
    """
    from vitbench.commands.gates import check_ending, choose_outputs, guarded

    check_ending(inconclusive)
    paths = choose_outputs(markdown, json, junit)
    if mode is not None and mode not in _MODES:
        raise UsageError(f"Option --mode: {mode!r} is not allowed. Allowed: {', '.join(_MODES)}")
    overrides: dict[str, Any] = {
        "models": split_words(models),
        "image_sizes": split_words(image_sizes),
        "batch_sizes": split_integers(batch_sizes, "--batch-sizes"),
        "modes": None if mode is None else _MODES[mode],
        "devices": split_words(devices),
        "dtypes": split_words(dtypes),
        "num_classes": num_classes,
        "threads": None if threads is None else [threads],
        "seeds": [seed],
    }

    def gate() -> int:
        return _compare(
            base, head, suite, overrides, paths,
            allow_import=allow_import, install=install, margin=margin, thresholds=threshold or [],
            max_seconds=max_seconds, seed=seed, everything=everything, inconclusive=inconclusive, out=out,
        )  # fmt: skip

    return guarded(gate)


def _compare(
    base: str, head: str, suite: str | None, overrides: dict[str, Any], paths: dict[str, Path | None],
    *, allow_import: bool, install: bool, margin: str | None, thresholds: list[str], max_seconds: float | None,
    seed: int, everything: bool, inconclusive: str, out: Path | None,
) -> int:  # fmt: skip
    from vitbench.commands.gates import publish
    from vitbench.core.text import one_line
    from vitbench.regression.ab.cells import prepare_trials
    from vitbench.regression.ab.output import describe, notes_on, write_facts, write_report
    from vitbench.regression.ab.session import Comparison
    from vitbench.regression.ab.worktrees import check_out
    from vitbench.runner.folder import new_folder
    from vitbench.runner.run import terminate_like_interrupt

    live = sys.stderr.isatty()

    def note(text: str) -> None:
        print(f"{_CLEAR if live else ''}{one_line(text)}", file=sys.stderr, flush=True)

    def tick(text: str) -> None:
        if live:
            print(f"{_CLEAR}{one_line(text)[:_LONGEST]}", end="", file=sys.stderr, flush=True)

    trials = prepare_trials(suite, overrides, thresholds=thresholds, margin=margin, allow_import=allow_import)
    with terminate_like_interrupt(), check_out(base, head, install=install, note=note) as (before, after):
        folder = new_folder(out, "ab")
        note(f"{before.label} against {after.label}: {len(trials)} cell{'s' if len(trials) > 1 else ''}, into {folder}")
        comparison = Comparison(
            base=before, head=after, trials=trials, folder=folder, seed=seed, max_seconds=max_seconds,
            note=note, tick=tick,
        )  # fmt: skip
        try:
            comparison.run()
        except KeyboardInterrupt:
            note(f"Interrupted. The pairs so far are in {folder}")
            return 130
        finally:
            write_facts(comparison)
    changes = comparison.changes
    title = f"{comparison.base.label} → {comparison.head.label}"
    notes = notes_on(comparison)
    note(f"Wrote {write_report(comparison, changes, title, notes)}")
    comparison.check_compared()
    return publish(
        changes, title=title, notes=notes, everything=everything, paths=paths, inconclusive=inconclusive,
        advice="Give it more time (--max-seconds), a quieter machine, or a larger margin (--margin)",
        **describe(comparison),
    )  # fmt: skip

"""``vitbench ab``: two commits of a repository timed against each other, now, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Context, Option

from vitbench.commands import options
from vitbench.commands.output import GateOutput, choose_output, guarded, note, publish
from vitbench.core.text import one_line

if TYPE_CHECKING:
    from vitbench.regression.ab.session import Comparison
    from vitbench.regression.ab.verdicts import Trial

EXAMPLES = """
vitbench ab --base main --models vit_layer6_32
vitbench ab --base v1.0 --head v1.1 --suite gate.toml --markdown changes.md
vitbench ab --base origin/main --models module:mymodels.vit:build --image-sizes 224 --allow-import
"""
#: Back to the start of the line and clear it; and the length that fits into most terminals.
_CLEAR = "\r\x1b[K"
_LONGEST = 100

Base = Annotated[str, Option(metavar="REF", help="The git ref to compare with.")]
Head = Annotated[str, Option(metavar="REF", help="The git ref that is judged; a dot is the working tree as it stands.")]
OptionalSuite = Annotated[str | None, Option(metavar="NAME", help="Compare the timed cells of this suite.")]
Install = Annotated[bool, Option("--install", help="Install each side and its dependencies into its own environment.")]
Margin = Annotated[str | None, Option(metavar="5%", help="Allowed slowdown. [default: the suite's, or 2%]")]
MaxSeconds = Annotated[float | None, Option(metavar="SECONDS", min=1, help="Start no pair after this time.")]
Seed = Annotated[int, Option(metavar="N", help="Of the weights, the inputs and the order of turns.")]


@guarded
def ab(
    context: Context,
    base: Base = "HEAD",
    head: Head = ".",
    suite: OptionalSuite = None,
    models: options.ModelNames = None,
    image_sizes: options.ImageSizes = None,
    batch_sizes: options.BatchSizes = None,
    mode: options.Mode = None,
    devices: options.Devices = None,
    dtypes: options.Dtypes = None,
    num_classes: options.NumClasses = None,
    threads: options.ThreadCount = None,
    allow_import: options.AllowImport = False,
    install: Install = False,
    margin: Margin = None,
    threshold: options.Thresholds = None,
    max_seconds: MaxSeconds = None,
    seed: Seed = 0,
    everything: options.Everything = False,
    inconclusive: options.Inconclusive = "warn",
    markdown: options.Markdown = None,
    json: options.JsonFile = None,
    junit: options.Junit = None,
    out: options.RunFolder = None,
) -> int:
    """Time two commits against each other, in turns, until the result is clear.

    Without a suite: batch 1, inference, cpu, fp32, one thread. Exit codes: 0 fine, 1 something is slower, 2 wrong
    usage, 3 something is inconclusive (--inconclusive fail), 4 not compared because of trouble with the machine.
    """
    output = choose_output(markdown, json, junit, everything=everything, inconclusive=inconclusive)
    keys = {**options.suite_keys(context), "seeds": [seed]}

    from vitbench.regression.ab.cells import prepare_trials

    trials = prepare_trials(suite, keys, thresholds=threshold or [], margin=margin, allow_import=allow_import)
    return _publish(_measure(trials, base, head, out, install=install, max_seconds=max_seconds, seed=seed), output)


def _measure(
    trials: list[Trial], base: str, head: str, out: Path | None, *, install: bool, max_seconds: float | None, seed: int
) -> Comparison:
    from vitbench.regression.ab.session import Comparison, write_facts
    from vitbench.regression.ab.worktrees import check_out
    from vitbench.runner.folder import new_folder
    from vitbench.runner.run import terminate_like_interrupt

    live = sys.stderr.isatty()

    def say(text: str) -> None:
        print(f"{_CLEAR if live else ''}{one_line(text)}", file=sys.stderr, flush=True)

    def tick(text: str) -> None:
        if live:
            print(f"{_CLEAR}{one_line(text)[:_LONGEST]}", end="", file=sys.stderr, flush=True)

    with terminate_like_interrupt(), check_out(base, head, install=install, note=say) as (before, after):
        folder = new_folder(out, "ab")
        say(f"{before.label} against {after.label}: {len(trials)} cell{'s' if len(trials) > 1 else ''}, into {folder}")
        comparison = Comparison(
            base=before, head=after, trials=trials, folder=folder, seed=seed, max_seconds=max_seconds,
            note=say, tick=tick,
        )  # fmt: skip
        try:
            comparison.run()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Interrupted. The pairs so far are in {folder}") from None
        finally:
            write_facts(comparison)
    return comparison


def _publish(comparison: Comparison, output: GateOutput) -> int:
    from vitbench.regression.ab.session import describe, notes_on, write_report

    changes = comparison.changes
    title = f"{comparison.base.label} → {comparison.head.label}"
    notes = notes_on(comparison)
    note(f"Wrote {write_report(comparison, changes, title, notes)}")
    comparison.check_compared()
    advice = "Give it more time (--max-seconds), a quieter machine, or a larger margin (--margin)"
    return publish(changes, output, title=title, notes=notes, advice=advice, **describe(comparison))

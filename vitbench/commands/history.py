"""``vitbench history``: many stored runs in a row, when each figure changed, and their times for pytest-benchmark."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitbench.commands.options import split_words
from vitbench.core.errors import UsageError

if TYPE_CHECKING:
    from vitbench.regression.stored_runs import Found

EPILOG = (
    "Examples:  vitbench history runs   |   vitbench history runs --metric 'relative_*,params' --out history   |   "
    "vitbench history runs --pytest-benchmark .benchmarks   |   vitbench history .benchmarks"
)


def history(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders with runs at any depth, or JSON of pytest-benchmark; one or more.")
    ],
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            "--metrics",
            help="Names or patterns: params, 'relative_*', latency; commas. [default: all that is judged]",
        ),
    ] = None,
    models: Annotated[str | None, typer.Option(help="Names or patterns of models; commas.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write history.md and a picture of each series into this folder.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Also write everything as JSON into this file; - prints it.")
    ] = None,
    pytest_benchmark: Annotated[
        Path | None,
        typer.Option(
            help="Also write the runs' times for pytest-benchmark: into a storage folder (.benchmarks), numbered, or "
            "one run into a .json file."
        ),
    ] = None,
) -> int:
    """Show when figures changed over many runs, and at which commit. Advice: the exit code is 0 whatever it finds."""
    from vitbench.core.run_folder import write_atomically
    from vitbench.core.text import one_line, printable, printable_lines
    from vitbench.regression.history import make_history
    from vitbench.regression.history_page import history_json, render_terminal, write_history
    from vitbench.regression.stored_runs import find_runs

    runs = find_runs(folders)
    found = make_history(runs, metrics=split_words(metric), models=split_words(models))
    for problem in found.problems:
        print(f"Warning: {one_line(problem)}", file=sys.stderr)
    written: list[Path] = []
    if pytest_benchmark is not None:
        written += _export(runs, split_words(models), pytest_benchmark)
    if out is not None:
        written += write_history(found, out)
    if json is not None and str(json) == "-":
        print(history_json(found), end="")
        return 0
    if json is not None:
        write_atomically(json, history_json(found).encode())
        written.append(json)
    print(printable_lines(render_terminal(found)))
    pictures = [path for path in written if path.suffix == ".png"]
    if len(pictures) > 3:
        print(f"Wrote {len(pictures)} pictures into {printable(str(pictures[0].parent))}")
        written = [path for path in written if path.suffix != ".png"]
    for path in written:
        print(f"Wrote {printable(str(path))}")
    return 0


def _export(found: Found, models: list[str] | None, place: Path) -> list[Path]:
    """Write the run folders as pytest-benchmark would have; returns the new files."""
    import fnmatch

    from vitbench.regression.pytest_benchmark_json import to_benchmarks, write_file, write_storage

    patterns = models or ["*"]
    runs = [
        (
            one.name,
            [record for record in one.records if any(fnmatch.fnmatchcase(record.cell.model, p) for p in patterns)],
            one.environment,
        )
        for one in found.folders
    ]
    if not runs:
        raise UsageError(
            "--pytest-benchmark: there is no run folder here to write. Give one that vitbench run has made"
        )
    if place.suffix != ".json":
        written = write_storage(place, runs)
        if not written:
            print("Nothing new for --pytest-benchmark: it holds these runs, or they have no times", file=sys.stderr)
        return written
    if len(runs) > 1:
        raise UsageError(f"--pytest-benchmark {place}: {len(runs)} runs do not go into one file. Give a folder")
    content = to_benchmarks(*runs[0])
    if not content["benchmarks"]:
        raise UsageError(f"--pytest-benchmark {place}: the run has no times. Measure latency or training_step")
    write_file(place, content)
    return [place]

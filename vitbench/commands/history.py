"""``vitbench history``: when values changed over many stored runs, and their times for pytest-benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from vitbench.commands import options
from vitbench.commands.output import note, print_written
from vitbench.core.errors import UsageError

if TYPE_CHECKING:
    from vitbench.regression.stored_runs import Found

EXAMPLES = """
vitbench history runs
vitbench history runs --metric 'relative_*,params' --out history
vitbench history runs --pytest-benchmark .benchmarks
vitbench history .benchmarks
"""


def history(
    folders: Annotated[list[Path], Argument(help="Folders with runs, or JSON of pytest-benchmark.")],
    metric: Annotated[
        str | None, Option("--metric", "--metrics", metavar="NAME,...", help="Names or patterns: params, 'relative_*'.")
    ] = None,
    models: options.ModelNames = None,
    out: Annotated[Path | None, Option(metavar="DIR", help="Also write history.md and a plot of each series.")] = None,
    json: Annotated[Path | None, Option(metavar="FILE", help="Also write everything as JSON; - prints it.")] = None,
    pytest_benchmark: Annotated[
        Path | None,
        Option(metavar="PATH", help="Also write the times into .benchmarks, or of one run into a .json file."),
    ] = None,
) -> int:
    """Show when values changed over many runs, and at which commit. The exit code is 0 whatever it finds."""
    from vitbench.core.run_folder import write_atomically
    from vitbench.core.text import printable, printable_lines
    from vitbench.regression.history import make_history
    from vitbench.regression.history_page import history_json, render_terminal, write_history
    from vitbench.regression.stored_runs import find_runs

    runs = find_runs(folders)
    found = make_history(runs, metrics=options.split_words(metric), models=options.split_words(models))
    for problem in found.problems:
        note(f"Warning: {problem}")
    written: list[Path] = []
    if pytest_benchmark is not None:
        written += _export(runs, options.split_words(models), pytest_benchmark)
    if out is not None:
        written += write_history(found, out)
    if json is not None and str(json) == "-":
        print(history_json(found), end="")
        return 0
    if json is not None:
        write_atomically(json, history_json(found).encode())
        written.append(json)
    print(printable_lines(render_terminal(found)))
    plots = [path for path in written if path.suffix == ".png"]
    if len(plots) > 3:
        print(f"Wrote {len(plots)} plots into {printable(str(plots[0].parent))}")
        written = [path for path in written if path.suffix != ".png"]
    print_written(written)
    return 0


def _export(found: Found, models: list[str] | None, place: Path) -> list[Path]:
    """Write the run folders as pytest-benchmark would have; returns the new files."""
    from fnmatch import fnmatchcase

    from vitbench.regression.pytest_benchmark_json import to_benchmarks, write_file, write_storage

    patterns = models or ["*"]
    runs = []
    for run in found.folders:
        chosen = [one for one in run.records if any(fnmatchcase(one.cell.model, pattern) for pattern in patterns)]
        runs.append((run.name, chosen, run.environment))
    if not runs:
        raise UsageError("--pytest-benchmark: there is no run folder here. Give one of vitbench run")
    if place.suffix != ".json":
        written = write_storage(place, runs)
        if not written:
            note("Nothing new for --pytest-benchmark: it holds these runs, or they have no times")
        return written
    if len(runs) > 1:
        raise UsageError(f"--pytest-benchmark {place}: {len(runs)} runs do not go into one file. Give a folder")
    content = to_benchmarks(*runs[0])
    if not content["benchmarks"]:
        raise UsageError(f"--pytest-benchmark {place}: the run has no times. Measure latency or training_step")
    write_file(place, content)
    return [place]

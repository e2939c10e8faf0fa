"""``vitbench report``: rebuild the report of runs from their records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vitbench.commands.output import STDOUT, print_summary, print_text, print_written, refuse_unwritable
from vitbench.core.errors import UsageError

EXAMPLES = """
vitbench report runs/lightweight-20260101-120000
vitbench report runs/laptop runs/server --out both
vitbench report runs/laptop runs/server --html both.html
vitbench report runs/laptop --format latex --out table.tex
"""


def report(
    runs: Annotated[list[Path], Argument(help="Run folders.")],
    format: Annotated[
        str | None, Option(metavar="NAME", help="Only this: html, markdown, latex, csv, json or terminal.")
    ] = None,
    out: Annotated[
        Path | None,
        Option(metavar="PATH", help="The folder to write to [default: the one run's]; with --format the file, or -."),
    ] = None,
    html: Annotated[Path | None, Option(metavar="FILE", help="Short for --format html --out FILE.")] = None,
) -> int:
    """Rebuild the report of one or several runs from their records, without torch.

    Without --format it writes report.html, report.md, report.csv and plots, and prints a summary. With --format it
    prints that format, or writes it to --out; a page goes to report.html in the one run's folder.
    """
    if html is not None:
        if format is not None or out is not None:
            raise UsageError("--html FILE is short for --format html --out FILE: leave out --format and --out")
        format, out = "html", html
    if format is not None:
        return _one_format(runs, format, out)
    from vitbench.reports import write_report

    target = out or (runs[0] if len(runs) == 1 else None)
    written = write_report(runs, target) if target is not None else []
    print_summary(runs)
    print_written(written)
    return 0


def _one_format(runs: list[Path], format: str, out: Path | None) -> int:
    from vitbench.core.run_folder import write_atomically
    from vitbench.reports import FORMATS, HTML, render

    if format not in FORMATS:
        raise UsageError(f"Option --format: {format!r} is not one of {', '.join(FORMATS)}")
    if format == "html" and out is None:
        if len(runs) > 1:
            raise UsageError("The page of several runs needs a file: give --out FILE, or --out - to print it")
        out = runs[0] / HTML
    if out is None and format == "terminal":
        print_summary(runs)
    elif out is None or out == STDOUT:
        print_text(render(runs, format))
    else:
        refuse_unwritable("--out", out)
        write_atomically(out, render(runs, format).encode())
        print_written([out])
    return 0

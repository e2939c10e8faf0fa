"""``vitbench plot``: one plot of runs as SVG, PNG or PDF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vitbench.commands.output import print_written
from vitbench.core.errors import UsageError

EXAMPLES = """
vitbench plot pareto runs/lightweight-20260101-120000 -o pareto.svg
vitbench plot pareto runs/laptop runs/server --x params -o params.pdf
vitbench plot scaling runs/lightweight-20260101-120000 --y throughput -o throughput.png
vitbench plot limits runs/frontier-20260101-120000 -o limits.svg
"""


def plot(
    kind: Annotated[str, Argument(help="pareto, scaling, limits, spread, or training.")],
    runs: Annotated[list[Path], Argument(help="Run folders.")],
    out: Annotated[Path, Option("--out", "-o", metavar="FILE", help="Where to write: .svg, .png or .pdf.")],
    x: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Pareto: latency, relative_latency, memory, params, flops, throughput. "
            "Scaling: batch, image_size, patches.",
        ),
    ] = None,
    y: Annotated[str | None, Option(metavar="NAME", help="Scaling: latency, throughput, memory, ...")] = None,
) -> int:
    """Plot runs: Pareto fronts, scaling, memory limits, latency spread, or training loss."""
    from vitbench.core.run_folder import write_atomically
    from vitbench.reports.model.runs import read_runs
    from vitbench.reports.plots.kinds import draw
    from vitbench.reports.plots.style import FORMATS

    suffix = out.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"Option --out: {str(out)!r} does not end with {', '.join(FORMATS)}. Give such a file")
    if not out.parent.is_dir():
        raise UsageError(f"Option --out: there is no folder {str(out.parent)!r}. Make it, or give another file")
    write_atomically(out, draw(kind, read_runs(runs), suffix, x=x, y=y))
    print_written([out])
    return 0

"""``vitbench report``: rebuild the tables of runs from their records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vitbench.commands.output import print_written

EXAMPLES = """
vitbench report runs/lightweight-20260101-120000
vitbench report runs/laptop runs/server --out both
"""


def report(
    runs: Annotated[list[Path], Argument(help="Run folders.")],
    out: Annotated[Path | None, Option(metavar="DIR", help="Where to write, else into the one run.")] = None,
) -> int:
    """Rebuild the report of one or several runs from their records, without torch."""
    from vitbench.reports import summary_tables, write_report

    target = out or (runs[0] if len(runs) == 1 else None)
    written = write_report(runs, target) if target is not None else []
    print(summary_tables(runs))
    print_written(written)
    return 0

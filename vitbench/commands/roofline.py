"""``vitbench roofline``: what this machine attains, and what share of it the cells of a run reach."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument

from vitbench.commands import options
from vitbench.commands.output import note, print_json, print_written

EXAMPLES = """
vitbench roofline
vitbench roofline --threads 1 --dtypes fp32,bf16
vitbench roofline runs/lightweight-20260101-120000
"""


def roofline(
    run: Annotated[Path | None, Argument(help="A run folder that was measured here.")] = None,
    device: options.OptionalDevice = None,
    threads: options.ThreadCount = None,
    dtypes: options.Dtypes = None,
    json: options.JsonObject = False,
) -> int:
    """Measure this machine's roof, and the share of it that cells of a run reach.

    The roof: attainable compute by dtype, and bandwidth by working set. Also whether compute, bandwidth or overhead
    bounds each cell. Takes up to a minute for each device and number of threads. With a run its report is written anew.

    The exit code is 1 if a value is refused because its rounds spread by more than 10 %.
    """
    from dataclasses import asdict

    from vitbench.analysis.roofline import METHOD
    from vitbench.core.errors import UsageError
    from vitbench.core.text import printable_lines
    from vitbench.reports.markdown.roof import cells_text, machine_text
    from vitbench.reports.model.roof import shares_of
    from vitbench.reports.model.runs import read_runs
    from vitbench.runner.roofline import add_roof, roof_alone

    written: list[Path] = []
    text: list[str] = []
    result: dict[str, Any] = {"method": METHOD}
    if run is None:
        machines = [roof_alone(device or "auto", threads, options.split_words(dtypes) or (), note)]
    elif device or threads or dtypes:
        raise UsageError("The devices, threads and dtypes of a run are those of its cells: give no option, or no run")
    else:
        written = add_roof(run, note)
        roof = read_runs([run])[0].roof
        assert roof is not None  # it has just been written
        machines = [*roof.machines]
        text, result = [cells_text(roof)], {"method": roof.method, "cells": shares_of(roof)}
    if json:
        print_json({**result, "roofs": [asdict(one) for one in machines]})
    else:
        print(printable_lines("\n\n".join([*map(machine_text, machines), *text])))
        print_written(written)
    return 1 if any(one.refused for one in machines) else 0

"""``vitbench compare``: what changed from one stored run to another, and whether anything got worse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from vitbench.commands import options
from vitbench.commands.output import choose_output, guarded, publish
from vitbench.core.errors import UsageError

if TYPE_CHECKING:
    from vitbench.core.records import Record
    from vitbench.suites import Threshold

EXAMPLES = """
vitbench compare runs/main runs/branch
vitbench compare results/laptop/lightweight runs/new --all
vitbench compare runs/main runs/branch --threshold 'relative_latency=40%' --markdown changes.md
"""


@guarded
def compare(
    base: Annotated[Path, Argument(help="The run folder to compare with.")],
    head: Annotated[Path, Argument(help="The run folder that is judged.")],
    everything: options.Everything = False,
    allow_different_machines: Annotated[
        bool, Option("--allow-different-machines", help="Compare times and memory although the environments differ.")
    ] = False,
    threshold: options.Thresholds = None,
    inconclusive: options.Inconclusive = "warn",
    markdown: options.Markdown = None,
    json: options.JsonFile = None,
    junit: options.Junit = None,
) -> int:
    """Compare two runs: exact values to the unit, times by their relative latency.

    Exit codes: 0 fine, 1 something is worse, 2 wrong usage, 3 something is inconclusive (--inconclusive fail), 4 not
    compared because of trouble with the machine.
    """
    output = choose_output(markdown, json, junit, everything=everything, inconclusive=inconclusive)
    tables = [_table(option) for option in threshold or []]

    from vitbench.regression.compare import compare_runs, read_thresholds
    from vitbench.reports.model.runs import read_runs

    own = read_thresholds(head)
    before, after = read_runs([base, head])
    rules = [*own, *_rules(tables, [*before.records, *after.records])]
    found = compare_runs(before, after, rules, allow_different_machines=allow_different_machines)
    title = f"vitbench compare: {before.name} -> {after.name}"
    advice = "Add processes (vitbench run --processes 15), or use vitbench ab"
    return publish(found.changes, output, title=title, notes=found.notes, advice=advice, **found.facts)


def _table(option: str) -> dict[str, Any]:
    """A --threshold as a table. Raises UsageError for another form, or for a metric that compare never gates."""
    from vitbench.suites.thresholds import RELATIVE, parse_option, yields_of

    table = parse_option(option)
    metric, relative = table["metric"], f"{RELATIVE}{table['metric']}"
    if yields_of(metric).kind in ("shown", "time") and table.get("gate", True):
        way_out = f": give {relative}" if yields_of(relative).kind == "relative" else ""
        raise UsageError(f"Option --threshold: {option!r}: {metric} differs too much between runs to gate{way_out}")
    return table


def _rules(tables: list[dict[str, Any]], records: Sequence[Record]) -> tuple[Threshold, ...]:
    """The thresholds of the command line. Raises SuiteError for one that matches nothing in the runs."""
    from vitbench.suites import check_thresholds, make_thresholds

    rules = make_thresholds(tables, "--threshold", metrics=[table["metric"] for table in tables])
    metrics = {one.metric for record in records for one in record.measurements}
    models = {record.cell.model: None for record in records}
    if models:  # without records another error comes first
        check_thresholds(rules, "Option --threshold", metrics=metrics, models=models)
    return rules

"""``vitbench claims``: published values of models against computed and measured ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vitbench.commands import options
from vitbench.commands.output import note, print_json

EXAMPLES = """
vitbench claims
vitbench claims --models 'cifar_*' --json
vitbench claims runs/seeds-20260101-120000 runs/train-vit_layer6_32-* --out results
"""


def claims(
    runs: Annotated[list[Path] | None, Argument(help="Folders of runs and trainings.")] = None,
    models: options.ModelNames = None,
    out: Annotated[Path | None, Option(metavar="DIR", help="Also write claims.md and claims.json.")] = None,
    json: options.JsonArray = False,
) -> int:
    """Compare published values with computed and measured ones.

    By default: all models of ours, and torchvision's ViTs.
    """
    from vitbench.analysis.claims import to_dict
    from vitbench.analysis.model_summary import judge_models
    from vitbench.experiments.training.records import read_results
    from vitbench.reports.markdown.claims import write_claims
    from vitbench.reports.markdown.tables import table_text
    from vitbench.reports.model.claims import claims_table, count_verdicts

    judged = judge_models(options.split_words(models), read_results(runs or []))
    written = write_claims(judged, out) if out else []  # first: an error here is the only output
    if json:
        print_json([to_dict(one) for one in judged])
    else:
        print(table_text(claims_table(judged)) if judged else "These models have no published values.")
        if judged:
            note(f"{len(judged)} claims: {count_verdicts(judged)}")
    for path in written:
        note(f"Wrote {path}")
    return 0

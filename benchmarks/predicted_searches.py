"""Searches for the largest batch that begin at a prediction, against searches that double the batch from 1.

``python -m benchmarks.predicted_searches --out FOLDER``: in each round both ways search every model in inference and
training under one memory limit on the CPU, each model in a ``vitbench frontier`` of its own. The ways take turns, and
change their order each round. Finished runs in FOLDER are kept: stopped, it continues. After each round it writes
``predicted_searches.md`` there. Nothing else should run meanwhile.

Seconds of a search are those of its attempts, of a run those of the whole program: with imports, and with the trace
that predicts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kept_runs import run_program
from vitbench.core.records import format_image_size
from vitbench.core.run_folder import read_records
from vitbench.reports.format import table
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import CALLS, Search, find_searches

MODELS = ["vit_tiny16", "timm:vit_small_patch16_224", "timm:levit_128s"]
PREDICTED, DOUBLED = "predicted", "doubled"
#: The command line without its prediction, which no option switches off.
_DOUBLED = (
    "import sys; from vitbench.runner import plan; from vitbench.cli import run_command; "
    "plan.predict_largest = lambda *_: {}; sys.exit(run_command(sys.argv[1:]))"
)
PROGRAMS = {PREDICTED: ["-m", "vitbench"], DOUBLED: ["-c", _DOUBLED]}


@dataclass(frozen=True)
class OneRun:
    """One program: its wall seconds and its searches."""

    wall_s: float
    searches: Sequence[Search]


def main() -> None:
    """Run what is missing, write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--image-sizes", default="224")
    parser.add_argument("--memory-limit", default="512MiB")
    parser.add_argument("--max-batch", default="1024")
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    conditions = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in ("image-sizes", "memory-limit")]
    conditions += [f"--max-batch={options.max_batch}", f"--threads={options.threads}", "--device=cpu", "--mode=both"]
    runs: dict[str, list[OneRun]] = {PREDICTED: [], DOUBLED: []}
    for number in range(options.rounds):
        ways = [PREDICTED, DOUBLED] if number % 2 == 0 else [DOUBLED, PREDICTED]
        for model in options.models.split(","):
            for way in ways:
                folder = options.out / f"{number}-{model.replace(':', '-')}-{way}"
                command = [sys.executable, *PROGRAMS[way], "frontier", model, *conditions, f"--out={folder}"]
                wall_s = run_program(folder, command)
                runs[way].append(OneRun(wall_s, find_searches([Run(name=way, records=read_records(folder))])))
        text = "\n\n".join(tables(runs)) + "\n"
        (options.out / "predicted_searches.md").write_text(text, encoding="utf-8")
    print(text)


def tables(runs: dict[str, list[OneRun]]) -> list[str]:
    """A line for each search, and one sentence on the whole; both ways have the same runs in the same order."""
    by_base: dict[str, dict[str, list[Search]]] = {}
    for way, several in runs.items():
        for search in (search for run in several for search in run.searches):
            by_base.setdefault(search.base.id, {PREDICTED: [], DOUBLED: []})[way].append(search)
    lines = [line(both[PREDICTED], both[DOUBLED]) for both in by_base.values()]
    headings = ["model", "image size (px)", "call", "predicted", "found", "attempts", "doubled", "seconds, of doubled"]
    counts = {
        way: sum(len(search.records) for run in several for search in run.searches) for way, several in runs.items()
    }
    seconds = ratio((run.wall_s for run in runs[PREDICTED]), (run.wall_s for run in runs[DOUBLED]))
    return [
        table(headings, lines, ["model", "call"]),
        f"{counts[PREDICTED]} attempts instead of {counts[DOUBLED]}. Seconds of the whole program: {seconds} of those "
        "without prediction (median of pairs, and the smallest and largest).",
    ]


def line(predicted: Sequence[Search], doubled: Sequence[Search]) -> list[str]:
    """What both ways found, in how many attempts and seconds, in each of several rounds."""
    base = predicted[0].base
    return [
        base.model,
        format_image_size(base.image_size),
        CALLS[base.mode],
        each("none" if one.predicted is None else f"{one.predicted:.0f}" for one in predicted),
        each(one.found for one in [*predicted, *doubled]),
        each(str(len(one.records)) for one in predicted),
        each(str(len(one.records)) for one in doubled),
        ratio(map(attempts_s, predicted), map(attempts_s, doubled)),
    ]


def attempts_s(search: Search) -> float:
    """Seconds of all attempts of a search."""
    return sum(record.duration_s for record in search.records.values())


def each(texts: Iterable[str]) -> str:
    """What rounds gave: one text if it is always the same."""
    return ", ".join(dict.fromkeys(texts))


def ratio(predicted: Iterable[float], doubled: Iterable[float]) -> str:
    """The ratios of pairs: their median, and the smallest and largest."""
    ratios = [one / other for one, other in zip(predicted, doubled, strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


if __name__ == "__main__":
    main()

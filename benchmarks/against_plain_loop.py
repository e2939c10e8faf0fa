"""Milliseconds of ``vitbench run`` over those of a plain loop in turn with it: warm means warm.

``python -m benchmarks.against_plain_loop --out FOLDER`` measures ten models at batch 1, with one thread and with two,
by ``vitbench run`` and by ``vitbench run --quick``. After each turn of a cell one of two loops, processes of their own,
calls the same model (``loops_in_turn.py``), so that a run and its loops meet the same seconds. Finished runs in FOLDER
are kept: stopped, it continues. After each run it writes ``against_plain_loop.md`` there, of what there is so far.
Nothing else should run meanwhile.

A run's milliseconds are divided by the loop's in two ways: the median of all its calls (geometric mean of the two
loops), and what the report would say of its calls, which is their time in quiet turns.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.kept_runs import run_program
from benchmarks.loops_in_turn import LOOPS, Burst, read_bursts
from vitbench.core.records import Measurement
from vitbench.core.run_folder import read_records
from vitbench.core.stats.estimates import quiet_times
from vitbench.reports.format import table
from vitbench.reports.model.values import value_of

#: About 1 to 300 ms with two threads. The first three are ours and mostly dispatch; efficientvit, levit and mobilevit
#: choose convolution kernels in their first calls; swin moves memory; the three plain ViTs are matrix products that
#: grow from caches' size to beyond it.
MODELS = [
    "vit_basic_tutorial",
    "vit_layer6_32",
    "cifar_vit_tiny",
    "timm:levit_128s",
    "timm:efficientvit_b0",
    "timm:vit_tiny_patch16_224",
    "timm:mobilevit_xs",
    "timm:deit_small_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "timm:vit_base_patch16_224",
]
#: A way of running with its options, and within which bounds its ratio should be.
WAYS: dict[str, tuple[list[str], tuple[float, float]]] = {
    "run": ([], (0.95, 1.05)),
    "quick": (["--quick"], (0.9, 1.1)),
}


@dataclass(frozen=True)
class Ratios:
    """Of one model in one run: its milliseconds over the loop's, over the loop's in quiet turns (None with fewer than
    three processes), and one loop over the other.
    """

    over_loop: float
    over_quiet: float | None
    loops: float


#: One value a repeat, by threads, way and model.
Found = dict[tuple[int, str, str], list[Ratios]]


def main() -> None:
    """Run what is missing, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", default="2,1")
    parser.add_argument("--ways", default="quick,run")
    parser.add_argument("--models", default=",".join(MODELS), help="some of the ten")
    options = parser.parse_args()
    found: Found = {}
    for number in range(options.repeats):
        for threads in map(int, options.threads.split(",")):
            for way in options.ways.split(","):
                folder = options.out / f"{number}-{threads}-threads-{way}"
                words = ["--models", options.models, "--threads", str(threads), *WAYS[way][0]]
                run_program(folder, [sys.executable, "-m", "benchmarks.loops_in_turn", str(folder), *words])
                for model, ratios in ratios_of(folder).items():
                    found.setdefault((threads, way, model), []).append(ratios)
                (options.out / "against_plain_loop.md").write_text(page(found), encoding="utf-8")
    print(page(found))


def ratios_of(folder: Path) -> dict[str, Ratios]:
    """The ratios of each model that the run has a latency of."""
    bursts, found = read_bursts(folder), {}
    for record in read_records(folder):
        of_model, value = bursts.get(record.cell.model, []), value_of(record, "latency")
        if value.value is None or value.measurement is None:
            continue
        by_loop = [
            statistics.median(
                x for process in of_model for burst in process if burst.loop == loop for x in burst.samples
            )
            for loop in range(LOOPS)
        ]
        quiet_s = quiet_loop(of_model, value.measurement)
        found[record.cell.model] = Ratios(
            over_loop=value.value / statistics.geometric_mean(by_loop),
            over_quiet=None if quiet_s is None else value.value / quiet_s,
            loops=by_loop[0] / by_loop[1],
        )
    return found


def quiet_loop(bursts: Sequence[Sequence[Burst]], beside: Measurement) -> float | None:
    """The seconds of a loop's call by the rules of a report, its bursts as turns of the cell ``beside`` it; None with
    fewer than three processes.
    """
    as_cell = replace(
        beside,
        samples=tuple(tuple(sample for burst in process for sample in burst.samples) for process in bursts),
        turns=tuple(tuple(len(burst.samples) for burst in process) for process in bursts),
    )
    found = quiet_times(as_cell)
    return None if found is None else math.exp(found.seconds.log_value)


def page(found: Mapping[tuple[int, str, str], Sequence[Ratios]]) -> str:
    """``against_plain_loop.md``."""
    lines: list[list[str]] = []
    inside: dict[tuple[int, str], list[tuple[bool, bool]]] = {}
    for (threads, way, model), repeats in found.items():
        plain, loops = [one.over_loop for one in repeats], [math.exp(abs(math.log(one.loops))) for one in repeats]
        quiet = [one.over_quiet for one in repeats if one.over_quiet is not None]
        low, high = WAYS[way][1]
        middle, middle_quiet = statistics.median(plain), statistics.median(quiet or plain)
        inside.setdefault((threads, way), []).append((low <= middle <= high, low <= middle_quiet <= high))
        lines.append([model, str(threads), way, f"{middle:.3f}", span(plain)])
        lines[-1] += [f"{middle_quiet:.3f}", span(quiet)] if quiet else ["–", "–"]
        lines[-1] += [f"{statistics.median(loops):.3f}, {max(loops):.3f}", str(len(repeats))]
    said = []
    for (threads, way), within in inside.items():
        low, high = WAYS[way][1]
        counts = [f"{sum(some)} of {len(within)}" for some in zip(*within, strict=True)]
        said.append(
            f"- {way}, threads {threads}: the median of {counts[0]} models is between {low} and {high}; "
            f"{counts[1]} in quiet turns."
        )
    headings = ["model", "threads", "by", "ms over the loop's, median", "least to most", "in quiet turns, median"]
    headings += ["least to most of these", "the loops' own: median, most", "repeats"]
    return "\n".join(["# Against a plain loop", "", *said, "", table(headings, lines, ["model", "by"])]) + "\n"


def span(values: Sequence[float]) -> str:
    """``0.980 to 1.020``, or a dash for one value."""
    return "–" if len(values) < 2 else f"{min(values):.3f} to {max(values):.3f}"


if __name__ == "__main__":
    main()

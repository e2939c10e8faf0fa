"""How long the report of a run of 1,000 records takes, beside that of another checkout, in turns.

``python -m benchmarks.report_of_1000_records [--against CHECKOUT] [--rounds 3] [--run FOLDER] [--profile]``

An older checkout may not read records as they are written now: ``--run`` reports a run that it wrote. Against the code
that labelled every point and estimated values for each table anew: 21 s to 183 s on a loaded machine, ratio 0.116.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.reports import fabricate
from tests.reports.fabricate import ENVIRONMENT, cell, infer, train_step, trained, training_cell, write_run
from tests.reports.paired import loads, timed
from vitbench.core.records import Record
from vitbench.models.cards import model_registry
from vitbench.reports import write_report
from vitbench.reports.model.runs import Run

MODELS = 60
PROCESSES, TURNS = 5, 12
CODE = "import sys; from vitbench.reports import write_report; write_report([sys.argv[1]], sys.argv[2])"


def fabricate_records() -> list[Record]:
    """Sixty models at two sizes and three batches in turns with the reference, training steps, trainings: 1,000."""
    records = []
    names = [*list(model_registry())[: MODELS // 2], *(f"other_vit_{index}" for index in range(MODELS // 2))]
    for index, name in enumerate(names):
        fabricate.MODELS[name] = (400_000 * (index + 2), 50_000_000 * (index + 2))
        reference = [0.01 * (1 + 0.01 * ((index + 3 * turn) % 7)) for turn in range(TURNS)]
        for side in (32, 64):
            size = {"image_size": (side, side)}
            for batch in (1, 8, 32):
                for attention in ("fused", "explicit"):
                    ratios = [(1 + 0.03 * index) * batch * (1 + 0.01 * process) for process in range(PROCESSES)]
                    extra = [timed("latency_cpu_time", ratios, reference=reference), *loads(0.1, 0.0, PROCESSES)]
                    of = infer(cell(name, batch, attention=attention, **size), processes=PROCESSES, extra=extra)
                    latency = timed("latency", ratios, reference=reference, group=f"{side} {batch} {index // 6}")
                    kept = tuple(one if one.metric != "latency" else latency for one in of.measurements)
                    records.append(dataclasses.replace(of, measurements=kept))
            records.append(trained(training_cell(name, **size), 150 + (7 * index + side) % 190))
            if len(records) % 17 == 0:
                records.append(train_step(cell("vit_nano", 32, mode="train", seed=index, **size)))
    for seed in range(1, 1000):
        records.append(trained(training_cell(names[seed % MODELS], seed=seed // MODELS + 1), 150 + (11 * seed) % 190))
    return records[:1000]


def seconds(checkout: Path, run: Path, out: Path) -> float:
    """One report by the package of ``checkout`` in a process of its own."""
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    # not from a checkout: Python imports from the folder that it starts in first
    subprocess.run([sys.executable, "-c", CODE, str(run), str(out)], check=True, env=environment, cwd=run)
    return time.perf_counter() - started


def main() -> None:
    """Make the run, report it in turns, print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout, such as a git worktree of an older commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", type=Path, help="report this run rather than a fabricated one")
    parser.add_argument("--profile", action="store_true", help="print where this checkout's time goes instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fabricated = Run(name="run", records=[] if options.run else fabricate_records(), environment=ENVIRONMENT)
        run = options.run.resolve() if options.run else write_run(folder / "run", fabricated)
        if options.profile:
            profile = cProfile.Profile()
            profile.runcall(write_report, [run], folder / "out")
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
            return
        checkouts = {"here": Path(__file__).parents[1], **({"there": options.against} if options.against else {})}
        times: dict[str, list[float]] = {name: [] for name in checkouts}
        for _ in range(options.rounds):
            for name, checkout in checkouts.items():
                times[name].append(seconds(checkout.resolve(), run, folder / name))
    medians = {name: statistics.median(some) for name, some in times.items()}
    print(", ".join(f"{name}: {value:.1f} s" for name, value in medians.items()))
    if options.against:
        print(f"here / there: {medians['here'] / medians['there']:.3f} (medians of {options.rounds})")


if __name__ == "__main__":
    main()

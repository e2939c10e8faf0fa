"""timm's own ``benchmark.py`` and ``vitbench run``, five light models at batch 1: wall time and repeatability.

``python -m benchmarks.against_timm_benchmark --benchmark-py FILE --out FOLDER``, where FILE is ``benchmark.py`` of
https://github.com/huggingface/pytorch-image-models (the package lacks it). In each round ``benchmark.py``, ``vitbench
run`` and ``vitbench run --quick`` measure the models once, in turn. ``benchmark.py`` sleeps for seconds after each
model: its time is given with these pauses and without them. Finished runs in FOLDER are kept: stopped, it continues.
After each round it writes ``against_timm_benchmark.md`` there. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kept_runs import run_program, run_vitbench
from vitbench.core.run_folder import read_records
from vitbench.reports.format import table
from vitbench.reports.model.values import value_of

#: Under 8 M parameters, without weights to download: a plain ViT, linear attention, convolutions with attention.
MODELS = ["vit_tiny_patch16_224", "efficientvit_b0", "mobilevit_xs", "levit_128s", "mobilevitv2_050"]
#: What ``benchmark.py`` gives of a model: its parameters, multiply-adds (by fvcore) and time.
METRICS = "params,flops,latency"
TIMM = "benchmark.py"
WAYS = [TIMM, "run", "quick"]
RESULTS = "results.csv"
_PAUSE = re.compile(r"^\s*time\.sleep\((\d+)\)", re.MULTILINE)


@dataclass(frozen=True)
class OneRun:
    """One run of a program: its wall seconds and each model's milliseconds."""

    wall_s: float
    ms: Mapping[str, float]


def main() -> None:
    """Run what is missing, write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark-py", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", default=",".join(MODELS), help="timm's names")
    options = parser.parse_args()
    models = options.models.split(",")
    pauses = _PAUSE.findall(options.benchmark_py.read_text(encoding="utf-8"))
    pause_s = len(models) * sum(map(int, pauses))
    runs: dict[str, list[OneRun]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            folder = options.out / f"{number}-{way.removesuffix('.py')}"
            if way == TIMM:
                one = run_timm(folder, options.benchmark_py, models, options.threads)
            else:
                one = run_ours(folder, models, options.threads, quick=way == "quick")
            runs[way].append(one)
        text = page(runs, pause_s)
        (options.out / "against_timm_benchmark.md").write_text(text, encoding="utf-8")
    print(text)


def run_timm(folder: Path, program: Path, models: Sequence[str], threads: int) -> OneRun:
    """``benchmark.py`` of a list of models: 10 calls, then the mean of 40."""
    names = folder.with_name(f"{folder.name}.txt")
    names.parent.mkdir(parents=True, exist_ok=True)
    names.write_text("".join(f"{model}\n" for model in models), encoding="utf-8")
    results = folder / RESULTS
    # benchmark.py writes a file into a folder that is there
    make = f"import os, runpy, sys; os.makedirs({str(folder)!r}); sys.argv = sys.argv[1:]; "
    make += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", make, str(program), "--model-list", str(names), "--bench", "inference"]
    command += ["--batch-size", "1", "--device", "cpu", "--results-file", str(results)]
    wall_s = run_program(folder, command, variables={"OMP_NUM_THREADS": str(threads)})
    with results.open(newline="", encoding="utf-8") as file:
        return OneRun(wall_s, {line["model"]: float(line["infer_step_time"]) for line in csv.DictReader(file)})


def run_ours(folder: Path, models: Sequence[str], threads: int, *, quick: bool) -> OneRun:
    """``vitbench run`` of the same models."""
    words = ["--models", ",".join(f"timm:{model}" for model in models), "--image-sizes", "native", "--batch-sizes", "1"]
    words += ["--modes", "infer", "--data", "none", "--metrics", METRICS, "--threads", str(threads)]
    wall_s = run_vitbench(folder, [*words, *(["--quick"] if quick else [])])
    values = {record.cell.model: value_of(record, "latency").value for record in read_records(folder)}
    return OneRun(wall_s, {name.removeprefix("timm:"): 1000 * ms for name, ms in values.items() if ms is not None})


def page(runs: Mapping[str, Sequence[OneRun]], pause_s: float) -> str:
    """``against_timm_benchmark.md``; ``pause_s``: the seconds that ``benchmark.py`` sleeps after its models, in all."""
    models = list(dict.fromkeys(name for some in runs.values() for one in some for name in one.ms))
    walls = {way: [one.wall_s for one in some] for way, some in runs.items()}
    theirs, awake = walls[TIMM], [seconds - pause_s for seconds in walls[TIMM]]
    of_programs, of_models = [], []
    for way, seconds in {TIMM: theirs, f"{TIMM} without its pauses": awake, **walls}.items():
        spans = []
        for model in models:
            values = [one.ms[model] for one in runs.get(way, ()) if model in one.ms]
            if values:
                low, middle, high = min(values), statistics.median(values), max(values)
                spans.append(high / low)
                numbers = f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{high / low:.3f}", cv(values)
                of_models.append([model, way, *numbers])
        times = [f"{number:.0f}" for number in (statistics.median(seconds), min(seconds), max(seconds))]
        span = f"{statistics.median(spans):.3f}, {max(spans):.3f}" if spans else "–"
        of_programs.append([way, *times, median_ratio(seconds, theirs), median_ratio(seconds, awake), span])
    headings = ["program", "wall time, median, s", "least", "most", f"over {TIMM}", "over it without its pauses"]
    headings.append("slowest / fastest of a model: median, most")
    head = [
        f"{len(theirs)} rounds, {len(models)} models at batch 1. `{TIMM}` gives parameters, multiply-adds, activations",
        f"and the mean time of 40 calls after 10, and sleeps {pause_s:.0f} s in all after its models. `vitbench run`",
        f"took `--metrics {METRICS}`.",
    ]
    spread = ["model", "by", "ms, median", "rounds", "slowest / fastest", "CV, %"]
    parts = ["# Against timm's benchmark.py", "\n".join(head), table(headings, of_programs, ["program"])]
    of_models.sort(key=lambda line: models.index(line[0]))
    return "\n\n".join([*parts, table(spread, of_models, ["model", "by"])]) + "\n"


def median_ratio(seconds: Sequence[float], others: Sequence[float]) -> str:
    """The median over the rounds of a program's time over another's."""
    return f"{statistics.median(one / other for one, other in zip(seconds, others, strict=True)):.2f}"


def cv(values: Sequence[float]) -> str:
    """The coefficient of variation in %; a dash for one value."""
    return f"{100 * statistics.stdev(values) / statistics.fmean(values):.1f}" if len(values) > 1 else "–"


if __name__ == "__main__":
    main()

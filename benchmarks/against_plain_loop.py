"""Milliseconds of ``vitbench run`` over those of a plain loop: warm means warm.

``python -m benchmarks.against_plain_loop --out FOLDER`` measures ten models at batch 1, with one thread and with two,
by ``vitbench run`` and by ``vitbench run --quick``. Before and after each run, a process for each model calls it 10
times, then 50 times and for a second at least, and takes the median. A model's value is the run's milliseconds over
the geometric mean of the loops before and after. Finished parts in FOLDER are kept: stopped, it continues. Prints a
table and writes ``against_plain_loop.md`` there. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.kept_runs import run_program, run_vitbench
from vitbench.core.run_folder import read_records
from vitbench.reports.format import table
from vitbench.reports.model.values import value_of

#: Models with their own image sizes in px, about 1 to 300 ms with two threads. The first three are ours and mostly
#: dispatch; efficientvit, levit and mobilevit choose convolution kernels in their first calls; swin moves memory; the
#: three plain ViTs are matrix products that grow from caches' size to beyond it.
MODELS = {
    "vit_basic_tutorial": 32,
    "vit_layer6_32": 32,
    "cifar_vit_tiny": 32,
    "timm:levit_128s": 224,
    "timm:efficientvit_b0": 224,
    "timm:vit_tiny_patch16_224": 224,
    "timm:mobilevit_xs": 256,
    "timm:deit_small_patch16_224": 224,
    "timm:swin_tiny_patch4_window7_224": 224,
    "timm:vit_base_patch16_224": 224,
}
#: A way of running with its options, and within which bounds its ratio should be.
WAYS: dict[str, tuple[list[str], tuple[float, float]]] = {
    "run": ([], (0.95, 1.05)),
    "quick": (["--quick"], (0.9, 1.1)),
}
WARM_UP, CALLS, SECONDS = 10, 50, 1.0
RESULT = "milliseconds.txt"

#: A run's milliseconds over the loop's, by threads, way and model: one value a repeat.
Ratios = Mapping[tuple[int, str, str], Sequence[float]]


def main() -> None:
    """Run what is missing, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--ways", default=",".join(WAYS), help="run,quick")
    parser.add_argument("--models", default=",".join(MODELS), help="some of the ten")
    parser.add_argument("--loop", nargs=2, metavar=("MODEL", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:  # a process of its own, started below
        options.out.mkdir(parents=True)
        (options.out / RESULT).write_text(f"{plain_loop(options.loop[0], int(options.loop[1])):.6f}\n")
        return
    models, ways = options.models.split(","), options.ways.split(",")
    ratios: dict[tuple[int, str, str], list[float]] = {}
    for number in range(options.repeats):
        for threads in map(int, options.threads.split(",")):
            folder = options.out / f"{number}-{threads}-threads"
            for way, model, ratio in one_repeat(folder, models, ways, threads):
                ratios.setdefault((threads, way, model), []).append(ratio)
    text = page(ratios)
    (options.out / "against_plain_loop.md").write_text(text, encoding="utf-8")
    print(text)


def plain_loop(model: str, threads: int) -> float:
    """Milliseconds of a call, as anyone would measure them."""
    import torch

    from vitbench import build_model

    torch.set_num_threads(threads)
    network, images = build_model(model).eval(), torch.randn(1, 3, MODELS[model], MODELS[model])
    with torch.inference_mode():
        for _ in range(WARM_UP):
            network(images)
        times: list[float] = []
        start = time.perf_counter()
        while len(times) < CALLS or time.perf_counter() - start < SECONDS:
            begin = time.perf_counter()
            network(images)
            times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def one_repeat(
    folder: Path, models: Sequence[str], ways: Sequence[str], threads: int
) -> Iterator[tuple[str, str, float]]:
    """Loops, a run, loops, a run, loops: the ratio of each way and model that the run has a value of."""
    before = loops(folder / "loops-0", models, threads)
    for number, way in enumerate(ways, 1):
        run = folder / way
        words = ["--models", ",".join(models), "--image-sizes", "native", "--batch-sizes", "1", "--modes", "infer"]
        words += ["--data", "none", "--metrics", "latency", "--threads", str(threads), *WAYS[way][0]]
        run_vitbench(run, words)
        after = loops(folder / f"loops-{number}", models, threads)
        for model, ms in milliseconds(run).items():
            yield way, model, ms / math.sqrt(before[model] * after[model])
        before = after


def loops(folder: Path, models: Sequence[str], threads: int) -> dict[str, float]:
    """Milliseconds of each model by a plain loop in a process of its own."""
    found = {}
    for model in models:
        of_model = folder / model.replace(":", "-")
        command = [sys.executable, "-m", "benchmarks.against_plain_loop", "--loop", model, str(threads)]
        run_program(of_model, [*command, "--out", str(of_model)])
        found[model] = float((of_model / RESULT).read_text())
    return found


def milliseconds(run: Path) -> dict[str, float]:
    """The latency of each model of a run folder. Raises ValueError for another image size than the loop's."""
    found = {}
    for record in read_records(run):
        if set(record.cell.image_size) != {MODELS[record.cell.model]}:
            raise ValueError(f"{record.cell.label} in {run} has another size than {MODELS[record.cell.model]} px")
        value = value_of(record, "latency").value
        if value is not None:
            found[record.cell.model] = 1000 * value
    return found


def page(ratios: Ratios) -> str:
    """``against_plain_loop.md``."""
    lines: list[list[str]] = []
    inside: dict[tuple[int, str], list[bool]] = {}
    for (threads, way, model), values in sorted(ratios.items(), key=lambda item: (item[0][0], item[0][1] != "run")):
        low, high = WAYS[way][1]
        middle = statistics.median(values)
        inside.setdefault((threads, way), []).append(low <= middle <= high)
        lines.append([model, str(threads), way, f"{middle:.3f}", quartiles(values), str(len(values))])
    said = []
    for (threads, way), within in inside.items():
        low, high = WAYS[way][1]
        share = f"the median of {sum(within)} of {len(within)} models is between {low} and {high}"
        said.append(f"- {way}, threads {threads}: {share}.")
    headings = ["model", "threads", "by", "ms over the loop's, median", "quartiles", "repeats"]
    return "\n".join(["# Against a plain loop", "", *said, "", table(headings, lines, ["model", "by"])]) + "\n"


def quartiles(values: Sequence[float]) -> str:
    """``first to third``; a dash for one value."""
    if len(values) < 2:
        return "–"
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return f"{first:.3f} to {third:.3f}"


if __name__ == "__main__":
    main()

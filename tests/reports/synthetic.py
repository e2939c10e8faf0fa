"""Runs of any size with hostile names: several devices, sizes and batches, every status, busy and marked values.

``python -m tests.reports.synthetic LINES FOLDER`` writes them as run folders.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from tests.reports import fabricate
from tests.reports.fabricate import ENVIRONMENT, cell, failed, ok, size, trained, training_cell, write_run
from tests.reports.paired import METHOD, REFERENCE, REFERENCE_S, check, loads
from vitbench.core.records import Cell, Measurement, Record
from vitbench.reports.model.runs import Run
from vitbench.suites.batch_search import BOUND, expected_attempts

#: Names that run, break out of, or change the place that they are written into. ``window.__xss`` must never be set.
HOSTILE = (
    "</script><script>window.__xss=1</script>",
    '"><img src=x onerror=window.__xss=1>',
    "$E=mc^2$ {{7*7}} %{x} ${window.__xss=1}",
    "__proto__",
    "javascript:window.__xss=1",
    "\u202eright_to_left\u202c \u0646\u0645\u0648\u0630\u062c",  # an override of the direction, and Arabic letters
    "x" * 200,
    '=HYPERLINK("http://x.invalid")',
    "line\nbreak\tand tab",
    "\U0001f600_\U0001f469\u200d\U0001f4bb|`a`",
)
#: Of a device, a recipe and a class.
BREAKING = "<b onmouseover=window.__xss=1>"
RUNS = ("first <img src=x onerror=window.__xss=1>", "second")
PROCESSES, TURNS, SAMPLES = 3, 4, 10
#: One in so many cells fails, is beside another program's load, or was not called often enough.
FAILS, BUSY, FEW = 13, 17, 19

#: status, cause, detail, signal
_FAILURES = (
    ("oom", "out_of_memory", "RuntimeError: DefaultCPUAllocator: can't allocate memory: 123456 bytes", None),
    ("timeout", "timeout", "no answer within 600 s", None),
    ("killed", "probable_oom", "ended by SIGKILL", 9),
    ("error", "exception", f"ValueError: {HOSTILE[0]} | {HOSTILE[1]}", None),
    ("unsupported", "operator", "NotImplementedError: no kernel for 'aten::x'", None),
)


def synthetic_runs(lines: int, seed: int = 0) -> list[Run]:
    """Two runs of together ``lines`` lines of a report, and, from 40 lines on, one that searched for largest batches."""
    conditions = _conditions()[: max(1, round(0.64 * math.sqrt(lines)))]
    records: dict[str, list[Record]] = {name: [] for name in RUNS}
    with patch.dict(fabricate.MODELS):  # which grows by each model
        for line in range(lines):
            model, condition = divmod(line, len(conditions))
            run, of = conditions[condition]
            records[run] += _records(_named(of, model), random.Random(f"{seed} {line}"), line)
        searches = [_searching_run()] if lines >= 40 else []
    return [*(_run(name, found, number) for number, (name, found) in enumerate(records.items()) if found), *searches]


def write_synthetic_runs(folder: Path, lines: int, seed: int = 0) -> list[Path]:
    """The runs as folders; these are named ``run-1`` and so on, as file systems refuse the runs' own names."""
    written = []
    for number, run in enumerate(synthetic_runs(lines, seed), 1):
        written.append(write_run(folder / f"run-{number}", run))
        (written[-1] / "noise.jsonl").write_text("".join(one.to_json() + "\n" for one in run.noise), encoding="utf-8")
    return written


def _conditions() -> list[tuple[str, Cell]]:
    """What lines vary by, most telling first: batches and devices of one size, another run, then more sizes."""
    sides, batches, devices = (32, 224, 48, 64, 96), (1, 32, 8, 4, 16), ("cpu", "cuda:0")
    grid = [(run, side, device, batch) for run in RUNS for side in sides for device in devices for batch in batches]

    def order(one: tuple[str, int, str, int]) -> tuple[int, ...]:
        run, side, device, batch = one
        place = (RUNS.index(run), sides.index(side), devices.index(device), batches.index(batch))
        return (max(place[1], place[3] - 1), place[0], place[1], place[2], place[3])

    return [
        (run, cell("", batch, image_size=(side, side), device=device))
        for run, side, device, batch in sorted(grid, key=order)
    ]


def _named(of: Cell, number: int) -> Cell:
    """The models after the first have hostile names."""
    family = ("vit", "deit", "swin", "cait", "levit", "xcit", "eva", "beit")[number % 8]
    name = (
        HOSTILE[number - 1]
        if 1 <= number <= len(HOSTILE)
        else f"timm:{family}_{('nano', 'tiny', 'small')[number % 3]}{number}_patch16"
    )
    # so that a model's costs follow from its number, everywhere
    width = 1 + (7 * number) % 40 + 0.01 * number
    fabricate.MODELS[name] = (round(300_000 * width), round(40_000_000 * width))
    return dataclasses.replace(of, model=name)


def _records(of: Cell, rng: random.Random, line: int) -> list[Record]:
    """A line of the table: what was timed and, at batch 1, the training of its model at this size."""
    if line % FAILS == FAILS - 1:
        status, cause, detail, signal = _FAILURES[line // FAILS % len(_FAILURES)]
        tail = f"Traceback (most recent call last):\n{HOSTILE[0]}\n" if status == "error" else ""
        return [failed(of, status, cause, detail, signal=signal, stderr_tail=tail)]
    found = [_timed_record(of, rng, line)]
    if of.batch_size == 1 and of.device == "cpu":
        found.append(_training(of, rng))
    if line % 3 == 0 and of.batch_size > 1:
        found.append(_step_record(of, rng))
    return found


def _timed_record(of: Cell, rng: random.Random, line: int) -> Record:
    params, _, flops, _ = (one.value for one in size(of))
    speed = 2.5e11 if of.device == "cuda:0" else 3e10
    seconds = 0.0004 + flops * of.batch_size**0.9 / speed
    busy = line % BUSY == BUSY - 1
    latency = _timed("latency", seconds, rng, apart=2.0 if busy else 1.01, load=0.9 if busy else 0.0)
    if line % FEW == FEW - 1:
        latency = dataclasses.replace(latency, detail="too few: less than 10 steady samples in a process")
    rate = tuple(tuple(of.batch_size / x for x in process) for process in latency.samples)
    peak = Measurement.single("inference_peak_memory", "byte", 4 * params + 8e5 * of.batch_size, "rise of VmHWM")
    if line % 29 == 28:
        peak = Measurement.absent("inference_peak_memory", "byte", "timeout", "no answer within 10 s")
    throughput = dataclasses.replace(latency, metric="throughput", unit="image/s", samples=rate)
    return ok(of, [*size(of), peak, latency, throughput, *loads(0.9 if busy else 0.05, 0.0, PROCESSES)])


def _step_record(of: Cell, rng: random.Random) -> Record:
    train = dataclasses.replace(of, mode="train")
    params, _, flops, _ = (one.value for one in size(train))
    peak = Measurement.single("training_peak_memory", "byte", 20 * params, "rise of VmHWM")
    step = _timed("training_step", 0.002 + flops * of.batch_size**0.9 / 1e10, rng)
    return ok(train, [*size(train), peak, step])


def _training(of: Cell, rng: random.Random) -> Record:
    """Its curve only at 32 px: 40 optimizer steps, with a spike now and then."""
    train = training_cell(of.model, image_size=of.image_size, weights=f"train:{BREAKING}")
    correct = round(360 * (0.25 + 0.68 * rng.random() * math.tanh(fabricate.MODELS[of.model][0] / 4e6)))
    f1 = [rng.random() for _ in range(10)]
    record = trained(train, correct, f1=f1, names=", ".join(f"{BREAKING}{n}" for n in range(10)))
    losses = tuple(2.3 * math.exp(-step / 25) + 0.3 * rng.random() + (step == 9) for step in range(40))
    curve = Measurement(metric="training_loss", unit="nat", samples=(losses,), method="loss of each step")
    kept = [one for one in record.measurements if one.metric != "training_loss"]
    return dataclasses.replace(record, measurements=(*kept, *([curve] if of.image_size == (32, 32) else [])))


def _timed(metric: str, seconds: float, rng: random.Random, *, apart: float = 1.01, load: float = 0.0) -> Measurement:
    """Three processes, each ``apart`` times as slow as the one before, in turns with the reference; calls scatter by
    some percent, and one in twenty takes half as long again.
    """

    def call(process: int) -> float:
        late = 1.5 if rng.random() < 0.05 else 1.0
        return round(seconds * apart ** (process - 1) * late * math.exp(rng.gauss(0, 0.03)), 9)

    return Measurement(
        metric=metric,
        unit="s",
        samples=tuple(tuple(call(process) for _ in range(TURNS * SAMPLES)) for process in range(PROCESSES)),
        turns=((SAMPLES,) * TURNS,) * PROCESSES,
        reference_samples=tuple(
            tuple(round(REFERENCE_S * math.exp(rng.gauss(0, 0.01)), 9) for _ in range(TURNS)) for _ in range(PROCESSES)
        ),
        other_load=((load,) * TURNS,) * PROCESSES,
        reference=REFERENCE,
        method=METHOD,
    )


def _run(name: str, records: Sequence[Record], number: int) -> Run:
    """The second run was measured on another machine."""
    environment = json.loads(json.dumps(ENVIRONMENT))
    environment["environments"]["e1"]["system"]["cpu"] = f"{BREAKING} CPU {number}"
    environment["environments"]["e1"]["libraries"]["versions"]["torch"] = f"2.{14 + number}.0"
    environment["sessions"][0]["command_line"] += f" --models '{HOSTILE[0]}'"
    noise = [check(ratio, device) for device in ("cpu", "cuda:0") for ratio in (0.99, 1.0, 1.01)]
    return Run(name=name, records=records, environment=environment, noise=noise)


def _searching_run() -> Run:
    """Searches in which some, none and all batches fit."""
    records = []
    for side, mode, limit in ((224, "infer", 12), (384, "infer", 3), (512, "infer", 0), (224, "train", 64)):
        for batch in expected_attempts(limit, 64, None):
            of = _named(cell("", batch, image_size=(side, side), mode=mode, memory_limit=512 * 2**20), 1)
            peak = "training_peak_memory" if mode == "train" else "inference_peak_memory"
            found = [*size(of), Measurement.single(BOUND, "image", 64, "doubling, then bisection")]
            if batch <= limit:
                records.append(ok(of, [*found, Measurement.single(peak, "byte", 1e8 + 7e6 * batch, "rise of VmHWM")]))
            else:
                absent = Measurement.absent(peak, "byte", "oom", "too much")
                record = ok(of, [*found, absent])
                records.append(dataclasses.replace(record, status="oom", cause="out_of_memory", detail="too much"))
    return _run("searches", records, 0)


if __name__ == "__main__":
    for path in write_synthetic_runs(Path(sys.argv[2]), int(sys.argv[1])):
        print(path)

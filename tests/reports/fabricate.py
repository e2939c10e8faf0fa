"""Records as a run leaves them, made up: the tests say what varies, the rest follows from the model's size."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitbench.core.records import Cell, Measurement, Record
from vitbench.reports.model.runs import Run

#: name -> (parameters, FLOPs at 32 px)
MODELS = {
    "vit_nano": (412_106, 51_380_224),
    "vit_micro": (1_213_450, 155_648_000),
    "vit_small": (4_871_690, 633_339_904),
    "vit_big": (11_173_962, 1_457_520_640),
}

ENVIRONMENT: dict[str, Any] = {
    "schema": 1,
    "environments": {
        "e1": {
            "system": {
                "os": "Linux 6.1",
                "python": "3.12.4",
                "cpu": "Example CPU @ 2.50GHz",
                "logical_cores": 8,
                "usable_cores": 2,
                "memory_bytes": 16_000_000_000,
                "container_memory_bytes": 8_000_000_000,
                "variables": {"OMP_NUM_THREADS": "2"},
            },
            "libraries": {"versions": {"torch": "2.15.0", "timm": "1.0.20", "fvcore": "0.1.5", "thop": "0.1.1"}},
            "devices": {
                "cpu": {"name": "Example CPU @ 2.50GHz"},
                "cuda:0": {"name": "Example GPU", "memory_bytes": 25_000_000_000},
            },
        },
        "never used": {"system": {"cpu": "Another CPU"}},
    },
    "sessions": [
        {
            "started_at": "2026-01-02T03:04:05+00:00",
            "command_line": "vitbench run --suite lightweight --out /home/somebody/runs/first",
            "vitbench": "0.1.0",
            "commit": "0123456789abcdef0123456789abcdef01234567+changes",
        }
    ],
}


def cell(model: str = "vit_micro", batch: int = 1, **changes: Any) -> Cell:
    fields: dict[str, Any] = {"image_size": (32, 32), "num_classes": 10, "device": "cpu", "threads": 2, **changes}
    return Cell(model=model, batch_size=batch, **fields)


def ok(of: Cell, measurements: Sequence[Measurement]) -> Record:
    return Record(
        cell=of,
        status="ok",
        measurements=tuple(measurements),
        environment="e1",
        started_at="2026-01-02T03:04:06+00:00",
        duration_s=4.5,
    )


def failed(of: Cell, status: str, cause: str = "", detail: str = "", **changes: Any) -> Record:
    """A cell that failed before anything but its size was measured."""
    fields = {"stderr_tail": "", "signal": None, **changes}
    absent = [
        Measurement.absent(metric, unit, status, detail)  # type: ignore[arg-type]
        for metric, unit in (("inference_peak_memory", "byte"), ("latency", "s"), ("throughput", "image/s"))
        if of.mode == "infer"
    ]
    record = ok(of, [*size(of), *absent])
    return dataclasses.replace(record, status=status, cause=cause, detail=detail, **fields)


def size(of: Cell) -> list[Measurement]:
    params, flops = MODELS.get(of.model, MODELS["vit_big"])
    flops = flops * of.image_size[0] * of.image_size[1] // 1024
    return [
        Measurement.single("params", "parameter", params, "sum over parameters(), torch 2.15.0"),
        Measurement.single("trainable_params", "parameter", params, "sum over parameters(), torch 2.15.0"),
        Measurement.single("flops", "FLOP", flops, "FlopCounterMode on meta, torch 2.15.0"),
        Measurement.single("macs", "MAC", flops / 2, "FlopCounterMode on meta, torch 2.15.0; FLOPs / 2"),
    ]


def wobble(value: float, n: int = 40, processes: int = 1, warmup: int = 0) -> tuple[tuple[float, ...], ...]:
    """Samples that scatter by some percent around ``value``, processes a little apart, the first ``warmup`` slower."""
    return tuple(
        tuple(
            round(value * (1 + 0.02 * p) * (1 + 0.03 * math.sin(2.4 * i + p)) * (1.8 if i < warmup else 1), 9)
            for i in range(n)
        )
        for p in range(processes)
    )


def infer(
    of: Cell, *, speed: float = 1.0, n: int = 40, processes: int = 1, extra: Sequence[Measurement] = ()
) -> Record:
    """An inference cell whose time follows from its FLOPs."""
    flops = size(of)[2].value
    params = round(size(of)[0].value)
    seconds = (0.0004 + flops * of.batch_size**0.9 / 3e10) / speed
    around = "time.perf_counter around one forward pass, torch 2.15.0"
    return ok(
        of,
        [
            *size(of),
            *extra,
            Measurement.single("weights_memory", "byte", 4 * params, "bytes of parameters and buffers"),
            Measurement.single(
                "inference_peak_memory",
                "byte",
                4 * params + 800_000 * of.batch_size,
                "bytes + rise of VmHWM",
            ),
            Measurement(metric="latency", unit="s", samples=wobble(seconds, n, processes, warmup=3), method=around),
            Measurement(
                metric="throughput",
                unit="image/s",
                samples=wobble(of.batch_size / seconds, n, processes),
                method=f"{of.batch_size} images / {around}",
            ),
        ],
    )


def train_step(of: Cell) -> Record:
    seconds = (0.002 + size(of)[2].value * of.batch_size**0.9 / 1e10) * 1.1
    method = "time.perf_counter around zero_grad, forward, backward, step, torch 2.15.0"
    return ok(
        of,
        [
            *size(of),
            Measurement.single("training_peak_memory", "byte", 20 * MODELS[of.model][0], "bytes + rise of VmHWM"),
            Measurement(metric="training_step", unit="s", samples=wobble(seconds), method=method),
        ],
    )


def trained(
    of: Cell, correct: int, total: int = 360, *, f1: Sequence[float] = (), names: str = "", budget: str = ""
) -> Record:
    """A training cell that got ``correct`` of ``total`` test pictures right, with F1 by class where it is given: all of a class
    with any F1 is found, and other classes' pictures are taken for it.
    """
    method = f"top-1 on held-out pictures of {of.data} after brief, seed {of.seed}"
    by_class = []
    if f1:
        by_class = [
            Measurement.single("macro_f1", "1", math.fsum(f1) / len(f1), "mean over classes of F1"),
            *(
                Measurement(
                    metric=f"class_{what}", unit="1", samples=(values,), method=f"{what} of each class", detail=names
                )
                for what, values in {
                    "f1": tuple(f1),
                    "precision": tuple(one / (2 - one) for one in f1),
                    "recall": tuple(float(one > 0) for one in f1),
                }.items()
            ),
        ]
    return ok(
        of,
        [
            *size(of),
            Measurement.single("accuracy", "1", correct / total, method, f"{correct} of {total} right"),
            *by_class,
            Measurement.single("test_loss", "nat", 2.3 * (1 - correct / total) + 0.05, method),
            Measurement.single("test_images", "image", total, f"held-out pictures of {of.data}"),
            Measurement.single("training_images", "image", 12_800, "pictures seen, repeats counted", budget),
            Measurement.single("training_duration", "s", 21.5, "wall time of the training loop"),
            Measurement(metric="training_loss", unit="nat", samples=((2.3, 1.9, 1.2),), method="loss of each step"),
        ],
    )


def training_cell(model: str, **changes: Any) -> Cell:
    fields: dict[str, Any] = {
        "mode": "train",
        "weights": "train:brief",
        "data": "digits",
        "recipe_hash": "abcdef1234",
        **changes,
    }
    return cell(model, fields.pop("batch", 64), **fields)


def counters(fvcore: float | None, thop: float | None, detail: str = "") -> list[Measurement]:
    """The figures (FLOP) of the other tools; None: the tool broke."""
    found = []
    for name, value in (("fvcore", fvcore), ("thop", thop)):
        method = f"2 x {name} on the CPU, batch of 1"
        if value is None:
            absent = f"{name} breaks on this model: KeyError: 'total_ops'"
            found.append(Measurement.absent(f"flops_{name}", "FLOP", "unsupported", absent, method))
        else:
            found.append(Measurement.single(f"flops_{name}", "FLOP", value, method, detail if name == "fvcore" else ""))
    return found


def full_run(name: str = "first", speed: float = 1.0, processes: int = 1) -> Run:
    """Every model at batch 1 and 32, a training step and a training each, all well."""
    records = []
    for (model, (_, flops)), correct in zip(MODELS.items(), (251, 288, 316, 309), strict=True):
        others = counters(
            flops * 0.861, flops * 0.857, "operators without a formula: aten::scaled_dot_product_attention x6"
        )
        for batch in (1, 32):
            records.append(infer(cell(model, batch), speed=speed, processes=processes, extra=others))
        records += [train_step(cell(model, 32, mode="train")), trained(training_cell(model), correct)]
    return Run(name=name, records=records, environment=ENVIRONMENT)


def write_run(folder: Path, run: Run) -> Path:
    """The run as a folder on the disk."""
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("".join(record.to_json() + "\n" for record in run.records), encoding="utf-8")
    environment: Mapping[str, Any] = run.environment or {"schema": 1, "environments": {}, "sessions": []}
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    return folder

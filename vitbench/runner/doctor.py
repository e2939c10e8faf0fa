"""Can this machine be trusted with a measurement: its environment, advice, and each metric tried on each device."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from vitbench.core.records import Record
from vitbench.core.registry import METRICS
from vitbench.devices.host.environment import usable_cores
from vitbench.devices.host.load import LoadWatch, busiest_programs
from vitbench.executors.launcher import make_launcher
from vitbench.runner.measure import CellMeasurer
from vitbench.runner.plan import check_before_loading, make_plan
from vitbench.runner.progress import Progress
from vitbench.suites import make_suite

#: What is tried: the smallest model that has everything, for as short as can be.
TRIAL: Mapping[str, Any] = {
    "name": "doctor",
    "models": ["vit_basic_tutorial"],
    "image_sizes": [16],
    "batch_sizes": [2],
    "modes": ["infer", "train"],
    "measure": {"processes": 1, "seconds": 0.1, "patience_s": 0},
    "timeout_s": 120,
    "training": {"data": "digits", "images": 64, "test_images": 50, "timeout_s": 120},
}
#: How long the machine's other load is watched, in seconds.
LOOK_S = 1.0
#: Cores that other programs may use without advice.
QUIET_CORES = 0.15
#: Of a status, the worst of which is shown; of any other 2.
_BADNESS = {"ok": 0, "unsupported": 1}
#: Bytes under which models of the usual sizes do not fit.
LITTLE_MEMORY = 4e9


def examine(progress: Progress | None = None) -> dict[str, Any]:
    """The environment with its hash, advice, and how each metric fares on each device; JSON values only.

    ``checks`` maps a metric to a device to ``{"status", "detail"}``, the worst of the metric's measurements in
    inference and training.
    """
    watch = LoadWatch()
    programs = busiest_programs(LOOK_S)
    load = watch.stop()
    suite = check_before_loading(make_suite({**TRIAL, "metrics": list(METRICS)}, "doctor"))
    reporter = progress or Progress()
    with make_launcher(["torch._dynamo", "sklearn.datasets", "fvcore.nn", "thop"]) as launcher:
        plan = make_plan(suite, launcher, reporter.note)
        reporter.note(f"Trying every metric on {', '.join(plan.suite.devices)} ...")
        with CellMeasurer(plan, launcher, None, reporter) as measurer:
            records = list(measurer.measure(plan.cells))
    environment = dict(plan.environment)
    return {
        "environment": environment,
        "environment_hash": plan.environment_hash,
        "other_load_cores": load.other_load,
        "other_programs": dict(programs),
        "cpu_steal_cores": load.cpu_steal,
        "advice": advise(environment, load.other_load or 0.0, load.cpu_steal or 0.0, programs),
        "checks": check_metrics(records),
    }


def check_metrics(records: Sequence[Record]) -> dict[str, dict[str, dict[str, str]]]:
    """metric -> device -> the worst status of its measurements, and why."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for name in METRICS:
        for record in records:
            wanted = METRICS.get(name).yields_in(record.cell.mode)
            for one in record.measurements:
                if one.metric not in wanted:
                    continue
                place = found.setdefault(name, {}).setdefault(record.cell.device, {"status": "ok", "detail": ""})
                if _BADNESS.get(one.status, 2) > _BADNESS.get(place["status"], 2):
                    place.update(status=one.status, detail=one.detail)
    return found


def advise(
    environment: Mapping[str, Any], other_load: float, steal: float, programs: Sequence[tuple[str, float]] = ()
) -> list[str]:
    """What in this environment makes values worse than they need be, each with what to do.

    ``programs`` are those that use most of ``other_load``, with the cores that each uses.
    """
    system, libraries = environment["system"], environment["libraries"]
    power, devices = system.get("power") or {}, environment.get("devices") or {}
    cores = system.get("usable_cores") or usable_cores()
    found = []
    if other_load > QUIET_CORES:
        named = ", ".join(f"{name} {used:.1f}" for name, used in programs)
        found.append(
            f"Other programs keep {other_load:.1f} of {cores} cores busy{f' ({named})' if named else ''}: stop them "
            "before anything is timed, or time with --threads 1. Otherwise a run repeats the turns that they disturb, "
            "waits for up to [measure] patience_s, and takes longer"
        )
    if steal > 0.02:
        found.append(
            f"The host takes {steal:.2f} cores' time from this virtual machine: trust relative latencies, not "
            "milliseconds"
        )
    elif system.get("virtual_machine"):
        found.append(
            "This is a virtual machine: its speed drifts with what its host does. Trust relative latencies, not "
            "milliseconds"
        )
    if libraries.get("debug_build"):
        found.append("torch is a debug build, which is many times slower: install a release build")
    if power.get("on_battery"):
        found.append("This machine runs on its battery: plug it in")
    if power.get("battery_saver"):
        found.append("A battery saver is on, which lowers the clock: turn it off")
    if power.get("governor") not in (None, "performance"):
        found.append(
            f"The clock's governor is {power['governor']!r}: for steadier times, as root: cpupower frequency-set -g "
            "performance"
        )
    if power.get("turbo"):
        found.append(
            "Turbo is on: the clock falls as the processor warms up. The noise floor of a report says what that costs"
        )
    if cores == 1:
        found.append("There is one core: nothing else may run while something is timed")
    if system.get("logical_cores") and cores < system["logical_cores"]:
        found.append(
            f"Only {cores} of {system['logical_cores']} cores may be used here (affinity or a container's limit)"
        )
    if not libraries.get("mkl") and not libraries.get("onednn"):
        found.append("torch has neither MKL nor oneDNN: matrix products on the CPU are slow")
    if libraries.get("denormals_flushed"):
        found.append("Denormal numbers are flushed to 0: outputs can differ from those of other machines")
    variables = system.get("variables") or {}
    if variables.get("OMP_NUM_THREADS"):
        found.append("OMP_NUM_THREADS is set; vitbench sets the threads of each cell itself (--threads)")
    cuda_build = "+cu" in str((libraries.get("versions") or {}).get("torch", ""))
    if cuda_build and not any(name.startswith("cuda") for name in devices):
        found.append(
            "torch is built for CUDA and finds no GPU: without one this is as it should be; with one, see nvidia-smi"
        )
    if any(name.startswith("cuda") for name in devices) and importlib.util.find_spec("pynvml") is None:
        found.append("NVML is not installed, which reports a GPU's clock, heat and energy: pip install 'vitbench[gpu]'")
    memory = min(x for x in (system.get("memory_bytes"), system.get("container_memory_bytes"), float("inf")) if x)
    if memory < LITTLE_MEMORY:
        found.append(f"There are {memory / 1e9:.1f} GB of memory: larger models will be reported as out of memory")
    return found


def to_text(result: Mapping[str, Any]) -> str:
    """What a terminal shows."""
    from vitbench.reports.format import table

    lines = [f"Environment {result['environment_hash']}", *_facts(result["environment"])]
    lines += ["", "Advice", *([f"  - {text}" for text in result["advice"]] or ["  Nothing to improve."])]
    load = result.get("other_load_cores")
    if load is not None:
        lines.append(f"  (Other programs used {load:.2f} cores while it was looked.)")
    devices = list(dict.fromkeys(device for places in result["checks"].values() for device in places))
    rows = [
        [metric, *(places.get(device, {}).get("status", "–") for device in devices)]
        for metric, places in result["checks"].items()
    ]
    lines += ["", "What works here", "", table(["metric", *devices], rows, ["metric", *devices])]
    reasons = [
        f"  {metric} on {device}: {place['detail']}"
        for metric, places in result["checks"].items()
        for device, place in places.items()
        if place["status"] != "ok"
    ]
    return "\n".join(lines + (["", *reasons] if reasons else []))


def _facts(environment: Mapping[str, Any]) -> list[str]:
    system, libraries = environment["system"], environment["libraries"]
    power = {key: value for key, value in (system.get("power") or {}).items() if value is not None}
    memory = [f"{system['memory_bytes'] / 1e9:.1f} GB"]
    if system.get("container_memory_bytes"):
        memory.append(f"{system['container_memory_bytes'] / 1e9:.1f} GB allowed here")
    kinds = ["virtual machine"] if system.get("virtual_machine") else []
    facts = {
        "processor": ", ".join(
            [system["cpu"], f"{system['usable_cores']} usable of {system['logical_cores']} logical cores", *kinds]
        ),
        "instructions": " ".join(system.get("instruction_sets") or []) or "unknown",
        "memory": ", ".join(memory),
        "power": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in power.items()) or "unknown",
        "system": f"{system['os']}, Python {system['python']}, workers {system['workers']}",
        "libraries": ", ".join(f"{name} {version}" for name, version in libraries["versions"].items()),
        "kernels": ", ".join(
            f"{key.replace('_', ' ')} {libraries[key]}"
            for key in ("cpu_kernels", "blas", "mkl_version", "onednn_version", "openmp_version", "compiler")
            if libraries.get(key)
        ),
        "precision": f"float32 matmul {libraries['float32_matmul_precision']}",
        "variables": ", ".join(f"{k}={v}" for k, v in (system.get("variables") or {}).items()) or "none that matter",
    }
    for name, device in (environment.get("devices") or {}).items():
        facts[name] = ", ".join(
            f"{key.replace('_', ' ')} {value}" for key, value in device.items() if value is not None
        )
    return [f"  {name:13s}{text}" for name, text in facts.items()]

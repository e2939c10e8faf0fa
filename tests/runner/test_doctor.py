"""What the doctor advises in made-up environments, and what it finds on this machine."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from tests.launching import lending
from vitbench.cli import run_command
from vitbench.core.records import Cell, Measurement, Record
from vitbench.core.registry import METRICS
from vitbench.devices.host.environment import hash_environment
from vitbench.executors.launcher import Launcher
from vitbench.runner.doctor import advise, check_metrics, to_text

#: A machine that nothing is to be said of.
GOOD: dict[str, Any] = {
    "system": {
        "os": "Linux 6.1",
        "python": "3.12.4",
        "cpu": "Example CPU @ 2.50GHz",
        "logical_cores": 8,
        "usable_cores": 8,
        "memory_bytes": 16_000_000_000,
        "container_memory_bytes": None,
        "instruction_sets": ["avx2", "fma"],
        "virtual_machine": False,
        "power": {
            "governor": "performance",
            "energy_preference": None,
            "turbo": False,
            "on_battery": False,
            "battery_saver": None,
        },
        "workers": "forked",
        "variables": {},
    },
    "libraries": {
        "versions": {"torch": "2.15.0+cpu", "timm": "1.0.20"},
        "mkl": True,
        "mkl_version": "2024.2",
        "onednn": True,
        "onednn_version": None,
        "cpu_kernels": "AVX2",
        "float32_matmul_precision": "highest",
        "denormals_flushed": False,
        "debug_build": False,
    },
    "devices": {"cpu": {"name": "Example CPU @ 2.50GHz", "capability": "AVX2", "hip": None}},
}


def environment(**changes: Any) -> dict[str, Any]:
    """The good one with other values: ``system__power__turbo=True``."""
    result = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = result
        for parent in parents:
            place = place[parent]
        place[key] = value
    return result


def advice(other_load: float = 0.0, steal: float = 0.0, **changes: Any) -> list[str]:
    return advise(environment(**changes), other_load, steal)


def test_a_good_machine_gets_no_advice() -> None:
    assert advice() == []


def test_the_programs_that_keep_the_cores_busy_are_named() -> None:
    (text,) = advise(environment(), 0.9, 0.0, [("firefox", 0.62), ("apt", 0.25)])
    assert text.startswith("Other programs keep 0.9 of 8 cores busy (firefox 0.6, apt 0.2): stop them before")


@pytest.mark.parametrize(
    ("changes", "says", "way_out"),
    [
        ({"other_load": 1.26}, "Other programs keep 1.3 of 8 cores busy", "stop them"),
        ({"steal": 0.05}, "The host takes 0.05 cores' time", "trust relative latencies"),
        ({"system__virtual_machine": True}, "This is a virtual machine", "Trust relative latencies"),
        ({"libraries__debug_build": True}, "debug build", "install a release build"),
        ({"system__power__on_battery": True}, "runs on its battery", "plug it in"),
        ({"system__power__battery_saver": True}, "A battery saver is on", "turn it off"),
        ({"system__power__governor": "powersave"}, "governor is 'powersave'", "cpupower frequency-set -g performance"),
        ({"system__power__turbo": True}, "Turbo is on", "noise floor"),
        ({"system__usable_cores": 2}, "Only 2 of 8 cores may be used", "affinity or a container's limit"),
        ({"libraries__mkl": False, "libraries__onednn": False}, "neither MKL nor oneDNN", "slow"),
        ({"libraries__denormals_flushed": True}, "Denormal numbers are flushed", "outputs can differ"),
        ({"system__variables": {"OMP_NUM_THREADS": "4"}}, "OMP_NUM_THREADS is set", "--threads"),
        ({"libraries__versions": {"torch": "2.15.0+cu132"}}, "built for CUDA and finds no GPU", "nvidia-smi"),
        ({"system__memory_bytes": 2_000_000_000}, "There are 2.0 GB of memory", "out of memory"),
        ({"system__container_memory_bytes": 1_500_000_000}, "There are 1.5 GB of memory", "out of memory"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_flaw_gets_one_piece_of_advice_with_what_to_do(changes: dict[str, Any], says: str, way_out: str) -> None:
    (text,) = advice(**changes)
    assert says in text
    assert way_out in text


@pytest.mark.parametrize(
    "changes",
    [
        {"other_load": 0.15},
        {"steal": 0.02},
        {"system__virtual_machine": None},
        {"system__power": {}},
        {"system__power": None},
        {"system__power__governor": None},
        {"system__power__turbo": None},
        {"system__logical_cores": None},
        {"libraries__mkl": False},
        {"libraries__onednn": False},
        {"system__variables": {"OMP_PROC_BIND": "true"}},
        {"system__variables": None},
        {"libraries__versions": {}},
        {"system__memory_bytes": 4_000_000_000},
        {"system__memory_bytes": None},
        {"system__container_memory_bytes": 8_000_000_000},
        {"devices": {}},
    ],
    ids=lambda value: str(next(iter(value.items()))),
)
def test_good_or_unknown_facts_get_no_advice(changes: dict[str, Any]) -> None:
    assert advice(**changes) == []


def test_one_core_is_reported() -> None:
    (text,) = advice(system__usable_cores=1, system__logical_cores=1)
    assert text.startswith("There is one core")


def test_stolen_time_takes_the_place_of_the_virtual_machine() -> None:
    (text,) = advice(steal=0.3, system__virtual_machine=True)
    assert "The host takes 0.30 cores' time" in text


def test_a_gpu_without_its_library_is_advised_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu: dict[str, Any] = {
        "libraries__versions": {"torch": "2.15.0+cu132"},
        "devices": {"cpu": {}, "cuda": {"name": "Example GPU"}},
    }
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (text,) = advice(**gpu)
    assert "NVML is not installed" in text
    assert "pip install 'vitbench[gpu]'" in text
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert advice(**gpu) == []


# what works


def record(mode: str, device: str, *measurements: Measurement) -> Record:
    cell = Cell(
        model="vit_basic_tutorial",
        image_size=(16, 16),
        num_classes=10,
        batch_size=2,
        device=device,
        threads=1,
        mode=mode,
    )
    return Record(
        cell=cell,
        status="ok",
        measurements=measurements,
        environment="e",
        started_at="2026-01-02T03:04:06+00:00",
        duration_s=1.0,
    )


def good(metric: str, unit: str) -> Measurement:
    return Measurement.single(metric, unit, 1.0, "made up")


def test_a_metric_is_as_well_as_the_worst_of_its_measurements() -> None:
    records = [
        record("infer", "cpu", good("weights_memory", "byte"), good("inference_peak_memory", "byte")),
        record(
            "train",
            "cpu",
            Measurement.absent("training_peak_memory", "byte", "unsupported", "not told"),
            Measurement.absent("process_peak_memory", "byte", "error", "broken"),
            good("weights_memory", "byte"),
        ),
        record("infer", "cuda", good("inference_peak_memory", "byte"), good("latency", "s")),
    ]
    assert check_metrics(records) == {
        "memory": {"cpu": {"status": "error", "detail": "broken"}, "cuda": {"status": "ok", "detail": ""}},
        "latency": {"cuda": {"status": "ok", "detail": ""}},
    }


def test_the_first_of_equally_bad_reasons_is_reported() -> None:
    absences = [
        Measurement.absent(metric, unit, "unsupported", f"no {metric}")
        for metric, unit in METRICS.get("energy").yields_in("infer").items()
    ]
    assert check_metrics([record("infer", "cpu", *absences)]) == {
        "energy": {"cpu": {"status": "unsupported", "detail": "no energy_per_image"}}
    }


def test_a_metric_without_measurements_is_not_reported() -> None:
    assert check_metrics([record("infer", "cpu")]) == {}


# the text


def result(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "environment": GOOD,
        "environment_hash": hash_environment(GOOD),
        "other_load_cores": 0.03,
        "cpu_steal_cores": 0.0,
        "advice": [],
        "checks": {
            "params": {"cpu": {"status": "ok", "detail": ""}, "cuda": {"status": "ok", "detail": ""}},
            "energy": {"cpu": {"status": "unsupported", "detail": "this system counts no energy"}},
        },
    }
    return {**content, **changes}


def test_the_text_holds_the_facts_the_advice_and_a_table_of_what_works() -> None:
    text = to_text(result(advice=["plug it in"]))
    assert text.startswith(f"Environment {hash_environment(GOOD)}\n")
    assert "  - plug it in" in text
    assert "Other programs used 0.03 cores" in text
    assert "8 usable of 8 logical cores" in text
    assert "16.0 GB" in text
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["metric", "cpu", "cuda"]
    assert rows[2:] == [["params", "ok", "ok"], ["energy", "unsupported", "–"]]
    assert text.endswith("  energy on cpu: this system counts no energy")


def test_a_text_without_advice_says_that_nothing_is_to_improve() -> None:
    assert "  Nothing to improve." in to_text(result())


def test_unknown_facts_read_as_unknown() -> None:
    unknown = environment(system__power={"governor": None}, system__instruction_sets=[], system__virtual_machine=None)
    text = to_text(result(environment=unknown, other_load_cores=None))
    assert re.search(r"power +unknown", text)
    assert re.search(r"instructions +unknown", text)
    assert "None" not in text
    assert "Other programs used" not in text


def test_a_container_and_a_virtual_machine_are_named() -> None:
    text = to_text(
        result(
            environment=environment(
                system__virtual_machine=True,
                system__container_memory_bytes=3_000_000_000,
                system__variables={"OMP_PROC_BIND": "true"},
            )
        )
    )
    assert "logical cores, virtual machine" in text
    assert "16.0 GB, 3.0 GB allowed here" in text
    assert "OMP_PROC_BIND=true" in text


# for real


@pytest.fixture(scope="module")
def answer(fork_server: Launcher) -> Mapping[str, Any]:
    """What the command prints here."""
    out = io.StringIO()
    with lending(fork_server), contextlib.redirect_stdout(out):
        code = run_command(["doctor", "--json"])
    return {"code": code, **json.loads(out.getvalue())}


def test_on_this_machine_every_metric_works_or_says_why_not(answer: Mapping[str, Any]) -> None:
    assert answer["code"] == 0
    checks = answer["checks"]
    # nothing is published of the model that is tried
    assert set(METRICS) - set(checks) <= {"published"}
    for metric, places in checks.items():
        assert "cpu" in places
        allowed = {"ok", "unsupported"} if metric in ("energy", "published") else {"ok"}
        assert places["cpu"]["status"] in allowed, (metric, places)
        assert bool(places["cpu"]["detail"]) == (places["cpu"]["status"] != "ok")


def test_the_answer_holds_the_environment_that_its_hash_is_of(answer: Mapping[str, Any]) -> None:
    assert answer["environment_hash"] == hash_environment(answer["environment"])
    assert "cpu" in answer["environment"]["devices"]
    assert answer["other_load_cores"] >= 0
    assert all(isinstance(text, str) and text for text in answer["advice"])
    assert answer["environment_hash"] in to_text(answer)

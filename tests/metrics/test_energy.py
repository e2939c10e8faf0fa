"""Joules: the processor's counters from files made up, a GPU's through a fake of its library, and what comes of them."""

from __future__ import annotations

import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitbench.cli import run_command
from vitbench.core.errors import Unsupported
from vitbench.core.records import Cell, Measurement
from vitbench.core.registry import METRICS
from vitbench.core.run_folder import read_records
from vitbench.devices import open_device
from vitbench.devices.cpu import CpuDevice, RaplCounter
from vitbench.devices.host import nvml
from vitbench.metrics import Subject
from vitbench.metrics.support.in_process import run_metric
from vitbench.suites import default_metrics

RANGE_UJ = 1_000_000_000


# the processor's counters


def write_zone(folder: Path, microjoules: int, name: str = "package-0") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return folder


def test_packages_are_added_and_what_they_contain_is_not_counted_twice(tmp_path: Path) -> None:
    first = write_zone(tmp_path / "intel-rapl:0", 5_000_000)
    second = write_zone(tmp_path / "intel-rapl:1", 7_000_000, "package-1")
    write_zone(tmp_path / "intel-rapl:0:0", 1_000_000, "core")
    (tmp_path / "intel-rapl").mkdir()  # the control type, which counts nothing
    counter = RaplCounter(tmp_path)
    assert counter.joules() == 0
    write_zone(first, 5_500_000)
    write_zone(second, 8_000_000, "package-1")
    write_zone(tmp_path / "intel-rapl:0:0", 90_000_000, "core")
    assert counter.joules() == 1.5
    assert counter.joules() == 1.5


def test_the_whole_platform_and_a_second_way_to_a_package_are_not_counted(tmp_path: Path) -> None:
    package = write_zone(tmp_path / "intel-rapl:0", 0)
    write_zone(tmp_path / "intel-rapl:1", 0, "psys")
    write_zone(tmp_path / "intel-rapl-mmio:0", 0)
    counter = RaplCounter(tmp_path)
    write_zone(package, 2_000_000)
    write_zone(tmp_path / "intel-rapl:1", 9_000_000, "psys")
    write_zone(tmp_path / "intel-rapl-mmio:0", 2_000_000)
    assert counter.joules() == 2.0


def test_a_counter_that_starts_again_goes_on(tmp_path: Path) -> None:
    package = write_zone(tmp_path / "intel-rapl:0", RANGE_UJ - 1_000_000)
    counter = RaplCounter(tmp_path)
    write_zone(package, 500_000)
    assert counter.joules() == 1.5
    write_zone(package, 1_500_000)
    assert counter.joules() == 2.5


def test_without_counters_energy_has_a_reason(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(Unsupported, match=r"counts no energy \(no RAPL"):
            RaplCounter(root)


def test_counters_that_only_root_may_read_name_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zone(tmp_path / "intel-rapl:0", 1)
    read_text = Path.read_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(Unsupported, match=r"intel-rapl:0/energy_uj may only be read by root.*chmod a\+r /sys/class"):
        RaplCounter(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission_is_unsupported(tmp_path: Path) -> None:
    (write_zone(tmp_path / "intel-rapl:0", 1) / "energy_uj").chmod(0)
    with pytest.raises(Unsupported, match="root"):
        RaplCounter(tmp_path)


@pytest.mark.parametrize("content", ["", "many\n"])
def test_an_unreadable_counter_is_unsupported(tmp_path: Path, content: str) -> None:
    (write_zone(tmp_path / "intel-rapl:0", 1) / "energy_uj").write_text(content)
    with pytest.raises(Unsupported, match="intel-rapl:0/energy_uj cannot be read"):
        RaplCounter(tmp_path)


def test_a_counter_that_goes_away_is_unsupported(tmp_path: Path) -> None:
    package = write_zone(tmp_path / "intel-rapl:0", 1)
    counter = RaplCounter(tmp_path)
    (package / "energy_uj").unlink()
    with pytest.raises(Unsupported, match="cannot be read"):
        counter.joules()


def test_the_cpu_reads_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitbench.devices.cpu.POWERCAP", tmp_path)
    device = open_device("cpu")
    with pytest.raises(Unsupported):
        device.energy_joules()
    package = write_zone(tmp_path / "intel-rapl:0", 0)
    before = device.energy_joules()
    write_zone(package, 3_000_000)
    assert device.energy_joules() - before == 3.0
    assert "without memory and board" in device.energy_method


def test_other_devices_count_none() -> None:
    with pytest.raises(Unsupported, match="nothing counts the energy of mps"):
        open_device("mps").energy_joules()


# the metric


class Meter:
    """A clock that passes only when something is done, and a counter that rises with it; stands in for ``time``."""

    def __init__(self, idle_w: float, loaded_w: float, call_s: float) -> None:
        self.idle_w, self.loaded_w, self.call_s = idle_w, loaded_w, call_s
        self.now = 100.0
        self.joules = 5e6  # since the driver was loaded
        self.calls = 0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.joules += seconds * self.idle_w

    def call(self) -> None:
        self.calls += 1
        self.now += self.call_s
        self.joules += self.call_s * self.loaded_w


class MeteredDevice(CpuDevice):
    energy_method = "a made-up counter"

    def __init__(self, meter: Meter) -> None:
        super().__init__("cpu")
        self.meter = meter

    def energy_joules(self) -> float:
        return self.meter.joules


class MeteredSubject(Subject):
    def forward(self) -> torch.Tensor:
        self.device.meter.call()  # type: ignore[attr-defined]
        return torch.zeros(self.cell.batch_size, 10)

    def step(self) -> torch.Tensor:
        self.device.meter.call()  # type: ignore[attr-defined]
        return torch.zeros(())


def measure_energy(meter: Meter, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Measurement]:
    monkeypatch.setattr(sys.modules["vitbench.metrics.energy"], "time", meter)
    fields: dict[str, Any] = {"image_size": (32, 32), "num_classes": 10, "batch_size": 4, "threads": 1, **changes}
    subject = MeteredSubject(
        cell=Cell(model="given", device="cpu", **fields),
        device=MeteredDevice(meter),
        build=lambda: nn.Identity(),
        attention=lambda model: torch.inference_mode(),
    )
    return {one.metric: one for one in run_metric("energy", subject)}


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_joules_of_an_image_and_watts_at_work_and_at_rest(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """2 s of calls of 0.25 s at 48 W are 96 J for 8 batches of 4."""
    meter = Meter(idle_w=10, loaded_w=48, call_s=0.25)
    found = measure_energy(meter, monkeypatch, mode=mode)
    assert {name: (one.value, one.unit) for name, one in found.items()} == {
        "energy_per_image": (3.0, "J/image"),
        "power": (48.0, "W"),
        "idle_power": (10.0, "W"),
    }
    assert meter.calls == 1 + 8
    call = "training step" if mode == "train" else "forward pass"
    assert found["energy_per_image"].method == f"a made-up counter, over 2 s of one {call} after the other"
    assert found["energy_per_image"].detail == "32 images in 2.00 s"
    assert "1 s at rest" in found["idle_power"].method


def test_a_call_that_takes_longer_than_the_time_under_load_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure_energy(Meter(idle_w=10, loaded_w=20, call_s=8), monkeypatch)
    assert found["energy_per_image"].value == 8 * 20 / 4
    assert found["power"].value == 20


def test_a_device_without_a_counter_leaves_spoken_absences(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: MeteredDevice) -> float:
        raise Unsupported("nothing counts here")

    monkeypatch.setattr(MeteredDevice, "energy_joules", refuse)
    meter = Meter(1, 2, 3)
    found = measure_energy(meter, monkeypatch)
    assert {name: (one.status, one.detail, one.unit) for name, one in found.items()} == {
        "energy_per_image": ("unsupported", "nothing counts here", "J/image"),
        "power": ("unsupported", "nothing counts here", "W"),
        "idle_power": ("unsupported", "nothing counts here", "W"),
    }
    assert meter.calls == 0


def test_energy_is_measured_only_when_it_is_asked_for() -> None:
    assert "energy" in METRICS
    assert "energy" not in default_metrics()


@pytest.mark.integration
def test_a_run_with_energy_records_joules_or_why_they_are_unavailable(shared_workers: object, tmp_path: Path) -> None:
    options = ["--models", "vit_basic_tutorial", "--image-sizes", "16", "--batch-sizes", "2", "--modes", "infer"]
    options += ["--devices", "cpu", "--threads", "1", "--data", "none", "--out", str(tmp_path / "run")]
    assert run_command(["run", "--suite", "smoke", "--metrics", "energy", *options]) == 0
    (record,) = read_records(tmp_path / "run")
    assert record.status == "ok"
    found = {one.metric: one for one in record.measurements}
    assert set(found) == set(METRICS.get("energy").yields_in("infer"))
    statuses = {one.status for one in found.values()}
    if statuses == {"ok"}:
        assert found["energy_per_image"].value > 0
        return
    assert statuses == {"unsupported"}
    with pytest.raises(Unsupported) as caught:
        open_device("cpu").energy_joules()
    assert {one.detail for one in found.values()} == {str(caught.value)}
    assert "unsupported" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")


# NVIDIA's library


class NVMLError(Exception):
    pass


@dataclass
class Process:
    pid: int
    usedGpuMemory: int | None  # noqa: N815  (as the library spells it)


class FakeNvml(types.ModuleType):
    """Three GPUs with values of their own; handles are their indices."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0
    UUIDS = ("GPU-aaaa", "GPU-bbbb", "GPU-cccc")

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.processes: list[Process] = []
        self.broken: set[str] = set()

    def _answer(self, name: str, value: Any) -> Any:
        if name in self.broken:
            raise NVMLError("Not Supported")
        return value

    def nvmlInit(self) -> None:  # noqa: N802
        self._answer("init", None)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if not 0 <= index < len(self.UUIDS):
            raise NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if uuid not in self.UUIDS:
            raise NVMLError("Not Found")
        return self.UUIDS.index(uuid)

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        assert kind == self.NVML_CLOCK_SM
        return int(self._answer("clock", 1000 + handle))  # MHz

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        assert sensor == self.NVML_TEMPERATURE_GPU
        return int(self._answer("temperature", 40 + handle))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return int(self._answer("energy", 1_500_000 + 1000 * handle))  # mJ

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Process]:  # noqa: N802
        return list(self._answer("processes", self.processes))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_units_are_turned_into_base_units(gpus: FakeNvml) -> None:
    assert nvml.gpu_state(1) == (1.001e9, 41.0)
    assert nvml.energy_joules(0) == 1500.0
    assert open_device("cuda:2").energy_joules() == 1502.0
    assert open_device("cuda").energy_joules() == 1500.0


@pytest.mark.parametrize(
    ("visible", "index", "temperature"),
    [
        ("", 2, 42),
        ("2", 0, 42),
        ("1,0", 0, 41),
        ("1, 0", 1, 40),
        ("GPU-bbbb", 0, 41),
        ("GPU-cccc,GPU-aaaa", 1, 40),
        ("0,GPU-cccc", 1, 42),
    ],
)
def test_gpus_are_counted_as_torch_counts_them(
    gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str, index: int, temperature: float
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml.gpu_state(index)[1] == temperature


def test_a_gpu_is_the_one_that_torch_runs_on_where_that_is_known(
    gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's own order begins with the fastest GPU, NVML's with the first slot."""
    found = {0: "cccc", 1: "eeee"}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(uuid=found[index]))
    assert nvml.gpu_state(0)[1] == 42
    assert nvml.gpu_state(1)[1] == 41  # NVML does not know it by that name


@pytest.mark.parametrize(("visible", "index"), [("1", 1), ("GPU-dddd", 0), ("7", 0), ("", 3), ("-1", 0)])
def test_a_gpu_that_is_not_there_is_unsupported(
    gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str, index: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(Unsupported, match="NVML is unavailable"):
        nvml.gpu_state(index)


@pytest.mark.parametrize(
    ("broken", "ask", "reason"),
    [
        ("init", nvml.gpu_state, r"is unavailable \(Not Supported\)"),
        ("clock", nvml.gpu_state, "does not report its state"),
        ("temperature", nvml.gpu_state, "does not report its state"),
        ("energy", nvml.energy_joules, r"counts no energy \(NVML: Not Supported\)"),
        ("processes", nvml.process_memory, "does not report its processes"),
    ],
)
def test_what_the_library_refuses_is_unsupported(gpus: FakeNvml, broken: str, ask: Any, reason: str) -> None:
    gpus.broken = {broken}
    with pytest.raises(Unsupported, match=reason):
        ask(0)


def test_without_the_package_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    for ask in (nvml.gpu_state, nvml.energy_joules, nvml.process_memory):
        with pytest.raises(Unsupported, match="pip install nvidia-ml-py"):
            ask(0)


def test_the_memory_of_this_process_is_found(gpus: FakeNvml) -> None:
    gpus.processes = [Process(1, 10), Process(os.getpid(), 2_000_000)]
    assert nvml.process_memory(0) == 2_000_000


@pytest.mark.parametrize("processes", [[], [Process(1, 10)], [Process(os.getpid(), None)]])
def test_a_process_that_the_library_does_not_know_is_unsupported(gpus: FakeNvml, processes: list[Process]) -> None:
    gpus.processes = processes
    with pytest.raises(Unsupported, match="does not know this process"):
        nvml.process_memory(0)


# memory that a device keeps beyond live tensors


def test_cuda_reports_what_its_allocator_and_its_context_hold(gpus: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def reserved(where: str) -> int:
        asked.append(where)
        return 3_000

    monkeypatch.setattr(torch.cuda, "max_memory_reserved", reserved)
    gpus.processes = [Process(os.getpid(), 9_000)]
    found = open_device("cuda:1").reserved_memory()
    assert {name: size for name, (size, _) in found.items()} == {
        "reserved_peak_memory": 3_000,
        "process_gpu_memory": 9_000,
    }
    assert asked == ["cuda:1"]
    gpus.processes = []
    assert set(open_device("cuda").reserved_memory()) == {"reserved_peak_memory"}


def test_mps_reports_what_its_driver_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mps:
        def driver_allocated_memory(self) -> int:
            return 7_000

    monkeypatch.setattr(torch, "mps", Mps())
    ((name, (size, how)),) = open_device("mps").reserved_memory().items()
    assert (name, size) == ("driver_memory", 7_000)
    assert "driver_allocated_memory" in how


def test_the_cpu_holds_nothing_beyond() -> None:
    assert open_device("cpu").reserved_memory() == {}


def test_reserved_memory_is_measured_with_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = {value.name: value.unit for value in METRICS.get("memory").yields if value.optional}
    names = ("reserved_peak_memory", "process_gpu_memory", "driver_memory", "memory_limit")
    assert optional == dict.fromkeys(names, "byte")
    monkeypatch.setattr(CpuDevice, "reserved_memory", lambda self: {"driver_memory": (123, "made up")})
    subject = Subject(
        cell=Cell(model="given", image_size=(8, 8), num_classes=10, batch_size=1, device="cpu", threads=1),
        device=open_device("cpu"),
        build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10)),
        attention=lambda model: torch.inference_mode(),
    )
    found = {one.metric: one for one in run_metric("memory", subject)}
    subject.close()
    assert (found["driver_memory"].value, found["driver_memory"].method) == (123, "made up")
    assert "inference_peak_memory" in found

"""MPS without a Mac: the device against a fake torch.mps, and a Mac's error texts in real workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitbench
from tests.devices.device_models import FALLBACK, LOST_BUFFER, NDARRAY
from tests.launching import shared_server
from vitbench.core.errors import DeviceError
from vitbench.core.records import Cell, Measurement, Record
from vitbench.core.registry import METRICS
from vitbench.devices import find_devices, open_device
from vitbench.devices.mps import MpsDevice
from vitbench.executors.conversation import classify_death
from vitbench.metrics import Budget, Subject
from vitbench.metrics.support.timing import Timing, sample_durations
from vitbench.runner.outcomes import side_by_side

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


class FakeMetal:
    """A GPU, its clock and its memory: torch.mps and time at once.

    A kernel costs the host ``ENQUEUE_S`` and the GPU ``WORK_S``, side by side; only ``synchronize`` waits for it. The
    figures are those of a small kernel on a Mac, where tools that do not wait report the former as the latter.
    """

    ENQUEUE_S = 22.75e-6
    WORK_S = 245e-6

    def __init__(self) -> None:
        self.now = 1000.0
        self.done_at = 0.0
        self.waits = 0
        self.live = 0
        self.kept = 96 * MIB
        self.fractions: list[float] = []

    def enqueue(self, kernels: int = 1) -> None:
        for _ in range(kernels):
            self.now += self.ENQUEUE_S
            self.done_at = max(self.done_at, self.now) + self.WORK_S

    # torch.mps

    def synchronize(self) -> None:
        self.now = max(self.now, self.done_at)
        self.waits += 1

    def current_allocated_memory(self) -> int:
        return self.live

    def driver_allocated_memory(self) -> int:
        return self.live + self.kept

    def recommended_max_memory(self) -> int:
        return 10 * 1024 * MIB

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        self.fractions.append(fraction)

    # time

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now


class AnOlderAccelerator:
    """torch.accelerator of a release that keeps no peak."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if "memory" in name:
            raise AttributeError(name)
        return getattr(self._real, name)


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> FakeMetal:
    import torch._dynamo  # comes in with the first optimizer, and looks then at what is replaced here

    fake = FakeMetal()
    monkeypatch.setattr(torch, "mps", fake)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "accelerator", AnOlderAccelerator(torch.accelerator))
    monkeypatch.setattr("vitbench.metrics.support.timing.time", fake)
    return fake


class MpsOnTheCpu(MpsDevice):
    """The MPS device in everything but where its tensors lie."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")


class WaitsForNothing(MpsOnTheCpu):
    """What the timing would be without synchronising."""

    def synchronize(self) -> None:
        pass


class WaitsOnlyBehind(MpsOnTheCpu):
    """What the timing would be with synchronising behind each sample, and not before the first."""

    began = False

    def synchronize(self) -> None:
        if self.began:
            super().synchronize()
        self.began = True


# what there is


@pytest.mark.parametrize(
    ("chip", "name"),
    [
        ("Apple M2", "Apple M2 GPU (Metal)"),
        ("", "Apple GPU (Metal)"),
        ("Intel(R) Core(TM) i9-9980HK CPU @ 2.40GHz", "Apple GPU (Metal)"),
    ],
)
def test_the_device_is_found_by_torch_and_describes_itself(
    metal: FakeMetal, monkeypatch: pytest.MonkeyPatch, chip: str, name: str
) -> None:
    monkeypatch.setattr("vitbench.devices.mps.chip_name", lambda: chip)
    assert "mps" in find_devices()
    assert open_device("mps").describe() == {"name": name, "memory_bytes": 10 * 1024 * MIB}
    assert open_device("mps").asynchronous


def test_without_mps_in_torch_there_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "mps" not in find_devices()


# time

FIVE = Budget(seconds=0.0, min_samples=5, max_samples=5)


def durations(device: MpsDevice, call: Callable[[], object], turns: Any = None, budget: Budget = FIVE) -> Timing:
    return sample_durations(call, device, budget, turns)


def is_right(timing: Timing, kernels: int = 1) -> bool:
    """Whether each sample is what the work takes: its last kernel is begun when it is enqueued, and waited for."""
    truth = FakeMetal.ENQUEUE_S + kernels * max(FakeMetal.WORK_S, FakeMetal.ENQUEUE_S)
    return all(abs(sample - truth) < 2e-9 for sample in timing.samples)


def test_each_sample_is_waited_for(metal: FakeMetal) -> None:
    timing = durations(MpsOnTheCpu("mps"), metal.enqueue)
    assert is_right(timing)
    assert timing.samples[0] == pytest.approx(267.75e-6)
    assert metal.waits == 2 + len(timing.samples)


def test_without_waiting_the_time_would_be_that_of_enqueueing_and_this_test_would_see_it(metal: FakeMetal) -> None:
    timing = durations(WaitsForNothing("mps"), metal.enqueue)
    assert not is_right(timing)
    assert timing.samples == pytest.approx([22.75e-6] * 5)  # a tenth of the truth


def test_many_kernels_are_waited_for_as_well(metal: FakeMetal) -> None:
    assert is_right(durations(MpsOnTheCpu("mps"), lambda: metal.enqueue(40)), kernels=40)
    assert not is_right(durations(WaitsForNothing("mps"), lambda: metal.enqueue(40)), kernels=40)


def test_work_that_was_under_way_before_is_charged_to_no_sample(metal: FakeMetal) -> None:
    metal.enqueue(1000)
    assert is_right(durations(MpsOnTheCpu("mps"), metal.enqueue))


def test_waiting_only_behind_would_charge_it_to_the_first_call_and_this_test_would_see_it(metal: FakeMetal) -> None:
    metal.enqueue(1000)
    timing = durations(WaitsOnlyBehind("mps"), metal.enqueue)
    assert timing.first_s > 0.2
    assert timing.samples == pytest.approx([267.75e-6] * 5)


class TurnsWithOthers:
    """Turns of three calls; the others run for a second in between, on the same GPU."""

    reference_name = "reference 1"
    method, method_without_reference = "in turns", "without the reference"

    def __init__(self, metal: FakeMetal) -> None:
        self.metal = metal

    def wait(self, *, last: bool = False, samples: Sequence[float] = ()) -> Mapping[str, Any]:
        assert self.metal.done_at <= self.metal.now  # nothing of ours runs in somebody else's turn
        self.metal.now += 1.0
        known: dict[str, Any] = {"before": None, "after_last": None, "replay": False, "other_load": None}
        return {"seconds": 3 * 267.75e-6 - 1e-9, "calls": 1, **known}


def test_a_turn_is_given_up_only_when_its_work_is_done(metal: FakeMetal) -> None:
    budget = Budget(seconds=0.0, min_samples=9, max_samples=9)
    timing = durations(MpsOnTheCpu("mps"), metal.enqueue, TurnsWithOthers(metal), budget)
    assert is_right(timing)
    assert timing.turns == (3, 3, 3)


class Enqueues(nn.Module):
    """A layer whose forward pass is ``kernels`` kernels and holds ``to_bytes`` while it runs."""

    def __init__(self, metal: FakeMetal, kernels: int = 1, to_bytes: int = 0) -> None:
        super().__init__()
        self.metal, self.kernels, self.to_bytes = metal, kernels, to_bytes
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.metal.enqueue(self.kernels)
        self.metal.live = self.to_bytes or self.metal.live
        return x * self.scale


def subject_of(metal: FakeMetal, device: MpsDevice, *layers: nn.Module, mode: str = "infer") -> Subject:
    cell = Cell(
        model="x", image_size=(4, 4), num_classes=48, batch_size=2, device="mps", threads=1, mode=mode
    )  # 3 * 4 * 4 numbers are the classes
    return Subject(
        cell=cell,
        device=device,
        build=lambda: nn.Sequential(*layers, nn.Flatten()),
        attention=lambda model: contextlib.nullcontext(),
        budget=FIVE,
    )


def measured(metric: str, subject: Subject) -> dict[str, Measurement]:
    return {one.metric: one for one in METRICS.get(metric).measure(subject)}


@pytest.mark.parametrize(("metric", "mode"), [("latency", "infer"), ("training_step", "train")])
def test_the_metrics_synchronise_and_their_method_names_it(metal: FakeMetal, metric: str, mode: str) -> None:
    found = measured(metric, subject_of(metal, MpsOnTheCpu("mps"), Enqueues(metal), Enqueues(metal, 3), mode=mode))[
        metric
    ]
    assert found.samples[0] == pytest.approx([22.75e-6 + 4 * 245e-6] * 5)
    assert "torch.mps.synchronize on both sides" in found.method
    hasty = measured(metric, subject_of(metal, WaitsForNothing("mps"), Enqueues(metal), Enqueues(metal, 3), mode=mode))
    assert hasty[metric].samples[0] == pytest.approx([4 * 22.75e-6] * 5)


def test_throughput_waits_once_for_many_batches(metal: FakeMetal) -> None:
    found = measured("throughput", subject_of(metal, MpsOnTheCpu("mps"), Enqueues(metal)))["throughput"]
    assert found.samples[0] == pytest.approx([8 * 2 / (22.75e-6 + 8 * 245e-6)] * 5, rel=1e-5)  # launches are hidden
    hasty = measured("throughput", subject_of(metal, WaitsForNothing("mps"), Enqueues(metal)))["throughput"]
    assert hasty.samples[0] == pytest.approx([2 / 22.75e-6] * 5, rel=1e-5)  # ten times the truth


# memory


def test_the_peak_is_the_largest_after_each_module_with_what_the_driver_holds_beside_it(metal: FakeMetal) -> None:
    metal.live = 10 * MIB
    layers = (Enqueues(metal, to_bytes=70 * MIB), Enqueues(metal, to_bytes=30 * MIB))
    found = measured("memory", subject_of(metal, MpsOnTheCpu("mps"), *layers))
    # what lay there before the model is not the model's
    assert found["inference_peak_memory"].value == 60 * MIB
    assert "less 10485760 bytes that were held before" in found["inference_peak_memory"].method
    assert "lower bound" in found["inference_peak_memory"].method
    assert found["driver_memory"].value == 30 * MIB + 96 * MIB
    assert "driver_allocated_memory" in found["driver_memory"].method
    assert found["weights_memory"].value == 2 * 4


def test_a_training_step_has_its_peak_too(metal: FakeMetal) -> None:
    found = measured("memory", subject_of(metal, MpsOnTheCpu("mps"), Enqueues(metal, to_bytes=50 * MIB), mode="train"))
    assert found["training_peak_memory"].value == 50 * MIB


def test_memory_is_read_when_the_work_is_done(metal: FakeMetal) -> None:
    subject = subject_of(metal, MpsOnTheCpu("mps"), Enqueues(metal, to_bytes=50 * MIB))
    measured("memory", subject)
    assert metal.done_at <= metal.now


def test_a_limit_is_a_fraction_of_the_recommended_maximum(metal: FakeMetal) -> None:
    device = open_device("mps")
    device.limit_memory(1024 * MIB)
    assert metal.fractions == [0.1]
    device.limit_memory(None)
    with pytest.raises(DeviceError, match="more than MPS recommends"):
        device.limit_memory(11 * 1024 * MIB)
    assert metal.fractions == [0.1]


# what its workers say


def test_operators_that_fell_back_are_named_once_and_in_order() -> None:
    other = FALLBACK.replace("aten::nonzero", "aten::linalg_svd.U")
    text = f"model.py:3: UserWarning: {FALLBACK} (Triggered internally at MPSFallback.mm:14.)\n  x = x.nonzero()\n{other}\n{FALLBACK}"
    assert MpsDevice.stderr_note(text) == "ran on the CPU without an MPS kernel: aten::linalg_svd.U, aten::nonzero"
    assert MpsDevice.stderr_note("UserWarning: something else") == ""


def test_a_warning_of_a_fallback_is_no_failure() -> None:
    assert MpsDevice.stderr_failure(FALLBACK) == ("", "")
    assert MpsDevice.stderr_failure(f"{FALLBACK}\n{LOST_BUFFER}") == (
        "device_lost",
        "Error: command buffer exited with error status.",
    )


@pytest.mark.parametrize(
    ("code", "status", "cause"),
    [(-6, "killed", "tensor_too_large"), (134, "killed", "tensor_too_large"), (1, "error", "exit")],
)
def test_an_abort_is_explained_by_what_it_printed(code: int, status: str, cause: str) -> None:
    failure, _ = classify_death(code, f"Fatal Python error: Aborted\n{NDARRAY}", "mps", memory_evidence=False)
    assert (failure.status, failure.cause) == (status, cause)


def test_one_invalid_process_invalidates_the_measurement() -> None:
    good = Measurement(metric="latency", unit="s", samples=((1.0,),), method="m")
    lost = Measurement(metric="latency", unit="s", samples=((0.1,),), method="m", status="error", detail="lost")
    assert side_by_side([good, good], None, "").status == "ok"
    merged = side_by_side([good, lost], None, "")
    assert (merged.status, merged.detail, merged.samples) == ("error", "lost", ((1.0,), (0.1,)))


# real workers, seen as a Mac's parent sees them: only the device's texts differ


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("noted") / "processes"


@pytest.fixture(scope="module")
def server(noted: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("PROCESSES", str(noted))
        with shared_server():
            yield


def run_of(folder: Path, *names: str, **keys: Any) -> list[Record]:
    summary = vitbench.run_suite(
        "smoke",
        models=[f"module:tests.devices.device_models:{name}" for name in names],
        **{"image_sizes": [8], "batch_sizes": [1], "metrics": ["memory", "latency"], **keys},
        modes=["infer"],
        threads=[1],
        measure={"processes": 1, "seconds": 0.02, "min_samples": 2},
        data="none",
        out=folder,
        allow_import=True,
    )
    return list(summary.records)


#: name -> (status, cause, signal)
ENDINGS = {
    "falls_back": ("ok", "", None),
    "runs_out_of_mps": ("oom", "out_of_memory", None),
    "wants_float64": ("unsupported", "unsupported_dtype", None),
    "aborts_like_ndarray": ("killed", "tensor_too_large", 6),
    "goes_on_without_its_device": ("error", "device_lost", None),
}


@pytest.fixture(scope="module")
def records(server: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitbench.executors.conversation._device_class", lambda device: MpsDevice)
        found = run_of(tmp_path_factory.mktemp("mps") / "run", *ENDINGS)
    return {record.cell.model.rpartition(":")[2]: record for record in found}


@pytest.mark.integration
@pytest.mark.parametrize("name", ENDINGS)
def test_each_ending_of_a_macs_worker_has_its_record(records: dict[str, Record], name: str) -> None:
    record = records[name]
    assert (record.status, record.cause, record.signal) == ENDINGS[name], record.detail


@pytest.mark.integration
def test_a_fallback_is_in_the_record(records: dict[str, Record]) -> None:
    assert records["falls_back"].detail == "ran on the CPU without an MPS kernel: aten::nonzero"
    latency = records["falls_back"].measurement("latency")
    assert latency is not None
    assert latency.status == "ok"


@pytest.mark.integration
def test_the_end_of_a_dead_workers_stderr_is_in_the_record(records: dict[str, Record]) -> None:
    detail = records["aborts_like_ndarray"].detail  # what follows on stderr is a long stack
    assert detail.startswith("the worker crashed with SIGABRT: ")
    assert "MPSNDArray.mm:724: failed assertion" in detail
    assert detail.endswith("total bytes of NDArray > 2**32'")
    assert "MPS backend out of memory" in records["runs_out_of_mps"].detail


@pytest.mark.integration
def test_values_of_work_that_the_device_did_not_do_are_errors(records: dict[str, Record]) -> None:
    record = records["goes_on_without_its_device"]
    assert "command buffer exited with error status" in record.stderr_tail
    assert "command buffer exited with error status" in record.detail
    assert {one.metric: one.status for one in record.measurements}["inference_peak_memory"] == "error"
    assert {one.metric: one.status for one in record.measurements}["latency"] == "error"


@pytest.mark.integration
def test_no_process_sees_inputs_of_two_sizes(server: None, noted: Path, tmp_path: Path) -> None:
    """Shapes fill MPS's graph caches for as long as a process lives: sizes, and cells, never share one."""
    keys = {"image_sizes": [8, "8x16"], "batch_sizes": [1, 2], "metrics": ["memory", "latency", "throughput"]}
    found = run_of(tmp_path / "run", "notes_its_process", **keys)
    assert [record.status for record in found] == ["ok"] * 4
    inputs: dict[str, set[tuple[str, str]]] = {}
    for line in noted.read_text().splitlines():
        pid, size, batch = line.split()
        inputs.setdefault(pid, set()).add((size, batch))
    assert all(len(seen) == 1 for seen in inputs.values())
    assert len(inputs) >= 2 * 4  # one for its memory, one for its times

"""Devices: the CPU for real, CUDA and MPS through fakes of torch's functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.cuda._utils import _get_device_index

from vitbench.core.errors import DeviceError, UnknownNameError, Unsupported
from vitbench.devices import canonical_device_name, find_devices, open_device
from vitbench.devices.cpu import processor_name
from vitbench.devices.host.memory import available_memory, oom_kill_count


def test_the_cpu_is_always_found() -> None:
    assert "cpu" in find_devices()
    assert processor_name()
    assert available_memory() > 0


@pytest.mark.parametrize(
    ("name", "canonical"), [("cuda:0", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("mps:0", "mps")]
)
def test_one_name_a_device(name: str, canonical: str) -> None:
    assert canonical_device_name(name) == canonical


def test_names_that_are_none() -> None:
    with pytest.raises(DeviceError, match="is not a device"):
        canonical_device_name("CUDA 1")
    with pytest.raises(UnknownNameError):
        canonical_device_name("tpu")


@pytest.mark.integration
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="VmHWM and RLIMIT_DATA are Linux's")
def test_the_high_water_mark_sees_a_past_peak_and_a_limit_refuses_what_is_beyond_it() -> None:
    code = """
import torch
from vitbench.devices import open_device
device = open_device("cpu")
device.steady_allocator()
torch.ones(10)
device.reset_peak()
before = device.memory_now()
for _ in range(2):
    torch.ones(25_000_000)  # 100 MB, freed at once
assert device.memory_now() - before < 5e6, device.memory_now() - before
rise = device.peak() - before
assert 99e6 < rise < 106e6, rise
device.reset_peak()
assert device.peak() - before < 5e6

device.limit_memory(300_000_000)
torch.ones(50_000_000)  # 200 MB
try:
    torch.ones(100_000_000)
except RuntimeError as error:
    assert device.classify(error).status == "oom", error
else:
    raise AssertionError("400 MB were allocated")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_memory_limit_elsewhere_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Unsupported, match="needs Linux"):
        open_device("cpu").limit_memory(1)
    open_device("cpu").limit_memory(None)


def test_other_systems_read_the_largest_size_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS counts bytes, the others KiB."""
    resource = pytest.importorskip("resource")
    device = open_device("cpu")
    monkeypatch.setattr("vitbench.devices.cpu._has_high_water_mark", lambda: False)
    raw = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert raw * 1024 <= device.peak() <= raw * 1024 * 1.1
    monkeypatch.setattr(sys, "platform", "darwin")
    assert raw <= device.peak() <= raw * 1.1
    assert "upper bound" in device.memory_method


def test_the_kernels_count_of_kills_is_a_number_or_unknown() -> None:
    count = oom_kill_count()
    assert count is None or count >= 0


class FakeMps:
    """torch.mps of a release without a peak: live bytes that a model moves."""

    def __init__(self, live: list[int]) -> None:
        self.live = live
        self.waits = 0

    def current_allocated_memory(self) -> int:
        return self.live[0]

    def synchronize(self) -> None:
        self.waits += 1


def test_mps_without_a_peak_takes_the_largest_after_each_module(monkeypatch: pytest.MonkeyPatch) -> None:
    live = [100]
    monkeypatch.setattr(torch, "mps", FakeMps(live))
    monkeypatch.setattr(torch, "accelerator", object())

    class Grows(torch.nn.Module):
        def __init__(self, to: int) -> None:
            super().__init__()
            self.to_bytes = to

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            live[0] = self.to_bytes
            return x

    device = open_device("mps")
    model = torch.nn.Sequential(Grows(500), Grows(300))
    device.reset_peak()
    with device.watch(model):
        model(torch.zeros(1))
    live[0] = 120
    assert device.peak() == 500
    assert "lower bound" in device.memory_method
    model(torch.zeros(1))  # the hooks are gone
    assert not [hook for module in model.modules() for hook in module._forward_hooks]
    device.synchronize()


def test_mps_with_a_peak_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Accelerator:
        peak = 0

        def max_memory_allocated(self) -> int:
            return self.peak

        def reset_peak_memory_stats(self) -> None:
            self.peak = 7

    monkeypatch.setattr(torch, "accelerator", Accelerator())
    device = open_device("mps")
    device.reset_peak()
    assert device.peak() == 7
    assert "max_memory_allocated" in device.memory_method


def test_cuda_is_asked_for_its_own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []
    for name, answer in (
        ("synchronize", None),
        ("memory_allocated", 10),
        ("max_memory_allocated", 20),
        ("reset_peak_memory_stats", None),
    ):
        monkeypatch.setattr(
            torch.cuda, name, lambda where, name=name, answer=answer: (asked.append((name, where)), answer)[1]
        )
    device = open_device("cuda:1")
    device.synchronize()
    assert (device.memory_now(), device.peak()) == (10, 20)
    device.reset_peak()
    assert {where for _, where in asked} == {"cuda:1"}
    assert device.peak_is_total


def test_cuda_devices_are_found_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [name for name in find_devices() if name.startswith("cuda")] == ["cuda", "cuda:1"]


def test_a_memory_limit_on_cuda_is_a_share_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 8_000

    given: list[tuple[float, int]] = []

    def set_fraction(share: float, where: Any) -> None:
        given.append((share, _get_device_index(where)))  # as torch does, which refuses a device without an index

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda name: Properties())
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_fraction)
    device = open_device("cuda")
    device.limit_memory(2_000)
    open_device("cuda:1").limit_memory(4_000)
    assert given == [(0.25, 0), (0.5, 1)]
    with pytest.raises(DeviceError, match="more than cuda has"):
        device.limit_memory(9_000)


def test_operators_that_ran_elsewhere_are_noted_in_the_record() -> None:
    warning = "The operator 'aten::nonzero' is not currently supported on the MPS backend and will fall back to run on the CPU."
    assert open_device("mps").stderr_note(warning) == "ran on the CPU without an MPS kernel: aten::nonzero"
    assert open_device("cpu").stderr_note(warning) == ""


@pytest.mark.parametrize(("name", "dtype"), [("cpu", "bf16"), ("cuda", "fp16"), ("mps", "fp16")])
def test_amp_is_the_devices_own_lower_precision(name: str, dtype: str) -> None:
    assert open_device(name).amp_dtype == dtype


def test_autocast_is_on_for_amp_only() -> None:
    device = open_device("cpu")
    product = {}
    for name in ("fp32", "amp"):
        with device.autocast(name):
            product[name] = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert product == {"fp32": torch.float32, "amp": torch.bfloat16}


def test_caches_of_the_processor_are_the_kernels_without_the_first_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (level, kind, size) in enumerate(
        [("1", "Data", "32K"), ("1", "Instruction", "32K"), ("2", "Unified", "1024K"), ("3", "Unified", "32768K")]
    ):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    monkeypatch.setattr("vitbench.devices.cpu.CPU_CACHES", tmp_path)
    monkeypatch.setattr("sys.platform", "linux")
    assert open_device("cpu").caches() == (2**20, 2**25)
    monkeypatch.setattr("vitbench.devices.cpu.CPU_CACHES", tmp_path / "nowhere")
    assert open_device("cpu").caches() == ()

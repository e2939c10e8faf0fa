"""On a real GPU: the same run, its memory, and a real out-of-memory."""

from __future__ import annotations

from pathlib import Path

import pytest

import vitbench


def check_device(device: str, tmp_path: Path) -> None:
    summary = vitbench.run_suite("smoke", devices=[device], dtypes=["fp32", "amp"], out=tmp_path / "run")
    assert {record.status for record in summary.records} == {"ok"}, [record.detail for record in summary.records]
    for record in summary.records:
        peak = record.measurement("inference_peak_memory")
        if peak is not None:
            weights = record.measurement("weights_memory")
            assert weights is not None
            assert peak.value > weights.value
        latency = record.measurement("latency")
        if latency is not None:
            assert f"torch.{device}.synchronize" in latency.method


def check_out_of_memory(device: str, tmp_path: Path) -> None:
    summary = vitbench.run_suite(
        "smoke",
        models=["vit_base16"],
        image_sizes=[224],
        batch_sizes=[1, 4096],
        modes=["infer"],
        devices=[device],
        memory_limit="2GiB",
        metrics=["memory", "latency"],
        data="none",
        out=tmp_path / "oom",
    )
    assert [record.status for record in summary.records] == ["ok", "oom"]
    assert not summary.failed


@pytest.mark.cuda
def test_cuda_measures_everything(tmp_path: Path) -> None:
    check_device("cuda", tmp_path)


@pytest.mark.cuda
def test_cuda_runs_out_of_memory_as_a_data_point(tmp_path: Path) -> None:
    check_out_of_memory("cuda", tmp_path)


@pytest.mark.mps
def test_mps_measures_everything(tmp_path: Path) -> None:
    check_device("mps", tmp_path)


@pytest.mark.mps
def test_mps_runs_out_of_memory_as_a_data_point(tmp_path: Path) -> None:
    check_out_of_memory("mps", tmp_path)

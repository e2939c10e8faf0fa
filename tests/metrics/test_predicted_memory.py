"""The metric: in the calling process, in a worker that several batches share, and of a batch that does not fit."""

from __future__ import annotations

import pytest
import torch

import vitbench
from tests.launching import SharedLauncher
from tests.metrics.test_metrics import make_subject, measured
from vitbench.core.records import Cell
from vitbench.metrics.predicted_memory import _batch_trace, batch_trace
from vitbench.suites import default_metrics, load_suite
from vitbench.suites.schema import FRONTIER_METRICS

NAME = "predicted_peak_memory"


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("batch", [1, 4])
def test_it_is_the_measured_tensor_peak(mode: str, batch: int) -> None:
    changes = {"mode": mode, "batch_size": batch}
    predicted = measured(NAME, make_subject("vit_basic_tutorial", **changes))[NAME]
    real = measured("tensor_memory", make_subject("vit_basic_tutorial", **changes))["tensor_peak"]
    assert predicted.value == real.value
    traced = "at batch 1" if batch == 1 else "at batches 2 and 3"
    assert (
        predicted.method
        == f"live tensor bytes predicted from traces on fake tensors {traced}, torch {torch.__version__}"
    )


def test_batches_seeds_and_limits_share_their_traces() -> None:
    _batch_trace.cache_clear()
    common = {"model": "vit_basic_tutorial", "image_size": (32, 32), "num_classes": 10, "device": "cpu"}
    cells = [
        Cell(**common, threads=1, batch_size=4),
        Cell(**common, threads=2, batch_size=9, seed=3, memory_limit=2**30),
    ]
    assert batch_trace(cells[0]) is batch_trace(cells[1])


def test_other_devices_and_compiled_cells_are_unsupported() -> None:
    subject = make_subject("vit_basic_tutorial", compile=True)
    assert "dispatching" in measured(NAME, subject)[NAME].detail
    subject.device.kind = "cuda"  # type: ignore[misc]
    found = measured(NAME, subject)[NAME]
    assert found.status == "unsupported"
    assert found.detail == "predicted and checked for the CPU only; vitbench fit estimates other devices"


def test_suites_that_measure_memory_have_it() -> None:
    assert NAME in default_metrics()
    assert NAME in FRONTIER_METRICS
    assert NAME not in load_suite("zoo-static").metrics


@pytest.mark.integration
def test_a_batch_that_does_not_fit_has_a_prediction(shared_workers: list[SharedLauncher]) -> None:
    record = vitbench.measure(
        "vit_basic_tutorial", batch_size=65_536, memory_limit="64MiB", threads=1, metrics=[NAME, "memory"]
    )
    assert record.status == "oom"
    predicted = record.measurement(NAME)
    assert predicted is not None
    assert predicted.status == "ok"
    assert predicted.value > 64 * 2**20


@pytest.mark.integration
def test_a_module_of_the_callers_is_predicted_from_its_own_batch() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))
    record = vitbench.measure(module, image_size=8, batch_size=4, threads=1, metrics=[NAME, "tensor_memory"])
    predicted, real = record.measurement(NAME), record.measurement("tensor_peak")
    assert predicted is not None
    assert real is not None
    assert predicted.value == real.value
    assert predicted.method.endswith("at batch 4, torch " + torch.__version__ + "; in the calling process")
    assert not any(parameter.is_meta for parameter in module.parameters())

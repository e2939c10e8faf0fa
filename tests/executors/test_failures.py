"""Everything that can happen to a cell happens here, in real workers: each is one record, and the run goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import vitbench
from tests.launching import left_behind, lending
from vitbench.core.errors import StorageError, UsageError, VitbenchError
from vitbench.core.records import Record
from vitbench.core.run_folder import read_records
from vitbench.devices import open_device
from vitbench.devices.mps import MpsDevice, fallback_operators
from vitbench.executors.conversation import classify_death
from vitbench.executors.launcher import Launcher
from vitbench.metrics.support.subject import NotFiniteError
from vitbench.runner.run import RunSummary, resume_run
from vitbench.training.loop import TrainingDiverged

ROOT = Path(__file__).parents[2]
ONE_PROCESS = {"processes": 1, "seconds": 0.05, "min_samples": 2}
#: name -> (status, cause, signal)
ENDINGS = {
    "works": ("ok", "", None),
    "prints": ("ok", "", None),
    "breaks_on_meta": ("ok", "", None),
    "raises": ("error", "model_bug", None),
    "kills_itself": ("killed", "probable_oom", 9),
    "segfaults": ("killed", "crash", 11),
    "aborts_like_bad_alloc": ("oom", "out_of_memory", 6),
    "exits": ("error", "exit", None),
    "hangs": ("timeout", "timeout", None),
    "allocates": ("oom", "out_of_memory", None),
    "overflows": ("error", "not_finite", None),
    "lacks_an_operator": ("unsupported", "unsupported_operator", None),
}


def test_the_documentation_names_every_cause_that_an_error_of_ours_has() -> None:
    causes = {failure.cause for failure in (TrainingDiverged, NotFiniteError, StorageError, UsageError, VitbenchError)}
    causes |= {cause for _, cause, _ in ENDINGS.values() if cause}
    text = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
    assert [cause for cause in sorted(causes) if f"`{cause}`" not in text.split("## What happens when")[0]] == []


def failing(*names: str) -> list[str]:
    return [f"module:tests.failing_models:{name}" for name in names]


@pytest.fixture(scope="module")
def run(fork_server: Launcher, tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """One run over all of them, under a memory limit and a short timeout."""
    with lending(fork_server), pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return vitbench.run_suite(
            "smoke",
            models=failing(*ENDINGS),
            image_sizes=[32],
            batch_sizes=[1],
            modes=["infer"],
            threads=[1],
            metrics=["params", "flops", "memory", "latency", "throughput"],
            memory_limit="1GiB",
            timeout_s=4,
            measure=ONE_PROCESS,
            data="none",
            out=tmp_path_factory.mktemp("failures"),
            allow_import=True,
        )


@pytest.fixture(scope="module")
def records(run: RunSummary) -> dict[str, Record]:
    return {record.cell.model.rpartition(":")[2]: record for record in run.records}


@pytest.mark.parametrize("name", ENDINGS)
def test_each_ending_has_its_record(records: dict[str, Record], name: str) -> None:
    record = records[name]
    assert (record.status, record.cause, record.signal) == ENDINGS[name], record.detail


@pytest.mark.parametrize("name", [name for name, ending in ENDINGS.items() if ending[0] != "ok"])
def test_a_failed_cell_keeps_what_was_measured_before(records: dict[str, Record], name: str) -> None:
    record = records[name]
    measured = {one.metric: one for one in record.measurements}
    assert measured["params"].value == 3 * 1000 + 1000  # counted before and without the device
    assert measured["flops"].value == 2 * 3 * 1000
    for absent in ("inference_peak_memory", "latency", "throughput"):
        assert measured[absent].status == record.status
        assert measured[absent].detail
    assert record.detail


def test_a_bug_of_a_model_is_named_with_its_place_in_the_models_code(records: dict[str, Record]) -> None:
    lines = (ROOT / "tests" / "failing_models.py").read_text().splitlines()
    (raised,) = (number for number, line in enumerate(lines, 1) if "token 65 is out of range" in line)
    (called,) = (number for number, line in enumerate(lines, 1) if "self.go_wrong(images)" in line)
    assert records["raises"].detail == (
        f"IndexError: token 65 is out of range (failing_models.py:{raised} in go_wrong, "
        f"called at failing_models.py:{called} in forward)"
    )
    assert "failing_models.py" in records["raises"].stderr_tail


def test_a_timeout_says_how_long_it_waited_and_leaves_no_process(records: dict[str, Record]) -> None:
    assert "longer than 4 s" in records["hangs"].detail
    assert records["hangs"].duration_s < 20
    for _ in range(50):  # the kernel may take a moment
        left = left_behind()
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"left behind: {left}")


def test_what_a_model_prints_is_not_taken_for_an_event(records: dict[str, Record]) -> None:
    latency = records["prints"].measurement("latency")
    assert latency is not None
    assert latency.status == "ok"
    assert "goodbye" in records["exits"].stderr_tail


def test_a_model_that_breaks_on_meta_is_measured_but_has_no_flops(records: dict[str, Record]) -> None:
    record = records["breaks_on_meta"]
    flops, latency = record.measurement("flops"), record.measurement("latency")
    assert flops is not None
    assert latency is not None
    assert (flops.status, latency.status) == ("error", "ok")
    assert "no meta here" in flops.detail


def test_the_report_shows_failures_in_place(run: RunSummary) -> None:
    page = (run.folder / "report.md").read_text()
    lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| module:")}
    for word, name in (
        ("OOM", "allocates"),
        ("timeout", "hangs"),
        ("killed", "kills_itself"),
        ("unsupported", "lacks_an_operator"),
    ):
        assert word in next(line for key, line in lines.items() if key.endswith(f":{name}"))
    assert "token 65 is out of range" in page


def test_only_failures_can_be_retried(run: RunSummary) -> None:
    """That a resume repeats nothing else: tests/runner/test_static_counts.py."""
    with pytest.raises(UsageError, match="cannot be retried"):
        resume_run(run.folder, retry=["ok"])


def test_the_exit_code_counts_failures_other_than_memory(run: RunSummary) -> None:
    failed = {record.cell.model.rpartition(":")[2] for record in run.failed}
    assert failed == {name for name, ending in ENDINGS.items() if ending[0] not in ("ok", "oom")}


@pytest.mark.usefixtures("shared_workers")
def test_training_may_run_out_of_memory_where_inference_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    summary = vitbench.run_suite(
        "smoke",
        models=failing("allocates_in_training"),
        image_sizes=[32],
        batch_sizes=[1],
        exclude=[],
        threads=[1],
        metrics=["memory", "latency", "training_step"],
        memory_limit="1GiB",
        measure=ONE_PROCESS,
        data="none",
        out=tmp_path / "run",
        allow_import=True,
    )
    assert {record.cell.mode: record.status for record in summary.records} == {"infer": "ok", "train": "oom"}
    assert not summary.failed


@pytest.mark.usefixtures("shared_workers")
def test_a_worker_that_finds_the_disk_full_stops_the_run_without_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full (Linux)")
    monkeypatch.chdir(ROOT)
    with pytest.raises(StorageError, match=r"disk is full.*vitbench run --resume"):
        vitbench.run_suite(
            "smoke",
            models=failing("works", "fills_the_disk"),
            image_sizes=[32],
            batch_sizes=[1],
            modes=["infer"],
            threads=[1],
            metrics=["latency"],
            measure=ONE_PROCESS,
            data="none",
            out=tmp_path / "run",
            allow_import=True,
        )
    assert [record.cell.model.rpartition(":")[2] for record in read_records(tmp_path / "run")] == ["works"]


# what no machine here can do for real: the texts of other devices


@pytest.mark.parametrize(
    ("text", "status", "cause"),
    [
        (
            "MPS backend out of memory (MPS allocated: 17.95 GB, other allocations: 384.00 KB, max allowed: 18.13 GB). Tried to "
            "allocate 392.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory "
            "allocations (may cause system failure).",
            "oom",
            "out_of_memory",
        ),
        ("MPS backend out of memory (MPS allocated: 9.05 GiB). Tried to allocate 1 GiB on shared pool", "oom", "out_of_memory"),
        ("Invalid buffer size: 19.45 GB", "oom", "oom_single_buffer"),
        ("The operator 'aten::foo' is not currently implemented for the MPS device.", "unsupported", "unsupported_operator"),
        ("command buffer exited with error status", "error", "device_lost"),
        ("shapes cannot be multiplied (1x2 and 3x4)", "error", "exception"),
    ],
)  # fmt: skip
def test_mps_failures_are_known_by_their_texts(text: str, status: str, cause: str) -> None:
    failure = open_device("mps").classify(RuntimeError(text))
    assert (failure.status, failure.cause) == (status, cause)
    assert text in failure.detail


@pytest.mark.parametrize(
    ("text", "status", "cause"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.79 GiB", "oom", "out_of_memory"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "oom", "library_workspace"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "oom", "library_workspace"),
        ("CUDA error: an illegal memory access was encountered", "error", "device_lost"),
        ("CUDA error: no kernel image is available for execution on the device", "unsupported", "architecture"),
        ('"addmm_impl_cpu_" not implemented for \'Half\'', "unsupported", "unsupported_dtype"),
        ("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 "
         "bytes. Error code 12 (Cannot allocate memory)", "oom", "out_of_memory"),
    ],
)  # fmt: skip
def test_cuda_and_host_failures_are_known_by_their_texts(text: str, status: str, cause: str) -> None:
    failure = open_device("cuda").classify(RuntimeError(text))
    assert (failure.status, failure.cause) == (status, cause)


def test_torchs_own_out_of_memory_error_is_oom_everywhere() -> None:
    import torch

    error = torch.OutOfMemoryError("Tried to allocate too much")
    assert {open_device(name).classify(error).status for name in ("cpu", "cuda", "mps")} == {"oom"}
    assert open_device("cpu").classify(MemoryError()).status == "oom"


def test_a_sigkill_is_oom_only_with_evidence() -> None:
    assert classify_death(-9, "", "cpu", memory_evidence=False)[0].cause == "probable_oom"
    failure, number = classify_death(-9, "", "cpu", memory_evidence=True)
    assert (failure.status, failure.cause, number) == ("oom", "oom_kill", 9)


def test_an_mps_abort_says_which_of_its_two_known_causes_it_had() -> None:
    large = classify_death(-6, "Error: total bytes of NDArray > 2**32", "mps", memory_evidence=False)[0]
    lost = classify_death(-6, "command buffer exited with error status", "mps", memory_evidence=False)[0]
    assert (large.status, large.cause) == ("killed", "tensor_too_large")
    assert (lost.status, lost.cause) == ("killed", "device_lost")


def test_results_of_an_mps_worker_that_printed_a_lost_device_are_not_trusted() -> None:
    text = "before\n... command buffer exited with error status ...\nafter"
    assert MpsDevice.stderr_failure(text) == ("device_lost", "... command buffer exited with error status ...")


def test_operators_that_fell_back_to_the_cpu_are_named() -> None:
    text = (
        "UserWarning: The operator 'aten::nonzero' is not currently supported on the MPS backend and will fall back to run "
        "on the CPU. This may have performance implications."
    )
    assert fallback_operators(text) == ["aten::nonzero"]

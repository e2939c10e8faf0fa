"""Faults are injected where they are asked for, and nowhere else. What comes of them in a run: test_soak.py."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.test_run_folder import make_record
from vitbench.cli import run_command
from vitbench.core import run_folder as store
from vitbench.core.errors import StorageError, UsageError
from vitbench.devices import open_device
from vitbench.executors import chaos

ROOT = Path(__file__).parents[2]


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the variable names."""
    path = tmp_path / "chaos.json"
    monkeypatch.setenv(chaos.VARIABLE, str(path))
    return path


class Model:
    """Stands in for a metrics.Subject."""

    def build(self) -> object:
        import torch

        return torch.nn.Linear(2, 2)


CELL = make_record().cell


def strike(process: str = "memory") -> Model:
    subject = Model()
    chaos.strike_in_worker(CELL, process, subject)
    return subject


def test_without_the_variable_nothing_is_even_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(chaos.VARIABLE, raising=False)
    monkeypatch.setattr(chaos, "_faults_of", lambda *_: pytest.fail("looked up"))
    strike()
    chaos.strike_at_record(CELL, b"", -1)
    assert chaos.load_faults() == ()
    assert chaos.describe() == {}


@pytest.mark.parametrize("key", [CELL.id, CELL.label, "vit_basic *", "* b1 *"])
def test_a_key_is_a_cells_id_or_a_pattern_on_its_label(faults: Path, key: str) -> None:
    faults.write_text(json.dumps({"somebody else": "sigkill", "0" * 16: "sigkill", key: "error"}))
    with pytest.raises(RuntimeError):
        strike()


def test_a_fault_can_be_kept_to_one_kind_of_process(faults: Path) -> None:
    faults.write_text(json.dumps({"*": [{"fault": "error", "process": "static"}, {"fault": "nan", "process": "time"}]}))
    strike("memory")
    with pytest.raises(RuntimeError):
        strike("static")


def test_without_a_kind_it_strikes_where_it_decides_the_status(faults: Path) -> None:
    faults.write_text('{"*": "error"}')
    for process in ("static", "counters"):
        strike(process)
    for process in ("memory", "time", "training", "energy"):
        with pytest.raises(RuntimeError):
            strike(process)


def test_strikes_are_counted_across_processes(faults: Path) -> None:
    faults.write_text('{"*": {"fault": "error", "times": 2}}')
    code = "from tests.faults.test_chaos import strike; strike()"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "RuntimeError" in other.stderr
    with pytest.raises(RuntimeError):
        strike()
    strike()
    assert len(faults.with_name("chaos.json.struck").read_text().splitlines()) == 2


@pytest.mark.parametrize("device", chaos.OOM_TEXTS)
@pytest.mark.parametrize("own", ["cpu", "cuda", "mps"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_each_devices_own_text_is_out_of_memory_whatever_the_cell_runs_on(
    monkeypatch: pytest.MonkeyPatch, device: str, own: str
) -> None:
    """In a process of its own, as a worker is: there it is judged as on the device that it comes from."""
    monkeypatch.setenv(chaos.VARIABLE, json.dumps({"*": f"oom:{device}"}))
    import torch  # noqa: F401  (before the fork)

    from vitbench.metrics.support.in_process import failure_of

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = "no fault"
        try:
            cell = dataclasses.replace(CELL, device=own)
            try:
                chaos.strike_in_worker(cell, "memory", None)
            except Exception as error:
                failure = failure_of(error, cell)
                said = f"{type(error).__name__}: {failure.status} {failure.cause}"
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read) as answer:
        name = "OutOfMemoryError" if device == "cuda" else "RuntimeError"
        assert answer.read() == f"{name}: oom out_of_memory"


def test_a_worker_can_find_the_disk_full(faults: Path) -> None:
    faults.write_text('{"*": "disk_full_worker"}')
    with pytest.raises(OSError, match="No space left on device") as caught:
        strike()
    assert open_device("cpu").classify(caught.value).cause == "disk_full"
    strike()  # once, so that the run that it stops can be completed


def test_a_poisoned_model_has_no_weight_that_is_a_number(faults: Path) -> None:
    import torch

    faults.write_text('{"*": "nan"}')
    model = strike().build()
    assert isinstance(model, torch.nn.Module)
    assert all(parameter.isnan().all() for parameter in model.parameters())


def test_a_full_disk_at_a_record_takes_half_a_line_and_gives_it_back(faults: Path, tmp_path: Path) -> None:
    faults.write_text('{"*": "disk_full"}')
    writer = store.RecordWriter(tmp_path, before_write=chaos.strike_at_record)
    with pytest.raises(StorageError, match="No space left") as caught:
        writer.append(make_record())
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert (tmp_path / store.RECORDS).read_bytes() == b""
    writer.append(make_record())
    writer.close()
    assert len(store.read_records(tmp_path)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"*": "sigkil"}', "'sigkil' is no fault. Did you mean 'sigkill'?"),
        ('{"*": {"fault": "error", "procces": "time"}}', "unknown key 'procces'"),
        ('{"*": {"fault": "error", "process": "tim"}}', "'tim' is no process. Did you mean 'time'?"),
        ('{"*": {"fault": "error", "times": 0}}', "times = 0 is not a whole number"),
        ('{"*": {"fault": "disk_full", "process": "time"}}', "strikes at the record"),
        ('{"*": 3}', "3 is neither the name of a fault nor an object"),
        ('["sigkill"]', "is no JSON object"),
        ('{"*": "sigkill"', "is no JSON"),
    ],
)
def test_a_bad_chaos_file_is_one_line_and_exit_code_2(
    faults: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    faults.write_text(text)
    assert run_command(["run", "--suite", "smoke", "--data", "none", "--out", str(faults.with_name("run"))]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1, errors
    assert message in errors[0]
    assert not faults.with_name("run").exists()


def test_a_chaos_file_that_is_not_there_is_one_line_too(faults: Path) -> None:
    with pytest.raises(UsageError, match=r"chaos\.json: the file cannot be read \(No such file"):
        chaos.load_faults()


def test_json_in_the_variable_itself_counts_in_each_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(chaos.VARIABLE, '{"*": {"fault": "error", "times": 1}}')
    with pytest.raises(UsageError, match="put the JSON into one"):
        chaos.load_faults()
    monkeypatch.setenv(chaos.VARIABLE, '{"*": "disk_full"}')
    monkeypatch.setattr(chaos, "_struck", chaos.Counter())
    writer = store.RecordWriter(tmp_path, before_write=chaos.strike_at_record)
    with pytest.raises(StorageError):
        writer.append(make_record())
    writer.append(make_record())
    writer.close()

"""The search for the largest batch that fits: its arithmetic, and whole searches in real workers under a real limit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.launching import SharedLauncher, lending
from tests.reports.paired import section, tables
from tests.suites.batch_search_models import BYTES_AN_IMAGE
from vitbench.cli import run_command
from vitbench.core import run_folder as store
from vitbench.core.errors import SuiteError
from vitbench.core.records import Cell, Measurement, Record
from vitbench.executors.launcher import Launcher
from vitbench.runner.run import RunSummary, plan_suite, resume_run, run_suite
from vitbench.suites import load_suite, make_suite, to_toml
from vitbench.suites.batch_search import (
    BOUND,
    PREDICTED,
    expected_attempts,
    most_attempts,
    next_batch,
    predictions_in,
    search,
    spell,
    stand,
    unfinished,
)

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA is Linux's")
OOM, OK, KILLED = ("oom", "out_of_memory"), ("ok", ""), ("killed", "probable_oom")


def module(name: str) -> str:
    return f"module:tests.suites.batch_search_models:{name}"


# what comes next


def searched(
    limit: int, bound: int, start: dict[int, tuple[str, str]] | None = None, predicted: int | None = None
) -> dict[int, tuple[str, str]]:
    """A whole search where ``limit`` images fit; fails if it tries one twice."""
    attempts = dict(start or {})
    while (batch := next_batch(attempts, bound, predicted)) is not None:
        assert batch not in attempts
        assert 1 <= batch <= bound
        attempts[batch] = OK if batch <= limit else OOM
    return attempts


BOUNDS = st.integers(min_value=1, max_value=5000)
PREDICTIONS = st.none() | st.integers(min_value=0, max_value=60_000)


@settings(deadline=None)  # the machine may be busy
@given(limit=st.integers(min_value=0, max_value=6000), bound=BOUNDS, predicted=PREDICTIONS)
def test_a_search_finds_the_limit_to_one_image_in_few_attempts(limit: int, bound: int, predicted: int | None) -> None:
    attempts = searched(limit, bound, predicted=predicted)
    found = stand(attempts, bound)
    assert found.largest == min(limit, bound)
    assert found.too_large == (limit + 1 if limit < bound else None)
    assert found.reached_bound == (limit >= bound)
    assert len(attempts) <= most_attempts(bound)
    assert list(attempts) == expected_attempts(limit, bound, predicted)


@settings(deadline=None)  # the machine may be busy
@given(limit=st.integers(min_value=0, max_value=6000), bound=BOUNDS)
def test_a_right_prediction_takes_two_attempts_or_one_at_the_bound(limit: int, bound: int) -> None:
    attempts = list(searched(limit, bound, predicted=limit))
    assert attempts == ([bound] if limit >= bound else [limit, limit + 1] if limit else [1])


@pytest.mark.parametrize(
    ("limit", "predicted", "attempts"),
    [
        (12, 11, [11, 12, 14, 13]),
        (11, 12, [12, 11]),
        (90, 100, [100, 99, 97, 91, 73, 82, 86, 88, 89, 90]),
        (3, 0, [1, 2, 4, 3]),
        (400, 320, [320, 321, 330, 350, 410, 380, 395, 402, 398, 400, 401]),
        (1, 1000, [1000, 999, 969, 907, 721, 163, 1, 82, 41, 21, 11, 6, 3, 2]),
    ],
)
def test_from_a_wrong_prediction_a_search_moves_by_growing_steps(
    limit: int, predicted: int, attempts: list[int]
) -> None:
    assert list(searched(limit, 1024, predicted=predicted)) == attempts


@settings(deadline=None)  # the machine may be busy
@given(
    limit=st.integers(min_value=0, max_value=6000),
    bound=BOUNDS,
    known=st.integers(min_value=0, max_value=30),
    predicted=PREDICTIONS,
)
def test_a_search_that_was_stopped_goes_on_where_it_was(
    limit: int, bound: int, known: int, predicted: int | None
) -> None:
    whole = searched(limit, bound, predicted=predicted)
    begun = dict(list(whole.items())[:known])
    assert list(searched(limit, bound, begun, predicted)) == list(whole)


@settings(deadline=None)  # the machine may be busy
@given(
    limit=st.integers(min_value=0, max_value=600),
    bound=BOUNDS,
    lost=st.sets(st.integers(min_value=0, max_value=30)),
    before=PREDICTIONS,
    now=PREDICTIONS,
)
def test_whatever_records_are_lost_or_retried_the_limit_is_found_again(
    limit: int, bound: int, lost: set[int], before: int | None, now: int | None
) -> None:
    whole = searched(limit, bound, predicted=before)
    left = {batch: ending for number, (batch, ending) in enumerate(whole.items()) if number not in lost}
    assert stand(searched(limit, bound, left, now), bound).largest == min(limit, bound)


@settings(deadline=None)  # the machine may be busy
@given(
    limit=st.integers(min_value=0, max_value=600),
    bound=st.integers(min_value=1, max_value=600),
    ending=st.sampled_from(
        [("unsupported", "operator"), ("timeout", "timeout"), ("error", "exception"), ("killed", "crash")]
    ),
    at=st.integers(min_value=0, max_value=20),
)
def test_another_failure_than_memory_ends_a_search_at_once(
    limit: int, bound: int, ending: tuple[str, str], at: int
) -> None:
    whole = searched(limit, bound)
    stopped_at = list(whole)[min(at, len(whole) - 1)]
    before = dict(list(whole.items())[: list(whole).index(stopped_at)])
    attempts = {**before, stopped_at: ending}
    assert next_batch(attempts, bound) is None
    found = stand(attempts, bound)
    assert found.stopped_at == stopped_at
    assert found.largest == max((batch for batch, one in before.items() if one == OK), default=0)


@settings(deadline=None)  # the machine may be busy
@given(
    works=st.integers(min_value=0, max_value=600),
    fits=st.integers(min_value=0, max_value=600),
    bound=st.integers(min_value=1, max_value=600),
    predicted=PREDICTIONS,
)
def test_a_prediction_beyond_what_works_loses_nothing_that_does(
    works: int, fits: int, bound: int, predicted: int | None
) -> None:
    """Batches beyond ``works`` time out, those beyond ``fits`` do not fit: most are tried by both kinds of search."""
    attempts: dict[int, tuple[str, str]] = {}
    while (batch := next_batch(attempts, bound, predicted)) is not None:
        assert batch not in attempts
        attempts[batch] = OOM if batch > fits else ("timeout", "timeout") if batch > works else OK
    found = stand(attempts, bound)
    assert len(attempts) <= most_attempts(bound)
    if fits <= works or works >= bound:
        assert found.largest == min(fits, bound)
        assert found.stopped_at is None
    else:  # at least what doubling finds
        assert works // 2 < max(found.largest, 1) <= max(works, 1)
        assert found.stopped_at is not None
        assert found.stopped_at > works


@pytest.mark.parametrize("ending", [OOM, ("oom", "oom_single_buffer"), KILLED, ("killed", "oom_kill")])
def test_every_sign_of_too_little_memory_bounds_a_search(ending: tuple[str, str]) -> None:
    assert next_batch({1: OK, 2: OK, 4: ending}, 64) == 3
    assert next_batch({1: OK, 2: OK, 4: ending, 3: OK}, 64) is None


def test_the_bound_is_tried_even_if_it_is_no_power_of_two() -> None:
    assert list(searched(1000, 100)) == [1, 2, 4, 8, 16, 32, 64, 100]
    assert list(searched(1000, 1)) == [1]
    assert list(searched(70, 100)) == [1, 2, 4, 8, 16, 32, 64, 100, 82, 73, 68, 70, 71]


def test_a_retried_search_starts_from_what_still_counts() -> None:
    # the batches that were too large are to be tried again: 16 now fits, and nothing is known of larger ones
    assert next_batch({1: OK, 2: OK, 4: OK, 8: OK, 12: OK}, 64) == 16
    assert next_batch({1: OK, 2: OK, 4: OK, 8: OK, 12: OK, 13: OOM, 16: OK}, 64) == 32


@pytest.mark.parametrize(
    ("attempts", "text"),
    [
        ({1: OK, 2: OK, 4: OK, 8: OK}, ">=8"),
        ({1: OK, 2: OK, 4: OOM, 3: OK}, "3"),
        ({1: OOM}, "OOM@1"),
        ({1: KILLED}, "killed@1"),
        ({1: OK, 2: OK, 4: ("timeout", "timeout")}, "2 (timeout@4)"),
        ({1: OK, 2: OK, 4: OK, 8: OOM, 6: ("error", "exception")}, "4 (error@6)"),
        ({1: ("unsupported", "operator")}, "unsupported@1"),
        ({1: OK, 2: OK}, "2 or more (unfinished)"),
        ({1: OK, 2: OK, 4: OK, 8: OOM}, "4 to 7 (unfinished)"),
        ({8: OK, 100: OOM}, ">=8"),  # beyond the bound
    ],
)
def test_what_a_search_found_is_spelt(attempts: dict[int, tuple[str, str]], text: str) -> None:
    assert spell(attempts, 8) == text


# what holds the limit


@pytest.mark.integration
@linux
def test_threads_are_there_before_the_limit_is() -> None:
    """Their stacks take 8 MiB each: OpenMP would end the process."""
    code = """
import torch
from vitbench.devices import open_device
torch.set_num_threads(3)
print(open_device("cpu").limit_memory(4 * 2**20))
torch.zeros(3 * 32768).add_(1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "RLIMIT_DATA beyond the worker's size after imports\n"


def test_gpus_say_what_holds_a_limit_and_nothing_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch.cuda._utils import _get_device_index

    from vitbench.devices import open_device

    class Properties:
        total_memory = 8_000

    class Mps:
        def recommended_max_memory(self) -> int:
            return 4_000

        def set_per_process_memory_fraction(self, share: float) -> None:
            given.append(share)

    given: list[float] = []

    def set_fraction(share: float, where: Any) -> None:
        _get_device_index(where)  # as torch does, which refuses a device without an index
        given.append(share)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda name: Properties())
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_fraction)
    monkeypatch.setattr(torch, "mps", Mps())
    assert open_device("cuda").limit_memory(None) == open_device("mps").limit_memory(None) == ""
    assert "per-process memory fraction" in (cuda := open_device("cuda").limit_memory(2_000))
    assert cuda.endswith("of 8000 bytes")
    assert "high watermark ratio" in (mps := open_device("mps").limit_memory(1_000))
    assert mps.endswith("of the recommended maximum of 4000 bytes")
    assert given == [0.25, 0.25]
    assert open_device("cuda").memory_for_tensors(2_000) == 2_000
    assert open_device("mps").memory_for_tensors(None) == 4_000  # all that is recommended


def test_a_cpu_leaves_some_of_a_limit_to_what_is_no_tensor() -> None:
    from vitbench.devices import open_device
    from vitbench.devices.host.memory import available_memory

    cpu = open_device("cpu")
    assert cpu.memory_for_tensors(2**30) == 2**30 - 8 * 2**20
    assert cpu.memory_for_tensors(2**20) == 0
    assert 0 < cpu.memory_for_tensors(None) < available_memory() * 1.1  # the machine may be busy


# suites


SEARCH = {"name": "mine", "models": ["vit_basic"], "frontier": {}}


def test_a_frontier_suite_measures_what_takes_seconds() -> None:
    suite = make_suite(SEARCH, "mine.toml")
    assert suite.metrics == ("params", "flops", "predicted_peak_memory", "memory")
    assert suite.frontier is not None
    assert suite.frontier.max_batch == 1024


def test_a_frontier_suite_that_is_written_is_read_as_the_same() -> None:
    suite = make_suite({**SEARCH, "frontier": {"max_batch": 48}, "memory_limit": "1GiB"}, "mine.toml")
    text = to_toml(suite)
    assert "batch_sizes" not in text
    assert make_suite(tomllib.loads(text), "again.toml") == suite


def test_a_frontier_suite_takes_options_that_are_not_about_batches() -> None:
    from vitbench.suites.overrides import prepare_suite

    suite = prepare_suite("frontier", {"processes": 2, "models": ["vit_basic"]}, quick=True)
    assert suite.measure.processes == 2
    assert suite.frontier == load_suite("frontier").frontier


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batch_sizes": [1]}, "Suite mine.toml, key batch_sizes: batch sizes are not given with [frontier]"),
        ({"training": {}}, "Suite mine.toml, key training: nothing is trained with [frontier]"),
        ({"metrics": ["latency"]}, "Suite mine.toml, key metrics: [frontier] needs the metric memory"),
        ({"exclude": [{"batch_sizes": [8]}]}, "Suite mine.toml, key exclude: a rule for batch_sizes"),
        ({"frontier": {"max_batch": 0}}, "key frontier.max_batch: Input should be greater than or equal to 1"),
        ({"frontier": {"max_batches": 4}}, "unknown key 'frontier.max_batches'. Did you mean 'max_batch'?"),
    ],
)
def test_what_does_not_go_with_a_search_gets_one_line(more: dict[str, object], message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        make_suite({**SEARCH, **more}, "mine.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# the command line


MISTAKES = [
    (["frontier"], "Which models? vitbench frontier MODEL"),
    (["frontier", "vit_basik"], "Unknown model 'vit_basik'. Did you mean 'vit_basic'?"),
    (["frontier", "vit_basic", "--mode", "inference"], "'inference' is not allowed. Allowed: infer, train, both"),
    (["frontier", "vit_basic", "--max-batch", "0"], "Invalid value for '--max-batch'"),
    (["frontier", "vit_basic", "--memory-limit", "much"], "Option --memory-limit: 'much' is not a valid memory size"),
    (["frontier", "vit_basic", "--dtype", "fp23"], "Option --dtypes: 'fp23' is not allowed. Did you mean 'fp32'?"),
    (["frontier", "vit_basic", "--device", "gpu"], "Unknown device 'gpu'."),
    (["frontier", "vit_basic", "--image-sizes", "33"], "Image size 33 does not fit vit_basic"),
    (["frontier", "vit_basic", "--image-sizes", ","], "A list is empty"),
    (["frontier", "vit_basic", "--resume", "nowhere"], "leave out the argument models"),
    (["frontier", "--resume", "nowhere"], "nowhere cannot be resumed"),
    (["run", "--suite", "frontier", "--batch-sizes", "1,8"], "Option --batch-sizes: batch sizes are not given with"),
    (["run", "--suite", "frontier", "--metrics", "params"], "Option --metrics: [frontier] needs the metric memory"),
    (["run", "--suite", "frontier", "--data", "digits"], "nothing is trained with [frontier]"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_command(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert not printed.out


# whole searches


@pytest.fixture(scope="module")
def server(fork_server: Launcher) -> Iterator[list[SharedLauncher]]:
    with lending(fork_server) as launchers, pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield launchers


LIMIT = 128 * 2**20
BOUND_HERE = 50
NAMES = (
    *(
        "holds",
        "keeps",
        "crashes_without_memory",
        "works",
        "killed_above_5",
        "crashes_at_4",
        "breaks_at_4",
        "hangs_at_4",
    ),
    *("lacks_an_operator", "never_fits"),
)


@pytest.fixture(scope="module")
def run(server: list[SharedLauncher], tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """One run of searches that end in every way."""
    suite = tmp_path_factory.mktemp("suite") / "mine.toml"
    suite.write_text(
        f'models = {[module(name) for name in NAMES]}\nimage_sizes = [8]\ndevices = ["cpu"]\nthreads = [1]\n'
        f'modes = ["infer", "train"]\nmemory_limit = {LIMIT}\ntimeout_s = 6\n[frontier]\nmax_batch = {BOUND_HERE}\n'
        f'[[exclude]]\nmodels = {[module(name) for name in NAMES[1:]]}\nmodes = "train"\n'.replace("'", '"')
    )
    return run_suite(str(suite), out=tmp_path_factory.mktemp("run"), allow_import=True)


def by_search(records: tuple[Record, ...] | list[Record]) -> dict[tuple[str, str], dict[int, Record]]:
    found: dict[tuple[str, str], dict[int, Record]] = {}
    for record in records:
        key = (record.cell.model.rpartition(":")[2], record.cell.mode)
        assert record.cell.batch_size not in found.setdefault(key, {})
        found[key][record.cell.batch_size] = record
    return found


def found_by(run: RunSummary, name: str, mode: str = "infer") -> str:
    attempts = by_search(run.records)[name, mode]
    return spell({batch: (record.status, record.cause) for batch, record in attempts.items()}, BOUND_HERE)


@pytest.mark.integration
@linux
@pytest.mark.parametrize(("mode", "held"), [("infer", 1), ("train", 2)])
def test_the_largest_batch_is_what_the_limit_has_room_for(run: RunSummary, mode: str, held: int) -> None:
    room = LIMIT // (held * BYTES_AN_IMAGE)
    # some 20 MiB of a worker that works are no tensors of this model
    least = (LIMIT - 24 * 2**20) // (held * BYTES_AN_IMAGE)
    assert least <= int(found_by(run, "holds", mode)) < room


@pytest.mark.integration
@linux
def test_a_search_begins_at_the_batch_that_a_trace_predicts(run: RunSummary) -> None:
    attempts = by_search(run.records)["keeps", "infer"]
    (predicted,) = {record.measurement(PREDICTED) for record in attempts.values()}
    assert predicted is not None
    tensors = LIMIT - 8 * 2**20  # what a worker leaves to them
    assert predicted.value == (tensors - 1) // BYTES_AN_IMAGE  # the model has weights, too
    assert predicted.method.startswith(f"traces on fake CPU tensors, {tensors} bytes for tensors, torch ")
    assert next(iter(attempts)) == predicted.value
    assert abs(int(found_by(run, "keeps")) - predicted.value) <= 2
    assert len(attempts) <= 4
    doubled = by_search(run.records)["holds", "infer"]  # it reads a number, which no trace can
    assert list(doubled)[:3] == [1, 2, 4]
    assert not [record for record in doubled.values() if record.measurement(PREDICTED)]


@pytest.mark.integration
@linux
def test_each_attempt_is_a_record_that_names_its_cap_even_if_it_did_not_fit(run: RunSummary) -> None:
    attempts = by_search(run.records)["holds", "infer"]
    assert {record.status for record in attempts.values()} == {"ok", "oom"}
    for batch, record in attempts.items():
        assert record.cell.batch_size == batch
        cap = record.measurement("memory_limit")
        assert cap is not None
        assert (cap.value, cap.unit, cap.method) == (
            LIMIT,
            "byte",
            "RLIMIT_DATA beyond the worker's size after imports",
        )
        bound = record.measurement(BOUND)
        assert bound is not None
        assert bound.value == BOUND_HERE
        peak = record.measurement("inference_peak_memory")
        assert peak is not None
        assert peak.status == record.status
        if record.status == "ok":
            assert peak.value == pytest.approx(batch * BYTES_AN_IMAGE, rel=0.02, abs=1e6)


@pytest.mark.integration
@linux
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("works", f">={BOUND_HERE}"),
        ("killed_above_5", "5"),
        ("crashes_at_4", "2 (killed@4)"),
        ("breaks_at_4", "2 (error@4)"),
        ("hangs_at_4", "2 (timeout@4)"),
        ("lacks_an_operator", "unsupported@1"),
        ("never_fits", "OOM@1"),
    ],
)
def test_each_ending_of_a_search_is_told(run: RunSummary, name: str, text: str) -> None:
    assert found_by(run, name) == text


@pytest.mark.integration
@linux
def test_a_crash_is_laid_to_the_limit_if_there_is_none_without_it(run: RunSummary) -> None:
    assert found_by(run, "crashes_without_memory") == found_by(run, "holds")
    attempts = by_search(run.records)["crashes_without_memory", "infer"]
    crashed = [record for record in attempts.values() if record.status != "ok"]
    assert {(record.status, record.cause, record.signal) for record in crashed} == {("killed", "probable_oom", 11)}
    assert all(record.detail.endswith("without the memory limit ok, so probably for memory") for record in crashed)
    assert {record.cell.memory_limit for record in attempts.values()} == {LIMIT}
    always = by_search(run.records)["crashes_at_4", "infer"][4]
    assert (always.status, always.cause, always.signal) == ("killed", "crash", 11)
    assert always.detail.endswith("without the memory limit also killed")


@pytest.mark.integration
@linux
def test_batches_that_do_not_fit_are_no_failures_of_a_search(run: RunSummary) -> None:
    failed = {(record.cell.model.rpartition(":")[2], record.cell.batch_size) for record in run.failed}
    # the prediction led to the bound, then the search doubled the batch from 1
    predicted = {(name, batch) for name in ("breaks_at_4", "crashes_at_4", "hangs_at_4") for batch in (4, BOUND_HERE)}
    assert failed == predicted | {("lacks_an_operator", 1)}


@pytest.mark.integration
@linux
def test_the_report_begins_with_the_frontier_and_its_csv_has_every_attempt(run: RunSummary) -> None:
    page = (run.folder / "report.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings[0] == "## Largest batch that fits"
    inference, training, *_ = tables(page)
    limits = tables(section(page, "What ended each search"))[0]
    found = {line["model"].rpartition(":")[2]: line["8 px"] for line in inference}
    assert found == {name: found_by(run, name) for name in NAMES}
    assert [line["8 px"] for line in training] == [found_by(run, "holds", "train")]
    holds = limits[0]
    assert holds["how it fails"] == "OOM, out_of_memory"
    assert int(holds["fails at"]) == int(holds["largest batch"]) + 1
    assert holds["limit"] == f"{LIMIT} bytes: RLIMIT_DATA beyond the worker's size after imports"
    import csv

    lines = list(csv.DictReader((run.folder / "report.csv").read_text().splitlines()))
    known = {(line["model"], line["batch_size"]) for line in lines}
    assert known == {(record.cell.model, str(record.cell.batch_size)) for record in run.records}
    assert {line["memory_limit_bytes"] for line in lines} == {str(LIMIT)}


@pytest.mark.integration
@linux
def test_a_finished_search_is_not_repeated_but_what_ended_it_can_be(run: RunSummary) -> None:
    before = (run.folder / store.RECORDS).read_text().splitlines()
    again = resume_run(run.folder, allow_import=True)
    assert (run.folder / store.RECORDS).read_text().splitlines() == before
    assert {record.to_json() for record in again.records} == {record.to_json() for record in run.records}
    resume_run(run.folder, retry=["unsupported"], allow_import=True)
    added = (run.folder / store.RECORDS).read_text().splitlines()[len(before) :]
    assert [Record.from_json(line).cell.model for line in added] == [module("lacks_an_operator")]


@pytest.mark.integration
def test_dry_run_counts_searches(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "mine.toml"
    suite.write_text(
        f'models = ["{module("works")}"]\nimage_sizes = [8, 16]\ndevices = ["cpu"]\nthreads = [1]\n[frontier]\nmax_batch = 64\n'
    )
    assert run_command(["run", "--suite", str(suite), "--allow-import", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "2 searches of at most 14 attempts, about" in out
    assert re.search(rf"{module('works')} 8px cpu fp32 infer, batches up to 64, predicted \d+  \(1 thread\)", out)
    plan = plan_suite(str(suite), allow_import=True)
    assert [cell.batch_size for cell in plan.cells] == [1, 1]


@pytest.mark.integration
def test_the_command_searches_prints_and_writes(
    server: list[SharedLauncher], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "found"
    arguments = ["--image-sizes", "8,16", "--mode", "both", "--max-batch", "3", "--device", "cpu", "--threads", "1"]
    code = run_command(["frontier", module("works"), *arguments, "--allow-import", "--out", str(folder)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert [f"Largest batch that fits: cpu, {call}, fp32" in printed.out for call in ("inference", "training step")]
    assert len(re.findall(r">=3 +>=3$", printed.out, re.MULTILINE)) == 2
    assert "the search's own bound of 3" in (folder / "report.md").read_text()
    assert f"Wrote {folder / 'report.md'}" in printed.out
    assert "4 searches, about" in printed.err
    assert f"[1/4] {module('works')} 8px b3 cpu fp32 infer: ok" in printed.err
    assert f"[4/4] {module('works')} 16px cpu fp32 train: largest batch: >=3 in 1 attempt (predicted " in printed.err
    records = store.read_records(folder)
    assert len(records) == 4
    assert not [record for record in records if record.measurement("memory_limit")]  # none was asked for
    assert run_command(["report", str(folder)]) == 0
    assert capsys.readouterr().out == printed.out


@pytest.mark.integration
@linux
def test_a_search_stopped_in_its_middle_is_resumed_and_repeats_nothing(run: RunSummary, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    path = folder / store.RECORDS
    lines = path.read_text().splitlines(keepends=True)
    last = [line for line in lines if Record.from_json(line).cell.model == module("killed_above_5")][-2:]
    path.write_text("".join(line for line in lines if line not in last))
    before = path.read_text()
    resume_run(folder, allow_import=True)
    after = path.read_text()
    assert after.startswith(before)
    added = [Record.from_json(line) for line in after[len(before) :].splitlines()]
    stopped = [Record.from_json(line) for line in last]
    assert [(one.cell, one.status) for one in added] == [(one.cell, one.status) for one in stopped]


# with made-up records


def cell(model: str, batch: int = 1, limit: int | None = None) -> Cell:
    return Cell(
        model=model, image_size=(8, 8), num_classes=10, batch_size=batch, device="cpu", threads=1, memory_limit=limit
    )


def record(of: Cell, status: str, cause: str = "", detail: str = "") -> Record:
    return Record(
        cell=of,
        status=status,  # type: ignore[arg-type]
        cause=cause,
        detail=detail,
        measurements=(),
        environment="e",
        started_at="2026-01-02T03:04:06+00:00",
        duration_s=1.0,
    )


def test_only_searches_that_are_not_over_are_missing() -> None:
    bases = [cell(model) for model in ("over", "begun", "new")]
    records = [
        record(cell("over", 1), "ok"),
        record(cell("over", 2), "oom"),
        record(cell("begun", 1), "ok"),
        record(cell("begun", 2), "ok"),
    ]
    assert [base.model for base in unfinished(bases, records, 8)] == ["begun", "new"]


class Measured:
    """Cells whose larger batches than 3 fail as ``ending`` says, without a limit as ``without`` says."""

    def __init__(self, ending: tuple[str, str], without: tuple[str, str]) -> None:
        self.ending, self.without = ending, without
        self.cells: list[Cell] = []
        self.found: list[str] = []

    def measure(self, cells: Sequence[Cell]) -> Iterator[Record]:
        for one in cells:
            self.cells.append(one)
            ending = OK if one.batch_size <= 3 else self.without if one.memory_limit is None else self.ending
            yield record(one, *ending, "it failed")

    def search_done(self, cell: Cell, found: str) -> None:
        self.found.append(found)

    def search(self, limit: int | None, predicted: Measurement | None = None) -> list[Record]:
        base = cell("it", limit=limit)
        predictions = {base.id: predicted} if predicted else {}
        return list(search([base], [], predictions, 8, self.measure, self))


@pytest.mark.parametrize("ending", [("killed", "crash"), ("error", "exit"), ("error", "exception")])
@pytest.mark.parametrize("without", [OK, OOM, KILLED])
def test_what_fails_under_a_limit_alone_is_laid_to_the_limit(ending: tuple[str, str], without: tuple[str, str]) -> None:
    measured = Measured(ending, without)
    (failed,) = [one for one in measured.search(2**30) if one.cell.batch_size > 3]
    assert measured.found == ["3 in 4 attempts"]
    assert (failed.status, failed.cause, failed.cell.memory_limit) == (ending[0], "probable_oom", 2**30)
    assert failed.detail.startswith("it failed; without the memory limit ")


@pytest.mark.parametrize("ending", [("killed", "crash"), ("error", "exit"), ("error", "exception")])
def test_what_fails_without_the_limit_too_ends_the_search(ending: tuple[str, str]) -> None:
    measured = Measured(ending, ending)
    failed = measured.search(2**30)[-1]
    assert measured.found == [f"2 ({ending[0]}@4) in 3 attempts"]
    assert (failed.status, failed.cause) == ending
    assert failed.detail == f"it failed; without the memory limit also {ending[0]}"


@pytest.mark.parametrize(
    ("ending", "limit"), [(("killed", "crash"), None), (("error", "model_bug"), 2**30), (OOM, 2**30)]
)
def test_nothing_else_is_tried_twice(ending: tuple[str, str], limit: int | None) -> None:
    measured = Measured(ending, ending)
    measured.search(limit)
    assert len({one.batch_size for one in measured.cells}) == len(measured.cells)
    assert {one.memory_limit for one in measured.cells} == {limit}


def test_each_attempt_keeps_the_prediction_that_its_search_began_at() -> None:
    measured = Measured(OOM, OOM)
    predicted = Measurement.single(PREDICTED, "image", 2, "made up")
    records = measured.search(2**30, predicted)
    assert [one.cell.batch_size for one in records] == [2, 3, 5, 4]
    assert [one.measurement(PREDICTED) for one in records] == [predicted] * 4
    assert measured.found == ["3 in 4 attempts (predicted 2)"]
    begun = predictions_in([*records, record(cell("before"), "ok")])
    assert begun == {cell("it", limit=2**30).id: predicted, cell("before").id: None}

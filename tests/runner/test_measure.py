"""Which cells take turns with each other, how many processes they get, and what a run of them leaves."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

import vitbench
from tests.launching import lending
from vitbench.core import run_folder as store
from vitbench.core.errors import StorageError
from vitbench.core.records import SCHEMA, Cell, Measurement, NoiseCheck, Record, measurement_from_dict
from vitbench.core.registry import METRICS
from vitbench.core.stats.intervals import estimate, process_medians, t_of_processes
from vitbench.core.stats.relative import QuietTime, in_quiet_turns, processes_for, relative_samples
from vitbench.devices import Failure
from vitbench.devices.host import load
from vitbench.devices.host.load import OTHER_LOAD, STEAL, Load, LoadWatch, load_measurements
from vitbench.executors.conversation import Outcome
from vitbench.executors.launcher import Launcher
from vitbench.runner import measure as measuring
from vitbench.runner.measure import GROUP, group_cells
from vitbench.runner.outcomes import merge
from vitbench.runner.plan import Plan
from vitbench.runner.progress import Progress
from vitbench.runner.run import RunSummary
from vitbench.runner.timed import Job, Timer, end_where_unaffordable, is_rank_clear, peak_bytes
from vitbench.suites import make_suite
from vitbench.suites.schema import Measure as Sampling

ROOT = Path(__file__).parents[2]


def make_cell(model: str = "vit_basic", **changes: Any) -> Cell:
    fields = {
        "model": model,
        "image_size": (32, 32),
        "num_classes": 10,
        "batch_size": 1,
        "device": "cpu",
        "threads": 1,
    }
    return Cell(**{**fields, **changes})


# which cells take turns


def test_cells_of_one_column_are_measured_together() -> None:
    small = [make_cell(name) for name in "abc"]
    large = [make_cell(name, batch_size=32) for name in "abc"]
    training = [make_cell(name, mode="train") for name in "ab"]
    other = [make_cell("a", device="cuda"), make_cell("a", threads=2), make_cell("a", image_size=(32, 48))]
    mixed = [small[0], large[0], training[0], *other, small[1], large[1], training[1], small[2], large[2]]
    metrics = ["latency", "training_step"]
    assert group_cells(mixed, metrics) == [small, large, training, *([one] for one in other)]


def test_variants_of_a_model_stand_in_its_column() -> None:
    cells = [make_cell(), make_cell(dtype="bf16"), make_cell(attention="explicit"), make_cell(compile=True)]
    assert group_cells(cells, ["latency"]) == [cells]


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (8, [8]), (9, [5, 4]), (16, [8, 8]), (17, [6, 6, 5]), (25, [7, 7, 7, 4])]
)
def test_large_columns_are_split_evenly_in_order(count: int, sizes: list[int]) -> None:
    cells = [make_cell(str(n)) for n in range(count)]
    groups = group_cells(cells, ["latency"])
    assert [len(group) for group in groups] == sizes
    assert max(sizes) <= GROUP
    assert [cell for group in groups for cell in group] == cells


def test_cells_that_are_not_timed_stay_alone() -> None:
    tested = [make_cell(name, weights="train:brief", data="digits") for name in "ab"]
    assert group_cells(tested, ["latency", "accuracy"]) == [[one] for one in tested]
    counted = [make_cell(name) for name in "ab"]
    assert group_cells(counted, ["params", "memory"]) == [[one] for one in counted]
    assert group_cells([make_cell(name, mode="train") for name in "ab"], ["latency"]) == [
        [make_cell(name, mode="train")] for name in "ab"
    ]
    assert group_cells([], ["latency"]) == []


# which of them fit into memory together


class ScriptedTimer(Timer):
    """One that measures nothing, on a machine with ``free`` bytes."""

    def __init__(self, free: float = 16e9, **measure: Any) -> None:
        suite = make_suite(
            {"name": "test", "models": ["vit_basic"], "metrics": ["latency"], "measure": measure}, "test"
        )
        plan = Plan(suite=suite, cells=[], training=None, static={}, estimates={}, environment={})
        super().__init__(plan, Launcher(), Progress())
        self.free = free

    def _free_bytes(self, device: str) -> float:
        return self.free


def make_job(name: str = "a", peak: float | None = None, **changes: Any) -> Job:
    cell = make_cell(name, **changes)
    job = Job(cell, {"time": [METRICS.get("latency")]}, started_at="", begin=0.0)
    if peak is not None:
        metric = "training_peak_memory" if cell.mode == "train" else "inference_peak_memory"
        job.peak = peak_bytes(cell, [Measurement.single(metric, "byte", peak, "test")])
    return job


def alive_together(timer: ScriptedTimer, peaks: Sequence[float | None], **changes: Any) -> list[str]:
    jobs = [make_job("abcdefgh"[n], peak, **changes) for n, peak in enumerate(peaks)]
    return ["".join(job.cell.model for job in chunk) for chunk in timer.alive_at_once(jobs)]


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_cells_that_fit_into_half_of_the_free_memory_are_alive_together(mode: str) -> None:
    """A process holds 0.6 GB beside its peak: two of 3.4 GB fit into 8 GB, three do not."""
    assert alive_together(ScriptedTimer(16e9), [3.4e9] * 5, mode=mode) == ["ab", "cd", "e"]
    assert alive_together(ScriptedTimer(1000e9), [3.4e9] * 5, mode=mode) == ["abcde"]


def test_a_cell_whose_need_is_not_known_stays_alone() -> None:
    assert alive_together(ScriptedTimer(1000e9), [1e9, None, 1e9, 1e9, None, None]) == ["a", "b", "cd", "e", "f"]


def test_a_cell_that_is_too_large_is_tried_alone() -> None:
    assert alive_together(ScriptedTimer(8e9), [1e9, 90e9, 1e9]) == ["a", "b", "c"]
    assert alive_together(ScriptedTimer(0.0), [1e9, 1e9]) == ["a", "b"]
    assert alive_together(ScriptedTimer(), []) == []


# how many processes


def outcome_of(relative: float, reference: float = 0.001) -> Outcome:
    """A process of 20 samples in two turns, ``relative`` times the reference."""
    latency = Measurement(
        metric="latency",
        unit="s",
        samples=((relative * reference,) * 10 + (relative * 2 * reference,) * 10,),
        turns=((10, 10),),
        reference_samples=((reference, 2 * reference),),
        method="test",
    )
    return Outcome(measurements=[latency])


def decided(timer: ScriptedTimer, outcomes: list[Outcome], seconds_each: float = 1.0) -> Job:
    job = make_job()
    job.timed, job.timed_s = outcomes, seconds_each * len(outcomes)
    job.wanted = len(outcomes)
    timer.decide_processes([job])
    return job


def processes_wanted(ratios: Sequence[float]) -> int:
    quiet = in_quiet_turns([[one] for one in ratios], [[1]] * len(ratios), [[1.0]] * len(ratios))
    assert quiet is not None
    return processes_for(quiet.relative, 0.05)


WIDE, NARROW = [1.0, 1.07, 0.93, 1.04, 0.96], [1.0, 1.01, 0.99, 1.0, 1.0]


def test_a_slow_cell_takes_the_fewest_processes_and_says_so() -> None:
    def after(count: int, seconds: float, measure: Sampling) -> tuple[int, str]:
        job = make_job()
        job.wanted, job.timed, job.timed_s = measure.processes, [Outcome()] * count, seconds
        end_where_unaffordable(job, measure)
        return job.wanted, job.shortfall

    five = Sampling(processes=5, max_seconds=10)
    assert after(2, 20.0, five) == (5, "")  # three show how processes differ
    assert after(3, 7.0, five) == (5, "")
    assert after(3, 8.0, five) == (3, "max_seconds ended it after 3 of 5 processes")
    assert after(5, 99.0, five) == (5, "")
    assert after(1, 0.6, Sampling(processes=3, max_seconds=1))[0] == 1


def test_a_slow_cell_takes_half_as_long_again_to_meet_quiet_turns() -> None:
    def wanted(outcomes: list[Outcome], seconds: float) -> int:
        job = make_job()
        job.wanted, job.timed, job.timed_s = 5, outcomes, seconds
        end_where_unaffordable(job, Sampling(processes=5, max_seconds=10))
        return job.wanted

    quiet = [outcome_of(1.0)] * 3
    disturbed = [outcome_of(1.0), outcome_of(2.0, reference=0.002), outcome_of(2.0, reference=0.002)]
    assert (wanted(quiet, 8.0), wanted(disturbed, 8.0), wanted(disturbed, 11.5)) == (3, 5, 3)


def test_a_spread_asks_for_more_processes_and_agreement_for_none() -> None:
    wide = decided(ScriptedTimer(max_processes=100), [outcome_of(one) for one in WIDE])
    assert wide.wanted == processes_wanted(WIDE) > 5
    narrow = decided(ScriptedTimer(), [outcome_of(one) for one in NARROW])
    assert (narrow.wanted, narrow.first_stage, wide.first_stage) == (5, 5, 5)


def test_processes_are_capped_by_their_number_and_by_their_time() -> None:
    outcomes = [outcome_of(one) for one in WIDE]
    needed = processes_wanted(WIDE)
    assert decided(ScriptedTimer(max_processes=needed - 1), outcomes).wanted == needed - 1
    assert decided(ScriptedTimer(max_processes=100, max_seconds=6.0), outcomes, seconds_each=1.0).wanted == 6
    assert (
        decided(ScriptedTimer(max_processes=100, max_seconds=6.0), outcomes, seconds_each=60.0).wanted == 5
    )  # not fewer
    assert decided(ScriptedTimer(max_processes=2), outcomes).wanted == 5


def decided_together(timer: ScriptedTimer, *cells: Sequence[float]) -> list[Job]:
    jobs = []
    for number, ratios in enumerate(cells):
        job = make_job("abcdefgh"[number])
        job.timed, job.timed_s, job.wanted = [outcome_of(one) for one in ratios], 5.0, len(ratios)
        jobs.append(job)
    timer.decide_processes(jobs)
    return jobs


def test_a_cell_whose_rank_is_clear_gets_no_more_processes_and_says_why() -> None:
    slow = [10 * one for one in WIDE[::-1]]
    one, other = decided_together(ScriptedTimer(max_processes=100), WIDE, slow)
    assert (one.wanted, other.wanted, one.first_stage) == (5, 5, 5)
    needed = processes_wanted(WIDE)
    assert one.shortfall == f"+-5 % would take {needed} processes; its rank was clear after 5"


def test_cells_that_are_close_get_what_each_needs() -> None:
    near = [1.1 * one for one in WIDE[::-1]]
    far = [10 * one for one in WIDE]
    jobs = decided_together(ScriptedTimer(max_processes=100), far, WIDE, near, NARROW)
    assert [job.wanted for job in jobs] == [5, processes_wanted(WIDE), processes_wanted(near), 5]
    assert [bool(job.shortfall) for job in jobs] == [True, False, False, False]


def test_a_cell_without_company_has_no_rank() -> None:
    alone, failed = make_job("a"), make_job("b")
    alone.timed, alone.timed_s, failed.timed = [outcome_of(one) for one in WIDE], 5.0, [Outcome()] * 5
    ScriptedTimer(max_processes=100).decide_processes([alone, failed])
    assert (alone.wanted, failed.first_stage) == (processes_wanted(WIDE), None)


@pytest.mark.parametrize(("difference", "spread"), [(0.0, 0.06), (0.1, 0.03), (0.15, 0.03), (0.3, 0.06), (0.5, 0.12)])
def test_intervals_cover_95_percent_whether_a_rank_stopped_them_or_not(difference: float, spread: float) -> None:
    """Two cells whose logarithms are ``difference`` apart; the first stage decides for one of them."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(runs := 1500):
        logs = rng.normal(0.0, spread, 15)
        first, other = (
            QuietTime(float(x.mean()), tuple((x - x.mean()) / 5), 5.0, 5, 5, 5)
            for x in (logs[:5], rng.normal(difference, spread, 5))
        )
        count = 5 if is_rank_clear(first, [other], 0.05) else min(processes_for(first, 0.05), 15)
        half = t_of_processes(5) * math.sqrt(first.variance * 5 / count)
        covered += abs(float(logs[:count].mean())) <= half
    assert covered / runs == pytest.approx(0.95, abs=0.02)  # 3.5 standard errors


def test_drift_that_the_reference_shares_asks_for_no_more_processes() -> None:
    outcomes = [outcome_of(one, reference=0.001 * speed) for one, speed in zip(NARROW, (1, 3, 0.5, 2, 8), strict=True)]
    assert decided(ScriptedTimer(), outcomes).wanted == 5


@pytest.mark.parametrize("measure", [{"precision": 0}, {"processes": 4}])
def test_nothing_is_decided_without_a_precision_or_with_a_small_first_stage(measure: dict[str, Any]) -> None:
    count = measure.get("processes", 5)
    job = decided(ScriptedTimer(**measure), [outcome_of(one) for one in WIDE[:count]])
    assert (job.wanted, job.first_stage) == (count, None)


def test_nothing_is_decided_without_the_reference() -> None:
    outcomes = [outcome_of(one) for one in WIDE]
    outcomes[2].measurements = [replace(outcomes[2].measurements[0], reference_samples=())]
    job = decided(ScriptedTimer(), outcomes)
    assert (job.wanted, job.first_stage) == (5, None)


# several processes become one measurement


def test_processes_stand_side_by_side_with_their_turns_and_what_was_decided() -> None:
    merged = merge([outcome_of(one) for one in (1.0, 2.0)], first_stage=2, group="now")
    (latency,) = merged.measurements
    assert (latency.first_stage, latency.group) == (2, "now")
    relative = relative_samples(latency.samples, latency.turns, latency.reference_samples)
    assert process_medians(relative) == pytest.approx([1.0, 2.0])
    assert measurement_from_dict(asdict(latency)) == latency


def test_one_process_without_the_reference_leaves_all_without_relative_values() -> None:
    first, second = outcome_of(1.0), outcome_of(2.0)
    alone = replace(second.measurements[0], reference_samples=(), method="test; without the reference")
    second.measurements = [alone]
    (latency,) = merge([first, second], first_stage=2, group="now").measurements
    assert (latency.reference_samples, latency.first_stage, latency.group) == ((), 2, "")
    assert latency.method == "test; in other processes: test; without the reference"
    assert len(latency.samples) == len(latency.turns) == 2
    assert measurement_from_dict(asdict(latency)) == latency


def test_samples_before_a_failure_are_kept_under_its_status() -> None:
    failed = Outcome(failure=Failure("killed", "crash", "the worker crashed"))
    merged = merge([outcome_of(1.0), failed])
    assert merged.failure is failed.failure
    (latency,) = merged.measurements
    assert (latency.status, latency.detail, len(latency.samples)) == ("killed", "the worker crashed", 1)


# what the machine did meanwhile


def test_loads_have_one_sample_a_process_and_only_where_all_are_known() -> None:
    loads = [Load(other_load=0.1, cpu_steal=0.0), Load(other_load=0.3, cpu_steal=None)]
    found = {one.metric: one for one in load_measurements(loads)}
    assert set(found) == {OTHER_LOAD}
    assert (found[OTHER_LOAD].samples, found[OTHER_LOAD].unit) == (((0.1,), (0.3,)), "core")
    assert {one.metric for one in load_measurements(loads[:1])} == {OTHER_LOAD, STEAL}
    assert load_measurements([]) == []


class ScriptedMachine:
    """What psutil tells: in each second the cores are busy for 1.5 s, 0.5 s of it for this run, and 0.25 s are stolen."""

    def __init__(self) -> None:
        self.wall = 10.0

    def perf_counter(self) -> float:
        return self.wall

    def cpu_times(self) -> SimpleNamespace:
        return SimpleNamespace(
            user=1.0 * self.wall, system=0.4 * self.wall, irq=0.1 * self.wall, steal=0.25 * self.wall
        )

    def process(self, pid: int, share: float) -> SimpleNamespace:
        def cpu_times() -> SimpleNamespace:
            return SimpleNamespace(user=share * self.wall, system=0.05 * self.wall)

        def children(recursive: bool) -> list[SimpleNamespace]:
            return [self.process(2, 0.25)] if pid == 1 and recursive else []

        return SimpleNamespace(pid=pid, cpu_times=cpu_times, children=children)


def test_other_load_is_what_all_cores_did_less_what_this_run_did(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = ScriptedMachine()
    with monkeypatch.context() as patch:
        patch.setattr(load, "time", machine)
        patch.setattr(psutil, "cpu_times", machine.cpu_times)
        patch.setattr(psutil, "Process", lambda: machine.process(1, 0.15))
        watch = LoadWatch()
        machine.wall += 2.0
        seen = watch.stop()
    assert (seen.other_load, seen.cpu_steal) == (1.0, 0.25)


def test_a_real_machine_reports_a_possible_load() -> None:
    seen = LoadWatch().stop()
    assert seen.other_load is not None
    assert seen.other_load >= 0
    assert seen.cpu_steal is None or seen.cpu_steal >= 0


# records and noise checks


def record_line(schema: int, **latency: Any) -> str:
    data = {
        "cell": json.loads(json.dumps(asdict(make_cell()))),
        "status": "ok",
        "measurements": [
            {"metric": "latency", "unit": "s", "samples": [[0.5, 0.25], [0.5]], "method": "m", "status": "ok"} | latency
        ],
        "environment": "e",
        "started_at": "t",
        "duration_s": 1.0,
        "schema": schema,
    }
    return json.dumps(data)


def test_a_record_of_the_first_schema_still_loads() -> None:
    record = Record.from_json(record_line(1, detail="", reference_samples=[]))
    latency = record.measurement("latency")
    assert latency is not None
    assert (latency.samples, latency.turns, latency.first_stage, latency.group) == (((0.25,), (0.5,)), (), None, "")
    assert estimate(latency.samples).value > 0


def test_a_newer_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="upgrade vitbench"):
        Record.from_json(record_line(SCHEMA + 1))


def test_turns_and_their_reference_come_back() -> None:
    line = record_line(2, turns=[[1, 1], [1]], reference_samples=[[1.0, 2.0], [3.0]], first_stage=2, group="g")
    record = Record.from_json(line)
    latency = record.measurement("latency")
    assert latency is not None
    assert (latency.turns, latency.reference_samples) == (((1,), (1,)), ((2.0,), (3.0,)))
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"turns": [[1], [1]]}, "do not add up"),
        ({"turns": [[2]]}, "do not add up"),
        ({"turns": [[3, 0]]}, "do not add up"),
        ({"turns": [[1, 1], [1]], "reference_samples": [[1.0], [1.0]]}, "not one a turn"),
        ({"turns": [[1, 1], [1]], "reference_samples": [[1.0, 1.0]]}, "not one a turn"),
        ({"reference_samples": [[1.0, 1.0], [1.0]]}, "not one a turn"),
        ({"turns": [[2], [1]], "reference_samples": [[float("nan")], [1.0]]}, "not a finite number"),
    ],
)
def test_turns_that_do_not_add_up_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Record.from_json(record_line(2, **fields))


def noise_check(**changes: Any) -> NoiseCheck:
    fields = {"device": "cpu", "threads": 1, "started_at": "t", "samples": (1.0, 2.0), "reference_samples": (1.0, 2.0)}
    return NoiseCheck(**{**fields, **changes})


def test_noise_checks_add_up_in_their_file(tmp_path: Path) -> None:
    assert store.read_noise(tmp_path) == []
    store.add_noise(tmp_path, [])
    assert not (tmp_path / store.NOISE).exists()
    store.add_noise(tmp_path, [noise_check()])
    store.add_noise(tmp_path, [noise_check(device="cuda:1"), noise_check(threads=2)])
    assert store.read_noise(tmp_path) == [noise_check(), noise_check(device="cuda:1"), noise_check(threads=2)]


@pytest.mark.parametrize(
    "damaged",
    [
        noise_check().to_json()[:40],
        "[1, 2]",
        "7",
        "\udcff",
        '{"device": "cpu"}',
        noise_check().to_json().replace("[1.0,2.0]", "[1.0]", 1),
        noise_check(reference_samples=(1.0, 0.0)).to_json(),
        noise_check(samples=(), reference_samples=()).to_json(),
        noise_check().to_json().replace("2.0", "NaN"),
        noise_check().to_json().replace('"threads":1', '"threads":1,"later":1'),
    ],
)
def test_an_invalid_noise_check_is_skipped_with_a_warning(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / store.NOISE
    good = noise_check().to_json()
    path.write_bytes(f"{good}\n{damaged}\n\n{good}\n".encode("utf-8", "surrogateescape"))
    with pytest.warns(store.DamagedRecordWarning, match=r"noise.jsonl, line 2: .*skipped"):
        assert store.read_noise(tmp_path) == [noise_check(), noise_check()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path.write_text(f"{good}\n")
        assert store.read_noise(tmp_path) == [noise_check()]


def test_a_full_disk_at_a_noise_check_is_an_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full (Linux)")
    (tmp_path / store.NOISE).symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        store.add_noise(tmp_path, [noise_check()])


# whole runs


def failing(*names: str) -> list[str]:
    return [f"module:tests.failing_models:{name}" for name in names]


@pytest.fixture(scope="module")
def server(fork_server: Launcher) -> Iterator[None]:
    with lending(fork_server), pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


def run_of(folder: Path, models: list[str], metrics: list[str], **measure: Any) -> RunSummary:
    return vitbench.run_suite(
        "smoke",
        models=models,
        image_sizes=[32],
        batch_sizes=[1],
        modes=["infer"],
        threads=[1],
        metrics=metrics,
        measure=measure,
        data="none",
        out=folder,
        allow_import=True,
    )


@pytest.fixture(scope="module")
def mixed(server: None, tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """Three models in turns, of which the second one kills itself in the middle of its timed process."""
    return run_of(
        tmp_path_factory.mktemp("mixed") / "run",
        failing("works_slowly", "kills_itself_later", "works"),
        ["params", "memory", "latency", "throughput"],
        processes=2,
        seconds=0.2,
        max_samples=100_000,
    )


def test_a_model_that_kills_itself_while_it_is_timed_takes_no_other_along(mixed: RunSummary) -> None:
    found = [(record.cell.model.rpartition(":")[2], record.status, record.signal) for record in mixed.records]
    assert found == [("works_slowly", "ok", None), ("kills_itself_later", "killed", 9), ("works", "ok", None)]
    assert len((mixed.folder / store.RECORDS).read_text().splitlines()) == 3
    killed = mixed.records[1]
    assert killed.measurement("inference_peak_memory").status == "ok"  # it was well until then
    for name in ("latency", "latency_cpu_time", "throughput"):
        assert killed.measurement(name).status == "killed"


def test_cells_that_took_turns_have_one_group_and_relative_samples(mixed: RunSummary) -> None:
    groups = set()
    for record in (mixed.records[0], mixed.records[2]):
        latency = record.measurement("latency")
        assert len(latency.samples) == 2
        relative = relative_samples(latency.samples, latency.turns, latency.reference_samples)
        assert min(min(process) for process in relative) > 0
        assert "in turns with reference" in latency.method
        assert record.measurement(OTHER_LOAD) is not None
        groups.add(latency.group)
    assert len(groups) == 1
    assert groups != {""}


@pytest.mark.usefixtures("server")
def test_groups_that_begin_at_one_moment_have_different_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is put back, or two machines: what did not take turns must not be compared as if it had."""

    class StandingClock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2026, 1, 1)

    monkeypatch.setattr(measuring, "datetime", StandingClock)
    summary = vitbench.run_suite(
        "smoke",
        models=failing("works", "works_slowly"),
        image_sizes=[32],
        batch_sizes=[1, 2],
        modes=["infer"],
        threads=[1],
        metrics=["latency"],
        measure={"processes": 1, "seconds": 0.05, "min_samples": 2},
        data="none",
        out=tmp_path / "run",
        allow_import=True,
    )
    assert len({record.started_at for record in summary.records}) == 1
    # measured to decide who can be alive together, and not asked for
    assert {record.measurement("inference_peak_memory") for record in summary.records} == {None}
    by_batch: dict[int, list[str]] = {}
    for record in summary.records:
        by_batch.setdefault(record.cell.batch_size, []).append(record.measurement("latency").group)
    assert [len(names) for names in by_batch.values()] == [2, 2]
    one, other = map(set, by_batch.values())
    assert len(one) == len(other) == 1
    assert one != other
    assert "" not in one | other


def test_a_run_checks_its_noise_in_the_first_and_the_last_group(mixed: RunSummary) -> None:
    """Here they are the same one: one check for each of its two rounds."""
    checks = store.read_noise(mixed.folder)
    assert [(check.device, check.threads) for check in checks] == [("cpu", 1)] * 2
    assert len({check.started_at for check in checks}) == 2
    for check in checks:
        assert len(check.samples) == len(check.reference_samples) > 2
        assert min(check.samples) > 0

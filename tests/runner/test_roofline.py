"""``vitbench roofline``: rounds until values are settled, the run that it belongs to, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.asking import ask
from tests.launching import SharedLauncher
from tests.reports.fabricate import full_run, write_run
from vitbench.analysis.roofline import MOST_SPREAD, MachineRoof, Sweep, spread_of
from vitbench.core.errors import DeviceError, RunFolderError, Unsupported, UsageError
from vitbench.core.run_folder import ROOFLINE
from vitbench.executors.launcher import Launcher
from vitbench.executors.protocol import MeasureRoof
from vitbench.runner import roofline
from vitbench.runner.roofline import add_roof, measure_roof, roof_alone
from vitbench.runner.run import run_suite
from vitbench.suites import make_suite

#: As little as a sweep can be.
TINY = Sweep(sizes=(16, 32), working_sets=(3 * 4096,), rounds=5, most_rounds=5, kernel_s=0.001)

Round = Callable[[int, MeasureRoof], list[dict[str, Any]]]


def answers(question: MeasureRoof, value: float, **others: Any) -> list[dict[str, Any]]:
    """A round in which everything that is asked for is ``value``, unless ``others`` has it by dtype, size or kind."""
    kernels = [("compute", dtype, size) for dtype, size in question.products]
    kernels += [("bandwidth", "fp32", size) for size in question.working_sets or ()]
    kernels += [("dispatch", "fp32", 0)] if question.dispatch else []
    found = []
    for kind, dtype, at in kernels:
        chosen = next((others[name] for name in (f"{dtype}_{at}", kind) if name in others), {})
        found.append(
            {"kind": kind, "dtype": dtype, "at": at, "value": value, "other_load": 0.0, "reason": "", **chosen}
        )
    return found


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[MachineRoof, list[MeasureRoof]]]:
    """The roof of recorded rounds, and what was asked for in each."""

    def measure(rounds: Round, sweep: Sweep, threads: int = 10**6) -> tuple[MachineRoof, list[MeasureRoof]]:
        asked: list[MeasureRoof] = []

        def answer(_: Launcher, question: MeasureRoof, timeout_s: float) -> list[dict[str, Any]]:
            asked.append(question)
            return rounds(len(asked), question)

        monkeypatch.setattr(roofline, "ask", answer)
        roof = measure_roof(Launcher(), "cpu", threads, ["fp32", "bf16"], torch="2.15.0", sweep=sweep)
        return roof, asked

    return measure


SWEEP = Sweep(sizes=(256, 512), working_sets=(10**6, 10**8), rounds=7, most_rounds=25, seconds=60)


def test_quiet_rounds_are_as_few_as_can_be(measured: Callable[..., Any]) -> None:
    roof, asked = measured(lambda number, question: answers(question, 1e9 + number), SWEEP)
    assert len(asked) == 7
    assert all(one.products == asked[0].products for one in asked)
    assert roof.refused == {}
    assert {one.value for one in (*roof.compute.values(), *roof.bandwidth, roof.dispatch)} == {1e9 + 4}


def test_only_what_spreads_is_measured_in_more_rounds(measured: Callable[..., Any]) -> None:
    """One size of bf16 has three speeds in turn for ten rounds; the working set of 100 MB for ever."""

    def rounds(number: int, question: MeasureRoof) -> list[dict[str, Any]]:
        uneven = {"value": (2e9, 3e9, 5e9)[number % 3] if number <= 10 else 2e9}
        return answers(question, 1e9, bf16_512=uneven, fp32_100000000={"value": 1e9 * 2 ** (number % 3)})

    roof, asked = measured(rounds, SWEEP)
    assert len(asked) == 25
    assert asked[7].products == (("bf16", 256), ("bf16", 512))
    assert asked[7].working_sets == (10**8,)
    assert not asked[7].dispatch
    assert (asked[14].products, asked[15].products) == (asked[7].products, ())
    assert (roof.compute["bf16"].value, roof.compute["bf16"].at) == (2e9, 512)
    assert [one.value for one in roof.bandwidth] == [1e9, None]
    assert list(roof.refused) == ["100 MB triad"]
    assert roof.refused["100 MB triad"].startswith("its rounds spread by 50 %")


def test_rounds_end_when_the_time_is_over(measured: Callable[..., Any]) -> None:
    sweep = Sweep(sizes=(256,), working_sets=(10**6,), rounds=5, most_rounds=1000, seconds=0.0)
    roof, asked = measured(lambda number, question: answers(question, 10.0**number), sweep)
    assert len(asked) == 5
    assert roof.compute["fp32"].value is None


def test_rounds_beside_other_programs_do_not_count(measured: Callable[..., Any]) -> None:
    """Ten times too slow in three of four rounds."""

    def rounds(number: int, question: MeasureRoof) -> list[dict[str, Any]]:
        busy = number % 4 != 0
        beside = {"value": 1e8, "other_load": 0.9} if busy else {}
        return answers(question, 1e9, compute=beside, bandwidth=beside, dispatch=beside)

    roof, asked = measured(rounds, SWEEP)
    assert roof.compute["fp32"].value == 1e9
    assert (roof.compute["fp32"].rounds, len(asked)) == (5, 20)


def test_equal_rounds_beside_other_programs_are_refused(measured: Callable[..., Any]) -> None:
    """Recorded with two threads while other programs kept two cores busy, n = 256: threads that wait for each other for
    a time slice of the scheduler spread by 1 %. One thread attained forty times as much beside the same programs.
    """
    recorded = ((5.602e8, 1.72), (5.995e8, 1.66), (5.871e8, 1.71), (6.002e8, 1.71))

    def rounds(number: int, question: MeasureRoof) -> list[dict[str, Any]]:
        value, load = recorded[number % len(recorded)]
        return answers(question, 1e9, compute={"value": value, "other_load": load})

    roof, _ = measured(rounds, SWEEP)
    assert spread_of([value for value, _ in recorded]) < MOST_SPREAD / 5
    assert roof.compute["fp32"].value is None
    assert roof.refused["fp32"].startswith("other programs left 0 of 5 quiet rounds")


def test_without_undisturbed_rounds_it_says_who_disturbed(measured: Callable[..., Any]) -> None:
    beside = {"other_load": 0.9}
    roof, _ = measured(lambda _, asked: answers(asked, 1e9, compute=beside), SWEEP)
    assert roof.refused["fp32"].startswith("other programs left 0 of 5 quiet rounds. Stop other programs")


def test_a_dtype_without_a_kernel_is_not_asked_for_again(measured: Callable[..., Any]) -> None:
    absent = {"value": None, "reason": "RuntimeError: not implemented for 'BFloat16'"}
    roof, asked = measured(lambda _, one: answers(one, 1e9, bf16_256=absent, bf16_512=absent), SWEEP)
    assert len(asked) == 7
    assert roof.refused == {"bf16": "RuntimeError: not implemented for 'BFloat16'"}


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"dtypes": ["fp64"]}, UsageError, "'fp64' is not one of fp32, bf16, fp16, amp"),
        ({"threads": 10**6}, UsageError, "not 1000000. Give fewer"),
        ({"device": "gpu"}, UsageError, "Unknown device 'gpu'"),
        ({"device": "mps:3"}, DeviceError, "there is one mps"),
    ],
)
def test_mistakes_fail_before_anything_starts(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        roof_alone(**arguments)


@pytest.fixture
def lent(fork_server: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "make_launcher", lambda *_: SharedLauncher(fork_server))
    monkeypatch.setattr(roofline, "Sweep", lambda: TINY)


def test_a_tiny_sweep_in_fresh_processes(lent: None) -> None:
    found = roof_alone("cpu", 1, ["amp"])
    assert (found.device, found.threads, list(found.compute)) == ("cpu", 1, ["fp32", "bf16"])
    assert [one.at for one in found.bandwidth] == [3 * 4096]
    values = [*found.compute.values(), *found.bandwidth, found.dispatch]
    assert {one.rounds for one in values} <= set(range(6))


def test_a_run_gets_its_roof_and_a_new_report(
    lent: None,
    shared_workers: Sequence[SharedLauncher],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = {
        "name": "tiny", "models": ["vit_basic_tutorial"], "image_sizes": [16], "batch_sizes": [2], "devices": ["cpu"],
        "threads": [1], "modes": ["infer", "train"], "metrics": ["latency", "training_step"],
        "measure": {"processes": 1, "seconds": 0.05},
    }  # fmt: skip
    run_suite(make_suite(content, "tiny"), out=tmp_path / "run")
    monkeypatch.setattr("vitbench.analysis.roofline.MOST_SPREAD", 1e6)  # other tests run meanwhile
    monkeypatch.setattr("vitbench.runner.quiet.TOLERATED_CORES", 1e6)
    code, out, _ = ask(capsys, "roofline", tmp_path / "run", "--json")
    assert code == 0
    printed = json.loads(out)
    assert [one["share"] > 0 for one in printed["cells"]] == [True, True]
    assert [list(one["compute"]) for one in printed["roofs"]] == [["fp32"]]
    cells = json.loads((tmp_path / "run" / ROOFLINE).read_text())["cells"].values()
    assert [one["unavailable"] for one in cells] == ["", ""]
    infer, train = sorted((one["time"] for one in cells), key=lambda one: len(one["operators"]))
    assert {one["name"] for one in train["operators"]} - {one["name"] for one in infer["operators"]} >= {"AdamW"}
    assert train["compute_s"] + train["bandwidth_s"] > infer["compute_s"] + infer["bandwidth_s"] > 0
    assert " % of roof b2 " in (tmp_path / "run" / "report.md").read_text()


def test_without_a_roof_nothing_is_written(lent: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round shows no spread, so that every value is refused."""
    folder = write_run(tmp_path / "run", full_run())
    monkeypatch.setattr(roofline, "environment_differences", lambda *_: [])
    monkeypatch.setattr(roofline, "Sweep", lambda: replace(TINY, rounds=1, most_rounds=1))
    with pytest.raises(Unsupported, match=r"No share without a roof: fp32: .* Nothing was written"):
        add_roof(folder)
    assert not (folder / ROOFLINE).exists()
    assert not (folder / "report.md").exists()


def test_a_run_of_another_machine_is_refused(lent: None, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", full_run())
    with pytest.raises(RunFolderError, match=r"another environment \(.*Example CPU.*\): this machine's roof says"):
        add_roof(folder)
    assert not (folder / ROOFLINE).exists()


def test_the_command_line(lent: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, errors = ask(capsys, "roofline", "--device", "cpu", "--threads", "1", "--dtypes", "fp32", "--json")
    (found,) = json.loads(out)["roofs"]
    refused = [one for one in (*found["compute"].values(), *found["bandwidth"], found["dispatch"]) if not one["value"]]
    assert code == (1 if refused else 0)
    assert "Measuring the roof of cpu, 1 thread" in errors
    code, out, errors = ask(capsys, "roofline", str(tmp_path))
    assert (code, out) == (2, "")
    assert errors.startswith("Error: ")
    assert "is not a run folder" in errors
    code, out, errors = ask(capsys, "roofline", str(tmp_path), "--threads", "1")
    assert (code, out) == (2, "")
    assert "The devices, threads and dtypes of a run are those of its cells" in errors

"""How sure a run can be: the reference against itself, the noise floor, and the cells that were disturbed."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reports.fabricate import ENVIRONMENT, cell, failed, infer, ok, size, write_run
from tests.reports.paired import REFERENCE_S, TURNS, check, loads, main_lines, paired, section, tables, timed
from vitbench.core.records import Cell, Measurement, Record
from vitbench.devices.host.load import GPU_SLOWED
from vitbench.metrics.support.timing import Timing
from vitbench.reports import summary
from vitbench.reports.markdown.page import render_markdown
from vitbench.reports.markdown.tables import paragraph_text, table_text
from vitbench.reports.model.noise import (
    OtherPrograms,
    busy_beside,
    differs_under_load,
    disturbance_line,
    disturbances,
    has_few_samples,
    noise_floors,
    noise_levels,
)
from vitbench.reports.model.runs import Run, read_runs
from vitbench.reports.model.values import value_of
from vitbench.reports.noise import noise_parts
from vitbench.reports.terminal import render_terminal

Golden = Callable[[str, str], None]
#: The 97.5 % quantile of Student's t with two degrees of freedom.
T2 = 4.30265
#: The reference at its speed in half of the turns, and at half of it in the others.
TWO_SPEEDS = (REFERENCE_S,) * (TURNS // 2) + (2 * REFERENCE_S,) * (TURNS // 2)
EXACT = (1.0, 1.0, 1.0)


def run_of(*records: Record, ratios: tuple[float, ...] = (), name: str = "run") -> Run:
    return Run(name=name, records=records, environment=ENVIRONMENT, noise=[check(ratio) for ratio in ratios])


# noise levels


def test_the_floor_is_the_half_width_of_as_many_checks_as_a_cell_has_processes() -> None:
    run = run_of(paired(cell(), EXACT), ratios=(1 / 1.01, 1.0, 1.01))
    (one,) = noise_levels(run)
    half = 1.01 ** (T2 / math.sqrt(3))
    assert one.same is not None
    assert one.same.value == pytest.approx(1)
    assert (one.same.low, one.same.high) == (pytest.approx(1 / half, rel=1e-5), pytest.approx(half, rel=1e-5))
    assert (one.device, one.threads, one.processes, one.same.n_processes) == ("cpu", 2, 3, 3)
    assert one.floor == pytest.approx(half - 1, rel=1e-4)
    assert noise_floors([run]) == {("run", "cpu", 2): one.floor}


def noise_section(runs: Sequence[Run]) -> str:
    parts = noise_parts(runs)
    return "\n\n".join(paragraph_text(part) if isinstance(part, str) else table_text(part) for part in parts)


def test_cells_of_more_processes_have_a_lower_floor() -> None:
    floors = [
        noise_levels(run_of(paired(cell(), (1.0,) * processes), ratios=(1 / 1.01, 1.0, 1.01)))[0].floor
        for processes in (3, 12)
    ]
    assert floors == [
        pytest.approx(1.01 ** (T2 / math.sqrt(3)) - 1, rel=1e-4),
        pytest.approx(1.01 ** (T2 / math.sqrt(12)) - 1, rel=1e-4),
    ]


def test_the_noise_level_states_what_is_a_tie() -> None:
    text = noise_section([run_of(paired(cell(), EXACT), ratios=(1 / 1.01, 1.0, 1.01))])
    assert text == (
        "cpu, 2 threads: the reference against itself, 3 processes: 1.000 [0.976, 1.025]; differences under "
        "2.5 % (the noise floor of cells of 3 processes) are ties; the machine's own speed changed 1.00-fold between "
        "its slowest and fastest tenth.\n\nThis machine does not report what else it did."
    )


def test_an_interval_that_excludes_1_is_reported() -> None:
    text = noise_section([run_of(paired(cell(), EXACT), ratios=(1.1, 1.1, 1.1))])
    assert "3 processes: 1.100 [1.100, 1.100] (it should contain 1, and does not); differences under 0.0 % " in text
    assert "does not" not in noise_section([run_of(paired(cell(), EXACT), ratios=(0.9, 1.0, 1.1))]).partition(";")[0]


def test_one_check_is_too_few_for_a_floor() -> None:
    run = run_of(paired(cell(), EXACT), ratios=(1.02,))
    text = noise_section([run])
    assert "1 process: 1.020" in text
    assert "; too few processes to estimate a noise floor;" in text
    assert noise_floors([run]) == {}


def test_a_check_of_no_time_at_all_gives_no_floor() -> None:
    run = run_of(paired(cell(), EXACT), ratios=(0.0, 1.0, 1.0))
    assert noise_levels(run)[0].floor is None
    assert "too few processes to estimate a noise floor" in noise_section([run])


def test_a_run_without_the_reference_is_not_to_be_compared() -> None:
    run = run_of(infer(cell(), processes=3))
    assert noise_section([run]) == (
        "cpu, 2 threads: timed without the reference; times of different minutes are not comparable."
        "\n\nThis machine does not report what else it did."
    )
    assert noise_floors([run]) == {}


def test_a_run_whose_checks_are_lost_was_still_timed_beside_the_reference() -> None:
    text = noise_section([run_of(paired(cell(), EXACT))])
    assert "the reference was never compared with itself, so the noise floor is unknown" in text
    assert "without the reference" not in text


def test_checks_of_another_device_or_thread_count_do_not_count() -> None:
    noise = [check(1.0), check(1.1), check(2.0, threads=1), check(3.0, device="cuda")]
    records = [paired(cell(threads=threads), EXACT) for threads in (2, 1)]
    two, one = noise_levels(Run(name="run", records=records, noise=noise))
    assert two.same is not None
    assert two.same.n_processes == 2
    assert one.same is not None
    assert (one.threads, one.same.value, one.floor) == (1, pytest.approx(2.0), None)
    text = noise_section([Run(name="run", records=records, noise=noise)])
    assert text.count("threads: ") + text.count("thread: ") == 2
    assert "cpu, 1 thread: " in text


def test_drift_is_the_slowest_over_the_fastest_tenth_of_all_turns() -> None:
    (steady,) = noise_levels(run_of(paired(cell(), EXACT)))
    (moved,) = noise_levels(run_of(paired(cell(), EXACT, reference=TWO_SPEEDS)))
    (short,) = noise_levels(run_of(paired(cell(), (1.0,), reference=(REFERENCE_S,) * 9)))
    assert (steady.drift, moved.drift, short.drift) == (pytest.approx(1), pytest.approx(2), None)


def test_training_steps_are_certified_too() -> None:
    (one,) = noise_levels(run_of(paired(cell(mode="train"), EXACT)))
    assert one.processes == 3


def test_nothing_timed_gives_no_section() -> None:
    assert noise_section([run_of(ok(cell(), size(cell())), ratios=(1.0, 1.0))]) == ""
    assert noise_section([run_of(failed(cell(), "oom"))]) == ""
    assert noise_section([]) == ""
    assert "Noise" not in render_markdown([run_of(ok(cell(), size(cell())))])


# disturbed cells


@pytest.mark.parametrize(
    ("record", "reasons"),
    [
        (paired(cell(), EXACT, extra=loads(0.24, 0.019)), []),
        (paired(cell(), EXACT, extra=loads(0.25)), ["0.25 cores busy with other programs"]),
        (paired(cell(), EXACT, extra=loads(steal=0.02)), ["0.020 cores' time taken by the host"]),
        (paired(cell(), EXACT, reference=TWO_SPEEDS), ["the machine's own speed changed 2.0-fold"]),
        (
            paired(cell(mode="train"), EXACT, reference=TWO_SPEEDS, extra=loads(1.0, 0.5)),
            [
                "1.0 cores busy with other programs",
                "0.50 cores' time taken by the host",
                "the machine's own speed changed 2.0-fold",
            ],
        ),
        (infer(cell()), []),
        (failed(cell(), "timeout"), []),
    ],
    ids=["quiet", "load", "steal", "drift", "all of them", "nothing known", "failed"],
)
def test_why_a_cell_is_disturbed(record: Record, reasons: list[str]) -> None:
    assert disturbances(record) == reasons


def test_the_load_is_the_mean_over_a_cells_processes() -> None:
    (measurement,) = loads(0.0)
    for last, count in ((0.9, 1), (0.6, 0)):
        mixed = Measurement(metric=measurement.metric, unit="core", samples=((0.0,), (0.0,), (last,)), method="")
        assert len(disturbances(paired(cell(), EXACT, extra=[mixed]))) == count


def test_a_gpu_that_was_slowed_down_at_any_time_is_disturbed() -> None:
    for samples, reasons in (
        (((0.0,), (1.0,)), ["heat or a power limit held the GPU's clock down"]),
        (((0.0,), (0.0,)), []),
    ):
        slowed = Measurement(metric=GPU_SLOWED, unit="1", samples=samples, method="NVML")
        assert disturbances(paired(cell(device="cuda"), EXACT, extra=[slowed])) == reasons


def test_disturbed_cells_are_a_table() -> None:
    records = [
        paired(cell("vit_nano"), EXACT, extra=loads(0.0, 0.0)),
        paired(cell("vit_micro", 8, image_size=(231, 240)), EXACT, extra=loads(0.5, 0.1)),
        paired(cell("vit_big", mode="train"), EXACT, reference=TWO_SPEEDS, extra=loads(0.0)),
    ]
    (table,) = tables(noise_section([run_of(*records)]))
    assert table == [
        {
            "model": "vit_micro",
            "cell": "cpu 231x240 px b8 infer",
            "disturbed by": "0.50 cores busy with other programs; 0.10 cores' time taken by the host",
        },
        {"model": "vit_big", "cell": "cpu 32 px b1 train", "disturbed by": "the machine's own speed changed 2.0-fold"},
    ]


def test_a_quiet_machine_is_reported_as_quiet() -> None:
    text = noise_section([run_of(paired(cell(), EXACT, extra=loads(0.0, 0.0)))])
    assert text.endswith("\n\nNo cell was disturbed, as far as this machine reports.")


def test_several_runs_are_named() -> None:
    first = run_of(paired(cell("vit_nano"), EXACT, extra=loads(0.5)), ratios=(1.0, 1.0), name="laptop")
    second = run_of(infer(cell("vit_nano")), name="server")
    text = noise_section([first, second])
    lines = text.splitlines()
    assert lines[0].startswith("laptop, cpu, 2 threads: the reference against itself, 2 processes: 1.000")
    assert lines[2].startswith("server, cpu, 2 threads: timed without the reference")
    (table,) = tables(text)
    assert [(row["run"], row["model"]) for row in table] == [("laptop", "vit_nano")]
    assert set(noise_floors([first, second])) == {("laptop", "cpu", 2)}


def test_names_cannot_break_the_table() -> None:
    record = paired(cell(), EXACT, extra=loads(0.5))
    (table,) = tables(noise_section([run_of(record, name="a|b"), run_of(name="c")]))
    assert table[0]["run"] == "a\\|b".replace("\\|", "|")


# busy values


def beside_others(ratios: Sequence[float], load: float, *, metric: str = "latency", turns: int = 4) -> Measurement:
    """A time beside programs that used ``load`` cores in the first ``turns`` of its ten turns."""
    loads_by_turn = (load,) * turns + (0.0,) * (TURNS - turns)
    return replace(timed(metric, ratios), other_load=(loads_by_turn,) * len(ratios))


#: Three processes that have nothing in common, so that an interval spans a factor of more than two.
APART = (1.0, 2.0, 4.0)


def record_of(*measurements: Measurement, of: Cell | None = None) -> Record:
    of = of or cell()
    return ok(of, [*size(of), *measurements])


def test_a_wide_interval_is_busy_where_other_programs_ran() -> None:
    page = render_markdown([run_of(record_of(beside_others(APART, 0.9)), paired(cell("vit_nano"), APART))])
    nano, micro = sorted(tables(page)[0], key=lambda row: row["model"], reverse=True)
    assert nano["latency b1 (ms)"].startswith("20.0 [")  # nobody knows what widened it
    assert micro["latency b1 (ms)"] == "20.0 busy †"
    assert (
        "\n\nbusy: other programs used 0.90 cores in 40 % of the turns, and the ends of the interval differ by more than "
        "a factor of 2.\n\n"
        "†: all turns count: fewer than three processes, or too few with quiet turns.\n\n"
    ) in page
    assert " busy" not in str(tables(render_markdown([run_of(paired(cell(), APART))])))


def test_several_busy_values_have_one_note() -> None:
    records = [record_of(beside_others(APART, 0.9)), record_of(beside_others(APART, 1.5, turns=10), of=cell("vit_big"))]
    page = render_markdown([run_of(*records)])
    assert "busy: other programs used 0.90 to 1.5 cores in 40 to 100 % of the turns, and" in page


def test_a_narrow_interval_and_a_little_load_are_not_busy() -> None:
    for one in (beside_others(EXACT, 0.9), beside_others(APART, 0.2), beside_others(APART, 0.9, turns=1)):
        assert busy_beside(value_of(record_of(one), "latency")) is None


def test_the_best_throughput_is_that_of_quiet_turns_and_can_be_busy() -> None:
    """At batch 1 the machine was busy for most of the time; batch 8 is better only there."""

    def rate(batch: int, one: Measurement) -> Record:
        samples = tuple(tuple(batch / x for x in process) for process in one.samples)
        rates = replace(one, metric="throughput", unit="image/s", samples=samples)
        return record_of(one, rates, of=cell(batch=batch))

    turns = (REFERENCE_S,) * 4 + (3 * REFERENCE_S,) * 6
    both = run_of(rate(1, timed("latency", EXACT, reference=turns)), rate(8, timed("latency", (16,) * 3)))
    assert "  100 (b1)" in render_terminal([both], 200)
    assert "  50.0 busy (b1) †" in render_terminal([run_of(rate(1, beside_others(APART, 0.9)))], 200)


def test_a_machine_that_was_slow_throughout_is_said_and_the_interval_reaches_to_its_full_speed(tmp_path: Path) -> None:
    slow = paired(cell("vit_slow"), EXACT, reference=(1.3 * REFERENCE_S,) * TURNS)
    (run,) = read_runs([write_run(tmp_path / "run", run_of(paired(cell(), EXACT), slow))])
    rows = {row["model"]: row["latency b1 (ms)"] for row in tables(render_markdown([run]))[0]}
    assert rows == {"vit_micro": "10.0 [8.2, 12.2]", "vit_slow": "13.0 [8.2, 15.8] §"}
    page = render_markdown([run])
    assert "§: the machine was slower throughout than at other times of the run" in page
    assert "The machine's own speed changed. Values are those of quiet turns, but 1 of 2 cells had too few" in page
    assert disturbance_line(run_of(slow)) == ""  # a run that was slow from end to end does not know


def test_only_what_took_turns_is_busy() -> None:
    first = Measurement(metric="first_call", unit="s", samples=((1.0,), (2.0,), (4.0,)), method="made up")
    record = record_of(beside_others(APART, 0.9), first, *loads(0.9))
    assert busy_beside(value_of(record, "latency"))
    assert busy_beside(value_of(record, "first_call")) is None


def test_old_records_know_other_programs_by_process() -> None:
    record = paired(cell(), APART, extra=loads(0.9))
    assert busy_beside(value_of(record, "latency")) == OtherPrograms(0.9, 1.0, by_turn=False)


def test_too_few_samples_are_marked_and_no_shortfall_of_precision() -> None:
    few = replace(timed("latency", EXACT), detail="too few: less than 10 steady samples in a process")
    page = render_markdown([run_of(record_of(few))])
    assert tables(page)[0][0]["latency b1 (ms)"] == "10.0 [8.2, 12.2] ‡"
    assert "‡: a process had fewer than ten steady samples." in page
    assert "known within" not in page


def test_the_reports_know_the_detail_of_the_worker() -> None:
    timing = Timing(first_s=1.0, samples=(1.0,) * 3, turns=(3,), cpu=(1.0,))
    (measurement, *_) = timing.measurements("latency", "made up")
    assert has_few_samples(value_of(record_of(measurement), "latency"))


def test_under_load_stands_beside_quiet_turns_where_it_differs() -> None:
    one = value_of(paired(cell(), EXACT, reference=TWO_SPEEDS), "latency")
    assert one.value == pytest.approx(REFERENCE_S)
    assert one.under_load is not None
    assert one.under_load.value == pytest.approx(2 * REFERENCE_S)  # the fast half passes for warm-up
    assert differs_under_load(one)
    assert not differs_under_load(value_of(paired(cell(), EXACT), "latency"))
    assert not differs_under_load(value_of(paired(cell(), APART), "latency"))  # all turns count
    assert not differs_under_load(value_of(paired(cell(), (1.0,), reference=TWO_SPEEDS), "latency"))


def test_first_calls_are_details() -> None:
    def first(seconds: float) -> Measurement:
        return Measurement(metric="first_call", unit="s", samples=((seconds,),), method="made up")

    train = cell(batch=8, mode="train")
    page = render_markdown(
        [
            run_of(
                record_of(timed("latency", EXACT), first(0.5)),
                record_of(timed("training_step", EXACT), first(2), of=train),
            )
        ]
    )
    (details,) = tables(section(page, "Details"))[0]
    assert details["first call b1 (ms)"] == "500"
    assert details["first training step b8 (ms)"] == "2000"


# what disturbed a run, in one line


def test_a_quiet_run_has_no_line() -> None:
    quiet = run_of(record_of(beside_others(EXACT, 0.1)), paired(cell("vit_nano"), EXACT, extra=loads(0.0)))
    assert disturbance_line(quiet) == ""
    assert disturbance_line(run_of(failed(cell(), "oom"))) == ""


def test_a_run_with_enough_quiet_turns_has_nothing_to_repeat() -> None:
    run = run_of(record_of(beside_others(EXACT, 0.9)))
    assert disturbance_line(run) == (
        "Other programs used 0.90 of 2 cores in 40 % of the turns. Values are those of the quiet turns: there is nothing "
        "to repeat."
    )
    assert disturbance_line(replace(run, environment={})).startswith("Other programs used 0.90 cores in 40 % of the")


def test_cells_with_too_few_quiet_turns_are_repeated_by_their_suite(tmp_path: Path) -> None:
    run = run_of(record_of(beside_others(APART, 0.9, turns=10)), paired(cell("vit_nano"), EXACT))
    line = disturbance_line(run, tmp_path)
    assert line == (
        "Other programs used 0.90 of 2 cores in 100 % of the turns. Values are those of quiet turns, but 1 of 2 cells "
        "had too few quiet turns (marked busy, † or §). Close other programs and repeat them: "
        f"`vitbench run --suite {shlex.quote(str(tmp_path / 'suite.toml'))} --models vit_micro`"
    )
    page = render_markdown([run])
    assert "`vitbench run --suite suite.toml --models vit_micro`\n\nShared by all rows" in page


def test_one_process_cannot_tell_quiet_turns() -> None:
    assert disturbance_line(run_of(record_of(beside_others((1.0,), 1.5)))) == (
        "Other programs used 1.5 of 2 cores in 40 % of the turns, and all turns count: quiet ones are known from 3 "
        "processes on. Close other programs and run again, or add `--processes 3`."
    )


def test_a_machine_that_changed_its_speed_by_itself_is_named() -> None:
    line = disturbance_line(run_of(paired(cell(), APART)))
    assert line.startswith(
        "The machine's own speed changed. Values are those of quiet turns, but 1 of 1 cells had too few quiet turns"
    )


@pytest.mark.parametrize(("models", "named"), [(30, True), (31, False)])
def test_a_command_names_at_most_thirty_models(models: int, named: bool) -> None:
    line = disturbance_line(run_of(*(paired(cell(f"vit_{place}"), APART) for place in range(models))))
    assert ("--models vit_0,vit_1," in line) is named


def test_the_terminal_ends_with_the_line_of_each_run(tmp_path: Path) -> None:
    run = run_of(record_of(beside_others(EXACT, 0.9)))
    first, second = write_run(tmp_path / "a", run), write_run(tmp_path / "b", run)
    assert summary([first]).splitlines()[-1].startswith("Other programs used 0.90 of 2 cores")
    both = summary([first, second]).splitlines()
    assert [line.partition(":")[0] for line in both if "Other programs" in line] == ["a", "b"]


# on the page


def noisy_run() -> Run:
    """Two models at 2 and 4 times the reference. The first was measured in peace; beside the second half a core was
    busy, the host took a tenth, and the machine was half as fast in half of the turns.

    The reference against itself came to 1/1.01, 1 and 1.01.
    """
    quotient = 1.1
    nano = paired(
        cell("vit_nano"),
        (2.0, 2.0, 2.0),
        group="g",
        extra=[timed("latency_cpu_time", (3.0,) * 3), *loads(0.0, 0.0)],
    )
    micro = paired(
        cell("vit_micro"),
        (4.0 / quotient, 4.0, 4.0 * quotient),
        reference=TWO_SPEEDS,
        group="g",
        extra=loads(0.5, 0.1),
    )
    step = paired(cell("vit_nano", 8, mode="train"), (8.0, 8.0, 8.0), extra=loads(0.0, 0.0))
    return run_of(nano, micro, step, ratios=(1 / 1.01, 1.0, 1.01), name="noisy")


def test_a_page_with_the_reference(golden: Golden) -> None:
    golden("noise.md", render_markdown([noisy_run()]))


def test_every_figure_of_the_page_follows_from_the_runs_round_numbers() -> None:
    page = render_markdown([noisy_run()])
    nano, micro = main_lines([noisy_run()])[0]
    drift = math.exp(1.959964 * 0.1)
    # twice 10 ms; the host differs by 10 % from run to run
    assert nano["latency b1 (ms)"] == f"20.0 [{20 / drift:.1f}, {20 * drift:.1f}]" == "20.0 [16.4, 24.3]"
    assert nano["latency b1 (× reference)"] == "2.00 [1.85, 2.16]"  # runs differ by 4 %
    # its processes, and other runs
    half = math.exp(math.hypot(math.log(1.1) * T2 / math.sqrt(3), 1.959964 * 0.04))
    assert micro["latency b1 (× reference)"] == f"4.00 [{4 / half:.2f}, {4 * half:.2f}]" == "4.00 [3.12, 5.13]"
    assert (nano["rank b1"], micro["rank b1"]) == ("1", "2")
    assert nano["training step b8 (ms)"] == f"80.0 [{80 / drift:.1f}, {80 * drift:.1f}]" == "80.0 [65.8, 97.3]"
    details = tables(section(page, "Details"))[0]
    assert [row["training step b8 (× reference)"] for row in details] == ["8.00 [7.40, 8.65]", "–"]
    # 40 ms in the quiet half of its turns, and 80 ms in the middle of all
    assert [row["latency under load b1 (ms)"].partition(" ")[0] for row in details] == ["same", "80.0"]
    noise = section(page, "Noise")
    half = 1.01 ** (T2 / math.sqrt(3))
    assert f"3 processes: 1.000 [{1 / half:.3f}, {half:.3f}]; differences under {100 * (half - 1):.1f} % " in noise
    # of 90 turns 15 were at half the speed: the slowest tenth is twice the fastest
    assert "the machine's own speed changed 2.00-fold" in noise
    (disturbed,) = tables(noise)
    assert [row["model"] for row in disturbed] == ["vit_micro"]
    assert disturbed[0]["disturbed by"] == (
        "0.50 cores busy with other programs; 0.10 cores' time taken by the host; the machine's own speed changed 2.0-fold"
    )
    assert "Sorted by latency over that of the reference" in page
    assert "The reference is a fixed piece of work that takes turns with every timed cell" in noise

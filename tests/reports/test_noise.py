"""How sure a run can be: the reference against itself, the noise floor, and the cells that were disturbed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tests.reports.fabricate import ENVIRONMENT, cell, failed, infer, ok, size
from tests.reports.paired import REFERENCE_S, TURNS, check, loads, paired, tables, timed
from vitbench.core.records import Measurement, Record
from vitbench.devices.host.load import GPU_SLOWED
from vitbench.reports.markdown.noise import noise_section
from vitbench.reports.markdown.page import render_markdown, render_summary
from vitbench.reports.model.noise import disturbances, noise_floors, noise_levels
from vitbench.reports.model.runs import Run

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
        "- **cpu, 2 threads**: the reference against itself, 3 processes: 1.000 [0.976, 1.025]; differences under "
        "**2.5 %** (the noise floor of cells of 3 processes) are ties; the machine's own speed changed 1.00-fold between "
        "its slowest and fastest tenth.\n\nThis machine does not report what else it did."
    )


def test_an_interval_that_excludes_1_is_reported() -> None:
    text = noise_section([run_of(paired(cell(), EXACT), ratios=(1.1, 1.1, 1.1))])
    assert "3 processes: 1.100 [1.100, 1.100] (it should contain 1, and does not); differences under **0.0 %**" in text
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
        "- **cpu, 2 threads**: timed without the reference; times of different minutes are not comparable."
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
    section = noise_section([Run(name="run", records=records, noise=noise)])
    assert section.count("\n- ") + 1 == 2
    assert "**cpu, 1 thread**" in section


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
    assert "## Noise" not in render_markdown([run_of(ok(cell(), size(cell())))])


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
            "disturbed": "vit_micro",
            "cell": "cpu 231x240 px b8 infer",
            "by": "0.50 cores busy with other programs; 0.10 cores' time taken by the host",
        },
        {"disturbed": "vit_big", "cell": "cpu 32 px b1 train", "by": "the machine's own speed changed 2.0-fold"},
    ]


def test_a_quiet_machine_is_reported_as_quiet() -> None:
    text = noise_section([run_of(paired(cell(), EXACT, extra=loads(0.0, 0.0)))])
    assert text.endswith("\n\nNo cell was disturbed, as far as this machine reports.")


def test_several_runs_are_named() -> None:
    first = run_of(paired(cell("vit_nano"), EXACT, extra=loads(0.5)), ratios=(1.0, 1.0), name="laptop")
    second = run_of(infer(cell("vit_nano")), name="server")
    text = noise_section([first, second])
    lines = text.splitlines()
    assert lines[0].startswith("- **laptop, cpu, 2 threads**: the reference against itself, 2 processes: 1.000")
    assert lines[1].startswith("- **server, cpu, 2 threads**: timed without the reference")
    (table,) = tables(text)
    assert [(row["run"], row["disturbed"]) for row in table] == [("laptop", "vit_nano")]
    assert set(noise_floors([first, second])) == {("laptop", "cpu", 2)}


def test_names_cannot_break_the_table() -> None:
    record = paired(cell(), EXACT, extra=loads(0.5))
    (table,) = tables(noise_section([run_of(record, name="a|b"), run_of(name="c")]))
    assert table[0]["run"] == "a\\|b".replace("\\|", "|")


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
    nano, micro = tables(page)[0]
    assert nano["latency b1 (ms)"] == "20.0 [20.0, 20.0]"  # twice 10 ms
    assert nano["latency b1 (× reference)"] == "2.00 [1.85, 2.16]"  # runs differ by 4 %
    # its processes, and other runs
    half = math.exp(math.hypot(math.log(1.1) * T2 / math.sqrt(3), 1.959964 * 0.04))
    assert micro["latency b1 (× reference)"] == f"4.00 [{4 / half:.2f}, {4 * half:.2f}]" == "4.00 [3.12, 5.13]"
    assert (nano["rank b1"], micro["rank b1"]) == ("1", "2")
    assert nano["training step b8 (ms)"] == "80.0 [80.0, 80.0]"
    details = tables(page.partition("## Details")[2])[0]
    assert [row["training step b8 (× reference)"] for row in details] == ["8.00 [7.40, 8.65]", "–"]
    noise = page.partition("## Noise")[2].partition("\n## ")[0]
    half = 1.01 ** (T2 / math.sqrt(3))
    assert f"3 processes: 1.000 [{1 / half:.3f}, {half:.3f}]; differences under **{100 * (half - 1):.1f} %**" in noise
    # of 90 turns 15 were at half the speed: the slowest tenth is twice the fastest
    assert "the machine's own speed changed 2.00-fold" in noise
    (disturbed,) = tables(noise)
    assert [row["disturbed"] for row in disturbed] == ["vit_micro"]
    assert disturbed[0]["by"] == (
        "0.50 cores busy with other programs; 0.10 cores' time taken by the host; the machine's own speed changed 2.0-fold"
    )
    assert "Sorted by latency over that of the reference" in page
    assert "A fixed piece of work, the reference, took turns with every timed cell" in noise


def test_the_terminal_shows_the_same_ranks() -> None:
    (main,) = tables(render_summary([noisy_run()]))
    assert [row["rank b1"] for row in main] == ["1", "2"]

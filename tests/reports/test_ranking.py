"""Who is faster: ranks by what each took relative to the reference, and where that stands in the reports."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from tests.reports.fabricate import ENVIRONMENT, cell, infer, ok, size, trained, training_cell
from tests.reports.paired import REFERENCE, TURNS, check, main_lines, paired, section, tables, timed
from vitbench.core.records import Measurement, Record
from vitbench.core.stats.comparisons import Ratio
from vitbench.core.stats.intervals import BETWEEN_RUNS, WITHIN_PROCESS
from vitbench.reports.markdown.page import render_markdown
from vitbench.reports.model.ranking import differ, ranks, ratio_of
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tradeoffs import report_tradeoffs
from vitbench.reports.model.values import MetricValue, value_of
from vitbench.reports.table import render_csv, tidy_frame

EXACT = (1.0, 1.0, 1.0)


def latency(*ratios: float, model: str = "vit_micro", group: str = "", **changes: Any) -> MetricValue:
    return value_of(paired(cell(model, **changes), ratios, group=group), "latency")


def run_of(*records: Record, name: str = "run") -> Run:
    return Run(name=name, records=records, environment=ENVIRONMENT)


def texts(values: list[MetricValue], floor: float = 0.0) -> list[str | None]:
    return [rank and (f"{rank[0]}-{rank[1]}" if rank[0] < rank[1] else f"{rank[0]}") for rank in ranks(values, floor)]


# ranks


def test_ranks_go_by_relative_latency_and_ties_share_theirs() -> None:
    fast, slow = latency(1.0, 1.01, 0.99), latency(4.0, 4.04, 3.96)
    one, other = latency(2.0, 2.1, 1.9), latency(2.05, 2.15, 1.95)
    assert texts([slow, one, fast, other]) == ["4", "2-3", "1", "2-3"]


def test_values_that_cannot_be_distinguished_share_all_ranks() -> None:
    assert texts([latency(1.0, 2.0, 3.0), latency(1.1, 2.1, 3.1), latency(1.2, 2.2, 3.2)]) == ["1-3"] * 3


def test_a_figure_between_two_that_differ_can_tie_with_both() -> None:
    """0.7 and 1.3 differ, and 1 with its wide interval from neither."""
    low, middle, high = latency(0.69, 0.7, 0.71), latency(0.7, 1.0, 1.4), latency(1.29, 1.3, 1.31)
    assert texts([low, middle, high]) == ["1-2", "1-3", "2-3"]


def test_differences_within_the_noise_floor_are_ties() -> None:
    values = [latency(1.0, 1.0, 1.0), latency(1.1, 1.1, 1.1)]
    assert texts(values) == ["1", "2"]
    assert texts(values, floor=0.05) == ["1", "2"]
    assert texts(values, floor=0.2) == ["1-2", "1-2"]
    assert texts(values[::-1], floor=0.2) == ["1-2", "1-2"]


@pytest.mark.parametrize(
    ("ratio", "floor", "apart"),
    [
        (Ratio(1.1, 1.05, 1.15), 0.0, True),
        (Ratio(0.9, 0.85, 0.95), 0.0, True),
        (Ratio(1.1, 0.99, 1.21), 0.0, False),
        (Ratio(1.1, 1.05, 1.15), 0.1001, False),
        (Ratio(1 / 1.1, 0.9, 0.92), 0.1001, False),
        (Ratio(1 / 1.1, 0.9, 0.92), 0.0999, True),
        (None, 0.0, False),
    ],
)
def test_a_difference_leaves_1_out_and_is_beyond_the_floor(ratio: Ratio | None, floor: float, apart: bool) -> None:
    assert differ(ratio, floor) is apart


def test_processes_that_took_turns_are_compared_one_by_one() -> None:
    """Each process of the second takes a tenth more than its twin, while processes differ by a factor of four."""
    ratios, slower = (1.0, 2.0, 4.0), (1.1, 2.2, 4.4)
    together = ratio_of(latency(*slower, group="g"), latency(*ratios, group="g"))
    assert together is not None
    assert (together.value, together.tells_apart) == (pytest.approx(1.1), True)
    for groups in (("g", "h"), ("", "")):
        apart = ratio_of(latency(*slower, group=groups[0]), latency(*ratios, group=groups[1]))
        assert apart is not None
        assert (apart.value, apart.tells_apart) == (pytest.approx(1.1), False)
    assert texts([latency(*slower, group="g"), latency(*ratios, group="g")]) == ["2", "1"]
    assert texts([latency(*slower), latency(*ratios)]) == ["1-2", "1-2"]


@pytest.mark.parametrize(
    "other",
    [
        latency(2.0, 2.0, 2.0, threads=1),
        latency(2.0, 2.0, 2.0, device="cuda"),
        value_of(paired(cell(), (2.0,) * 3, named=REFERENCE.replace("reference 1", "reference 2")), "latency"),
        value_of(infer(cell(), processes=3), "latency"),
        MetricValue(),
    ],
    ids=["threads", "device", "reference", "without reference", "not asked for"],
)
def test_what_has_no_common_reference_is_not_compared(other: MetricValue) -> None:
    one = latency(*EXACT)
    assert ratio_of(one, other) is None
    assert ratio_of(other, one) is None
    assert texts([one, other]) == [None, None]


def test_one_process_is_no_comparison() -> None:
    assert texts([latency(1.0), latency(2.0)]) == [None, None]


def test_those_without_a_reference_have_no_rank_among_those_with_one() -> None:
    without = value_of(infer(cell(), processes=3), "latency")
    assert texts([latency(2.0, 2.0, 2.0), without, latency(*EXACT)]) == ["2", None, "1"]


def test_one_figure_alone_has_no_rank() -> None:
    assert ranks([]) == []
    assert texts([latency(*EXACT)]) == [None]


def test_a_failed_measurement_has_no_rank() -> None:
    broken = Measurement.absent("latency", "s", "timeout", "late")
    values = [latency(*EXACT), MetricValue(ok(cell(), [broken]), broken, "timeout"), latency(2.0, 2.0, 2.0)]
    assert texts(values) == ["1", None, "2"]


def test_a_record_that_stands_in_two_rows_does_not_compete_with_itself() -> None:
    once, slow = latency(*EXACT), latency(2.0, 2.0, 2.0)
    again = value_of(once.record, "latency")  # type: ignore[arg-type]
    assert texts([once, again, slow]) == ["1", "1", "2"]
    assert texts([once, again]) == [None, None]


# where ranks stand


def test_rows_are_sorted_by_relative_latency_and_not_by_milliseconds() -> None:
    """The second's milliseconds are fewer, because the machine was four times as fast in its minute."""
    slow_minute = paired(cell("vit_nano"), (2.0,) * 3, reference=(0.04,) * TURNS)
    fast_minute = paired(cell("vit_micro"), (3.0,) * 3, reference=(0.01,) * TURNS)
    main = main_lines([run_of(fast_minute, slow_minute)])[0]
    assert [row["model"] for row in main] == ["vit_nano", "vit_micro"]
    assert [row["latency b1 (ms)"] for row in main] == ["80.0 [65.8, 97.3]", "30.0 [24.7, 36.5]"]
    assert [row["latency b1 (× reference)"] for row in main] == ["2.00 [1.85, 2.16]", "3.00 [2.77, 3.24]"]
    assert [row["rank b1"] for row in main] == ["1", "2"]


def test_ranks_are_those_among_the_rows_of_one_table() -> None:
    records = [paired(cell(model, image_size=(px, px)), (ratio,) * 3)
               for px in (32, 64) for model, ratio in (("vit_nano", px), ("vit_micro", 2 * px))]  # fmt: skip
    for table in main_lines([run_of(*records)])[:2]:
        assert [row["rank b1"] for row in table] == ["1", "2"]


def test_thread_counts_and_runs_have_ranks_of_their_own() -> None:
    records = [
        paired(cell(model, threads=threads), (ratio * threads,) * 3)
        for model, ratio in (("vit_nano", 1.0), ("vit_micro", 1.5))
        for threads in (1, 2)
    ]
    main = main_lines([run_of(*records), run_of(*records[:1], name="other")])[0]
    assert {(row["run"], row["threads"], row["model"]): row["rank b1"] for row in main} == {
        ("run", "1", "vit_nano"): "1",
        ("run", "1", "vit_micro"): "2",
        ("run", "2", "vit_nano"): "1",
        ("run", "2", "vit_micro"): "2",
        ("other", "1", "vit_nano"): "–",
    }


def test_a_latency_of_another_batch_has_no_rank() -> None:
    records = [
        paired(cell("vit_nano"), EXACT),
        paired(cell("vit_micro"), (2.0,) * 3),
        paired(cell("vit_big", 8), EXACT),
    ]
    main = main_lines([run_of(*records)])[0]
    assert {row["model"]: (row["latency b1 (× reference)"], row["rank b1"]) for row in main} == {
        "vit_nano": ("1.00 [0.92, 1.08]", "1"),
        "vit_micro": ("2.00 [1.85, 2.16]", "2"),
        "vit_big": ("1.00 [0.92, 1.08] (b8)", "–"),
    }


def test_a_model_that_was_trained_twice_keeps_one_rank() -> None:
    trainings = [trained(training_cell("vit_nano", data=data), 180) for data in ("digits", "cifar10")]
    records = [paired(cell("vit_nano"), EXACT), paired(cell("vit_micro"), (2.0,) * 3), *trainings]
    main = main_lines([run_of(*records)])[0]
    assert [(row["model"], row["rank b1"]) for row in main] == [
        ("vit_nano", "1"),
        ("vit_nano", "1"),
        ("vit_micro", "2"),
    ]


def test_without_a_reference_there_is_neither_a_ratio_nor_a_rank() -> None:
    main = main_lines([run_of(infer(cell("vit_nano")), infer(cell("vit_micro")))])[0]
    assert not {heading for row in main for heading in row if "reference" in heading or "rank" in heading}


def test_the_relative_training_step_is_a_detail() -> None:
    page = render_markdown([run_of(paired(cell(batch=8, mode="train"), (5.0,) * 3), paired(cell(), EXACT))])
    heading = "training step b8 (× reference)"
    main, details = tables(page)[0], tables(section(page, "Details"))[0]
    assert [row[heading] for row in details] == ["5.00 [4.62, 5.41]"]
    assert [row["training step b8 (ms)"] for row in main] == ["50.0 [41.1, 60.8]"]
    assert heading not in main[0]


def test_the_noise_floor_of_a_run_makes_ties_on_its_page() -> None:
    records = [paired(cell("vit_nano"), EXACT), paired(cell("vit_micro"), (1.05,) * 3)]
    quiet = main_lines([run_of(*records)])[0]
    checks = [check(0.9), check(1.0), check(1.1)]
    noisy = main_lines([Run(name="run", records=records, noise=checks)])[0]
    assert [row["rank b1"] for row in quiet] == ["1", "2"]
    assert [row["rank b1"] for row in noisy] == ["1-2", "1-2"]


# tables for programs


def widened(half: float) -> float:
    """The factor to either side: 1.96 times 4 % from run to run beside ``half`` (a log)."""
    return math.exp(math.hypot(half, 1.959964 * 0.04))


def test_an_interval_allows_for_other_runs() -> None:
    one = value_of(paired(cell(), (2.0,) * 3), "latency")
    assert one.relative is not None
    assert one.relative_between_runs is not None
    assert (one.relative.low, one.relative.high) == (pytest.approx(2), pytest.approx(2))
    assert one.relative_between_runs.high == pytest.approx(2 * widened(0), rel=1e-6)
    assert one.relative_between_runs.low == pytest.approx(2 / widened(0), rel=1e-6)
    assert one.relative_between_runs.kind == BETWEEN_RUNS


@pytest.mark.parametrize("group", ["", "now"])
def test_where_the_first_processes_decided_how_many_there_would_be_their_spread_decides_who_ties(group: str) -> None:
    """Later ones that agree by luck would tell apart what the first ones do not."""
    first, later = (0.96, 0.98, 1.0, 1.02, 1.04), (1.0,) * 15
    one, other = latency(*first, *later, group=group), latency(*[1.01] * 20, group=group)

    def decided(found: MetricValue) -> MetricValue:
        assert found.measurement is not None
        return replace(found, measurement=replace(found.measurement, first_stage=5))

    ratio, by_first = ratio_of(one, other), ratio_of(decided(one), decided(other))
    assert ratio is not None
    assert by_first is not None
    assert ratio.value == by_first.value
    assert ratio.tells_apart
    assert not by_first.tells_apart


def test_one_process_says_that_its_interval_is_of_one_process() -> None:
    record = paired(cell(), (2.0,), reference=tuple(0.01 + 0.0001 * turn for turn in range(TURNS)))
    one = value_of(record, "latency")
    assert one.relative is not None
    assert one.relative_between_runs == one.relative
    (line,) = pd.read_csv(io.StringIO(render_csv([run_of(record)]))).to_dict("records")
    assert line["relative_latency_interval"] == WITHIN_PROCESS
    page = render_markdown([run_of(record)])
    assert "Those of fewer processes do not." in page
    assert tables(page)[0][0]["latency b1 (× reference)"] == "2.00 [2.00, 2.00]"


def test_the_csv_has_relative_columns_and_cpu_time() -> None:
    quotient = 1.1
    ratios = (4.0 / quotient, 4.0, 4.0 * quotient)
    cpu = timed("latency_cpu_time", (3.0,) * 3)
    step = paired(cell(batch=1, mode="train"), (6.0,) * 3, extra=[timed("training_step_cpu_time", (5.0,) * 3)])
    (line,) = pd.read_csv(io.StringIO(render_csv([run_of(paired(cell(), ratios, extra=[cpu]), step)]))).to_dict(
        "records"
    )
    assert line["latency_ms"] == pytest.approx(40)
    assert line["relative_latency"] == pytest.approx(4)
    # the t interval of three logarithms that stand a factor of 1.1 apart: t = 4.30265 with two degrees of freedom
    half = widened(4.30265 / math.sqrt(3) * math.log(quotient))
    assert line["relative_latency_low"] == pytest.approx(4 / half, rel=1e-5)
    assert line["relative_latency_high"] == pytest.approx(4 * half, rel=1e-5)
    assert (line["relative_latency_interval"], line["latency_interval"]) == (BETWEEN_RUNS, BETWEEN_RUNS)
    assert (line["latency_turns_used"], line["latency_cpu_time_turns_used"]) == ("quiet", "quiet")
    assert line["latency_cpu_time_ms"] == pytest.approx(30)
    assert (line["latency_cpu_time_status"], line["relative_latency_cpu_time"]) == ("ok", pytest.approx(3))
    drift = math.exp(1.959964 * 0.1)
    assert line["latency_cpu_time_low_ms"] == pytest.approx(30 / drift)
    assert line["latency_cpu_time_high_ms"] == pytest.approx(30 * drift)
    assert (line["training_step_ms"], line["relative_training_step"]) == (pytest.approx(60), pytest.approx(6))
    assert line["relative_training_step_low"] == pytest.approx(6 / widened(0), rel=1e-5)
    assert (line["training_step_cpu_time_ms"], line["relative_training_step_cpu_time"]) == (
        pytest.approx(50),
        pytest.approx(5),
    )


def test_relative_columns_are_empty_where_there_was_no_reference() -> None:
    table = pd.read_csv(io.StringIO(render_csv([run_of(infer(cell()))])))
    assert table["latency_ms"].notna().all()
    assert table[["relative_latency", "relative_latency_low", "relative_latency_high"]].isna().all(axis=None)


def test_the_csv_is_in_the_order_of_the_tables() -> None:
    records = [paired(cell("vit_nano"), (3.0,) * 3), paired(cell("vit_micro"), (2.0,) * 3, reference=(0.1,) * TURNS)]
    assert pd.read_csv(io.StringIO(render_csv([run_of(*records)])))["model"].tolist() == ["vit_micro", "vit_nano"]


def test_the_frame_has_the_ratio_its_interval_and_the_turns() -> None:
    record = paired(cell(), (2.0 / 1.1, 2.0, 2.0 * 1.1))
    frame = tidy_frame([run_of(record)]).set_index("metric")
    one = frame.loc["latency"]
    assert one["relative"] == pytest.approx(2.0)
    assert one["relative_low"] < one["relative"] < one["relative_high"]
    assert one["relative_interval_kind"] == BETWEEN_RUNS
    assert one["value"] == pytest.approx(one["relative"] * 0.01)
    assert one["turns"] == ((2,) * TURNS,) * 3
    assert one["reference_samples"] == ((0.01,) * TURNS,) * 3
    assert [len(process) for process in one["samples"]] == [2 * TURNS] * 3
    params = frame.loc["params"]
    assert params[["relative", "relative_low", "relative_high"]].isna().all()
    assert (params["turns"], params["reference_samples"]) == ((), ())


def test_the_frame_of_a_failure_has_no_ratio() -> None:
    late = Measurement.absent("latency", "s", "timeout", "late")
    frame = tidy_frame([run_of(ok(cell(), [*size(cell()), late]))]).set_index("metric")
    assert frame["relative"].isna().all()


# plots


def test_the_plot_has_multiples_of_the_reference_where_each_row_has_them() -> None:
    records = [paired(cell("vit_nano"), (2.0,) * 3), trained(training_cell("vit_nano"), 200)]
    records += [paired(cell("vit_micro"), (3.0,) * 3), trained(training_cell("vit_micro"), 250)]
    plot = next(iter(report_tradeoffs(build_rows([run_of(*records)])).values()))
    assert plot.x_label == "latency of a batch of 1 (× reference)"
    assert {point.label: point.x for point in plot.points} == {
        "vit_nano": pytest.approx(2),
        "vit_micro": pytest.approx(3),
    }


def test_the_plots_intervals_are_those_of_the_table() -> None:
    record = paired(cell("vit_nano"), (1.9, 2.0, 2.1))
    (point,) = next(
        iter(report_tradeoffs(build_rows([run_of(record, trained(training_cell("vit_nano"), 200))])).values())
    ).points
    shown = value_of(record, "latency").relative_between_runs
    assert shown is not None
    assert (point.x, point.x_interval) == (shown.value, (shown.low, shown.high))


def test_the_plot_has_milliseconds_where_one_row_lacks_the_reference() -> None:
    records = [paired(cell("vit_nano"), (2.0,) * 3), trained(training_cell("vit_nano"), 200)]
    without = timed("latency", (3.0,) * 3)
    without = Measurement(metric="latency", unit="s", samples=without.samples, method="alone")
    other = cell("vit_micro")
    records += [ok(other, [*size(other), without]), trained(training_cell("vit_micro"), 250)]
    plot = next(iter(report_tradeoffs(build_rows([run_of(*records)])).values()))
    assert plot.x_label == "latency of a batch of 1 (ms)"
    assert sorted(point.x for point in plot.points) == [pytest.approx(20), pytest.approx(30)]


def test_a_row_without_an_accuracy_does_not_decide_on_the_axis() -> None:
    records = [paired(cell("vit_nano"), (2.0,) * 3), trained(training_cell("vit_nano"), 200), infer(cell("vit_micro"))]
    plot = next(iter(report_tradeoffs(build_rows([run_of(*records)])).values()))
    assert plot.x_label.endswith("(× reference)")

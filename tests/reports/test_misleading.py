"""Where FLOPs mislead: correlations of known ranks, pairs at the edges, groups that are never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.roofs import machine
from tests.reports.fabricate import ENVIRONMENT, cell, ok, write_run
from tests.reports.paired import tables, timed
from vitbench.analysis.roof_shares import Work, roof_time
from vitbench.core.records import Measurement, Record
from vitbench.core.run_folder import ROOFLINE
from vitbench.reports.markdown.page import render_markdown
from vitbench.reports.markdown.tables import table_text
from vitbench.reports.model.misleading import correlation_table, pair_table, unequal_pairs
from vitbench.reports.model.roof import RoofedCell, roofline_json
from vitbench.reports.model.rows import Row, build_rows
from vitbench.reports.model.runs import Run, read_runs
from vitbench.reports.model.tables import Table

EXACT = (1.0, 1.0, 1.0)


def called(
    model: str,
    gflops: float,
    times: float | Sequence[float],
    *,
    batch: int = 1,
    mode: str = "infer",
    params: float = 1.0,
    activations: float | None = None,
    memory: float | None = None,
    lower_bound: bool = False,
    named: str = "reference 1",
    **changes: Any,
) -> Record:
    """A call of a model that took ``times`` (one a process) over the reference's time."""
    flops = Measurement.single("flops", "FLOP", round(gflops * 1e9), "counted on meta")
    measurements = [
        Measurement.single("params", "parameter", round(params * 1e6), "sum"),
        replace(flops, lower_bound=lower_bound),
    ]
    if activations is not None:
        measurements.append(Measurement.single("activations", "element", round(activations * 1e6), "counted on meta"))
    if memory is not None:
        measurements.append(Measurement.single("tensor_peak", "byte", round(memory * 1e6), "counted"))
    ratios = (times,) * 3 if isinstance(times, float | int) else tuple(times)
    metric = "latency" if mode == "infer" else "training_step"
    return ok(cell(model, batch, mode=mode, **changes), [*measurements, timed(metric, ratios, named=named)])


def rows_of(*records: Record) -> list[Row]:
    return build_rows([Run(name="run", records=records, environment=ENVIRONMENT)])


def lines_of(table: Table | None) -> list[dict[str, Any]]:
    assert table is not None
    names = [column.name for column in table.columns]
    return [
        {name: value.text if value.text is not None else value.number for name, value in zip(names, line, strict=True)}
        for line in table.lines
    ]


def names_of(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    pairs, _ = unequal_pairs(rows_of(*records))
    return [(*(row.cell.model for row in pair.rows), pair.call) for pair in pairs]


# correlations


def five(order: Sequence[float] = (2, 1, 4, 3, 5), **changes: Any) -> list[Record]:
    return [called(f"m{place}", place + 1, time, params=5 - place, **changes) for place, time in enumerate(order)]


def test_a_table_has_the_correlation_by_hand() -> None:
    """Latencies in the order 2 1 4 3 5: 1 - 6 * 4 / 120 with FLOPs, its negative with parameters, which run down."""
    lines = {line["order by"]: line for line in lines_of(correlation_table(rows_of(*five())))}
    assert lines["latency b1"]["FLOPs"] == pytest.approx(0.8)
    assert lines["latency b1"]["params"] == pytest.approx(-0.8)
    assert lines["FLOPs"]["params"] == pytest.approx(-1)
    assert {line["models"] for line in lines.values()} == {5}
    assert "activations" not in lines["FLOPs"]  # nobody has them


def test_each_cost_is_correlated_with_what_comes_before_it() -> None:
    records = []
    for place in range(5):
        how = {"params": place + 1, "activations": 10.0 - place, "memory": place + 20.0}
        records += [called(f"m{place}", place + 1, place + 1.0, batch=batch, **how) for batch in (1, 8)]
        records.append(called(f"m{place}", place + 1, 9.0 - place, batch=8, mode="train", **how))
    lines = {line["order by"]: line for line in lines_of(correlation_table(rows_of(*records)))}
    assert list(lines) == ["FLOPs", "activations", "peak memory b1", "latency b1", "latency b8", "training step b8"]
    found = [[lines[name][of] for of in ("activations", "peak memory", "latency")] for name in list(lines)[3:]]
    assert found[0] == [pytest.approx(-1), pytest.approx(1), None]
    assert found[1] == [pytest.approx(-1), pytest.approx(1), pytest.approx(1)]
    assert found[2] == [pytest.approx(1), pytest.approx(-1), pytest.approx(-1)]


def test_peak_memory_is_that_of_tensors_unless_more_models_have_what_the_system_saw() -> None:
    """Systems see the reverse order here; the peak of tensors is known of four or of all five."""
    records = [called(f"m{place}", place + 1, 1.0 + place, memory=place + 1) for place in range(5)]
    system = [Measurement.single("inference_peak_memory", "byte", 9e6 - 1e6 * place, "VmHWM") for place in range(5)]
    both = [replace(one, measurements=(*one.measurements, seen)) for one, seen in zip(records, system, strict=True)]
    part = [
        replace(both[0], measurements=tuple(m for m in both[0].measurements if m.metric != "tensor_peak")),
        *both[1:],
    ]
    for rows, expected in ((both, 1), (part, -1)):
        (line,) = [one for one in lines_of(correlation_table(rows_of(*rows))) if one["order by"] == "peak memory b1"]
        assert line["FLOPs"] == pytest.approx(expected)


def test_four_models_have_no_correlation() -> None:
    assert correlation_table(rows_of(*five()[:4])) is None


def test_counts_alone_are_no_cost() -> None:
    records = [replace(one, measurements=one.measurements[:2]) for one in five()]
    assert correlation_table(rows_of(*records)) is None


def test_a_lower_bound_has_no_rank_and_the_value_says_of_how_many_models_it_is() -> None:
    bound = called("bound", 0.5, 9.0, params=9, lower_bound=True)
    (line,) = [line for line in render(*five(), bound) if line["order by"] == "latency b1"]
    assert line["models"] == "6"
    assert line["FLOPs"].startswith("0.80 [")
    assert line["FLOPs"].endswith("] (n = 5)")
    assert not line["params"].endswith(")")


def render(*records: Record) -> list[dict[str, str]]:
    page = render_markdown([Run(name="run", records=records, environment=ENVIRONMENT)])
    (found,) = [table for table in tables(page) if "order by" in table[0]]
    return found


OTHER_CONDITIONS = [
    {"device": "cuda:0"},
    {"threads": 1},
    {"dtype": "bf16"},
    {"image_size": (64, 64)},
    {"attention": "explicit"},
    {"num_classes": 100},
]


@pytest.mark.parametrize("changes", OTHER_CONDITIONS)
def test_models_under_other_conditions_are_never_mixed(changes: dict[str, Any]) -> None:
    others = [called(f"n{place}", place + 1, place + 1.0, **changes) for place in range(3)]
    assert correlation_table(rows_of(*five()[:3], *others)) is None
    assert names_of([called("one", 1, 1.0), called("other", 1, 9.0, **changes)]) == []


def test_each_group_has_lines_of_its_own() -> None:
    table = correlation_table(rows_of(*five(), *five((5, 4, 3, 2, 1), image_size=(64, 64))))
    found = {line["image size"]: line["FLOPs"] for line in lines_of(table) if line["order by"] == "latency b1"}
    assert found == {"32": pytest.approx(0.8), "64": pytest.approx(-1)}


def test_a_model_with_two_trainings_counts_once() -> None:
    from tests.reports.fabricate import trained, training_cell

    tests = [trained(training_cell("m0", weights=f"train:{name}"), 200) for name in ("brief", "modern")]
    lines = lines_of(correlation_table(rows_of(*five(), *tests)))
    assert {line["models"] for line in lines} == {5}


# pairs


@pytest.mark.parametrize(("gflops", "listed"), [(1.0, True), (1.1, True), (1.11, False), (0.91, True), (0.9, False)])
def test_flops_are_equal_within_ten_per_cent(gflops: float, listed: bool) -> None:
    assert bool(names_of([called("fast", 1, 1.0), called("slow", gflops, 2.0)])) is listed


@pytest.mark.parametrize(("time", "listed"), [(1.49, False), (1.51, True), (0.67, False), (0.66, True)])
def test_times_are_unequal_beyond_one_and_a_half(time: float, listed: bool) -> None:
    found = names_of([called("one", 1, 1.0), called("other", 1, time)])
    slower_first = ("other", "one") if time > 1 else ("one", "other")
    assert found == ([(*slower_first, "latency b1")] if listed else [])


def test_a_difference_that_is_not_clear_is_left_out() -> None:
    """Twice the time on average, in processes that take 1.4 to 2.9 times as long."""
    assert names_of([called("fast", 1, 1.0), called("slow", 1, (1.4, 2.0, 2.9))]) == []
    assert names_of([called("fast", 1, 1.0), called("slow", 1, (1.96, 2.0, 2.04))]) != []


def test_times_of_different_references_are_not_compared() -> None:
    pairs, compared = unequal_pairs(rows_of(called("fast", 1, 1.0), called("slow", 1, 9.0, named="reference 2")))
    assert (pairs, compared) == ([], 0)


def test_a_lower_bound_is_equal_to_nothing() -> None:
    assert names_of([called("fast", 1, 1.0), called("slow", 1, 9.0, lower_bound=True)]) == []


def test_every_call_is_compared_and_the_most_unequal_comes_first() -> None:
    records = []
    for name, times in (("lean", (1.0, 1.0, 1.0)), ("heavy", (1.2, 2.0, 3.0))):
        how = {"activations": 1.0 if name == "lean" else 2.5}
        records += [called(name, 1, time, batch=batch, **how) for batch, time in zip((1, 8), times, strict=False)]
        records.append(called(name, 1, times[2], batch=8, mode="train", **how))
    pairs, compared = unequal_pairs(rows_of(*records))
    assert compared == 3
    step, latency = lines_of(pair_table(pairs))
    assert (step["slower"], step["faster"], step["call"]) == ("heavy", "lean", "training step b8")
    assert (step["time"], latency["time"]) == (pytest.approx(3), pytest.approx(2))
    assert latency["call"] == "latency b8"
    assert (step["FLOPs"], step["activations"]) == (1, pytest.approx(2.5))
    assert (step["device"], step["image size"]) == ("cpu", "32")


# the page


def page_of(*records: Record) -> str:
    return render_markdown([Run(name="run", records=records, environment=ENVIRONMENT)])


def test_the_page_says_that_there_is_no_pair() -> None:
    page = page_of(*five((1, 2, 3, 4, 5)))
    assert "Where FLOPs mislead" in page
    assert "No two models that have FLOPs within 10 % of each other clearly differ" in page


def test_few_models_have_no_section_unless_a_pair_is_unequal() -> None:
    assert "Where FLOPs mislead" not in page_of(*five()[:4])
    page = page_of(called("fast", 1, 1.0), called("slow", 1.05, 2.0))
    (pair,) = [line for table in tables(page) for line in table if "slower" in line]
    assert (pair["slower"], pair["faster"], pair["FLOPs (×)"], pair["time (×)"]) == (
        *("slow", "fast", "1.05"),
        "2.00 [2.00, 2.00]",
    )
    assert "order by" not in page


# the operators behind a pair


def roofed_page(tmp_path: Path, **roofed: Sequence[Work]) -> str:
    """Ten ms and 30 ms of the same FLOPs; the roof of the models that have work."""
    records = [called("fast", 1, 1.0), called("slow", 1, 3.0)]
    write_run(tmp_path / "run", Run(name="run", records=records, environment=ENVIRONMENT))
    cells = {
        record.cell.id: RoofedCell(environment="e1", time=roof_time(roofed[record.cell.model], machine()))
        for record in records
        if record.cell.model in roofed
    }
    (tmp_path / "run" / ROOFLINE).write_text(roofline_json([machine()], cells), encoding="utf-8")
    return render_markdown(read_runs([tmp_path / "run"]))


def work(name: str, calls: int, flops: int) -> Work:
    return Work(name=name, dtype="fp32", calls=calls, flops=flops, bytes=0)


def test_a_pair_names_the_operators_whose_times_at_the_roof_differ(tmp_path: Path) -> None:
    """At 100 GFLOP/s: 4 + 1 ms against 1 + 3 + 0 ms, so +3, -2 and, of the slower alone, +4: 5 of 20 ms."""
    second = round(machine().flops_per_s("fp32") / 1000)  # FLOPs of a ms
    slow = [work("addmm", 2, 2 * second), work("bmm", 10, second // 10), work("conv", 4, second)]
    fast = [work("addmm", 1, second), work("bmm", 1, 3 * second)]
    page = roofed_page(tmp_path, slow=slow, fast=fast)
    (pair,) = [line for table in tables(page) for line in table if "slower" in line]
    assert pair["operators"] == "conv +4 ms, addmm +3 ms, bmm -2 ms"
    assert (pair["explained (%)"], pair["calls"]) == ("25", "16 / 2")
    assert "Calls: operators dispatched by each." in page
    assert "vitbench roofline RUN_FOLDER" not in page


def test_without_a_roof_of_both_the_page_names_the_command_that_adds_it(tmp_path: Path) -> None:
    page = roofed_page(tmp_path, slow=[work("addmm", 1, 10**6)])
    (pair,) = [line for table in tables(page) for line in table if "slower" in line]
    assert "operators" not in pair
    assert "`vitbench roofline RUN_FOLDER` adds the operators that make the difference." in page


def test_the_docs_show_the_table_of_the_stored_run() -> None:
    root = Path(__file__).parents[2]
    rows = build_rows(read_runs([root / "results" / "amd-epyc-2-cores" / "lightweight-digits"]))
    table = correlation_table(rows)
    assert table is not None
    assert table_text(table) in (root / "docs" / "analysis.md").read_text(encoding="utf-8")

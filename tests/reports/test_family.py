"""Bigger model or higher resolution: costs by hand, and what is set beside what."""

from __future__ import annotations

from typing import Any

import pytest

from tests.reports.fabricate import ENVIRONMENT
from tests.reports.paired import tables
from tests.reports.test_misleading import called, lines_of, rows_of
from vitbench.core.records import Record
from vitbench.reports.markdown.page import render_markdown
from vitbench.reports.model.family import budget_table, cost_table, families
from vitbench.reports.model.runs import Run


def size(model: str, pixels: int, gflops: float, time: float, **how: Any) -> Record:
    return called(model, gflops, time, image_size=(pixels, pixels), **how)


def family(**changes: Any) -> list[Record]:
    """The small model at 48 px takes the FLOPs of the big one at 32 px, more time and less memory."""
    small, big = {"params": 1.0, **changes}, {"params": 4.0, **changes}
    return [
        size("small", 32, 1.0, 1.0, activations=2, memory=10, **small),
        size("small", 48, 3.0, 5.0, activations=9, memory=14, **small),
        size("big", 32, 4.0, 4.0, activations=6, memory=28, **big),
        size("big", 48, 12.0, 11.0, activations=20, memory=42, **big),
    ]


def test_costs_are_sorted_by_latency_and_this_is_a_multiple_of_the_least() -> None:
    lines = lines_of(cost_table(families(rows_of(*family()))))
    assert [(line["model"], line["image size"]) for line in lines] == [
        ("small", "32"),
        ("big", "32"),
        ("small", "48"),
        ("big", "48"),
    ]
    assert [line["GFLOPs"] for line in lines] == [1e9, 4e9, 3e9, 12e9]
    assert [line["peak memory"] for line in lines] == pytest.approx([10e6, 28e6, 14e6, 42e6])
    assert [line["latency"] for line in lines] == pytest.approx([1, 4, 5, 11])  # of one name: the last is the multiple


def test_the_bigger_model_is_set_beside_the_higher_resolution_for_about_the_same_flops() -> None:
    """4 GFLOPs beside 3; 12 beside 3 and 4 beside 12 are not the same budget."""
    table = budget_table(families(rows_of(*family())))
    (line,) = lines_of(table)
    assert (line["bigger model"], line["higher resolution"]) == ("big at 32 px", "small at 48 px")
    assert (line["FLOPs"], line["activations"]) == (pytest.approx(4 / 3), pytest.approx(6 / 9))
    assert (line["peak memory"], line["latency"]) == (pytest.approx(2), pytest.approx(0.8))
    assert line["costs less"] == "neither in both"


@pytest.mark.parametrize(
    ("memory", "time", "less"),
    [
        (13, 4.0, "bigger model"),
        (28, 6.0, "higher resolution"),
        (13, 6.0, "neither in both"),
        (13, 5.0, "neither in both"),  # equal times are not distinguished
    ],
)
def test_which_costs_less_takes_both_memory_and_time(memory: float, time: float, less: str) -> None:
    records = family()
    records[2] = size("big", 32, 4.0, time, params=4.0, memory=memory)
    (line,) = lines_of(budget_table(families(rows_of(*records))))
    assert line["costs less"] == less


@pytest.mark.parametrize(
    "records",
    [
        family()[:3],  # the big model at one size
        [size("small", 32, 1, 1), size("small", 48, 3, 3)],
        [size("small", 32, 1, 1), size("small", 48, 3, 3), size("big", 64, 9, 9), size("big", 96, 20, 20)],
        [*family()[:2], *family(device="cuda:0")[2:]],
        [*family()[:2], *family(threads=1)[2:]],
    ],
    ids=["one size", "one model", "no size in common", "devices", "threads"],
)
def test_there_is_no_table_unless_models_share_sizes_under_one_condition(records: list[Record]) -> None:
    assert families(rows_of(*records)) == []


def test_a_failed_size_stands_in_the_table_without_a_time() -> None:
    from tests.reports.fabricate import cell, failed

    records = [*family(), failed(cell("big", 1, image_size=(64, 64)), "oom", "out_of_memory", "no memory")]
    page = render_markdown([Run(name="run", records=records, environment=ENVIRONMENT)])
    (costs,) = [table for table in tables(page) if "latency (×)" in table[0] and "latency b1 (ms)" in table[0]]
    assert (costs[-1]["model"], costs[-1]["latency b1 (ms)"], costs[-1]["latency (×)"]) == ("big", "OOM", "–")


def test_the_page_has_a_section() -> None:
    page = render_markdown([Run(name="run", records=family(), environment=ENVIRONMENT)])
    assert "Bigger model or higher resolution" in page
    (line,) = [line for table in tables(page) for line in table if "costs less" in line]
    assert line["latency (×)"] == "0.800 [0.800, 0.800]"

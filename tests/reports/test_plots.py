"""The Pareto front against brute force; the plots by what is in them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reports.fabricate import ENVIRONMENT, cell, failed, full_run, infer, trained, training_cell
from vitbench.core.records import Record
from vitbench.reports.model.ranking import pareto_front
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.plots.tradeoffs import Plot, Point, draw_plot, plan_plots, why_no_plots

small_numbers = st.integers(0, 6).map(float)


def plots_of(*records: Record) -> list[Plot]:
    return plan_plots(build_rows([Run(name="run", records=records, environment=ENVIRONMENT)]))


@given(st.lists(st.tuples(small_numbers, small_numbers), max_size=12))
@settings(deadline=None)
def test_the_front_is_what_no_point_beats(points: list[tuple[float, float]]) -> None:
    def beaten(one: tuple[float, float]) -> bool:
        return any(other[0] <= one[0] and other[1] >= one[1] and other != one for other in points)

    front = pareto_front(points)
    assert sorted(front) == [index for index, point in enumerate(points) if not beaten(point)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_points_carry_their_intervals_and_chance_is_known() -> None:
    by_latency, by_params = plan_plots(build_rows([full_run()]))
    assert len(by_latency.points) == len(by_params.points) == 4
    assert by_latency.chance == 10
    assert all(p.x_low is not None and p.y_low is not None and p.y_low < p.y for p in by_latency.points)
    assert all(p.x_low is None for p in by_params.points)
    (group,) = by_latency.groups
    assert [point.label for point in by_latency.front(group)] == ["vit_nano", "vit_micro", "vit_small"]


def test_devices_sizes_and_data_have_fronts_of_their_own() -> None:
    records = []
    for change in ({}, {"device": "cuda:0"}, {"image_size": (64, 64)}):
        records += [infer(cell(**change)), trained(training_cell("vit_micro", **change), 200)]
    records.append(trained(training_cell("vit_micro", data="cifar10"), 150))
    plot = plots_of(*records)[0]
    assert plot.groups == [
        "cpu, 32 px, digits",
        "cpu, 32 px, cifar10",
        "cuda:0, 32 px, digits",
        "cpu, 64 px, digits",
    ]


def test_what_varies_is_in_the_label() -> None:
    records = []
    for dtype in ("fp32", "bf16"):
        records += [infer(cell(dtype=dtype)), trained(training_cell("vit_micro", dtype=dtype), 200)]
    assert [point.label for point in plots_of(*records)[0].points] == ["vit_micro fp32", "vit_micro bf16"]


def test_a_latency_of_another_batch_is_no_point() -> None:
    records = [infer(cell("vit_nano")), trained(training_cell("vit_nano"), 200)]
    records += [infer(cell("vit_micro", 8)), trained(training_cell("vit_micro"), 200)]
    by_latency, by_params = plots_of(*records)
    assert len(by_latency.points) == 1
    assert len(by_params.points) == 2


def test_why_there_is_no_plot() -> None:
    rows = build_rows([Run(name="r", records=[infer(cell())])])
    assert plan_plots(rows) == []
    assert "no training cell" in why_no_plots(rows)
    rows = build_rows([Run(name="r", records=[infer(cell()), failed(training_cell("vit_micro"), "oom")])])
    assert plan_plots(rows) == []
    assert "see Failures" in why_no_plots(rows)
    rows = build_rows([Run(name="r", records=[trained(training_cell("vit_micro"), 200)])])
    assert [plot.file_name for plot in plan_plots(rows)] == ["accuracy-params.png"]
    assert "against latency" in why_no_plots(rows)
    assert why_no_plots(build_rows([full_run()])) == ""


@pytest.mark.integration
@pytest.mark.parametrize("points", [1, 30])
def test_a_plot_is_drawn_and_repeats_to_the_byte(points: int) -> None:
    plot = Plot(
        "x.png",
        "accuracy against latency",
        "latency (ms)",
        tuple(
            Point(f"model_{i % 9}", f"group {i % 3}", 1.0 + i % 5, 0.9, None, 50.0, 45.0, 60.0) for i in range(points)
        ),
        chance=10.0,
    )
    drawn = draw_plot(plot)
    assert drawn.startswith(b"\x89PNG")
    assert drawn == draw_plot(plot)
    assert draw_plot(dataclasses.replace(plot, chance=None, log_x=False)) != drawn


def test_of_very_many_points_the_fronts_and_the_most_accurate_have_names() -> None:
    points = tuple(Point(f"m{i}", "group", float(i), None, None, float(i % 40), None, None) for i in range(200))
    plot = Plot("x.png", "title", "x", points, chance=None)
    named = plot.labelled
    assert len(named) == 60
    assert set(plot.front("group")) <= set(named)
    assert min(point.y for point in named if point not in plot.front("group")) >= 30
    assert dataclasses.replace(plot, points=points[:60]).labelled == list(points[:60])

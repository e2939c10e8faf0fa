"""The Pareto front against brute force; the plots by what is in them, and as files."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reports.fabricate import ENVIRONMENT, cell, failed, full_run, infer, ok, size, trained, training_cell
from tests.reports.test_searches import search
from vitbench.core.errors import UsageError
from vitbench.core.records import Record
from vitbench.reports.model.lines import lines_of
from vitbench.reports.model.ranking import pareto_front
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tradeoffs import Group, Point, Tradeoff, report_tradeoffs, tradeoff
from vitbench.reports.plots.kinds import draw
from vitbench.reports.plots.pareto import draw_tradeoff
from vitbench.reports.plots.still import still_svg

small_numbers = st.integers(0, 6).map(float)
SVG = "{http://www.w3.org/2000/svg}"


def run_of(*records: Record, name: str = "run") -> Run:
    return Run(name=name, records=records, environment=ENVIRONMENT)


def plots_of(*records: Record) -> list[Tradeoff]:
    return list(report_tradeoffs(build_rows([run_of(*records)])).values())


def texts_of(svg: bytes) -> list[str]:
    return [one.text or "" for one in ET.fromstring(svg).iter(f"{SVG}text")]


@given(st.lists(st.tuples(small_numbers, small_numbers), max_size=12))
@settings(deadline=None)
def test_the_front_is_what_no_point_beats(points: list[tuple[float, float]]) -> None:
    def beaten(one: tuple[float, float]) -> bool:
        return any(other[0] <= one[0] and other[1] >= one[1] and other != one for other in points)

    front = pareto_front(points)
    assert sorted(front) == [index for index, point in enumerate(points) if not beaten(point)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


# accuracy against its cost


def test_points_carry_their_intervals_and_chance_is_known() -> None:
    plots = report_tradeoffs(build_rows([full_run()]))
    assert list(plots) == ["accuracy-latency.png", "accuracy-params.png"]
    by_latency, by_params = plots.values()
    assert len(by_latency.points) == len(by_params.points) == 4
    assert by_latency.chance == 10
    assert all(p.x_interval and p.y_interval and p.y_interval[0] < p.y for p in by_latency.points)
    assert all(p.x_interval is None for p in by_params.points)
    (group,) = by_latency.groups
    assert [point.label for point in group.front] == ["vit_nano", "vit_micro", "vit_small"]
    assert "vit_small (" in by_latency.caption


def test_devices_and_data_have_fronts_of_their_own() -> None:
    records = []
    for change in ({}, {"device": "cuda:0"}):
        records += [infer(cell(**change)), trained(training_cell("vit_micro", **change), 200)]
    records.append(trained(training_cell("vit_micro", data="cifar10"), 150))
    plot = plots_of(*records)[0]
    assert [group.name for group in plot.groups] == ["cpu, cifar10", "cpu, digits", "cuda:0, digits"]
    assert {point.label for point in plot.points} == {"vit_micro"}


def test_what_varies_within_a_front_is_in_the_label() -> None:
    records = []
    for attention in ("fused", "explicit"):
        records += [infer(cell(attention=attention)), trained(training_cell("vit_micro", attention=attention), 200)]
    assert {point.label for point in plots_of(*records)[0].points} == {"vit_micro, fused", "vit_micro, explicit"}


def test_a_plot_is_of_one_batch() -> None:
    records = [infer(cell("vit_nano")), trained(training_cell("vit_nano"), 200)]
    records += [infer(cell("vit_micro", 8)), trained(training_cell("vit_micro"), 200)]
    by_latency, by_params = plots_of(*records)
    assert by_latency.x_label == "latency of a batch of 1 (ms)"
    assert len(by_latency.points) == 1
    assert len(by_params.points) == 2
    by_throughput = tradeoff(lines_of(build_rows([full_run()])), "throughput")
    assert by_throughput is not None
    assert by_throughput.x_label == "throughput of a batch of 32 (image/s)"
    (group,) = by_throughput.groups
    xs = [point.x for point in group.front]
    assert xs == sorted(xs)
    assert group.front[-1].label == "vit_nano"


def test_without_an_accuracy_there_is_no_plot() -> None:
    rows = build_rows([Run(name="r", records=[infer(cell())])])
    assert report_tradeoffs(rows) == {}
    rows = build_rows([Run(name="r", records=[infer(cell()), failed(training_cell("vit_micro"), "oom")])])
    assert report_tradeoffs(rows) == {}
    rows = build_rows([Run(name="r", records=[trained(training_cell("vit_micro"), 200)])])
    assert list(report_tradeoffs(rows)) == ["accuracy-params.png"]


def made_up(points: int) -> Tradeoff:
    found = [Point(f"m{i}", 1.0 + i, (0.9 + i, 1.1 + i), float(i % 40), None, i % 40 == 39, 0.5) for i in range(points)]
    return Tradeoff("latency", "accuracy against latency", "latency (ms)", "accuracy (%)", (Group("", tuple(found)),))


@pytest.mark.integration
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_plot_repeats_to_the_byte(suffix: str) -> None:
    plot = dataclasses.replace(made_up(30), chance=10.0)
    drawn = draw_tradeoff(plot, suffix)
    assert drawn.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    assert drawn == draw_tradeoff(plot, suffix)
    assert not re.search(rb"(?i)matplotlib\b[^.]|metadata|DOCTYPE", drawn)
    assert draw_tradeoff(dataclasses.replace(plot, chance=None), suffix) != drawn


@pytest.mark.integration
def test_of_very_many_points_the_fronts_and_the_most_accurate_have_names() -> None:
    plot = made_up(200)
    texts = texts_of(draw_tradeoff(plot, ".svg"))
    named = {text for text in texts if re.fullmatch(r"m\d+", text)}
    assert len(named) == 60
    assert {point.label for point in plot.groups[0].front} <= named
    assert "named: 60 of 200, fronts first" in texts
    few = plot.best(20)
    assert (len(few.points), few.left_out) == (20, 180)
    assert "shown: 20 of 200, fronts first" in texts_of(draw_tradeoff(few, ".svg"))


# the still picture


@pytest.mark.integration
def test_the_still_picture_holds_nothing_but_itself() -> None:
    hostile = 'a<script>alert(1)</script> $x$ "id=\u202e'
    run = full_run(processes=3)
    renamed = [
        dataclasses.replace(one, cell=dataclasses.replace(one.cell, model=one.cell.model.replace("vit_nano", hostile)))
        for one in run.records
    ]
    svg = still_svg([dataclasses.replace(run, records=renamed)])
    root = ET.fromstring(svg)
    assert svg == still_svg([dataclasses.replace(run, records=renamed)])
    assert len(svg.encode()) < 60_000
    assert not [name for one in root.iter() for name in one.attrib if name in ("style", "class", "onload")]
    assert {one.tag.removeprefix(SVG) for one in root.iter()} <= {
        "svg",
        "g",
        "path",
        "use",
        "defs",
        "text",
        "clipPath",
        "rect",
    }
    ids = [value for one in root.iter() if (value := one.get("id"))]
    assert len(ids) == len(set(ids))
    assert all(value.startswith("still-") for value in ids)
    targets = [one.get("href", "") for one in root.iter(f"{SVG}use")] + re.findall(r"url\((#[^)]*)\)", svg)
    assert {target.removeprefix("#") for target in targets} == set(ids)
    assert 'a<script>alert(1)</script> $x$ "id=\\u202e' in [one.text for one in root.iter(f"{SVG}text")]
    assert root.get("role") == "img"
    assert "vit_small" in root.get("aria-label", "")
    assert "<!" not in svg
    assert still_svg([Run(name="r", records=[infer(cell())])]) == ""


# the other kinds


@pytest.mark.integration
def test_each_kind_draws_what_its_tables_show() -> None:
    run = full_run()
    long = ok(cell("vit_big", 2), [*size(cell("vit_big")), *infer(cell("vit_big", 2), n=400).measurements[-2:]])
    searches = [*search(12), *search(0, model="vit_big")]
    run = dataclasses.replace(run, records=[*run.records, long, *searches])
    texts = {
        kind: texts_of(draw(kind, [run], ".svg")) for kind in ("pareto", "scaling", "limits", "spread", "training")
    }
    assert {"vit_nano, 32 px, memory limit none", "Latency over batch, with 95 % intervals", "32"} <= set(
        texts["scaling"]
    )
    assert {"12", "OOM@1"} <= set(texts["limits"])
    assert any("vit_big" in text for text in texts["spread"])
    assert {"vit_nano", "vit_small", "training loss (nat)"} <= set(texts["training"])
    assert {"vit_nano", "Pareto front (filled)"} <= set(texts["pareto"])
    assert "GFLOPs" in " ".join(texts_of(draw("pareto", [run], ".svg", x="flops")))
    assert "throughput (image/s)" in texts_of(draw("scaling", [run], ".svg", x="batch", y="throughput"))


@pytest.mark.parametrize(
    ("kind", "axes", "words"),
    [
        ("pareto", {}, "both an accuracy and latency. Give a run with trainings"),
        ("pareto", {"x": "latecy"}, "'latecy' is not one of latency, "),
        ("pareto", {"y": "accuracy"}, "--y: a pareto plot has no choice"),
        ("scaling", {}, "no model has latency at more than one batch or image_size or patches"),
        ("scaling", {"y": "speed"}, "'speed' is not one of .*latency"),
        ("scaling", {"x": "tokens"}, "'tokens' is not one of batch, image_size"),
        ("limits", {}, "No search for the largest batch.*vitbench frontier"),
        ("spread", {}, "No latency in these runs has 100 calls"),
        ("spread", {"x": "batch"}, "--x: a spread plot has no choice"),
        ("training", {}, "No training in these runs has losses"),
        ("pie", {}, "'pie' is not one of pareto, scaling"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(kind: str, axes: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        draw(kind, [run_of(infer(cell()))], ".svg", **axes)
    assert "\n" not in str(caught.value)


def test_a_cost_that_no_line_has_names_those_that_some_have() -> None:
    run = run_of(trained(training_cell("vit_micro"), 200))
    with pytest.raises(UsageError, match="an accuracy and memory. Give --x one of params, flops"):
        draw("pareto", [run], ".svg", x="memory")

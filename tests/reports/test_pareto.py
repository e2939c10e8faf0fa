"""Fronts of comparable conditions, and how probable it is that a point is on one."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import pytest

from tests.reports.fabricate import ENVIRONMENT, cell, full_run, infer, trained, training_cell
from tests.reports.paired import paired
from vitbench.core.records import Record
from vitbench.core.stats.intervals import RUN_TO_RUN
from vitbench.reports.model.lines import batch_of, lines_of
from vitbench.reports.model.pareto import Front, conditions_of, fronts
from vitbench.reports.model.rows import Row, build_rows
from vitbench.reports.model.runs import Run


def lines_at_1(*records: Record) -> list[Row]:
    runs = [Run(name="run", records=records, environment=ENVIRONMENT)]
    return [line for line in lines_of(build_rows(runs)) if batch_of(line) == 1]


def only_front(lines: list[Row], cost: str) -> Front:
    (front,) = fronts(lines, cost)
    return front


def test_what_is_clear_is_certain_and_what_is_equal_is_open() -> None:
    records = [infer(cell("vit_nano"), processes=3), infer(cell("vit_big"), processes=3)]
    lines = lines_at_1(*records, trained(training_cell("vit_nano"), 350), trained(training_cell("vit_big"), 100))
    assert [line.cell.model for line in lines] == ["vit_nano", "vit_big"]
    front = only_front(lines, "latency")
    assert front.lines == (0,)
    assert front.probability == {0: 1.0, 1: 0.0}
    lines = lines_at_1(*records, trained(training_cell("vit_nano"), 200), trained(training_cell("vit_big"), 200))
    front = only_front(lines, "params")
    assert front.lines == (0,)
    assert front.probability[0] == 1
    assert front.probability[1] == pytest.approx(0.5, abs=0.05)  # the more accurate one of two equal accuracies


def test_of_throughput_more_is_better() -> None:
    lines = lines_at_1(*full_run(processes=3).records)
    front = only_front(lines, "throughput")
    assert [lines[index].cell.model for index in front.lines] == ["vit_nano", "vit_micro", "vit_small"]
    assert fronts(lines, "relative_latency") == []


def test_lines_of_one_training_stand_and_fall_together() -> None:
    records = [infer(cell("vit_nano", attention=one)) for one in ("fused", "explicit")]
    lines = lines_at_1(*records, trained(training_cell("vit_nano", attention="fused"), 200))
    shared = [line for line in lines if line.training] * 2
    front = only_front(shared, "params")
    assert set(front.probability.values()) == {1.0}


def test_sizes_of_one_data_set_compare_but_devices_and_data_do_not() -> None:
    records = []
    for change in ({}, {"device": "cuda:0"}, {"image_size": (64, 64)}):
        records += [infer(cell(**change)), trained(training_cell("vit_micro", **change), 200)]
    records.append(trained(training_cell("vit_micro", data="cifar10"), 150))
    lines = lines_at_1(*records)
    conditions = dict(zip(conditions_of(lines, "latency"), lines, strict=True))
    assert len(lines) == 4
    assert len(conditions) == 3
    assert len(fronts(lines, "latency")) == 3


def test_batches_compare_only_by_what_does_not_depend_on_them() -> None:
    records = [infer(cell(model, batch)) for model, batch in (("vit_nano", 1), ("vit_micro", 8))]
    records += [trained(training_cell(model), correct) for model, correct in (("vit_nano", 200), ("vit_micro", 300))]
    lines = lines_of(build_rows([Run(name="run", records=records, environment=ENVIRONMENT)]))
    assert [len(front.probability) for front in fronts(lines, "latency")] == [1, 1]
    assert len(only_front(lines, "params").lines) == 2


def probability_of_the_cheaper(one: tuple[float, ...], other: tuple[float, ...], group: str = "") -> float:
    """That a less accurate model, which takes ``one`` times the reference, is cheaper than one that takes ``other``."""
    models = {"vit_nano": (one, 100), "vit_big": (other, 350)}
    records = [paired(cell(model), ratios, group=group) for model, (ratios, _) in models.items()]
    lines = lines_at_1(*records, *(trained(training_cell(model), right) for model, (_, right) in models.items()))
    front = only_front(lines, "latency")
    assert front.probability == only_front(lines, "relative_latency").probability
    return next(front.probability[i] for i, line in enumerate(lines) if line.cell.model == "vit_nano")


@pytest.mark.parametrize("slower", [0.96, 1.0, 1.04, 1.1])
def test_two_times_that_no_process_changes_differ_by_what_runs_do(slower: float) -> None:
    expected = NormalDist(0, RUN_TO_RUN * math.sqrt(2)).cdf(math.log(slower))
    assert probability_of_the_cheaper((2.0,) * 5, (2.0 * slower,) * 5) == pytest.approx(expected, abs=0.03)


def test_what_processes_of_one_group_share_cancels() -> None:
    ratios = (1.9, 2.0, 2.1, 1.95, 2.05)
    slower = tuple(1.1 * ratio for ratio in ratios)
    expected = NormalDist(0, RUN_TO_RUN * math.sqrt(2)).cdf(math.log(1.1))
    assert probability_of_the_cheaper(ratios, slower, group="g") == pytest.approx(expected, abs=0.02)
    apart = probability_of_the_cheaper(ratios, slower)
    assert 0.8 < apart < expected - 0.02
    assert apart == probability_of_the_cheaper(ratios, slower)  # the draws do not depend on chance


def test_two_accuracies_at_exact_costs_differ_as_their_test_images_do() -> None:
    records = [infer(cell("vit_nano")), infer(cell("vit_big"))]
    lines = lines_at_1(*records, trained(training_cell("vit_nano"), 200), trained(training_cell("vit_big"), 216))
    for cost in ("params", "flops"):
        front = only_front(lines, cost)
        shares = 200 / 360, 216 / 360
        spread = math.sqrt(sum(share * (1 - share) / 360 for share in shares))
        by_model = {lines[i].cell.model: one for i, one in front.probability.items()}
        expected = NormalDist(0, spread).cdf(shares[1] - shares[0])
        assert by_model == {"vit_nano": 1.0, "vit_big": pytest.approx(expected, abs=0.03)}


def test_an_accuracy_without_a_number_of_images_is_taken_as_it_is() -> None:
    def without_images(record: Record) -> Record:
        kept = tuple(one for one in record.measurements if one.metric != "test_images")
        return replace(record, measurements=kept)

    tests = [without_images(trained(training_cell(model), n)) for model, n in (("vit_nano", 200), ("vit_big", 201))]
    lines = lines_at_1(infer(cell("vit_nano")), infer(cell("vit_big")), *tests)
    assert set(only_front(lines, "params").probability.values()) == {1.0}


def test_lines_without_an_accuracy_are_no_points_and_one_point_is_a_front() -> None:
    lines = lines_at_1(infer(cell("vit_nano")), infer(cell("vit_big")), trained(training_cell("vit_big"), 9))
    front = only_front(lines, "latency")
    (index,) = front.lines
    assert front.probability == {index: 1.0}
    assert lines[index].cell.model == "vit_big"
    assert fronts(lines_at_1(infer(cell())), "latency") == []


def test_trainings_of_other_budgets_test_images_or_environments_do_not_compare() -> None:
    base = trained(training_cell("vit_nano"), 200, budget="images = 1536, not the recipe's images = 1600")
    others = [
        trained(training_cell("vit_micro"), 200, budget="images = 150000, not the recipe's epochs = 200"),
        trained(training_cell("vit_micro"), 200, total=1000, budget="images = 1536, not the recipe's epochs = 200"),
    ]
    same = trained(training_cell("vit_micro"), 200, budget="images = 1536, not the recipe's epochs = 200")
    records = infer(cell("vit_nano")), infer(cell("vit_micro"))
    assert len(fronts(lines_at_1(*records, base, same), "params")) == 1
    for other in others:
        assert len(fronts(lines_at_1(*records, base, other), "params")) == 2
    moved = replace(records[1], environment="e2")
    assert len(fronts(lines_at_1(records[0], moved, base, same), "params")) == 2

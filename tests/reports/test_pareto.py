"""Fronts of comparable conditions, and how probable it is that a point is on one."""

from __future__ import annotations

import pytest

from tests.reports.fabricate import ENVIRONMENT, cell, full_run, infer, trained, training_cell
from vitbench.core.records import Record
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
    conditions = dict(zip(conditions_of(lines), lines, strict=True))
    assert len(lines) == 4
    assert len(conditions) == 3
    assert len(fronts(lines, "latency")) == 3


def test_batches_compare_only_by_what_does_not_depend_on_them() -> None:
    records = [infer(cell(model, batch)) for model, batch in (("vit_nano", 1), ("vit_micro", 8))]
    records += [trained(training_cell(model), correct) for model, correct in (("vit_nano", 200), ("vit_micro", 300))]
    lines = lines_of(build_rows([Run(name="run", records=records, environment=ENVIRONMENT)]))
    assert [len(front.probability) for front in fronts(lines, "latency")] == [1, 1]
    assert len(only_front(lines, "params").lines) == 2

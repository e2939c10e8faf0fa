"""A metric is one file: what it declares is enough to measure it, to gate it and to show it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.metrics.test_metrics import make_subject, measured
from tests.regression.test_compare import compared, of
from tests.reports.fabricate import cell, ok
from vitbench.core.records import Measurement
from vitbench.core.registry import METRICS, Column, Yields
from vitbench.metrics import Subject
from vitbench.reports.model.columns import main_table
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run


def test_a_metric_of_one_file_is_measured_gated_and_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METRICS, "_items", dict(METRICS.items()))
    monkeypatch.setattr(METRICS, "_values", dict(METRICS.values))

    @METRICS.measured(
        "layers",
        process="static",
        modes=("infer",),
        yields=[Yields("layers", "layer", "exact", "less", gates=True, column=Column("layers", main=True))],
        summary="modules without children",
    )
    def measure_layers(subject: Subject) -> Iterator[Measurement]:
        count = sum(not list(module.children()) for module in subject.meta_model.modules())
        yield Measurement.single("layers", "layer", count, "leaves of the module tree")

    found = measured("layers", make_subject("vit_layer6_32"))["layers"]
    assert found.value is not None
    assert found.value > 6

    more = Measurement.single("layers", "layer", found.value + 1, found.method)
    before, after = ok(cell(), [found]), ok(cell(), [more])
    change = of(compared([before], [after]), "layers")
    assert (change.verdict, change.gates, change.exact) == ("worse", True, True)

    table = main_table(build_rows([Run(name="mine", records=[after])]), [], {})
    shown = dict(zip((column.name for column in table.columns), table.lines[0], strict=True))
    assert shown["layers"].number == found.value + 1

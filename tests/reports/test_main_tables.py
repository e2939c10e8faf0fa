"""What the main tables show, what they leave out, and how they name conditions."""

from __future__ import annotations

from tests.reports.fabricate import cell, failed, full_run, infer, train_step
from tests.reports.test_markdown import failing_run, varying_run
from tests.reports.test_noise import noisy_run, run_of
from vitbench.core.records import Record
from vitbench.reports.model.columns import axis_columns, main_table
from vitbench.reports.model.main_tables import MOST_COLUMNS, MainTable, failed_rows, main_tables
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tables import Column, Table


def tables_of(*records: Record) -> list[MainTable]:
    return main_tables(build_rows([run_of(*records)]), {})


def names(table: Table) -> list[str]:
    return [column.name for column in table.columns]


def test_nine_columns_and_what_they_leave_out_are_the_whole_table() -> None:
    for run in (full_run(), failing_run(), varying_run(), noisy_run()):
        for one in main_tables(build_rows([run]), {}):
            assert len(one.shown.columns) <= MOST_COLUMNS
            assert len(one.shown.lines) == len(one.left_out.lines)
    rows = build_rows([noisy_run()])
    (one,) = main_tables(rows, {})
    whole: list[Column] = [*main_table(rows, axis_columns([]), {}).columns]
    assert sorted(map(str, {*one.shown.columns, *one.left_out.columns})) == sorted(map(str, whole))
    assert names(one.left_out) == ["model", "GMACs", "rank", "status"]


def test_with_conditions_the_training_step_goes_first() -> None:
    def step(attention: str) -> list[Record]:
        return [infer(cell(attention=attention)), train_step(cell(batch=8, mode="train", attention=attention))]

    (one,) = tables_of(*step("fused"))
    assert "training step" in names(one.shown)
    (both,) = tables_of(*step("fused"), *step("explicit"))
    assert names(both.shown)[:2] == ["model", "attention"]
    assert both.usual == ()


def test_two_conditions_are_columns_and_three_share_one() -> None:
    changes = [{"attention": "explicit"}, {"seed": 7}, {"threads": 1}]
    (two,) = tables_of(infer(cell()), *(infer(cell(**change)) for change in changes[:2]))
    assert names(two.shown)[:3] == ["model", "attention", "seed"]
    (three,) = tables_of(infer(cell()), *(infer(cell(**change)) for change in changes))
    assert names(three.shown)[:2] == ["model", "conditions"]
    texts = {line[1].text for line in three.shown.lines}
    assert texts == {None, "attention explicit", "seed 7", "threads 1"}
    assert dict(three.usual) == {"attention": "fused", "seed": "0", "threads": "2"}


def test_a_condition_that_varies_elsewhere_is_said_once() -> None:
    small, big = tables_of(
        infer(cell(attention="explicit")),
        infer(cell(image_size=(48, 48))),
        infer(cell("vit_nano", image_size=(48, 48))),
    )
    assert "attention" not in names(small.shown)
    assert (small.usual, big.usual) == ((("attention", "explicit"),), (("attention", "fused"),))


def test_failures_name_their_rows() -> None:
    oom = failed(cell("vit_big", 8), "oom", "out_of_memory", "no")
    assert failed_rows(tables_of(infer(cell()), oom)) == {"OOM at batch 8": ["vit_big"]}
    elsewhere = failed(cell("vit_nano", image_size=(48, 48)), "oom", "out_of_memory", "no")
    assert failed_rows(tables_of(infer(cell()), elsewhere)) == {"OOM at batch 1": ["vit_nano, cpu 48 px"]}
    assert failed_rows(main_tables(build_rows([Run(name="r", records=[infer(cell())])]), {})) == {}

"""Lines, their columns, and the command that repeats each."""

from __future__ import annotations

import dataclasses
import shlex

from tests.reports.fabricate import cell, failed, full_run, infer, ok, size, train_step, trained, training_cell
from vitbench.core.records import Measurement, Record
from vitbench.reports.model.lines import LineColumn, batch_of, line_columns, lines_of
from vitbench.reports.model.repeat import repeat_parts
from vitbench.reports.model.rows import Row, build_rows
from vitbench.reports.model.runs import Run
from vitbench.suites.batch_search import BOUND


def lines(*runs: Run) -> list[Row]:
    return lines_of(build_rows(runs))


def of(*records: Record) -> list[Row]:
    return lines(Run(name="run", records=records))


def by_id(found: list[Row]) -> dict[str, LineColumn]:
    return {one.id: one for one in line_columns(found)}


def numbers(found: list[Row], column: str) -> list[float | None]:
    return [by_id(found)[column].value(line).number for line in found]


def commands(found: list[Row]) -> list[str]:
    return list(map("".join, repeat_parts(found)))


def test_a_line_is_a_row_at_one_batch_and_knows_what_does_not_depend_on_it() -> None:
    killed = dataclasses.replace(ok(cell(batch=32), []), status="killed")
    found = of(
        infer(cell(batch=8)), killed, train_step(cell(batch=8, mode="train")), trained(training_cell("vit_micro"), 90)
    )
    assert [batch_of(line) for line in found] == [8, 32]
    assert [[len(one) for one in (line.infer, line.train)] for line in found] == [[1, 1], [1, 0]]
    assert numbers(found, "params") == [1_213_450, 1_213_450]
    assert numbers(found, "accuracy") == [0.25, 0.25]
    assert [by_id(found)["latency"].value(line).status for line in found] == ["ok", "killed"]
    assert [line.status for line in found] == ["ok", "killed at batch 32"]


def test_a_training_alone_is_one_line_without_a_batch() -> None:
    (line,) = of(trained(training_cell("vit_micro"), 90))
    assert batch_of(line) is None
    columns = by_id([line])
    assert "batch" not in columns
    assert columns["accuracy"].value(line).number == 0.25
    assert "latency" not in columns


def test_no_lines_have_no_columns() -> None:
    assert line_columns([]) == []


def test_columns_have_the_ids_that_others_build_on() -> None:
    found = lines(full_run(processes=3))
    main = [one.id for one in line_columns(found) if one.kind == "main"]
    assert main == [
        *("params", "flops", "macs", "memory", "latency", "throughput", "accuracy", "training_memory", "training_step"),
        "status",
    ]
    conditions = [one.id for one in line_columns(found) if one.kind == "condition"]
    assert conditions == [
        *("run", "model", "device", "image_size", "batch", "dtype", "attention", "compile", "threads", "memory_limit"),
        *("classes", "weights", "data", "recipe", "training_batch", "seed"),
    ]


def test_throughput_is_that_of_the_lines_own_batch() -> None:
    found = of(infer(cell(batch=1)), infer(cell(batch=32)))
    small, large = numbers(found, "throughput")
    assert large is not None
    assert small is not None
    assert large > small


def test_conditions_that_are_numbers_sort_as_numbers() -> None:
    square = by_id(of(infer(cell(image_size=(32, 32))), infer(cell(image_size=(224, 224)))))
    assert square["image_size"].column.display.precision == "whole"
    other = of(infer(cell(image_size=(32, 32))), infer(cell(image_size=(32, 40))))
    assert [by_id(other)["image_size"].value(line).text for line in other] == ["32", "32x40"]


def test_an_option_called_like_a_column_gets_another_id() -> None:
    found = of(infer(cell(options=(("latency", "1"), ("image_size", "x")))), infer(cell("vit_nano")))
    columns = by_id(found)
    assert columns["latency"].kind == "main"
    assert sorted(columns["option_latency"].value(line).text or "" for line in found) == ["1", "default"]
    assert len(columns) == len(line_columns(found))


def test_the_method_is_the_measurements() -> None:
    found = of(infer(cell()), trained(training_cell("vit_micro"), 90))
    columns = by_id(found)
    assert columns["latency"].method(found[0]).startswith("time.perf_counter around one forward pass")
    assert columns["accuracy"].method(found[0]).startswith("top-1 on held-out")
    assert (columns["latency"].unit, columns["memory"].unit, columns["accuracy"].unit) == ("s", "byte", "1")


def test_a_command_narrows_the_suite_to_the_line() -> None:
    found = lines(full_run("a run"))
    assert commands(found)[:2] == [
        "vitbench run --suite 'a run/suite.toml' --models vit_nano --batch-sizes 1",
        "vitbench run --suite 'a run/suite.toml' --models vit_nano --batch-sizes 32",
    ]


def test_a_command_gives_what_differs_within_its_run_alone() -> None:
    explicit = [infer(cell(attention=one, seed=seed)) for one in ("fused", "explicit") for seed in (0, 1)]
    other = Run(name="b", records=[infer(cell(attention="explicit", compile=True))])
    found = lines(Run(name="a", records=explicit), other)
    options = {one.partition(" --models ")[2] for one in commands(found)}
    assert options == {
        "vit_micro --batch-sizes 1",
        *(
            f"vit_micro --batch-sizes 1 --attention {one} --seed {seed}"
            for one in ("fused", "explicit")
            for seed in (0, 1)
        ),
    }


def test_a_search_is_repeated_whole() -> None:
    bound = Measurement.single(BOUND, "image", 8, "doubling")
    records = [ok(cell(batch=batch, mode=mode), [bound]) for batch in (1, 2) for mode in ("infer", "train")]
    options = [one.partition(" --models ")[2] for one in commands(of(*records, ok(cell(batch=4), [bound])))]
    assert options == ["vit_micro --modes infer,train"] * 2 + ["vit_micro --modes infer"]


def test_a_command_takes_names_as_they_are() -> None:
    name = "a'; rm -rf ~ #$(x)"
    (command,) = commands(of(infer(cell(name))))
    assert shlex.split(command)[5] == name


def test_a_failed_cell_shows_its_status_in_each_column() -> None:
    found = of(infer(cell(batch=1)), failed(cell(batch=32), "oom", "out_of_memory", "no memory"))
    for column in ("latency", "memory", "throughput"):
        assert by_id(found)[column].value(found[1]).status == "oom"
    assert size(cell())[0].value == numbers(found, "params")[1]

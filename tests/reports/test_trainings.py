"""The section on trainings by several recipes: what stands beside what, and what never passes for repetitions."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import pandas as pd
import pytest

from tests.reports.fabricate import ENVIRONMENT, cell, failed, infer, trained, training_cell
from tests.reports.paired import section
from vitbench.core.records import Measurement, Record
from vitbench.core.stats.estimates import BY_CLASS_KIND
from vitbench.reports.markdown.page import render_markdown
from vitbench.reports.markdown.tables import paragraph_text, table_text
from vitbench.reports.model.rows import Row, build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tables import Table
from vitbench.reports.model.values import value_of
from vitbench.reports.sections import Section, training_parts
from vitbench.reports.table import render_csv, tidy_frame
from vitbench.reports.terminal import render_terminal
from vitbench.training.recipes import load_recipe

Golden = Callable[[str, str], None]

CLASSES = "airplane, car|truck, bird"
SHORTENED = "images = 12800, not the recipe's epochs = 100"


def recipe_run(recipe: str, correct: int, *, model: str = "cifar_vit_base", **changes: object) -> Record:
    """A training on CIFAR-10 by a built-in recipe, shortened unless ``recipe_hash`` is given."""
    fields = {
        "weights": f"train:{recipe}",
        "recipe_hash": f"{correct:x}".ljust(16, "0"),
        "data": "cifar10",
        "batch": 128,
        **changes,
    }
    own = fields["recipe_hash"] == load_recipe(recipe).hash
    f1 = (correct / 1000, correct / 1000 - 0.1, 0.0)
    budget = "the recipe's own: epochs = 100" if own else SHORTENED
    return trained(training_cell(model, **fields), correct, 1000, f1=f1, names=CLASSES, budget=budget)


def imbalance_run() -> Run:
    treatments = {"baseline": 612, "sampler": 655, "weights": 648, "both": 661}
    records = [infer(cell("cifar_vit_base"))]
    records += [recipe_run(f"cifar-vit-base-imbalanced-{name}", correct) for name, correct in treatments.items()]
    whole = "cifar-vit-base"
    records.append(recipe_run(whole, 850, recipe_hash=load_recipe(whole).hash))
    records.append(
        failed(training_cell("vit_micro", recipe_hash="ff", data="cifar10", seed=3), "oom", "out_of_memory", "no")
    )
    return Run(name="imbalance", records=records, environment=ENVIRONMENT)


def training_section(runs: list[Run]) -> list[str]:
    """The texts of the section, each of its headings before what is under it."""

    def texts(title: str, parts: tuple[Table | str | Section, ...]) -> list[str]:
        found = [title]
        for part in parts:
            if isinstance(part, Section):
                found += texts(f"### {part.title}", part.parts)
            else:
                found.append(paragraph_text(part) if isinstance(part, str) else table_text(part))
        return found

    parts = training_parts(runs)
    return texts("## Training", parts) if parts else []


def line_of(text: str, *words: str) -> list[str]:
    """The cells of the first line of a table that holds all of ``words``."""
    (line, *_) = [one for one in text.splitlines() if one.startswith("|") and all(word in one for word in words)]
    return [one.strip() for one in line.replace("\\|", "\0").strip("|").split("|")]


def test_the_whole_page(golden: Golden) -> None:
    golden("imbalance.md", render_markdown([imbalance_run()]))


def test_one_recipe_needs_no_section_unless_it_has_more_to_tell() -> None:
    def has_section(*more: Record) -> bool:
        records = [trained(training_cell("vit_micro"), 180), trained(training_cell("vit_nano"), 190), *more]
        run = Run(name="r", records=records)
        assert bool(section(render_markdown([run]), "Trainings in detail")) == bool(training_section([run]))
        return bool(training_section([run]))

    assert not has_section()
    assert has_section(trained(training_cell("vit_nano", weights="train:other"), 190))
    assert has_section(trained(training_cell("vit_small"), 190, f1=(0.5, 0.6)))


def test_one_training_stands_beside_what_was_published_of_it() -> None:
    """What ``--suite balanced --models cifar_vit_base``, a ladder's part, or an interrupted run has."""
    run = Run(name="r", records=[recipe_run("cifar-vit-base", 850)])
    section = "\n".join(training_section([run]))
    assert "85.2 %; .851 (macro F1)" in section
    assert "### Recall by class" in section
    assert "\nTraining\n" in render_terminal([run], 100)
    failing = failed(training_cell("cifar_vit_base", weights="train:cifar-vit-base"), "error", "diverged")
    assert "85.2 %" in training_section([Run(name="r", records=[failing])])[2]


def test_published_values_are_not_mentioned_where_there_are_none() -> None:
    run = Run(name="r", records=[trained(training_cell("vit_micro"), 180, f1=(0.5, 0.6))])
    assert "Published: " not in training_section([run])[1]
    assert "Published: " in training_section([imbalance_run()])[1]
    assert "\nTraining\n" not in render_terminal([run], 100)  # the main tables have the accuracy


@pytest.mark.parametrize("count", [16, 17])
def test_the_classes_of_many_trainings_are_left_to_the_records(count: int) -> None:
    records = [trained(training_cell("vit_micro", seed=seed), 180, f1=(0.5, 0.6)) for seed in range(count)]
    section = training_section([Run(name="r", records=[*records, trained(training_cell("vit_nano"), 190)])])
    assert len(section[2].splitlines()) == 2 + count + 1
    if count == 16:
        assert section[3::2] == ["### F1 by class", "### Precision by class", "### Recall by class"]
    else:
        assert section[3:] == [
            "F1, precision and recall by class of 17 trainings are in the records (`class_f1`, `class_precision`, "
            "`class_recall`)."
        ]


def test_trainings_stand_in_the_order_of_the_suite_with_what_was_published_beside_them() -> None:
    section = "\n".join(training_section([imbalance_run()]))
    trainings = [line for line in section.split("### F1")[0].splitlines() if line.startswith("| cifar_vit_base ")]
    assert [line.split("|")[2].strip().rpartition("-")[2] for line in trainings] == [
        *("baseline", "sampler", "weights", "both", "base")
    ]
    sampler = line_of(section, "imbalanced-sampler", "[")
    assert "81.5 %; .768 (macro F1)" in sampler
    assert "65.5 [62.5, 68.4]" in sampler
    assert SHORTENED in sampler
    assert "85.2 %; .851 (macro F1)" in line_of(section, "| cifar-vit-base ", "[")
    assert "the recipe's own: epochs = 100" in line_of(section, "| cifar-vit-base ", "[")


def test_a_training_that_failed_keeps_its_line() -> None:
    line = line_of("\n".join(training_section([imbalance_run()])), "vit_micro")
    assert "OOM" in line


def test_published_figures_of_other_data_name_theirs() -> None:
    record = recipe_run("cifar-vit-base-imbalanced-both", 700, data="folder:few:0123")
    other = recipe_run("cifar-vit-base-imbalanced-weights", 700, data="folder:few:0123")
    assert (
        "82.1 % (cifar10); .775 (macro F1) (cifar10)" in training_section([Run(name="r", records=[record, other])])[2]
    )


def test_published_figures_name_what_else_they_need() -> None:
    fields = {"weights": "train:paper-replicating", "num_classes": 3}
    records = [
        trained(training_cell("vit_b16_transfer", **fields, data=data), 70, 75)
        for data in ("folder:Pizza_Steak_Sushi:01234567", "folder:cars:01234567")
    ]
    table = training_section([Run(name="r", records=[*records, recipe_run("cifar-vit-base", 700)])])[2]
    assert "about 0.95 accuracy (from published weights)" in line_of(table, "Pizza")
    assert "about 0.95 accuracy (pizza-steak-sushi, from published weights)" in line_of(table, "cars")


def test_what_else_varies_is_a_column() -> None:
    records = [
        recipe_run("cifar-vit-base", 700 + seed, seed=seed, options=(("train_images", "500"),) if seed else ())
        for seed in (0, 1)
    ]
    (table,) = training_section([Run(name="r", records=records)])[2:3]
    headings = [one.strip() for one in table.splitlines()[0].strip("|").split("|")]
    assert headings[2:5] == ["seed", "train_images", "recipe hash"]
    assert [line_of(table, text)[3] for text in ("70.0", "70.1")] == ["default", "500"]


def test_classes_are_columns_and_names_are_escaped() -> None:
    section = training_section([imbalance_run()])
    table = section[section.index("### F1 by class") + 1]
    assert line_of(table, "airplane")[3:] == ["airplane", "car\0truck", "bird"]
    assert line_of(table, "imbalanced-both")[3:] == ["0.661", "0.561", "0.000"]
    table = section[section.index("### Precision by class") + 1]
    assert line_of(table, "imbalanced-both")[3:] == ["0.494", "0.390", "0.000"]
    table = section[section.index("### Recall by class") + 1]
    assert line_of(table, "imbalanced-both")[3:] == ["1.000", "1.000", "0.000"]


def test_names_that_do_not_fit_become_numbers_and_many_classes_no_table() -> None:
    def section(f1: tuple[float, ...], names: str) -> str:
        records = [
            trained(training_cell("vit_micro", weights=f"train:{name}"), 180, f1=f1, names=names) for name in "ab"
        ]
        found = training_section([Run(name="r", records=records)])
        return found[found.index("### F1 by class") + 1]

    assert line_of(section((0.5, 0.6), "a, b, c"), "model", "0")[2:] == ["0", "1"]
    assert "F1 of each of the 100 classes is in the records" in section((0.5,) * 100, ", ".join("x" * 100))


def test_one_value_a_class_is_no_sample_of_repetitions() -> None:
    record = recipe_run("cifar-vit-base", 900)
    estimate = value_of(record, "class_f1").estimate
    assert estimate is not None
    assert (estimate.low, estimate.high, estimate.kind) == (None, None, BY_CLASS_KIND)
    assert estimate.value == pytest.approx((0.9 + 0.8 + 0.0) / 3)
    frame = tidy_frame([Run(name="r", records=[record])])
    row = frame[frame.metric == "class_f1"].iloc[0]
    assert row["interval_kind"] == BY_CLASS_KIND
    assert pd.isna(row["low"])
    assert (row["n_left_out"], row["n_samples"]) == (0, 3)
    assert row["samples"] == ((0.9, 0.8, 0.0),)
    assert row["detail"] == CLASSES


def test_classes_without_images_stand_beside_macro_f1_and_the_mean_of_the_others_has_a_column() -> None:
    record = recipe_run("cifar-vit-base", 900)
    lacking = (
        Measurement.single("classes_without_images", "1", 4, "of 10 classes"),
        Measurement.single("macro_f1_present", "1", 1.0, "mean over the 6 classes in labels or predictions of F1"),
    )
    tested = dataclasses.replace(record, measurements=(*record.measurements, *lacking))
    run = Run(name="r", records=[infer(cell("cifar_vit_base")), tested])
    table = training_section([run])[2]
    line = line_of(table, "| cifar")
    headings = line_of(table, "| model")
    assert line[headings.index("macro F1")].endswith(" (4 classes without images)")
    assert line[headings.index("macro F1 of classes present")] == "1.000"
    details = section(render_markdown([run]), "Details")
    assert line_of(details, "cifar")[line_of(details, "model").index("macro F1 of classes present")] == "1.00"
    assert "classes present" not in training_section([Run(name="r", records=[record])])[2]


def test_macro_f1_is_a_column_of_the_csv_and_of_the_details() -> None:
    run = Run(name="r", records=[infer(cell("cifar_vit_base")), recipe_run("cifar-vit-base", 900)])
    table = pd.read_csv(io.StringIO(render_csv([run])))
    assert table["macro_f1"].tolist() == [pytest.approx(1.7 / 3)]
    assert table["macro_f1_status"].tolist() == ["ok"]
    assert not [name for name in table if name.startswith("class_")]
    details = section(render_markdown([run]), "Details")
    assert line_of(details, "cifar")[line_of(details, "model").index("macro F1")] == "0.567"


def test_a_training_on_fewer_images_joins_the_timed_row_and_says_so() -> None:
    timed = [infer(cell("vit_micro")), infer(cell("vit_micro", attention="explicit"))]
    test = trained(training_cell("vit_micro", options=(("train_images", "100"),)), 180)
    rows = build_rows([Run(name="r", records=[*timed, test])])
    (row,) = [one for one in rows if one.training is not None]
    assert isinstance(row, Row)
    assert row.cell.attention == "fused"
    assert row.infer
    assert row.axes["train_images"] == "100"


def test_records_without_a_budget_are_told_by_their_recipe() -> None:
    def budget(recipe: str, recipe_hash: str) -> str:
        of = training_cell("vit_micro", weights=f"train:{recipe}", recipe_hash=recipe_hash)
        records = [trained(of, 100), trained(training_cell("vit_micro", weights="train:other"), 100)]
        return line_of(training_section([Run(name="r", records=records)])[2], f"| {recipe} ")[-1]

    assert budget("brief", load_recipe("brief").hash) == "the recipe's own"
    assert budget("brief", "0123") == "not the recipe's own"
    assert budget("mine", "0123") == "–"


def test_the_terminal_shows_the_trainings_too() -> None:
    assert "\nTraining\n" in render_terminal([imbalance_run()], 100)
    assert "F1 by class" not in render_terminal([imbalance_run()], 100)


def test_a_measurement_without_values_is_no_line_of_the_class_table() -> None:
    record = recipe_run("cifar-vit-base", 900)
    absent = Measurement.absent("class_f1", "1", "error", "broken")
    kept = tuple(one for one in record.measurements if one.metric != "class_f1")
    broken = dataclasses.replace(record, measurements=(*kept, absent))
    other = recipe_run("cifar-vit-base-ablation-none", 800)
    section = training_section([Run(name="r", records=[broken, other])])
    table = section[section.index("### F1 by class") + 1]
    assert len(table.splitlines()) == 3

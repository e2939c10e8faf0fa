"""In short: the best of each condition with ties named as ties, what fits, what failed, what the noise hides."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.reports.fabricate import ENVIRONMENT, cell, failed, infer, trained, training_cell
from tests.reports.paired import check, paired
from vitbench.core.records import Record
from vitbench.reports.model.environments import environment_table
from vitbench.reports.model.runs import Run
from vitbench.reports.verdict import verdict


def run_of(*records: Record, name: str = "run") -> Run:
    return Run(name=name, records=records, environment=ENVIRONMENT)


def in_short(*records: Record) -> str:
    return " ".join(verdict([run_of(*records)]).texts)


@pytest.mark.parametrize(
    ("right", "tie"),
    [((324, 324), True), ((324, 310), True), ((324, 290), False), ((0, 0), True), ((360, 340), False)],
)
def test_accuracies_tie_unless_newcombes_interval_excludes_0(right: tuple[int, int], tie: bool) -> None:
    """Of 360 images each: 324 and 310 right differ by 3.9 points, less than Newcombe's half width of 4.8."""
    models = "vit_nano", "vit_micro"
    records = [infer(cell(model)) for model in models]
    found = in_short(*records, *(trained(training_cell(model), one) for model, one in zip(models, right, strict=True)))
    assert ("ost accurate: vit_nano and vit_micro tie, " in found) is tie
    assert tie or re.search("Most accurate[^:.]*: vit_nano, ", found)


def test_times_tie_within_the_noise_floor_alone() -> None:
    records = [paired(cell("vit_nano"), (1.0,) * 5), paired(cell("vit_micro"), (1.02,) * 5)]
    assert "Fastest and smallest: vit_nano, " in in_short(*records)
    noisy = replace(run_of(*records), noise=tuple(check(ratio) for ratio in (0.95, 1.0, 1.06)))
    found = verdict([noisy])
    assert any("Fastest: vit_nano and vit_micro tie, " in text for text in found.texts)
    assert any("are ties" in text for text in found.texts)
    assert "noise floor" in [name for _, name in found.facts]


def test_failures_are_counted_by_status_as_badges() -> None:
    records = [infer(cell("vit_nano")), *(failed(cell("vit_big", n), "oom") for n in (1, 8))]
    records.append(failed(cell("vit_micro"), "timeout"))
    found = verdict([run_of(*records)])
    badges = [span.text for sentence in found.sentences for span in sentence if span.kind == "failure"]
    assert badges == ["2 OOM", "1 timeout"]
    assert ("3", "failed") in found.facts


def test_many_conditions_take_few_sentences() -> None:
    sizes = [(32 * n, 32 * n) for n in range(1, 9)]
    records = [infer(cell(model, image_size=size)) for size in sizes for model in ("vit_nano", "vit_big")]
    found = verdict([run_of(*records)])
    assert len(found.sentences) <= 6
    assert "5 more conditions are in the table." in found.texts


def test_runs_are_never_compared_with_each_other() -> None:
    runs = [run_of(infer(cell(model)), name=model) for model in ("vit_nano", "vit_big")]
    assert not any("fastest" in text or "smallest" in text for text in verdict(runs).texts)


def test_nothing_measured_has_no_facts() -> None:
    found = verdict([run_of()])
    assert (found.sentences, found.facts) == ((), ())


def test_environments_that_differ_come_first_without_paths() -> None:
    other = {**ENVIRONMENT, "environments": {"e1": {"system": {"cpu": "Another CPU", "os": "Linux 6.1"}}}}
    runs = [run_of(infer(cell())), replace(run_of(infer(cell()), name="second"), environment=other)]
    table = environment_table(runs)
    assert table is not None
    assert [column.name for column in table.columns] == ["fact", "run", "second"]
    facts = {line[0].text: (line[1].text, line[2].text) for line in table.lines}
    differ = [one != two for one, two in facts.values()]
    assert differ == sorted(differ, reverse=True)
    assert facts["CPU"] == ("Example CPU @ 2.50GHz", "Another CPU")
    assert facts["torch"] == ("2.15.0", None)
    assert facts["system"] == ("Linux 6.1", "Linux 6.1")
    assert "somebody" not in str(facts)
    assert "vitbench run --suite lightweight" in str(facts["command"])

"""Judged claims as a reader sees them: the table, its units, the counts, and their section in the report of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.reports.fabricate import MODELS, cell, full_run, infer, ok, write_run
from tests.reports.paired import section
from vitbench.analysis.claims import Judgement, Verdict, count_by_formula, judge_card
from vitbench.core.errors import RunFolderError
from vitbench.core.records import Measurement, Record
from vitbench.models.cards import Claim, load_model_cards
from vitbench.reports import write_report
from vitbench.reports.explanations import CLAIMS
from vitbench.reports.format import NOT_ASKED
from vitbench.reports.markdown.claims import claims_page, write_claims
from vitbench.reports.markdown.page import render_markdown
from vitbench.reports.markdown.tables import table_text
from vitbench.reports.model.claims import claims_table, computed_value, count_verdicts, quantity_text
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tables import Column, Display
from vitbench.reports.value_text import value_text

CARDS = {card.name: card for card in load_model_cards()}
HEADING = "Published values"
COLUMNS = ["model", "quantity", "published", "computed", "difference (%)", "verdict", "how, or why not", "source"]


def claims_text(judgements: Sequence[Judgement]) -> str:
    return table_text(claims_table(judgements))


def judgement(
    quantity: str = "params", verdict: Verdict = "agrees", computed: float | None = 1.0, **claim: str
) -> Judgement:
    texts = {"printed": "printed 1", "source": "a README", **claim}
    published = Claim(quantity=quantity, value=1.0, **texts)  # type: ignore[arg-type]
    difference = None if computed is None else 0.5
    return Judgement(
        model="vit_micro", claim=published, verdict=verdict, computed=computed, difference=difference, reason="because"
    )


def rows_of(table: str) -> list[dict[str, str]]:
    """The lines of a Markdown table by the heading of their cells."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    cells = [[text.strip() for text in line.replace("\\|", "\0").strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


# Texts


@pytest.mark.parametrize(
    ("quantity", "condition", "text"),
    [
        ("params", "", "parameters"),
        ("flops", "", "FLOPs"),
        ("top1", "imbalanced, baseline", "top-1 (imbalanced, baseline)"),
        ("macro_f1", "", "macro F1"),
        ("loss", "", "loss"),
        ("latency", "batch 1", "latency (batch 1)"),
        ("training_time", "", "training time"),
        ("params_change_vs:cifar_vit_base", "", "parameters against cifar_vit_base"),
        ("flops_change_vs:timm:deit_small_patch16_224", "", "FLOPs against timm:deit_small_patch16_224"),
    ],
)
def test_a_quantity_is_named_in_words(quantity: str, condition: str, text: str) -> None:
    assert quantity_text(judgement(quantity, condition=condition)) == text


@pytest.mark.parametrize(
    ("quantity", "verdict", "computed", "text"),
    [
        ("params", "contradicted", 21_342_346, "21.34 M"),
        ("params", "agrees", 86_567_656, "86.57 M"),
        ("params", "agrees", 40, "40"),
        ("params", "agrees", 12_345, "12,345"),
        ("flops", "contradicted", 1_034_690_304, "1.03 GFLOPs"),
        ("flops", "agrees as multiply-adds", 1_254_370_304, "1.25 GMACs"),
        ("flops", "agrees", 2.9e9, "2.90 GFLOPs"),
        ("latency", "contradicted", 0.01234, "12.3 ms"),
        ("top1", "agrees", 0.8, "80.0 %"),
        ("macro_f1", "agrees", 0.7712, "0.7712"),
        ("loss", "contradicted", 0.51, "0.5100"),
        ("params_change_vs:cifar_vit_base", "contradicted", -0.5298, "-53.0 %"),
        ("flops_change_vs:cifar_vit_base", "contradicted", 0.27, "+27.0 %"),
        ("params", "not checkable here", None, NOT_ASKED),
    ],
)
def test_a_computed_figure_has_its_unit(quantity: str, verdict: Verdict, computed: float | None, text: str) -> None:
    value = computed_value(judgement(quantity, verdict, computed))
    assert value_text(value, Column(name="computed", display=Display())) == text


def test_verdicts_are_counted_in_a_fixed_order() -> None:
    verdicts: list[Verdict] = [
        "not checkable here",
        "contradicted",
        "agrees as multiply-adds",
        "contradicted",
        "agrees",
        "not checkable here",
        "not checkable here",
    ]
    counts = "1 agrees, 1 agrees as multiply-adds, 2 contradicted, 3 not checkable here"
    judged = [judgement(verdict=verdict) for verdict in verdicts]
    assert count_verdicts(judged) == count_verdicts(judged[::-1]) == counts
    assert count_verdicts(judged[1:2]) == "1 contradicted"  # none of a kind is left out
    assert count_verdicts([]) == ""


# The table


def test_the_table_of_the_lightweight_vit_is_what_was_computed_by_hand() -> None:
    rows = rows_of(claims_text(judge_card(CARDS["cifar_lightweight_vit"], count_by_formula)))
    assert all(list(row) == COLUMNS for row in rows)
    assert {row["model"] for row in rows} == {"cifar_lightweight_vit"}
    shown = [(r["quantity"], r["published"], r["computed"], r["difference (%)"], r["verdict"]) for r in rows]
    assert shown == [
        ("parameters", "4.8M", "8.924 M", "+85.9", "contradicted"),
        ("FLOPs", "0.5 GFLOPs", "0.596 GMACs", "+19.1", "agrees as multiply-adds"),
        ("top-1", "82.5 %", NOT_ASKED, NOT_ASKED, "not checkable here"),
        ("latency", "8.2 ms", NOT_ASKED, NOT_ASKED, "not checkable here"),
        ("parameters against cifar_vit_base", "-44 % params", "-53.0 %", "-9.0 points", "contradicted"),
        ("FLOPs against cifar_vit_base", "-58 % FLOPs", "-52.5 %", "+5.5 points", "contradicted"),
    ]
    assert {row["source"] for row in rows} == {"CIFAR-ViT README"}


def test_every_claim_of_every_card_is_a_line_of_the_table() -> None:
    judged = [one for card in CARDS.values() for one in judge_card(card, count_by_formula)]
    rows = rows_of(claims_text(judged))
    assert len(rows) == len(judged) == sum(len(card.claims) for card in CARDS.values())
    assert [row["verdict"] for row in rows] == [one.verdict for one in judged]
    assert all(text for row in rows for text in row.values())


def test_signs_of_markdown_in_a_source_stay_text() -> None:
    (row,) = rows_of(claims_text([judgement(printed="1 | *2*", source="README & <notes>")]))
    assert row["published"] == "1 \0 \\*2\\*"
    assert row["source"] == "README &amp; &lt;notes&gt;"


def test_the_page_says_how_to_read_it() -> None:
    page = claims_page([judgement(), judgement(verdict="contradicted")])
    assert page.startswith("# Published values against computed ones\n\n2 claims: 1 agrees, 1 contradicted.\n\n")
    assert CLAIMS in page
    assert len(rows_of(page)) == 2
    assert page.endswith("|\n")


def test_what_is_written_is_the_page_and_its_data(tmp_path: Path) -> None:
    judged = judge_card(CARDS["vit_smaller"], count_by_formula)
    paths = write_claims(judged, tmp_path / "new")
    assert {path.name for path in paths} == {"claims.md", "claims.json"}
    assert (tmp_path / "new" / "claims.md").read_text(encoding="utf-8") == claims_page(judged)
    data = json.loads((tmp_path / "new" / "claims.json").read_text(encoding="utf-8"))
    assert [(one["claimed"], one["verdict"]) for one in data] == [
        (21e6, "contradicted"),
        (0.6451, "not checkable here"),
        (1.0288, "not checkable here"),
    ]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("important")
    with pytest.raises(RunFolderError, match="Cannot write into"):
        write_claims([judgement()], tmp_path / "results")


# The report of a run


VIT_B_16 = "torchvision:vit_b_16"
SOURCE = "torchvision 0.30, ViT_B_16_Weights.IMAGENET1K_V1"
PUBLISHED = [
    Measurement.single("published_params", "parameter", 86_567_656, SOURCE, "86,567,656 params"),
    Measurement.single("published_flops", "FLOP", 17.564e9, SOURCE, "17.564 GFLOPS"),
    Measurement.single("published_top1", "1", 0.81072, SOURCE, "81.072 %"),
]


@pytest.fixture
def known_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, and FLOPs at 32 px, for the names that the records below bear."""
    monkeypatch.setitem(MODELS, "cifar_lightweight_vit", (8_923_786, 1_191_161_856))
    monkeypatch.setitem(MODELS, "vit_tiny16", (5_717_800, 51_000_000))
    monkeypatch.setitem(MODELS, VIT_B_16, (86_567_656, 35_127_656_448 // 49))  # times 49 at 224 px


def vit_b_16(*published: Measurement) -> Record:
    return infer(cell(VIT_B_16, 1, image_size=(224, 224), num_classes=1000), extra=published)


@pytest.mark.usefixtures("known_sizes")
def test_the_report_of_a_run_has_the_published_figures_of_its_models() -> None:
    records = [infer(cell("cifar_lightweight_vit", batch)) for batch in (1, 32)] + [infer(cell("vit_micro"))]
    page = render_markdown([Run(name="r", records=records)])
    text = section(page, HEADING)
    assert "1 agrees as multiply-adds, 3 contradicted, 2 not checkable here. " in text
    assert CLAIMS in text
    rows = rows_of(text)
    assert [row["model"] for row in rows] == ["cifar_lightweight_vit"] * 6
    assert rows[4]["computed"] == "-53.0 %"
    assert page.index("<details>") < page.index(HEADING) < page.index("How to read the tables")


@pytest.mark.usefixtures("known_sizes")
def test_the_report_judges_what_a_library_publishes_by_the_runs_own_counts() -> None:
    page = render_markdown([Run(name="r", records=[vit_b_16(*PUBLISHED)])])
    rows = rows_of(section(page, HEADING))
    assert [(row["quantity"], row["published"], row["verdict"]) for row in rows] == [
        ("parameters", "86,567,656 params", "agrees"),
        ("FLOPs", "17.564 GFLOPS", "agrees as multiply-adds"),
        ("top-1", "81.072 %", "not checkable here"),
    ]
    assert {row["source"] for row in rows} == {SOURCE}
    assert all("at 224 px, 1000 classes" in row["how, or why not"] for row in rows[:2])


@pytest.mark.usefixtures("known_sizes")
def test_published_figures_are_no_method_of_a_measurement() -> None:
    page = render_markdown([Run(name="r", records=[vit_b_16(*PUBLISHED)])])
    methods = section(page, "Methods")
    assert "published_" not in methods
    assert SOURCE not in methods


@pytest.mark.usefixtures("known_sizes")
@pytest.mark.parametrize("model", [VIT_B_16, "vit_tiny16", "vit_micro"])
def test_a_run_whose_models_have_no_claims_has_no_such_section(model: str) -> None:
    """A library's model without the metric ``published``, one of ours, and one that is nobody's."""
    assert HEADING not in render_markdown([Run(name="r", records=[infer(cell(model))])])


def test_a_run_that_measured_nothing_has_no_such_section() -> None:
    assert HEADING not in render_markdown([Run(name="r", records=[])])
    assert HEADING not in render_markdown([full_run()])


def test_a_published_figure_that_failed_is_no_claim() -> None:
    absent = Measurement.absent("published_params", "parameter", "error", "the library broke")
    record = ok(cell(VIT_B_16, 1, image_size=(224, 224), num_classes=1000), [absent])
    assert HEADING not in render_markdown([Run(name="r", records=[record])])


@pytest.mark.usefixtures("known_sizes")
def test_two_runs_of_a_model_give_each_claim_once() -> None:
    runs = [Run(name=name, records=[infer(cell("cifar_lightweight_vit"))]) for name in ("one", "two")]
    assert len(rows_of(section(render_markdown(runs), HEADING))) == 6


@pytest.mark.usefixtures("known_sizes")
def test_our_claims_and_a_librarys_stand_in_one_table() -> None:
    records = [infer(cell("cifar_lightweight_vit")), vit_b_16(*PUBLISHED)]
    assert len(rows_of(section(render_markdown([Run(name="run", records=records)]), HEADING))) == 9


@pytest.mark.usefixtures("known_sizes")
def test_published_figures_stay_out_of_the_columns_of_measurements(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", Run(name="run", records=[vit_b_16(*PUBLISHED)]))
    write_report([folder], folder)
    page = (folder / "report.md").read_text(encoding="utf-8")
    headings = [line for line in page.split(HEADING)[0].splitlines() if line.startswith("| model")]
    assert headings
    assert all("published" not in line for line in headings)

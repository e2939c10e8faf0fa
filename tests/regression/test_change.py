"""What people and machines read of a gate: the table, the comment, JSON, JUnit XML, and the exit code."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.reports.paired import tables
from vitbench.commands.output import GateOutput, choose_output, publish
from vitbench.core.errors import RunFolderError, UsageError
from vitbench.regression.change import FINE, INCONCLUSIVE, REGRESSION, Change, exit_code
from vitbench.regression.change_text import (
    LONGEST_COMMENT,
    changes_json,
    changes_junit,
    changes_markdown,
    changes_table,
    difference,
    headline,
)

CELL = "vit_basic 32px b1 cpu fp32 infer"


def change(verdict: str = "worse", **fields: Any) -> Change:
    given: dict[str, Any] = {
        "cell": CELL,
        "metric": "params",
        "unit": "parameter",
        "base": 5_717_416,
        "head": 5_717_417,
        "verdict": verdict,
        "exact": True,
        **fields,
    }
    return Change(**given)


def test_an_output_that_may_not_be_looked_at_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(UsageError, match=r"--markdown: 'x/a.md' cannot be written: Permission denied"):
        choose_output("x/a.md", None, None)


def timing(verdict: str = "worse", **fields: Any) -> Change:
    given: dict[str, Any] = {
        "metric": "relative_latency",
        "unit": "× reference",
        "base": 2.0,
        "head": 3.0,
        "ratio": 1.5,
        "low": 1.31,
        "high": 1.72,
        "exact": False,
        **fields,
    }
    return change(verdict, **given)


HOSTILE = "a|b `c` <img src=x> [d](https://evil.example) @everyone #12 \x1b[31m\x00 www.evil.example /home/joe/m.py"


def test_exit_codes_follow_what_gates() -> None:
    assert exit_code([]) == FINE
    assert exit_code([change("better"), change("same"), change("not comparable")], inconclusive_fails=True) == FINE
    assert exit_code([change("worse", gates=False)]) == FINE
    assert exit_code([timing("inconclusive")]) == FINE
    assert exit_code([timing("inconclusive")], inconclusive_fails=True) == INCONCLUSIVE
    assert exit_code([timing("inconclusive"), change("worse")], inconclusive_fails=True) == REGRESSION


def test_an_exact_figure_is_shown_to_the_unit() -> None:
    assert difference(change()) == "5,717,416 -> 5,717,417 (+1)"
    assert difference(change(base=1e9, head=2e9, unit="FLOP")) == (
        "1,000,000,000 FLOP -> 2,000,000,000 FLOP (+1,000,000,000, +100.0 %)"
    )
    assert difference(change(base=0, head=7)) == "0 -> 7 (+7)"
    assert difference(change(base="ok", head="OOM", unit="", metric="status")) == "ok -> OOM"


def test_a_measured_figure_is_scaled_and_has_its_interval() -> None:
    assert difference(timing()) == "2.000 × reference -> 3.000 × reference (+50.0 % [+31.0, +72.0])"
    absolute = timing(metric="latency", unit="s", base=0.0123, head=0.0000456, ratio=0.0037, low=None, high=None)
    assert difference(absolute) == "12.30 ms -> 45.60 µs (-99.6 %)"
    assert difference(timing(metric="m", unit="byte", base=2.5e9, head=None, ratio=None)) == "2.500 GB -> –"


def test_what_is_not_finite_is_shown_and_is_null_in_json() -> None:
    odd = timing(base=math.inf, head=math.nan, ratio=math.nan)
    assert "inf" in changes_table([odd])
    (kept,) = json.loads(changes_json([odd]))["changes"]
    assert kept["base"] is None
    assert kept["ratio"] is None


def test_the_headline_counts_what_gates() -> None:
    assert headline([]) == "Nothing was gated."
    assert headline([change("worse", gates=False)]) == "Nothing was gated."
    assert headline([change("same")]) == "No regression: none of 1 gated value is worse (1 same)."
    both = [change("worse"), timing("inconclusive"), change("better"), change("worse")]
    assert headline(both) == "Regression: 2 of 4 gated values are worse (1 better, 1 inconclusive)."


def test_exact_figures_come_first_and_the_worst_of_them_foremost() -> None:
    found = [
        timing("worse"),
        change("better", metric="flops"),
        change("worse", metric="macs"),
        change("worse", metric="extra", gates=False),
    ]
    lines = [line for line in changes_table(found).splitlines() if CELL in line]
    assert [line.removeprefix(CELL).split()[0] for line in lines] == ["macs", "flops", "relative_latency", "extra"]
    assert "worse (not gated)" in lines[-1]


def test_what_is_the_same_is_counted_and_listed_only_on_request() -> None:
    found = [change("same", metric="flops"), change("same", metric="macs"), timing("not comparable", gates=False)]
    short = changes_table(found)
    assert "flops" not in short
    assert "2 values are the same" in short
    assert "1 value is for information only" in short
    whole = changes_table(found, everything=True)
    assert all(name in whole for name in ("flops", "macs", "relative_latency"))
    assert "the same" not in whole.splitlines()[-1]


def test_many_that_cannot_be_compared_for_one_reason_are_one_line() -> None:
    apart = [timing("not comparable", cell=f"cell {i}", detail="measured in different environments") for i in range(9)]
    lonely = timing("not comparable", cell="lonely", detail="the reference is another one")
    text = changes_table([*apart, lonely])
    assert "9 gated values are not comparable: measured in different environments" in text
    assert "cell 4" not in text
    assert "lonely" in text
    assert "cell 4" in changes_table(apart, everything=True)


def test_a_detail_is_told_once_and_referred_to() -> None:
    text = changes_table([change(detail="because"), change(metric="macs", detail="because"), change(metric="flops")])
    assert text.count("because") == 1
    assert text.count("[1]") == 3


def test_the_comment_has_the_table_and_folds_what_is_for_information() -> None:
    page = changes_markdown(
        [change(detail="one more"), change("same", metric="macs"), timing("not comparable", gates=False)],
        title="a -> b",
        notes=["measured elsewhere"],
    )
    main, aside = tables(page)
    assert main[0]["metric"] == "params"
    assert main[0]["verdict"] == "❌ worse"
    assert main[0]["change"] == "+1"
    assert aside[0]["metric"] == "relative_latency"
    assert page.index("<details>") < page.index("relative_latency") < page.index("</details>")
    assert "- measured elsewhere" in page
    assert "1 value is the same" in page


def test_texts_from_files_are_no_markup_and_call_nobody() -> None:
    hostile = change(cell=HOSTILE, metric=HOSTILE, base=HOSTILE, head=HOSTILE, unit=HOSTILE, detail=HOSTILE)
    page = changes_markdown([hostile], title=HOSTILE, notes=[HOSTILE])
    for bad in ("<img", "](https", "@everyone", "#12", "https://", "www.evil", "\x1b", "\x00", "/home/joe"):
        assert bad not in page
    (main,) = tables(page)
    assert len(main) == 1  # no text made a line or a column
    assert set(main[0]) == {"cell", "metric", "base", "head", "change", "verdict", "note"}
    table = changes_table([hostile])
    assert "\x1b" not in table
    assert "\x00" not in table


def test_a_comment_fits_into_a_comment_and_counts_what_does_not() -> None:
    found = [change(cell=f"{'model' * 20} {i}", detail=f"reason {i} " * 20) for i in range(3000)]
    page = changes_markdown(found, title="many")
    assert len(page) <= LONGEST_COMMENT
    listed = len(tables(page)[0])
    assert listed >= 50
    assert f"{3000 - listed} more lines do not fit into a comment" in page
    assert headline(found) in page


def test_json_keeps_every_field_and_the_facts() -> None:
    content = json.loads(changes_json([change(), timing("same")], exit_code=1, base="main"))
    assert content["schema"] == 1
    assert content["base"] == "main"
    assert content["counts"] == {"worse": 1, "better": 0, "same": 1, "inconclusive": 0, "not comparable": 0}
    assert Change(**content["changes"][0]) == change()
    assert Change(**content["changes"][1]) == timing("same")


def test_facts_do_not_replace_the_changes() -> None:
    content = json.loads(changes_json([change()], counts={}, schema=99))
    assert content["schema"] == 1
    assert content["counts"]["worse"] == 1


def test_junit_fails_what_is_worse_and_skips_what_is_unclear() -> None:
    found = [
        change("worse", detail="one more"),
        timing("inconclusive", detail="too few"),
        change("same", metric="macs"),
        change("better", metric="flops"),
        change("not comparable", metric="tensor_peak", detail="torch 2.14 and 2.15"),
        change("worse", metric="shown", gates=False),
    ]
    root = ET.fromstring(changes_junit(found, name="compare"))
    (suite,) = root
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "0",
        "skipped": "2",
    }
    cases = {case.get("name"): case for case in suite}
    assert set(cases) == {"params", "relative_latency", "macs", "flops", "tensor_peak"}
    failure = cases["params"].find("failure")
    assert failure is not None
    assert failure.get("message") == "worse: 5,717,416 -> 5,717,417 (+1)"
    assert failure.text == "one more"
    skipped = cases["relative_latency"].find("skipped")
    assert skipped is not None
    assert "too few" in (skipped.get("message") or "")
    assert len(cases["macs"]) == len(cases["flops"]) == 0
    assert cases["params"].get("classname") == CELL


def test_junit_is_xml_whatever_the_texts() -> None:
    hostile = change(
        cell=HOSTILE + "\ud800\ufffe", metric=HOSTILE, base=HOSTILE, head="]]>", detail="\x0b]]>" + HOSTILE
    )
    root = ET.fromstring(changes_junit([hostile], name=HOSTILE).encode("utf-8"))
    assert root[0].get("failures") == "1"


def test_outputs_are_written_where_they_are_wanted(tmp_path: Path) -> None:
    markdown, junit = tmp_path / "a.md", tmp_path / "a.xml"
    output = GateOutput({"markdown": markdown, "json": None, "junit": junit})
    publish([change()], output, title="t", notes=["n"])
    assert "- n" in markdown.read_text(encoding="utf-8")
    assert ET.parse(junit).getroot()[0].get("tests") == "1"
    target = tmp_path / "a.json"
    publish([change()], GateOutput({"markdown": None, "json": target, "junit": None}), title="t", notes=["n"])
    content = json.loads(target.read_text(encoding="utf-8"))
    assert (content["title"], content["notes"], content["exit_code"]) == ("t", ["n"], 1)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    output = GateOutput({"markdown": tmp_path / "no" / "such" / "folder.md"})
    with pytest.raises(RunFolderError, match="Cannot write"):
        publish([change()], output, title="t", notes=[])

"""The main tables as LaTeX: what a paper shows, and that no name of a model can break it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reports.fabricate import MODELS, cell, full_run, infer, trained, training_cell
from tests.reports.test_markdown import failing_run, varying_run
from tests.reports.test_noise import noisy_run
from vitbench.reports.latex import latex_text, render_latex
from vitbench.reports.model.runs import Run

HOSTILE = (
    "a&b",
    "50%",
    "$math$",
    "#1",
    "a_b^c",
    "{x}~\\y",
    "<a|b>",
    '[0.5em] "q"',
    "*",
    "--",
    "naïve Žluť",
    "模型 ≥ π",
)


def hostile_run(monkeypatch: pytest.MonkeyPatch) -> Run:
    records = []
    for name in HOSTILE:
        monkeypatch.setitem(MODELS, f"module:{name}", (40, 1_000_000))
        of = training_cell(f"module:{name}", data=name, options=((name, name),))
        records += [infer(cell(f"module:{name}", attention="fused"), processes=5), trained(of, 180)]
    return Run(name="".join(HOSTILE), records=records)


def test_the_tables_of_a_run(golden: Callable[[str, str], None]) -> None:
    golden("latex.tex", render_latex([full_run()]))
    golden("latex_failures.tex", render_latex([failing_run()]))


def test_nothing_measured_is_a_comment() -> None:
    assert render_latex([Run(name="r", records=[])]).splitlines()[-1] == "% No cell has been measured yet."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b & 5 % of #1", r"a\_b \& 5 \% of \#1"),
        ("$x^2$ {~}", r"\$x\textasciicircum{}2\$ \{\textasciitilde{}\}"),
        ("back\\slash", r"back\textbackslash{}slash"),
        ("1.85 × † § ≥ –", r"1.85 $\times$ $\dagger$ \S{} $\geq$ \textendash{}"),
        ("naïve Žluť", 'na\\"{i}ve \\v{Z}lu\\v{t}'),
        ("模", "(U+6A21)"),
        ("a--b [c]", "a-{}-b {[}c]"),
    ],
)
def test_characters_that_latex_obeys_or_lacks(text: str, shown: str) -> None:
    assert latex_text(text) == shown


def test_every_line_has_its_cells_and_nothing_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    page = render_latex([hostile_run(monkeypatch)])
    assert page.isascii()
    bare = re.sub(r"\\[&%$#_{}\\]", "", page)  # without what is escaped
    assert bare.count("{") == bare.count("}")
    assert not re.search("[#~]", bare)
    assert [line for line in bare.splitlines() if "%" in line and not line.startswith("%") and line[-1] != "%"] == []
    assert all(line.count("$") % 2 == 0 for line in bare.splitlines())
    for table in page.split(r"\begin{tabular}{")[1:]:
        columns, _, body = table.partition("}")
        lines = [line for line in body.partition(r"\bottomrule")[0].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(columns) - 1}
        assert len(columns) <= 9
        assert not any(line.startswith(("[", "*")) for line in lines)


@pytest.mark.integration
def test_pdflatex_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("there is no pdflatex here")
    runs = [full_run(), failing_run(), varying_run(), noisy_run(), hostile_run(monkeypatch)]
    tables = "\n".join(render_latex([run]) for run in runs)
    text = f"\\documentclass{{article}}\n\\usepackage{{booktabs,graphicx}}\n\\begin{{document}}\n{tables}\n\\end{{document}}\n"
    (tmp_path / "paper.tex").write_text(text, encoding="utf-8")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Missing character" not in (tmp_path / "paper.log").read_text(encoding="utf-8", errors="replace")

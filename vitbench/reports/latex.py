"""The main table of each device and image size as LaTeX, for a paper: booktabs, units below the names, conditions in
the caption.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from vitbench.reports import explanations
from vitbench.reports.format import plain_text
from vitbench.reports.model.environments import machine_text
from vitbench.reports.model.main_tables import MainTable, main_tables, shared_conditions
from vitbench.reports.model.noise import noise_floors
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import without_bounds
from vitbench.reports.model.tables import TEXT, Column, Value
from vitbench.reports.value_text import heading_text, marks_text, value_text

#: What LaTeX obeys, what its old fonts have no glyph for, and what an end of line takes for its argument.
_SPECIAL = {
    **{one: f"\\{one}" for one in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': "''",
    "[": "{[}",
    "*": "{*}",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "±": r"$\pm$",
    "µ": r"$\mu$",
    "§": r"\S{}",
    "–": r"\textendash{}",
    "…": r"\ldots{}",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "æ": r"\ae{}",
}
#: Combining characters and the commands of their accents.
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}


def render_latex(runs: Sequence[Run]) -> str:
    """A ``table`` for each device and image size, with the columns that the Markdown page shows."""
    rows = build_rows(without_bounds(runs))
    lines = ["% Made by vitbench. In the preamble: \\usepackage{booktabs,graphicx}"]
    if not rows:
        return "\n".join([*lines, "% No cell has been measured yet."]) + "\n"
    shared = [f"{axis} {value}" for axis, value in shared_conditions(rows)]
    where = [f"{run.name}: {facts}." for run in runs if (facts := machine_text(run))]
    order = [explanations.order_text(rows), explanations.BRACKETS]
    for number, one in enumerate(main_tables(rows, noise_floors(runs)), 1):
        usual = [f"{axis} {value} unless stated" for axis, value in one.usual]
        what = f"{', '.join([one.device, f'{one.image_size} px', *shared, *usual])}."
        headings = [heading_text(replace(column, display=TEXT)) for column in one.shown.columns if column.data]
        tested = [f"{heading[0].upper()}{heading[1:]}." for heading in headings]
        caption = " ".join([what, *where, *order, *tested, *marks_text(one.shown)])
        lines += ["", *_table(one, caption, f"tab:vitbench-{number}")]
    return "\n".join(lines) + "\n"


def _table(one: MainTable, caption: str, label: str) -> list[str]:
    columns = one.shown.columns
    below = [f"b{column.batch} " if column.batch else "" for column in columns]
    units = [f"({unit})" if (unit := column.brackets or column.display.unit) else "" for column in columns]
    return [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(caption, 4000)}}}",
        rf"\label{{{label}}}",
        r"\medskip\setlength{\tabcolsep}{3pt}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{''.join('l' if column.is_text else 'r' for column in columns)}}}",
        r"\toprule",
        _line([latex_text(column.name) for column in columns]),
        _line([latex_text(batch + unit) for batch, unit in zip(below, units, strict=True)]),
        r"\midrule",
        *(_line([_cell(*pair) for pair in zip(line, columns, strict=True)]) for line in one.shown.lines),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _cell(value: Value, column: Column) -> str:
    """A value; its interval is small, a status in italics."""
    text = latex_text(value_text(value, column))
    if value.text is None and value.number is None and value.status is not None:
        return rf"\textit{{{text}}}"
    return text if column.is_text else re.sub(r"\{\[\}(.*?)\]", r"{\\scriptsize [\1]}", text)


def latex_text(text: str, limit: int = 200) -> str:
    """``plain_text`` that any LaTeX prints: accents by their commands, other letters than Latin ones by their number in
    Unicode.
    """
    letters: list[str] = []
    for one in unicodedata.normalize("NFD", plain_text(text, limit)):
        if one in _ACCENTS and letters:
            letters[-1] = rf"\{_ACCENTS[one]}{{{letters[-1]}}}"
        else:
            letters.append(_SPECIAL.get(one) or (one if one.isascii() else f"(U+{ord(one):04X})"))
    return "".join(letters).replace("--", "-{}-")  # no dash of two hyphens

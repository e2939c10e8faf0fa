"""One HTML file with everything that a report shows: it opens from the disk, asks nothing of the network, and prints.

``page.html.jinja`` is its content, ``page.css`` and ``page.js`` its looks and controls, ``charts.js`` its charts, and
``vendor/`` the libraries that these are built on. Scripts and styles stand in the file; its policy allows no others.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vitbench.core.text import printable
from vitbench.reports.html.data import MOST_SPREADS, page_data
from vitbench.reports.html.limits import limits_html
from vitbench.reports.model.lines import line_columns, lines_of
from vitbench.reports.model.noise import disturbance_line
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.tables import Table
from vitbench.reports.palette import DARK, GREY_DARK, GREY_LIGHT, LIGHT, MARKERS
from vitbench.reports.plots.still import still_svg
from vitbench.reports.sections import Section, detail_sections
from vitbench.reports.value_text import heading_text, value_text
from vitbench.reports.verdict import verdict

#: Lines of the table that readers without scripts see.
STATIC_LINES = 200
#: Lines of a folded table; of very many lines fewer, so that the file stays below 5 MB.
_FOLDED_LINES, _FOLDED_OF_MANY, _MANY_LINES = 100, 25, 5000
#: The detail sections that are folded below another section; the others stand alone.
_BELOW = {"failures": "table", "details": "table", "searches": "limits", "trainings": "training"}
#: Those that are open at first.
_OPEN = ("misleading", "environment")
_HERE = Path(__file__).parent
_SCRIPTS = ("vendor/d3.min.js", "vendor/plot.min.js", "vendor/dataTables.min.js", "charts.js", "page.js")


def render_html(runs: Sequence[Run]) -> str:
    """The page of one or several runs; the same records give the same file."""
    data = {**page_data(runs), "markers": [symbol for _, symbol in MARKERS]}
    scripts = [_read(name) for name in _SCRIPTS]
    styles = [_read("vendor/pico.classless.min.css"), _palette(), _read("page.css")]
    sections, charts, limits = detail_sections(runs), _charts(data), limits_html(runs)
    below = [(_BELOW[one.id], one) for one in sections if one.id in _BELOW]
    table, more = _first_lines(runs, _shown(data))
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"code": _with_code, "text": value_text, "heading": heading_text, "plain": printable}
    environment.tests |= {
        "table": lambda part: isinstance(part, Table),
        "section": lambda part: isinstance(part, Section),
    }
    return environment.get_template("page.html.jinja").render(
        title=data["title"],
        version=data["version"],
        policy=_policy(scripts, styles),
        styles=[Markup(style) for style in styles],
        scripts=[Markup(script) for script in scripts],
        data=_in_script(data),
        verdict=verdict(runs),
        disturbed=[(run.name, line) for run in runs if (line := disturbance_line(run, run.name))],
        several=len(runs) > 1,
        lines=data["lines"],
        constant=data["constant"],
        charts=charts,
        shown={"table", *charts, *(["limits"] if limits else []), *(place for place, _ in below)},
        limits=limits,
        still=Markup(still_svg(runs)),
        table=table,
        meanings=data["meanings"],
        static_lines=STATIC_LINES,
        folded_lines=_FOLDED_LINES if data["lines"] <= _MANY_LINES else _FOLDED_OF_MANY,
        most_spreads=MOST_SPREADS,
        more=more,
        below=below,
        alone=[one for one in sections if one.id not in _BELOW],
        opened=_OPEN,
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """A Content-Security-Policy that allows these scripts and styles, pictures inside the file, and nothing else."""

    def hashes(texts: Sequence[str]) -> str:
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    allowed = f"script-src {hashes(scripts)}; style-src {hashes(styles)}; img-src data:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _palette() -> str:
    """The colours of pinned models and of all others, as variables."""

    def variables(colours: Sequence[str], grey: str) -> str:
        return "".join(f"--pin-{place}:{colour};" for place, colour in enumerate(colours)) + f"--grey:{grey};"

    light, dark = variables(LIGHT, GREY_LIGHT), variables(DARK, GREY_DARK)
    by_system = f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
    return f":root{{{light}}}{by_system}:root[data-theme=dark]{{{dark}}}"


def _in_script(data: dict[str, Any]) -> Markup:
    """Strict JSON that cannot end its script element."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _with_code(text: str) -> Markup:
    """A paragraph of plain text, with code where backticks are."""
    parts = re.split("`([^`]*)`", printable(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )


def _charts(data: dict[str, Any]) -> list[str]:
    """The charts that there are values for."""
    sizes = {"image_size", "batch"} & set(data["axes"])
    has = {"tradeoffs": data["costs"], "scaling": sizes, "spread": data["spread"], "training": data["curves"]}
    return [name for name, values in has.items() if values]


def _shown(data: dict[str, Any]) -> set[str]:
    """The columns of the table: without the conditions that all lines share, which stand in a sentence."""
    axes = {"model", *data["axes"]}
    return {one["id"] for one in data["columns"] if not one["condition"] or one["id"] in axes}


def _first_lines(runs: Sequence[Run], shown: set[str]) -> tuple[Table, int]:
    """The first lines of the page's table, and how many more there are."""
    lines = lines_of(build_rows(runs))
    columns = [one for one in line_columns(lines) if printable(one.id) in shown]
    first = tuple(tuple(one.value(line) for one in columns) for line in lines[:STATIC_LINES])
    return Table(tuple(one.column for one in columns), first), max(len(lines) - STATIC_LINES, 0)

"""The trade-offs as a picture within an HTML page, for readers without scripts."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from vitbench.core.text import one_line
from vitbench.reports.model.rows import build_rows
from vitbench.reports.model.runs import Run
from vitbench.reports.model.searches import without_bounds
from vitbench.reports.model.tradeoffs import report_tradeoffs
from vitbench.reports.plots.pareto import draw_tradeoff

#: More points would make the page of many lines heavy.
_MOST_POINTS = 60
_PREFIX = "still-"


def still_svg(runs: Sequence[Run]) -> str:
    """Accuracy against latency, else against parameters, as one ``<svg>`` on white; empty without an accuracy.

    It holds nothing from elsewhere and no style, which a page's policy may forbid. Its ids begin with ``still-``.
    """
    plots = report_tradeoffs(build_rows(without_bounds(runs)))
    if not plots:
        return ""
    plot = next(iter(plots.values()))
    root = ET.fromstring(draw_tradeoff(plot.best(_MOST_POINTS), ".svg"))
    for element in list(root.iter()):
        _make_plain(element)
    shown = ET.tostring(root, encoding="unicode")
    for element in list(root.iter()):
        if f"#{element.get('id')}" not in shown:
            element.attrib.pop("id", None)
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.attrib["viewBox"],
        "width": "100%",
        "role": "img",
        "aria-label": one_line(f"{plot.title}. {plot.caption}"),
        "font-family": "sans-serif",
        # what the library leaves out or has in a style sheet: a page may have rules of its own
        "fill": "#000000",
        "stroke-linejoin": "round",
    }
    return ET.tostring(root, encoding="unicode")


def _make_plain(element: ET.Element) -> None:
    """Names without their namespace, attributes in the place of styles, prefixed ids, no space between elements."""
    element.tag = element.tag.rpartition("}")[2]
    for child in [child for child in element if child.find("{*}style") is not None]:
        element.remove(child)
    element.text, element.tail = (text if text and text.strip() else None for text in (element.text, element.tail))
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    styles = [one.partition(":") for one in attributes.pop("style", "").split(";")]
    attributes |= {name.strip(): value.strip() for name, _, value in styles if name.strip() not in ("", "font-family")}
    for name, value in attributes.items():
        if name == "id":
            attributes[name] = _PREFIX + value
        elif name == "href":
            attributes[name] = f"#{_PREFIX}{value.removeprefix('#')}"
        elif value.startswith("url(#"):
            attributes[name] = value.replace("url(#", f"url(#{_PREFIX}")
    element.attrib = attributes

"""The grid of the largest batches on the page: shades, failures, what ended each search, and hostile names."""

from __future__ import annotations

from html.parser import HTMLParser

from tests.reports.test_searches import search
from vitbench.core.records import Record
from vitbench.reports.html.limits import SHADES, limits_html
from vitbench.reports.model.runs import Run


class Cells(HTMLParser):
    """The values of the grids by their text: class and title."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, tuple[str, str]] = {}
        self.tags: set[str] = set()
        self.headings: list[str] = []
        self._open: dict[str, str | None] = {}
        self._tag = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._tag, self._open = tag, dict(attrs)

    def handle_data(self, data: str) -> None:
        if self._tag == "td":
            self.found[data] = (self._open.get("class") or "", self._open.get("title") or "")
        elif self._tag == "h3":
            self.headings.append(data)


def cells(*records: list[Record]) -> Cells:
    return Cells(str(limits_html([Run(name="first", records=[one for some in records for one in some])])))


def test_batches_are_shaded_by_their_logarithm_and_say_what_ended_them() -> None:
    grid = cells(search(12), search(1, image_size=(384, 384)), search(5000, image_size=(64, 64)))
    assert grid.headings == ["cpu, inference, fp32"]
    assert {text: kind for text, (kind, _) in grid.found.items()} == {
        ">=1024": f"shade{SHADES}",
        "12": "shade3",  # log 12 / log 1024 of five steps
        "1": "shade1",
    }
    assert grid.found["12"][1].startswith("OOM, out_of_memory at batch 13; limit: 536870912 bytes: RLIMIT_DATA")
    assert grid.found[">=1024"][1] == "limit: the search's own bound of 1024"


def test_what_does_not_fit_at_all_is_told_apart_from_what_is_unknown() -> None:
    grid = cells(search(0), search(0, ending=("timeout", "timeout"), image_size=(64, 64)), search(2, model="vit_nano"))
    assert grid.found["OOM@1"][0] == "unfit"
    assert grid.found["timeout@1"] == ("unfit", "timeout at batch 1; limit: none: memory did not cause the failure")
    assert grid.found["–"] == ("", "")


def test_names_are_text() -> None:
    grid = cells(search(3, model='"><img src=x onerror=alert(1)>\u202e'))
    assert "img" not in grid.tags
    assert limits_html([Run(name="first", records=[])]) == ""

"""The page of hostile runs as its reader uses it, in Chromium. Each test also holds that no page logged an error, asked the
network for anything, or ran a name (tests/reports/conftest.py).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reports.conftest import Visitor
from tests.reports.fabricate import full_run, trained, training_cell
from tests.reports.synthetic import HOSTILE, RUNS, synthetic_runs
from vitbench.core.text import printable
from vitbench.reports.html.page import STATIC_LINES, render_html
from vitbench.reports.model.runs import Run

pytestmark = pytest.mark.browser

LINES = 60
#: Sections of synthetic runs that have no chart.
ALONE = ("misleading", "noise", "environment", "reading", "methods")
#: localStorage as sandboxed frames and strict browsers have it.
NO_STORAGE = (
    """Object.defineProperty(window, "localStorage", {get() { throw new DOMException("no", "SecurityError") }})"""
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The file of a page of so many lines."""
    made: dict[int, Path] = {}

    def page_of(lines: int = LINES) -> Path:
        if lines not in made:
            made[lines] = tmp_path_factory.mktemp("pages") / f"{lines}.html"
            made[lines].write_text(render_html(synthetic_runs(lines)), encoding="utf-8")
        return made[lines]

    return page_of


@pytest.fixture
def page(visitor: Visitor, pages: Callable[..., Path]) -> Any:
    return visitor.open(pages())


def column_of(page: Any, name: str) -> list[str]:
    """What stands in a column of the table's page, from top to bottom."""
    place = page.locator("#grid thead th").evaluate_all(
        "(all, name) => all.findIndex(one => one.querySelector('.dt-column-title span')?.textContent === name)", name
    )
    assert place >= 0, name
    return page.locator(f"#grid tbody td:nth-child({place + 1})").all_inner_texts()


def sort_by(page: Any, name: str) -> None:
    of = page.locator("#grid thead th").filter(has=page.get_by_text(name, exact=True))
    of.locator(".dt-column-order").first.click()


def choose(page: Any, axis: str, value: str) -> None:
    page.locator(f"#axes select[name='{axis}']").select_option(value)


def count_of(page: Any) -> int:
    """Of ``12 of 60 lines, 12 models``."""
    return int(page.locator("#count").inner_text().partition(" ")[0].replace(",", ""))


def show_everything(page: Any) -> None:
    for select in page.locator("#axes select").all():
        select.select_option("")


def hash_of(page: Any) -> str:
    return str(page.evaluate("location.hash"))


def serious(page: Any) -> list[str]:
    """What axe-core finds of impact serious or critical, each with the first element."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['any'][:1]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


# what is there


def test_the_sections_are_in_order_and_the_first_choice_shows_points(page: Any) -> None:
    ids = page.locator("main > section").evaluate_all("all => all.map(one => one.id)")
    assert ids == ["short", "tradeoffs", "table", "limits", "scaling", "spread", "training", *ALONE]
    assert page.locator("#tradeoffs svg").count() == 1
    assert page.locator("#grid tbody tr").count() == count_of(page) > 5


def test_hostile_names_stand_there_as_text(page: Any) -> None:
    show_everything(page)
    page.locator(".dt-length select").select_option("-1")
    models = page.locator("#grid td bdi[title]").evaluate_all("all => all.map(one => one.title)")
    assert {printable(name) for name in HOSTILE[:5]} <= set(models)
    assert page.locator("img[src='x'], script[src], b[onmouseover]").count() == 0


def test_every_page_of_any_size_draws(visitor: Visitor, pages: Callable[..., Path]) -> None:
    for lines in (1, 5, 1_000):
        page = visitor.open(pages(lines))
        assert page.evaluate("performance.getEntriesByName('drawn').length") == 1
        assert count_of(page) >= 1


# controls


def test_sorting_by_a_number_puts_what_is_unknown_last_both_ways(page: Any) -> None:
    show_everything(page)
    page.locator(".dt-length select").select_option("-1")
    for sign in (1, -1):
        sort_by(page, "latency")
        texts = column_of(page, "latency")
        numbers = [float(found.group()) for text in texts if (found := re.match(r"[\d.]+", text))]
        assert numbers == sorted(numbers, reverse=sign < 0)
        assert not any(re.match(r"[\d.]+", text) for text in texts[len(numbers) :])
        assert len(numbers) > 20


def test_a_part_of_a_name_filters_and_can_find_nothing(page: Any) -> None:
    show_everything(page)
    search = page.locator("input[type=search]")
    search.fill("HYPERLINK")
    models = column_of(page, "model")
    assert models
    assert all("HYPERLINK" in model for model in models)
    search.fill("no such name")
    assert count_of(page) == 0
    assert "No line" in page.locator("#grid tbody").inner_text()
    search.fill("")
    assert count_of(page) > LINES


def test_the_device_switches_table_and_charts(page: Any) -> None:
    on_cpu = column_of(page, "latency")
    choose(page, "device", "cuda:0")
    assert column_of(page, "latency") != on_cpu
    assert "device cuda:0" in page.locator("#shared").inner_text()


def test_a_choice_that_would_empty_the_page_resets_the_others(page: Any) -> None:
    page.locator("input[type=search]").fill("HYPERLINK")
    choose(page, "device", "cuda:0")
    choose(page, "run", "searches")  # which had no such device and no such model
    assert count_of(page) > 0
    assert page.locator("#axes select[name='run']").input_value() == "searches"
    assert page.locator("#axes select[name='device']").input_value() == ""
    assert page.locator("input[type=search]").input_value() == ""


def test_pins_colour_a_model_in_all_charts_and_six_are_the_most(page: Any) -> None:
    choose(page, "run", RUNS[0])
    choose(page, "device", "cpu")
    while page.locator("#grid td.pin input:checked").count():
        page.locator("#grid td.pin input:checked").first.click()
    boxes = page.locator("#grid td.pin input")
    for place in range(6):
        boxes.nth(place).click()
    for section in ("tradeoffs", "scaling", "spread", "training"):
        assert page.locator(f"#{section} svg").evaluate("one => one.outerHTML.includes('var(--pin-0)')"), section
    assert page.locator("#grid td.pin input:checked").count() == 6
    boxes.nth(6).click()
    assert page.locator("#grid td.pin input:checked").count() == 6
    assert "Six models are pinned" in page.locator("#count").inner_text()


def test_a_pin_keeps_colour_and_shape_when_another_is_taken_off(page: Any) -> None:
    while page.locator("#grid td.pin input:checked").count():
        page.locator("#grid td.pin input:checked").first.click()
    boxes = page.locator("#grid td.pin input")
    models = boxes.evaluate_all("all => [...new Set(all.map(one => one.dataset.model))].slice(0, 3)")
    colour = "one => one.style.getPropertyValue('--colour')"

    def box(place: int) -> Any:
        return boxes.nth(
            page.evaluate(
                f"[...document.querySelectorAll('td.pin input')].findIndex(one => one.dataset.model === {models[place]!r})"
            )
        )

    for place in range(2):
        box(place).click()
    box(0).click()
    assert box(1).evaluate(colour) == "var(--pin-1)"
    page.reload()
    assert box(1).evaluate(colour) == "var(--pin-1)"
    for section in ("tradeoffs", "spread", "training"):
        assert page.locator(
            f"#{section} svg path[stroke='var(--pin-1)'], #{section} svg g[stroke='var(--pin-1)'] path"
        ).count(), section
    box(2).click()
    assert box(2).evaluate(colour) == "var(--pin-0)"


def test_columns_without_values_leave_the_table_and_statuses_that_are_all_ok(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render_html([full_run()]), encoding="utf-8")
    page = visitor.open(tmp_path / "page.html")
    heads = page.locator("#grid thead .dt-column-title span:first-child").all_inner_texts()
    assert "training step" not in heads
    assert "status" not in heads
    assert "status ok" in page.locator("#shared").inner_text()
    choose(page, "batch", "32")
    assert "training step" in page.locator("#grid thead").inner_text()


def test_a_page_of_one_model_by_several_recipes_shows_them_all(visitor: Visitor, tmp_path: Path) -> None:
    records = [trained(training_cell("vit_micro", weights=f"train:{name}"), 90) for name in ("first", "second")]
    (tmp_path / "page.html").write_text(render_html([Run(name="run", records=records)]), encoding="utf-8")
    assert count_of(visitor.open(tmp_path / "page.html")) == 2


def test_a_click_on_a_point_pins_its_model(page: Any) -> None:
    before = page.locator("#grid td.pin input:checked").count()
    readout = page.locator("#tradeoffs [role=slider]")
    readout.focus()
    while "pinned" in readout.inner_text():
        page.keyboard.press("ArrowRight")
    box = page.locator("#tradeoffs svg circle.ring").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("#grid td.pin input:checked").count() == before + 1


def test_the_address_keeps_what_is_chosen(page: Any) -> None:
    choose(page, "device", "cuda:0")
    page.locator("#tradeoffs .choices select").select_option("params")
    page.locator("#grid td.pin input:not(:checked)").first.click()
    chosen, pinned = hash_of(page), page.locator("#grid td.pin input:checked").count()
    assert "cost=params" in chosen
    page.reload()
    assert hash_of(page) == chosen
    assert page.locator("#axes select[name='device']").input_value() == "cuda:0"
    assert page.locator("#tradeoffs .choices select").input_value() == "params"
    assert page.locator("#grid td.pin input:checked").count() == pinned


@pytest.mark.parametrize(
    "fragment",
    ["#device=nowhere&cost=__proto__&pins=1&pin=nobody", "#%", "#cost=constructor&y=x&over=y", "#search=no-such-model"],
)
def test_an_address_that_others_wrote_does_no_harm(visitor: Visitor, pages: Callable[..., Path], fragment: str) -> None:
    page = visitor.open(pages(), fragment)
    assert count_of(page) > 0
    assert page.locator("#tradeoffs svg").count() == 1


# keyboard


def test_arrows_walk_the_points_and_enter_pins(page: Any) -> None:
    readout = page.locator("#tradeoffs [role=slider]")
    readout.focus()
    first = readout.inner_text()
    page.keyboard.press("ArrowRight")
    second = readout.inner_text()
    assert second != first
    assert readout.get_attribute("aria-valuetext") == second
    assert readout.get_attribute("aria-valuenow") == "2"
    pinned = "pinned" in second
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.closest('#tradeoffs')")
    assert ("pinned" in page.locator("#tradeoffs [role=slider]").inner_text()) != pinned


def test_the_table_works_by_keyboard(page: Any) -> None:
    header = page.locator("#grid thead .dt-column-order[role=button]").first
    header.focus()
    page.keyboard.press("Enter")
    page.locator("#grid thead th[aria-sort]").wait_for()  # DataTables sorts a moment later
    box = page.locator("#grid td.pin input").first
    box.focus()
    before = box.is_checked()
    page.keyboard.press("Space")
    assert page.locator("#grid td.pin input").first.is_checked() != before
    assert page.evaluate("document.activeElement.closest('td.pin') !== null")
    button = page.locator("td.command > button").first
    button.focus()
    page.keyboard.press("Enter")
    assert "vitbench run" in page.locator(".more code").inner_text()


def test_the_first_tab_skips_to_the_table(page: Any) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "table"


# accessibility


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(visitor: Visitor, pages: Callable[..., Path], scheme: Any, width: int) -> None:
    page = visitor.open(pages(), color_scheme=scheme, viewport={"width": width, "height": 900})
    assert serious(page) == []
    show_everything(page)
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true }")
    page.locator("td.command > button").first.click()
    assert serious(page) == []


def test_the_theme_is_chosen_and_kept(page: Any) -> None:
    page.locator("#theme").select_option("dark")
    back = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(back)
    page.reload()
    assert page.evaluate(back) == dark
    page.locator("#theme").select_option("light")
    assert page.evaluate(back) != dark


def test_charts_follow_the_width_of_the_window(page: Any) -> None:
    page.set_viewport_size({"width": 600, "height": 900})
    page.wait_for_function("document.querySelector('#tradeoffs svg').width.baseVal.value < 600")


def test_a_phone_scrolls_tables_and_not_the_page(visitor: Visitor, pages: Callable[..., Path]) -> None:
    page = visitor.open(pages(), viewport={"width": 390, "height": 844})
    show_everything(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# where little is allowed


@pytest.mark.parametrize("sandbox", ["allow-scripts", ""])
def test_the_page_works_in_a_sandboxed_frame(
    visitor: Visitor, pages: Callable[..., Path], tmp_path: Path, sandbox: str
) -> None:
    text = pages().read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
    around = tmp_path / "around.html"
    around.write_text(
        f'<meta charset=utf-8><iframe sandbox="{sandbox}" width=1200 height=800 srcdoc="{text}"></iframe>'
    )
    visitor.expected = "" if sandbox else "Blocked script execution"
    page = visitor.open(around)
    frame = page.frames[1]
    assert "In short" in frame.locator("#short").inner_text()
    assert frame.locator("#tradeoffs svg").count() == 1
    assert frame.locator("#grid tbody tr").count() > 5 if sandbox else frame.locator(".static table").count() == 1


def test_storage_that_throws_changes_nothing(visitor: Visitor, pages: Callable[..., Path]) -> None:
    page = visitor.open(pages(), before=NO_STORAGE)
    page.locator("#theme").select_option("dark")
    assert count_of(page) > 5


def test_without_scripts_there_are_verdict_picture_and_first_lines(
    visitor: Visitor, pages: Callable[..., Path]
) -> None:
    page = visitor.open(pages(1_000), java_script_enabled=False)
    assert page.locator("#short li").count() >= 2
    assert page.locator("#tradeoffs .static svg").is_visible()
    assert page.locator("#table .static tbody tr").count() == STATIC_LINES
    assert "more lines need scripts" in page.locator("#table").inner_text()
    assert not page.locator("#controls").is_visible()
    assert not page.locator("#save").is_visible()


# what leaves the page


def test_printing_shows_all_lines_in_light_colours(visitor: Visitor, pages: Callable[..., Path]) -> None:
    page = visitor.open(pages(1_000), color_scheme="dark")
    show_everything(page)
    shown = count_of(page)
    assert page.locator("#grid tbody tr").count() == 25
    page.evaluate("window.counted = 0")
    page.evaluate(
        "addEventListener('beforeprint', () => { window.counted = document.querySelectorAll('#grid tbody tr').length;"
        " window.theme = document.documentElement.dataset.theme })"
    )
    assert len(page.pdf()) > 50_000
    assert page.evaluate("[window.counted, window.theme]") == [shown, "light"]
    assert page.locator("#grid tbody tr").count() == 25


def test_saved_csv_has_the_lines_shown_and_no_formula(page: Any, tmp_path: Path) -> None:
    show_everything(page)
    with page.expect_download() as waiting:
        page.locator("#save").click()
    waiting.value.save_as(tmp_path / "saved.csv")
    heads, *lines = csv.reader((tmp_path / "saved.csv").read_text(encoding="utf-8").splitlines(keepends=True))
    assert len(lines) == count_of(page)
    assert all(len(line) == len(heads) for line in lines)
    models = {line[heads.index("model")] for line in lines}
    assert f"'{HOSTILE[7]}" in models
    assert not [text for line in lines for text in line if text.startswith(("=", "+", "@", "\t", "\r"))]
    assert RUNS[0] in {line[heads.index("run")] for line in lines}

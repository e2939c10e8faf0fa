"""The charts of the page in a real browser: what they draw of hand-made data, by mouse, by keyboard and read aloud."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.reports.conftest import Visitor

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

HTML = files("vitbench.reports.html")
SCRIPTS = ("vendor/d3.min.js", "vendor/plot.min.js", "charts.js")
#: Forbids style elements and requests; the charts must do without.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'none'"
#: Draws a chart in place of what was there, and again after each pin; keeps what was pinned.
DRAW = """([name, data, lines, state]) => {
  window.pinned = [];
  const draw = () => {
    const made = name === "training" ? charts.training(data, lines.length ? data.curves : [], state) : charts[name](data, lines, state);
    document.querySelector("main").replaceChildren(made.node);
    return made.caption;
  };
  if (window.redraw) document.removeEventListener("pin", window.redraw);
  window.redraw = (event) => { window.pinned.push(event.detail); state.pins = [event.detail]; draw(); };
  document.addEventListener("pin", window.redraw);
  return draw();
}"""
NAMES = "[...document.querySelectorAll('.chart svg > g:last-of-type > text')]"


@pytest.fixture
def page(visitor: Visitor, tmp_path: Path) -> Page:
    scripts = "".join(f"<script>{HTML.joinpath(name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    path = tmp_path / "charts.html"
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{policy}</head><body><main></main>{scripts}</body></html>',
        encoding="utf-8",
    )
    return visitor.open(path)


def text_column(name: str, values: Sequence[str | None], unit: str = "") -> dict[str, Any]:
    texts = list(dict.fromkeys(value for value in values if value is not None))
    places = [None if value is None else texts.index(value) for value in values]
    return {"id": name, "name": name.replace("_", " "), "unit": unit, "kind": "text", "texts": texts, "values": places}


def number_column(name: str, values: Sequence[float | None], unit: str = "", **more: Any) -> dict[str, Any]:
    return {"id": name, "name": name, "unit": unit, "kind": "number", "values": list(values), **more}


def data_of(*points: tuple[str, float | None, float | None], **more: Any) -> dict[str, Any]:
    """Data of (model, latency in ms, accuracy in %), one line each, of one condition."""
    models, latencies, accuracies = zip(*points, strict=True)
    return {
        "lines": len(points),
        "columns": [
            text_column("model", models),
            number_column("latency", latencies, "ms"),
            number_column("accuracy", accuracies, "%"),
            *more.pop("columns", []),
        ],
        "axes": [],
        "conditions": [0] * len(points),
        "conditions_of_any_batch": [0] * len(points),
        "fronts": {},
        "spread": {},
        "curves": [],
        "markers": ["circle", "square", "triangle", "diamond", "star", "wye"],
        **more,
    }


def draw(page: Page, name: str, data: dict[str, Any], lines: Sequence[int] | None = None, **state: Any) -> str:
    """The chart's caption."""
    shown = list(range(data["lines"])) if lines is None else list(lines)
    state = {"cost": "latency", "y": "latency", "over": "batch", "pins": [], "dark": False, "width": 900, **state}
    return str(page.evaluate(DRAW, [name, data, shown, state]))


def shown_text(page: Page) -> str:
    return page.inner_text("main")


FOUR = (("slow", 8.0, 90.0), ("fast", 1.0, 70.0), ("beaten", 4.0, 60.0), ("middle", 2.0, 80.0))


def test_arrow_keys_move_in_order_of_x_and_enter_pins_and_keeps_the_focus(page: Page) -> None:
    draw(page, "tradeoffs", data_of(*FOUR, fronts={"latency": {"1": 0.98}}))
    slider = page.get_by_role("slider")
    page.keyboard.press("Tab")
    heard = [slider.get_attribute("aria-valuetext")]
    for _ in range(4):
        page.keyboard.press("ArrowRight")
        heard.append(slider.get_attribute("aria-valuetext"))
    assert [str(text).split(":")[0].strip("\u2068\u2069") for text in heard] == [
        "fast",
        "middle",
        "beaten",
        "slow",
        "slow",
    ]
    assert heard[0] == "\u2068fast\u2069: 70.0 % at 1.00 ms, on the Pareto front, probability 0.98"
    assert "not on the Pareto front" in str(heard[2])
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.getAttribute('role') === 'slider'")
    assert page.evaluate("pinned") == ["fast"]
    assert str(slider.get_attribute("aria-valuetext")).endswith("pinned")


def test_a_click_near_a_point_pins_it(page: Page) -> None:
    draw(page, "tradeoffs", data_of(*FOUR))
    box = page.locator("svg circle:not(.ring)").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 8, box["y"] + 8)
    assert page.evaluate("pinned") == ["beaten"]


def test_a_chart_is_an_image_with_a_name_and_without_labelled_groups(page: Page) -> None:
    for name in ("tradeoffs", "scaling", "spread", "training"):
        batch = number_column("batch", [1, 8, 1, 8])
        curves = [{"run": "a", "model": "fast", "label": "fast, seed 0", "steps": [0, 1], "loss": [2.0, 1.0]}]
        points = [
            (model, *values)
            for model, values in (("a", (1.0, 70.0)), ("a", (7.0, 70.0)), ("b", (2.0, 80.0)), ("b", (9.0, 80.0)))
        ]
        spread = {"0": [1.0] * 7, "2": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 5.0]}
        draw(page, name, data_of(*points, columns=[batch], axes=["batch"], curves=curves, spread=spread))
        assert page.locator("svg[role=img][aria-label]").count() == 1, name
        assert page.locator("g[aria-label], svg style").count() == 0, name


def test_each_condition_has_a_front_of_its_own_and_of_throughput_more_is_better(page: Page) -> None:
    sizes = [number_column("params", [8.0, 1.0, 4.0, 2.0], "M")]
    caption = draw(page, "tradeoffs", data_of(*FOUR, columns=sizes, conditions=[0, 0, 1, 0]), cost="params")
    assert "beaten" not in caption  # which another batch beats at parameters
    caption = draw(page, "tradeoffs", data_of(*FOUR, conditions=[0, 0, 1, 0]))
    assert "2 fronts" in caption
    assert "beaten" in caption  # alone in its condition
    assert page.locator("svg g[fill='var(--grey)'] circle").count() == 4
    rates = [number_column("throughput", [1.0, 8.0, 3.0, 4.0], "image/s")]
    caption = draw(page, "tradeoffs", data_of(*FOUR, columns=rates), cost="throughput")
    assert "beaten" not in caption
    assert "\u2068fast\u2069 (70.0 % at 8.00 image/s)" in caption


def test_names_are_text_shortened_in_the_middle_with_the_whole_as_title(page: Page) -> None:
    long = "begin" + "x" * 190 + "end"
    names = ["__proto__", "</script><script>window.__xss=1</script>", long, "\u0645\u0648\u062f\u0644"]
    points = [(name, 2.0**place, 50.0 + 10 * place) for place, name in enumerate(names)]
    draw(page, "tradeoffs", data_of(*points), pins=["__proto__"])
    shown = page.evaluate(f"{NAMES}.map((one) => [one.firstChild.textContent, one.querySelector('title').textContent])")
    assert sorted(title.strip("\u2068\u2069") for _, title in shown) == sorted(names)
    (label,) = [text for text, title in shown if long in title]
    assert label == f"\u2068begin{'x' * 9}…{'x' * 10}end\u2069"
    assert page.locator("main script").count() == 0
    assert page.locator("text[fill='var(--pin-0)']").count() == 1


def test_at_most_twenty_names_that_do_not_cover_each_other_the_pinned_first(page: Page) -> None:
    points = [(f"model_{place}", 1 + place % 10 / 50, 50 + place / 30) for place in range(60)]
    draw(page, "tradeoffs", data_of(*points), pins=["model_31", "model_17"])
    script = f"{NAMES}.map((one) => [one.firstChild.textContent, ...['x', 'right', 'y', 'bottom'].map((k) => one.getBoundingClientRect()[k])])"
    shown = page.evaluate(script)
    assert 2 < len(shown) <= 20
    assert [name.strip("\u2068\u2069") for name, *_ in shown[:2]] == ["model_31", "model_17"]
    for place, (_, left, right, top, bottom) in enumerate(shown):
        for _, other_left, other_right, other_top, other_bottom in shown[:place]:
            apart = left >= other_right or right <= other_left or top + 2 >= other_bottom or bottom <= other_top + 2
            assert apart


def test_without_points_a_sentence_says_what_to_choose(page: Page) -> None:
    runs = text_column("run", ["digits", "digits", "limits", "limits"])
    points = [("a", 1.0, 50.0), ("b", 2.0, 60.0), ("a", 1.0, None), ("b", None, None)]
    data = data_of(*points, columns=[runs], axes=["run"])
    draw(page, "tradeoffs", data, [2, 3])
    assert shown_text(page) == "No line that is shown has both accuracy and latency. Choose “all” above."
    draw(page, "tradeoffs", data, [2, 3], cost="memory")
    assert shown_text(page).endswith("Nor has any other line of this report.")
    draw(page, "training", data)
    assert shown_text(page).endswith("the losses of a training. Nor has any other line of this report.")
    draw(
        page,
        "training",
        {**data, "curves": [{"run": "digits", "model": "a", "label": "a", "steps": [1], "loss": [2]}]},
        [],
    )
    assert shown_text(page).endswith("the losses of a training. Choose “all” above.")
    caption = draw(page, "tradeoffs", data, [0])
    assert "50.0 % at 1.00 ms" in caption
    assert "1 point," in str(page.get_attribute("svg", "aria-label"))


def test_many_points_are_all_drawn_without_names_and_that_is_said(page: Page) -> None:
    points = [(f"m{place}", 1.0 + place, 50 + 40 * (place * 7919 % 1000) / 1000) for place in range(20_000)]
    caption = draw(page, "tradeoffs", data_of(*points))
    assert page.locator("svg circle:not(.ring)").count() == 20_000
    assert page.evaluate(NAMES) == []
    assert "Filter to see names and intervals: 20,000 points have no room" in caption


def test_scaling_marks_what_failed_with_its_reason(page: Page) -> None:
    sizes = text_column("image_size", ["32", "64", "128", "32", "64", "128"], "px")
    points = [
        ("a", 1.0, None),
        ("a", 4.0, None),
        ("a", None, None),
        ("b", 2.0, None),
        ("b", 8.0, None),
        ("b", None, None),
    ]
    data = data_of(*points, columns=[sizes], axes=["image_size"])
    data["columns"][1] |= {"status": {"2": "OOM", "5": "timeout"}, "reason": {"2": "no <b>memory</b>"}}
    caption = draw(page, "scaling", data, over="image_size", pins=["b"])
    assert "what failed" in caption
    assert "one line a model. " in caption
    failed = page.evaluate("[...document.querySelectorAll('.failed text')].map((one) => one.textContent)")
    assert failed == [
        "× timeout\u2068b\u2069, image size 128 px: timeout, pinned",
        "× OOM\u2068a\u2069, image size 128 px: OOM, no <b>memory</b>",
    ]
    draw(page, "scaling", data, [0, 3], over="image_size")
    assert shown_text(page) == "No line that is shown has latency at two values of image size. Choose “all” above."


def test_the_spread_shows_pinned_and_fastest_lines_and_says_how_many_there_are(page: Page) -> None:
    points = [(f"m{place}", 1.0 + place, None) for place in range(50)]
    spread = {f"{place}": [1.0 + place + part for part in (0, 0.1, 0.2, 0.3, 0.4, 1.0, 9.0)] for place in range(50)}
    caption = draw(page, "spread", data_of(*points, spread=spread), pins=["m49"])
    assert "the pinned and the fastest, 40 of 50 lines" in caption
    shown = page.evaluate(f"{NAMES}.map((one) => one.firstChild.textContent)")
    assert len(shown) == 40
    assert shown[-1] == "\u2068m49\u2069"


def test_the_running_mean_of_a_training_is_read_out_by_what_differs(page: Page) -> None:
    def curve(seed: int, loss: Sequence[float]) -> dict[str, Any]:
        steps = list(range(1, len(loss) + 1))
        return {"run": "a", "model": "m", "label": f"m, digits, seed {seed}", "steps": steps, "loss": list(loss)}

    curves = [curve(0, [5.0, *[3.0] * 8, 1.0, 1.0]), curve(1, [2.0]), curve(2, [])]
    draw(page, "training", data_of(("m", None, None), curves=curves))
    slider = page.get_by_role("slider")
    assert slider.get_attribute("aria-valuemax") == "2"  # one that diverged at once has no step
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    # the last five steps: half of the nine around the last one
    assert slider.get_attribute("aria-valuetext") == (
        "\u2068m, digits, seed 0\u2069: training loss 2.2 nat, the mean around step 11"
    )
    shown = page.evaluate(f"{NAMES}.map((one) => one.firstChild.textContent)")
    assert sorted(shown) == ["\u2068m, seed 0\u2069", "\u2068m, seed 1\u2069"]


def test_numbers_have_the_digits_of_tables(page: Page) -> None:
    script = """(columns) => columns.map((of) => charts.quantity(of, 0))"""
    columns = [
        number_column("latency", [14.4987], "ms", precision="measured", low=[14.1], high=[14.9]),
        number_column("latency", [1.0532], "ms", precision="measured", low=[1.052], high=[1.054]),
        number_column("latency", [1234.4], "ms", precision="measured"),
        number_column("params", [8.92], "M", precision="counted"),
        number_column("accuracy", [100.0], "%", precision="tenths", low=[98.2], high=[100]),
        number_column("GFLOPs", [0], "", precision="counted"),
    ]
    assert page.evaluate(script, columns) == [
        "14.5 [14.1, 14.9] ms",
        "1.053 [1.052, 1.054] ms",
        "1234 ms",
        "8.920 M",
        "100.0 [98.2, 100.0] %",
        "0 GFLOPs",
    ]

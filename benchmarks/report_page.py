"""How large a report's page is, how long it takes to render, and until a browser has drawn it.

``python -m benchmarks.report_page [--lines 60,1000,20000] [--loads 7]``, with a Chromium of the system

Drawn is when the frame after the page's mark ``drawn`` is done, counted from the start of the navigation. The limits
hold on two quiet cores; beyond one of them the exit code is 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.reports.browser import chromium
from tests.reports.synthetic import synthetic_runs
from vitbench.reports.html.page import render_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: lines -> at most so many MB, and seconds until drawn
LIMITS = {60: (1.0, 0.8), 1_000: (1.5, 1.2), 20_000: (5.0, 2.5)}
WATCH = """
new PerformanceObserver(list => {
    if (list.getEntriesByName("drawn").length)
        requestAnimationFrame(() => setTimeout(() => { window.drawnAt = performance.now() }))
}).observe({entryTypes: ["mark"]})
"""


def seconds_until_drawn(browser: Browser, page_file: Path) -> float:
    """One load in a fresh context, without caches."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.add_init_script(WATCH)
    page.goto(page_file.as_uri())
    page.wait_for_function("window.drawnAt")
    seconds: float = page.evaluate("window.drawnAt / 1000")
    page.context.close()
    return seconds


def main() -> None:
    """Print a Markdown table, one line a size of page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", default=",".join(map(str, LIMITS)), help="sizes of pages")
    parser.add_argument("--loads", type=int, default=7, help="times that each page is opened, after one more")
    options = parser.parse_args()
    exceeded = False
    print("| lines | MB | limit | rendered in (s) | drawn after (s): median (least to most) | limit |")
    print("| --: | --: | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        for lines in map(int, options.lines.split(",")):
            runs = synthetic_runs(lines)
            began = time.perf_counter()
            page_file = Path(temporary) / f"{lines}.html"
            page_file.write_text(render_html(runs), encoding="utf-8")
            rendered, size = time.perf_counter() - began, page_file.stat().st_size / 1e6
            times = [seconds_until_drawn(browser, page_file) for _ in range(options.loads + 1)][1:]
            drawn = statistics.median(times)
            most, longest = LIMITS.get(lines, (float("inf"), float("inf")))
            exceeded |= size > most or drawn > longest
            spread = f"{drawn:.2f} ({min(times):.2f} to {max(times):.2f})"
            print(f"| {lines} | {size:.2f} | {most} | {rendered:.1f} | {spread} | {longest} |", flush=True)
    sys.exit(exceeded)


if __name__ == "__main__":
    main()

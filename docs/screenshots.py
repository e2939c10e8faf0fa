"""Draw the README's two pictures of a report's page: ``python docs/screenshots.py``, with a Chromium of the system.

Writes docs/images/report-light.png and report-dark.png from the runs of results/.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.reports.browser import chromium  # noqa: E402
from vitbench.reports.html.page import render_html  # noqa: E402
from vitbench.reports.model.runs import read_runs  # noqa: E402

RUNS = ("lightweight-digits", "lightweight-cifar10", "frontier-vit_base16-2GiB")
OUT = ROOT / "docs" / "images"


def main() -> None:
    """The page as it opens, down to the middle of its table, in both colour schemes."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, chromium() as browser:
        page_file = Path(temporary) / "report.html"
        runs = read_runs(ROOT / "results" / "amd-epyc-2-cores" / name for name in RUNS)
        page_file.write_text(render_html(runs), encoding="utf-8")
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 1400})
            page.goto(page_file.as_uri())
            page.screenshot(path=OUT / f"report-{scheme}.png")
            page.close()


if __name__ == "__main__":
    main()

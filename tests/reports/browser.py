"""A headless Chromium of the system for pages of reports: for tests, benchmarks/report_page.py and docs/screenshots.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Playwright downloads browsers of its own; these are the system's.
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class NoBrowserError(Exception):
    """There is no browser here; the message says what to install."""


def find_chromium() -> str:
    """The program that the variable CHROME names, else the first of the usual names. Raises NoBrowserError."""
    for name in (os.environ.get("CHROME"), *_NAMES):
        if name and (found := shutil.which(name)):
            return found
    raise NoBrowserError(
        "no Chromium: install it (Debian: apt-get install chromium), or name it in the variable CHROME"
    )


@contextmanager
def chromium() -> Iterator[Browser]:
    """Raises NoBrowserError without Playwright's package or without a Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise NoBrowserError("Playwright is not installed: pip install -e '.[browser]'") from None
    program = find_chromium()
    with sync_playwright() as playwright:
        # its own sandbox needs what containers do not allow; the pages are ours
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()

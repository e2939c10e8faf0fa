"""Pages of reports in a real browser: what they print to its console, ask of the network and run is recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.reports.browser import NoBrowserError, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request


@pytest.fixture(scope="module")  # not longer: Playwright's event loop runs in this thread meanwhile
def browser() -> Iterator[Browser]:
    """Without a browser a test skips; where CI is set, it fails."""
    opening = chromium()
    try:
        found = opening.__enter__()
    except NoBrowserError as missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(missing))
    yield found
    opening.__exit__(None, None, None)


class Visitor:
    """Opens pages from the disk, in contexts of their own, and keeps what they must not do."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.contexts: list[BrowserContext] = []
        self.problems: list[str] = []
        self.expected = ""  # a part of messages that are no problem

    def open(self, path: Path, fragment: str = "", before: str = "", **options: Any) -> Page:
        """The page at ``path``; ``before`` is JavaScript that runs before its own, ``options`` are the context's."""
        options = {"viewport": {"width": 1280, "height": 900}, **options}
        context = self.browser.new_context(**options)
        self.contexts.append(context)
        context.set_default_timeout(10_000)
        context.on("request", self._keep_request)
        page = context.new_page()
        page.on("console", self._keep_message)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        if before:
            page.add_init_script(before)
        page.goto(path.as_uri() + fragment)
        return page

    def _keep_request(self, request: Request) -> None:
        # the page itself, and pictures and files that it holds or makes
        if request.is_navigation_request() and request.url.startswith("file:"):
            return
        if not request.url.startswith(("data:", "blob:", "about:")):
            self.problems.append(f"request: {request.url}")

    def _keep_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not (self.expected and self.expected in message.text):
            self.problems.append(f"{message.type}: {message.text}")


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visitor]:
    """Whose pages logged no error, asked for nothing and ran no name."""
    one = Visitor(browser)
    yield one
    ran = [page.evaluate("window.__xss") for context in one.contexts for page in context.pages if not page.is_closed()]
    for context in one.contexts:
        context.close()
    assert one.problems == []
    assert not any(ran)

"""What the tests of this folder share: hostile texts, a command and its one line of error, limits."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vitbench.cli import run_command

ROOT = Path(__file__).parents[2]
MODEL = "vit_basic_tutorial"
SIZE = 16
#: Orders to a terminal, to a browser, to a spreadsheet, to Markdown, to matplotlib and to rich, and text that reads
#: backwards.
HOSTILE = (
    "=cmd|' /C calc'!A0 \x1b[2J\x1b]0;owned\x07<script>alert(1)</script>|`rm -rf`\n\r\n- not a list\x00 \u202egnp.exe\x9b31m "
    "![x](http://evil/x.png) [y](javascript:alert(1)) $\\frac{$ *b* &lt; [bold red]z[/] :smile: \udcff"
)
ESCAPES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def one_error(errors: str) -> str:
    """The only line that is no note on what is under way."""
    notes = r"Loading torch|Looking for|Trying the weights|The weights of|Reading the images|Counting|\d trainings|Training \d of"
    lines = [line for line in errors.splitlines() if not re.match(notes, line)]
    assert len(lines) == 1, errors
    assert lines[0].startswith("Error: ")
    assert not ESCAPES.search(errors.replace("\n", ""))
    assert len(lines[0]) < 2100
    return lines[0]


def ask(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = run_command([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


BASIC = f'models = ["{MODEL}"]\n'
LONG = "x" * 300


class Executed:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@contextlib.contextmanager
def within_memory(more: int) -> Iterator[None]:
    """No more than ``more`` bytes beyond what is taken already; what fails for memory says so."""
    import resource

    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmData:\s+(\d+) kB", status)
    assert found is not None
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(found[1]) * 1024 + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)

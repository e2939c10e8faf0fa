"""Numbers and texts as a reader sees them: few digits, no private paths, Markdown escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from vitbench.core.text import printable

#: Stands where nothing was asked for.
NOT_ASKED = "–"

# A path in quotes may hold spaces.
_QUOTED = re.compile(r"""(?P<quote>['"])(?:[A-Za-z]:[\\/]|~|/)(?P<rest>[^'"\n]*)(?P=quote)""")
# A home folder: its name is the user's.
_HOME = re.compile(r"""(?:(?<![\w.])/(?:home|Users)/|\b[A-Za-z]:[\\/]Users[\\/])[^\s'"<>|,;:()\[\]\\/]+""")
# An absolute path, and what comes before its last part. The look-behind spares image/s, 1/2 and https://.
_PATH = re.compile(
    r"""(?<![\w./~…])(?:[A-Za-z]:[\\/]|~[\w.-]*[\\/]|file:///?|/(?!/))(?=[^\s'"<>|,;:()])  # where it starts
        (?:[^\s'"<>|,;:()\[\]\\/]+[\\/])*                                               # the folders
        (?P<last>[^\s'"<>|,;:()\[\]\\/]*)                                                # what it names""",
    re.VERBOSE,
)


def decimals(value: float, digits: int) -> int:
    """How many decimals show ``digits`` significant digits; never negative: whole units are not rounded away."""
    if value == 0 or not math.isfinite(value):
        return 0
    # From the rounded value: 9.999 with 3 digits is 10.0, not 10.00.
    return max(digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))), 0)


def number(value: float, digits: int = 3) -> str:
    """``digits`` significant digits, whole units in full: 0.01235, 5.72, 86.6, 1234."""
    return f"{value:.{decimals(value, digits)}f}"


def interval_decimals(value: float, low: float | None, high: float | None, digits: int = 3) -> int:
    """The ``decimals`` of a value and its interval: one more where the ends would read alike though they differ."""
    places = decimals(value, digits)
    alike = low is not None and high is not None and low != high and f"{low:.{places}f}" == f"{high:.{places}f}"
    return places + alike


def with_interval(value: float, low: float | None, high: float | None, digits: int = 3) -> str:
    """``12.3 [12.1, 12.6]``, with ``interval_decimals``."""
    if low is None or high is None:
        return number(value, digits)
    places = interval_decimals(value, low, high, digits)
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def percent(fraction: float) -> str:
    """A signed difference in percent: ``-13.9``, ``+0.4``, ``0.0``; two decimals below 0.1."""
    value = 100 * fraction
    places = 2 if 0 < abs(value) < 0.1 else 1
    text = f"{value:+.{places}f}"
    return text[1:] if float(text) == 0 else text


def share(fraction: float) -> str:
    """A fraction in per cent: ``98.61 %``."""
    return f"{100 * fraction:.2f} %"


def without_paths(text: str) -> str:
    """Absolute paths cut down to what they name (``…/report.py``): a report may be published, a home folder not."""
    text = _HOME.sub("~", text)
    text = _QUOTED.sub(lambda match: f"{match['quote']}…/{_last_part(match['rest'])}{match['quote']}", text)
    return _PATH.sub(lambda match: f"…/{match['last']}", text)


def _last_part(path: str) -> str:
    """What a path names, whether or not a separator ends it."""
    parts = re.split(r"[\\/]", path)
    return parts[-1] if parts[-1] or len(parts) == 1 else parts[-2]


def telling_line(stderr_tail: str) -> str:
    """The first line of what a worker printed; of a traceback the last one, which names the error."""
    lines = [line.strip() for line in stderr_tail.splitlines() if line.strip()]
    if not lines:
        return ""
    return lines[-1] if lines[0].startswith(("Traceback", "Fatal Python error", "File ")) else lines[0]


def plain_text(text: str, limit: int = 200) -> str:
    """A text on one line of at most ``limit`` characters, without private paths and control characters."""
    line = printable(" ".join(without_paths(text[: 50 * limit]).split()))
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def cell_text(text: str, limit: int = 200) -> str:
    """``plain_text`` as one cell of a Markdown table, escaped."""
    return escape_markdown(plain_text(text, limit))


def escape_markdown(text: str) -> str:
    """What Markdown and HTML would obey, escaped."""
    text = text.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = text.replace("](", "]\\(")  # no link, no image from elsewhere
    return re.sub(r"([|`*$])", r"\\\1", text)


def table(headings: Sequence[str], lines: Sequence[Sequence[str]], texts: Sequence[str]) -> str:
    """A Markdown table; the columns headed ``texts`` are left-aligned. Cells are escaped already."""
    from tabulate import tabulate

    align = ["left" if heading in texts else "right" for heading in headings]
    return tabulate(lines, headings, tablefmt="pipe", colalign=align, disable_numparse=True)

"""Texts from files and strangers, so that a terminal shows them and does not obey them, nor a spreadsheet."""

from __future__ import annotations

import re

#: Of what is told in one line; nobody reads on.
_LONGEST_LINE = 2000

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: What a spreadsheet takes a text for a formula by, the full-width forms included.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def printable(text: str) -> str:
    """``text`` with what is not shown (control characters, directions of writing, halves of characters) written as
    Python's escapes, and so on one line. Names of files and classes come from anywhere.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def printable_lines(text: str) -> str:
    """``printable`` for a text of several lines, which stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(text: str, limit: int = _LONGEST_LINE) -> str:
    """``printable``, and at most ``limit`` characters: of a longer text the middle is left out, as what happened stands
    at its beginning and the way out at its end.
    """
    # an escape takes up to ten characters: what is left out anyway need not be escaped first
    some = text if len(text) <= limit else f"{text[:limit]}{text[-limit:]}"
    line = printable(some)
    if len(text) <= limit and len(line) <= limit:
        return line
    half = (limit - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"


def csv_text(text: str) -> str:
    """A text as one cell of a CSV file: on one line, and behind an apostrophe if a spreadsheet would carry it out.

    A text that is a number (``-5``) stays one.
    """
    line = printable(text)
    if text[:1] not in ("\t", "\r") and (not line.lstrip(" ").startswith(_FORMULA) or _NUMBER.fullmatch(line)):
        return line
    return f"'{line}"


def csv_value(value: object) -> object:
    """``csv_text`` of a text, or of what is written as one (a list); numbers, truth values and nothing as they are."""
    return value if value is None or isinstance(value, bool | int | float) else csv_text(str(value))

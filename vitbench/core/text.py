"""Escape untrusted text for terminals and spreadsheets."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: How a formula of a spreadsheet begins, full-width forms included.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def printable(text: str) -> str:
    """``text`` on one line, with unprintable characters (control characters, directions of writing, surrogates) as
    Python's escapes.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def printable_lines(text: str) -> str:
    """``printable`` for a text of several lines, which stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(text: str, limit: int = 2000) -> str:
    """``printable`` in at most ``limit`` characters. A longer text loses its middle: the beginning says what happened,
    the end what to do.
    """
    # only the characters that can remain are escaped
    line = printable(text if len(text) <= limit else f"{text[:limit]}{text[-limit:]}")
    if len(text) <= limit and len(line) <= limit:
        return line
    half = (limit - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"


def csv_text(text: str) -> str:
    """A text as one cell of a CSV file: on one line, and after an apostrophe if a spreadsheet would execute it. A
    number (``-5``) stays a number.
    """
    line = printable(text)
    if text[:1] not in ("\t", "\r") and (not line.lstrip(" ").startswith(_FORMULA) or _NUMBER.fullmatch(line)):
        return line
    return f"'{line}"


def csv_value(value: object) -> object:
    """``csv_text`` of a text or a list; numbers, booleans and None as they are."""
    return value if value is None or isinstance(value, bool | int | float) else csv_text(str(value))

"""Texts from files and strangers, so that a terminal shows them and does not obey them."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` with what is not shown (control characters, directions of writing, halves of characters) written as
    Python's escapes, and so on one line. Names of files and classes come from anywhere.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)

"""Explanations are short: a reader gets through a sentence at once."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from vitbench.reports import explanations

MOST_WORDS = 25


def texts() -> Iterator[str]:
    for name, value in vars(explanations).items():
        if name.isupper() and not name.startswith("_"):
            yield from value.values() if isinstance(value, dict) else [value] if isinstance(value, str) else []


@pytest.mark.parametrize("text", texts(), ids=lambda text: text[:30])
def test_no_sentence_is_long(text: str) -> None:
    sentences = re.split(r"(?<=[.!?])\s+", text)
    assert [one for one in sentences if len(one.split()) > MOST_WORDS] == []


def test_all_of_them_are_a_page() -> None:
    assert 400 < sum(len(text.split()) for text in texts()) < 900

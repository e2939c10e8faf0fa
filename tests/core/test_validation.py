"""Stored JSON is validated strictly, and the first problem is named with its place and value in one line."""

from __future__ import annotations

from typing import Any, NotRequired

import pytest
from typing_extensions import TypedDict

from vitbench.core.validation import Count, Flag, Number, Positive, Share, Whole, check, depth_exceeds, is_number

EVERYTHING: list[Any] = [
    *(None, True, -1, 0, 1, 0.5, 2.5, 2**63, 10**400, 1e200, float("nan"), float("inf"), "", "a", [], {})
]
HOLDS: dict[str, tuple[Any, list[Any]]] = {
    "text": (str, ["", "a"]),
    "flag": (Flag, [True]),
    "number": (Number, [-1, 0, 1, 0.5, 2.5, 2**63]),
    "whole": (Whole, [-1, 0, 1]),
    "count": (Count, [0, 1]),
    "positive": (Positive, [1]),
    "share": (Share, [0, 1, 0.5]),
    "object": (dict[str, Any], [{}]),
    "list": (list[Any], [[]]),
    "text or null": (str | None, [None, "", "a"]),
}


@pytest.mark.parametrize("name", HOLDS)
def test_a_type_takes_its_values_and_converts_no_others(name: str) -> None:
    kind, allowed = HOLDS[name]
    pairs = [(type(value), value) for value in allowed]
    for value in EVERYTHING:
        if (type(value), value) in pairs:
            check(value, kind, "it")
            continue
        with pytest.raises(ValueError, match=r"^it is ") as caught:
            check(value, kind, "it")
        assert len(str(caught.value)) < 130
    assert [value for value in EVERYTHING if is_number(value)] == HOLDS["number"][1]


class Place(TypedDict):
    x: Number


class Content(TypedDict):
    name: str
    sizes: list[Count]
    note: NotRequired[str | None]
    place: NotRequired[Place]
    by: dict[str, Flag]
    size: NotRequired[str | Positive]


GOOD = {"name": "a", "sizes": [1, 2], "by": {"a": True}, "unknown": [[]]}


@pytest.mark.parametrize(
    "content",
    [GOOD, {**GOOD, "note": None, "sizes": []}, {**GOOD, "note": "a", "place": {"x": 1, "y": None}, "by": {}}],
)
def test_content_of_the_type_passes_with_keys_that_the_type_does_not_name(content: dict[str, Any]) -> None:
    check(content, Content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "its content is a list, not an object"),
        (None, "its content is null, not an object"),
        ("text", "its content is 'text', not an object"),
        ({}, "name is missing"),
        ({**GOOD, "name": ["a"]}, "name is a list, not text"),
        ({**GOOD, "name": {}}, "name is an object, not text"),
        ({**GOOD, "sizes": 3}, "sizes is 3, not a list"),
        ({**GOOD, "sizes": "ab"}, "sizes is 'ab', not a list"),
        ({**GOOD, "sizes": [1, 2, -1]}, "sizes[2] is -1: it should be greater than or equal to 0"),
        ({**GOOD, "note": False}, "note is false, not text"),
        ({**GOOD, "place": None}, "place is null, not an object"),
        ({**GOOD, "place": {}}, "place.x is missing"),
        ({**GOOD, "size": [1]}, "size is a list, not text or a whole number"),
        ({**GOOD, "by": {"a": True, "b\n": 1}}, "by.b\\n is 1, not true or false"),
        ({**GOOD, "by": {"k" * 99: "v" * 99}}, f"by.{'k' * 40}... is '{'v' * 40}...', not true or false"),
    ],
)
def test_the_first_problem_is_named(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^") as caught:
        check(content, Content)
    assert str(caught.value) == message


def test_depth_is_found_without_recursion() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert depth_exceeds(deep, 50)
    assert not depth_exceeds({"a": [{"b": [1, "text"]}]}, 4)
    assert depth_exceeds({"a": [{"b": [1, "text"]}]}, 3)

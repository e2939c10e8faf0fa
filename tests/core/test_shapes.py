"""What JSON has to look like: the first place where it does not is named, in words."""

from __future__ import annotations

from typing import Any

import pytest

from vitbench.core.shapes import (
    ANYTHING,
    COUNT,
    FLAG,
    LIST,
    NUMBER,
    OBJECT,
    POSITIVE,
    SHARE,
    TEXT,
    WHOLE,
    Kind,
    Maybe,
    check_present,
    check_shape,
    depth_exceeds,
)

EVERYTHING: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    0.5,
    2.5,
    2**63,
    10**400,
    1e200,
    float("nan"),
    float("inf"),
    "",
    "a",
    [],
    {},
]
HOLDS: list[tuple[Kind, list[Any]]] = [
    (TEXT, ["", "a"]),
    (FLAG, [True]),
    (NUMBER, [-1, 0, 1, 0.5, 2.5, 2**63]),
    (WHOLE, [-1, 0, 1]),
    (COUNT, [0, 1]),
    (POSITIVE, [1]),
    (SHARE, [0, 1, 0.5]),
    (OBJECT, [{}]),
    (LIST, [[]]),
    (TEXT.or_null(), [None, "", "a"]),
    (POSITIVE.or_null(), [None, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "allowed"), HOLDS, ids=[kind.name for kind, _ in HOLDS])
def test_a_kind_takes_what_it_says_and_nothing_else(kind: Kind, allowed: list[Any]) -> None:
    pairs = [(type(value), value) for value in allowed]
    for value in EVERYTHING:
        if (type(value), value) in pairs:
            check_shape(value, kind, "it")
            continue
        with pytest.raises(ValueError, match=r"^it is .*, not ") as caught:
            check_shape(value, kind, "it")
        assert str(caught.value).endswith(f", not {kind.name}")
        assert len(str(caught.value)) < 100


SHAPE = {
    "name": TEXT,
    "sizes": [COUNT],
    "note": Maybe(TEXT),
    "place": Maybe({"x": NUMBER}, null=False),
    "by": {...: FLAG},
}
GOOD = {"name": "a", "sizes": [1, 2], "by": {"a": True}, "unknown": [[]]}


@pytest.mark.parametrize(
    "content",
    [GOOD, {**GOOD, "note": None, "sizes": []}, {**GOOD, "note": "a", "place": {"x": 1, "y": None}, "by": {}}],
)
def test_what_has_the_shape_passes(content: dict[str, Any]) -> None:
    check_shape(content, SHAPE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "its content is a list, not an object"),
        (None, "its content is null, not an object"),
        ("text", "its content is 'text', not an object"),
        ({}, "name is missing"),
        ({**GOOD, "name": ["a"]}, "name is a list, not text"),
        ({**GOOD, "name": {}}, "name is an object, not text"),
        ({**GOOD, "sizes": 3}, "sizes is 3, not a list"),
        ({**GOOD, "sizes": "ab"}, "sizes is 'ab', not a list"),
        ({**GOOD, "sizes": [1, 2, 10**30]}, "sizes[2] is a number of too many digits, not a count"),
        ({**GOOD, "note": False}, "note is false, not text"),
        ({**GOOD, "place": None}, "place is null, not an object"),
        ({**GOOD, "place": {}}, "place.x is missing"),
        ({**GOOD, "by": {"a": True, "b\n": 1}}, "by.b\\n is 1, not true or false"),
        ({**GOOD, "by": {"k" * 99: "v" * 99}}, f"by.{'k' * 40}... is '{'v' * 40}...', not true or false"),
    ],
)
def test_the_first_place_that_has_not_is_named(content: Any, said: str) -> None:
    with pytest.raises(ValueError, match="^") as caught:
        check_shape(content, SHAPE)
    assert str(caught.value) == said


def test_keys_that_may_all_be_missing_are_looked_at_where_they_are() -> None:
    check_present({}, {"a": TEXT})
    check_present({"b": 1}, {"a": TEXT, "c": ANYTHING})
    with pytest.raises(ValueError, match=r"^cell\.a is 1, not text$"):
        check_present({"a": 1}, {"a": TEXT}, "cell")
    with pytest.raises(ValueError, match=r"^cell is a list, not an object$"):
        check_present([], {"a": TEXT}, "cell")


def test_depth_is_told_without_going_down_into_it() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert depth_exceeds(deep, 50)
    assert not depth_exceeds({"a": [{"b": [1, "text"]}]}, 4)
    assert depth_exceeds({"a": [{"b": [1, "text"]}]}, 3)

"""What JSON from a file has to look like before anything uses it, and the words for the place where it does not.

A shape is a Kind (``TEXT``, ``NUMBER``, ...), a list with the shape of its items, or a dict of keys with theirs, in
which ``...`` stands for every key. Keys that a shape does not name may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vitbench.core.text import printable

#: Beyond these a sum or a product of a few is no number any more, or no system counts so far.
_LARGEST_NUMBER = 1e100
_LARGEST_COUNT = 2**63 - 1
#: Of a name in a place: a stranger's may be long.
_LONGEST_NAME = 40


@dataclass(frozen=True)
class Kind:
    """What one value may be: its name in an error, and the test."""

    name: str
    holds: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """The same, or null."""
        return Kind(f"{self.name} or null", lambda value: value is None or self.holds(value))


@dataclass(frozen=True)
class Maybe:
    """A value that may be missing, or, unless ``null`` is false, null."""

    shape: Any
    null: bool = True


def is_number(value: Any) -> bool:
    """Whether it is a finite number of a size that can be reckoned with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER  # false for NaN


def is_whole(value: Any) -> bool:
    """Whether it is a whole number that a system counts to."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_COUNT


TEXT = Kind("text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a number", is_number)
WHOLE = Kind("a whole number", is_whole)
COUNT = Kind("a count", lambda value: is_whole(value) and value >= 0)
POSITIVE = Kind("a count from 1", lambda value: is_whole(value) and value >= 1)
SHARE = Kind("a share from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
ANYTHING = Kind("anything", lambda value: True)
OBJECT = Kind("an object", lambda value: isinstance(value, Mapping))
#: One whose items are looked at elsewhere.
LIST = Kind("a list", lambda value: isinstance(value, list | tuple))


def check_shape(value: Any, shape: Any, place: str = "") -> None:
    """Raises ValueError, such as ``sessions[0].command_line is a list, not text``, unless ``value`` has ``shape``.

    ``place`` is what ``value`` itself is called; by default ``its content``.
    """
    if isinstance(shape, Maybe):
        if value is not None or not shape.null:
            check_shape(value, shape.shape, place)
    elif isinstance(shape, Kind):
        if not shape.holds(value):
            raise ValueError(f"{place or 'its content'} is {describe(value)}, not {shape.name}")
    elif isinstance(shape, list):
        if not LIST.holds(value):
            raise ValueError(f"{place or 'its content'} is {describe(value)}, not a list")
        for index, one in enumerate(value):
            check_shape(one, shape[0], f"{place}[{index}]")
    else:
        _check_object(value, shape, place)


def _check_object(value: Any, shape: Mapping[Any, Any], place: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place or 'its content'} is {describe(value)}, not an object")
    for key, inner in shape.items():
        if key is ...:
            for name, one in value.items():
                check_shape(one, inner, _joined(place, str(name)))
        elif key in value:
            check_shape(value[key], inner, _joined(place, key))
        elif not isinstance(inner, Maybe):
            raise ValueError(f"{_joined(place, key)} is missing")


def check_present(value: Any, shape: Mapping[str, Any], place: str = "") -> None:
    """``check_shape`` of an object whose keys may all be missing."""
    there = value if isinstance(value, Mapping) else {}
    _check_object(value, {key: inner for key, inner in shape.items() if key in there}, place)


def describe(value: Any) -> str:
    """A value in a few words: ``a list``, ``'abc'``, ``-3``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, str):
        return repr(_shortened(value))
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) > _LARGEST_COUNT:
        return "a number of too many digits"
    return str(value)


def depth_exceeds(value: Any, most: int) -> bool:
    """Whether lists and objects lie more than ``most`` deep in each other: more than what walks them can follow."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for one in level
            if isinstance(one, list | dict)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def _joined(place: str, key: str) -> str:
    name = _shortened(printable(key))
    return f"{place}.{name}" if place else name


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."

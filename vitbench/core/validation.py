"""Validate stored JSON with pydantic; the first problem is named in one line: ``sessions[0].commit is 7, not text``.

A type says what a value must be: a TypedDict, a dataclass, or one of the types below, which convert nothing. Keys that
a TypedDict does not name may hold anything.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, StrictBool, TypeAdapter, ValidationError

from vitbench.core.text import printable

# Beyond these the sum or product of a few values overflows, or no system counts that far.
_LARGEST_NUMBER = 1e100
_LARGEST_COUNT = 2**63 - 1

Flag = StrictBool
#: A finite number.
Number = Annotated[float, Field(strict=True, ge=-_LARGEST_NUMBER, le=_LARGEST_NUMBER, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True, ge=-_LARGEST_COUNT, le=_LARGEST_COUNT)]
Count = Annotated[int, Field(strict=True, ge=0, le=_LARGEST_COUNT)]
Positive = Annotated[int, Field(strict=True, ge=1, le=_LARGEST_COUNT)]

#: What pydantic's errors expect, in words; any other error brings words of its own.
_EXPECTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "dataclass_type", "model_type"), "an object"),
}
#: Names and texts in an error are cut to this length: they can be anybody's.
_LONGEST_NAME = 40


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """The validator of a type, made once."""
    return TypeAdapter(kind)


def parse(value: Any, kind: Any, place: str = "") -> Any:
    """Parsed JSON as a value of the type ``kind``. Raises ValueError in one line; ``place`` is what the error calls
    ``value`` (by default ``its content``).
    """
    try:
        return adapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(problem(error, place)) from None


def check(value: Any, kind: Any, place: str = "") -> None:
    """Raises ValueError as ``parse`` does. ``value`` keeps the keys that ``kind`` does not name."""
    parse(value, kind, place)


def problem(error: ValidationError, place: str = "") -> str:
    """The first problem of a validation in one line: its place, what is there, and what was expected."""
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] in ("missing", "missing_argument", "extra_forbidden", "unexpected_keyword_argument"):
        unknown = "is missing" if first["type"].startswith("missing") else "is not a known field"
        return f"{_place(first['loc'], place)} {unknown}"
    loc = first["loc"]
    alternatives = [first]
    if len(errors) > 1 and errors[1]["loc"][:-1] == loc[:-1] and errors[1]["input"] is first["input"]:
        # of a union: pydantic adds the name of each alternative to the place
        loc = loc[:-1]
        alternatives = [one for one in errors if one["loc"][:-1] == loc]
    found = f"{_place(loc, place) or 'its content'} is {describe(first['input'])}"
    expected = [_EXPECTED[one["type"]] for one in alternatives if one["type"] in _EXPECTED]
    if expected:
        return f"{found}, not {' or '.join(dict.fromkeys(expected))}"
    if isinstance(first["input"], int | float) and abs(first["input"]) > _LARGEST_COUNT:
        return f"{found}, which is too large"
    return f"{found}: {first['msg'].replace('Input should', 'it should')}"


def _place(loc: Iterable[str | int], place: str) -> str:
    for part in loc:
        if isinstance(part, int):
            place += f"[{part}]"
        else:
            place += f"{'.' if place else ''}{_shortened(printable(part))}"
    return place


def describe(value: Any) -> str:
    """A value in a few words: ``a list``, ``'abc'``, ``-3``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) > _LARGEST_COUNT:
        return "a number of too many digits"
    return repr(_shortened(value)) if isinstance(value, str) else _shortened(printable(str(value)))


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that can be computed with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER  # false for NaN


def depth_exceeds(value: Any, most: int) -> bool:
    """Whether lists and objects are nested more than ``most`` deep, which recursive code could not walk."""
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


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."

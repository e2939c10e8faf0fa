"""What a suite's validator takes, its written form says again: for every field of the schema, whatever it holds."""

from __future__ import annotations

import tempfile
import types
import typing
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BeforeValidator, ValidationError

from vitbench.core.errors import SuiteError
from vitbench.core.registry import METRICS
from vitbench.models.cards import model_registry
from vitbench.regression.compare import read_thresholds
from vitbench.suites import Suite, load_suite, make_suite, to_toml
from vitbench.suites.schema import (
    Exclude,
    Frontier,
    Measure,
    Table,
    Threshold,
    Training,
    _as_list,
    _image_size,
    parse_bytes,
)
from vitbench.suites.thresholds import known_metrics, parse_fraction, parse_tolerance, written_tolerance

MODELS = sorted(model_registry())[:12]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["\x7f", 'a"b', "'''", "\\u0041", "#", "\r\n", "[x]", "=", "\ufeff", "\u2028"]
)
SIDES = st.integers(1, 65_536)
PER_CENT = st.integers(0, 100_000).map(lambda hundredths: f"{hundredths / 100}%")
#: What texts or lists stand for: each validator's own forms.
FORMS: dict[Any, st.SearchStrategy[Any]] = {
    _image_size: st.sampled_from(["native", "224", "231x240"])
    | SIDES
    | st.tuples(SIDES, SIDES)
    | st.builds("{}x{}".format, SIDES, SIDES),
    parse_bytes: st.integers(1, 2**60)
    | st.builds(
        "{}{}".format, st.integers(1000, 999_999).map(lambda n: n / 1000), st.sampled_from(["", " B", "KiB", " gb"])
    ),
    parse_fraction: st.floats(0, 1, exclude_max=True) | st.integers(0, 9999).map(lambda n: f"{n / 100}%"),
    parse_tolerance: PER_CENT | st.floats(0, 1, exclude_max=True) | st.sampled_from([0, "5 %"]),
}
#: Names that must be known.
NAMED: dict[str, st.SearchStrategy[Any]] = {
    "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    "models": st.sampled_from([*MODELS, "cifar_*"]) | TEXTS.map(lambda text: f"timm:{text}"),
    "metrics": st.sampled_from(sorted(METRICS)),
    "metric": st.sampled_from(["*", "relative_*", *known_metrics()]),
    "cells": st.just("*"),
}


def values(annotation: Any, name: str, metadata: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """What a field of that type may be given. Raises TypeError for a type that this test does not know."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return values(arguments[0], name, (*arguments[1:], *metadata))
    before = next((one.func for one in metadata if isinstance(one, BeforeValidator)), None)
    if before in FORMS:
        return FORMS[before]
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values(one, name, metadata) for one in arguments))
    if origin is tuple:
        fewest = limit(metadata, "min_length", 0)
        item = values(arguments[0], name)
        return st.lists(item, min_size=fewest, max_size=3) | (item if before is _as_list else st.nothing())
    if annotation is type(None):
        return st.none()
    if annotation is bool:
        return st.booleans()
    if origin is Literal:
        return st.sampled_from(arguments)
    if annotation is str:
        return NAMED.get(name, TEXTS)
    if annotation in (int, float):
        return numbers(annotation, metadata)
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return tables(annotation)
    raise TypeError(f"{name}: {annotation}")


def limit(metadata: tuple[Any, ...], name: str, otherwise: Any = None) -> Any:
    """The bound of that name (``ge``, ``min_length``) among a field's annotations."""
    found = [one for given in metadata for one in getattr(given, "metadata", [given])]
    return next((getattr(one, name) for one in found if hasattr(one, name)), otherwise)


def numbers(kind: type, metadata: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    at_least, above, at_most, below = (limit(metadata, name) for name in ("ge", "gt", "le", "lt"))
    if kind is int:
        return st.integers(at_least, at_most if below is None else below - 1)
    lowest, highest = (at_least if above is None else above), (at_most if below is None else below)
    return st.floats(
        lowest, highest, exclude_min=above is not None, exclude_max=below is not None, allow_infinity=False
    )


def tables(kind: type[Table]) -> st.SearchStrategy[dict[str, Any]]:
    """The content of a table, with any of its keys that go together."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {name: values(hints[name], name) for name in kind.model_fields}
    required = {name: fields.pop(name) for name, field in kind.model_fields.items() if field.is_required()}
    return st.fixed_dictionaries(required, optional=fields).map(lambda content: without_contradictions(kind, content))


def without_contradictions(kind: type[Table], content: dict[str, Any]) -> dict[str, Any]:
    content = dict(content)
    while content:
        try:
            kind.model_validate(content)
            break
        except ValidationError as error:
            place = error.errors()[0]["loc"]
        # what contradicts another key has no place: the last of those that need not be there goes
        optional = [key for key in content if not kind.model_fields[key].is_required()]
        del content[str(place[0]) if place else optional[-1]]
    return content


#: Each table in the key that holds it; any key of the suite itself.
TABLES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "suite": tables(Suite),
    "measure": tables(Measure),
    "frontier": tables(Frontier),
    "training": tables(Training),
    "exclude": tables(Exclude).filter(bool).map(lambda rule: [rule]),
    "thresholds": tables(Threshold).map(lambda rule: [rule]),
}


@pytest.mark.integration
@pytest.mark.parametrize("key", TABLES)
@settings(deadline=None, derandomize=True)
@given(st.data())
def test_what_a_suite_takes_its_written_form_takes_again(key: str, data: st.DataObject) -> None:
    content = data.draw(TABLES[key])
    suite = make_suite(content if key == "suite" else {"name": "mine", "models": "*", key: content}, "mine.toml")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "suite.toml")
        path.write_bytes(to_toml(suite).encode())
        assert load_suite(str(path)) == suite
        assert read_thresholds(Path(folder)) == suite.thresholds
    assert make_suite(suite.model_dump(exclude_none=True), "options") == suite  # as options are laid over it


@pytest.mark.parametrize("text", ["150%", "7.1%", "0.7%", "1000%", "0", "1e-300", "0.3000000000000000444"])
def test_a_tolerance_is_written_as_the_fraction_that_it_is(text: str) -> None:
    fraction = parse_tolerance(text)
    assert fraction == float(Fraction(text.removesuffix("%")) / (100 if text.endswith("%") else 1))
    assert parse_tolerance(written_tolerance(fraction)) == fraction


def test_a_path_that_no_suite_file_can_hold_is_refused() -> None:
    with pytest.raises(SuiteError, match=r"Option --weights: '\\udcff.pt' is not valid Unicode"):
        make_suite({"name": "mine", "models": "*"}, "mine.toml", {"weights": "\udcff.pt"})

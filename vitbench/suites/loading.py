"""Read suite files, validate them, and write suites back as TOML. Errors name file, key and the closest legal name."""

from __future__ import annotations

import difflib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitbench.core.errors import SuiteError, UnknownNameError
from vitbench.core.files import read_toml
from vitbench.core.records import ATTENTIONS, DTYPES, MODES
from vitbench.core.registry import METRICS
from vitbench.models.cards import find_models, is_external, is_pattern
from vitbench.suites.schema import (
    Conditions,
    Exclude,
    Frontier,
    Measure,
    Suite,
    Table,
    Threshold,
    Training,
    matches,
    written_size,
)
from vitbench.suites.thresholds import known_metrics

DEFAULT_SUITE = "lightweight"
#: Command-line options that have another name than the key that they replace.
OPTIONS = {"seeds": "seed", "timeout_s": "timeout"}

_TABLES: Mapping[str, type[Table]] = {
    "measure": Measure,
    "frontier": Frontier,
    "training": Training,
    "exclude": Exclude,
    "thresholds": Threshold,
}
_CHOICES = {"dtypes": DTYPES, "attention": ATTENTIONS, "modes": MODES}


def list_suites() -> dict[str, Path]:
    """The built-in suites: name to file."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def find_suite(name_or_path: str) -> Path:
    """The file of a built-in suite, or the path given. Raises UnknownNameError or SuiteError."""
    built_in = list_suites()
    if name_or_path in built_in:
        return built_in[name_or_path]
    path = Path(name_or_path)
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        return path
    if path.suffix == ".toml":
        raise SuiteError(f"Suite file {name_or_path!r} does not exist. See: vitbench list suites")
    raise UnknownNameError("suite", name_or_path, built_in, "vitbench list suites")


def load_suite(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Suite:
    """Read and validate a suite; ``overrides`` (key to value) replace its keys, and errors call them command-line
    options.

    Raises SuiteError (file, key, allowed keys or values) and UnknownNameError.
    """
    path = find_suite(name_or_path)
    try:
        content = read_toml(path, f"Suite {path.name}")
    except ValueError as error:
        raise SuiteError(str(error)) from error
    content.setdefault("name", path.stem)
    return make_suite(content, path.name, overrides or {})


def make_suite(content: Mapping[str, Any], source: str, overrides: Mapping[str, Any] | None = None) -> Suite:
    """Validate a suite's content. Raises SuiteError, and UnknownNameError for models and metrics."""
    overrides = overrides or {}
    try:
        suite = Suite.model_validate({**content, **overrides})
    except ValidationError as error:
        raise SuiteError(_first_problem(error, source, overrides)) from error
    for name in suite.metrics:
        METRICS.get(name)
    for rule in suite.exclude:
        for pattern in rule.models or ():
            find_models(pattern)  # a typo would silently drop nothing
    names = tuple(dict.fromkeys(itertools.chain.from_iterable(find_models(pattern) for pattern in suite.models)))
    check_thresholds(suite.thresholds, f"Suite {source}, key thresholds", models=names)
    return suite.model_copy(update={"models": names})


class _Thresholds(Table):
    thresholds: tuple[Threshold, ...] = ()


def make_thresholds(
    tables: Any, source: str, *, models: Iterable[str] | None = None, metrics: Iterable[str] = ()
) -> tuple[Threshold, ...]:
    """Validate the ``[[thresholds]]`` tables of ``source`` without a suite. Raises SuiteError for an invalid one, and
    as ``check_thresholds`` does.
    """
    try:
        rules = _Thresholds.model_validate({"thresholds": tables}).thresholds
    except ValidationError as error:
        raise SuiteError(_first_problem(error, source, {})) from error
    check_thresholds(rules, f"Suite {source}, key thresholds", models=models, metrics=metrics)
    return rules


def check_thresholds(
    rules: Iterable[Threshold], where: str, *, models: Iterable[str] | None = None, metrics: Iterable[str] = ()
) -> None:
    """Raises SuiteError, in a line that begins with ``where``, for a rule that matches nothing: neither a declared
    metric nor one of ``metrics``, or none of ``models``.
    """
    names = list(models) if models is not None else None
    known = known_metrics(metrics)
    for rule in rules:
        if not any(matches(name, rule.metric) for name in known):
            close = difflib.get_close_matches(rule.metric, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}"
            raise SuiteError(f"{where}: there is no metric {rule.metric!r} to compare. {hint}")
        for pattern in rule.cells if names is not None else ():
            # only another library can resolve a pattern over its names
            if not any(matches(name, pattern) or (is_external(name) and is_pattern(name)) for name in names or ()):
                raise SuiteError(f"{where}: no model is called {pattern!r} here: {_some_of(names or [])}")


def to_toml(suite: Suite) -> str:
    """The suite as a TOML text that loads as the same suite."""
    content = suite.model_dump(mode="json", exclude_none=True)
    content["image_sizes"] = [written_size(size) for size in suite.image_sizes]
    if suite.training is not None and suite.training.image_size is not None:
        content["training"]["image_size"] = written_size(suite.training.image_size)
    given: Sequence[Conditions] = (*suite.exclude, *suite.thresholds)
    rules = {key: content.pop(key, []) for key in ("exclude", "thresholds")}
    for rule, written in zip(given, itertools.chain.from_iterable(rules.values()), strict=True):
        if rule.image_sizes is not None:
            written["image_sizes"] = [written_size(size) for size in rule.image_sizes]
    tables = {key: content.pop(key) for key in ("measure", "frontier", "training") if key in content}
    lines = _lines_of(content)
    lines += [line for key, table in tables.items() for line in ("", f"[{key}]", *_lines_of(table))]
    lines += [line for key, rows in rules.items() for row in rows for line in ("", f"[[{key}]]", *_lines_of(row))]
    return "\n".join(lines) + "\n"


def _lines_of(table: Mapping[str, Any]) -> list[str]:
    # JSON's strings, numbers, booleans and arrays of them are TOML's too, except for DEL
    written = {key: json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") for key, value in table.items()}
    return [f"{key} = {value}" for key, value in written.items()]


def _some_of(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _first_problem(error: ValidationError, source: str, overrides: Mapping[str, Any]) -> str:
    """One line for the first problem: where (file or option, key), what, and what is allowed."""
    problems = error.errors(include_url=False)
    # a key with a typo is both unknown and missing: the typo is what the user can see
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    path = [str(part) for part in problem["loc"] if not str(part).startswith("function-")]
    keys = [part for part in path if not part.isdigit()] or ["(top)"]
    given, key = problem["input"], ".".join(keys)
    if problem["type"] == "extra_forbidden":
        table = _TABLES.get(keys[0], Suite) if len(keys) > 1 else Suite
        return f"Suite {source}: unknown key {key!r}.{_allowed(keys[-1], list(table.model_fields))}"
    if problem["type"] == "missing":
        return f"Suite {source}: the key {key!r} is missing"
    where = f"Suite {source}, key {key}"
    if keys[0] in overrides:
        where = f"Option --{OPTIONS.get(keys[0], keys[0].replace('_', '-'))}"
    if problem["type"] == "literal_error" and keys[-1] in _CHOICES:
        return f"{where}: {given!r} is not allowed.{_allowed(str(given), list(_CHOICES[keys[-1]]))}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" + ("" if problem["type"] == "value_error" else f" (given: {given!r})")


def _allowed(given: str, names: list[str]) -> str:
    close = difflib.get_close_matches(given, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Allowed: {', '.join(names)}"

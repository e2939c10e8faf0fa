"""A suite with what the command line or a caller puts in the place of its keys."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitbench.core.errors import UnknownNameError, UsageError
from vitbench.core.registry import METRICS
from vitbench.core.stats.relative import MIN_FIRST_STAGE
from vitbench.models.cards import PRETRAINED, is_imported
from vitbench.suites.loading import list_suites, load_suite, make_suite
from vitbench.suites.schema import NATIVE, RANDOM, Suite
from vitbench.training.data.downloads import DOWNLOADS
from vitbench.training.recipes import BUDGETS, list_recipes, load_recipe

#: --quick: three short processes a cell, the fewest whose quiet turns are known, or one or two where they take seconds,
#: and a tenth of the training.
_QUICK_MEASURE = {"processes": 3, "seconds": 0.15, "max_seconds": 1.5, "patience_s": 10.0}
_QUICK_SHARE_OF_TRAINING = 0.1
_QUICK_TEST_IMAGES = 200

_BUDGETS = ", ".join(BUDGETS)


def prepare_suite(name_or_path: str, overrides: Mapping[str, Any], *, quick: bool = False) -> Suite:
    """Load a suite with overrides: its keys, and keys of its sections.

    ``data``, ``data_dir``, ``download``, ``recipe`` and ``budget`` (such as ``images=30000``) are keys of its training
    section; ``processes`` and ``precision`` say how much it measures. Raises UsageError for options that contradict
    each other or would do nothing.
    """
    source = str(name_or_path)
    keys = {key: value for key, value in overrides.items() if value is not None}
    training: dict[str, Any] = {key: keys.pop(key) for key in ("data", "data_dir", "download", "recipe") if key in keys}
    budget = parse_budget(str(keys.pop("budget"))) if "budget" in keys else {}
    sampling = {key: keys.pop(key) for key in ("processes", "precision") if key in keys}
    suite = load_suite(source, keys)
    own_file = keys.get("weights", RANDOM) not in (RANDOM, PRETRAINED)
    if own_file and "image_sizes" not in keys and source in list_suites() and not any(map(is_imported, suite.models)):
        # a checkpoint's own size, not what a built-in suite has for its models
        suite = _changed(suite, source, image_sizes=[NATIVE])
    check_excluded_recipes(suite)
    _check_training_options(suite, training, budget, metrics_given="metrics" in keys)
    if source in list_suites():
        suite = less_what_options_replace(suite, {*keys, *training}, training.get("data"))
    suite = _with_training(suite, source, keys, training, budget)
    if quick:
        suite = _changed(suite, source, **_quick_changes(suite, shorter=not budget))
    if sampling:  # explicit options override --quick
        suite = _changed(suite, source, measure={**suite.measure.model_dump(), **sampling})
    if sampling.get("precision") and suite.measure.processes < MIN_FIRST_STAGE:
        raise UsageError(
            f"--precision takes {MIN_FIRST_STAGE} processes at least, to know how they differ; there are "
            f"{suite.measure.processes}. Add --processes {MIN_FIRST_STAGE}"
        )
    return suite


def less_what_options_replace(suite: Suite, given: set[str], data: str | None) -> Suite:
    """A built-in suite without the parts that options (``given``) replace.

    These are rules all of whose keys are given, and the image size of its trainings.
    """
    options = {"recipes": "recipe"}
    if "exclude" not in given:
        kept = [
            rule
            for rule in suite.exclude
            if not {options.get(key, key) for key in rule.model_dump(exclude_none=True)} <= given
        ]
        suite = suite.model_copy(update={"exclude": tuple(kept)})
    section = suite.training
    other_data = section is not None and data is not None and data != section.data
    if section is not None and "training" not in given and (other_data or "image_sizes" in given):
        suite = suite.model_copy(update={"training": section.model_copy(update={"image_size": None})})
    return suite


def parse_budget(text: str) -> dict[str, int | float]:
    """``images=30000`` -> {"images": 30000}: one of BUDGETS and how much of it. Raises UsageError for anything else."""
    key, sign, amount = (part.strip() for part in text.partition("="))
    if not sign:
        raise UsageError(f"Option --budget: {text!r} is not a budget. Give one of {_BUDGETS}, such as images=30000")
    if key not in BUDGETS:
        close = difflib.get_close_matches(key, BUDGETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"Option --budget: {key!r} is not one of {_BUDGETS}.{hint}")
    kind: type[int] | type[float] = int if key in ("images", "steps") else float
    try:
        value = kind(amount)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        what = "a whole number from 1 on" if kind is int else "a number above 0"
        raise UsageError(f"Option --budget: {key} = {amount!r} is not {what}")
    return {key: value}


def check_excluded_recipes(suite: Suite) -> None:
    """A rule for an unknown recipe would silently drop nothing. Raises UnknownNameError."""
    patterns = [pattern for rule in suite.exclude for pattern in rule.recipes or ()]
    if not patterns:
        return
    known = list(list_recipes())
    for one in suite.training.recipe if suite.training else ():
        try:
            known.append(load_recipe(one).name)
        except UsageError:  # reported where it is used, and an option may have replaced it
            known.append(Path(one).stem)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise UnknownNameError("recipe", pattern, known, "vitbench list recipes")


def _changed(suite: Suite, source: str, **changes: Any) -> Suite:
    return make_suite({**suite.model_dump(exclude_none=True), **changes}, source)


def _with_training(
    suite: Suite, source: str, keys: Mapping[str, Any], options: Mapping[str, Any], budget: Mapping[str, Any]
) -> Suite:
    """The suite with the training section that ``options``, ``budget`` and some of its other ``keys`` ask for."""
    training = dict(options)
    if suite.devices != ("auto",) and "devices" in keys and suite.training is not None:
        # devices that are named are those to train on, too
        suite = suite.model_copy(update={"training": suite.training.model_copy(update={"devices": None})})
    if "timeout_s" in keys and (training or suite.training is not None):
        training["timeout_s"] = keys["timeout_s"]
    if training.get("data") == "none":
        return suite.model_copy(update={"training": None})
    if not training and not budget:
        return suite
    section = suite.training.model_dump(exclude_none=True) if suite.training else {}
    if budget:
        section = {key: value for key, value in section.items() if key not in (*BUDGETS, "share")}
    if training.get("data", section.get("data")) != section.get("data") and training["data"] not in DOWNLOADS:
        section = {key: value for key, value in section.items() if key not in ("data_dir", "download")}
    return _changed(suite, source, training={**section, **training, **budget})


def _check_training_options(
    suite: Suite, training: Mapping[str, Any], budget: Mapping[str, Any], *, metrics_given: bool
) -> None:
    """Raises UsageError for options that would do nothing."""
    none = training.get("data") == "none"
    metric = next((name for name in suite.metrics if METRICS.get(name).process == "training"), None)
    given = [f"--{key.replace('_', '-')}" for key in (*training, *(["budget"] if budget else []))]
    if given and suite.training is None and "data" not in training:
        raise UsageError(
            f"Suite {suite.name!r} does not train: --data-dir, --download, --recipe and --budget go with --data"
        )
    if none and len(given) > 1:
        other = next(option for option in given if option != "--data")
        raise UsageError(f"{other} is about training, and --data none removes it: leave one of them out")
    if metric is not None and metrics_given and (none or (suite.training is None and "data" not in training)):
        why = "--data none removes it: give" if none else f"suite {suite.name!r} has none: add"
        raise UsageError(
            f"--metrics asks for {metric}, which needs a training section, and {why} --data NAME, or leave {metric} out"
        )
    if metric is None and given and not none and suite.frontier is None:
        raise UsageError(
            f"{given[0]} is about accuracy, which is not measured here: add accuracy to --metrics, or leave "
            f"{given[0]} out"
        )
    named = next((option for option in given if option in ("--recipe", "--budget")), None)
    if named and suite.weights != RANDOM:
        raise UsageError(f"{named} says how to train, but weights that are given are only tested: leave it out")


def _quick_changes(suite: Suite, *, shorter: bool) -> dict[str, Any]:
    """Less of everything; ``shorter``: of the training, too."""
    measure = suite.measure.model_dump()
    changes: dict[str, Any] = {"measure": {**measure, **{k: min(measure[k], v) for k, v in _QUICK_MEASURE.items()}}}
    if suite.training is not None:
        section = suite.training.model_dump(exclude_none=True)
        if shorter:
            section["share"] *= _QUICK_SHARE_OF_TRAINING
        section["test_images"] = min(section.get("test_images") or _QUICK_TEST_IMAGES, _QUICK_TEST_IMAGES)
        changes["training"] = section
    return changes

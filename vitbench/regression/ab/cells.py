"""Choose what to compare: the timed cells of a suite, and the rule that judges each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitbench.core.errors import UsageError
from vitbench.core.records import RGB, Cell
from vitbench.core.registry import METRICS as REGISTERED
from vitbench.core.stats.estimates import CPU_TIME
from vitbench.models.cards import is_external, is_imported
from vitbench.regression.ab.sequential import Rule
from vitbench.regression.ab.verdicts import METRICS, Trial
from vitbench.suites import (
    ModelFacts,
    Suite,
    check_thresholds,
    expand,
    list_suites,
    load_suite,
    make_suite,
    make_thresholds,
)
from vitbench.suites.overrides import less_what_options_replace
from vitbench.suites.thresholds import Rule as ThresholdRule
from vitbench.suites.thresholds import Threshold, parse_option, parse_tolerance, threshold_for

#: A slow-down counts as detectable from this much beyond the margin on.
DETECT_BEYOND = 0.03
#: Without a suite: single images, and one thread, as times of several threads depend on what else the machine does.
DEFAULTS: Mapping[str, Any] = {"batch_sizes": [1], "devices": ["cpu"], "threads": [1], "modes": ["infer"]}
#: The size and classes of a ``module:`` builder, unless the suite sets others.
MODULE_SIZE = (224, 224)
MODULE_CLASSES = 1000


def choose_suite(name_or_path: str | None, overrides: Mapping[str, Any]) -> Suite:
    """The timed part of a suite, or of one made from ``overrides`` alone. Raises UsageError for wrong names and
    values.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    if name_or_path is None:
        if "models" not in given:
            raise UsageError("Nothing to compare. Give --suite NAME or --models A,B. See: vitbench list suites")
        return make_suite({"name": "ab", **DEFAULTS}, "vitbench ab", given)
    suite = load_suite(name_or_path, {**({} if "threads" in given else {"threads": DEFAULTS["threads"]}), **given})
    if name_or_path in list_suites():
        suite = less_what_options_replace(suite, set(given), None)
    if suite.frontier is not None:
        raise UsageError(f"Suite {suite.name!r} searches for the largest batch, which is not timed: give another suite")
    if suite.weights != "random" or suite.memory_limit is not None:
        raise UsageError(
            f"Suite {suite.name!r} sets weights or memory_limit, which vitbench ab does not: give another suite"
        )
    if suite.in_channels != RGB:
        raise UsageError(f"Suite {suite.name!r} sets in_channels, which vitbench ab does not: give another suite")
    if suite.measure.cores is not None:
        raise UsageError(f"Suite {suite.name!r} sets measure.cores, which vitbench ab does not: give another suite")
    timed = tuple(name for name in suite.metrics if REGISTERED.get(name).process == "time")
    return suite.model_copy(update={"training": None, "metrics": timed or suite.metrics})


def choose_cells(suite: Suite, *, allow_import: bool = False) -> list[Cell]:
    """The timed cells of a suite. The device ``auto`` means the CPU here. Asks no process about vitbench's own models.

    Raises UsageError for an unknown model, a size that it does not take, or nothing to time.
    """
    imported = [name for name in suite.models if is_imported(name)]
    if imported and not allow_import:
        raise UsageError(f"{imported[0]} would import and run code: add --allow-import if you trust it")
    suite = suite.model_copy(update={"devices": tuple("cpu" if d == "auto" else d for d in suite.devices)})
    others = tuple(name for name in suite.models if not is_imported(name))
    facts = {name: ModelFacts(MODULE_SIZE, MODULE_CLASSES, lambda size: None) for name in imported}
    if any(is_external(name) for name in others):
        from vitbench.executors.launcher import libraries_of, make_launcher
        from vitbench.runner.plan import look_up_models

        with make_launcher(libraries_of(others)) as launcher:
            found, known = look_up_models(suite.model_copy(update={"models": others}), launcher)
        others = found.models
        facts.update(known)
    else:
        from vitbench.runner.plan import own_facts

        facts.update({name: own_facts(name) for name in others})
    models = tuple(name for name in suite.models if name in facts)
    models += tuple(name for name in others if name not in models)
    cells = expand(
        suite.model_copy(update={"models": models}), devices=("cpu",), threads=1, models=facts, training=None
    )
    cells = [cell for cell in cells if not cell.tests]
    if not cells:
        raise UsageError(f"Suite {suite.name!r} has nothing to time: vitbench ab compares latencies and training steps")
    return list({cell.id: cell for cell in cells}.values())


def prepare_trials(
    suite: str | None,
    overrides: Mapping[str, Any],
    *,
    thresholds: Sequence[str] = (),
    margin: str | None = None,
    allow_import: bool = False,
) -> list[Trial]:
    """The trials for a command line: ``suite`` (name or path), ``overrides`` of its keys, each ``--threshold`` and the
    ``--margin``. Raises UsageError.
    """
    chosen = choose_suite(suite, overrides)
    try:
        beyond = None if margin is None else parse_tolerance(margin)
    except ValueError as error:
        raise UsageError(f"Option --margin: {error}") from error
    tables = [parse_option(text) for text in thresholds]
    rules = make_thresholds(tables, "--threshold", metrics=[table["metric"] for table in tables])
    check_thresholds(rules, "Option --threshold", models=chosen.models)
    cells = choose_cells(chosen, allow_import=allow_import)
    check_options(thresholds, rules, cells)
    return make_trials(cells, chosen.thresholds, rules, margin=beyond)


def make_trials(
    cells: list[Cell],
    suite: tuple[ThresholdRule, ...],
    options: tuple[ThresholdRule, ...] = (),
    *,
    margin: float | None = None,
) -> list[Trial]:
    """A trial for each cell. Its margin is that of ``options`` for its ``latency`` or ``training_step``, else
    ``margin``, else that of the ``suite``, else the rule's own. Raises UsageError for a margin near 100 %.
    """
    trials = []
    for cell in cells:
        asked, own = _thresholds_of(cell, options), _thresholds_of(cell, suite)
        chosen = next((one for one in (asked.tolerance, margin, own.tolerance) if one is not None), None)
        gate = asked.gate if asked.gate is not None else own.gate
        rule = Rule()
        if chosen is not None:
            if chosen + DETECT_BEYOND >= 1:
                raise UsageError(f"A margin of {100 * chosen:g} % of {cell.label} leaves nothing to detect: give less")
            rule = Rule(margin=chosen, detect=max(chosen + DETECT_BEYOND, Rule.detect))
        trials.append(Trial(cell=cell, rule=rule, gates=gate is not False))
    return trials


def check_options(texts: Sequence[str], rules: Sequence[ThresholdRule], cells: list[Cell]) -> None:
    """Raise UsageError for a ``--threshold`` (``texts``, read as ``rules``) without an effect: it names no time of
    ``cells``, or only CPU times of cells whose wall time another one names, which takes precedence.
    """
    for text, rule in zip(texts, rules, strict=True):
        wall = [cell for cell in cells if rule.covers(cell, METRICS[cell.mode])]
        processor = [cell for cell in cells if rule.covers(cell, METRICS[cell.mode] + CPU_TIME)]
        if not wall and not processor:
            times = {METRICS[cell.mode] + clock: None for cell in cells for clock in ("", CPU_TIME)}
            raise UsageError(
                f"Option --threshold: {text!r} names nothing that is timed here: give {' or '.join(times)}, and "
                "models that are compared"
            )
        before = [one for one in rules if any(one.covers(cell, METRICS[cell.mode]) for cell in processor)]
        if not wall and all(any(one.covers(cell, METRICS[cell.mode]) for one in before) for cell in processor):
            raise UsageError(
                f"Option --threshold: {text!r} has no effect beside {texts[rules.index(before[0])]!r}: one margin "
                "holds for both clocks of a cell; give one of the two"
            )


def _thresholds_of(cell: Cell, rules: tuple[ThresholdRule, ...]) -> Threshold:
    """The threshold of a cell's time, or of its CPU time if the rules set none for the former."""
    found = threshold_for(rules, cell, METRICS[cell.mode])
    if found.tolerance is None and found.gate is None:
        return threshold_for(rules, cell, METRICS[cell.mode] + CPU_TIME)
    return found

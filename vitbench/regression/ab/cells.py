"""Which cells are compared: those of a suite that are timed. No process is asked where names suffice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitbench.core.errors import UsageError
from vitbench.core.records import Cell
from vitbench.core.registry import METRICS as REGISTERED
from vitbench.core.registry import is_external, is_imported
from vitbench.regression.ab.sequential import Rule
from vitbench.regression.ab.session import CPU_TIME, DETECT_BEYOND, METRICS, Trial
from vitbench.runner.run import less_what_options_replace
from vitbench.suites import ModelFacts, Suite, expand, list_suites, load_suite, make_suite
from vitbench.suites.thresholds import Rule as ThresholdRule
from vitbench.suites.thresholds import Threshold, threshold_for

#: What is compared if nothing is said of it: single pictures, one thread, as what several threads take depends on what
#: else the machine does.
DEFAULTS: Mapping[str, Any] = {"batch_sizes": [1], "devices": ["cpu"], "threads": [1], "modes": ["infer"]}
#: A builder of one's own is asked for these unless the suite says otherwise.
MODULE_SIZE = (224, 224)
MODULE_CLASSES = 1000


def choose_suite(name_or_path: str | None, overrides: Mapping[str, Any]) -> Suite:
    """The suite, or one of the models alone, without what trains. Raises UsageError for names and values that are
    wrong.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    if name_or_path is None:
        if "models" not in given:
            raise UsageError("What is to be compared? Give --suite NAME or --models A,B. See: vitbench list suites")
        return make_suite({"name": "ab", **DEFAULTS}, "vitbench ab", given)
    suite = load_suite(name_or_path, {**({} if "threads" in given else {"threads": DEFAULTS["threads"]}), **given})
    if name_or_path in list_suites():
        suite = less_what_options_replace(suite, set(given), None)
    if suite.frontier is not None:
        raise UsageError(f"Suite {suite.name!r} searches for the largest batch, which is not timed: give another one")
    if suite.weights != "random" or suite.memory_limit is not None:
        raise UsageError(f"Suite {suite.name!r} sets weights or memory_limit, which vitbench ab does not: give another")
    if suite.measure.cores is not None:
        raise UsageError(f"Suite {suite.name!r} sets measure.cores, which vitbench ab does not: give another one")
    timed = tuple(name for name in suite.metrics if REGISTERED.get(name).process == "time")
    return suite.model_copy(update={"training": None, "metrics": timed or suite.metrics})


def choose_cells(suite: Suite, *, allow_import: bool = False) -> list[Cell]:
    """The timed cells of a suite. ``auto`` devices are the processor alone: others are named.

    Raises UsageError for a model that is not there, a size that it does not take, or nothing to time.
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


def make_trials(
    cells: list[Cell],
    suite: tuple[ThresholdRule, ...],
    options: tuple[ThresholdRule, ...] = (),
    *,
    margin: float | None = None,
) -> list[Trial]:
    """A trial a cell. Its margin is what ``options`` set on its ``latency`` or ``training_step``, else ``margin``, else
    what the ``suite`` sets on it, else the rule's own. Raises UsageError for a margin that leaves nothing to detect.
    """
    trials = []
    for cell in cells:
        asked, own = _thresholds_of(cell, options), _thresholds_of(cell, suite)
        chosen = next((one for one in (asked.tolerance, margin, own.tolerance) if one is not None), None)
        gate = asked.gate if asked.gate is not None else own.gate
        rule = Rule()
        if chosen is not None:
            if chosen + DETECT_BEYOND >= 1:
                raise UsageError(f"A margin of {100 * chosen:g} % of {cell.label} leaves nothing to find: give less")
            rule = Rule(margin=chosen, detect=max(chosen + DETECT_BEYOND, Rule.detect))
        trials.append(Trial(cell=cell, rule=rule, gates=gate is not False))
    return trials


def check_options(texts: Sequence[str], rules: Sequence[ThresholdRule], cells: list[Cell]) -> None:
    """Raises UsageError for a ``--threshold`` (``texts``, read as ``rules``) that would set nothing, in silence: it is
    about no time of ``cells``, or only about CPU times of cells whose wall time, which goes before, another one names.
    """
    for text, rule in zip(texts, rules, strict=True):
        wall = [cell for cell in cells if rule.covers(cell, METRICS[cell.mode])]
        processor = [cell for cell in cells if rule.covers(cell, METRICS[cell.mode] + CPU_TIME)]
        if not wall and not processor:
            times = {METRICS[cell.mode] + clock: None for cell in cells for clock in ("", CPU_TIME)}
            raise UsageError(
                f"Option --threshold: {text!r} is about nothing that is timed here: give {' or '.join(times)}, and "
                "models that are compared"
            )
        before = [one for one in rules if any(one.covers(cell, METRICS[cell.mode]) for cell in processor)]
        if not wall and all(any(one.covers(cell, METRICS[cell.mode]) for one in before) for cell in processor):
            raise UsageError(
                f"Option --threshold: {text!r} would set nothing beside {texts[rules.index(before[0])]!r}: one margin "
                "is for both clocks of a cell; give one of the two"
            )


def _thresholds_of(cell: Cell, rules: tuple[ThresholdRule, ...]) -> Threshold:
    """What rules say of a cell's time, or of its CPU time where they are silent on the former."""
    found = threshold_for(rules, cell, METRICS[cell.mode])
    if found.tolerance is None and found.gate is None:
        return threshold_for(rules, cell, METRICS[cell.mode] + CPU_TIME)
    return found

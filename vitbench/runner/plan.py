"""A suite becomes a plan: legal cells, what can be counted without a device, and how long the cells will take."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitbench.core.errors import USAGE_CAUSES, DeviceError, UsageError, WorkerError
from vitbench.core.records import Cell, Measurement, Record, format_image_size
from vitbench.core.registry import METRICS
from vitbench.devices import canonical_device_name, open_device
from vitbench.devices.host.environment import capture_environment, default_threads, hash_environment
from vitbench.executors.conversation import Outcome, ask
from vitbench.executors.launcher import Launcher
from vitbench.executors.protocol import Describe, Digest, Fetch, Inspect, Match, PredictLargest, TryWeights
from vitbench.metrics.support.in_process import WeightsFile
from vitbench.models.cards import PRETRAINED, is_external, is_pattern, model_registry
from vitbench.models.weights.claimed import check_no_file
from vitbench.runner.static_counts import StaticCounter, StaticKey, static_key
from vitbench.runner.time_estimates import TimeEstimates, make_estimates
from vitbench.runner.training_plan import TrainingPlan, resolve_training
from vitbench.suites import (
    NATIVE,
    RANDOM,
    ModelFacts,
    NoCellsLeftError,
    Suite,
    check_count,
    check_thresholds,
    expand,
    with_training_size,
)
from vitbench.suites.batch_search import PREDICTED, predictions_in, search_label

#: Counted for every plan: estimates need them.
_ALWAYS_COUNTED = ("params", "flops")
#: How long the download of a model's weights may take.
_DOWNLOAD_S = 3600.0

Note = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a run will do. ``static`` holds the outcomes of parameters and FLOPs, ``predictions`` the largest batches
    that searches begin at, by the id of their cell.
    """

    suite: Suite
    cells: list[Cell]
    training: TrainingPlan | None
    static: Mapping[StaticKey, Outcome]
    estimates: TimeEstimates
    environment: Mapping[str, Any]
    predictions: Mapping[str, Measurement] = field(default_factory=dict)

    @property
    def environment_hash(self) -> str:
        """The hash of the environment that the plan was made in."""
        return hash_environment(self.environment)


def check_before_loading(suite: Suite, *, allow_many_cells: bool = False) -> Suite:
    """Check all that can be checked without torch, so that a typo fails in the first second.

    Returns the suite with canonical device names. Raises UsageError: more than 10,000 cells (unless they are allowed),
    unknown devices, illegal image sizes of our own models, missing data.
    """
    check_count(suite, allow_many=allow_many_cells)
    devices = tuple(dict.fromkeys(map(canonical_device_name, suite.devices)))
    rules = [
        rule.model_copy(update={"devices": tuple(map(canonical_device_name, rule.devices))}) if rule.devices else rule
        for rule in suite.exclude
    ]
    suite = suite.model_copy(update={"devices": devices, "exclude": tuple(rules)})
    if suite.training is not None and suite.training.devices is not None:
        suite = _train_on(suite, list(map(canonical_device_name, suite.training.devices)))
    _check_weights_option(suite)
    _check_cores(suite)
    training = resolve_training(suite)
    facts = training.facts() if training else None
    # devices and threads are not known yet: a rule that names them may drop a cell, so here it does
    loose = tuple(rule.model_copy(update={"devices": None, "threads": None}) for rule in suite.exclude)
    for name in suite.models:
        if not is_external(name):
            one = suite.model_copy(update={"models": (name,), "exclude": loose})
            with contextlib.suppress(NoCellsLeftError):
                expand(one, devices=("cpu",), threads=1, models={name: own_facts(name)}, training=facts)
    return suite


def own_facts(name: str) -> ModelFacts:
    """What expansion needs to know of a model of our own, without torch. Raises UnknownNameError."""
    card = model_registry().get(name)
    return ModelFacts(
        card.image_size, card.num_classes, card.check_image_size, card.published_weights, card.published_classes
    )


def weights_of(suite: Suite) -> WeightsFile | None:
    """The checkpoint of a suite; None if its weights are random or published."""
    if suite.weights in (RANDOM, PRETRAINED):
        return None
    return WeightsFile(path=suite.weights, replace_head=suite.replace_head, entry=suite.entry, grid=suite.grid)


def static_metrics(suite: Suite) -> tuple[str, ...]:
    """The metrics of a suite that need no device, and those that every plan needs."""
    own = [name for name in suite.metrics if METRICS.get(name).process == "static"]
    return tuple(dict.fromkeys([*_ALWAYS_COUNTED, *own]))


def _check_cores(suite: Suite) -> None:
    cores = suite.measure.cores
    if cores is None:
        return
    if sys.platform == "darwin":
        raise UsageError("macOS binds no process to cores: leave measure.cores out")
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not cores or not set(cores) <= set(allowed):
        raise UsageError(f"measure.cores = {list(cores)} are not available here. Give any of {allowed}")
    threads = max(default_threads() if count == "auto" else count for count in suite.threads)
    if threads > len(set(cores)):
        raise UsageError(
            f"{threads} threads do not fit on the {len(set(cores))} of measure.cores: give more cores, or --threads"
        )


def _check_weights_option(suite: Suite) -> None:
    if suite.weights in (RANDOM, PRETRAINED):
        if suite.replace_head and suite.weights == RANDOM:
            raise UsageError("--replace-head goes with --weights PATH or --pretrained")
        check_no_file(suite.entry, suite.grid)
        return
    if len(suite.models) != 1 or is_pattern(suite.models[0]):
        named = ", ".join(suite.models[:4]) + (", ..." if len(suite.models) > 4 else "")
        raise UsageError(f"A checkpoint fits one model: give one with --models, not {named}")
    if not Path(suite.weights).is_file():
        raise UsageError(
            f"Checkpoint {suite.weights!r} is not there, or no file (seen from {Path.cwd()}). Give the path of one to "
            "--weights"
        )


def make_plan(
    suite: Suite,
    launcher: Launcher,
    note: Note,
    *,
    done: Sequence[Record] = (),
    allow_many_cells: bool = False,
    allow_downloads: bool = True,
) -> Plan:
    """Find the devices, look every model up, count parameters and FLOPs, expand to cells, predict where searches begin,
    estimate the time.

    ``done``: the records of earlier sessions. Without ``allow_downloads`` published weights are not tried and no data
    set is fetched, which is noted. Raises UsageError for illegal names, devices and sizes: before the first cell, not
    as its record.
    """
    note("Loading torch, looking for devices ...")
    launcher.wait_until_ready()
    (described,) = ask(launcher, Describe())
    suite = _choose_devices(suite, list(described["devices"]))
    suite, facts = look_up_models(suite, launcher)
    # now that patterns and auto have been resolved
    check_count(suite, allow_many=allow_many_cells)
    check_thresholds(suite.thresholds, f"Suite {suite.name}, key thresholds", models=suite.models)
    training = resolve_training(suite)
    digest, weights = "", weights_of(suite)
    if weights is not None:
        (answer,) = ask(launcher, Digest(weights=weights, model=suite.models[0] if NATIVE in suite.image_sizes else ""))
        # an entry and a grid make other weights of the same file
        digest = ":".join(filter(None, (answer["digest"], weights.entry, weights.grid)))
        if "image_size" in answer:  # (height, width) in px: what ``native`` stands for with this checkpoint
            facts = {name: replace(one, image_size=tuple(answer["image_size"])) for name, one in facts.items()}
    cells = expand(
        suite,
        devices=suite.devices,
        threads=int(suite.threads[0]),
        models=facts,
        training=training.facts() if training else None,
        checkpoint=digest,
        note=note,
    )
    _try_weights(suite, cells, launcher, note, allow_downloads=allow_downloads)
    if training:
        _fetch_data(suite, launcher, note, allow_downloads=allow_downloads)
    environment = capture_environment(
        described["libraries"], {name: described["devices"][name] for name in {cell.device for cell in cells}}
    )
    is_static = all(METRICS.get(name).process == "static" for name in suite.metrics)
    if is_static and suite.image_sizes == (NATIVE,):
        # no size can be refused, and no estimate is needed: counted cell by cell, each record written at once
        return Plan(suite, cells, training, {}, TimeEstimates(suite, cells, training, {}), environment)
    static = count_static(suite, cells, launcher, note)
    predictions = predict_largest(suite, cells, done, launcher, note)
    estimates = make_estimates(suite, cells, training, static, launcher, predictions)
    starts = {cell.id for cell in cells if cell.id in predictions and estimates.start_of_search(cell) is not None}
    predictions = {key: one for key, one in predictions.items() if key in starts}
    return Plan(suite, cells, training, static, estimates, environment, predictions)


def look_up_models(suite: Suite, launcher: Launcher) -> tuple[Suite, dict[str, ModelFacts]]:
    """Resolve a suite's patterns over other libraries' names, and look up what expansion needs to know of each model.

    Asks a worker about models of other libraries only. Raises UsageError for unknown names.
    """
    patterns = tuple(name for name in suite.models if is_external(name) and is_pattern(name))
    if patterns:
        found = {answer["pattern"]: answer["models"] for answer in ask(launcher, Match(patterns=patterns))}
        names = tuple(dict.fromkeys(one for name in suite.models for one in found.get(name, [name])))
        suite = suite.model_copy(update={"models": names})
    facts = {name: own_facts(name) for name in suite.models if not is_external(name)}
    external = tuple(name for name in suite.models if is_external(name))
    for answer in ask(launcher, Inspect(models=external)) if external else ():
        height, width = answer["image_size"]
        # such a model checks its sizes itself when it is built, which is before the first cell
        facts[answer["model"]] = ModelFacts(
            (height, width),
            answer["num_classes"],
            lambda size: None,
            answer["published_weights"],
            answer["published_classes"],
        )
    return suite, facts


def count_static(suite: Suite, cells: list[Cell], launcher: Launcher, note: Note) -> dict[StaticKey, Outcome]:
    """Parameters and FLOPs on ``meta`` for each distinct model and size.

    A size or class count that a model refuses is wrong usage (UsageError); every other failure stays in the outcome.
    """
    outcomes: dict[StaticKey, Outcome] = {}
    with StaticCounter(launcher, static_metrics(suite), suite.timeout_s) as counter:
        count = counter.begin(cells)
        models = len({cell.model for cell in cells})
        # once for each combination of model, image size, number of classes and attention
        times = f", {count} counts in all" if count > models else ""
        note(f"Counting parameters and FLOPs of {models} model{'s' if models > 1 else ''}{times} ...")
        for cell in cells:
            outcome = outcomes[static_key(cell)] = counter.outcome(cell)
            if outcome.failure is not None and outcome.failure.cause in USAGE_CAUSES:
                raise UsageError(with_training_size(suite, cell, outcome.failure.detail))
    return outcomes


def predict_largest(
    suite: Suite, cells: Sequence[Cell], done: Sequence[Record], launcher: Launcher, note: Note
) -> dict[str, Measurement]:
    """The batches at which searches begin, by cell id, where they can be predicted; none for other suites.

    A search with attempts among ``done`` keeps what it began with.
    """
    if suite.frontier is None:
        return {}
    begun = predictions_in(done)
    found = {key: one for key, one in begun.items() if one is not None}
    new = [cell for cell in cells if cell.id not in begun]
    if new:
        note(f"Predicting the largest batch of {len(new)} search{'es' if len(new) > 1 else ''} ...")
    reasons = []
    for cell in new:
        try:
            (answer,) = ask(launcher, PredictLargest(cell=cell), suite.timeout_s)
        except WorkerError:  # a model's own code ran in it
            answer = {"unsupported": "tracing it ended the worker"}
        if "unsupported" in answer:
            reasons.append(f"{search_label(cell)}: {answer['unsupported']}")
        else:
            found[cell.id] = Measurement.single(PREDICTED, "image", answer["batch"], answer["method"])
    if reasons:
        note(f"No prediction for {len(reasons)} of {len(new)}, which begin at 1 image. {reasons[0]}")
    return found


def _choose_devices(suite: Suite, found: Sequence[str]) -> Suite:
    """The suite with the devices and thread counts that ``auto`` stands for. Raises DeviceError for a missing one."""
    where_to_train = suite.training.devices if suite.training else None
    for name in (*suite.devices, *(where_to_train or ())):
        if name != "auto" and name not in found:
            raise DeviceError(f"Device {name!r} is not there. Found: {', '.join(found)}. See: vitbench list devices")
    devices = tuple(dict.fromkeys(d for name in suite.devices for d in (found if name == "auto" else [name])))
    if where_to_train is not None:
        suite = _train_on(suite, [_fastest_of(devices) if name == "auto" else name for name in where_to_train])
    threads = tuple(default_threads() if count == "auto" else count for count in suite.threads)
    return suite.model_copy(update={"devices": devices, "threads": tuple(dict.fromkeys(threads))})


def _train_on(suite: Suite, devices: Sequence[str]) -> Suite:
    assert suite.training is not None
    section = suite.training.model_copy(update={"devices": tuple(dict.fromkeys(devices))})
    return suite.model_copy(update={"training": section})


def _fastest_of(devices: Sequence[str]) -> str:
    """The first accelerator, else the first device: the same training on another one would show nothing new."""
    return next((name for name in devices if open_device(name).asynchronous), devices[0])


def _try_weights(suite: Suite, cells: list[Cell], launcher: Launcher, note: Note, *, allow_downloads: bool) -> None:
    """Load (or download) the weights once for each model and size, so that what does not fit fails before the first
    cell. Raises UsageError.
    """
    if suite.weights == RANDOM:
        return
    if suite.weights == PRETRAINED and not allow_downloads:
        note("The published weights are not tried, which may download them: a run does that first")
        return
    note("Trying the weights ...")
    tried: dict[StaticKey, Cell] = {}
    for cell in cells:
        tried.setdefault(static_key(cell), cell)
    for cell in tried.values():
        (answer,) = ask(launcher, TryWeights(cell=cell, weights=weights_of(suite)), timeout_s=_DOWNLOAD_S)
        if answer["notes"]:
            note(f"The weights of {cell.model} at {format_image_size(cell.image_size)} px: {answer['notes']}")


def _fetch_data(suite: Suite, launcher: Launcher, note: Note, *, allow_downloads: bool) -> None:
    section = suite.training
    if section is None or not section.download:
        return
    if not allow_downloads:
        note(f"{section.data} is not looked at, which may download it: a run does that first")
        return
    note(f"Looking for {section.data}, downloading it if need be ...")
    ask(launcher, Fetch(data=section.data, data_dir=section.data_dir), timeout_s=section.timeout_s)

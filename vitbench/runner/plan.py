"""A suite becomes a plan: cells that are known to be legal, what costs no device to know of them, and how long they
will take.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitbench.core.errors import USAGE_CAUSES, DataError, DeviceError, UnknownNameError, UsageError, WorkerError
from vitbench.core.records import Cell
from vitbench.core.registry import METRICS
from vitbench.devices import canonical_device_name, open_device, split_name
from vitbench.devices.host.environment import capture_environment, default_threads, hash_environment
from vitbench.devices.host.memory import available_memory
from vitbench.executors.conversation import Outcome, converse, finish
from vitbench.executors.launcher import Launcher
from vitbench.executors.protocol import (
    Calibrate,
    Describe,
    Digest,
    Fetch,
    Inspect,
    Match,
    Task,
    TryWeights,
    kind_of,
)
from vitbench.metrics.support.in_process import WeightsFile
from vitbench.models.cards import PRETRAINED, is_external, is_pattern, model_registry
from vitbench.runner.static_counts import StaticCounter, StaticKey, static_key
from vitbench.runner.turns import TURN_S
from vitbench.suites import (
    NATIVE,
    RANDOM,
    ModelFacts,
    NoCellsLeftError,
    RecipeFacts,
    Suite,
    Training,
    TrainingFacts,
    check_count,
    expand,
    with_training_size,
)
from vitbench.suites.batch_search import expected_attempts, guess_largest
from vitbench.training.data.datasets import DataInfo, describe_data
from vitbench.training.data.downloads import DOWNLOADS
from vitbench.training.data.folder import read_listing
from vitbench.training.data.subsets import choose_imbalanced, imbalanced_counts
from vitbench.training.recipes import BUDGETS, Recipe, list_recipes, load_recipe

#: Counted for every plan: estimates need them.
_ALWAYS_COUNTED = ("params", "flops")
#: Seconds that building a model, warming up and ending a process take beside its sampling: a rough figure, for
#: estimates only.
_PROCESS_S = 0.4
#: Reading an energy counter at rest and under load; nothing where there is none.
_ENERGY_S = 3.5
#: Downloading a model's weights may take.
_DOWNLOAD_S = 3600.0
#: Counting a model on ``meta``, by two workers.
_STATIC_S = 0.4
#: A training step computes about three forward passes (forward, and twice that backward).
_STEP_IN_FORWARDS = 3.0

#: FLOP/s of a device that could not be asked: a modest CPU.
_UNKNOWN_RATE = 2e10

_BUDGETS = ", ".join(BUDGETS)


@dataclass(frozen=True)
class TrainingPlan:
    """A suite's training, resolved: the recipes with their overrides, the same as their files have them (``published``,
    in the same order), the data set, and the limit to its training pictures, if it is one.
    """

    recipes: tuple[Recipe, ...]
    published: tuple[Recipe, ...]
    info: DataInfo
    train_images: int | None = None

    @functools.cached_property
    def hashes(self) -> tuple[str, ...]:
        """The recipes' hashes, read once: a file of indices may change while a run goes on."""
        return tuple(one.hash for one in self.recipes)

    def facts(self) -> TrainingFacts:
        """What expansion needs of it."""
        return TrainingFacts(
            data=self.info.label,
            num_classes=self.info.num_classes,
            recipes=tuple(
                RecipeFacts(one.name, digest, one.batch_size)
                for one, digest in zip(self.recipes, self.hashes, strict=True)
            ),
            train_images=self.train_images,
        )

    def recipe_of(self, cell: Cell) -> Recipe:
        """The recipe of a training cell; of a cell that only tests the first one, for its batch size."""
        return self.recipes[self._index(cell)]

    def budget_of(self, cell: Cell) -> str:
        """How much a training cell trains, in words, and whether that is what its recipe says."""
        index = self._index(cell)
        recipe, published = self.recipes[index], self.published[index]
        amount = f"{recipe.budget} = {getattr(recipe, recipe.budget):g}"
        changes = []
        if (recipe.budget, getattr(recipe, recipe.budget)) != (published.budget, getattr(published, published.budget)):
            changes.append(f"{amount}, not the recipe's {published.budget} = {getattr(published, published.budget):g}")
        if recipe.batch_size != published.batch_size:
            changes.append(f"batch_size = {recipe.batch_size}, not {published.batch_size}")
        if self.train_images is not None:
            changes.append(f"at most {self.train_images} training pictures")
        return "; ".join(changes) or f"the recipe's own: {amount}"

    def training_pictures(self, recipe: Recipe) -> int:
        """About how many pictures are trained on: exact where all classes have as many."""
        count = self.info.train_images
        count -= round(recipe.validation * count)
        if recipe.imbalance is not None:
            try:
                if _is_file(recipe.imbalance):
                    count = min(count, len(_chosen(recipe.imbalance, self.info)))
                else:
                    classes = self.info.num_classes
                    count = sum(imbalanced_counts(recipe.imbalance, count // classes, classes))
            except DataError:  # an estimate stops nothing
                pass
        return count if self.train_images is None else min(count, self.train_images)

    def _index(self, cell: Cell) -> int:
        known = [(f"train:{one.name}", digest) for one, digest in zip(self.recipes, self.hashes, strict=True)]
        key = (cell.weights, cell.recipe_hash)
        return known.index((cell.weights, cell.recipe_hash or "")) if key in known else 0


def weights_of(suite: Suite) -> WeightsFile | None:
    """The checkpoint of a suite; None if its weights are random or published."""
    if suite.weights in (RANDOM, PRETRAINED):
        return None
    return WeightsFile(path=suite.weights, replace_head=suite.replace_head)


@dataclass(frozen=True)
class Plan:
    """What a run will do. ``estimates`` are seconds by cell id; ``static`` the outcomes of parameters and FLOPs."""

    suite: Suite
    cells: list[Cell]
    training: TrainingPlan | None
    static: Mapping[StaticKey, Outcome]
    estimates: Mapping[str, float]
    environment: Mapping[str, Any]

    @property
    def environment_hash(self) -> str:
        """The hash of the environment that the plan was made in."""
        return hash_environment(self.environment)


def resolve_training(suite: Suite) -> TrainingPlan | None:
    """The recipes and data of a suite's training; None if it has none, or asks for no metric that trains.

    Loads no torch. Raises UsageError for a recipe or data set that is not there, and for an imbalance that is none.
    """
    section = suite.training
    if section is None or not any(METRICS.get(name).process == "training" for name in suite.metrics):
        return None
    published = [load_recipe(one) for one in section.recipe]
    recipes = [_overridden(one, section) for one in section.recipe]
    root = Path(section.data_dir) if section.data_dir else None
    info = describe_data(section.data, root=root, download=section.download)
    for recipe in recipes:
        if recipe.imbalance is None:
            continue
        if _is_file(recipe.imbalance):
            _chosen(recipe.imbalance, info)
        else:
            imbalanced_counts(recipe.imbalance, _largest_class(recipe, info), info.num_classes)
    limit = section.train_images
    if limit is not None and limit >= info.train_images:
        limit = None
    return TrainingPlan(tuple(recipes), tuple(published), info, limit)


def parse_budget(text: str) -> dict[str, int | float]:
    """``images=30000`` -> {"images": 30000}: one of BUDGETS and how much of it. Raises UsageError for anything else."""
    key, sign, amount = (part.strip() for part in text.partition("="))
    if not sign:
        raise UsageError(f"Option --budget: {text!r} is no budget. Give one of {_BUDGETS}, such as images=30000")
    if key not in BUDGETS:
        close = difflib.get_close_matches(key, BUDGETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"Option --budget: {key!r} is none of {_BUDGETS}.{hint}")
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
    """A rule for a recipe that is not there would drop nothing, in silence. Raises UnknownNameError."""
    patterns = [pattern for rule in suite.exclude for pattern in rule.recipes or ()]
    if not patterns:
        return
    known = list(list_recipes())
    for one in suite.training.recipe if suite.training else ():
        try:
            known.append(load_recipe(one).name)
        except UsageError:  # said where it is to be used, which an option may have changed
            known.append(Path(one).stem)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            raise UnknownNameError("recipe", pattern, known, "vitbench list recipes")


def _overridden(name: str, section: Training) -> Recipe:
    """A recipe with what a suite says in its place."""
    given = {key: getattr(section, key) for key in (*BUDGETS, "batch_size")}
    changes = {key: value for key, value in given.items() if value is not None}
    recipe = load_recipe(name, **changes)
    if section.share == 1:
        return recipe
    amount = getattr(recipe, recipe.budget) * section.share
    changes[recipe.budget] = max(int(amount), 1) if recipe.budget in ("images", "steps") else amount
    return load_recipe(name, **changes)


def _largest_class(recipe: Recipe, info: DataInfo) -> int:
    """About how many pictures the largest class has beside those for validation: exact for a folder that holds out
    none, and where all classes have as many.
    """
    largest = math.ceil(info.train_images / info.num_classes)
    if info.path is not None and info.spec not in DOWNLOADS:
        largest = max(Counter(file.label for file in read_listing(info).files["train"]).values())
    return largest - round(recipe.validation * largest)


def _is_file(imbalance: str) -> bool:
    return Path(imbalance).expanduser().is_file()


def _chosen(file: str, info: DataInfo) -> list[int]:
    """The pictures that a file of indices names. Raises DataError for one that is no such file."""
    return choose_imbalanced([0] * info.train_images, range(info.train_images), file, 0)


def check_before_loading(suite: Suite, *, allow_many_cells: bool = False) -> Suite:
    """All that can be checked without torch, so that a typo fails in the first second; canonical device names.

    Raises UsageError: more cells than a person means (unless they are allowed), unknown devices, illegal image sizes of
    our own models, missing data.
    """
    check_count(suite, allow_many=allow_many_cells)
    devices = tuple(dict.fromkeys(canonical_device_name(name) for name in suite.devices))
    rules = tuple(
        rule.model_copy(update={"devices": tuple(canonical_device_name(name) for name in rule.devices)})
        if rule.devices
        else rule
        for rule in suite.exclude
    )
    suite = suite.model_copy(update={"devices": devices, "exclude": rules})
    if suite.training is not None and suite.training.devices is not None:
        suite = _train_on(suite, [canonical_device_name(name) for name in suite.training.devices])
    _check_weights_option(suite)
    _check_cores(suite)
    own = tuple(name for name in suite.models if not is_external(name))
    training = resolve_training(suite)
    facts = training.facts() if training else None
    for name in own:
        # devices and threads are not known yet: a rule that names them may drop a cell, so here it does
        rules = tuple(rule.model_copy(update={"devices": None, "threads": None}) for rule in suite.exclude)
        one = suite.model_copy(update={"models": (name,), "exclude": rules})
        try:
            expand(one, devices=("cpu",), threads=1, models={name: own_facts(name)}, training=facts)
        except NoCellsLeftError:
            continue
    return suite


def _check_cores(suite: Suite) -> None:
    cores = suite.measure.cores
    if cores is None:
        return
    if sys.platform == "darwin":
        raise UsageError("macOS binds no process to cores: leave measure.cores out")
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not cores or not set(cores) <= set(allowed):
        raise UsageError(f"measure.cores = {list(cores)} cannot be had here. Give any of {allowed}")
    threads = max(default_threads() if count == "auto" else count for count in suite.threads)
    if threads > len(set(cores)):
        raise UsageError(
            f"{threads} threads do not fit on the {len(set(cores))} of measure.cores: give more cores, or --threads"
        )


def _check_weights_option(suite: Suite) -> None:
    if suite.weights in (RANDOM, PRETRAINED):
        if suite.replace_head and suite.weights == RANDOM:
            raise UsageError("--replace-head goes with --weights PATH or --pretrained")
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
    note: Callable[[str], None],
    *,
    allow_many_cells: bool = False,
    allow_downloads: bool = True,
) -> Plan:
    """Find the devices, look every model up, count parameters and FLOPs, expand to cells, estimate the time.

    Without ``allow_downloads`` published weights are not tried and no data set is fetched, which is noted. Raises
    UsageError for names, devices and sizes that are not legal: before the first cell, not as its record.
    """
    note("Loading torch, looking for devices ...")
    launcher.wait_until_ready()
    (described,) = _ask(launcher, Describe())
    found = list(described["devices"])
    where_to_train = suite.training.devices if suite.training else None
    for name in (*suite.devices, *(where_to_train or ())):
        if name != "auto" and name not in found:
            raise DeviceError(f"Device {name!r} is not there. Found: {', '.join(found)}. See: vitbench list devices")
    devices = tuple(dict.fromkeys(d for name in suite.devices for d in (found if name == "auto" else [name])))
    if where_to_train is not None:
        suite = _train_on(suite, [_fastest_of(devices) if name == "auto" else name for name in where_to_train])
    threads = tuple(default_threads() if count == "auto" else count for count in suite.threads)
    suite = suite.model_copy(update={"devices": devices, "threads": tuple(dict.fromkeys(threads))})

    suite = suite.model_copy(update={"models": _match_external(suite.models, launcher)})
    check_count(suite, allow_many=allow_many_cells)  # now that it is known what patterns and auto stand for

    training = resolve_training(suite)
    facts = _look_up(suite.models, launcher)
    digest, trained_at = _look_at_checkpoint(suite, launcher)
    if trained_at is not None:
        facts = {name: replace(one, image_size=trained_at) for name, one in facts.items()}
    cells = expand(
        suite,
        devices=devices,
        threads=threads[0],
        models=facts,
        training=training.facts() if training else None,
        checkpoint=digest,
        note=note,
    )
    if suite.weights == PRETRAINED and not allow_downloads:
        note("The published weights are not tried, which may download them: a run does that first")
    elif suite.weights != RANDOM:
        note("Trying the weights ...")
        _try_weights(suite, cells, launcher)
    if training and suite.training and suite.training.download and not allow_downloads:
        note(f"{suite.training.data} is not looked at, which may download it: a run does that first")
    elif training and suite.training and suite.training.download:
        note(f"Looking for {suite.training.data}, downloading it if need be ...")
        task = Fetch(data=suite.training.data, data_dir=suite.training.data_dir)
        _ask(launcher, task, timeout_s=suite.training.timeout_s)
    environment = capture_environment(
        described["libraries"], {name: described["devices"][name] for name in {cell.device for cell in cells}}
    )
    if is_static(suite) and suite.image_sizes == (NATIVE,):
        # nothing here can be refused, and nothing needs an estimate: counted cell by cell, each safe at once
        return Plan(suite, cells, training, {}, {cell.id: _STATIC_S for cell in cells}, environment)
    static = count_static(suite, cells, launcher, note)
    memory = {name: _memory_bytes(suite, name, described["devices"][name]) for name in devices}
    estimates = _estimate(suite, cells, training, static, launcher, memory)
    return Plan(suite, cells, training, static, estimates, environment)


def _train_on(suite: Suite, devices: Sequence[str]) -> Suite:
    assert suite.training is not None
    section = suite.training.model_copy(update={"devices": tuple(dict.fromkeys(devices))})
    return suite.model_copy(update={"training": section})


def _fastest_of(devices: Sequence[str]) -> str:
    """The first accelerator, else the first device: the same training on another one would tell nothing new."""
    return next((name for name in devices if open_device(name).asynchronous), devices[0])


def look_up_models(suite: Suite, launcher: Launcher) -> tuple[Suite, dict[str, ModelFacts]]:
    """The suite with its patterns over other libraries' names replaced by what they mean, and what expansion needs to
    know of each model. Raises UsageError for names that are none; asks a worker about those of other libraries only.
    """
    suite = suite.model_copy(update={"models": _match_external(suite.models, launcher)})
    return suite, _look_up(suite.models, launcher)


def static_metrics(suite: Suite) -> tuple[str, ...]:
    """The metrics of a suite that need no device, and those that every plan needs."""
    return tuple(
        dict.fromkeys([*_ALWAYS_COUNTED, *(name for name in suite.metrics if METRICS.get(name).process == "static")])
    )


def count_static(
    suite: Suite, cells: list[Cell], launcher: Launcher, note: Callable[[str], None]
) -> dict[StaticKey, Outcome]:
    """Parameters and FLOPs on ``meta`` for each distinct model and size.

    A size or class count that a model refuses is wrong usage (UsageError); every other failure stays in the outcome.
    """
    outcomes: dict[StaticKey, Outcome] = {}
    with StaticCounter(launcher, static_metrics(suite), suite.timeout_s) as counter:
        count = counter.begin(cells)
        models = len({cell.model for cell in cells})
        # once for each size, number of classes and kind of attention of each
        times = f", {count} counts in all" if count > models else ""
        note(f"Counting parameters and FLOPs of {models} model{'s' if models > 1 else ''}{times} ...")
        for cell in cells:
            outcome = outcomes[static_key(cell)] = counter.outcome(cell)
            if outcome.failure is not None and outcome.failure.cause in USAGE_CAUSES:
                raise UsageError(with_training_size(suite, cell, outcome.failure.detail))
    return outcomes


def is_static(suite: Suite) -> bool:
    """Whether a suite asks for nothing but what is counted on ``meta``."""
    return all(METRICS.get(name).process == "static" for name in suite.metrics)


def _ask(launcher: Launcher, task: Task, timeout_s: float = 600.0) -> list[Mapping[str, Any]]:
    """The answers of a fresh worker. Raises UsageError if an answer says that the question is wrong usage."""
    worker = launcher.start()
    outcome = finish(worker, converse(worker, task, timeout_s=timeout_s), "cpu")
    if outcome.failure is not None or not outcome.answers:
        last = outcome.stderr_tail.splitlines()
        why = outcome.failure.detail if outcome.failure else "it said nothing"
        raise WorkerError(f"A worker could not answer {kind_of(task)!r}: {why}{': ' + last[-1] if last else ''}")
    for answer in outcome.answers:
        if answer.error:
            raise UsageError(answer.error)
    return [answer.values for answer in outcome.answers]


def _look_at_checkpoint(suite: Suite, launcher: Launcher) -> tuple[str, tuple[int, int] | None]:
    """The digest of a suite's checkpoint (empty without one), and the size that ``native`` stands for with it (height,
    width, px), if that is asked for. Raises UsageError.
    """
    weights = weights_of(suite)
    if weights is None:
        return "", None
    (answer,) = _ask(launcher, Digest(weights=weights, model=suite.models[0] if NATIVE in suite.image_sizes else ""))
    size = answer.get("image_size")
    return str(answer["digest"]), None if size is None else (size[0], size[1])


def _try_weights(suite: Suite, cells: list[Cell], launcher: Launcher) -> None:
    """Load (or download) the weights once for each model and size, so that what does not fit fails before the first
    cell. Raises UsageError.
    """
    tried: dict[StaticKey, Cell] = {}
    for cell in cells:
        tried.setdefault(static_key(cell), cell)
    for cell in tried.values():
        _ask(launcher, TryWeights(cell=cell, weights=weights_of(suite)), timeout_s=_DOWNLOAD_S)


def own_facts(name: str) -> ModelFacts:
    """What expansion needs to know of a model of our own, without torch. Raises UnknownNameError."""
    card = model_registry().get(name)
    return ModelFacts(
        card.image_size, card.num_classes, card.check_image_size, card.published_weights, card.published_classes
    )


def _match_external(names: tuple[str, ...], launcher: Launcher) -> tuple[str, ...]:
    """``timm:`` and ``torchvision:`` patterns replaced by the names that they mean. Raises UsageError for none."""
    patterns = [name for name in names if is_external(name) and is_pattern(name)]
    if not patterns:
        return names
    found: dict[str, list[str]] = {}
    for answer in _ask(launcher, Match(patterns=tuple(patterns))):
        found[answer["pattern"]] = answer["models"]
    return tuple(dict.fromkeys(one for name in names for one in found.get(name, [name])))


def _look_up(names: tuple[str, ...], launcher: Launcher) -> dict[str, ModelFacts]:
    facts = {name: own_facts(name) for name in names if not is_external(name)}
    external = [name for name in names if is_external(name)]
    if external:
        for answer in _ask(launcher, Inspect(models=tuple(external))):
            height, width = answer["image_size"]
            # such a model checks its sizes itself when it is built, which is before the first cell
            facts[answer["model"]] = ModelFacts(
                (height, width),
                answer["num_classes"],
                lambda size: None,
                answer["published_weights"],
                answer["published_classes"],
            )
    return facts


def _estimate(
    suite: Suite,
    cells: list[Cell],
    training: TrainingPlan | None,
    static: Mapping[StaticKey, Outcome],
    launcher: Launcher,
    memory: Mapping[str, float],
) -> dict[str, float]:
    """Seconds for each cell (or the search that it is the base of), from its FLOPs and this machine's speed on a small
    transformer block: right to a factor of 2 or 3. ``memory``: the bytes that a cell may take on each device.
    """
    rates: dict[str, float] = {}
    for device in {cell.device for cell in cells}:
        threads = next(cell.threads for cell in cells if cell.device == device)
        try:
            (answer,) = _ask(launcher, Calibrate(device=device, threads=threads))
            rates[device] = answer["flops_per_s"]
        except WorkerError:  # a device that is full, or broken: its cells will say so, and an estimate stops nothing
            rates[device] = _UNKNOWN_RATE
    estimates: dict[str, float] = {}
    counted: set[StaticKey] = set()
    for cell in cells:
        found = static[static_key(cell)].measurements
        counts = {m.metric: m.value for m in found if m.metric in _ALWAYS_COUNTED and m.status == "ok"}
        flops = counts.get("flops", 1e9)
        one_image = flops / rates[cell.device]
        if cell.tests and training is not None:
            tested = (suite.training.test_images if suite.training else None) or training.info.test_images
            recipe = training.recipe_of(cell)
            seconds = recipe.seconds or 0.0
            images = recipe.total_images(training.training_pictures(recipe)) or 0
            if not cell.trains:
                images, seconds = 0, 0.0
            estimates[cell.id] = _PROCESS_S + seconds + one_image * (images * _STEP_IN_FORWARDS + tested)
            continue
        if suite.frontier is None:
            total = _cell_seconds(suite, cell, one_image)
        else:
            largest = guess_largest(counts.get("params", 1e7), flops, cell.mode, memory[cell.device])
            batches = expected_attempts(largest, suite.frontier.max_batch)
            total = _search_seconds(suite, cell, one_image, batches, largest)
        if static_key(cell) not in counted:
            metrics = [METRICS.get(name) for name in suite.metrics if cell.mode in METRICS.get(name).modes]
            total += 2 * _PROCESS_S * sum(metric.process == "counters" for metric in metrics)
            counted.add(static_key(cell))
        estimates[cell.id] = total
    return estimates


def _call_seconds(cell: Cell, one_image: float) -> float:
    """One forward pass or training step, where one picture's forward pass takes ``one_image`` seconds."""
    return one_image * cell.batch_size * (_STEP_IN_FORWARDS if cell.mode == "train" else 1)


def _cell_seconds(suite: Suite, cell: Cell, one_image: float) -> float:
    """Its processes on the device."""
    call = _call_seconds(cell, one_image)
    metrics = [METRICS.get(name) for name in suite.metrics if cell.mode in METRICS.get(name).modes]
    total = 0.0
    if any(metric.process == "time" for metric in metrics):
        sampling = max(suite.measure.seconds, suite.measure.min_samples * call)
        # with a turn of the reference after every one or two of the cell's
        total += suite.measure.processes * (_PROCESS_S + sampling * (1 + TURN_S / max(call, 2 * TURN_S)))
    if any(metric.process == "energy" for metric in metrics):
        total += _ENERGY_S
    if any(metric.process == "memory" for metric in metrics):
        total += _PROCESS_S + 4 * call
    return total


def _search_seconds(suite: Suite, base: Cell, one_image: float, batches: Sequence[int], largest: int) -> float:
    """A search that tries ``batches``; those beyond ``largest`` end somewhere in their first call, and one that takes
    too long ends the search.
    """
    total = 0.0
    for batch in batches:
        cell = replace(base, batch_size=batch)
        fits = batch <= largest
        seconds = _cell_seconds(suite, cell, one_image) if fits else _PROCESS_S + _call_seconds(cell, one_image) / 2
        total += min(seconds, suite.timeout_s)
        if seconds > suite.timeout_s:
            break
    return total


def _memory_bytes(suite: Suite, device: str, facts: Mapping[str, Any]) -> float:
    """What a cell may take there: the suite's limit, or what the machine has."""
    if suite.memory_limit is not None:
        return float(suite.memory_limit)
    on_host = split_name(device)[0] == "cpu" or not facts.get("memory_bytes")
    return float(available_memory() if on_host else facts["memory_bytes"])

"""A suite becomes a plan: cells that are known to be legal, what costs no device to know of them, and how long they
will take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitbench.conversation import Outcome, converse, finish
from vitbench.devices import canonical_device_name
from vitbench.environment import capture_environment, default_threads, hash_environment
from vitbench.errors import DeviceError, UsageError, WorkerError
from vitbench.processes import Launcher, Worker
from vitbench.records import Cell
from vitbench.registry import METRICS, is_external, model_registry
from vitbench.suites import ModelFacts, NoCellsLeftError, Suite, TrainingFacts, expand
from vitbench.training.data import DataInfo, describe_data
from vitbench.training.recipes import Recipe, load_recipe

STATIC_METRICS = ("params", "flops")
#: Seconds that building a model, warming up and ending a process take beside its sampling: a rough figure, for
#: estimates only.
_PROCESS_S = 0.4
#: A training step computes about three forward passes (forward, and twice that backward).
_STEP_IN_FORWARDS = 3.0

#: FLOP/s of a device that could not be asked: a modest CPU.
_UNKNOWN_RATE = 2e10

StaticKey = tuple[str, tuple[int, int], int, str]


def static_key(cell: Cell) -> StaticKey:
    """What parameters and FLOPs depend on: cells that share it share these figures."""
    return cell.model, cell.image_size, cell.num_classes, cell.attention


@dataclass(frozen=True)
class TrainingPlan:
    """A suite's training, resolved: the recipe with its overrides and the data set."""

    recipe: Recipe
    info: DataInfo

    def facts(self) -> TrainingFacts:
        """What expansion needs of it."""
        return TrainingFacts(
            data=self.info.label,
            num_classes=self.info.num_classes,
            recipe=self.recipe.name,
            recipe_hash=self.recipe.hash,
            batch_size=self.recipe.batch_size,
        )


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
    """The recipe and data of a suite's training; None if it has none, or asks for no metric that trains.

    Loads no torch. Raises UsageError for a recipe or data set that is not there.
    """
    section = suite.training
    if section is None or not any(METRICS.get(name).process == "training" for name in suite.metrics):
        return None
    given = {key: getattr(section, key) for key in ("images", "steps", "epochs", "seconds", "batch_size")}
    recipe = load_recipe(section.recipe, **{key: value for key, value in given.items() if value is not None})
    root = Path(section.data_dir) if section.data_dir else None
    return TrainingPlan(recipe, describe_data(section.data, root=root, download=section.download))


def check_before_loading(suite: Suite) -> Suite:
    """All that can be checked without torch, so that a typo fails in the first second; canonical device names.

    Raises UsageError: unknown devices, illegal image sizes of our own models, missing data.
    """
    devices = tuple(dict.fromkeys(canonical_device_name(name) for name in suite.devices))
    rules = tuple(
        rule.model_copy(update={"devices": tuple(canonical_device_name(name) for name in rule.devices)})
        if rule.devices
        else rule
        for rule in suite.exclude
    )
    suite = suite.model_copy(update={"devices": devices, "exclude": rules})
    own = tuple(name for name in suite.models if not is_external(name))
    training = resolve_training(suite)
    facts = training.facts() if training else None
    for name in own:
        # devices and threads are not known yet: a rule that names them may drop a cell, so here it does
        rules = tuple(rule.model_copy(update={"devices": None, "threads": None}) for rule in suite.exclude)
        one = suite.model_copy(update={"models": (name,), "exclude": rules})
        try:
            expand(one, devices=("cpu",), threads=1, models={name: _own_facts(name)}, training=facts)
        except NoCellsLeftError:
            continue
    return suite


def make_plan(suite: Suite, launcher: Launcher, note: Callable[[str], None]) -> Plan:
    """Find the devices, look every model up, count parameters and FLOPs, expand to cells, estimate the time.

    Raises UsageError for names, devices and sizes that are not legal: before the first cell, not as its record.
    """
    note("Loading torch and timm, looking for devices ...")
    launcher.wait_until_ready()
    described = _ask(launcher, {"kind": "describe"})[0]
    found = list(described["devices"])
    for name in suite.devices:
        if name != "auto" and name not in found:
            raise DeviceError(f"Device {name!r} is not there. Found: {', '.join(found)}. See: vitbench list devices")
    devices = tuple(dict.fromkeys(d for name in suite.devices for d in (found if name == "auto" else [name])))
    threads = tuple(default_threads() if count == "auto" else count for count in suite.threads)
    suite = suite.model_copy(update={"devices": devices, "threads": tuple(dict.fromkeys(threads))})

    training = resolve_training(suite)
    cells = expand(
        suite,
        devices=devices,
        threads=threads[0],
        models=_look_up(suite.models, launcher),
        training=training.facts() if training else None,
    )
    if training and suite.training and suite.training.download:
        note(f"Looking for {suite.training.data}, downloading it if need be ...")
        task = {"kind": "fetch", "data": suite.training.data, "data_dir": suite.training.data_dir}
        (answer,) = _ask(launcher, task, timeout_s=suite.training.timeout_s)
        if "error" in answer:
            raise UsageError(answer["error"])
    environment = capture_environment(
        described["libraries"], {name: described["devices"][name] for name in {cell.device for cell in cells}}
    )
    static = count_static(cells, launcher, note, suite.timeout_s)
    return Plan(suite, cells, training, static, _estimate(suite, cells, training, static, launcher), environment)


def count_static(
    cells: list[Cell], launcher: Launcher, note: Callable[[str], None], timeout_s: float
) -> dict[StaticKey, Outcome]:
    """Parameters and FLOPs on ``meta`` for each distinct model and size, all in one worker (a new one after a death).

    A size or class count that a model refuses is wrong usage (UsageError); every other failure stays in the outcome.
    """
    keys: dict[StaticKey, Cell] = {}
    for cell in cells:
        keys.setdefault(static_key(cell), cell)
    note(f"Counting parameters and FLOPs of {len(keys)} model{'s' if len(keys) > 1 else ''} ...")
    outcomes: dict[StaticKey, Outcome] = {}
    worker: Worker | None = None
    for key, cell in keys.items():
        if worker is None or not worker.alive():
            worker = launcher.start()
        outcome = converse(worker, measure_task(cell, "static", STATIC_METRICS), timeout_s=timeout_s)
        if outcome.failure is not None and outcome.failure.cause == "usage":
            worker.end()
            raise UsageError(outcome.failure.detail)
        if outcome.failure is not None:
            outcome = finish(worker, outcome, "cpu")
            worker = None
        outcomes[key] = outcome
    if worker is not None:
        worker.end()
    return outcomes


def measure_task(cell: Cell, process: str, metrics: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """The task that makes a worker measure ``metrics`` of ``cell``."""
    return {"kind": "measure", "process": process, "metrics": list(metrics), "cell": asdict(cell), **more}


def _ask(launcher: Launcher, task: Mapping[str, Any], timeout_s: float = 600.0) -> list[dict[str, Any]]:
    worker = launcher.start()
    outcome = finish(worker, converse(worker, task, timeout_s=timeout_s), "cpu")
    if outcome.failure is not None or not outcome.answers:
        last = outcome.stderr_tail.splitlines()
        why = outcome.failure.detail if outcome.failure else "it said nothing"
        raise WorkerError(f"A worker could not answer {task['kind']!r}: {why}{': ' + last[-1] if last else ''}")
    return outcome.answers


def _own_facts(name: str) -> ModelFacts:
    card = model_registry().get(name)
    return ModelFacts(card.image_size, card.num_classes, card.check_image_size)


def _look_up(names: tuple[str, ...], launcher: Launcher) -> dict[str, ModelFacts]:
    facts = {name: _own_facts(name) for name in names if not is_external(name)}
    external = [name for name in names if is_external(name)]
    if external:
        for answer in _ask(launcher, {"kind": "inspect", "models": external}):
            if "error" in answer:
                raise UsageError(answer["error"])
            height, width = answer["image_size"]
            # such a model checks its sizes itself when it is built, which is before the first cell
            facts[answer["model"]] = ModelFacts((height, width), answer["num_classes"], lambda size: None)
    return facts


def _estimate(
    suite: Suite,
    cells: list[Cell],
    training: TrainingPlan | None,
    static: Mapping[StaticKey, Outcome],
    launcher: Launcher,
) -> dict[str, float]:
    """Seconds for each cell, from its FLOPs and this machine's speed on a small transformer block: right to a factor
    of 2 or 3.
    """
    rates: dict[str, float] = {}
    for device in {cell.device for cell in cells}:
        threads = next(cell.threads for cell in cells if cell.device == device)
        try:
            (answer,) = _ask(launcher, {"kind": "calibrate", "device": device, "threads": threads})
            rates[device] = answer["flops_per_s"]
        except WorkerError:  # a device that is full, or broken: its cells will say so, and an estimate stops nothing
            rates[device] = _UNKNOWN_RATE
    estimates: dict[str, float] = {}
    counted: set[StaticKey] = set()
    for cell in cells:
        flops = next((m.value for m in static[static_key(cell)].measurements if m.metric == "flops"), 1e9)
        one_image = flops / rates[cell.device]
        if cell.trains and training is not None:
            tested = (suite.training.test_images if suite.training else None) or training.info.test_images
            seconds = training.recipe.seconds or 0.0
            images = training.recipe.total_images(training.info.train_images) or 0
            estimates[cell.id] = _PROCESS_S + seconds + one_image * (images * _STEP_IN_FORWARDS + tested)
            continue
        call = one_image * cell.batch_size * (_STEP_IN_FORWARDS if cell.mode == "train" else 1)
        metrics = [METRICS.get(name) for name in suite.metrics if cell.mode in METRICS.get(name).modes]
        total = 0.0
        if any(metric.process == "time" for metric in metrics):
            total += suite.measure.processes * (
                _PROCESS_S + max(suite.measure.seconds, suite.measure.min_samples * call)
            )
        if any(metric.process == "memory" for metric in metrics):
            total += _PROCESS_S + 4 * call
        if static_key(cell) not in counted:
            total += 2 * _PROCESS_S * sum(metric.process == "counters" for metric in metrics)
            counted.add(static_key(cell))
        estimates[cell.id] = total
    return estimates

"""Expand a suite to its cells: the cross product of its axes, less what its [[exclude]] rules drop."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitbench.core.errors import ImageSizeError, SuiteError
from vitbench.core.records import RGB, Cell, channel_options, format_image_size
from vitbench.core.registry import METRICS
from vitbench.models.cards import PRETRAINED
from vitbench.suites.batch_search import most_attempts
from vitbench.suites.schema import NATIVE, RANDOM, TRAIN_IMAGES, Exclude, Suite

#: More cells than these are a typing mistake: at ten seconds each they would take a day.
MOST_CELLS = 10_000
#: Roughly what a plan keeps of each cell in memory.
_BYTES_A_CELL = 2_000


class NoCellsLeftError(SuiteError):
    """A suite whose rules drop every cell."""


@dataclass(frozen=True)
class ModelFacts:
    """What expansion needs to know of a model: its native size (px), its classes, whether a size is legal, the name of
    its published weights (empty without any) and the classes of their head.
    """

    image_size: tuple[int, int]
    num_classes: int
    check_image_size: Callable[[tuple[int, int]], None]
    published_weights: str = ""
    published_classes: int | None = None


@dataclass(frozen=True)
class RecipeFacts:
    """What expansion needs to know of a recipe."""

    name: str
    hash: str
    batch_size: int


@dataclass(frozen=True)
class TrainingFacts:
    """What expansion needs to know of a suite's training: the data set's label and classes, the recipes (at least one),
    and ``train_images`` if these are less than all.
    """

    data: str
    num_classes: int
    recipes: tuple[RecipeFacts, ...]
    train_images: int | None = None


def count_cells(suite: Suite, *, devices: int = 1) -> tuple[int, str]:
    """How many cells a suite has before its rules drop any, by arithmetic; and the factors, in words.

    ``devices``: how many ``auto`` stands for. A pattern over other libraries' names counts as one model until it is
    resolved, and an attempt of a search for the largest batch counts as a cell.
    """
    named = len({name for name in suite.devices if name != "auto"}) + (devices if "auto" in suite.devices else 0)
    metrics = [METRICS.get(name) for name in suite.metrics]
    timed = [metric for metric in metrics if metric.process != "training"]
    common = {"models": len(suite.models), "devices": named, "dtypes": len(suite.dtypes), "seeds": len(suite.seeds)}
    factors = {
        **common,
        "image_sizes": len(suite.image_sizes),
        "batch_sizes": len(suite.batch_sizes),
        "modes": sum(any(mode in metric.modes for metric in timed) for mode in suite.modes),
        "attention": len(suite.attention),
        "compile": len(set(suite.compile)),
        "threads": len(set(suite.threads)),
    }
    if suite.frontier is not None:
        factors["batch_sizes"] = most_attempts(suite.frontier.max_batch)
    total, most = math.prod(factors.values()), factors
    if suite.training is not None and len(timed) < len(metrics):
        own_size = suite.weights == RANDOM and suite.training.image_size is not None
        trained = {
            **common,
            "devices": len(suite.training.devices or ()) or named,
            "image_sizes": 1 if own_size else len(suite.image_sizes),
            "recipes": len(suite.training.recipe) if suite.weights == RANDOM else 1,
        }
        count = math.prod(trained.values())
        total, most = total + count, most if total >= count else trained
    return total, " x ".join(f"{count:,} {name}" for name, count in most.items() if count > 1)


def check_count(suite: Suite, *, devices: int = 1, allow_many: bool = False) -> None:
    """Raises SuiteError for a suite of more than MOST_CELLS cells, unless ``allow_many``; and in any case if planning
    them would take more memory than there is. See ``count_cells``.
    """
    count, factors = count_cells(suite, devices=devices)
    if count <= MOST_CELLS:
        return
    asked = f"Suite {suite.name!r} asks for {count:,} cells ({factors})"
    if suite.exclude:
        asked += " before its [[exclude]] rules"
    if not allow_many:
        raise SuiteError(f"{asked}, more than {MOST_CELLS:,}: give shorter lists, or --yes to allow it")
    from vitbench.devices.host.memory import available_memory

    free = available_memory()
    if count * _BYTES_A_CELL > free:
        raise SuiteError(
            f"{asked}. Planning them takes more than the {free / 1e9:.1f} GB of free memory, also with --yes: split it "
            "into several suites"
        )


def expand(
    suite: Suite,
    *,
    devices: Sequence[str],
    threads: int,
    models: Mapping[str, ModelFacts],
    training: TrainingFacts | None,
    checkpoint: str = "",
    note: Callable[[str], None] = lambda text: None,
) -> list[Cell]:
    """The cells of a suite, in the order in which they are measured: the timed ones model by model, then the training
    ones.

    ``devices`` are those that ``auto`` stands for (in ``[training]``, too, unless the plan has chosen one device),
    ``threads`` what ``auto`` threads are, ``checkpoint`` the digest of the suite's checkpoint, if it has one. ``note``
    receives one line on how many cells the rules drop. Raises ImageSizeError for a size that a model does not take,
    SuiteError for a model without published weights if these are asked for, and for training or testing a model
    without a head, or with other channels than those of the data.
    """
    axes = _Axes(suite, _named_devices(suite.devices, devices), threads, models, training, checkpoint)
    cells = axes.timed_cells() + axes.training_cells()
    if suite.weights == PRETRAINED and not suite.replace_head:
        _refuse_random_heads(cells, models)
    kept = [cell for cell in cells if not any(rule.drops(cell) for rule in suite.exclude)]
    for cell in kept:
        try:
            models[cell.model].check_image_size(cell.image_size)
        except ImageSizeError as error:
            raise ImageSizeError(with_training_size(suite, cell, str(error))) from error
    if suite.num_classes == 0 and any(cell.mode == "train" for cell in kept):
        raise SuiteError(
            f"Suite {suite.name!r} says num_classes = 0: models without a head cannot be trained. Give classes, or "
            "modes = 'infer' (--modes infer)"
        )
    if not cells:
        raise SuiteError(
            f"Suite {suite.name!r} has no cells: none of its metrics ({', '.join(suite.metrics)}) applies to its modes "
            f"({', '.join(suite.modes)}), or accuracy is asked for without a training section (--data)"
        )
    if not kept:
        raise NoCellsLeftError(
            f"Suite {suite.name!r} has no cells left: its [[exclude]], modes and metrics drop all {len(cells)}"
        )
    if len(kept) < len(cells):
        note(_left_out(suite.exclude, cells))
    return list({cell.id: cell for cell in kept}.values())


@dataclass(frozen=True)
class _Axes:
    """A suite with the values that its axes take on this machine."""

    suite: Suite
    devices: tuple[str, ...]
    auto_threads: int
    models: Mapping[str, ModelFacts]
    training: TrainingFacts | None
    checkpoint: str

    def timed_cells(self) -> list[Cell]:
        """The cells of every metric that does not train."""
        suite = self.suite
        modes = [mode for mode in suite.modes if any(mode in metric.modes for metric in self._timed_metrics())]
        axes = itertools.product(
            suite.models,
            suite.image_sizes,
            self.devices,
            suite.dtypes,
            suite.attention,
            suite.compile,
            suite.threads,
            suite.seeds,
            modes,
            suite.batch_sizes,
        )
        return [
            self._cell(
                model,
                size,
                threads,
                device=device,
                dtype=dtype,
                attention=attention,
                compile=compiled,
                seed=seed,
                mode=mode,
                batch_size=batch_size,
                weights=self._weights(model),
                options=channel_options(suite.in_channels),
            )
            for model, size, device, dtype, attention, compiled, threads, seed, mode, batch_size in axes
        ]

    def training_cells(self) -> list[Cell]:
        """One cell a model, size, device, dtype, recipe and seed that is trained; or tested, if weights are given."""
        suite, training = self.suite, self.training
        if training is None or suite.training is None or len(self._timed_metrics()) == len(suite.metrics):
            return []
        if suite.in_channels != RGB:
            raise SuiteError(
                f"Suite {suite.name!r} says in_channels = {suite.in_channels}, but the images of data sets have {RGB}. "
                "Leave it out, or train nothing with --data none"
            )
        learns = suite.weights == RANDOM
        sizes: Sequence[Any] = suite.image_sizes
        devices, recipes = self.devices, training.recipes[:1]
        options: tuple[tuple[str, str], ...] = ()
        if learns:  # given weights are tested at the sizes and on the devices that are timed
            if suite.training.image_size is not None:
                sizes = (suite.training.image_size,)
            devices = _named_devices(suite.training.devices or ("auto",), self.devices)
            recipes = training.recipes
            options = ((TRAIN_IMAGES, str(training.train_images)),) if training.train_images else ()
        return [
            self._cell(
                model,
                size,
                suite.threads[0],
                device=device,
                dtype=dtype,
                attention=suite.attention[0],
                seed=seed,
                mode="train" if learns else "infer",
                batch_size=recipe.batch_size,
                weights=f"train:{recipe.name}" if learns else self._weights(model),
                data=training.data,
                recipe_hash=recipe.hash if learns else None,
                options=options,
            )
            for model, size, device, dtype, recipe, seed in itertools.product(
                suite.models, sizes, devices, suite.dtypes, recipes, suite.seeds
            )
        ]

    def _timed_metrics(self) -> list[Any]:
        metrics = [METRICS.get(name) for name in self.suite.metrics]
        return [metric for metric in metrics if metric.process != "training"]

    def _cell(self, model: str, size: Any, threads: Any, **fields: Any) -> Cell:
        facts = self.models[model]
        return Cell(
            model=model,
            image_size=facts.image_size if size == NATIVE else size,
            num_classes=self._classes(facts),
            threads=self.auto_threads if threads == "auto" else threads,
            memory_limit=self.suite.memory_limit,
            **fields,
        )

    def _weights(self, model: str) -> str:
        if self.suite.weights == RANDOM:
            return RANDOM
        if self.suite.weights != PRETRAINED:
            return self.checkpoint
        if not self.models[model].published_weights:
            raise SuiteError(
                f"{model} has no published weights: leave out --pretrained, or choose models that have (timm:NAME, "
                "torchvision:NAME, vit_b16_finetune, vit_b16_transfer)"
            )
        return f"{PRETRAINED}:{self.models[model].published_weights}"

    def _classes(self, facts: ModelFacts) -> int:
        suite, training = self.suite, self.training
        if training is None:
            return facts.num_classes if suite.num_classes is None else suite.num_classes
        if suite.num_classes not in (None, training.num_classes):
            raise SuiteError(
                f"Suite {suite.name!r} says num_classes = {suite.num_classes}, but its training data {training.data} "
                f"has {training.num_classes} classes. Leave num_classes out"
            )
        return training.num_classes


def with_training_size(suite: Suite, cell: Cell, problem: str) -> str:
    """``problem`` of a cell's image size, and where that size comes from if the suite only trains at it."""
    if not cell.trains or suite.training is None or suite.training.image_size is None:
        return problem
    return (
        f"{problem}. {format_image_size(cell.image_size)} px is the size that suite {suite.name!r} trains at "
        "([training] image_size): change it there, or train nothing with --data none"
    )


def _left_out(rules: Sequence[Exclude], cells: Sequence[Cell]) -> str:
    """How many of ``cells`` each rule drops, in one line; a cell counts for the first rule that drops it."""
    dropped_by = [[n for n, rule in enumerate(rules) if rule.drops(cell)] for cell in cells]
    counts = Counter(numbers[0] for numbers in dropped_by if numbers)
    texts = [rules[n].text + (f" ({counts[n]})" if len(counts) > 1 else "") for n in sorted(counts)]
    total = sum(counts.values())
    return f"{total} cell{'s' if total != 1 else ''} left out by [[exclude]]: {'; '.join(texts)}"


def _named_devices(names: Sequence[str], auto: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for name in names for one in (auto if name == "auto" else [name])))


def _refuse_random_heads(cells: Sequence[Cell], models: Mapping[str, ModelFacts]) -> None:
    """Raises SuiteError for published weights that would be tested with an untrained head."""
    for cell in cells:
        published = models[cell.model].published_classes
        if cell.tests and published not in (None, cell.num_classes):
            raise SuiteError(
                f"The published head of {cell.model} has {published} classes, {cell.data} has {cell.num_classes}: its "
                "head would be random. Add --replace-head if you want to test that, or --data none"
            )

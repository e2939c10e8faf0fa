"""A suite's training, resolved: which recipe each cell trains by, on which data, and how much."""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vitbench.core.errors import DataError
from vitbench.core.records import Cell
from vitbench.core.registry import METRICS
from vitbench.suites import RecipeFacts, Suite, Training, TrainingFacts
from vitbench.training.data.datasets import describe_data
from vitbench.training.data.downloads import DOWNLOADS
from vitbench.training.data.folder import read_listing
from vitbench.training.data.images import DataInfo
from vitbench.training.data.subsets import choose_imbalanced, imbalanced_counts
from vitbench.training.recipes import BUDGETS, Recipe, load_recipe


@dataclass(frozen=True)
class TrainingPlan:
    """The recipes with a suite's overrides, the same recipes as in their files (``published``, in the same order), the
    data set, and the limit to its training images, if the data set has more.
    """

    recipes: tuple[Recipe, ...]
    published: tuple[Recipe, ...]
    info: DataInfo
    train_images: int | None = None

    @functools.cached_property
    def hashes(self) -> tuple[str, ...]:
        """The recipes' hashes, read once: a file of indices may change during a run."""
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
        """The recipe of a training cell; for a cell that only tests, the first one, for its batch size."""
        return self.recipes[self._index(cell)]

    def budget_of(self, cell: Cell) -> str:
        """How much a training cell trains, as text, and where that differs from its recipe."""
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

    def count_training_images(self, recipe: Recipe) -> int:
        """About how many images are trained on: exact where all classes have equally many."""
        count = self.info.train_images
        count -= round(recipe.validation * count)
        if recipe.imbalance is not None:
            try:
                if Path(recipe.imbalance).expanduser().is_file():
                    count = min(count, len(_chosen(recipe.imbalance, self.info)))
                else:
                    classes = self.info.num_classes
                    count = sum(imbalanced_counts(recipe.imbalance, count // classes, classes))
            except DataError:  # an estimate stops nothing
                pass
        return count if self.train_images is None else min(count, self.train_images)

    def _index(self, cell: Cell) -> int:
        known = [(f"train:{one.name}", digest) for one, digest in zip(self.recipes, self.hashes, strict=True)]
        key = (cell.weights, cell.recipe_hash or "")
        return known.index(key) if key in known else 0


def resolve_training(suite: Suite) -> TrainingPlan | None:
    """The recipes and data of a suite's training; None if it has none, or asks for no metric that trains.

    Loads no torch. Raises UsageError for a missing recipe or data set, and for an invalid imbalance.
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
        if Path(recipe.imbalance).expanduser().is_file():
            _chosen(recipe.imbalance, info)
        else:
            imbalanced_counts(recipe.imbalance, _largest_class(recipe, info), info.num_classes)
    limit = section.train_images
    if limit is not None and limit >= info.train_images:
        limit = None
    return TrainingPlan(tuple(recipes), tuple(published), info, limit)


def _overridden(name: str, section: Training) -> Recipe:
    """A recipe with the suite's values in the place of its own."""
    given = {key: getattr(section, key) for key in (*BUDGETS, "batch_size")}
    changes = {key: value for key, value in given.items() if value is not None}
    recipe = load_recipe(name, **changes)
    if section.share == 1:
        return recipe
    amount = getattr(recipe, recipe.budget) * section.share
    changes[recipe.budget] = max(int(amount), 1) if recipe.budget in ("images", "steps") else amount
    return load_recipe(name, **changes)


def _largest_class(recipe: Recipe, info: DataInfo) -> int:
    """About how many training images the largest class has: exact for a folder without validation images, and where
    all classes have equally many.
    """
    largest = math.ceil(info.train_images / info.num_classes)
    if info.path is not None and info.spec not in DOWNLOADS:
        largest = max(Counter(file.label for file in read_listing(info).files["train"]).values())
    return largest - round(recipe.validation * largest)


def _chosen(file: str, info: DataInfo) -> list[int]:
    """The images that a file of indices names. Raises DataError for an invalid file."""
    return choose_imbalanced([0] * info.train_images, range(info.train_images), file, 0)

"""Recipes: the built-in ones, what a file may say, their hash, the learning rate."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from vitbench.errors import UsageError
from vitbench.training.augment import AUGMENTATIONS
from vitbench.training.recipes import Augmentation, Recipe, RecipeError, list_recipes, load_recipe

BASE: dict[str, Any] = {"name": "test", "learning_rate": 1e-3, "batch_size": 8, "steps": 10}


def _write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", list(list_recipes()))
def test_built_in_recipes_load_under_their_own_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


def test_recipe_survives_json() -> None:
    recipe = load_recipe("brief", augment=["crop", "flip"])
    again = Recipe(**json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert again == recipe
    assert again.hash == recipe.hash


def test_recipe_of_ones_own_is_named_after_its_file(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, "learning_rate = 1e-3\nbatch_size = 8\nepochs = 1.5\naugment = 'flip'"))
    assert (recipe.name, recipe.budget, recipe.augment) == ("mine", "epochs", ("flip",))


@pytest.mark.parametrize(("key", "value"), [("images", 100), ("steps", 7), ("epochs", 0.5), ("seconds", 2.5)])
def test_budget_given_replaces_the_recipes_budget(key: str, value: float) -> None:
    recipe = load_recipe("brief", **{key: value})
    assert recipe.budget == key
    assert getattr(recipe, key) == value


@pytest.mark.parametrize(
    ("budget", "images", "steps"),
    [
        ({"images": 100}, 100, 13),
        ({"steps": 3}, 24, 3),
        ({"epochs": 2}, 2874, 360),
        ({"epochs": 0.5}, 718, 90),
        ({"epochs": 1e-9}, 1, 1),
        ({"seconds": 1.0}, None, None),
    ],
)
def test_budget_in_pictures_and_steps(budget: dict[str, Any], images: int | None, steps: int | None) -> None:
    recipe = Recipe(**{**{key: value for key, value in BASE.items() if key != "steps"}, **budget})
    assert recipe.total_images(1437) == images
    assert recipe.total_steps(1437) == steps


def test_hash_never_changes() -> None:
    # committed results hold such hashes: a new key must leave them as they are
    assert Recipe(**BASE).hash == "b3d7e2d6d3a0e44a"


def test_hash_is_that_of_what_is_done() -> None:
    recipe = Recipe(**BASE)
    assert Recipe(**{**BASE, "name": "other", "description": "words", "warmup": 0.0}).hash == recipe.hash
    changed = [{"learning_rate": 2e-3}, {"steps": 11}, {"augment": ["flip"]}, {"clip_norm": 1.0}]
    hashes = {Recipe(**{**BASE, **change}).hash for change in changed}
    assert len(hashes | {recipe.hash}) == 5


def test_learning_rate_rises_and_falls() -> None:
    recipe = Recipe(**{**BASE, "warmup": 0.2, "min_learning_rate": 1e-4})
    assert recipe.learning_rate_at(0.0) == 0.0
    assert recipe.learning_rate_at(0.1) == pytest.approx(0.5e-3)
    assert recipe.learning_rate_at(0.2) == pytest.approx(1e-3)
    assert recipe.learning_rate_at(0.6) == pytest.approx((1e-3 + 1e-4) / 2)
    assert recipe.learning_rate_at(0.4) == pytest.approx(1e-4 + 9e-4 * (1 + math.cos(math.pi / 4)) / 2)
    assert recipe.learning_rate_at(1.0) == pytest.approx(1e-4)
    constant = Recipe(**{**BASE, "schedule": "constant"})
    assert {constant.learning_rate_at(progress) for progress in (0.0, 0.5, 1.0)} == {1e-3}


def test_names_of_augmentations_are_those_that_exist() -> None:
    from typing import get_args

    assert set(get_args(Augmentation)) == set(AUGMENTATIONS)


VALID = "learning_rate = 1e-3\nbatch_size = 8\nsteps = 10\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (VALID + "weigth_decay = 0.1", r"^Recipe mine.toml: unknown key 'weigth_decay'. Did you mean 'weight_decay'\?"),
        (VALID + "optimizer = 'sgd'", r"mine.toml, key 'optimizer': 'sgd' is not allowed. Allowed: adamw, muon$"),
        (VALID + "optimizer = 'AdamW'", r"Did you mean 'adamw'\? Allowed: adamw, muon$"),
        (VALID + "augment = ['flip', 'crops']", r"key 'augment': 'crops' is not allowed. Did you mean 'crop'\?"),
        (VALID + "schedule = 'step'", r"'step' is not allowed. Allowed: cosine, constant"),
        (VALID + "images = 5", r"exactly one budget of images, steps, epochs, seconds, but images and steps are given"),
        ("learning_rate = 1e-3\nbatch_size = 8", r"exactly one budget of .*, but none is given"),
        ("learning_rate = 1e-3\nsteps = 8", r"mine.toml: the key 'batch_size' is missing"),
        (VALID.replace("1e-3", "0"), r"key 'learning_rate': .*greater than 0 \(given: 0\)"),
        (VALID.replace("1e-3", "nan"), r"key 'learning_rate': .* \(given: nan\)"),
        (VALID.replace("= 8", "= 8.5"), r"key 'batch_size': .*integer \(given: 8.5\)"),
        (VALID.replace("= 8", "= true"), r"key 'batch_size': .*integer \(given: True\)"),
        (VALID + "warmup = 1.0", r"key 'warmup': .*less than 1 \(given: 1.0\)"),
        (VALID + "min_learning_rate = 1.0", r"min_learning_rate \(1.0\) is more than learning_rate \(0.001\)"),
        ("learning_rate = ", r"^Recipe mine.toml is no valid TOML"),
    ],
)
def test_wrong_recipe_is_told_file_key_and_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(_write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_unknown_recipe_is_told_the_closest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Unknown recipe 'breif'. Did you mean 'brief'\? Built in: .*brief.*"):
        load_recipe("breif")
    with pytest.raises(RecipeError, match=r"'.*no.toml' does not exist. Built in: .*brief"):
        load_recipe(str(tmp_path / "no.toml"))
    assert issubclass(RecipeError, UsageError)


def test_wrong_override_is_said_to_be_one() -> None:
    with pytest.raises(RecipeError, match=r"Recipe brief.toml, key 'batch_size' \(overridden\): .*\(given: 0\)"):
        load_recipe("brief", batch_size=0)

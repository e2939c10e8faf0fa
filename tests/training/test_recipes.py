"""Recipes: the built-in ones, what a file may say, their hash, the learning rate."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vitbench.core.errors import UsageError
from vitbench.training.augmentation.augment import AUGMENTATIONS
from vitbench.training.recipes import (
    Augmentation,
    Recipe,
    RecipeError,
    check_settings,
    list_recipes,
    load_recipe,
    parse_settings,
)

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
def test_budget_in_images_and_steps(budget: dict[str, Any], images: int | None, steps: int | None) -> None:
    recipe = Recipe(**{**{key: value for key, value in BASE.items() if key != "steps"}, **budget})
    assert recipe.total_images(1437) == images
    assert recipe.total_steps(1437) == steps


def test_hash_never_changes() -> None:
    # committed results hold such hashes: a new key must leave them as they are
    assert Recipe(**BASE).hash == "b3d7e2d6d3a0e44a"


def test_a_file_of_indices_counts_by_its_numbers(tmp_path: Path) -> None:
    one, same, other = (tmp_path / f"{name}.txt" for name in ("one", "same", "other"))
    for path, text in ((one, "1 2 3"), (same, "[3, 1,\n2, 2]"), (other, "1 2 4")):
        path.write_text(text)
    hashes = [Recipe(**BASE, imbalance=str(path)).hash for path in (one, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0] not in {Recipe(**BASE).hash, Recipe(**BASE, imbalance=str(tmp_path / "none.txt")).hash}


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
        (
            VALID + "optimizer = 'lion'",
            r"mine.toml, key 'optimizer': 'lion' is not allowed. Allowed: adamw, adam, sgd, muon$",
        ),
        (VALID + "optimizer = 'AdamW'", r"Did you mean 'adamw'\? Allowed: adamw, adam, sgd, muon$"),
        (VALID + "augment = ['flip', 'crops']", r"key 'augment': 'crops' is not allowed. Did you mean 'crop'\?"),
        (VALID + "schedule = 'poly'", r"'poly' is not allowed. Allowed: cosine, constant, step"),
        (VALID + "images = 5", r"exactly one budget of images, steps, epochs, seconds, but images and steps are given"),
        ("learning_rate = 1e-3\nbatch_size = 8", r"exactly one budget of .*, but none is given"),
        ("learning_rate = 1e-3\nsteps = 8", r"mine.toml: the key 'batch_size' is missing"),
        (VALID.replace("1e-3", "0"), r"key 'learning_rate': .*greater than 0 \(given: 0\)"),
        (VALID.replace("1e-3", "nan"), r"key 'learning_rate': .* \(given: nan\)"),
        (VALID.replace("= 8", "= 8.5"), r"key 'batch_size': .*integer \(given: 8.5\)"),
        (VALID.replace("= 8", "= true"), r"key 'batch_size': .*integer \(given: True\)"),
        (VALID + "warmup = 1.0", r"key 'warmup': .*less than 1 \(given: 1.0\)"),
        (VALID + "mean = [0.5]", r"key 'mean': give a number for each of the three channels"),
        (VALID + "mean = [nan, 0.5, 0.5]", r"key 'mean': Input should be a finite number"),
        (VALID + "min_learning_rate = 1.0", r"min_learning_rate \(1.0\) is more than learning_rate \(0.001\)"),
        ("learning_rate = ", r"^Recipe mine.toml is not valid TOML"),
        (
            VALID + "rotation = 30",
            r"^Recipe mine.toml: rotation has no effect without rotation in augment \(none now\)",
        ),
        (VALID + "momentum = 0.8", r"^Recipe mine.toml: momentum has no effect without optimizer=sgd"),
        (
            VALID + "warmup_start = 0.1",
            r"^Recipe mine.toml: warmup_start has no effect without a warmup: set that, too",
        ),
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


def test_recipes_of_the_five_projects_say_what_these_publish() -> None:
    """The figures of the projects' code and READMEs."""
    base, others = load_recipe("cifar-vit-base"), load_recipe("cifar-vit")
    assert (base.learning_rate, others.learning_rate) == (3e-4, 5e-4)
    for one in (base, others):
        assert (one.optimizer, one.weight_decay, one.batch_size, one.epochs) == ("adamw", 1e-4, 128, 100)
        assert (one.schedule, one.min_learning_rate, one.warmup, one.clip_norm) == ("cosine", 1e-6, 0.0, 1.0)
        assert (one.label_smoothing, one.mixup, one.cutmix, one.seed) == (0.1, 0.8, 1.0, 42)
        assert (one.rotation, one.jitter, one.validation) == (15.0, 0.2, 0.1)
    second = load_recipe("vit-code-replication")
    assert (second.optimizer, second.learning_rate, second.weight_decay) == ("adamw", 3e-4, 0.05)
    assert (second.batch_size, second.epochs, second.label_smoothing) == (32, 20, 0.1)
    third = load_recipe("vit-reproduction", learning_rate=1e-4, epochs=50)
    assert (third.optimizer, third.schedule, third.augment, third.batch_size) == ("adam", "constant", (), 64)
    fourth = load_recipe("vit-classification-cifar10")
    assert (fourth.learning_rate, fourth.weight_decay, fourth.batch_size, fourth.epochs) == (5e-4, 1e-3, 128, 200)
    assert fourth.augment == ("crop", "flip", "randaugment")
    assert fourth.learning_rate_at(0) == pytest.approx(5e-5)  # 0.1 times, for 10 of 200 epochs
    assert fourth.learning_rate_at(10 / 200) == pytest.approx(5e-4)
    assert fourth.learning_rate_at(1.0) == pytest.approx(1e-5)
    fifth = load_recipe("paper-replicating")
    assert (fifth.optimizer, fifth.learning_rate, fifth.weight_decay) == ("adam", 3e-3, 0.3)
    assert (fifth.batch_size, fifth.epochs, fifth.jitter, fifth.mean[0]) == (16, 30, 0.4, 0.485)


@pytest.mark.parametrize("name", list(list_recipes()))
def test_settings_that_a_description_names_can_be_given_as_they_stand_there(name: str) -> None:
    words = load_recipe(name).description.replace(",", " ").split()
    given = [after for before, after in pairwise(words) if before == "--set"]
    assert len(given) == sum("=" in word for word in words)
    load_recipe(name, **parse_settings(given))


def _does(name: str, *without: str) -> dict[str, Any]:
    """The keys of a recipe that say what is done, without some of them."""
    content = load_recipe(name).model_dump(mode="json", exclude_defaults=True, exclude={"name", "description"})
    return {key: value for key, value in content.items() if key not in without}


def test_each_rung_of_the_ablation_adds_one_thing_to_the_one_before() -> None:
    ladder = ["none", "crop", "jitter", "cutout", "mixup", "cutmix"]
    rungs = [_does(f"cifar-vit-base-ablation-{name}") for name in ladder]
    added: list[dict[str, Any]] = []
    for before, after in pairwise(rungs):
        assert not set(before) - set(after)
        added.append({key: value for key, value in after.items() if before.get(key) != value})
    pictures = ["crop", "flip", "jitter", "erasing"]
    assert added == [
        {"augment": pictures[:2]},
        {"augment": pictures[:3]},  # jitter = 0.2 is the default
        {"augment": pictures, "erasing": 0.5},
        {"mixup": 0.8},
        {"cutmix": 1.0},
    ]
    assert load_recipe("cifar-vit-base-ablation-jitter").jitter == 0.2
    changing = ("augment", "erasing", "mixup", "cutmix")
    assert {**rungs[0]} == _does("cifar-vit-base", *changing)


def test_the_treatments_of_imbalanced_classes_differ_by_their_treatment_alone() -> None:
    base = _does("cifar-vit-base", "validation")  # 5,000 images of the largest class are all that there are
    treatments: dict[str, dict[str, Any]] = {
        "baseline": {},
        "sampler": {"sampler": "weighted"},
        "weights": {"class_weights": "inverse"},
        "both": {"sampler": "weighted", "class_weights": "inverse"},
    }
    for name, treatment in treatments.items():
        assert _does(f"cifar-vit-base-imbalanced-{name}") == {**base, "imbalance": "linear:10", **treatment}


def test_steps_multiply_the_learning_rate_where_they_are_said() -> None:
    recipe = Recipe(**{**BASE, "schedule": "step", "step_at": [0.5, 0.75], "min_learning_rate": 5e-5})
    rates = [recipe.learning_rate_at(progress) for progress in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 5e-5, 5e-5])


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (["lr=1e-2", "batch_size=32"], {"learning_rate": 0.01, "batch_size": 32}),
        (["augment=crop,flip"], {"augment": ["crop", "flip"]}),
        (["augment=none"], {"augment": []}),
        (["mean=0.4,0.5,0.6", "clip-norm=none"], {"mean": [0.4, 0.5, 0.6], "clip_norm": None}),
        (["class_weights=none", "sampler = weighted"], {"class_weights": "none", "sampler": "weighted"}),
    ],
)
def test_settings_of_a_command_line(settings: list[str], found: dict[str, Any]) -> None:
    assert parse_settings(settings) == found
    load_recipe("brief", **found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rotation=30"], r"rotation has no effect without rotation in augment \(none now\)"),
        (["augment=crop,flip", "jitter_hue=0.1"], r"without jitter in augment \(crop,flip now\)"),
        (["momentum=0.8"], "optimizer=sgd"),
        (["optimizer=adamw", "muon_factor=2"], "optimizer=muon"),
        (["mix_probability=0.5"], "mixup or cutmix"),
        (["schedule=constant", "min_lr=1e-5"], "schedule=cosine or step"),
    ],
)
def test_a_key_that_is_set_and_does_nothing_is_told(settings: list[str], message: str) -> None:
    given = parse_settings(settings)
    with pytest.raises(RecipeError, match=message):
        check_settings(load_recipe("brief", **given), given)


def test_a_key_of_a_file_that_an_override_leaves_without_use_passes(tmp_path: Path) -> None:
    text = VALID + "optimizer = 'sgd'\nmomentum = 0.8\naugment = ['rotation']\nrotation = 30\n"
    path = _write(tmp_path, text + "schedule = 'step'\nstep_factor = 0.5\nwarmup = 0.1\nwarmup_start = 0.1\n")
    with pytest.raises(RecipeError, match="go together"):
        load_recipe(path)
    recipe = load_recipe(path, schedule="cosine", augment=[], optimizer="adamw", warmup=0.0)
    assert (recipe.momentum, recipe.rotation) == (0.8, 30)
    # what does nothing by the file itself is no override's doing
    path = _write(tmp_path, "learning_rate = 1e-3\nbatch_size = 8\nrotation = 30\n")
    with pytest.raises(RecipeError, match="rotation has no effect"):
        load_recipe(path, steps=3, augment=["flip"])
    load_recipe(path, steps=3, augment=["rotation"])


@pytest.mark.parametrize("name", list(list_recipes()))
def test_a_built_in_recipe_passes_as_a_file_of_ones_own(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, list_recipes()[name].read_text(encoding="utf-8")))
    assert recipe.hash == load_recipe(name).hash
    for nothing in ({"augment": []}, {"mixup": 0.0, "cutmix": 0.0}, {"schedule": "constant"}, {"warmup": 0.0}):
        load_recipe(name, **nothing)


def test_a_key_that_does_something_is_none_that_does_nothing() -> None:
    for setting in ("rotation=30", "erasing=0.3", "mix_probability=0.4", "min_lr=1e-7", "lr=1e-3"):
        given = parse_settings([setting])
        check_settings(load_recipe("cifar-vit", **given), given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["lr"], "not key=value"),
        (["lr=1", "learning_rate=2"], "twice"),
        (["name=x"], "no key 'name'"),
        (["epoch=3"], "Did you mean 'epochs'"),
    ],
)
def test_wrong_settings_of_a_command_line(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_settings(settings)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "expected"),
    # never fewer than 64 at once, unless the steps go through fewer than a quarter of that
    [(2, 1, 8), (8, 1, 32), (16, 1, 64), (128, 1, 128), (512, 64, 32), (128, 2, 128), (64, 64, 4)],
)
def test_images_are_tested_in_batches_that_a_training_can_afford(
    batch_size: int, accumulate: int, expected: int
) -> None:
    recipe = load_recipe("brief", batch_size=batch_size, accumulate=accumulate)
    assert recipe.test_batch_size == expected
